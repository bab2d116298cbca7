"""A folder of images: its sub-folders are the classes, in the order of their names; a flat folder has no labels.

Folders called train, test, val or validation are splits, never classes; without them everything is the train split.
"""

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import InputError, many
from ..files import whole
from .arrays import read_npy
from .decode import Picture, decode_all
from .images import Images, MissingSplit, canonical, shown, silent

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
WORTH_KEEPING = 2**24  # bytes of files; fewer do not decode to more than memory holds
SPLIT_FOLDERS = ("train", "test", "val", "valid", "validation")


class Listing(NamedTuple):
    """What a folder holds, before any image is opened."""

    files: dict[str, list[tuple[Path, str]]]  # split -> image files, each with its class folder ("" for none)
    classes: tuple[str, ...]  # in order; those of all splits together
    empty: tuple[str, ...]  # folders that would be classes but hold no image
    passed: tuple[Path, ...]  # files that are not taken for images


def load_folder(
    root: Path,
    split: str = "train",
    *,
    image_size: int | None = None,
    channels: int | None = None,
    skip_bad: bool = False,
    say: Callable[[str], None] = silent,
    data_dir: Callable[[], Path],
) -> Images:
    """One split of a folder of images.

    `data_dir()` is asked for a folder to keep decoded pixels in where they exceed 1 GiB. Raises InputError for a folder
    without images, damaged images (unless `skip_bad`) or images of several sizes without an `image_size`.
    """
    where = shown(root)
    listing = list_folder(root)
    wanted = canonical(split)
    if listing.files and wanted not in listing.files:
        raise MissingSplit(where, split, listing.files)
    if listing.passed:
        some = ", ".join(shown(path.name) for path in listing.passed[:3])
        dots = ", ..." if len(listing.passed) > 3 else ""
        say(f"{where}: passed over {many(len(listing.passed), 'file')} of other kinds ({some}{dots})")
    if not listing.files:
        raise InputError(f"no images found in {where}; looked for {' '.join(EXTENSIONS)}, in any case")
    if listing.empty:
        say(f"{where}: no class for folders without images: {', '.join(shown(name) for name in listing.empty)}")
    files = listing.files[wanted]
    pictures = [Picture(shown(path.relative_to(root)), partial(Path, path)) for path, _ in files]
    x, kept = _pixels(root, wanted, files, pictures, image_size, channels, skip_bad, say, data_dir)
    names = tuple(pictures[i].name for i in kept)
    if not listing.classes:
        return Images(where, x, None, (), files=names)
    number = {name: k for k, name in enumerate(listing.classes)}
    y = np.array([number.get(files[i][1], -1) for i in kept], dtype=np.int64)
    if (y < 0).any():
        beside = many(int((y < 0).sum()), "image")
        say(f"{where}: {beside} beside the class folders, taken as unlabelled")
    return Images(where, x, y, tuple(shown(name) for name in listing.classes), files=names)


def load_picture(
    path: Path,
    split: str = "train",
    *,
    image_size: int | None = None,
    channels: int | None = None,
    say: Callable[[str], None] = silent,
) -> Images:
    """A single image file as a set of one image without a label, its train split. Raises InputError as `load_folder`
    does."""
    if canonical(split) != "train":
        raise MissingSplit(shown(path), split, ("train",))
    picture = Picture(shown(path.name), partial(Path, path))
    x, _ = decode_all(
        [picture], shown(path), image_size=image_size, channels=channels, say=say, spill=partial(Path, os.devnull)
    )  # one picture fits the memory: it is never spilt
    return Images(shown(path), x, None, (), files=(picture.name,))


def list_folder(root: Path) -> Listing:
    """Image files by split and class. Hidden files (`.x`, `._x`, `__MACOSX`) are never opened."""
    images, passed, folders = _walk(root)
    parts = {path: path.relative_to(root).parts for path in images}
    splits = {p[0] for p in parts.values() if len(p) > 1 and p[0].lower() in SPLIT_FOLDERS}
    others = {p[0] for p in parts.values() if len(p) > 1} - splits
    if splits and others:
        raise InputError(
            f"{shown(root)} has folders that name splits ({_names(splits)}) beside others ({_names(others)}); "
            "move the classes into the splits, or rename the split folders"
        )
    files: dict[str, list[tuple[Path, str]]] = {}
    for path, p in parts.items():
        if splits and p[0] not in splits:
            passed.append(path)
            continue
        inner = p[1:] if splits else p
        files.setdefault(canonical(p[0]) if splits else "train", []).append((path, inner[0] if len(inner) > 1 else ""))
    classes = {name for items in files.values() for _, name in items} - {""}
    depth = 2 if splits else 1
    candidates = {f.parts[-1] for f in folders if len(f.parts) == depth and (depth == 1 or f.parts[0] in splits)}
    empty = candidates - classes - {name for name in candidates if depth == 1 and name.lower() in SPLIT_FOLDERS}
    return Listing(files, tuple(sorted(classes, key=os.fsencode)), tuple(sorted(empty, key=os.fsencode)), tuple(passed))


def first_picture(root: Path) -> Path | None:
    """A picture in the folder or right below it, as in one of a class, if there is any that may be looked at."""
    with suppress(OSError):
        paths = sorted(path for path in root.iterdir() if not _hidden(path.name))
        pictures = lambda paths: (path for path in paths if path.suffix.lower() in EXTENSIONS)
        below = (
            path for folder in paths if folder.is_dir() for path in sorted(folder.iterdir()) if not _hidden(path.name)
        )
        return next(chain(pictures(paths), pictures(below)), None)
    return None


def _walk(root: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """Image files, other files, and folders (relative) below `root`, each in an order that no locale changes."""
    images, passed, folders, seen = [], [], [], set()

    def stop(error: OSError) -> None:
        raise InputError(f"cannot look into {shown(error.filename or root)}: {error.strerror}") from error

    for top, names, files in os.walk(root, followlinks=True, onerror=stop):
        names.sort(key=os.fsencode)
        status = os.stat(top)
        if (status.st_dev, status.st_ino) in seen:  # a link back to a folder that was already read
            names.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folder = Path(top).relative_to(root)
        hidden = any(_hidden(part) for part in folder.parts)
        if folder.parts and not hidden:
            folders.append(folder)
        for file in sorted(files, key=os.fsencode):
            image = not hidden and not _hidden(file) and os.path.splitext(file)[1].lower() in EXTENSIONS
            (images if image else passed).append(Path(top, file))
    return images, passed, folders


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _names(names: set[str]) -> str:
    return ", ".join(shown(name) for name in sorted(names, key=os.fsencode)[:5])


def _pixels(
    root: Path,
    split: str,
    files: list[tuple[Path, str]],
    pictures: list[Picture],
    image_size: int | None,
    channels: int | None,
    skip_bad: bool,
    say: Callable[[str], None],
    data_dir: Callable[[], Path],
) -> tuple[np.ndarray, np.ndarray]:
    """The decoded pictures and the indices of those kept; from an earlier run's file if nothing has changed."""
    use = hashlib.sha256(os.fsencode(root.absolute()) + repr((split, image_size, channels, skip_bad)).encode())
    key, total = use.copy(), 0
    for path, _ in files:
        key.update(os.fsencode(path.absolute()))
        try:
            status = path.stat()
        except OSError:
            key.update(b"\0\n")
            continue  # a link to nowhere, say: reading it will name it
        total += status.st_size
        key.update(f"\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    store: list[Path] = []

    def spill() -> Path:
        store.append(data_dir() / "folders" / f"{use.hexdigest()[:12]}-{key.hexdigest()[:12]}.npy")
        store[0].parent.mkdir(parents=True, exist_ok=True)
        return store[0]

    if total > WORTH_KEEPING:  # else it cannot have been kept, and no folder need be asked for
        path = spill()
        index = path.with_suffix(".kept.npy")
        if path.exists() and index.exists():
            kept = np.asarray(read_npy(index))
            if len(kept) < len(files):
                lost = f"{len(files) - len(kept)} of {many(len(files), 'image')}"
                say(f"left out {lost} in {shown(root)} that cannot be read")
            return read_npy(path), kept
    x, kept = decode_all(
        pictures, shown(root), image_size=image_size, channels=channels, skip_bad=skip_bad, say=say, spill=spill
    )
    if isinstance(x, np.memmap):
        with whole(store[0].with_suffix(".kept.npy")) as temporary, open(temporary, "wb") as file:
            np.save(file, kept)
        say(f"{shown(root)}: {x.nbytes / 2**30:.1f} GiB of pixels, kept for the next time at {shown(store[0])}")
        for old in store[0].parent.glob(f"{store[0].name.partition('-')[0]}-*.npy"):
            if not old.name.startswith(store[0].stem):
                old.unlink(missing_ok=True)  # of this folder as it was before files of it changed
    return x, kept
