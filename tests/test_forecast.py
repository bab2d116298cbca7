"""`igebm forecast`: futures of one's own series, against a random walk whose spread is known, and the library."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from test_output import found
from torch import nn

from igebm import forecast, presets
from igebm.cli import main
from igebm.data.series import Series, matched
from igebm.errors import InputError
from igebm.forecast import Forecaster
from igebm.nets.trajectory import TrajectoryPredictor
from igebm.shapes import SeriesShape

SHAPE = SeriesShape(2, ("up", "down"), (1.0, -1.0), (2.0, 0.5))


class Flat(nn.Module):
    """E = 0: a chain of it is a random walk."""

    condition = 4

    def __init__(self):
        super().__init__()
        self.k = nn.Parameter(torch.zeros(()))

    def forward(self, x, y=None):
        return self.k * x.sum((1, 2))


def walker() -> Forecaster:
    """Each state is the last one and four steps of 0.1 standard deviations."""
    preset = presets.Preset(network="trajectory", sampler="langevin", step_size=0.5, noise=0.1, clip=0.0, start="last",
                            chain_steps=4, buffer_size=0)  # fmt: skip
    return Forecaster(Flat(), preset, SHAPE, "walker", 7)


def still() -> Forecaster:
    """A predictor that says: as before."""
    net = TrajectoryPredictor(2, width=8, past=2)
    nn.init.zeros_(net.head.weight)
    nn.init.zeros_(net.head.bias)
    return Forecaster(net, presets.named("balls-feedforward"), SHAPE, "still", 1)


@pytest.fixture
def file(tmp_path):
    """Series b at step k is (k, -k) for k = 5..8, series a is (10 k, k); columns in another order than the model's."""
    lines = [
        "series,step,down,up",
        *(f"b,{k},{-k},{k}" for k in range(5, 9)),
        *(f"a,{k},{k},{10 * k}" for k in range(4)),
    ]
    path = tmp_path / "mine.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def table(path) -> list[dict[str, str]]:
    with open(path, newline="") as text:
        return list(csv.DictReader(text))


def test_a_model_that_stands_still_goes_on_from_the_files_last_states(file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(forecast, "load", lambda where: still())
    monkeypatch.chdir(tmp_path)
    for wanted in ("forecasts/mine", "forecasts/mine-2"):
        assert main(["forecast", "m", str(file), "--steps", "3", "--threads", "1"]) == 0
        assert capsys.readouterr().out == wanted + "\n"
    rows = table(tmp_path / "forecasts" / "mine" / "forecast.csv")
    assert [(r["series"], int(r["step"])) for r in rows] == [
        ("b", 9),
        ("b", 10),
        ("b", 11),
        ("a", 4),
        ("a", 5),
        ("a", 6),
    ]
    assert list(rows[0]) == ["series", "step", "up", "down"]
    values = [[float(r["up"]), float(r["down"])] for r in rows]
    assert values == pytest.approx(np.array([[8, -8]] * 3 + [[30, 3]] * 3), abs=1e-5)
    x = np.load(tmp_path / "forecasts" / "mine" / "forecast.npy")
    assert x.shape == (1, 2, 3, 2) and x.dtype == np.float32 and np.array_equal(x.reshape(6, 2), np.float32(values))
    about = json.loads((tmp_path / "forecasts" / "mine" / "forecast.json").read_text())
    assert [(s["series"], s["first_step"]) for s in about["series"]] == [("b", 9), ("a", 4)]
    assert about["chain"] is None and about["split"] == "train" and about["machine"]["command"].startswith("igebm")
    with Image.open(tmp_path / "forecasts" / "mine" / "forecast.png") as shown:
        assert shown.width > 300


def test_futures_spread_as_a_random_walk_does(file, tmp_path, monkeypatch, capfd):
    """After h states of four steps of 0.1: the last state, give or take 0.2 √h standard deviations of the feature; the
    band of a normal is 1.2816 of those to either side."""
    monkeypatch.setattr(forecast, "load", lambda where: walker())
    out = tmp_path / "o"
    about = found(["forecast", "m", file, "--n", 4000, "--steps", 3, "--out", out, "--threads", 1], capfd)
    assert about == json.loads((out / "forecast.json").read_text())
    x, spread = np.load(out / "forecast.npy"), 0.2 * np.sqrt([1, 2, 3])
    assert x.shape == (4000, 2, 3, 2)
    for i, last in enumerate(([8, -8], [30, 3])):
        for j, std in enumerate((2.0, 0.5)):
            assert x[:, i, :, j].std(0) == pytest.approx(std * spread, rel=0.05)
            assert x[:, i, :, j].mean(0) == pytest.approx(np.full(3, last[j]), abs=0.08 * std)
            low, high = (np.array(about["series"][i][f"percentile_{p}"])[:, j] for p in (10, 90))
            assert high - low == pytest.approx(2 * 1.2816 * std * spread, rel=0.07)
    assert len(np.unique(x[:, 0, 0, 0])) > 3900  # of float32; in parts of 2,048 futures, each with noise of its own
    rows = table(out / "forecast.csv")
    assert len(rows) == 4000 * 2 * 3 and [int(r["sample"]) for r in rows[:7]] == [0, 0, 0, 1, 1, 1, 2]
    assert np.float32(rows[4]["down"]) == x[1, 0, 1, 1]


def test_one_future_is_the_librarys_rollout_and_seeds_differ(file, tmp_path, monkeypatch):
    monkeypatch.setattr(forecast, "load", lambda where: walker())
    words = ["forecast", "m", str(file), "--steps", "4", "--threads", "1", "--out"]
    for seed in ("3", "4"):
        assert main([*words, str(tmp_path / f"{seed}.npy"), "--seed", seed]) == 0
    past = np.array([[[7, -7], [8, -8]], [[20, 2], [30, 3]]], np.float32)
    assert np.array_equal(np.load(tmp_path / "3.npy")[0], walker().rollout(past, 4, 3))
    assert not np.array_equal(np.load(tmp_path / "3.npy"), np.load(tmp_path / "4.npy"))
    assert main([*words, str(tmp_path / "next.csv"), "--seed", "3"]) == 0
    up = np.array([r["up"] for r in table(tmp_path / "next.csv")], np.float32)
    assert np.array_equal(up, np.load(tmp_path / "3.npy")[0, :, :, 0].ravel())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["3.npy", "4.npy", "mine.csv", "next.csv"]


def test_a_forecast_can_be_put_below_the_file_and_gone_on_from(file, tmp_path, monkeypatch):
    monkeypatch.setattr(forecast, "load", lambda where: still())
    words = ["forecast", "m", "--steps", "2", "--threads", "1", "--out", str(tmp_path / "next.csv")]
    assert main([*words, str(file)]) == 0
    rows = [f"{r['series']},{r['step']},{r['down']},{r['up']}" for r in table(tmp_path / "next.csv")]
    file.write_text(file.read_text() + "\n".join(rows) + "\n")
    assert main([*words, str(file)]) == 0
    assert [(r["series"], r["step"]) for r in table(tmp_path / "next.csv")] == [
        ("b", "11"),
        ("b", "12"),
        ("a", "6"),
        ("a", "7"),
    ]


@pytest.mark.parametrize(
    "model, words, says",
    [
        (still, ["--n", "2"], "--n 2: still is a plain predictor, which knows one future"),
        (walker, ["--steps", "0"], "--steps 0: choose between 1"),
        (walker, ["--n", "0"], "--n 0: choose between 1"),
        (walker, ["--split", "test"], "has no split 'test'"),
        (lambda: Forecaster(Flat(), walker().preset, replace(SHAPE, past=5)), [],
         "series of 4 states; at least 5 are needed"),
        (lambda: Forecaster(Flat(), walker().preset, SeriesShape(2, ("up", "left"), (0.0, 0.0), (1.0, 1.0)), "m"), [],
         "m knows up, left; "),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_leave_nothing(model, words, says, file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(forecast, "load", lambda where: model())
    monkeypatch.chdir(tmp_path)
    assert main(["forecast", "m", str(file), *words]) == 2
    told = capsys.readouterr()
    assert told.out == "" and says in told.err.splitlines()[-1] and [p.name for p in tmp_path.iterdir()] == ["mine.csv"]


def test_an_image_model_is_no_model_of_series_and_the_other_way_round(file, capsys):
    assert main(["forecast", "digits", str(file)]) == 2
    assert "is a model of images, not of time series" in capsys.readouterr().err
    assert main(["sample", "balls-feedforward"]) == 2
    assert "is a model of time series; igebm forecast and igebm eval rollout take it" in capsys.readouterr().err


def test_a_past_that_is_no_number_is_named_and_not_blamed_on_the_chain():
    past = np.zeros((3, 5, 2), np.float32)
    past[2, 1, 0] = np.nan  # before what the model looks at
    assert walker().rollout(past, 1).shape == (3, 1, 2)
    past[1, 4, 1] = np.nan
    with pytest.raises(InputError, match=r"the past has nan in series 1, state 4 \(both from 0\), feature down"):
        walker().rollout(past, 1)


def test_features_are_matched_by_name_or_in_their_order_where_there_are_no_names():
    x = np.arange(12, dtype=np.float32).reshape(1, 4, 3)
    told: list[str] = []
    found = matched(Series("f", x, ("c", "a", "b")), ("a", "b"), "m", told.append)
    assert found.features == ("a", "b") and found.x[0, 0].tolist() == [1, 2] and "does not know c of f" in told[-1]
    assert matched(Series("f", x, ("x1", "x2", "x3")), ("a", "b", "c"), "m", told.append).x is x
    assert told[-1] == "f has x1, x2, x3: taken, in this order, for the a, b, c of m"
    for names in (("x1", "x2", "x3"), ("a", "c", "d")):
        with pytest.raises(InputError, match="m knows a, b; f has"):
            matched(Series("f", x, names), ("a", "b"), "m")
