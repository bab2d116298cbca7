"""Chains that repair damaged test images: salt and pepper, and in-painting (Fig. 4).

Salt and pepper starts a chain at the damaged image, every pixel free: the chain must find out what is wrong.
In-painting fills the hole with uniform noise and runs a chain there alone; what is kept stays equal to the last bit.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped, UInt8
from torch import Tensor

from .. import presets, ranks
from ..errors import Fault, InputError
from ..report import figures
from ..report.plots import grid, write_png
from ..samplers import masked
from ..samplers import run as run_chain
from .classes import lowest, of_classes, true_conditions
from .judge import Judge, judge_of
from .masks import RULE, lower_half, read_mask
from .numbers import mean, of_split, rounded, share
from .settings import Restoration
from .trajectory import pixels
from .work import Work, chain_settings, kernel, names_of

KINDS = {"salt-pepper": 5, "inpaint": presets.INPAINTING}
"""what is done to the images: chain steps, in multiples of the model's chain_steps (released code)"""


def run(work: Work, options: Restoration) -> dict[str, Any]:
    """Numbers, for each kind of damage: the mean squared error before and after, over the damaged pixels and over the
    whole image, in units of x (pixels in [0, 1]); and the shares of images that have changed their class."""
    m = work.model
    check(options)
    hole = hole_of(work, options)
    images = work.images(most=options.n)
    labels = None
    if m.conditional and options.at == "label":
        labels = true_conditions(m, images, "restoration at the true label (--at lowest: at the model's own guess)")
    elif m.conditional and not of_classes(m):
        raise InputError(f"--at lowest: {m.name} is conditional on latents and has no labels to try; use --at label")
    judge = judge_of(work)
    kinds = list(KINDS) if options.corrupt == "both" else [options.corrupt]
    steps = {k: m.preset.chain_steps * KINDS[k] if options.steps is None else options.steps for k in kinds}
    before, total = 0, len(images.x) * sum(steps.values())
    numbers: dict[str, Any] = {
        "images": len(images.x),
        **of_split(images),
        "label": "none: an unconditional model" if not m.conditional else
        "the true one" if labels is not None else "the one with the lowest energy of the damaged image",
        "classifier": judge.about if judge else None,
        "chain": chain_settings(m, options),
    }  # fmt: skip
    drawn = []
    for kind in kinds:
        tell = lambda done, before=before: work.screen.step(before + done, total)
        rows, shown = repaired(work, options, kind, images.x, labels, hole, steps[kind], judge, tell)
        before += len(images.x) * steps[kind]
        numbers[kind] = about(work, options, kind, hole) | {"steps": steps[kind]} | summary(rows, judge, of_classes(m))
        if work.first:
            names = [] if labels is None else names_of(m, labels[: len(shown)])
            draw(work, kind, shown, images.x[: len(shown)], names)
        drawn += [f"restoration-{kind}.png", f"restoration-{kind}-steps.png"]
    return numbers | {"figures": drawn}


def check(o: Restoration) -> None:
    if o.n < 1 or o.show < 1 or o.frames < 2 or (o.steps is not None and o.steps < 1):
        raise InputError(f"--n {o.n} --show {o.show} --frames {o.frames}: give at least 1, 1, 2; and 1 or more --steps")
    for name, values in (("share", [o.share]), ("levels", o.levels)):
        if not all(0 <= v <= 1 for v in values):
            raise InputError(f"--{name} {' '.join(map(str, values))}: choose between 0 and 1")
    if o.mask is not None and o.corrupt == "salt-pepper":
        raise InputError("--mask is for in-painting: give --corrupt inpaint, or both")


def hole_of(work: Work, options: Restoration) -> Bool[Tensor, "h w"]:
    """What in-painting fills: the mask file's white, or the lower half."""
    h, w = work.model.shape.height, work.model.shape.width
    mask = lower_half(h, w) if options.mask is None else read_mask(options.mask, h, w)
    if options.corrupt != "salt-pepper" and work.first:
        if not mask.any():
            work.screen.say(f"the mask is black all over and keeps every pixel: the output is the input ({RULE})")
        elif mask.all():
            work.screen.say(f"the mask is white all over: nothing of the images is kept ({RULE})")
    return torch.from_numpy(mask).to(work.model.device)


def damage(
    kind: str,
    truth: Float[Tensor, "b c h w"],
    hole: Bool[Tensor, "h w"],
    options: Restoration,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "b c h w"], Bool[Tensor, "b 1 h w"]]:
    """Damaged images, and where they are: half of the hit pixels to each level; or the hole filled from U(0, 1)."""
    b, _, h, w = truth.shape
    if kind == "inpaint":
        noise = torch.rand(truth.shape, generator=generator, device=truth.device)
        return torch.where(hole, noise, truth), hole.expand(b, 1, h, w)
    u = torch.rand((b, 1, h, w), generator=generator, device=truth.device)
    pepper, salt = u < options.share / 2, u >= 1 - options.share / 2
    low, high = options.levels
    return truth.masked_fill(pepper, low).masked_fill(salt, high), pepper | salt


def repaired(
    work: Work,
    options: Restoration,
    kind: str,
    images: UInt8[np.ndarray, "n h w c"],
    labels: np.ndarray | None,
    hole: Bool[Tensor, "h w"],
    steps: int,
    judge: Judge | None,
    tell: Callable[[int], None],
) -> tuple[Float[np.ndarray, "n k"], UInt8[np.ndarray, "s f h w c"]]:
    """Damage and repair: one row of numbers an image (see `measured`), and the first images from start to end.

    Part by part, so that memory does not grow with the number of images; each part has its own random numbers.
    """
    m, nothing = work.model, kind == "inpaint" and not hole.any()
    at = sorted({round(i * steps / (options.frames - 1)) for i in range(options.frames)})
    shown = np.empty((0, len(at), *images.shape[1:]), np.uint8)

    def one(part: slice) -> np.ndarray:
        nonlocal shown
        size, generator = part.stop - part.start, work.generator(list(KINDS).index(kind), part.start)
        truth = work.tensor(images[part])
        x, hit = damage(kind, truth, hole, options, generator)
        start, frames = pixels(x), []
        y = None
        if m.conditional:
            y = lowest(m, start, work.asked.batch) if labels is None else labels[part]
            y = torch.as_tensor(y, device=m.device)
        first = slice(0, options.show if part.start == 0 else 0)

        def keep(k: int, state, info) -> None:
            if k in at and len(state.x[first]):
                frames.append(pixels(state.x[first]))
            tell(part.start * steps + k * size)

        frames.append(start[first])
        chain = masked(kernel(m, options), hole, truth) if kind == "inpaint" else kernel(m, options)
        if not nothing:
            x = run_chain(chain, m.given(y), x, steps, generator, keep)[0].x
        if not torch.isfinite(x).all():
            raise Fault(f"a chain of {m.name} left the numbers; lower --step-size")
        if part.start == 0:
            shown = np.stack(frames * len(at) if nothing else frames, 1)
        return measured(work, images[part], start, pixels(x), hit[:, 0].cpu().numpy(), judge)

    return ranks.rows(len(images), work.asked.batch, one), shown


def measured(
    work: Work,
    truth: UInt8[np.ndarray, "b h w c"],
    before: UInt8[np.ndarray, "b h w c"],
    after: UInt8[np.ndarray, "b h w c"],
    hit: Bool[np.ndarray, "b h w"],
    judge: Judge | None,
) -> Float[np.ndarray, "b k"]:
    """For each image: errors over the hit pixels (before, after), over all (before, after); whether the classifier,
    and the model by its energies, give another class than to the truth (before, after; NaN: not known)."""
    columns = [squared_error(truth, made, over) for over in (hit, np.ones_like(hit)) for made in (before, after)]
    by_energy = (lambda images: lowest(work.model, images)) if of_classes(work.model) else None
    for guess in (judge.classes if judge else None, by_energy):
        unknown = np.full(len(truth), np.nan)
        right = None if guess is None else guess(truth)
        columns += [unknown if guess is None else guess(made) != right for made in (before, after)]
    return np.stack(columns, 1).astype(np.float64)


def squared_error(
    a: UInt8[np.ndarray, "b h w c"], b: UInt8[np.ndarray, "b h w c"], over: Bool[np.ndarray, "b h w"]
) -> Float[np.ndarray, "b"]:
    """⟨((a - b) / 256)²⟩ over the channels of the pixels in `over`; NaN where there is none."""
    d = ((a.astype(np.float64) - b) / 256) ** 2
    count = over.sum((1, 2))
    return (d.mean(-1) * over).sum((1, 2)) / np.where(count, count, np.nan)


def about(work: Work, options: Restoration, kind: str, hole: Bool[Tensor, "h w"]) -> dict[str, Any]:
    if kind == "salt-pepper":
        return {"share": options.share, "pepper": options.levels[0], "salt": options.levels[1]}
    mask = "lower half" if options.mask is None else str(options.mask)
    note = {} if hole.any() else {"note": "the mask keeps every pixel: the output is the input"}
    return {"mask": mask, "filled": rounded(hole.float().mean().item())} | note


def summary(rows: Shaped[np.ndarray, "n k"], judge: Judge | None, by_energy: bool) -> dict[str, Any]:
    """The columns of `measured`, averaged."""
    pair = lambda i, of: {"before": of(rows[:, i]), "after": of(rows[:, i + 1])}
    changed = {"by_classifier": pair(4, share)} if judge else {}
    if by_energy:
        changed["by_energy"] = pair(6, share)
    return {"mse_damaged_pixels": pair(0, mean), "mse_image": pair(2, mean), "changed_class": changed}


def draw(
    work: Work, kind: str, shown: UInt8[np.ndarray, "s f h w c"], truth: UInt8[np.ndarray, "s h w c"], names: list[str]
) -> None:
    """Before, after and truth; and a strip from start to end for each image, pixel by pixel as they are."""
    rows = [shown[:, 0], shown[:, -1], truth]
    figures.save(figures.pictures(rows, names, ["before", "after", "truth"]), work.out, f"restoration-{kind}")
    strips = shown.reshape(-1, *shown.shape[2:])
    write_png(work.out / f"restoration-{kind}-steps.png", grid(strips, shown.shape[1], least=900))
