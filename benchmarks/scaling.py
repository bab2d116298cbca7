"""Cost against K, batch, width, image size and number of composed energies, measured and drawn: `python
benchmarks/scaling.py`.

A chain's time should be linear in the steps, the batch, the pixels and the energies, and quadratic in the width;
each is measured around one middle point, as the best of three runs, and a straight line is fitted on logarithms: its
slope is the order. Writes results/scaling.json and results/scaling.png beside this file.
"""

import argparse
import math
import os
from pathlib import Path

import matplotlib
import torch

from igebm import presets
from igebm.benchmarks.speed import best
from igebm.circumstances import circumstances
from igebm.compose import product
from igebm.files import write_json
from igebm.model import Shape, build_kernel
from igebm.nets.fold import Twin
from igebm.nets.image import ImageEnergy
from igebm.runtime import probe
from igebm.samplers import run

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

MIDDLE = {"steps": 4, "batch": 32, "width": 64, "size": 32, "energies": 1}
AXES = {
    "steps": ([2, 4, 8, 16], 1),
    "batch": ([8, 16, 32, 64, 128], 1),
    "width": ([32, 64, 128], 2),
    "size": ([16, 32, 64], 2),
    "energies": ([1, 2, 3, 4], 1),
}
"""values of each setting, and the order of the cost in it that the mathematics gives (size: the side, so pixels are
its square)"""


def seconds(runtime, steps: int, batch: int, width: int, size: int, energies: int) -> float:
    """One chain on a product of Fig. 14a networks."""
    preset = presets.named("cifar10-cond")
    shape = Shape(3, size, size, tuple("0123456789"))
    nets = [ImageEnergy(3, width, presets.parse_blocks(preset.blocks), len(shape.classes)) for _ in range(energies)]
    y = torch.arange(batch) % 10
    E = product(*(Twin(net.to(runtime.device), runtime.dtype, runtime.compiled).given(y) for net in nets))
    x, kernel = torch.rand(batch, *shape.image, device=runtime.device), build_kernel(preset)
    run(kernel, E, x, 1)
    return best(lambda: run(kernel, E, x, steps), 3, runtime.device)


def slope(x: list[float], y: list[float]) -> float:
    """Of log y on log x, by least squares."""
    a, b = ([math.log(v) for v in values] for values in (x, y))
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    return sum((u - mean_a) * (v - mean_b) for u, v in zip(a, b, strict=True)) / sum((u - mean_a) ** 2 for u in a)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    out = parser.parse_args().out
    runtime = probe()
    before, rows = os.getloadavg(), {}
    figure, axes = plt.subplots(1, len(AXES), figsize=(3.2 * len(AXES), 3.2), layout="constrained")
    for ax, (name, (values, order)) in zip(axes, AXES.items(), strict=True):
        times = [seconds(runtime, **(MIDDLE | {name: value})) for value in values]
        measured = slope(values, times)
        rows[name] = {"values": values, "seconds": times, "slope": measured, "expected": order}
        print(name, rows[name], flush=True)
        ax.loglog(values, times, "o-", label=f"measured, slope {measured:.2f}")
        ax.loglog(
            values, [times[-1] * (v / values[-1]) ** order for v in values], "--", color="grey", label=f"slope {order}"
        )
        ax.set(xlabel=name, title=f"chain against {name}")
        ax.set_xticks(values, [str(v) for v in values])
        ax.minorticks_off()
        ax.legend(frameon=False, fontsize=8)
    axes[0].set_ylabel("seconds")
    about = circumstances(runtime, "python benchmarks/scaling.py")  # before its own figure changes the checkout
    about |= {"load_before": before, "load_after": os.getloadavg()}
    figure.savefig(out / "scaling.png", dpi=120)
    write_json(out / "scaling.json", {"machine": about, "middle": MIDDLE, "rows": rows})


if __name__ == "__main__":
    main()
