"""What a preset costs before it is run: parameters and floating-point operations, counted from the network itself."""

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..energy import energy_and_grad
from ..model import Shape, build_net
from ..nets.fold import attached, frozen
from ..presets import Preset


def cost(preset: Preset, shape: Shape) -> dict[str, Any]:
    """Parameters; FLOP (2 per multiply-add, convolutions and matrix products) of one image in a chain step and in an
    update, and of a whole iteration: batch (K chain steps + the update on as many data as samples)."""
    net = build_net(preset, shape)
    x = torch.rand(1, *shape.image)
    y = torch.zeros(1, dtype=torch.long) if net.condition else None
    step = _count(lambda: energy_and_grad(frozen(net, y), x))
    update = _count(lambda: attached(net, y)(x).sum().backward())
    return {
        "parameters": sum(p.numel() for p in net.parameters()),
        "flop_per_image_and_chain_step": step,
        "flop_per_image_and_update": update,
        "flop_per_iteration": preset.batch * (preset.chain_steps * step + 2 * update),
    }


def _count(f) -> int:
    with FlopCounterMode(display=False) as counter:
        f()
    return counter.get_total_flops()
