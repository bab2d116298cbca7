"""What `igebm restore` does: a picture of one's own, repaired in several ways (in-painting, Fig. 4)."""

from collections import Counter
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool

from . import presets, terminal
from .arguments import Restore
from .circumstances import circumstances
from .data import quantise
from .errors import InputError, many, within
from .evaluation.masks import lower_half, read_mask
from .files import results_folder, write_array, write_json
from .inputs import open_model, picture_size, read_picture, stepped
from .library import EBM
from .model import build_kernel
from .report.plots import grid, write_png

MOST = 10_000
"""ways of filling a hole, in one call"""
GREY = 128


def restore(asked: Restore) -> Path:
    """`igebm restore`: the folder with restored.png (the picture, the picture with its hole, what it was filled with),
    restored.npy and restore.json."""
    within("--n", asked.n, 1, MOST)
    within("--seed", asked.seed, 0, 2**31 - 1)
    if asked.steps is not None and asked.steps < 0:
        raise InputError(f"--steps {asked.steps}: give 0 or more")
    m, runtime = open_model(asked.model, asked.machine)
    height, width = m.shape.height, m.shape.width
    hole = lower_half(height, width) if asked.mask is None else mask_of(asked.mask, asked.image, height, width)
    label = None if asked.label is None else m.condition(asked.label)
    picture = read_picture(asked.image, m)
    preset = stepped(m, asked.chain)
    steps = presets.filling_steps(m.preset) if asked.steps is None else asked.steps
    model, copies = EBM(m), np.repeat(picture, asked.n, 0)
    # Told of no class, each way has the one that the model sees in the picture with that way's noise in its hole.
    seen = label if label is not None or not model.classes else model.seen_in(copies, hole, asked.seed)
    taken = None if label is not None or seen is None else [model.classes[i] for i in seen]
    with results_folder(asked.out, Path("restored") / asked.image.stem) as out:
        with terminal.bar("restoring") as screen:
            tell = lambda done, total: screen.step(done, total)
            x = model.restore(copies, hole, seen, steps, asked.seed, build_kernel(preset), progress=tell)
        found = quantise(x).permute(0, 2, 3, 1).cpu().numpy()
        damaged = np.where(hole[None, :, :, None], np.uint8(GREY), picture)
        beside = np.concatenate([picture, damaged, found])
        write_png(out / "restored.png", grid(beside, columns=min(len(beside), 10), least=1000))
        write_array(out / "restored.npy", found)
        with torch.no_grad():
            energies, of_picture = model.energy(x, seen).tolist(), model.energy(picture, label).item()
        about = {
            "model": asked.model,
            "image": str(asked.image),
            "mask": None if asked.mask is None else str(asked.mask),
            "filled_pixels": int(hole.sum()),
            "label": asked.label,
            "labels_taken": taken,
            "chain": {"steps": steps} | presets.chain(preset),
            "seed": asked.seed,
            "energy_of_the_picture": of_picture,
            "energies": energies,
            "machine": circumstances(runtime),
        }
        write_json(out / "restore.json", about)
    terminal.say(f"{hole.sum()} of {hole.size} pixels filled in {many(asked.n, 'way')} by {many(steps, 'step')}")
    if taken:
        counts = ", ".join(f"{name} ({k})" for name, k in Counter(taken).most_common())
        terminal.say(f"without --label each is of the class seen in it with noise in its hole: {counts}")
    return out


def mask_of(mask: Path, image: Path, height: int, width: int) -> Bool[np.ndarray, "{height} {width}"]:
    """What is to be filled: `mask` in the model's size, or in that of the picture. Raises InputError where that is
    nothing."""
    size = picture_size(image)
    hole = read_mask(mask, height, width, size)
    if not hole.any():
        oblong = size is not None and size[0] != size[1]
        where = " in the middle, which is all that is looked at of an oblong picture" if oblong else ""
        raise InputError(f"--mask {mask} is black{where}: nothing is to be filled; paint what is to be filled white")
    return hole
