"""E(x) and ∇ₓE(x) of a folded network on a GPU, in some thirty kernels written in Triton (kernels.py).

A convolution is one matrix product over shifted tiles of the image (channels innermost; Hopper's copy engine reads a
tile of any shift, with zeros beyond the border), and all that surrounds it is done on the product while it is still in
registers: gain, bias, skip, pool and leaky ReLU on the way up; the ReLU's and the gain's derivatives and the skip's
gradient on the way down. cuDNN's convolutions alone take as long as these with all of it, and each needs a pass over
memory before the next (benchmarks/results/h100.json, where_a_step_goes).

The tile of weights is the product's left side and the tile of the image, transposed, its right: the compiler then
leaves both in shared memory, where the matrix units read them.
"""

# pyright: reportArgumentType=false, reportCallIssue=false
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton import cdiv
from triton.tools.tensor_descriptor import TensorDescriptor

from . import kernels
from .image import ImageEnergy, Tower
from .layers import ResBlock

SAME, DOWN, UP = (how.value for how in (kernels.SAME, kernels.DOWN, kernels.UP))
FORTH, BACK, LAST = (then.value for then in (kernels.FORTH, kernels.BACK, kernels.LAST))
NO_SKIP, SKIP, SKIP_POOLED, SKIP_SPREAD = (
    add.value for add in (kernels.NO_SKIP, kernels.SKIP, kernels.SKIP_POOLED, kernels.SKIP_SPREAD)
)


class Conv(NamedTuple):
    """A kernel's weights as matrices: row (tap, channel in) and column channel out, and the same of its adjoint."""

    forth: Tensor
    back: Tensor


class Block(NamedTuple):
    conv1: Conv
    conv2: Conv
    skip: Tensor | None
    """(channels out, channels in)"""


class Weights(NamedTuple):
    stem: Tensor
    """(KP, channels out): its 9 C rows, and zeros"""
    unstem: Tensor
    """its transpose"""
    stem_bias: Tensor | None
    blocks: tuple[Block, ...]
    head_weight: Tensor
    head_bias: Tensor


def suits(net: ImageEnergy, dtype: torch.dtype, shape: tuple[int, ...]) -> bool:
    """Whether these kernels are written for `net` on images of `shape` (B, C, H, W): the paper's residual blocks, one
    tower and sum pooling, in bfloat16 (tiles of float32 find no room), with sides and widths that tiles divide, and no
    more numbers than 32 bits count."""
    B, _, H, W = shape
    tower, blocks = _parts(net)
    halvings = sum(block.down for block in blocks)
    channels = [tower.stem.weight.shape[0]] + [block.conv1.weight.shape[0] for block in blocks]
    return (
        dtype is torch.bfloat16
        and len(net.towers) == 1
        and tower.activation == "leaky-relu"
        and tower.stem.stride == 1
        and tower.stem.weight.shape[1] <= 7
        and not tower.flat
        and all(not b.release and (b.dropout == 0 or not b.training) for b in blocks)
        and all(b.skip is None or b.skip.weight.shape[-1] == 1 for b in blocks)
        and all(c % 64 == 0 for c in channels)
        and channels[0] in (64, 128, 256)
        and all(side & (side - 1) == 0 and 2**halvings <= side <= 128 for side in (H, W))
        and B * H * W * max(channels) < 2**31
    )


def _parts(net: ImageEnergy) -> tuple[Tower, list[ResBlock]]:
    tower: Tower = net.towers[0]  # type: ignore[assignment]
    return tower, list(tower.blocks)  # type: ignore[arg-type]


def pack(weights: Any) -> Weights:
    """The kernels' forms of fold.py's weights of one tower, whose dtype they keep."""
    (tower,) = weights
    c_out, c_in = tower.stem.shape[:2]
    k = max(16, 1 << (9 * c_in - 1).bit_length())
    stem = torch.zeros(k, c_out, dtype=tower.stem.dtype, device=tower.stem.device)
    stem[: 9 * c_in] = tower.stem.reshape(c_out, -1).T
    blocks = tuple(
        Block(
            _matrices(b.conv1, False),
            _matrices(b.conv2, b.conv2.shape[-1] == 4),
            None if b.skip is None else b.skip[:, :, 0, 0],
        )
        for b in tower.blocks
    )
    return Weights(stem, stem.T.contiguous(), tower.stem_bias, blocks, tower.head_weight[0], tower.head_bias)


def _matrices(w: Tensor, down: bool) -> Conv:
    o, i = w.shape[:2]
    forth = w.permute(2, 3, 1, 0).reshape(-1, o).contiguous()
    back = (w if down else w.flip(2, 3)).permute(2, 3, 0, 1).reshape(-1, i).contiguous()
    return Conv(forth, back)


def value_and_grad(net: ImageEnergy, w: Weights, affines: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """E (B,) and ∇ₓE (B, C, H, W), float32, at images x (B, C, H, W) under fold.py's `affines`."""
    tower, blocks = _parts(net)
    x, blocks = x.float().contiguous(), list(zip(blocks, w.blocks, affines[0], strict=True))
    B, C, H, W = x.shape
    KP, width = w.stem.shape
    h = x.new_empty((B, H, W, width), dtype=w.stem.dtype)
    pixels, BM = B * H * W, 64
    kernels.stem[(cdiv(pixels, BM),)](
        x, w.stem, w.stem_bias, h, pixels, H, W, C, width, KP, w.stem_bias is not None, BM
    )

    kept = []
    for block, b, a in blocks:
        h1 = _convolved(h, b.conv1.forth, SAME, gain=a.gain1, bias=a.bias1)
        if b.skip is None:
            skip, add = h, SKIP_POOLED if block.down else SKIP
        else:
            skip, add = (_pooled(h) if block.down else h) @ b.skip.T, SKIP
        kept.append((h, h1))
        h = _convolved(h1, b.conv2.forth, DOWN if block.down else SAME, gain=a.gain2, bias=a.bias2, skip=skip, add=add)

    # From here on gz is the gradient where a block's last ReLU begins, and t what its second convolution's adjoint
    # takes: gz times the gain.
    e = x.new_empty(B)
    gain = affines[0][-1].gain2
    gz = torch.empty_like(h)
    t = gz if gain is None else torch.empty_like(h)
    P, c = h.shape[1] * h.shape[2], h.shape[3]
    kernels.head[(B,)](
        h, w.head_weight, w.head_bias, gain, e, gz, t, _per_image(gain), P, c, tower.head_relu, gain is not None, 16, 64
    )
    for i, (block, b, a) in reversed(list(enumerate(blocks))):
        h, h1 = kept[i]
        t = _convolved(t, b.conv2.back, UP if block.down else SAME, gain=a.gain1, positive=h1)
        skip, add = (gz if b.skip is None else gz @ b.skip), SKIP_SPREAD if block.down else SKIP
        if i:
            gz, t = _launched(
                t, b.conv1.back, SAME, gain=affines[0][i - 1].gain2, positive=h, skip=skip, add=add, two=True
            )
        else:
            t = _convolved(t, b.conv1.back, SAME, positive=h, skip=skip, add=add, stem=w.unstem)
    g = torch.empty_like(x)
    kernels.unstem[(cdiv(pixels, 256), C)](t, g, pixels, H, W, C, 256)
    return e, g


def _per_image(a: Tensor | None) -> int:
    """By how much a gain or bias goes on from image to image: 0 where all have the same."""
    return 0 if a is None or len(a) == 1 else a.stride(0)


def _pooled(x: Tensor) -> Tensor:
    B, H, W, C = x.shape
    out = x.new_empty((B, H // 2, W // 2, C))
    kernels.pool[(cdiv(out.numel(), 1024),)](x, out, out.numel(), H // 2, W // 2, C, 1024)
    return out


class Tile(NamedTuple):
    pixels: int
    channels: int
    depth: int
    stages: int
    warps: int


def tile(programs: float, c_in: int, c_out: int, then: int) -> Tile:
    """What was fastest at width 128, or within 6 % of it, on one H100 (benchmarks/results/h100-tiles.json), by the
    number of tiles of 128 x 128 that there are: large tiles where there are many, small ones where they would leave
    processors without work."""
    if then == LAST:
        return Tile(128, c_out, 64, 3, 4 if c_out < 256 else 8)
    wide = 128 if c_out % 128 == 0 else 64
    if programs > 132:
        return Tile(256, wide, 64, 4, 8) if then == FORTH else Tile(128, wide, 64, 3, 8)
    if programs > 64:
        return Tile(128, wide, 64, 4, 8)
    return Tile(64, 64, 128 if c_in % 128 == 0 else 64, 3, 4)


def _convolved(*args: Any, **around: Any) -> Tensor:
    return _launched(*args, **around)[1]


def _launched(
    x: Tensor,
    w: Tensor,
    how: int,
    gain: Tensor | None = None,
    bias: Tensor | None = None,
    positive: Tensor | None = None,
    skip: Tensor | None = None,
    add: int = NO_SKIP,
    stem: Tensor | None = None,
    two: bool = False,
) -> tuple[Tensor, Tensor]:
    """One convolution of x (B, H, W, c), by the matrix w, with all around it: what comes of it without the last gain
    (where that is asked for too: `two`), and with it."""
    B, H, W, c_in = x.shape
    c_out = w.shape[1]
    then = LAST if stem is not None else BACK if positive is not None else FORTH
    if how == DOWN:
        H, W = H // 2, W // 2
    pixels, parities = B * H * W, 4 if how == UP else 1
    BM, BN, BK, stages, warps = tile(pixels * parities * c_out / 128**2, c_in, c_out, then)
    BM = max(BM, W)
    TH = min(H, BM // W)
    TB = BM // (TH * W)
    if how == DOWN:
        images = TensorDescriptor.from_tensor(x.view(B, H, 2, W, 2 * c_in), [TB, TH, 1, W, BK])
    else:
        images = TensorDescriptor.from_tensor(x, [TB, TH, W, BK])
    double = 2 if how == UP else 1
    out2 = None
    if stem is not None:
        out = x.new_empty((stem.shape[1], pixels), dtype=torch.float32)
    else:
        out = x.new_empty((B, double * H, double * W, c_out))
        out2 = torch.empty_like(out) if two and gain is not None else None
    kernels.conv[(cdiv(pixels, BM) * (c_out // BN), parities)](
        images, TensorDescriptor.from_tensor(w, [BK, BN]), out, out2, gain, bias, skip, positive, stem, pixels,
        _per_image(gain), _per_image(bias), H, W, c_in, c_out, how, then, add, gain is not None, out2 is not None,
        pixels % BM == 0, TB, TH, W, BN, BK, 0 if stem is None else stem.shape[1], stages,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return (out if out2 is None else out2), out
