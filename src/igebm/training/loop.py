"""The training loop: draw, sample, update, average, report, snapshot, checkpoint.  Du & Mordatch,
arXiv:1903.08689v1, Algorithm 1."""

import errno
import json
import math
import os
import re
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import diagnostics, inference, ranks, samplers
from ..buffer import Draw
from ..data import Loader
from ..data.latents import spread
from ..data.restarts import augmented
from ..data.series import Windows
from ..energy import over
from ..errors import Fault, InputError
from ..files import writable_folder, write_text
from ..forecast import Forecaster, chain_start
from ..model import Model, build_kernel
from ..nets.bound import attached, frozen
from ..nets.fold import Twin
from ..nets.trajectory import TrajectoryPredictor
from ..objectives import OBJECTIVES, kl, posterior, regulariser
from ..report.plots import sample_picture, write_png
from ..runtime import Runtime
from ..samplers.chain import Info, segment_length
from ..shapes import Shape
from . import board, distributed, ema, guard, optim
from .guard import Divergence, Guard
from .state import (
    MODEL,
    PREVIOUS,
    Drawn,
    TrainState,
    averaged_model,
    generators,
    model_step,
    promote_previous,
    read_checkpoint,
    restore,
    save_checkpoint,
    save_model,
)

Metrics = dict[str, int | float]

ROLLBACKS = 3
"""how often a run goes back before it gives up"""


def never() -> bool:
    return False


class Stopped(Exception):
    """The user's interrupt, seen between two chain steps: the state is that of the iteration's start."""


class Watcher(NamedTuple):
    """How a run talks to whoever watches: a line, the numbers of a step, and the question whether to stop."""

    say: Callable[[str], None] = lambda line: None
    report: Callable[[dict[str, Any]], None] = lambda metrics: None
    stop: Callable[[], bool] = never


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `done` (all steps), `minutes` (its time was up), `interrupted`, or `unpictured` (interrupted
    when only its last picture was missing); after `step` iterations."""

    reason: str
    step: int
    seconds: float


def train(state: TrainState, loader: Loader | Windows, folder: Path, runtime: Runtime, watcher: Watcher) -> Outcome:
    """Train `state` on `loader`'s batches up to its preset's number of steps; all that it leaves lies in `folder`.

    Saves and ends early when the watcher says stop, or the preset's minutes are over. Raises Fault where training
    diverges and may not (or no longer) go back.
    """
    p, guarding = state.preset, Guard(state.preset.gap_limit, state.outside)
    for name in ("samples", "snapshots"):
        writable_folder(folder / name)
    # Several processes stop between iterations, all at the same one; the first alone writes.
    alone, first = ranks.size() == 1, ranks.rank() == 0
    log = open_log(folder if first else None, state.step)
    tensorboard = board.opened(folder if first else None, state.step, watcher.say)
    start, reason, saved = time.perf_counter(), "done", state.step if model_step(folder) == state.step else -1
    worth_keeping = not state.outside  # what lies in the folder; a run may have been ended while it went wrong
    with log, ExitStack() as at_the_end:
        at_the_end.callback(lambda: tensorboard and tensorboard.close())
        while state.step < p.steps:
            # Draw, sample, update, average
            try:
                metrics = train_step(state, loader, guarding, watcher.stop if alone else never)
                state.outside = guarding.outside
                if state.step == p.steps or any(state.step % n == 0 for n in (p.save_every, p.snapshot_every)):
                    check_weights(state)
            except Stopped:
                reason = "interrupted"
                break
            except Divergence as fault:
                roll_back(state, fault, folder, log, watcher)
                guarding, saved, worth_keeping = Guard(p.gap_limit), -1, True
                continue
            raise_chain_steps(state, metrics, watcher)
            seconds = time.perf_counter() - start

            # Report
            watcher.report(metrics | {"seconds": seconds})
            pictured = state.step % p.grid_every == 0
            picture = buffer_grid(state) if pictured and first else None
            if state.step % p.log_every == 0:
                write_line(log, metrics | {"seconds": round(seconds, 2)})
            if picture is not None:
                write_png(folder / "samples" / f"{state.step:07d}.png", picture)
            if state.step % p.log_every == 0 or pictured:
                energies = state.energies if pictured else None
                tensorboard = board.report(tensorboard, metrics, energies, picture, watcher.say)

            # Snapshot
            if state.step % p.snapshot_every == 0:
                save_model(folder / "snapshots" / f"{state.step:07d}.safetensors", state)

            # Checkpoint: only what is worth going back to
            if state.step % p.save_every == 0 and guarding.healthy:
                saved, worth_keeping = save_all(folder, state, runtime, log, worth_keeping), True
            if not alone and state.step < p.steps and ranks.agree(watcher.stop()):
                reason = "interrupted"
                break
            if p.minutes and ranks.agree(seconds > 60 * p.minutes):
                reason = "minutes"
                break
        if saved != state.step:
            try:
                check_weights(state)
            except Divergence as fault:
                roll_back(state, fault, folder, log, watcher)
                worth_keeping = True
            save_all(folder, state, runtime, log, worth_keeping)
    return Outcome(reason, state.step, time.perf_counter() - start)


def train_step(
    state: TrainState, loader: Loader | Windows, guarding: Guard, stop: Callable[[], bool] = never
) -> Metrics:
    """One iteration of Algorithm 1: `state` moves on by one step. Where Stopped is raised it is as before; where
    Divergence is, a checkpoint is to be restored (numbers that are not finite leave the weights where they are)."""
    p, net = state.preset, state.net
    if stop():
        raise Stopped

    # Draw: data, and chains from the buffer
    drawn, state.drawn = state.drawn, None
    if drawn is None or drawn.step != state.step:
        drawn = draw(state, loader, state.step, state.seen)
    _, x_pos, y_pos, chains, generator, dropout_seed = drawn
    torch.manual_seed(dropout_seed)
    if isinstance(net, TrajectoryPredictor):
        return regression_step(state, net, x_pos, y_pos, guarding)
    assert chains is not None

    # Sample, and gradients: all at once, or in parts that memory has room for
    for group in state.optimizer.param_groups:
        group["lr"] = optim.warmed_up(p.lr, state.step + 1, p.warmup)
    state.optimizer.zero_grad(set_to_none=True)
    size = -(-len(x_pos) // p.accumulate)
    rows = [slice(k, k + size) for k in range(0, len(x_pos), size)]
    of = lambda y, i: None if y is None else y[i]
    starts = [(x_pos[i], of(y_pos, i), chains.x[i], of(chains.y, i)) for i in rows]
    parts = [part_step(state, *start, len(x_pos), generator, stop) for start in starts]
    x_neg, e_pos, e_neg = (torch.cat([getattr(part, name) for part in parts]) for name in ("x_neg", "e_pos", "e_neg"))
    y_neg = None if chains.y is None else torch.cat([part.y_neg for part in parts if part.y_neg is not None])
    loss = torch.stack([part.loss for part in parts]).sum()
    g = torch.cat([part.g for part in parts if part.g is not None]) if parts[0].g is not None else None  # MPPI: none

    # Update
    distributed.average_gradients(net)
    numbers = measure(state, e_pos, e_neg, loss, x_neg, g)
    numbers["clipped_weights"] = optim.clip_to_sigmas(state.optimizer, p.sigma_clip, taken=state.step)
    optim.step(state.optimizer, torch.stack([v.float() for v in numbers.values()]).isfinite().all())
    state.iterate()

    # Average
    ema.update(state.averages, net, p.ema, state.step)

    # What stands before `told` is asked of a GPU while it is still at the chains: the next iteration's draw with it
    state.buffer.write(chains.slots, x_neg, y_neg, generator)
    if state.step + 1 < p.steps:
        state.drawn = draw(state, loader, state.step + 1, state.seen + len(x_pos) * ranks.size())
    metrics = told(numbers)
    guarding.check(state.step + 1, metrics)
    state.energies = e_pos, e_neg
    state.slow_gap += 0.01 * (metrics["gap"] - state.slow_gap)
    settings = {"chain_steps": state.chain_steps, "lr": state.optimizer.param_groups[0]["lr"]}
    return counted(state, len(x_pos)) | metrics | settings


class Part(NamedTuple):
    """What is left of a part of a batch once its gradients are added up: nothing that holds a graph."""

    x_neg: Tensor
    y_neg: Tensor | None
    e_pos: Tensor
    e_neg: Tensor
    loss: Tensor
    g: Tensor | None


def part_step(
    state: TrainState,
    x_pos: Tensor,
    y_pos: Tensor | None,
    x: Tensor,
    y: Tensor | None,
    batch: int,
    generator: torch.Generator,
    stop: Callable[[], bool],
) -> Part:
    """Sample from x, and add up the gradients of so many data and chains, all of the batch or a part of it (the softmax
    of eq. 8 is then over each part): the loss of a part counts as its share of the batch."""
    p, net = state.preset, state.net
    x_neg, x_attached, info = sample(state, x, y, generator, stop)
    if p.latent_steps and y is not None:
        y = sample_latents(state, x_neg, y, generator)
    x_all, y_all = torch.cat([x_pos, x_neg]), None if y_pos is None or y is None else torch.cat([y_pos, y])
    again = 0, 0
    if p.label_weight and y_pos is not None and y is not None and isinstance(state.shape, Shape):
        y_else = inference.others(y_pos, state.shape, p.label_candidates, generator)  # (m, b, ...)
        y_all, again = torch.cat([y_pos, y, *y_else]), (len(x_pos), len(y_else))
    e_pos, e_neg, e_else = state.updated(y_all, again)(x_all).tensor_split([len(x_pos), len(x_pos) + len(x_neg)])
    loss = OBJECTIVES[p.objective](e_pos, e_neg) + regulariser(e_pos, e_neg, p.alpha)
    if len(e_else) and y_pos is not None:
        known = torch.ones_like(e_pos) if y_pos.is_floating_point() else (y_pos >= 0).to(e_pos.dtype)
        e = torch.cat([e_pos[None], e_else.reshape(-1, len(x_pos))]) * known  # a label that is missing says nothing
        loss = loss + p.label_weight * posterior(e.T / p.label_temperature)
    if x_attached is not None:
        loss = loss + p.kl_weight * kl(frozen(net, y)(x_attached))
    loss = loss * (len(x_pos) / batch)
    loss.backward()
    g = None if info.g is None else info.g.detach()
    return Part(x_neg, y, e_pos.detach(), e_neg.detach(), loss.detach(), g)


def counted(state: TrainState, images: int) -> Metrics:
    """One more iteration, on so many data in each process."""
    images *= ranks.size()
    state.step, state.seen = state.step + 1, state.seen + images
    return {"step": state.step, "seen": state.seen}


def regression_step(
    state: TrainState, net: TrajectoryPredictor, x: Tensor, y: Tensor | None, guarding: Guard
) -> Metrics:
    """One iteration of the plain predictor: ⟨‖x̂(y) - x‖²⟩ per feature, by the same optimiser and average."""
    state.optimizer.param_groups[0]["lr"] = optim.warmed_up(state.preset.lr, state.step + 1, state.preset.warmup)
    assert y is not None
    state.optimizer.zero_grad(set_to_none=True)
    losses = []
    for part, past in zip(x.chunk(state.preset.accumulate), y.chunk(state.preset.accumulate), strict=True):
        loss = F.mse_loss(net(past), part) * (len(part) / len(x))
        loss.backward()
        losses.append(loss.detach())
    distributed.average_gradients(net)
    numbers = {"loss": torch.stack(losses).sum(), "gradient": gradient_norm(net)}
    numbers["clipped_weights"] = optim.clip_to_sigmas(state.optimizer, state.preset.sigma_clip, taken=state.step)
    metrics = told(numbers)
    guarding.check(state.step + 1, metrics)
    state.optimizer.step()
    ema.update(state.averages, net, state.preset.ema, state.step)
    return counted(state, len(x)) | metrics | {"lr": state.optimizer.param_groups[0]["lr"]}


def gradient_norm(net: nn.Module) -> Tensor:
    return nn.utils.get_total_norm([q.grad for q in net.parameters() if q.grad is not None])


def draw(state: TrainState, loader: Loader | Windows, step: int, seen: int) -> Drawn:
    """What the iteration after `step` starts from, after so many data `seen`: it depends on these, the seed and the
    buffer alone."""
    host, device, dropout = generators(state, step)
    x, y = loader(seen, device)
    if isinstance(state.net, TrajectoryPredictor):
        return Drawn(step, x, y, None, device, dropout)
    y = y if state.net.condition else None
    return Drawn(step, x, y, draw_chains(state, x, y, host, device), device, dropout)


def draw_chains(
    state: TrainState, x_pos: Tensor, y_pos: Tensor | None, host: torch.Generator, device: torch.Generator
) -> Draw:
    """As many chain starts as there are data: from the buffer, or fresh from U(0, 1) under the data's labels."""
    p = state.preset
    if p.network == "trajectory":
        assert y_pos is not None
        noise = chain_start(p, y_pos, device)
    else:
        noise = torch.rand(x_pos.shape, generator=device, device=x_pos.device)
    restart = p.restart if len(state.buffer) == state.buffer.capacity else max(p.restart, p.buffer_fill)
    chains = state.buffer.draw(noise, y_pos, restart, host, device)
    if p.buffer_augment:
        fresh = over(chains.fresh, chains.x)
        chains = chains._replace(x=torch.where(fresh, chains.x, augmented(chains.x, device)))
    return chains._replace(y=y_pos) if p.buffer_labels == "batch" else chains


def sample(
    state: TrainState, x: Tensor, y: Tensor | None, generator: torch.Generator, stop: Callable[[], bool]
) -> tuple[Tensor, Tensor | None, Info]:
    """x̃ after K steps on the folded twin, detached; the same attached to the weights where L_KL asks for it; the
    last Info."""
    p, kernel = state.preset, build_kernel(state.preset)
    through = {"none": 0, "last": 1, "all": state.chain_steps}[p.kl]

    def look_up(*_: Any) -> None:
        if stop():
            raise Stopped

    state.twin.refresh()
    end, info = samplers.run(kernel, state.twin.given(y), x, state.chain_steps - through, generator, look_up)
    if not through:
        return end.x, None, info
    end, info = samplers.run(
        kernel,
        attached(state.net, y),
        end.x,
        through,
        generator,
        look_up,
        differentiate="all",
        recompute=segment_length(through) if p.network == "image" else 1,  # a trajectory's steps are small: keep them
    )
    return end.x.detach(), end.x, info


def sample_latents(state: TrainState, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """The latents that samples move on to at their images (an option: latent sampling in the proposal)."""
    assert isinstance(state.twin, Twin) and isinstance(state.shape, Shape)
    p, each = state.preset, inference.steps_of(state.preset)
    return inference.chain(state.twin.over(x), y, state.shape.latents, p.latent_steps, each, generator).detach()


def measure(
    state: TrainState, e_pos: Tensor, e_neg: Tensor, loss: Tensor, x_neg: Tensor, g: Tensor | None
) -> dict[str, Tensor]:
    """The numbers of an iteration that the guard, the log and the bar show, on the device."""
    numbers = {
        "e_pos": e_pos.mean(),
        "e_neg": e_neg.mean(),
        "gap": diagnostics.energy_gap(e_pos, e_neg),
        "loss": loss,
        "gradient": gradient_norm(state.net),
    }
    if g is not None:
        numbers["chain_gradient"] = diagnostics.gradient_norm(g)
        numbers["clipped_chain"] = diagnostics.clipped_share(g, state.preset.clip)
    if state.preset.network == "image":
        numbers["saturated"] = diagnostics.saturated_share(x_neg)
    return numbers


def told(numbers: dict[str, Tensor]) -> Metrics:
    """`numbers`, averaged over the processes, by one transfer from the device."""
    stacked = torch.stack([v.detach().float() for v in numbers.values()])
    ranks.mean_([stacked])
    return dict(zip(numbers, stacked.tolist(), strict=True))


def raise_chain_steps(state: TrainState, metrics: Metrics, watcher: Watcher) -> None:
    """Every 100 iterations: more chain steps while samples stay far above the data (an option; paper, section 8.7)."""
    p = state.preset
    if p.max_chain_steps and state.step % 100 == 0 and "gap" in metrics:
        raised = guard.raised_steps(state.chain_steps, p.max_chain_steps, state.slow_gap, p.raise_gap)
        if raised != state.chain_steps:
            watcher.say(
                f"step {state.step}: E(x-) is {state.slow_gap:.2f} above E(x+), so chains take {raised} steps from here"
            )
            state.chain_steps = raised


def roll_back(state: TrainState, fault: Divergence, folder: Path, log, watcher: Watcher) -> None:
    """Go back to the last good checkpoint (from the second time on to the one before it) with new random numbers.

    Raises `fault` where the preset says stop, where there is no checkpoint, or where this has happened ROLLBACKS times.
    """
    stop, rollbacks = state.preset.on_divergence == "stop" or state.rollbacks >= ROLLBACKS, state.rollbacks + 1
    try:
        saved = last_good(folder, watcher.say, before=rollbacks > 1 and not stop)
    except InputError as none:
        raise Fault(f"{fault}; there is no checkpoint yet to go back to") from none
    if stop:
        times = f" (after {state.rollbacks} rollbacks)" if state.rollbacks else ""
        raise Fault(f"{fault}{times}; the last good checkpoint is in {folder}") from fault
    restore(state, saved, folder)
    state.rollbacks = rollbacks
    if ranks.rank() == 0:
        leave_out(folder, state.step, state.preset.steps)
    watcher.say(
        f"{fault}. Going back to step {state.step} with new random numbers (rollback {rollbacks} of {ROLLBACKS})"
    )
    write_line(log, {"event": "rollback", "diverged_at": fault.step, "cause": fault.cause, "back_to": state.step})


def last_good(folder: Path, say: Callable[[str], None], before: bool) -> dict[str, Any]:
    """The last checkpoint that is worth going back to, or the one `before` it, now the current one. Raises InputError
    where there is none."""
    saved = read_checkpoint(folder, say, "previous" if before else "latest")
    if saved["counters"].get("outside"):
        saved = read_checkpoint(folder, say, "previous")
    ranks.wait()  # all have read before one of them moves files
    if saved["file"] == PREVIOUS and ranks.rank() == 0:
        promote_previous(folder)
    return saved


def leave_out(folder: Path, beyond: int, last: int) -> None:
    """Remove what an undone part of a run of `last` steps left: its snapshots would be taken for the run's, its
    pictures for the run's course. Others may lie beside them."""
    for left in (*(folder / "snapshots").glob("*.safetensors"), *(folder / "samples").glob("*.png")):
        step = re.fullmatch(r"(?:noise-|rollouts-)?(\d{7,})", left.stem)
        if step and beyond < int(step[1]) <= last:
            left.unlink(missing_ok=True)


def check_weights(state: TrainState) -> None:
    guard.check_weights(state.step, [*state.net.state_dict().values(), *state.averages.values()])


# What a run leaves in its folder


def open_log(folder: Path | None, step: int):
    """metrics.jsonl, opened to go on after `step`: lines of a run that went further than its last checkpoint are
    dropped. Without a folder (a process that is not the first) what is written goes nowhere."""
    if folder is None:
        return open(os.devnull, "ab", buffering=0)
    path = folder / "metrics.jsonl"
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        write_text(path, "".join(line + "\n" for line in lines if _reached(line) <= step))
        return open(path, "ab", buffering=0)  # each line goes out at once, or fails by itself and not again on closing
    except OSError as error:
        raise Fault(f"cannot write {path}: {error.strerror}") from error


def _reached(line: str) -> int | float:
    """The step that a line of the log tells of; beyond all for what is no such line (one that a kill cut short)."""
    try:
        entry = json.loads(line)
        step = entry.get("step", entry.get("back_to", -1) + 1)  # a rollback belongs to what comes after it
    except (ValueError, AttributeError, TypeError, RecursionError):
        return math.inf
    return step if isinstance(step, int | float) else math.inf


def write_line(log, entry: dict[str, Any]) -> None:
    values = {k: float(f"{v:.6g}") if isinstance(v, float) and math.isfinite(v) else v for k, v in entry.items()}
    line = (json.dumps(values) + "\n").encode()
    try:
        if log.write(line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise Fault(f"cannot write {log.name}: {error.strerror}; free some space, then go on with --resume") from error


def save_all(folder: Path, state: TrainState, runtime: Runtime, log, worth_keeping: bool) -> int:
    """Checkpoint and model; the log reaches the disk before the checkpoint that counts on it. `worth_keeping`: the
    checkpoint that is there is one to go back to. Returns the step saved."""
    if ranks.rank() == 0:
        os.fsync(log.fileno())
    save_checkpoint(folder, state, runtime, worth_keeping)
    save_model(folder / MODEL, state)
    return state.step


def buffer_grid(state: TrainState) -> np.ndarray | None:
    """Up to 100 chains as they wait in the buffer, by class with its name; None where there is no buffer."""
    if not len(state.buffer):
        return None
    x, y = state.buffer.read(100, torch.Generator().manual_seed(0))
    images = (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return sample_picture(images, None if y is None else y.cpu().numpy(), getattr(state.shape, "classes", ()))


def write_final_grid(path: Path, state: TrainState, runtime: Runtime, progress: Callable[[int, int], None]) -> None:
    """Samples from noise by the averaged weights: ten a class, one row a class; a hundred without classes, over the
    range of their latents where there are such."""
    model = averaged_model(state, runtime)
    assert isinstance(model, Model) and isinstance(state.shape, Shape)
    rows = min(10, len(state.shape.classes)) if state.shape.classes else 10
    labels = torch.arange(10 * rows).div(10, rounding_mode="floor").numpy()
    if state.shape.latents:
        labels = spread(state.shape.latents, rows, 10)
    images, _ = model.sample(10 * rows, labels=labels if model.conditional else None, progress=progress)
    write_png(path, sample_picture(images, labels if state.shape.classes else None, state.shape.classes))


def write_rollouts(
    folder: Path, state: TrainState, windows: Windows, runtime: Runtime, progress: Callable[[int, int], None]
) -> None:
    """Four training series and what the averaged weights make of their beginnings, feature by feature, 50 states."""
    from ..report import figures

    forecaster = averaged_model(state, runtime)
    assert isinstance(forecaster, Forecaster)
    past, shape = windows.past, forecaster.shape
    truth = (windows.x[:4, : past + 50].cpu().numpy() * np.array(shape.std) + np.array(shape.mean)).astype(np.float32)
    found = forecaster.rollout(truth[:, :past], truth.shape[1] - past, progress=progress)
    shown = min(4, len(shape.features))
    figure, axes = figures.axes(len(truth), shown, (2.6, 1.6))
    for i in range(len(truth)):
        for j in range(shown):
            ax = axes[j, i]
            ax.plot(truth[i, :, j], label="true")
            ax.plot(range(past, truth.shape[1]), found[i, :, j], "--", label="predicted")
            ax.set(ylabel=shape.features[j] if i == 0 else "", xlabel="state" if j == shown - 1 else "")
    axes[0, 0].legend()
    figures.save(figure, folder, f"rollouts-{state.step:07d}", kinds=("png",))
