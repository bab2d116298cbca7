"""`igebm bench`: that its numbers are what their names say. How fast anything is, is no test."""

import json
import math
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from igebm import presets, runtime
from igebm.benchmarks import reference, speed
from igebm.data import Images, Loader
from igebm.errors import Fault
from igebm.model import Shape, build_image_net, build_kernel, build_net
from igebm.nets.bound import attached, frozen
from igebm.nets.layers import power_iteration
from igebm.presets import Trainer
from igebm.samplers import run
from igebm.samplers.chain import segment_length
from igebm.shapes import SeriesShape
from igebm.training import loop
from igebm.training import state as states
from igebm.training.cost import cost
from igebm.training.loop import train_step

CPU = runtime.Runtime(torch.device("cpu"), torch.float32, torch.float32, False, 1, "as the test says")
SHAPE = Shape(3, 32, 32, speed.CLASSES)


def flop_by_hand(width: int) -> int:
    """Two passes (E and its gradient in x) of 2 FLOP per multiply-add in Fig. 14a at 32x32, folded: kernel area times
    channels in and out times places, a pooled pair of 3x3 and pool being one 4x4 at a quarter of the places."""
    w = width
    stem = 9 * 3 * w * 32**2
    one = 9 * w * w * 32**2 + 16 * w * w * 16**2
    two = 2 * 9 * w * w * 16**2
    three = 9 * w * 2 * w * 16**2 + 16 * 4 * w * w * 8**2 + w * 2 * w * 8**2
    four = 2 * 9 * 4 * w * w * 8**2
    five = 9 * 4 * w * w * 8**2 + 16 * 4 * w * w * 4**2
    six = 2 * 9 * 4 * w * w * 4**2
    return 2 * 2 * (stem + one + two + three + four + five + six + 2 * w)


def test_a_dry_run_counts_what_is_counted_by_hand():
    """Chain steps, the update on data and samples, and one label more for each of --label-candidates, which shares what
    comes before the first gain."""
    p, shape = replace(presets.named("cifar10-cond"), width=8, batch=3), Shape(3, 32, 32, tuple("abcdefghij"))
    plain, asked = cost(p, shape), cost(replace(p, label_weight=0.2, label_candidates=2), shape)
    assert plain["flop_per_image_and_chain_step"] == flop_by_hand(8)
    # An update's backward pass goes to the weights as well as to the activations: half as much again and no more.
    assert 1.4 * flop_by_hand(8) < plain["flop_per_image_and_update"] <= 1.5 * flop_by_hand(8)
    assert plain["flop_per_iteration"] == 3 * (60 * flop_by_hand(8) + 2 * plain["flop_per_image_and_update"])
    more = (asked["flop_per_iteration"] - plain["flop_per_iteration"]) / (3 * 2)
    stem, first = 9 * 3 * 8 * 32**2, 9 * 8 * 8 * 32**2  # the stem's gradient goes to its weights alone
    assert more == pytest.approx(plain["flop_per_image_and_update"] - 2 * (2 * stem + 3 * first), rel=0.02)


@pytest.mark.parametrize(
    "name, changes",
    [
        ("balls-langevin", {}),
        ("balls-mppi", {}),
        ("digits", dict(kl="all")),
        ("digits", dict(kl="last")),
        ("digits", dict(kl="all", chain_steps=3)),
    ],
)
def test_what_l_kl_costs_is_what_a_real_chain_of_it_does(name, changes):
    """Counted on all of K steps, E of their end and the way back; the estimate counts one and two of them."""
    p = replace(presets.named(name), **changes)
    series = p.network == "trajectory"
    shape = SeriesShape(3, tuple("abcd"), (0.0,) * 4, (1.0,) * 4) if series else Shape(1, 8, 8, tuple("0123456789"))
    net, x = build_net(p, shape), torch.rand(1, *shape.item)
    y = torch.rand(1, 3, 4) if series else torch.zeros(1, dtype=torch.long)
    on = lambda E: lambda x: E(1 * x)  # torch's counter wants no leaf where a module begins
    through = 1 if p.kl == "last" else p.chain_steps
    recompute = 1 if series else segment_length(through)
    with FlopCounterMode(display=False) as counter:
        start = run(build_kernel(p), on(frozen(net, y)), x, p.chain_steps - through)[0].x
        E = on(attached(net, y))
        end = run(build_kernel(p), E, start, through, differentiate="all", recompute=recompute)[0].x
        frozen(net, y)(end).sum().backward()
    counted = cost(p, shape)
    chain = counted["flop_per_iteration"] / p.batch - 2 * counted["flop_per_image_and_update"]
    assert chain == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_a_whole_benchmark_adds_up(tmp_path):
    """Every quotient in the file is of the file's own numbers, the operations are those counted by hand, and what was
    said is what is written."""
    said = []
    plan = speed.Plan(((8, 2),), ((8, 2, 1),), ((8, 2),), repeats=1, products=1)
    machine = replace(Trainer(), threads=1, dtype="float32", compile="off", device="cpu")
    found = json.loads(json.dumps(speed.bench(machine, plan, say=said.append)))
    step, iteration, memory = found["rows"]
    for row in (step, iteration):
        assert row["speedup"] == pytest.approx(row["reference_ms"] / row["ours_ms"])
        assert row["share_of_matrix_rate"] == pytest.approx(row["flop_per_s"] / found["rate_flop_per_s"]["float32"])
    assert step["flop_per_image"] == flop_by_hand(8)
    assert step["flop_per_s"] == pytest.approx(flop_by_hand(8) / (step["ours_ms"] / 1e3))  # ms per image and step
    assert iteration["flop_per_s"] * iteration["ours_ms"] / 1e3 > 2 * flop_by_hand(8)  # the update's passes beside it
    assert 0 < iteration["outside"] < 1
    assert memory["ratio"] == pytest.approx(memory["ours_mib"] / memory["reference_mib"], nan_ok=True)
    assert {"commit", "load_before", "load_after", "versions", "cpu_flags", "date"} <= set(found["machine"])
    assert found["seconds"] > 0
    assert len(said) == 2 + 3 + 1 and f"{step['speedup']:.1f} times faster" in said[2]


def test_the_reference_is_the_same_network():
    """Figure 14a as ours, once the weights are the same: its power iteration in each forward is let converge."""
    torch.manual_seed(0)
    ours = build_image_net(replace(speed.FIGURE_14A, width=8), SHAPE)
    with torch.no_grad():
        for q in ours.parameters():
            q.add_(0.05 * torch.randn_like(q))
    power_iteration(ours, 500)
    plain = reference.Figure14a(8)
    (tower,) = ours.towers
    with torch.no_grad():
        plain.stem.weight.copy_(tower.stem.weight)
        plain.head.load_state_dict(tower.head.state_dict())
        for mine, theirs in zip(tower.blocks, plain.blocks, strict=True):
            theirs.conv1.weight.copy_(mine.conv1.weight)
            theirs.conv2.weight.copy_(mine.conv2.weight)
            if theirs.skip is not None:
                theirs.skip.weight.copy_(mine.skip.weight)
            for name in ("gain1", "gain2", "bias1", "bias2"):
                a = getattr(mine, name)
                getattr(theirs, name).weight.copy_(a.start + a.base + a.weight)  # a row a class
        x, y = torch.rand(4, 3, 32, 32), torch.tensor([0, 3, 3, 9])
        for _ in range(500):
            plain(x[:1], y[:1])
        assert torch.allclose(plain(x, y), ours(x, y), rtol=1e-3)


def test_outside_is_what_is_neither_chain_nor_update(monkeypatch):
    """An iteration of milliseconds with half a second's sleep put into one place: that place's side has nearly all."""
    preset = replace(speed.FIGURE_14A, width=8, batch=2, chain_steps=1, buffer_size=8)
    pixels = np.zeros((8, 32, 32, 3), np.uint8)
    state = states.start(preset, SHAPE, CPU, {})
    loader = Loader(Images("black", pixels, np.arange(8) % 10, speed.CLASSES), 2)
    train_step(state, loader, loop.Guard(math.inf))

    def late(f):
        def after(*args, **kwargs):
            time.sleep(0.5)
            return f(*args, **kwargs)

        return after

    with monkeypatch.context() as patch:
        patch.setattr(state, "iterate", late(state.iterate))
        assert speed.outside_share(state, loader) > 0.5
    with monkeypatch.context() as patch:
        patch.setattr(loop.samplers, "run", late(loop.samplers.run))
        assert speed.outside_share(state, loader) < 0.5
    updated = state.updated
    state.updated = late(updated)
    assert speed.outside_share(state, loader) < 0.5
    assert state.updated is not updated and loop.samplers.run.__name__ == "run"  # all is put back as it was


@pytest.mark.skipif(not speed.RESET.exists(), reason="the resident set can be told on Linux alone")
def test_peak_memory_is_that_of_the_work():
    """64 MiB written and let go, then 32: the peak is the larger one; and nothing where nothing is made."""
    mebibytes = lambda n: torch.ones(n * 2**18).sum()  # of 4 bytes
    assert speed.peak_growth(lambda: (mebibytes(64), mebibytes(32))) == pytest.approx(64, abs=3)
    assert speed.peak_growth(lambda: None) < 3


def test_a_failed_measurement_of_memory_keeps_the_rest():
    """A dtype that is none ends the process that measures: its words, and no traceback."""
    broken = replace(CPU, threads=10**6)
    with pytest.raises(Fault, match="exit code 1: .*give 1 to"):
        speed.child_peak(broken, "ours", 8, 1)
    row = speed.memory_row(broken, 8, 1)
    assert "give 1 to" in row["fault"] and "ratio" not in row
    assert speed.line(row).startswith("peak memory of a chain, width 8, batch 1: not measured: ")


def test_a_share_is_a_quotient_and_memory_has_none():
    assert speed.share({"flop_per_s": 3e9}, 4e9) == {"share_of_matrix_rate": 0.75}
    assert speed.share({"ratio": 0.5}, 4e9) == {}
