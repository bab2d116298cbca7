"""Image sets from the Hugging Face hub, through `datasets`, which is imported when it is first needed (1.7 s)."""

import io
import os
import re
import socket
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from ..errors import InputError
from ..files import whole
from .decode import Picture, decode_all
from .images import SPLITS, NotAtHand, canonical
from .labels import tidy_labels

if TYPE_CHECKING:
    from datasets import Dataset
else:
    Dataset = Any  # so that annotations can be checked without importing it

UNREACHABLE_AFTER = 5.0  # seconds; `datasets` itself gives up after 24


def parse(spec: str) -> tuple[str, str | None]:
    """Repository and configuration (or None) of `hf:owner/name` or `hf:owner/name/config`."""
    match = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?:/([^/\s]+))?", spec)
    if not match:
        raise InputError(f"{spec!r} is not a hub name; write hf:owner/name or hf:owner/name/config")
    return match[1], match[2]


def download(repository: str, config: str | None, looked_for: str, say: Callable[[str], None]) -> Mapping[str, Dataset]:
    """Every split of a set on the hub. Raises InputError within seconds where the hub cannot be reached."""
    hub = f"{repository} ({config})" if config else repository
    advice = (
        f"it was looked for at {looked_for} and on the Hugging Face hub as {hub}; "
        "put the file there, set IGEBM_DATA or --data-dir to where it is, or connect to the network"
    )
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    if not offline:
        if away := unreachable():
            raise NotAtHand(f"the data set is not on this machine and {away}", advice)
    say(f"reading {hub} from the Hugging Face hub; the first time this waits for the download")
    import datasets
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import disable_progress_bars

    if sys.stderr is None or not sys.stderr.isatty():  # both draw their bars whatever stderr is
        datasets.disable_progress_bars()
        disable_progress_bars()
    try:
        found = datasets.load_dataset(repository, config)
    except (OSError, ValueError, HfHubHTTPError, DatasetsError) as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        raise NotAtHand(f"the Hugging Face hub gave no data set: {reason}", advice) from error
    if not isinstance(found, datasets.DatasetDict):
        raise InputError(f"{hub} is not a set of splits that can be read, got {type(found).__name__}")
    return {str(split): dataset for split, dataset in found.items()}


def store(
    splits: Mapping[str, Dataset],
    path: Path,
    where: str,
    *,
    label: str | None = None,
    image_size: int | None = None,
    skip_bad: bool = False,
    say: Callable[[str], None],
) -> None:
    """Decode the splits and write them as one .npz (`train_x`, `train_y`, ..., `classes`), whole or not at all.

    `label` names the label column ("" for none); None finds it by its type. Splits are called train, test and val;
    others are left out and said.
    """
    named = {canonical(split): dataset for split, dataset in splits.items() if canonical(split) in SPLITS}
    left = [split for split in splits if canonical(split) not in SPLITS]
    if left:
        say(f"{where}: left out the splits {', '.join(left)}; only {', '.join(SPLITS)} are used")
    if not named:
        raise InputError(f"{where} has none of the splits {', '.join(SPLITS)}; it has: {', '.join(splits)}")
    arrays: dict[str, np.ndarray] = {}
    labels: dict[str, np.ndarray] = {}
    classes: tuple[str, ...] = ()
    spills = [path.with_name(f".{path.stem}.{split}.npy") for split in named]
    depth: int | None = None
    try:
        for (split, dataset), spill in zip(named.items(), spills, strict=True):
            x, y, classes = read(
                dataset, f"{where} ({split})", label=label, image_size=image_size, channels=depth, skip_bad=skip_bad,
                say=say, spill=partial(Path, spill),
            )  # fmt: skip
            depth = x.shape[-1]  # the first split decides between grey and colour
            arrays[f"{split}_x"] = x
            if y is not None:
                labels[split] = y
        counts = {split: len(arrays[f"{split}_x"]) for split in named}
        ys, classes = tidy_labels(labels, counts, classes, where, say)
        extra = {"classes": np.array(classes, dtype=np.str_)} if classes else {}
        with whole(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays, **{f"{split}_y": y for split, y in ys.items()}, **extra)  # pyright: ignore[reportArgumentType]
    finally:
        for spill in spills:
            spill.unlink(missing_ok=True)


def read(
    dataset: Dataset,
    where: str,
    *,
    image: str | None = None,
    label: str | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    skip_bad: bool = False,
    say: Callable[[str], None],
    spill: Callable[[], Path],
) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]:
    """Pixels (uint8, N x H x W x C), labels as they stand (N, or None) and class names (() if unknown) of one split.

    The image and label columns are found by their types unless named by `image` and `label` ("": no labels).
    """
    import datasets

    pixels, target = columns(dataset, where, image, label, say)
    if not len(dataset):
        raise InputError(f"no images found in {where}: it has 0 rows")
    encoded = dataset.cast_column(pixels, datasets.Image(decode=False)).select_columns([pixels])
    pictures = [Picture(f"row {i}", partial(_open, encoded, pixels, i)) for i in range(len(encoded))]
    x, kept = decode_all(
        pictures, where, image_size=image_size, channels=channels, skip_bad=skip_bad, say=say, spill=spill
    )
    if target is None:
        return x, None, ()
    values = dataset[target][:]
    if any(value is None for value in values):
        values = [-1 if value is None else value for value in values]
    feature = dataset.features[target]
    names = tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else ()
    return x, np.asarray(values, dtype=np.int64)[kept], names


def columns(
    dataset: Dataset, where: str, image: str | None, label: str | None, say: Callable[[str], None]
) -> tuple[str, str | None]:
    """The image column and the label column (None: no labels), by type. InputError lists the columns there are."""
    import datasets

    features = dataset.features
    listed = ", ".join(features)
    for column in (image, label):
        if column and column not in features:
            raise InputError(f"{where} has no column {column!r}; it has: {listed}")
    pictures = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    if image is None and not pictures:
        raise InputError(f"no images found in {where}: none of its columns is of images; it has: {listed}")
    pixels = image or _preferred(pictures, ("image", "img"), "images", where, say)
    if label is not None:
        return pixels, label or None
    named = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    integers = [name for name, feature in features.items() if _integer(feature)]
    target = named or [name for name in integers if "label" in name.lower()] or (integers if len(integers) == 1 else [])
    if not target:
        say(f"{where}: no column of labels among {listed}; the images are taken without")
        return pixels, None
    return pixels, _preferred(target, ("label", "labels"), "labels", where, say)


def _preferred(names: list[str], first: tuple[str, ...], what: str, where: str, say: Callable[[str], None]) -> str:
    chosen = next((name for name in first if name in names), names[0])
    if len(names) > 1:
        say(f"{where}: {what} are taken from column {chosen}, of {', '.join(names)}")
    return chosen


def _integer(feature: Any) -> bool:
    return str(getattr(feature, "dtype", "")).lstrip("u").startswith("int")


def _open(dataset: Dataset, column: str, i: int) -> io.BytesIO | Path:
    cell = dataset[i][column]
    if cell is None:
        raise OSError("no image in this row")
    return io.BytesIO(cell["bytes"]) if cell["bytes"] is not None else Path(cell["path"])


def unreachable() -> str:
    """Why the hub cannot be reached, or nothing; a proxy, which would be the one to reach it, is believed."""
    if any(os.environ.get(name) or os.environ.get(name.lower()) for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")):
        return ""
    address = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), timeout=UNREACHABLE_AFTER).close()
    except OSError as error:
        return f"{address.hostname} cannot be reached ({error.strerror or error})"
    return ""
