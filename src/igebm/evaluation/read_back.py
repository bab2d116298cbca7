"""The latents of a picture of one sprite, read back by fitting the renderer: what a composition is scored by.

Every shape, scale and angle of a grid is drawn once at the middle; at each of them the best place follows from the
correlation with the picture, by Fourier transforms. The winner is refined by smaller and smaller steps of all its
numbers.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from ..data.dsprites import SYMMETRY, Sprites, render

SCALES = np.linspace(0.5, 1.0, 6)
TURNS = 40
"""angles of the grid in one turn; a shape's equal pictures are drawn once"""


class Fit(NamedTuple):
    """Latents of n pictures, and the mean squared difference of each to its rendered twin (pixels in [0, 1])."""

    z: Sprites
    error: Float32[np.ndarray, " n"]


def read_back(pictures: UInt8[np.ndarray, "n s s 1"], rounds: int = 5) -> Fit:
    """The sprite that looks most like each picture."""
    size = pictures.shape[1]
    x = torch.from_numpy(np.require(pictures[..., 0], requirements=["C", "W"])).float() / 255
    grid = _grid()
    z, error = _coarse(x, grid, size)
    step = np.array([0.05, 2 * np.pi / TURNS / 2, 0.5 / 32, 0.5 / 32])
    for _ in range(rounds):
        z, error = _refined(x, z, error, step, size)
        step = step / 2
    return Fit(z, error.astype(np.float32))


def _grid() -> Sprites:
    rows = [
        (shape, scale, 2 * np.pi * turn / TURNS)
        for shape in range(3)
        for scale in SCALES
        for turn in range(TURNS // SYMMETRY[shape])
    ]
    shape, scale, angle = (np.array(column) for column in zip(*rows, strict=True))
    middle = np.full(len(rows), 0.5)
    return Sprites(shape.astype(np.int64), scale, angle, middle, middle)


def _coarse(x: Float32[Tensor, "n s s"], grid: Sprites, size: int) -> tuple[Sprites, np.ndarray]:
    """‖x - shift(r)‖² = ‖x‖² + ‖r‖² - 2 (x ⋆ r): the shift of greatest correlation, for each sprite r of the grid."""
    drawn = render(*grid, size=size)
    spectrum = torch.fft.rfft2(drawn, s=(2 * size, 2 * size)).conj()
    reach = round(size / 4)  # centres lie within a quarter of the side from the middle
    best, where = [], []
    for part in x.split(16):
        correlation = torch.fft.irfft2(torch.fft.rfft2(part, s=(2 * size, 2 * size))[:, None] * spectrum)
        near = torch.cat([correlation[..., -reach:, :], correlation[..., : reach + 1, :]], -2)
        near = torch.cat([near[..., -reach:], near[..., : reach + 1]], -1)  # shifts -reach..reach, both ways
        top, place = near.flatten(2).max(2)
        score = drawn.square().sum((1, 2)) - 2 * top
        least = score.argmin(1)
        rows = torch.arange(len(part))
        best.append(torch.stack([least, place[rows, least]], 1))
        where.append((score[rows, least] + part.square().sum((1, 2))) / size**2)
    index = torch.cat(best).numpy()
    i, place = index[:, 0], index[:, 1]
    down, right = np.divmod(place, 2 * reach + 1)
    # A shift by one pixel of the picture is 64 / size of the official's, and places count 32 of those.
    unit = 64 / size / 32
    x0, y0 = np.clip(0.5 + (right - reach) * unit, 0, 1), np.clip(0.5 + (down - reach) * unit, 0, 1)
    return Sprites(grid.shape[i], grid.scale[i], grid.angle[i], x0, y0), torch.cat(where).numpy()


def _refined(
    x: Float32[Tensor, "n s s"], z: Sprites, error: np.ndarray, step: np.ndarray, size: int
) -> tuple[Sprites, np.ndarray]:
    """One round of steps up and down of scale, angle, x and y, each kept where it makes the picture more alike."""
    free = np.stack([z.scale, z.angle, z.x, z.y], 1)
    low, high = np.array([0.3, -np.inf, 0.0, 0.0]), np.array([1.0, np.inf, 1.0, 1.0])
    for axis in (2, 3, 0, 1, 2, 3):
        for sign in (1, -1):
            tried = free.copy()
            tried[:, axis] = np.clip(tried[:, axis] + sign * step[axis], low[axis], high[axis])
            drawn = render(z.shape, *(tried[:, k] for k in range(4)), size=size)
            new = (drawn - x).square().mean((1, 2)).numpy()
            better = new < error
            free[better], error = tried[better], np.where(better, new, error)
    return Sprites(z.shape, free[:, 0], free[:, 1] % (2 * np.pi), free[:, 2], free[:, 3]), error


def angle_error(found: np.ndarray, wanted: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """The least difference of two angles in radians, up to the turns that leave the shape as it is."""
    turn = 2 * np.pi / np.array(SYMMETRY)[shape]
    off = np.abs(found - wanted) % turn
    return np.minimum(off, turn - off)
