"""Augmented chain starts: what later work does to a replayed sample before its chain goes on, so that chains do not all
end in the same few modes.  Du, Li, Tenenbaum & Mordatch, arXiv:2012.01316, section 3.3.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def augmented(x: Float[Tensor, "b c h w"], generator: torch.Generator | None = None) -> Float[Tensor, "b c h w"]:
    """Each image of [0, 1] cropped and resized, mirrored (1/2), re-coloured (8/10) or greyed (2/10), and blurred (1/2).

    Every draw is per image, on x's device; the whole batch goes through at once.
    """
    x = _cropped_and_mirrored(x, generator)
    if x.shape[1] == 3:
        x = _recoloured(x, generator)
    return _blurred(x, generator).clamp(0, 1)


def _uniform(x: Tensor, low: float, high: float, generator: torch.Generator | None) -> Tensor:
    """One draw an image, (B, 1, 1, 1)."""
    return low + (high - low) * torch.rand(len(x), 1, 1, 1, generator=generator, device=x.device, dtype=x.dtype)


def _cropped_and_mirrored(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """A square of 70 to 100 % of the side, anywhere inside, resized to the whole; x' = s x + t in grid coordinates
    [-1, 1]."""
    side = _uniform(x, 0.7, 1.0, generator).flatten()
    shift = (1 - side)[:, None] * (2 * torch.rand(len(x), 2, generator=generator, device=x.device, dtype=x.dtype) - 1)
    mirror = torch.where(_uniform(x, 0.0, 1.0, generator).flatten() < 0.5, -1.0, 1.0)
    zero = torch.zeros_like(side)
    rows = torch.stack([side * mirror, zero, shift[:, 0]], 1), torch.stack([zero, side, shift[:, 1]], 1)
    where = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    return F.grid_sample(x, where, padding_mode="reflection", align_corners=False)


def _recoloured(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Brightness, contrast and saturation times U(0.6, 1.4), each towards black, the mean grey, and the pixel's
    grey."""
    luma = x.new_tensor([0.299, 0.587, 0.114]).reshape(1, 3, 1, 1)
    grey = lambda x: (x * luma).sum(1, keepdim=True)
    y = x * _uniform(x, 0.6, 1.4, generator)
    y = torch.lerp(grey(y).mean((2, 3), keepdim=True).expand_as(y), y, _uniform(x, 0.6, 1.4, generator).expand_as(y))
    y = torch.lerp(grey(y).expand_as(y), y, _uniform(x, 0.6, 1.4, generator).expand_as(y))
    x = torch.where(_uniform(x, 0.0, 1.0, generator) < 0.8, y, x)
    return torch.where(_uniform(x, 0.0, 1.0, generator) < 0.2, grey(x).expand_as(x), x)


def _blurred(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """A 3x3 Gaussian of σ = U(0.1, 1) pixels, separable, for half of the images."""
    sigma = _uniform(x, 0.1, 1.0, generator)
    edge = torch.exp(-1 / (2 * sigma.square()))
    centre, side = 1 / (1 + 2 * edge), edge / (1 + 2 * edge)
    y = F.pad(x, (1, 1, 1, 1), mode="reflect" if min(x.shape[2:]) > 1 else "replicate")
    y = side * (y[..., :-2, :] + y[..., 2:, :]) + centre * y[..., 1:-1, :]
    y = side * (y[..., :-2] + y[..., 2:]) + centre * y[..., 1:-1]
    return torch.where(_uniform(x, 0.0, 1.0, generator) < 0.5, y, x)
