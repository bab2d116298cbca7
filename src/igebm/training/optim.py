"""Adam as the paper uses it (section 8.2): β = (0, 0.999), and each gradient entry clipped at three standard
deviations."""

# pyright: reportPrivateImportUsage=false
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
    held = [(p, optimizer.state.get(p, {}), g["betas"][1]) for g in optimizer.param_groups for p in g["params"]]
    held = [(p.grad, state, beta2) for p, state, beta2 in held if p.grad is not None]
    if variant == "none" or not held:
        return torch.zeros((), device=optimizer.param_groups[0]["params"][0].device)
    # All entries as one vector: on a GPU the many small tensors would cost a dozen launches each.
    grads = [grad for grad, _, _ in held]
    g = torch.cat([grad.flatten() for grad in grads])
    v = torch.cat([v.flatten() for v in _second_moments(held, variant)])
    b = sigmas * v.sqrt() + 0.1 if variant == "release" else (sigmas * v.sqrt()).masked_fill_(v == 0, torch.inf)
    bounded = torch.minimum(torch.maximum(g, -b), b)
    pieces = bounded.split([grad.numel() for grad in grads])
    torch._foreach_copy_(grads, [piece.view_as(grad) for piece, grad in zip(pieces, grads, strict=True)])
    return (bounded != g).float().mean()


def _second_moments(held: list[tuple[Tensor, dict, float]], variant: str) -> tuple[Tensor, ...]:
    """v_{t-1} over 1 - β₂^(t-1), or in the released code over 1 - β₂^t; 0 where no step was taken yet."""
    taken = [float(state["step"]) if state else 0 for _, state, _ in held]
    vs = [state["exp_avg_sq"] if state else torch.zeros_like(grad) for grad, state, _ in held]
    t = [n + 1 if variant == "release" else max(n, 1) for n in taken]
    return torch._foreach_div(vs, [1 - beta2**n for n, (_, _, beta2) in zip(t, held, strict=True)])


def warmed_up(lr: float, step: int, warmup: int) -> float:
    """The learning rate of iteration `step` (from 1): linear from lr / warmup to lr."""
    return lr * min(1.0, step / warmup) if warmup else lr
