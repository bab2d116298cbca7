"""The pictures of the page on how it works: `python docs/how_it_works.py`.

Two half moons are learned by a small network, with what the landscape and the buffer are like on the way; then the
bundled digits are drawn from noise. Writes docs/how-*.png, docs/digits.gif and results/how-it-works.json, or all into
--out.
"""

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import make_moons
from torch import Tensor, nn

import igebm
from igebm.buffer import Buffer
from igebm.circumstances import circumstances
from igebm.data import load, quantise
from igebm.files import whole, write_json
from igebm.model import build_kernel
from igebm.objectives import contrastive
from igebm.report import figures
from igebm.report.plots import grid
from igebm.runtime import probe
from igebm.samplers import Info, State, langevin, run

HERE = Path(__file__).resolve().parents[1]
SHOWN = (0, 30, 100, 300, 3_000)
"""iterations after which the landscape is drawn"""
KERNEL = langevin(step_size=1e-3, noise=math.sqrt(2e-3))
"""exact to first order in its step, at temperature 1"""
X, Y = torch.linspace(-1.6, 2.6, 160), torch.linspace(-1.3, 1.8, 120)


def moons(n: int, seed: int) -> Tensor:
    return torch.from_numpy(make_moons(n, noise=0.1, random_state=seed)[0]).float()


class Look(NamedTuple):
    """What is seen after an iteration: E on the plane, and the states that wait in the buffer."""

    step: int
    landscape: Tensor
    buffer: Tensor


def learn(steps: int) -> tuple[Callable[[Tensor], Tensor], list[Look], Tensor]:
    """The energy, looks at it on the way, and E(x⁺), E(x⁻) of each iteration (steps, 2)."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 1))
    E = lambda x: net(3 * x)[:, 0] + 0.5 * x.square().sum(1)  # the square holds the tails
    data, g = moons(20_000, seed=0), torch.Generator().manual_seed(0)
    buffer = Buffer(1_000, (2,), dtype=torch.float32)
    adam = torch.optim.Adam(net.parameters(), lr=1e-3, betas=(0.0, 0.999))
    cooling = torch.optim.lr_scheduler.CosineAnnealingLR(adam, max(1, steps))
    looks, energies = [], []
    for step in range(steps + 1):
        if step in SHOWN or step == steps:
            with torch.no_grad():
                waiting = buffer.read(300, g)[0] if len(buffer) else torch.randn(300, 2, generator=g)
                looks.append(Look(step, E(torch.cartesian_prod(X, Y)).reshape(len(X), len(Y)).T, waiting.clone()))
        if step == steps:
            break
        x_pos = data[torch.randint(len(data), (256,), generator=g)]
        start = buffer.draw(torch.randn(256, 2, generator=g), None, restart=0.05, host=g)
        x_neg = run(KERNEL, E, start.x, 40, g)[0].x
        buffer.write(start.slots, x_neg, None)
        e_pos, e_neg = E(x_pos), E(x_neg)
        adam.zero_grad()
        contrastive(e_pos, e_neg).backward()
        adam.step()
        cooling.step()
        energies.append(torch.stack([e_pos.mean(), e_neg.mean()]).detach())
    return E, looks, torch.stack(energies)


def landscape(ax, look: Look) -> None:
    """E above its least value, up to 8, as colours from dark to bright."""
    x, y, e = X.numpy(), Y.numpy(), look.landscape.numpy()  # matplotlib warns of tensors
    ax.contourf(x, y, e - e.min(), np.linspace(0, 8, 17), extend="max", cmap="viridis")
    ax.set(aspect="equal", xticks=[], yticks=[], xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
    ax.grid(False)


def training(looks: list[Look], out: Path) -> None:
    figure, axes = figures.axes(len(looks), 1, (2.1, 1.8))
    data = moons(300, seed=1)
    for ax, look in zip(axes[0], looks, strict=True):
        landscape(ax, look)
        ax.scatter(*look.buffer.T.numpy(), s=3, color="#ff725c", linewidths=0)
        ax.scatter(*data.T.numpy(), s=3, color="white", linewidths=0)
        ax.set_title(f"after {look.step:,} iterations" if look.step else "before the first iteration", fontsize=8)
    figures.save(figure, out, "how-training", kinds=("png",))


def energies(e: Tensor, out: Path) -> None:
    figure, axes = figures.axes(1, 1, (6.0, 2.0))
    smooth = e.T.unfold(1, 20, 20).mean(2).numpy()  # of 20 iterations each
    at = 10 + 20 * np.arange(smooth.shape[1])
    axes[0, 0].plot(at, smooth[0], label="E(x⁺), data")
    axes[0, 0].plot(at, smooth[1], label="E(x⁻), samples")
    axes[0, 0].set(xlabel="iteration", ylabel="mean energy")
    axes[0, 0].legend()
    figures.save(figure, out, "how-energies", kinds=("png",))


def chains(E: Callable[[Tensor], Tensor], look: Look, out: Path, steps: int) -> dict[str, Any]:
    """Three chains step by step, and where 2,000 of them end, beside data: moments, and the share on the moon at the
    right, which is the nearer of the two half circles; beside it what exp(-E) has there, added up over the plane."""
    g = torch.Generator().manual_seed(1)
    path = []
    run(KERNEL, E, torch.randn(3, 2, generator=g), 600, g, lambda k, state, _: path.append(state.x.clone()))
    ends = run(KERNEL, E, torch.randn(2_000, 2, generator=g), steps, g)[0].x
    data, walked = moons(20_000, seed=1), torch.stack(path)
    figure, axes = figures.axes(3, 1, (2.6, 2.1))
    for ax, title in zip(axes[0], ("three chains of 600 steps", f"ends of {len(ends):,} chains", "data"), strict=True):
        landscape(ax, look)
        ax.set_title(title, fontsize=8)
    for i, colour in enumerate(("#ff725c", "#ffffff", "#97bbf5")):
        axes[0, 0].plot(*walked[:, i].T.numpy(), color=colour, linewidth=0.6)
        axes[0, 0].scatter(*walked[0, i].numpy(), color=colour, s=14)
    axes[0, 1].scatter(*ends.T.numpy(), s=1.5, color="#ff725c", linewidths=0)
    axes[0, 2].scatter(*data[: len(ends)].T.numpy(), s=1.5, color="white", linewidths=0)
    figures.save(figure, out, "how-chains", kinds=("png",))
    with torch.no_grad():
        e = {"of data": E(data), "of N(0, 1)": E(torch.randn(2_000, 2, generator=g))}
        plane = torch.cartesian_prod(X, Y)
        p = torch.softmax(-E(plane), 0)
    return {
        of: {"mean": rounded(x.mean(0)), "standard deviation": rounded(x.std(0))}
        | {"share on the right": round(on_the_right(x).mean().item(), 3)}
        for of, x in (("data", data), ("samples", ends))
    } | {
        "exp(-E)": {"share on the right": round((p * on_the_right(plane)).sum().item(), 3)},
        "mean energy": {of: round(values.mean().item(), 3) for of, values in e.items()},
    }


def rounded(x: Tensor) -> list[float]:
    return [round(v, 3) for v in x.tolist()]


def on_the_right(x: Tensor) -> Tensor:
    """1 for each point that is nearer to the right moon's half circle, else 0."""
    t = torch.linspace(0, math.pi, 200)
    left, right = torch.stack([t.cos(), t.sin()], 1), torch.stack([1 - t.cos(), 0.5 - t.sin()], 1)
    return (torch.cdist(x, right).amin(1) < torch.cdist(x, left).amin(1)).float()


def digits(out: Path, steps: int, frames: int = 36) -> None:
    """Four chains of each digit from noise: a strip of one of each, their energies, and all of them moving."""
    ebm = igebm.load("digits")
    g, y = torch.Generator().manual_seed(0), torch.arange(40) % 10
    E, x = ebm.given(y), torch.rand(40, 1, 8, 8, generator=g)
    seen, e = [x], []

    def look(_: int, state: State, info: Info) -> None:
        seen.append(state.x)
        e.append(info.e)  # at the step's start

    run(build_kernel(ebm.model.preset), E, x, steps, g, look)
    pictures = quantise(torch.stack(seen)).movedim(2, -1).numpy()  # (steps + 1, 40, 8, 8, 1)
    at = np.unique(np.geomspace(1, steps + 1, 10).round().astype(int) - 1)
    strip = figures.pictures([pictures[at, i] for i in (0, 3, 5, 8)], [f"{k}" for k in at], ["0", "3", "5", "8"])
    figures.save(strip, out, "how-digits", kinds=("png",))
    test = load("digits", "test")
    real = ebm.energy(test.x, test.y).quantile(torch.tensor([0.05, 0.95])).tolist()
    figure, axes = figures.axes(1, 1, (6.0, 2.0))
    axes[0, 0].axhspan(*real, color="0.85", label="nine tenths of the test digits, each under its label")
    axes[0, 0].plot(torch.stack(e)[:, :10].numpy(), linewidth=0.8)
    axes[0, 0].set(xlabel="step", ylabel="E(x | y)", xscale="symlog")
    axes[0, 0].legend(fontsize=7)
    figures.save(figure, out, "how-digits-energy", kinds=("png",))
    moving = np.unique(np.geomspace(1, steps + 1, frames).round().astype(int) - 1)
    shown = [Image.fromarray(grid(pictures[k], columns=10, least=450)[..., 0]) for k in moving]
    with whole(out / "digits.gif") as temporary:
        shown[0].save(temporary, format="GIF", save_all=True, append_images=shown[1:] + [shown[-1]] * 20,
                      duration=80, loop=0)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=SHOWN[-1], help="training iterations, 20 or more")
    parser.add_argument("--chain", type=int, default=4_000, help="steps of the chains whose ends are counted")
    parser.add_argument("--out", type=Path, help="a folder for all of it; default: docs/ and results/")
    asked = parser.parse_args()
    out = asked.out or HERE / "docs"
    runtime, start = probe("cpu", "float32", "off", 1), time.perf_counter()
    E, looks, e = learn(asked.steps)
    training(looks, out)
    energies(e, out)
    found = chains(E, looks[-1], out, asked.chain)
    digits(out, 400)
    machine = circumstances(runtime, command="python docs/how_it_works.py")
    seconds = round(time.perf_counter() - start, 1)
    about = {"seed": 0, "steps": asked.steps, "chain": asked.chain} | found | {"seconds": seconds, "machine": machine}
    write_json((asked.out or HERE / "results") / "how-it-works.json", about)
    print(found)


if __name__ == "__main__":
    main()
