"""Energies made of energies. Each takes and returns plain callables E(x) -> (B,), so they nest without limit."""

import math
from collections.abc import Sequence

import torch

from .energy import Energy


def product(*Es: Energy) -> Energy:
    """E(x) = Σᵢ Eᵢ(x),   p ∝ ∏ᵢ pᵢ: what all the factors agree on (the paper's concept combination, section 6)."""
    return lambda x: sum((E(x) for E in Es[1:]), start=Es[0](x))


def mixture(*Es: Energy, weights: Sequence[float] | None = None) -> Energy:
    """E(x) = -log Σᵢ wᵢ exp(-Eᵢ(x)),   p ∝ Σᵢ wᵢ e^(-Eᵢ): what any of the terms allows.

    The terms are unnormalised, so that the share of term i is wᵢ Zᵢ / Σⱼ wⱼ Zⱼ. `weights` default to 1 each and must be
    positive.
    """
    log_w = [math.log(w) for w in weights] if weights is not None else [0.0] * len(Es)
    return lambda x: -torch.logsumexp(torch.stack([w - E(x) for w, E in zip(log_w, Es, strict=True)]), dim=0)


def negation(E: Energy, F: Energy, alpha: float = 1.0) -> Energy:
    """E(x) - α F(x),   p ∝ p_E / p_F^α: E without what F likes. Proper only where E outgrows α F."""
    return lambda x: E(x) - alpha * F(x)


def tempered(E: Energy, beta: float) -> Energy:
    """β E(x),   p ∝ p_E^β: β > 1 sharpens, β < 1 flattens; β is one over the temperature."""
    return lambda x: beta * E(x)


def bridge(E0: Energy, E1: Energy, beta: float) -> Energy:
    """(1 - β) E₀(x) + β E₁(x),   p ∝ p₀^(1-β) p₁^β: the geometric path from E₀ (β = 0) to E₁ (β = 1) that AIS walks."""
    return lambda x: (1 - beta) * E0(x) + beta * E1(x)
