"""What keeps a GPU at work: CUDA graphs, and copies that do not wait.

A hundred small kernels take a GPU less time than a processor needs to ask for them one by one. What is asked again and
again is recorded once and then launched as one piece: it reads and writes the same memory each time, storage that is
used in place (weights) and inputs that are copied to it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def _captured(
    f: Callable[[], Any], device: torch.device, generator: torch.Generator | None = None
) -> tuple[torch.cuda.CUDAGraph, Any]:
    """A graph of f(), and what f returned while it was recorded: where the graph puts its results."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device):
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        random = torch.cuda.get_rng_state(device)
        with torch.cuda.stream(aside):
            for _ in range(3):  # compile, and let libraries choose their algorithms: neither can be recorded
                f()
        torch.cuda.set_rng_state(random, device)  # f has drawn nothing yet
        if generator is not None:
            graph.register_generator_state(generator)
        # Its own stream: torch's for this purpose is of the device that recorded first.
        with torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
            results = f()
        torch.cuda.current_stream().wait_stream(aside)
    return graph, results


class Recorded:
    """f(x, generator) -> tensors, for one shape of x, as one graph.

    What f reads beside x lies where it was recorded; `bind(key)` puts there what a call with another key wants. Random
    numbers are those that f would have drawn from the generator of the call, which goes on as if it had.
    """

    def __init__(
        self,
        f: Callable[[Tensor, torch.Generator | None], tuple[Tensor, ...]],
        bind: Callable[[Any], None],
        x: Tensor,
        generator: torch.Generator | None,
    ):
        self.bind, self.bound, self.x = bind, None, x.clone()
        self.generator = None if generator is None else torch.Generator(x.device)
        self.graph, self.results = _captured(lambda: f(self.x, self.generator), x.device, self.generator)

    def __call__(self, key: Any, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        self.x.copy_(x)
        if self.bound is not key:  # a chain keeps its labels for all its steps
            self.bind(key)
            self.bound = key
        if self.generator is not None and generator is not None:
            if self.generator.initial_seed() != generator.initial_seed():
                self.generator.manual_seed(generator.initial_seed())
            self.generator.set_offset(generator.get_offset())
        self.graph.replay()
        if self.generator is not None and generator is not None:
            generator.set_offset(self.generator.get_offset())
        return tuple(t.clone() for t in self.results)  # the next replay writes to the same place


def in_place(f: Callable[[], None], device: torch.device, changed: Sequence[Tensor] = ()) -> Callable[[], None]:
    """`f`, which changes storage that stays where it is, as a graph from its first call on; on a CPU `f` itself.
    `changed` is what of it is not the same after doing it twice: recording does f a few times, and puts these back."""
    if device.type != "cuda":
        return f
    graph: torch.cuda.CUDAGraph | None = None

    def again() -> None:
        nonlocal graph
        if graph is None:
            before = [t.clone() for t in changed]
            graph, _ = _captured(f, device)
            for t, was in zip(changed, before, strict=True):
                t.copy_(was)
        graph.replay()

    return again


def sent(t: Tensor, device: torch.device | str) -> Tensor:
    """A CPU's `t` on `device`, after what a GPU was asked for before, but without waiting for it."""
    if torch.device(device).type != "cuda":
        return t.to(device)
    return t.pin_memory().to(device, non_blocking=True)
