"""Time series: windows, the next state off a chain, rollouts and their errors, against answers worked out by hand; and
from a file through training to the figure at the command line."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from igebm import forecast, presets
from igebm.cli import main
from igebm.data.series import Series, Windows, statistics
from igebm.errors import Fault, InputError
from igebm.evaluation import rollout
from igebm.evaluation.features import QUIET
from igebm.evaluation.settings import Rollout
from igebm.forecast import Forecaster
from igebm.nets.trajectory import TrajectoryPredictor
from igebm.runtime import probe
from igebm.shapes import SeriesShape
from igebm.training import cost
from igebm.training.run import open_loader, shape_of

SHAPE = SeriesShape(2, ("x", "y"), (1.0, -1.0), (2.0, 0.5))


def ramp(n: int = 3, t: int = 8) -> Series:
    """Series i at time k is (100 i + k, -(100 i + k))."""
    values = 100.0 * np.arange(n)[:, None] + np.arange(t)
    return Series("ramp", np.stack([values, -values], -1).astype(np.float32), ("x", "y"))


def still() -> Forecaster:
    """A predictor that says: as before."""
    net = TrajectoryPredictor(2, width=8, past=2)
    nn.init.zeros_(net.head.weight)
    nn.init.zeros_(net.head.bias)
    return Forecaster(net, presets.named("balls-feedforward"), SHAPE, "still", 1, {"preset": "p", "seed": 0})


def test_windows_are_each_state_with_those_before_it_once_an_epoch():
    series = ramp()
    windows = Windows(series, 2, 6, (0.0, 0.0), (1.0, 1.0))
    seen = []
    for i in range(3):  # 3 series x 6 windows = 18 = one epoch
        x, y = windows(6 * i)
        assert x.shape == (6, 1, 2) and y.shape == (6, 2, 2)
        assert torch.equal(y[:, 1, 0], x[:, 0, 0] - 1) and torch.equal(y[:, 0, 0], x[:, 0, 0] - 2)
        seen += x[:, 0, 0].tolist()
    assert sorted(seen) == sorted(100.0 * i + k for i in range(3) for k in range(2, 8))


def test_windows_come_in_standard_deviations_from_the_mean():
    series = ramp()
    mean, std = statistics(series)
    x, y = Windows(series, 2, 18, mean, std)(0)
    every = torch.cat(
        [Windows(series, 1, 21, mean, std)(0)[0], torch.from_numpy(series.x[:, :1] - mean) / torch.tensor(std)]
    )
    assert every.mean().item() == pytest.approx(0, abs=1e-5) and every.double().std(
        correction=0
    ).item() == pytest.approx(1, abs=1e-5)


def test_a_series_too_short_or_a_feature_that_never_changes_is_refused():
    with pytest.raises(InputError, match="needs at least 9"):
        Windows(ramp(), 8, 4, (0.0, 0.0), (1.0, 1.0))
    with pytest.raises(InputError, match="feature b has one value"):
        statistics(Series("s", np.array([[[1, 5], [2, 5]]], np.float32), ("a", "b")))


def test_a_rollout_of_a_model_that_stands_still_stands_still():
    past = np.array([[[9.0, 9.0], [1.5, -2.5]]], np.float32)
    found = still().rollout(past, 4)
    assert found == pytest.approx(np.broadcast_to(past[:, -1:], (1, 4, 2)), abs=1e-6)


def test_the_error_is_in_variances_of_each_feature():
    truth = np.array([[[1.0, 10.0], [2.0, 20.0]]])
    found = np.array([[[0.0, 10.0], [2.0, 0.0]]], np.float32)
    # ((1/0.5)² + 0) / 2 and (0 + (20/10)²) / 2
    assert rollout.squared_error(found, truth, np.array([0.5, 10.0])).tolist() == [[2.0, 2.0]]


def test_several_seeds_give_students_interval():
    curves = [np.array([1.0] * 10), np.array([2.0] * 10), np.array([3.0] * 10)]
    found = rollout.summary(curves)
    # t(0.975, 2) = 4.30265, standard deviation 1: half width 4.30265 / √3
    assert found["mse"] == [2.0] * 5 and found["half_width"] == pytest.approx([2.484138] * 5, abs=1e-5)
    assert rollout.summary(curves[:1])["half_width"] is None


def test_growth_is_from_the_first_state_to_the_tenth_and_of_no_shorter_rollout():
    """The means of 10 / 1 and 40 / 2; nine states have no tenth, and no error of the first state no multiple."""
    a, b = np.arange(1.0, 13), np.r_[2.0, np.arange(2.0, 10), 40.0, 50.0, 60.0]
    assert rollout.summary([a, b])["growth_1_to_10"] == 15.0
    assert rollout.summary([a[:9]])["growth_1_to_10"] is None
    assert rollout.summary([a, np.r_[0.0, a[1:]]])["growth_1_to_10"] is None


def test_a_feature_that_never_changes_has_no_unit_of_error(tmp_path):
    """The test series stand still in y, though those that were trained on did not."""
    x = np.stack([np.arange(40.0).reshape(2, 20), np.full((2, 20), 0.1)], -1).astype(np.float32)
    assert rollout.spreads(Series("s", x[..., :1], ("x",))).tolist() == [np.arange(40.0).std()]
    np.savez(tmp_path / "s.npz", train_x=x[..., [0, 0]], test_x=x, features=np.array(["x", "y"]))
    with pytest.raises(InputError, match="the feature y has one value throughout"):
        rollout.run([still()], Rollout(length=3, n=2), tmp_path, str(tmp_path / "s.npz"), 0, None)


class Bowl(nn.Module):
    """E = ½ x², of which a step of size ½ without noise halves x."""

    condition = 4

    def __init__(self):
        super().__init__()
        self.k = nn.Parameter(torch.ones(()))

    def forward(self, x, y=None):
        return 0.5 * self.k * x.square().sum((1, 2))


HALVING = presets.Preset(network="trajectory", sampler="langevin", step_size=0.5, noise=0.0, clip=0.0, start="last",
                         buffer_size=0, chain_steps=1)  # fmt: skip


def test_the_mean_of_the_chains_last_states_is_read_off():
    """A quadratic energy and no noise: each step halves the distance to the mode, so the last two states are known."""

    m = Forecaster(Bowl(), HALVING, SHAPE)
    y = torch.tensor([[[0.0, 0.0], [8.0, -8.0]]])
    assert m.following(y, steps=3).tolist() == [[[1.0, -1.0]]]
    assert m.following(y, steps=3, average=2).tolist() == [[[1.5, -1.5]]]


def test_steps_and_average_reach_the_chains(tmp_path):
    """Series that jump between 1 and -1, variance 1: halved k times from the state before, the next is wrong by
    1 + 2^-k; the mean of the last two of two steps by 1 + 3/8."""
    x = np.tile(np.array([1.0, -1.0], np.float32), (3, 5))[..., None].repeat(2, -1)
    np.savez(tmp_path / "jumps.npz", train_x=x, test_x=x)
    m = Forecaster(Bowl(), HALVING, SeriesShape(2, ("x1", "x2"), (0.0, 0.0), (1.0, 1.0)), "bowl")
    for asked, wrong in ((dict(), 1.5), (dict(steps=2), 1.25), (dict(steps=2, average=2), 1.375)):
        options = Rollout(length=1, n=4, **asked)
        found = rollout.run([m], options, tmp_path, str(tmp_path / "jumps.npz"), 0, QUIET)
        assert found["models"][0]["mse"] == [round(wrong**2, 6)], asked


def test_windows_start_at_any_step_of_every_series_in_turn():
    """Each of 3 series and 6 places comes up in 600 windows, about 33 times: more than four standard deviations off is
    a fault; the same seed, the same windows."""
    found = rollout.windows(ramp(3, 8), 3, 600, 1)
    assert np.array_equal(found[..., 0], found[:, :1, 0] + np.arange(3)) and np.array_equal(
        found[..., 1], -found[..., 0]
    )
    which, start = np.divmod(found[:, 0, 0].astype(int), 100)
    assert np.array_equal(which, np.arange(600) % 3)
    counts = np.bincount(6 * which + start, minlength=18)
    assert len(counts) == 18 and np.abs(counts - 600 / 18).max() < 4 * math.sqrt(200 / 6 * 5 / 6)
    assert np.array_equal(found, rollout.windows(ramp(3, 8), 3, 600, 1))
    assert not np.array_equal(found, rollout.windows(ramp(3, 8), 3, 600, 2))


def test_the_error_of_a_mean_over_windows_falls_with_their_root():
    """Of 0, 0, 2, 2 the standard deviation is √(4/3), that of the mean half of it."""
    assert rollout.standard_error(np.array([[0.0], [0.0], [2.0], [2.0]])) == [0.57735]
    assert rollout.standard_error(np.array([[1.0, 5.0], [3.0, 5.0]])) == [1.0, 0.0]
    assert rollout.standard_error(np.ones((1, 2))) is None


def seeded(seed: int, name: str, kind: str = "p") -> Forecaster:
    """An untrained predictor whose weights are those of `seed`."""
    torch.manual_seed(seed)
    net = TrajectoryPredictor(2, width=8, past=2)
    return Forecaster(net, presets.named("balls-feedforward"), SHAPE, name, 1, {"preset": kind, "seed": seed})


def test_rollouts_are_as_long_as_series_let_them_be(tmp_path, capsys):
    """Of series of 10 states with 2 known 8 are predicted without --length; nameless features are taken in order."""
    x = np.random.default_rng(0).normal(size=(3, 10, 2)).astype(np.float32)
    np.savez(tmp_path / "s.npz", test_x=x)
    m = replace(seeded(0, "a"), shape=SeriesShape(2, ("warm", "wet"), (0.0, 0.0), (1.0, 1.0)))
    told = rollout.run([m], Rollout(n=3), tmp_path, str(tmp_path / "s.npz"), 0, SimpleNamespace(step=lambda *_: None))
    assert len(told["models"][0]["mse"]) == 8
    said = capsys.readouterr().err
    assert "has series of 10 states: rollouts of 8" in said
    assert "x1, x2: taken, in this order, for the warm, wet" in said


def test_one_model_does_not_count_as_two_seeds(tmp_path):
    a, b, copy = seeded(0, "a"), seeded(1, "b"), seeded(0, "c")
    rollout.refuse_twins([a, b])
    with pytest.raises(InputError, match="a and c are one model"):
        rollout.run([a, b, copy], Rollout(), tmp_path, None, 0, None)


def test_models_are_seeds_of_one_kind_where_preset_is_one_and_seeds_differ():
    a, b, c = seeded(0, "a"), seeded(1, "b"), seeded(2, "c", "q")
    assert rollout.of_one_kind([a, b, c]) == {"p": [0, 1], "q": [2]}
    assert rollout.of_one_kind([a, c]) == {"a": [0], "c": [1]}
    wide = replace(seeded(3, "d"), preset=replace(a.preset, width=64))
    assert rollout.of_one_kind([a, b, wide]) == {"a": [0], "b": [1], "d": [2]}  # their mean would be nobody's
    assert rollout.of_one_kind([a, seeded(0, "b"), c]) == {"a": [0], "b": [1], "c": [2]}  # other settings, one seed
    assert rollout.of_one_kind([a, seeded(0, "a")]) == {"a 1": [0], "a 2": [1]}


@pytest.fixture(scope="module")
def waves(tmp_path_factory):
    rng = np.random.default_rng(0)
    phase = rng.uniform(0, 6, (8, 1))
    t = np.arange(40) * 0.3 + phase
    x = np.stack([np.sin(t), np.cos(t)], -1).astype(np.float32)
    path = tmp_path_factory.mktemp("data") / "waves.npz"
    np.savez(path, train_x=x[:6], test_x=x[6:], features=np.array(["x", "y"]))
    return path


@pytest.mark.parametrize("name", ["balls-langevin", "balls-mppi", "balls-feedforward"])
def test_a_users_series_train_resume_and_roll_out(name, waves, tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "out"
    words = [
        "train",
        name,
        "--data",
        str(waves),
        "--width",
        "8",
        "--batch",
        "8",
        "--chain-steps",
        "2",
        "--threads",
        "1",
    ]
    assert main([*words, "--steps", "2", "--out", str(run)]) == 0
    assert main(["train", "--resume", str(run), "--steps", "3"]) == 0
    assert (run / "samples" / "rollouts-0000003.png").stat().st_size > 0
    assert f"next: igebm eval rollout {run}" in (told := capsys.readouterr().err)
    assert forecast.load(run).step == 3
    assert told.count("; float32 and eager (a time series' network is small); ") == 2
    other = tmp_path / "other"
    assert main([*words, "--steps", "3", "--seed", "1", "--out", str(other)]) == 0
    capsys.readouterr()
    assert main(["eval", "rollout", str(run), str(other), "--length", "5", "--n", "4", "--out", str(out)]) == 0
    found = json.loads((out / "rollout.json").read_text())["numbers"]
    assert found["kinds"][name]["seeds"] == 2 and len(found["models"][0]["mse"]) == 5
    # A point that goes round by 0.3 a state is 2 sin(0.15 h) of a radius away after h; a feature's variance is 1/2.
    assert found["standing_still"]["mse"] == pytest.approx([4 * math.sin(0.15 * h) ** 2 for h in range(1, 6)], rel=0.02)
    assert "standing still" in (shown := capsys.readouterr().out) and "after 5" in shown
    assert main(["eval", "rollout", str(run), "--length", "2", "--n", "4", "--out", str(tmp_path / "o2")]) == 0
    assert list(json.loads((tmp_path / "o2" / "rollout.json").read_text())["numbers"]["kinds"]) == ["run"]
    assert (out / "rollout.png").exists() and (out / "rollout.gif").exists()


def test_a_run_goes_on_with_other_series_in_its_own_scaling(waves, tmp_path, capsys):
    """Waves ten times as high about 5 have another mean and deviation; the run keeps those that its weights know, and
    its first batch is the new data in them. Without names the columns are taken in their order."""
    run, rng = tmp_path / "run", np.random.default_rng(1)
    words = ["train", "balls-feedforward", "--data", str(waves), "--width", "8", "--batch", "8", "--threads", "1"]
    assert main([*words, "--steps", "2", "--out", str(run)]) == 0
    before = forecast.load(run).shape
    t = np.arange(30) * 0.3 + rng.uniform(0, 6, (4, 1))
    more = (5 + 10 * np.stack([np.sin(t), np.cos(t)], -1)).astype(np.float32)
    np.save(tmp_path / "more.npy", more)
    resume = ["train", "--resume", str(run), "--threads", "1", "--steps"]
    capsys.readouterr()
    assert main([*resume, "3", "--data", str(tmp_path / "more.npy")]) == 0
    told = capsys.readouterr().err
    assert f"more.npy has x1, x2: taken, in this order, for the x, y of {run}" in told
    assert f"the data, or their order, are not those that {run} had" in told and "from step 2" in told
    assert forecast.load(run).shape == before
    facts = json.loads((run / "preset.json").read_text())["facts"]
    assert [since["step"] for since in facts["data_since"]] == [2]
    assert main([*resume, "4"]) == 0  # the same once more: nothing to say
    assert "not those" not in capsys.readouterr().err
    np.savez(tmp_path / "other.npz", x=more, features=np.array(["x", "z"]))
    assert main([*resume, "5", "--data", str(tmp_path / "other.npz")]) == 2
    assert f"{run} knows x, y; " in capsys.readouterr().err.splitlines()[-1]


def test_a_resumed_run_sees_other_series_in_the_units_of_the_first():
    """By hand: (v - 1) / 2 of one feature, (v + 1) * 2 of the other, whatever their own mean and deviation are."""
    series = Series("s", np.array([[[-2.0, 1.0], [6.0, 2.0], [2.0, 3.0]]], np.float32), ("x", "y"))
    preset = presets.Preset(network="trajectory", past=2, batch=1, buffer_size=0)
    assert shape_of(preset, series, SHAPE) == SHAPE
    x, y = open_loader(preset, series, SHAPE, probe("cpu", "float32", "off", 1))(0)
    assert y[0, :, 0].tolist() == [-1.5, 2.5] and x[0, 0].tolist() == [0.5, 8.0]


def test_a_run_on_series_is_timed_by_its_iterations_but_the_first(monkeypatch):
    """By a clock that each iteration moves: 9 seconds for the first, 2 and 3 for those that count. 2 s x 1,800 are an
    hour."""
    clock, took = [0.0], iter([9.0, 2.0, 3.0])
    monkeypatch.setattr(cost, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(cost, "train_step", lambda *_: clock.__setitem__(0, clock[0] + next(took)))
    preset = presets.Preset(network="trajectory", past=2, batch=6, buffer_size=0, steps=1800, width=8)
    windows, runtime = Windows(ramp(), 2, 6, SHAPE.mean, SHAPE.std), probe("cpu", "float32", "off", 1)
    found = cost.time_here(preset, SHAPE, runtime, {}, windows)
    assert (found["seconds_per_iteration"], found["hours"]) == (2.0, 1.0)
    with monkeypatch.context() as patch:

        def lost(*_):
            raise Fault("the loss is not finite")

        patch.setattr(cost, "train_step", lost)
        assert cost.time_here(preset, SHAPE, runtime, {}, windows) == {}


def test_a_predictor_learns_a_rotation(waves, tmp_path):
    """The next state of a rotation by 0.3 is a linear function of the last: the error falls far below standing still,
    which is wrong by 2 sin(0.15) = 0.3 of a radius, 0.09 of a variance of 1/2 in each of two features: 0.09."""
    words = ["train", "balls-feedforward", "--data", str(waves), "--width", "16", "--batch", "32", "--lr", "3e-3"]
    assert main([*words, "--steps", "400", "--threads", "1", "--out", str(tmp_path / "run")]) == 0
    assert (
        main(["eval", "rollout", str(tmp_path / "run"), "--length", "5", "--n", "50", "--out", str(tmp_path / "o")])
        == 0
    )
    found = json.loads((tmp_path / "o" / "rollout.json").read_text())["numbers"]["models"][0]["mse"]
    assert found[0] < 0.01


@pytest.mark.parametrize(
    "words, said",
    [
        (["eval", "rollout", "digits"], "a model of images"),
        (["eval", "rollout"], "at least one model"),
        (["train", "balls-langevin", "--buffer-size", "1000"], "no replay buffer"),
        (["train", "digits", "--objective", "squared-error"], "are for time series"),
        (["train", "balls-langevin", "--data", "bals"], "unknown set of time series 'bals'"),
        (["train", "digits", "--latent-steps", "2"], "has no latents"),
        (["train", "digits", "--no-conditional", "--label-weight", "1"], "leave out --label-weight"),
        (["train", "balls-langevin", "--label-weight", "1"], "leave out --label-weight"),
        (
            ["train", "balls-langevin", "--dtype", "bfloat16"],
            "--dtype bfloat16: networks of time series run in float32",
        ),
        (["train", "balls-langevin", "--compile", "on"], "--compile on: networks of time series run in float32"),
    ],
)
def test_what_does_not_fit_is_one_line(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
