"""log Z between two estimates where it is known, bits per dimension by hand, the command end to end (section 4.2)."""

import json
import math

import numpy as np
import pytest
import torch

from igebm import data, model
from igebm.cli import main
from igebm.errors import Fault
from igebm.evaluation import partition
from igebm.evaluation.likelihood import bits, energy_of
from igebm.evaluation.partition import End, Ladder, Walk, doubts, end, pilot, span, walk

MACHINE = "--device cpu --dtype float32 --compile off --threads 1".split()
SMALL = "--n 40 --samples 4 --steps 3 --chains 4 --rungs 8 --leapfrog 2 --burn 2".split()


def likelihood(out, *args, where="digits") -> int:
    return main(["eval", "likelihood", where, "--out", str(out), *map(str, args), *MACHINE])


# A density on [0, 1]^16 that is known: E = a Σ x, log Z = 16 log((1 - e^-a) / a), samples by the inverse of their CDF

A, SHAPE = 5.0, (1, 4, 4)
LOG_Z = 16 * math.log((1 - math.exp(-A)) / A)


def slope(x):
    return A * x.flatten(1).sum(1)


def exact(n, generator):
    return -torch.log1p(-torch.rand(n, *SHAPE, generator=generator) * (1 - math.exp(-A))) / A


@pytest.fixture(scope="module")
def ladder() -> Ladder:
    g = torch.Generator().manual_seed(0)
    return pilot(slope, torch.rand(16, *SHAPE, generator=g), 5, g)


@pytest.fixture(scope="module")
def walks(ladder) -> tuple[Walk, Walk]:
    g, betas = torch.Generator().manual_seed(1), ladder.betas(60)
    up = walk(torch.rand(64, *SHAPE, generator=g), betas, slope, ladder, 5, 1, g)
    down = walk(exact(64, g), betas[::-1], slope, ladder, 5, 1, g)
    return Walk.of(up), Walk.of(down)


def test_the_bracket_holds_a_known_log_z(walks):
    up, down = walks
    forwards, backwards = end(up.log_w), end(down.log_w, backwards=True)
    low, high = span(forwards, backwards)
    assert low < LOG_Z < high and high - low < 2
    assert abs(forwards.log_z - LOG_Z) < 4 * forwards.se and abs(backwards.log_z - LOG_Z) < 4 * backwards.se
    assert doubts(forwards, backwards, up, down) == []


def test_energies_along_the_way_are_the_exact_ones(walks):
    """At β the pixels are independent with density ∝ e^(-aβx): ⟨E⟩ = 16 (1/β - a / (e^(aβ) - 1)); half-way along the
    rungs both directions agree, and the ends have those of β = 0 and 1."""
    up, down = walks
    mean = lambda b: 16 * (1 / b - A / math.expm1(A * b))
    assert up.energy[0] == pytest.approx(mean(0.02), abs=3) and down.energy[-1] == pytest.approx(mean(0.98), abs=3)
    assert np.abs(up.energy - down.energy).mean() < 1.5
    assert (np.diff(up.at) > 0).all() and np.array_equal(up.at, down.at)


def test_the_pilot_tunes_the_step_to_its_target(ladder, walks):
    up, _ = walks
    assert ladder.beta[0] == 0 and ladder.beta[-1] == 1 and (np.diff(ladder.beta) > 0).all()
    assert ladder.step[-1] < ladder.step[0] <= partition.LARGEST_STEP
    assert abs(up.accepted[len(up.at) // 2 :].mean() - partition.TARGET) < 0.1
    # sd of E at β = 0 is a √(16/12) = 5.77, and at β = 1 that of 16 truncated exponentials
    var = 1 / A**2 - math.exp(-A) / (1 - math.exp(-A)) ** 2
    assert ladder.spread[0] == pytest.approx(5.77, rel=0.2)
    assert ladder.spread[-1] == pytest.approx(A * math.sqrt(16 * var), rel=0.3)


def test_rungs_are_as_dense_as_energies_spread():
    """sd 1 below β = ½ and 3 above, but for the knots around: three times as many rungs in the upper half."""
    beta = np.array([0.0, 0.4999, 0.5, 1.0])
    rungs = Ladder(beta, np.ones(4), np.ones(4), np.array([1.0, 1.0, 3.0, 3.0])).betas(400)
    assert rungs[0] == 0 and rungs[-1] == 1 and len(rungs) == 401 and (np.diff(rungs) > 0).all()
    assert sum(b < 0.5 for b in rungs) == pytest.approx(100, abs=3)


def test_steps_between_knots_are_geometric_means():
    found = Ladder(np.array([0.0, 1.0]), np.array([0.4, 0.1]), np.ones(2), np.ones(2))
    assert found.step_at(0.5) == pytest.approx(0.2)


def test_a_steep_energy_ends_the_pilot(generator):
    steep = lambda x: 1e9 * x.flatten(1).sum(1)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Fault, match="too steep for AIS.*--temperature"):
        patch.setattr(partition, "KNOTS", 5)
        pilot(steep, torch.rand(4, *SHAPE), 2, generator)


def test_c19_the_pilot_steps_shorter_before_a_wall(generator):
    """Where E is no number beyond 0.5 proposals across it are turned down, and the step adapts to that."""
    slope = lambda x: 3 * x.flatten(1).sum(1)
    wall = lambda x: torch.where((x < 0.5).flatten(1).all(1), slope(x), torch.nan)
    free, held = (pilot(E, 0.5 * torch.rand(16, *SHAPE), 5, generator) for E in (slope, wall))
    assert held.step[0] < 0.1 * free.step[0] and 0.4 < held.accepted[0] < free.accepted[0]


def test_energies_that_are_not_numbers_end_the_pilot(generator):
    with pytest.raises(Fault, match="energies are not finite"):
        pilot(lambda x: x.flatten(1).sum(1) * torch.nan, torch.rand(4, *SHAPE), 2, generator)


def test_ends_by_hand():
    """w = 1, 3: log ⟨w⟩ = log 2; (Σ w)² / Σ w² = 16/10. Backwards ⟨w⟩ is 1/Z."""
    log_w = np.log([1.0, 3.0])
    assert end(log_w).log_z == pytest.approx(math.log(2)) and end(log_w).effective == pytest.approx(1.6)
    assert end(log_w, backwards=True).log_z == pytest.approx(-math.log(2))
    with pytest.raises(Fault, match="1 of 2 AIS weights are not finite"):
        end(np.array([0.0, np.nan]))


def test_the_span_holds_both_ends_in_either_order():
    a, b = End(-10.0, 0.5, 9.0), End(-8.0, 1.0, 9.0)
    assert span(a, b) == (-11.0, -6.0) and span(b, a) == (-11.0, -6.0)


def test_doubts_are_raised_where_there_is_reason():
    quiet = Walk(np.zeros(8), np.zeros(8), np.array([0.5]), np.array([0.8]), np.zeros(1))
    apart = doubts(End(-10, 0.1, 8), End(-5, 0.1, 8), quiet, quiet)
    assert len(apart) == 1 and "5 nats apart" in apart[0] and "lag behind" in apart[0]
    crossed = doubts(End(-5, 0.1, 8), End(-10, 0.1, 8), quiet, quiet)
    assert "no samples of" in crossed[0]
    stuck = quiet._replace(accepted=np.array([0.1]), divergent=np.ones(8))
    said = doubts(End(0, 0.1, 8), End(0, 0.1, 1.2), stuck, quiet)
    assert ["accepts only 0.10" in said[0], "8 HMC proposals diverged" in said[1], "1.2 of 8 chains" in said[2]] == [
        True
    ] * 3


# Bits per dimension


def test_bits_by_hand():
    """A constant energy: 8 bits a byte, whatever the constant, since log Z takes it back. Half of that density on half
    of the box: 7. Two nats of log Z in two dimensions: 2 / (2 log 2) bits between the ends."""
    assert bits(np.full(5, 3.0), -3.0, -3.0, 7) == {"bits": 8.0, "low": 8.0, "high": 8.0, "n": 5}
    assert bits(np.zeros(5), -64 * math.log(2), -64 * math.log(2), 64)["bits"] == 7.0
    found = bits(np.zeros(5), -1.0, 1.0, 2)
    assert found["high"] - found["low"] == pytest.approx(1 / math.log(2), rel=1e-4)
    assert bits(np.empty(0), 0.0, 0.0, 4)["bits"] is None


def test_the_spread_of_energies_widens_the_bits():
    """Energies 0 and 2: standard error 1, hence ± 2 nats."""
    found = bits(np.array([0.0, 2.0]), 0.0, 0.0, 1)
    assert found["high"] - found["bits"] == pytest.approx(2 / math.log(2), rel=1e-5)


# The command


def test_eval_likelihood_end_to_end(tmp_path):
    """Energies are those that the model gives at the true labels; log Z(y) of the asked class comes near ⟨e^(-E)⟩ over
    uniform noise, which so flat a model lets one average directly; the bits follow from both."""
    assert likelihood(tmp_path, *SMALL, "--label", "3") == 0
    found = json.loads((tmp_path / "likelihood.json").read_text())["numbers"]
    m, test = model.load("digits"), data.load("digits", "test")
    order = np.random.default_rng(0).permutation(len(test.x))[:40]
    e = m.energy(test.x[order], test.y[order])
    assert found["energies"]["test"]["mean"] == pytest.approx(float(e.mean()), rel=1e-3)
    assert found["energies"]["test"]["n"] == 40 and found["energies"]["samples"]["n"] == 4
    noise = torch.rand(4000, 1, 8, 8, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        log_z = float(torch.logsumexp(-energy_of(m, np.array(3))(noise).double(), 0)) - math.log(4000)
    for way in ("forwards", "backwards"):
        assert found["log_z"][way]["log_z"] == pytest.approx(log_z, abs=0.02)
    # Markov's bound, from below: P(⟨w⟩ > 40 Z) < 1/40
    below = found["log_z"]["forwards"]["log_z"] - found["log_z"]["above_with_97.5_percent"]
    assert below == pytest.approx(math.log(40), abs=1e-4)
    assert found["condition"] == "3" and found["dimensions"] == 64
    members = int((test.y[order] == 3).sum())
    three = float(m.energy(test.x[order][test.y[order] == 3], np.full(members, 3)).mean())
    assert found["bits_per_dim"]["n"] == members
    assert found["bits_per_dim"]["bits"] == pytest.approx((three + log_z) / (64 * math.log(2)) + 8, abs=1e-3)
    assert {"likelihood.png", "likelihood.pdf", "likelihood-ais.png"} <= {p.name for p in tmp_path.iterdir()}


def test_data_in_one_split_are_measured_on_what_there_is(tmp_path, capsys):
    digits = data.load("digits", "test")
    np.savez(tmp_path / "one.npz", train_x=digits.x[:60], train_y=digits.y[:60], classes=np.array(digits.classes))
    assert likelihood(tmp_path, *SMALL, "--n", "60", "--data", str(tmp_path / "one.npz")) == 0
    found = json.loads((tmp_path / "likelihood.json").read_text())["numbers"]
    assert found["bits_per_dim"]["split"] == "train" and "test" not in found["energies"]
    assert found["bits_per_dim"]["n"] == int((digits.y[:60] == int(found["condition"])).sum())
    assert "has no test split" in capsys.readouterr().err


def test_a_lower_temperature_sharpens_the_density(tmp_path):
    """At T = 0.001 the digits' energies, which span some 0.1, are worth 100 nats: log Z falls, and so do the bits."""
    small = [*SMALL[:6], *"--chains 4 --rungs 40 --leapfrog 4 --burn 5".split()]
    assert likelihood(tmp_path, *small, "--temperature", "0.001") == 0
    found = json.loads((tmp_path / "likelihood.json").read_text())["numbers"]
    assert found["log_z"]["high"] < -20 and found["bits_per_dim"]["bits"] < 7.8
    assert found["pilot"]["step"][-1] < found["pilot"]["step"][0]


def test_energies_do_not_depend_on_the_sampling_dtype(tmp_path):
    """AIS and energies are float32 also where chains are asked in bfloat16: the same numbers."""
    found = []
    for kind in ("float32", "bfloat16"):
        args = ["eval", "likelihood", "digits", "--out", str(tmp_path / kind), *SMALL, "--device", "cpu", "--threads"]
        assert main([*args, "1", "--compile", "off", "--dtype", kind]) == 0
        found.append(json.loads((tmp_path / kind / "likelihood.json").read_text())["numbers"])
        assert json.loads((tmp_path / kind / "likelihood.json").read_text())["machine"]["dtype"] == "float32"
    assert found[0]["log_z"] == found[1]["log_z"] and found[0]["energies"] == found[1]["energies"]


def test_burn_and_transitions_are_so_many_steps_of_hmc(tmp_path, monkeypatch):
    """Beside the pilot's, 4 chains in one part take `transitions` on each of 8 - 1 rungs between the ends, up and down,
    and `burn` before they go down."""
    steps, kernel = [0], partition.kernel

    def counted(*settings):
        moved = kernel(*settings)

        def one(*args):
            steps[0] += 1
            return moved(*args)

        return one

    monkeypatch.setattr(partition, "kernel", counted)
    taken = []
    for more in ("--burn 2 --transitions 1", "--burn 7 --transitions 1", "--burn 2 --transitions 3"):
        steps[0] = 0
        assert likelihood(tmp_path / str(len(taken)), *SMALL[:-2], *more.split()) == 0
        taken.append(steps[0])
    assert [n - taken[0] for n in taken] == [0, 5, 2 * 7 * 2]


def test_bad_input_is_one_line(tmp_path, capsys):
    other = dict(test_x=np.zeros((9, 8, 8, 1), np.uint8), train_x=np.zeros((9, 8, 8, 1), np.uint8))
    np.savez(tmp_path / "plain.npz", **other)
    names = [str(d) for d in range(10)]
    some = np.array([0, 1, 2, -1, -1, 0, 1, 2, 3])
    np.savez(tmp_path / "some.npz", **other, test_y=some, train_y=some, classes=names)
    np.savez(tmp_path / "large.npz", test_x=np.zeros((9, 9, 9, 1), np.uint8), train_x=np.zeros((9, 9, 9, 1), np.uint8))
    cases = [
        (["--label", "eleven"], "unknown label 'eleven'"),
        (["--chains", "1"], "--chains 1: give at least 2"),
        (["--temperature", "0"], "--temperature 0"),
        (["--steps", "0"], "--steps 0: give at least 1"),
        (["--noise", "-1"], "--noise -1"),
        (["--data", str(tmp_path / "plain.npz")], "lacks its labels (0, 1, 2, ...)"),
        (["--data", str(tmp_path / "some.npz")], "2 images of"),
        (["--data", str(tmp_path / "large.npz")], "9x9 with 1 channel, digits takes 8x8"),
    ]
    for args, said in cases:
        assert likelihood(tmp_path / "out", *SMALL, *args) == 2, args
        err = capsys.readouterr().err
        assert said in err.splitlines()[-1] and "Traceback" not in err, err


def test_one_file_of_numbers_whatever_the_batch(tmp_path):
    """Parts have their own random numbers: with chains in parts of 2 both ends are there and finite, 4 chains each."""
    assert likelihood(tmp_path, *SMALL, "--batch", "2") == 0
    found = json.loads((tmp_path / "likelihood.json").read_text())["numbers"]["log_z"]
    assert found["forwards"]["n"] == found["backwards"]["n"] == 4
    assert found["effective_chains"]["forwards"] > 3
