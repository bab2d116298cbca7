"""Arrays from .npz and .npy files: what is read or mapped, and what is refused rather than guessed."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from igebm.data import MissingSplit, load
from igebm.errors import InputError

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)


def saved(path: Path, **arrays) -> str:
    np.savez(path, **arrays)
    return str(path)


def test_c22_the_same_pictures_in_every_readable_form(tmp_path):
    folder = tmp_path / "png"
    folder.mkdir()
    for i, row in enumerate(PIXELS):
        Image.fromarray(row).save(folder / f"{i:02}.png")
    np.save(tmp_path / "a.npy", PIXELS)
    np.savez_compressed(tmp_path / "zip.npz", x=PIXELS)
    forms = [
        str(folder),
        saved(tmp_path / "nhwc.npz", arr_0=PIXELS),
        saved(tmp_path / "nchw.npz", arr_0=PIXELS.transpose(0, 3, 1, 2)),
        saved(tmp_path / "fortran.npz", images=np.asfortranarray(PIXELS)),
        saved(tmp_path / "float.npz", x=(PIXELS / 255).astype(np.float32)),
        saved(tmp_path / "half.npz", x=(PIXELS / 255).astype(np.float16)),
        str(tmp_path / "a.npy"),
        str(tmp_path / "zip.npz"),
    ]
    for form in forms:
        images = load(form)
        assert images.x.dtype == np.uint8 and (images.x == PIXELS).all() and images.y is None, form


@pytest.mark.parametrize(
    "x, words",
    [
        (PIXELS.astype(np.float32), ("float32", "0 to 255", "(16, 32, 32, 3)")),
        (PIXELS / 127.5 - 1, ("float64", "-1 to 1", "(16, 32, 32, 3)")),
        (PIXELS.astype(np.int64), ("int64", "0 to 255", "uint8")),
        (PIXELS > 9, ("bool", "0 to 1")),
        (PIXELS.astype(np.complex64), ("complex64",)),
        (np.full((2, 4, 4, 3), np.nan), ("96 values", "NaN")),
        (PIXELS[:, :3, :, :], ("(16, 3, 32, 3)",)),
        (PIXELS[..., :2], ("(16, 32, 32, 2)",)),
        (PIXELS[0], ("(32, 32, 3)",)),
        (PIXELS[:0], ("no images found", "(0, 32, 32, 3)")),
        (np.float32(1), ("shape ()",)),
    ],
)
def test_c22_what_could_mean_several_things_is_refused(tmp_path, x, words):
    with pytest.raises(InputError) as caught:
        load(saved(tmp_path / "a.npz", x=x))
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_c22_objects_are_never_unpickled(tmp_path):
    objects = np.array([{"a": 1}, None], dtype=object)
    np.save(tmp_path / "a.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "b.npz", x=objects)
    np.savez_compressed(tmp_path / "c.npz", x=objects)
    for name in ("a.npy", "b.npz", "c.npz"):
        with pytest.raises(InputError, match=r"Python objects, of shape \(2,\); they are never unpickled"):
            load(str(tmp_path / name))


def test_c22_bytes_of_0_and_1_stay_near_black(tmp_path):
    x = (PIXELS > 127).astype(np.uint8)
    assert load(saved(tmp_path / "a.npz", x=x)).x.max() == 1


def test_grey_without_a_channel_axis(tmp_path):
    assert load(saved(tmp_path / "a.npz", x=PIXELS[..., 0])).x.shape == (16, 32, 32, 1)


def test_uncompressed_arrays_are_mapped_in_place(tmp_path):
    spec = saved(tmp_path / "a.npz", train_x=PIXELS, train_y=np.arange(16), test_x=PIXELS[:3])
    x = load(spec).x
    assert isinstance(x, np.memmap) and not x.flags.writeable
    assert load(spec, "test").x.shape == (3, 32, 32, 3) and load(spec, "test").y is None


def test_labels_with_gaps_are_renumbered_over_all_splits(tmp_path):
    said = []
    spec = saved(tmp_path / "a.npz", train_x=PIXELS[:3], train_y=[7, 1, 2], test_x=PIXELS[:2], test_y=[-1, 7])
    train, test = load(spec, say=said.append), load(spec, "test")
    assert train.y.tolist() == [2, 0, 1] and test.y.tolist() == [-1, 2]
    assert train.classes == test.classes == ("1", "2", "7")
    assert len(said) == 1 and "3 classes, 1, 2, 7 renumbered 0 to 2" in said[0]


def test_labels_and_class_names(tmp_path):
    spec = saved(tmp_path / "a.npz", x=PIXELS[:2], y=np.array([[1], [0]], np.uint8), classes=["cat", "dog", "eel"])
    images = load(spec)
    assert images.classes == ("cat", "dog", "eel") and images.y.tolist() == [1, 0] and images.y.dtype == np.int64
    assert load(saved(tmp_path / "b.npz", arr_0=PIXELS[:2], arr_1=[-1, -1])).y is None


def test_labels_may_be_names(tmp_path):
    """In the order of their names, all splits together, or of `classes`; bytes are UTF-8, an empty one is no label."""
    labels = dict(train_x=PIXELS[:3], train_y=["dog", "ant", ""], test_x=PIXELS[:2], test_y=[["cat"], ["dog"]])
    spec = saved(tmp_path / "a.npz", **labels)
    train, test = load(spec), load(spec, "test")
    assert train.classes == test.classes == ("ant", "cat", "dog")
    assert train.y.tolist() == [2, 0, -1] and test.y.tolist() == [1, 2]
    spec = saved(tmp_path / "b.npz", **labels, classes=["dog", "cat", "ant", "eel"])
    assert load(spec).y.tolist() == [0, 2, -1] and load(spec).classes == ("dog", "cat", "ant", "eel")
    spec = saved(tmp_path / "c.npz", x=PIXELS[:2], y=np.array(["é".encode(), b"a"]))
    assert load(spec).classes == ("a", "é") and load(spec).y.tolist() == [1, 0]


@pytest.mark.parametrize("kind", ["float32", "int64", "bool"])
def test_rows_with_one_1_are_classes_and_this_is_said(kind, tmp_path):
    """A class that no image has keeps its column; where `latents` names the columns they are latents."""
    said, y = [], np.eye(4, dtype=kind)[[2, 0, 0]]
    images = load(saved(tmp_path / "a.npz", x=PIXELS[:3], y=y), say=said.append)
    assert images.y.tolist() == [2, 0, 0] and images.classes == ("0", "1", "2", "3") and not images.latents
    assert len(said) == 1 and "rows with one 1, read as 4 classes" in said[0]
    images = load(saved(tmp_path / "b.npz", x=PIXELS[:3], y=y, classes=list("abcd")))
    assert images.classes == ("a", "b", "c", "d") and images.y.tolist() == [2, 0, 0]
    two, latent = np.eye(2, dtype=kind)[[0, 1, 1]], kind == "float32"
    images = load(saved(tmp_path / "c.npz", x=PIXELS[:3], y=two))
    assert (len(images.latents) == 2) == latent and (
        images.y.tolist() == ([[1, 0], [0, 1], [0, 1]] if latent else [0, 1, 1])
    )
    if latent:
        images = load(saved(tmp_path / "d.npz", x=PIXELS[:4], y=np.eye(4, dtype=kind), latents=list("abcd")))
        assert images.y.tolist() == np.eye(4).tolist() and len(images.latents) == 4


@pytest.mark.parametrize(
    "y, words",
    [
        ([0, 1, 2], ("shape (2,)", "(3,)")),
        ([0.0, 1.0], ("integers", "float64")),
        ([True, False], ("integers", "bool")),
        ([-2, 0], ("-2",)),
        ([0, 3], ("up to 3", "3 class names", "largest label expected is 2")),
        ([[0, 2], [1, 0]], ("(2,)", "(2, 2)")),
        ([[0, 1], [1, 0]], ("one 1", "2 and 3 classes")),
        (["a", "d"], ("not among its classes: d",)),
        (["a", "b", "c"], ("shape (2,)", "(3,)")),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path, y, words):
    with pytest.raises(InputError) as caught:
        load(saved(tmp_path / "a.npz", x=PIXELS[:2], y=y, classes=["a", "b", "c"]))
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("packed", [True, False])
def test_images_with_nan_are_named_and_left_out_with_their_labels(packed, tmp_path):
    """Images 1 and 3 of 5 hold 7 bad values; the rest keep their pixels and labels, and the test split has its own."""
    said, x = [], PIXELS[:5].astype(np.float32) / 255
    x[1, 0, :2] = np.nan  # two pixels of three channels
    x[3, 5, 5, 0] = np.inf
    arrays = dict(train_x=x, train_y=[4, 3, 2, 1, 0], test_x=PIXELS[:2], test_y=[0, 4])
    (np.savez_compressed if packed else np.savez)(tmp_path / "a.npz", **arrays)
    spec = str(tmp_path / "a.npz")
    with pytest.raises(InputError, match=r"in 2 of 5 images \(7 values; images 1, 3, counted from 0\); .* --skip-bad"):
        load(spec)
    images = load(spec, skip_bad=True, say=said.append)
    assert (images.x == PIXELS[[0, 2, 4]]).all() and images.y.tolist() == [4, 2, 0] and len(images.classes) == 5
    assert len(said) == 1 and "left out 2 of 5 images" in said[0] and said[0].endswith(": 1, 3")
    assert len(load(spec, "test", skip_bad=True, say=said.append).x) == 2 and len(said) == 1
    latents = np.arange(10.0).reshape(5, 2)
    images = load(saved(tmp_path / "b.npz", x=x, y=latents), skip_bad=True)
    assert images.y.tolist() == latents[[0, 2, 4]].tolist()
    with pytest.raises(InputError, match="in 2 of 2 images"):
        load(saved(tmp_path / "c.npz", x=x[[1, 3]]), skip_bad=True)


def test_missing_splits_are_listed(tmp_path):
    with pytest.raises(MissingSplit, match="no split 'test'; it has: train"):
        load(saved(tmp_path / "a.npz", x=PIXELS), "test")
    with pytest.raises(MissingSplit, match="no split 'train'; it has: test, val") as caught:
        load(saved(tmp_path / "b.npz", test_x=PIXELS, validation_images=PIXELS))
    assert caught.value.splits == ("test", "val")
    assert len(load(saved(tmp_path / "c.npz", x_train=PIXELS, x_test=PIXELS[:2]), "test").x) == 2


def test_foreign_and_damaged_files_give_one_line(tmp_path):
    whole = Path(saved(tmp_path / "a.npz", x=PIXELS)).read_bytes()
    np.save(tmp_path / "b.npy", PIXELS)
    array = (tmp_path / "b.npy").read_bytes()
    np.savez_compressed(tmp_path / "c.npz", x=PIXELS)
    packed = bytearray((tmp_path / "c.npz").read_bytes())
    packed[1000:1100] = bytes(100)
    for name, content in [
        ("cut.npz", whole[:-1000]), ("text.npz", b"no zip"), ("empty.npz", b""), ("flipped.npz", bytes(packed)),
        ("cut.npy", array[:-1]), ("text.npy", b"no array"), ("empty.npy", b""), ("zip.npy", whole),
    ]:  # fmt: skip
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=rf"{name} is not an .np[yz] file that can be read") as caught:
            load(str(tmp_path / name))
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="expected an array train_x, x, images or arr_0; it has: a, b"):
        load(saved(tmp_path / "keys.npz", a=PIXELS, b=PIXELS))


def test_sizes_and_channels(tmp_path):
    x = np.zeros((2, 4, 8, 3), np.uint8)
    x[:, :, 2:6] = (255, 0, 0)  # the central square is red: 0.299 * 255 = 76.2
    spec = saved(tmp_path / "a.npz", x=x)
    assert (load(spec, image_size=4).x == (255, 0, 0)).all() and load(spec, image_size=4).x.shape == (2, 4, 4, 3)
    assert (load(spec, image_size=4, channels=1).x == 76).all()
    assert load(spec, image_size=2).x.shape == (2, 2, 2, 3) and load(spec, image_size=16).x.shape == (2, 16, 16, 3)
    grey = load(saved(tmp_path / "b.npz", x=x[..., :1]), channels=3)
    assert grey.x[0, 0, 3].tolist() == [255, 255, 255]


def test_grey_is_pillows(tmp_path):
    expected = np.stack([np.asarray(Image.fromarray(row).convert("L")) for row in PIXELS])
    assert (load(saved(tmp_path / "a.npz", x=PIXELS), channels=1).x[..., 0] == expected).all()


@settings(max_examples=30, deadline=None)
@given(
    x=hnp.arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(4, 6), st.integers(4, 6), st.sampled_from([1, 3]))),
    classes=st.integers(1, 4), compressed=st.booleans(), data=st.data(),
)  # fmt: skip
def test_an_npz_gives_back_what_was_put_in(x, classes, compressed, data):
    y = np.array(data.draw(st.lists(st.integers(-1, classes - 1), min_size=len(x), max_size=len(x))), np.int64)
    names = [f"class {k}" for k in range(classes)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.npz")
        (np.savez_compressed if compressed else np.savez)(path, test_x=x, test_y=y, classes=names)
        images = load(str(path), "test")
        assert (images.x == x).all() and (images.y == y).all() and images.classes == tuple(names)
