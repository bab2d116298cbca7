"""A run and its folder: start one, go on with one, one process at a time."""

import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from .. import __version__, data, forecast, model, presets, ranks, terminal
from ..circumstances import commit, cpu_name
from ..data import Images, Loader
from ..data.fingerprint import fingerprint, same_data
from ..data.folder import first_picture
from ..data.images import existing
from ..data.named import NAMES
from ..data.series import Series, Windows, matched, statistics
from ..data.sources import load_series
from ..errors import InputError
from ..files import located, new_folder, what_is, writable_folder, write_json
from ..forecast import Forecaster
from ..limits import affordable
from ..presets import Preset, Trainer
from ..report.found import read_json
from ..runtime import Runtime, probe
from ..shapes import SeriesShape, Shape, described, from_dict
from . import state as states
from .cost import least_memory
from .loop import Outcome, Stopped, Watcher, train, write_final_grid, write_rollouts
from .state import TrainState

Say = Callable[[str], None]


class Opened(NamedTuple):
    """What a new run is made of."""

    preset: Preset
    """as the data have settled it"""
    images: Images | Series
    shape: Shape | SeriesShape
    runtime: Runtime
    source: model.Model | Forecaster | None
    """what the weights come from, where not from the seed"""
    facts: dict[str, Any]


def open_all(
    name: str,
    preset: Preset,
    machine: Trainer,
    out: Path | None = None,
    init_from: str | None = None,
    data_dir: Path | None = None,
    skip_bad: bool = False,
) -> Opened:
    """Everything that a new run reads. Raises InputError for what is not there or cannot be."""
    presets.checked(preset)
    if out is not None:
        holds_no_run(out)
    apart_from_pictures(out or Path("runs"), preset.data)
    runtime = open_machine(machine, preset.network)
    series = preset.network == "trajectory"
    source = (forecast.load(init_from) if series else model.load(init_from)) if init_from else None
    images = open_data(preset, data_dir, skip_bad)
    preset = settled(name, preset, images)
    facts = {"preset": name, "seed": preset.seed, "data": fingerprint(images)}
    facts |= {"skip_bad": True} if skip_bad else {}
    return Opened(preset, images, shape_of(preset, images), runtime, source, facts)


def begin(opened: Opened) -> tuple[TrainState, Loader | Windows]:
    """The run's start, and its data. Raises InputError for what does not fit the memory, and for a network, crops or
    weights that do not fit."""
    preset, images, shape, runtime, source, facts = opened
    fits_memory(preset, shape, runtime)
    loader = open_loader(preset, images, shape, runtime)
    state = states.start(preset, shape, runtime, facts)
    if source is not None:
        states.init_from(state, source)
    return state, loader


def new(opened: Opened, out: Path | None = None) -> tuple[Outcome, Path]:
    """Train a new model into `out` (default: the next free runs/NAME). Raises InputError before any work is done."""
    state, loader = begin(opened)  # refused before the folder is made
    runtime, folder = opened.runtime, open_folder(opened.facts["preset"], out)
    with alone(folder):
        if ranks.rank() == 0:
            holds_no_run(folder)  # once more, now that nobody else can start one here
        write_preset(folder, state, runtime)
        states.save_checkpoint(folder, state, runtime)  # something to go back to from the first step on
        return finish(state, loader, folder, runtime), folder


def resume(
    folder: Path,
    ask: Callable[[Preset], Preset],
    machine: Trainer,
    data_dir: Path | None = None,
    skip_bad: bool = False,
) -> tuple[Outcome, Path]:
    """Go on with the run in `folder`; `ask` gives the settings wanted now from those it had. What changed is said.

    Raises InputError where the change would need another network, buffer or data set.
    """
    if what_is(folder) != "folder":
        raise InputError(f"no run folder {folder}; give the DIR of an earlier igebm train")
    if not states.has_checkpoint(folder):  # before anything is written, for it may be a folder of photos
        raise states.no_run(folder)
    writable_folder(folder, "a run goes on in the folder it has, so make it writable or copy it")
    with alone(folder):
        saved = states.read_checkpoint(folder, terminal.say)
        old, step = presets.from_dict(saved["settings"]), saved["counters"]["step"]
        preset = presets.checked(ask(old))
        preset = replace(preset, data=absolute(preset.data))
        changes = presets.beside(old, preset)
        fixed = [f"{presets.flag(k)} {a} -> {b}" for k, (a, b) in changes.items() if k in FIXED]
        if fixed:
            fits = not changes.keys() & {*states.NETWORK, "image_size", "channels"}
            weights = f" (--init-from {terminal.quoted(folder)} takes its weights)" if fits else ""
            raise InputError(f"a resumed run cannot change {'; '.join(fixed)}; start a new one{weights}")
        if preset.steps <= step and states.model_step(folder) == step:
            others = ", ".join(presets.flag(name) for name in changes if name != "steps")
            left = f" ({others}: not looked at)" if others else ""
            terminal.say(f"{folder} is already at step {step}; ask for more with --steps N (the total){left}")
            return Outcome("done", step, 0.0), folder
        runtime = open_machine(machine, preset.network, saved["runtime"])
        saved["facts"] |= {"skip_bad": True} if skip_bad else {}
        images = open_data(preset, data_dir, saved["facts"].get("skip_bad", False))
        shape = from_dict(saved, folder)
        if isinstance(images, Series) and isinstance(shape, SeriesShape):
            images = matched(images, shape.features, str(folder), terminal.say)
        fits_memory(preset, shape, runtime)
        state = states.start(preset, shape, runtime, saved["facts"])
        check_data(state, images, folder, step)
        check_asked(preset, images)
        loader = open_loader(preset, images, shape, runtime)
        states.restore(state, saved, folder / saved["file"])
        ranks.wait()  # all have read before one of them moves files
        if saved["file"] == states.PREVIOUS and ranks.rank() == 0:
            states.promote_previous(folder)
        for name, (a, b) in changes.items():
            terminal.say(f"changed on resuming: {presets.flag(name)} {a} -> {b}")
        say_idle(preset, changes)
        lost = preset.steps <= step  # a kill came between the last checkpoint and its model
        terminal.say(f"writing the model of {folder}" if lost else f"going on with {folder} from step {step}")
        write_preset(folder, state, runtime)
        if changes:  # what was asked for holds from here on, whatever comes before the next save
            states.save_checkpoint(folder, state, runtime, worth_keeping=False)
        return finish(state, loader, folder, runtime), folder


FIXED = {
    *states.NETWORK, "image_size", "channels", "init", "buffer_size", "buffer_policy", "buffer_rounding", "seed",
}  # fmt: skip
"""settings that a checkpoint's weights, buffer or data stream are made of"""


def finish(state: TrainState, loader: Loader | Windows, folder: Path, runtime: Runtime) -> Outcome:
    """Run the loop with a bar and signals, then draw samples from noise, or rollouts of time series."""
    steps = state.preset.steps
    with interruptible() as stop:
        with terminal.bar("training", first=state.step) as screen:
            report = lambda m: screen.step(m["step"], steps, shown(m))
            outcome = train(state, loader, folder, runtime, Watcher(screen.say, report, stop))
        if outcome.reason != "interrupted" and state.step > 0 and ranks.rank() == 0:
            with terminal.bar("rollouts" if isinstance(loader, Windows) else "chains from noise") as screen:

                def progress(done: int, total: int) -> None:
                    screen.step(done, total)
                    if stop():
                        raise Stopped

                try:
                    if isinstance(loader, Windows):
                        write_rollouts(folder / "samples", state, loader, runtime, progress)
                    else:
                        write_final_grid(folder / "samples" / f"noise-{state.step:07d}.png", state, runtime, progress)
                except Stopped:
                    return replace(outcome, reason="unpictured" if outcome.reason == "done" else "interrupted")
    return outcome


def shown(m: dict[str, Any]) -> str:
    if "e_pos" not in m:
        return f"squared error {m['loss']:.4g}"
    # The gap first: a narrow terminal cuts what comes last.
    return f"gap {m['gap']:+.3f}  E(x+) {m['e_pos']:+.3f}  E(x-) {m['e_neg']:+.3f}"


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """SIGINT and SIGTERM ask the loop to save and end; one more, a second or later, ends at once. (One that comes
    sooner is the same once more: torchrun passes on what a terminal or a scheduler has sent to all processes.)"""
    asked = []

    def handler(number: int, frame: Any) -> None:
        if asked and time.monotonic() - asked[0] > 1:
            raise KeyboardInterrupt
        if asked:
            return
        asked.append(time.monotonic())
        terminal.say("interrupted: saving; once more to end at once")

    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def in_use(folder: Path) -> bool:
    """Whether a process trains in this run folder, as far as its lock tells; True where there are no locks."""
    try:
        import fcntl

        with open(folder / ".lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except (ImportError, OSError):
        return True
    return False


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One process a run folder (of several at one job, the first). The lock goes with the process, however it ends;
    what a killed one left half-written goes."""
    if ranks.rank() > 0:
        yield
        return
    try:
        lock = open(folder / ".lock", "a")
    except OSError as error:
        raise InputError(f"cannot lock {folder}: {error.strerror}; make it writable or copy it") from error
    with lock:
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another process is training in {folder}; wait for it, or choose another --out") from None
        except (ImportError, OSError):  # some network file systems have none
            terminal.say("there are no file locks here: take care that no other process trains in the same folder")
        for kept in (folder, folder / "samples", folder / "snapshots"):  # no deeper: the folder may be a user's own
            for stale in kept.glob(".*.part"):
                stale.unlink(missing_ok=True)
        yield


def open_machine(
    machine: Trainer, network: Literal["image", "trajectory", "baseline"], before: dict[str, Any] | None = None
) -> Runtime:
    """The machine that is asked for, said in a line. A trajectory's network, being small and told apart by small steps,
    has one way to run. Raises InputError where another is asked for."""
    if network == "trajectory":
        only = {"dtype": "float32", "update_dtype": "float32", "compile": "off"}
        for name, way in only.items():
            if getattr(machine, name) not in ("auto", way):
                asked = f"{presets.flag(name)} {getattr(machine, name)}"
                raise InputError(f"{asked}: networks of time series run in float32, eagerly; leave it out")
        machine = replace(machine, **only)
    runtime = probe(machine.device, machine.dtype, machine.compile, machine.threads, before, machine.update_dtype)
    if network != "image":
        where, *_, threads = runtime.reason.split("; ")
        kind = "a time series' network is small" if network == "trajectory" else "so baselines are trained"
        runtime = replace(runtime, reason=f"{where}; float32 and eager ({kind}); {threads}")
    terminal.say(f"machine: {runtime.reason}")
    return runtime


def open_data(preset: Preset, data_dir: Path | None, skip_bad: bool) -> Images | Series:
    if preset.network == "trajectory":
        return load_series(preset.data, "train", preset.past + 1, terminal.say)
    return data.load(
        preset.data,
        "train",
        data_dir=data_dir,
        image_size=preset.image_size or None,
        channels=preset.channels or None,
        skip_bad=skip_bad,
        say=terminal.say,
    )


def open_loader(
    preset: Preset, found: Images | Series, shape: Shape | SeriesShape, runtime: Runtime
) -> Loader | Windows:
    if isinstance(found, Series):
        assert isinstance(shape, SeriesShape)
        return Windows(
            found, preset.past, preset.batch, shape.mean, shape.std, seed=preset.seed, device=runtime.device,
            rank=ranks.rank(), world=ranks.size(),
        )  # fmt: skip
    return Loader(
        found,
        preset.batch,
        seed=preset.seed,
        device=runtime.device,
        rank=ranks.rank(),
        world=ranks.size(),
        flip=preset.flip,
        crop=preset.crop,
        say=terminal.say,
    )


def settled(name: str, preset: Preset, found: Images | Series) -> Preset:
    """The settings, begun from the preset `name`, with what the data decide: a path made absolute, no condition where
    there are no labels, and no posterior of them where there is one at most."""
    if isinstance(found, Images) and preset.conditional and not (found.classes or found.latents):
        terminal.say(f"{found.name} has no labels, so the model is unconditional")
        preset = replace(preset, conditional=False)
    weight = preset.label_weight
    if weight and weight == presets.named(name).label_weight and not told_apart(preset, found):
        terminal.say(f"no labels to tell apart, so the preset's --label-weight {weight:g} is left out")
        preset = replace(preset, label_weight=0.0)
    check_asked(preset, found)
    if name in presets.PRESETS:  # else settings of one's own, all of them asked for
        say_idle(preset, presets.beside(presets.named(name), preset))
    return replace(preset, data=absolute(preset.data))


def say_idle(preset: Preset, asked: Iterable[str]) -> None:
    """Say which of the settings `asked` for change nothing."""
    idle = presets.idle(preset)
    for name in asked:
        if name in idle:
            terminal.say(f"{presets.flag(name)} {getattr(preset, name)} changes nothing with {idle[name]}")


def told_apart(preset: Preset, found: Images | Series) -> bool:
    """Whether the data have labels, more than one, and the model is asked for them."""
    return preset.conditional and isinstance(found, Images) and bool(len(found.classes) > 1 or found.latents)


def check_asked(preset: Preset, found: Images | Series) -> None:
    """Raises InputError for settings that are of labels or latents where the data, or the model, have none."""
    asked = [name for name in ("latent_steps", "label_weight") if getattr(preset, name)]
    if asked and not preset.conditional:
        raise InputError(f"the model is unconditional, so there are no labels: leave out {presets.flag(asked[0])}")
    if preset.latent_steps and not (isinstance(found, Images) and found.latents):
        raise InputError(f"--latent-steps {preset.latent_steps}: {found.name} has no latents; leave it out")
    if preset.label_weight and not told_apart(preset, found):
        raise InputError(
            f"{found.name} gives no labels to tell apart: leave out --label-weight {preset.label_weight:g}"
        )


def absolute(data: str) -> str:
    """A path to data made absolute, for whoever goes on from another folder; names as they are."""
    path = located(data)
    return str(path.resolve()) if data not in NAMES and existing(path) else data


def fits_memory(preset: Preset, shape: Shape | SeriesShape, runtime: Runtime) -> None:
    """Raises InputError for settings that cannot fit the memory, where the network lives in it."""
    if runtime.device.type == "cpu":
        settings = (preset.width, preset.blocks, preset.batch, preset.buffer_size)
        flags = "--width {} --blocks {!r} --batch {} --buffer-size {}".format(*settings)
        affordable(least_memory(preset, shape) / ranks.size(), flags)


def shape_of(preset: Preset, found: Images | Series, had: Shape | SeriesShape | None = None) -> Shape | SeriesShape:
    """The shape of these data. Series have the scaling of the run that goes on with them, which its weights know, where
    it `had` one."""
    if isinstance(found, Series):
        scaling = (had.mean, had.std) if isinstance(had, SeriesShape) else statistics(found)
        return SeriesShape(preset.past, found.features, *scaling)
    _, h, w, c = found.x.shape
    return Shape(c, h, w, found.classes, found.latents) if preset.conditional else Shape(c, h, w)


def check_data(state: TrainState, images: Images | Series, folder: Path, step: int) -> None:
    """Refuse data of another shape or with other classes; say so where they are merely others, and note it."""
    here = shape_of(state.preset, images, state.shape)
    if here != state.shape:
        raise InputError(
            f"{folder} was trained on {described(state.shape)}; now the data are {described(here)}: give those it had"
        )
    had, now = [state.facts.get("data", {}), *state.facts.get("data_since", [])], fingerprint(images)
    if not same_data(had[-1], now):
        said = [f"{d.get('name')}: {d.get('images')} items, {d.get('sha256')}" for d in (had[-1], now)]
        terminal.say(
            f"the data, or their order, are not those that {folder} had ({said[0]}; from step {step} {said[1]})"
        )
        state.facts = state.facts | {"data_since": [*had[1:], now | {"step": step}]}


def open_folder(name: str, out: Path | None) -> Path:
    """The folder of a new run, made by the first process for all."""
    if ranks.rank() > 0:
        return Path(ranks.text(""))
    folder = new_folder(Path("runs") / name) if out is None else writable_folder(out)
    return Path(ranks.text(str(folder)))


def write_preset(folder: Path, state: TrainState, runtime: Runtime) -> None:
    """preset.json: what the run is now. The command that began it stays, and what went on with it is added."""
    if ranks.rank() > 0:
        return
    about, had = describe(state, runtime), read_json(folder / "preset.json", [], needed=False)
    if isinstance(had, dict) and isinstance(had.get("command"), list):
        again = had.get("resumed_by")
        again = [*(again if isinstance(again, list) else []), {"step": state.step, "command": about["command"]}]
        about |= {"command": had["command"], "resumed_by": again}
    write_json(folder / "preset.json", about)


def holds_no_run(folder: Path) -> None:
    if any(what_is(folder / name) != "nothing" for name in ("preset.json", states.CHECKPOINT)):
        raise InputError(
            f"{folder} already holds a run; go on with it by igebm train --resume {terminal.quoted(folder)}, or choose "
            f"another --out"
        )


def apart_from_pictures(out: Path, data: str) -> None:
    """Raises InputError where a run's files would lie among the pictures of the folder `data`, or among others, whose
    classes they would be taken for later."""
    source = located(data)
    inside = lambda: Path(os.path.realpath(out)).is_relative_to(os.path.realpath(source))
    if data not in NAMES and existing(source) and what_is(source) == "folder" and inside():
        raise InputError(f"{out} lies in {data}, and a run's pictures would be read as data; choose another --out")
    first = first_picture(out) if what_is(out) == "folder" else None
    if first is not None:
        raise InputError(
            f"{out} holds pictures ({first.relative_to(out)}) and no run, whose own would lie among them; choose "
            "another --out"
        )


def describe(state: TrainState, runtime: Runtime) -> dict[str, Any]:
    """DIR/preset.json: the settings and their circumstances."""
    return {
        "settings": presets.to_dict(state.preset),
        "facts": state.facts,
        "command": ["igebm", *sys.argv[1:]],
        "versions": {"igebm": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "commit": commit(),
        "temperature": model.temperature(state.preset),
        "machine": {
            "system": platform.platform(),
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "runtime": runtime.reason,
        },
        "processes": ranks.size(),
    } | state.shape.to_dict()
