"""What `igebm restore` does: a picture of one's own, filled in or denoised in several ways (Fig. 4)."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from . import presets, terminal
from .arguments import Restore
from .circumstances import circumstances
from .data import quantise
from .errors import InputError, many, within
from .evaluation.masks import lower_half, read_mask
from .files import results_folder, write_array, write_json
from .inputs import open_model, picture_size, read_picture, stepped, tally
from .library import EBM
from .model import Model, build_kernel
from .report.plots import grid, write_png

MOST = 10_000
"""ways of filling a hole, in one call"""
GREY = 128


def restore(asked: Restore) -> Path:
    """`igebm restore`: the folder with restored.png (the picture, the same with its hole, what it was filled with),
    restored.npy and restore.json. With --denoise there is no hole: chains begin at the picture and move all of it."""
    within("--n", asked.n, 1, MOST)
    within("--seed", asked.seed, 0, 2**31 - 1)
    if asked.steps is not None and asked.steps < 0:
        raise InputError(f"--steps {asked.steps}: give 0 or more")
    if asked.denoise and asked.mask is not None:
        raise InputError("--denoise moves all of the picture, --mask fills a part of it: give one of them")
    m, runtime = open_model(asked.model, asked.machine)
    hole = None if asked.denoise else hole_of(asked, m)
    label = None if asked.label is None else m.condition(asked.label)
    if label is None and m.shape.latents:
        names = ",".join(latent.name for latent in m.shape.latents)
        raise InputError(f"{m.name} is conditional on latents: give their values, --label {names}")
    picture = read_picture(asked.image, m)
    preset = stepped(m, asked.chain)
    default = m.preset.chain_steps if hole is None else presets.filling_steps(m.preset)
    steps = default if asked.steps is None else asked.steps
    model, copies = EBM(m), np.repeat(picture, asked.n, 0)
    seen = label if label is not None or not model.classes else classes_seen(model, copies, hole, asked.seed)
    taken = None if label is not None or seen is None else [model.classes[i] for i in seen]
    with results_folder(asked.out, Path("restored") / asked.image.stem) as out:
        with terminal.bar("restoring") as screen:
            chain: dict[str, Any] = {"steps": steps, "seed": asked.seed, "kernel": build_kernel(preset)}
            chain["progress"] = lambda done, total: screen.step(done, total)
            if hole is None:
                x = model.sample(asked.n, seen, start=copies, **chain)
            else:
                x = model.restore(copies, hole, seen, **chain)
        found = quantise(x).permute(0, 2, 3, 1).cpu().numpy()
        damaged = picture[:0] if hole is None else np.where(hole[None, :, :, None], np.uint8(GREY), picture)
        beside = np.concatenate([picture, damaged, found])
        write_png(out / "restored.png", grid(beside, columns=min(len(beside), 10), least=1000))
        write_array(out / "restored.npy", found)
        with torch.no_grad():
            energies, of_picture = model.energy(x, seen).tolist(), model.energy(picture, label).item()
        about = {
            "model": asked.model,
            "image": str(asked.image),
            "denoise": asked.denoise,
            "mask": None if asked.mask is None else str(asked.mask),
            "filled_pixels": None if hole is None else int(hole.sum()),
            "label": asked.label,
            "labels_taken": taken,
            "chain": {"steps": steps} | presets.chain(preset),
            "seed": asked.seed,
            "energy_of_the_picture": of_picture,
            "energies": energies,
            "machine": circumstances(runtime),
        }
        write_json(out / "restore.json", about)
    what = "the picture changed" if hole is None else f"{hole.sum()} of {hole.size} pixels filled"
    terminal.say(f"{what} in {many(asked.n, 'way')} by {many(steps, 'step')}")
    if taken:
        within_it = "" if hole is None else " with noise in its hole"
        terminal.say(f"without --label each is of the class seen in it{within_it}: {tally(taken)}")
    return out


def classes_seen(model: EBM, copies: np.ndarray, hole: np.ndarray | None, seed: int) -> Tensor:
    """For each way the class of least energy: of the picture, or of the picture with that way's noise in its hole."""
    return model.classify(copies) if hole is None else model.seen_in(copies, hole, seed)


def hole_of(asked: Restore, m: Model) -> Bool[np.ndarray, "h w"]:
    """What is to be filled: the mask, in the model's size or in the picture's; the lower half without one. Raises
    InputError where it is nothing."""
    height, width, size = m.shape.height, m.shape.width, picture_size(asked.image)
    if asked.mask is None:
        return lower_half(height, width)
    hole = read_mask(asked.mask, height, width, size)
    if not hole.any():
        oblong = size is not None and size[0] != size[1]
        where = " in the middle, which is all that is looked at of an oblong picture" if oblong else ""
        raise InputError(
            f"--mask {asked.mask} is black{where}: nothing is to be filled; paint what is to be filled white"
        )
    return hole
