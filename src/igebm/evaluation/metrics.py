"""Numbers that compare two sets of images by their features, and two sets by their energies. In float64, on arrays;
no files, no devices.

Bad numbers are reported, never repaired: a NaN raises Fault with how many there are. Features come from features.py,
which also says what a score may be called.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Shaped
from scipy.linalg import eigh, svdvals
from scipy.special import rel_entr
from scipy.stats import rankdata

from ..errors import Fault, InputError, many

BLOCK = 1024
"""rows that are worked on at once, so that memory does not grow with their number"""


def _checked(x: Shaped[np.ndarray, "n d"], what: str = "features") -> Float64[np.ndarray, "n d"]:
    """x in float64. Raises Fault where rows are not finite, saying how many."""
    x = np.asarray(x, np.float64)
    bad = int((~np.isfinite(x).all(1)).sum())
    if bad:
        raise Fault(f"the {what} of {bad} of {len(x)} images are not finite")
    return x


def _same_width(d: int, e: int) -> None:
    if d != e:
        raise InputError(f"features of {d} and of {e} numbers cannot be compared: take one extractor for both sets")


# Means and covariances


@dataclass(frozen=True)
class Moments:
    """What is kept of n rows of d features: their mean and their scatter Σᵢ (xᵢ - μ)(xᵢ - μ)ᵀ."""

    n: int
    mean: Float64[np.ndarray, "d"]
    scatter: Float64[np.ndarray, "d d"]

    @property
    def covariance(self) -> Float64[np.ndarray, "d d"]:
        """scatter / (n - 1). Raises InputError for fewer than 2 rows."""
        if self.n < 2:
            raise InputError(f"at least 2 images are needed on each side, got {self.n}")
        return self.scatter / (self.n - 1)


def moments(x: Shaped[np.ndarray, "n d"]) -> Moments:
    """The moments of rows, block by block; of no rows, n = 0, which is the neutral element of `merge`."""
    x = np.asarray(x)
    d = x.shape[1]
    whole = Moments(0, np.zeros(d), np.zeros((d, d)))
    for start in range(0, len(x), BLOCK):
        part = _checked(x[start : start + BLOCK])
        mean = part.mean(0)
        c = part - mean
        whole = merge(whole, Moments(len(part), mean, c.T @ c))
    return whole


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of two sets together, from theirs alone (Chan, Golub & LeVeque, 1979):

    δ = μ_b - μ_a;   μ = μ_a + δ n_b / n;   S = S_a + S_b + δ δᵀ n_a n_b / n

    Sums of squares are never taken, so that a mean much larger than the spread costs no digits.
    """
    _same_width(len(a.mean), len(b.mean))
    n = a.n + b.n
    if a.n == 0 or b.n == 0:
        return b if a.n == 0 else a
    delta = b.mean - a.mean
    scatter = a.scatter + b.scatter + np.outer(delta, delta) * (a.n * b.n / n)
    return Moments(n, a.mean + delta * (b.n / n), scatter)


def frechet(a: Moments, b: Moments) -> float:
    """‖μ_a - μ_b‖² + tr(S_a + S_b - 2 (S_a S_b)^½): the Fréchet distance of two Gaussians, squared (Dowson & Landau,
    1982), which is the FID (Heusel et al., 2017) for features of the Inception network.

    With S_a = A Aᵀ and S_b = B Bᵀ the last trace is the sum of the singular values of AᵀB. They are real and at least
    0 whatever the rank, and rounding disturbs them by ε; it would disturb the eigenvalues of S_a S_b, whose roots are
    needed, by ε as well, and their roots by √ε in each of the null directions that few images leave. Equal sets give 0
    to rounding, of either sign. Raises InputError for fewer than 2 images on a side.
    """
    _same_width(len(a.mean), len(b.mean))
    s_a, s_b = a.covariance, b.covariance
    delta = a.mean - b.mean
    cross = np.sum(svdvals(_root(s_a, a.n - 1).T @ _root(s_b, b.n - 1)))
    return float(delta @ delta + np.trace(s_a) + np.trace(s_b) - 2 * cross)


def _root(s: Float64[np.ndarray, "d d"], rank: int) -> Float64[np.ndarray, "d r"]:
    """A with A Aᵀ = S, S symmetric, of at most `rank` and without negative eigenvalues but for rounding.

    Eigenvalues within d ε of the largest cannot be told from 0 and count as such; at least one column is kept.
    """
    d = len(s)
    values, vectors = eigh(s, subset_by_index=[d - rank, d - 1] if rank < d else None)
    keep = values > d * np.finfo(np.float64).eps * values[-1]
    keep[-1] = True
    return vectors[:, keep] * np.sqrt(values[keep].clip(min=0))


def few(*sides: Moments) -> str | None:
    """What to warn of where a side has no more images than features: its covariance is singular."""
    n, d = min(side.n for side in sides), len(sides[0].mean)
    if n > d:
        return None
    return f"{n} images on a side for {d} features: {n} < {d + 1}, a covariance is singular and the distance too large"


# Kernel distance


class KernelDistance(NamedTuple):
    """Over seeded subsets of `size` rows of each side."""

    mean: float
    std: float
    """over the subsets, divisor their number"""
    subsets: int
    size: int


def kernel_distance(
    x: Float[np.ndarray, "m d"], y: Float[np.ndarray, "n d"], subsets: int = 100, size: int = 1000, seed: int = 0
) -> KernelDistance:
    """The mean of `mmd` over subsets, drawn without replacement: the KID (Bińkowski et al., 2018) for features of the
    Inception network. Unbiased, hence below 0 at times.

    Where a side has fewer rows than `size`, subsets have as many as that side; the result says their size.
    """
    x, y = _checked(x), _checked(y)
    _same_width(x.shape[1], y.shape[1])
    if subsets < 1 or size < 2:
        raise InputError(f"the kernel distance takes at least 1 subset of 2 images, got {subsets} of {size}")
    size = min(size, len(x), len(y))
    rng = np.random.default_rng(seed)
    pick = lambda rows: rows[rng.choice(len(rows), size, replace=False)]
    values = np.array([mmd(pick(x), pick(y)) for _ in range(subsets)])
    return KernelDistance(float(values.mean()), float(values.std()), subsets, size)


def mmd(x: Float[np.ndarray, "m d"], y: Float[np.ndarray, "n d"]) -> float:
    """Σ_{i≠j} k(xᵢ, xⱼ) / m(m-1) + Σ_{i≠j} k(yᵢ, yⱼ) / n(n-1) - 2 Σ k(xᵢ, yⱼ) / mn,   k(x, y) = (x·y / d + 1)³

    The unbiased squared maximum mean discrepancy (Gretton et al., 2012, lemma 6), the kernel in blocks. Raises
    InputError for fewer than 2 rows on a side.
    """
    x, y = _checked(x), _checked(y)
    m, n = len(x), len(y)
    if min(m, n) < 2:
        raise InputError(f"at least 2 images are needed on each side, got {m} and {n}")
    within_x = (_kernel(x, x) - _diagonal(x)) / (m * (m - 1))
    within_y = (_kernel(y, y) - _diagonal(y)) / (n * (n - 1))
    return within_x + within_y - 2 * _kernel(x, y) / (m * n)


def _kernel(x: Float64[np.ndarray, "m d"], y: Float64[np.ndarray, "n d"]) -> float:
    """Σᵢⱼ k(xᵢ, yⱼ)"""
    d, total = x.shape[1], 0.0
    for i in range(0, len(x), BLOCK):
        for j in range(0, len(y), BLOCK):
            total += float(((x[i : i + BLOCK] @ y[j : j + BLOCK].T / d + 1) ** 3).sum())
    return total


def _diagonal(x: Float64[np.ndarray, "m d"]) -> float:
    """Σᵢ k(xᵢ, xᵢ)"""
    return float((((x**2).mean(1) + 1) ** 3).sum())


# Class probabilities


class InceptionScore(NamedTuple):
    mean: float
    std: float
    """over the splits, divisor their number"""
    splits: int


def inception_score(p: Float[np.ndarray, "n k"], splits: int = 10, seed: int = 0) -> InceptionScore:
    """exp mean KL(p(y | x) ‖ p(y)) on each of `splits` parts of the rows, p(y) being the part's mean (Salimans et al.,
    2016). From 1 to the number of classes.

    The rows are shuffled (seeded) first: files sorted by class would make each part one class. Raises InputError for
    fewer rows than splits, and for rows that are no probabilities.
    """
    p = _checked(p, "class probabilities")
    if splits < 1 or len(p) < splits:
        raise InputError(
            f"{many(len(p), 'image')} cannot be split into {many(splits, 'part')}; take fewer splits or more images"
        )
    sums = p.sum(1)
    if p.min() < 0 or not np.allclose(sums, 1, atol=1e-3):
        raise InputError(
            f"class probabilities are at least 0 and sum to 1, got from {p.min():.4g} and sums from {sums.min():.4g} "
            f"to {sums.max():.4g}; apply softmax to logits first"
        )
    parts = np.array_split(np.random.default_rng(seed).permutation(p), splits)
    scores = np.exp([rel_entr(part, part.mean(0)).sum(1).mean() for part in parts])
    return InceptionScore(float(scores.mean()), float(scores.std()), splits)


# Manifolds of nearest neighbours


class Manifolds(NamedTuple):
    """Shares of images within the other set's manifold, the union of balls around its images that reach to their k-th
    nearest neighbour in the set."""

    precision: float
    """of fake images within the manifold of the real ones"""
    recall: float
    """of real images within the manifold of the fake ones"""
    density: float
    """real balls that hold a fake image, in units of k: 1 for equal distributions, and not bounded by it"""
    coverage: float
    """of real images whose ball holds a fake one"""
    k: int


def precision_recall(real: Float[np.ndarray, "m d"], fake: Float[np.ndarray, "n d"], k: int = 3) -> Manifolds:
    """Precision and recall after Kynkäänniemi et al. (2019), density and coverage after Naeem et al. (2020).

    Distances are Euclidean and pass by in blocks. Raises InputError for k images or fewer on a side.
    """
    from sklearn.metrics import pairwise_distances_chunked

    real, fake = _checked(real), _checked(fake)
    _same_width(real.shape[1], fake.shape[1])
    if k < 1 or min(len(real), len(fake)) <= k:
        raise InputError(f"{k} neighbours take at least {k + 1} images a side, got {len(real)} and {len(fake)}")
    # ‖x‖² + ‖y‖² - 2 x·y loses digits far from the origin, which distances do not depend on.
    real, fake = real - real[0], fake - real[0]
    # Each row's distance to itself, 0, stands before its neighbours'.
    to_kth = lambda block, _: np.partition(block, k, axis=1)[:, k]
    r_real, r_fake = (
        np.concatenate(list(pairwise_distances_chunked(x, reduce_func=to_kth, working_memory=64))) for x in (real, fake)
    )
    within, balls, start = 0, 0, 0
    recalled, covered = np.zeros(len(real), bool), np.zeros(len(real), bool)
    for block in pairwise_distances_chunked(fake, real, working_memory=64):  # (rows, m)
        inside = block <= r_real
        within += int(inside.any(1).sum())
        balls += int(inside.sum())
        covered |= inside.any(0)
        recalled |= (block <= r_fake[start : start + len(block), None]).any(0)
        start += len(block)
    n = len(fake)
    return Manifolds(within / n, float(recalled.mean()), balls / (k * n), float(covered.mean()), k)


# Energies


def auroc(e_in: Shaped[np.ndarray, "m"], e_out: Shaped[np.ndarray, "n"]) -> float:
    """P(E_out > E_in) + ½ P(E_out = E_in): the area under the ROC curve where out-of-distribution is the positive
    side and a higher energy speaks for it. 1: every energy outside is above every one inside; ½: no difference.

    By Mann and Whitney's U from ranks, so that no scale is too large; ties share their mean rank. Swapping the sets
    gives 1 minus the value exactly. Raises InputError for an empty side, Fault where energies are NaN.
    """
    e_in, e_out = np.asarray(e_in, np.float64), np.asarray(e_out, np.float64)
    m, n = len(e_in), len(e_out)
    for e, side in ((e_in, "in-distribution"), (e_out, "out-of-distribution")):
        if not len(e):
            raise InputError(f"no images in the {side} set: an AUROC needs both")
        if np.isnan(e).any():
            raise Fault(f"{int(np.isnan(e).sum())} of {len(e)} energies of the {side} set are NaN")
    above = float(rankdata(np.concatenate([e_in, e_out]))[m:].sum()) - n * (n + 1) / 2  # U, a whole number of halves
    below = m * n - above
    # The larger of the two shares is divided out and the other is what it lacks, so that they sum to 1.
    return above / (m * n) if above >= below else 1 - below / (m * n)
