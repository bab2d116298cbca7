"""What `igebm forecast` does: a user's own time series, continued."""

import csv
import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from . import forecast as models
from . import presets, terminal
from .arguments import Forecast
from .circumstances import circumstances
from .data.images import MissingSplit
from .data.series import Series, matched
from .data.sources import load_series
from .errors import MOST, InputError, many, within
from .files import results_folder, writable_file, write_array, write_json, write_text
from .forecast import Forecaster
from .report import figures
from .runtime import probe

MOST_FUTURES = 10_000
"""of a series, in one call"""
CHAINS = 4096
"""at a time: memory for more is no faster"""
BAND = (10, 90)
"""percentiles of the futures between which the band lies"""
SHOWN = 4
"""series, and features, in the picture at most"""
LINES = 20
"""futures that are drawn one by one at most"""


def forecast(asked: Forecast) -> None:
    """`igebm forecast`: the folder with forecast.csv, .npy, .png and .json, or the one file that --out names."""
    start = time.perf_counter()
    within("--steps", asked.steps, 1, MOST)
    within("--n", asked.n, 1, MOST_FUTURES)
    within("--seed", asked.seed, 0, 2**31 - 1)
    m = models.load(asked.model)
    if m.plain and asked.n > 1:
        raise InputError(f"--n {asked.n}: {m.name} is a plain predictor, which knows one future; leave --n out")
    series, split = read(asked, m)
    runtime = probe("cpu", "float32", "off", asked.threads)
    with place(asked.out, Path(asked.data).stem) as out, terminal.bar("forecasting") as screen:
        x = futures(m, series, asked.steps, asked.n, asked.seed, screen.step)
        about = {
            "model": asked.model, "model_step": m.step, "data": asked.data, "split": split,
            "features": list(series.features), "past": m.shape.past, "steps": asked.steps, "n": asked.n,
            "seed": asked.seed, "chain": None if m.plain else {"steps": m.preset.chain_steps} | presets.chain(m.preset),
            "series": [summary(*one) for one in zip(named(series), last_steps(series), x.swapaxes(0, 1), strict=True)],
            "seconds": round(time.perf_counter() - start, 1), "machine": circumstances(runtime),
        }  # fmt: skip
        write(out, x, series, about)
    how = "by a plain predictor" if m.plain else f"by {many(m.preset.chain_steps, 'chain step')} each"
    count = many(len(series.x), "series", "series")
    several = f", {asked.n} futures" if asked.n > 1 else ""
    terminal.say(f"{many(asked.steps, 'state')} after the last {m.shape.past} of {count}{several}, {how}")
    terminal.result(about, asked.json, lambda: str(out))


def read(asked: Forecast, m: Forecaster) -> tuple[Series, str]:
    """The series under the model's features, and the split that they are of."""
    options: dict[str, Any] = {"least": m.shape.past, "say": terminal.say}
    split = asked.split or "test"
    try:
        series = load_series(asked.data, split, **options)
    except MissingSplit:
        if asked.split is not None:
            raise
        split, series = "train", load_series(asked.data, "train", **options)
    return matched(series, m.shape.features, m.name, terminal.say), split


def futures(
    m: Forecaster, series: Series, steps: int, n: int, seed: int, progress=lambda done, total: None
) -> Float32[np.ndarray, "n s t f"]:
    """n futures of each of s series, as many at a time as make CHAINS chains. The first of these are `m.rollout`'s with
    the same seed."""
    past, found = series.x[:, -m.shape.past :], []
    each = max(1, CHAINS // len(past))
    counts = [min(each, n - k) for k in range(0, n, each)]
    for i, count in enumerate(counts):
        own = seed if i == 0 else int(np.random.SeedSequence([seed, i]).generate_state(1)[0])
        tell = lambda done, total, i=i: progress(i * total + done, len(counts) * total)
        x = m.rollout(np.tile(past, (count, 1, 1)), steps, own, progress=tell)
        found.append(x.reshape(count, *past.shape[:1], *x.shape[1:]))
    return np.concatenate(found)


@contextmanager
def place(out: Path | None, name: str) -> Iterator[Path]:
    """Where results go: a .csv or .npy file that --out names, or a folder, as other commands choose theirs."""
    if out is not None and one_file(out):
        yield writable_file(out)
        return
    with results_folder(out, Path("forecasts") / name) as folder:
        yield folder


def one_file(out: Path) -> bool:
    return out.suffix.lower() in (".csv", ".npy") and not out.is_dir()


def write(out: Path, x: Float32[np.ndarray, "n s t f"], series: Series, about: dict[str, Any]) -> None:
    """All there is into a folder, or the states alone into a file."""
    if one_file(out):
        if out.suffix.lower() == ".npy":
            write_array(out, x)
        else:
            write_text(out, as_csv(x, series))
        return
    write_text(out / "forecast.csv", as_csv(x, series))
    write_array(out / "forecast.npy", x)
    draw(out, x, series)
    write_json(out / "forecast.json", about)


def named(series: Series) -> tuple[str, ...]:
    """What its file calls each of the series, or its number from 0."""
    return series.ids or tuple(map(str, range(len(series.x))))


def last_steps(series: Series) -> tuple[int, ...]:
    """The step of each one's last state; where the file numbers none they are counted from 0."""
    return series.last or (series.x.shape[1] - 1,) * len(series.x)


def as_csv(x: Float32[np.ndarray, "n s t f"], series: Series) -> str:
    """A row a state: series, step (going on from the file's), sample (from 0, where there are several), features."""
    text, several = io.StringIO(), len(x) > 1
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["series", "step", *(["sample"] if several else []), *series.features])
    for i, (name, last) in enumerate(zip(named(series), last_steps(series), strict=True)):
        for k in range(len(x)):
            for t, state in enumerate(x[k, i], last + 1):
                rows.writerow([name, t, *([k] if several else []), *map(str, state)])
    return text.getvalue()


def summary(name: str, last: int, x: Float32[np.ndarray, "n t f"]) -> dict[str, Any]:
    """One series' futures in plain numbers: their mean, and the ends of the band where there are several."""
    found = {"series": name, "first_step": last + 1, "mean": x.mean(0, dtype=np.float64).tolist()}
    if len(x) == 1:
        return found
    return found | {f"percentile_{p}": np.percentile(x, p, axis=0).tolist() for p in BAND}


def draw(out: Path, x: Float32[np.ndarray, "n s t f"], series: Series) -> None:
    """Past and futures of the first series, feature by feature; of several futures their mean and band too."""
    n, s, t, f = x.shape
    columns, rows = min(s, SHOWN), min(f, SHOWN)
    figure, axes = figures.axes(columns, rows, (3.6, 1.9) if columns > 1 else (6.0, 2.2))
    for i, j in np.ndindex(columns, rows):
        ax: Any = axes[j, i]
        last = last_steps(series)[i]
        past = series.x[i, -max(t, 20) :, j]
        ax.plot(np.arange(last - len(past) + 1, last + 1), past, color="#555555", label="past")
        follow(ax, np.arange(last, last + t + 1), np.insert(x[:, i, :, j], 0, past[-1], axis=1))
        ax.set(xlabel="step" if j == rows - 1 else "", ylabel=series.features[j] if i == 0 else "")
        if j == 0:
            ax.set_title(f"series {named(series)[i]}", fontsize=8)
    lines = axes[0, 0].get_legend_handles_labels()
    figure.legend(*lines, loc="outside lower center", ncols=len(lines[0]), fontsize=7, frameon=False)
    figures.save(figure, out, "forecast", kinds=("png",))
    if (columns, rows) != (s, f):
        terminal.say(f"forecast.png shows {columns} of {s} series and {rows} of {f} features; the files have all")


def follow(ax, steps: np.ndarray, y: Float32[np.ndarray, "n t"]) -> None:
    """The futures of one feature, from the last state known on."""
    colour = figures.COLOURS[0]
    if len(y) == 1:
        ax.plot(steps, y[0], color=colour, label="forecast")
        return
    for one in y[:LINES]:
        ax.plot(steps, one, color=colour, alpha=0.2, linewidth=0.7)
    low, high = np.percentile(y, BAND, axis=0)
    ax.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0, label=f"{BAND[0]} to {BAND[1]} %")
    ax.plot(steps, y.mean(0), color=colour, label=f"mean of {len(y)}")
