"""Chains from noise to image: a strip of pictures, an animation, and the energy along the way (Fig. 13)."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..data import quantise
from ..errors import Fault, InputError
from ..files import whole
from ..ranks import batches
from ..report import figures
from ..report.plots import grid
from ..samplers import run as run_chain
from .settings import Trajectory
from .work import Work, chain_settings, kernel, labels_in_turn, names_of


def run(work: Work, options: Trajectory) -> dict[str, Any]:
    """Numbers: E at the start, half-way and at the end (means over chains), and each chain's path of energies."""
    m, n = work.model, options.n
    steps = m.preset.sample_steps if options.steps is None else options.steps
    if n < 1 or steps < 1 or options.frames < 2:
        raise InputError(f"--n {n} --steps {steps} --frames {options.frames}: give at least 1, 1 and 2")
    labels = labels_in_turn(m, n, options.label)
    shown = {round(i * steps / (options.frames - 1)) for i in range(options.frames)}
    moving = {round(i * steps / 60) for i in range(61)}  # an animation of at most 61 pictures
    path = np.empty((steps + 1, n), np.float32)
    stills = {k: np.empty((n, m.shape.height, m.shape.width, m.shape.channels), np.uint8) for k in shown | moving}
    for part in batches(n, work.asked.batch):
        E = m.given(None if labels is None else torch.as_tensor(labels[part], device=m.device))
        generator = work.generator(part.start)
        x = torch.rand((part.stop - part.start, *m.shape.image), generator=generator, device=m.device)
        energies = []

        def keep(k: int, x: torch.Tensor, E=E, energies=energies, part=part) -> None:
            with torch.no_grad():
                energies.append(E(x).float())
            if k in stills:
                stills[k][part] = pixels(x)
            work.screen.step(part.start * steps + k * (part.stop - part.start), n * steps)

        keep(0, x)
        run_chain(kernel(m, options), E, x, steps, generator, lambda k, state, _, keep=keep: keep(k, state.x))
        path[:, part] = torch.stack(energies).cpu().numpy()
    if not np.isfinite(path).all():
        raise Fault(f"a chain of {m.name} left the numbers; lower --step-size")
    if work.first:
        draw(work.out, stills, sorted(shown), sorted(moving), names_of(m, labels), path)
    means = path.mean(1)
    return {
        "chain": chain_settings(m, options) | {"steps": steps},
        "energy_start": float(means[0]),
        "energy_middle": float(means[steps // 2]),
        "energy_end": float(means[-1]),
        "energies": [round(float(e), 5) for e in means],
        "figures": ["trajectory.png", "trajectory-energy.png", "trajectory.gif"],
    }


def pixels(x: torch.Tensor) -> np.ndarray:
    return quantise(x).permute(0, 2, 3, 1).cpu().numpy()


def draw(
    out: Path, stills: dict[int, np.ndarray], shown: list[int], moving: list[int], names: list[str], path: np.ndarray
) -> None:
    strips = [np.stack([stills[k][i] for k in shown]) for i in range(path.shape[1])]
    figures.save(figures.pictures(strips, [str(k) for k in shown], names), out, "trajectory")
    figure, ax = figures.axes()
    ax[0, 0].plot(path, color="#4269d0", alpha=0.3, linewidth=0.8)
    ax[0, 0].plot(path.mean(1), color="black", label="mean")
    ax[0, 0].set(xlabel="step", ylabel="E(x)", title="energy along the chain")
    ax[0, 0].legend()
    figures.save(figure, out, "trajectory-energy")
    frames = [grid(stills[k]) for k in moving]
    scenes = [Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame) for frame in frames]
    with whole(out / "trajectory.gif") as temporary:
        # The last picture stays for two seconds.
        times = [60] * (len(scenes) - 1) + [2000]
        scenes[0].save(temporary, format="GIF", save_all=True, append_images=scenes[1:], duration=times, loop=0)
