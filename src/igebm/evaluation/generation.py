"""Samples of the mixing protocol, scored (section 8.4; Table 3b, Figs. 2, 3).

A pool of chains is visited in rounds: a share of it is taken out, some start anew from noise, some go on under a new
label, all run a few steps on the snapshot whose turn it is, and go back to where they were with their labels. The last
rounds neither restart nor relabel. (Facts of the released script, test_inception.py; settings.py names its values.)
"""

import copy
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import model, ranks
from ..data import MissingSplit, latents, quantise
from ..errors import Fault, InputError
from ..files import whole, write_array
from ..model import Model, batches
from ..report import figures
from ..samplers import Kernel
from ..samplers import run as run_chain
from . import metrics, streams
from .features import Extractor, score_names
from .judge import features_of
from .numbers import rounded
from .settings import Generation
from .streams import Passed
from .work import Work, chain_settings, kernel, meter

PAPER: dict[tuple[str, bool], dict[str, float]] = {
    ("cifar10", False): {"IS": 6.78, "FID": 38.2},
    ("cifar10", True): {"IS": 8.30, "FID": 37.9},
}
"""Table 3b of arXiv:1903.08689, by data and whether conditional; the first is of ten snapshots, the second of one"""

RELEASE_CLIP = 0.05
NEIGHBOURS = 3
"""k of precision and recall"""


def run(work: Work, options: Generation) -> dict[str, Any]:
    """Numbers: scores of samples against train and test images, and of the train images themselves."""
    check(work.model, options)
    if options.protocol == "release" and options.clip is None and work.model.preset.sampler == "langevin":
        options = replace(options, clip=RELEASE_CLIP)
    m = work.model
    steps = min(20, m.preset.chain_steps) if options.steps is None else options.steps
    turns = ensemble(work, options.ensemble)
    extractor = features_of(work)
    real = real_images(work, options.real) if extractor is not None else {}
    samples, labels = written(work, options, steps, turns)
    numbers: dict[str, Any] = {
        "chain": chain_settings(m, options) | {"steps": steps},
        "ensemble": [name for name, _ in turns],
        "visits_a_chain": round(visits(options), 1),
        "samples": ["samples.npy", *([] if labels is None else ["labels.npy"])],
    }
    if extractor is None:
        numbers["scores"] = None
        numbers["warnings"] = ["no scores: there is neither the Inception network nor a labelled set for a classifier"]
    else:
        numbers |= scored(work, options, extractor, samples, real)
    if work.first:
        draw(work, samples, labels)
    return numbers | {"figures": ["generation.png"]}


def check(m: Model, options: Generation) -> None:
    o = options
    for name, low in {"n": 2, "pool": 1, "rounds": 1, "last": 0, "splits": 1, "real": 2, "kept": 2}.items():
        if getattr(o, name) < low:
            raise InputError(f"--{name} {getattr(o, name)}: give at least {low}")
    for name in ("restart", "relabel"):
        if not 0 <= getattr(o, name) <= 1:
            raise InputError(f"--{name} {getattr(o, name)}: give a share between 0 and 1")
    if not 0 < o.visit <= 1:
        raise InputError(f"--visit {o.visit}: give a share above 0, at most 1")
    if o.rounds < filling(o):
        raise InputError(f"--rounds {o.rounds} do not fill a pool with --visit {o.visit}: give at least {filling(o)}")
    if o.splits > o.n:
        raise InputError(f"--splits {o.splits} of --n {o.n} samples: give fewer splits or more samples")
    if o.steps is not None and o.steps < 1:
        raise InputError(f"--steps {o.steps}: give at least 1")
    chain_settings(m, o)


def filling(options: Generation) -> int:
    """Rounds at the start that run each chain of a pool once."""
    return math.ceil(1 / options.visit - 1e-9)


def visit_of(options: Generation, size: int) -> int:
    """Chains of a round, of a pool of `size`."""
    return max(round(options.visit * size), math.ceil(size / filling(options)))


def visits(options: Generation) -> float:
    """How often a chain runs on average; drawn with replacement, a chain twice in a round counts once."""
    share = options.visit if options.protocol == "paper" else 1 - math.exp(-options.visit)
    return 1 + (options.rounds - filling(options)) * share


Turn = tuple[str, dict[str, Tensor] | None]
"""a snapshot's name and weights; None: the model's own"""


def ensemble(work: Work, asked: int | None) -> list[Turn]:
    """The snapshots that take turns, the newest first. Raises InputError where several are asked for and there are
    none."""
    if asked is not None and asked < 1:
        raise InputError(f"--ensemble {asked}: give at least 1, the model itself")
    own: list[Turn] = [(work.model.name, None)]
    if asked == 1:
        return own
    folder = Path(work.where) / "snapshots"
    there = sorted(folder.glob("*.safetensors"))[-(asked or 10) :][::-1] if Path(work.where).is_dir() else []
    if not there:
        if asked is not None:
            raise InputError(
                f"--ensemble {asked} takes turns between snapshots, and {work.where} has none; give a run folder with "
                "snapshots/ (igebm train --snapshot-every N leaves one every N iterations), or --ensemble 1"
            )
        return own
    if len(there) < (asked or 10) and work.first:
        work.screen.say(f"{folder} holds {len(there)} snapshots: they take turns")
    net, found = copy.deepcopy(work.model.net), []
    for path in there:
        tensors, _ = model.read(path)
        model.fill(net, tensors, path)
        found.append((path.stem, copy.deepcopy(net.state_dict())))
    return found


class Protocol(NamedTuple):
    """What mixing a pool takes beside the model."""

    kernel: Kernel
    steps: int
    options: Generation
    batch: int
    conditions: Callable[[int, np.random.Generator], np.ndarray] | None
    """draws labels, or latents; None: unconditional"""


def mix(
    m: Model,
    turns: list[Turn],
    size: int,
    protocol: Protocol,
    rng: np.random.Generator,
    generator: torch.Generator,
    tell: Callable[..., None] = lambda *_: None,
) -> tuple[Tensor, np.ndarray | None]:
    """A pool of `size` chains after all rounds: x (size, C, H, W) and the labels each last ran under.

    `m` is left with the weights of the last round's snapshot.
    """
    o, visit, first = protocol.options, visit_of(protocol.options, size), filling(protocol.options)
    x = torch.rand((size, *m.shape.image), generator=generator, device=m.device)
    y = None if protocol.conditions is None else protocol.conditions(size, rng)
    for i in range(o.rounds):
        switch(m, turns, i)
        if i < first:
            chosen = np.arange(i * visit, min(size, (i + 1) * visit))
        elif o.protocol == "release":
            chosen = np.unique(rng.integers(0, size, visit))  # of a chain drawn twice, the release keeps one run
        else:
            chosen = rng.choice(size, visit, replace=False)
        if first <= i < o.rounds - o.last:
            fresh = chosen[rng.random(len(chosen)) < o.restart]
            x[fresh] = torch.rand((len(fresh), *m.shape.image), generator=generator, device=m.device)
            anew = chosen[rng.random(len(chosen)) < o.relabel]
            if y is not None and protocol.conditions is not None:
                y[anew] = protocol.conditions(len(anew), rng)
        for part in batches(len(chosen), protocol.batch):
            mine = chosen[part]
            E = m.given(None if y is None else torch.as_tensor(y[mine], device=m.device))
            x[mine] = run_chain(protocol.kernel, E, x[mine], protocol.steps, generator)[0].x
            tell(len(mine))
        tell(visit - len(chosen))
    if not torch.isfinite(x).all():
        raise Fault(f"a chain of {m.name} left the numbers; lower --step-size")
    return x, y


def switch(m: Model, turns: list[Turn], i: int) -> None:
    """Let the snapshot whose turn round i is take over the model, chains' twin included."""
    _, weights = turns[i % len(turns)]
    if weights is not None and (len(turns) > 1 or i == 0):
        m.net.load_state_dict(weights)
        m.twin.refresh()


def conditions_of(m: Model) -> Callable[[int, np.random.Generator], np.ndarray] | None:
    if not m.conditional:
        return None
    if m.shape.latents:
        return lambda n, rng: latents.drawn(m.shape.latents, n, rng)
    return lambda n, rng: rng.integers(0, m.net.condition, n)


def written(work: Work, options: Generation, steps: int, turns: list[Turn]) -> tuple[np.ndarray, np.ndarray | None]:
    """samples.npy (uint8, memory-mapped) and labels, pool after pool; each pool's random numbers are its own.

    Processes take the pools in turn and hand them to the first, which alone writes.
    """
    m = replace(work.model, net=copy.deepcopy(work.model.net))  # its weights will change
    protocol = Protocol(kernel(m, options), steps, options, work.asked.batch, conditions_of(m))
    pools, path = list(batches(options.n, options.pool)), work.out / "samples.npy"
    mine = [visit_of(options, part.stop - part.start) for part in ranks.my_parts(options.n, options.pool)]
    tell = meter(work.screen.step, options.rounds * sum(mine))
    labels: list[np.ndarray] = []
    with whole(path) if work.first else nullcontext() as temporary:
        rows = None
        if temporary is not None:
            shape = (options.n, m.shape.height, m.shape.width, m.shape.channels)
            rows = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
        for start in range(0, len(pools), ranks.size()):
            k, images, y = start + ranks.rank(), None, None
            if k < len(pools):
                size, rng = pools[k].stop - pools[k].start, np.random.default_rng([work.asked.seed, 1, k])
                x, y = mix(m, turns, size, protocol, rng, work.generator(1, k), tell)
                images = quantise(x).permute(0, 2, 3, 1).cpu().numpy()
            for part, found in zip(pools[start:], ranks.from_all(images), strict=False):
                if rows is not None:
                    rows[part] = found
            if m.conditional:
                labels += ranks.from_all(y)
        if rows is not None:
            rows.flush()
    all_labels = np.concatenate(labels) if labels else None
    if work.first and all_labels is not None:
        write_array(work.out / "labels.npy", all_labels)
    ranks.wait()
    return np.load(path, mmap_mode="r"), all_labels


def real_images(work: Work, most: int) -> dict[str, np.ndarray]:
    found = {}
    for split in ("train", "test"):
        try:
            found[split] = work.images(split, most).x
        except MissingSplit:
            if split == "train":
                raise
    return found


def scored(
    work: Work, options: Generation, extractor: Extractor, samples: np.ndarray, real: dict[str, np.ndarray]
) -> dict[str, Any]:
    """The table of scores: samples, and for comparison the train images, against train, test and both together."""
    sets = {"samples": samples, **real}
    tell = meter(work.screen.step, math.ceil(sum(map(len, sets.values())) / ranks.size()))
    passed = {}
    for name, x in sets.items():
        splits = min(options.splits, len(x))
        passed[name] = streams.describe(extractor, x, work.asked.batch, splits, options.kept, work.asked.seed, tell)
    names, warnings = score_names(extractor), []
    least = min(passed, key=lambda name: passed[name].n)
    warning = metrics.few(*(p.moments for p in passed.values()))
    if warning is not None:
        warnings.append(warning := f"{least}: {warning}")
        if work.first:
            work.screen.say(f"generation: {warning}")
    table = {"samples": row(work, names, passed["samples"], {k: passed[k] for k in real})}
    if "test" in passed:
        table["train images"] = row(work, names, passed["train"], {"test": passed["test"]})
    m = work.model
    own = work.asked.data in (None, m.preset.data)  # the paper's numbers are against what the model was trained on
    published = PAPER.get((m.preset.data, m.conditional)) if extractor.inception and own else None
    if published is not None:
        both = f"{names.frechet}, train and test" if "test" in passed else f"{names.frechet}, train"
        table["samples"]["paper"] = {names.inception_score: published["IS"], both: published["FID"]}
    return {
        "extractor": extractor.name,
        "scores": table,
        "images": {name: p.n for name, p in passed.items()},
        "warnings": warnings,
    }


def row(work: Work, names: Any, fake: Passed, real: dict[str, Passed]) -> dict[str, Any]:
    """Scores of one set against each set of real images; precision and recall against the first."""
    found: dict[str, Any] = {
        names.inception_score: rounded(fake.score.mean),
        "std over splits": rounded(fake.score.std),
        "splits": fake.score.splits,
    }
    for split, other in real.items():
        found[f"{names.frechet}, {split}"] = rounded(metrics.frechet(fake.moments, other.moments))
        kernel = metrics.kernel_distance(fake.kept, other.kept, seed=work.asked.seed)
        found[f"{names.kernel}, {split}"] = rounded(kernel.mean)
        found[f"std over subsets of {kernel.size}, {split}"] = rounded(kernel.std)
    if len(real) > 1:
        both = metrics.merge(*(other.moments for other in real.values()))
        found[f"{names.frechet}, train and test"] = rounded(metrics.frechet(fake.moments, both))
    split, other = next(iter(real.items()))
    if min(len(fake.kept), len(other.kept)) > NEIGHBOURS:
        manifolds = metrics.precision_recall(other.kept, fake.kept, NEIGHBOURS)
        for name in ("precision", "recall", "density", "coverage"):
            found[f"{name}, {split}"] = rounded(getattr(manifolds, name))
    return found


def draw(work: Work, samples: np.ndarray, labels: np.ndarray | None) -> None:
    """Ten samples of each of up to ten classes (Fig. 2), or a hundred of an unconditional model (Fig. 3)."""
    classes = work.model.shape.classes
    if labels is None or not classes:
        rows, names = [np.asarray(samples[i : i + 10]) for i in range(0, min(100, len(samples)), 10)], []
    else:
        shown = [(c, np.flatnonzero(labels == c)[:10]) for c in range(len(classes))]
        shown = [(c, at) for c, at in shown if len(at)][:10]
        rows, names = [np.asarray(samples[at]) for _, at in shown], [classes[c] for c, _ in shown]
    figures.save(figures.pictures(rows, names=names), work.out, "generation")
