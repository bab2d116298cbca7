"""How far models of time series can be followed: the error of rollouts over 1, 2, ... states (section 5, Fig. 8)."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw

from .. import terminal
from ..data.images import to_test_on
from ..data.series import Series, matched
from ..data.sources import load_series
from ..errors import InputError
from ..files import whole
from ..forecast import Forecaster
from ..model import digest
from ..report import figures
from .numbers import of_split
from .settings import Rollout

SHOWN = (1, 2, 3, 5, 10, 20, 50, 100)
"""horizons in the table"""


USUAL_LENGTH = 100
"""states that are followed where series have as many"""


def run(models: list[Forecaster], options: Rollout, out: Path, spec: str | None, seed: int, screen) -> dict[str, Any]:
    """Numbers of each model and of each kind (models of one preset, trained with several seeds), and the figures."""
    refuse_twins(models)
    spec = spec or models[0].preset.data
    past = max(m.shape.past for m in models)
    series = test_series(spec, past + (options.length or 1))
    for m in models:
        if m.shape.features != models[0].shape.features:
            raise InputError(f"{models[0].name} knows {', '.join(models[0].shape.features)}; "
                             f"{m.name} knows {', '.join(m.shape.features)}")  # fmt: skip
    series = matched(series, models[0].shape.features, models[0].name, terminal.say)
    length = options.length or min(USUAL_LENGTH, series.x.shape[1] - past)
    if not options.length and length < USUAL_LENGTH:
        terminal.say(f"{spec} has series of {series.x.shape[1]} states: rollouts of {length}")
    truth = windows(series, past + length, options.n, seed)
    unit = spreads(series)
    errors, paths = [], []
    for i, m in enumerate(models):
        tell = lambda done, total, i=i: screen.step(i * total + done, len(models) * total, models[i].name)
        start = truth[:, :past]
        found = m.rollout(start, length, seed, options.steps, options.average, tell)
        errors.append(squared_error(found, truth[:, past:], unit))
        paths.append(found)
    kinds = of_one_kind(models)
    still = squared_error(np.repeat(truth[:, past - 1 : past], length, 1), truth[:, past:], unit)
    draw(out, errors, kinds, still)
    moving = animate(out, truth, paths, kinds, series.features, past)
    return {
        "data": spec,
        **of_split(series),
        "windows": len(truth),
        "unit": "squared error per feature, in its variances over the test set",
        "models": [
            {
                "name": m.name,
                "kind": str(m.facts.get("preset", m.name)),
                "trained_with_seed": m.facts.get("seed"),
                "step": m.step,
                "mse": [round(float(v), 6) for v in e.mean(0)],
                "standard_error": standard_error(e),
            }
            for m, e in zip(models, errors, strict=True)
        ],
        "standing_still": {
            "what": "the last state known, for all that follow",
            "mse": [round(float(v), 6) for v in still.mean(0)],
        },
        "kinds": {kind: summary([errors[i].mean(0) for i in members]) for kind, members in kinds.items()},
        "figures": ["rollout.png", *(["rollout.gif"] if moving else [])],
    }


def standard_error(errors: Float[np.ndarray, "n t"]) -> list[float] | None:
    """Of the mean over windows, after each state; None where there is one window."""
    if len(errors) < 2:
        return None
    return [round(float(v), 6) for v in errors.std(0, ddof=1) / np.sqrt(len(errors))]


def refuse_twins(models: list[Forecaster]) -> None:
    """Raises InputError where two have the same weights: they would count as two seeds that agree."""
    seen: dict[str, str] = {}
    for m in models:
        weights = digest({name: t.cpu() for name, t in m.net.state_dict().items()})
        if weights in seen:
            raise InputError(f"{seen[weights]} and {m.name} are one model, weight by weight: give each once")
        seen[weights] = m.name


def of_one_kind(models: list[Forecaster]) -> dict[str, list[int]]:
    """The models of each preset, several being its seeds. By their own names, numbered where these are alike, where
    each is alone, or where models of a preset differ in more than their seed."""
    of = [str(m.facts.get("preset", m.name)) for m in models]
    names = [m.name for m in models]
    own = names if len(set(names)) == len(names) else [f"{name} {i}" for i, name in enumerate(names, 1)]
    seeds = {(kind, m.facts.get("seed")) for kind, m in zip(of, models, strict=True)}
    settings = {(kind, replace(m.preset, seed=0)) for kind, m in zip(of, models, strict=True)}
    alone = len(set(of)) == len(of) and own is names
    labels = own if alone or len(seeds) < len(models) or len(settings) > len(set(of)) else of
    return {label: [i for i, other in enumerate(labels) if other == label] for label in labels}


def test_series(spec: str, least: int) -> Series:
    return to_test_on(spec, lambda split: load_series(spec, split, least, terminal.say), terminal.say)


def spreads(series: Series) -> Float[np.ndarray, " f"]:
    """The standard deviation of each feature, the unit of its error. Raises InputError for one that never changes."""
    std = series.x.std((0, 1), dtype=np.float64)
    still = [name for name, s in zip(series.features, std, strict=True) if not s > 0]
    if still:
        raise InputError(
            f"the feature {still[0]} has one value throughout the series of {series.name} that are followed: its "
            "error has no unit; give --data where it changes"
        )
    return std


def windows(series: Series, length: int, n: int, seed: int) -> Float[np.ndarray, "n t f"]:
    """n windows of `length` states, one from each series in turn, at seeded places."""
    count, t, _ = series.x.shape
    rng = np.random.default_rng(seed)
    which = np.arange(n) % count
    first = rng.integers(0, t - length + 1, n)
    return series.x[which[:, None], first[:, None] + np.arange(length)]


def squared_error(
    found: Float[np.ndarray, "n t f"], truth: Float[np.ndarray, "n t f"], unit: Float[np.ndarray, " f"]
) -> Float[np.ndarray, "n t"]:
    """⟨((x̂ - x) / unit)²⟩ over the features: of each rollout, at each horizon."""
    return np.square((found.astype(np.float64) - truth) / unit).mean(-1)


def summary(curves: list[Float[np.ndarray, " t"]]) -> dict[str, Any]:
    """Mean over training seeds with a 95 % interval of Student's t (None for a single one), at the shown horizons, and
    how much the error grows from the first state to the tenth (None of shorter rollouts, and of no first error)."""
    from scipy import stats

    many = np.stack(curves)
    n, horizons = len(many), [h for h in SHOWN if h <= many.shape[1]]
    half = stats.t.ppf(0.975, n - 1) * many.std(0, ddof=1) / np.sqrt(n) if n > 1 else None
    known = many.shape[1] >= 10 and many[:, 0].all()
    return {
        "seeds": n,
        "horizons": horizons,
        "mse": [round(float(many.mean(0)[h - 1]), 6) for h in horizons],
        "half_width": None if half is None else [round(float(half[h - 1]), 6) for h in horizons],
        "growth_1_to_10": round(float((many[:, 9] / many[:, 0]).mean()), 3) if known else None,
    }


def draw(
    out: Path, errors: list[Float[np.ndarray, "n t"]], kinds: dict[str, list[int]], still: Float[np.ndarray, "n t"]
) -> None:
    """Error against horizon: the first ten states, as in Figure 8, and all; a band where there are several seeds."""
    figure, axes = figures.axes(2)
    for ax, last in zip(axes[0], (10, errors[0].shape[1]), strict=True):
        for kind, members in kinds.items():
            many = np.stack([errors[i].mean(0)[:last] for i in members])
            x = np.arange(1, many.shape[1] + 1)
            (line,) = ax.plot(
                x, many.mean(0), label=figures.entry(f"{kind} ({len(many)} seeds)" if len(many) > 1 else kind)
            )
            if len(many) > 1:
                ax.fill_between(x, many.min(0), many.max(0), alpha=0.2, color=line.get_color())
        ahead = np.arange(1, still[:, :last].shape[1] + 1)
        ax.plot(ahead, still.mean(0)[:last], color="#999999", linestyle="--", label="standing still")
        ax.set(xlabel="states ahead", ylabel="squared error per feature / variance", yscale="log")
    axes[0, 0].legend(fontsize=7)
    figures.save(figure, out, "rollout")


def animate(
    out: Path,
    truth: Float[np.ndarray, "n all f"],
    paths: list[Float[np.ndarray, "n t f"]],
    kinds: dict[str, list[int]],
    features: tuple[str, ...],
    past: int,
    side: int = 220,
) -> bool:
    """True (grey) and predicted (coloured) places of the first window's first ball, one panel a kind; whether there is
    one: series without places x and y get none."""
    names = [name.rstrip("1") for name in features]
    if "x" not in names or "y" not in names:
        return False
    columns = [names.index("x"), names.index("y")]
    at = lambda p: tuple((8 + np.clip(p, -0.02, 1.02) * (side - 16)).tolist())
    frames = []
    for t in range(truth.shape[1] - past):
        scene = Image.new("RGB", (side * len(kinds), side + 16), "white")
        pen = ImageDraw.Draw(scene)
        for k, (kind, members) in enumerate(kinds.items()):
            shift = lambda p, k=k: (at(p)[0] + k * side, at(p)[1] + 16)
            pen.text((k * side + 8, 2), kind, fill="black")
            pen.rectangle((k * side + 8, 24, (k + 1) * side - 8, side + 8), outline="#bbbbbb")
            for path, colour, radius in (
                (truth[0, past:, columns], "#999999", 6),
                (paths[members[0]][0][:, columns].T, "#4269d0", 4),
            ):
                trail = [shift(p) for p in path.T[max(0, t - 15) : t + 1]] if path.shape[0] == 2 else []
                if len(trail) > 1:
                    pen.line(trail, fill=colour)
                x, y = trail[-1]
                pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
        frames.append(scene)
    with whole(out / "rollout.gif") as temporary:
        frames[0].save(temporary, format="GIF", save_all=True, append_images=frames[1:], duration=60, loop=0)
    return True
