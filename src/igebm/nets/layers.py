"""The pieces of Figure 14: spectrally normalised convolution, conditional gain and bias, residual block.

Nothing here changes state in `forward`: the power iteration is a call of its own (`power_iteration`), once per training
iteration, so that looking at an energy never changes it.
"""

# pyright: reportPrivateImportUsage=false
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def activate(x: Tensor, activation: str) -> Tensor:
    """Leaky ReLU with slope 0.2 (the paper's), or Swish x σ(x)."""
    return F.leaky_relu(x, 0.2) if activation == "leaky-relu" else F.silu(x)


class SpectralConv2d(nn.Module):
    """Convolution without bias by W / σ(W), "same" padding.  Miyato et al., arXiv:1802.05957

    σ = uᵀ W v with W as a (c_out, c_in k k) matrix and u, v by power iteration, not differentiated. A `zero`
    convolution starts at zero and is divided by max(σ, 1) instead (bounded: a tiny weight is not blown up to norm 1).
    """

    u: Tensor
    v: Tensor

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int,
        zero: bool = False,
        spectral: bool = True,
        init: str = "he",
        stride: int = 1,
    ):
        super().__init__()
        # "Zero" is 1e-10, not 0: u and v of an exact zero would be 0 for good.
        std = 1e-10 if zero else 1.0 if init == "unit" and spectral else math.sqrt(2 / (c_in * kernel**2))
        self.weight = nn.Parameter(std * torch.randn(c_out, c_in, kernel, kernel))
        self.stride, self.zero, self.spectral = stride, zero, spectral
        self.register_buffer("u", F.normalize(torch.randn(c_out), dim=0))
        self.register_buffer("v", F.normalize(torch.randn(c_in * kernel**2), dim=0))
        power_iteration(self, 15)

    def normalised(self) -> Float[Tensor, "o i k k"]:
        """W / σ, or W / max(σ, 1): the weight that is used. Differentiable in W."""
        if not self.spectral:
            return self.weight
        sigma = self.u @ self.weight.flatten(1) @ self.v
        return self.weight / (sigma.clamp(min=1.0) if self.zero else sigma)

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h2 w2"]:
        return F.conv2d(x, self.normalised(), stride=self.stride, padding=(self.weight.shape[-1] - 1) // 2)


@torch.no_grad()
def power_iteration(net: nn.Module, n: int = 1) -> None:
    """v ← Wᵀu / ‖Wᵀu‖;   u ← Wv / ‖Wv‖,   n times in every spectrally normalised layer of `net`, all layers at once."""
    layers = [layer for layer in net.modules() if isinstance(layer, SpectralConv2d) and layer.spectral]
    if not layers:
        return
    Ws, us, vs = [layer.weight.flatten(1) for layer in layers], [q.u for q in layers], [q.v for q in layers]
    for _ in range(n):
        torch._foreach_copy_(vs, unit([W.T @ u for W, u in zip(Ws, us, strict=True)]))
        torch._foreach_copy_(us, unit([W @ v for W, v in zip(Ws, vs, strict=True)]))


def unit(vectors: list[Tensor]) -> tuple[Tensor, ...]:
    """Each over its Euclidean norm."""
    norms = torch._foreach_clamp_min(torch._foreach_norm(vectors), 1e-30)
    return torch._foreach_div(vectors, norms)


class Conditional(nn.Module):
    """a(y) = start + a₀ + W y, with a₀ and W starting at zero: a gain (start 1) or bias (start 0) for each channel.

    Without a condition it is the plain learned gain or bias, and at the start of training, or for an unlabelled item
    (y = 0), a conditional network is the unconditional one.
    """

    def __init__(self, channels: int, condition: int, start: float):
        super().__init__()
        self.start = start
        self.base = nn.Parameter(torch.zeros(channels))
        self.weight = nn.Parameter(torch.zeros(condition, channels)) if condition else None

    def forward(self, y: Float[Tensor, "b d"] | None) -> Float[Tensor, "n c"]:
        """(B, condition) -> (B, channels); (1, channels) where there is no condition."""
        a = (self.start + self.base)[None]
        return a if self.weight is None or y is None else a + y @ self.weight


def conditioned(
    modules: list[Conditional], y: Float[Tensor, "b d"] | None, dtype: torch.dtype | None = None
) -> tuple[Float[Tensor, "n c"], ...]:
    """a(y) of each of `modules`, which have one start, by a single matrix product; in `dtype` where one is given."""
    if not modules:
        return ()
    bases: list[Tensor] = [m.base for m in modules]
    a = (modules[0].start + torch.cat(bases))[None]
    weights: list[Tensor] = [m.weight for m in modules if m.weight is not None]
    if weights and y is not None:
        a = a + y @ torch.cat(weights, 1)
    return a.to(dtype or a.dtype).split([len(base) for base in bases], 1)


class ResBlock(nn.Module):
    """conv, gain/bias, act, conv (zero start), gain/bias, + skip, 2x2 average pool where `down`, act   (Fig. 14)

    `modulation="release"` is the released code's placement: a bias before each conv, a gain after the second alone.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        down: bool,
        condition: int = 0,
        activation: str = "leaky-relu",
        modulation: str = "paper",
        skip_kernel: int = 1,
        skip_down: bool = False,
        dropout: float = 0.0,
        spectral: bool = True,
        init: str = "he",
    ):
        super().__init__()
        release = modulation == "release"
        self.down, self.activation, self.release, self.dropout = down, activation, release, dropout
        self.conv1 = SpectralConv2d(c_in, c_out, 3, spectral=spectral, init=init)
        self.conv2 = SpectralConv2d(c_out, c_out, 3, zero=True, spectral=spectral, init=init)
        needed = c_in != c_out or (skip_down and down)
        self.skip = SpectralConv2d(c_in, c_out, skip_kernel, spectral=spectral, init=init) if needed else None
        self.gain1 = None if release else Conditional(c_out, condition, 1.0)
        self.bias1 = Conditional(c_in if release else c_out, condition, 0.0)
        self.gain2 = Conditional(c_out, condition, 1.0)
        self.bias2 = Conditional(c_out, condition, 0.0)

    def forward(self, x: Float[Tensor, "b i h w"], y: Float[Tensor, "b d"] | None = None) -> Tensor:
        over = lambda a: a[:, :, None, None]
        if self.release:
            h = self.conv1(x + over(self.bias1(y)))
        else:
            assert self.gain1 is not None
            h = self.conv1(x) * over(self.gain1(y)) + over(self.bias1(y))  # (b, o, h, w)
        h = F.dropout(activate(h, self.activation), self.dropout, training=self.training and self.dropout > 0)
        if self.release:
            h = self.conv2(h + over(self.bias2(y))) * over(self.gain2(y))
        else:
            h = self.conv2(h) * over(self.gain2(y)) + over(self.bias2(y))
        h = h + (x if self.skip is None else self.skip(x))
        if self.down:
            h = F.avg_pool2d(h, 2)  # (b, o, h/2, w/2)
        return activate(h, self.activation)
