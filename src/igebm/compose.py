"""Energies made of energies. Each takes and returns plain callables E(x) -> (B,), so they nest without limit."""

import math
from collections.abc import Sequence

import torch

from .energy import Energy
from .errors import InputError


def product(*Es: Energy) -> Energy:
    """E(x) = Σᵢ Eᵢ(x),   p ∝ ∏ᵢ pᵢ: what all the factors agree on (the paper's concept combination, section 6). Raises
    InputError without a factor."""
    if not Es:
        raise InputError("a product needs a factor at least")
    return lambda x: sum((E(x) for E in Es[1:]), start=Es[0](x))


def mixture(*Es: Energy, weights: Sequence[float] | None = None, temperature: float = 1.0) -> Energy:
    """E(x) = -T log Σᵢ wᵢ exp(-Eᵢ(x) / T),   e^(-E / T) = Σᵢ wᵢ e^(-Eᵢ / T): what any of the terms allows.

    T is the temperature at which E is to be sampled: chains that draw from exp(-E / T) at another find no mixture (far
    below the energies' own, as the paper's chains are, that of T = 1 is their mean). At T = 0 it is the least of them.
    The terms are unnormalised, so that the share of term i is wᵢ Zᵢ / Σⱼ wⱼ Zⱼ, Zᵢ that of exp(-Eᵢ / T). `weights`
    default to 1 each. Raises InputError for weights that are not positive or not one a term, and for T < 0 or infinite.
    """
    w = [1.0] * len(Es) if weights is None else list(weights)
    if len(w) != len(Es) or not Es or min(w) <= 0 or not 0 <= temperature < math.inf:
        raise InputError(f"{len(Es)} terms, weights {w}, temperature {temperature:g}: a positive weight each, T >= 0")
    if temperature == 0:
        return lambda x: torch.stack([E(x) for E in Es]).amin(0)
    log_w, T = [math.log(wi) for wi in w], temperature
    return lambda x: -T * torch.logsumexp(torch.stack([wi - E(x) / T for wi, E in zip(log_w, Es, strict=True)]), dim=0)


def negation(E: Energy, F: Energy, alpha: float = 1.0) -> Energy:
    """E(x) - α F(x),   p ∝ p_E / p_F^α: E without what F likes. Proper only where E outgrows α F."""
    return lambda x: E(x) - alpha * F(x)


def tempered(E: Energy, beta: float) -> Energy:
    """β E(x),   p ∝ p_E^β: β > 1 sharpens, β < 1 flattens; β is one over the temperature."""
    return lambda x: beta * E(x)


def bridge(E0: Energy, E1: Energy, beta: float) -> Energy:
    """(1 - β) E₀(x) + β E₁(x),   p ∝ p₀^(1-β) p₁^β: the geometric path from E₀ (β = 0) to E₁ (β = 1) that AIS walks."""
    return lambda x: (1 - beta) * E0(x) + beta * E1(x)
