"""Pictures of samples: one grid, one way to write it."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..files import whole


def grid(images: np.ndarray, columns: int = 0, gap: int = 1, least: int = 480) -> np.ndarray:
    """uint8 (N, H, W, C) -> one uint8 picture (rows, columns), row by row, on white, enlarged by whole pixels to be
    seen.

    `columns` 0: about square. `least` is the width in pixels that small images are enlarged to.
    """
    n, h, w, c = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    canvas = np.full((rows * (h + gap) + gap, columns * (w + gap) + gap, c), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = gap + (i // columns) * (h + gap), gap + (i % columns) * (w + gap)
        canvas[top : top + h, left : left + w] = image
    scale = max(1, round(least / canvas.shape[1]))
    return canvas.repeat(scale, 0).repeat(scale, 1)


MOST_COLUMNS = 20
MOST_ROWS = 20


def sample_picture(images: np.ndarray, labels: np.ndarray | None, classes: Sequence[str]) -> np.ndarray:
    """Samples as people want to see them: by classes where there are a few, else a grid."""
    if labels is None or labels.ndim > 1 or not classes or not 1 < len(np.unique(labels)) <= MOST_ROWS:
        return grid(by_class(images, labels))
    return class_rows(images, labels, classes)


def class_rows(images: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """A grid as above with a row, or a few, for each class that occurs in `labels` (N,), and its name beside them."""
    of = {int(k): images[labels == k] for k in np.unique(labels)}
    columns = min(MOST_COLUMNS, max(map(len, of.values())))
    rows = {k: math.ceil(len(x) / columns) for k, x in of.items()}
    filled = [np.concatenate([x, np.full_like(x, 255, shape=(rows[k] * columns - len(x), *x.shape[1:]))])
              for k, x in of.items()]  # fmt: skip
    pictures = grid(np.concatenate(filled), columns, least=min(1000, 70 * columns))
    height, font = pictures.shape[0] / sum(rows.values()), ImageFont.load_default(size=14)
    names = [classes[k] if k >= 0 else "no label" for k in of]
    margin = 12 + math.ceil(max(font.getlength(name) for name in names))
    beside = Image.new("L", (margin, pictures.shape[0]), 255)
    pen, top = ImageDraw.Draw(beside), 0
    for k, name in zip(of, names, strict=True):
        pen.text((6, (top + rows[k] / 2) * height), name, fill=0, font=font, anchor="lm")
        top += rows[k]
    return np.concatenate([np.asarray(beside)[..., None].repeat(pictures.shape[-1], -1), pictures], 1)


def write_png(path: Path, picture: np.ndarray) -> None:
    """Write a uint8 picture (H, W, 1 or 3) as PNG, whole or not at all."""
    with whole(path) as temporary:
        Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(temporary, format="PNG")


def by_class(images: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    """Images in the order of their labels, so that a grid's rows are classes; as they are without labels, or with
    latents."""
    return images if labels is None or labels.ndim > 1 else images[np.argsort(labels, kind="stable")]
