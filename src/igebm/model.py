"""What a user loads: weights and settings from one safetensors file -> energies ready to sample.

Everything beyond training stands on this module: the command line, evaluation, a notebook.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor, nn

from . import __version__, diagnostics, hub, presets, pretrained
from .data import centred, dequantise, latents, quantise
from .data.folder import EXTENSIONS
from .data.images import shown
from .energy import Energy
from .errors import Fault, InputError, unknown
from .files import what_is, whole
from .limits import affordable
from .nets.fold import Twin
from .nets.image import ImageEnergy, least_weights, smallest_image
from .nets.trajectory import TrajectoryEnergy, TrajectoryPredictor
from .presets import Preset
from .ranks import batches
from .runtime import Compiled
from .samplers import Kernel, langevin, mppi, run
from .shapes import SeriesShape, Shape
from .shapes import from_dict as shape_from_dict

Progress = Callable[[int, int], None]
"""called with what is done and what there is to do"""


def build_net(preset: Preset, shape: Shape | SeriesShape) -> ImageEnergy | TrajectoryEnergy | TrajectoryPredictor:
    """The network of a preset for images, or for states of a series. Raises InputError where they do not fit."""
    if isinstance(shape, SeriesShape):
        kind = TrajectoryPredictor if preset.objective == "squared-error" else TrajectoryEnergy
        return kind(len(shape.features), preset.width, shape.past)
    return build_image_net(preset, shape)


def build_image_net(preset: Preset, shape: Shape) -> ImageEnergy:
    """The network of a preset for images of `shape`. Raises InputError where the images are too small for its
    halvings, or its weights too many for the memory."""
    blocks = presets.parse_blocks(preset.blocks)
    least = smallest_image(blocks, preset.stem, preset.scales)
    if min(shape.height, shape.width) < least:
        raise InputError(
            f"images of {shape.height}x{shape.width} are too small for --blocks {preset.blocks!r}, --stem "
            f"{preset.stem}, --scales {preset.scales}: at least {least}x{least} is needed; use fewer halvings (d) or "
            f"--image-size"
        )
    condition = shape.condition if preset.conditional else 0
    if condition and preset.harmonics > 1 and not latents.on_circle(shape.latents):
        raise InputError(f"--harmonics {preset.harmonics}: only an angle has them (latents cos, sin); leave it at 1")
    weights = least_weights(preset.width, blocks, condition, preset.scales)
    affordable(4 * weights, f"the {weights:.3g} weights of --width {preset.width} --blocks {preset.blocks!r}")
    return ImageEnergy(
        channels=shape.channels,
        width=preset.width,
        blocks=blocks,
        condition=condition,
        stem=preset.stem,
        activation=preset.activation,
        modulation=preset.modulation,
        skip_kernel=preset.skip_kernel,
        skip_down=preset.skip_down,
        stem_bias=preset.stem_bias,
        head_relu=preset.head_relu,
        dropout=preset.dropout,
        scales=preset.scales,
        flat=(shape.height, shape.width) if preset.pooling == "none" else None,
        harmonics=preset.harmonics,
        spectral=preset.spectral,
        init=preset.init,
    )


def build_kernel(preset: Preset) -> Kernel:
    """The chain of a preset: Langevin (eq. 4) or MPPI (eq. 5), for images in the box [0, 1]."""
    box = (0.0, 1.0) if preset.network == "image" else None
    if preset.sampler == "mppi":
        return mppi(preset.candidates, preset.noise, preset.temperature, box)
    return langevin(preset.step_size, preset.noise, preset.clip, box, preset.noise_order)


def temperature(preset: Preset) -> float:
    """T of the density exp(-E / T) that a preset's chains draw from: of small Langevin steps x - λ ∇E + N(0, σ²) it is
    σ² / 2λ, of MPPI it is a setting."""
    if preset.sampler == "mppi":
        return preset.temperature
    return diagnostics.temperature(preset.step_size, preset.noise)


@dataclass
class Model:
    """A trained energy E(x | y) of images in [0, 1]; its methods take and give uint8 pictures, N x H x W x C."""

    net: ImageEnergy
    preset: Preset
    shape: Shape
    name: str = "model"
    step: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    """whatever else the file said of its origin: data, seed, preset's name, version"""
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32
    compiled: Compiled = False
    sha256: str = ""
    """of the weights as the file has them, which tells two models apart; empty: of no file"""

    def __post_init__(self) -> None:
        self.net.to(self.device).eval().requires_grad_(False)
        self.twin = Twin(self.net, self.dtype, self.compiled)

    @property
    def conditional(self) -> bool:
        return self.net.condition > 0

    def given(self, y: Tensor | None = None) -> Energy:
        """E(· | y) for kernels and compositions: x is float (B, C, H, W) in [0, 1] on the model's device, y the labels
        (B,) int64 (-1: unlabelled) or latents (B, d) of its items, or (1, ...) for all of them; None: the neutral one.
        Raises InputError for others."""
        if y is not None and self.conditional:
            self._check_condition(y)
        return self.twin.given(y)

    def _check_condition(self, y: Tensor | np.ndarray) -> None:
        k, floats = self.net.condition, "float" in str(y.dtype)
        if self.shape.latents and not (floats and y.ndim == 2 and y.shape[1] == k):
            raise InputError(f"{self.name} takes latents, floats of shape (n, {k}), got {y.dtype} {tuple(y.shape)}")
        if self.shape.classes and (floats or y.ndim != 1 or bool(((y < -1) | (y >= k)).any())):
            got = y.tolist() if y.ndim == 1 and len(y) < 9 else f"{y.dtype} {tuple(y.shape)}"
            raise InputError(f"{self.name} takes labels, whole numbers from 0 to {k - 1} (-1: unlabelled), got {got}")

    @torch.no_grad()
    def under_each(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """E(x | y) of each image under every class y."""
        E = self.twin.over(x)
        return torch.stack([E(y[None]) for y in torch.arange(self.net.condition, device=self.device)], 1)

    def label(self, name: str) -> int:
        """A class's number from its name, or from the number itself. Raises InputError with the nearest names."""
        if not self.shape.classes:
            names = ", ".join(latent.name for latent in self.shape.latents)
            takes = f"takes values of {names}" if self.conditional else "is unconditional and takes no label"
            raise InputError(f"{self.name} {takes}, not the label {name!r}")
        name = shown(name)  # as a plain locale hands it over, and as it was read
        if name in self.shape.classes:
            return self.shape.classes.index(name)
        numbers = [str(n) for n in range(len(self.shape.classes))]
        if name in numbers:
            return int(name)
        raise unknown("label", name, self.shape.classes)

    def condition(self, text: str) -> np.ndarray:
        """What a user's word for a condition means: a label () int64, or latents (d,) float32. Raises InputError."""
        return latents.parse(text, self.shape.latents) if self.shape.latents else np.array(self.label(text), np.int64)

    def energy(self, images: np.ndarray, labels: np.ndarray | None = None, batch: int = 256) -> np.ndarray:
        """E of uint8 images (N, H, W, C) at `labels` (N,) or latents (N, d), or the minimum over all labels where none
        are given: (N,) float32.

        Pixels are read at their bin's centre, (u + ½) / 256, so that the answer does not depend on a seed.
        """
        self._check(images)
        if labels is None and self.shape.latents:
            why = "is conditional on latents: an energy needs their values, one row an image"
            raise InputError(f"{self.name} {why}; igebm infer reads them off a picture")
        if labels is not None and self.conditional and len(images):
            labels = self.conditions(len(images), labels=labels)
        parts = [np.empty(0, np.float32)]
        with torch.no_grad():
            for part in batches(len(images), batch):
                x = centred(self._tensor(images[part]))
                if labels is not None or not self.conditional:
                    y = None if labels is None else torch.as_tensor(labels[part], device=self.device)
                    e = self.given(y)(x)
                else:
                    e = self.under_each(x).amin(1)
                parts.append(e.float().cpu().numpy())
        return np.concatenate(parts)

    def conditions(
        self, n: int, label: str | None = None, labels: np.ndarray | None = None, seed: int = 0
    ) -> np.ndarray | None:
        """The conditions of n samples, as `sample` takes them: labels (n,) int64, latents (n, d) float32, or None."""
        if label is not None:
            row = self.condition(label)
            return np.broadcast_to(row, (n, *row.shape)).copy()
        if self.shape.latents and self.conditional:
            y = latents.drawn(self.shape.latents, n, np.random.default_rng(seed)) if labels is None else labels
            if y.shape != (n, self.net.condition):
                raise InputError(f"latents must be {n} x {self.net.condition} numbers, got {y.shape}")
            return y.astype(np.float32)
        if labels is not None and self.conditional:
            self._check_condition(labels)
        if labels is not None and len(labels) != n:
            raise InputError(f"{n} samples take as many labels, got {len(labels)}")
        if labels is not None or not self.conditional:
            return labels if self.conditional else None
        return np.arange(n, dtype=np.int64) % self.net.condition

    def sample(
        self,
        n: int,
        label: str | None = None,
        steps: int | None = None,
        start: np.ndarray | None = None,
        labels: np.ndarray | None = None,
        seed: int = 0,
        batch: int = 128,
        progress: Progress = lambda done, total: None,
        kernel: Kernel | None = None,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """n samples by `steps` chain steps (default: the preset's sample_steps): uint8 (n, H, W, C) and labels (n,).

        Chains start from uniform noise, or from `start` (uint8, n images). A conditional model takes one `label` for
        all, or `labels` (n,) int64, or goes round its classes; one of latents takes their values ("0.2,0.7"), or
        `labels` (n, d) float32, or draws them. `kernel` replaces the preset's. Raises Fault where a
        chain leaves the numbers.
        """
        y_all = self.conditions(n, label, labels, seed)
        if start is not None:
            self._check(start)
            if len(start) != n:
                raise InputError(f"{n} samples need as many starts, got {len(start)}")
        begin = None if start is None else lambda part, generator: dequantise(self._tensor(start[part]), generator)
        images = np.empty((n, self.shape.height, self.shape.width, self.shape.channels), np.uint8)
        for part, x in self.drawn(n, y_all, steps, begin, seed, batch, progress, kernel):
            images[part] = quantise(x).permute(0, 2, 3, 1).cpu().numpy()
        return images, y_all

    def drawn(
        self,
        n: int,
        y_all: np.ndarray | None,
        steps: int | None = None,
        begin: Callable[[slice, torch.Generator], Tensor] | None = None,
        seed: int = 0,
        batch: int = 128,
        progress: Progress = lambda done, total: None,
        kernel: Kernel | None = None,
    ) -> Iterator[tuple[slice, Tensor]]:
        """The ends of n chains under the conditions `y_all` as `conditions` gives them, a batch at a time: which of the
        n they are, and float (b, C, H, W). `begin(part, generator)` are their starts; None: uniform noise."""
        steps = self.preset.sample_steps if steps is None else steps
        kernel = kernel or build_kernel(self.preset)
        generator = torch.Generator(self.device).manual_seed(seed)
        for part in batches(n, batch):
            size = part.stop - part.start
            if begin is None:
                x = torch.rand((size, *self.shape.image), generator=generator, device=self.device)
            else:
                x = begin(part, generator)
            y = None if y_all is None else torch.as_tensor(y_all[part], device=self.device)
            before = part.start * steps
            tell = lambda k, *_, before=before, size=size: progress(before + k * size, n * steps)
            state, _ = run(kernel, self.given(y), x, steps, generator, tell)
            if not torch.isfinite(state.x).all():
                raise Fault(f"a chain of {self.name} left the numbers; lower the step size")
            yield part, state.x

    def _check(self, images: np.ndarray) -> None:
        want = (self.shape.height, self.shape.width, self.shape.channels)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != want:
            raise InputError(
                f"{self.name} takes uint8 images of {want[0]}x{want[1]} with {want[2]} channels, got "
                f"{images.dtype} of shape "
                f"{tuple(images.shape)}"
            )

    def _tensor(self, images: np.ndarray) -> Tensor:
        return torch.from_numpy(np.require(images, requirements=["C", "W"])).to(self.device).permute(0, 3, 1, 2)


def save(
    path: Path,
    net: nn.Module,
    preset: Preset,
    shape: Shape | SeriesShape,
    step: int,
    facts: dict[str, Any],
    weights: torch.dtype | None = None,
) -> None:
    """One safetensors file with all that `load` needs: weights, settings, image shape, classes, origin, a checksum.

    `weights` stores the parameters in another dtype: bfloat16 halves the file, int8 halves it again (the kernels of
    convolutions alone, the rest in bfloat16); buffers stay as they are.
    """
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in net.state_dict().items()}
    for name, p in net.named_parameters():
        if weights is torch.int8 and p.dim() == 4:
            tensors |= _quantised(name, tensors[name])
        else:
            tensors[name] = tensors[name].to(torch.bfloat16 if weights is torch.int8 else weights or p.dtype)
    about = {
        "igebm": __version__,
        "settings": presets.to_dict(preset),
        "step": step,
        "facts": facts,
    } | shape.to_dict()
    write(path, tensors, about)


def load(
    where: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    compiled: Compiled = False,
) -> Model:
    """The model of a run folder, a .safetensors file, a bundled name or hf:owner/name. Nothing in it is executed.

    Raises InputError where there is none, where the file is foreign, damaged or of another network.
    """
    path = find(where)
    tensors, about = read(path)
    if "baseline" in about:
        raise InputError(f"{path} is a baseline ({about['baseline']}), which has a likelihood and no energy to sample")
    preset = presets.from_dict(about["settings"])
    shape = shape_from_dict(about, path)
    if not isinstance(shape, Shape):
        raise InputError(f"{path} is a model of time series; igebm forecast and igebm eval rollout take it")
    condition = shape.condition if preset.conditional else 0
    least = least_weights(preset.width, presets.parse_blocks(preset.blocks), condition, preset.scales)
    here = sum(t.numel() for t in tensors.values())
    if least > here:  # said before memory is taken for it
        raise InputError(f"{path} is of another network: its settings ask for at least {least} weights, it has {here}")
    net = build_image_net(preset, shape)
    fill(net, tensors, path)
    step, facts, sha256 = about["step"], about["facts"], about["sha256"]
    return Model(net, preset, shape, called(where), step, facts, torch.device(device), dtype, compiled, sha256)


WHERE = "a run folder, a .safetensors file, a bundled name or hf:owner/name"
CHECKPOINTS, TABLES, ARRAYS = (".pt", ".pth", ".ckpt"), (".csv", ".parquet"), (".npz", ".npy")
OTHERS = {
    **dict.fromkeys(EXTENSIONS, "a picture"),
    **dict.fromkeys(TABLES, "a table"),
    **dict.fromkeys(ARRAYS, "a file of arrays"),
    **dict.fromkeys(CHECKPOINTS, "a checkpoint, which is not opened here (of a run give its folder)"),
}
"""what files by these ends are, given in place of a model"""


def find(where: str | Path) -> Path:
    """The safetensors file that a MODEL argument means: a run folder's, the file itself, a bundled model's, or one on
    the Hugging Face hub (hf:owner/name), which is downloaded once."""
    if str(where).startswith("hf:"):
        return hub.model_file(str(where))
    path = Path(where)
    at = what_is(path)
    if at == "file":
        return path
    if at == "folder" and what_is(path / "model.safetensors") == "file":
        return path / "model.safetensors"
    if str(where) in pretrained.names():
        return pretrained.FOLDER / f"{where}.safetensors"
    if at == "folder":
        raise InputError(f"{path} holds no model.safetensors; is it a run folder, and has the run saved once?")
    near = get_close_matches(str(where), pretrained.names(), n=1)
    hint = f"; did you mean {near[0]}?" if near else f" (bundled: {', '.join(pretrained.names()) or 'none'})"
    raise InputError(f"no model {str(where)!r}: give {WHERE}{hint}")


def called(where: str | Path) -> str:
    """What a MODEL argument is called in messages and names of folders: a file without its end, a repository without
    its owner."""
    if str(where).startswith("hf:"):
        return hub.parse(str(where)).name.partition("/")[2]
    return Path(where).name.removesuffix(".safetensors")  # no more: a dot may be one of lr-0.0003


def fill(net: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Load `tensors` into `net`. Raises InputError that names what is missing, extra, or of another shape."""
    wanted = net.state_dict()
    missing, extra = sorted(set(wanted) - set(tensors)), sorted(set(tensors) - set(wanted))
    if missing or extra:
        raise InputError(f"{path} is of another network: missing {_few(missing)}; extra {_few(extra)}")
    for name, t in tensors.items():
        if t.shape != wanted[name].shape:
            raise InputError(f"{path}: {name} is {tuple(t.shape)}, this network's is {tuple(wanted[name].shape)}")
    net.load_state_dict({name: t.to(wanted[name].dtype) for name, t in tensors.items()})


SCALE = ".int8_scale"


def _quantised(name: str, w: Tensor) -> dict[str, Tensor]:
    """W ≈ s q with q in -127..127 and one s for each output channel: off by at most s / 2."""
    s = (w.abs().amax((1, 2, 3), keepdim=True) / 127).clamp_min(torch.finfo(w.dtype).tiny)
    return {name: (w / s).round().to(torch.int8), name + SCALE: s}


def _restored(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors as a network has them: s q where they were stored so."""
    scales = {name.removesuffix(SCALE): s for name, s in tensors.items() if name.endswith(SCALE)}
    plain = {name: t for name, t in tensors.items() if not name.endswith(SCALE)}
    for name, s in scales.items():
        if name not in plain or s.shape != (*plain[name].shape[:1], 1, 1, 1):
            raise InputError(f"{path}: the scales of {name} do not fit it")
    return {name: t * scales[name] if name in scales else t for name, t in plain.items()}


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes: what tells a flipped bit."""
    h = hashlib.sha256()
    for name in sorted(tensors):
        t = tensors[name].contiguous()
        h.update(f"{name} {t.dtype} {tuple(t.shape)}\n".encode())
        h.update(t.reshape(-1).view(torch.uint8).numpy().tobytes())
    return h.hexdigest()


def write(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """One safetensors file, with `about` and checksums of both in its metadata; whole or not at all."""
    about = about | {"sha256": digest(tensors)}
    metadata = {"igebm": json.dumps(about | {"about_sha256": _seal(about)})}
    with whole(path) as temporary:  # by Python, for its own writer raises no OSError where the disk is full
        temporary.write_bytes(safetensors.torch.save(tensors, metadata=metadata))


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file that igebm wrote, checked against their checksum, and what its metadata say.

    Raises InputError where the file is foreign or damaged, or its metadata lack something.
    """
    return parsed(whole_file(path), path)


def whole_file(path: Path) -> bytes:
    """All bytes of a file that igebm wrote. Raises InputError where it is foreign, before the rest of it is read."""
    with _sound(path), open(path, "rb") as file:
        _header(file, path)
        file.seek(0)
        return file.read()


def parsed(written: bytes, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `read` gives, of the bytes of the file at `path`."""
    with _sound(path):
        header = _header(io.BytesIO(written), path)
        tensors = safetensors.torch.load(written)  # its reader of files takes no name that is not UTF-8
    try:
        about = json.loads(header["igebm"])
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: its metadata is damaged ({error})") from error
    kinds = {"settings": dict, "shape": list, "classes": list, "step": int, "facts": dict, "sha256": str}
    missing = [key for key, kind in kinds.items() if not (isinstance(about, dict) and isinstance(about.get(key), kind))]
    if missing:
        raise InputError(f"{path}: its metadata lacks {_few(missing)}")
    seal = about.pop("about_sha256", None)  # files of version 0.1.0's first models have none
    for what, sound in (("weights", about["sha256"] == digest(tensors)), ("metadata", seal in (None, _seal(about)))):
        if not sound:
            raise InputError(
                f"{path} is damaged: its {what} do not match their checksum; use another copy or an earlier snapshot"
            )
    return _restored(tensors, path), about


def _seal(about: dict[str, Any]) -> str:
    """SHA-256 of the metadata as JSON: a flipped bit in a number would otherwise be another setting."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


@contextmanager
def _sound(path: Path) -> Iterator[None]:
    """Whatever Python and safetensors say of a file that is none, as one InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # a dozen kinds; each means the same here
        if kind := OTHERS.get(path.suffix.lower()):
            raise InputError(f"{path} is {kind}; a MODEL is {WHERE}") from error
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise InputError(
            f"{path} is not a whole safetensors file ({reason}); other formats, pickles among them, are not opened"
        ) from error


def _header(file: io.BufferedIOBase, path: Path) -> dict[str, Any]:
    """The metadata of a safetensors file: read before the rest, which may be gigabytes of something else."""
    length = int.from_bytes(file.read(8), "little")
    if length > 2**27:
        raise ValueError("its header is no header")
    header = dict(json.loads(file.read(length)).get("__metadata__") or {})
    if "igebm" not in header:
        raise InputError(f"{path} was not written by igebm: its metadata has no settings")
    return header


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "nothing"
