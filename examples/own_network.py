"""A network of your own: any torch module that gives one number an image, trained on the digits in a loop of your own.

Nothing of igebm's networks is used: a few strided convolutions with Swish, no spectral norm. What keeps it steady is
the squares of the energies (eq. 10) and small Langevin steps that are bounded.
"""

from pathlib import Path

import torch
import tyro
from PIL import Image
from torch import nn

from igebm import data
from igebm.buffer import Buffer
from igebm.objectives import contrastive, regulariser
from igebm.report.plots import grid
from igebm.samplers import langevin, run


class Mine(nn.Module):
    def __init__(self, width: int = 16):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.SiLU(),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1), nn.SiLU(),
            nn.Conv2d(2 * width, 2 * width, 4, stride=2, padding=1), nn.SiLU(),
            nn.Flatten(), nn.Linear(2 * width * 4, 1),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, 1, 8, 8) -> (B,)
        return self.layers(x)[:, 0]


def main(steps: int = 600, out: Path = Path("own_network.png")) -> dict[str, float]:
    torch.manual_seed(0)
    E = Mine()
    loader = data.Loader(data.load("digits"), batch=64, seed=0)
    kernel = langevin(step_size=10.0, noise=0.005, clip=0.01, box=(0.0, 1.0))
    buffer, g = Buffer(1_000, (1, 8, 8)), torch.Generator().manual_seed(0)
    adam = torch.optim.Adam(E.parameters(), lr=1e-3, betas=(0.0, 0.999))
    for k in range(steps):
        x_pos, _ = loader(64 * k, g)
        start = buffer.draw(torch.rand(64, 1, 8, 8, generator=g), None, restart=0.05, host=g, device=g)
        E.requires_grad_(False)  # a chain needs the gradient in x alone
        x_neg = run(kernel, E, start.x, 20, g)[0].x
        E.requires_grad_(True)
        buffer.write(start.slots, x_neg, None, g)
        e_pos, e_neg = E(x_pos), E(x_neg)
        loss = contrastive(e_pos, e_neg) + regulariser(e_pos, e_neg, alpha=0.3)
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(E.parameters(), 0.1)
        adam.step()
    E.requires_grad_(False)
    x, _ = buffer.read(64, g)
    held = data.load("digits", "test")
    test = data.dequantise(torch.from_numpy(held.x).permute(0, 3, 1, 2), g)
    found = {"test digits": E(test).mean().item(), "noise": E(torch.rand(500, 1, 8, 8, generator=g)).mean().item()}
    print("mean energy: " + ", ".join(f"{name} {e:.3f}" for name, e in found.items()))
    canvas = grid(data.quantise(x).permute(0, 2, 3, 1).numpy(), 16)
    Image.fromarray(canvas[..., 0]).save(out)
    return found


if __name__ == "__main__":
    tyro.cli(main)
