"""Energies of train, test and samples (Fig. 1), and bits per dimension with log Z between two estimates (section 4.2).

bits = (⟨E(x)⟩ / T + log Z) / (D log 2) + 8 for images of D bytes, x dequantised by uniform noise: an upper bound of the
bits that e^(-E/T) / Z needs for the bytes, by Jensen. All in float32, whatever the chains of `sample` run in.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from .. import ranks
from ..compose import tempered
from ..data import Images, dequantise, quantise
from ..data.images import if_there
from ..energy import Energy
from ..errors import Fault, InputError
from ..inputs import matches
from ..model import Model
from ..report import figures
from ..samplers import State
from ..samplers import run as run_chain
from . import partition
from .numbers import of_split, rounded
from .partition import Ladder, Walk
from .settings import Likelihood
from .work import Work, chain_settings, kernel, labels_in_turn, meter

TRAIN, TEST, SAMPLES, STARTS, FORWARDS, BACKWARDS, PILOT, NOISE = range(8)
"""what the parts' random numbers are for"""


def run(work: Work, options: Likelihood) -> dict[str, Any]:
    """Numbers: means and spreads of energies, both ends of log Z, bits per dimension with their interval, doubts."""
    check(options)
    work = replace(work, model=in_float32(work.model))
    m, screen = work.model, work.screen
    condition = the_condition(work, options.label)
    splits = there(work, options.n)
    measured = "test" if "test" in splits else "train"
    if measured == "train" and work.first:
        work.screen.say(f"{splits['train'].name} has no test split: bits per dimension are of images it learned from")
    for images in splits.values():
        check_labels(m, images)
    steps = m.preset.sample_steps if options.steps is None else options.steps
    energies = {split: energies_of(work, images.x, images.y) for split, images in splits.items()}
    tell = meter(screen.step, evaluations(work, options, steps))
    y = labels_in_turn(m, options.samples)
    energies["samples"] = energies_of(work, drawn(work, options, steps, y, SAMPLES, options.samples, tell), y)
    for name, e in energies.items():
        if not np.isfinite(e).all():
            raise Fault(
                f"{int((~np.isfinite(e)).sum())} of {len(e)} energies ({name}) are not finite; {m.name} is broken"
            )

    E = tempered(energy_of(m, condition), 1 / options.temperature)
    ladder, up, down = bracket(work, options, E, steps, condition, tell)
    forwards, backwards = partition.end(up.log_w), partition.end(down.log_w, backwards=True)
    low, high = partition.span(forwards, backwards)
    doubts = partition.doubts(forwards, backwards, up, down)
    members = of_condition(splits[measured], condition)
    if work.first and condition is not None and len(members) < len(splits[measured].x):
        of = f"{len(members)} of {len(splits[measured].x)} images ({measured}), those of {shown(m, condition)}"
        screen.say(f"log Z and bits per dimension are of one condition: {of}")
    nats = dequantised_energies(work, E, members)
    d = math.prod(m.shape.image)
    if work.first:
        for line in doubts:
            screen.say(f"likelihood: {line}")
        draw(work, energies, up, down, options.temperature)
    return {
        "chain": chain_settings(m, options) | {"steps": steps},
        "energies": {name: spread(e) for name, e in energies.items()},
        "temperature": options.temperature,
        "dimensions": d,
        "dtype": "float32",
        "condition": None if condition is None else shown(m, condition),
        "log_z": {
            "forwards": {"log_z": rounded(forwards.log_z), "se": rounded(forwards.se), "n": options.chains},
            "backwards": {"log_z": rounded(backwards.log_z), "se": rounded(backwards.se), "n": options.chains},
            "low": rounded(low),
            "high": rounded(high),
            # Markov: P(⟨w⟩ > 40 Z) < 1/40, whether the chains mixed or not.
            "above_with_97.5_percent": rounded(forwards.log_z - math.log(40)),
            "effective_chains": {"forwards": rounded(forwards.effective), "backwards": rounded(backwards.effective)},
        },
        "bits_per_dim": bits(nats, low, high, d) | {"split": measured},
        "doubts": doubts,
        "note": "backwards starts from the model's own samples, which are only near e^(-E/T): that end is an estimate",
        "pilot": {
            "beta": [rounded(v) for v in ladder.beta],
            "step": [rounded(v) for v in ladder.step],
            "accepted": [rounded(v) for v in ladder.accepted],
            "spread": [rounded(v) for v in ladder.spread],
        },
        "acceptance": {
            "forwards": rounded(float(up.accepted.mean())),
            "backwards": rounded(float(down.accepted.mean())),
        },
        **of_split(splits[measured]),
        "figures": ["likelihood.png", "likelihood-ais.png"],
    }


def there(work: Work, most: int) -> dict[str, Images]:
    """The train and the test split, as far as the data have them. Raises InputError where they have neither."""
    load = lambda split: work.images(split, most)
    found = {split: if_there(load, split) for split in ("train", "test")}
    return {split: images for split, images in found.items() if images is not None} or {
        "test": load("test")
    }  # which raises


def check(options: Likelihood) -> None:
    least = {"n": 1, "samples": 1, "chains": 2, "rungs": 2, "transitions": 1, "leapfrog": 1, "burn": 0}
    for name, low in least.items():
        if getattr(options, name) < low:
            raise InputError(f"--{name} {getattr(options, name)}: give at least {low}")
    if options.steps is not None and options.steps < 1:
        raise InputError(f"--steps {options.steps}: give at least 1")
    if not 0 < options.temperature < math.inf:
        raise InputError(f"--temperature {options.temperature}: give a number above 0")


def evaluations(work: Work, options: Likelihood, steps: int) -> int:
    """Gradients of a batch that this process will take, for the bar; the pilot's are not known before."""
    parts = lambda n: len(ranks.my_parts(n, work.asked.batch))
    transitions = 2 * (options.rungs - 1) * options.transitions + options.burn
    chains = parts(options.chains)
    return parts(options.samples) * steps + chains * (steps + transitions * options.leapfrog)


def in_float32(m: Model) -> Model:
    return m if m.dtype is torch.float32 else replace(m, dtype=torch.float32)


def the_condition(work: Work, label: str | None) -> np.ndarray | None:
    """What log Z(y) is bracketed at: one class; of a model of latents, the given ones or the first test image's (train,
    where there is no other)."""
    m = work.model
    if label is not None:
        return m.condition(label)
    if not m.conditional:
        return None
    if m.shape.classes:
        return np.array(0, np.int64)
    images = work.images(most=1)
    check_labels(m, images)
    assert images.y is not None
    return images.y[0]


def check_labels(m: Model, images: Images) -> None:
    """Raises InputError where a conditional model cannot be asked at the true label."""
    if not m.conditional:
        return
    if images.y is None or not matches(images, m):
        known = m.shape.classes or tuple(latent.name for latent in m.shape.latents)
        if images.y is not None:
            theirs = images.classes or tuple(latent.name for latent in images.latents)
            raise InputError(
                f"{m.name} knows {len(known)} labels ({', '.join(known[:12])}), {images.name} has {len(theirs)} "
                f"({', '.join(theirs[:12])}); give --data with the model's"
            )
        raise InputError(
            f"{m.name} is asked at each image's label, and {images.name} lacks its labels ({', '.join(known[:3])}, "
            "...); give --data with them"
        )
    if images.classes and (images.y < 0).any():
        raise InputError(
            f"{m.name} is asked at each image's label, and {(images.y < 0).sum()} images of {images.name} have none; "
            "give --data with labels"
        )


def energy_of(m: Model, condition: np.ndarray | None) -> Energy:
    """E(· | y) of one condition for all items, however many: its gains are broadcast."""
    return m.given(None if condition is None else torch.as_tensor(condition[None], device=m.device))


def of_condition(images: Images, condition: np.ndarray | None) -> np.ndarray:
    """The images that are of the bracketed condition (all, of an unconditional model)."""
    if condition is None:
        return np.asarray(images.x)
    assert images.y is not None
    same = images.y == condition if images.y.ndim == 1 else (images.y == condition).all(1)
    return np.asarray(images.x[same])


def energies_of(work: Work, x: np.ndarray, y: np.ndarray | None) -> Float[np.ndarray, "n"]:
    """E at the true label of uint8 images, at the centre of their bins."""
    if not work.model.conditional:
        y = None
    compute = lambda part: work.model.energy(np.asarray(x[part]), None if y is None else y[part], work.asked.batch)
    return ranks.rows(len(x), work.asked.batch, compute).astype(np.float64)


def drawn(
    work: Work, options: Likelihood, steps: int, y: np.ndarray | None, key: int, n: int, tell: Callable[..., None]
) -> np.ndarray:
    """n samples of the model's chain from noise, at the conditions y: uint8 (N, H, W, C)."""
    m = work.model

    def compute(part: slice) -> np.ndarray:
        generator = work.generator(key, part.start)
        x = torch.rand((part.stop - part.start, *m.shape.image), generator=generator, device=m.device)
        E = m.given(None if y is None else torch.as_tensor(y[part], device=m.device))
        state, _ = run_chain(kernel(m, options), E, x, steps, generator, lambda *_: tell())
        if not torch.isfinite(state.x).all():
            raise Fault(f"a chain of {m.name} left the numbers; lower --step-size")
        return quantise(state.x).permute(0, 2, 3, 1).cpu().numpy()

    return ranks.rows(n, work.asked.batch, compute)


def bracket(
    work: Work, options: Likelihood, E: Energy, steps: int, condition: np.ndarray | None, tell: Callable[..., None]
) -> tuple[Ladder, Walk, Walk]:
    """The pilot, and AIS chains up and down its ladder."""
    m = work.model
    uniform = lambda n, g: torch.rand((n, *m.shape.image), generator=g, device=m.device)

    tuned = None
    if ranks.rank() == 0:  # by one process, for all
        g = work.generator(PILOT)
        tuned = np.stack(partition.pilot(E, uniform(min(options.chains, work.asked.batch), g), options.leapfrog, g), 1)
    ladder = Ladder(*ranks.from_all(tuned)[0].T)
    betas = ladder.betas(options.rungs)
    flown = lambda: tell(options.leapfrog)
    walk = (E, ladder, options.leapfrog, options.transitions)

    def forwards(part: slice) -> np.ndarray:
        g = work.generator(FORWARDS, part.start)
        return partition.walk(uniform(part.stop - part.start, g), betas, *walk, g, flown)

    starts = None
    if condition is not None:
        starts = np.broadcast_to(condition, (options.chains, *condition.shape)).copy()
    samples = drawn(work, options, steps, starts, STARTS, options.chains, tell)

    def backwards(part: slice) -> np.ndarray:
        g = work.generator(BACKWARDS, part.start)
        x = dequantise(work.bytes(samples[part]), g)
        x = run_chain(
            partition.kernel(ladder.step_at(1.0), options.leapfrog), E, State(x), options.burn, g, lambda *_: flown()
        )[0].x
        return partition.walk(x, betas[::-1], *walk, g, flown)

    up, down = (ranks.rows(options.chains, work.asked.batch, way) for way in (forwards, backwards))
    return ladder, Walk.of(up), Walk.of(down)


def dequantised_energies(work: Work, E: Energy, images: np.ndarray) -> Float[np.ndarray, "n"]:
    """E of (u + U(0, 1)) / 256, one draw an image."""

    def compute(part: slice) -> np.ndarray:
        x = dequantise(work.bytes(images[part]), work.generator(NOISE, part.start))
        with torch.no_grad():
            return E(x).double().cpu().numpy()

    return ranks.rows(len(images), work.asked.batch, compute) if len(images) else np.empty(0)


def bits(nats: np.ndarray, low: float, high: float, d: int) -> dict[str, Any]:
    """Bits per dimension between log Z's ends, each widened by two standard errors of the mean energy; no ends (None)
    of a single image, whose energy has no error that is known."""
    if not len(nats):
        return {"bits": None, "low": None, "high": None, "n": 0}
    to_bits = lambda v: rounded(v / (d * math.log(2)) + 8)
    mean, se = nats.mean(), nats.std(ddof=1) / math.sqrt(len(nats)) if len(nats) > 1 else None
    return {
        "bits": to_bits(mean + (low + high) / 2),
        "low": None if se is None else to_bits(mean - 2 * se + low),
        "high": None if se is None else to_bits(mean + 2 * se + high),
        "n": len(nats),
    }


def shown(m: Model, condition: np.ndarray) -> Any:
    return m.shape.classes[int(condition)] if m.shape.classes else [rounded(v) for v in condition]


def spread(e: np.ndarray) -> dict[str, Any]:
    return {"mean": rounded(e.mean()), "std": rounded(e.std()), "n": len(e)}


def draw(work: Work, energies: dict[str, np.ndarray], up: Walk, down: Walk, temperature: float) -> None:
    figure, ax = figures.axes()
    what = "E(x | y) at the true label" if work.model.conditional else "E(x)"
    figures.histogram(ax[0, 0], list(energies.items()), what)
    figures.save(figure, work.out, "likelihood")
    figure, ax = figures.axes(2)
    for walk, way in ((up, "forwards, from noise"), (down, "backwards, from samples")):
        ax[0, 0].plot(walk.at, walk.energy, label=way)
        ax[0, 1].plot(walk.at, walk.accepted, label=way)
    over = "E(x)" if temperature == 1 else "E(x) / T"
    ax[0, 0].set(xlabel="along the rungs, β from 0 to 1", ylabel=over, title="mean energy: alike where chains keep up")
    ax[0, 1].set(xlabel="along the rungs, β from 0 to 1", ylabel="acceptance", ylim=(0, 1.05), title="HMC")
    for axis in ax[0]:
        axis.legend(fontsize=7, frameon=False)
    figures.save(figure, work.out, "likelihood-ais")
