"""Adam as the paper uses it (section 8.2): β = (0, 0.999), and each gradient entry clipped at three standard
deviations."""

# pyright: reportPrivateImportUsage=false
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from ..presets import Preset


def adam(net: nn.Module, preset: Preset) -> torch.optim.Adam:
    # Fused, each number is read and written once: a quarter of a CPU's time for many passes over all of them, and on a
    # GPU a few launches in the place of a hundred.
    betas = float(preset.beta1), float(preset.beta2)
    return torch.optim.Adam(net.parameters(), lr=preset.lr, betas=betas, fused=True)


def restore(optimizer: torch.optim.Adam, saved: dict[Any, dict[str, Tensor]], path: Path) -> None:
    """Put a checkpoint's moments into `optimizer`, whose hyper-parameters stay. Raises InputError for another
    network's."""
    strange = _strange_moments(optimizer, saved)
    if strange:
        raise InputError(f"{path} is of another network: the optimiser's moments differ in {strange}")
    optimizer.load_state_dict({"state": saved, "param_groups": optimizer.state_dict()["param_groups"]})


def _strange_moments(optimizer: torch.optim.Adam, saved: dict[Any, dict[str, Tensor]]) -> str:
    """The first of Adam's numbers that does not fit its parameter, or nothing."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for i, of in saved.items():
        if i not in range(len(parameters)):
            return f"parameter {i}"
        shapes = {"step": (), "exp_avg": parameters[i].shape, "exp_avg_sq": parameters[i].shape}
        for name, shape in shapes.items():
            if name not in of or of[name].shape != shape:
                return f"{name} of parameter {i}"
    return ""


CACHED = 1 << 17
"""entries clipped at a time on a CPU: what its cache holds"""


@torch.no_grad()
def clip_to_sigmas(
    optimizer: torch.optim.Adam, variant: str = "paper", sigmas: float = 3.0, taken: int | None = None
) -> Tensor:
    """g ← clip(g, ±b), entry by entry, with v the previous step's second moment (in place; call before
    `optimizer.step`)

    "paper":    b = 3 √(v_{t-1} / (1 - β₂^(t-1))), the bias-corrected estimate; no bound for an entry that has had no
                gradient yet (v = 0: a class not seen so far), which would otherwise stay at its start for good.
    "release":  b = 3 √(v_{t-1} / (1 - β₂^t)) + 0.1, from the first step on.
    "none":     no bound.

    `taken` is t - 1 where all parameters have taken as many steps; None: as the optimiser's state says, which a GPU
    keeps and is waited for.
    Returns the share of entries that were clipped, a scalar tensor.
    """
    moved = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if variant == "none" or not moved:
        return torch.zeros((), device=optimizer.param_groups[0]["params"][0].device)
    states = [optimizer.state.get(p, {}) for p in moved]
    t = [float(state["step"]) if state else 0.0 for state in states] if taken is None else [float(taken)] * len(moved)
    beta2 = optimizer.param_groups[0]["betas"][1]
    # What v is divided by; anything where no step was taken yet.
    c = [1 - beta2 ** (n + 1 if variant == "release" else max(n, 1.0)) for n in t]
    v = [state["exp_avg_sq"] if state else torch.zeros_like(p) for p, state in zip(moved, states, strict=True)]
    held = list(zip([p.grad for p in moved], v, c, strict=True))
    # As one vector: many small tensors would cost a dozen calls each. On a CPU large ones go part by part instead.
    one = [h for h in held if h[0].is_cuda or h[0].numel() <= CACHED]
    clipped = []
    if one:
        grads, v, c = zip(*one, strict=True)
        g = torch.cat([grad.flatten() for grad in grads])
        clipped.append(_clip(g, torch.cat([v.flatten() for v in torch._foreach_div(v, c)]), variant, sigmas))
        pieces = g.split([grad.numel() for grad in grads])
        torch._foreach_copy_(grads, [piece.view_as(grad) for piece, grad in zip(pieces, grads, strict=True)])
    for grad, v, c in held:
        if not grad.is_cuda and grad.numel() > CACHED:
            parts = zip(grad.view(-1).split(CACHED), v.view(-1).split(CACHED), strict=True)
            clipped += [_clip(g, part / c, variant, sigmas) for g, part in parts]
    return torch.stack(clipped).sum() / sum(grad.numel() for grad, _, _ in held)


def _clip(g: Tensor, v: Tensor, variant: str, sigmas: float) -> Tensor:
    """g ← clip(g, ±b), in place; the number of entries that were clipped. Without masks, which a CPU is slow at."""
    b = v.sqrt_().mul_(sigmas)
    b = b.add_(0.1) if variant == "release" else F.threshold(b, 0.0, torch.inf, inplace=True)
    bounded = torch.clamp(g, -b, b)
    clipped = (g - bounded).sign_().abs_().sum()
    g.copy_(bounded)
    return clipped


def step(optimizer: torch.optim.Adam, sound: Tensor) -> None:
    """Adam's step, where `sound` (a bool, on the device) is true: to look at it here would be to wait for a GPU. Says
    so the way that torch's scaler of gradients does."""
    optimizer.found_inf = (~sound).float()  # type: ignore[attr-defined]
    optimizer.step()


def warmed_up(lr: float, step: int, warmup: int) -> float:
    """The learning rate of iteration `step` (from 1): linear from lr / warmup to lr."""
    return lr * min(1.0, step / warmup) if warmup else lr
