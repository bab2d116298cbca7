"""Latents read back from rendered sprites, for which they are known."""

import numpy as np
import pytest

from igebm.data.dsprites import Sprites, pictures
from igebm.evaluation.read_back import angle_error, read_back


def sprites(n: int, seed: int) -> Sprites:
    scale, turn, x, y = np.random.default_rng(seed).uniform(0, 1, (4, n))
    return Sprites(np.arange(n) % 3, 0.5 + scale / 2, 2 * np.pi * turn, x, y)


@pytest.mark.parametrize("size", [32, 64])
def test_rendered_sprites_are_read_back(size):
    z = sprites(30, 0)
    fit = read_back(pictures(z, size))
    assert (fit.z.shape == z.shape).mean() > 0.9  # a small square and a small ellipse differ in a few pixels
    same = fit.z.shape == z.shape
    assert np.abs(fit.z.scale - z.scale)[same].max() < 0.1 and np.median(np.abs(fit.z.scale - z.scale)[same]) < 0.02
    assert np.hypot(fit.z.x - z.x, fit.z.y - z.y)[same].max() < 0.04
    assert np.median(angle_error(fit.z.angle, z.angle, z.shape)[same]) < 0.06
    assert np.median(fit.error) < 0.002 and fit.error.max() < 0.03


def test_noise_reads_back_as_nothing_alike():
    noise = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 1), dtype=np.uint8)
    assert read_back(noise, rounds=1).error.min() > 0.1


def test_angles_are_compared_up_to_the_symmetry_of_the_shape():
    quarter = np.pi / 2
    found, wanted = np.array([quarter + 0.1, quarter, np.pi, 0.05]), np.array([0.0, 0.0, 0.0, 2 * np.pi - 0.05])
    assert angle_error(found, wanted, np.array([0, 1, 1, 2])) == pytest.approx([0.1, quarter, 0.0, 0.1])
