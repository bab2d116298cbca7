"""Restoration: a chain that moves only where a mask says so (the paper's in-painting, Fig. 4)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..energy import Energy
from .chain import Info, Kernel, State


def masked(kernel: Kernel, mask: Bool[Tensor, "*m"], known: Float[Tensor, "b *d"], inside: float = 0.5) -> Kernel:
    """`kernel` on the free entries alone: mask true = free (filled by the chain), false = kept exactly as in `known`.

    The kernel sees E(where(mask, x, known)), a function of the free entries only, so that what it targets is the
    conditional p(x_free | x_known): the gradient outside is zero, acceptance steps stay exact, and the kept entries
    are restored to the last bit after each step. `mask` broadcasts against `known`.

    `inside` is what the kernel sees in place of the kept entries: a place well inside its box, since a kept entry at
    the wall (a black border) would have MALA and HMC reject nearly every proposal.
    """

    def fill(x: Tensor) -> Tensor:
        return torch.where(mask, x, known)

    seen: tuple[Energy, Energy] | None = None  # E, and what the kernel sees of it: one object for all of a chain

    def kernel_masked(E: Energy, state: State, generator: torch.Generator | None) -> tuple[State, Info]:
        nonlocal seen
        if seen is None or seen[0] is not E:
            seen = E, lambda x: E(fill(x))
        hidden = state._replace(x=torch.where(mask, state.x, inside))
        moved, info = kernel(seen[1], hidden, generator)
        return moved._replace(x=fill(moved.x)), info

    return kernel_masked
