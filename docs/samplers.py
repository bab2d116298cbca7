"""One two-dimensional density under every sampler, for the page on choosing one: `python docs/samplers.py`.

The target is two crescents, whose moments are known by quadrature. Every kernel gets the same number of evaluations of
E for each of its chains. Writes docs/samplers.png and results/samplers.json, or both into --out.
"""

import argparse
import math
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from igebm.circumstances import circumstances
from igebm.files import write_json
from igebm.report import figures
from igebm.runtime import probe
from igebm.samplers import Kernel, hmc, langevin, mala, mppi, run

HERE = Path(__file__).resolve().parents[1]
SIDE, CELLS = 4.0, 16
"""the plane is looked at on [-SIDE, SIDE]², and counted in CELLS x CELLS cells"""
START = (2.0, 0.0)
"""all chains start on the right crescent, so that the share on the left tells how well they mix: in truth a half"""


def crescents(x: Tensor) -> Tensor:
    """E(x) = ½ ((‖x‖ - 2) / 0.4)² - log(e^(-½ ((x₁ - 2) / 0.8)²) + e^(-½ ((x₁ + 2) / 0.8)²))

    (after U₁ of Rezende & Mohamed, arXiv:1505.05770, Table 1, which has 0.6 for 0.8)
    """
    ring = 0.5 * ((x.norm(dim=1) - 2) / 0.4).square()
    sides = torch.stack([-0.5 * ((x[:, 0] - s) / 0.8).square() for s in (2.0, -2.0)])
    return ring - torch.logsumexp(sides, 0)


class Row(NamedTuple):
    """A kernel, how often it evaluates E in one step, and what is said of it."""

    name: str
    kernel: Kernel
    evaluations: int
    settings: str


ROWS = (
    Row("Langevin, T = 1", langevin(0.05, math.sqrt(2 * 0.05)), 1, "η 0.05, σ = √(2η)"),
    Row("Langevin, cold", langevin(0.05, 0.005), 1, "η 0.05, σ 0.005"),
    Row("MALA", mala(0.15), 1, "η 0.15"),
    Row("HMC", hmc(0.25, 8), 8, "ε 0.25, 8 leapfrog steps"),
    Row("MPPI", mppi(5, 0.3), 5, "5 candidates, σ 0.3"),
)


def truth(fine: int = 50) -> tuple[Tensor, float]:
    """The probability of each cell, and ⟨E⟩, by the midpoint rule on fine x fine points a cell."""
    n = CELLS * fine
    axis = (torch.arange(n, dtype=torch.float64) + 0.5) / n * 2 * SIDE - SIDE
    e = crescents(torch.cartesian_prod(axis, axis)).reshape(n, n)
    p = (-e).exp() / (-e).exp().sum()
    return p.reshape(CELLS, fine, CELLS, fine).sum((1, 3)), (p * e).sum().item()


def histogram(x: Tensor) -> Tensor:
    """The share of points in each cell; what lies outside of the plane looked at counts for none."""
    cell = ((x + SIDE) / (2 * SIDE) * CELLS).floor().long()
    inside = ((cell >= 0) & (cell < CELLS)).all(1)
    flat = cell[inside, 0] * CELLS + cell[inside, 1]
    return torch.bincount(flat, minlength=CELLS**2).reshape(CELLS, CELLS).double() / len(x)


def total_variation(p: Tensor, q: Tensor) -> float:
    return 0.5 * (p - q).abs().sum().item()


def measure(row: Row, chains: int, evaluations: int, p: Tensor) -> tuple[dict, Tensor, Tensor]:
    """A kernel's numbers, the ends of its chains, and the way of the first chain."""
    generator = torch.Generator().manual_seed(0)
    x = torch.tensor(START, dtype=torch.float64) + 0.1 * torch.randn(
        chains, 2, dtype=torch.float64, generator=generator
    )
    path, accepted = [x[0]], []

    def note(k: int, state, info) -> None:
        path.append(state.x[0])
        if info.accept_prob is not None:
            accepted.append(info.accept_prob.mean().item())

    start = time.perf_counter()
    steps = evaluations // row.evaluations
    end = run(row.kernel, crescents, x, steps, generator, note)[0].x
    numbers = {
        "kernel": row.name,
        "settings": row.settings,
        "steps": steps,
        "evaluations": steps * row.evaluations,
        "mean_energy": round(crescents(end).mean().item(), 3) + 0.0,
        "total_variation": round(total_variation(histogram(end), p), 3),
        "acceptance": round(sum(accepted) / len(accepted), 3) if accepted else None,
        "share_on_the_left": round((end[:, 0] < 0).double().mean().item(), 3),
        "seconds": round(time.perf_counter() - start, 2),
    }
    return numbers, end, torch.stack(path)


def describe(numbers: dict) -> str:
    return f"⟨E⟩ {numbers['mean_energy']:.2f}, left {numbers['share_on_the_left']:.2f}\n{numbers['settings']}"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--out", type=Path, help="folder for both files; default: docs and results")
    options.add_argument("--chains", type=int, default=4_000)
    options.add_argument("--evaluations", type=int, default=1_000, help="of E, for each chain")
    asked = options.parse_args()
    torch.set_num_threads(1)
    p, mean_energy = truth()
    exact = torch.multinomial(p.flatten(), asked.chains, True, generator=torch.Generator().manual_seed(0))
    floor = torch.bincount(exact, minlength=CELLS**2).reshape(CELLS, CELLS).double() / asked.chains
    figure, panels = figures.axes((len(ROWS) + 1) // 2, 2, size=(2.5, 2.75))
    axis = torch.linspace(-SIDE, SIDE, 161, dtype=torch.float64)
    e = crescents(torch.cartesian_prod(axis, axis)).reshape(161, 161)
    rows = []
    for ax, row in zip(panels.flat, (None, *ROWS), strict=True):
        ax.contour(axis, axis, (-e).exp().T, levels=5, colors="0.6", linewidths=0.6)
        ax.set(xlim=(-3.5, 3.5), ylim=(-3.5, 3.5), aspect="equal", xticks=[], yticks=[])
        if row is None:
            ax.contourf(axis, axis, (-e).exp().T, levels=20, cmap="Blues")
            ax.set(title="target", xlabel=f"⟨E⟩ {mean_energy:.2f}, left 0.50")
            continue
        numbers, end, path = measure(row, asked.chains, asked.evaluations, p)
        rows.append(numbers)
        ax.scatter(*end[:1500].T, s=1.5, alpha=0.5, linewidths=0)
        ax.plot(*path[-100:].T, color=figures.COLOURS[1], linewidth=0.7)
        ax.set(title=row.name, xlabel=describe(numbers))
    figures.save(figure, asked.out or HERE / "docs", "samplers", kinds=("png",))
    about = {
        "what": "one two-dimensional density under every kernel, the same number of evaluations of E for each chain",
        "target": {
            "mean_energy": round(mean_energy, 3),
            "share_on_the_left": 0.5,
            "total_variation_of_exact_draws": round(total_variation(floor, p), 3),
        },
        "chains": asked.chains,
        "rows": rows,
        "machine": circumstances(probe("cpu", "float32", "off", 1), "python docs/samplers.py"),
    }
    write_json((asked.out or HERE / "results") / "samplers.json", about)


if __name__ == "__main__":
    main()
