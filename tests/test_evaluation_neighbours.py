"""Nearest training images: against scikit-learn, a copy at distance 0, bounded blocks, and the command end to end."""

import json

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from igebm import data, model
from igebm.cli import main
from igebm.evaluation import neighbours
from igebm.evaluation.neighbours import copies, nearest, summary
from igebm.evaluation.settings import Common, Neighbours
from igebm.evaluation.work import Work
from igebm.runtime import probe

pytestmark = pytest.mark.usefixtures("quick_classifier")
MACHINE = "--device cpu --dtype float32 --compile off --threads 1".split()
FLAT = lambda images: torch.from_numpy(images).flatten(1).double()


def test_the_neighbours_are_scikit_learns():
    train, test = data.load("digits").x, data.load("digits", "test").x[:50]
    got = nearest(test, train, FLAT, 4)
    flat = lambda x: x.reshape(len(x), -1).astype(float)
    distance, index = NearestNeighbors(n_neighbors=4, algorithm="brute").fit(flat(train)).kneighbors(flat(test))
    assert got.distance == pytest.approx(distance, rel=1e-12)
    for mine, theirs, d in zip(got.place, index, distance, strict=True):
        assert np.array_equal(mine, theirs) or len(np.unique(d)) < 4  # of equals any order is right


def test_a_training_image_is_its_own_nearest_at_distance_zero():
    train = data.load("digits").x[:300]
    got = nearest(train[100:120], train, FLAT, 2)
    assert got.place[:, 0].tolist() == list(range(100, 120)) and (got.distance[:, 0] == 0).all()
    assert (got.distance[:, 1] > 0).all()


def test_by_hand_with_ties_in_the_order_of_the_index():
    """Bytes 0, 10, 20, 10, 200 against 12: 10 (twice), 20, 0; distances 2, 2, 8, 12."""
    train = np.array([0, 10, 20, 10, 200], np.uint8).reshape(5, 1, 1, 1)
    got = nearest(np.full((1, 1, 1, 1), 12, np.uint8), train, FLAT, 4)
    assert got.place.tolist() == [[1, 3, 2, 0]] and got.distance.tolist() == [[2, 2, 8, 12]]


def test_features_far_from_the_origin_are_at_their_own_distance():
    """φ = 10⁶ + x: rounding of ‖a‖² + ‖b‖² - 2 a·b, of sums of 10¹⁴, is larger than squared distances of 10⁻⁴. Both
    copies are at 0, the first of them first, and distances are those of x."""
    x = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
    train = np.concatenate([x, x[::-1]])
    far = lambda images: 1e6 + FLAT(images) / 2**15
    got = nearest(x, train, far, 3)
    pairs = ((x.reshape(40, 1, -1).astype(float) - train.reshape(1, 80, -1)) / 2**15) ** 2
    want = np.sqrt(pairs.sum(2))
    order = np.argsort(want, 1, kind="stable")[:, :3]
    assert np.array_equal(got.place, order) and (got.distance[:, :2] == 0).all()
    assert got.place[:, :2].tolist() == [[i, 79 - i] for i in range(40)]
    assert got.distance == pytest.approx(np.take_along_axis(want, order, 1), rel=1e-9)


@pytest.mark.parametrize("block", [1, 7, 1024])
def test_ties_are_in_the_order_of_the_index_whatever_the_blocks(block, monkeypatch):
    """Grey levels 0 and 9, 300 of them: of the equals the lowest numbers are found, from either side."""
    monkeypatch.setattr(neighbours, "ENTRIES", block)
    train = np.random.default_rng(0).choice(np.array([0, 9], np.uint8), (300, 1, 1, 1))
    got = nearest(np.array([1, 8], np.uint8).reshape(2, 1, 1, 1), train, FLAT, 20)
    assert np.array_equal(got.place, [np.flatnonzero(train == level)[:20] for level in (0, 9)])
    assert (got.distance == 1).all()


def test_a_copy_is_one_byte_for_byte():
    """The second of three has its copy as the second neighbour, the third is one byte off."""
    x = np.arange(24, dtype=np.uint8).reshape(3, 2, 2, 2)
    train = np.concatenate([x + 100, x])
    train[5, 1, 1, 1] += 1
    assert copies(x, train, np.array([[0, 1], [0, 4], [0, 5]])).tolist() == [False, True, False]


def test_blocks_change_nothing_and_bound_what_is_held(monkeypatch):
    train, held = data.load("digits").x[:500], []

    def describe(images):
        held.append(len(images))
        return FLAT(images)

    whole = nearest(train[:7], train, describe, 5)
    monkeypatch.setattr(neighbours, "ENTRIES", 64 * 13)
    held.clear()
    parts = nearest(train[:7], train, describe, 5)
    assert max(held) == 13
    assert np.array_equal(whole.place, parts.place) and np.array_equal(whole.distance, parts.distance)


def test_copying_shows_in_the_numbers():
    """Two of four samples are copies, test images lie at 1 to 20: half of the samples are nearer than 5 % of tests."""
    about = summary(np.array([0.0, 0.0, 5.0, 7.0, *range(1, 21)]), np.arange(24) < 2, 4)
    assert about["sample_copies"] == 2 and about["test_copies"] == 0
    assert summary(np.arange(5.0), np.array([0, 1, 0, 1, 1], bool), 3)["test_copies"] == 2
    assert about["nearer_than_5%_of_tests"]["share"] == 0.5
    assert about["samples"]["mean"] == 3 and about["samples"]["q50"] == 2.5 and about["tests"]["q100"] == 20


def test_end_to_end(tmp_path):
    args = ["--n", "6", "--steps", "5", "--tests", "20", "--k", "2", "--show", "2", "--out", str(tmp_path), *MACHINE]
    assert main(["eval", "neighbours", "digits", *args]) == 0
    numbers = json.loads((tmp_path / "neighbours.json").read_text())["numbers"]
    assert (numbers["samples"], numbers["test_images"], numbers["training_images"]) == (6, 20, 1438)
    assert np.shape(numbers["pixels"]["of_the_first"]["index"]) == (2, 2) and numbers["pixels"]["sample_copies"] == 0
    for name in ("neighbours.png", "neighbours.pdf", "neighbours-distances.png"):
        assert (tmp_path / name).stat().st_size > 1000


def test_a_model_is_shown_its_own_samples(tmp_path, monkeypatch):
    """As training images: every sample is a copy, found at its place, in pixels and in features; the test images of
    the set, the same ones, are copies too."""
    monkeypatch.setattr("igebm.evaluation.classifier.steps_for", lambda images: 2)
    m, options = model.load("digits"), Neighbours(n=6, steps=5)
    work = Work(m, "digits", probe("cpu", "float32", "off", 1), Common(), tmp_path)
    samples = neighbours.drawn(work, options, 5, np.arange(6))
    other, y = data.load("digits").x[:20], np.arange(10)
    x = np.concatenate([other[:9], samples, other[9:]])
    np.savez(tmp_path / "own.npz", train_x=x, train_y=np.resize(y, len(x)), test_x=samples, test_y=y[:6])
    args = [
        "--n",
        "6",
        "--steps",
        "5",
        "--k",
        "1",
        "--show",
        "6",
        "--data",
        str(tmp_path / "own.npz"),
        "--out",
        str(tmp_path),
    ]
    assert main(["eval", "neighbours", "digits", *args, *MACHINE]) == 0
    numbers = json.loads((tmp_path / "neighbours.json").read_text())["numbers"]
    for way in ("pixels", "features"):
        assert numbers[way]["of_the_first"]["index"] == [[9], [10], [11], [12], [13], [14]], way
        assert numbers[way]["samples"]["q100"] < 1e-3
        assert numbers[way]["sample_copies"] == numbers[way]["test_copies"] == 6, way


def test_the_share_of_neighbours_of_the_samples_class(tmp_path, monkeypatch):
    """Eight samples are training images, five of them under their own class, beside a black image of each class."""
    monkeypatch.setattr("igebm.evaluation.classifier.steps_for", lambda images: 2)
    m, options = model.load("digits"), Neighbours(n=8, steps=5)
    work = Work(m, "digits", probe("cpu", "float32", "off", 1), Common(), tmp_path)
    samples, wrong = neighbours.drawn(work, options, 5, np.arange(8)), 9
    y = np.concatenate([np.arange(10), [0, 1, 2, wrong, 4, wrong, wrong, 7]])
    x = np.concatenate([np.zeros((10, 8, 8, 1), np.uint8), samples])
    np.savez(tmp_path / "own.npz", train_x=x, train_y=y, test_x=samples, test_y=np.arange(8))
    args = ["--n", "8", "--steps", "5", "--k", "2", "--data", str(tmp_path / "own.npz"), "--out", str(tmp_path)]
    assert main(["eval", "neighbours", "digits", *args, *MACHINE]) == 0
    numbers = json.loads((tmp_path / "neighbours.json").read_text())["numbers"]
    assert numbers["pixels"]["of_the_first"]["index"][3][0] == 13
    for way in ("pixels", "features"):
        assert numbers[way]["same_class"]["share"] == 5 / 8, way


def test_some_training_images_are_searched_by_their_own_numbers(tmp_path):
    """--train 8: the indices are those of the whole set."""
    args = ["--n", "2", "--steps", "1", "--train", "8", "--k", "8", "--tests", "0", "--show", "1"]
    assert main(["eval", "neighbours", "digits", *args, "--out", str(tmp_path), *MACHINE]) == 0
    numbers = json.loads((tmp_path / "neighbours.json").read_text())["numbers"]
    (index,) = numbers["pixels"]["of_the_first"]["index"]
    assert sorted(index) == sorted(np.random.default_rng(0).permutation(1438)[:8].tolist())
    assert "tests" not in numbers["pixels"] and numbers["training_images"] == 8


WRONG = {
    "no samples": (["--n", "0"], "--n 0: give at least 1"),
    "k": (["--train", "3", "--k", "4"], "--k 4: digits has 3 training images"),
    "tests": (["--tests", "-1"], "--tests -1: give at least 0"),
}


@pytest.mark.parametrize("args, says", WRONG.values(), ids=WRONG.keys())
def test_a_mistake_is_one_line(args, says, tmp_path, capsys):
    assert main(["eval", "neighbours", "digits", "--out", str(tmp_path), *args, *MACHINE]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("igebm: ") and says in lines[-1] and list(tmp_path.iterdir()) == []
