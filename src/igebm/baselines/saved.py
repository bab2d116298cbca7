"""What a user loads of a baseline: weights and settings from one safetensors file -> log likelihoods of images."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Float64, UInt8
from torch import Tensor

from .. import __version__, model
from ..data import dequantise
from ..errors import Fault, InputError, unknown
from ..model import batches
from ..shapes import Shape
from ..shapes import from_dict as shape_from_dict
from . import glow, pixelcnn
from .glow import Glow
from .pixelcnn import PixelCNN
from .settings import Kind, Settings, from_dict, to_dict


@dataclass
class Baseline:
    """A trained likelihood model; its methods take uint8 pictures, N x H x W x C. -log_likelihood serves as an
    energy, E = -log p."""

    net: Glow | PixelCNN
    kind: Kind
    settings: Settings
    shape: Shape
    name: str = "baseline"
    step: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    """whatever else the file said of its origin: data, seed, seconds, bits per dimension"""
    device: torch.device = torch.device("cpu")

    def __post_init__(self) -> None:
        self.net.to(self.device).eval().requires_grad_(False)

    def log_likelihood(
        self,
        images: UInt8[np.ndarray, "n h w c"],
        batch: int = 128,
        seed: int = 0,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Float64[np.ndarray, "n"]:
        """log P of each image in nats, (N,) float64. PixelCNN++: exact. Glow: of one draw of the noise below a byte
        (from `seed`; on a CPU the same whatever the batch), whose expectation is a lower bound.

        Raises InputError where the images are of another shape or no bytes, Fault where a likelihood is not finite.
        """
        want = (self.shape.height, self.shape.width, self.shape.channels)
        if images.dtype != np.uint8 or images.shape[1:] != want:
            raise InputError(
                f"{self.name} takes uint8 images of (height, width, channels) {want}, got {images.dtype} of "
                f"{images.shape[1:]}"
            )
        found, generator = np.empty(len(images)), torch.Generator(self.device).manual_seed(seed)
        with torch.no_grad():
            for part in batches(len(images), batch):
                u8 = torch.from_numpy(np.array(images[part])).to(self.device).permute(0, 3, 1, 2).contiguous()
                found[part] = self.net.log_prob(dequantise(u8, generator)).double().cpu().numpy()
                progress(part.stop, len(images))
        if not np.isfinite(found).all():
            raise Fault(f"{(~np.isfinite(found)).sum()} of {len(found)} likelihoods of {self.name} are not finite")
        return found


def bits_per_dim(nats: Any, shape: Shape) -> Any:
    """-log P / (D log 2), D = height x width x channels: log P in nats an image as bits a byte. 8 is the uniform
    distribution's."""
    return -nats / (math.prod(shape.image) * math.log(2))


def settled(kind: Kind, settings: Settings, shape: Shape) -> Settings:
    """The settings with what the images decide: the number of levels. Raises InputError where they do not fit."""
    if shape.channels not in (1, 3):
        raise InputError(f"a baseline takes images of 1 or 3 channels, got {shape.channels}; use --channels")
    levels = (glow if kind == "glow" else pixelcnn).checked_levels(shape.image, settings.levels)
    return replace(settings, levels=levels)


def build(kind: Kind, settings: Settings, shape: Shape) -> Glow | PixelCNN:
    """The network of settled settings. Raises InputError where Glow's package is missing."""
    s = settings
    if kind == "glow":
        return Glow(shape.image, s.width, s.depth, s.levels)
    return PixelCNN(shape.channels, s.width, s.depth, s.levels, s.mixtures, s.dropout)


def save(path: Path, baseline: Baseline) -> None:
    """One safetensors file with all that `load` needs: weights, settings, image shape, origin, a checksum."""
    tensors: dict[str, Tensor] = {
        name: t.detach().cpu().contiguous().clone() for name, t in baseline.net.state_dict().items()
    }
    about = {
        "igebm": __version__,
        "baseline": baseline.kind,
        "settings": to_dict(baseline.settings),
        **baseline.shape.to_dict(),
        "step": baseline.step,
        "facts": baseline.facts,
    }
    model.write(path, tensors, about)


def load(where: str | Path, device: torch.device | str = "cpu") -> Baseline:
    """The baseline of a run folder or a .safetensors file. Nothing in it is executed.

    Raises InputError where there is none, where the file is foreign, damaged or an energy's.
    """
    path = model.find(where)
    tensors, about = model.read(path)
    if "baseline" not in about:
        raise InputError(f"{path} is an energy, not a baseline; train one with igebm baseline")
    kind, settings, shape = about["baseline"], from_dict(about["settings"]), shape_from_dict(about, path)
    if kind not in get_args(Kind):
        raise unknown("baseline", str(kind), get_args(Kind))
    if not isinstance(shape, Shape):
        raise InputError(f"{path}: its metadata is damaged (a baseline is of images, not of time series)")
    net = build(kind, settled(kind, settings, shape), shape)
    model.fill(net, tensors, path)
    name = model.called(where) if str(where).startswith("hf:") else path_name(path)
    return Baseline(net, kind, settings, shape, name, about["step"], about["facts"], torch.device(device))


def path_name(path: Path) -> str:
    """A run folder's name for its model.safetensors, otherwise the file's."""
    return path.parent.name if path.name == "model.safetensors" and path.parent.name else path.stem
