"""Telling the test set from other images (Table 2): made-up sets, the interval of AUROC, the command end to end."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from test_data_folder import c01, c26

from igebm import data, model, presets
from igebm.cli import main
from igebm.data.outliers import MADE_UP, make
from igebm.errors import InputError
from igebm.evaluation.metrics import auroc
from igebm.evaluation.ood import gradient_norms, interval
from igebm.evaluation.settings import Common
from igebm.evaluation.work import Work
from igebm.report import figures
from igebm.runtime import Runtime

MACHINE = "--device cpu --dtype float32 --compile off --threads 1".split()


def ood(out, *args, where="digits") -> int:
    return main(["eval", "ood", where, "--out", str(out), *map(str, args), *MACHINE])


def numbers(out) -> dict:
    return json.loads((out / "ood.json").read_text())["numbers"]


# Made-up sets


@pytest.fixture(scope="module")
def like() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2000, 4, 5, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", MADE_UP)
def test_made_up_sets_are_of_the_shape_asked_for_and_of_their_seed(name, like):
    x = make(name, like, 3)
    assert x.dtype == np.uint8 and x.shape == like.shape
    assert np.array_equal(x, make(name, like, 3)) and not np.array_equal(x, make(name, like, 4))


def test_constant_images_are_of_one_colour_and_the_colours_uniform(like):
    x = make("constant", like)
    assert (x == x[:, :1, :1]).all()
    colours = x[:, 0, 0].astype(float)
    assert abs(colours.mean() - 127.5) < 5 * math.sqrt((256**2 - 1) / 12 / colours.size)
    assert abs(np.corrcoef(colours.T)[0, 1]) < 5 / math.sqrt(len(x))  # the channels are independent


def test_uniform_pixels_take_every_byte_alike(like):
    counts = np.bincount(make("uniform", like).ravel(), minlength=256)
    n = like.size / 256
    assert (abs(counts - n) < 5 * math.sqrt(n)).all()


def test_gaussian_pixels_are_cut_off_at_the_ends(like):
    """P(byte 0) = P(N(½, ½²) < 1/256) = Φ(-0.992) = 0.1606; byte 255: P(N >= 255/256), the same."""
    x = make("gaussian", like)
    p = 0.5 * math.erfc((0.5 - 1 / 256) / 0.5 / math.sqrt(2))
    for byte in (0, 255):
        assert abs((x == byte).mean() - p) < 5 * math.sqrt(p * (1 - p) / x.size)


def test_interpolations_are_means_of_two_different_images():
    """Image i has the one value 2^(i+1): every mean tells its two images; each image is in two means, none with
    itself."""
    values = 2 ** np.arange(1, 8)
    x = np.broadcast_to(values.astype(np.uint8)[:, None, None, None], (7, 2, 2, 1)).copy()
    sums = 2 * make("interpolation", x)[:, 0, 0, 0].astype(int)
    pairs = [np.flatnonzero(values & total) for total in sums]
    assert all(len(pair) == 2 for pair in pairs)
    assert np.bincount(np.concatenate(pairs)).tolist() == [2] * 7


def test_an_interpolation_by_hand():
    x = np.array([10, 21], np.uint8).reshape(2, 1, 1, 1)
    assert make("interpolation", x).ravel().tolist() == [16, 16]  # 15.5 to even
    with pytest.raises(InputError, match="two different images, got 1"):
        make("interpolation", x[:1])


# The interval


def test_delong_variance_against_all_pairs():
    """var(v)/m + var(w)/n with the placements counted pair by pair, ties as halves; the ends are symmetric in the
    logit."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 8, 30).astype(float), rng.integers(3, 12, 40).astype(float)
    wins = (a[:, None] < b) + 0.5 * (a[:, None] == b)
    se = math.sqrt(wins.mean(1).var(ddof=1) / 30 + wins.mean(0).var(ddof=1) / 40)
    theta = wins.mean()
    low, high = interval(a, b)
    logit = lambda p: math.log(p / (1 - p))
    assert auroc(a, b) == pytest.approx(theta)
    assert logit(high) - logit(theta) == pytest.approx(1.959964 * se / (theta * (1 - theta)))
    assert logit(theta) - logit(low) == pytest.approx(logit(high) - logit(theta))


def test_the_interval_covers_as_often_as_it_says():
    """N(0, 1) against N(1, 1): AUROC = Φ(1/√2) = 0.7602. Of 400 intervals at 95 %, 380 ± 5 standard deviations."""
    rng, truth = np.random.default_rng(1), 0.5 * math.erfc(-0.5)
    ends = [interval(rng.normal(size=60), rng.normal(1, size=50)) for _ in range(400)]
    assert abs(sum(low <= truth <= high for low, high in ends) - 380) < 5 * math.sqrt(400 * 0.05 * 0.95)


def test_the_interval_of_sets_that_do_not_overlap():
    """Of 10 pairs all in order, A^10 = 0.025: A = 0.6915, the exact (Clopper-Pearson) end."""
    low, high = interval(np.arange(10.0), np.arange(100.0, 130.0))
    assert high == 1.0 and low == pytest.approx(0.6915, abs=1e-4)
    assert interval(np.arange(100.0, 130.0), np.arange(10.0)) == (0.0, pytest.approx(1 - low))


def test_swapping_the_sets_mirrors_the_interval():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=20), rng.normal(1, size=30)
    low, high = interval(a, b)
    assert interval(b, a) == (pytest.approx(1 - high), pytest.approx(1 - low))


# Scores


@pytest.fixture(scope="module")
def digits_work(tmp_path_factory) -> Work:
    m = model.load("digits")
    runtime = Runtime(torch.device("cpu"), torch.float32, torch.float32, False, 1, "test")
    return Work(m, "digits", runtime, Common(), tmp_path_factory.mktemp("out"))


def test_gradient_norm_by_differences(digits_work):
    """‖∇E‖ is how fast E grows along ∇E: (E(x + h g/‖g‖) - E(x - h g/‖g‖)) / 2h, at the label with the lowest E. The
    path is short, for kinks of leaky ReLUs lie all along it."""
    images, m = data.load("digits", "test").x[:6], digits_work.model
    norms = gradient_norms(digits_work, images)
    best = np.stack([m.energy(images, np.full(6, c)) for c in range(10)]).argmin(0)
    E = m.given(torch.from_numpy(best))
    x = digits_work.tensor(images).requires_grad_()
    (g,) = torch.autograd.grad(E(x).sum(), x)
    unit, h = g / g.flatten(1).norm(dim=1)[:, None, None, None], 1e-3
    with torch.no_grad():
        slope = (E(x + h * unit) - E(x - h * unit)) / (2 * h)
    assert norms == pytest.approx(slope.numpy(), rel=0.05)


# The command


def test_eval_ood_end_to_end(tmp_path, capsys):
    """AUROC as scikit-learn gives it for the energies that the model gives, figures and circumstances beside it; a set
    of another size and of three channels goes through the same conversion as `igebm energy`."""
    other = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "other.npz", x=other)
    out = tmp_path / "out"
    against = ["constant", "uniform", "interpolation", "gaussian", str(tmp_path / "other.npz")]
    assert ood(out, "--n", 80, "--against", *against) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"folder: {out}"
    found = numbers(out)
    assert list(found["auroc"]) == [*against[:-1], "other"] and found["left_out"] == {}
    m, test = model.load("digits"), data.load("digits", "test")
    shown = data.load(str(tmp_path / "other.npz"), "train", image_size=8, channels=1)
    e_out = m.energy(shown.x)
    order = np.random.default_rng(0).permutation(len(test.x))[:80]
    e_in = m.energy(test.x[order])
    want = roc_auc_score(np.repeat([0, 1], [80, 40]), np.concatenate([e_in, e_out]))
    row = found["auroc"]["other"]
    assert row["auroc"] == pytest.approx(want, abs=1e-6) and row["n"] == 40 and "paper" not in row
    assert row["low"] <= row["auroc"] <= row["high"]
    assert found["energies"]["digits"]["mean"] == pytest.approx(float(e_in.mean()), rel=1e-4)
    assert {"ood.png", "ood.pdf", "ood-sets.png", "ood-sets.pdf", "ood.json"} <= {p.name for p in out.iterdir()}
    about = json.loads((out / "ood.json").read_text())
    assert about["seed"] == 0 and about["options"]["against"] == against and "commit" in about["machine"]


def test_scores_at_the_label(tmp_path):
    """Test images at their own label, made-up ones, which have none, at the label they like best."""
    assert ood(tmp_path, "--n", 50, "--against", "uniform", "--score", "energy") == 0
    found, m, test = numbers(tmp_path), model.load("digits"), data.load("digits", "test")
    order = np.random.default_rng(0).permutation(len(test.x))[:50]
    want = m.energy(test.x[order], test.y[order]).mean()
    assert found["energies"]["digits"]["mean"] == pytest.approx(float(want), rel=1e-4)
    assert found["scored_at"] == {"digits": "its label", "uniform": "the label with the lowest energy"}


def test_a_set_against_itself_is_a_coin_toss(tmp_path):
    """Both have a row of their own."""
    assert ood(tmp_path, "--n", 359, "--against", "digits", "--score", "gradient-norm") == 0
    found = numbers(tmp_path)
    assert {name: row["auroc"] for name, row in found["auroc"].items()} == {"digits (2)": 0.5}
    assert list(found["energies"]) == list(found["scored_at"]) == ["digits", "digits (2)"]
    assert found["energies"]["digits"] == found["energies"]["digits (2)"]


def grey(path, level: int) -> str:
    """A folder with three images of one grey."""
    path.mkdir(parents=True)
    for k in range(3):
        Image.new("L", (8, 8), level).save(path / f"{k}.png")
    return str(path)


def test_sets_of_one_name_have_a_row_each(tmp_path):
    """Folders of the test set's name, of a made-up set's, of the table's last row, and two of one name: each row has
    the energies of its own images."""
    m = model.load("digits")
    folders = [grey(tmp_path / way, 40 * k) for k, way in enumerate(["digits", "uniform", "a/x", "b/x", "average"])]
    assert ood(tmp_path / "out", "--n", 20, "--against", *folders, "constant", "uniform", "interpolation") == 0
    found = numbers(tmp_path / "out")
    names = ["digits (2)", "uniform (2)", "x", "x (2)", "average (2)", "constant", "uniform", "interpolation"]
    assert list(found["auroc"]) == names and list(found["energies"]) == ["digits", *names]
    for k, name in enumerate(names[:5]):
        e = m.energy(np.full((1, 8, 8, 1), 40 * k, np.uint8))[0]
        assert found["energies"][name] == {
            "mean": pytest.approx(float(e), rel=1e-4),
            "std": pytest.approx(0, abs=1e-6),
            "n": 3,
        }, name


def test_names_that_a_legend_cuts_short_lose_no_set(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "histogram", lambda ax, values, label: drawn.append([(n, len(v)) for n, v in values]))
    long = "a-folder-of-a-very-very-long-name"
    there = [grey(tmp_path / f"{long}-{k}-of-three-and-then-some", 9) for k in range(2)]
    args = ("--data", there[0], "--n", 3, "--against", there[1])
    assert ood(tmp_path / "out", *args) == 0
    assert [[n for _, n in values] for values in drawn] == [[3, 3]]
    assert [len(name) for name, _ in drawn[0]] == [20, 20]


def test_a_named_set_that_is_not_at_hand_is_left_out_and_said(tmp_path, capsys, monkeypatch):
    # The libraries read the variable when they are first imported, which is before or after this.
    for name in ("huggingface_hub.constants.HF_HUB_OFFLINE", "datasets.config.HF_HUB_OFFLINE"):
        monkeypatch.setattr(name, True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    args = ("--data-dir", tmp_path, "--n", 20)
    assert ood(tmp_path / "a", *args, "--against", "svhn", "constant") == 0
    assert "left out: svhn: " in capsys.readouterr().err
    found = numbers(tmp_path / "a")
    assert list(found["auroc"]) == ["constant"] and "gave no data set" in found["left_out"]["svhn"]
    assert str(tmp_path) not in found["left_out"]["svhn"]
    assert ood(tmp_path / "b", *args, "--against", "svhn") == 2
    assert "none of the sets is at hand" in capsys.readouterr().err


def test_sets_that_are_left_out_for_one_reason_are_said_once(tmp_path, capsys, monkeypatch):
    """Nobody listens at the hub's address: one line for both, and a result without the folder that was searched."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    args = ("--data-dir", tmp_path, "--n", 20, "--against", "svhn", "cifar100", "constant")
    assert ood(tmp_path / "a", *args) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("left out")]
    assert len(said) == 1 and said[0].startswith(
        "left out: svhn, cifar100: the data set is not on this machine and 127"
    )
    found = numbers(tmp_path / "a")["left_out"]
    assert list(found) == ["svhn", "cifar100"] and not any(str(tmp_path) in why for why in found.values())


def test_a_baseline_beside_the_model(tmp_path, capsys):
    """-log p of a PixelCNN++ (untrained: what it says is beside the point) is scored as the energy is; its size and
    its training stand beside it; one of other images is refused."""
    from igebm.baselines import load
    from igebm.baselines.saved import Baseline, build, save, settled
    from igebm.baselines.settings import Settings

    for name, size in (("small", 8), ("large", 16)):
        shape = model.Shape(1, size, size)
        settings = settled("pixelcnn", Settings(width=4, depth=1, mixtures=2), shape)
        net = build("pixelcnn", settings, shape)
        save(tmp_path / f"{name}.safetensors", Baseline(net, "pixelcnn", settings, shape, step=7, facts={"seconds": 3}))
    path = tmp_path / "small.safetensors"
    assert ood(tmp_path / "out", "--n", 30, "--against", "constant", "--baselines", path, "--batch", 8) == 0
    found, baseline, test = numbers(tmp_path / "out"), load(path), data.load("digits", "test")
    order = np.random.default_rng(0).permutation(len(test.x))[:30]
    e_in = -baseline.log_likelihood(test.x[order])
    e_out = -baseline.log_likelihood(make("constant", test.x[order]))
    want = roc_auc_score(np.repeat([0, 1], 30), np.concatenate([e_in, e_out]))
    assert found["auroc"]["constant"]["pixelcnn"] == pytest.approx(want, abs=1e-5)
    about = found["baselines"]["pixelcnn"]
    assert about["iterations"] == 7 and about["seconds"] == 3
    assert about["parameters"] == sum(p.numel() for p in baseline.net.parameters())
    assert ood(tmp_path / "out", "--against", "constant", "--baselines", tmp_path / "large.safetensors") == 2
    assert "(1, 16, 16), digits of (1, 8, 8)" in capsys.readouterr().err
    assert ood(tmp_path / "out", "--against", "constant", "--baselines", path, path) == 2
    assert "--baselines names one model twice" in capsys.readouterr().err


def test_the_papers_numbers_stand_beside_a_model_of_cifar10(tmp_path, real_data):
    preset = replace(presets.named("cifar10-cond"), width=4, blocks="1d")
    shape = model.Shape(3, 32, 32, data.load("cifar10", "test", data_dir=real_data).classes)
    model.save(tmp_path / "m.safetensors", model.build_image_net(preset, shape), preset, shape, 0, {})
    args = ("--n", 20, "--data-dir", real_data, "--against", "constant", "uniform")
    assert ood(tmp_path, *args, where=str(tmp_path / "m.safetensors")) == 0
    found = numbers(tmp_path)["auroc"]
    assert found["constant"]["paper"] == {"auroc": 0.3, "glow": 0.0, "pixelcnn": 0.0}
    assert found["uniform"]["paper"]["auroc"] == 1.0 and "average" not in found


def test_the_papers_numbers_are_of_its_sets_not_of_folders_called_alike(tmp_path):
    """A model of CIFAR-10 (of a stand-in for it): folders called svhn and constant have no number of the paper, and its
    average is over the sets that were asked for by name."""
    x = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 1), dtype=np.uint8)
    kept = tmp_path / "kept"
    kept.mkdir()
    for name in ("cifar10", "svhn", "dtd"):
        np.savez(kept / f"{name}.npz", train_x=x, train_y=np.arange(30) % 10, test_x=x, test_y=np.arange(30) % 10)
    m = model.load("digits")
    preset = replace(m.preset, data="cifar10")
    model.save(tmp_path / "m.safetensors", m.net, preset, m.shape, 0, {})
    folders = [grey(tmp_path / "svhn", 0), grey(tmp_path / "constant", 99), grey(tmp_path / "cifar10", 9)]
    named = ["svhn", "dtd", "constant", "uniform", "interpolation"]
    words = ["--n", 20, "--data-dir", kept, "--against", *folders[:2]]
    assert ood(tmp_path / "a", *words, where=str(tmp_path / "m.safetensors")) == 0
    assert not any("paper" in row for row in numbers(tmp_path / "a")["auroc"].values())
    assert ood(tmp_path / "b", *words, *named, where=str(tmp_path / "m.safetensors")) == 0
    found = numbers(tmp_path / "b")["auroc"]
    assert list(found) == ["svhn (2)", "constant (2)", *named, "average"]
    assert {name for name, row in found.items() if "paper" in row} == {*named, "average"}
    assert found["average"]["auroc"] == pytest.approx(np.mean([found[name]["auroc"] for name in named]), abs=1e-6)
    assert found["average"]["auroc"] != pytest.approx(max(found[name]["auroc"] for name in named), abs=0.01)
    # Nor are they beside a folder that is called as CIFAR-10 is.
    args = ("--n", 3, "--data-dir", kept, "--data", folders[2], "--against", "constant", "uniform")
    assert ood(tmp_path / "c", *args, where=str(tmp_path / "m.safetensors")) == 0
    assert not any("paper" in row for row in numbers(tmp_path / "c")["auroc"].values())


def test_bad_input_is_one_line(tmp_path, capsys):
    np.savez(tmp_path / "large.npz", test_x=np.zeros((9, 12, 12, 1), np.uint8), test_y=np.zeros(9, int))
    (tmp_path / "empty").mkdir()
    large = str(tmp_path / "large.npz")
    cases = [
        (["--against", "svnh"], "did you mean svhn"),
        (["--against", str(tmp_path / "gone.npz")], "gone.npz"),
        (["--against", str(tmp_path / "empty")], "no images found"),
        (["--n", "1"], "--n 1: give at least 2"),
        (["--score", "margin"], "score"),
        (["--seed", "-1"], "--seed -1: choose between 0 and"),
        (["--batch", "0"], "--batch 0"),
        (["--data", large, "--against", "constant"], "12x12 with 1 channel, digits takes 8x8 with 1 channel; --resize"),
    ]
    for args, said in cases:
        assert ood(tmp_path / "out", *args) == 2, args
        err = capsys.readouterr().err
        assert said in err.splitlines()[-1] and "Traceback" not in err, err
    assert ood(tmp_path / "out", "--data", large, "--resize", "--against", "uniform", "--n", 9) == 0


def test_c05_images_one_by_one_give_the_area_of_all_at_once(tmp_path, capsys):
    """The help says which side is which."""
    found = []
    for batch in (1, 40):
        out = tmp_path / str(batch)
        assert ood(out, "--n", 40, "--against", "interpolation", "--batch", batch) == 0
        found.append(json.loads((out / "ood.json").read_text())["numbers"]["auroc"]["interpolation"]["auroc"])
    assert found[0] == found[1] and 0.4 < found[0] < 1
    with pytest.raises(SystemExit):
        main(["eval", "ood", "--help"])
    assert "what counts as out: a high E" in " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_c01_c26_other_sets_are_read_as_every_folder_is(tmp_path, capsys):
    """Five pictures of a folder that desktops have been at; of twenty with three damaged none, or seventeen."""
    words = ["--n", 20, "--against"]
    assert ood(tmp_path / "a", *words, c01(tmp_path / "c01")) == 0
    found = json.loads((tmp_path / "a" / "ood.json").read_text())["numbers"]["auroc"]
    assert found["c01"]["n"] == 5
    root = c26(tmp_path / "c26")
    assert ood(tmp_path / "b", *words, root) == 2
    assert "3 of 20 images" in capsys.readouterr().err
    assert ood(tmp_path / "c", *words, root, "--skip-bad") == 0
    assert json.loads((tmp_path / "c" / "ood.json").read_text())["numbers"]["auroc"]["c26"]["n"] == 17


def test_c05_broken_energies_are_counted_not_scored(tmp_path, capsys):
    """A network with one weight that is not a number: exit 1, and how many energies are lost."""
    m = model.load("digits")
    next(m.net.parameters()).data[0] = torch.nan
    model.save(tmp_path / "broken.safetensors", m.net, m.preset, m.shape, m.step, m.facts)
    assert ood(tmp_path, "--n", 30, "--against", "uniform", where=str(tmp_path / "broken.safetensors")) == 1
    assert "30 of 30 energies of digits are not finite" in capsys.readouterr().err
    assert not (tmp_path / "ood.json").exists()
