"""`load`, `load_series`: one word or path from the user to one split of a set of images, or of time series."""

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, unknown
from ..files import located, what_is
from . import hub
from .arrays import load_file
from .folder import EXTENSIONS, load_folder, load_picture
from .images import Images, MissingSplit, canonical, check_options, existing, shown, silent
from .named import NAMES, SPRITES, WITHOUT, data_folder, data_places, load_cached, load_named

if TYPE_CHECKING:
    from .series import Series


def load(
    spec: str,
    split: str = "train",
    *,
    data_dir: Path | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    skip_bad: bool = False,
    say: Callable[[str], None] = silent,
) -> Images:
    """One split of a data set, uint8 N x H x W x C with int64 labels.

    `spec` is a name (`available()` lists them; of dSprites also without some combinations, held_out.py),
    `hf:owner/name` or `hf:owner/name/config`, a folder of images, an .npz or .npy file, or one image file; a name is
    never taken for a folder (write ./digits for that). `image_size` (pixels) resizes the short side and crops the
    central square; `channels` is 1 (grey) or 3. What a user should know but need not act on is told through `say`, a
    line at a time. Raises InputError for everything that cannot be read for certain; it is a MissingSplit, which lists
    the splits there are, where the set lacks `split`.
    """
    check_options(image_size, channels)
    found = _load(spec, split, data_dir, image_size, channels, skip_bad, say)
    return found._replace(split=canonical(split))


def _load(
    spec: str,
    split: str,
    data_dir: Path | None,
    image_size: int | None,
    channels: int | None,
    skip_bad: bool,
    say: Callable[[str], None],
) -> Images:
    if spec.partition(WITHOUT)[0] in SPRITES:
        return _load_sprites(spec, split, data_dir, image_size, channels)
    if spec in NAMES:
        return load_named(
            spec, split, data_dir=data_dir, image_size=image_size, channels=channels, skip_bad=skip_bad, say=say
        )
    if spec.startswith("hf:"):
        repository, config = hub.parse(spec)

        def fetch(looked_for: str) -> Any:
            return hub.download(repository, config, looked_for, say)

        stem = "--".join(["hf", *repository.split("/"), *([config] if config else [])])
        return load_cached(
            spec, stem, split, fetch, label=None, data_dir=data_dir, image_size=image_size, channels=channels,
            skip_bad=skip_bad, say=say,
        )  # fmt: skip
    path = located(spec)
    if spec and what_is(path) == "folder":
        return load_folder(
            path, split, image_size=image_size, channels=channels, skip_bad=skip_bad, say=say,
            data_dir=lambda: data_folder(data_dir, say),
        )  # fmt: skip
    return _load_path(path, spec, split, image_size, channels, skip_bad, say)


def _load_sprites(spec: str, split: str, data_dir: Path | None, image_size: int | None, channels: int | None) -> Images:
    """dSprites with one factor as the condition: the official file where the data folder has it, else rendered."""
    from . import dsprites, held_out

    name, region = held_out.split_spec(spec)
    if channels == 3:
        raise InputError(f"{spec} is grey; leave out --channels 3")
    kept = (place / "dsprites.npz" for place in data_places(data_dir))
    file = next((path for path in kept if existing(path)), None)
    left_out = None if region is None else partial(held_out.inside, region=region)
    found = dsprites.load(name.removeprefix("dsprites-"), split, size=image_size or 64, file=file, left_out=left_out)
    return found._replace(name=spec)


def are_series(spec: str) -> bool:
    """Whether a set is one of time series by its name; an .npz or .npy may hold either."""
    table = Path(spec).suffix.lower() in (".csv", ".parquet")
    return _balls(spec) is not None or (table and what_is(located(spec)) != "folder")


def _balls(spec: str) -> int | None:
    """How many balls are simulated: "balls", "balls-2", ...; None for another set."""
    found = re.fullmatch(r"balls(?:-([0-9]{1,8}))?", spec)
    return None if found is None else int(found[1] or 1)


def load_series(spec: str, split: str = "train", least: int = 2, say: Callable[[str], None] = silent) -> "Series":
    """One split of a set of time series: "balls", "balls-2", "balls-3", ... (simulated), or a file of them.

    `least` is the number of states that each series must have. Raises InputError, and tells `say`, as `load` does.
    """
    from . import balls, series_files

    count = _balls(spec)
    if count is not None:
        found = balls.splits(count)
        if canonical(split) not in found:
            raise MissingSplit(spec, split, found)
        return found[canonical(split)]._replace(split=canonical(split))
    path = located(spec)
    if what_is(path) != "file" and not path.suffix:
        error = unknown("set of time series", shown(spec), ("balls", "balls-2"))
        raise InputError(f"{error}; a file of series ({', '.join(series_files.KINDS)}) also works")
    return series_files.load_series(spec, split, least, say)


def _load_path(
    path: Path,
    spec: str,
    split: str,
    image_size: int | None,
    channels: int | None,
    skip_bad: bool,
    say: Callable[[str], None],
) -> Images:
    array = path.suffix.lower() in (".npz", ".npy")
    if are_series(spec) and (what_is(path) == "file" or _balls(spec) is not None):
        instead = f"igebm train balls-langevin --data {shown(spec)}"
        raise InputError(f"{shown(spec)} holds time series, and images are wanted here; for series: {instead}")
    if spec and what_is(path) == "file":
        if path.suffix.lower() in EXTENSIONS:
            return load_picture(path, split, image_size=image_size, channels=channels, say=say)
        if not array:
            raise InputError(f"{shown(spec)} is neither a folder of images nor an .npz or .npy file")
        return load_file(path, split, image_size=image_size, channels=channels, skip_bad=skip_bad, say=say)
    if array or os.sep in spec or "/" in spec:
        raise InputError(f"no data set at {shown(spec)}: there is no such folder or file")
    error = unknown("data set", shown(spec), [*NAMES, *SPRITES])
    raise InputError(f"{error}; a folder of images, an .npz file or hf:owner/name also works")
