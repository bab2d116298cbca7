"""3x3 convolutions on a CPU with a quarter of the multiplications: Winograd's F(4x4, 3x3), by winograd.c.

Lavin & Gray, arXiv:1509.09308. For chains alone: derivatives are of first order, and in x.
"""

import ctypes
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import native

G = torch.tensor(
    [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]
) / 24  # fmt: skip


class Kernel(NamedTuple):
    """What stands for a 3x3 kernel w (o, c, 3, 3): G w Gᵀ of it and of its adjoint, each (36, o / panel, c, panel)."""

    forth: Tensor
    back: Tensor


def suits(w: Tensor, dtype: torch.dtype) -> bool:
    """Whether the library takes a convolution by w on images of this dtype."""
    panel = native.library().panel()
    return (
        w.shape[2:] == (3, 3)
        and w.shape[0] % panel == w.shape[1] % panel == 0
        and dtype in (torch.float32, torch.bfloat16)
    )


def kernel(w: Float[Tensor, "o c 3 3"], down: bool = False) -> Kernel:
    """G w Gᵀ, and of the gradient's convolution: by w turned by 180°, its channels in and out exchanged. With `down`
    both are quartered: the library sums over 2x2 places, and the average is meant."""
    w = w.detach().float() / (4 if down else 1)
    return Kernel(_transformed(w), _transformed(w.flip(2, 3).transpose(0, 1)))


def _transformed(w: Tensor) -> Tensor:
    o, c, panel = *w.shape[:2], native.library().panel()
    g = G.to(w.device)
    u = torch.einsum("ua,ocab,vb->uvco", g, w, g)  # (6, 6, c, o)
    return u.reshape(36, c, o // panel, panel).transpose(1, 2).contiguous()


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, k: Kernel, down: bool) -> Tensor:
        ctx.k, ctx.down, ctx.size = k, down, x.shape[2:]
        return _run(x, k.forth, x.shape[2:], False, down)

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return _run(g, ctx.k.back, ctx.size, ctx.down, False), None, None


def conv3x3(x: Float[Tensor, "b c h w"], k: Kernel, down: bool = False) -> Float[Tensor, "b o h2 w2"]:
    """The convolution by w, zero padding; with `down` its 2x2 average pool. x is float32 or bfloat16."""
    return _Conv.apply(x, k, down)


def _run(x: Tensor, u: Tensor, size: torch.Size, up: bool, down: bool) -> Tensor:
    """One call of the library: an image of `size` places, taken from or brought to half of it."""
    (b, c), (h, w), (_, panels, _, panel) = x.shape[:2], size, u.shape
    x, o, half = x.permute(0, 2, 3, 1).contiguous(), panels * panel, x.dtype is torch.bfloat16
    y = torch.empty((b, o, h >> down, w >> down), dtype=x.dtype, memory_format=torch.channels_last)
    asked = native.Convolution(
        x.data_ptr(), u.data_ptr(), y.data_ptr(), b, h, w, c, o, up, down, half, torch.get_num_threads()
    )
    if native.library().convolve(ctypes.byref(asked)):
        raise MemoryError("out of memory for a convolution's patches")
    return y
