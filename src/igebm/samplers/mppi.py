"""Model predictive path integral sampling, the paper's gradient-free sampler for trajectories (arXiv:1903.08689v1,
eq. 5)."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from ..energy import Energy, checked
from .chain import Info, Kernel, State


def step(
    E: Energy,
    x: Float[Tensor, "b *d"],
    candidates: int,
    noise: float,
    temperature: float = 1.0,
    box: tuple[float, float] | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, "b *d"], Float[Tensor, "b"]]:
    """xᵢ = x + σ ωᵢ;   wᵢ = softmax(-E(xᵢ) / T);   x ← Σᵢ wᵢ xᵢ,   i = 1..candidates   (eq. 5)

    T = 1 is the paper's; T -> 0 takes the best candidate. Returns the new x and each item's energy averaged over its
    candidates with w.
    """
    omega = torch.randn(x.shape[0], candidates, *x.shape[1:], generator=generator, device=x.device, dtype=x.dtype)
    x_i = x[:, None] + noise * omega
    if box is not None:
        x_i = x_i.clamp(*box)
    e_i = repeated(E, candidates)(x_i)
    w = torch.softmax(-e_i / temperature, dim=1)
    return torch.einsum("bk,bk...->b...", w.to(x.dtype), x_i), (w * e_i).sum(1)


def repeated(E: Energy, candidates: int) -> Callable[[Tensor], Tensor]:
    """(B, candidates, *shape) -> (B, candidates): one call of E for each candidate index, so that what E binds item
    by item (labels, the past of a trajectory) stays beside its item."""
    return lambda x: torch.stack([checked(E(x[:, i]), x) for i in range(candidates)], dim=1)


def mppi(
    candidates: int = 5, noise: float = 0.005, temperature: float = 1.0, box: tuple[float, float] | None = None
) -> Kernel:
    """The kernel of `step`. The paper's trajectories: 30 steps of 5 candidates."""

    def kernel(E: Energy, state: State, generator: torch.Generator | None) -> tuple[State, Info]:
        x, e = step(E, state.x, candidates, noise, temperature, box, generator)
        return State(x), Info(e=e)

    return kernel
