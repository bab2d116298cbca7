"""Training: densities learned and compared with the truth, the 3-sigma clip by hand, the averages, the guard,
resuming."""

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from runs import trained
from torch import nn

from igebm import data, diagnostics, model, native, presets
from igebm.buffer import Buffer
from igebm.data import Images, Loader
from igebm.data.latents import Latent
from igebm.data.series import Series, Windows, statistics
from igebm.errors import Fault, InputError
from igebm.model import Shape
from igebm.nets.layers import SpectralConv2d
from igebm.objectives import contrastive, maximum_likelihood
from igebm.presets import Preset, Trainer
from igebm.report.found import read_log
from igebm.runtime import probe
from igebm.samplers import langevin, run
from igebm.shapes import SeriesShape
from igebm.training import ema, guard, optim
from igebm.training import state as states
from igebm.training.guard import PATIENCE, Divergence, Guard
from igebm.training.loop import Watcher, draw_chains, open_log, raise_chain_steps, roll_back, train, train_step
from igebm.training.run import FIXED, resume

TINY = replace(
    presets.named("digits"),
    width=4, blocks="1d", chain_steps=3, batch=8, buffer_size=24, steps=6, save_every=2, log_every=1, grid_every=100,
    snapshot_every=100, sample_steps=2,
)  # fmt: skip
CPU = Trainer(device="cpu", dtype="float32", compile="off", threads=1)
RUNTIME = probe("cpu", "float32", "off", 1)


def images(n=25, size=8, classes=3, seed=0) -> Images:
    rng = np.random.default_rng(seed)
    names = tuple(f"class {c}" for c in range(classes))
    return Images(
        "test images", rng.integers(0, 256, (n, size, size, 1), dtype=np.uint8), np.arange(n) % classes, names
    )


def fresh(preset: Preset = TINY, n: int = 25) -> tuple[states.TrainState, Images]:
    x = images(n)
    return states.start(preset, Shape(1, 8, 8, x.classes), RUNTIME, {}), x


# What is learned


@pytest.mark.parametrize("objective, power", [(contrastive, 1), (maximum_likelihood, 2)], ids=["eq. 3", "eq. 8"])
def test_a_2d_mixture_is_learned(objective, power):
    """Four Gaussians in the plane; an MLP on Langevin chains at temperature 1; densities normalised by quadrature.

    Eq. 3 on samples of p learns p = q. Eq. 8 weights samples of p by p once more, so it is p² that matches q: both
    are held to a total variation below 0.15, where the uniform density has 0.75 and the other objective's answer
    more than 0.2.
    """
    g = torch.Generator().manual_seed(0)
    centres, sd = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]]), 0.35
    net = nn.Sequential(nn.Linear(2, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 1))
    E = lambda x: net(x)[:, 0] + 0.05 * x.square().sum(1)  # so that the density can be normalised before it is learned
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3, betas=(0.5, 0.999))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=800)
    buffer = Buffer(2000, (2,), dtype=torch.float32)
    kernel = langevin(0.02, 0.2)  # T = 0.2² / (2 · 0.02) = 1
    for _ in range(800):
        x_pos = centres[torch.randint(4, (512,), generator=g)] + sd * torch.randn(512, 2, generator=g)
        draw = buffer.draw(4 * torch.rand(512, 2, generator=g) - 2, None, 0.02, g)
        end, _ = run(kernel, E, draw.x, 10, g)
        buffer.write(draw.slots, end.x, None)
        loss = objective(E(x_pos), E(end.x))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    axis = torch.linspace(-2.5, 2.5, 101)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        e = E(grid)
    q = torch.exp(-torch.cdist(grid, centres).square() / (2 * sd**2)).sum(1)
    q = q / q.sum()
    distance = lambda p: 0.5 * (p - q).abs().sum().item()
    assert distance(torch.full_like(q, 1 / len(q))) > 0.5
    assert distance(torch.softmax(-power * e, 0)) < 0.15
    assert distance(torch.softmax(-(3 - power) * e, 0)) > 0.2


def test_digits_in_miniature(tmp_path):
    """Two classes, 0 and 1, for a few seconds: a nearest-mean classifier, made from the data, finds the asked class
    in samples."""
    both = data.load("digits")
    keep = both.y < 2
    pair = Images("zeros and ones", both.x[keep], both.y[keep], both.classes[:2])
    p = replace(
        presets.named("digits"),
        width=16,
        batch=32,
        buffer_size=200,
        chain_steps=15,
        steps=120,
        save_every=1000,
        lr=1e-3,
    )
    state = states.start(p, Shape(1, 8, 8, pair.classes), RUNTIME, {})
    train(state, Loader(pair, state.preset.batch), tmp_path, RUNTIME, Watcher())
    x, y = states.averaged_model(state, RUNTIME).sample(200, steps=150)
    means = np.stack([pair.x[pair.y == c].astype(float).mean(0) for c in (0, 1)])
    nearest = ((x[:, None].astype(float) - means) ** 2).sum((2, 3, 4)).argmin(1)
    assert (nearest == y).mean() > 0.85


# Optimiser


def test_sigma_clip_by_hand():
    """β₂ = 0.999, gradients 1, 2, then 100. v₁ = 0.001·1², v̂₁ = 1: bound 3. v₂ = 0.001·(0.999 + 4), v̂₂ = v₂/(1 -
    0.999²)."""
    p = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = torch.optim.Adam([p], lr=0.1, betas=(0.0, 0.999))
    bounds = []
    for value in (1.0, 2.0, 100.0):
        p.grad = torch.tensor([value, -value], dtype=torch.float64)
        share = optim.clip_to_sigmas(optimizer, "paper").item()
        bounds.append((p.grad[0].item(), -p.grad[1].item(), share))
        optimizer.step()
    v2 = (0.999 * 1 + 4) / (1 + 0.999)
    want = [(1, 1, 0.0), (2, 2, 0.0), (3 * math.sqrt(v2), 3 * math.sqrt(v2), 1.0)]
    assert [b for row in bounds for b in row] == pytest.approx([w for row in want for w in row])


def test_release_clip_by_hand():
    """b = 3 √(v_{t-1} / (1 - β₂ᵗ)) + 0.1: 0.1 at the first step, then 3 √(0.001 · 0.01 / (1 - 0.999²)) + 0.1."""
    p = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.Adam([p], lr=0.1, betas=(0.0, 0.999))
    got = []
    for _ in range(2):
        p.grad = torch.tensor([5.0], dtype=torch.float64)
        optim.clip_to_sigmas(optimizer, "release")
        got.append(p.grad.item())
        optimizer.step()
    assert got == pytest.approx([0.1, 3 * math.sqrt(0.001 * 0.01 / (1 - 0.999**2)) + 0.1])


@pytest.mark.parametrize("variant", ["paper", "release"])
def test_steps_that_are_counted_clip_as_those_that_are_read(variant):
    """At the first step, the second and the sixth: given how many were taken, or read off the optimiser's state."""
    bounds = []
    for counted in (False, True):
        rng = np.random.default_rng(0)
        net = nn.Linear(20, 30)
        optimizer = optim.adam(net, TINY)
        for taken in range(6):
            for p in net.parameters():
                p.grad = torch.tensor(rng.normal(0, 1 + 5 * (taken % 2), p.shape), dtype=torch.float32)
            share = optim.clip_to_sigmas(optimizer, variant, taken=taken if counted else None)
            bounds.append(torch.cat([share[None], *[p.grad.flatten() for p in net.parameters()]]))
            optimizer.step()
    assert all(map(torch.equal, bounds[:6], bounds[6:])) and 0 < bounds[1][0] < 1


def test_paper_clip_does_not_freeze_what_had_no_gradient_yet():
    p = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.Adam([p], lr=0.1, betas=(0.0, 0.999))
    for g in ([1.0, 0.0], [1.0, 7.0]):
        p.grad = torch.tensor(g)
        optim.clip_to_sigmas(optimizer, "paper")
        optimizer.step()
    assert p.grad[1].item() == 7.0


def test_a_large_tensor_is_clipped_as_small_ones_are():
    """More entries than are clipped at a time, beside a bias: the bounds of the second step worked out in NumPy."""
    net = nn.Linear(601, 400)
    optimizer, rng = optim.adam(net, TINY), np.random.default_rng(0)
    first, second = ([rng.normal(0, s, p.shape) for p in net.parameters()] for s in (1.0, 4.0))
    for g in first:
        g.flat[::7] = 0
    for gradients in (first, second):
        for p, g in zip(net.parameters(), gradients, strict=True):
            p.grad = torch.tensor(g, dtype=torch.float32)
        share = optim.clip_to_sigmas(optimizer, "paper").item()
        optimizer.step()
    bounds = [np.where(g == 0, np.inf, 3 * np.abs(g)) for g in first]  # v̂₁ = g₁²
    for p, g, b in zip(net.parameters(), second, bounds, strict=True):
        np.testing.assert_allclose(p.grad.numpy(), np.clip(g, -b, b), rtol=1e-5)
    over = [np.abs(g) > b for g, b in zip(second, bounds, strict=True)]
    assert 0.2 < share == pytest.approx(np.mean(np.concatenate([o.ravel() for o in over])), abs=1e-4)


def test_warm_up_is_linear():
    assert [optim.warmed_up(1e-3, s, 4) for s in (1, 2, 4, 9)] == pytest.approx([2.5e-4, 5e-4, 1e-3, 1e-3])
    assert optim.warmed_up(1e-3, 1, 0) == 1e-3


def test_average_by_hand():
    """d = min(0.9, (1+n)/(10+n)) = 0.1, 2/11 at the first two updates: 0 -> 0.9·1 = 0.9, then (2/11)·0.9 + (9/11)·2."""
    net = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        net.weight.fill_(0.0)
    averages = ema.start(net)
    for n, value in enumerate((1.0, 2.0)):
        with torch.no_grad():
            net.weight.fill_(value)
        ema.update(averages, net, 0.9, n)
    assert averages["weight"].item() == pytest.approx(2 / 11 * 0.9 + 9 / 11 * 2)


def test_c10_averaged_network_has_spectral_norm_one():
    """Averages of weights that turn: the averaged network's own norm is 1, its vectors have unit length, the net is
    untouched."""
    state, x = fresh(replace(TINY, lr=0.05))
    loader = Loader(x, 8)
    for _ in range(30):
        train_step(state, loader, Guard(1e9))
    before = {k: v.clone() for k, v in state.net.state_dict().items()}
    averaged = ema.network(state.averages, state.net)
    for layer in averaged.modules():
        if isinstance(layer, SpectralConv2d) and not layer.zero:
            assert torch.linalg.svdvals(layer.normalised().flatten(1))[0].item() == pytest.approx(1, abs=0.01)
            assert layer.u.norm().item() == pytest.approx(1, abs=1e-5) and layer.v.norm().item() == pytest.approx(
                1, abs=1e-5
            )
    assert all(torch.equal(v, before[k]) for k, v in state.net.state_dict().items())


def test_c10_at_learning_rate_zero_the_average_is_the_network():
    state, x = fresh(replace(TINY, lr=0.0))
    loader, z = Loader(x, 8), torch.rand(3, 1, 8, 8)
    for _ in range(40):
        train_step(state, loader, Guard(1e9))
    y = torch.tensor([0, 1, 2])
    with torch.no_grad():
        assert torch.allclose(ema.network(state.averages, state.net)(z, y), state.net(z, y), atol=1e-5)


# One step of Algorithm 1


def of_network(kind: str) -> list[str]:
    return [name for name, entry in presets.PRESETS.items() if entry.preset.network == kind]


@pytest.mark.parametrize("name", of_network("image"))
def test_every_image_preset_builds_and_takes_a_step(name):
    """Made small, but with all its choices: finite numbers, weights moved, chains stored with their labels."""
    preset = replace(presets.named(name), width=4, batch=4, chain_steps=2, buffer_size=8)
    rng = np.random.default_rng(0)
    x = Images("noise", rng.integers(0, 256, (9, 32, 32, 3), dtype=np.uint8), np.arange(9) % 3, ("a", "b", "c"))
    if preset.harmonics > 1:  # of an angle
        turn = rng.uniform(0, 2 * np.pi, 9)
        y = np.stack([np.cos(turn), np.sin(turn)], 1).astype(np.float32)
        x = x._replace(y=y, classes=(), latents=(Latent("cos", -1.0, 1.0), Latent("sin", -1.0, 1.0)))
    shape = Shape(3, 32, 32, x.classes, x.latents) if preset.conditional else Shape(3, 32, 32, ())
    state = states.start(preset, shape, RUNTIME, {})
    before = [p.detach().clone() for p in state.net.parameters()]
    for _ in range(2):
        metrics = train_step(state, Loader(x, 4), Guard(1e9))
    assert all(math.isfinite(v) for v in metrics.values())
    assert sum(not torch.equal(a, b) for a, b in zip(before, state.net.parameters(), strict=True)) > len(before) // 2
    assert state.step == 2 and state.seen == 8 and len(state.buffer) >= 4


@pytest.mark.parametrize("name", of_network("trajectory"))
def test_every_series_preset_builds_and_takes_a_step(name):
    preset = replace(presets.named(name), width=8, batch=4, chain_steps=3)
    series = Series("waves", np.sin(np.arange(120.0)).reshape(2, 30, 2).astype(np.float32), ("a", "b"))
    mean, std = statistics(series)
    state = states.start(preset, SeriesShape(3, ("a", "b"), mean, std), RUNTIME, {})
    before = [p.detach().clone() for p in state.net.parameters()]
    for _ in range(2):
        metrics = train_step(state, Windows(series, 3, 4, mean, std), Guard(1e9))
    assert all(math.isfinite(v) for v in metrics.values())
    assert sum(not torch.equal(a, b) for a, b in zip(before, state.net.parameters(), strict=True)) > len(before) // 2
    assert state.step == 2 and state.seen == 8 and len(state.buffer) == 0


@pytest.mark.parametrize("through", ["last", "all"])
def test_l_kl_reaches_the_weights(through):
    """With L_KL the update differs from the one without, by the chain's gradient alone (same draws, same chains)."""
    plain, x = fresh(replace(TINY, sigma_clip="none"))
    with_kl, _ = fresh(replace(TINY, sigma_clip="none", kl=through))
    for state in (plain, with_kl):
        train_step(state, Loader(x, 8), Guard(1e9))
    assert torch.equal(plain.buffer.x, with_kl.buffer.x)
    assert any(not torch.equal(a, b) for a, b in zip(plain.net.parameters(), with_kl.net.parameters(), strict=True))


@pytest.mark.parametrize("parts", [2, 3, 8], ids=str)
def test_a_batch_in_parts_takes_the_step_of_the_whole(parts):
    """Eq. 3 is a mean over the batch, and chains without noise depend on their starts alone: the gradient of the whole
    batch is the sum of its parts' shares, equal (2, 8) or not (3), and so is the loss."""
    whole = replace(TINY, noise=0.0, objective="contrastive", conditional=True)
    found = []
    for p in (whole, replace(whole, accumulate=parts)):
        state, x = fresh(p)
        metrics = train_step(state, Loader(x, p.batch), Guard(25.0))
        grads = {name: q.grad.clone() for name, q in state.net.named_parameters() if q.grad is not None}
        found.append((grads, metrics, state.buffer.x.clone()))
    (one, m, stored), (many, n, again) = found
    assert one.keys() == many.keys() and (stored.int() - again.int()).abs().max() <= 1  # rounded at random
    for name, g in one.items():
        assert torch.allclose(g, many[name], rtol=1e-3, atol=1e-6), name
    assert all(m[k] == pytest.approx(n[k], rel=1e-3, abs=1e-6) for k in m)


def test_interrupted_step_leaves_everything_as_it_was():
    from igebm.training.loop import Stopped

    state, x = fresh()
    train_step(state, Loader(x, 8), Guard(1e9))
    before = {k: v.clone() for k, v in state.net.state_dict().items()}
    stored = state.buffer.x.clone()
    with pytest.raises(Stopped):
        train_step(state, Loader(x, 8), Guard(1e9), stop=lambda: True)
    assert state.step == 1 and torch.equal(stored, state.buffer.x)
    assert all(torch.equal(v, before[k]) for k, v in state.net.state_dict().items())


def test_a_plain_predictor_stops_when_asked_to(tmp_path):
    """It has no chain to be asked in: between two iterations, and what it has is saved."""
    preset = replace(presets.named("balls-feedforward"), width=8, batch=4, steps=1000)
    series = Series("waves", np.sin(np.arange(120.0)).reshape(2, 30, 2).astype(np.float32), ("a", "b"))
    mean, std = statistics(series)
    state = states.start(preset, SeriesShape(3, ("a", "b"), mean, std), RUNTIME, {})
    watcher = Watcher(stop=lambda: state.step == 3)
    outcome = train(state, Windows(series, 3, 4, mean, std), tmp_path, RUNTIME, watcher)
    assert (outcome.reason, outcome.step) == ("interrupted", 3)
    assert states.read_checkpoint(tmp_path, pytest.fail)["counters"]["step"] == 3


def test_a_full_part_of_a_buffer_is_full():
    """Of two processes each has half of --buffer-size: once that is full, restarts are as rare as asked for."""
    state, x = fresh(replace(TINY, buffer_size=48, restart=0.0, buffer_fill=1.0))
    state.buffer = Buffer(24, (1, 8, 8), torch.empty(0, dtype=torch.long))
    x_pos, y_pos = torch.zeros(8, 1, 8, 8), torch.zeros(8, dtype=torch.long)
    g = torch.Generator().manual_seed(0)
    state.buffer.write(torch.arange(16), torch.zeros(16, 1, 8, 8), torch.zeros(16, dtype=torch.long), g)
    assert draw_chains(state, x_pos, y_pos, g, g).fresh.all()
    state.buffer.write(torch.arange(24), torch.zeros(24, 1, 8, 8), torch.zeros(24, dtype=torch.long), g)
    assert not draw_chains(state, x_pos, y_pos, g, g).fresh.any()


def test_k_is_raised_said_and_kept(tmp_path):
    """Every 100 iterations, by ten, while the slow mean of the gap is above --raise-gap; a checkpoint has K with it."""
    state, _ = fresh(replace(TINY, max_chain_steps=20))
    said, state.step, state.slow_gap = [], 150, 0.9
    raise_chain_steps(state, {"gap": 0.9}, Watcher(said.append))
    assert state.chain_steps == 3 and not said
    state.step = 200
    raise_chain_steps(state, {"gap": 0.9}, Watcher(said.append))
    assert state.chain_steps == 13 and "chains take 13 steps from here" in said[0]
    states.save_checkpoint(tmp_path, state, RUNTIME)
    other, _ = fresh(state.preset)
    states.restore(other, states.read_checkpoint(tmp_path, pytest.fail), tmp_path)
    assert other.chain_steps == 13

    for least, most, then in ((3, 20, 13), (3, 10, 10), (3, 0, 3)):  # what may be asked for on resuming
        other, _ = fresh(replace(state.preset, chain_steps=least, max_chain_steps=most))
        states.restore(other, states.read_checkpoint(tmp_path, pytest.fail), tmp_path)
        assert other.chain_steps == then


def test_chain_steps_are_raised_while_samples_stay_above():
    """Paper, 8.7: by 10 each time, up to the maximum, and only while the gap is above the bound."""
    assert guard.raised_steps(20, 45, 0.9, 0.5) == 30
    assert guard.raised_steps(40, 45, 0.9, 0.5) == 45
    assert guard.raised_steps(20, 45, 0.4, 0.5) == 20


# The guard


def good(**changes):
    return dict(e_pos=0.0, e_neg=0.0, gap=0.0, loss=0.0, gradient=1.0, chain_gradient=1.0) | changes


@pytest.mark.parametrize("name", ["e_pos", "e_neg", "loss", "gradient", "chain_gradient"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_guard_stops_on_a_number_that_is_none(name, value):
    with pytest.raises(Divergence, match=r"diverged at step 7: .*not finite.*lower --lr"):
        Guard(10.0).check(7, good(**{name: value}))


@pytest.mark.parametrize("gap, remedy", [(11.0, "--chain-steps"), (-11.0, "--lr")])
def test_guard_waits_for_the_gap_to_stay_out_of_bounds(gap, remedy):
    watch = Guard(10.0)
    for step in range(PATIENCE - 1):
        watch.check(step, good(gap=gap))
    assert not watch.healthy
    watch.check(PATIENCE, good(gap=9.0))  # back in bounds: the count starts again
    assert watch.healthy
    for step in range(PATIENCE - 1):
        watch.check(step, good(gap=gap))
    with pytest.raises(Divergence, match=remedy):
        watch.check(99, good(gap=gap))


def test_a_guard_without_a_limit_looks_at_bad_numbers_alone():
    watch = Guard(0.0)
    for step in range(100):
        watch.check(step, {"gap": 1e6})
    assert watch.healthy
    with pytest.raises(Divergence, match="gap = nan|e_neg = nan"):
        watch.check(100, {"e_neg": math.nan, "gap": math.nan})


def test_guard_is_not_deceived_by_a_gap_that_swings():
    """Out of bounds on one side and the other in turn: never for long on either, and the run is lost all the same."""
    watch = Guard(10.0)
    for step in range(PATIENCE - 1):
        watch.check(step, good(gap=1e9 * (-1) ** step))
    with pytest.raises(Divergence, match="diverged at step 99"):
        watch.check(99, good(gap=-11.0))


def poisoned(state, at: int):
    """Watcher whose question "stop?" plants a nan in the weights at step `at`, once."""
    done = []

    def stop():
        if state.step == at and not done:
            done.append(at)
            with torch.no_grad():
                next(state.net.parameters()).fill_(math.nan)
        return False

    return stop


def test_nan_in_the_weights_rolls_back_and_finishes(tmp_path):
    """Planted at step 4: back to step 4's checkpoint with new random numbers, said and logged, and on to the end."""
    state, x = fresh()
    said = []
    states.save_checkpoint(tmp_path, state, RUNTIME)
    outcome = train(
        state, Loader(x, state.preset.batch), tmp_path, RUNTIME, Watcher(said.append, stop=poisoned(state, 4))
    )
    assert outcome.step == 6 and state.rollbacks == 1
    assert any("diverged at step 5" in line and "Going back to step 4" in line for line in said)
    assert all(torch.isfinite(p).all() for p in state.net.parameters())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "step" in line] == [1, 2, 3, 4, 5, 6]
    assert [line for line in lines if line.get("event") == "rollback"][0]["back_to"] == 4


def test_nan_in_the_weights_stops_when_asked_to(tmp_path):
    state, x = fresh(replace(TINY, on_divergence="stop"))
    states.save_checkpoint(tmp_path, state, RUNTIME)
    with pytest.raises(Fault, match=r"diverged at step 4: .*lower --lr.*last good checkpoint"):
        train(state, Loader(x, state.preset.batch), tmp_path, RUNTIME, Watcher(stop=poisoned(state, 3)))
    saved = states.read_checkpoint(tmp_path, print)
    assert saved["counters"]["step"] == 2 and all(torch.isfinite(t).all() for t in saved["net"].values())


def test_a_run_that_always_diverges_gives_up(tmp_path):
    """A nan planted at step 3 of every try: the fourth is the last."""
    state, x = fresh()

    def stop():
        if state.step >= 3:
            with torch.no_grad():
                next(state.net.parameters()).fill_(math.nan)
        return False

    states.save_checkpoint(tmp_path, state, RUNTIME)
    with pytest.raises(Fault, match=r"diverged at step 4: .*after 3 rollbacks"):
        train(state, Loader(x, state.preset.batch), tmp_path, RUNTIME, Watcher(stop=stop))


# Resuming


def contents(folder):
    """All tensors and counters of a run's checkpoint, and its log without the clock."""
    saved = states.read_checkpoint(folder, print)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return saved, [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def assert_same(a, b):
    """Nested checkpoints equal to the last bit."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for u, v in zip(a, b, strict=True):
            assert_same(u, v)
    else:
        assert a == b


@pytest.fixture
def dataset(tmp_path):
    x = images()
    path = tmp_path / "set.npz"
    np.savez(path, train_x=x.x, train_y=x.y, classes=np.array(x.classes))
    return path


VARIANTS = {
    "paper": (CPU, {}),
    "bfloat16": (replace(CPU, dtype="bfloat16"), {}),
    "everything": (CPU, dict(flip=True, crop=1, dropout=0.3, kl="last", restart=0.3)),
    "ring": (CPU, dict(buffer_policy="ring", accumulate=2)),
    "winograd": (replace(CPU, compile="winograd"), dict(width=32)),
}


@pytest.mark.parametrize("machine, options", VARIANTS.values(), ids=VARIANTS.keys())
def test_c04_resumed_is_uninterrupted_bit_for_bit(machine, options, dataset, tmp_path, capsys):
    """25 images in batches of 4. A: 20 steps. B: 9, then to 20 (in mid-epoch). C: 18 + 2. D: four pieces. All equal,
    log too."""
    if machine.compile == "winograd" and native.fault():
        pytest.skip(f"no Winograd here: {native.fault()}")
    p = replace(TINY, data=str(dataset), batch=4, save_every=5, **options)
    for name, pieces in {"A": [20], "B": [9, 20], "C": [18, 20], "D": [3, 7, 12, 20]}.items():
        trained("tiny", replace(p, steps=pieces[0]), machine, tmp_path / name)
        for total in pieces[1:]:
            resume(tmp_path / name, lambda had, total=total: replace(had, steps=total), machine)
    straight, log = contents(tmp_path / "A")
    assert [line["step"] for line in log] == list(range(1, 21))
    for name in "BCD":
        saved, its_log = contents(tmp_path / name)
        assert_same(straight, saved)
        assert log == its_log


def test_c04_the_order_of_files_on_the_disk_does_not_matter(tmp_path):
    """The same folder of pictures, written in another order (other inodes, other times): the same batches to the bit,
    also after a stop in mid-epoch; the second epoch is in another order than the first."""
    x = images(11)
    for name, order in (("a", range(11)), ("b", reversed(range(11)))):
        for i in order:
            path = tmp_path / name / x.classes[x.y[i]] / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(x.x[i, ..., 0]).save(path)
            os.utime(path, (i, i))
    p = replace(TINY, batch=4, save_every=100)
    trained("tiny", replace(p, data=str(tmp_path / "a"), steps=8), CPU, tmp_path / "straight")
    trained("tiny", replace(p, data=str(tmp_path / "b"), steps=4), CPU, tmp_path / "stopped")
    resume(tmp_path / "stopped", lambda had: replace(had, steps=8), CPU)
    (a, log), (b, its_log) = contents(tmp_path / "straight"), contents(tmp_path / "stopped")
    for part in ("net", "averages", "optimizer", "buffer", "counters"):
        assert_same(a[part], b[part])
    assert log == its_log
    epochs = [data.batch_indices(11, 11, seen, p.seed).tolist() for seen in (0, 11)]
    assert epochs[0] != epochs[1] and sorted(epochs[0]) == sorted(epochs[1])


def test_c16_saving_again_and_looking_change_nothing(dataset, tmp_path):
    """Raw weights, averages and their count, moments, buffer and step survive a save, a load and an evaluation in
    between."""
    trained("tiny", replace(TINY, data=str(dataset)), CPU, tmp_path / "run")
    before = states.read_checkpoint(tmp_path / "run", print)
    preset = presets.from_dict(before["settings"])
    state = states.start(preset, Shape(*before["shape"], classes=tuple(before["classes"])), RUNTIME, before["facts"])
    states.restore(state, before, tmp_path)
    states.averaged_model(state, RUNTIME).sample(4, steps=2)
    states.save_checkpoint(tmp_path / "run", state, RUNTIME)
    after = states.read_checkpoint(tmp_path / "run", print)
    assert_same(before, after)
    assert any(not torch.equal(after["averages"][k], after["net"][k]) for k in after["averages"])
    assert after["counters"]["step"] == 6


def test_c16_resuming_for_no_more_steps_changes_no_byte(dataset, tmp_path, capsys):
    trained("tiny", replace(TINY, data=str(dataset)), CPU, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.*")}
    assert resume(tmp_path / "run", lambda had: had, CPU)[0].step == 6
    assert "already at step 6" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.*")} == before


def test_a_run_that_lost_its_model_at_the_end_writes_it_anew(dataset, tmp_path, capsys):
    """A kill between the last checkpoint and its model leaves none, or that of an earlier step."""
    run = tmp_path / "run"
    trained("tiny", replace(TINY, data=str(dataset), snapshot_every=3), CPU, run)
    path = run / "model.safetensors"
    whole = path.read_bytes()
    for left in (None, run / "snapshots" / "0000003.safetensors"):
        path.unlink()
        if left is not None:
            shutil.copy(left, path)
        assert resume(run, lambda had: had, CPU)[0].step == 6
        assert "writing the model" in capsys.readouterr().err and path.read_bytes() == whole


def test_c20_weights_of_any_layout_are_saved_under_the_same_names(tmp_path):
    """At step 0, where the average is the network; in channels-last memory: the same keys, no prefix, the same energies
    within 1e-6, from the checkpoint and from the model file."""
    plain, x = fresh()
    other, _ = fresh()
    other.net.to(memory_format=torch.channels_last)
    z, y = torch.rand(3, 1, 8, 8), torch.tensor([0, 1, 2])
    keys = []
    for name, state in (("plain", plain), ("other", other)):
        (tmp_path / name).mkdir()
        states.save_checkpoint(tmp_path / name, state, RUNTIME)
        states.save_model(tmp_path / name / "model.safetensors", state)
        saved, _ = fresh(replace(TINY, seed=7))
        states.restore(saved, states.read_checkpoint(tmp_path / name, pytest.fail), tmp_path)
        loaded = model.load(tmp_path / name)
        keys.append(set(loaded.net.state_dict()))
        with torch.no_grad():
            assert torch.allclose(saved.net(z, y), plain.net(z, y), atol=1e-6)
            assert torch.allclose(loaded.net(z, y), ema.network(plain.averages, plain.net)(z, y), atol=1e-6)
    assert keys[0] == keys[1] and not any(key.startswith(("module.", "_orig_mod.")) for key in keys[0])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_c20_a_compiled_run_saves_what_a_plain_one_does(dataset, tmp_path):
    """Each in a process of its own without type checks, which the compiler cannot trace."""
    p = replace(TINY, data=str(dataset), steps=2)
    settings = presets.beside(presets.named("digits"), p)
    flags = [word for name in settings for word in (presets.flag(name), str(getattr(p, name)))]
    env = {name: value for name, value in os.environ.items() if name != "TORCHDYNAMO_DISABLE"}
    for name, choice in (("plain", "off"), ("compiled", "on")):
        words = ["train", "digits", *flags, "--out", tmp_path / name, "--dtype", "float32", "--compile", choice]
        subprocess.run([sys.executable, "-m", "igebm", *words], check=True, capture_output=True, env=env)
    z, y = torch.rand(3, 1, 8, 8), torch.tensor([0, 1, 2])
    keys = []
    for name in ("plain", "compiled"):
        saved, _ = fresh(p)
        states.restore(saved, states.read_checkpoint(tmp_path / name, pytest.fail), tmp_path)
        loaded = model.load(tmp_path / name).net
        keys.append((set(saved.net.state_dict()), set(loaded.state_dict())))
        with torch.no_grad():
            assert torch.allclose(loaded(z, y), ema.network(saved.averages, saved.net)(z, y), atol=1e-6)
    assert keys[0] == keys[1]


def test_c29_a_checkpoint_of_a_gpu_goes_on_without_one(dataset, tmp_path, capsys):
    """What it computed with is no order where there is no such device: the CPU, its own dtype and threads, and said."""
    trained("tiny", replace(TINY, data=str(dataset)), CPU, tmp_path / "run")
    saved = torch.load(tmp_path / "run" / states.CHECKPOINT, weights_only=True)
    saved["runtime"] = {"device": "cuda", "dtype": "bfloat16", "compiled": "graphs", "threads": 96}
    torch.save(saved, tmp_path / "run" / states.CHECKPOINT)
    machine = replace(CPU, device="cpu", dtype="auto", compile="auto", threads=0)
    assert resume(tmp_path / "run", lambda had: replace(had, steps=7), machine)[0].step == 7
    assert "machine: CPU as asked" in capsys.readouterr().err


def test_c32_what_a_checkpoint_is_made_of_cannot_change(dataset, tmp_path):
    """Every setting that the weights, the buffer or the stream of data are made of is refused by its name."""
    trained("tiny", replace(TINY, data=str(dataset)), CPU, tmp_path / "run")
    others = dict(
        image_size=16, channels=3, conditional=False, width=8, blocks="1", stem="4x4/2", activation="swish",
        modulation="release", skip_kernel=3, head_relu=True, scales=2, spectral=False, init="unit", buffer_size=32,
        buffer_policy="ring", buffer_rounding="release", seed=1, past=4, stem_bias=True, skip_down=True, pooling="none",
        harmonics=2,
    )  # fmt: skip
    assert set(others) == FIXED - {"network"}
    for name, value in others.items():
        with pytest.raises(InputError, match=rf"cannot change {presets.flag(name)} .* -> "):
            resume(tmp_path / "run", lambda had, n=name, v=value: replace(had, steps=9, **{n: v}), CPU)
    for name, advice in (("seed", "--init-from .* takes its weights"), ("width", "start a new one$")):
        with pytest.raises(InputError, match=advice):
            resume(tmp_path / "run", lambda had, n=name: replace(had, **{n: others[n]}), CPU)
    changed = replace(TINY, data=str(dataset), seed=1)  # the advice works
    assert trained("tiny", changed, CPU, tmp_path / "other", str(tmp_path / "run"))[0].step == TINY.steps


def test_c32_resume_with_other_settings(dataset, tmp_path, capsys):
    p = replace(TINY, data=str(dataset), batch=4, warmup=20)
    trained("tiny", p, CPU, tmp_path / "run")
    outcome, _ = resume(tmp_path / "run", lambda had: replace(had, batch=8, steps=10), CPU)
    assert "changed on resuming: --batch 4 -> 8" in capsys.readouterr().err
    saved, log = contents(tmp_path / "run")
    assert outcome.step == 10 and saved["counters"]["seen"] == 6 * 4 + 4 * 8
    assert log[-1]["lr"] == pytest.approx(p.lr * 10 / 20)  # as in a straight run
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    assert resume(tmp_path / "run", lambda had: replace(had, steps=5), CPU)[0].step == 10
    assert "already at step 10" in capsys.readouterr().err
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before
    for change, named in ((dict(image_size=16), "--image-size 0 -> 16"), (dict(width=8), "--width 4 -> 8")):
        with pytest.raises(InputError, match=named):
            resume(tmp_path / "run", lambda had, change=change: replace(had, steps=20, **change), CPU)


def test_c32_other_data_are_named(dataset, tmp_path, capsys):
    trained("tiny", replace(TINY, data=str(dataset)), CPU, tmp_path / "run")
    x = images(seed=1)
    np.savez(dataset, train_x=x.x, train_y=x.y, classes=np.array(x.classes))
    resume(tmp_path / "run", lambda had: replace(had, steps=7), CPU)
    assert "the data, or their order, are not those that" in capsys.readouterr().err
    # Said once; the model tells of both.
    resume(tmp_path / "run", lambda had: replace(had, steps=8), CPU)
    assert "are not those that" not in capsys.readouterr().err
    facts = model.load(tmp_path / "run").facts
    assert facts["data"]["sha256"] != facts["data_since"][0]["sha256"] and facts["data_since"][0]["step"] == 6
    x = images(size=9)
    np.savez(dataset, train_x=x.x, train_y=x.y, classes=np.array(x.classes))
    with pytest.raises(InputError, match="was trained on images of 8x8x1 .* now the data are images of 9x9x1"):
        resume(tmp_path / "run", lambda had: replace(had, steps=9), CPU)


def test_c32_a_relative_path_to_data_holds_from_any_folder(dataset, tmp_path, capsys, monkeypatch):
    """Given to a new run or to a resumed one; the same images are no other data for being called otherwise."""
    monkeypatch.chdir(dataset.parent)
    trained("tiny", replace(TINY, data=dataset.name), CPU, tmp_path / "run")
    os.link(dataset.name, "again.npz")
    resume(tmp_path / "run", lambda had: replace(had, steps=7, data="again.npz"), CPU)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert resume(tmp_path / "run", lambda had: replace(had, steps=8), CPU)[0].step == 8
    assert "the data are not" not in capsys.readouterr().err
    assert contents(tmp_path / "run")[0]["settings"]["data"] == str(dataset.parent / "again.npz")


def test_preset_json_keeps_the_command_that_began_the_run(dataset, tmp_path, monkeypatch):
    for k, steps in enumerate((6, 8, 9)):
        monkeypatch.setattr("sys.argv", ["igebm", "train", f"--call-{k}"])
        if k:
            resume(tmp_path / "run", lambda had, steps=steps: replace(had, steps=steps), CPU)
        else:
            trained("tiny", replace(TINY, data=str(dataset)), CPU, tmp_path / "run")
    about = json.loads((tmp_path / "run" / "preset.json").read_text())
    assert about["command"] == ["igebm", "train", "--call-0"] and about["settings"]["steps"] == 9
    again = [{"step": 6, "command": ["igebm", "train", "--call-1"]}]
    assert about["resumed_by"] == again + [{"step": 8, "command": ["igebm", "train", "--call-2"]}]


@pytest.mark.parametrize("n", [3, 1])
def test_c25_fewer_images_than_a_batch_train_with_repeats(n, tmp_path, capsys):
    x = images(n)
    np.savez(tmp_path / "few.npz", train_x=x.x, train_y=x.y, classes=np.array(x.classes))
    outcome, _ = trained("tiny", replace(TINY, data=str(tmp_path / "few.npz")), CPU, tmp_path / "run")
    assert outcome.step == 6 and f"has {n} image{'s' * (n > 1)}, fewer than the batch of 8" in capsys.readouterr().err
    assert contents(tmp_path / "run")[0]["counters"]["seen"] == 6 * 8


def test_c17_one_class_is_a_class(tmp_path):
    """A conditional model of a single class: trained, with its one label, and asked for by name."""
    x = images(9, classes=1)
    np.savez(tmp_path / "one.npz", train_x=x.x, train_y=x.y, classes=np.array(x.classes))
    trained("tiny", replace(TINY, data=str(tmp_path / "one.npz")), CPU, tmp_path / "run")
    m = model.load(tmp_path / "run")
    assert m.shape.classes == ("class 0",) and m.label("class 0") == 0
    assert m.sample(2, label="class 0", steps=1)[1].tolist() == [0, 0]


def test_init_from_takes_weights_alone(dataset, tmp_path):
    p = replace(TINY, data=str(dataset))
    trained("tiny", p, CPU, tmp_path / "a")
    trained("tiny", replace(p, steps=0), CPU, tmp_path / "b", init_from=str(tmp_path / "a"))
    a, b = (states.read_checkpoint(tmp_path / n, print) for n in "ab")
    assert_same(a["averages"], {k: v for k, v in b["net"].items() if k in a["averages"]})
    assert not b["optimizer"]["state"] and len(b["buffer"]["x"]) == 0 and b["counters"]["step"] == 0
    with pytest.raises(InputError, match="of another network: --width 4 where 8 is asked for$"):
        trained("tiny", replace(p, width=8), CPU, tmp_path / "c", init_from=str(tmp_path / "a"))
    assert not (tmp_path / "c").exists()


def test_going_back_to_the_previous_checkpoint_keeps_it(tmp_path):
    """Two rollbacks, the second to the checkpoint before the last: that one is then the last, and the bad one is
    gone."""
    state, x = fresh(replace(TINY, steps=12))
    states.save_checkpoint(tmp_path, state, RUNTIME)
    bad = []

    def stop():
        if state.step == 7 and len(bad) < 2 and state.rollbacks not in bad:
            bad.append(state.rollbacks)
            with torch.no_grad():
                next(state.net.parameters()).fill_(math.nan)
        return False

    said = []
    train(state, Loader(x, 8), tmp_path, RUNTIME, Watcher(said.append, stop=stop))
    assert [line.split("Going back to step ")[1].split()[0] for line in said if "Going back" in line] == ["6", "4"]
    assert state.step == 12 and state.rollbacks == 2
    assert states.read_checkpoint(tmp_path, pytest.fail, "previous")["counters"] | {"slow_gap": 0} == {
        "step": 10, "seen": 80, "chain_steps": 3, "rollbacks": 2, "outside": 0, "slow_gap": 0,
    }  # fmt: skip


def test_what_a_rollback_undoes_leaves_no_snapshot_and_its_log_goes_on(tmp_path):
    """Diverged at 6, back to 4, then ended at 5 and resumed: the snapshot of step 6 was of what is undone, and the log
    still tells of the rollback."""
    state, x = fresh(replace(TINY, steps=4, save_every=4, snapshot_every=2))
    outcome = train(state, Loader(x, 8), tmp_path, RUNTIME, Watcher())
    kept = [(tmp_path / "snapshots" / f"000000{step}.safetensors") for step in (2, 4)]
    assert outcome.step == 4 and all(path.exists() for path in kept)
    undone = [tmp_path / "snapshots" / "0000006.safetensors", tmp_path / "samples" / "0000006.png"]
    undone += [tmp_path / "samples" / "noise-0000006.png"]
    others = [tmp_path / "samples" / name for name in ("mine-0000006.png", "20240101.png")]  # a day, not an iteration
    state.preset = replace(state.preset, steps=8)
    for path in undone + others:
        path.write_bytes(b"")
    with open_log(tmp_path, 4) as log:
        for step in (5, 6):
            log.write(json.dumps({"step": step, "gap": 0.0}).encode() + b"\n")
        roll_back(state, Divergence(6, "planted", "nothing"), tmp_path, log, Watcher())
        log.write(json.dumps({"step": 5, "gap": 1.0}).encode() + b"\n")
    assert not any(path.exists() for path in undone) and all(path.exists() for path in kept + others)
    open_log(tmp_path, 5).close()
    log = read_log(tmp_path / "metrics.jsonl", troubles := [])
    assert not troubles and [(r.diverged_at, r.back_to) for r in log.rollbacks] == [(6, 4)]
    assert [(e["step"], e.get("gap")) for e in log.entries][-1] == (5, 1.0)
    # Killed before anything of the new branch was saved, it may diverge and go back anew, once.
    open_log(tmp_path, 4).close()
    assert not read_log(tmp_path / "metrics.jsonl", []).rollbacks


def test_a_k_that_was_asked_for_on_resuming_outlives_a_rollback(dataset, tmp_path):
    """Of a run that then diverges before its next save, and of one that is killed before it."""
    folder = tmp_path / "run"
    trained("tiny", replace(TINY, data=str(dataset)), CPU, folder)
    resume(folder, lambda had: replace(had, steps=7, chain_steps=5, save_every=100), CPU)
    assert [line["chain_steps"] for line in contents(folder)[1]] == [3] * 6 + [5]
    assert states.read_checkpoint(folder, pytest.fail, "previous")["counters"]["chain_steps"] == 5
    (old, _), (state, _) = fresh(), fresh(replace(TINY, chain_steps=5))
    states.save_checkpoint(tmp_path, old, RUNTIME)
    states.restore(state, states.read_checkpoint(tmp_path, pytest.fail), tmp_path)
    assert state.chain_steps == 5

    # What a resumed run was asked for is on the disk before its first iteration.
    def killed():
        raise SystemExit

    with pytest.MonkeyPatch.context() as kill:
        kill.setattr("igebm.training.run.finish", lambda *_: killed())
        with pytest.raises(SystemExit):
            resume(folder, lambda had: replace(had, steps=9, lr=1e-5), CPU)
    saved = states.read_checkpoint(folder, pytest.fail)
    assert saved["settings"]["lr"] == 1e-5 and saved["counters"]["step"] == 7
    assert states.read_checkpoint(folder, pytest.fail, "previous")["counters"]["step"] < 7


def test_what_the_data_cannot_give_is_refused_on_resuming_too(dataset, tmp_path):
    """Latents of images with classes; a posterior of labels that the model is not asked for."""
    trained("tiny", replace(TINY, data=str(dataset), conditional=False), CPU, tmp_path / "run")
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    for change in (dict(latent_steps=5), dict(label_weight=0.2)):
        said = f"the model is unconditional, so there are no labels: leave out {presets.flag(next(iter(change)))}"
        with pytest.raises(InputError, match=said):
            resume(tmp_path / "run", lambda had, change=change: replace(had, steps=9, **change), CPU)
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before


def test_an_interrupt_at_the_last_picture_is_told_as_that(dataset, tmp_path, monkeypatch, capsys):
    """All iterations are done and saved; --resume would only say so."""
    from igebm.cli import main
    from igebm.training import run

    def picture(path, state, runtime, progress):
        raise run.Stopped

    monkeypatch.setattr(run, "write_final_grid", picture)
    words = "--width 4 --blocks 1d --chain-steps 2 --batch 8 --buffer-size 24 --steps 2 --device cpu --dtype float32"
    words += f" --compile off --threads 1 --data {dataset} --out {tmp_path / 'run'}"
    assert main(["train", "digits", *words.split()]) == 130
    said = capsys.readouterr().err
    assert f"all but its last picture; igebm sample {tmp_path / 'run'}" in said and "--resume" not in said
    assert contents(tmp_path / "run")[0]["counters"]["step"] == 2
    # What a time limit ended early is not whole.
    words = words.replace(str(tmp_path / "run"), str(tmp_path / "timed")).replace("--steps 2", "--steps 100000")
    assert main(["train", "digits", *words.split(), "--minutes", "0.001"]) == 130
    assert f"go on with: igebm train --resume {tmp_path / 'timed'}" in capsys.readouterr().err


def test_a_save_that_fails_after_a_fallback_loses_nothing(dataset, tmp_path, monkeypatch):
    """checkpoint.pt is damaged, the run goes on from the one before, and the disk is full at the next save: it still
    resumes."""
    folder = tmp_path / "run"
    trained("tiny", replace(TINY, data=str(dataset)), CPU, folder)
    whole = (folder / states.CHECKPOINT).read_bytes()
    (folder / states.CHECKPOINT).write_bytes(whole[: len(whole) // 2])

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr("igebm.files.os.fsync", full)
        with pytest.raises(Fault, match="No space left"):
            resume(folder, lambda had: replace(had, steps=9), CPU)
    assert states.read_checkpoint(folder, pytest.fail)["counters"]["step"] == 4
    assert resume(folder, lambda had: replace(had, steps=9), CPU)[0].step == 9


def test_what_a_kill_left_half_written_is_removed(dataset, tmp_path):
    folder = tmp_path / "run"
    trained("tiny", replace(TINY, data=str(dataset)), CPU, folder)
    (folder / ".checkpoint.pt.abc.part").write_bytes(b"half")
    (folder / "samples" / ".0000001.png.abc.part").write_bytes(b"half")
    resume(folder, lambda had: replace(had, steps=7), CPU)
    assert not list(folder.rglob("*.part"))


def test_a_damaged_log_is_kept_as_far_as_it_can_be_read(dataset, tmp_path):
    folder = tmp_path / "run"
    trained("tiny", replace(TINY, data=str(dataset)), CPU, folder)
    with open(folder / "metrics.jsonl", "ab") as log:
        log.write(b'3\n\xff\n{"step": 7, "cut')
    resume(folder, lambda had: replace(had, steps=8), CPU)
    assert [line["step"] for line in contents(folder)[1]] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_settings_that_do_not_fit_the_images_leave_no_folder(dataset, tmp_path):
    for change in (dict(crop=8), dict(blocks="1d 1d 1d 1d")):
        with pytest.raises(InputError):
            trained("tiny", replace(TINY, data=str(dataset), **change), CPU, tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_the_buffer_fills_even_where_restarts_are_rare():
    """restart 0.001, buffer_fill 0.25: 40 x 8 draws at a quarter fill 48 slots; then restarts are rare again."""
    state, x = fresh(replace(TINY, buffer_size=48, restart=0.0, buffer_fill=0.25))
    for _ in range(40):
        train_step(state, Loader(x, 8), Guard(1e9))
    assert len(state.buffer) == 48


def test_numbers_of_a_step_are_those_of_its_batch():
    """The saturated share and the gap that are logged, against the buffer's content and the energies themselves."""
    state, x = fresh(replace(TINY, alpha=0.0, objective="contrastive", noise=0.0, step_size=0.0))
    metrics = train_step(state, Loader(x, 8), Guard(1e9))
    assert metrics["gap"] == pytest.approx(-metrics["loss"], abs=1e-6)
    assert metrics["saturated"] == 0.0 and metrics["chain_steps"] == 3 and metrics["lr"] == TINY.lr


def test_shares_and_norms_by_hand():
    g = torch.tensor([[3.0, 4.0], [0.0, -0.02]])
    assert diagnostics.gradient_norm(g).item() == pytest.approx(2.51)  # (5 + 0.02) / 2
    assert diagnostics.clipped_share(g, 0.01).item() == 0.75 and diagnostics.clipped_share(g, 0.0).item() == 0.0
    assert diagnostics.saturated_share(torch.tensor([[0.0, 0.3], [1.0, 0.999]])).item() == 0.5
    assert diagnostics.temperature(10.0, 0.005) == pytest.approx(1.25e-6)
    assert diagnostics.noise_at(0.05) == pytest.approx(math.sqrt(0.1))


def test_the_slow_gap_is_a_mean_over_about_a_hundred_steps():
    """Of n equal gaps g it is g (1 - 0.99^n)."""
    state, x = fresh(replace(TINY, step_size=0.0, noise=0.0, lr=0.0, restart=0.0, alpha=0.0))
    gaps = [train_step(state, Loader(x, 8), Guard(1e9))["gap"] for _ in range(5)]
    assert state.slow_gap == pytest.approx(sum(0.01 * 0.99 ** (4 - i) * g for i, g in enumerate(gaps)), rel=1e-6)


def test_labels_that_are_missing_say_nothing_to_the_posterior():
    """Of a batch without labels -log p(y | x) is the same number for any weights, log(m + 1), and pulls on none."""
    found = []
    for weight in (0.0, 1.0):
        p = replace(TINY, sigma_clip="none", label_weight=weight, label_candidates=2)
        state, x = fresh(p)
        nameless = Images("nameless", x.x, np.full(len(x.x), -1), x.classes)
        found.append((train_step(state, Loader(nameless, 8), Guard(1e9)), state))
    (without, a), (with_it, b) = found
    assert with_it["loss"] - without["loss"] == pytest.approx(math.log(3), abs=1e-5)
    for p, q in zip(a.net.parameters(), b.net.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-7)


def test_chains_move_their_latents_where_they_may():
    """--latent-steps: what goes back to the buffer is where the chain over the latents ended, within their ranges."""
    rng, place = np.random.default_rng(0), (Latent("place", -1.0, 3.0),)
    x = rng.integers(0, 256, (24, 8, 8, 1), dtype=np.uint8)
    y = rng.uniform(-1, 3, (24, 1)).astype(np.float32)
    kept = []
    for steps in (0, 3):
        state = states.start(replace(TINY, latent_steps=steps), Shape(1, 8, 8, (), place), RUNTIME, {})
        train_step(state, Loader(Images("places", x, y, (), place), 8), Guard(1e9))
        kept.append(state.buffer.y[: len(state.buffer)].clone())
    still, moved = kept
    assert all(any(torch.equal(row, torch.tensor(given)) for given in y) for row in still)
    assert not torch.equal(still, moved) and moved.min() >= -1 and moved.max() <= 3


def test_a_signal_that_is_passed_on_counts_once_and_a_later_one_ends(monkeypatch):
    """torchrun sends SIGTERM again to processes that a scheduler has told already."""
    import signal

    from igebm.training import run

    now = [100.0]
    monkeypatch.setattr(run.time, "monotonic", lambda: now[0])
    with run.interruptible() as stop:
        assert not stop()
        signal.raise_signal(signal.SIGTERM)
        now[0] += 0.5
        signal.raise_signal(signal.SIGTERM)
        assert stop()
        now[0] += 1.0
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_kernels_in_eight_bits_are_off_by_half_a_step_at_most(tmp_path):
    """W = s q: each output channel's largest entry is exact, the others are off by s / 2; gains are in bfloat16."""
    state, _ = fresh()
    path = tmp_path / "small.safetensors"
    model.save(path, state.net, state.preset, state.shape, 0, {}, weights=torch.int8)
    found = dict(model.load(path).net.named_parameters())
    for name, w in state.net.named_parameters():
        if w.dim() == 4:
            s = w.abs().amax((1, 2, 3), keepdim=True) / 127
            off = (found[name] - w).abs()
            assert (off <= 0.5001 * s).all() and off.flatten(1)[
                range(len(w)), w.abs().flatten(1).argmax(1)
            ].max() < 1e-6
        else:
            assert torch.equal(found[name], w.bfloat16().float())
    stored = safetensors.torch.load_file(path)
    assert all(stored[n].dtype == torch.int8 for n, w in state.net.named_parameters() if w.dim() == 4)


def test_scales_of_another_shape_are_refused(tmp_path):
    state, _ = fresh()
    path = tmp_path / "small.safetensors"
    model.save(path, state.net, state.preset, state.shape, 0, {}, weights=torch.int8)
    tensors = safetensors.torch.load_file(path)
    name = next(name for name in tensors if name.endswith(".int8_scale"))
    with safetensors.safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["igebm"])
    del about["about_sha256"]
    model.write(path, tensors | {name: torch.ones(3, 5)}, about)
    with pytest.raises(InputError, match="the scales of towers.0.*weight do not fit it"):
        model.load(path)
