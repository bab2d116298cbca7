"""E(x) and ∇ₓE(x) of a folded network on a GPU, in some thirty kernels written in Triton.

A convolution is one matrix product over shifted tiles of the image (channels innermost; the copy engine of Hopper and
later reads a tile of any shift, with zeros beyond the border), and all that surrounds it is done on the product while
it is still in registers: gain, bias, skip, pool and leaky ReLU on the way up; the ReLU's and the gain's derivatives and
the skip's gradient on the way down. cuDNN's convolutions are as fast by themselves, but each needs a pass over memory
before the next (benchmarks/results/h100.json).

The tile of weights is the product's left side and the tile of the image, transposed, its right: the compiler then
leaves both in shared memory, where the matrix units read them.
"""

# Triton's functions are typed for its own compiler.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportOptionalMemberAccess=false
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .image import ImageEnergy

SAME, DOWN, UP = 0, 1, 2
"""a 3x3 convolution; a 4x4 one of stride 2, which is a 3x3 one and a pool; its adjoint"""
FORTH, BACK, LAST = 0, 1, 2
"""what is done on a product: gain, bias, ReLU; their derivatives; those and the stem's adjoint up to its last sum"""
NO_SKIP, SKIP, SKIP_POOLED, SKIP_SPREAD = 0, 1, 2, 3
"""what is added: nothing; a tensor of the same size; the 2x2 means of a larger one; a quarter of a smaller one, each
entry to 2x2 places"""
SLOPE = tl.constexpr(0.2)


@triton.jit
def _conv(
    x, w, out, out2, gain, bias, skip, positive, stem, n_pixels, gain_step, bias_step,
    H: tl.constexpr, W: tl.constexpr, CI: tl.constexpr, CO: tl.constexpr,
    HOW: tl.constexpr, THEN: tl.constexpr, ADD: tl.constexpr, GAIN: tl.constexpr, TWO: tl.constexpr, EVEN: tl.constexpr,
    TB: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, KP: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """One tile of TB x TH x TW pixels of the (H, W) grid and BN channels. UP has one program for each of the four
    parities of a pixel's place in the larger image, which only 2x2 of the 4x4 weights reach."""
    BM: tl.constexpr = TB * TH * TW
    TAPS: tl.constexpr = 9 if HOW == 0 else (16 if HOW == 1 else 4)
    PARTS: tl.constexpr = CI // BK
    n0 = (tl.program_id(0) % (CO // BN)) * BN
    m0 = (tl.program_id(0) // (CO // BN)) * BM
    b0, h0 = m0 // (H * W), m0 % (H * W) // W
    p, q = tl.program_id(1) // 2, tl.program_id(1) % 2

    acc = tl.zeros((BN, BM), dtype=tl.float32)
    for i in tl.range(0, TAPS * PARTS, num_stages=STAGES):
        tap = i // PARTS
        k = i % PARTS * BK
        if HOW == 0:
            # y[h, w] = Σ w[ky, kx] x[h + ky - 1, w + kx - 1]
            a = x.load([b0, h0 + tap // 3 - 1, tap % 3 - 1, k])
        elif HOW == 1:
            # The same at stride 2. x is seen as (B, H, 2, W, 2 CI): row 2 h + ky - 1 is row (ky + 1) % 2 of a pair.
            ky, kx = tap // 4, tap % 4
            a = x.load([b0, h0 + (ky + 1) // 2 - 1, (ky + 1) % 2, (kx + 1) // 2 - 1, (kx + 1) % 2 * CI + k])
        else:
            # y[2 h + p] = x[h] w[1 + p] + x[h - 1 + 2 p] w[3 - 3 p], and so for columns
            t, s = tap // 2, tap % 2
            ky = 1 + p + t * (2 - 4 * p)
            kx = 1 + q + s * (2 - 4 * q)
            tap = ky * 4 + kx
            a = x.load([b0, h0 + t * (2 * p - 1), s * (2 * q - 1), k])
        acc = tl.dot(w.load([tap * CI + k, n0]).T, a.reshape(BM, BK).T, acc)

    # Row m of the product is pixel m0 + m of the grid; `row` is where it lies in the result.
    z = acc.T
    m = m0 + tl.arange(0, BM)
    n = n0 + tl.arange(0, BN)
    inside = (m < n_pixels)[:, None] | EVEN
    b, h, v = m // (H * W), m % (H * W) // W, m % W
    row = (b * 2 * H + 2 * h + p) * 2 * W + 2 * v + q if HOW == 2 else m
    at = row[:, None] * CO + n[None, :]
    if GAIN:
        if TB == 1:
            g = tl.load(gain + b0 * gain_step + n)[None, :].to(tl.float32)
        else:
            g = tl.load(gain + (b * gain_step)[:, None] + n[None, :], inside, 0.0).to(tl.float32)
    if THEN == 0:
        if TB == 1:
            c = tl.load(bias + b0 * bias_step + n)[None, :].to(tl.float32)
        else:
            c = tl.load(bias + (b * bias_step)[:, None] + n[None, :], inside, 0.0).to(tl.float32)
        z = z * g + c if GAIN else z + c
    if ADD == 1:
        z += tl.load(skip + at, inside, 0.0).to(tl.float32)
    elif ADD == 2:
        at4 = ((b * 2 * H + 2 * h) * 2 * W + 2 * v)[:, None] * CO + n[None, :]
        above = tl.load(skip + at4, inside, 0.0).to(tl.float32) + tl.load(skip + at4 + CO, inside, 0.0)
        at4 += 2 * W * CO
        z += (above + tl.load(skip + at4, inside, 0.0) + tl.load(skip + at4 + CO, inside, 0.0)) * 0.25
    elif ADD == 3:
        quarter = ((b * (H // 2) + h // 2) * (W // 2) + v // 2)[:, None] * CO + n[None, :]
        z += tl.load(skip + quarter, inside, 0.0).to(tl.float32) * 0.25
    if THEN == 0:
        z = tl.where(z > 0, z, SLOPE * z)
    else:
        z = tl.where(tl.load(positive + at, inside, 0.0) > 0, z, SLOPE * z)
    if THEN == 2:
        columns = tl.arange(0, KP)
        turned = tl.load(stem + n[:, None] * KP + columns[None, :])
        patches = tl.dot(z.to(turned.dtype), turned).T  # (KP, BM)
        tl.store(out + columns[:, None] * n_pixels + m[None, :], patches, (m < n_pixels)[None, :] | EVEN)
    else:
        if TWO:
            tl.store(out2 + at, z.to(out.dtype.element_ty), inside)
        tl.store(out + at, (z * g if THEN == 1 and GAIN else z).to(out.dtype.element_ty), inside)


@triton.jit
def _stem(
    x, w, bias, out, n_pixels,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, CO: tl.constexpr, KP: tl.constexpr, BIAS: tl.constexpr,
    BM: tl.constexpr,
):  # fmt: skip
    """leaky(conv3x3(x) + bias) of a planar image (B, C, H, W), channels innermost after it; w is (KP, CO), row
    9 c + 3 ky + kx."""
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n, k = tl.arange(0, CO), tl.arange(0, KP)
    h = (m % (H * W) // W)[:, None] + (k // 3 % 3)[None, :] - 1
    v = (m % W)[:, None] + (k % 3)[None, :] - 1
    inside = (h >= 0) & (h < H) & (v >= 0) & (v < W) & (k < 9 * C)[None, :] & (m < n_pixels)[:, None]
    a = tl.load(x + ((m // (H * W))[:, None] * C + (k // 9)[None, :]) * (H * W) + h * W + v, inside, 0.0)
    weights = tl.load(w + k[:, None] * CO + n[None, :])
    z = tl.dot(a.to(weights.dtype), weights)
    if BIAS:
        z += tl.load(bias + n)[None, :]
    z = tl.where(z > 0, z, SLOPE * z)
    tl.store(out + m[:, None] * CO + n[None, :], z.to(out.dtype.element_ty), (m < n_pixels)[:, None])


@triton.jit
def _unstem(
    patches, g, n_pixels, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, BM: tl.constexpr
):  # fmt: skip
    """The stem's adjoint, its last sum: g[c, h, w] = Σ patches[9 c + 3 ky + kx, h - ky + 1, w - kx + 1]."""
    m, c = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1)
    h, v = m % (H * W) // W, m % W
    total = tl.zeros((BM,), dtype=tl.float32)
    for tap in tl.static_range(9):
        dy, dx = 1 - tap // 3, 1 - tap % 3
        inside = (h + dy >= 0) & (h + dy < H) & (v + dx >= 0) & (v + dx < W) & (m < n_pixels)
        total += tl.load(patches + (9 * c + tap) * n_pixels + m + dy * W + dx, inside, 0.0)
    tl.store(g + (m // (H * W) * C + c) * (H * W) + m % (H * W), total, m < n_pixels)


@triton.jit
def _pool(x, out, n, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, BM: tl.constexpr):
    """2x2 means; (H, W) is the result's grid, n its number of entries."""
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    c, v, r = i % C, i // C % W, i // (C * W)  # channel, column, row of all images
    at = (r * 4 * W + 2 * v) * C + c
    inside = i < n
    z = tl.load(x + at, inside, 0.0).to(tl.float32) + tl.load(x + at + C, inside, 0.0)
    z += tl.load(x + at + 2 * W * C, inside, 0.0)
    z += tl.load(x + at + (2 * W + 1) * C, inside, 0.0)
    tl.store(out + i, (z * 0.25).to(out.dtype.element_ty), inside)


@triton.jit
def _head(
    x, w, bias, gain, e, gz, t, gain_step,
    P: tl.constexpr, C: tl.constexpr, RELU: tl.constexpr, GAIN: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """E = Σ_c w[c] Σ_p x[p, c] + bias of one image, its gradient before the last ReLU, and that times the last gain."""
    b = tl.program_id(0)
    total = tl.zeros((BC,), dtype=tl.float32)
    for c0 in tl.static_range(0, C, BC):
        c = c0 + tl.arange(0, BC)
        weight = tl.load(w + c).to(tl.float32)
        if GAIN:
            g = tl.load(gain + b * gain_step + c).to(tl.float32)
        for p0 in range(0, P, BP):
            p = p0 + tl.arange(0, BP)
            at = (b * P + p)[:, None] * C + c[None, :]
            inside = (p < P)[:, None]
            h = tl.load(x + at, inside, 0.0).to(tl.float32)
            total += weight * tl.sum(tl.maximum(h, 0.0) if RELU else h, 0)
            z = tl.where(h > 0, weight[None, :], (0.0 if RELU else SLOPE) * weight[None, :])
            tl.store(gz + at, z.to(gz.dtype.element_ty), inside)
            if GAIN:
                tl.store(t + at, (z * g[None, :]).to(t.dtype.element_ty), inside)
    tl.store(e + b, tl.sum(total, 0) + tl.load(bias).to(tl.float32))


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


def suits(net: ImageEnergy, dtype: torch.dtype, size: tuple[int, int]) -> bool:
    """Whether these kernels are written for `net` on images of `size` (H, W): the paper's residual blocks, one tower
    and sum pooling, in bfloat16 where a GPU is to be fast (float32 is for tests), with sides and widths that tiles
    divide."""
    tower = net.towers[0]
    blocks = list(tower.blocks)
    halvings = sum(block.down for block in blocks)
    channels = [tower.stem.weight.shape[0]] + [block.conv1.weight.shape[0] for block in blocks]
    return (
        len(net.towers) == 1
        and tower.activation == "leaky-relu"
        and tower.stem.stride == 1
        and tower.stem.weight.shape[1] <= 7
        and not tower.flat
        and all(not b.release and (b.dropout == 0 or not b.training) for b in blocks)
        and all(b.skip is None or b.skip.weight.shape[-1] == 1 for b in blocks)
        and all(c % 64 == 0 for c in channels)
        and channels[0] in (64, 128, 256)
        and all(side & (side - 1) == 0 and 2**halvings <= side <= 128 for side in size)
    )


def pack(weights: "tuple") -> Weights:
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


def value_and_grad(net: ImageEnergy, w: Weights, affines: "tuple", x: Tensor) -> tuple[Tensor, Tensor]:
    """E (B,) and ∇ₓE (B, C, H, W), float32, at images x (B, C, H, W) under fold.py's `affines`."""
    tower = net.towers[0]
    x, blocks = x.float().contiguous(), list(zip(tower.blocks, w.blocks, affines[0], strict=True))
    B, C, H, W = x.shape
    KP, width = w.stem.shape
    h = x.new_empty((B, H, W, width), dtype=w.stem.dtype)
    pixels, BM = B * H * W, 64
    _stem[(triton.cdiv(pixels, BM),)](
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
    _head[(B,)](
        h, w.head_weight, w.head_bias, gain, e, gz, t, _per_image(gain), P, c, tower.head_relu, gain is not None, 16, 64
    )
    for i, (block, b, a) in reversed(list(enumerate(blocks))):
        h, h1 = kept[i]
        t = _convolved(t, b.conv2.back, UP if block.down else SAME, gain=a.gain1, positive=h1)
        skip, add = (gz if b.skip is None else gz @ b.skip), SKIP_SPREAD if block.down else SKIP
        if i:
            gz, t = _convolved(
                t, b.conv1.back, SAME, gain=affines[0][i - 1].gain2, positive=h, skip=skip, add=add, two=True
            )
        else:
            t = _convolved(t, b.conv1.back, SAME, positive=h, skip=skip, add=add, stem=w.unstem)
    g = torch.empty_like(x)
    _unstem[(triton.cdiv(pixels, 256), C)](t, g, pixels, H, W, C, 256)
    return e, g


def _per_image(a: Tensor | None) -> int:
    """By how much a gain or bias goes on from image to image: 0 where all have the same."""
    return 0 if a is None or len(a) == 1 else a.stride(0)


def _pooled(x: Tensor) -> Tensor:
    B, H, W, C = x.shape
    out = x.new_empty((B, H // 2, W // 2, C))
    _pool[(triton.cdiv(out.numel(), 1024),)](x, out, out.numel(), H // 2, W // 2, C, 1024)
    return out


class Tile(NamedTuple):
    pixels: int
    channels: int
    depth: int
    stages: int
    warps: int


def tile(programs: float, c_in: int, c_out: int, then: int) -> Tile:
    """What was fastest on one H100 (benchmarks/results/h100-tiles.json), by the number of tiles of 128 x 128 that
    there are: large tiles where there are many, small ones where they would leave processors without work."""
    most = min(128, c_out) if then != LAST else c_out
    if programs > 512 and then == FORTH:
        return Tile(256, most, 64, 4, 8)
    if programs > 132:
        return Tile(128, most, 64, 3, 8)
    if programs > 64:
        return Tile(128, most, 64, 4, 4)
    return Tile(64, 64 if then != LAST else c_out, 128 if c_in % 128 == 0 else 64, 3, 4)


def _convolved(
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
):
    """One convolution of x (B, H, W, c), by the matrix w, with all around it; `two`: the gradient without the gain as
    well, before the one with it."""
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
    _conv[(triton.cdiv(pixels, BM) * (c_out // BN), parities)](
        images, TensorDescriptor.from_tensor(w, [BK, BN]), out, out2, gain, bias, skip, positive, stem, pixels,
        _per_image(gain), _per_image(bias), H, W, c_in, c_out, how, then, add, gain is not None, out2 is not None,
        pixels % BM == 0, TB, TH, W, BN, BK, 0 if stem is None else stem.shape[1], stages,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return (out if out2 is None else out2, out) if two else out
