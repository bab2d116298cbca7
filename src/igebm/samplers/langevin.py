"""Unadjusted Langevin dynamics, the paper's sampler.  Du & Mordatch, arXiv:1903.08689v1, eq. 4 and Algorithm 1."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..energy import Energy, energy_and_grad
from ..errors import InputError, unknown
from .chain import Info, Kernel, State


def step(
    E: Energy,
    x: Float[Tensor, "b *d"],
    step_size: float,
    noise: float,
    clip: float = 0.0,
    box: tuple[float, float] | None = None,
    order: Literal["after", "before"] = "after",
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, "b *d"], Float[Tensor, "b"], Float[Tensor, "b *d"]]:
    """x̃ᵏ = x̃ᵏ⁻¹ - η clip(∇E(x̃ᵏ⁻¹), ±V) + σ ω,   ω ~ N(0, I),   then clamped to the box       (eq. 4 / Algorithm 1)

    `step_size` η multiplies the gradient and nothing else; `noise` σ is the standard deviation of what is added, in
    units of x; `clip` V bounds each entry of the gradient (0: no bound). (Eq. 4 as printed multiplies the noise by
    the step too; Algorithm 1 and the released code do not, and neither do we.) order="before" is the released
    code's: noise first, the gradient taken at the noised point.

    Samples e^(-E/T) with T = σ²/2η as η -> 0: see diagnostics.temperature. Returns the new x, and E and ∇E (unclipped)
    where they were taken. Differentiable wherever gradients are enabled.
    """
    if order == "before":
        x = torch.add(x, _randn_like(x, generator), alpha=noise)
    e, g = energy_and_grad(E, x, create_graph=torch.is_grad_enabled())
    x = torch.sub(x, g.clamp(-clip, clip) if clip else g, alpha=step_size)
    if order == "after":
        x = torch.add(x, _randn_like(x, generator), alpha=noise)
    return (x if box is None else x.clamp(*box)), e, g


def langevin(
    step_size: float,
    noise: float,
    clip: float = 0.0,
    box: tuple[float, float] | None = None,
    order: Literal["after", "before"] = "after",
) -> Kernel:
    """The kernel of `step`. The paper's images: step_size 10, noise 0.005, clip 0.01, box (0, 1). Raises InputError for
    an order that is none, and for a step size, noise or clip below 0."""
    if order not in ("after", "before"):
        raise unknown("order", order, ("after", "before"))
    if not min(step_size, noise, clip) >= 0:
        raise InputError(f"step_size {step_size:g}, noise {noise:g}, clip {clip:g}: none of them is below 0")

    def move(E: Energy, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        return step(E, x, step_size, noise, clip, box, order, generator)

    def kernel(E: Energy, state: State, generator: torch.Generator | None) -> tuple[State, Info]:
        # Where E can be launched with all of the step at once (on a GPU), it is.
        replay = None if torch.is_grad_enabled() else getattr(E, "replay", None)
        if replay is None:
            x, e, g = move(E, state.x, generator)
        else:
            settings = step_size, noise, clip, None if box is None else tuple(box), order
            x, e, g = replay(settings, move, state.x, generator)
        return State(x), Info(e=e, g=g)

    return kernel


def _randn_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
