"""Chains under another class's label: which pairs are tried, and what the bundled model and the matrix then say."""

import json

import numpy as np
import pytest
import torch

from igebm import data, model, presets
from igebm.cli import main
from igebm.evaluation.cross_class import matrix, pairs
from igebm.model import Shape, build_net

pytestmark = pytest.mark.usefixtures("quick_classifier")
MACHINE = "--device cpu --dtype float32 --compile off --threads 1".split()


@pytest.mark.parametrize("n, least, most", [(180, 2, 2), (90, 1, 1), (100, 1, 2), (45, 0, 1)])
def test_all_pairs_are_alike(n, least, most):
    y = data.load("digits", "test").y
    chosen, targets = pairs(y, n, 10, 0)
    assert len(set(chosen)) == n and (y[chosen] != targets).all()
    count = np.zeros((10, 10), int)
    np.add.at(count, (y[chosen], targets), 1)
    off = count[~np.eye(10, dtype=bool)]
    assert (off.min(), off.max()) == (least, most) and count.trace() == 0


def test_two_classes_have_one_target_each_and_seeds_choose():
    y = np.array([0, 0, 0, 1, 1, 1])
    chosen, targets = pairs(y, 6, 2, 1)
    assert sorted(chosen) == list(range(6)) and (targets == 1 - y[chosen]).all()
    assert pairs(np.arange(40) % 2, 6, 2, 0)[0].tolist() != pairs(np.arange(40) % 2, 6, 2, 1)[0].tolist()


def test_matrix_by_hand():
    got = matrix(np.array([0, 0, 1, 0]), np.array([1, 1, 0, 2]), np.array([True, False, True, False]), 3)
    assert np.array_equal(got, [[np.nan, 0.5, 0], [1, np.nan, np.nan], [np.nan] * 3], equal_nan=True)


def test_the_bundled_digits_become_others(tmp_path):
    """Before, nearly no image is taken for its target; after 100 steps half are or more, and fewer remain."""
    args = ["--n", "90", "--steps", "100", "--show", "1", "--out", str(tmp_path)]
    assert main(["eval", "cross-class", "digits", *args, *MACHINE]) == 0
    numbers = json.loads((tmp_path / "cross-class.json").read_text())["numbers"]
    assert numbers["images"] == numbers["pairs"] == 90 and numbers["steps"] == 100
    by = numbers["by_classifier"]
    assert by["target_before"]["share"] < 0.1 and by["source_before"]["share"] > 0.85
    assert by["target"]["share"] > 0.45 and by["source"]["share"] < by["target"]["share"]
    table = np.array(by["target_by_pair"], float)
    assert np.isnan(table.diagonal()).all() and np.nanmean(table) == pytest.approx(by["target"]["share"], abs=1e-3)
    for name in numbers["figures"]:
        assert (tmp_path / name).stat().st_size > 1000


def mistake(capsys, *args) -> str:
    assert main(["eval", "cross-class", *map(str, args), *MACHINE]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("igebm: ")
    return lines[-1]


def test_mistakes_are_one_line(tmp_path, capsys):
    out = ["--out", tmp_path / "out"]
    preset = presets.Preset(width=4, blocks="1d", data="digits", conditional=False)
    torch.manual_seed(0)
    model.save(tmp_path / "u.safetensors", build_net(preset, Shape(1, 8, 8)), preset, Shape(1, 8, 8), 0, {})
    said = mistake(capsys, tmp_path / "u.safetensors", *out)
    assert "u is unconditional; train one with labels: igebm train cifar10-cond" in said
    x = np.zeros((4, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "none.npz", train_x=x)
    np.savez(tmp_path / "other.npz", train_x=x, train_y=np.arange(4) % 2)
    assert "none.npz has none" in mistake(capsys, "digits", "--data", tmp_path / "none.npz", *out)
    assert "needs what digits knows (0, 1, 2, ...)" in mistake(capsys, "digits", "--data", tmp_path / "other.npz", *out)
    assert "give at least 1" in mistake(capsys, "digits", "--n", 0, *out)


def test_the_classifiers_training_is_no_longer_than_asked(tmp_path, capsys, monkeypatch):
    """Three iterations where three are the most; as many as it takes where more are allowed than that."""
    monkeypatch.setattr("igebm.evaluation.classifier.steps_for", lambda images: 5)
    for most, trained in ((3, 3), (7, 5)):
        args = ["--n", "10", "--steps", "1", "--classifier-steps", str(most), "--data-dir", str(tmp_path / str(most))]
        assert main(["eval", "cross-class", "digits", *args, "--out", str(tmp_path / "out"), "--again", *MACHINE]) == 0
        (kept,) = (tmp_path / str(most)).glob("classifier-*.safetensors")
        assert model.read(kept)[1]["step"] == trained
    capsys.readouterr()
    assert main(["eval", "cross-class", "digits", "--classifier-steps", "0"]) == 2
    assert "--classifier-steps 0" in capsys.readouterr().err
