"""What an energy is: a callable x -> E(x), one number for each item of a batch, with p(x) ∝ exp(-E(x)).

A network is one once its label is bound (`given`), and so is every composition of energies (compose.py). Kernels see
nothing else, so no sampler knows of labels, masks or models.

Two things an energy may do besides, for speed: `E.value_and_grad(x)` gives both where asking for the gradient of the
value would do more, and `E.replay(step, f, x, generator)` does f(E, x, generator), all of a chain's step, as one launch
on a GPU (fold.py has both).
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from .errors import InputError

Energy = Callable[[Tensor], Tensor]
"""(B, *shape) -> (B,); differentiable, and without interaction between the items of a batch."""


def energy_and_grad(
    E: Energy, x: Float[Tensor, "b *d"], create_graph: bool = False
) -> tuple[Float[Tensor, "b"], Float[Tensor, "b *d"]]:
    """E(x) and ∇ₓE(x). Items of a batch do not interact, so the gradient of the sum is the batch of gradients.

    With `create_graph` both stay differentiable, in x and in whatever E closes over; otherwise both are detached.
    Works inside `torch.no_grad` too. Raises InputError where E(x) is not one number for each item.

    An energy that has a `value_and_grad(x)` of its own is asked for that where no graph is needed.
    """
    at_once = getattr(E, "value_and_grad", None)
    if at_once is not None and not create_graph:
        e, g = at_once(x.detach())
        return checked(e, x), g
    with torch.enable_grad():
        if not (create_graph and x.requires_grad):
            x = x.detach().requires_grad_()
        e = checked(E(x), x)
        (g,) = torch.autograd.grad(e.sum(), x, create_graph=create_graph)
    return (e, g) if create_graph else (e.detach(), g)


def checked(e: Tensor, x: Tensor) -> Tensor:
    """`e` itself. Raises InputError where it is not one number for each item of x: the mistake that every new energy
    makes once."""
    if e.shape != x.shape[:1]:
        raise InputError(f"an energy gives one number for each item, (B,): for x {tuple(x.shape)} got {tuple(e.shape)}")
    return e


def over(item: Shaped[Tensor, "b"], like: Shaped[Tensor, "b *d"]) -> Tensor:
    """One number an item, (B,), shaped to broadcast over (B, *d)."""
    return item.reshape(-1, *[1] * (like.dim() - 1))


def given(net: Callable[[Tensor, Any], Tensor], y: Any) -> Energy:
    """E(· | y): the conditional energy with its label (or latents) bound."""
    return lambda x: net(x, y)
