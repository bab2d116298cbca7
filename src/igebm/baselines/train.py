"""Training a baseline by maximum likelihood: draw, update, average, report, checkpoint; then bits per dimension."""

import math
import os
import platform
import re
import shlex
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import __version__, data, model, terminal
from ..circumstances import cpu_name
from ..data import Images, Loader, MissingSplit
from ..data.fingerprint import fingerprint, same_data
from ..data.named import NAMES
from ..errors import Fault, InputError
from ..files import new_folder, whole, writable_folder, write_json
from ..presets import Trainer, flag
from ..runtime import Runtime
from ..shapes import Shape
from ..training import ema, optim
from ..training.loop import Metrics, Outcome, Stopped, Watcher, open_log, write_line
from ..training.run import absolute, alone, apart_from_pictures, interruptible, open_machine
from ..training.state import CHECKPOINT, MODEL, read_archive
from .glow import Glow, library
from .pixelcnn import PixelCNN
from .saved import Baseline, bits_per_dim, build, save, settled
from .settings import FIXED, Kind, Settings, from_dict, to_dict


@dataclass
class Run:
    """What a run carries from step to step."""

    kind: Kind
    settings: Settings
    shape: Shape
    net: Glow | PixelCNN
    averages: ema.Averages
    optimizer: torch.optim.Adam
    runtime: Runtime
    step: int = 0
    """training iterations done"""
    seen: int = 0
    """images used: where the stream of data goes on"""
    seconds: float = 0.0
    """spent in the loop, over all sessions"""
    facts: dict[str, Any] = field(default_factory=dict)
    """data, seed, versions, machine"""


# The loop


def train(run: Run, loader: Loader, folder: Path, watcher: Watcher) -> Outcome:
    """Train `run` on `loader`'s batches up to its number of steps; leaves metrics.jsonl and checkpoint.pt in `folder`.

    Saves and ends early when the watcher says stop, or the settings' minutes are over. Raises Fault where the loss is
    not finite.
    """
    s, reason, saved = run.settings, "done", run.step
    start, before = time.perf_counter(), run.seconds
    with open_log(folder, run.step) as log:
        while run.step < s.steps:
            if watcher.stop():
                reason = "interrupted"
                break

            # Draw, update, average
            metrics = train_step(run, loader)
            seconds = time.perf_counter() - start
            run.seconds = before + seconds

            # Report
            watcher.report(metrics)
            if run.step % s.log_every == 0:
                write_line(log, metrics | {"seconds": round(run.seconds, 2)})

            # Checkpoint
            if run.step % s.save_every == 0:
                saved = save_checkpoint(folder, run)
            if s.minutes and seconds > 60 * s.minutes:
                reason = "minutes"
                break
    if saved != run.step:
        save_checkpoint(folder, run)
    return Outcome(reason, run.step, time.perf_counter() - start)


def train_step(run: Run, loader: Loader) -> Metrics:
    """One step of Adam on the mean bits per dimension of a batch: `run` moves on by one step, or, where Fault is
    raised, keeps its weights."""
    s = run.settings

    # Draw
    x, _ = loader(run.seen, generator(run))

    # Update
    lr = optim.warmed_up(s.lr, run.step + 1, s.warmup)
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    run.net.train()
    loss = bits_per_dim(run.net.log_prob(x).mean(), run.shape)
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    gradient = torch.stack([p.grad.norm() for p in run.net.parameters() if p.grad is not None]).norm()
    metrics = {"bits_per_dim": loss.item(), "gradient": gradient.item(), "lr": lr}
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise Fault(
                f"diverged at step {run.step + 1}: {name} = {value}; lower --lr or raise --warmup (with --resume from "
                "the last checkpoint)"
            )
    run.optimizer.step()

    # Average
    ema.update(run.averages, run.net, s.ema, run.step)

    run.step, run.seen = run.step + 1, run.seen + len(x)
    return {"step": run.step, "seen": run.seen} | metrics


def generator(run: Run) -> torch.Generator:
    """The random numbers of the next iteration, of the seed and the step alone: a resumed run draws what an
    uninterrupted one draws. torch's global stream, which dropout draws from, is set as well."""
    key = np.random.SeedSequence([run.settings.seed, run.step]).generate_state(2, np.uint64) >> np.uint64(1)
    torch.manual_seed(int(key[0]))
    return torch.Generator(run.runtime.device).manual_seed(int(key[1]))


# A run and its folder


def new(
    kind: Kind,
    settings: Settings,
    machine: Trainer,
    out: Path | None = None,
    data_dir: Path | None = None,
    skip_bad: bool = False,
) -> tuple[Baseline, Outcome, Path]:
    """Train a new baseline into `out` (default: the next free runs/KIND-DATA). Raises InputError before any work is
    done."""
    if kind == "glow":
        library()
    if out is not None:
        holds_no_run(kind, out)
    apart_from_pictures(out or Path("runs"), settings.data)
    runtime = open_machine(machine, "baseline")
    images = open_split(settings, "train", data_dir, skip_bad)
    shape = shape_of(images)
    settings = settled(kind, replace(settings, data=absolute(settings.data)), shape)
    run = start(kind, settings, shape, runtime, about(settings, images) | ({"skip_bad": True} if skip_bad else {}))
    loader = open_loader(settings, images, runtime)
    name = settings.data if settings.data in NAMES else re.sub("[^0-9A-Za-z]+", "-", Path(settings.data).stem)
    folder = new_folder(Path("runs") / f"{kind}-{name}") if out is None else writable_folder(out)
    with alone(folder):
        holds_no_run(kind, folder)  # once more, now that nobody else can start one here
        first_batch(run, loader)
        write_json(folder / "preset.json", {"settings": to_dict(settings), "baseline": kind} | run.facts)
        save_checkpoint(folder, run)
        baseline, outcome = finish(run, loader, folder, data_dir, skip_bad)
    return baseline, outcome, folder


def resume(
    kind: Kind,
    folder: Path,
    ask: Callable[[Settings], Settings],
    machine: Trainer,
    data_dir: Path | None = None,
    skip_bad: bool = False,
) -> tuple[Baseline, Outcome, Path]:
    """Go on with the run in `folder`; `ask` gives the settings wanted now from those it had. What changed is said.

    Raises InputError where the change would need another network or data set.
    """
    if not folder.is_dir():
        raise InputError(f"no run folder {folder}; give the DIR of an earlier igebm baseline {kind}")
    if not (folder / CHECKPOINT).exists():  # before anything is written, for it may be a folder of photos
        raise no_run(folder)
    with alone(folder):
        saved = read_checkpoint(folder)
        if saved["baseline"] != kind:
            raise InputError(f"{folder} holds a run of {saved['baseline']}, not of {kind}")
        old = from_dict(saved["settings"])
        settings = ask(old)
        settings = replace(settings, data=absolute(settings.data))
        had, now = to_dict(old), to_dict(settings)
        changes = {name: (had[name], now[name]) for name in had if had[name] != now[name]}
        fixed = [f"{flag(name)} {a} -> {b}" for name, (a, b) in changes.items() if name in FIXED]
        if fixed:
            raise InputError(f"a resumed run cannot change {'; '.join(fixed)}; start a new one")
        runtime = open_machine(machine, "baseline", saved["runtime"])
        saved["facts"] |= {"skip_bad": True} if skip_bad else {}
        skip_bad = bool(saved["facts"].get("skip_bad", False))
        images = open_split(settings, "train", data_dir, skip_bad)
        run = start(kind, settings, Shape(*saved["shape"]), runtime, saved["facts"])
        if shape_of(images) != run.shape:
            raise InputError(
                f"{folder} was trained on images {run.shape.image}, the data now are {shape_of(images).image}; give "
                "it the data it had"
            )
        if not same_data(run.facts.get("data", {}), fingerprint(images)):
            terminal.say(f"the data are not those that {folder} began with ({run.facts.get('data')})")
        restore(run, saved, folder / CHECKPOINT)
        write_json(folder / "preset.json", {"settings": to_dict(settings), "baseline": kind} | run.facts)
        for name, (a, b) in changes.items():
            terminal.say(f"changed on resuming: {flag(name)} {a} -> {b}")
        if settings.steps <= run.step:
            terminal.say(f"{folder} is already at step {run.step}; ask for more with --steps N (the total)")
        else:
            terminal.say(f"going on with {folder} from step {run.step}")
        baseline, outcome = finish(run, open_loader(settings, images, runtime), folder, data_dir, skip_bad)
    return baseline, outcome, folder


def finish(run: Run, loader: Loader, folder: Path, data_dir: Path | None, skip_bad: bool) -> tuple[Baseline, Outcome]:
    """Run the loop with a bar and signals, measure the averaged weights on train and test, and save them."""
    with interruptible() as stop:
        with terminal.bar("training", first=run.step) as screen:
            shown = lambda m: screen.step(m["step"], run.settings.steps, f"{m['bits_per_dim']:.3f} bits/dim")
            outcome = train(run, loader, folder, Watcher(screen.say, shown, stop))
        net = ema.network(run.averages, run.net)
        assert isinstance(net, Glow | PixelCNN)
        facts = run.facts | {
            "seconds": round(run.seconds, 2),
            "bits_per_dim": {"train": None, "test": None},
            "measured": {"train": 0, "test": 0},
        }
        baseline = Baseline(net, run.kind, run.settings, run.shape, folder.name, run.step, facts, run.runtime.device)
        with suppress(Stopped):
            for split in ("train", "test"):
                facts["bits_per_dim"][split], facts["measured"][split] = measure(
                    baseline, split, data_dir, skip_bad, stop
                )
        save(folder / MODEL, baseline)
        return baseline, replace(outcome, reason="interrupted") if stop() else outcome


def measure(
    baseline: Baseline, split: str, data_dir: Path | None, skip_bad: bool, stop: Callable[[], bool]
) -> tuple[float | None, int]:
    """Mean bits per dimension of a split, or of a seeded choice of its images, and of how many; None, 0 where the data
    have no such split. Raises Stopped where the user says stop."""
    s = baseline.settings
    if stop():
        raise Stopped
    try:
        x = open_split(s, split, data_dir, skip_bad).x
    except MissingSplit as error:
        terminal.say(f"bits per dimension are not measured on {split}: {error}")
        return None, 0
    if len(x) > s.measured:
        x = x[np.sort(np.random.default_rng(s.seed).permutation(len(x))[: s.measured])]
    with terminal.bar(f"bits per dimension on {split}") as screen:

        def progress(done: int, total: int) -> None:
            screen.step(done, total)
            if stop():
                raise Stopped

        nats = baseline.log_likelihood(x, progress=progress)
    return float(bits_per_dim(nats, baseline.shape).mean()), len(x)


def start(kind: Kind, settings: Settings, shape: Shape, runtime: Runtime, facts: dict[str, Any]) -> Run:
    """A new run: weights from the seed."""
    torch.manual_seed(settings.seed)
    net = build(kind, settings, shape).to(runtime.device)
    optimizer = torch.optim.Adam(net.parameters(), lr=settings.lr, betas=(0.9, 0.999))
    return Run(kind, settings, shape, net, ema.start(net), optimizer, runtime, facts=facts)


@torch.no_grad()
def first_batch(run: Run, loader: Loader) -> None:
    """Glow's actnorms take their first scale and shift from the first batch; the averages begin there."""
    run.net.log_prob(loader(0, generator(run))[0])
    run.averages = ema.start(run.net)


def about(settings: Settings, images: Images) -> dict[str, Any]:
    """The origin of a run: what goes into its model's metadata beside the settings."""
    return {
        "data": fingerprint(images),
        "seed": settings.seed,
        "command": shlex.join(["igebm", *sys.argv[1:]]),
        "versions": {"igebm": __version__, "torch": str(torch.__version__), "python": platform.python_version()},
        "machine": {"system": platform.platform(), "cpu": cpu_name(), "cores": os.cpu_count()},
    }


def open_split(settings: Settings, split: str, data_dir: Path | None, skip_bad: bool) -> Images:
    """A split of the data in the size and channels asked for."""
    s = settings
    size, channels = s.image_size or None, s.channels or None
    return data.load(
        s.data, split, data_dir=data_dir, image_size=size, channels=channels, skip_bad=skip_bad, say=terminal.say
    )


def open_loader(settings: Settings, images: Images, runtime: Runtime) -> Loader:
    """Batches of the images; a baseline is of no class."""
    unlabelled = images._replace(y=None, classes=(), latents=())
    return Loader(
        unlabelled, settings.batch, seed=settings.seed, device=runtime.device, flip=settings.flip, say=terminal.say
    )


def shape_of(images: Images) -> Shape:
    _, h, w, c = images.x.shape
    return Shape(c, h, w)


def holds_no_run(kind: Kind, folder: Path) -> None:
    if (folder / CHECKPOINT).exists() or (folder / MODEL).exists():
        raise InputError(
            f"{folder} already holds a run; go on with it by igebm baseline {kind} --resume {folder}, or choose "
            "another --out"
        )


# Checkpoints


def save_checkpoint(folder: Path, run: Run) -> int:
    """Write DIR/checkpoint.pt, whole or not at all. Returns the step saved."""
    path = folder / CHECKPOINT
    everything = {
        "format": 1,
        "baseline": run.kind,
        "settings": to_dict(run.settings),
        "shape": list(run.shape.image),
        "net": {name: t.detach().cpu() for name, t in run.net.state_dict().items()},
        "averages": {name: t.cpu() for name, t in run.averages.items()},
        "optimizer": run.optimizer.state_dict(),
        "step": run.step,
        "seen": run.seen,
        "seconds": run.seconds,
        "runtime": run.runtime.kept,
        "facts": run.facts,
    }
    with whole(path) as temporary:
        try:
            torch.save(everything, temporary)
        except RuntimeError as error:  # torch's writer reports a full disk this way
            raise Fault(f"cannot write {path}: {str(error).splitlines()[0]}; is the disk full?") from error
    return run.step


def no_run(folder: Path) -> InputError:
    return InputError(f"{folder} holds no run of igebm baseline (no {CHECKPOINT}); give the folder of one")


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """The checkpoint of a run folder. No code in it is run. Raises InputError where there is none, or another kind."""
    path = folder / CHECKPOINT
    if not path.exists():
        raise no_run(folder)
    saved = read_archive(path)
    wanted = (
        "baseline",
        "settings",
        "shape",
        "net",
        "averages",
        "optimizer",
        "step",
        "seen",
        "seconds",
        "runtime",
        "facts",
    )
    missing = [key for key in wanted if key not in saved] if isinstance(saved, dict) else wanted
    if isinstance(saved, dict) and "averages" in saved and "baseline" not in saved:
        raise InputError(f"{path} is of igebm train; go on with: igebm train --resume {folder}")
    if missing:
        raise InputError(f"{path} is no checkpoint of a baseline: it lacks {', '.join(missing[:3])}")
    return saved


def restore(run: Run, saved: dict[str, Any], path: Path) -> None:
    """Put a checkpoint's weights, averages, optimiser and counters into `run`."""
    model.fill(run.net, saved["net"], path)
    ema.restore(run.averages, saved["averages"], path)
    optim.restore(run.optimizer, saved["optimizer"]["state"], path)
    run.step, run.seen, run.seconds = saved["step"], saved["seen"], saved["seconds"]
