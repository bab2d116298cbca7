"""The Metropolis-adjusted Langevin algorithm: exact at any step size.  Roberts & Tweedie, Bernoulli 2 (1996),
341-363."""

import math

import torch
from torch import Tensor

from ..energy import Energy, energy_and_grad
from .chain import Info, Kernel, State
from .metropolis import Point, accept, point


def mala(step_size: float, box: tuple[float, float] | None = None) -> Kernel:
    """x' = x - η ∇E(x) + √(2η) ω,   accepted with probability min(1, e^(-E(x')) q(x | x') / (e^(-E(x)) q(x' | x)))

    where log q(b | a) = -‖b - a + η ∇E(a)‖² / 4η + const. Samples e^(-E) itself (temperature 1). `step_size` η is in
    units of x². In a `box`, proposals outside are rejected: the target is e^(-E) on the box. One evaluation of E a
    step.
    """

    def kernel(E: Energy, state: State, generator: torch.Generator | None) -> tuple[State, Info]:
        old = point(E, state)
        omega = torch.randn(old.x.shape, generator=generator, device=old.x.device, dtype=old.x.dtype)
        x = _drift(old, step_size) + math.sqrt(2 * step_size) * omega
        new = Point(x, *energy_and_grad(E, x))
        log_ratio = old.e - new.e + _log_q(old.x, new, step_size) - _log_q(new.x, old, step_size)
        return accept(E, old, new, log_ratio, box, generator)

    return kernel


def _drift(a: Point, eta: float) -> Tensor:
    return a.x - eta * a.g


def _log_q(b: Tensor, a: Point, eta: float) -> Tensor:
    return -(b - _drift(a, eta)).square().flatten(1).sum(1) / (4 * eta)
