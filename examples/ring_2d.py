"""A ring in two dimensions, learned by a small network: the whole method in thirty lines, with its picture.

E is pushed down on points of the ring and up on samples that Langevin dynamics draws from E itself (contrastive
divergence, eq. 3), which wait in a replay buffer between iterations. The chain is exact to first order in its step η,
with noise √(2η), so that samples follow e^(-E) at temperature 1 and can be compared with the data number by number.
"""

import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import tyro
from torch import nn

from igebm.buffer import Buffer
from igebm.objectives import contrastive
from igebm.samplers import langevin, run


def ring(n: int) -> torch.Tensor:
    angle, radius = 2 * math.pi * torch.rand(n), 1 + 0.1 * torch.randn(n)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1)


def main(steps: int = 2_000, chain: int = 2_000, out: Path = Path("ring_2d.png")) -> dict[str, float]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))
    E = lambda x: net(x)[:, 0] + 0.5 * x.square().sum(1)  # the square holds the tails
    kernel = langevin(step_size=1e-3, noise=math.sqrt(2e-3))
    buffer, g = Buffer(1_000, (2,), dtype=torch.float32), torch.Generator().manual_seed(0)
    adam = torch.optim.Adam(net.parameters(), lr=1e-3, betas=(0.0, 0.999))
    cooling = torch.optim.lr_scheduler.CosineAnnealingLR(adam, max(1, steps))
    for _ in range(steps):
        start = buffer.draw(torch.randn(256, 2, generator=g), None, restart=0.02, host=g)
        x_neg = run(kernel, E, start.x, 20, g)[0].x
        buffer.write(start.slots, x_neg, None)
        loss = contrastive(E(ring(256)), E(x_neg))
        adam.zero_grad()
        loss.backward()
        adam.step()
        cooling.step()
    x = run(kernel, E, torch.randn(2_000, 2, generator=g), chain, g)[0].x  # fresh chains, from noise
    radius = {"data": ring(100_000).norm(dim=1), "samples": x.norm(dim=1)}
    found = {f"{of} {name}": round(f(r).item(), 3) for of, r in radius.items()
             for name, f in (("mean radius", torch.mean), ("spread", torch.std))}  # fmt: skip
    print(found)
    draw(E, x, out)
    return found


def draw(E, x: torch.Tensor, out: Path) -> None:
    t = torch.linspace(-1.6, 1.6, 200)
    with torch.no_grad():
        e = E(torch.cartesian_prod(t, t)).reshape(200, 200).T
    figure, axes = plt.subplots(1, 2, figsize=(7, 3.4), sharey=True)
    axes[0].contourf(t, t, e - e.min(), torch.linspace(0, 10, 21), extend="max")
    axes[0].set(title="E", aspect="equal")
    axes[1].scatter(*x.T, s=2)
    axes[1].set(title="samples from noise", aspect="equal", xlim=(-1.6, 1.6), ylim=(-1.6, 1.6))
    figure.tight_layout()
    figure.savefig(out, dpi=100)


if __name__ == "__main__":
    tyro.cli(main)
