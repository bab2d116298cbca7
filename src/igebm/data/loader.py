"""Batches for training: which images, in which order, and what is done to their pixels.

Nothing here has a position: a batch is a function of the seed and of how many images were seen before it, so that a run
that was interrupted reads what it would have read.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64, Shaped, UInt8
from torch import Tensor

from ..errors import InputError, many
from ..gpu import sent
from .images import Images, silent

ON_DEVICE = 2**30  # bytes; larger sets stay where they are and are read a batch at a time


@lru_cache(maxsize=2)
def _permutation(n: int, seed: int, epoch: int) -> Int64[np.ndarray, " n"]:
    order = np.random.default_rng((seed, epoch)).permutation(n)
    order.flags.writeable = False
    return order


def batch_indices(n: int, batch: int, seen: int, seed: int, rank: int = 0, world: int = 1) -> Int64[np.ndarray, " b"]:
    """Indices of the batch that starts after `seen` images of an endless stream of seeded permutations of range(n).

    The stream is π₀, π₁, π₂, ..., each a fresh permutation drawn from (seed, epoch); a batch may cross epochs and,
    where n < batch, repeats images. `batch` and `seen` count the images of all ranks; rank r reads every world-th one
    of the batch from its r-th on, so that together the ranks read what one process would.
    """
    positions = np.arange(seen + rank, seen + batch, world, dtype=np.int64)
    epochs, places = np.divmod(positions, n)
    return np.concatenate(
        [_permutation(n, seed, int(e))[places[epochs == e]] for e in np.unique(epochs)] or [positions]
    )


def dequantise(u8: UInt8[Tensor, "b c h w"], generator: torch.Generator | None = None) -> Float32[Tensor, "b c h w"]:
    """x = (u8 + u) / 256, u ~ U[0, 1): pixels in [0, 1), with a density that an energy can model.

    u is drawn in steps of 2⁻¹⁶, the finest for which u8 + u is exact in float32: with finer ones 255 + u could round to
    256, and x to 1. `quantise` is then its inverse, bit for bit. The draw is made on u8's device.
    """
    u = torch.randint(0, 2**16, u8.shape, generator=generator, device=u8.device, dtype=torch.int32)
    return (u8.float() + u.float() / 2**16) / 256


def centred(u8: UInt8[Tensor, "*n"]) -> Float32[Tensor, "*n"]:
    """x = (u8 + ½) / 256, the middle of what a byte stands for: what is asked of given images depends on no draw."""
    return (u8.float() + 0.5) / 256


def quantise(x: Float32[Tensor, "*n"] | Float64[Tensor, "*n"]) -> UInt8[Tensor, "*n"]:
    """⌊256 x⌋, kept within 0..255: the byte whose interval holds x."""
    return (x * 256).floor().clamp(0, 255).to(torch.uint8)


def augment(
    x: Shaped[Tensor, "b c h w"], generator: torch.Generator | None = None, flip: bool = True, crop: int = 0
) -> Shaped[Tensor, "b c h w"]:
    """Each image mirrored left to right with probability 1/2, and moved by up to `crop` pixels (border reflected).

    Works on bytes and floats; `crop` must be less than height and width. The draws are made on x's device.
    """
    b, c, h, w = x.shape
    if crop:
        shift = torch.randint(-crop, crop + 1, (2, b, 1), generator=generator, device=x.device)
        rows = _reflected(shift[0] + torch.arange(h, device=x.device), h)
        columns = _reflected(shift[1] + torch.arange(w, device=x.device), w)
        items = torch.arange(b, device=x.device)[:, None, None, None]
        channels = torch.arange(c, device=x.device)[:, None, None]
        x = x[items, channels, rows[:, None, :, None], columns[:, None, None, :]]
    if flip:
        mirrored = torch.rand(b, 1, 1, 1, generator=generator, device=x.device) < 0.5
        x = torch.where(mirrored, x.flip(-1), x)
    return x


def _reflected(index: Int64[Tensor, "b n"], n: int) -> Int64[Tensor, "b n"]:
    """Indices outside 0..n-1 mirrored at the outermost pixels, which are not repeated: -1 -> 1, n -> n-2."""
    index = index.abs()
    return torch.where(index >= n, 2 * (n - 1) - index, index)


class Loader:
    """Batches of one split as pixels in [0, 1) and labels or latents: `loader(seen, generator) -> x (b, c, h, w), y`, y
    being (b,), (b, d) or None.

    `batch` counts the images of all `world` ranks, of which this one reads batch / world. Sets up to 1 GiB live on the
    device as one uint8 tensor; larger ones stay memory-mapped and a batch's rows are read in the order of the file.
    Labels keep -1 for unlabelled images. Raises InputError where the batch cannot be shared out evenly.
    """

    def __init__(
        self, images: Images, batch: int, *, seed: int = 0, device: torch.device | str = "cpu", rank: int = 0,
        world: int = 1, flip: bool = False, crop: int = 0, say: Callable[[str], None] = silent,
    ):  # fmt: skip
        n, h, w, _ = images.x.shape
        if n == 0:
            raise InputError(f"no images found in {images.name}: nothing to train on")
        if batch < 1 or batch % world:
            raise InputError(f"the batch must be a multiple of the {world} processes that share it, got {batch}")
        if seed < 0:
            raise InputError(f"the seed must be 0 or more, got {seed}")
        if not 0 <= crop < min(h, w):
            raise InputError(f"--crop {crop}: random crops move images by less than their size, {w}x{h}")
        if n < batch:
            say(f"{images.name} has {many(n, 'image')}, fewer than the batch of {batch}: every batch repeats some")
        self.images, self.batch, self.seed, self.device = images, batch, seed, torch.device(device)
        self.rank, self.world, self.flip, self.crop = rank, world, flip, crop
        self.y = None if images.y is None else torch.from_numpy(images.y).to(self.device)
        held = isinstance(images.x, np.ndarray) and images.x.nbytes <= ON_DEVICE  # else made or read as it is needed
        self.x = _tensor(images.x).to(self.device) if held else None

    def __call__(
        self, seen: int, generator: torch.Generator | None = None
    ) -> tuple[Float32[Tensor, "b c h w"], Int64[Tensor, " b"] | Float32[Tensor, "b d"] | None]:
        index = batch_indices(len(self.images.x), self.batch, seen, self.seed, self.rank, self.world)
        rows = sent(torch.from_numpy(index), self.device)
        u8 = self.x[rows] if self.x is not None else self._read(index)
        if self.flip or self.crop:
            u8 = augment(u8, generator, self.flip, self.crop)
        return dequantise(u8, generator), None if self.y is None else self.y[rows]

    def _read(self, index: Int64[np.ndarray, " b"]) -> UInt8[Tensor, "b c h w"]:
        rows, places = np.unique(index, return_inverse=True)
        x = _tensor(self.images.x[rows][places])
        return sent(x, self.device)


def _tensor(x: UInt8[np.ndarray, "n h w c"]) -> UInt8[Tensor, "n c h w"]:
    return torch.from_numpy(np.array(np.moveaxis(x, -1, 1), order="C", copy=True))
