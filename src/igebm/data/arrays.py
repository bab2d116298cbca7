"""Images from .npz and .npy files. Nothing is ever unpickled; arrays that lie uncompressed in a file are memory-mapped.

An .npz may hold `train_x`, `train_y`, `test_x`, `test_y`, `classes` (also `x_train`, `train_images`, `train_labels`),
or one unnamed set, `x` / `images` / `arr_0` with `y` / `labels` / `arr_1`, which is the train split. Labels are whole
numbers, names, or rows with a single 1 (one-hot); another matrix of floats, a row an image, holds latents (`latents`
may name its columns).
"""

import io
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import UInt8

from ..errors import InputError, many
from ..limits import affordable
from .images import CHUNK, SPLITS, Images, MissingSplit, canonical, fitted, shown, silent
from .labels import as_numbers, tidy_labels
from .latents import tidy_latents

LONGEST_HEADER = 2**16  # bytes; NumPy's own are padded to 128 or a little more
Header = tuple[tuple[int, ...], np.dtype]


def load_file(
    path: Path,
    split: str = "train",
    *,
    name: str | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    skip_bad: bool = False,
    say: Callable[[str], None] = silent,
) -> Images:
    """One split of an .npz or .npy file. Raises InputError, in one line, for whatever it cannot read for certain.

    With `skip_bad` images with values that are NaN or infinite are left out with their labels, which is said.
    """
    where = shown(path)
    arrays = read_npz(path) if path.suffix.lower() == ".npz" else {"x": read_npy(path)}
    try:
        pixels, labels, classes = sort_arrays(arrays, where)
        wanted = canonical(split)
        if wanted not in pixels:
            raise MissingSplit(where, split, pixels)
        counts = {s: len(a) if a.ndim else 0 for s, a in pixels.items()}
        bad = not_finite(pixels[wanted]) if skip_bad else []
        bad = bad if len(bad) < counts[wanted] else []  # where nothing would be left it is refused below
        kept = np.delete(np.arange(counts[wanted]), bad) if bad else slice(None)
        x = as_uint8(pixels[wanted][kept] if bad else pixels[wanted], f"{where} ({wanted})")
    except InputError as error:
        if isinstance(error, MissingSplit) or not perhaps_series(arrays):
            raise
        raise InputError(f"{error}; {SERIES}") from None
    if bad:
        lost = f"left out {len(bad)} of {many(counts[wanted], 'image')} in {where} ({wanted})"
        say(f"{lost} with NaN or infinity: {_few(bad)}")
    if "latents" not in arrays:
        labels, classes = as_numbers(labels, classes, where, say)
    if any(y.dtype.kind == "f" and y.ndim == 2 for y in labels.values()):
        latents, about = tidy_latents(labels, counts, names_in(arrays, ("latents",), where), where)
        y = latents.get(wanted)
        return Images(name or where, fitted(x, image_size, channels), None if y is None else y[kept], (), about)
    ys, classes = tidy_labels(labels, counts, classes, where, say)
    y = ys[wanted][kept] if wanted in ys else None
    return Images(name or where, fitted(x, image_size, channels), y, classes if y is not None else ())


SERIES = "if it holds time series: igebm data check --series, igebm train balls-langevin --data"


def perhaps_series(arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether arrays that cannot be images may be time series: by their names, or as floats with three axes."""
    return not arrays.keys().isdisjoint(("features", "series")) or any(
        x.ndim == 3 and x.dtype.kind == "f" for x in arrays.values()
    )


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Every array of an .npz: memory-mapped read-only where it lies uncompressed, else read into memory."""
    with _damage_named(path, "npz"), zipfile.ZipFile(path) as archive:
        entries = _entries(archive)
        packed = {key: info for key, info in entries.items() if not _stored(info)}
        _memory_for(sum(info.file_size for info in packed.values()), shown(path))
        return {key: _read(archive, info) if key in packed else _mapped(path, info) for key, info in entries.items()}


def read_npy(path: Path) -> np.ndarray:
    """The array of an .npy file, memory-mapped read-only."""
    with _damage_named(path, "npy"):
        with open(path, "rb") as file:
            shape, fortran, dtype, offset = _npy_header(file, shown(path))
        _enough(path.stat().st_size - offset, shape, dtype)
        return _memmap(path, dtype, offset, shape, fortran)


def npz_headers(path: Path) -> dict[str, Header]:
    """Shape and dtype of every array of an .npz, without its values."""
    headers = {}
    with _damage_named(path, "npz"), zipfile.ZipFile(path) as archive:
        for key, info in _entries(archive).items():
            with archive.open(info) as file:
                shape, _, dtype, _ = _npy_header(file, shown(path))
            headers[key] = (shape, dtype)
    return headers


def sort_arrays(
    arrays: Mapping[str, np.ndarray], where: str
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], tuple[str, ...]]:
    """The arrays of a file as pixels by split, labels by split, class names."""
    pixels: dict[str, np.ndarray] = {}
    labels: dict[str, np.ndarray] = {}
    for split in SPLITS:
        words = (split, "validation", "valid") if split == "val" else (split,)
        for word in words:
            for key in (f"{word}_x", f"x_{word}", f"{word}_images"):
                if key in arrays:
                    pixels.setdefault(split, arrays[key])
            for key in (f"{word}_y", f"y_{word}", f"{word}_labels"):
                if key in arrays:
                    labels.setdefault(split, arrays[key])
    if not pixels:
        keys = [key for key in ("x", "images", "arr_0") if key in arrays]
        if not keys:
            there = ", ".join(sorted(arrays)) or "none"
            raise InputError(
                f"no images found in {where}: expected an array train_x, x, images or arr_0; it has: {there}"
            )
        pixels["train"] = arrays[keys[0]]
        for key in ("y", "labels", "arr_1"):
            if key in arrays:
                labels.setdefault("train", arrays[key])
    names = names_in(arrays, ("classes", "class_names"), where)
    return pixels, {s: y for s, y in labels.items() if s in pixels}, names


def names_in(arrays: Mapping[str, np.ndarray], keys: tuple[str, ...], where: str) -> tuple[str, ...]:
    """The names in the first of these arrays that is there, as text that can be shown; () where none is."""
    names = next((arrays[key] for key in keys if key in arrays), np.empty(0, "U1"))
    if names.size and (names.dtype.kind not in "US" or names.ndim != 1):
        raise InputError(f"`{keys[0]}` of {where} must be a list of names, got {names.dtype} of shape {names.shape}")
    try:
        return tuple(shown(name) for name in names.ravel().tolist())
    except (SystemError, ValueError) as error:  # characters that Unicode does not have
        raise InputError(f"`{keys[0]}` of {where} holds names that are no text ({error})") from error


def as_uint8(x: np.ndarray, where: str) -> UInt8[np.ndarray, "n h w c"]:
    """Pixels as uint8 N x H x W x C, a view where they are that already.

    uint8 is taken as it is, even if no value exceeds 1; floats within [0, 1] are multiplied by 255 and rounded.
    Anything else could mean several things and is refused, as is a shape whose channel axis (of 1 or 3) cannot be told.
    """
    x = _channels_last(x, where)
    if not x.size:
        raise InputError(f"no images found in {where}: the array has shape {x.shape}")
    if x.dtype == np.uint8:
        return x
    chunks = [x[start : start + CHUNK] for start in range(0, len(x), CHUNK)]
    if bad := not_finite(x):
        values = sum(int(np.count_nonzero(~np.isfinite(x[i]))) for i in bad)
        hint = "; repair them, or leave them out with --skip-bad" if len(bad) < len(x) else ""
        raise InputError(
            f"{where} holds NaN or infinity in {len(bad)} of {many(len(x), 'image')} ({many(values, 'value')}; images "
            f"{_few(bad)}, counted from 0){hint}"
        )
    low, high = (
        (min(chunk.min() for chunk in chunks), max(chunk.max() for chunk in chunks))
        if x.dtype.kind in "fiub"
        else (0, 0)
    )
    if x.dtype.kind != "f" or low < 0 or high > 1:
        raise InputError(
            f"{where} has {x.dtype} values from {low:.6g} to {high:.6g}, shape {x.shape}, "
            "which can be read in several ways; save it as uint8 (0 to 255) or as floats in [0, 1]"
        )
    out = np.empty(x.shape, np.uint8)
    for start in range(0, len(x), CHUNK):
        out[start : start + CHUNK] = np.rint(x[start : start + CHUNK].astype(np.float64) * 255)
    return out


def not_finite(x: np.ndarray) -> list[int]:
    """Which items of an array hold values that are NaN or infinite, from 0; [] for whole numbers."""
    if x.dtype.kind != "f" or x.ndim < 2:
        return []
    found: list[int] = []
    for start in range(0, len(x), CHUNK):
        rows = x[start : start + CHUNK]
        found += (start + np.flatnonzero(~np.isfinite(rows).reshape(len(rows), -1).all(1))).tolist()
    return found


def _few(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:10])) + (f" and {len(numbers) - 10} more" if len(numbers) > 10 else "")


def _channels_last(x: np.ndarray, where: str) -> np.ndarray:
    if x.ndim == 3 and x.shape[-1] not in (1, 3):
        return x[..., None]
    first, last = (x.ndim == 4 and x.shape[axis] in (1, 3) for axis in (1, -1))
    if first == last:
        why = (
            "both axis 1 and the last could be the channels"
            if first
            else "expected (N, H, W, C) or (N, C, H, W), C = 1 or 3"
        )
        raise InputError(
            f"cannot tell the channels of {where}, shape {x.shape}: {why}; save it as (N, H, W, 3) or (N, H, W)"
        )
    return np.moveaxis(x, 1, -1) if first else x


def _entries(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    return {info.filename.removesuffix(".npy"): info for info in archive.infolist() if info.filename.endswith(".npy")}


def _stored(info: zipfile.ZipInfo) -> bool:
    return info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1


def _npy_header(file: IO[bytes] | io.BufferedIOBase, where: str) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Shape, whether in Fortran's order, dtype, and the bytes before the first value."""
    head = io.BytesIO(file.read(LONGEST_HEADER))  # so that a header of 4 GiB that is announced is not waited for
    version = np.lib.format.read_magic(head)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that Python 2 wrote it
        shape, fortran, dtype = read(head)
    if dtype.hasobject:
        raise InputError(
            f"{where} holds Python objects, of shape {shape}; they are never unpickled: save plain arrays of numbers"
        )
    if min(shape, default=1) < 0 or (dtype.itemsize == 0 and 0 not in shape):
        raise ValueError(f"no array has the shape {shape} and the dtype {dtype}")
    return shape, fortran, dtype, head.tell()


def _mapped(path: Path, info: zipfile.ZipInfo) -> np.ndarray:
    with open(path, "rb") as file:
        # The local header (30 bytes, name, extra field) repeats the central one, but its extra field may differ.
        file.seek(info.header_offset)
        local = file.read(30)
        if local[:4] != b"PK\x03\x04":
            raise zipfile.BadZipFile(f"no entry where {info.filename} should be")
        start = (
            info.header_offset + 30 + int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
        )
        file.seek(start)
        shape, fortran, dtype, offset = _npy_header(file, shown(path))
    _enough(min(info.file_size, path.stat().st_size - start) - offset, shape, dtype)
    return _memmap(path, dtype, start + offset, shape, fortran)


def _memmap(path: Path, dtype: np.dtype, offset: int, shape: tuple[int, ...], fortran: bool) -> np.ndarray:
    if 0 in shape or not shape:  # nothing to map, and mmap refuses empty ranges
        with open(path, "rb") as file:
            file.seek(offset)
            return np.fromfile(file, dtype, 0 if 0 in shape else 1).reshape(shape)
    return np.memmap(path, dtype, "r", offset, shape, "F" if fortran else "C")


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as file:
        shape, _, dtype, offset = _npy_header(file, shown(archive.filename or "the file"))
    _enough(info.file_size - offset, shape, dtype)
    with archive.open(info) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.lib.format.read_array(file, allow_pickle=False)


def _enough(there: int, shape: tuple[int, ...], dtype: np.dtype) -> None:
    needed = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if there < needed:
        raise EOFError(f"cut off: {needed} bytes of pixels announced, {there} there")


def _memory_for(needed: int, where: str) -> None:
    """Raises InputError where compressed arrays would not fit the machine's memory: a thousandth of it can hold them
    packed."""
    affordable(needed, f"the compressed arrays of {where} (np.savez leaves them as they are, to be read in place)")


@contextmanager
def _damage_named(path: Path, kind: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # zipfile and NumPy raise a dozen kinds for a damaged file; each means the same here
        raise _unreadable(path, kind, error) from error


def _unreadable(path: Path, kind: str, error: BaseException) -> InputError:
    reason = str(error).split("\n")[0] or type(error).__name__
    return InputError(
        f"{shown(path)} is not an .{kind} file that can be read, or it is damaged: {reason}; "
        "write it again (a file that igebm made itself can be deleted)"
    )
