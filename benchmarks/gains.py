"""Where the speed of a Langevin step comes from: one change after the other, from the plain reference to what runs, and
what was tried beside and is not the default here: `python benchmarks/gains.py --name MACHINE`.

Figure 14a on 32x32 images, ms per image and step, the best of several runs, all rungs in turn; and how far energies and
gradients of the fast forms lie from float64. Writes results/gains-NAME.json and .png beside this file.
"""

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import matplotlib
import torch
import torch.nn.functional as F
from torch import Tensor

from igebm import native
from igebm.benchmarks import reference
from igebm.benchmarks.speed import CLASSES, FIGURE_14A, best, start
from igebm.circumstances import circumstances
from igebm.energy import energy_and_grad
from igebm.files import write_json
from igebm.model import Shape, build_image_net, build_kernel
from igebm.nets import fold, winograd
from igebm.nets.fold import Twin
from igebm.runtime import Runtime, probe
from igebm.samplers import run

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

STEPS = 20 if torch.cuda.is_available() else 2  # a GPU works off what it is asked for while more is asked


def x_alone(net: reference.Figure14a, x: Tensor, y: Tensor) -> Callable[[], object]:
    """The reference's step with the gradient of x and no other."""
    return lambda: run(build_kernel(FIGURE_14A), lambda z: net(z, y), x, STEPS)


def normalised_once(net: reference.Figure14a, memory_format: torch.memory_format) -> reference.Figure14a:
    """W / σ worked out once a chain, its weights in this layout."""
    for conv in net.modules():
        if isinstance(conv, reference.Conv):
            sigma = conv.u @ conv.weight.flatten(1) @ F.normalize(conv.weight.flatten(1).T @ conv.u, dim=0)
            w = (conv.weight / (sigma.clamp(min=1) if conv.zero else sigma)).contiguous(memory_format=memory_format)
            conv.forward = partial(F.conv2d, weight=w, padding=w.shape[-1] // 2)  # type: ignore[method-assign]
    return net


def rungs(runtime: Runtime, width: int, batch: int) -> dict[str, Callable[[], object]]:
    """Each change with all before it; then, after "beside: ", what else there is."""
    x, y = start(runtime, batch)
    new = lambda: reference.Figure14a(width).to(runtime.device).requires_grad_(False)
    net = build_image_net(replace(FIGURE_14A, width=width), Shape(3, 32, 32, CLASSES)).to(runtime.device)
    kernel = build_kernel(FIGURE_14A)

    def twin(dtype: torch.dtype, compiled=False) -> Callable[[], object]:
        E = Twin(net, dtype, compiled).given(y)
        return lambda: run(kernel, E, x, STEPS)

    plain, last = reference.Figure14a(width).to(runtime.device), torch.channels_last
    in_place = x.contiguous(memory_format=last)
    found = {
        "the reference": lambda: reference.chain(plain, x, y, STEPS),
        "gradient of x alone": x_alone(new(), x, y),
        "W/σ once a chain": x_alone(normalised_once(new(), torch.contiguous_format), x, y),
        "channels last": x_alone(normalised_once(new(), last), in_place, y),
        "folded": twin(torch.float32),
    }
    if runtime.dtype is torch.bfloat16:
        found["bfloat16"] = twin(torch.bfloat16)
    name = {
        True: "compiled",
        "graphs": "a step as one CUDA graph",
        "fused": "fused kernels",
        "winograd": "Winograd convolutions",
    }
    gpu = runtime.device.type == "cuda"
    before = [way for way in (True, "graphs") if gpu and way != runtime.compiled]
    for way in [*before, runtime.compiled]:
        if way:
            found[name[way]] = twin(runtime.dtype, way)
    others = [] if gpu else [True] if native.fault() else [True, "winograd"]
    for dtype in {torch.float32, runtime.dtype}:
        for way in others:
            if (dtype, way) != (runtime.dtype, runtime.compiled):
                found[f"beside: {name[way]}, {str(dtype).removeprefix('torch.')}"] = twin(dtype, way)
    return found


def errors(runtime: Runtime, width: int, batch: int = 8) -> list[dict[str, object]]:
    """Of E and ∇E against the same network in float64: the largest, and the norm's, relative. Random weights have
    gradients at their kinks' mercy: a leaky ReLU may go either way there, whatever the precision."""
    x, y = start(runtime, batch)
    torch.manual_seed(0)
    net = build_image_net(replace(FIGURE_14A, width=width), Shape(3, 32, 32, CLASSES)).to(runtime.device)
    with torch.no_grad():
        for q in net.parameters():
            q.add_(0.02 * torch.randn_like(q))
    exact, exact_g = energy_and_grad(Twin(net, torch.float64).given(y), x.double())
    gpu, found = runtime.device.type == "cuda", []
    for dtype in dict.fromkeys((torch.float32, runtime.dtype)):
        fast = runtime.compiled == "fused" and dtype is torch.bfloat16 if gpu else not native.fault()
        for way in [False, "fused" if gpu else "winograd"][: 1 + fast]:
            e, g = energy_and_grad(Twin(net, dtype, way).given(y), x)
            off = {
                "energy": (e - exact).abs().max() / exact.abs().max(),
                "gradient": (g - exact_g).norm() / exact_g.norm(),
            }
            name = {"dtype": str(dtype).removeprefix("torch."), "winograd": way == "winograd", "width": width}
            name |= {"fused": True} if way == "fused" else {}
            found.append(name | {k: float(v) for k, v in off.items()})
    return found


def packed(width: int, batch: int) -> dict[str, float]:
    """One forward convolution with its weight laid out by oneDNN in each call, and once before: seconds each."""
    x = torch.rand(batch, width, 16, 16).contiguous(memory_format=torch.channels_last)
    w = torch.rand(width, width, 3, 3).contiguous(memory_format=torch.channels_last)
    once = torch._C._nn.mkldnn_reorder_conv2d_weight(w.to_mkldnn(), [1, 1], [1, 1], [1, 1], 1, list(x.shape))
    call = torch.ops.mkldnn._convolution_pointwise
    with torch.no_grad():
        each = lambda w: best(lambda: call(x, w, None, [1, 1], [1, 1], [1, 1], 1, "none", [], ""), 20, x.device)
        return {"each call": each(w), "once": each(once)}


def pooled_pair(width: int, batch: int, dtype: torch.dtype) -> dict[str, float]:
    """A convolution with the pool after it, and its gradient: as one folded convolution of stride 2, and by Winograd's.
    Seconds each."""
    x = torch.rand(batch, width, 16, 16).to(dtype).contiguous(memory_format=torch.channels_last)
    w = torch.rand(width, width, 3, 3) / (9 * width)
    one, k = fold.pooled(w).to(dtype), winograd.kernel(w, down=True)

    def both(conv: Callable[[Tensor], Tensor]) -> float:
        def step() -> None:
            y = conv(z := x.detach().requires_grad_())
            torch.autograd.grad(y, z, torch.ones_like(y))

        return best(step, 20, x.device)

    return {
        "folded": both(lambda z: F.conv2d(z, one, stride=2, padding=1)),
        "Winograd": both(lambda z: winograd.conv3x3(z, k, down=True)),
    }


def own_work(runtime: Runtime, width: int, batch: int) -> float:
    """The share of a Langevin step that is the chain's own: clip, step, noise and box, on a gradient that is there. It
    is what one kernel for all of it could save at most."""
    x, y = start(runtime, batch)
    net = build_image_net(replace(FIGURE_14A, width=width), Shape(3, 32, 32, CLASSES)).to(runtime.device)
    E, kernel, flat = Twin(net, runtime.dtype, runtime.compiled).given(y), build_kernel(FIGURE_14A), torch.rand_like(x)
    given = lambda z: (z * flat).flatten(1).sum(1)
    chain = lambda E: best(lambda: run(kernel, E, x, 10), 5, runtime.device)
    chain(E)
    return chain(given) / chain(E)


@torch.no_grad()
def labels(runtime: Runtime, width: int, batch: int) -> dict[str, float]:
    """Energies of images under all ten classes: each by itself, and with what is the same for all worked out once.
    Seconds each."""
    net = build_image_net(replace(FIGURE_14A, width=width), Shape(3, 32, 32, CLASSES)).to(runtime.device)
    twin, x, every = Twin(net, runtime.dtype, runtime.compiled), start(runtime, batch)[0], torch.arange(10)
    every = every.to(runtime.device)

    def once() -> None:
        E = twin.over(x)
        for y in every:
            E(y[None])

    alone = lambda: [twin.given(y[None])(x) for y in every]
    return {"each by itself": best(alone, 5, runtime.device), "begun once": best(once, 5, runtime.device)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="of the kind of machine, for the files")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--repeats", type=int, default=4)
    asked = parser.parse_args()
    runtime, before, rows = probe(), os.getloadavg(), []
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
    batch = 128 if runtime.device.type == "cuda" else 32
    for ax, width in zip(axes, (128, 64), strict=True):
        work = rungs(runtime, width, batch)
        for f in work.values():
            f()  # compile
        times = {name: [] for name in work}
        for _ in range(asked.repeats):
            for name, f in work.items():
                times[name].append(best(f, 1, runtime.device) * 1e3 / (batch * STEPS))
        ms = {name: min(of) for name, of in times.items()}
        for name, each in ms.items():
            row = {"what": name, "width": width, "batch": batch, "ms": each, "speedup": ms["the reference"] / each}
            rows.append(row)
            print(row, flush=True)
        bars = ax.barh(list(ms), list(ms.values()), color=["#999999" if "beside" in n else "#4477aa" for n in ms])
        ax.bar_label(bars, [f"{v:.2g} ms" for v in ms.values()], padding=3)
        ax.invert_yaxis()
        ax.margins(x=0.15)
        ax.set(title=f"width {width}, batch {batch}", xlabel="ms per image and Langevin step")
    for side in ("top", "right"):
        for ax in axes:
            ax.spines[side].set_visible(False)
    result = {"machine": circumstances(runtime, f"python benchmarks/gains.py --name {asked.name}"), "rows": rows}
    result["relative errors"] = errors(runtime, 128)
    if runtime.device.type == "cpu":
        result["share of a step that is the chain's own"] = {f"width {w}": own_work(runtime, w, 32) for w in (128, 64)}
    result["ten classes of 32 images, seconds"] = {f"width {width}": labels(runtime, width, 32) for width in (128, 64)}
    if runtime.device.type == "cpu" and torch.backends.mkldnn.is_available():
        result["weights packed for oneDNN, seconds of a forward pass"] = packed(128, 32)
    if runtime.device.type == "cpu" and not native.fault():
        result["a convolution with its pool, seconds of a forward and a backward pass"] = [
            {"dtype": str(dtype).removeprefix("torch."), "width": width} | pooled_pair(width, 32, dtype)
            for dtype in dict.fromkeys((torch.float32, runtime.dtype))
            for width in (128, 64)
        ]
    write_json(asked.out / f"gains-{asked.name}.json", result | {"load_before": before, "load_after": os.getloadavg()})
    figure.savefig(asked.out / f"gains-{asked.name}.png", dpi=130)


if __name__ == "__main__":
    main()
