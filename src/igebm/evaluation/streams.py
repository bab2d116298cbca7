"""What is kept of many images while they pass: moments of their features, sums for the Inception score, some features.

Memory grows with features, splits and what is kept, not with the number of images; processes share the parts.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int64
from scipy.special import xlogy

from .. import ranks
from .features import Extractor
from .metrics import InceptionScore, Moments, merge, moments


class Passed(NamedTuple):
    """A set of images, as its features and class probabilities describe it."""

    n: int
    moments: Moments
    score: InceptionScore
    kept: Float[np.ndarray, "k d"]
    """features of a seeded choice of images"""


def describe(
    extractor: Extractor,
    x: np.ndarray,
    batch: int,
    splits: int,
    kept: int,
    seed: int,
    tell: Callable[[int], None] = lambda _: None,
) -> Passed:
    """Pass uint8 images x (n, h, w, c), in memory or mapped, through the extractor, `batch` at a time."""
    n = len(x)
    part_of = split_of(n, splits, seed)
    chosen = np.sort(np.random.default_rng([seed, 1]).choice(n, min(kept, n), replace=False))
    whole, sums, rows, at = None, np.empty((0, 0, 0)), [], []
    for part in ranks.my_parts(n, batch):
        features, p = extractor(np.asarray(x[part]))
        p = p.astype(np.float64)
        if whole is None:
            d, k = features.shape[1], p.shape[1]
            whole, sums = Moments(0, np.zeros(d), np.zeros((d, d))), np.zeros((splits, k + 2))
        whole = merge(whole, moments(features))
        # For each split: Σ p, Σᵢ Σₖ pᵢₖ log pᵢₖ, and how many.
        np.add.at(sums, part_of[part], np.column_stack([p, xlogy(p, p).sum(1), np.ones(len(p))]))
        here = chosen[(chosen >= part.start) & (chosen < part.stop)]
        rows.append(features[here - part.start])
        at.append(here)
        tell(part.stop - part.start)
    whole = together(whole)
    sums = np.sum(ranks.from_all(None if not rows else sums), 0)
    rows = np.concatenate(ranks.from_all(np.concatenate(rows) if rows else None))
    order = np.argsort(np.concatenate(ranks.from_all(np.concatenate(at) if at else None)))
    return Passed(n, whole, score(sums), rows[order])


def split_of(n: int, splits: int, seed: int) -> Int64[np.ndarray, " n"]:
    """Which split each image is in: shuffled as `metrics.inception_score` does."""
    part_of = np.empty(n, np.int64)
    for j, part in enumerate(np.array_split(np.random.default_rng(seed).permutation(n), splits)):
        part_of[part] = j
    return part_of


def score(sums: Float64[np.ndarray, "s k2"]) -> InceptionScore:
    """exp(⟨Σₖ p log p⟩ - Σₖ p̄ log p̄) on each split, which is exp ⟨KL(p ‖ p̄)⟩, from the sums."""
    counts = sums[:, -1]
    p_mean = sums[:, :-2] / counts[:, None]
    scores = np.exp(sums[:, -2] / counts - xlogy(p_mean, p_mean).sum(1))
    return InceptionScore(float(scores.mean()), float(scores.std()), len(scores))


def together(mine: Moments | None) -> Moments:
    """The moments of what all processes saw."""
    flat = None if mine is None else np.column_stack([np.full(len(mine.mean), mine.n), mine.mean, mine.scatter])
    found = [Moments(int(a[0, 0]), a[:, 1], a[:, 2:]) for a in ranks.from_all(flat)]
    whole = found[0]
    for other in found[1:]:
        whole = merge(whole, other)
    return whole
