"""What several processes spend on telling each other: `python benchmarks/communication.py`.

Measured here: training iterations of Fig. 14a on 32x32 images in two processes on gloo, one thread each; time in
the two reductions of an iteration (its gradients, its numbers) against the whole. Waiting for the slower process
counts as communication, so on a shared machine the share is an upper bound.

On paper: the same for Fig. 14b (the preset imagenet32, 128 images a GPU) on N GPUs. A ring reduction of n parameters in
float32 sends 2 (N - 1) / N · 4n bytes from each GPU, at 450 GB/s inside a machine of 8 (NVLink) and at 50 GB/s between
machines (400 Gb/s each); the computing is an iteration's operations, counted from the network, at 400 TFLOP/s, about
what a large bfloat16 product reaches on an H100. Nothing is taken to overlap. Writes results/communication.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from igebm import presets, ranks
from igebm.circumstances import circumstances
from igebm.data import Images, Loader
from igebm.files import write_json
from igebm.model import build_net
from igebm.runtime import probe
from igebm.shapes import Shape
from igebm.training import state as states
from igebm.training.cost import cost
from igebm.training.guard import Guard
from igebm.training.loop import train_step

CLASSES = tuple("0123456789")
ITERATIONS = 6
SETTINGS = [{"width": 16, "batch": 16, "chain_steps": 20}, {"width": 32, "batch": 16, "chain_steps": 20}]
RATE = 400e12  # operations a second
GPUS = {8: 450e9, 64: 50e9}  # bytes a second out of each


def worker(settings: dict[str, int], out: Path) -> None:
    """A few iterations of one of two processes; the first writes what it saw."""
    runtime = probe("cpu", "float32", "off", 1)
    spent = 0.0
    reduce_ = ranks.mean_

    def timed(tensors: Any) -> None:
        nonlocal spent
        start = time.perf_counter()
        reduce_(tensors)
        spent += time.perf_counter() - start

    ranks.mean_ = timed
    with ranks.together():
        preset = replace(presets.named("cifar10-cond"), **settings, buffer_size=64)
        state = states.start(preset, Shape(3, 32, 32, CLASSES), runtime, {})
        pixels = np.random.default_rng(ranks.rank()).integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)
        loader = Loader(Images("noise", pixels, np.arange(64) % 10, CLASSES), preset.batch)
        train_step(state, loader, Guard(float("inf")))
        ranks.wait()
        spent, start = 0.0, time.perf_counter()
        for _ in range(ITERATIONS):
            train_step(state, loader, Guard(float("inf")))
        seconds = time.perf_counter() - start
        if ranks.rank() == 0:
            n = sum(p.numel() for p in state.net.parameters())
            write_json(out, {"parameters": n, "iteration_ms": 1e3 * seconds / ITERATIONS, "share": spent / seconds})


def measured(settings: dict[str, int]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
        command += ["--worker", json.dumps(settings), "--out", str(out)]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        return settings | json.loads(out.read_text())


def on_paper(gpus: int, bandwidth: float, batch: int = 128) -> dict[str, Any]:
    preset = replace(presets.named("imagenet32"), batch=batch)
    shape = Shape(3, 32, 32, ())
    with torch.device("meta"):
        n = sum(p.numel() for p in build_net(preset, shape).parameters())
    computing = cost(preset, shape)["flop_per_iteration"] / RATE
    sending = 2 * (gpus - 1) / gpus * 4 * n / bandwidth
    return {
        "gpus": gpus, "parameters": n, "batch_a_gpu": batch, "chain_steps": preset.chain_steps,
        "computing_ms": 1e3 * computing, "sending_ms": 1e3 * sending, "share": sending / (sending + computing),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "communication.json")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        return worker(asked.worker, asked.out)
    about = circumstances(probe("cpu", "float32", "off", 1), "python benchmarks/communication.py")
    found = {
        "machine": about | {"load_before": os.getloadavg()},
        "two processes on gloo": [measured(settings) for settings in SETTINGS],
        "on paper, Fig. 14b": [on_paper(gpus, bandwidth) for gpus, bandwidth in GPUS.items()],
    }
    print(json.dumps({k: v for k, v in found.items() if k != "machine"}, indent=1))
    write_json(asked.out, found)


if __name__ == "__main__":
    main()
