"""What a run carries from step to step, and how it is saved: everything for resuming (checkpoint), the averaged
weights for use (snapshot). A checkpoint is written whole, and the one before it is kept until then, and after.
"""

import math
import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import model, presets, ranks
from ..buffer import Buffer, Draw
from ..data.images import shown
from ..energy import Energy
from ..errors import Fault, InputError
from ..files import what_is, whole
from ..forecast import Forecaster
from ..gpu import in_place
from ..nets.bound import Plain, sampled, updated
from ..nets.fold import Twin
from ..nets.image import ImageEnergy
from ..nets.layers import power_iteration
from ..nets.trajectory import TrajectoryEnergy, TrajectoryPredictor
from ..presets import Preset
from ..runtime import DTYPES, Runtime
from ..shapes import SeriesShape, Shape, described
from . import distributed, ema, optim

CHECKPOINT, PREVIOUS, MODEL = "checkpoint.pt", "checkpoint.previous.pt", "model.safetensors"


LEAST_COMPILED = 3 * 16 * 16
"""numbers in an image from which on a compiled update repays, in a run of thousands, the half minute that it costs"""


class Drawn(NamedTuple):
    """What iteration `step` + 1 starts from: data, chains (none for a predictor), the random stream that goes on from
    there, and the seed of torch's own."""

    step: int
    x: Tensor
    y: Tensor | None
    chains: Draw | None
    generator: torch.Generator
    dropout_seed: int


@dataclass
class TrainState:
    """Network, averages, optimiser, buffer and counters of a run. `facts` say where it comes from (data, preset's
    name)."""

    preset: Preset
    shape: Shape | SeriesShape
    net: ImageEnergy | TrajectoryEnergy | TrajectoryPredictor
    twin: Twin | Plain
    """what chains run on"""
    updated: Callable[..., Energy]
    """y -> E(· | y) as a function of the weights too: what the update differentiates"""
    iterate: Callable[[], None]
    """a power iteration of the network's spectral norms"""
    averages: ema.Averages
    optimizer: torch.optim.Adam
    buffer: Buffer
    chain_steps: int
    """K now: the preset's, or raised since"""
    step: int = 0
    """training iterations done"""
    seen: int = 0
    """data images used: where the stream of data goes on"""
    rollbacks: int = 0
    outside: int = 0
    """iterations in a row with the energy gap out of bounds (guard.py)"""
    slow_gap: float = 0.0
    """the energy gap averaged over about 100 steps"""
    energies: tuple[torch.Tensor, torch.Tensor] | None = None
    """of the last iteration's data and samples, each (B,)"""
    drawn: Drawn | None = None
    """the next iteration's start, where it was made ready"""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return self.buffer.x.device


def start(preset: Preset, shape: Shape | SeriesShape, runtime: Runtime, facts: dict[str, Any]) -> TrainState:
    """A new run: weights from the seed, the same in all processes, and an empty buffer, a part of the whole in each."""
    torch.manual_seed(preset.seed)
    net = model.build_net(preset, shape).to(runtime.device)
    iterate = lambda: power_iteration(net)
    graphs = runtime.compiled in ("fused", "graphs") and preset.spectral and preset.network == "image"
    labels = None
    if isinstance(shape, Shape) and net.condition:
        labels = torch.empty(0, dtype=torch.long) if shape.classes else torch.empty(0, shape.condition)
    return TrainState(
        preset=preset,
        shape=shape,
        net=net,
        twin=sampled(net, runtime.dtype, runtime.compiled),
        updated=updated(net, runtime.update, runtime.traced and math.prod(shape.item) >= LEAST_COMPILED),
        iterate=in_place(iterate, runtime.device, list(net.buffers())) if graphs else iterate,
        averages=ema.start(net),
        optimizer=optim.adam(net, preset),
        buffer=Buffer(
            preset.buffer_size // ranks.size(),
            shape.item,
            labels,
            policy=preset.buffer_policy,
            rounding=preset.buffer_rounding,
            device=runtime.device,
        ),
        chain_steps=preset.chain_steps,
        facts=facts,
    )


def generators(state: TrainState, step: int) -> tuple[torch.Generator, torch.Generator, int]:
    """The random streams of the iteration after `step`, for the host and the device, and the seed of torch's global
    one, which dropout draws from.

    They depend on the seed, the rollbacks and the step alone, so a resumed run draws what an uninterrupted one draws
    and no generator's state needs saving.
    """
    key = [state.preset.seed, state.rollbacks, step] + ([ranks.rank()] if ranks.size() > 1 else [])
    host, device, dropout = (int(s) for s in np.random.SeedSequence(key).generate_state(3, np.uint64) >> np.uint64(1))
    return torch.Generator().manual_seed(host), torch.Generator(state.device).manual_seed(device), dropout


# Checkpoints


def save_checkpoint(folder: Path, state: TrainState, runtime: Runtime, worth_keeping: bool = True) -> None:
    """Write DIR/checkpoint.pt; the one it replaces becomes checkpoint.previous.pt where it is `worth_keeping`."""
    current, previous = folder / CHECKPOINT, folder / PREVIOUS

    def keep() -> None:
        if current.exists() and worth_keeping:
            _second_name(current, previous)

    saved = _to_dict(state, runtime)  # all processes: each gives its buffer
    if ranks.rank() > 0:
        return
    with whole(current, then=keep) as temporary:
        try:
            torch.save(saved, temporary)
        except RuntimeError as error:  # torch's writer reports a full disk this way
            raise Fault(f"cannot write {current}: {str(error).splitlines()[0]}; is the disk full?") from error


def promote_previous(folder: Path) -> None:
    """Make the previous checkpoint the current one: what a run has gone back to must not be lost at its next save."""
    _second_name(folder / PREVIOUS, folder / CHECKPOINT)


def _second_name(of: Path, name: Path) -> None:
    """Make `name` a second name of the file `of` (a copy where the file system has no links), whole at every moment."""
    second = name.with_name(f".{name.name}.second.part")
    second.unlink(missing_ok=True)
    try:
        os.link(of, second)
    except OSError:
        shutil.copyfile(of, second)
    second.replace(name)


def _to_dict(state: TrainState, runtime: Runtime) -> dict[str, Any]:
    return {
        "format": 1,
        "settings": presets.to_dict(state.preset),
        "net": _plain(state.net.state_dict()),
        "averages": _plain(state.averages),
        "optimizer": state.optimizer.state_dict(),
        "buffer": distributed.gathered(state.buffer.state_dict()),
        "counters": {name: getattr(state, name) for name in _COUNTERS},
        "runtime": runtime.kept,
        "facts": state.facts,
    } | state.shape.to_dict()


_COUNTERS = ("step", "seen", "chain_steps", "rollbacks", "outside", "slow_gap")
_SINCE_THEN = ("counters.outside", "runtime.update")
"""what the first checkpoints had no word of"""


def read_checkpoint(
    folder: Path, say: Callable[[str], None], which: Literal["latest", "previous"] = "latest"
) -> dict[str, Any]:
    """The last whole checkpoint of a run folder; says so where it had to take the one before. No code in it is run.

    Whoever goes on from the previous one makes it the current one first (`saved["file"]` is its name,
    `promote_previous`).
    Raises InputError where there is none.
    """
    if what_is(folder) != "folder":
        raise InputError(f"no run folder {folder}; give the DIR of an earlier igebm train")
    names = [PREVIOUS, CHECKPOINT] if which == "previous" else [CHECKPOINT, PREVIOUS]
    problems = []
    for name in names:
        path = folder / name
        if what_is(path) == "nothing":
            continue
        try:
            saved = _read(path)
        except InputError as error:
            problems.append(str(error))
            continue
        saved["file"] = name
        if problems:
            say(f"{problems[0]}; going on from {path.name} (step {saved['counters']['step']}) instead")
        return saved
    if problems:
        raise InputError(problems[0])
    raise no_run(folder)


def has_checkpoint(folder: Path) -> bool:
    return any(what_is(folder / name) != "nothing" for name in (CHECKPOINT, PREVIOUS))


def no_run(folder: Path) -> InputError:
    return InputError(f"{folder} holds no run of igebm train (no {CHECKPOINT}); give the folder of one")


def read_archive(path: Path) -> Any:
    """What torch.save wrote, its checksums tested; no code in it is run. Raises InputError where it is damaged or
    something else."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        saved = None if damaged else torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except Exception as error:  # zipfile and torch raise a dozen kinds for a damaged file; each means the same here
        raise InputError(
            f"{path} is damaged or no checkpoint ({type(error).__name__}: {' '.join(str(error).split())[:120]})"
        ) from error
    if saved is None:
        raise InputError(f"{path} is damaged (part {shown(str(damaged))} fails its checksum)")
    return saved


def _read(path: Path) -> dict[str, Any]:
    saved = read_archive(path)
    if isinstance(saved, dict) and "baseline" in saved:
        raise InputError(f"{path} is of igebm baseline; go on with: igebm baseline --resume {path.parent}")
    wrong = _unsound(saved)
    if wrong:
        raise InputError(f"{path} is no igebm checkpoint: it lacks {', '.join(wrong[:3])}")
    return saved


def _unsound(saved: Any) -> list[str]:
    """What a checkpoint lacks, or has in another form than `_to_dict` gives it."""
    parts = {name: _part(saved, name.split(".")) for name in _SOUND}
    return [
        name
        for name, sound in _SOUND.items()
        if not (sound(parts[name]) or (parts[name] is ... and name in _SINCE_THEN))
    ]


def _part(saved: Any, names: list[str]) -> Any:
    for name in names:
        saved = saved.get(name, ...) if isinstance(saved, dict) else ...
    return saved


def _a(*kinds: type) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, kinds)


def _count(v: Any) -> bool:
    return isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 2**63


def _rows(v: Any) -> bool:
    return isinstance(v, Tensor) and v.dim() > 0


def _tensors(v: Any) -> bool:
    return isinstance(v, dict) and all(isinstance(t, Tensor) for t in v.values())


_SOUND: dict[str, Callable[[Any], bool]] = {
    "settings": _a(dict), "shape": _a(list), "classes": _a(list), "facts": _a(dict), "net": _tensors,
    "averages": _tensors, "optimizer.state": lambda v: isinstance(v, dict) and all(map(_tensors, v.values())),
    "buffer.x": _rows, "buffer.y": lambda v: v is None or _rows(v), "buffer.cursor": _count, "buffer.capacity": _count,
    **{f"counters.{name}": _count for name in _COUNTERS if name != "slow_gap"},
    "counters.slow_gap": lambda v: isinstance(v, float) and math.isfinite(v), "runtime.device": _a(str),
    "runtime.dtype": lambda v: isinstance(v, str) and v in DTYPES,
    "runtime.compiled": lambda v: isinstance(v, bool) or v in ("fused", "graphs", "winograd"),
    "runtime.update": lambda v: isinstance(v, str) and v in DTYPES,
    "runtime.threads": lambda v: _count(v) and v > 0,
}  # fmt: skip
"""the parts of a checkpoint, and what each must be"""


def restore(state: TrainState, saved: dict[str, Any], path: Path) -> None:
    """Put a checkpoint's weights, averages, optimiser, buffer and counters into `state`."""
    model.fill(state.net, saved["net"], path)
    ema.restore(state.averages, saved["averages"], path)
    optim.restore(state.optimizer, saved["optimizer"]["state"], path)
    state.buffer.load_state_dict(distributed.shared(saved["buffer"], state.buffer.capacity))
    for name in _COUNTERS:
        setattr(state, name, saved["counters"].get(name, 0))
    if saved["settings"].get("chain_steps") != state.preset.chain_steps:
        state.chain_steps = state.preset.chain_steps  # another K was asked for since
    # One that was raised before does not stay above what it may be raised to now.
    state.chain_steps = min(state.chain_steps, max(state.preset.chain_steps, state.preset.max_chain_steps))
    state.drawn = None


# Snapshots


def save_model(path: Path, state: TrainState) -> None:
    """The averaged weights, ready for use: a safetensors file with the settings in its metadata."""
    if ranks.rank() > 0:
        return
    net = ema.network(state.averages, state.net)
    model.save(path, net, state.preset, state.shape, state.step, state.facts)


def model_step(folder: Path) -> int | None:
    """The step of the model that lies in a run's folder; None where there is none, or no whole one."""
    try:
        return model.read(folder / MODEL)[1]["step"]
    except (InputError, OSError):
        return None


def averaged_model(state: TrainState, runtime: Runtime) -> model.Model | Forecaster:
    """The averaged weights as a user will have them, for pictures."""
    net = ema.network(state.averages, state.net)
    if isinstance(state.shape, SeriesShape):
        return Forecaster(net, state.preset, state.shape, "this run", state.step, state.facts)
    assert isinstance(net, ImageEnergy)
    return model.Model(net, state.preset, state.shape, "this run", state.step, state.facts, state.device, runtime.dtype)


NETWORK = (
    "network", "conditional", "width", "blocks", "stem", "activation", "modulation", "skip_kernel", "skip_down",
    "stem_bias", "head_relu", "pooling", "harmonics", "scales", "spectral", "past",
)  # fmt: skip
"""settings that weights are made for"""


def init_from(state: TrainState, source: model.Model | Forecaster) -> None:
    """Start from another model's weights, with a fresh optimiser and buffer. Raises InputError where the networks
    differ."""
    try:
        model.fill(state.net, dict(source.net.state_dict()), Path(source.name))
    except InputError as error:
        here, there = state.preset, source.preset
        differ = [
            f"{presets.flag(name)} {getattr(there, name)} where {getattr(here, name)} is asked for"
            for name in NETWORK
            if getattr(there, name) != getattr(here, name)
        ]
        predictor = lambda p: p.objective == "squared-error"
        if predictor(here) != predictor(there):
            differ.append(f"{source.name} is {'a plain predictor' if predictor(there) else 'an energy'}")
        had, now = described(source.shape), described(state.shape)
        if had != now:  # series that differ in their scaling alone are described alike
            differ.append(f"{had} where the data are {now}")
        raise InputError(f"{source.name} is of another network: {'; '.join(differ)}") if differ else error from None
    state.averages = ema.start(state.net)
    state.facts["init_from"] = f"{source.name} at step {source.step}"


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().cpu() for name, t in tensors.items()}
