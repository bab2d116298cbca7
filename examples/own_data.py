"""Pictures of your own: a folder with one folder a class, trained on and sampled.

Give a folder, or none: then one is made, of filled and hollow squares at random places, 12x12 pixels. The settings are
the digits', which suit small grey pictures on two cores; `igebm train NAME --help` lists them all.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image

import igebm
from igebm.cli import main as igebm_command
from igebm.library import EBM


def made(folder: Path, n: int = 400) -> Path:
    rng = np.random.default_rng(0)
    for name in ("filled", "hollow"):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            x, (top, left) = np.zeros((12, 12), np.uint8), rng.integers(1, 4, 2)
            x[top : top + 8, left : left + 8] = 255
            if name == "hollow":
                x[top + 2 : top + 6, left + 2 : left + 6] = 0
            Image.fromarray(x).save(folder / name / f"{i}.png")
    return folder


def main(
    pictures: Path | None = None, steps: int = 400, chain: int = 200, threads: int = 0, out: Path = Path("own_data.png")
) -> EBM:
    with tempfile.TemporaryDirectory() as made_here:
        pictures = pictures or made(Path(made_here) / "squares")
        run = Path(made_here) / "run"
        words = f"train digits --image-size 12 --channels 1 --steps {steps} --sample-steps {chain} --threads {threads}"
        if igebm_command([*words.split(), "--data", str(pictures), "--out", str(run)]) != 0:
            raise SystemExit("the run did not end")  # why is said above
        ebm = igebm.load(run)
    x = [ebm.sample(12, label) for label in ebm.classes]
    for name, samples in zip(ebm.classes, x, strict=True):
        print(f"{name}: mean of the pixels {samples.mean():.3f}, mean energy {ebm.energy(samples, name).mean():.4f}")
    ebm.picture(torch.cat(x), 12).save(out)
    return ebm


if __name__ == "__main__":
    tyro.cli(main)
