"""The renderer of dSprites against real images, outlines, areas and centres by formula, and turns it must follow."""

import hashlib
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from igebm import data
from igebm.data import Loader, MissingSplit, dsprites, held_out, summary
from igebm.data.dsprites import N, Rendered, Sprites, classes, condition, index, latents, load, pictures, render
from igebm.data.images import Images
from igebm.data.latents import Latent
from igebm.errors import InputError

SQUARE, ELLIPSE, HEART = range(3)
each_shape = pytest.mark.parametrize("shape", range(3), ids=dsprites.SHAPES)

# Ten images of each shape, and the SHA-256 of the real ones, packed eight pixels a byte in this order.
SOME = [
    40960, 81920, 163840, 210944, 218112, 219136, 222208, 223232, 232448, 234496,
    286720, 450560, 452608, 455680, 456704, 458752, 464896, 465920, 467968, 475136,
    696322, 696351, 696736, 696928, 697088, 697119, 697316, 697333, 708608, 735232,
]  # fmt: skip
REAL = "c79498ec5efb9e14539c6a374504ebe9c1623c2d7fcb4daa0c9afa304107df2f"


def one(shape, scale=1.0, angle=0.0, x=0.5, y=0.5, **options) -> np.ndarray:
    return render(shape, scale, angle, x, y, **options)[0].numpy()


# The official images


def test_thirty_images_have_the_checksum_of_the_real_ones():
    drawn = pictures(latents(np.array(SOME)))[..., 0] // 255
    assert hashlib.sha256(np.packbits(drawn).tobytes()).hexdigest() == REAL


@each_shape
def test_every_real_image_at_hand_is_drawn_to_the_last_pixel(shape):
    """258 real images with their latents; skipped where they are not at hand."""
    name = "dsprites_ref258.npz"
    folders = [Path(os.environ.get("IGEBM_DATA", "."))]
    folders += [up / "shared" / "data" for up in Path(__file__).resolve().parents]
    found = next((folder / name for folder in folders if (folder / name).exists()), None)
    if found is None:
        pytest.skip(f"no real dSprites: no {name} in IGEBM_DATA or a shared/data folder above")
    with np.load(found) as real:
        c, want = real["latents_classes"][:, 1:], real["imgs"]
    of_shape = c[:, 0] == shape
    drawn = pictures(latents(index(c[of_shape])))[..., 0] // 255
    wrong = (drawn != want[of_shape]).sum((1, 2))
    assert len(wrong) >= 45 and wrong.sum() == 0, f"{(wrong > 0).sum()} of {len(wrong)} images differ"


def test_the_order_is_the_official_one():
    """The y of the place varies fastest, then x, rotation, scale, shape."""
    i = np.array([0, 1, 32, 32 * 32, 40 * 32 * 32, 6 * 40 * 32 * 32, N - 1])
    c = [[0, 0, 0, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 1, 0], [0, 0, 1, 0, 0], [0, 1, 0, 0, 0], [1, 0, 0, 0, 0]]
    assert classes(i).tolist() == [*c, [2, 5, 39, 31, 31]] and N == 737_280
    z = latents(i)
    assert z.y[1] == pytest.approx(1 / 31) and z.x[2] == pytest.approx(1 / 31)
    assert z.angle[3] == pytest.approx(2 * np.pi / 39) and z.scale[4] == pytest.approx(0.6) and z.shape[5] == ELLIPSE
    assert [v[-1] for v in z] == pytest.approx([HEART, 1.0, 2 * np.pi, 1.0, 1.0])
    every = np.random.default_rng(0).integers(0, N, 500)
    assert np.array_equal(index(classes(every)), every)
    assert np.array_equal(classes(every), [list(np.unravel_index(k, (3, 6, 40, 32, 32))) for k in every])


# Geometry


def moments(picture: np.ndarray) -> tuple[float, float, float]:
    """Area and centroid in pixels of the official images."""
    unit = 64 / len(picture)
    at = (np.arange(len(picture)) + 0.5) * unit
    area = picture.sum()
    return area * unit**2, (picture.sum(0) * at).sum() / area, (picture.sum(1) * at).sum() / area


@pytest.mark.parametrize("scale, angle, x, y", [(1.0, 0.3, 0.5, 0.5), (0.5, 1.0, 0.0, 1.0), (0.73, 4.0, 0.87, 0.21)])
def test_area_and_centroid_by_closed_form(scale, angle, x, y):
    """(2a)² and π a b times scale², at (16 + 32 x, 16 + 32 y); the heart's curve with 16 sin³ t holds 180 π."""
    areas = ((2 * 9.598) ** 2, np.pi * 12.7659 * 7.2123, 180 * np.pi * 0.6 * 0.6622)
    for shape, area in enumerate(areas):
        a, cx, cy = moments(one(shape, scale, angle, x, y, fine=8))
        assert a == pytest.approx(area * scale**2, rel=3e-3)
        if shape != HEART:
            assert (cx, cy) == pytest.approx((16 + 32 * x, 16 + 32 * y), abs=0.02)


def test_an_upright_heart_has_its_tip_below_and_its_notch_above():
    """At the height of its lobes' tops a row holds two runs, and near the tip one of a pixel or two in the middle."""
    picture = one(HEART)
    rows = np.flatnonzero(picture.any(1))
    runs = lambda row: int((np.diff(np.pad(row, 1)) > 0).sum())
    assert runs(picture[rows[1]]) == 2 and runs(picture[rows[-1]]) == 1
    assert picture[rows[-1]].sum() <= 2 and picture[rows[1]].sum() > 6
    # Top 0.6622 · 11.923 + 1.44 above the centre; tip 0.6622 · 17 - 1.44 below, too narrow for a pixel in its last two.
    assert rows[0] == np.ceil(32 - 9.336 - 0.5) and 32 + 9.817 - 3 < rows[-1] + 0.5 < 32 + 9.817


def test_a_square_repeats_after_a_quarter_turn_and_an_ellipse_after_half():
    """And no sooner, as SYMMETRY says; a heart not before the whole turn."""
    for shape, times in enumerate(dsprites.SYMMETRY):
        angle = 0.4 + 2 * np.pi * np.arange(1, 9) / 8
        same = [np.array_equal(one(shape, 0.9, a, 0.4, 0.7), one(shape, 0.9, 0.4, 0.4, 0.7)) for a in angle]
        assert same == [(k * times) % 8 == 0 for k in range(1, 9)]


@each_shape
def test_turning_the_picture_turns_the_shape(shape):
    """A quarter turn of the picture to the left takes (x, y) to (y, 1 - x) and adds 90° to the angle."""
    for scale, angle, x, y in ((0.9, 0.4, 0.3, 0.8), (0.55, 2.0, 0.91, 0.13)):
        turned = one(shape, scale, angle + np.pi / 2, y, 1 - x)
        assert np.array_equal(turned, np.rot90(one(shape, scale, angle, x, y)))


@each_shape
def test_moving_by_a_pixel_shifts_the_picture(shape):
    """32 places are a step of 32/31 pixels apart, x = 1/32 one pixel."""
    a = one(shape, 0.8, 0.5, 0.3, 0.6)
    assert np.array_equal(one(shape, 0.8, 0.5, 0.3 + 1 / 32, 0.6), np.roll(a, 1, 1))
    assert np.array_equal(one(shape, 0.8, 0.5, 0.3, 0.6 + 1 / 32), np.roll(a, 1, 0))


@each_shape
def test_pixels_are_on_where_their_centres_lie_inside_the_outline(shape):
    """Against the outline itself, by matplotlib's test of points in a polygon: every pixel of random sprites."""
    from matplotlib.path import Path as Outline

    t = 2 * np.pi * np.arange(3600) / 3600
    outlines = {
        SQUARE: 9.598 * np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]),
        ELLIPSE: np.stack([12.7659 * np.cos(t), 7.2123 * np.sin(t)], 1),
        HEART: dsprites.heart(),
    }
    at = np.arange(64) + 0.5
    points = np.stack(np.meshgrid(at, at), -1).reshape(-1, 2)
    rng = np.random.default_rng(shape)
    for _ in range(10):
        scale, angle, x, y = rng.uniform(0.3, 1), rng.uniform(0, 7), *rng.uniform(0, 1, 2)
        c, s = np.cos(angle), np.sin(angle)
        u, v = outlines[shape].T
        outline = np.stack([16 + 32 * x + scale * (c * u + s * v), 16 + 32 * y + scale * (c * v - s * u)], 1)
        want = Outline(outline).contains_points(points).reshape(64, 64)
        assert np.array_equal(one(shape, scale, angle, x, y) > 0, want)


# Sizes, batches, devices


def test_half_size_is_the_mean_over_two_by_two_pixels():
    z = latents(np.random.default_rng(3).integers(0, N, 300))
    full, half = render(*z), render(*z, size=32)
    assert torch.equal(half, full.reshape(300, 32, 2, 32, 2).mean((2, 4)))
    assert set(full.unique().tolist()) == {0.0, 1.0}
    assert half.unique().tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert sorted(set(pictures(z, 32).ravel().tolist())) == [0, 64, 128, 191, 255]


@pytest.mark.parametrize("size", [1, 8, 28, 48, 64, 100, 128])
def test_every_size_shows_the_same_shape(size):
    area, cx, cy = moments(one(ELLIPSE, 1.0, 0.7, 1.0, 0.25, size=size))
    assert area == pytest.approx(np.pi * 12.7659 * 7.2123, rel=0.03)
    assert size == 1 or (cx, cy) == pytest.approx((48, 24), abs=0.3)


def test_numbers_arrays_and_tensors_broadcast_and_a_row_is_as_if_alone():
    x = np.linspace(0, 1, 300)
    many = render(HEART, torch.full((300,), 0.7), 1.0, x, 0.5)
    assert many.shape == (300, 64, 64)
    assert torch.equal(many[123], render(HEART, 0.7, 1.0, x[123], 0.5)[0])
    mixed = render(np.arange(3), 0.7, 1.0, 0.2, 0.5)
    assert all(torch.equal(mixed[k], render(k, 0.7, 1.0, 0.2, 0.5)[0]) for k in range(3))


@pytest.mark.parametrize(
    "values, said",
    [
        ((3, 1.0, 0.0, 0.5, 0.5), "shape 3 of a sprite"),
        ((0, 0.0, 0.0, 0.5, 0.5), "scale 0 .* above 0 and at most 1"),
        ((0, 1.0, float("nan"), 0.5, 0.5), "angle nan"),
        ((0, 1.0, 0.0, 1.5, 0.5), "x 1.5 .* between 0 and 1"),
        ((0, 1.0, 0.0, 0.5, np.array([0.2, -0.5])), "y -0.5"),
    ],
)
def test_what_is_no_sprite_is_refused(values, said):
    with pytest.raises(InputError, match=said):
        render(*values)


@pytest.mark.gpu
def test_a_gpu_draws_the_same(generator):
    z = [torch.as_tensor(v, device="cuda") for v in latents(np.random.default_rng(3).integers(0, N, 300))]
    assert (render(*z).cpu() != render(*(v.cpu() for v in z))).float().mean() < 1e-6


# As a data set


def test_conditions_are_named_and_in_their_ranges():
    z = latents(np.arange(0, N, 97))
    for factor, about in dsprites.CONDITIONS.items():
        y = condition(z, factor)
        assert y.shape == ((len(z.x),) if factor == "shape" else (len(z.x), len(about)))
        for column, latent in zip(y.reshape(len(y), -1).T, about, strict=False):
            assert (column.min(), column.max()) == pytest.approx((latent.low, latent.high), abs=4e-3)
            assert latent.low <= column.min() and column.max() <= latent.high
    assert dsprites.CONDITIONS["position"] == (Latent("x", 0.0, 1.0), Latent("y", 0.0, 1.0))
    turn = condition(z, "rotation")
    assert np.hypot(turn[:, 0], turn[:, 1]) == pytest.approx(np.ones(len(turn)), abs=1e-6)
    assert np.array_equal(condition(z, "shape"), np.arange(0, N, 97) // 245_760)


def test_splits_share_no_image_and_smaller_sets_are_parts_of_larger_ones():
    train, test = (load("shape", split) for split in ("train", "test"))
    assert isinstance(train.x, Rendered) and train.x.shape == (729_908, 64, 64, 1) and len(test.x) == 7_372
    assert len(np.unique(np.concatenate([train.x.i, test.x.i]))) == N
    few, fewer = load("shape", n=40), load("shape", n=20)
    assert (
        np.array_equal(few.x[:20], fewer.x) and np.array_equal(few.x, train.x[:40]) and few.classes == dsprites.SHAPES
    )
    assert np.array_equal(few.y, train.y[:40])
    with pytest.raises(MissingSplit, match="it has: train, test"):
        load("shape", "val")
    with pytest.raises(InputError, match="unknown factor of dSprites 'colour'"):
        load("colour")


def test_batches_of_all_images_are_drawn_as_they_are_read():
    """Without the gigabytes: a batch from the whole set is that of its rows held in memory."""
    whole = load("position", size=32)
    loader = Loader(whole, 16, seed=1)
    x, y = loader(0, torch.Generator().manual_seed(0))
    assert loader.x is None and x.shape == (16, 1, 32, 32) and y.shape == (16, 2)
    rows = np.random.default_rng((1, 0)).permutation(len(whole.x))[:16]
    held = Images("held", pictures(latents(whole.x.i[rows]), 32), condition(latents(whole.x.i[rows]), "position"), ())
    assert torch.equal((x * 256).floor().to(torch.uint8)[:, 0], torch.from_numpy(held.x[..., 0]))
    assert np.array_equal(y.numpy(), held.y)


def official(path: Path, i: np.ndarray, **changed) -> Path:
    """A small file in the official one's form, whose `metadata` is a pickle."""
    c = np.concatenate([np.zeros((len(i), 1), np.int64), classes(i)], 1)
    arrays = {"metadata": np.array({"title": "dSprites"}, dtype=object), "latents_classes": c}
    np.savez_compressed(path, **(arrays | {"imgs": pictures(latents(i))[..., 0] // 255} | changed))
    return path


def test_the_official_file_gives_what_is_rendered(tmp_path):
    i = np.random.default_rng(0).integers(0, N, 300)
    file = official(tmp_path / "dsprites.npz", i)
    for size, factor in itertools.product((64, 32), ("shape", "position")):
        found = {split: load(factor, split, size=size, file=file) for split in ("train", "test")}
        order = np.random.default_rng(0).permutation(300)
        for split, rows in (("train", order[:-3]), ("test", order[-3:])):
            assert np.array_equal(found[split].x, pictures(latents(i[rows]), size))
            assert np.array_equal(found[split].y, condition(latents(i[rows]), factor))


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"imgs": np.zeros((4, 64, 32), np.uint8)}, r"`imgs` of dSprites are whole numbers of shape"),
        ({"imgs": np.full((4, 64, 64), 255, np.uint8)}, "are 0 and 1, got values up to 255"),
        ({"imgs": np.zeros((3, 64, 64), np.uint8)}, "`imgs` has 3 rows and `latents_classes` has 4"),
        ({"latents_classes": np.full((4, 6), 40)}, "are not those of dSprites, 3 x 6 x 40 x 32 x 32"),
    ],
)
def test_another_file_is_refused(tmp_path, changed, said):
    file = official(tmp_path / "a.npz", np.arange(4), **changed)
    with pytest.raises(InputError, match=said):
        load("shape", file=file)


def test_a_damaged_file_is_refused(tmp_path):
    file = official(tmp_path / "a.npz", np.arange(4))
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(InputError, match="cannot be read"):
        load("shape", file=file)
    np.savez(tmp_path / "b.npz", imgs=np.zeros((4, 64, 64), np.uint8))
    with pytest.raises(InputError, match="latents_classes"):
        load("shape", file=tmp_path / "b.npz")
    with pytest.raises(InputError, match="cannot be read"):
        load("shape", file=tmp_path / "none.npz")
    with pytest.raises(InputError, match="48 does not divide"):
        load("shape", size=48, file=official(tmp_path / "c.npz", np.arange(4)))


# Held out


def test_a_region_of_combinations_is_held_out_of_both_splits():
    """Counted over all 737,280: scales .5, .6, .7 (3 of 6), places x of 0..22/31 (23 of 32), every shape but one."""
    region = held_out.parse("scale=0.5..0.7,x=0..0.71,shape=heart|square")
    z = latents(np.arange(N))
    assert held_out.inside(z, region).sum() == N * 2 // 3 * 3 // 6 * 23 // 32
    spec = "dsprites-scale:without:scale=0.5..0.7,x=0..0.71,shape=heart|square"
    parts = {split: data.load(spec, split) for split in ("train", "test")}
    assert len(parts["train"].x) + len(parts["test"].x) == N - N * 2 // 3 * 3 // 6 * 23 // 32
    for part in parts.values():
        seen = latents(part.x.i)
        assert np.array_equal(part.y[:, 0], seen.scale.astype(np.float32)) and not held_out.inside(seen, region).any()
    whole = data.load("dsprites-scale", "test")
    assert set(parts["test"].x.i) < set(whole.x.i)


def test_a_turn_is_held_out_in_degrees():
    z = Sprites(
        *(np.array(column) for column in ([0, 1, 2], [1.0, 1, 1], np.radians([44, 45, 91]), [0, 0, 0], [0, 0, 0]))
    )
    assert held_out.inside(z, held_out.parse("angle=45..90")).tolist() == [False, True, False]
    round_it = Sprites(*(np.repeat(c[:1], 3) for c in z))._replace(angle=np.radians([0.0, 360.0, 299.0]))
    assert held_out.inside(round_it, held_out.parse("angle=300..360")).tolist() == [True, True, False]


@pytest.mark.parametrize(
    "text, why",
    [
        ("scale=0.5..0.8,scale=0.9..1", "scale is there twice"),
        ("size=0.5..0.8", "factor of dSprites to hold out.*size"),
        ("scale=0.5", "is no range: give FACTOR=LOW..HIGH"),
        ("x=0.7..0.2", "the lower end first"),
        ("scale=0.1..0.7", "give a range between 0.5 and 1"),
        ("scale=nan..1", "give a range"),
        ("shape=star", "star"),
        ("", "factor of dSprites to hold out"),
    ],
)
def test_a_region_that_is_none_is_one_line(text, why):
    with pytest.raises(InputError, match=why):
        data.load(f"dsprites-scale:without:{text}")


def test_nothing_left_is_said():
    with pytest.raises(InputError, match="nothing is left of the train split"):
        data.load("dsprites-scale:without:scale=0.5..1")


def test_a_set_that_is_rendered_has_the_numbers_of_its_pixels():
    """Mean and deviation over some sprites, as numpy has them of the same array in memory."""
    found = data.load("dsprites-scale", "test", image_size=16)
    row, hashes = summary.describe(found, lambda k: None)
    x = np.asarray(found.x[np.arange(len(found.x))])
    assert row["mean"] == pytest.approx([x.mean() / 255]) and row["std"] == pytest.approx([x.std() / 255])
    assert len(hashes) == len(found.x) == row["count"] and hashes[7] == hashlib.blake2b(x[7], digest_size=16).digest()
