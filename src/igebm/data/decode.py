"""Picture files of every kind to one uint8 array, in threads; the damaged ones are found before anything is trained.

One rule everywhere: transparent pixels are laid over white, an animation gives its first frame, the camera's
orientation (EXIF) is applied, 16-bit grey v becomes round(v / 257), CMYK becomes RGB.
"""

import stat
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from ..errors import InputError, many
from ..files import whole
from ..limits import release_memory
from .images import MixedSizes, check_options, square, with_channels

IN_MEMORY = 2**30  # bytes; larger sets go to a file that is memory-mapped
AT_ONCE = 512  # pictures decoded before the first is stored
GREY = ("1", "L", "LA", "La")
MOST_PIXELS = 50_000_000  # of a picture, which takes 8 bytes each while it is decoded
LARGE = 2**24  # pixels; above it pictures are decoded one at a time
EVERY = 10.0  # seconds between words on how far it is
STRIP = 2**18  # pixels that are made over at a time
COLOUR = ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")
# Pillow looks at a file's content, not at its name, and knows kinds that run programs (EPS) or other machinery.
KINDS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM")


class Picture(NamedTuple):
    """A picture that has not been read yet."""

    name: str  # for messages
    open: Callable[[], Path | BinaryIO]  # gives what Pillow opens


class Head(NamedTuple):
    size: tuple[int, int]  # width, height as it is meant to be looked at
    grey: bool
    transparent: bool


def decode(picture: Picture, image_size: int | None, channels: int) -> np.ndarray:
    """One picture, uint8 H x W x `channels`; raises whatever Pillow raises where it cannot be decoded to its end."""
    with opened(picture) as image:
        return converted(_bounded(image), image_size, channels)


def converted(image: Image.Image, image_size: int | None, channels: int) -> np.ndarray:
    """A picture that Pillow has opened, or made, by the rule above: uint8 H x W x `channels`."""
    mode = _mode(image)
    image.load()
    if image.getexif().get(0x0112, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if mode == "I;16":
        image = _in_strips(image, "L", _eight_bits)
    elif _transparent(image):
        image = _in_strips(image, "RGB", _over_white)
    else:
        depth = "L" if mode in GREY else "RGB"
        image = image if image.mode == depth else image.convert(depth)
    if image_size is not None:
        image = square(image, image_size)
    x = np.asarray(image)
    return with_channels(x[..., None] if x.ndim == 2 else x, channels)


def _transparent(image: Image.Image) -> bool:
    return image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info


def _in_strips(image: Image.Image, mode: str, f: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """`f` of the picture, a pixel at a time by nature, some rows at once: what it needs in between is small."""
    w, h = image.size
    found, rows = Image.new(mode, image.size), max(1, STRIP // w)
    for top in range(0, h, rows):
        found.paste(f(image.crop((0, top, w, min(top + rows, h)))), (0, top))
    return found


def _eight_bits(image: Image.Image) -> Image.Image:
    """round(v / 257); 257 is odd, so no v is half way."""
    v = np.asarray(image).astype(np.uint16).astype(np.uint32)
    return Image.fromarray(((v + 128) // 257).astype(np.uint8))


def _over_white(image: Image.Image) -> Image.Image:
    image = image.convert("LA") if image.mode == "La" else image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def decode_all(
    pictures: Sequence[Picture],
    where: str,
    *,
    image_size: int | None = None,
    channels: int | None = None,
    skip_bad: bool = False,
    say: Callable[[str], None],
    spill: Callable[[], Path],
) -> tuple[np.ndarray, np.ndarray]:
    """All pictures, uint8 N x H x W x C, and the indices (int64, N) of those that were kept.

    C is 1 if all are grey, else 3, unless `channels` asks. Results above 1 GiB are written to the .npy file that
    `spill()` names and memory-mapped. Raises InputError listing the damaged files (with `skip_bad` they are left out
    and said), or the sizes where they differ and no `image_size` makes them one.
    """
    try:
        return _decode_all(pictures, where, image_size, channels, skip_bad, say, spill)
    finally:
        release_memory()


def _decode_all(
    pictures: Sequence[Picture],
    where: str,
    image_size: int | None,
    channels: int | None,
    skip_bad: bool,
    say: Callable[[str], None],
    spill: Callable[[], Path],
) -> tuple[np.ndarray, np.ndarray]:
    check_options(image_size, channels)
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        # Pillow warns of odd metadata; where pixels are missing it raises as well.
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        heads = list(pool.map(look, pictures))
        bad = {i: head for i, head in enumerate(heads) if isinstance(head, str)}
        good = [i for i in range(len(pictures)) if i not in bad]
        read = [head for head in heads if isinstance(head, Head)]
        depth = channels or (1 if all(head.grey for head in read) else 3)
        if not image_size:
            _one_size((head.size for head in read), where)
        oblong = sum(head.size[0] != head.size[1] for head in read) if image_size else 0
        clear = sum(head.transparent for head in read)
        for count, what in ((oblong, "not square, cut to the middle"), (clear, "transparent, laid over white")):
            if count:
                say(f"{where}: {what}: {count} of {many(len(pictures), 'image')}")
        w, h = (image_size, image_size) if image_size else (read[0].size if read else (0, 0))
        # glibc keeps what ended threads had: large pictures, and one that is alone, are decoded by this one.
        most = 0 if len(pictures) == 1 else LARGE
        ours = {i for i, head in enumerate(heads) if isinstance(head, Head) and head.size[0] * head.size[1] > most}
        rows = _rows(pictures, good, image_size, (h, w, depth), pool, ours, bad)
        rows = _told(rows, len(good), where, say)

        def report() -> None:
            _report([f"{pictures[i].name} ({bad[i]})" for i in sorted(bad)], len(pictures), where, skip_bad, say)

        shape = (len(good), h, w, depth)
        x = _to_memory(rows, shape, report) if np.prod(shape) <= IN_MEMORY else _to_file(rows, shape, report, spill())
    return x, np.array([i for i in range(len(pictures)) if i not in bad], dtype=np.int64)


def opened(picture: Picture) -> Image.Image:
    """The picture as Pillow opens it: of a kind that is only pixels, and from a file that ends."""
    source = picture.open()
    if isinstance(source, Path) and not stat.S_ISREG(source.stat().st_mode):
        raise OSError("neither a file nor a link to one")  # a pipe would be waited for
    return Image.open(source, formats=KINDS)


def _bounded(image: Image.Image) -> Image.Image:
    if image.size[0] * image.size[1] > MOST_PIXELS:
        raise Image.DecompressionBombError
    return image


def _mode(image: Image.Image) -> str:
    """The mode, with every spelling of 16-bit grey as I;16; ValueError for what has no sure meaning in 8 bits."""
    mode = image.mode
    # Older Pillow opens 16-bit PNG and PGM as 32-bit integers.
    if mode.startswith("I;16") or (mode == "I" and image.format in ("PNG", "PPM")):
        return "I;16"
    if mode not in GREY + COLOUR:
        raise ValueError(f"pixel format {mode} has no sure meaning in 8 bits; save it as 8 or 16 bits")
    return mode


def look(picture: Picture) -> Head | str:
    """What a picture says of itself, without its pixels; or why it cannot be read."""
    try:
        with opened(picture) as image:
            w, h = _bounded(image).size
            # For a PNG without EXIF in front Pillow would decode all of it to look behind the pixels.
            turned = (image.format != "PNG" or "exif" in image.info) and image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return Head((h, w) if turned else (w, h), _mode(image) in (*GREY, "I;16"), _transparent(image))
    except Exception as error:  # Pillow raises a dozen kinds for damaged files, without a common base
        return _reason(error)


def _rows(
    pictures: Sequence[Picture],
    good: list[int],
    image_size: int | None,
    shape: tuple[int, int, int],
    pool: Executor,
    ours: set[int],
    bad: dict[int, str],
) -> Iterator[np.ndarray]:
    """The decoded pictures in order, those in `ours` by the calling thread; those that turn out damaged are entered in
    `bad` instead."""

    def one(i: int) -> np.ndarray | str:
        try:
            return decode(pictures[i], image_size, shape[2])
        except Exception as error:  # as in look
            return _reason(error)

    for start in range(0, len(good), AT_ONCE):
        chunk = good[start : start + AT_ONCE]
        theirs = pool.map(one, [i for i in chunk if i not in ours])
        for i in chunk:
            row = one(i) if i in ours else next(theirs)
            if isinstance(row, str):
                bad[i] = row
            elif row.shape != shape:
                _one_size([(shape[1], shape[0]), (row.shape[1], row.shape[0])], pictures[i].name)
            else:
                yield row


def _told(rows: Iterator[np.ndarray], total: int, where: str, say: Callable[[str], None]) -> Iterator[np.ndarray]:
    """The rows, and every few seconds how many there are: a large folder takes minutes."""
    last = time.monotonic()
    for k, row in enumerate(rows, 1):
        if time.monotonic() - last > EVERY:
            say(f"{where}: {k:,} of {total:,} images read")
            last = time.monotonic()
        yield row


def _to_memory(rows: Iterator[np.ndarray], shape: tuple[int, ...], report: Callable[[], None]) -> np.ndarray:
    x = np.empty(shape, np.uint8)
    k = 0
    for row in rows:
        x[k] = row
        k += 1
    report()
    return x[:k]


def _to_file(rows: Iterator[np.ndarray], shape: tuple[int, ...], report: Callable[[], None], path: Path) -> np.ndarray:
    # Written, not mapped: a full disk is then an error, where a mapped page would kill the process.
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with whole(path) as temporary:
        with open(temporary, "wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            k = 0
            for row in rows:
                file.write(np.ascontiguousarray(row).data)
                k += 1
            report()
            # NumPy pads headers so that the first axis may change without changing their length.
            file.seek(0)
            np.lib.format.write_array_header_1_0(file, header | {"shape": (k, *shape[1:])})
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _report(bad: list[str], total: int, where: str, skip_bad: bool, say: Callable[[str], None]) -> None:
    if not bad:
        return
    listed = ", ".join(bad[:10]) + (f" and {len(bad) - 10} more" if len(bad) > 10 else "")
    if len(bad) == total or not skip_bad:
        hint = "" if len(bad) == total else "; repair or remove them, or leave them out with --skip-bad"
        raise InputError(f"{len(bad)} of {many(total, 'image')} in {where} cannot be read: {listed}{hint}")
    say(f"left out {len(bad)} of {many(total, 'image')} in {where} that cannot be read: {listed}")


def _one_size(sizes: Iterable[tuple[int, int]], where: str) -> None:
    found = sorted(set(sizes))
    if len(found) > 1:
        raise MixedSizes(where, found)


def _reason(error: BaseException) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"too many pixels to be decoded safely; {MOST_PIXELS:,} are allowed"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).split("\n")[0] or type(error).__name__
