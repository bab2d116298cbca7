"""Restoration through the command line: what is kept, what is damaged and by how much, masks of every kind (C28)."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from igebm import data, presets
from igebm.cli import main
from igebm.errors import InputError
from igebm.evaluation import restoration
from igebm.evaluation.masks import lower_half, read_mask
from igebm.model import Shape, build_net, save
from igebm.model import load as load_model

pytestmark = pytest.mark.usefixtures("quick_classifier")
MACHINE = "--device cpu --dtype float32 --compile off --threads 1".split()


def restored(out: Path, *args, model: Path | str = "digits") -> dict:
    assert main(["eval", "restoration", str(model), "--out", str(out), *map(str, args), *MACHINE]) == 0
    return json.loads((out / "restoration.json").read_text())["numbers"]


def strips(path: Path, frames: int) -> np.ndarray:
    """The pictures of a strip file, undone: (images, frames, 8, 8). Each is enlarged by whole pixels, a gap of one
    around it."""
    picture = np.asarray(Image.open(path))
    scale = max(1, round(900 / (frames * 9 + 1)))
    small = picture[::scale, ::scale]
    assert np.array_equal(small.repeat(scale, 0).repeat(scale, 1), picture)
    rows = (small.shape[0] - 1) // 9
    cells = small[1:, 1:].reshape(rows, 9, frames, 9)[:, :8, :, :8]
    return cells.transpose(0, 2, 1, 3)


def first(n: int) -> np.ndarray:
    """The test images that an experiment with seed 0 takes."""
    x = data.load("digits", "test").x
    return x[np.random.default_rng(0).permutation(len(x))[:n]][..., 0]


def test_kept_pixels_are_byte_equal_in_every_frame_and_the_hole_moves(tmp_path):
    numbers = restored(
        tmp_path, "--corrupt", "inpaint", "--n", 6, "--batch", 4, "--steps", 9, "--show", 2, "--frames", 4
    )
    got, truth = strips(tmp_path / "restoration-inpaint-steps.png", 4), first(6)[:2]
    assert (got[:, :, :4] == truth[:, None, :4]).all()
    assert (got[:, 0, 4:] != got[:, -1, 4:]).mean() > 0.5
    assert numbers["images"] == 6 and numbers["inpaint"]["filled"] == 0.5 and "salt-pepper" not in numbers
    for name in ("restoration-inpaint.png", "restoration-inpaint.pdf"):
        assert (tmp_path / name).stat().st_size > 1000


def test_errors_before_the_chain_are_the_closed_forms(tmp_path):
    """Salt and pepper over a share p: (p/2) ⟨(t - 0.1)²⟩ + (p/2) ⟨(t - 0.9)²⟩ of the whole image, as bytes 25 and 230.
    Uniform noise in the hole: ⟨(t - ½)²⟩ + 1/12 (of bytes: the noise's bin is as often too high as too low)."""
    numbers = restored(tmp_path, "--n", 359, "--steps", 1, "--share", 0.3, "--show", 1, "--frames", 2)
    t = first(359).astype(float)
    at = lambda byte: (((t - byte) / 256) ** 2).mean((1, 2))
    want = {
        ("salt-pepper", "mse_image"): 0.15 * (at(25) + at(230)),
        ("salt-pepper", "mse_damaged_pixels"): 0.5 * (at(25) + at(230)),
        ("inpaint", "mse_damaged_pixels"): (((t - 127.5) / 256) ** 2)[:, 4:].mean((1, 2)) + 1 / 12,
    }
    for (kind, over), value in want.items():
        got = numbers[kind][over]["before"]
        assert got["n"] == 359 and abs(got["mean"] - value.mean()) < 5 * got["se"] < 0.15 * got["mean"], (kind, over)
    half = numbers["inpaint"]["mse_image"]["before"]["mean"]
    assert half == pytest.approx(numbers["inpaint"]["mse_damaged_pixels"]["before"]["mean"] / 2, rel=1e-5)


def test_black_and_white_salt_and_pepper_hits_exactly_these_levels(tmp_path):
    restored(tmp_path, "--corrupt", "salt-pepper", "--n", 3, "--share", 1, "--levels", 0, 1, "--steps", 1, "--show", 3,
             "--frames", 2)  # fmt: skip
    before = strips(tmp_path / "restoration-salt-pepper-steps.png", 2)[:, 0]
    assert set(np.unique(before)) == {0, 255} and 0.35 < (before == 255).mean() < 0.65


def test_the_bundled_model_repairs_digits(tmp_path):
    """Each kind of damage ends with less than half of its error, and with fewer changed classes than it began."""
    numbers = restored(tmp_path, "--n", 20, "--show", 1)
    assert numbers["classifier"]["test_accuracy"] > 0.95 and numbers["label"] == "the true one"
    for kind, steps in (("salt-pepper", 100), ("inpaint", 200)):
        about = numbers[kind]
        assert about["steps"] == steps
        before, after = (about["mse_damaged_pixels"][when]["mean"] for when in ("before", "after"))
        assert after < before / 2
        changed = about["changed_class"]["by_classifier"]
        assert changed["after"]["share"] < changed["before"]["share"] or changed["before"]["share"] == 0


def test_parts_of_another_size_give_figures_of_the_same_start(tmp_path):
    """The damage of an image does not depend on how many images there are."""
    options = ["--corrupt", "inpaint", "--steps", 1, "--batch", 4, "--show", 2, "--frames", 2]
    for n in (4, 9):
        restored(tmp_path / str(n), "--n", n, *options)
    a, b = (strips(tmp_path / n / "restoration-inpaint-steps.png", 2) for n in "49")
    assert np.array_equal(a, b)


def test_an_unconditional_model_needs_no_labels_and_a_conditional_one_can_guess(tmp_path):
    """Without a condition there is no class by energy; on data without labels a conditional model takes the lowest."""
    preset = presets.Preset(width=4, blocks="1d", data="digits", conditional=False)
    save(tmp_path / "u.safetensors", build_net(preset, Shape(1, 8, 8)), preset, Shape(1, 8, 8), 0, {})
    np.savez(tmp_path / "plain.npz", train_x=data.load("digits").x[:4])
    args = ["--data", tmp_path / "plain.npz", "--steps", 2, "--show", 1, "--frames", 2, "--corrupt", "inpaint"]
    free = restored(tmp_path / "u", *args, model=tmp_path / "u.safetensors")
    assert free["label"].startswith("none") and free["classifier"] is None and free["inpaint"]["changed_class"] == {}
    guess = restored(tmp_path / "c", *args, "--at", "lowest")
    assert "lowest energy" in guess["label"] and set(guess["inpaint"]["changed_class"]) == {"by_energy"}


def test_data_without_train_images_or_without_test_labels_are_restored_all_the_same(tmp_path, capsys):
    """The classifier is an extra: without train images there is none, without test labels nobody knows how good."""
    train, test = data.load("digits"), data.load("digits", "test")
    names = np.array(train.classes)
    np.savez(tmp_path / "test.npz", test_x=test.x[:4], test_y=test.y[:4], classes=names)
    np.savez(tmp_path / "half.npz", train_x=train.x[:200], train_y=train.y[:200], test_x=test.x[:4],
             test_y=np.full(4, -1), classes=names)  # fmt: skip
    args = ["--steps", 2, "--show", 1, "--frames", 2, "--corrupt", "inpaint", "--at", "lowest"]
    found = restored(tmp_path / "a", *args, "--data", tmp_path / "test.npz")
    assert found["classifier"] is None and set(found["inpaint"]["changed_class"]) == {"by_energy"}
    assert "has no split 'train'; it has: test: no classifier" in capsys.readouterr().err
    for again in ("b", "c"):
        found = restored(tmp_path / again, *args, "--data", tmp_path / "half.npz")
        assert found["classifier"]["test_accuracy"] is None and "by_classifier" in found["inpaint"]["changed_class"]
        assert ("training a classifier" in capsys.readouterr().err) == (again == "b")


def test_the_models_own_guess_is_of_what_it_is_given_and_not_of_the_truth(tmp_path, monkeypatch):
    """So much salt and pepper that the label of least energy is often another one: the chains run at that."""
    chain, seen = restoration.run_chain, []

    def watched(kernel, E, x, *rest):
        with torch.no_grad():
            seen.append((x.clone(), E(x)))
        return chain(kernel, E, x, *rest)

    monkeypatch.setattr(restoration, "run_chain", watched)
    restored(tmp_path, "--corrupt", "salt-pepper", "--share", 0.6, "--n", 30, "--steps", 1, "--show", 1, "--frames", 2,
             "--at", "lowest")  # fmt: skip
    m, [(x, e)] = load_model("digits"), seen
    damaged = data.quantise(x).permute(0, 2, 3, 1).numpy()
    of = lambda images: np.stack([m.energy(images, np.full(30, c)) for c in range(10)])
    guess, of_truth = of(damaged).argmin(0), of(first(30)[..., None]).argmin(0)
    assert (guess != of_truth).sum() > 5
    with torch.no_grad():
        assert torch.allclose(e, m.given(torch.from_numpy(guess))(x), atol=1e-6)
        assert not torch.allclose(e, m.given(torch.from_numpy(of_truth))(x), atol=1e-4)


@pytest.mark.slow
def test_several_processes_give_the_numbers_of_one(tmp_path):
    """Ten images in parts of four, and four runs of fine-tuning, by one process and under torchrun by two (C07)."""
    np.savez(tmp_path / "plain.npz", train_x=data.load("digits").x[:40])  # without labels: no classifier is trained
    experiments = {
        "restoration": "--n 10 --batch 4 --steps 3 --show 2 --at lowest --data plain.npz",
        "neighbours": "--n 6 --batch 2 --steps 2 --show 2 --data plain.npz",
        "finetune": "--steps 6 --labels 40 --batch-size 8",
    }
    for name, args in experiments.items():
        found = []
        for n in (1, 2):
            # After --, since torchrun would take --n for one of its own options.
            spread = ["torch.distributed.run", "--nproc-per-node", str(n), "-m", "--"] if n > 1 else []
            command = [sys.executable, "-m", *spread, "igebm", "eval", name, "digits", *args.split(), "--out", str(n)]
            done = subprocess.run([*command, *MACHINE], capture_output=True, text=True, timeout=600, cwd=tmp_path)
            assert done.returncode == 0, done.stderr
            found.append(json.loads((tmp_path / str(n) / f"{name}.json").read_text()))
            assert found[-1]["processes"] == n
        assert found[0]["numbers"] == found[1]["numbers"], name


# Masks


def mask_file(path: Path, x: np.ndarray, mode: str | None = None) -> Path:
    Image.fromarray(x).convert(mode).save(path) if mode else Image.fromarray(x).save(path)
    return path


LEFT = np.zeros((8, 8), np.uint8)
LEFT[:, :4] = 255
ALPHA = np.zeros((8, 8, 4), np.uint8)  # strokes of white on nothing
ALPHA[:, :4] = 255
SAME_HOLE = {
    "0 and 255": (LEFT, None),
    "0 and 1": (LEFT // 255, None),
    "one bit": (LEFT, "1"),
    "RGB": (LEFT, "RGB"),
    "RGBA": (LEFT, "RGBA"),
    "strokes on nothing": (ALPHA, None),
    "palette": (LEFT, "P"),
    "16 bits": (LEFT.astype(np.uint16) * 257, None),
}


@pytest.mark.parametrize("x, mode", SAME_HOLE.values(), ids=SAME_HOLE.keys())
def test_c28_white_is_the_hole_in_every_form(x, mode, tmp_path):
    assert np.array_equal(read_mask(mask_file(tmp_path / "m.png", x, mode), 8, 8), LEFT == 255)


def test_c28_the_lower_half_is_what_is_filled_and_the_help_says_white(capsys):
    for words in (["restore"], ["eval", "restoration"]):
        with pytest.raises(SystemExit):
            main([*words, "--help"])
        shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert "white is filled" in shown, words
    assert lower_half(5, 2)[:, 0].tolist() == [False, False, True, True, True]


COLOURED = np.zeros((8, 8, 3), np.uint8)
COLOURED[:, :4, 0] = 255
GREY = LEFT.copy()
GREY[0, 0] = 100


def test_c28_a_mask_of_the_pictures_own_size_is_cut_and_shrunk_with_it(tmp_path):
    """20 x 16 pixels to 8 x 8: columns 2 to 17 are kept, two by two; one white pixel fills its model pixel. 10 x 10:
    a model pixel is 1.25 wide and lies over parts of two or three."""
    x = np.zeros((16, 20), np.uint8)
    x[5, 2 + 9] = x[15, 17] = x[0, 1] = x[0, 18] = 255  # the last two are cut away
    found = read_mask(mask_file(tmp_path / "m.png", x), 8, 8, (20, 16))
    assert np.argwhere(found).tolist() == [[2, 4], [7, 7]]
    x = np.zeros((10, 10), np.uint8)
    x[0, 6] = 255  # from 6 to 7: over the pixels from 5 to 6.25 and from 6.25 to 7.5
    found = read_mask(mask_file(tmp_path / "m.png", x), 8, 8, (10, 10))
    assert np.argwhere(found).tolist() == [[0, 4], [0, 5]]
    x = np.array([[0, 255], [0, 0]], np.uint8)  # a picture smaller than the model's
    found = read_mask(mask_file(tmp_path / "m.png", x), 8, 8, (2, 2))
    assert found[:4, 4:].all() and found.sum() == 16
    with pytest.raises(InputError, match=r"is 2x2, the model's images are 8x8; draw it in their size, .*, 20x16"):
        read_mask(tmp_path / "m.png", 8, 8, (20, 16))


MISTAKES = {
    "another size": (np.zeros((16, 12), np.uint8), "is 12x16, the model's images are 8x8"),
    "colour": (COLOURED, "has colours"),
    "grey": (GREY, "has 1 grey pixels"),
}


@pytest.mark.parametrize("x, says", MISTAKES.values(), ids=MISTAKES.keys())
def test_c28_what_is_not_black_and_white_is_refused(x, says, tmp_path):
    with pytest.raises(InputError, match=says):
        read_mask(mask_file(tmp_path / "m.png", x), 8, 8)


def test_c28_no_picture_is_refused(tmp_path):
    (tmp_path / "m.png").write_text("white")
    for path, says in ((tmp_path / "m.png", "not an image"), (tmp_path / "n.png", "No such file")):
        with pytest.raises(InputError, match=says):
            read_mask(path, 8, 8)


@pytest.mark.parametrize("level, says", [(0, "keeps every pixel: the output is the input"), (255, "nothing of the")])
def test_c28_a_mask_of_one_colour_works_and_says_so(level, says, tmp_path, capsys):
    mask = mask_file(tmp_path / "m.png", np.full((8, 8), level, np.uint8))
    numbers = restored(tmp_path, "--mask", mask, "--corrupt", "inpaint", "--n", 3, "--steps", 2, "--show", 2,
                       "--frames", 3)  # fmt: skip
    assert says in capsys.readouterr().err
    got, truth = strips(tmp_path / "restoration-inpaint-steps.png", 3), first(2)
    assert (got == truth[:, None]).all() == (level == 0)
    assert numbers["inpaint"]["filled"] == (level == 255)
    error = numbers["inpaint"]["mse_image"]["after"]["mean"]
    assert (error == 0) == (level == 0)
    assert numbers["inpaint"]["mse_damaged_pixels"]["after"]["n"] == (3 if level else 0)


WRONG = {
    "share": (["--share", "1.5"], "--share 1.5: choose between 0 and 1"),
    "levels": (["--levels", "-1", "0.5"], "--levels -1.0 0.5: choose between 0 and 1"),
    "no images": (["--n", "0"], "give at least 1"),
    "no steps": (["--steps", "0"], "1 or more --steps"),
    "noise": (["--noise", "-1"], "--noise -1.0: give 0 or more"),
    "mask without a hole to fill": (["--corrupt", "salt-pepper", "--mask", "m.png"], "--corrupt inpaint"),
    "no mask": (["--mask", "m.png"], "m.png: No such file"),
    "other data": (["--data", "OTHER"], "has none; give --data a folder"),
}


@pytest.mark.parametrize("args, says", WRONG.values(), ids=WRONG.keys())
def test_a_mistake_is_one_line(args, says, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "other.npz", train_x=np.zeros((4, 8, 8, 1), np.uint8))
    args = [a.replace("OTHER", "other.npz") for a in args]
    assert main(["eval", "restoration", "digits", "--out", "out", *args, *MACHINE]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("igebm: ") and says in lines[-1]
    assert list((tmp_path / "out").iterdir()) == []
