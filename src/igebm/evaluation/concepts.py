"""Concepts that combine: chains on the product of energies that each know one factor of a sprite (section 6, Fig.
9)."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..compose import product
from ..data import held_out, quantise
from ..data.dsprites import CONDITIONS, SHAPES, Sprites, condition, latents, pictures
from ..energy import Energy
from ..errors import Fault, InputError
from ..model import Model, batches
from ..report import figures
from ..samplers import run as run_chain
from ..terms import in_units_of
from .read_back import angle_error, read_back
from .settings import Concepts
from .work import chain_settings
from .work import kernel as chain_kernel

FACTORS = ("shape", "scale", "position", "rotation")
"""the order in which models are added"""


def run(models: list[Model], options: Concepts, out: Path, seed: int, batch: int, screen) -> dict[str, Any]:
    """Numbers: for one model, two, ... the error of each factor that is asked for, read back from the samples, beside
    what a blind guess has; seconds of a chain step. Figure: the truth, then samples of one model, two, ..."""
    by_factor = {factor_of(m): m for m in models}
    if len(by_factor) < len(models):
        raise InputError("two of the models are of one factor: give one for each of shape, scale, position, rotation")
    ordered = [factor for factor in FACTORS if factor in by_factor]
    first = by_factor[ordered[0]]
    if len({m.shape.image for m in models}) > 1:
        raise InputError("the models are of images of several sizes; train them with one --image-size")
    z = asked_for(options.n, seed)
    unseen = never_seen(models, z)
    truth = pictures(z, first.shape.height)
    steps = first.preset.sample_steps if options.steps is None else options.steps
    kernel = chain_kernel(first, options)
    rows, shown = [], [truth]
    for k in range(1, len(ordered) + 1):
        factors = ordered[:k]
        images = np.empty_like(truth)
        start = time.perf_counter()
        generator = torch.Generator(first.device).manual_seed(seed)
        for part in batches(options.n, batch):
            n = part.stop - part.start
            Es = [given(by_factor[f], z, f, part, first) for f in factors]
            x = torch.rand((n, *first.shape.image), generator=generator, device=first.device)
            done = (k - 1) * options.n * steps + part.start * steps
            tell = lambda s, *_, done=done, n=n: screen.step(done + s * n, len(ordered) * options.n * steps)
            end = run_chain(kernel, product(*Es), x, steps, generator, tell)[0].x
            if not torch.isfinite(end).all():
                raise Fault("a chain on the product left the numbers; lower --step-size")
            images[part] = quantise(end).permute(0, 2, 3, 1).cpu().numpy()
        seconds = time.perf_counter() - start
        fit = read_back(images)
        rows.append(
            {"models": k, "factors": factors}
            | {"errors": errors(fit.z, z, factors), "misfit": float(np.median(fit.error))}
            | ({} if unseen is None else by_whether_seen(fit.z, z, unseen, factors))
            | {"ms_per_image_and_step": 1e3 * seconds / (options.n * steps)}
        )
        shown.append(images)
    names = ["truth"] + [" + ".join(row["factors"]) for row in rows]
    figures.save(figures.pictures([images[:12] for images in shown], names=names), out, "concepts")
    blind = asked_for(options.n, seed + 1)
    return {
        "rows": rows,
        "blind": errors(blind, z, list(FACTORS))
        | ({} if unseen is None else by_whether_seen(blind, z, unseen, list(FACTORS))),
        "chain": {"steps": steps} | chain_settings(first, options),
        "names": {m.name: f for f, m in by_factor.items()},
        "figures": ["concepts.png"],
    }


def given(m: Model, z: Sprites, factor: str, part: slice, first: Model) -> Energy:
    """The energy of a factor's model at the latents of some sprites, in the units of the first model's."""
    return in_units_of(first, m, m.given(torch.as_tensor(condition(z, factor)[part], device=m.device)))


def asked_for(n: int, seed: int) -> Sprites:
    """n sprites of the official set, drawn without regard to anything."""
    return latents(np.random.default_rng(seed).integers(0, 737_280, n))


def factor_of(m: Model) -> str:
    """Which factor of a sprite a model is conditional on. Raises InputError where it is none."""
    if m.shape.classes == SHAPES:
        return "shape"
    names = tuple(latent.name for latent in m.shape.latents)
    for factor, columns in CONDITIONS.items():
        if columns and names == tuple(latent.name for latent in columns):
            return factor
    raise InputError(f"{m.name} is conditional on no factor of a sprite; train one by igebm train dsprites-scale")


def never_seen(models: list[Model], z: Sprites) -> np.ndarray | None:
    """Which sprites are of combinations that one of the models was trained without; None where nothing was held out."""
    regions = [region for m in models if (region := held_out.split_spec(m.preset.data)[1])]
    return np.any([held_out.inside(z, region) for region in regions], 0) if regions else None


def by_whether_seen(found: Sprites, wanted: Sprites, unseen: np.ndarray, factors: list[str]) -> dict[str, Any]:
    """The errors of combinations that training had, and of those that it had not; with their numbers."""
    rows = {}
    for name, which in (("seen", ~unseen), ("held_out", unseen)):
        of = lambda z, which=which: Sprites(*(column[which] for column in z))
        rows[name] = {"n": int(which.sum())} | (errors(of(found), of(wanted), factors) if which.any() else {})
    return rows


def errors(found: Sprites, wanted: Sprites, factors: list[str]) -> dict[str, float]:
    """Mean error of each factor: share of wrong shapes, difference of scales, distance of places (in the range of
    places), difference of angles in degrees (up to the shape's symmetry)."""
    each = {
        "shape": (found.shape != wanted.shape).astype(float),
        "scale": np.abs(found.scale - wanted.scale),
        "position": np.hypot(found.x - wanted.x, found.y - wanted.y),
        "rotation": np.degrees(angle_error(found.angle, wanted.angle, wanted.shape)),
    }
    return {f: round(float(each[f].mean()), 5) for f in factors}
