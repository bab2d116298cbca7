"""Sets that go by a name: from scikit-learn, from the cache (`DATA_DIR/NAME.npz`), else from the hub, then cached."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError
from ..files import one_at_a_time, user_cache
from . import hub
from .arrays import load_file, npz_headers
from .images import SPLITS, Images, MissingSplit, canonical, existing, fitted, shown, silent


class Named(NamedTuple):
    """Where a named set is on the hub, and what is known of it without reading it."""

    repository: str
    config: str | None
    label: str  # label column, "" for none
    splits: tuple[tuple[str, str], ...]  # ours -> the hub's
    shape: tuple[int, int, int] | None  # H, W, C; None where the images differ
    classes: int


TRAIN_TEST = (("train", "train"), ("test", "test"))
# The hub's test split of ImageNet has no labels; its validation split is the one that papers test on.
TRAIN_VALIDATION = (("train", "train"), ("test", "validation"))
TRAIN_VALIDATION_TEST = (("train", "train"), ("val", "validation"), ("test", "test"))

NAMED = {
    "cifar10": Named("uoft-cs/cifar10", None, "label", TRAIN_TEST, (32, 32, 3), 10),
    "cifar100": Named("uoft-cs/cifar100", None, "fine_label", TRAIN_TEST, (32, 32, 3), 100),
    "svhn": Named("ufldl-stanford/svhn", "cropped_digits", "label", TRAIN_TEST, (32, 32, 3), 10),
    "dtd": Named("tanganke/dtd", None, "label", TRAIN_TEST, None, 47),
    "imagenet32": Named("benjamin-paine/imagenet-1k-32x32", None, "label", TRAIN_VALIDATION, (32, 32, 3), 1000),
    "mnist": Named("ylecun/mnist", None, "label", TRAIN_TEST, (28, 28, 1), 10),
    "fashion_mnist": Named("zalando-datasets/fashion_mnist", None, "label", TRAIN_TEST, (28, 28, 1), 10),
    "celeba": Named("flwrlabs/celeba", "img_align+identity+attr", "", TRAIN_VALIDATION_TEST, (218, 178, 3), 0),
}
NAMES = ("digits", *NAMED)
SPRITES = ("dsprites-scale", "dsprites-position", "dsprites-rotation", "dsprites-shape")
"""dSprites by the factor that a model is conditional on: rendered, or read from dsprites.npz in the data folder"""
WITHOUT = ":without:"
"""between the name of such a set and the combinations that are held out of it (held_out.py)"""


def digits(split: str = "train") -> Images:
    """scikit-learn's 1,797 handwritten digits, 8 x 8, grey; values v = 0..16 become round(255 v / 16).

    The test split is every fifth image (indices 4, 9, 14, ...).
    """
    from sklearn.datasets import load_digits

    if canonical(split) not in ("train", "test"):
        raise MissingSplit("digits", split, ("train", "test"))
    bunch: Any = load_digits()
    x = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    test = np.arange(len(x)) % 5 == 4
    chosen = test if canonical(split) == "test" else ~test
    return Images("digits", x[chosen], bunch.target[chosen].astype(np.int64), tuple(str(d) for d in range(10)))


def load_named(
    name: str,
    split: str = "train",
    *,
    data_dir: Path | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    skip_bad: bool = False,
    say: Callable[[str], None] = silent,
) -> Images:
    """One split of a named set. Raises InputError naming every place it was looked for."""
    if name == "digits":
        found = digits(split)
        return found._replace(x=fitted(found.x, image_size, channels))
    entry = NAMED[name]

    def fetch(looked_for: str) -> Any:
        splits = hub.download(entry.repository, entry.config, looked_for, say)
        return {ours: splits[theirs] for ours, theirs in entry.splits if theirs in splits}

    return load_cached(
        name, name, split, fetch, label=entry.label, data_dir=data_dir, image_size=image_size, channels=channels,
        skip_bad=skip_bad, say=say,
    )  # fmt: skip


def load_cached(
    name: str,
    stem: str,
    split: str,
    fetch: Callable[[str], Any],
    *,
    label: str | None,
    data_dir: Path | None,
    image_size: int | None,
    channels: int | None,
    skip_bad: bool,
    say: Callable[[str], None],
) -> Images:
    """`DATA_DIR/STEM.npz`, made from the splits that `fetch` gives where it is not there yet.

    Sets whose images have several sizes can only be kept at one: then the file is STEM-SIZE.npz.
    """
    stems = [stem] if image_size is None else [stem, f"{stem}-{image_size}"]
    places = data_places(data_dir)
    looked_for = " or ".join(shown(place / f"{s}.npz") for place in places[:1] for s in stems)
    kept = lambda: next((p for place in places for s in stems if existing(p := place / f"{s}.npz")), None)
    path = kept()
    if path is None:
        folder = data_folder(data_dir, say)
        with one_at_a_time(folder / f".{stem}.lock", say):  # of several processes one fetches, for all
            path = kept()
            if path is None:
                splits = fetch(looked_for)
                mixed = image_size is not None and not _native(stem, image_size)
                path, size = folder / f"{stems[-1] if mixed else stem}.npz", image_size if mixed else None
                hub.store(splits, path, name, label=label, image_size=size, skip_bad=skip_bad, say=say)
                say(f"{name} is kept at {shown(path)}")
    return load_file(path, split, name=name, image_size=image_size, channels=channels, say=say)


def _native(stem: str, image_size: int) -> bool:
    """Whether all images of a set are known to have one size, small enough to be kept as it is."""
    entry = NAMED.get(stem)
    return entry is not None and entry.shape is not None and max(entry.shape) <= max(64, image_size)


def data_places(data_dir: Path | None) -> list[Path]:
    """Folders in which kept sets are looked for, the first being the one to name to a user.

    `data_dir`, else $IGEBM_DATA, alone; by default ~/.cache/igebm if there is a home, and a temporary folder.
    """
    chosen = data_dir or os.environ.get("IGEBM_DATA")
    if chosen:
        return [Path(chosen).expanduser() if str(chosen).startswith("~") else Path(chosen)]
    user = f"igebm-{os.getuid()}" if hasattr(os, "getuid") else "igebm"
    kept, spare = user_cache(), Path(tempfile.gettempdir(), user)
    return [kept, spare] if kept else [spare]


def data_folder(data_dir: Path | None = None, say: Callable[[str], None] = silent) -> Path:
    """The first of `data_places` that can be written to, made where it is missing; another than the first is said."""
    places = data_places(data_dir)
    reasons = []
    for place in places:
        try:
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.TemporaryFile(dir=place):
                break
        except OSError as error:
            reasons.append(f"cannot keep data in {shown(place)}: {error.strerror or error}")
    else:
        raise InputError(f"{'; '.join(reasons)}; choose another folder with --data-dir or IGEBM_DATA")
    if reasons or (len(places) == 1 and not data_dir and not os.environ.get("IGEBM_DATA")):
        say(f"{'; '.join(reasons) or 'there is no home folder'}; data are kept in {shown(place)} instead")
    return place


def available(data_dir: Path | None = None) -> list[dict[str, Any]]:
    """One row a named set, without loading its pixels.

    Keys: `name`; `where`: "package", "cache", "hub" or "damaged"; `source`: file or hub name; `shape`: [H, W, C] or
    None; `classes`: their number; `counts`: images by split, or None where that is not known before a download.
    """
    rows: list[dict[str, Any]] = [
        {"name": "digits", "where": "package", "source": "scikit-learn", "shape": [8, 8, 1], "classes": 10,
         "counts": {"train": 1438, "test": 359}}
    ]  # fmt: skip
    for name in SPRITES:
        row = {"name": name, "where": "package", "source": "rendered", "shape": [64, 64, 1]}
        rows.append(
            row | {"classes": 3 if name == "dsprites-shape" else 0, "counts": {"train": 729_908, "test": 7_372}}
        )
    for name, entry in NAMED.items():
        files = [p for d in data_places(data_dir) for p in [d / f"{name}.npz", *sorted(d.glob(f"{name}-[0-9]*.npz"))]]
        path = next((p for p in files if existing(p)), None)
        row = {"name": name, "where": "hub", "source": entry.repository, "classes": entry.classes, "counts": None}
        row["shape"] = list(entry.shape) if entry.shape else None
        rows.append(row if path is None else row | _kept(path))
    return rows


def _kept(path: Path) -> dict[str, Any]:
    try:
        headers = npz_headers(path)
    except InputError as error:
        return {"where": "damaged", "source": str(error)}
    shapes = {split: headers[f"{split}_x"][0] for split in SPLITS if f"{split}_x" in headers}
    if not shapes:
        return {"where": "damaged", "source": f"{shown(path)} has neither train_x nor test_x"}
    row = {"where": "cache", "source": shown(path), "shape": list(next(iter(shapes.values()))[1:])}
    if "classes" in headers:
        row["classes"] = headers["classes"][0][0]
    return row | {"counts": {split: shape[0] for split, shape in shapes.items()}}
