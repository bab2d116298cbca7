"""What a user loads of a model of time series (section 5): the next state, read off a chain, and whole rollouts."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from . import model, presets
from .errors import Fault, InputError
from .nets.bound import frozen
from .nets.trajectory import TrajectoryPredictor
from .presets import Preset
from .samplers import run
from .shapes import SeriesShape, from_dict


def chain_start(
    preset: Preset, y: Float[Tensor, "b p f"], generator: torch.Generator | None = None
) -> Float[Tensor, "b 1 f"]:
    """Where the chain of the next state starts: N(0, I) in standard deviations, or the last state of the past."""
    last = y[:, -1:]
    if preset.start == "last":
        return last.clone()
    return torch.randn(last.shape, generator=generator, device=y.device, dtype=y.dtype)


@dataclass
class Forecaster:
    """A trained energy E(x | past) of the next state, or a plain predictor of it; series are float, n x steps x
    features, in the data's own units."""

    net: nn.Module
    preset: Preset
    shape: SeriesShape
    name: str = "model"
    step: int = 0
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.net.eval().requires_grad_(False)

    @property
    def plain(self) -> bool:
        """Whether it predicts without an energy."""
        return isinstance(self.net, TrajectoryPredictor)

    def following(
        self,
        y: Float[Tensor, "b p f"],
        generator: torch.Generator | None = None,
        steps: int | None = None,
        average: int = 1,
    ) -> Float[Tensor, "b 1 f"]:
        """The next state after the past y, both in standard deviations: the mean of the last `average` states of a
        chain of `steps` steps (default: the preset's), or the prediction."""
        if self.plain:
            return self.net(y)
        steps = self.preset.chain_steps if steps is None else steps
        kept: list[Tensor] = []

        def keep(k: int, state, info) -> None:
            if k > steps - average:
                kept.append(state.x)

        start = chain_start(self.preset, y, generator)
        end, _ = run(model.build_kernel(self.preset), frozen(self.net, y), start, steps, generator, keep)
        return torch.stack(kept).mean(0) if kept else end.x

    @torch.no_grad()
    def rollout(
        self,
        past: Float32[np.ndarray, "n p f"],
        length: int,
        seed: int = 0,
        steps: int | None = None,
        average: int = 1,
        progress: model.Progress = lambda done, total: None,
    ) -> Float32[np.ndarray, "n t f"]:
        """`length` states after `past`, each from the ones before it. Raises InputError for a past that is of another
        shape or holds what is no number, Fault where a chain leaves the numbers."""
        p, f = self.shape.past, len(self.shape.features)
        if past.ndim != 3 or past.shape[1] < p or past.shape[2] != f:
            raise InputError(f"{self.name} takes at least {p} past states of {f} features, got {past.shape}")
        known = np.array(past[:, -p:], np.float32)
        self.check_past(known, past.shape[1] - p)
        device = next(self.net.parameters()).device
        mean, std = (torch.tensor(v, dtype=torch.float32, device=device) for v in (self.shape.mean, self.shape.std))
        generator = torch.Generator(device).manual_seed(seed)
        y = (torch.from_numpy(known).to(device) - mean) / std
        states = []
        for t in range(length):
            x = self.following(y, generator, steps, average)
            states.append(x * std + mean)
            y = torch.cat([y[:, 1:], x], dim=1)
            progress(t + 1, length)
        found = torch.cat(states, dim=1).cpu().numpy() if states else np.empty((len(past), 0, f), np.float32)
        if not np.isfinite(found).all():
            raise Fault(f"a rollout of {self.name} left the numbers; lower the step size or the noise")
        return found

    def check_past(self, known: Float32[np.ndarray, "n p f"], first: int) -> None:
        """Raises InputError, naming series, state and feature, for what is no finite number; `first` is the number of
        states before these."""
        bad = np.argwhere(~np.isfinite(known))
        if len(bad):
            i, k, j = bad[0].tolist()
            raise InputError(
                f"the past has {known[i, k, j]} in series {i}, state {first + k} (both from 0), feature "
                f"{self.shape.features[j]}; repair or drop that series"
            )


def load(where: str | Path, device: torch.device | str = "cpu") -> Forecaster:
    """The forecaster of a run folder, a .safetensors file, a bundled name or hf:owner/name. Raises InputError for a
    model of images."""
    path = model.find(where)
    tensors, about = model.read(path)
    shape, preset = from_dict(about, path), presets.from_dict(about["settings"])
    if not isinstance(shape, SeriesShape):
        raise InputError(f"{path} is a model of images, not of time series")
    net = model.build_net(preset, shape)
    model.fill(net, tensors, path)
    return Forecaster(net.to(device), preset, shape, model.called(where), about["step"], about["facts"])
