"""3x3 convolutions on a CPU with a quarter of the multiplications: Winograd's F(4x4, 3x3), by winograd.c.

Lavin & Gray, arXiv:1509.09308. For chains alone: derivatives are of first order, and in x. Numbers are to be of a
chain's size: a pixel's rounding error reaches the 16 places that share its patch.
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


def _transformed(w: Float[Tensor, "o c 3 3"]) -> Float[Tensor, "36 p c panel"]:
    """G w Gᵀ as one matrix product, (G ⊗ G) vec(w), its channels out in panels."""
    o, c, panel = *w.shape[:2], native.library().panel()
    columns = w.reshape(o // panel, panel, c, 9).permute(3, 0, 2, 1).reshape(9, -1)  # (9, o c), channels out innermost
    return (torch.kron(G, G) @ columns).view(36, o // panel, c, panel)


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, k, down, gain, bias, add, slope):
        y = _run(x, k.forth, x.shape[2:], down=down, gain=gain, bias=bias, add=add, slope=slope)
        ctx.k, ctx.down, ctx.size, ctx.gain, ctx.slope, ctx.added = k, down, x.shape[2:], gain, slope, add is not None
        ctx.save_for_backward(y if slope != 1 else None)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor):  # type: ignore[override]
        (y,) = ctx.saved_tensors
        if ctx.added and y is not None:  # what is added has this gradient too
            g, y = torch.ops.aten.leaky_relu_backward(g, y, ctx.slope, True), None
        slope = 1.0 if y is None else ctx.slope
        dx = _run(g, ctx.k.back, ctx.size, up=ctx.down, in_gain=ctx.gain, sign=y, slope=slope)
        return dx, None, None, None, None, g if ctx.added else None, None


def conv3x3(
    x: Float[Tensor, "b c h w"],
    k: Kernel,
    down: bool = False,
    gain: Float[Tensor, "n o 1 1"] | None = None,
    bias: Float[Tensor, "n o 1 1"] | None = None,
    add: Float[Tensor, "b o h2 w2"] | None = None,
    slope: float = 1.0,
) -> Float[Tensor, "b o h2 w2"]:
    """leaky(gain conv(x) + bias + add), zero padding, in one pass; with `down` conv is followed by the 2x2 average.
    leaky(z) is z or slope z. Computes in float32, on images of float32 or bfloat16 (others are converted).
    Differentiable in x and `add`; `gain` and `bias` (n: 1 or b) are constants."""
    return _Conv.apply(x, k, down, gain, bias, add, slope)


def _run(x: Tensor, u: Tensor, size: torch.Size, up=False, down=False, slope=1.0, **given: Tensor | None) -> Tensor:
    """One call of the library: an image of `size` places, taken from or brought to half of it."""
    (b, c), (h, w), (_, panels, channels, panel) = x.shape[:2], size, u.shape
    o, dtype = panels * panel, x.dtype if x.dtype is torch.bfloat16 else torch.float32
    shapes = {"x": (b, channels, h >> up, w >> up), "sign": x.shape, "add": (b, o, h >> down, w >> down)}
    rows = {"gain": o, "bias": o, "in_gain": c}
    there = {name: t for name, t in (given | {"x": x}).items() if t is not None}
    for name, t in there.items():  # the library would read beyond what is there
        fits = t.shape == shapes[name] if name in shapes else t.shape in ((1, rows[name], 1, 1), (b, rows[name], 1, 1))
        if not fits:
            raise ValueError(f"{name} of a convolution has the shape {tuple(t.shape)}, on images {tuple(x.shape)}")
    each = any(t.shape[0] > 1 for name, t in there.items() if name in rows)  # a gain for each image, or one for all
    # Images lie channels last, in one dtype; gains and biases as rows of float32.
    image = lambda t: t.to(dtype).permute(0, 2, 3, 1).contiguous()
    row = lambda t: t.float().flatten(1).expand(b if each else 1, -1).contiguous()
    held = {name: (image if name in shapes else row)(t) for name, t in there.items()}
    y = torch.empty(shapes["add"], dtype=dtype, memory_format=torch.channels_last)
    asked = native.Convolution(
        u=u.data_ptr(), y=y.data_ptr(), images=b, h=h, w=w, c=c, o=o, up=up, down=down,
        half=dtype is torch.bfloat16, slope=slope, step=o * each, in_step=c * each, threads=torch.get_num_threads(),
        **{name: t.data_ptr() for name, t in held.items()},
    )  # fmt: skip
    if native.library().convolve(ctypes.byref(asked)):
        raise MemoryError("out of memory for a convolution's patches")
    return y.to(x.dtype)
