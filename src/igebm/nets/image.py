"""Image energies: one network class; Figures 14a and 14b are two tables of blocks given to it (presets.py)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .layers import ResBlock, SpectralConv2d, activate


class Tower(nn.Module):
    """conv, residual blocks, global sum pooling, dense -> 1   (Fig. 14a, 14b): an energy at one resolution."""

    def __init__(
        self,
        channels: int,
        width: int,
        blocks: list[tuple[int, bool]],
        condition: int,
        stem: str,
        head_relu: bool,
        stem_bias: bool,
        flat: tuple[int, int] | None,
        **block,
    ):
        super().__init__()
        self.activation, self.head_relu = block["activation"], head_relu
        spectral, init = block["spectral"], block["init"]
        kernel, stride = (3, 1) if stem == "3x3" else (4, 2)
        self.stem = SpectralConv2d(channels, width, kernel, stride=stride, spectral=spectral, init=init)
        self.stem_bias = nn.Parameter(torch.zeros(width)) if stem_bias else None
        widths = [width] + [width * multiple for multiple, _ in blocks]
        self.blocks = nn.ModuleList(
            ResBlock(c_in, c_out, down, condition, **block)
            for c_in, c_out, (_, down) in zip(widths, widths[1:], blocks, strict=False)
        )
        self.flat = flat is not None
        halvings = sum(down for _, down in blocks) + (stride == 2)
        places = 1 if flat is None else (flat[0] >> halvings) * (flat[1] >> halvings)
        self.head = nn.Linear(widths[-1] * places, 1)
        nn.init.zeros_(self.head.bias)

    def features(self, x: Float[Tensor, "b c h w"], y: Float[Tensor, "b d"] | None) -> Float[Tensor, "b f"]:
        """What the dense layer sees: the last block's channels, summed over the image (or all of them: `flat`)."""
        h = self.stem(x)  # (b, width, h, w)
        if self.stem_bias is not None:
            h = h + self.stem_bias[:, None, None]
        h = activate(h, self.activation)
        for block in self.blocks:
            h = block(h, y)  # (b, c, h', w')
        if self.head_relu:
            h = F.relu(h)
        return h.flatten(1) if self.flat else h.sum((2, 3))  # (b, c)

    def forward(self, x: Float[Tensor, "b c h w"], y: Float[Tensor, "b d"] | None) -> Float[Tensor, "b"]:
        return self.head(self.features(x, y))[:, 0]


class ImageEnergy(nn.Module):
    """E(x | y) of images in [0, 1].

    x is (B, C, H, W), any H and W of at least 2^(number of halvings). y is (B,) int64 class labels with -1 for
    unlabelled, (B, condition) real-valued latents, or None. With `scales` = s, the energies of s towers at full, half,
    ... resolution are summed. With `flat` = (H, W), the size of all images, the dense layers have a weight for each
    place instead of summing over places. With `harmonics` = k, y is the (cos, sin) of an angle and is taken with its
    multiples up to the k-th. Returns (B,).
    """

    def __init__(
        self,
        channels: int,
        width: int,
        blocks: list[tuple[int, bool]],
        condition: int = 0,
        stem: str = "3x3",
        activation: str = "leaky-relu",
        modulation: str = "paper",
        skip_kernel: int = 1,
        skip_down: bool = False,
        stem_bias: bool = False,
        head_relu: bool = False,
        dropout: float = 0.0,
        scales: int = 1,
        flat: tuple[int, int] | None = None,
        harmonics: int = 1,
        spectral: bool = True,
        init: str = "he",
    ):
        super().__init__()
        self.condition, self.harmonics = condition, harmonics
        self.towers = nn.ModuleList(
            Tower(
                channels,
                width,
                blocks,
                condition * harmonics,
                stem,
                head_relu,
                stem_bias,
                None if flat is None else (flat[0] >> s, flat[1] >> s),
                activation=activation,
                modulation=modulation,
                skip_kernel=skip_kernel,
                skip_down=skip_down,
                dropout=dropout,
                spectral=spectral,
                init=init,
            )
            for s in range(scales)
        )

    def forward(self, x: Float[Tensor, "b c h w"], y: Tensor | None = None) -> Float[Tensor, "b"]:
        y = encode(y, self.condition, x.dtype, self.harmonics)
        e = self.towers[0](x, y)
        for tower in self.towers[1:]:
            x = F.avg_pool2d(x, 2)
            e = e + tower(x, y)
        return e

    def features(self, x: Float[Tensor, "b c h w"], y: Tensor | None = None) -> Float[Tensor, "b f"]:
        """What the last layers see, tower beside tower: E is their dense layers on it, and a classifier can be another
        (Table 1). f is `scales` times the channels of the last block; y None is the neutral condition."""
        y = encode(y, self.condition, x.dtype, self.harmonics)
        found = []
        for s, tower in enumerate(self.towers):
            x = F.avg_pool2d(x, 2) if s else x
            found.append(tower.features(x, y))  # type: ignore[operator]
        return torch.cat(found, 1)


def encode(y: Tensor | None, condition: int, dtype: torch.dtype, harmonics: int = 1) -> Float[Tensor, "b d"] | None:
    """What gains and biases are linear in: class labels (B,) as one-hot rows (B, condition), a row of zeros for label
    -1; latents (B, condition) as they are, an angle's (cos, sin) followed by its `harmonics`."""
    if y is None or not condition:
        return None
    if y.is_floating_point():
        return circular(y.to(dtype), harmonics) if harmonics > 1 else y.to(dtype)
    return (y[:, None] == torch.arange(condition, device=y.device)).to(dtype)


def circular(y: Float[Tensor, "b 2"], n: int) -> Float[Tensor, "b d"]:
    """(cos θ, sin θ) -> (cos kθ, sin kθ) for k = 1..n: the powers of the complex number cos θ + i sin θ."""
    z = torch.view_as_complex(y.to(torch.promote_types(y.dtype, torch.float32)).contiguous())
    powers = z[:, None].expand(-1, n).cumprod(1)  # (b, n)
    return torch.view_as_real(powers).flatten(1).to(y.dtype)


def smallest_image(blocks: list[tuple[int, bool]], stem: str, scales: int) -> int:
    """The smallest height and width that leave at least one pixel before the pooling."""
    return 2 ** (sum(down for _, down in blocks) + (stem != "3x3") + scales - 1)


def least_weights(width: int, blocks: list[tuple[int, bool]], condition: int, scales: int) -> int:
    """A lower bound of a network's weights, without building it: the two 3x3 convolutions of each block, and its two
    biases' weights by condition."""
    widths = [width] + [width * multiple for multiple, _ in blocks]
    block = lambda c_in, c_out: 9 * (c_in + c_out) * c_out + condition * (min(c_in, c_out) + c_out)
    return scales * sum(block(a, b) for a, b in zip(widths, widths[1:], strict=False))
