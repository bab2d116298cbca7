"""Annealed importance sampling, forwards and backwards, so that log Z lies between two estimates.

Neal, Statistics and Computing 11 (2001), 125-139; the bracket: Grosse, Ghahramani & Adams, arXiv:1511.02543.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..compose import bridge
from ..energy import Energy
from .chain import Kernel, State, run


def log_weights(
    E0: Energy,
    E1: Energy,
    x: Float[Tensor, "b *d"],
    betas: Sequence[float],
    kernel: Callable[[float], Kernel],
    transitions: int = 1,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "b"]:
    """log w = Σₖ (βₖ - βₖ₋₁) (E₀(xₖ₋₁) - E₁(xₖ₋₁)),   xₖ by `transitions` steps of kernel(βₖ) at (1 - βₖ) E₀ + βₖ E₁

    `x` are exact samples at betas[0]; then ⟨w⟩ = Z(last β) / Z(first β). betas from 0 to 1 go forwards, from 1 to 0
    backwards. `kernel(β)` gives the kernel for a rung, so that its step can shrink as β grows; it must leave its target
    invariant (HMC, MALA).
    """
    log_w = torch.zeros(len(x), device=x.device, dtype=torch.float64)
    for previous, beta in zip(betas, betas[1:], strict=False):
        with torch.no_grad():
            log_w += ((beta - previous) * (E0(x) - E1(x))).double()
        if beta != betas[-1]:  # nothing is read after the last rung
            x = run(kernel(beta), bridge(E0, E1, beta), State(x), transitions, generator)[0].x
    return log_w


class Bracket(NamedTuple):
    """Stochastic bounds of log Z₁ in nats, each with its standard error (delta method)."""

    lower: float
    lower_error: float
    upper: float
    upper_error: float


def log_partition_bracket(
    E0: Energy,
    log_z0: float,
    x0: Float[Tensor, "b *d"],
    E1: Energy,
    x1: Float[Tensor, "n *d"],
    betas: Sequence[float],
    kernel: Callable[[float], Kernel],
    transitions: int = 1,
    generator: torch.Generator | None = None,
) -> Bracket:
    """log Z₁ from below (forwards, from exact samples x0 of E₀) and from above (backwards, from samples x1 of E₁).

    E[w] is unbiased, so by Jensen log ⟨w⟩ is below log Z₁ on average forwards, and above it backwards, provided x1
    are exact samples of E₁. Where they come from a chain that has not mixed, the upper end is an estimate and no
    bound.
    """
    forwards = log_weights(E0, E1, x0, list(betas), kernel, transitions, generator)
    backwards = log_weights(E0, E1, x1, list(betas)[::-1], kernel, transitions, generator)
    lower, lower_error = log_mean_exp(forwards)
    upper, upper_error = log_mean_exp(backwards)
    return Bracket(log_z0 + lower, lower_error, log_z0 - upper, upper_error)


def log_mean_exp(log_w: Float[Tensor, "n"]) -> tuple[float, float]:
    """log ⟨w⟩ and its standard error: sd(w) / (⟨w⟩ √n)."""
    n = len(log_w)
    log_mean = (torch.logsumexp(log_w, 0) - math.log(n)).item()
    ratio = (log_w - log_mean).exp()
    return log_mean, (ratio.std().item() / math.sqrt(n) if n > 1 else math.inf)
