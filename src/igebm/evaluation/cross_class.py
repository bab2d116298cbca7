"""Chains that start at another class's test images and run under the target's label (Figs. 5, 11).

A chain that mixes turns a ship into a truck, and keeps of the ship what the label does not decide.
"""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Int64, UInt8

from .. import ranks
from ..errors import InputError, NotApplicable
from ..report import figures
from .classes import in_turn, lowest, of_classes, true_conditions
from .judge import judge_of
from .numbers import of_split, share
from .settings import CrossClass
from .work import Work, chain_settings, kernel

MOST = 20
"""classes of which matrices are drawn and kept"""


def run(work: Work, options: CrossClass) -> dict[str, Any]:
    """Numbers: the shares of chains that the classifier, and the model's own energies, then give the target, and still
    the source; for each pair of classes a row (source) and column (target) of a matrix."""
    m = work.model
    if options.n < 1 or options.show < 1 or (options.steps is not None and options.steps < 1):
        raise InputError(f"--n {options.n} --show {options.show}: give at least 1 of each; and 1 or more --steps")
    if not of_classes(m) or m.net.condition < 2:
        what = "unconditional" if not m.conditional else "conditional on latents" if m.shape.latents else "of one class"
        raise NotApplicable(
            f"cross-class needs a model of two classes or more, {m.name} is {what}; train one with labels: igebm train "
            "cifar10-cond, or a preset of your choice with --conditional and --data"
        )
    images = work.images()
    y = true_conditions(m, images, "cross-class")
    chosen, targets = pairs(y, options.n, m.net.condition, work.asked.seed)
    x, sources = np.asarray(images.x[chosen]), y[chosen]
    steps = 10 * m.preset.chain_steps if options.steps is None else options.steps
    judge, shown = judge_of(work), np.empty((0, *x.shape[1:]), np.uint8)

    def one(part: slice) -> np.ndarray:
        """For each image: its class by classifier and by energy, before and after (-1: not known)."""
        nonlocal shown
        size, before = part.stop - part.start, part.start * steps
        made, _ = m.sample(
            size,
            start=x[part],
            labels=targets[part],
            steps=steps,
            seed=work.generator(part.start).initial_seed(),
            batch=size,
            progress=lambda done, total: work.screen.step(before + done, len(x) * steps),
            kernel=kernel(m, options),
        )
        if part.start == 0:
            shown = made
        guess = judge.classes if judge else lambda images: np.full(len(images), -1)
        return np.stack([guess(x[part]), guess(made), lowest(m, x[part]), lowest(m, made)], 1)

    found = ranks.rows(len(x), work.asked.batch, one)
    numbers: dict[str, Any] = {
        "images": len(x),
        **of_split(images),
        "pairs": len(np.unique(sources * m.net.condition + targets)),
        "steps": steps,
        "chain": chain_settings(m, options),
        "classifier": judge.about if judge else None,
    }
    drawn = []
    for name, i in {"classifier": 0, "energy": 2}.items():
        if i == 0 and judge is None:
            continue
        by = f"by_{name}"
        before, after = found[:, i], found[:, i + 1]
        numbers[by] = {
            "target": share(after == targets),
            "source": share(after == sources),
            "target_before": share(before == targets),
            "source_before": share(before == sources),
        }
        if m.net.condition <= MOST:
            table = matrix(sources, targets, after == targets, m.net.condition)
            numbers[by]["target_by_pair"] = [
                [None if np.isnan(v) else round(float(v), 4) for v in row] for row in table
            ]
            if work.first:
                draw_matrix(work.out, f"cross-class-{name}", name, table, m.shape.classes)
            drawn.append(f"cross-class-{name}.png")
    if m.net.condition <= MOST:
        numbers["classes"] = list(m.shape.classes)
    if work.first:
        draw(work.out, x[: len(shown)], shown, targets[: len(shown)], m.shape.classes, options.show)
    return numbers | {"figures": ["cross-class.png", *drawn]}


def pairs(
    y: Int64[np.ndarray, "m"], n: int, classes: int, seed: int
) -> tuple[Int64[np.ndarray, "n"], Int64[np.ndarray, "n"]]:
    """n images by index, and the target of each: the classes in turn, and the i-th image of a class under the i-th of
    the other classes, so that all pairs are alike as far as the data allow."""
    mixed = np.random.default_rng(seed).permutation(len(y))
    order, rank = in_turn(y[mixed])
    chosen, rank = mixed[order][:n], rank[:n]
    return chosen, (y[chosen] + 1 + rank % (classes - 1)) % classes


def matrix(
    sources: Int64[np.ndarray, "n"], targets: Int64[np.ndarray, "n"], hits: np.ndarray, classes: int
) -> np.ndarray:
    """The share of hits of each source (row) and target (column); NaN where there is no chain."""
    count, hit = np.zeros((classes, classes)), np.zeros((classes, classes))
    np.add.at(count, (sources, targets), 1)
    np.add.at(hit, (sources, targets), hits)
    return np.where(count, hit / np.where(count, count, 1), np.nan)


def draw_matrix(out: Path, file: str, by: str, table: np.ndarray, classes: tuple[str, ...]) -> None:
    figure, ax = figures.axes(size=(4.6, 4.0))
    cmap = matplotlib.colormaps["Blues"].with_extremes(bad="#cccccc")  # grey: no chain
    shown = ax[0, 0].imshow(100 * table, cmap=cmap, vmin=0, vmax=100)
    for (i, j), v in np.ndenumerate(table):
        if not np.isnan(v):
            ax[0, 0].text(
                j, i, f"{100 * v:.0f}", ha="center", va="center", size=6, color="white" if v > 0.5 else "black"
            )
    ax[0, 0].grid(False)
    every = range(len(classes))
    ax[0, 0].set_xticks(every, classes, rotation=45, ha="right", rotation_mode="anchor")
    ax[0, 0].set_yticks(every, classes)
    ax[0, 0].set(xlabel="target", ylabel="source", title=f"given the target's class by {by} (%)")
    figure.colorbar(shown, shrink=0.8)
    figures.save(figure, out, file)


def draw(
    out: Path,
    sources: UInt8[np.ndarray, "n h w c"],
    results: UInt8[np.ndarray, "n h w c"],
    targets: Int64[np.ndarray, "n"],
    classes: tuple[str, ...],
    show: int,
) -> None:
    """A column for each target (ten at most), in pairs of rows: where the chain started, and where it ended."""
    columns = [c for c in range(len(classes)) if (targets == c).any()][:10]
    rows, names = [], []
    blank = np.full(sources.shape[1:], 255, np.uint8)
    for i in range(show):
        mine = [np.flatnonzero(targets == c) for c in columns]
        pick = lambda images, mine=mine, i=i: np.stack([images[w[i]] if i < len(w) else blank for w in mine])
        rows += [pick(sources), pick(results)]
        names += ["source", "result"]
    figures.save(figures.pictures(rows, [classes[c] for c in columns], names), out, "cross-class")
