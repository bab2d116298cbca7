"""Latents from an image: chains over the condition of E(x | y) at a fixed x (section 6).

A chain moves z in [0, 1]^d, the latents in shares of their ranges; of an angle, z is the turn itself and has no ends.
What it samples is exp(-E(x | y) / T) under a uniform prior: the posterior of y as far as log Z(y) is the same for all
y, which training does not promise.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from .data.latents import Latent, on_circle
from .energy import Energy
from .presets import Preset
from .samplers import langevin, run
from .samplers.chain import Record
from .shapes import Shape


def from_unit(z: Float[Tensor, "b k"], latents: Sequence[Latent]) -> Float[Tensor, "b d"]:
    """Latents from shares of their ranges; cosine and sine from a turn."""
    if on_circle(latents):
        return torch.cat([torch.cos(2 * math.pi * z), torch.sin(2 * math.pi * z)], dim=1)
    low, high = (z.new_tensor([getattr(latent, end) for latent in latents]) for end in ("low", "high"))
    return low + z * (high - low)


def to_unit(y: Float[Tensor, "b d"], latents: Sequence[Latent]) -> Float[Tensor, "b k"]:
    """The inverse of `from_unit`, turns in [0, 1)."""
    if on_circle(latents):
        return (torch.atan2(y[:, 1:], y[:, :1]) / (2 * math.pi)) % 1.0
    low, high = (y.new_tensor([getattr(latent, end) for latent in latents]) for end in ("low", "high"))
    return (y - low) / (high - low)


def others(y: Tensor, shape: Shape, n: int, generator: torch.Generator | None = None) -> Tensor:
    """Conditions (n, B, ...) that items under y, (B,) labels or (B, d) latents, might have had instead: other labels,
    none twice (so at most as many as there are), or latents uniform over their ranges."""
    if shape.latents:
        columns = 1 if on_circle(shape.latents) else len(shape.latents)
        z = torch.rand((n * len(y), columns), generator=generator, device=y.device)
        return from_unit(z, shape.latents).reshape(n, *y.shape)
    classes = len(shape.classes)
    order = torch.rand((len(y), classes - 1), generator=generator, device=y.device).argsort(1)[:, :n]
    return ((y[:, None] + 1 + order) % classes).T


class Steps(NamedTuple):
    """Langevin's settings of a chain over latents in shares of their ranges."""

    step_size: float
    noise: float
    order: Literal["after", "before"] = "after"


RELEASED = Steps(4.0, 0.06, "before")
"""the released code's chain over a sprite's size, λ = 1 and σ = 0.03 in units of a size from 0.5 to 1"""
NOISE = 0.03
"""of a step that keeps to a temperature"""


def steps_of(preset: Preset, step_size: float | None = None, noise: float | None = None) -> Steps:
    """Those of chains whose density is exp(-E / T), T = σ² / 2λ that of the posterior which training asked for
    (`label_temperature`); the released code's where it asked for none. What is given counts instead, and λ follows a
    σ that is given alone."""
    if not preset.label_weight:
        given = {"step_size": step_size, "noise": noise}
        return RELEASED._replace(**{name: value for name, value in given.items() if value is not None})
    noise = NOISE if noise is None else noise
    return Steps(noise**2 / (2 * preset.label_temperature) if step_size is None else step_size, noise)


def chain(
    E: Energy,
    y: Float[Tensor, "b d"],
    latents: Sequence[Latent],
    steps: int,
    each: Steps = RELEASED,
    generator: torch.Generator | None = None,
    record: Record | None = None,
) -> Float[Tensor, "b d"]:
    """Langevin steps (eq. 4) over the latents from y, with E a function of them (`Twin.over`)."""
    box = None if on_circle(latents) else (0.0, 1.0)
    start = to_unit(y, latents)
    kernel = langevin(each.step_size, each.noise, box=box, order=each.order)
    end, _ = run(kernel, lambda z: E(from_unit(z, latents)), start, steps, generator, record)
    return from_unit(end.x, latents)
