"""What a preset leaves to the data: the shape of an item, and what an energy of it is conditional on. Plain data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .data.latents import Latent
from .errors import InputError, many


@dataclass(frozen=True)
class Shape:
    """Images: their shape, and the classes or the latents of a conditional model (() where there are none)."""

    channels: int
    height: int
    width: int
    classes: tuple[str, ...] = ()
    latents: tuple[Latent, ...] = ()

    @property
    def condition(self) -> int:
        """Columns of the condition y: one a class, or one a latent."""
        return len(self.classes) or len(self.latents)

    @property
    def image(self) -> tuple[int, int, int]:
        return self.channels, self.height, self.width

    @property
    def item(self) -> tuple[int, ...]:
        """What one sample is, without the batch."""
        return self.image

    def to_dict(self) -> dict[str, Any]:
        latents = [list(latent) for latent in self.latents]
        return {"shape": list(self.image), "classes": list(self.classes), "latents": latents}


@dataclass(frozen=True)
class SeriesShape:
    """Time series: the next state of `features`, given the `past` states before it. The network sees each feature
    with its mean taken off and divided by its standard deviation."""

    past: int
    features: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def item(self) -> tuple[int, ...]:
        return 1, len(self.features)

    def to_dict(self) -> dict[str, Any]:
        series = {"past": self.past, "features": list(self.features), "mean": list(self.mean), "std": list(self.std)}
        return {"shape": list(self.item), "classes": [], "latents": [], "series": series}


def described(shape: Shape | SeriesShape) -> str:
    """In words, for messages: images of 32x32x3 (height, width, channels) with 2 classes: cat, dog."""
    if isinstance(shape, SeriesShape):
        return f"series of {', '.join(shape.features)} with {many(shape.past, 'past state')}"
    size = f"images of {shape.height}x{shape.width}x{shape.channels}"
    if shape.latents:
        return f"{size} with the latents {', '.join(latent.name for latent in shape.latents)}"
    some = ", ".join(shape.classes[:10]) + (", ..." if len(shape.classes) > 10 else "")
    return f"{size} with {many(len(shape.classes), 'class', 'classes')}: {some}" if shape.classes else size


def from_dict(about: dict[str, Any], path: Path) -> Shape | SeriesShape:
    """The shape in a model's metadata or a checkpoint. Raises InputError where it makes no sense."""
    try:
        if about.get("series") is not None:
            s = about["series"]
            found = SeriesShape(
                s["past"], tuple(s["features"]), tuple(float(v) for v in s["mean"]), tuple(float(v) for v in s["std"])
            )
            fits = len(found.features) == len(found.mean) == len(found.std) > 0 and min(found.std) > 0
            sound = fits and isinstance(found.past, int) and found.past > 0
        else:
            latents = tuple(Latent(str(name), float(low), float(high)) for name, low, high in about.get("latents", []))
            found = Shape(*about["shape"], classes=tuple(about["classes"]), latents=latents)
            sound = all(isinstance(n, int) and n > 0 for n in found.image)
            sound = sound and all(isinstance(c, str) for c in found.classes)
    except (TypeError, ValueError, KeyError, OverflowError):
        sound, found = False, None
    if not sound or found is None:
        said = {key: about.get(key) for key in ("shape", "classes", "latents", "series") if about.get(key)}
        raise InputError(f"{path}: its metadata is damaged ({str(said)[:200]})")
    return found
