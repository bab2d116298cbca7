"""The averaged weights: θ̄ ← d θ̄ + (1 - d) θ after each update. Only parameters are averaged: the power iteration's
vectors of an averaged network belong to its own weights and are worked out anew (averaged, they would shrink)."""

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..nets.layers import power_iteration

Averages = dict[str, Tensor]


def start(net: nn.Module) -> Averages:
    return {name: p.detach().clone() for name, p in net.named_parameters()}


@torch.no_grad()
def update(averages: Averages, net: nn.Module, decay: float, updates: int) -> None:
    """d = min(decay, (1 + n) / (10 + n)) with n the updates so far, so that the start is forgotten quickly."""
    d = min(decay, (1 + updates) / (10 + updates))
    names, parameters = zip(*net.named_parameters(), strict=True)
    torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
        [averages[name] for name in names], list(parameters), 1 - d
    )


def restore(averages: Averages, saved: Averages, path: Path) -> None:
    """Put a checkpoint's averages into `averages`. Raises InputError where they are another network's."""
    strange = sorted(set(averages) ^ set(saved))
    strange += [name for name, t in averages.items() if name in saved and saved[name].shape != t.shape]
    if strange:
        raise InputError(f"{path} is of another network: its averaged weights differ in {', '.join(strange[:3])}")
    for name, t in saved.items():
        averages[name].copy_(t)


def network(averages: Averages, net: nn.Module) -> nn.Module:
    """A copy of `net` with the averaged weights, their spectral norms exact. `net` and `averages` stay as they are."""
    averaged = copy.deepcopy(net)
    averaged.load_state_dict(averages, strict=False)
    power_iteration(averaged, 30)
    return averaged.eval().requires_grad_(False)
