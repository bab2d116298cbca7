"""Glow: an invertible map from images to Gaussian noise, with its density by the change of variables.

Kingma & Dhariwal, arXiv:1807.03039. The layers are those of the package normflows.
"""

import importlib
import math
import warnings
from types import ModuleType

from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError


class Glow(nn.Module):
    """p(x) = N(z; μ, σ) |det ∂z/∂x|, z = f(x): on each level a squeeze and `depth` times actnorm, 1x1 convolution and
    affine coupling.

    Each level but the last sends half of its channels to z as they are. Where the original predicts μ and σ of that
    half from the other one, they are learned constants here, one for each entry of z.

    The first batch it sees sets the scale and shift of each actnorm (`log_prob` then changes the network, once).
    """

    def __init__(self, image: tuple[int, int, int], width: int, depth: int, levels: int):
        super().__init__()
        nf = library()
        flows, merges, bases = [], [], []
        with warnings.catch_warnings():
            # normflows 1.7 factorises its first 1x1 convolutions by a function that torch is about to drop.
            warnings.filterwarnings("ignore", "torch.lu is deprecated", UserWarning)
            for level in range(levels, 0, -1):  # from noise to image, as normflows counts
                c, h, w = at_level(image, level)
                flows.append([*(nf.flows.GlowBlock(c, width) for _ in range(depth)), nf.flows.Squeeze()])
                bases.append(nf.distributions.DiagGaussian((c if level == levels else c // 2, h, w)))
                if level < levels:
                    merges.append(nf.flows.Merge())
        self.flow = nf.MultiscaleFlow(bases, flows, merges, class_cond=False)

    def log_density(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b"]:
        """log p(x) of real-valued x in [0, 1), in nats."""
        return self.flow.log_prob(x - 0.5, None)

    def log_prob(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b"]:
        """log p(x) - D log 256, for x = (bytes + u) / 256 with u from U[0, 1): nats.

        P(bytes) is the integral of p over a cube of side 1/256, so that log P(bytes) = log (256^-D E_u[p(x)]), and by
        Jensen's inequality the expectation of what is returned is a lower bound of it.
        """
        return self.log_density(x) - x[0].numel() * math.log(256)


def at_level(image: tuple[int, int, int], level: int) -> tuple[int, int, int]:
    """Channels, height and width after `level` squeezes, each to four times the channels at half the size, with half
    of the channels sent to z between one and the next."""
    c, h, w = image
    return c * 2 ** (level + 1), h // 2**level, w // 2**level


def checked_levels(image: tuple[int, int, int], levels: int) -> int:
    """The number of levels for an image (channels, height, width): as asked, or for 0 up to three that leave 2x2 pixels
    or more. Raises InputError where the image cannot be halved so often."""
    _, h, w = image
    most = 0
    while h % 2 ** (most + 1) == 0 and w % 2 ** (most + 1) == 0:
        most += 1
    fitting = sum(min(h, w) // 2**level >= 2 for level in range(1, min(most, 3) + 1))
    if levels > most or most == 0:
        raise InputError(
            f"glow halves the image {levels or 1} times (--levels), and {h}x{w} can be halved {most} times; use fewer "
            f"levels, or --image-size {max(2, 2 ** round(math.log2(min(h, w))))}"
        )
    return levels or max(1, fitting)


def library() -> ModuleType:
    """The package normflows. Raises InputError with the line that installs it."""
    try:
        return importlib.import_module("normflows")
    except ImportError as error:
        raise InputError(f"glow needs the package normflows ({error}): pip install '.[baselines]'") from error
