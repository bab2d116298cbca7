"""How good are samples, by numbers that training never saw: `python benchmarks/quality.py MODEL ... --json FILE`.

A small convolutional classifier is trained on the real data (its test accuracy is printed). For each model and seed,
conditional samples are drawn from noise, and three numbers taken:

- accuracy: the share of samples that the classifier gives the class they were asked for;
- diversity: the mean pixel distance between two samples of a class, as a share of the same between two real images;
- confidence: the mean of the classifier's largest probability, beside the same on test images.
"""

import argparse
import json
import os
import platform
import subprocess
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from igebm import data, model
from igebm.data import Images, Loader
from igebm.runtime import probe


def classifier(images: Images, epochs: float, seed: int = 0) -> nn.Module:
    """Three 3x3 convolutions with batch norm, global average; one-cycle AdamW; flips for colour images."""
    torch.manual_seed(seed)
    c, classes = images.x.shape[-1], len(images.classes)
    stages = lambda i, o: [nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]
    net = nn.Sequential(
        *stages(c, 32), *stages(32, 64), nn.MaxPool2d(2), *stages(64, 96), nn.MaxPool2d(2), *stages(96, 128),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, classes),
    )  # fmt: skip
    steps, batch = int(epochs * len(images.x) / 128), 128
    optimizer = torch.optim.AdamW(net.parameters(), lr=4e-3, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    load = Loader(images, batch, seed=seed, flip=c == 3, crop=2 if c == 3 else 0)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        x, y = load(step * batch, generator)
        loss = F.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()


@torch.no_grad()
def probabilities(net: nn.Module, x: np.ndarray) -> np.ndarray:
    pixels = torch.from_numpy(np.ascontiguousarray(x)).permute(0, 3, 1, 2)
    return torch.cat([net((p.float() + 0.5) / 256).softmax(1) for p in pixels.split(256)]).numpy()


def spread(x: np.ndarray, y: np.ndarray) -> float:
    """Mean pixel distance between two images of the same class."""
    flat = x.reshape(len(x), -1) / 255
    return float(
        np.mean([np.linalg.norm(flat[y == c][:, None] - flat[y == c][None], axis=-1).mean() for c in np.unique(y)])
    )


def judge(m: model.Model, net: nn.Module, real: Images, n: int, steps: int, seed: int) -> dict[str, float]:
    start = time.perf_counter()
    x, y = m.sample(n, steps=steps, seed=seed)
    p = probabilities(net, x)
    pick = np.random.default_rng(0).permutation(len(real.x))[: 10 * n]
    some = Images("", real.x[np.sort(pick)], real.y[np.sort(pick)], real.classes)
    few = np.concatenate([np.flatnonzero(some.y == c)[: n // 10] for c in range(len(real.classes))])
    return {
        "seed": seed,
        "chain_steps": steps,
        "accuracy": round(float((p.argmax(1) == y).mean()), 4),
        "confidence": round(float(p.max(1).mean()), 4),
        "diversity": round(spread(x, y) / spread(some.x[few], some.y[few]), 4),
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--steps", type=int, nargs="+", default=[0], help="chain steps; 0: the preset's")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--epochs", type=float, default=0, help="of the classifier; 0: 30 for under 10,000 images, else 8"
    )
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    runtime = probe()
    first = model.load(asked.models[0], dtype=runtime.dtype)
    train, test = (data.load(first.preset.data, split, data_dir=asked.data_dir) for split in ("train", "test"))
    net = classifier(train, asked.epochs or (30 if len(train.x) < 10_000 else 8))
    p = probabilities(net, test.x)
    judged = {
        "test_accuracy": round(float((p.argmax(1) == test.y).mean()), 4),
        "test_confidence": round(float(p.max(1).mean()), 4),
    }
    print("classifier", judged, flush=True)
    rows = []
    for where in asked.models:
        m = model.load(where, dtype=runtime.dtype)
        for steps in asked.steps:
            for seed in range(asked.seeds):
                row = judge(m, net, train, asked.n, steps or m.preset.sample_steps, seed)
                rows.append({"model": str(where), "model_step": m.step, "trained_with_seed": m.facts.get("seed")} | row)
                print(rows[-1], flush=True)
    if asked.json:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
        about = {
            "command": "python benchmarks/quality.py " + " ".join(asked.models),
            "commit": commit,
            "torch": torch.__version__,
            "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "runtime": runtime.reason, "load": os.getloadavg()},
            "python": platform.python_version(),
            "classifier": judged,
            "rows": rows,
        }
        asked.json.write_text(json.dumps(about, indent=2) + "\n")


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
