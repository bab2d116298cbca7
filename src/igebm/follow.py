"""What `igebm watch` and `igebm compare` do: look at a run's numbers while it goes on, or at several runs beside each
other."""

import json
import math
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from . import presets, terminal
from .errors import InputError
from .files import writable_folder, write_json
from .report.found import Log, read_log
from .training.run import in_use

SHOWN = (
    "e_pos", "e_neg", "gap", "gradient", "chain_gradient", "clipped_chain", "clipped_weights", "saturated", "loss",
    "bits_per_dim",
)  # fmt: skip
"""what is drawn, as far as a run has it"""
DAY = 86_400.0
BARS = "▁▂▃▄▅▆▇█"


def watch(folder: Path, every: float, once: bool, as_json: bool = False) -> None:
    """Print a run's state, anew each `every` seconds until it is over; once where stdout is no terminal, and as
    JSON."""
    if not 0 < every <= DAY:
        raise InputError(f"--every {every:g}: give a number of seconds above 0, a day at most")
    settings = settings_of(folder)
    if once or as_json or not sys.stdout.isatty():
        log = read(folder)
        terminal.result(state(folder, settings, log), as_json, lambda: "\n".join(screen(folder, settings, log)))
        return
    from rich.live import Live
    from rich.text import Text

    told: set[str] = set()
    with Live(auto_refresh=False) as live:
        while True:
            # A run that was stopped, or ended by its minutes, is over as well; looked at first, lest its last lines
            # come between.
            over = not in_use(folder)
            log = read(folder, told)
            live.update(Text(terminal.lines_of("\n".join(screen(folder, settings, log)))), refresh=True)
            if over or (log.entries and log.entries[-1]["step"] >= settings.get("steps", math.inf)):
                return
            time.sleep(every)


def settings_of(folder: Path) -> dict[str, Any]:
    path = folder / "preset.json"
    if not path.is_file():
        raise InputError(f"{folder} is no run folder (it has no preset.json); give one of igebm train or baseline")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error})") from error
    if not isinstance(settings, dict) or not isinstance(settings.get("steps", 0), int):
        raise InputError(f"{path} is damaged: its settings are no settings")
    return settings


def read(folder: Path, told: set[str] | None = None) -> Log:
    """The log, and to stderr what is wrong with it that was not `told` before."""
    troubles: list[str] = []
    log, told = read_log(folder / "metrics.jsonl", troubles), set() if told is None else told
    for trouble in troubles if log.entries or (folder / "metrics.jsonl").exists() else ():
        if trouble not in told:
            terminal.say(f"{folder}: {trouble}")
            told.add(trouble)
    return log


def screen(folder: Path, settings: dict[str, Any], log: Log) -> list[str]:
    """The state as lines: how far it is, each number now and over the run, and what went wrong."""
    if not log.entries:
        return [f"{folder}: no metrics yet"]
    last, now = log.entries[-1], state(folder, settings, log)
    head = f"{folder}: step {now['step']} of {now['steps']}"
    if now["seconds_each"] is not None:
        head += f", {now['seconds_each']:.3g} s each"
    if now["seconds_left"] is not None:
        head += f", {terminal.clock(now['seconds_left'])} left"
    if not now["running"] and now["step"] != now["steps"]:
        head += ", not running"
    names = [name for name in SHOWN if isinstance(last.get(name), int | float)]
    wide = max((len(name) for name in names), default=0)
    lines = [head] + [
        f"  {name:<{wide}}  {last[name]:>11.4g}  {sparkline([e.get(name) for e in log.entries])}" for name in names
    ]
    lines += [f"  went back at step {r.diverged_at} to {r.back_to}: {r.cause}" for r in log.rollbacks]
    return lines


def state(folder: Path, settings: dict[str, Any], log: Log) -> dict[str, Any]:
    """How far a run is: its step, whether a process is at it, the seconds of one step over the last 50 lines of the
    log, the seconds left (None where nobody is at it; of --steps and --minutes the less), the last line of numbers, and
    when it went back."""
    running = in_use(folder)
    last, total = log.entries[-1] if log.entries else {"step": 0}, settings.get("steps")
    seconds = [(e["step"], e["seconds"]) for e in log.entries[-50:] if isinstance(e.get("seconds"), int | float)]
    # A run that was gone on with has its clock start anew: what lies between two such lines is no time of its own.
    spans = [(n - m, t - s) for (m, s), (n, t) in pairwise(seconds) if n > m and t >= s]
    each = left = None
    if sum(t for _, t in spans) > 0:
        each = sum(t for _, t in spans) / sum(n for n, _ in spans)
        left = each * max(0, total - last["step"]) if isinstance(total, int) and running else None
    minutes = settings.get("minutes") if "network" in settings else None  # a baseline's clock is of all its sessions
    if left is not None and isinstance(minutes, int | float) and minutes > 0:
        left = min(left, max(0.0, 60 * minutes - seconds[-1][1]))
    return {
        "run": folder, "running": running, "step": last["step"], "steps": total, "seconds_each": each,
        "seconds_left": left, "last": last, "rollbacks": [asdict(r) for r in log.rollbacks],
    }  # fmt: skip


def sparkline(values: Iterable[Any], width: int = 48) -> str:
    """Numbers as bars between their least and greatest, `width` of them at most, each the mean of its share. One value
    throughout is drawn half high, and 0 as nothing."""
    numbers = [float(v) for v in values if isinstance(v, int | float) and math.isfinite(v)]
    if not numbers:
        return ""
    count = min(width, len(numbers))
    cuts = [round(i * len(numbers) / count) for i in range(count + 1)]
    means = [sum(numbers[a:b]) / (b - a) for a, b in zip(cuts, cuts[1:], strict=False)]
    low, high = min(means), max(means)
    share = [(m - low) / (high - low) if high > low else 0.5 * (low != 0) for m in means]
    return "".join(BARS[min(len(BARS) - 1, int(s * len(BARS)))] for s in share)


def compare(folders: list[Path], out: Path, as_json: bool) -> None:
    """Print a table of several runs (last numbers, as `row` has them; settings that differ) and draw their curves over
    each other."""
    if len(set(folders)) < max(2, len(folders)):
        raise InputError("give at least two run folders to compare, and each once")
    every = [settings_of(folder) for folder in folders]
    logs = [read(folder) for folder in folders]
    rows = [row(folder, log) for folder, log in zip(folders, logs, strict=True)]
    names = [
        name
        for name in dict.fromkeys(name for settings in every for name in settings)
        if len({json.dumps(settings.get(name)) for settings in every}) > 1
    ]
    differing = {presets.flag(name): [settings.get(name) for settings in every] for name in names}
    alone = [presets.flag(name) for name in names if any(name not in settings for settings in every)]

    def text() -> str:
        short = [folder.name for folder in folders]
        heads = short if len(set(short)) == len(short) else list(map(str, folders))
        table = lambda lines: terminal.table([{"": of} | dict(zip(heads, v, strict=True)) for of, v in lines])
        names = list(dict.fromkeys(name for r in rows for name in r if name != "run"))
        numbers = table((name, [r.get(name) for r in rows]) for name in names)
        common = {name: v for name, v in differing.items() if name not in alone}
        parts = [
            f"means over the last tenth of each log:\n{numbers}",
            "the settings are the same" if not differing else "",
        ]
        parts += [f"settings that differ:\n{table(common.items())}"] if common else []
        parts += [f"settings that not all of them have: {' '.join(alone)}"] if alone else []
        return "\n\n".join(filter(None, parts))

    writable_folder(out)
    terminal.result({"runs": rows, "differing": differing}, as_json, text)
    write_json(out / "compare.json", {"runs": rows, "differing": differing})
    draw(folders, logs, out)
    terminal.say(f"curves in {out / 'compare.png'}")


def row(folder: Path, log: Log) -> dict[str, Any]:
    """A run's last logged numbers, each averaged over the last tenth of its entries."""
    tail = log.entries[-max(1, len(log.entries) // 10) :]
    mean = lambda name: [e[name] for e in tail if isinstance(e.get(name), int | float) and math.isfinite(e[name])]
    numbers = {name: float(f"{sum(v) / len(v):.4g}") for name in SHOWN if (v := mean(name))}
    step = log.entries[-1]["step"] if log.entries else 0
    return {"run": str(folder), "step": step, "seconds": log.seconds, "rollbacks": len(log.rollbacks)} | numbers


def draw(folders: list[Path], logs: list[Log], out: Path) -> None:
    """One panel a number, one line a run."""
    from .report import figures

    names = [name for name in SHOWN if any(name in e for log in logs for e in log.entries[-1:])]
    columns = min(3, max(1, len(names)))
    figure, axes = figures.axes(columns, max(1, math.ceil(len(names) / columns)), (3.6, 2.4))
    for ax, name in zip(axes.flat, names, strict=False):
        for folder, log in zip(folders, logs, strict=True):
            points = [(e["step"], e[name]) for e in log.entries if isinstance(e.get(name), int | float)]
            label = figures.entry(str(folder) + ("" if points else " (nothing logged)"))
            ax.plot([p[0] for p in points], [p[1] for p in points], linewidth=0.9, label=label)
        ax.set(title=name, xlabel="iteration")
    for ax in axes.flat[len(names) :]:
        ax.axis("off")
    axes.flat[0].legend(fontsize=6)
    figures.save(figure, out, "compare")
