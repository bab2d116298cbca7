"""What tells a healthy chain or run from a sick one: energy gap, gradient norm, clipped and saturated shares, implied
temperature, effective sample size and R-hat. Those of tensors return scalar tensors, which stay on the device until
they are read; nothing is repaired here.
"""

import math

import numpy as np
from jaxtyping import Float
from torch import Tensor


def energy_gap(e_pos: Float[Tensor, "b"], e_neg: Float[Tensor, "n"]) -> Float[Tensor, ""]:
    """⟨E(x⁻)⟩ - ⟨E(x⁺)⟩. Near 0: samples and data look alike to E. Far above: chains do not keep up (more steps).
    Far below:
    chains have found places that E likes better than the data."""
    return e_neg.mean() - e_pos.mean()


def gradient_norm(g: Float[Tensor, "b *d"]) -> Float[Tensor, ""]:
    """⟨‖∇E(x)‖₂⟩ over the items of a batch."""
    return g.flatten(1).norm(dim=1).mean()


def clipped_share(g: Float[Tensor, "b *d"], clip: float) -> Float[Tensor, ""]:
    """The share of the gradient's entries beyond ±clip; 0 without a clip. At 1 the chain only follows signs."""
    return (g.abs() > (clip or math.inf)).float().mean()


def saturated_share(x: Float[Tensor, "b *d"], box: tuple[float, float] = (0.0, 1.0)) -> Float[Tensor, ""]:
    """The share of entries that lie on the box's walls. Near 1: black-and-white noise, steps too large."""
    return ((x <= box[0]) | (x >= box[1])).float().mean()


def temperature(step_size: float, noise: float) -> float:
    """T = σ² / 2η: what an unadjusted chain x - η ∇E + σ ω samples is e^(-E/T) as η -> 0.

    The paper's image settings (10 and 0.005) imply 1.25e-6: chains descend to modes rather than sample p.
    """
    return noise**2 / (2 * step_size) if step_size else math.inf


def noise_at(step_size: float, temperature: float = 1.0) -> float:
    """σ = √(2 η T): the noise with which step size η samples at temperature T."""
    return math.sqrt(2 * step_size * temperature)


def ess(draws: Float[Tensor, "chains draws"]) -> float:
    """Effective sample size (bulk, rank-normalised: Vehtari et al., arXiv:1903.08008) of one scalar over chains, by
    arviz."""
    from arviz_stats.base.array import array_stats

    return float(np.asarray(array_stats.ess(_array(draws))).item())


def r_hat(draws: Float[Tensor, "chains draws"]) -> float:
    """Rank-normalised split R-hat (arXiv:1903.08008) of one scalar over chains, by arviz; below 1.01 is good. One
    chain: nan."""
    from arviz_stats.base.array import array_stats

    return float(np.asarray(array_stats.rhat(_array(draws))).item())


def _array(draws: Tensor) -> np.ndarray:
    return draws.detach().cpu().double().numpy()
