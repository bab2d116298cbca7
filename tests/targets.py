"""Densities whose answers are known: the problems that samplers are held against."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from igebm.energy import Energy

PRECISION = torch.tensor([[2.0, 0.6], [0.6, 1.0]], dtype=torch.float64)
"""of the correlated Gaussian; its eigenvalues are 0.72 and 2.28"""


def gaussian(P: Tensor = PRECISION, mean: Tensor | None = None) -> Energy:
    """E(x) = ½ (x - μ)ᵀ P (x - μ): covariance P⁻¹, log Z = (d/2) log 2π - ½ log det P."""
    mu = torch.zeros(len(P), dtype=P.dtype) if mean is None else mean
    return lambda x: 0.5 * torch.einsum("bi,ij,bj->b", x - mu, P, x - mu)


def gaussian_log_z(P: Tensor = PRECISION) -> float:
    return 0.5 * len(P) * math.log(2 * math.pi) - 0.5 * torch.logdet(P).item()


class Known(NamedTuple):
    E: Energy
    mean: float
    variance: float


EULER_GAMMA = 0.5772156649015329
GUMBEL = Known(lambda x: (x.exp() - x).sum(1), -EULER_GAMMA, math.pi**2 / 6)
"""E(x) = eˣ - x: asymmetric, so that a wrong sign or direction shows (-x is Gumbel distributed)"""


def five_sigma(draws: Tensor, truth: float) -> None:
    """The mean of draws (chains, n) within 5 standard errors, which count effective draws only; first, there must be
    enough."""
    from igebm.diagnostics import ess, r_hat

    n = ess(draws)
    assert n > 1000, f"only {n:.0f} effective draws: the test would see nothing"
    assert r_hat(draws) < 1.01
    error = draws.std().item() / math.sqrt(n)
    assert abs(draws.mean().item() - truth) < 5 * error, f"{draws.mean().item()} ± {error}, truth {truth}"
