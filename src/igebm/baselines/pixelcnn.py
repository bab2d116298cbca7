"""PixelCNN++: a product over pixels in reading order, p(x) = ∏ᵢ p(xᵢ | x₁, ..., xᵢ₋₁), each factor a discretised
mixture of logistics whose parameters a causal network gives.

Salimans, Karpathy, Chen & Kingma, arXiv:1701.05517.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..data.loader import quantise

SCALES = (-7.0, 7.0)
"""bounds of a logistic's log s: the lower as in the authors' code (inside 1..254 a byte's probability stays below
0.975); beyond the upper one it is flat over all bytes, and its bins' logarithms would leave the numbers"""


# The likelihood of a pixel


def log_bins(v: Float[Tensor, "*n"], mu: Float[Tensor, "*m"], log_s: Float[Tensor, "*k"]) -> Float[Tensor, "*o"]:
    """log P(v) for a logistic (μ, s) on [-1, 1] that is cut into the bins of the bytes v = 0..255   (eq. 2)

    P(v) = σ(b) - σ(a), with a and b the bin's edges v / 127.5 - 1 ∓ 1/255 less μ, in units of s; the outermost bins
    reach to ∓∞, so that the 256 sum to 1. Written as σ(b) σ(-a) (1 - e^(a-b)) the difference loses no digits far from
    μ. Arguments broadcast.
    """
    centre, inverse = v / 127.5 - 1 - mu, torch.exp(-log_s)
    lowest, highest = v == 0, v == 255
    below = F.logsigmoid((centre + 1 / 255) * inverse).masked_fill(highest, 0.0)  # log σ(b)
    above = F.logsigmoid((1 / 255 - centre) * inverse).masked_fill(lowest, 0.0)  # log σ(-a)
    inside = torch.log(-torch.expm1(-2 / 255 * inverse)).expand_as(below).masked_fill(lowest | highest, 0.0)
    return below + above + inside


def log_mixture(v: Float[Tensor, "b c h w"], theta: Float[Tensor, "b p h w"], mixtures: int) -> Float[Tensor, "b h w"]:
    """log P of each pixel, all its channels: log Σₖ πₖ Pₖ(r) Pₖ(g | r) Pₖ(b | r, g)   (eqs. 2, 3)

    μ(g) = m(g) + α r and μ(b) = m(b) + β r + γ g, with r and g on [-1, 1]. v holds bytes; `theta` holds for each of K
    mixtures log π (to be normalised), c means m, c log s and, with three channels, α, β, γ before tanh:
    p = K (1 + 2c) for one channel, K (1 + 2c + 3) for three.
    """
    c = v.shape[1]
    log_pi, m, log_s, mix = theta.unflatten(1, (mixtures, -1)).split([1, c, c, parameters(c) - 1 - 2 * c], 2)
    if c == 3:
        alpha, beta, gamma = mix.tanh().unbind(2)  # (b, K, h, w)
        red, green = (v[:, None, :2] / 127.5 - 1).unbind(2)  # (b, 1, h, w)
        m = m + torch.stack([torch.zeros_like(alpha), alpha * red, beta * red + gamma * green], 2)
    log_p = log_bins(v[:, None], m, log_s.clamp(*SCALES)).sum(2)  # (b, K, h, w)
    return torch.logsumexp(log_pi[:, :, 0].log_softmax(1) + log_p, 1)


def parameters(channels: int) -> int:
    """How many numbers describe one mixture of a pixel."""
    return 1 + 2 * channels + (3 if channels == 3 else 0)


# The network: two streams of features. At a pixel, u knows the rows above it; ul knows these and what is left of it.


class Causal(nn.Module):
    """A convolution of features at no later pixels: of the rows down to the output's, all columns alike, or (`left`)
    of the columns up to the output's. With stride 2, (h, w) -> (⌈h/2⌉, ⌈w/2⌉)."""

    def __init__(self, c_in: int, c_out: int, kernel: tuple[int, int], left: bool = False, stride: int = 1):
        super().__init__()
        rows, columns = kernel
        before = columns - 1 if left else columns // 2
        self.padding = (before, columns - 1 - before, rows - 1, 0)
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride)

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h2 w2"]:
        return self.conv(F.pad(x, self.padding))


def concat_elu(x: Tensor) -> Tensor:
    """[elu(x), elu(-x)]: twice the channels."""
    return F.elu(torch.cat([x, -x], 1))


class Gated(nn.Module):
    """x + a σ(b), with a, b = conv(drop(f(conv(f(x)) + W f(more)))), f the concatenated ELU; W is a 1x1 convolution."""

    def __init__(self, width: int, more: int, left: bool, dropout: float):
        super().__init__()
        kernel = (2, 2) if left else (2, 3)
        self.conv1 = Causal(2 * width, width, kernel, left)
        self.more = nn.Conv2d(2 * more, width, 1) if more else None
        self.conv2 = Causal(2 * width, 2 * width, kernel, left)
        self.dropout = dropout
        with torch.no_grad():
            self.conv2.conv.weight *= 0.1  # close to x at first

    def forward(self, x: Float[Tensor, "b c h w"], more: Float[Tensor, "b m h w"] | None) -> Float[Tensor, "b c h w"]:
        h = self.conv1(concat_elu(x))
        if self.more is not None and more is not None:
            h = h + self.more(concat_elu(more))
        h = F.dropout(concat_elu(h), self.dropout, training=self.training and self.dropout > 0)
        a, b = self.conv2(h).chunk(2, 1)
        return x + a * torch.sigmoid(b)


class Block(nn.Module):
    """One layer of both streams: u from itself, ul from itself and u; on the way up with short-cuts as well."""

    def __init__(self, width: int, dropout: float, up: bool):
        super().__init__()
        self.u = Gated(width, width if up else 0, False, dropout)
        self.ul = Gated(width, 2 * width if up else width, True, dropout)

    def forward(
        self, u: Tensor, ul: Tensor, short_u: Tensor | None = None, short_ul: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        u = self.u(u, short_u)
        return u, self.ul(ul, u if short_ul is None else torch.cat([u, short_ul], 1))


class Halve(nn.Module):
    """Both streams at half the resolution, (⌈h/2⌉, ⌈w/2⌉). What (i, j) knows lies before (2i, 2j)."""

    def __init__(self, width: int):
        super().__init__()
        self.u = Causal(width, width, (2, 3), stride=2)
        self.ul = Causal(width, width, (2, 2), left=True, stride=2)

    def forward(self, u: Tensor, ul: Tensor) -> tuple[Tensor, Tensor]:
        return self.u(u), self.ul(ul)


class Double(nn.Module):
    """Both streams at twice the resolution: each pixel repeated 2x2, cut to the size of `like`, and convolved."""

    def __init__(self, width: int):
        super().__init__()
        self.u = Causal(width, width, (2, 3))
        self.ul = Causal(width, width, (2, 2), left=True)

    def forward(self, u: Tensor, ul: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        h, w = like.shape[2:]
        repeated = lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest")[:, :, :h, :w]
        return self.u(repeated(u)), self.ul(repeated(ul))


class PixelCNN(nn.Module):
    """log P of images of `channels` bytes a pixel, 1 or 3, by a network of `levels` resolutions (Fig. 2 of the paper).

    Down: `depth` blocks at a resolution, then half of it, and so on; up again: as many blocks, each with the output of
    its counterpart as a short-cut. The original's weight normalisation is left out, and its transposed convolutions
    are repetition and convolution here.
    """

    def __init__(self, channels: int, width: int, depth: int, levels: int, mixtures: int, dropout: float):
        super().__init__()
        self.mixtures = mixtures
        # One channel more than the image has: of ones, which tells the image from what is padded.
        self.rows_above = Causal(channels + 1, width, (2, 3))
        self.row_above = Causal(channels + 1, width, (1, 3))
        self.left = Causal(channels + 1, width, (2, 1), left=True)
        blocks = lambda n, up: [Block(width, dropout, up) for _ in range(n)]
        self.down, self.up = nn.ModuleList(blocks(depth, False)), nn.ModuleList(blocks(depth, True))
        for _ in range(levels - 1):
            self.down.extend([Halve(width), *blocks(depth, False)])
            self.up.extend([Double(width), *blocks(depth + 1, True)])
        self.head = nn.Conv2d(width, mixtures * parameters(channels), 1)
        assert self.head.bias is not None
        with torch.no_grad():
            # At first the mixtures share [-1, 1] evenly, so that they begin with different work.
            start = self.head.bias.view(mixtures, -1)
            start[:, 1 : 1 + channels] = ((2 * torch.arange(mixtures) + 1) / mixtures - 1)[:, None]
            start[:, 1 + channels : 1 + 2 * channels] = -math.log(mixtures)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b p h w"]:
        """The mixtures' parameters at each pixel, from x on [-1, 1] at the pixels before it."""
        x = torch.cat([x, torch.ones_like(x[:, :1])], 1)  # (b, c + 1, h, w)
        u = from_above(self.rows_above(x))  # (b, width, h, w)
        ul = from_above(self.row_above(x)) + from_left(self.left(x))
        shorts = [(u, ul)]
        for layer in self.down:
            u, ul = layer(u, ul)
            shorts.append((u, ul))
        u, ul = shorts.pop()
        for layer in self.up:
            u, ul = layer(u, ul, shorts[-1][0]) if isinstance(layer, Double) else layer(u, ul, *shorts.pop())
        return self.head(F.elu(ul))

    def log_prob(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b"]:
        """log P(⌊256 x⌋) in nats, for x in [0, 1): exact, whatever the noise below a byte."""
        v = quantise(x).to(x.dtype)
        return log_mixture(v, self(v / 127.5 - 1), self.mixtures).sum((1, 2))


def from_above(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Each row takes the place of the one below it; the first is 0."""
    return F.pad(x[:, :, :-1], (0, 0, 1, 0))


def from_left(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Each column takes the place of the one right of it; the first is 0."""
    return F.pad(x[:, :, :, :-1], (1, 0, 0, 0))


def checked_levels(image: tuple[int, int, int], levels: int) -> int:
    """The number of resolutions for an image: as asked, or for 0 up to three whose smallest has 8x8 pixels or more."""
    side = min(image[1:])
    return levels or 1 + sum(side >= 8 * 2**level for level in (1, 2))
