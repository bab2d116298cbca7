"""The kernels of fused.py, in Triton: a convolution with what surrounds it, the stem and its adjoint, a pool, the head.

Images are (pixel, channel) matrices, pixels in the order of image, row, column. H, W, C, CI, CO are the grid's and the
matrices' sizes; what is in capitals is known when a kernel is compiled.
"""

# Triton's functions are typed for its own compiler.
# pyright: reportAssignmentType=false, reportPossiblyUnboundVariable=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
import triton
import triton.language as tl

SLOPE = tl.constexpr(0.2)
SAME, DOWN, UP = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
"""a 3x3 convolution; a 4x4 one of stride 2, which is a 3x3 one and a pool; its adjoint"""
FORTH, BACK, LAST = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
"""what is done on a product: gain, bias, ReLU; their derivatives; those and the stem's adjoint up to its last sum"""
NO_SKIP, SKIP, SKIP_POOLED, SKIP_SPREAD = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
"""what is added: nothing; a tensor of the same size; the 2x2 means of a larger one; a quarter of a smaller one, each
entry to 2x2 places"""


@triton.jit
def conv(
    x, w, out, out2, gain, bias, skip, positive, stem, n_pixels, gain_step, bias_step,
    H: tl.constexpr, W: tl.constexpr, CI: tl.constexpr, CO: tl.constexpr,
    HOW: tl.constexpr, THEN: tl.constexpr, ADD: tl.constexpr, GAIN: tl.constexpr, TWO: tl.constexpr, EVEN: tl.constexpr,
    TB: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, KP: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """One tile of TB x TH x TW pixels of the (H, W) grid and BN channels. UP has one program for each of the four
    parities of a pixel's place in the larger image, which only 2x2 of the 4x4 weights reach."""
    BM: tl.constexpr = TB * TH * TW
    TAPS: tl.constexpr = 9 if HOW == SAME else (16 if HOW == DOWN else 4)
    PARTS: tl.constexpr = CI // BK
    n0 = (tl.program_id(0) % (CO // BN)) * BN
    m0 = (tl.program_id(0) // (CO // BN)) * BM
    b0, h0 = m0 // (H * W), m0 % (H * W) // W
    p, q = tl.program_id(1) // 2, tl.program_id(1) % 2

    acc = tl.zeros((BN, BM), dtype=tl.float32)
    for i in tl.range(0, TAPS * PARTS, num_stages=STAGES):
        tap = i // PARTS
        k = i % PARTS * BK
        if HOW == SAME:
            # y[h, w] = Σ w[ky, kx] x[h + ky - 1, w + kx - 1]
            a = x.load([b0, h0 + tap // 3 - 1, tap % 3 - 1, k])
        elif HOW == DOWN:
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
    row = (b * 2 * H + 2 * h + p) * 2 * W + 2 * v + q if HOW == UP else m
    at = row[:, None] * CO + n[None, :]
    if GAIN:
        if TB == 1:
            g = tl.load(gain + b0 * gain_step + n)[None, :].to(tl.float32)
        else:
            g = tl.load(gain + (b * gain_step)[:, None] + n[None, :], inside, 0.0).to(tl.float32)
    if THEN == FORTH:
        if TB == 1:
            c = tl.load(bias + b0 * bias_step + n)[None, :].to(tl.float32)
        else:
            c = tl.load(bias + (b * bias_step)[:, None] + n[None, :], inside, 0.0).to(tl.float32)
        z = z * g + c if GAIN else z + c
    if ADD == SKIP:
        z += tl.load(skip + at, inside, 0.0).to(tl.float32)
    elif ADD == SKIP_POOLED:
        at4 = ((b * 2 * H + 2 * h) * 2 * W + 2 * v)[:, None] * CO + n[None, :]
        above = tl.load(skip + at4, inside, 0.0).to(tl.float32) + tl.load(skip + at4 + CO, inside, 0.0)
        at4 += 2 * W * CO
        z += (above + tl.load(skip + at4, inside, 0.0) + tl.load(skip + at4 + CO, inside, 0.0)) * 0.25
    elif ADD == SKIP_SPREAD:
        quarter = ((b * (H // 2) + h // 2) * (W // 2) + v // 2)[:, None] * CO + n[None, :]
        z += tl.load(skip + quarter, inside, 0.0).to(tl.float32) * 0.25
    if THEN == FORTH:
        z = tl.where(z > 0, z, SLOPE * z)
    else:
        z = tl.where(tl.load(positive + at, inside, 0.0) > 0, z, SLOPE * z)
    if THEN == LAST:
        columns = tl.arange(0, KP)
        turned = tl.load(stem + n[:, None] * KP + columns[None, :])
        patches = tl.dot(z.to(turned.dtype), turned).T  # (KP, BM)
        tl.store(out + columns[:, None] * n_pixels + m[None, :], patches, (m < n_pixels)[None, :] | EVEN)
    else:
        if TWO:
            tl.store(out2 + at, z.to(out.dtype.element_ty), inside)
        tl.store(out + at, (z * g if THEN == BACK and GAIN else z).to(out.dtype.element_ty), inside)


@triton.jit
def stem(
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
def unstem(
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
def pool(x, out, n, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, BM: tl.constexpr):
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
def head(
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
