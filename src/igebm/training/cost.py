"""What a preset costs before it is run: parameters and floating-point operations, counted from the network itself."""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .. import presets
from ..data import Loader
from ..data.series import Windows
from ..energy import Energy, energy_and_grad
from ..errors import Fault
from ..model import build_kernel, build_net
from ..nets.bound import attached, frozen, sampled, updated
from ..nets.image import least_weights
from ..nets.trajectory import TrajectoryPredictor
from ..presets import Preset
from ..runtime import Runtime
from ..samplers import run
from ..samplers.chain import segment_length
from ..shapes import SeriesShape, Shape
from . import state as states
from .guard import Guard
from .loop import train_step


def cost(preset: Preset, shape: Shape | SeriesShape) -> dict[str, Any]:
    """Parameters; FLOP (2 per multiply-add, convolutions and matrix products) of one image in a chain step and in an
    update, and of a whole iteration: batch (K chain steps + the update on as many data as samples, and on data
    under other labels where they are asked for), with the second derivatives of the steps that L_KL goes through."""
    net = build_net(preset, shape)
    if isinstance(net, TrajectoryPredictor):
        update = _count(lambda: net(torch.rand(1, *_past(shape))).sum().backward())
        parameters = sum(p.numel() for p in net.parameters())
        return {
            "parameters": parameters, "flop_per_image_and_chain_step": 0, "flop_per_image_and_update": update,
            "flop_per_iteration": preset.batch * update,
        }  # fmt: skip
    x = torch.rand(1, *shape.item)
    y = torch.zeros(1, dtype=torch.long) if net.condition else None
    y = torch.rand(1, *_past(shape)) if isinstance(shape, SeriesShape) else y
    attached_steps = {"none": 0, "last": 1, "all": preset.chain_steps}[preset.kl]
    bound = frozen(net, y)  # folding and binding are done once a chain
    step = _count(lambda: energy_and_grad(_inner(bound), x))
    update = _count(lambda: attached(net, y)(x).sum().backward())
    through = _through(net, preset, x, y, attached_steps) if attached_steps else 0
    classes = len(shape.classes) if isinstance(shape, Shape) else 0
    others = min(preset.label_candidates, classes - 1 if classes else math.inf) if preset.label_weight else 0
    # Under one more label an image costs less: what comes before the first gain is at hand.
    label = 0
    if others and y is not None:
        twice = updated(net, torch.float32, compiled=False)(torch.cat([y, y]), (1, 1))
        label = _count(lambda: twice(x).sum().backward()) - update
    chain = (preset.chain_steps - attached_steps) * step + through
    return {
        "parameters": sum(p.numel() for p in net.parameters()),
        "flop_per_image_and_chain_step": step,
        "flop_per_image_and_update": update,
        "flop_per_iteration": preset.batch * (chain + 2 * update + others * label),
    }


FEW = 64
"""images that a chain step is timed on, at most: fewer would leave a processor less busy than training does"""


def time_here(
    preset: Preset, shape: Shape | SeriesShape, runtime: Runtime, flop: dict[str, Any], loader: Loader | Windows
) -> dict[str, Any]:
    """How long a run takes on this machine. On images by its operations (`flop` is of `cost`) at the rate of a chain's
    step: the best of a few, on a few images, warm. Nothing is compiled for it: where a run is, it takes less. On
    series, whose steps are too small for a rate, by whole iterations; empty where those leave the numbers."""
    if isinstance(loader, Windows):
        try:
            each = seconds_each(preset, shape, runtime, loader)
        except Fault:  # training will say of it what it can
            return {}
        return over_all(each, preset) | {"by": f"the best of {TIMED} iterations", "runtime": runtime.reason}
    assert isinstance(shape, Shape)
    net, n = build_net(preset, shape).to(runtime.device), min(FEW, preset.batch)
    twin = sampled(net, runtime.dtype, False if runtime.traced else runtime.compiled)
    x, y = torch.rand(n, *shape.item, device=runtime.device), None
    if net.condition:
        y = torch.zeros(n, dtype=torch.long) if shape.classes else torch.rand(n, shape.condition)
        y = y.to(runtime.device)
    E, kernel, seconds = twin.given(y), build_kernel(preset), []
    for _ in range(4):
        start = time.perf_counter()
        float(run(kernel, E, x, 2)[0].x.sum())  # a GPU is waited for
        seconds.append((time.perf_counter() - start) / (2 * n))
    each = min(seconds[1:]) / flop["flop_per_image_and_chain_step"] * flop["flop_per_iteration"]
    return over_all(each, preset) | {
        "by": f"a chain step on {n} images" + (", not compiled: compiled it takes less" if runtime.traced else ""),
        "runtime": runtime.reason,
    }


TIMED = 2
"""iterations on series that are timed, after one that warms up"""


def seconds_each(preset: Preset, shape: Shape | SeriesShape, runtime: Runtime, loader: Windows) -> float:
    """Seconds of an iteration on these data, by a new run's first ones, which goes no further. Raises Fault where its
    numbers are not finite."""
    state, guard, seconds = states.start(preset, shape, runtime, {}), Guard(math.inf), []
    for _ in range(1 + TIMED):
        start = time.perf_counter()
        train_step(state, loader, guard)  # its metrics are numbers, so that a GPU is waited for
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def over_all(each: float, preset: Preset) -> dict[str, float]:
    """Seconds of an iteration and hours of all that a run has, to three digits."""
    return {
        "seconds_per_iteration": float(f"{each:.3g}"),
        "hours": float(f"{each * preset.steps / 3600:.3g}"),
    }


def least_memory(preset: Preset, shape: Shape | SeriesShape) -> int:
    """A lower bound of the bytes that training takes: the weights with their gradient, average, moments and twin; the
    first block's pictures of data and samples, which the update keeps; and the buffer. 0 for series."""
    if isinstance(shape, SeriesShape):
        return 0
    blocks, half = presets.parse_blocks(preset.blocks), 1 if preset.stem == "3x3" else 2
    condition = shape.condition if preset.conditional else 0
    weights = least_weights(preset.width, blocks, condition, preset.scales)
    pixels = (shape.height // half) * (shape.width // half)
    pictures = 2 * preset.batch // preset.accumulate * pixels * preset.width * (1 + blocks[0][0])
    return 6 * 4 * weights + 4 * pictures + preset.buffer_size * math.prod(shape.image)


def _past(shape: Shape | SeriesShape) -> tuple[int, int]:
    assert isinstance(shape, SeriesShape)
    return shape.past, len(shape.features)


def _through(net: nn.Module, preset: Preset, x: Tensor, y: Tensor | None, steps: int) -> int:
    """Of L_KL: so many steps with their graph, E of their end, and back through all of it. Each step beyond the first
    costs what the second adds, and one more gradient where a long chain is run again in the backward pass."""

    def of(k: int) -> int:
        end = lambda: run(build_kernel(preset), _inner(attached(net, y)), x, k, differentiate="all")[0].x
        return _count(lambda: frozen(net, y)(end()).sum().backward())

    one, recomputed = of(1), preset.network == "image" and segment_length(steps) > 1
    again = _count(lambda: energy_and_grad(_inner(attached(net, y)), x, create_graph=True)) if recomputed else 0
    return one + (steps - 1) * ((of(2) - one) if steps > 1 else 0) + (steps + recomputed) * again


def _inner(E: Energy) -> Energy:
    """The same energy. torch's counter hooks onto what a module is given, which must not be where autograd ends."""
    return lambda x: E(1 * x)


def _count(f: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        f()
    return counter.get_total_flops()
