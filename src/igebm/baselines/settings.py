"""The settings of Glow and PixelCNN++. Plain data: no torch, so that the command line answers at once."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

from ..errors import InputError
from ..presets import flag

Kind = Literal["glow", "pixelcnn"]


@dataclass(frozen=True)
class Settings:
    """All settings of a baseline's run; where the original's value is another, it is named."""

    # Data
    data: str = "digits"
    """data set: a name of `igebm data list`, hf:owner/name, a folder of images, or an .npz"""
    image_size: int = 0
    """height and width in pixels; 0: as the data are"""
    channels: int = 0
    """1 or 3; 0: as the data are"""
    flip: bool = False
    """mirror each training image with probability 1/2"""

    # Network
    width: int = 64
    """channels of the hidden convolutions (Glow: 512; PixelCNN++: 160)"""
    depth: int = 4
    """glow: steps of flow on each level (Glow: 32); pixelcnn: blocks at each resolution, twice (PixelCNN++: 5)"""
    levels: int = 0
    """glow: levels, each of which halves the image; pixelcnn: resolutions, the full one among them; 0: what suits the
    image, at most the originals' 3"""
    mixtures: int = 10
    """pixelcnn: logistics in the mixture of each pixel"""
    dropout: float = 0.0
    """pixelcnn: in each block (PixelCNN++: 0.5)"""

    # Adam, β = (0.9, 0.999)
    batch: int = 32
    """images of an iteration"""
    lr: float = 2e-3
    """learning rate (both originals: 0.001)"""
    warmup: int = 50
    """iterations over which the learning rate rises to lr"""
    ema: float = 0.999
    """decay of the averaged weights that are saved for use"""

    # Run
    steps: int = 10_000
    """training iterations, in total"""
    minutes: float = 0.0
    """stop after this much time; 0: no limit"""
    seed: int = 0
    log_every: int = 10
    """iterations between lines of metrics.jsonl"""
    save_every: int = 500
    """iterations between checkpoints"""
    measured: int = 10_000
    """images of each split, train and test, that bits per dimension are measured on at the end"""

    def __post_init__(self) -> None:
        """Every value of its kind and in its range. Raises InputError."""
        for name, kind in get_type_hints(Settings).items():
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (number if kind is float else type(value) is kind):
                raise InputError(f"{flag(name)} {value!r}: a {'number' if kind is float else kind.__name__} is wanted")
            low, high = RANGES.get(name, (-math.inf, math.inf))
            if name in RANGES and not low <= value <= high:
                raise InputError(f"{flag(name)} {value!r}: choose between {low:g} and {high:g}")


RANGES: dict[str, tuple[float, float]] = {
    "image_size": (0, 1024),
    "channels": (0, 3),
    "width": (1, 4096),
    "depth": (1, 256),
    "levels": (0, 8),
    "mixtures": (1, 1000),
    "dropout": (0, 0.95),
    "batch": (2, 1_000_000),  # Glow's first scales are a batch's standard deviations
    "lr": (0, 10),
    "warmup": (0, 10_000_000),
    "ema": (0, 0.999999),
    "steps": (1, 10**12),
    "minutes": (0, 10**7),
    "seed": (0, 2**31 - 1),
    "log_every": (1, 10**9),
    "save_every": (1, 10**9),
    "measured": (1, 10**9),
}

DEFAULTS: dict[Kind, Settings] = {
    "glow": Settings(width=64, depth=8),
    "pixelcnn": Settings(width=32, depth=2),
}
"""small enough for two cores: digits in minutes"""

FIXED = {"image_size", "channels", "width", "depth", "levels", "mixtures", "seed"}
"""settings that a checkpoint's weights or data stream are made of"""


def from_dict(values: Any) -> Settings:
    """Settings from the JSON of a file. Raises InputError for fields it does not know, or of another type."""
    if not isinstance(values, dict):
        raise InputError(f"settings must be a JSON object, got {type(values).__name__}")
    strange = sorted(set(values) - {f.name for f in dataclasses.fields(Settings)})
    if strange:
        raise InputError(f"unknown settings {', '.join(strange[:5])}; was this written by a newer igebm?")
    return Settings(**values)


def to_dict(settings: Settings) -> dict[str, Any]:
    return dataclasses.asdict(settings)
