"""dSprites (section 6, Fig. 9), rendered: a white square, ellipse or heart on black, by scale, rotation and place.

The set is 737,280 images of 64 x 64, 0 or 1: shape 3 x scale 6 x rotation 40 x place 32 x 32, the last varying fastest.
A pixel (row i, column j) is on where its centre (j + ½, i + ½) lies inside the shape, whose own centre is at
(16 + 32 x, 16 + 32 y), y down. With (dx, dy) from the one to the other, in pixels,

    u = (cos θ dx - sin θ dy) / scale,   v = (sin θ dx + cos θ dy) / scale,

    square    max(|u|, |v|) < 9.598
    ellipse   (u / 12.7659)² + (v / 7.2123)² < 1
    heart     in the polygon u = 9.6 sin³ t,  v = -0.6622 (13 cos t - 5 cos 2t - 2 cos 3t - cos 4t) - 1.44,
              t = 2πk / 150

These are no official formulas (none is published) but fits to real images; all 258 that they were compared with (45
squares, 45 ellipses, 168 hearts) come out equal to the last pixel. https://github.com/google-deepmind/dsprites-dataset

As conditions the factors are: shape, one of three classes; scale, 0.5 to 1; place, x and y in [0, 1]; rotation, the
cosine and sine of the labelled angle. A square looks the same after a quarter of a turn and an ellipse after half of
one (SYMMETRY), but the label is kept as it is: an angle then means the same for every shape, and what looks alike is
alike to the model too, since p(image | angle) is.
"""

import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float32, Float64, Int64, UInt8
from torch import Tensor

from ..errors import InputError, unknown
from .images import Images, MissingSplit, canonical, shown
from .latents import Latent

SHAPES = ("square", "ellipse", "heart")
COUNTS = (3, 6, 40, 32, 32)
"""values of each factor: shape, scale, rotation, x, y"""
N = math.prod(COUNTS)
SYMMETRY = (4, 2, 1)
"""equal pictures in one turn, by shape"""
CONDITIONS: dict[str, tuple[Latent, ...]] = {
    "shape": (),
    "scale": (Latent("scale", 0.5, 1.0),),
    "rotation": (Latent("cos", -1.0, 1.0), Latent("sin", -1.0, 1.0)),
    "position": (Latent("x", 0.0, 1.0), Latent("y", 0.0, 1.0)),
}
"""what a model may be conditional on, and the columns of that condition (the shape is a class)"""

SQUARE, ELLIPSE = 9.598, (12.7659, 7.2123)
REACH = 14.0  # pixels from a shape's centre to its farthest point, at most: the square's corner is at 13.6
CHUNK = 128  # images drawn at once: their coordinates fit the processor's cache

Values = int | float | np.generic | np.ndarray | Tensor


class Sprites(NamedTuple):
    """The latents of n images: shape 0..2 (SHAPES), scale, angle in radians, place of the centre in [0, 1]."""

    shape: Int64[np.ndarray, " n"]
    scale: Float64[np.ndarray, " n"]
    angle: Float64[np.ndarray, " n"]
    x: Float64[np.ndarray, " n"]
    y: Float64[np.ndarray, " n"]


def classes(i: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, "n 5"]:
    """Which value of each factor image i of the official order has: (shape, scale, rotation, x, y), each from 0."""
    return np.stack(np.unravel_index(i, COUNTS), 1).astype(np.int64)


def index(c: Int64[np.ndarray, "n 5"]) -> Int64[np.ndarray, " n"]:
    """The number of an image in the official order; the inverse of `classes`."""
    return np.asarray(np.ravel_multi_index(tuple(c.T), COUNTS), np.int64)


def values(c: Int64[np.ndarray, "n 5"]) -> Sprites:
    """scale = 0.5, 0.6, ..., 1; angle = 2πk / 39 (the first and the last are a turn apart: one picture);
    x, y = k / 31."""
    shape, scale, turn, x, y = c.T
    return Sprites(shape, 0.5 + scale / 10, 2 * np.pi * turn / 39, x / 31, y / 31)


def latents(i: Int64[np.ndarray, " n"]) -> Sprites:
    """The latents of image i of the official order: `render(*latents(i))` is that image."""
    return values(classes(i))


def render(
    shape: Values, scale: Values, angle: Values, x: Values, y: Values, size: int = 64, fine: int | None = None
) -> Float32[Tensor, "n h w"]:
    """Images (n, size, size), black 0 to white 1, of latents as in `Sprites` but real-valued, given as numbers, arrays
    or tensors that broadcast to one row (n,); drawn on the device of the first tensor among them.

    Each pixel is the mean of fine x fine samples at the centres of its cells. The default is the least that samples as
    finely as the official images: 1 at 64 (which gives these), 2 at 32 (their means over 2 x 2 pixels). Raises
    InputError for a scale outside (0, 1], a place outside [0, 1] and a shape that is none of 0, 1, 2.
    """
    columns = (shape, scale, angle, x, y)
    device = next((v.device for v in columns if isinstance(v, Tensor)), torch.device("cpu"))
    flat = (torch.as_tensor(v, dtype=torch.float32, device=device).reshape(-1) for v in columns)
    kind, *rest = torch.broadcast_tensors(*flat)
    _check(kind, *rest)
    fine = math.ceil(64 / size) if fine is None and size > 0 else fine
    if size < 1 or fine is None or fine < 1:
        raise InputError(f"images of {size} pixels, {fine} samples a side of each: give at least 1")
    out = torch.empty(len(kind), size, size, device=device)
    for k, inside in enumerate((_in_square, _in_ellipse, _in_heart)):
        for rows in (kind == k).nonzero()[:, 0].split(CHUNK):
            full = _draw(inside, size * fine, *(v[rows] for v in rest))
            out[rows] = full if fine == 1 else F.avg_pool2d(full[:, None], fine)[:, 0]
    return out


def pictures(z: Sprites, size: int = 64) -> UInt8[np.ndarray, "n h w 1"]:
    """Rendered images as bytes, 0 to 255."""
    out = np.empty((len(z.x), size, size, 1), np.uint8)
    for start in range(0, len(out), 8 * CHUNK):  # the bytes of many images fit into memory where their floats do not
        part = slice(start, start + 8 * CHUNK)
        x = render(*(column[part] for column in z), size=size)
        out[part, ..., 0] = (x * 255).round().to(torch.uint8).numpy()
    return out


def condition(z: Sprites, factor: str) -> Int64[np.ndarray, " n"] | Float32[np.ndarray, "n d"]:
    """What a model conditional on `factor` is given: labels (n,), or rows of real numbers, columns as CONDITIONS
    says."""
    if factor == "shape":
        return z.shape.astype(np.int64)
    columns = {
        "scale": (z.scale,),
        "rotation": (np.cos(z.angle), np.sin(z.angle)),
        "position": (z.x, z.y),
    }
    return np.stack(columns[factor], 1).astype(np.float32)


class Rendered:
    """Images that are drawn when they are read: `x[rows]` is uint8 (n, size, size, 1), as of an array that holds them
    all (a few GB), with its shape, dtype and nbytes."""

    dtype, ndim = np.dtype(np.uint8), 4

    def __init__(self, i: Int64[np.ndarray, " n"], size: int):
        self.i, self.shape = i, (len(i), size, size, 1)
        self.nbytes = math.prod(self.shape)

    def __len__(self) -> int:
        return len(self.i)

    def __getitem__(self, rows: int | slice | np.ndarray) -> np.ndarray:
        found = pictures(latents(np.atleast_1d(self.i[rows])), self.shape[1])
        return found[0] if np.ndim(self.i[rows]) == 0 else found

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return self[:] if dtype is None else self[:].astype(dtype)


def load(
    factor: str = "position",
    split: str = "train",
    *,
    size: int = 64,
    n: int | None = None,
    file: Path | None = None,
    left_out: Callable[[Sprites], np.ndarray] | None = None,
) -> Images:
    """One split of dSprites with the condition of one factor: rendered, or read from the official .npz `file`.

    All images are shuffled once, always alike; the last hundredth is the test split. Sprites for which `left_out` is
    true are taken away. `n` takes the first n of a split, drawn at once; without it, rendered images are drawn as they
    are read. Raises InputError.
    """
    if factor not in CONDITIONS:
        raise unknown("factor of dSprites", factor, CONDITIONS)
    if size < 1 or (n is not None and n < 1):
        raise InputError(f"dsprites: {n} images of {size} pixels; give at least 1")
    c = None if file is None else _file_classes(file)
    total = N if c is None else len(c)
    order, tests = np.random.default_rng(0).permutation(total), max(1, total // 100)
    parts = {"train": order[:-tests], "test": order[-tests:]}
    if canonical(split) not in parts:
        raise MissingSplit("dsprites", split, parts)
    of = lambda i: latents(i) if c is None else values(c[i])
    i = parts[canonical(split)]
    if left_out is not None:
        i = i[~left_out(of(i))]
        if not len(i):
            raise InputError(f"dsprites: nothing is left of the {canonical(split)} split; hold less out")
    i = i[:n]
    z = of(i)
    x: Any
    if file is not None:
        x = _boxed(_file_images(file, i, total), size)
    else:
        x = Rendered(i, size) if n is None else pictures(z, size)
    name, names = "dsprites" if file is None else shown(file), SHAPES if factor == "shape" else ()
    return Images(name, x, condition(z, factor), names, CONDITIONS[factor])


# Drawing


def _check(kind: Tensor, scale: Tensor, angle: Tensor, x: Tensor, y: Tensor) -> None:
    checks = (
        ("shape", kind, (kind == 0) | (kind == 1) | (kind == 2), "0 (square), 1 (ellipse) or 2 (heart)"),
        ("scale", scale, (scale > 0) & (scale <= 1), "above 0 and at most 1"),
        ("angle", angle, angle.isfinite(), "a finite number, in radians"),
        ("x", x, (x >= 0) & (x <= 1), "between 0 and 1"),
        ("y", y, (y >= 0) & (y <= 1), "between 0 and 1"),
    )
    for name, given, fits, wanted in checks:
        if not fits.all():
            raise InputError(f"{name} {given[~fits][0].item():g} of a sprite: it must be {wanted}")


def _draw(
    inside: Callable[[Tensor, Tensor], Tensor], cells: int, scale: Tensor, angle: Tensor, x: Tensor, y: Tensor
) -> Float32[Tensor, "n h w"]:
    """Samples of one shape at the centres of cells x cells cells; only a square around the shape is looked at."""
    unit = 64 / cells  # pixels of the official images in a cell
    reach = math.ceil(REACH / unit)
    span = min(2 * reach + 1, cells)

    def line(place: Tensor) -> tuple[Tensor, Tensor]:
        """Of one axis: the cells around the centre (n, span), and how far their own centres are from it, in pixels."""
        centre = 16 + 32 * place[:, None]
        first = ((centre / unit).floor().long() - reach).clamp(0, cells - span)
        numbers = first + torch.arange(span, device=place.device)
        return numbers, (numbers + 0.5) * unit - centre

    columns, dx = line(x)
    rows, dy = line(y)
    c, s = (f(angle)[:, None] / scale[:, None] for f in (torch.cos, torch.sin))
    u = (c * dx)[:, None, :] - (s * dy)[:, :, None]  # (n, span, span)
    v = (s * dx)[:, None, :] + (c * dy)[:, :, None]
    out = torch.zeros(len(x), cells, cells, device=x.device)
    each = torch.arange(len(x), device=x.device)[:, None, None]
    out[each, rows[:, :, None], columns[:, None, :]] = inside(u, v).float()
    return out


def _in_square(u: Tensor, v: Tensor) -> Bool[Tensor, "*n"]:
    return torch.maximum(u.abs(), v.abs()) < SQUARE


def _in_ellipse(u: Tensor, v: Tensor) -> Bool[Tensor, "*n"]:
    a, b = ELLIPSE
    return (u / a).square() + (v / b).square() < 1


def heart() -> Float64[np.ndarray, "150 2"]:
    """The vertices (u, v) of the heart, from the notch (t = 0) round by the right side; the tip is t = π."""
    t = 2 * np.pi * np.arange(150) / 150
    v = -0.6622 * (13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) - 1.44
    return np.stack([9.6 * np.sin(t) ** 3, v], 1)


def _heart_edges() -> tuple[Tensor, Tensor]:
    """|u| of the vertices 1..37, and of the 38 strips between them intercept and slope of the upper and lower edge.

    sin³ t rises up to t = π/2 and falls from there, so that every vertical line meets the right half of the outline
    twice: on the edge (k, k+1) above and its mirror image (75-k, 74-k) below. The last strip lies outside.
    """
    u, v = heart().T
    k = np.arange(37)
    edges = []
    for a, b in ((k, k + 1), (75 - k, 74 - k)):
        slope = (v[b] - v[a]) / (u[b] - u[a])
        edges += [np.append(v[a] - slope * u[a], np.inf), np.append(slope, 0.0)]
    return torch.tensor(u[1:38], dtype=torch.float32), torch.tensor(np.array(edges), dtype=torch.float32)


HEART_U, HEART_EDGES = _heart_edges()


def _in_heart(u: Tensor, v: Tensor) -> Bool[Tensor, "*n"]:
    u = u.abs()
    strip = torch.bucketize(u, HEART_U.to(u.device), right=True)
    a, da, b, db = HEART_EDGES.to(u.device)
    return (v > a[strip] + da[strip] * u) & (v < b[strip] + db[strip] * u)


# The official file


def _file_classes(path: Path) -> Int64[np.ndarray, "n 5"]:
    c = _rows(path, "latents_classes", (6,))[:, 1:].astype(np.int64)  # the first column is the colour, always white
    if not len(c) or (c < 0).any() or (c >= np.array(COUNTS)).any():
        raise InputError(f"{shown(path)}: `latents_classes` are not those of dSprites, {' x '.join(map(str, COUNTS))}")
    return c


def _file_images(path: Path, i: Int64[np.ndarray, " n"], of: int) -> UInt8[np.ndarray, "n 64 64"]:
    x = _rows(path, "imgs", (64, 64), i, of)
    if x.max() > 1:
        raise InputError(f"{shown(path)}: `imgs` of dSprites are 0 and 1, got values up to {x.max()}")
    return x.astype(np.uint8, copy=False)


def _rows(
    path: Path, name: str, tail: tuple[int, ...], wanted: Int64[np.ndarray, " n"] | None = None, of: int | None = None
) -> np.ndarray:
    """Rows of one array of an .npz, all of them by default; `of` is how many there must be.

    It is read as a stream: the official images are 3 GB, and the file holds a pickle beside them, which stays closed.
    """
    where = f"{shown(path)}: `{name}`"
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
            version = np.lib.format.read_magic(file)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = header(file)
            if shape[1:] != tail or fortran or dtype.kind not in "iu":
                raise InputError(f"{where} of dSprites are whole numbers of shape (n, {tail}), got {dtype} of {shape}")
            if of is not None and shape[0] != of:
                raise InputError(f"{where} has {shape[0]} rows and `latents_classes` has {of}")
            wanted = np.arange(shape[0]) if wanted is None else wanted
            order = np.argsort(wanted)
            rising, out = wanted[order], np.empty((len(wanted), *tail), dtype)
            for start in range(0, shape[0], CHUNK):
                size = min(CHUNK, shape[0] - start)
                rows = np.frombuffer(file.read(size * math.prod(tail) * dtype.itemsize), dtype).reshape(size, *tail)
                a, b = np.searchsorted(rising, (start, start + size))
                out[order[a:b]] = rows[rising[a:b] - start]
                if b == len(rising):
                    break
            return out
    except InputError:
        raise
    except Exception as error:  # zipfile and NumPy raise a dozen kinds for a damaged file; each means the same here
        reason = str(error).split("\n")[0] or type(error).__name__
        raise InputError(f"{where} cannot be read: {reason}; it is no .npz of dSprites, or damaged") from None


def _boxed(x: UInt8[np.ndarray, "n 64 64"], size: int) -> UInt8[np.ndarray, "n h w 1"]:
    """0 and 1 as 0 and 255, means of blocks where `size` divides 64."""
    if 64 % size:
        raise InputError(f"the official images are 64x64; {size} does not divide that: choose 64, 32, 16 or 8")
    if size == 64:
        return np.multiply(x, 255, out=x)[..., None]  # in place: the whole set is 3 GB
    f, out = 64 // size, np.empty((len(x), size, size, 1), np.uint8)
    for start in range(0, len(x), 8 * CHUNK):
        part = slice(start, start + 8 * CHUNK)
        means = x[part].reshape(-1, size, f, size, f).mean((2, 4), dtype=np.float32)
        out[part, ..., 0] = np.rint(means * 255)
    return out
