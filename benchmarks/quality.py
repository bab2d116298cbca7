"""How good are samples, by numbers that training never saw: `python benchmarks/quality.py MODEL ... --json FILE`.

A small convolutional classifier is trained on the real data (its test accuracy is printed). For each model and seed,
conditional samples are drawn from noise, and three numbers taken:

- accuracy: the share of samples that the classifier gives the class they were asked for;
- diversity: the mean pixel distance between two samples of a class, as a share of the same between two real images;
- confidence: the mean of the classifier's largest probability, beside the same on test images.

Beside them, of the model alone: the share of test images (the first thousand) that have their least energy under their
own class.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from igebm import data, model
from igebm.circumstances import circumstances
from igebm.data import Images
from igebm.evaluation.classifier import BATCH, Classifier, probabilities, steps_for, train_classifier
from igebm.files import write_json
from igebm.library import EBM
from igebm.runtime import Runtime, probe

FEW = 1_000
"""test images whose energies are asked for under every class"""


def spread(x: np.ndarray, y: np.ndarray) -> float:
    """Mean pixel distance between two images of the same class."""
    flat = x.reshape(len(x), -1) / 255
    return float(
        np.mean([np.linalg.norm(flat[y == c][:, None] - flat[y == c][None], axis=-1).mean() for c in np.unique(y)])
    )


def judge(
    m: model.Model, net: Classifier, real: Images, n: int, steps: int, seed: int, device: torch.device
) -> dict[str, float]:
    start = time.perf_counter()
    x, y = m.sample(n, steps=steps, seed=seed)
    p = probabilities(net, x, device)
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


def judging(
    name: str, runtime: Runtime, epochs: float = 0, kept: Path | None = None, data_dir: Path | None = None
) -> tuple[Images, Classifier, dict[str, float]]:
    """The real images, a classifier trained on them (or read from the file `kept`), and how good it is on the test
    images."""
    real, test = (data.load(name, split, data_dir=data_dir) for split in ("train", "test"))
    if kept and kept.exists():
        net = Classifier(real.x.shape[-1], len(real.classes)).to(runtime.device).eval()
        safetensors.torch.load_model(net, kept)
    else:
        net = train_classifier(real, int(epochs * len(real.x) / BATCH) or steps_for(real), device=runtime.device)
        if kept:
            safetensors.torch.save_model(net, str(kept))
    p = probabilities(net, test.x, runtime.device)
    accuracy, confidence = float((p.argmax(1) == test.y).mean()), float(p.max(1).mean())
    return real, net, {"test_accuracy": round(accuracy, 4), "test_confidence": round(confidence, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--steps", type=int, nargs="+", default=[0], help="chain steps; 0: the preset's")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--epochs", type=float, default=0, help="of the classifier; 0: 30 for under 10,000 images, else 8"
    )
    parser.add_argument("--classifier", type=Path, help="a file that keeps the classifier, for the next models")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    runtime = probe(compile="quick")
    first = model.load(asked.models[0])
    real, net, judged = judging(first.preset.data, runtime, asked.epochs, asked.classifier, asked.data_dir)
    print("classifier", judged, flush=True)
    test, rows, own = data.load(first.preset.data, "test", data_dir=asked.data_dir), [], {}
    for where in asked.models:
        m = model.load(where, runtime.device, runtime.dtype, runtime.compiled)
        own[str(where)] = round(float((EBM(m).classify(test.x[:FEW]).cpu().numpy() == test.y[:FEW]).mean()), 4)
        print(f"{where}: least energy under their own class: {own[str(where)]} of test images", flush=True)
        for steps in asked.steps:
            for seed in range(asked.seeds):
                row = judge(m, net, real, asked.n, steps or m.preset.sample_steps, seed, runtime.device)
                rows.append({"model": str(where), "model_step": m.step, "trained_with_seed": m.facts.get("seed")} | row)
                print(rows[-1], flush=True)
    if asked.json:
        command = "python benchmarks/quality.py " + " ".join(sys.argv[1:])
        about = {"machine": circumstances(runtime, command), "classifier": judged, "least_energy": own, "rows": rows}
        write_json(asked.json, about)


if __name__ == "__main__":
    main()
