"""A network with its condition bound, in the forms that training needs, whatever the network is.

Images go through their folded form (fold.py); a trajectory's network is small and is called as it is.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..energy import Energy
from ..runtime import Compiled
from . import fold
from .image import ImageEnergy


class Plain:
    """What a chain runs on where there is nothing to fold: the network itself, seen as frozen. As fold.Twin."""

    def __init__(self, net: nn.Module):
        self.net = net

    def refresh(self) -> None:
        """Nothing is copied, so nothing is to be done."""

    def given(self, y: Tensor | None = None) -> Energy:
        return frozen(self.net, y)


def sampled(net: nn.Module, dtype: torch.dtype, compiled: Compiled) -> "fold.Twin | Plain":
    """The frozen form that chains run on. A trajectory's stays in float32, its states being told apart by small
    steps."""
    return fold.Twin(net, dtype, compiled) if isinstance(net, ImageEnergy) else Plain(net)


def attached(net: nn.Module, y: Tensor | None = None) -> Energy:
    """E(· | y) as a function of the parameters too: for chains and losses that gradients flow through."""
    return fold.attached(net, y) if isinstance(net, ImageEnergy) else lambda x: net(x, y)


def updated(net: nn.Module, dtype: torch.dtype, compiled: bool) -> Callable[..., Energy]:
    """y -> E(· | y) as the update takes it: `attached`, with an image network's two passes in `dtype` and, where asked,
    compiled (so that it has first derivatives only). y may be for some images several times (`fold.energy`'s
    `again`)."""
    if not isinstance(net, ImageEnergy):
        return lambda y, again=(0, 0): attached(net, y)
    value = fold.compile(fold.energy, fold.energy) if compiled else fold.energy
    return lambda y, again=(0, 0): fold.attached(net, y, dtype, value, again)


def frozen(net: nn.Module, y: Tensor | None = None) -> Energy:
    """E_θ̄(· | y): differentiable in x to any order, but not in the parameters (eq. 9)."""
    if isinstance(net, ImageEnergy):
        return fold.frozen(net, y)
    stopped = {name: t.detach() for name, t in net.state_dict(keep_vars=True).items()}
    return lambda x: functional_call(net, stopped, (x, y))
