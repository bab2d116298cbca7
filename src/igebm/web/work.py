"""What the page computes, without a page: chains as generators of their states, repairs, combinations, energies.

A chain is pulled: it takes a step when it is asked for the next frame. Whoever stops asking, or closes the generator,
ends the work.
"""

import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor

from .. import terms
from ..compose import product
from ..data import Images, centred, quantise
from ..data.decode import MOST_PIXELS, Picture, decode, opened
from ..data.latents import on_circle, spread
from ..energy import Energy
from ..errors import Fault, InputError, unknown
from ..inputs import load_split
from ..model import Model, batches, build_kernel, temperature
from ..presets import Preset
from ..samplers import Kernel, State, masked, run
from ..terms import Term

MOST_STEPS, MOST_IMAGES, MOST_TERMS = 5_000, 64, 8
FORWARDS = 16_000
"""images times conditions that the histogram of a training set may cost"""


@dataclass(frozen=True)
class Chain:
    """What a visitor chooses of a chain: eq. 4's step and noise, and how many chains start from which seed."""

    steps: int
    step_size: float
    noise: float
    seed: int = 0
    n: int = 16


class Spread(NamedTuple):
    """Mean, least and greatest energy of the chains after a step."""

    mean: float
    least: float
    greatest: float


class Frame(NamedTuple):
    """A chain after `step` of `of` steps: its images, x (n, C, H, W) in [0, 1], and the energies of the states up to
    there: E(x⁰), E(x¹), ..., that of x itself from the next frame on (a step evaluates E where it starts)."""

    step: int
    of: int
    x: Float[Tensor, "n c h w"]
    energies: list[Spread]

    @property
    def images(self) -> UInt8[np.ndarray, "n h w c"]:
        return quantise(self.x).permute(0, 2, 3, 1).cpu().numpy()


class Reference(NamedTuple):
    """Sorted energies of images of the training set, and what they are; or none, and why."""

    energies: Float[np.ndarray, "n"] | None
    about: str


def checked(chain: Chain) -> Chain:
    """`chain` itself. Raises InputError for what no page of ours sends, but anybody can."""
    counts = [("steps", chain.steps, 0, MOST_STEPS), ("images", chain.n, 1, MOST_IMAGES)]
    for name, value, low, high in [*counts, ("seed", chain.seed, 0, 2**31 - 1)]:
        if not low <= value <= high:
            raise InputError(f"{value} {name}: choose between {low} and {high:,}")
    for name, value, high in (("step size", chain.step_size, 1e6), ("noise", chain.noise, 10.0)):
        if not 0 <= value <= high:
            raise InputError(f"{name} {value:g}: choose between 0 and {high:g}")
    return chain


def defaults(m: Model, steps: int | None = None) -> Chain:
    """The model's own chain from noise."""
    p = m.preset
    return Chain(min(p.sample_steps if steps is None else steps, MOST_STEPS), p.step_size, p.noise)


def frames(kernel: Kernel, E: Energy, x: Tensor, steps: int, generator: torch.Generator) -> Iterator[Frame]:
    """The chain's start, and its state after each step. Raises Fault where it leaves the numbers."""
    state, energies = State(x), []
    yield Frame(0, steps, x, energies)
    for k in range(1, steps + 1):
        state, info = run(kernel, E, state, 1, generator)
        assert info.e is not None  # Langevin and MPPI evaluate it
        energies.append(spread_of(info.e))
        if not torch.isfinite(state.x).all():
            raise Fault(f"the chain left the numbers at step {k}; lower the step size")
        if k == steps:
            with torch.no_grad():
                energies.append(spread_of(E(state.x)))
        yield Frame(k, steps, state.x, energies)


def spread_of(e: Float[Tensor, "n"]) -> Spread:
    e = e.double()
    return Spread(e.mean().item(), e.min().item(), e.max().item())


def paced(moving: Iterator[Frame], every: float = 0.1) -> Iterator[Frame]:
    """The first frame, the last, and of the others one each `every` seconds: a page shows no more."""
    shown = -every
    for frame in moving:
        now = time.monotonic()
        if frame.step in (0, frame.of) or now - shown >= every:
            shown = now
            yield frame


def stepped(m: Model, chain: Chain) -> Preset:
    return replace(m.preset, step_size=chain.step_size, noise=chain.noise)


def kernel_of(m: Model, chain: Chain) -> Kernel:
    return build_kernel(stepped(m, chain))


def watch(m: Model, condition: str | None, chain: Chain) -> Iterator[Frame]:
    """From uniform noise, as `igebm sample` does it: the same seed gives the same images. `condition` None: the classes
    in turn, or latents drawn over their ranges."""
    chain = checked(chain)
    y = m.conditions(chain.n, condition, seed=chain.seed)
    E = m.given(None if y is None else torch.as_tensor(y, device=m.device))
    x, generator = noise(m, chain)
    yield from frames(kernel_of(m, chain), E, x, chain.steps, generator)


def noise(m: Model, chain: Chain) -> tuple[Tensor, torch.Generator]:
    """x⁰ ~ U(0, 1), and the generator that the steps go on with."""
    generator = torch.Generator(m.device).manual_seed(chain.seed)
    return torch.rand((chain.n, *m.shape.image), generator=generator, device=m.device), generator


# Repair


def repair(
    m: Model, picture: UInt8[np.ndarray, "h w c"], hole: Bool[np.ndarray, "h w"], condition: str | None, chain: Chain
) -> Iterator[Frame]:
    """`hole` (true: to be filled) filled with noise, n times, and a chain there alone (Fig. 4); all else keeps its
    bytes in every frame. `condition` None leaves it open."""
    chain = checked(chain)
    if not hole.any():
        raise InputError("nothing is painted, so nothing is to be filled: paint over a part of the image")
    row = None if condition is None else torch.as_tensor(m.condition(condition), device=m.device)
    E = m.given(None if row is None else row.expand(chain.n, *row.shape))
    known = centred(torch.from_numpy(picture.copy()).permute(2, 0, 1)).to(m.device)
    known = known.expand(chain.n, *m.shape.image)
    mask = torch.from_numpy(hole).to(m.device)
    x, generator = noise(m, chain)
    x = torch.where(mask, x, known)
    yield from frames(masked(kernel_of(m, chain), mask, known), E, x, chain.steps, generator)


def hole_of(painted: Bool[np.ndarray, "a b"], height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """What was painted on an enlarged picture, in the image's own pixels: those at least a quarter covered, so that a
    stroke along the border of two rows is not lost."""
    covered = Image.fromarray(painted.astype(np.uint8) * 255).resize((width, height), Image.Resampling.BOX)
    return np.asarray(covered) >= 64


# Combine


def combined(rows: Sequence[tuple[str, float, str]], models: Mapping[str, Model]) -> list[Term]:
    """The terms of rows (part, weight, "MODEL=VALUE"); rows without a term, or of weight 0, are left out.

    Raises InputError: of a page a term is a model that is served, never a function to be imported.
    """
    if len(rows) > MOST_TERMS:
        raise InputError(f"{len(rows)} terms: give at most {MOST_TERMS}")
    found = []
    for part, weight, text in rows:
        if not text or weight == 0:
            continue
        term = terms.parse(("" if part == "and" else f"{part}:") + f"{weight:g}*{text}")
        if term.source not in models:
            raise unknown("model", term.source, models)
        found.append(term)
    if not found:
        raise InputError("there is no term: choose one, and a weight above 0")
    shapes = {models[term.source].shape.image: term.source for term in found}
    if len(shapes) > 1:
        raise InputError(f"{' and '.join(shapes.values())} are of images of unlike size: they do not fit together")
    return found


def combine(parsed: Sequence[Term], models: Mapping[str, Model], chain: Chain) -> Iterator[Frame]:
    """A chain from noise on the terms' energy, stepping as the first term's model does (`igebm compose`)."""
    chain = checked(chain)
    m = models[parsed[0].source]
    Es = [terms.bound(term, models[term.source], chain.n, m) for term in parsed]
    preset = stepped(m, chain)
    E = product(*terms.factors(parsed, Es, temperature(preset)))
    x, generator = noise(m, chain)
    yield from frames(build_kernel(preset), E, x, chain.steps, generator)


def formula(parsed: Sequence[Term]) -> str:
    """The terms as their energy: E(x) = E(x | 3) - 0.3 E(x | 8)."""
    factor = lambda t: "" if t.weight == 1 else f"{t.weight:g} "
    name = lambda t: f"E(x | {t.value})" if t.value else "E(x)"
    plus = [f"{factor(t)}{name(t)}" for t in parsed if t.part == "and"]
    either = [f"{factor(t)}e^(−{name(t)}/T)" for t in parsed if t.part == "or"]
    if either:
        plus.append(f"−T log({' + '.join(either)})" if not plus else f"(−T log({' + '.join(either)}))")
    minus = "".join(f" − {factor(t)}{name(t)}" for t in parsed if t.part == "not")
    return f"E(x) = {' + '.join(plus)}{minus}"


def command(parsed: Sequence[Term]) -> str:
    """The same as a line for the shell."""
    part = lambda t: "" if t.part == "and" else f"{t.part}:"
    weight = lambda t: "" if t.weight == 1 else f"{t.weight:g}*"
    texts = [f"{part(t)}{weight(t)}{t.source}" + (f"={t.value}" if t.value else "") for t in parsed]
    return shlex.join(["igebm", "compose", *texts])


def choices(models: Mapping[str, Model]) -> list[str]:
    """Terms to choose from: every class of every model; of latents the ends and the middle of their ranges."""
    found = []
    for name, m in models.items():
        latents = m.shape.latents if m.conditional else ()
        if not m.conditional:
            found.append(name)
        elif m.shape.classes:
            found += [f"{name}={c}" for c in m.shape.classes]
        elif on_circle(latents):
            found += [f"{name}={degrees}" for degrees in (0, 90, 180, 270)]
        else:
            places = [[e.low + s * (e.high - e.low) for e in latents] for s in (0.1, 0.5, 0.9)]
            found += [f"{name}={','.join(f'{v:g}' for v in place)}" for place in places]
    return found


# Is it out of distribution?


def read_picture(path: Path, m: Model) -> UInt8[np.ndarray, "h w c"]:
    """A picture that somebody hands over as one of the model's images, by the rules of every other picture (decode.py).

    Raises InputError for what is no picture, and, before a pixel of it is decoded, for one that is too large.
    """
    if m.shape.height != m.shape.width:
        raise InputError(f"{m.name} is of images {m.shape.height}x{m.shape.width}; only square ones can be read here")
    picture = Picture(path.name, lambda: path)
    try:
        with opened(picture) as image:
            w, h = image.size
        if w * h <= MOST_PIXELS:
            return decode(picture, m.shape.height, m.shape.channels)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(f"the picture has too many pixels to be decoded safely; {MOST_PIXELS:,} are allowed") from None
    except Exception as error:  # Pillow raises a dozen kinds for damaged files, without a common base
        raise InputError("this file cannot be read as a picture; PNG, JPEG, WebP, GIF, BMP and TIFF can") from error
    raise InputError(
        f"the picture has {w:,} x {h:,} pixels, too many to be decoded safely; {MOST_PIXELS:,} are allowed"
    )


def score(m: Model, images: UInt8[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n"]:
    """E(x), or the least E(x | y) over a model's classes, or over values spread over its latents' ranges: the same for
    a new image, whose label nobody knows, and for those of the training set."""
    if not (m.conditional and m.shape.latents):
        return m.energy(images)
    places = places_of(m)
    return np.stack([m.energy(images, np.tile(y, (len(images), 1))) for y in places]).min(0)


def places_of(m: Model) -> Float[np.ndarray, "k d"]:
    return spread(
        m.shape.latents, *((6, 6) if len(m.shape.latents) > 1 and not on_circle(m.shape.latents) else (1, 24))
    )


def training_images(m: Model, data_dir: Path | None = None) -> Images:
    """The training set, in the model's size. Raises InputError where it is not at hand."""
    return load_split(m.preset.data, "train", m, data_dir)


def trained_on(m: Model) -> str:
    """What the training set is called; of a folder, its name alone."""
    return m.preset.data.rstrip("/\\").replace("\\", "/").rpartition("/")[2] or "a data set"


def scored(m: Model, images: Images, seed: int = 0) -> Iterator[tuple[int, int, Reference | None]]:
    """The training set's energies, sorted: as many images, drawn without replacement, as FORWARDS allows.

    Gives how far it is and of how much; at last, the reference.
    """
    conditions = 1 if not m.conditional else len(places_of(m)) if m.shape.latents else max(1, len(m.shape.classes))
    most = max(100, FORWARDS // conditions)
    n = min(len(images.x), most)
    rows = np.sort(np.random.default_rng(seed).permutation(len(images.x))[:n])
    parts = []
    for part in batches(n, 128):
        parts.append(score(m, np.asarray(images.x[rows[part]])))
        yield part.stop, n, None
    e = np.sort(np.concatenate(parts).astype(np.float64))
    if not np.isfinite(e).all():
        raise Fault(f"energies of {images.name} are not finite; {m.name} is broken")
    some = f"all {n:,}" if n == len(images.x) else f"{n:,} of the {len(images.x):,}"
    yield n, n, Reference(e, f"{some} training images of {trained_on(m)}")


def share_below(e: float, reference: Float[np.ndarray, "n"]) -> float:
    """The quantile: which share of the reference has a lower energy; of equal ones, half."""
    low, high = np.searchsorted(reference, e, "left"), np.searchsorted(reference, e, "right")
    return float(low + high) / (2 * len(reference))


def verdict(e: float, reference: Float[np.ndarray, "n"]) -> tuple[str, str]:
    """The quantile in words: one to read first, and one with the number."""
    q, n = share_below(e, reference), len(reference)
    if q == 1.0:
        where = f"higher than that of every one of {n:,} training images"
    elif q == 0.0:
        where = f"lower than that of every one of {n:,} training images"
    else:
        where = f"higher than that of {100 * q:.3g} % of {n:,} training images"
    if q >= 0.99:
        return "Out of distribution", where
    if q >= 0.95:
        return "Unusual", where
    if q < 0.01:
        return "Suspiciously low", f"{where}; plain, smooth images often lie lower than any that was trained on"
    return "Looks like the training set", where
