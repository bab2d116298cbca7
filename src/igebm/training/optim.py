"""Adam as the paper uses it (section 8.2): β = (0, 0.999), and each gradient entry clipped at three standard
deviations."""

# pyright: reportPrivateImportUsage=false
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..presets import Preset


def adam(net: nn.Module, preset: Preset) -> torch.optim.Adam:
    # On a CPU the fused step reads and writes each number once, a quarter of the time of many passes over all of them.
    kind = {"fused": True} if next(net.parameters()).device.type == "cpu" else {"foreach": True}
    return torch.optim.Adam(net.parameters(), lr=preset.lr, betas=(float(preset.beta1), float(preset.beta2)), **kind)


CACHED = 1 << 17
"""entries clipped at a time on a CPU: what its cache holds"""


@torch.no_grad()
def clip_to_sigmas(optimizer: torch.optim.Adam, variant: str = "paper", sigmas: float = 3.0) -> Tensor:
    """g ← clip(g, ±b), entry by entry, with v the previous step's second moment (in place; call before
    `optimizer.step`)

    "paper":    b = 3 √(v_{t-1} / (1 - β₂^(t-1))), the bias-corrected estimate; no bound for an entry that has had no
                gradient yet (v = 0: a class not seen so far), which would otherwise stay at its start for good.
    "release":  b = 3 √(v_{t-1} / (1 - β₂^t)) + 0.1, from the first step on.
    "none":     no bound.

    Returns the share of entries that were clipped, a scalar tensor.
    """
    held = [
        (p.grad, *_second_moment(optimizer.state.get(p, {}), p.grad, group["betas"][1], variant))
        for group in optimizer.param_groups
        for p in group["params"]
        if p.grad is not None
    ]
    if variant == "none" or not held:
        return torch.zeros((), device=optimizer.param_groups[0]["params"][0].device)
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


def _second_moment(state: dict, grad: Tensor, beta2: float, variant: str) -> tuple[Tensor, float]:
    """v_{t-1}, and what it is divided by: 1 - β₂^(t-1), or in the released code 1 - β₂^t; 0 and anything where no step
    was taken yet."""
    taken = float(state["step"]) if state else 0.0
    v = state["exp_avg_sq"] if state else torch.zeros_like(grad)
    return v, 1 - beta2 ** (taken + 1 if variant == "release" else max(taken, 1.0))


def _clip(g: Tensor, v: Tensor, variant: str, sigmas: float) -> Tensor:
    """g ← clip(g, ±b), in place; the number of entries that were clipped. Without masks, which a CPU is slow at."""
    b = v.sqrt_().mul_(sigmas)
    b = b.add_(0.1) if variant == "release" else F.threshold(b, 0.0, torch.inf, inplace=True)
    bounded = torch.clamp(g, -b, b)
    clipped = (g - bounded).sign_().abs_().sum()
    g.copy_(bounded)
    return clipped


def warmed_up(lr: float, step: int, warmup: int) -> float:
    """The learning rate of iteration `step` (from 1): linear from lr / warmup to lr."""
    return lr * min(1.0, step / warmup) if warmup else lr
