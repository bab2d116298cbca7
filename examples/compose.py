"""Energies combined: the bundled digits' classes multiplied, subtracted, mixed.

Rows of the picture: p(x | 3); p(x | 3) p(x | 8), what is both; p(x | 3) / p(x | 8)^0.2, a 3 that is no 8; and
p(x | 0) + p(x | 1), either. One kernel samples them all, for a composition is an energy. A product needs no scale, but
what a mixture adds are densities e^(-E/T): T is the temperature that the model's chains sample at.
"""

from pathlib import Path

import torch
import tyro

import igebm
from igebm.compose import mixture, negation, product, tempered
from igebm.diagnostics import temperature
from igebm.model import build_kernel
from igebm.samplers import run


def main(steps: int = 400, n: int = 12, out: Path = Path("compose.png")) -> dict[str, torch.Tensor]:
    ebm = igebm.load("digits")
    kernel = build_kernel(ebm.model.preset)
    T = temperature(ebm.model.preset.step_size, ebm.model.preset.noise)
    three, eight, zero, one = (ebm.given(label) for label in ("3", "8", "0", "1"))
    energies = {
        "3": three,
        "3 and 8": product(three, eight),
        "3 and not 8": negation(three, eight, 0.2),
        "0 or 1": tempered(mixture(tempered(zero, 1 / T), tempered(one, 1 / T)), T),
    }
    found = {}
    for name, E in energies.items():
        g = torch.Generator().manual_seed(0)
        x = run(kernel, E, torch.rand(n, *ebm.shape, generator=g), steps, g)[0].x
        found[name] = x
        means = ", ".join(f"E(x | {label}) {ebm.energy(x, label).mean():.4f}" for label in ("3", "8", "0", "1"))
        print(f"{name:>11}: {means}")
    ebm.picture(torch.cat(list(found.values())), n).save(out)
    return found


if __name__ == "__main__":
    tyro.cli(main)
