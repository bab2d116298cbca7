"""Means and shares with their standard errors, as they stand in NAME.json."""

import math
from typing import Any

import numpy as np


def mean(values: np.ndarray) -> dict[str, Any]:
    """⟨v⟩ and its standard error s/√n over n items (NaN: not counted); None where there are too few to say."""
    v = np.asarray(values, np.float64)
    v = v[~np.isnan(v)]
    se = float(v.std(ddof=1)) / math.sqrt(len(v)) if len(v) > 1 else None
    return {"mean": rounded(v.mean()) if len(v) else None, "se": rounded(se), "n": len(v)}


def share(hits: np.ndarray) -> dict[str, Any]:
    """p = the share of true ones and its standard error √(p (1 - p) / n); None of nothing."""
    n = len(hits)
    p = np.count_nonzero(hits) / n if n else None
    return {"share": rounded(p), "se": rounded(None if p is None else math.sqrt(p * (1 - p) / n)), "n": n}


def rounded(value: float | None) -> float | None:
    """Six digits, which is more than any of them is known to."""
    return None if value is None else float(f"{value:.6g}")
