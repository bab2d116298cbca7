"""Made-up images that a model should find unlikely, as uint8 like any data set (the paper's Table 2 and Fig. 6)."""

from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8

from ..errors import InputError, unknown

Pixels = UInt8[np.ndarray, "n h w c"]


def constant(like: Pixels, rng: np.random.Generator) -> Pixels:
    """One colour an image, uniform over all colours ("constant uniform" of Table 2; the released code lacks it)."""
    n, _, _, c = like.shape
    return np.broadcast_to(rng.integers(0, 256, (n, 1, 1, c), dtype=np.uint8), like.shape).copy()


def uniform(like: Pixels, rng: np.random.Generator) -> Pixels:
    """Every channel of every pixel ⌊256 u⌋, u ~ U[0, 1)."""
    return rng.integers(0, 256, like.shape, dtype=np.uint8)


def gaussian(like: Pixels, rng: np.random.Generator) -> Pixels:
    """Every channel of every pixel N(½, ½²) of [0, 1], cut off at its ends: what the released code takes for
    "uniform", but for the cut, without which these are no images."""
    return np.floor(256 * rng.normal(0.5, 0.5, like.shape)).clip(0, 255).astype(np.uint8)


def interpolation(like: Pixels, rng: np.random.Generator) -> Pixels:
    """(a + b) / 2 of two different images of the set ("CIFAR-10 interpolation" of Table 2): n means of n images, each
    of which is in two of them; halves are rounded to even."""
    if len(like) < 2:
        raise InputError(f"an interpolation takes two different images, got {len(like)}")
    order = rng.permutation(len(like))
    a, b = like[order].astype(np.uint16), like[np.roll(order, 1)]
    return np.rint((a + b) / 2).astype(np.uint8)


MADE_UP: dict[str, Callable[[Pixels, np.random.Generator], Pixels]] = {
    "constant": constant,
    "uniform": uniform,
    "gaussian": gaussian,
    "interpolation": interpolation,
}


def make(name: str, like: Pixels, seed: int = 0) -> Pixels:
    """As many images as `like` has, of their shape. A set depends on the seed alone, not on which others are made."""
    if name not in MADE_UP:
        raise unknown("made-up set", name, MADE_UP)
    return MADE_UP[name](like, np.random.default_rng([seed, list(MADE_UP).index(name)]))
