"""Annealed importance sampling brackets a partition function that is known."""

import math

import pytest
import torch
from targets import PRECISION, gaussian, gaussian_log_z

from igebm.samplers import hmc, log_partition_bracket, log_weights
from igebm.samplers.ais import log_mean_exp


def exact(P, n, generator):
    """Exact samples of the Gaussian with precision P."""
    return torch.randn(n, len(P), dtype=P.dtype, generator=generator) @ torch.linalg.cholesky(torch.linalg.inv(P)).T


def test_bracket_of_a_correlated_gaussian(generator):
    start, n = torch.eye(2, dtype=torch.float64), 2000
    bracket = log_partition_bracket(
        gaussian(start), gaussian_log_z(start), exact(start, n, generator),
        gaussian(), exact(PRECISION, n, generator),
        torch.linspace(0, 1, 30).tolist(), lambda beta: hmc(0.5, 3), generator=generator,
    )  # fmt: skip
    truth = gaussian_log_z()
    assert bracket.lower - 5 * bracket.lower_error < truth < bracket.upper + 5 * bracket.upper_error
    assert abs(bracket.lower - truth) < 0.05 and abs(bracket.upper - truth) < 0.05


def test_two_rungs_are_plain_importance_sampling(generator):
    """log w = E₀ - E₁ at the start, no transition: forwards the mean of w is Z₁/Z₀ exactly, and backwards Z₀/Z₁."""
    P0, P1 = torch.eye(1, dtype=torch.float64), 1.5 * torch.eye(1, dtype=torch.float64)
    x = exact(P0, 50_000, generator)
    log_w = log_weights(gaussian(P0), gaussian(P1), x, [0.0, 1.0], lambda beta: hmc(0.1))
    assert torch.allclose(log_w, gaussian(P0)(x) - gaussian(P1)(x))
    mean, error = log_mean_exp(log_w)
    assert abs(mean - 0.5 * math.log(1 / 1.5)) < 5 * error < 0.02


def test_more_rungs_tighten_the_bracket(generator):
    """Far ends: with 3 rungs the bounds are loose and on the right sides; with 100 they close in."""
    P0, P1 = torch.eye(4, dtype=torch.float64), 30 * torch.eye(4, dtype=torch.float64)
    gaps = []
    for rungs in (3, 100):
        b = log_partition_bracket(
            gaussian(P0), gaussian_log_z(P0), exact(P0, 500, generator), gaussian(P1), exact(P1, 500, generator),
            torch.linspace(0, 1, rungs).tolist(), lambda beta: hmc(0.5 / (1 + 29 * beta) ** 0.5, 3),
            generator=generator,
        )  # fmt: skip
        gaps.append(b.upper - b.lower)
        assert b.lower < gaussian_log_z(P1) + 0.05 and b.upper > gaussian_log_z(P1) - 0.05
    assert abs(gaps[1]) < 0.1 < gaps[0]


def test_log_mean_exp_by_hand():
    mean, error = log_mean_exp(torch.tensor([0.0, math.log(3.0)], dtype=torch.float64))
    assert mean == pytest.approx(math.log(2.0))
    assert error == pytest.approx(math.sqrt(2) / 2 / math.sqrt(2))  # w/⟨w⟩ = (½, 1½): sd √½, over √2
