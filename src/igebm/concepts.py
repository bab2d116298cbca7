"""What `igebm compose` and `igebm infer` do: chains on composed energies (Fig. 9), and latents from an image."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from scipy.special import softmax

from . import inference, presets, terminal, terms
from .arguments import Compose, Infer
from .circumstances import circumstances
from .compose import product
from .data import centred, quantise
from .data.latents import Latent, drawn, on_circle
from .errors import MOST, Fault, InputError, many, within
from .files import results_folder, write_array, write_json
from .inputs import open_model, read_picture, stepped
from .model import Model, batches, build_kernel, temperature
from .presets import Preset
from .report import figures
from .report.plots import grid, write_png
from .runtime import Runtime
from .samplers import run
from .terms import Term


def compose(asked: Compose) -> Path:
    """`igebm compose`: samples.png, samples.npy and compose.json with each term's energy along the way."""
    start = time.perf_counter()
    if not asked.terms:
        raise InputError("give at least one term, such as dsprites-scale=0.8 or digits=3")
    if asked.n < 1 or asked.batch < 1 or (asked.steps is not None and asked.steps < 0):
        raise InputError(f"--n {asked.n} --batch {asked.batch} --steps {asked.steps}: give 1, 1 and 0 or more")
    within("--seed", asked.seed, 0, 2**31 - 1)
    parsed = [terms.parse(text) for text in asked.terms]
    models, runtime = open_models(parsed, asked.machine)
    first = next(iter(models.values()))
    energies_of(parsed, models, 1)  # a wrong value is said before any work
    preset = stepped(first, asked.chain)
    steps = first.preset.sample_steps if asked.steps is None else asked.steps
    with results_folder(asked.out, Path("composed")) as out:
        with terminal.bar("composing") as screen:
            found, energies = chains(asked, parsed, models, preset, steps, screen.step)
        write_png(out / "samples.png", grid(found))
        write_array(out / "samples.npy", found)
        about = {
            "terms": [asdict(term) | {"energy": e} for term, e in zip(parsed, energies.mean(0).tolist(), strict=True)],
            "mode": asked.mode,
            "n": asked.n,
            "seed": asked.seed,
            "chain": presets.chain(preset) | {"steps": steps},
            "seconds": round(time.perf_counter() - start, 1),
            "machine": circumstances(runtime),
        }
        write_json(out / "compose.json", about)
    terminal.say(f"{many(asked.n, 'sample')} of {many(len(parsed), 'term')} by {many(steps, 'step')}")
    return out


def chains(
    asked: Compose, parsed: list[Term], models: dict[str, Model], preset: Preset, steps: int, tell: terminal.Step
) -> tuple[np.ndarray, np.ndarray]:
    """Where chains on the composition that step as `preset` says end, uint8 images (n, H, W, C), and each term's energy
    of each, (n, terms)."""
    first = next(iter(models.values()))
    found = np.empty((asked.n, first.shape.height, first.shape.width, first.shape.channels), np.uint8)
    energies = np.empty((asked.n, len(parsed)))
    generator, kernel = torch.Generator(first.device).manual_seed(asked.seed), build_kernel(preset)
    for part in batches(asked.n, asked.batch):
        n = part.stop - part.start
        Es = energies_of(parsed, models, n)
        factors = terms.factors(parsed, Es, temperature(preset))
        step = terms.cyclic(kernel, factors) if asked.mode == "cyclic" else kernel
        x = torch.rand((n, *first.shape.image), generator=generator, device=first.device)
        done = lambda k, *_, a=part.start, n=n: tell(a * steps + k * n, asked.n * steps)
        end = run(step, product(*factors), x, steps, generator, done)[0].x
        if not torch.isfinite(end).all():
            raise Fault("a chain on the composition left the numbers; lower --step-size or the weights")
        found[part] = quantise(end).permute(0, 2, 3, 1).cpu().numpy()
        with torch.no_grad():
            energies[part] = torch.stack([F(end).float() for F in Es], 1).cpu().numpy()
    return found, energies


def open_models(parsed: list[Term], machine) -> tuple[dict[str, Model], Runtime]:
    """Every model that the terms name, once, all of one image shape. Raises InputError otherwise."""
    names = list(dict.fromkeys(term.source for term in parsed if not term.custom))
    if not names:
        raise InputError("give at least one term of a model: it says what images are and how chains step")
    opened = [open_model(name, machine) for name in names]
    models = dict(zip(names, (m for m, _ in opened), strict=True))
    first = opened[0][0]
    for name, m in models.items():
        if m.shape.image != first.shape.image:
            raise InputError(f"{name} is of images {m.shape.image}, {names[0]} of {first.shape.image}: they do not fit")
    return models, opened[0][1]


def energies_of(parsed: list[Term], models: dict[str, Model], n: int) -> list:
    for term in parsed:
        if term.custom and term.value:
            raise InputError(
                f"{term.source} is a function and takes no value, got {term.value!r} (before models: not:, or:)"
            )
    first = next(iter(models.values()))
    return [terms.function(t.source) if t.custom else terms.bound(t, models[t.source], n, first) for t in parsed]


def infer(asked: Infer) -> None:
    """`igebm infer`: infer.json with mean and spread of each latent, latents.npy with every chain's end, infer.png; the
    numbers are printed, then the folder."""
    start = time.perf_counter()
    for name in ("n", "steps"):
        within(f"--{name}", getattr(asked, name), 1, MOST)
    within("--seed", asked.seed, 0, 2**31 - 1)
    for name, value in (("--step-size", asked.step_size), ("--noise", asked.noise)):
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"{name} {value:g}: give a number above 0")
    m, runtime = open_model(asked.model, asked.machine)
    if not m.conditional:
        raise InputError(f"{m.name} is unconditional: there is nothing to infer; take one with classes or latents")
    given = [name for name in ("n", "steps", "step_size", "noise") if getattr(asked, name) is not None]
    if m.shape.classes and given:
        raise InputError(
            f"{presets.flag(given[0])} is of chains over latents; {m.name} has classes, an energy each: leave it out"
        )
    picture = read_picture(asked.image, m)
    with results_folder(asked.out, Path("inferred") / asked.image.stem) as out:
        numbers = classes_of(m, picture, out) if m.shape.classes else latents_of(m, picture, asked, out)
        about = {"model": asked.model, "image": str(asked.image), "seed": asked.seed} | numbers
        seconds = round(time.perf_counter() - start, 1)
        about = about | {"seconds": seconds, "machine": circumstances(runtime)}
        write_json(out / "infer.json", about)
    terminal.result(about, asked.json, lambda: "\n".join([*terminal.pretty(numbers), f"folder: {out}"]))


def classes_of(m: Model, picture: np.ndarray, out: Path) -> dict:
    """E(x | y) under every class. The least names the class as far as log Z(y) is the same for all, which contrastive
    training alone does not see to; probabilities are made of them where it had the posterior of the labels besides."""
    k = len(m.shape.classes)
    e = m.energy(np.repeat(picture, k, 0), np.arange(k)).astype(np.float64)
    figure, axes = figures.axes()
    axes[0, 0].barh(list(m.shape.classes), e - e.min())
    axes[0, 0].invert_yaxis()
    axes[0, 0].set(xlabel="E(x | y) - the least", title=f"least: {m.shape.classes[int(e.argmin())]}")
    figures.save(figure, out, "infer")
    least, *others = np.argsort(e).tolist()
    lead = {"next": m.shape.classes[others[0]], "lead": float(e[others[0]] - e[least])} if others else {}
    named = lambda values: dict(zip(m.shape.classes, values.tolist(), strict=True))
    found = {"least": m.shape.classes[least]} | lead
    if m.preset.label_weight:  # p(y | x) = softmax over y of -E(x | y) / T, T that of training
        found["posterior"] = named(softmax(-e / m.preset.label_temperature).round(4))
    return found | {"energies": named(e)}


def latents_of(m: Model, picture: np.ndarray, asked: Infer, out: Path) -> dict:
    """Many chains over the latents, from starts all over their ranges; mean and spread of where they end."""
    latents, n, steps = m.shape.latents, asked.n or 256, asked.steps or 200
    rng = np.random.default_rng(asked.seed)
    y = torch.from_numpy(drawn(latents, n, rng)).to(m.device)
    x = centred(torch.tensor(picture, device=m.device).permute(0, 3, 1, 2))
    E = m.twin.over(x)
    each = inference.steps_of(m.preset, asked.step_size, asked.noise)
    generator = torch.Generator(m.device).manual_seed(asked.seed)
    with terminal.bar("inferring") as screen:
        tell = lambda k, *_: screen.step(k, steps)
        end = inference.chain(E, y, latents, steps, each, generator, tell)
    if not torch.isfinite(end).all():
        raise Fault("a chain over the latents left the numbers; lower --step-size")
    with torch.no_grad():
        e = E(end).float().cpu().numpy()
    ends = end.cpu().numpy()
    write_array(out / "latents.npy", ends)
    shown = columns_of(latents, ends)
    figure, axes = figures.axes(len(shown) + 1, size=(3.0, 2.6))
    axes[0, 0].imshow(picture[0, ..., 0] if picture.shape[-1] == 1 else picture[0], cmap="gray", vmin=0, vmax=255)
    axes[0, 0].axis("off")
    for ax, (name, (values, low, high)) in zip(axes[0, 1:], shown.items(), strict=True):
        ax.hist(values, np.linspace(low, high, 41), density=True)
        ax.set(xlabel=name, ylabel="density of chains' ends")
    figures.save(figure, out, "infer")
    best = int(e.argmin())
    table = {
        name: (on_turn(values) if on_circle(latents) else {"mean": float(values.mean()), "std": float(values.std())})
        | {"least_energy": float(values[best])}
        for name, (values, _, _) in shown.items()
    }
    chain = {"chains": n, "steps": steps, "step_size": each.step_size, "noise": each.noise}
    return chain | {"latents": table}


def columns_of(latents: Sequence[Latent], ends: np.ndarray) -> dict[str, tuple[np.ndarray, float, float]]:
    """What is told of latents (n, d): each column with its range; of an angle the degrees, which is what it is asked
    for by."""
    if on_circle(latents):
        return {"angle in degrees": (np.degrees(np.arctan2(ends[:, 1], ends[:, 0])) % 360.0, 0.0, 360.0)}
    return {latent.name: (ends[:, i], latent.low, latent.high) for i, latent in enumerate(latents)}


def on_turn(degrees: np.ndarray) -> dict[str, float]:
    """The direction of ⟨(cos θ, sin θ)⟩, and √(-2 log R) with R its length: of angles that fall into opposite
    directions R is near 0, the mean says nothing and the spread is wide."""
    z = np.exp(1j * np.radians(degrees)).mean()
    spread = math.sqrt(-2 * math.log(min(1.0, max(abs(z), 1e-12))))
    return {"mean": float(np.degrees(np.angle(z)) % 360.0), "std": math.degrees(spread)}
