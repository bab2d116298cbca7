"""One split of a data set in memory, and the two changes that every kind of set may be asked for: size and channels."""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ..errors import CONTROL, InputError
from .latents import Latent

SPLITS = ("train", "test", "val")
LARGEST = 4096  # pixels a side: beyond it a single image is no longer small
CHUNK = 4096  # images handled at once where a set may be larger than memory


class Images(NamedTuple):
    """One split of a data set."""

    name: str  # what the user calls it: "cifar10", "hf:owner/name", a path
    x: np.ndarray  # uint8, N x H x W x C, in memory or memory-mapped (then read-only)
    y: np.ndarray | None  # int64 labels 0..len(classes)-1, -1 = unlabelled; or float32 latents (N, d); None: neither
    classes: tuple[str, ...]  # () without labels
    latents: tuple[Latent, ...] = ()  # what the columns of y are, where it holds latents
    files: tuple[str, ...] = ()  # where each image of a folder comes from, below that folder; () for other sets
    split: str = ""  # train, test or val, as `load` was asked for it; "" of images that are of none


class MissingSplit(InputError):
    """The set is there, the split is not; `splits` are those it has."""

    def __init__(self, name: str, split: str, splits: Iterable[str]):
        self.splits = tuple(splits)
        there = ", ".join(self.splits) or "none"
        super().__init__(f"{name} has no split {split!r}; it has: {there}")


Loaded = TypeVar("Loaded")


def if_there(load: Callable[[str], Loaded], split: str) -> Loaded | None:
    """load(split); None where the data lack that split."""
    try:
        return load(split)
    except MissingSplit:
        return None


def to_test_on(spec: str, load: Callable[[str], Loaded], say: Callable[[str], None]) -> Loaded:
    """The test split; the train split, which is said, where there is none."""
    found = if_there(load, "test")
    if found is None:
        found = load("train")
        say(f"{spec} has no test split: the train split is used")
    return found


def silent(message: str) -> None:
    """The `say` of a caller who wants to hear nothing."""


def shown(path: str | bytes | os.PathLike[str]) -> str:
    """A path or a name as printable text, whatever the locale; bytes that are not UTF-8, and what would move a cursor,
    appear as \\xff and \\x1b."""
    try:
        text = os.fsencode(path).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # no path: a name that the file system's encoding lacks
        text = str(path).encode("utf-8", "backslashreplace").decode("utf-8")
    return text.translate(CONTROL)


class NotAtHand(InputError):
    """A named set that is nowhere on this machine and cannot be fetched; `reason` names no place."""

    def __init__(self, reason: str, advice: str):
        self.reason = reason
        super().__init__(f"{reason}; {advice}")


class MixedSizes(InputError):
    """Images of several sizes where one is wanted."""

    def __init__(self, where: str, sizes: Sequence[tuple[int, int]]):
        listed = ", ".join(f"{w}x{h}" for w, h in sizes[:6]) + (", ..." if len(sizes) > 6 else "")
        self.what = f"images in {where} have {len(sizes)} sizes ({listed})"
        super().__init__(f"{self.what}; make them one with --image-size {min(32, *(min(size) for size in sizes))}")


def canonical(split: str) -> str:
    """`validation` and `valid` are other words for `val`; the rest is itself."""
    return "val" if split.lower() in ("val", "valid", "validation") else split.lower()


def check_options(image_size: int | None, channels: int | None) -> None:
    if image_size is not None and image_size < 1:
        raise InputError(f"the image size must be at least 1 pixel, got {image_size}")
    if image_size is not None and image_size > LARGEST:
        raise InputError(f"the image size must be at most {LARGEST} pixels, got {image_size}")
    if channels not in (None, 1, 3):
        raise InputError(f"images can have 1 channel (grey) or 3 (colour), got {channels}")


def luma(x: UInt8[np.ndarray, "*n h w 3"]) -> UInt8[np.ndarray, "*n h w 1"]:
    """Grey level of RGB by ITU-R 601, Y = 0.299 R + 0.587 G + 0.114 B, in integers as Pillow's `L`."""
    r, g, b = (x[..., c].astype(np.uint32) for c in range(3))
    return ((19595 * r + 38470 * g + 7471 * b + 0x8000) >> 16).astype(np.uint8)[..., None]


def with_channels(x: UInt8[np.ndarray, "*n h w c"], channels: int | None) -> UInt8[np.ndarray, "*n h w d"]:
    """`x` with 1 or 3 channels: luma downwards, repetition upwards. None leaves it as it is."""
    if channels is None or x.shape[-1] == channels:
        return x
    return luma(x) if channels == 1 else np.repeat(x, 3, axis=-1)


def square(picture: Image.Image, size: int) -> Image.Image:
    """The central square, resized to `size` pixels (Lanczos)."""
    w, h = picture.size
    short = min(w, h)
    left, top = (w - short) // 2, (h - short) // 2
    box = (left, top, left + short, top + short)
    # Not resized before it is cropped: of a picture of one line that would make a gigantic one.
    return picture.crop(box) if short == size else picture.resize((size, size), Image.Resampling.LANCZOS, box)


def fitted(
    x: UInt8[np.ndarray, "n h w c"], image_size: int | None, channels: int | None
) -> UInt8[np.ndarray, "n a b d"]:
    """`x` at the asked size (pixels) and number of channels; `x` itself where it has them already."""
    check_options(image_size, channels)
    n, h, w, c = x.shape
    size = None if image_size is None or (h, w) == (image_size, image_size) else image_size
    depth = channels or c
    if size is None and depth == c:
        return x
    out = np.empty((n, size or h, size or w, depth), np.uint8)

    def resized(row: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(row[..., 0] if row.shape[-1] == 1 else row)
        return np.asarray(square(picture, size or 0)).reshape(*out.shape[1:3], row.shape[-1])

    with ThreadPoolExecutor() as pool:
        for start in range(0, n, CHUNK):
            rows = np.ascontiguousarray(x[start : start + CHUNK])
            if depth < c:
                rows = with_channels(rows, depth)
            if size is not None:
                rows = np.stack(list(pool.map(resized, rows)))
            out[start : start + CHUNK] = with_channels(rows, depth)
    return out


def existing(path: Path) -> bool:
    """Whether something is at `path`; a folder that may not be searched counts as nothing there."""
    try:
        return path.exists()
    except OSError:
        return False
