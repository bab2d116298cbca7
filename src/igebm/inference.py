"""Latents from an image: chains over the condition of E(x | y) at a fixed x (section 6).

A chain moves z in [0, 1]^d, the latents in shares of their ranges; of an angle, z is the turn itself and has no ends.
What it samples is exp(-E(x | y) / T) under a uniform prior: the posterior of y as far as log Z(y) is the same for all
y, which training does not promise.
"""

import math
from collections.abc import Sequence

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


NOISE = 0.03
"""of a step over the latents, in units of their ranges (released code)"""


def step_size(preset: Preset, noise: float) -> float:
    """λ of chains over the latents whose density is exp(-E / T), T = σ² / 2λ: that of the posterior which training
    asked for (`label_temperature`), or the released code's 1 where it asked for none."""
    return noise**2 / (2 * preset.label_temperature) if preset.label_weight else 1.0


def chain(
    E: Energy,
    y: Float[Tensor, "b d"],
    latents: Sequence[Latent],
    steps: int,
    step_size: float = 1.0,
    noise: float = NOISE,
    generator: torch.Generator | None = None,
    record: Record | None = None,
) -> Float[Tensor, "b d"]:
    """Langevin steps (eq. 4) over the latents from y, with E a function of them (`Twin.over`). Defaults: the released
    code's, in units of the ranges."""
    box = None if on_circle(latents) else (0.0, 1.0)
    start = to_unit(y, latents)
    end, _ = run(
        langevin(step_size, noise, box=box), lambda z: E(from_unit(z, latents)), start, steps, generator, record
    )
    return from_unit(end.x, latents)
