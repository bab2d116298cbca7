"""The one loop over MCMC steps, and what a kernel is.

A kernel takes an energy and a state and returns the next state and what a reader may want to know of the step:

    state, info = kernel(E, state, generator)

Kernels are made by `langevin(...)`, `mala(...)`, `hmc(...)`, `mppi(...)`; to change one, wrap it (`masked`).
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..energy import Energy
from ..errors import InputError


class State(NamedTuple):
    """What the next step needs: positions x (B, *shape), and E(x) (B,) and ∇E(x) where the kernel has them at hand."""

    x: Tensor
    e: Tensor | None = None
    g: Tensor | None = None


class Info(NamedTuple):
    """What a diagnostic may want of one step; each is (B,) or (B, *shape), None where the kernel has no such thing."""

    e: Tensor | None = None
    """E where it was evaluated: at the step's start (Langevin), at its end (MALA, HMC), averaged over candidates
    (MPPI)"""
    g: Tensor | None = None
    """∇E at the same place, before any clipping"""
    accept_prob: Tensor | None = None
    """min(1, acceptance ratio); 0 where the proposal was divergent"""
    divergent: Tensor | None = None
    """the proposal's energy was not a number, or its energy error beyond all use (Hamiltonian error over 1000)"""


Kernel = Callable[[Energy, State, torch.Generator | None], tuple[State, Info]]
Record = Callable[[int, State, Info], None]


def run(
    kernel: Kernel,
    E: Energy,
    x: Tensor | State,
    steps: int,
    generator: torch.Generator | None = None,
    record: Record | None = None,
    differentiate: Literal["none", "last", "all"] = "none",
    recompute: int = 1,
) -> tuple[State, Info]:
    """Run `steps` steps of `kernel` on the energy `E` from `x` (B, *shape), or on from a State that an earlier run
    gave.

    `record(k, state, info)` is called after each step k = 1..steps: traces, thinning and animations are made of it.
    10 + 10 steps are the same chain as 20, bit for bit, with one generator going through both.

    `differentiate` lets gradients flow through the chain into x and into what E closes over (L_KL, eq. 9): through
    no step, the last one alone, or all. Memory then grows with the number of steps; with `recompute` = m only every
    m-th state is kept and the steps between are run again in the backward pass, with the same noise: m ≈ √steps
    keeps the least (`record` sees no step of a recomputed segment but the last).

    Returns the last state and the last step's info.
    """
    if steps < 0:
        raise InputError(f"the number of steps must not be negative, got {steps}")
    state = x if isinstance(x, State) else State(x)
    attached = {"none": 0, "last": min(1, steps), "all": steps}[differentiate]
    info = Info()
    for k in range(1, steps - attached + 1):
        with torch.no_grad():
            state, info = kernel(E, state, generator)
        if record:
            record(k, state, info)
    k = steps - attached
    while k < steps:
        m = min(recompute, steps - k)
        state, info = _attached(kernel, E, state, m, generator)
        k += m
        if record:
            record(k, state, info)
    return state, info


def _attached(
    kernel: Kernel, E: Energy, state: State, steps: int, generator: torch.Generator | None
) -> tuple[State, Info]:
    """`steps` steps that gradients flow through; where there are several, all but the last state are recomputed in
    backward."""
    start = generator.get_state() if generator is not None else None
    ends = []

    def segment(x: Tensor) -> tuple[State, Info]:
        # A private generator, set to where the chain's stood, so that the recomputation draws the same noise again.
        private = None
        if generator is not None and start is not None:
            private = torch.Generator(generator.device)
            private.set_state(start)
        s, info = State(x), Info()
        for _ in range(steps):
            s, info = kernel(E, s, private)
        ends.append(private.get_state() if private is not None else None)
        return State(s.x), info

    with torch.enable_grad():
        # Without a generator the kernels draw from torch's global one, which `checkpoint` itself restores.
        result = segment(state.x) if steps == 1 else checkpoint(segment, state.x, use_reentrant=False)
    if generator is not None:
        generator.set_state(ends[0])
    if not result[0].x.requires_grad:  # type: ignore[index]
        raise InputError(
            "no gradient flows through this chain: MALA and HMC carry none (use langevin or mppi), or nothing needs one"
        )
    return result  # type: ignore[return-value]


def segment_length(steps: int) -> int:
    """√steps: the `recompute` that keeps the fewest states, kept and recomputed together."""
    return max(1, math.isqrt(max(0, steps - 1)) + 1) if steps > 3 else 1
