"""Latents read back from rendered sprites, for which they are known."""

from dataclasses import replace

import numpy as np
import pytest

from igebm import model
from igebm.data.dsprites import Sprites, pictures
from igebm.evaluation.concepts import by_whether_seen, never_seen
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


def test_errors_of_combinations_that_training_lacked_are_told_apart():
    """Four sprites, the first two small and held out by one of two models: their scales are off by 0.2 and 0.1, those
    of the others by 0 and 0.05; the mean of each pair by hand."""
    wanted = of_scales([0.5, 0.6, 0.9, 1.0])
    found = of_scales([0.7, 0.7, 0.9, 0.95])
    m = model.load("dsprites-scale")
    without = replace(m, preset=replace(m.preset, data="dsprites-scale:without:scale=0.5..0.7"))
    unseen = never_seen([m, without], wanted)
    assert unseen is not None and unseen.tolist() == [True, True, False, False] and never_seen([m], wanted) is None
    rows = by_whether_seen(found, wanted, unseen, ["scale"])
    assert rows == {"seen": {"n": 2, "scale": 0.025}, "held_out": {"n": 2, "scale": 0.15}}
    assert by_whether_seen(found, wanted, np.zeros(4, bool), ["scale"])["held_out"] == {"n": 0}


def of_scales(scale: list[float]) -> Sprites:
    n = len(scale)
    return Sprites(np.zeros(n, np.int64), np.array(scale), np.zeros(n), np.full(n, 0.5), np.full(n, 0.5))
