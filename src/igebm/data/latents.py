"""Real-valued conditions: the latents of an image (its object's size, place, turn), with their ranges."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from ..errors import InputError


class Latent(NamedTuple):
    """One column of a condition y (N, d): what it is called, and its least and greatest value."""

    name: str
    low: float
    high: float


CIRCLE = ("cos", "sin")
"""the two columns of an angle; a user may give the angle itself, in degrees"""


def on_circle(latents: Sequence[Latent]) -> bool:
    return tuple(latent.name for latent in latents) == CIRCLE


def parse(text: str, latents: Sequence[Latent]) -> Float32[np.ndarray, " d"]:
    """ "0.2,0.7" -> [0.2, 0.7]: one value for each latent; of an angle, "90" (degrees) or its cosine and sine.

    Raises InputError for another number of values, and for one outside its range.
    """
    names = ",".join(latent.name for latent in latents)
    try:
        values = [float(word) for word in text.split(",")]
    except ValueError:
        raise InputError(f"{text!r} is not {names}: give {len(latents)} numbers with commas between them") from None
    if on_circle(latents) and len(values) == 1 and np.isfinite(values[0]):
        angle = np.deg2rad(values[0])
        return np.array([np.cos(angle), np.sin(angle)], np.float32)
    if len(values) != len(latents):
        degrees = " (or one: the angle in degrees)" if on_circle(latents) else ""
        raise InputError(f"{text!r}: {names} takes {len(latents)} numbers{degrees}, got {len(values)}")
    for value, latent in zip(values, latents, strict=True):
        if not latent.low <= np.float32(value) <= latent.high:  # the ends are float32, as latents are
            raise InputError(f"{latent.name} {value:g}: choose between {latent.low:g} and {latent.high:g}")
    if on_circle(latents) and abs(np.hypot(values[0], values[1]) - 1) > 0.05:
        raise InputError(f"{text!r} is no cosine and sine of an angle: their squares must sum to 1; or give degrees")
    return np.array(values, np.float32)


def drawn(latents: Sequence[Latent], n: int, rng: np.random.Generator) -> Float32[np.ndarray, "n d"]:
    """n conditions, uniform over their ranges (angles: over the circle)."""
    if on_circle(latents):
        angle = rng.uniform(0, 2 * np.pi, n)
        return np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
    low, high = (np.array([getattr(latent, end) for latent in latents]) for end in ("low", "high"))
    return rng.uniform(low, high, (n, len(latents))).astype(np.float32)


def spread(latents: Sequence[Latent], rows: int, columns: int) -> Float32[np.ndarray, "n d"]:
    """rows x columns conditions for a picture: the first latent grows from left to right (an angle goes round), the
    second, where there is one, downwards; the rest stay in the middle."""
    across = np.tile((np.arange(columns) + 0.5) / columns, rows)
    if on_circle(latents):
        return np.stack([np.cos(2 * np.pi * across), np.sin(2 * np.pi * across)], 1).astype(np.float32)
    down = np.repeat((np.arange(rows) + 0.5) / rows, columns)
    shares = [across, down] + [np.full(rows * columns, 0.5)] * max(0, len(latents) - 2)
    return np.stack(
        [latent.low + share * (latent.high - latent.low) for latent, share in zip(latents, shares, strict=False)], 1
    ).astype(np.float32)


def tidy_latents(
    values: Mapping[str, np.ndarray], counts: Mapping[str, int], names: Sequence[str], where: str
) -> tuple[dict[str, np.ndarray], tuple[Latent, ...]]:
    """Latents of every split (float32, N x d) and what their columns are, from real-valued arrays as they were found.

    Ranges are those of the data, all splits together; `names` may be empty (then y1, y2, ...). Columns called cos and
    sin are an angle's. Raises InputError for values that are not finite, for arrays or names that do not fit, for a
    latent that never changes, and for a cosine and sine of no angle.
    """
    found = {}
    for split, y in values.items():
        if y.ndim != 2 or len(y) != counts[split] or y.dtype.kind not in "fiu" or not y.shape[1]:
            raise InputError(
                f"the {split} latents of {where} must be one row of numbers per image, ({counts[split]}, d), got "
                f"{y.dtype} of shape {y.shape}"
            )
        with np.errstate(over="ignore"):
            found[split] = np.array(y, np.float32)
        bad = int((~np.isfinite(found[split])).sum())
        if bad:
            raise InputError(f"{bad} of the {split} latents of {where} are not finite, or too large for float32")
    columns = {y.shape[1] for y in found.values()}
    if len(columns) > 1 or (names and len(names) != next(iter(columns))):
        raise InputError(f"the latents of {where} have {sorted(columns)} columns and the names {', '.join(names)}")
    every = np.concatenate(list(found.values()))
    names = [str(name) for name in names] or [f"y{i + 1}" for i in range(every.shape[1])]
    if repeated := [name for i, name in enumerate(names) if name in names[:i]]:
        raise InputError(f"two latents of {where} are called {repeated[0]}; give each a name of its own")
    if tuple(names) == CIRCLE:
        off = int((np.abs(np.hypot(every[:, 0], every[:, 1]) - 1) > 0.05).sum())
        if off:
            raise InputError(
                f"{off} of the latents cos and sin of {where} are of no angle: their squares must sum to 1; give them "
                f"other names"
            )
        return found, tuple(Latent(name, -1.0, 1.0) for name in CIRCLE)
    for name, low, high in zip(names, every.min(0), every.max(0), strict=True):
        if low == high:
            raise InputError(
                f"latent {name} of {where} is {low:g} throughout, so there is nothing to learn: leave it out"
            )
    ends = zip(names, every.min(0).tolist(), every.max(0).tolist(), strict=True)
    return found, tuple(Latent(name, low, high) for name, low, high in ends)
