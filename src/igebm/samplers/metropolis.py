"""The Metropolis-Hastings decision that MALA and HMC share."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..energy import Energy, energy_and_grad, over
from .chain import Info, State


class Point(NamedTuple):
    """A position (B, *shape) with its energy (B,) and gradient (B, *shape): a State with nothing missing."""

    x: Tensor
    e: Tensor
    g: Tensor


def point(E: Energy, state: State) -> Point:
    """`state` with its energy and gradient, evaluated where they are not at hand (the first step of a chain) or are
    another energy's."""
    if state.e is not None and state.g is not None and state.of is E:
        return Point(state.x, state.e, state.g)
    return Point(state.x, *energy_and_grad(E, state.x))


def accept(
    E: Energy,
    old: Point,
    new: Point,
    log_ratio: Float[Tensor, "b"],
    box: tuple[float, float] | None,
    generator: torch.Generator | None,
) -> tuple[State, Info]:
    """Keep `new` with probability min(1, e^log_ratio), item by item; otherwise stay at `old`. Outside the box: never.

    A log ratio that is not a number or below -1000, or an infinite energy, rejects and is counted in Info.divergent:
    never repaired, never hidden.
    """
    divergent = ~(log_ratio >= -1000.0) | ~torch.isfinite(new.e)
    prob = torch.where(divergent, torch.zeros_like(log_ratio), log_ratio.clamp(max=0.0).exp())
    if box is not None:
        prob = prob * ((new.x >= box[0]) & (new.x <= box[1])).flatten(1).all(1)
    u = torch.rand(prob.shape, generator=generator, device=prob.device, dtype=prob.dtype)
    taken = u < prob
    x, e, g = (torch.where(over(taken, n), n, o) for n, o in zip(new, old, strict=True))
    return State(x, e, g, E), Info(e=e, g=g, accept_prob=prob, divergent=divergent)
