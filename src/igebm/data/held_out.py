"""Combinations of a sprite's factors that training does not see: "dsprites-scale:without:scale=0.5..0.8,x=0..0.7".

A region is a range of some factors, all of which must hold: here small sprites at the left. What a product of models
that never saw it makes of it is what `igebm eval concepts` asks (section 6).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from ..errors import InputError, unknown
from .dsprites import SHAPES, Sprites
from .named import WITHOUT

LIMITS = {"scale": (0.5, 1.0), "angle": (0.0, 360.0), "x": (0.0, 1.0), "y": (0.0, 1.0)}
"""the range of each factor that is a number; angles in degrees"""


class Region(NamedTuple):
    """The least and greatest value of each factor that is named; shapes by their numbers."""

    ranges: dict[str, tuple[float, float]]
    shapes: tuple[int, ...]


def split_spec(spec: str) -> tuple[str, Region | None]:
    """The set's name, and what is held out of it. Raises InputError where that is not said clearly."""
    name, mark, text = spec.partition(WITHOUT)
    return name, parse(text) if mark else None


def parse(text: str) -> Region:
    """ "scale=0.5..0.8,shape=heart|square" -> Region. Raises InputError for anything else."""
    ranges: dict[str, tuple[float, float]] = {}
    shapes: tuple[int, ...] = ()
    for word in text.split(","):
        factor, _, value = word.partition("=")
        if factor in ranges or (factor == "shape" and shapes):
            raise InputError(f"{word!r}: {factor} is there twice; give one range of each factor")
        if factor == "shape":
            shapes = tuple(_shape(name) for name in value.split("|"))
        elif factor in LIMITS:
            ranges[factor] = _range(word, value, *LIMITS[factor])
        else:
            raise unknown("factor of dSprites to hold out", factor, ["shape", *LIMITS])
    return Region(ranges, shapes)


def inside(z: Sprites, region: Region) -> Bool[np.ndarray, " n"]:
    """Which sprites lie in the region: every range holds, ends included."""
    column = {"scale": z.scale, "angle": np.degrees(z.angle) % 360.0, "x": z.x, "y": z.y}
    found = np.ones(len(z.x), bool)
    for factor, (low, high) in region.ranges.items():
        within = (column[factor] >= low - 1e-9) & (column[factor] <= high + 1e-9)
        found &= within | ((factor == "angle") & (high == 360) & (column[factor] < 1e-9))  # all the way round is 0
    return found & np.isin(z.shape, region.shapes) if region.shapes else found


def _shape(name: str) -> int:
    if name not in SHAPES:
        raise unknown("shape", name, SHAPES)
    return SHAPES.index(name)


def _range(word: str, value: str, least: float, greatest: float) -> tuple[float, float]:
    try:
        low, high = (float(end) for end in value.split(".."))
    except ValueError:
        raise InputError(f"{word!r} is no range: give FACTOR=LOW..HIGH, such as scale=0.5..0.8") from None
    if not least <= low <= high <= greatest:
        raise InputError(f"{word!r}: give a range between {least:g} and {greatest:g}, the lower end first")
    return low, high
