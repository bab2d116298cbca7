"""Real-valued conditions: the latents of an image (its object's size, place, turn), with their ranges."""

from collections.abc import Sequence
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
        if not latent.low <= value <= latent.high:
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
