"""The paper's losses, as functions of energies.  Du & Mordatch, arXiv:1903.08689v1 (the workshop version's numbers).

`e_pos` are energies of data, `e_neg` of samples, each (B,); the two batches may differ in size. All return a scalar.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def contrastive(e_pos: Float[Tensor, "b"], e_neg: Float[Tensor, "n"]) -> Float[Tensor, ""]:
    """⟨E(x⁺)⟩ - ⟨E(x⁻)⟩   (eq. 3: contrastive divergence; what the released code runs)"""
    return e_pos.mean() - e_neg.mean()


def log_partition(e_pos: Float[Tensor, "b"], e_neg: Float[Tensor, "n"]) -> Float[Tensor, ""]:
    """⟨E(x⁺)⟩ + log Σᵢ exp(-E(x⁻ᵢ)) - log n   (eq. 7, with the mean in place of the sum: equal energies give 0)"""
    return e_pos.mean() + torch.logsumexp(-e_neg, dim=0) - math.log(len(e_neg))


def maximum_likelihood(e_pos: Float[Tensor, "b"], e_neg: Float[Tensor, "n"]) -> Float[Tensor, ""]:
    """⟨E(x⁺)⟩ - Σᵢ wᵢ E(x⁻ᵢ),   w = stop_gradient(softmax(-E(x⁻)))   (eq. 8, L_ML: the default)

    Its gradient is eq. 7's. (Algorithm 1 prints softmax(+E), a misprint: it would weight the worst samples most.) The
    weights make importance sampling of p out of *flat* samples; chains that have converged to p are weighted by p
    once more, so that at temperature 1 it is p² that comes to match the data. For the exact likelihood gradient take
    `contrastive`.
    """
    w = torch.softmax(-e_neg.detach(), dim=0)
    return e_pos.mean() - (w * e_neg).sum()


def softplus(e_pos: Float[Tensor, "b"], e_neg: Float[Tensor, "b"]) -> Float[Tensor, ""]:
    """⟨log(1 + exp(E(x⁺ᵢ) - E(x⁻ᵢ)))⟩ over pairs   (the released code's third objective, "most stable" by its own
    help)"""
    return F.softplus(e_pos - e_neg).mean()


def kl(e_frozen: Float[Tensor, "n"]) -> Float[Tensor, ""]:
    """⟨E_θ̄(x⁻(θ))⟩   (eq. 9, L_KL)

    `e_frozen` is the energy with its weights stopped (θ̄) at samples that carry θ through the sampler
    (`chain.run(..., differentiate=...)`): the only gradient is the one that flows along the chain.
    """
    return e_frozen.mean()


def posterior(e: Float[Tensor, "b m"]) -> Float[Tensor, ""]:
    """-⟨log p(y | x⁺)⟩,   p(y | x) = exp(-E(x | y)) / Σⱼ exp(-E(x | yⱼ))   (Grathwohl et al., arXiv:1912.03263)

    e[:, 0] are the energies of images under their own conditions, e[:, 1:] under others; where the others are drawn
    from a uniform prior this is the posterior of y by importance sampling. It teaches E what the condition says.
    """
    return (e[:, 0] + torch.logsumexp(-e, dim=1)).mean()


def regulariser(e_pos: Float[Tensor, "b"], e_neg: Float[Tensor, "n"], alpha: float = 1.0) -> Float[Tensor, ""]:
    """α (⟨E(x⁺)²⟩ + ⟨E(x⁻)²⟩)   (eq. 10, L_reg): keeps the energies' scale and offset in place"""
    return alpha * (e_pos.square().mean() + e_neg.square().mean())


OBJECTIVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "contrastive": contrastive,
    "log-partition": log_partition,
    "maximum-likelihood": maximum_likelihood,
    "softplus": softplus,
}
"""The objectives that a preset may name."""
