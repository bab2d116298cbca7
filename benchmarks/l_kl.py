"""Memory and time of L_KL (eq. 9) through all K steps of a chain, with and without recomputation: `python
benchmarks/l_kl.py`.

A chain that gradients flow through keeps each step's work for the backward pass: memory linear in K. With recomputation
(samplers.run, `recompute`) only the states between segments of √K steps are kept, and one segment at a time is done
again: memory grows with √K, for one chain more of computing. Each number is the rise of the resident set's highest
level in a process of its own. Writes results/l-kl.json and results/l-kl.png beside this file.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import matplotlib
import torch

from igebm import presets
from igebm.benchmarks.speed import resident
from igebm.circumstances import circumstances
from igebm.files import write_json
from igebm.model import build_kernel
from igebm.nets.bound import attached, frozen
from igebm.nets.image import ImageEnergy
from igebm.objectives import kl
from igebm.runtime import probe
from igebm.samplers import run
from igebm.samplers.chain import segment_length

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from scaling import slope  # noqa: E402

STEPS = [4, 8, 16, 32, 64]
WIDTH, SIZE, BATCH = 32, 32, 16


def once(steps: int, recompute: int) -> dict[str, float]:
    """MiB and seconds of one gradient of L_KL, in this process."""
    torch.set_num_threads(1)
    preset = presets.named("cifar10-cond")
    net = ImageEnergy(3, WIDTH, presets.parse_blocks(preset.blocks), 10)
    x, y, kernel = torch.rand(BATCH, 3, SIZE, SIZE), torch.arange(BATCH) % 10, build_kernel(preset)

    def gradient(steps: int, recompute: int) -> None:
        end, _ = run(kernel, attached(net, y), x, steps, differentiate="all", recompute=recompute)
        kl(frozen(net, y)(end.x)).backward()

    gradient(2, 1)  # what a first call sets up
    before, start = resident("VmRSS"), time.perf_counter()
    gradient(steps, recompute)
    return {"mib": (resident("VmHWM") - before) / 1024, "seconds": time.perf_counter() - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--once", type=int, nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.once:
        print(json.dumps(once(*asked.once)))
        return
    runtime = probe("cpu", "float32", "off", 1)
    about = circumstances(runtime, "python benchmarks/l_kl.py") | {"load_before": os.getloadavg()}
    rows = {}
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.4, 3.2), layout="constrained")
    for name, length in (("every step kept", lambda _: 1), ("recomputed", segment_length)):
        found = []
        for steps in STEPS:
            command = [sys.executable, __file__, "--once", str(steps), str(length(steps))]
            found.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
            print(name, steps, found[-1], flush=True)
        mib, seconds = ([row[key] for row in found] for key in ("mib", "seconds"))
        rows[name] = {"steps": STEPS, "mib": mib, "seconds": seconds, "slope_of_mib": slope(STEPS[1:], mib[1:])}
        left.loglog(STEPS, mib, "o-", label=f"{name}, slope {rows[name]['slope_of_mib']:.2f}")
        right.loglog(STEPS, seconds, "o-", label=name)
    left.loglog(STEPS, [mib[-1] * (s / STEPS[-1]) ** 0.5 for s in STEPS], "--", color="grey", label="slope 0.5")
    for ax, title in ((left, "MiB"), (right, "seconds")):
        ax.set(xlabel="K, steps of the chain", title=f"L_KL through all steps: {title}")
        ax.set_xticks(STEPS, [str(s) for s in STEPS])
        ax.minorticks_off()
        ax.legend(frameon=False, fontsize=8)
    figure.savefig(asked.out / "l-kl.png", dpi=120)
    network = {"figure": "14a", "width": WIDTH, "size": SIZE, "batch": BATCH}
    write_json(asked.out / "l-kl.json", {"machine": about | {"load_after": os.getloadavg()}} | network | {"rows": rows})


if __name__ == "__main__":
    main()
