"""Means and shares with their errors: against hand calculations, and what is said where little is known."""

import json
import math
from functools import partial

import numpy as np
import pytest

from igebm import model
from igebm import share as sharing
from igebm.cli import main
from igebm.data import load
from igebm.data.images import if_there, to_test_on
from igebm.data.sources import load_series
from igebm.evaluation.likelihood import bits
from igebm.evaluation.numbers import interval, mean, of_split, share
from igebm.evaluation.ood import interval as auroc_interval
from igebm.report.tables import measure, shown


def test_a_mean_and_its_error():
    """0, 0, 2, 2: standard deviation √(4/3), of the mean half of it; one that is not known does not count."""
    assert mean(np.array([0, 0, 2, 2, np.nan])) == {"mean": 1.0, "se": 0.57735, "n": 4}
    assert mean(np.array([3.0])) == {"mean": 3.0, "se": None, "n": 1} and mean(np.empty(0))["mean"] is None


def test_a_share_has_its_error_and_its_interval():
    """Of 1 in 4: √(3/16 / 4). P(1 or more of 4 | low) = P(1 or fewer of 4 | high) = 2.5 %."""
    found = share(np.array([True, False, False, False]))
    assert (found["share"], found["se"], found["n"]) == (0.25, pytest.approx(math.sqrt(3) / 8, rel=1e-5), 4)
    low, high = found["low"], found["high"]
    assert 1 - (1 - low) ** 4 == pytest.approx(0.025, rel=1e-4)
    assert (1 - high) ** 4 + 4 * high * (1 - high) ** 3 == pytest.approx(0.025, rel=1e-4)


def test_five_of_five_is_no_certainty():
    """p⁵ = 2.5 % at p = 0.478; none of five is its mirror image. The standard error would be 0, and is not given."""
    end = 0.025 ** (1 / 5)
    assert share(np.ones(5, bool)) == {
        "share": 1.0,
        "se": None,
        "low": pytest.approx(end, rel=1e-5),
        "high": 1.0,
        "n": 5,
    }
    assert interval(0, 5) == (0.0, pytest.approx(1 - end))
    assert share(np.empty(0, bool)) == {"share": None, "se": None, "low": None, "high": None, "n": 0}


def test_an_interval_stands_where_there_is_no_standard_error():
    all_of, some = share(np.ones(5, bool)), share(np.arange(4) < 1)
    assert measure(all_of) == (1.0, None)
    assert ["".join(part.itertext()) for part in shown(all_of)] == ["1", " (0.48 to 1), n 5"]
    assert ["".join(part.itertext()) for part in shown(some)] == ["0.25", " ± 0.22, n 4"]
    assert sharing.numbers({"a": all_of, "b": some}) == {"a": "1 (0.48 to 1)", "b": "0.25 ± 0.22"}


ONE_SPLIT = {
    "ood": "--n 8 --against uniform",
    "cross-class": "--n 4 --steps 1 --show 1",
    "restoration": "--n 4 --steps 1 --show 1 --frames 2",
    "likelihood": "--n 20 --samples 2 --steps 1 --chains 2 --rungs 2 --leapfrog 1 --burn 1",
    "finetune": "--steps 1 --batch-size 8",
}


@pytest.mark.parametrize("name", ONE_SPLIT)
def test_a_result_says_which_split_was_measured(name, tmp_path, quick_classifier, capsys):
    """Where there is no test split the train split stands in: the result has a warning, and so have its report and its
    card; where there is one, none."""
    digits, common = load("digits"), "--device cpu --dtype float32 --compile off --threads 1".split()
    two = dict(train_x=digits.x[:200], train_y=digits.y[:200], classes=np.array(digits.classes))
    np.savez(tmp_path / "one.npz", **two)
    np.savez(tmp_path / "both.npz", **two, test_x=digits.x[200:240], test_y=digits.y[200:240])
    for data, split in (("one", "train"), ("both", "test")):
        words = ["eval", name, "digits", *ONE_SPLIT[name].split(), "--data", str(tmp_path / f"{data}.npz")]
        assert main([*words, "--out", str(tmp_path / data), *common]) == 0
        about = json.loads((tmp_path / data / f"{name}.json").read_text())
        found = about["numbers"]
        assert found["split"] == split and bool(found.get("warnings")) == (split == "train")
        assert main(["report", str(tmp_path / data)]) == 0
        page = (tmp_path / data / "report.html").read_text()
        card = sharing.card("x", "hf:a/b", "mit", *weights(), "", {name: about}, False)
        for text in (page, card):
            assert ("no test split: measured on the train split" in text.replace("\n", " ")) == (split == "train")
    capsys.readouterr()


def weights() -> tuple[dict, dict]:
    return model.read(model.find("digits"))


@pytest.mark.parametrize("split, asked", [("test", "test"), ("val", "validation"), ("train", "train")])
def test_images_and_series_bear_their_split(split, asked, tmp_path):
    x = np.arange(2 * 8 * 8 * 1).reshape(2, 8, 8, 1).astype(np.uint8)
    np.savez(tmp_path / "x.npz", **{f"{s}_x": x for s in ("train", "test", "val")})
    np.savez(tmp_path / "s.npz", **{f"{s}_x": x[..., 0].astype(np.float32) for s in ("train", "test", "val")})
    assert load(str(tmp_path / "x.npz"), asked).split == split
    assert load_series(str(tmp_path / "s.npz"), asked).split == split


def test_the_train_split_stands_in_for_tests_alone(tmp_path):
    x, said = np.arange(128, dtype=np.float32).reshape(2, 8, 8), []
    np.save(tmp_path / "s.npy", x)
    found = to_test_on("s", partial(load_series, str(tmp_path / "s.npy")), said.append)
    assert of_split(found)["split"] == "train" and said == ["s has no test split: the train split is used"]
    assert if_there(partial(load_series, str(tmp_path / "s.npy")), "test") is None
    assert of_split(found._replace(split="test")) == {"split": "test"}


def test_one_image_leaves_the_bits_open():
    assert bits(np.array([0.0]), 0.0, 0.0, 1) == {"bits": 8.0, "low": None, "high": None, "n": 1}


def test_energies_that_are_all_one_say_nothing_of_the_auroc():
    assert auroc_interval(np.ones(5), np.ones(7)) == (0.0, 1.0)
