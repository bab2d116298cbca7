"""What is in a data set, as plain numbers: the questions to ask before training on it."""

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .images import CHUNK, Images, MissingSplit, silent
from .sources import load, load_series

if TYPE_CHECKING:
    from .series import Series

USUAL_BATCH = 64
USUAL_PAST = 3
DARK = 65  # of 255: 14 bits stored in 16 reach 64, 12 bits 16
IMBALANCE = 10  # times as many images in the largest class as in the smallest

NO_TEST = (
    "no test split: evaluations use the images that were trained on; give one as folders train/ and test/, or as "
    "test_x and test_y of an .npz"
)


def check(
    spec: str,
    *,
    data_dir: Path | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    skip_bad: bool = False,
    say: Callable[[str], None] = silent,
    step: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """The train and test split (those there are) of a data set, described; arguments as for `load`, and `step(done,
    total)` is told of each chunk of images looked at.

    Keys: `name`, `classes`, `latents` (the range of each), `splits` (see `describe`), `duplicates_across`: the share of
    test images that are also train images (None without both), `warnings`: a list of sentences.
    """
    found: dict[str, Images] = {}
    missing: list[MissingSplit] = []
    for split in ("train", "test"):
        try:
            found[split] = load(
                spec, split, data_dir=data_dir, image_size=image_size, channels=channels, skip_bad=skip_bad, say=say
            )
        except MissingSplit as error:
            missing.append(error)
    if not found:
        raise missing[0]
    total, done, splits, hashes = sum(len(images.x) for images in found.values()), 0, {}, {}
    for split, images in found.items():
        splits[split], hashes[split] = describe(images, lambda k, done=done: step(done + k, total))
        done += len(images.x)
    across = None
    if len(found) == 2:
        seen = set(hashes["train"])
        across = sum(h in seen for h in hashes["test"]) / len(hashes["test"])
    first = next(iter(found.values()))
    warnings = [f"{split}: {line}" for split, row in splits.items() for line in _warnings(row, split == "train")]
    if "test" not in found:
        warnings.append(NO_TEST)
    if across:
        warnings.append(f"{across:.1%} of the test images are also in the train split")
    return {
        "name": first.name, "classes": list(first.classes),
        "latents": {latent.name: [latent.low, latent.high] for latent in first.latents}, "splits": splits,
        "duplicates_across": across, "warnings": warnings,
    }  # fmt: skip


def check_series(spec: str, say: Callable[[str], None] = silent) -> dict[str, Any]:
    """The same of time series; `say` as for `load_series`.

    Keys: `name`, `features` (names), `splits`: of each `series` (their number), `states` (of each), and `of_features`:
    mean, standard deviation, least and greatest value by name; `warnings`.
    """
    found: dict[str, Series] = {}
    missing: list[MissingSplit] = []
    for split in ("train", "test"):
        try:
            found[split] = load_series(spec, split, say=say)
        except MissingSplit as error:
            missing.append(error)
    if not found:
        raise missing[0]
    splits, warnings = {}, []
    for split, series in found.items():
        n, states, _ = series.x.shape
        values = [series.x[..., i].astype(np.float64) for i in range(len(series.features))]
        splits[split] = {"series": n, "states": states, "of_features": {
            name: {"mean": float(v.mean()), "std": float(v.std()), "least": float(v.min()), "greatest": float(v.max())}
            for name, v in zip(series.features, values, strict=True)
        }}  # fmt: skip
        still = [name for name, of in splits[split]["of_features"].items() if of["std"] == 0]
        warnings += [f"{split}: the feature {name} has one value throughout, which training refuses" for name in still]
        if states <= USUAL_PAST:
            needed = f"the presets' --past {USUAL_PAST} needs at least {USUAL_PAST + 1}"
            warnings.append(f"{split}: series of {states} states; {needed}")
    if "test" not in found:
        warnings.append("no test split: igebm eval rollout takes the train split (an .npz may hold test_x)")
    first = next(iter(found.values()))
    return {"name": first.name, "features": list(first.features), "splits": splits, "warnings": warnings}


def describe(images: Images, step: Callable[[int], None]) -> tuple[dict[str, Any], list[bytes]]:
    """One split in numbers, and a 16-byte hash of each image's pixels, in one pass.

    `count`; `shape` [H, W, C]; `dtype`; `range` [least, greatest pixel]; `mean`, `std` per channel, of pixels / 255;
    `per_class` (name -> count, None without labels); `unlabelled`; `constant`: images of one value only;
    `duplicates`: the share of images that repeat an earlier one.
    """
    x, y = images.x, images.y
    total, squares = np.zeros(x.shape[-1]), np.zeros(x.shape[-1])
    low, high, constant = 255, 0, 0
    hashes: list[bytes] = []
    for start in range(0, len(x), CHUNK):
        rows = np.asarray(x[start : start + CHUNK])
        flat = rows.reshape(len(rows), -1)
        least, greatest = flat.min(1), flat.max(1)
        low, high = min(low, int(least.min())), max(high, int(greatest.max()))
        constant += int(np.count_nonzero(least == greatest))
        levels = rows.reshape(-1, x.shape[-1])
        counts = np.stack([np.bincount(levels[:, c], minlength=256) for c in range(x.shape[-1])])
        total += counts @ np.arange(256)
        squares += counts @ np.arange(256) ** 2
        hashes += [hashlib.blake2b(np.ascontiguousarray(row).data, digest_size=16).digest() for row in rows]
        step(start + len(rows))
    pixels = math.prod(x.shape[:-1])  # of an array that may be rendered as it is asked for
    mean = total / pixels
    std = np.sqrt(np.maximum(squares / pixels - mean**2, 0))
    per_class = None
    if y is not None and not images.latents:
        counts = np.bincount(y[y >= 0], minlength=len(images.classes))
        per_class = {name: int(k) for name, k in zip(images.classes, counts, strict=True)}
    return {
        "count": len(x),
        "shape": list(x.shape[1:]),
        "dtype": str(x.dtype),
        "range": [low, high],
        "mean": [float(v) for v in mean / 255],
        "std": [float(v) for v in std / 255],
        "per_class": per_class,
        "unlabelled": len(x) if y is None else 0 if images.latents else int(np.count_nonzero(y < 0)),
        "constant": constant,
        "duplicates": 1 - len(set(hashes)) / len(hashes),
    }, hashes


def _warnings(row: dict[str, Any], trained_on: bool) -> list[str]:
    lines = []
    if trained_on and row["count"] < USUAL_BATCH:
        lines.append(f"{row['count']} images are fewer than a batch of {USUAL_BATCH}; batches will repeat them")
    counts = row["per_class"] or {}
    present = [k for k in counts.values() if k]
    absent = [name for name, k in counts.items() if not k]
    if absent:
        lines.append(
            f"{len(absent)} classes have no images: {', '.join(absent[:5])}{', ...' if len(absent) > 5 else ''}"
        )
    if present and max(present) > IMBALANCE * min(present):
        lines.append(f"the largest class has {max(present)} images, the smallest {min(present)}")
    if row["per_class"] is not None and row["unlabelled"]:
        lines.append(f"{row['unlabelled']} images have no label")
    if row["constant"]:
        lines.append(f"{row['constant']} images have one value only")
    if row["duplicates"] > 0:
        share = f"{row['duplicates']:.1%}" if row["duplicates"] >= 5e-4 else "less than 0.1%"
        lines.append(f"{share} of the images repeat an earlier one")
    if row["range"][1] <= 1:
        lines.append("no pixel exceeds 1 of 255: the images are black; were they meant to be floats in [0, 1]?")
    elif row["range"][1] < DARK:
        lines.append(
            f"no pixel exceeds {row['range'][1]} of 255: the images are dark (as 12 bits stored in 16 are: all 16 are "
            "taken to be used)"
        )
    return lines
