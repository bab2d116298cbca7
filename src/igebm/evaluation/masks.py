"""Masks for in-painting: white is filled, black is kept."""

from pathlib import Path

import numpy as np
from jaxtyping import Bool
from PIL import Image

from ..data.decode import Picture, opened
from ..data.images import shown
from ..errors import InputError

RULE = "white is filled, black is kept"


def lower_half(height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """The released code's hole: the lower half of the rows is filled."""
    mask = np.zeros((height, width), bool)
    mask[height // 2 :] = True
    return mask


def read_mask(path: Path, height: int, width: int, picture: tuple[int, int] | None = None) -> Bool[np.ndarray, "h w"]:
    """The mask in an image file: true where it is white (to be filled), false where it is black (kept).

    White is 255, or 1 in a mask of 0 and 1, or 65535 of 16 bits; what is transparent is not painted, hence kept.
    A mask of the size (width, height) of the `picture` that the model's square image was made of is cut and shrunk as
    the picture was. Nothing is guessed: raises InputError for colours, for grey, for other sizes, and for what is no
    image.
    """
    try:
        with opened(Picture(str(path), lambda: path)) as image:
            image.load()
            clear = "A" in image.getbands() or "transparency" in image.info
            if clear:
                image = image.convert("RGBA")
                black = Image.new("RGBA", image.size, "black")
                image = Image.alpha_composite(black, image).convert("RGB")
            elif image.mode in ("1", "P", "CMYK", "YCbCr", "HSV", "LAB"):
                image = image.convert("L" if image.mode == "1" else "RGB")
            x = np.asarray(image)
    except Exception as error:  # Pillow raises a dozen kinds for damaged files, without a common base
        reason = getattr(error, "strerror", None) or "not an image"
        raise InputError(f"--mask {shown(path)}: {reason}; give a PNG in which {RULE}") from error
    here = (x.shape[1], x.shape[0])
    if here not in ((width, height), picture):
        theirs = "their size" if picture is None else f"their size, or in the picture's, {picture[0]}x{picture[1]}"
        raise InputError(
            f"--mask {shown(path)} is {here[0]}x{here[1]}, the model's images are {width}x{height}; draw it in {theirs}"
        )
    if x.ndim == 3:
        if (x != x[..., :1]).any():
            raise InputError(f"--mask {shown(path)} has colours; use black and white alone: {RULE}")
        x = x[..., 0]
    levels = np.unique(x)
    top = levels[-1]
    if top not in (0, 1, 255, 65535) or not np.isin(levels, (0, top)).all():
        between = int((~np.isin(x, (0, 255))).sum())
        raise InputError(
            f"--mask {shown(path)} has {between} grey pixels (levels {', '.join(map(str, levels[:5]))}"
            f"{', ...' if len(levels) > 5 else ''}); use black and white alone: {RULE}"
        )
    white = (x == top) & (top > 0)
    return white if here == (width, height) else shrunk(white, height)


def shrunk(white: Bool[np.ndarray, "h w"], side: int) -> Bool[np.ndarray, "{side} {side}"]:
    """The central square of a mask (as `data.images.square` cuts it) in `side` x `side` pixels: each is true where any
    of the mask's pixels under it is, so that nothing painted is lost."""
    h, w = white.shape
    short = min(h, w)
    top, left = (h - short) // 2, (w - short) // 2
    white = white[top : top + short, left : left + short]
    under = [slice(i * short // side, -(-(i + 1) * short // side)) for i in range(side)]
    rows = np.stack([white[part].any(0) for part in under])
    return np.stack([rows[:, part].any(1) for part in under], 1)
