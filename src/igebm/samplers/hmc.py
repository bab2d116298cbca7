"""Hamiltonian Monte Carlo.  Duane et al., Phys. Lett. B 195 (1987), 216-222; Neal, arXiv:1206.1901, sections 2 and
5.5.1.5."""

from typing import Literal

import torch
from torch import Tensor

from ..energy import Energy, energy_and_grad
from ..errors import unknown
from .chain import Info, Kernel, State
from .metropolis import Point, accept, point


def leapfrog(
    E: Energy,
    at: Point,
    p: Tensor,
    step_size: float,
    steps: int,
    mass: float = 1.0,
    walls: tuple[float, float] | None = None,
) -> tuple[Point, Tensor]:
    """p ← p - (ε/2) ∇E(x);   x ← x + ε p/m;   p ← p - (ε/2) ∇E(x),   `steps` times (Neal, eqs. 2.28-2.30)

    `step_size` ε is in units of x √m; reversible and volume-preserving, with an energy error of order ε². At `walls`
    the free flight x + ε p/m is mirrored (Neal, 5.5.1.5), which keeps all three. Returns the end point and the end
    momentum.
    """
    for _ in range(steps):
        p = p - 0.5 * step_size * at.g
        x = at.x + step_size * p / mass
        if walls is not None:
            x, p = mirrored(x, p, *walls)
        at = Point(x, *energy_and_grad(E, x))
        p = p - 0.5 * step_size * at.g
    return at, p


def mirrored(x: Tensor, p: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Where a free flight that ended at x is once its entries bounce off the walls, with p turned at every bounce."""
    there = torch.remainder((x - low) / (high - low), 2.0)  # across and back again has length 2
    back = there > 1
    return low + (high - low) * torch.where(back, 2 - there, there), torch.where(back, -p, p)


def hmc(
    step_size: float,
    leapfrog_steps: int = 10,
    mass: float = 1.0,
    box: tuple[float, float] | None = None,
    wall: Literal["reject", "mirror"] = "reject",
) -> Kernel:
    """p ~ N(0, m I); leapfrog; accepted with probability min(1, e^(H - H')),   H = E(x) + ‖p‖² / 2m

    Samples e^(-E) exactly; in a `box`, trajectories that end outside are rejected, or mirrored at its walls: of a
    thousand pixels one is nearly always outside, so that in a box of many dimensions only mirrors move. An energy that
    is not a number rejects and counts as divergent. `leapfrog_steps` evaluations of E a step. Raises InputError for a
    wall that is neither.
    """
    if wall not in ("reject", "mirror"):
        raise unknown("wall", wall, ("reject", "mirror"))
    walls = box if wall == "mirror" else None

    def kernel(E: Energy, state: State, generator: torch.Generator | None) -> tuple[State, Info]:
        old = point(E, state)
        omega = torch.randn(old.x.shape, generator=generator, device=old.x.device, dtype=old.x.dtype)
        p = mass**0.5 * omega
        new, p_new = leapfrog(E, old, p, step_size, leapfrog_steps, mass, walls)
        log_ratio = (old.e + _kinetic(p, mass)) - (new.e + _kinetic(p_new, mass))
        return accept(E, old, new, log_ratio, box if walls is None else None, generator)

    return kernel


def _kinetic(p: Tensor, mass: float) -> Tensor:
    return p.square().flatten(1).sum(1) / (2 * mass)
