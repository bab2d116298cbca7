"""CUDA graphs: what is asked of a GPU again and again, recorded once and then launched as one piece.

A hundred small kernels take a GPU less time than a processor needs to ask for them one by one. What is recorded reads
and writes the same memory each time: storage that is used in place (weights), and inputs that are copied to it.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def _captured(f: Callable[[], object], device: torch.device, generator: torch.Generator | None = None):
    """A graph of f(), and what f returned while it was recorded: where the graph puts its results."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device):
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):  # compile, and let libraries choose their algorithms: neither can be recorded
                f()
        torch.cuda.current_stream().wait_stream(aside)
        if generator is not None:
            graph.register_generator_state(generator)
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            results = f()
    return graph, results


class Recorded:
    """f(x, generator) -> tensors, for one shape of x, as one graph.

    `fixed` is what f reads beside x: where a call's own differ they are copied there first. Random numbers are those
    that f would have drawn from the generator of the call, which goes on as if it had.
    """

    def __init__(
        self,
        f: Callable[[Tensor, torch.Generator | None], tuple[Tensor, ...]],
        fixed: list[Tensor],
        x: Tensor,
        generator: torch.Generator | None,
    ):
        self.fixed, self.bound, self.x = fixed, None, x.clone()
        self.generator = None if generator is None else torch.Generator(x.device)
        self.graph, self.results = _captured(lambda: f(self.x, self.generator), x.device, self.generator)

    def __call__(self, fixed: list[Tensor], x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        self.x.copy_(x)
        if self.bound is not fixed:  # a chain keeps its labels for all its steps
            torch._foreach_copy_(self.fixed, fixed)
            self.bound = fixed
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
