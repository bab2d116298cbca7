"""Time series, and batches of their windows: the next state and the states before it."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from ..errors import InputError
from .images import silent
from .loader import batch_indices


class Series(NamedTuple):
    """One split of a set of time series."""

    name: str
    x: Float32[np.ndarray, "n t f"]
    features: tuple[str, ...]
    split: str = ""
    """train, test or val, as it was asked for"""
    ids: tuple[str, ...] = ()
    """what its file calls each of the series; () where it has no names for them"""
    last: tuple[int, ...] = ()
    """the step of each one's last state; () where the file does not number them"""


def unnamed(count: int) -> tuple[str, ...]:
    """What features are called where the file has no names for them."""
    return tuple(f"x{i + 1}" for i in range(count))


def matched(series: Series, features: tuple[str, ...], who: str, say: Callable[[str], None] = silent) -> Series:
    """The series as `who`, a model of `features`, takes them: these columns by name, or, where one of the two has no
    names (x1, x2, ...), as many columns in their order. Raises InputError where they are not there."""
    there = series.features
    if there == features:
        return series
    if len(there) == len(features) and unnamed(len(there)) in (there, features):
        say(f"{series.name} has {', '.join(there)}: taken, in this order, for the {', '.join(features)} of {who}")
        return series._replace(features=features)
    if not set(features) <= set(there):
        raise InputError(
            f"{who} knows {', '.join(features)}; {series.name} has {', '.join(there)}: give those it knows"
        )
    others = [name for name in there if name not in features]
    if others:
        say(f"{who} does not know {', '.join(others)} of {series.name}: left out")
    columns = [there.index(name) for name in features]
    return series._replace(x=np.ascontiguousarray(series.x[..., columns]), features=features)


class Windows:
    """Batches of one split: `windows(seen, generator) -> x (b, 1, f), y (b, past, f)`, in standard deviations from
    the mean.

    As data.Loader: a batch is a function of the seed and of how many windows were seen before; an epoch is every
    window of every series once. Raises InputError where a series is too short for one window.
    """

    def __init__(
        self,
        series: Series,
        past: int,
        batch: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world: int = 1,
    ):
        n, t, _ = series.x.shape
        if t <= past:
            raise InputError(f"{series.name} has series of {t} states: --past {past} needs at least {past + 1}")
        if batch < 1 or batch % world:
            raise InputError(f"the batch must be a multiple of the {world} processes that share it, got {batch}")
        self.past, self.batch, self.seed, self.rank, self.world = past, batch, seed, rank, world
        self.starts = t - past
        x = (series.x - np.array(mean, np.float32)) / np.array(std, np.float32)
        self.x = torch.from_numpy(np.ascontiguousarray(x, np.float32)).to(device)

    def __call__(
        self, seen: int, generator: torch.Generator | None = None
    ) -> tuple[Float32[Tensor, "b 1 f"], Float32[Tensor, "b p f"]]:
        index = batch_indices(len(self.x) * self.starts, self.batch, seen, self.seed, self.rank, self.world)
        which, start = (torch.from_numpy(i).to(self.x.device) for i in np.divmod(index, self.starts))
        window = self.x[which[:, None], start[:, None] + torch.arange(self.past + 1, device=self.x.device)]
        return window[:, self.past :], window[:, : self.past]


def statistics(series: Series) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each feature over all series. Raises InputError for one that never changes."""
    mean, std = series.x.mean((0, 1), dtype=np.float64), series.x.std((0, 1), dtype=np.float64)
    still = [name for name, s in zip(series.features, std, strict=True) if not s > 0]
    if still:
        raise InputError(f"the feature {still[0]} has one value throughout: leave it out")
    return tuple(mean.tolist()), tuple(std.tolist())
