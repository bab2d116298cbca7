"""Adam as the paper uses it (section 8.2): β = (0, 0.999), and each gradient entry clipped at three standard
deviations."""

import torch
from torch import Tensor, nn

from ..presets import Preset


def adam(net: nn.Module, preset: Preset) -> torch.optim.Adam:
    return torch.optim.Adam(
        net.parameters(), lr=preset.lr, betas=(float(preset.beta1), float(preset.beta2)), foreach=True
    )


@torch.no_grad()
def clip_to_sigmas(optimizer: torch.optim.Adam, variant: str = "paper", sigmas: float = 3.0) -> Tensor:
    """g ← clip(g, ±b), entry by entry, with v the previous step's second moment (in place; call before
    `optimizer.step`)

    "paper":    b = 3 √(v_{t-1} / (1 - β₂^(t-1))), the bias-corrected estimate; no bound for an entry that has had no
    gradient
                yet (v = 0: a class not seen so far), which would otherwise stay at its start for good.
    "release":  b = 3 √(v_{t-1} / (1 - β₂^t)) + 0.1, from the first step on.
    "none":     no bound.

    Returns the share of entries that were clipped, a scalar tensor.
    """
    clipped, total = torch.zeros((), device=optimizer.param_groups[0]["params"][0].device), 0
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.grad is None:
                continue
            total += p.grad.numel()
            state = optimizer.state.get(p, {})
            bound = _bound(state, group["betas"][1], variant, sigmas)
            if bound is None:
                continue
            clipped += (p.grad.abs() > bound).sum()
            p.grad.copy_(torch.minimum(torch.maximum(p.grad, -bound), bound))
    return clipped / max(1, total)


def _bound(state: dict, beta2: float, variant: str, sigmas: float) -> Tensor | None:
    if variant == "none" or (variant == "paper" and not state):
        return None
    if not state:
        return torch.tensor(0.1)
    v, t = state["exp_avg_sq"], float(state["step"])  # t: steps taken so far
    if variant == "release":
        return sigmas * (v / (1 - beta2 ** (t + 1))).sqrt() + 0.1
    return (sigmas * (v / (1 - beta2**t)).sqrt()).masked_fill_(v == 0, torch.inf)


def warmed_up(lr: float, step: int, warmup: int) -> float:
    """The learning rate of iteration `step` (from 1): linear from lr / warmup to lr."""
    return lr * min(1.0, step / warmup) if warmup else lr
