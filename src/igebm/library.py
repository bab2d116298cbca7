"""What one types first in a notebook: a model by name or folder, and pictures in and out as torch tensors.

    >>> import igebm, torch
    >>> ebm = igebm.load("digits")                    # a bundled name, a run folder, a .safetensors file
    >>> ebm
    EBM(digits: images 1x8x8, 10 classes, step 1000)
    >>> x = ebm.sample(4, label="3", steps=100)       # float (4, 1, 8, 8) in [0, 1]
    >>> ebm.energy(x).shape, ebm.classify(x).shape
    (torch.Size([4]), torch.Size([4]))
    >>> hole = torch.zeros(8, 8, dtype=torch.bool)
    >>> hole[4:] = True
    >>> y = ebm.restore(x, hole, steps=50)            # the lower half anew, the upper half as it was
    >>> torch.equal(y[:, :, :4], x[:, :, :4]), torch.equal(y, x)
    (True, False)
    >>> ebm.picture(x).size                           # a PIL image, which a notebook shows
    (475, 475)

Beneath it is `model.Model`, with uint8 pictures as files hold them; chains and energies are the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from PIL import Image
from torch import Tensor

from . import model, native, presets
from .data import centred, quantise
from .data.decode import converted
from .energy import Energy
from .errors import MOST, Fault, InputError, many, unknown, within
from .evaluation.masks import RULE, read_mask
from .model import Model, Progress
from .ranks import batches
from .report.plots import grid
from .runtime import DTYPES, Compiled, choose_device, lack_of_fused
from .samplers import Kernel, masked, run

silent: Progress = lambda done, total: None


def load(
    where: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str = torch.float32,
    compiled: bool | str = False,
) -> "EBM":
    """The model of a run folder, a .safetensors file, a bundled name (`igebm models`) or hf:owner/name.

    Its chains run on `device` ("cpu", "cuda", "cuda:1"; "auto": a GPU where there is one) in `dtype` (bfloat16 is
    faster on GPUs and on CPUs with units for it), compiled where that is asked for: on a GPU "fused" is fastest (in
    bfloat16 on Hopper; "graphs" on others), on a CPU without matrix units "winograd", which wants gcc alone.
    Nothing in the file is executed. Raises InputError where there is none, or where it is foreign, damaged or a model
    of something else than images; and for a device or dtype that is not there.
    """
    at, _ = choose_device(str(device))
    if not isinstance(dtype, torch.dtype):
        if dtype not in DTYPES:
            raise unknown("dtype", dtype, DTYPES)
        dtype = DTYPES[dtype]
    if compiled not in (False, True, "fused", "graphs", "winograd"):
        raise InputError(f"compiled={compiled!r}: give False, True, 'fused', 'graphs' or 'winograd'")
    way: Compiled = compiled  # type: ignore[assignment]
    if compiled in ("fused", "graphs") and at.type != "cuda":
        raise InputError(f"CUDA graphs need a GPU, chains run on the {at.type}; give compiled=True or False")
    if compiled == "fused" and (lacking := lack_of_fused(at, dtype)):
        raise InputError(f"compiled='fused': {lacking}; give compiled='graphs'")
    if compiled == "winograd":
        lacking = "they are for a CPU" if at.type != "cpu" else native.fault()
        if lacking:
            raise InputError(f"no Winograd convolutions: {lacking}; give compiled=False")
    return EBM(model.load(where, at, dtype, way))


@dataclass(frozen=True, repr=False)
class EBM:
    """A trained energy E(x | y) of images.

    Images go in as
    - floats in [0, 1], tensors or arrays, (N, C, H, W) or (N, H, W, C), whichever the model's size says;
    - bytes (uint8) of the same shapes, read at the centre of their bin: x = (u + ½) / 256;
    - single ones, (C, H, W), (H, W, C), or (H, W) where they are grey, and grey ones as (N, H, W);
    - PIL images of the model's size, one or a list, brought to its channels.
    They come out as float32 (N, C, H, W) in [0, 1] on the model's device. Whatever else is given raises InputError.

    A label is a class's name ("3", "cat") or its number, for all images, or a sequence with one for each. A model of
    latents takes their values instead: "0.2,0.7", a row (d,), or rows (N, d).
    """

    model: Model

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of their numbers; () for a model that has none."""
        return self.model.shape.classes if self.model.conditional else ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return self.model.shape.image

    def given(self, label: Any = None) -> Energy:
        """E(· | label), a function of float (B, C, H, W) on the model's device that gives (B,), differentiable in x:
        what kernels (`igebm.samplers`) and compositions (`igebm.compose`) take.

        Without a label: E of an unconditional model, or a conditional one's energy of an unlabelled image.
        """
        y = None if label is None else self._condition(label)
        E = self.model.given(y)
        if y is None or len(y) == 1:
            return E  # a single row of gains serves a batch of any size

        def one_each(x: Tensor) -> Tensor:
            if len(x) != len(y):
                raise InputError(f"this energy is bound to {len(y)} labels, one an image; got {len(x)} images")
            return E(x)

        return one_each

    def sample(
        self,
        n: int,
        label: Any = None,
        steps: int | None = None,
        seed: int = 0,
        start: Any = None,
        kernel: Kernel | None = None,
        batch: int = 128,
        progress: Progress = silent,
    ) -> Float[Tensor, "n c h w"]:
        """n samples by `steps` chain steps (default: the preset's) from uniform noise, or on from the images `start`.

        Without a label a conditional model goes round its classes: sample i is of class i mod K (latents: drawn).
        `kernel` replaces the preset's chain, `batch` chains run at a time, and `progress(done, total)` is told of each
        step. The same seed gives the same samples. Raises Fault where a chain leaves the numbers.
        """
        counted("n", n, 1)
        counted("batch", batch, 1)
        if steps is not None:
            counted("steps", steps, 0)
        y = None if label is None else self._condition(label, n).cpu().numpy()
        begin = None
        if start is not None:
            x = self.pixels(start)
            if len(x) != n:
                raise InputError(f"{n} samples need as many starts, got {len(x)}")
            begin = lambda part, generator: x[part]
        y = self.model.conditions(n, seed=seed) if y is None else y
        parts = self.model.drawn(n, y, steps, begin, seed, batch, progress, kernel)
        return torch.cat([x for _, x in parts])

    @torch.no_grad()
    def energy(self, images: Any, label: Any = None, batch: int = 256) -> Float[Tensor, "n"]:
        """E of each image at its label: (N,), lower for what is more like the training data.

        Without a label a conditional model gives the minimum over its classes; one of latents needs their values.
        """
        counted("batch", batch, 1)
        x = self.pixels(images)
        if label is None and self.model.conditional:
            return self.energies(x, batch).amin(1)
        y = None if label is None else self._condition(label, len(x))
        parts = [self.model.given(None if y is None else y[part])(x[part]) for part in batches(len(x), batch)]
        return torch.cat([*parts, x.new_empty(0)]).float()

    @torch.no_grad()
    def energies(self, images: Any, batch: int = 256) -> Float[Tensor, "n k"]:
        """E(x | y) of each image under every class y: (N, K). Raises InputError for a model without classes."""
        counted("batch", batch, 1)
        if not self.classes:
            raise InputError(f"{self.model.name} knows no classes to try: {self._takes()}")
        x = self.pixels(images)
        parts = [self.model.under_each(x[part]).float() for part in batches(len(x), batch)]
        return torch.cat([*parts, x.new_empty(0, len(self.classes))])

    def classify(self, images: Any, batch: int = 256) -> Int64[Tensor, "n"]:
        """argmin_y E(x | y): the number of the class under which each image has the least energy, (N,).

        A model that was trained conditionally is not necessarily a good classifier. p(y | x) ∝ e^(-E(x | y)) / Z(y),
        and this takes every Z(y) to be alike, which contrast alone does not see to: it compares images under one label,
        never labels of one image. Training with `label_weight` does. (`igebm eval finetune` makes a classifier.)
        """
        return self.energies(images, batch).argmin(1)

    @torch.no_grad()
    def restore(
        self,
        images: Any,
        mask: Any,
        label: Any = None,
        steps: int | None = None,
        seed: int = 0,
        kernel: Kernel | None = None,
        batch: int = 128,
        progress: Progress = silent,
    ) -> Float[Tensor, "n c h w"]:
        """In-painting (Fig. 4): the masked pixels filled from U(0, 1) and run through a chain, the others kept to the
        last bit.

        `mask` is true where a pixel is to be filled: booleans (H, W), or (N, H, W) with one an image; or the path of a
        picture in which white is filled. Default of `steps`: as many as a sample from noise takes, and at least 10
        times the model's chain_steps, the released code's number. Without a label a conditional model takes the class
        with the lowest energy of the image with noise in its hole.
        Raises Fault where a chain leaves the numbers.
        """
        if steps is not None:
            counted("steps", steps, 0)
        counted("batch", batch, 1)
        m, known = self.model, self.pixels(images)
        hole = self._hole(mask, len(known))
        start, generator = self._noise_in(hole, known, seed)
        if not hole.any():
            return start
        y = None
        if label is not None:
            y = self._condition(label, len(known))
        elif m.conditional:
            y = self.classify(start)  # as `seen_in` does
        steps = presets.filling_steps(m.preset) if steps is None else steps
        chain = kernel or model.build_kernel(m.preset)
        parts = [start.new_empty(0, *self.shape)]
        for part in batches(len(known), batch):
            size = part.stop - part.start
            tell = lambda k, *_, before=part.start * steps, size=size: progress(before + k * size, len(known) * steps)
            E = m.given(None if y is None else y[part])
            end, _ = run(masked(chain, hole[part], known[part]), E, start[part], steps, generator, tell)
            if not torch.isfinite(end.x).all():
                raise Fault(f"a chain of {m.name} left the numbers; lower the step size")
            parts.append(end.x)
        return torch.cat(parts)

    def seen_in(self, images: Any, mask: Any, seed: int = 0) -> Int64[Tensor, "n"]:
        """The class that `restore` takes for each image where it is told of none, (N,). Raises InputError for a model
        without classes."""
        known = self.pixels(images)
        return self.classify(self._noise_in(self._hole(mask, len(known)), known, seed)[0])

    def _noise_in(self, hole: Tensor, known: Tensor, seed: int) -> tuple[Tensor, torch.Generator]:
        """U(0, 1) in the hole, and the generator that it came from."""
        generator = torch.Generator(self.model.device).manual_seed(seed)
        noise = torch.rand(known.shape, generator=generator, device=self.model.device)
        return torch.where(hole, noise, known), generator

    def picture(self, images: Any, columns: int = 0) -> Image.Image:
        """Images beside each other, `columns` in a row (0: about square), enlarged to be seen."""
        u8 = quantise(self.pixels(images)).permute(0, 2, 3, 1).cpu().numpy()
        if not len(u8):
            raise InputError("no images to show")
        canvas = grid(u8, columns)
        return Image.fromarray(canvas[..., 0] if canvas.shape[-1] == 1 else canvas)

    def pixels(self, images: Any) -> Float[Tensor, "n c h w"]:
        """Images in any of the forms above as float32 (N, C, H, W) on the model's device. Raises InputError."""
        if isinstance(images, Image.Image):
            images = self._decoded([images])
        elif isinstance(images, Sequence) and len(images) and all(isinstance(i, Image.Image) for i in images):
            images = self._decoded(images)
        if isinstance(images, np.ndarray):
            if images.dtype.kind not in "uf":
                raise InputError(f"images are uint8 or floats in [0, 1], got {images.dtype}")
            whole = np.require(
                images, images.dtype.newbyteorder("="), ["C", "W"]
            )  # torch warns of what it may not write
            images = torch.from_numpy(whole)
        if not isinstance(images, Tensor):
            raise InputError(f"images are a tensor, an array or PIL images, got {type(images).__name__}")
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise InputError(f"images are uint8 or floats in [0, 1], got {images.dtype}")
        x = self._arranged(images).to(self.model.device)
        if x.dtype == torch.uint8:
            return centred(x)
        x = x.detach().float().contiguous()
        if x.numel() and not (x.amin() >= 0 and x.amax() <= 1):  # so that NaN is refused, too
            if count := int((bad := ~x.isfinite()).sum()):
                first = int(bad.flatten(1).any(1).nonzero()[0, 0])
                where = f"{many(count, 'value')}, the first in image {first}, counted from 0"
                raise InputError(f"the images hold NaN or infinity ({where}); repair or leave out those images")
            raise InputError(
                f"floats must lie in [0, 1], got {x.amin():.4g} to {x.amax():.4g}; divide by 255, or give uint8"
            )
        return x

    def _arranged(self, x: Tensor) -> Tensor:
        """`x` as (N, C, H, W), by its shape and the model's."""
        c, h, w = self.shape
        one = lambda x: x[None]
        ways = [
            (x.shape[-3:] == (c, h, w) and x.dim() == 4, lambda x: x),
            (x.shape[-3:] == (h, w, c) and x.dim() == 4, lambda x: x.permute(0, 3, 1, 2)),
            (x.shape == (c, h, w), one),
            (x.shape == (h, w, c), lambda x: x.permute(2, 0, 1)[None]),
            (c == 1 and x.dim() == 3 and x.shape[1:] == (h, w) and len(x) != 1, lambda x: x[:, None]),
            (c == 1 and x.shape == (h, w), lambda x: x[None, None]),
        ]
        fitting = [way for fits, way in ways if fits]
        if len(fitting) == 1:
            return fitting[0](x)
        why = "which can be read in several ways" if fitting else "which do not fit"
        raise InputError(
            f"{self.model.name} is of images (N, {c}, {h}, {w}) or (N, {h}, {w}, {c}), got {tuple(x.shape)}, {why}"
        )

    def _decoded(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """PIL images as uint8 (N, H, W, C), read as files are (data/decode.py)."""
        c, h, w = self.shape
        rows = []
        for picture in pictures:
            if picture.size != (w, h):
                raise InputError(
                    f"{self.model.name} is of images {w}x{h}, got a picture of {picture.size[0]}x{picture.size[1]}; "
                    f"use .resize(({w}, {h}))"
                )
            try:
                rows.append(converted(picture, None, c))
            except Exception as error:  # Pillow raises a dozen kinds for damaged files, without a common base
                raise InputError(f"a picture cannot be read: {' '.join(str(error).split())}") from error
        return np.stack(rows)

    def _hole(self, mask: Any, n: int) -> Tensor:
        """A mask as booleans (N, 1, H, W), true where pixels are filled."""
        _, h, w = self.shape
        if isinstance(mask, str | Path):
            mask = read_mask(Path(mask), h, w)
        mask = torch.from_numpy(np.ascontiguousarray(mask)) if isinstance(mask, np.ndarray) else mask
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise InputError(
                f"a mask is booleans, true where pixels are filled, or a picture's path ({RULE}), got {got}"
            )
        if mask.shape not in ((h, w), (n, h, w)):
            raise InputError(
                f"a mask here is ({h}, {w}), or ({n}, {h}, {w}) with one an image, got {tuple(mask.shape)}"
            )
        return mask.to(self.model.device).expand(n, h, w)[:, None]

    def _condition(self, label: Any, n: int | None = None) -> Tensor:
        """A label, or one an image, as the network takes it: (n,) int64 or (n, d) float32. A single one is repeated n
        times, or stays one row without n. Raises InputError."""
        m = self.model
        if not m.conditional:
            raise InputError(f"{m.name} is unconditional and takes no label, got {label!r}")
        if isinstance(label, Tensor):
            label = label.detach().cpu().numpy()
        if m.shape.latents:
            rows = self._latents(label)
        else:
            each = label if isinstance(label, Sequence | np.ndarray) and not isinstance(label, str) else [label]
            rows = np.array([self._number(name) for name in np.atleast_1d(np.array(each, object))], np.int64)
        if n is not None and len(rows) not in (1, n):
            raise InputError(f"{n} images need one label, or as many labels, got {len(rows)}")
        if n is not None and len(rows) != n:
            rows = np.repeat(rows, n, 0)
        return torch.from_numpy(np.ascontiguousarray(rows)).to(m.device)

    def _number(self, name: Any) -> int:
        if isinstance(name, str):
            return self.model.label(name)
        k = len(self.classes)
        if isinstance(name, int | np.integer) and not isinstance(name, bool) and 0 <= name < k:
            return int(name)
        raise InputError(
            f"a label is a name ({', '.join(self.classes[:3])}, ...) or a number from 0 to {k - 1}, got {name!r}"
        )

    def _latents(self, label: Any) -> np.ndarray:
        m = self.model
        if isinstance(label, str):
            return m.condition(label)[None]
        try:
            rows = np.atleast_1d(np.asarray(label, np.float32))
        except (TypeError, ValueError):
            rows = np.empty(0, np.float32)
        rows = rows[None] if rows.ndim == 1 and len(rows) == m.net.condition else rows
        if rows.ndim != 2 or rows.shape[-1] != m.net.condition or not np.isfinite(rows).all():
            raise InputError(f"{m.name} {self._takes()}, one row or one an image, got {label!r}")
        return rows

    def _takes(self) -> str:
        names = ", ".join(latent.name for latent in self.model.shape.latents)
        return f"takes values of {names}" if names else "it is unconditional"

    def __repr__(self) -> str:
        m = self.model
        of = f"{len(self.classes)} classes" if self.classes else self._takes() if m.shape.latents else "unconditional"
        return f"EBM({m.name}: images {'x'.join(map(str, self.shape))}, {of}, step {m.step})"


def counted(name: str, value: Any, low: int) -> None:
    """Raises InputError for what is no whole number from `low` to MOST."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise InputError(f"{name} is a whole number, got {value!r}")
    within(name, int(value), low, MOST)
