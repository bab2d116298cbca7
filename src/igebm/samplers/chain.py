"""The one loop over MCMC steps, and what a kernel is.

A kernel takes an energy and a state and returns the next state and what a reader may want to know of the step:

    state, info = kernel(E, state, generator)

Kernels are made by `langevin(...)`, `mala(...)`, `hmc(...)`, `mppi(...)`; to change one, wrap it (`masked`).
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import Node

from ..energy import Energy
from ..errors import InputError, unknown


class State(NamedTuple):
    """What the next step needs: positions x (B, *shape), and E(x) (B,) and ∇E(x) where the kernel has them at hand."""

    x: Tensor
    e: Tensor | None = None
    g: Tensor | None = None
    of: Energy | None = None
    """the energy whose e and g these are: on another one they are worked out anew"""


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
    gave (of another energy, too: what it says of E(x) is then left aside).

    `record(k, state, info)` is called after each step k = 1..steps: traces, thinning and animations are made of it.
    10 + 10 steps are the same chain as 20, bit for bit, with one generator going through both.

    `differentiate` lets gradients flow through the chain into x and into what E closes over (L_KL, eq. 9): through
    no step, the last one alone, or all. Memory then grows with the number of steps; with `recompute` = m only every
    m-th state is kept and the steps between are run again in the backward pass, with the same noise: m ≈ √steps
    keeps the least (`record` sees no step of a recomputed segment but the last; gradients reach x and the leaves that
    E closes over, once).

    Returns the last state and the last step's info. Raises InputError for a negative number of steps, for another
    word than these, where no gradient flows through a chain that is to be differentiated, and for an energy that gives
    not one number an item.
    """
    if differentiate not in ("none", "last", "all"):
        raise unknown("differentiate", differentiate, ("none", "last", "all"))
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
    if attached and recompute > 1 and generator is None:  # noise that is drawn twice needs a start of its own
        generator = torch.Generator(state.x.device).manual_seed(int(torch.randint(2**62, ())))
    with torch.enable_grad():
        leaves = leaves_of(kernel, E, state.x, generator) if attached and recompute > 1 else None
        for k in range(steps - attached, steps, max(1, recompute)):
            m = min(max(1, recompute), steps - k)
            if leaves is None:
                state, info = kernel(E, state, generator)
            else:
                state, info = _segment(kernel, E, state, m, generator, leaves)
            if record:
                record(k + m, state, info)
    if attached and not state.x.requires_grad:
        raise InputError(NO_GRADIENT)
    return state, info


NO_GRADIENT = (
    "no gradient flows through this chain: MALA and HMC carry none (use langevin or mppi), or nothing needs one"
)


def global_random(device: torch.device) -> Tensor:
    """The state of torch's own generator of a device."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


@contextmanager
def as_it_stood(state: Tensor | None, device: torch.device) -> Iterator[None]:
    """torch's own generator set to `state` within, and where it was before after it; None: left alone."""
    if state is None:
        yield
        return
    put = torch.set_rng_state if device.type == "cpu" else partial(torch.cuda.set_rng_state, device=device)
    before = global_random(device)
    put(state)
    try:
        yield
    finally:
        put(before)


def leaves_of(kernel: Kernel, E: Energy, x: Tensor, generator: torch.Generator | None) -> list[Tensor]:
    """The leaves of autograd's graph that a step from x depends on beside x: the parameters that E closes over, by
    whatever way (a folded kernel is a function of its weights). Raises InputError where no gradient would flow."""
    start = x.detach().requires_grad_()
    with as_it_stood(global_random(x.device), x.device):
        end = kernel(E, State(start), None if generator is None else generator.clone_state())[0].x
    todo: list[Node | None] = [end.grad_fn]
    seen: set[Node | None] = {None}
    leaves: list[Tensor] = []
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        if isinstance(leaf := getattr(node, "variable", None), Tensor) and leaf is not start:  # AccumulateGrad's
            leaves.append(leaf)
        todo += [earlier for earlier, _ in node.next_functions]  # type: ignore[union-attr]
    if end.grad_fn is None or not (leaves or x.requires_grad):
        raise InputError(NO_GRADIENT)
    return leaves


class Segment(torch.autograd.Function):
    """Steps of a chain of which the first state alone is kept: `steps(x)` is run in the forward pass without a graph,
    and once more with one in the backward pass.

    torch.utils.checkpoint keeps more here than no checkpoint at all: each step takes a gradient of its own within.
    """

    @staticmethod
    def forward(ctx: Any, steps: Callable[[Tensor], Tensor], x: Tensor, *leaves: Tensor) -> Tensor:
        ctx.steps = steps
        ctx.save_for_backward(x, *leaves)
        return steps(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, *leaves = ctx.saved_tensors
        _, *needed = ctx.needs_input_grad
        x = x.detach().requires_grad_(needed[0])
        with torch.enable_grad():
            end = ctx.steps(x)
        wanted = [t for t, need in zip((x, *leaves), needed, strict=True) if need]
        # What E made of its leaves before the chain is gone through by every segment, so its graph is kept.
        found = iter(torch.autograd.grad(end, wanted, above, retain_graph=True, allow_unused=True))
        return None, *(next(found) if need else None for need in needed)


def _segment(
    kernel: Kernel, E: Energy, state: State, steps: int, generator: torch.Generator | None, leaves: list[Tensor]
) -> tuple[State, Info]:
    """`steps` steps by `Segment`: the first time with the chain's generator, again with one that stands where it
    stood. torch's own generator, which dropout draws from, is set back for it likewise."""
    start, first = None if generator is None else generator.clone_state(), Info()
    global_start, done = global_random(state.x.device), False

    def again(x: Tensor) -> Tensor:
        nonlocal first, done
        random = generator if not done or start is None else start.clone_state()
        s, info = State(x), Info()
        with as_it_stood(global_start if done else None, x.device):
            for _ in range(steps):
                s, info = kernel(E, s, random)
        first, done = (first if done else info), True
        return s.x

    x = Segment.apply(again, state.x, *leaves)
    return State(x), first


def segment_length(steps: int) -> int:
    """√steps: the `recompute` that keeps the fewest states, kept and recomputed together."""
    return max(1, math.isqrt(max(0, steps - 1)) + 1) if steps > 3 else 1
