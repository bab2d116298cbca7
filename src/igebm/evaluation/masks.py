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


def read_mask(path: Path, height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """The mask in an image file: true where the picture is white (to be filled), false where it is black (kept).

    White is 255, or 1 in a picture of 0 and 1, or 65535 of 16 bits; what is transparent is not painted, hence kept.
    Nothing is guessed: raises InputError for colours, for grey, for another size than the images', and for what is no
    picture.
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
    if x.shape[:2] != (height, width):
        raise InputError(
            f"--mask {shown(path)} is {x.shape[1]}x{x.shape[0]}, the model's images are {width}x{height}; draw it in "
            "their size"
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
    return x == top if top else np.zeros((height, width), bool)
