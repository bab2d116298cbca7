"""Figures of the paper's kind, drawn alike: as PNG for looking and as PDF for papers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.figure import Figure
from matplotlib.text import Text

from ..files import whole

COLOURS = ["#4269d0", "#ef8b2c", "#3ca951", "#a463f2", "#ff725c", "#6cc5b0", "#9c6b4e", "#97bbf5"]
STYLE: dict[Any, Any] = {
    "figure.dpi": 120,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "axes.prop_cycle": cycler(color=COLOURS),
}


def save(figure: Figure, out: Path, name: str, kinds: Sequence[str] = ("png", "pdf")) -> None:
    """NAME.png and NAME.pdf in `out`, whole or not at all; of its text nothing is taken for markup."""
    as_written(figure)
    with matplotlib.rc_context(STYLE):
        for kind in kinds:
            with whole(out / f"{name}.{kind}") as temporary:
                # Without a date, so that the same numbers make the same file.
                dated = {"CreationDate": None} if kind == "pdf" else None
                figure.savefig(temporary, format=kind, metadata=dated, bbox_inches="tight")


def as_written(figure: Figure) -> None:
    """A class may be called $x$, or $\\frac$, which is no formula that could be drawn; of the figure's text only the
    powers of ten along logarithmic axes are formulas."""
    logarithmic = [axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis) if axis.get_scale() != "linear"]
    powers = {id(text) for axis in logarithmic for text in axis.get_ticklabels(which="both")}
    for text in figure.findobj(Text):
        if isinstance(text, Text) and id(text) not in powers:
            text.set_parse_math(False)


def entry(name: str) -> str:
    """A name for a legend, which leaves out those that begin with an underscore: a space of no width goes before it."""
    return f"\u200b{name}" if name.startswith("_") else name


def axes(columns: int = 1, rows: int = 1, size: tuple[float, float] = (4.2, 3.0)) -> tuple[Figure, np.ndarray]:
    """A figure with `rows` x `columns` axes, each of `size` in inches. No window system is needed."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
        return figure, figure.subplots(rows, columns, squeeze=False)


def pictures(
    rows: Sequence[np.ndarray], titles: Sequence[str] = (), names: Sequence[str] = (), inch: float = 0.55
) -> Figure:
    """Rows of uint8 pictures (N, H, W, C), a line of text on the left of each (`names`), one above each column
    (`titles`)."""
    columns = max(len(row) for row in rows)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(inch * columns + (1.0 if names else 0.1), inch * len(rows) + (0.3 if titles else 0.1)))
        cells = figure.subplots(len(rows), columns, squeeze=False, gridspec_kw={"wspace": 0.06, "hspace": 0.06})
    for i, row in enumerate(rows):
        for j, cell in enumerate(cells[i]):
            cell.axis("off")
            if j < len(row):
                grey = row[j].shape[-1] == 1
                cell.imshow(row[j][..., 0] if grey else row[j], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            if i == 0 and j < len(titles):
                cell.set_title(titles[j], fontsize=7, pad=2)
        if i < len(names):
            cells[i, 0].text(-0.15, 0.5, names[i], transform=cells[i, 0].transAxes, ha="right", va="center", fontsize=8)
    return figure


def histogram(ax, values: Sequence[tuple[str, np.ndarray]], label: str, bins: int = 60) -> None:
    """Overlaid densities of several sets of numbers, each with its name, over the range that holds 99 % of each (all of
    a small one)."""
    spans = [np.percentile(v, (0.5, 99.5) if len(v) >= 200 else (0, 100)) for _, v in values]
    edges = np.linspace(min(s[0] for s in spans), max(s[1] for s in spans) + 1e-9, bins + 1)
    for name, v in values:
        ax.hist(v, edges, density=True, histtype="stepfilled", alpha=0.45, label=entry(name))
    ax.set(xlabel=label, ylabel="density")
    ax.legend(fontsize=7, frameon=False)
