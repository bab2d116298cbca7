"""What a report finds in a folder: settings, log, pictures, results. What is missing or damaged is named, and the rest
is shown."""

import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from safetensors import SafetensorError, safe_open

from .. import pretrained
from ..errors import InputError
from ..terminal import quoted

Entry = dict[str, Any]


@dataclass(frozen=True)
class Rollback:
    """A divergence that a run came back from."""

    diverged_at: int
    back_to: int
    cause: str


@dataclass(frozen=True)
class Log:
    """metrics.jsonl: one entry a logged step, in order; what rollbacks undid is apart."""

    entries: list[Entry] = field(default_factory=list)
    undone: list[list[Entry]] = field(default_factory=list)
    """a branch for each rollback, the entry that it starts from included"""
    rollbacks: list[Rollback] = field(default_factory=list)
    seconds: float | None = None
    """wall time, undone work included; the clock starts anew each time a run is resumed"""


@dataclass(frozen=True)
class Found:
    """All that the page shows."""

    folder: Path
    is_run: bool
    model: str
    """what a command takes as MODEL"""
    name: str
    about: dict[str, Any]
    """preset.json, or what stands for it: settings, shape, classes, latents, facts, command, versions, machine"""
    step: int | None
    parameters: int | None
    log: Log
    grids: list[Path]
    """the buffer over time"""
    noise: list[Path]
    """samples from noise, the last one last"""
    results: dict[str, dict[str, Any]]
    failures: dict[str, str]
    """how the last attempt ended that gave no result: `failed: ...` or `was skipped: ...`"""
    unreadable: list[str]
    """experiments whose result is damaged"""
    evaluation: Path
    card: dict[str, Any] | None
    """of a bundled model"""
    troubles: list[str]
    """what is missing or damaged, one line each; the page's pictures add theirs"""


def find(folder: Path, experiments: Iterable[str]) -> Found:
    """Read `folder`, a run's or an evaluation's. Raises InputError where it is neither."""
    if not folder.is_dir():
        there = Path("evaluation") / folder
        hint = f"igebm report {quoted(there)} is there" if there.is_dir() else (
            "give a run folder of igebm train, or an evaluation folder of igebm eval"
        )  # fmt: skip
        raise InputError(f"no folder {folder}; {hint}")
    troubles: list[str] = []
    is_run = any((folder / name).exists() for name in ("preset.json", "metrics.jsonl", "model.safetensors"))
    evaluation = folder / "evaluation" if is_run else folder
    results, failures, unreadable = read_results(evaluation, list(experiments), troubles)
    if is_run:
        return find_run(folder, evaluation, results, failures, unreadable, troubles)
    if not (results or failures or unreadable):
        raise InputError(
            f"{folder} is no run folder (no preset.json, metrics.jsonl or model.safetensors) and holds no result of "
            f"igebm eval; give one that igebm train or igebm eval has written"
        )
    where, name = measured_model(folder, results.values())
    told = at(next(iter(results.values()), {}), "model")
    step = next((k for result in results.values() if (k := measured_at(result, (where, name))[1]) is not None), None)
    about: dict[str, Any] = {"facts": {"preset": at(told, "preset")}, "settings": {"data": at(told, "data")}}
    card, parameters = None, None
    if where in pretrained.names() and pretrained.card(where)["iterations"] == step:
        card = pretrained.card(where)
        about, step, parameters = read_weights(pretrained.FOLDER / f"{where}.safetensors", troubles)
        about |= {"machine": card["machine"], "versions": card["versions"], "command": typed(card["command"])}
    return Found(folder, False, where, name, about, step, parameters, Log(), [], [], results, failures, unreadable,
                 evaluation, card, troubles)  # fmt: skip


def find_run(
    folder: Path,
    evaluation: Path,
    results: dict[str, dict[str, Any]],
    failures: dict[str, str],
    unreadable: list[str],
    troubles: list[str],
) -> Found:
    about, step, parameters = read_weights(folder / "model.safetensors", troubles)
    told = read_json(folder / "preset.json", troubles)
    if isinstance(told, dict) and isinstance(told.get("settings"), dict):
        about = told
    elif told is not None:
        troubles.append("preset.json holds no settings")
    log = read_log(folder / "metrics.jsonl", troubles)
    if log.entries and step is None:
        step = log.entries[-1]["step"]
    pictures = sorted((folder / "samples").glob("*.png"))
    grids = [path for path in pictures if path.stem.isdecimal()]
    if not pictures:
        troubles.append("samples/ holds no pictures")
    noise = [path for path in pictures if path.stem.startswith("noise-")]
    name = folder.resolve().name
    return Found(folder, True, str(folder), name, about, step, parameters, log, grids, noise, results, failures,
                 unreadable, evaluation, None, troubles)  # fmt: skip


# Files


def read_json(path: Path, troubles: list[str], needed: bool = True) -> Any:
    """What a JSON file holds; None, and a line in `troubles`, where it cannot be had."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if value is None:
            troubles.append(f"{path.name} holds nothing (null)")
        return value
    except FileNotFoundError:
        if needed:
            troubles.append(f"{path.name} is missing")
    except OSError as error:
        troubles.append(f"{path.name} cannot be read ({error.strerror})")
    except (ValueError, RecursionError) as error:
        troubles.append(f"{path.name} is damaged ({' '.join(str(error).split())})")
    return None


def read_log(path: Path, troubles: list[str]) -> Log:
    """The log, taken apart at its rollbacks. Lines that are cut or make no sense are left out and named."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        troubles.append(f"{path.name} is missing: there are no curves")
        return Log()
    except OSError as error:
        troubles.append(f"{path.name} cannot be read ({error.strerror}): there are no curves")
        return Log()
    kept: list[Entry] = []
    undone, rollbacks, bad, clocks = [], [], [], []
    for i, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            bad.append(i)
            continue
        if not isinstance(entry, dict):
            bad.append(i)
        elif entry.get("event") == "rollback":
            since, to = whole_number(entry.get("diverged_at")), whole_number(entry.get("back_to"))
            if since is None or to is None:
                bad.append(i)
                continue
            rollbacks.append(Rollback(since, to, str(entry.get("cause"))))
            stays = [e for e in kept if e["step"] <= to]
            undone.append(kept[max(0, len(stays) - 1) :])
            kept = stays
        elif whole_number(entry.get("step")) is None:
            bad.append(i)
        else:
            kept.append(entry)
            seconds = number(entry.get("seconds"))
            clocks += [] if seconds is None else [seconds]
    if bad:
        which = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        what = "line {} is cut or damaged and left out" if len(bad) == 1 else "lines {} are cut or damaged and left out"
        troubles.append(f"{path.name}: {what.format(which)}")
    if not kept:
        troubles.append(f"{path.name} holds no step yet: there are no curves")
    # Steps go up but for rollbacks, which are taken out: anything else is no log of one run.
    ordered = sorted(kept, key=lambda e: e["step"])
    if ordered != kept:
        troubles.append(f"{path.name}: its steps are not in order")
    ends = [a for a, b in zip(clocks, clocks[1:], strict=False) if b < a]
    return Log(ordered, undone, rollbacks, sum(ends) + clocks[-1] if clocks else None)


def read_results(
    folder: Path, experiments: list[str], troubles: list[str]
) -> tuple[dict[str, dict[str, Any]], dict[str, str], list[str]]:
    """Of each experiment its result, or why it failed, or that its file is damaged; results of other names last."""
    results: dict[str, dict[str, Any]] = {}
    failures, unreadable = {}, []
    for name in experiments:
        path = folder / f"{name}.json"
        before = len(troubles)
        found = read_json(path, troubles, needed=False)
        if is_result(found):
            results[name] = found
        elif path.exists():
            unreadable.append(name)
            if len(troubles) == before:
                troubles.append(f"{path.name} is no result of an experiment")
        for end, verb in (("failed", "failed"), ("skipped", "was skipped")):
            path = folder / f"{name}.{end}.json"
            if path.exists():
                why = at(read_json(path, troubles), "why") or "for a reason that was not written down"
                failures[name] = f"{verb}: {why}"
    known = {f"{name}{end}" for name in experiments for end in (".json", ".failed.json", ".skipped.json")}
    for path in sorted(folder.glob("*.json")):
        found = read_json(path, []) if path.name not in known else None
        if is_result(found):
            results[path.stem] = found
    return results, failures, unreadable


def is_result(found: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(found, dict) and isinstance(found.get("numbers"), dict) and "experiment" in found


def measured_model(folder: Path, results: Iterable[dict[str, Any]]) -> tuple[str, str]:
    """MODEL as the commands behind `results` had it, and the model's name; the folder's name where none says."""
    for result in results:
        words, name = typed(at(result, "machine", "command")), at(result, "model", "name")
        after = words[words.index("eval") + 2 :] if "eval" in words else []
        said = [word for word in after if Path(word).name.removesuffix(".safetensors") == name]
        if said and isinstance(name, str):
            return said[0], name
    return folder.resolve().name, folder.resolve().name


def typed(command: Any) -> list[str]:
    """The words of a command as circumstances.py has joined them; none where it is no line for a shell."""
    try:
        return shlex.split(str(command or ""))
    except ValueError:  # a quotation that does not end
        return []


def measured_at(result: dict[str, Any], names: Sequence[str]) -> tuple[bool, int | None]:
    """Whether a result's numbers are of the model that is called by one of `names`, and at which step they were taken,
    None where that is not recorded. A result of several models (rollout, concepts) names them all; one of a single
    model lies where that model's lie, whatever it was called then."""
    if isinstance(told := result.get("model"), dict):
        return True, whole_number(told.get("step"))
    for entry in listed if isinstance(listed := at(result, "numbers", "models"), list) else ():
        if at(entry, "name") in names:
            return True, whole_number(at(entry, "step"))
    among = at(result, "numbers", "names")
    name = next((name for name in names if name in among), None) if isinstance(among, dict) else None
    return name is not None, whole_number(at(result, "numbers", "steps", name)) if name is not None else None


def parameters(shapes: Mapping[str, Sequence[int]]) -> int:
    """How many numbers of a file's tensors, or of a network's, are trained: without the vectors u, v of the power
    iteration, the `scale` of a classifier's features, and the scales of weights in 8 bits."""
    kept = [shape for name, shape in shapes.items() if name.rpartition(".")[2] not in ("u", "v", "scale", "int8_scale")]
    return sum(map(math.prod, kept))


def read_weights(path: Path, troubles: list[str]) -> tuple[dict[str, Any], int | None, int | None]:
    """A model file's settings, its step and its number of parameters, without its weights."""
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {})["igebm"])
            count = parameters({name: file.get_slice(name).get_shape() for name in file.keys()})
        return about, whole_number(about["step"]), count
    except FileNotFoundError:
        troubles.append(f"{path.name} is missing: the run has not saved a model yet")
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        troubles.append(f"{path.name} is damaged ({' '.join(str(error).split()) or type(error).__name__})")
    return {}, None, None


# Values of any kind


def at(value: Any, *keys: str) -> Any:
    """value[k][l]..., or None where there is no such thing."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) and abs(value) < 1e100 else None
    except OverflowError:
        return None


def whole_number(value: Any) -> int | None:
    """A count that a step can be, or None."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**15 else None
