"""`igebm.load(...)` as a notebook has it: pictures in any form, labels by name or number, answers that are known."""

import doctest
import re

import numpy as np
import pytest
import torch
from PIL import Image

import igebm
from igebm import data, library, model, presets
from igebm.compose import product
from igebm.data import quantise
from igebm.errors import InputError
from igebm.samplers import langevin, run
from igebm.shapes import Shape


def made(channels=1, size=8, classes=("cat", "dog", "fox"), conditional=True, height=None, latents=()) -> library.EBM:
    """A network with random weights, whose classes differ: gains and biases start alike otherwise."""
    preset = presets.replace(
        presets.named("digits"), width=4, blocks="1d", conditional=conditional, chain_steps=3, sample_steps=4
    )
    shape = Shape(channels, height or size, size, classes, latents)
    net = model.build_net(preset, shape)
    g = torch.Generator().manual_seed(1)
    for name, p in net.named_parameters():
        if "gain" in name or "bias" in name or "conv2" in name:
            p.data.copy_(0.5 * torch.randn(p.shape, generator=g))
    return library.EBM(model.Model(net, preset, shape, "tiny"))


@pytest.fixture(scope="module")
def ebm() -> library.EBM:
    return made()


def test_the_docstring_is_true():
    found = doctest.testmod(library)
    assert found.attempted >= 8 and found.failed == 0


def test_load_opens_what_model_load_opens():
    ebm = igebm.load("digits")
    assert ebm.classes == tuple("0123456789") and ebm.shape == (1, 8, 8)
    test = data.load("digits", "test")
    assert ebm.energy(test.x[:20], test.y[:20]).tolist() == ebm.model.energy(test.x[:20], test.y[:20]).tolist()
    assert ebm.energy(test.x[:20]).tolist() == ebm.model.energy(test.x[:20]).tolist()


def test_samples_are_the_commands_samples(ebm):
    """One sampler: the bytes of Model.sample are these floats, quantised; and the same seed gives the same."""
    x = ebm.sample(7, steps=5, seed=3)
    u8, y = ebm.model.sample(7, steps=5, seed=3)
    assert np.array_equal(quantise(x).permute(0, 2, 3, 1).numpy(), u8) and y.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert x.dtype == torch.float32 and 0 <= x.min() and x.max() <= 1
    assert torch.equal(x, ebm.sample(7, steps=5, seed=3, label=y))
    assert not torch.equal(x, ebm.sample(7, steps=5, seed=4))
    assert torch.equal(ebm.sample(3, "dog", 5), ebm.sample(3, 1, 5))
    assert torch.equal(ebm.sample(3, 1, 5), ebm.sample(3, ["dog", 1, np.int64(1)], 5))
    assert not torch.equal(ebm.sample(3, 1, 5), ebm.sample(3, 2, 5))


def test_samples_go_on_from_where_they_are_told(ebm):
    start = torch.rand(5, 1, 8, 8)
    assert torch.equal(ebm.sample(5, 0, steps=0, start=start), start)
    still = langevin(0.0, 0.0)  # a chain that does not move, at any number of steps
    assert torch.equal(ebm.sample(5, 0, steps=3, start=start, kernel=still, batch=2), start)


def test_energy_is_that_of_the_bound_energy(ebm):
    x = torch.rand(5, 1, 8, 8)
    for k, name in enumerate(ebm.classes):
        assert torch.equal(ebm.energy(x, name), ebm.given(k)(x))
        assert ebm.energy(x, k, batch=2).tolist() == pytest.approx(
            ebm.model.net(x, torch.full((5,), k)).tolist(), abs=1e-5
        )
    each = ebm.energy(x, [0, 1, 2, 1, 0])
    assert each.tolist() == pytest.approx([ebm.energy(x[i], y).item() for i, y in enumerate([0, 1, 2, 1, 0])], abs=1e-5)
    assert torch.equal(ebm.energy(x), torch.stack([ebm.energy(x, k) for k in range(3)]).amin(0))
    assert ebm.energies(x)[:, 1].tolist() == ebm.energy(x, 1).tolist()


def test_classify_is_a_loop_over_labels():
    ebm = igebm.load("digits")
    x = ebm.pixels(data.load("digits", "test").x[:40])
    want = []
    for image in x:
        e = [ebm.model.net(image[None], torch.tensor([k])).item() for k in range(10)]
        want.append(e.index(min(e)))
    assert ebm.classify(x, batch=7).tolist() == want and len(set(want)) > 1


def test_given_is_an_energy_for_kernels_and_compositions(ebm):
    x = torch.rand(4, 1, 8, 8)
    both = product(ebm.given("cat"), ebm.given("dog"))
    assert both(x).tolist() == pytest.approx((ebm.energy(x, 0) + ebm.energy(x, 1)).tolist(), rel=1e-6)
    end, _ = run(langevin(0.1, 0.0), both, x, 2)
    by_hand = x.clone()
    for _ in range(2):
        by_hand.requires_grad_()
        e = sum(ebm.model.net(by_hand, torch.full((4,), k)) for k in (0, 1))
        by_hand = (by_hand - 0.1 * torch.autograd.grad(e.sum(), by_hand)[0]).detach()
    assert end.x.flatten().tolist() == pytest.approx(by_hand.flatten().tolist(), abs=1e-5)
    assert ebm.given()(x).tolist() == pytest.approx(ebm.model.net(x, torch.full((4,), -1)).tolist(), abs=1e-5)
    with pytest.raises(InputError, match="bound to 3 labels, one an image; got 4 images"):
        ebm.given([0, 1, 2])(x)


# Restoration


@pytest.mark.parametrize("form", ["float", "bytes"])
def test_restore_keeps_what_is_known_to_the_last_bit(form, ebm):
    u8 = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1), np.uint8)
    images = torch.rand(6, 1, 8, 8) if form == "float" else u8
    hole = np.zeros((8, 8), bool)
    hole[2:5, 3:] = True
    found = ebm.restore(images, hole, steps=4, batch=4)
    known = images if form == "float" else torch.from_numpy((u8.astype(np.float32) + 0.5) / 256).permute(0, 3, 1, 2)
    keep = ~torch.from_numpy(hole)
    assert torch.equal(found[..., keep], known[..., keep])
    assert (found[..., ~keep] != known[..., ~keep]).float().mean() > 0.9
    if form == "bytes":
        assert np.array_equal(quantise(found)[:, 0].numpy()[:, ~hole], u8[..., 0][:, ~hole])


def test_masks_of_one_image_each_of_files_and_of_nothing(ebm, tmp_path):
    x = torch.rand(2, 1, 8, 8)
    hole = torch.zeros(2, 8, 8, dtype=torch.bool)
    hole[0, :4] = hole[1, 4:] = True
    found = ebm.restore(x, hole, "cat", steps=2)
    assert torch.equal(found[0, :, 4:], x[0, :, 4:]) and torch.equal(found[1, :, :4], x[1, :, :4])
    assert torch.equal(ebm.restore(x, torch.zeros(8, 8, dtype=torch.bool)), x)
    Image.fromarray((255 * hole[0].numpy()).astype(np.uint8)).save(tmp_path / "mask.png")
    by_file = ebm.restore(x, tmp_path / "mask.png", 1, steps=2)
    assert torch.equal(by_file, ebm.restore(x, hole[0], 1, steps=2))


def test_restored_digits_are_nearer_to_the_truth_than_noise():
    ebm, test = igebm.load("digits"), data.load("digits", "test")
    hole = torch.zeros(8, 8, dtype=torch.bool)
    hole[4:] = True
    truth, noise = ebm.pixels(test.x[:40]), ebm.restore(test.x[:40], hole, test.y[:40], steps=0)
    found = ebm.restore(test.x[:40], hole, test.y[:40], steps=100)
    error = lambda x: (x - truth)[..., hole].square().mean().item()
    assert error(found) < 0.4 * error(noise)  # 0.055 against 0.247 on more of them


# Forms of images


def test_every_form_of_an_image_is_the_same_image():
    ebm = made(channels=3, size=6)
    u8 = np.random.default_rng(0).integers(0, 256, (4, 6, 6, 3), np.uint8)
    want = torch.from_numpy((u8.astype(np.float32) + 0.5) / 256).permute(0, 3, 1, 2)
    first, x = u8.transpose(0, 3, 1, 2), want.numpy()
    forms = [
        u8,
        first,
        torch.from_numpy(u8),
        torch.from_numpy(first.copy()),
        u8[::-1][::-1],
        want,
        x,
        x.astype(np.float64),
    ]
    forms += [want.permute(0, 2, 3, 1), x.astype(">f4"), want.double(), [Image.fromarray(i) for i in u8]]
    for form in forms:
        assert torch.equal(ebm.pixels(form), want)
    for one in (u8[0], first[0], want[0], want[0].permute(1, 2, 0), Image.fromarray(u8[0])):
        assert torch.equal(ebm.pixels(one), want[:1])


def test_grey_images_need_no_channel(ebm):
    x = torch.rand(8, 8, 8)  # eight images, not channels
    assert torch.equal(ebm.pixels(x), x[:, None]) and torch.equal(ebm.pixels(x[0]), x[None, None, 0])
    assert torch.equal(ebm.pixels(x[:1]), x[None, :1])
    u8 = np.full((8, 8), 77, np.uint8)
    for picture in (Image.fromarray(u8), Image.fromarray(np.stack([u8] * 3, -1))):
        assert torch.equal(ebm.pixels(picture), torch.full((1, 1, 8, 8), 77.5 / 256))


def test_pil_images_are_read_as_files_are():
    ebm = made(channels=3, size=6)
    clear = Image.new("RGBA", (6, 6), (255, 0, 0, 0))
    palette = Image.new("RGB", (6, 6), (10, 200, 30)).convert("P", palette=Image.Palette.ADAPTIVE)
    grey = Image.new("L", (6, 6), 77)
    got = (256 * ebm.pixels([clear, palette, grey]))[:, :, 0, 0]
    assert got.tolist() == [[255.5] * 3, [10.5, 200.5, 30.5], [77.5] * 3]


def test_shapes_that_can_be_read_in_two_ways_are_refused():
    ebm = made(channels=3, size=3, height=3)
    with pytest.raises(InputError, match="several ways"):
        ebm.pixels(torch.rand(2, 3, 3, 3))


def test_no_images_have_no_energies(ebm):
    none = torch.empty(0, 1, 8, 8)
    assert ebm.energy(none).shape == (0,) and ebm.energy(none, 1).shape == (0,) and ebm.classify(none).shape == (0,)
    assert ebm.restore(none, torch.ones(8, 8, dtype=torch.bool), 0).shape == (0, 1, 8, 8)


def test_pictures_are_made_to_be_seen(ebm):
    x = torch.zeros(6, 1, 8, 8)
    x[1] = 1.0
    canvas = np.asarray(ebm.picture(x, columns=3))
    scale = canvas.shape[1] // 28  # three images of 8 and four gaps of 1
    assert canvas.shape == (19 * scale, 28 * scale)
    assert canvas[2 * scale, 2 * scale] == 0 and canvas[2 * scale, 12 * scale] == 255


# What is refused


ONE = torch.ones(1, 8, 8)
WITH_NAN = torch.ones(4, 1, 8, 8)
WITH_NAN[2, 0, 3, 3] = torch.nan
BAD = {
    "integers": (lambda e: e.energy(np.zeros((2, 8, 8, 1), np.int64)), "uint8 or floats in .0, 1., got int64"),
    "long tensor": (lambda e: e.energy(ONE.long()), "got torch.int64"),
    "objects": (lambda e: e.energy(np.array([None, None])), "got object"),
    "a word": (lambda e: e.energy("digits"), "a tensor, an array or PIL images, got str"),
    "no images at all": (lambda e: e.energy([]), "got list"),
    "0 to 255 as floats": (lambda e: e.energy(255 * ONE), r"in \[0, 1\], got 255 to 255; divide by 255"),
    "-1 to 1": (lambda e: e.energy(-ONE), r"in \[0, 1\], got -1 to -1"),
    "not a number": (lambda e: e.energy(torch.nan * ONE), r"64 values, the first in image 0"),
    "one not a number": (lambda e: e.energy(WITH_NAN), r"hold NaN or infinity .1 value, the first in image 2, counted"),
    "other size": (lambda e: e.energy(torch.rand(2, 1, 9, 8)), r"\(N, 1, 8, 8\) or \(N, 8, 8, 1\), got \(2, 1, 9, 8\)"),
    "other channels": (lambda e: e.energy(torch.rand(2, 3, 8, 8)), "do not fit"),
    "picture's size": (lambda e: e.energy(Image.new("L", (9, 8))), r"8x8, got a picture of 9x8; use .resize\(\(8, 8"),
    "label's name": (lambda e: e.sample(2, "catt"), "did you mean cat"),
    "label's number": (lambda e: e.sample(2, 3), r"a name \(cat, dog, fox, ...\) or a number from 0 to 2, got 3"),
    "true": (lambda e: e.sample(2, True), "got True"),
    "half a label": (lambda e: e.sample(2, 0.5), "got 0.5"),
    "too few labels": (lambda e: e.energy(torch.rand(3, 1, 8, 8), [0, 1]), "3 images need one label, or.*got 2"),
    "no samples": (lambda e: e.sample(0), "n 0: choose between 1"),
    "half a sample": (lambda e: library.counted("n", 1.5, 1), "n is a whole number, got 1.5"),
    "steps": (lambda e: e.sample(1, steps=-1), "steps -1"),
    "starts": (lambda e: e.sample(3, start=torch.rand(2, 1, 8, 8)), "3 samples need as many starts, got 2"),
    "grey mask": (lambda e: e.restore(ONE, ONE[0]), "a mask is booleans.*white is filled.*got torch.float32"),
    "mask's size": (lambda e: e.restore(ONE, ONE[0, :4] > 0), r"\(8, 8\), or \(1, 8, 8\).*got \(4, 8\)"),
    "mask's file": (lambda e: e.restore(ONE, "none.png"), "No such file"),
    "nothing to show": (lambda e: e.picture(torch.empty(0, 1, 8, 8)), "no images to show"),
}


@pytest.mark.parametrize(
    "y", [torch.tensor([3, 99]), torch.tensor([-2]), torch.tensor([0.0]), torch.tensor([[1]])], ids=str
)
def test_labels_that_are_none_are_refused_beneath_as_well(y, ebm):
    """Not taken for unlabelled images, which -1 says."""
    m, x = ebm.model, np.zeros((len(y), 8, 8, 1), np.uint8)
    for ask in (
        lambda: m.given(y),
        lambda: m.energy(x, y.numpy()),
        lambda: m.sample(len(y), labels=y.numpy(), steps=1),
    ):
        with pytest.raises(InputError, match="takes labels, whole numbers from 0 to 2 .-1: unlabelled., got"):
            ask()


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_meant_is_refused_in_one_line(name, ebm):
    act, why = BAD[name]
    with pytest.raises(InputError, match=why) as caught:
        act(ebm)
    assert "\n" not in str(caught.value)


def test_models_without_classes():
    ebm = made(conditional=False)
    x = torch.rand(3, 1, 8, 8)
    assert ebm.classes == () and ebm.energy(x).tolist() == pytest.approx(ebm.model.net(x).tolist(), abs=1e-5)
    assert ebm.sample(2).shape == (2, 1, 8, 8) and torch.equal(ebm.given()(x), ebm.energy(x))
    for act in (lambda: ebm.energy(x, 1), lambda: ebm.given("cat"), lambda: ebm.sample(2, 0)):
        with pytest.raises(InputError, match="tiny is unconditional and takes no label"):
            act()
    with pytest.raises(InputError, match="knows no classes to try"):
        ebm.classify(x)
    assert re.fullmatch(r"EBM\(tiny: images 1x8x8, unconditional, step 0\)", repr(ebm))


def test_models_of_latents_take_values():
    latents = (data.latents.Latent("x", 0.0, 1.0), data.latents.Latent("y", 0.0, 1.0))
    ebm = made(classes=(), latents=latents)
    x, row = torch.rand(3, 1, 8, 8), torch.tensor([[0.2, 0.7]])
    want = ebm.model.net(x, row.expand(3, 2)).tolist()
    for label in ("0.2,0.7", [0.2, 0.7], row, np.array([[0.2, 0.7]] * 3)):
        assert ebm.energy(x, label).tolist() == pytest.approx(want, abs=1e-5)
    assert ebm.sample(3, "0.2,0.7").shape == x.shape and ebm.sample(3).shape == x.shape
    for label in ([0.2], "half", [[0.1, np.nan]], None):
        with pytest.raises(InputError):
            ebm.energy(x, label)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"dtype": "float8"}, "unknown dtype 'float8'"),
        ({"compiled": "graphs"}, "CUDA graphs need a GPU"),
        ({"compiled": "fused"}, "CUDA graphs need a GPU"),
        ({"compiled": "quick"}, "compiled='quick': give False, True, 'fused', 'graphs' or 'winograd'"),
        ({"device": "cuda:99"}, "--device cuda:99: th"),
    ],
)
def test_what_this_machine_has_not_is_one_line(options, why):
    with pytest.raises(InputError, match=why):
        igebm.load("digits", **options)


def test_a_dtype_by_name_is_that_dtype():
    assert igebm.load("digits", "auto", "bfloat16").model.dtype == torch.bfloat16
