"""Means and shares with their errors, as they stand in NAME.json."""

import math
from typing import Any

import numpy as np
from scipy.stats import beta

from ..data import Images
from ..data.series import Series


def mean(values: np.ndarray) -> dict[str, Any]:
    """⟨v⟩ and its standard error s/√n over n items (NaN: not counted); None where there are too few to say."""
    v = np.asarray(values, np.float64)
    v = v[~np.isnan(v)]
    se = float(v.std(ddof=1)) / math.sqrt(len(v)) if len(v) > 1 else None
    return {"mean": rounded(v.mean()) if len(v) else None, "se": rounded(se), "n": len(v)}


def share(hits: np.ndarray) -> dict[str, Any]:
    """p = the share of true ones; its standard error √(p (1 - p) / n), None where all are alike, of which it would make
    0; and the ends of its 95 % interval after Clopper and Pearson. None of nothing."""
    n, k = len(hits), int(np.count_nonzero(hits))
    if not n:
        return {"share": None, "se": None, "low": None, "high": None, "n": 0}
    p, (low, high) = k / n, interval(k, n)
    se = math.sqrt(p * (1 - p) / n) if 0 < k < n else None
    return {"share": rounded(p), "se": rounded(se), "low": rounded(low), "high": rounded(high), "n": n}


def interval(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """The shares p under which k or more of n, and k or fewer, have probability (1 - level) / 2 (Clopper & Pearson,
    Biometrika 26, 1934): quantiles of the beta distributions (k, n - k + 1) and (k + 1, n - k)."""
    tail = (1 - level) / 2
    low = float(beta.ppf(tail, k, n - k + 1)) if k else 0.0
    high = float(beta.ppf(1 - tail, k + 1, n - k)) if k < n else 1.0
    return low, high


def of_split(data: Images | Series) -> dict[str, Any]:
    """The split that was measured, with a warning where it is not the test split, since there is none."""
    if data.split == "test":
        return {"split": data.split}
    why = f"the data have no test split: measured on the {data.split} split, from which the model may have learned"
    return {"split": data.split, "warnings": [why]}


def rounded(value: float | None) -> float | None:
    """Six digits, which is more than any of them is known to."""
    return None if value is None else float(f"{value:.6g}")
