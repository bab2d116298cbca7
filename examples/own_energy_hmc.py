"""An energy of your own, sampled by Hamiltonian Monte Carlo, and its moments checked.

Any callable x (B, d) -> (B,) is an energy. This one is a banana: x₁ ~ N(0, 1) and x₂ given x₁ ~ N(x₁², ½²), so that
⟨x₁⟩ = 0, ⟨x₂⟩ = 1, Var x₁ = 1, Var x₂ = Var x₁² + ¼ = 2.25 and Cov(x₁, x₂) = ⟨x₁³⟩ = 0. HMC leaves it exactly as it is.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import torch
import tyro

from igebm.samplers import hmc, run

TRUE = {"mean of x1": 0.0, "mean of x2": 1.0, "variance of x1": 1.0, "variance of x2": 2.25, "covariance": 0.0}


def banana(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x[:, 0] ** 2 + (x[:, 1] - x[:, 0] ** 2) ** 2 / (2 * 0.5**2)


def main(steps: int = 200, chains: int = 4_000, out: Path = Path("own_energy_hmc.png")) -> dict[str, float]:
    g, accepted = torch.Generator().manual_seed(0), []
    start = torch.randn(chains, 2, generator=g)
    end, _ = run(hmc(0.1, 15), banana, start, steps, g, lambda k, state, info: accepted.append(info.accept_prob.mean()))
    x, mean, cov = end.x, end.x.mean(0), torch.cov(end.x.T)
    found = dict(zip(TRUE, torch.stack([*mean, cov[0, 0], cov[1, 1], cov[0, 1]]).tolist(), strict=True))
    print(f"{chains} chains of {steps} steps, {torch.stack(accepted).mean():.2f} accepted")
    for name, value in found.items():
        print(f"{name:>15}: {value:6.3f}, should be {TRUE[name]}")
    figure, axes = plt.subplots(figsize=(4, 4))
    axes.scatter(*x.T, s=1)
    axes.set(xlabel="$x_1$", ylabel="$x_2$", title="4,000 chains' ends" if chains == 4_000 else "chains' ends")
    figure.tight_layout()
    figure.savefig(out, dpi=100)
    return found


if __name__ == "__main__":
    tyro.cli(main)
