"""Curves of a run's log as small inline drawings (SVG): lines, the spread behind each point, rollbacks, and values
under the pointer."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element

from .found import Entry, Log, number
from .markup import tag, written

WIDTH, HEIGHT = 400, 210
LEFT, RIGHT, TOP, BOTTOM = 50, 8, 14, 24
GROUPS = 160
"""points of a line at most; a longer log is averaged, and the band behind the line shows its least and greatest"""


class Point(NamedTuple):
    """Some entries of the log that follow each other: where they are, and mean, least and greatest of each curve."""

    first: int
    last: int
    values: dict[str, tuple[float, float, float]]

    @property
    def middle(self) -> float:
        return (self.first + self.last) / 2


class Axis(NamedTuple):
    """A number's place: linear or logarithmic between `low` and `high`, drawn from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: int | float) -> float:
        f = math.log if self.logarithmic else float
        share = (f(value) - f(self.low)) / (f(self.high) - f(self.low))
        return round(self.start + min(max(share, -1.0), 2.0) * (self.end - self.start), 1)


def points(entries: Sequence[Entry], keys: Sequence[str], positive: bool = False, most: int = GROUPS) -> list[Point]:
    """The log in at most `most` points."""
    size = max(1, math.ceil(len(entries) / most))
    found = []
    for i in range(0, len(entries), size):
        part, values = entries[i : i + size], {}
        for key in keys:
            v = [n for n in (number(entry.get(key)) for entry in part) if n is not None and (n > 0 or not positive)]
            if v:
                values[key] = (sum(v) / len(v), min(v), max(v))
        found.append(Point(part[0]["step"], part[-1]["step"], values))
    return found


def chart(log: Log, heading: str, curves: Mapping[str, str], note: str = "", logarithmic: bool = False) -> Element:
    """A figure: one line for each key of the log in `curves` (key: name), what rollbacks undid dashed."""
    keys = list(curves)
    kept = points(log.entries, keys, logarithmic)
    spans = [span for point in kept for span in point.values.values()]
    if not spans:
        return tag("figure", tag("figcaption", tag("strong", heading), " ", "not in the log"), class_="chart")
    steps = [p.first for p in kept] + [p.last for p in kept] + [r.diverged_at for r in log.rollbacks]
    x = Axis(0, max(*steps, 1), LEFT, WIDTH - RIGHT)
    y = Axis(
        *limits(min(s[1] for s in spans), max(s[2] for s in spans), logarithmic), HEIGHT - BOTTOM, TOP, logarithmic
    )
    clip = "clip-" + "".join(c for c in heading.lower() if c.isalnum())
    drawn = [
        tag("clipPath", tag("rect", x=LEFT, y=TOP - 2, width=WIDTH - LEFT - RIGHT, height=HEIGHT - TOP - BOTTOM + 4),
            id=clip),
        grid(x, y),
    ]  # fmt: skip
    lines = []
    for i, key in enumerate(keys, 1):
        if any(p.values[key][1] < p.values[key][2] for p in kept if key in p.values):
            lines += [tag("path", d=band(kept, key, x, y), class_=f"band c{i}")]
        undone = [points(branch, [key], logarithmic) for branch in log.undone]
        lines += [tag("path", d=line(branch, key, x, y), class_=f"undone c{i}") for branch in undone]
        lines += [tag("path", d=line(kept, key, x, y), class_=f"line c{i}")]
    drawn += [tag("g", lines, clip_path=f"url(#{clip})"), hovers(kept, curves, x), marks(log, x)]
    told = "; ".join(summary(kept, key, name) for key, name in curves.items())
    svg = tag("svg", drawn, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=f"{heading} over steps. {told}")
    legend = [tag("li", tag("span", class_=f"key c{i}"), name) for i, name in enumerate(curves.values(), 1)]
    caption = [tag("strong", heading), tag("ul", legend, class_="legend"), tag("small", note) if note else None]
    return tag("figure", tag("figcaption", caption), svg, class_="chart")


def limits(low: float, high: float, logarithmic: bool) -> tuple[float, float]:
    """The ends of an axis with a little room."""
    if logarithmic:
        return low / 1.2, high * 1.2
    room = max(0.05 * (high - low), 1e-9 * max(abs(low), abs(high)), 1e-30) if high > low else 0.05 * abs(high) or 1.0
    # A share or a count does not go below 0, and an axis that starts there reads more easily.
    return (0.0 if 0 <= low < 0.3 * high else low - room), high + room


def ticks(axis: Axis, about: int = 4) -> list[float]:
    """Round numbers: 1, 2 or 5 times a power of ten apart; powers of ten where an axis is logarithmic and long."""
    low, high = axis.low, axis.high
    if axis.logarithmic:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        few = [m for m in ((1,), (1, 3), (1, 2, 5)) if sum(low <= k * 10**d <= high for d in decades for k in m) >= 3]
        marks = [k * 10.0**d for d in decades for k in (few or [(1, 2, 3, 4, 5, 6, 7, 8, 9)])[0]]
        inside = [t for t in marks if low <= t <= high]
        return inside[:: math.ceil(len(inside) / 6)] if inside else [low, high]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    return [float(f"{k * step:.12g}") for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def grid(x: Axis, y: Axis) -> Element:
    parts = []
    for t in ticks(y):
        parts += [tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y(t), y2=y(t), class_="rule")]
        parts += [tag("text", written(t, 3), x=LEFT - 6, y=y(t) + 4, text_anchor="end")]
    across = ticks(x)
    for t in across:
        # The last label would stick out: it ends where the axis ends.
        anchor = "end" if x(t) > WIDTH - 30 else "middle"
        parts += [tag("text", written(t, 6), x=x(t), y=HEIGHT - 7, text_anchor=anchor)]
    return tag("g", parts, class_="axes")


def line(kept: Sequence[Point], key: str, x: Axis, y: Axis) -> str:
    """A path through the means, with a gap where the log has no finite number."""
    path, pen = [], "M"
    for p in kept:
        if key in p.values:
            path.append(f"{pen}{x(p.middle)} {y(p.values[key][0])}")
        pen = "L" if key in p.values else "M"
    # One point alone is a dot: a line of no length with a round end.
    return " ".join(path) + ("h0" if len(path) == 1 else "")


def band(kept: Sequence[Point], key: str, x: Axis, y: Axis) -> str:
    with_key = [p for p in kept if key in p.values]
    above = [f"{x(p.middle)} {y(p.values[key][2])}" for p in with_key]
    below = [f"{x(p.middle)} {y(p.values[key][1])}" for p in reversed(with_key)]
    return "M" + "L".join(above + below) + "Z"


def hovers(kept: Sequence[Point], curves: Mapping[str, str], x: Axis) -> Element:
    """A column for each point, which shows its values under the pointer."""
    columns, middles = [], [x(p.middle) for p in kept]
    for i, p in enumerate(kept):
        left = (middles[i - 1] + middles[i]) / 2 if i else LEFT
        right = (middles[i] + middles[i + 1]) / 2 if i + 1 < len(kept) else WIDTH - RIGHT
        where = f"step {p.first:,}" if p.first == p.last else f"steps {p.first:,} to {p.last:,}, means"
        said = [f"{curves[key]}: {written(v[0])}" for key, v in p.values.items()]
        columns.append(
            tag(
                "rect",
                tag("title", "\n".join([where, *said])),
                x=round(left, 1),
                y=TOP,
                width=round(max(right - left, 0), 1),
                height=HEIGHT - TOP - BOTTOM,
            )  # fmt: skip
        )
    return tag("g", columns, class_="hovers")


def marks(log: Log, x: Axis) -> Element:
    """A line for each rollback where the run diverged, with its number and its cause."""
    parts = []
    for i, r in enumerate(log.rollbacks, 1):
        at = x(r.diverged_at)
        said = tag("title", f"rollback {i}: diverged at step {r.diverged_at:,}, back to {r.back_to:,}\n{r.cause}")
        mark = tag("line", x1=at, x2=at, y1=TOP, y2=HEIGHT - BOTTOM)
        parts.append(tag("g", said, mark, tag("text", f"↶{i}", x=at, y=TOP - 3, text_anchor="middle")))
    return tag("g", parts, class_="rollbacks")


def summary(kept: Sequence[Point], key: str, name: str) -> str:
    values = [p.values[key] for p in kept if key in p.values]
    if not values:
        return f"{name}: not in the log"
    first, last = written(values[0][0]), written(values[-1][0])
    low, high = written(min(v[1] for v in values)), written(max(v[2] for v in values))
    return f"{name}: from {first} to {last}, least {low}, greatest {high}"


def sparkline(values: Sequence[Any]) -> Element:
    """A list of numbers as a line as high as a word; no axes."""
    kept = points([{"step": i, "v": v} for i, v in enumerate(values)], ["v"], most=80)
    spans = [p.values["v"] for p in kept if "v" in p.values]
    low, high = min((s[0] for s in spans), default=0.0), max((s[0] for s in spans), default=1.0)
    x, y = Axis(0, max(1, len(values) - 1), 1, 99), Axis(low, high if high > low else low + 1, 19, 1)
    return tag("svg", tag("path", d=line(kept, "v", x, y), class_="line c1"), viewBox="0 0 100 20", class_="spark",
               aria_hidden="true", preserveAspectRatio="none")  # fmt: skip
