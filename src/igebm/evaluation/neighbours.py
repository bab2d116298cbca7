"""The training images nearest to samples, in pixels and in features (Fig. 12).

A model that has learned its training images by heart shows here: its samples lie nearer to them than test images do.
(Smooth pictures are near to everything in pixels; hence the features, and the test images beside.)
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64, UInt8
from torch import Tensor

from .. import ranks
from ..data import MissingSplit
from ..errors import InputError, many
from ..inputs import matches
from ..model import batches
from ..report import figures
from .classes import of_classes
from .features import Extractor, describe
from .judge import features_of
from .numbers import mean, rounded, share
from .settings import Neighbours
from .work import Work, chain_settings, kernel, labels_in_turn

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
ENTRIES = 2**23
"""numbers of a block of training images that are held at once (64 MiB)"""


class Nearest(NamedTuple):
    """The k nearest training images of each query, the nearest first."""

    place: Int64[np.ndarray, "q k"]
    distance: Float64[np.ndarray, "q k"]


def run(work: Work, options: Neighbours) -> dict[str, Any]:
    """Numbers, in pixels and in features: the distances of samples and of test images to their nearest training
    image, how many are exact copies, and the share of samples nearer than 5 % of test images are."""
    m = work.model
    for name, low in {"n": 1, "k": 1, "tests": 0, "train": 0, "steps": 1, "show": 1}.items():
        if (value := getattr(options, name)) is not None and value < low:
            raise InputError(f"--{name} {value}: give at least {low}")
    train = work.images("train")
    chosen = np.arange(len(train.x))
    if 0 < options.train < len(chosen):
        chosen = np.sort(np.random.default_rng(work.asked.seed).permutation(len(chosen))[: options.train])
        train = train._replace(x=train.x[chosen], y=None if train.y is None else train.y[chosen], files=())
    if options.k > len(train.x):
        raise InputError(f"--k {options.k}: {train.name} has {many(len(train.x), 'training image')}")
    tests = test_images(work, options.tests)
    steps = m.preset.sample_steps if options.steps is None else options.steps
    labels = labels_in_turn(m, options.n)
    samples = drawn(work, options, steps, labels)
    queries = np.concatenate([samples, tests])
    extractor = features_of(work)
    ways = {"pixels": (as_pixels(work), 1 / 256)}
    if extractor is not None:
        ways["features"] = (as_features(work, extractor), 1.0)
    numbers: dict[str, Any] = {
        "samples": len(samples),
        "test_images": len(tests),
        "training_images": len(train.x),
        "features_of": extractor.name if extractor else None,
        "chain": chain_settings(m, options) | {"steps": steps},
    }
    found, show = {}, min(len(samples), options.show)
    for i, (way, (of, unit)) in enumerate(ways.items()):
        before, total = i * len(train.x), len(ways) * len(train.x)
        tell = lambda done, before=before, total=total: work.screen.step(before + done, total)
        index, distance = nearest(queries, train.x, of, options.k, tell)
        found[way] = Nearest(index, distance * unit)
        numbers[way] = summary(found[way].distance[:, 0], copies(queries, train.x, index), len(samples))
        if of_classes(m) and train.y is not None and matches(train, m):
            numbers[way]["same_class"] = share(train.y[index[: len(samples), 0]] == labels)
        numbers[way]["of_the_first"] = {
            "index": chosen[index[:show]].tolist(),
            "distance": [[rounded(d) for d in row] for row in found[way].distance[:show]],
        }
    if work.first:
        draw(work.out, samples[:show], [train.x[f.place[:show]] for f in found.values()], list(found))
        draw_distances(work.out, {way: f.distance[:, 0] for way, f in found.items()}, len(samples))
    return numbers | {"figures": ["neighbours.png", "neighbours-distances.png"]}


def test_images(work: Work, most: int) -> UInt8[np.ndarray, "n h w c"]:
    none = np.empty((0, work.model.shape.height, work.model.shape.width, work.model.shape.channels), np.uint8)
    if not most:
        return none
    try:
        return work.images("test", most).x
    except MissingSplit as missing:
        work.screen.say(f"{missing}: the samples' distances have no test images' beside them")
        return none


def drawn(work: Work, options: Neighbours, steps: int, labels: np.ndarray | None) -> UInt8[np.ndarray, "n h w c"]:
    """Samples from noise, part by part over the processes."""
    m, total = work.model, options.n * steps

    def one(part: slice) -> np.ndarray:
        size = part.stop - part.start
        return m.sample(
            size,
            labels=None if labels is None else labels[part],
            steps=steps,
            seed=work.generator(part.start).initial_seed(),
            batch=size,
            progress=lambda done, _: work.screen.step(part.start * steps + done, total),
            kernel=kernel(m, options),
        )[0]

    return ranks.rows(options.n, work.asked.batch, one)


Describe = Callable[[np.ndarray], Tensor]
"""uint8 (N, H, W, C) -> (N, d) float64: where distances are taken"""


def as_pixels(work: Work) -> Describe:
    """The bytes themselves, whose products and sums are exact in float64."""
    return lambda images: (
        torch.from_numpy(np.require(images, requirements=["C", "W"])).to(work.model.device).flatten(1).double()
    )


def as_features(work: Work, extractor: Extractor) -> Describe:
    def of(images: np.ndarray) -> Tensor:
        found = describe(extractor, images, work.asked.batch)[0]
        return torch.from_numpy(found).to(work.model.device).double()

    return of


def nearest(
    queries: np.ndarray,
    train: np.ndarray,
    describe: Describe,
    k: int,
    tell: Callable[[int], None] = lambda done: None,
) -> Nearest:
    """The k training images with the smallest ‖φ(a) - φ(b)‖ for each query; equal distances in the order of the index.

    The training images pass by in blocks, shared out over the processes, so that memory does not grow with their
    number.
    """
    q = describe(queries)
    size = max(1, min(1024, ENTRIES // max(q.shape[1], int(np.prod(train.shape[1:])))))
    mine = np.empty((len(queries), 0, 2))  # (distance, index)
    for part in list(batches(len(train), size))[ranks.rank() :: ranks.size()]:
        t = describe(train[part])
        found, places = squares(q, t, k).sort(dim=1, stable=True)
        pair = torch.stack([found.sqrt(), (places + part.start).double()], 2)[:, :k]
        mine = smallest([mine, pair.cpu().numpy()], k)
        tell(part.stop)
    if ranks.size() > 1:
        mine = smallest([x.swapaxes(0, 1) for x in ranks.gather(mine.swapaxes(0, 1)) if len(x)], k)
    return Nearest(mine[..., 1].astype(np.int64), mine[..., 0])


def squares(a: Float64[Tensor, "q d"], b: Float64[Tensor, "t d"], k: int) -> Float64[Tensor, "q t"]:
    """‖a - b‖² = Σ (a - b)² of all that may be among the k smallest of a row, infinite elsewhere.

    Which those are is told by ‖a‖² + ‖b‖² - 2 a·b, which is one product of matrices, but off by rounding of up to
    2 d ε (‖a‖² + ‖b‖²): equal rows would not be at 0, nor ties be ties.
    """
    sums = a.square().sum(1)[:, None] + b.square().sum(1)
    rough, off = sums - 2 * a @ b.T, 2 * (a.shape[1] + 2) * torch.finfo(a.dtype).eps * sums
    most = (rough + off).kthvalue(min(k, len(b)), 1, keepdim=True).values
    rows, columns = (rough - off <= most).nonzero(as_tuple=True)
    exact = torch.full_like(rough, torch.inf)
    for part in batches(len(rows), max(1, ENTRIES // a.shape[1])):
        i, j = rows[part], columns[part]
        exact[i, j] = (a[i] - b[j]).square().sum(1)
    return exact


def copies(
    images: UInt8[np.ndarray, "q h w c"], train: UInt8[np.ndarray, "t h w c"], place: Int64[np.ndarray, "q k"]
) -> Bool[np.ndarray, "q"]:
    """Which images are among their neighbours, byte for byte. (Features of one image differ by rounding between the
    batches that it is in.)"""
    return np.any([(train[at] == images).all((1, 2, 3)) for at in place.T], 0)


def smallest(pairs: list[np.ndarray], k: int) -> Float64[np.ndarray, "q k 2"]:
    """The k nearest of several lists of (distance, index) for each query."""
    every = np.concatenate(pairs, 1)
    order = np.lexsort((every[..., 1], every[..., 0]), axis=-1)[:, :k]
    return np.take_along_axis(every, order[..., None], 1)


def summary(distance: Float64[np.ndarray, "q"], copied: Bool[np.ndarray, "q"], n: int) -> dict[str, Any]:
    """Distances to the nearest training image, and how many are copies: of the first n (samples), and of the rest
    (test images)."""
    samples, tests = distance[:n], distance[n:]
    about = lambda d: mean(d) | {f"q{100 * q:g}": rounded(float(np.quantile(d, q))) for q in QUANTILES}
    found: dict[str, Any] = {"samples": about(samples), "sample_copies": int(copied[:n].sum())}
    if len(tests):
        near = share(samples < np.quantile(tests, 0.05))
        found |= {"tests": about(tests), "test_copies": int(copied[n:].sum()), "nearer_than_5%_of_tests": near}
    return found


def draw(out: Path, samples: np.ndarray, neighbours: list[np.ndarray], ways: list[str]) -> None:
    """A row for each sample: itself, and its neighbours in each way, with a gap before each."""
    k = neighbours[0].shape[1]
    gap = np.full((1, *samples.shape[1:]), 255, np.uint8)
    rows, titles = [], ["sample"]
    for i, sample in enumerate(samples):
        rows.append(np.concatenate([sample[None], *(part for n in neighbours for part in (gap, n[i]))]))
    for way in ways:
        titles += ["", way, *[""] * (k - 1)]
    figures.save(figures.pictures(rows, titles), out, "neighbours")


def draw_distances(out: Path, distances: dict[str, np.ndarray], n: int) -> None:
    figure, ax = figures.axes(len(distances))
    for cell, (way, d) in zip(ax[0], distances.items(), strict=True):
        sets = [("samples", d[:n])] + ([("test images", d[n:])] if len(d) > n else [])
        figures.histogram(cell, sets, f"distance to the nearest training image, in {way}", bins=30)
    figures.save(figure, out, "neighbours-distances")
