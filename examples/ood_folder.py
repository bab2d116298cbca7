"""Which pictures in a folder are not like the training data? A detector in fifteen lines.

An image is out where its energy (the least over all classes) is above that of 95 % of real test digits. Give a folder
of pictures, or none: then one is made, of test digits, of noise, of a digit with its colours turned round, a flat one.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image

import igebm
from igebm import data


def made(folder: Path) -> Path:
    x, rng = data.load("digits", "test").x[..., 0], np.random.default_rng(0)
    pictures = {f"digit-{i}": x[i] for i in range(10)} | {f"noise-{i}": rng.integers(0, 256, (8, 8)) for i in range(3)}
    pictures |= {"inverted": 255 - x[0], "flat": np.full((8, 8), 128)}
    for name, picture in pictures.items():
        Image.fromarray(picture.astype(np.uint8)).save(folder / f"{name}.png")
    return folder


def detect(folder: Path, model: str = "digits", share: float = 0.95) -> dict[str, bool]:
    ebm = igebm.load(model)
    limit = torch.quantile(ebm.energy(data.load(ebm.model.preset.data, "test").x), share).item()
    files = sorted(folder.glob("*.png"))
    pictures = [Image.open(file).resize(ebm.shape[:0:-1]) for file in files]
    energies = ebm.energy(pictures).tolist()
    for file, e in zip(files, energies, strict=True):
        print(f"{file.name:>15}  {e:8.4f}  {'out' if e > limit else ''}")
    return {file.stem: e > limit for file, e in zip(files, energies, strict=True)}


def main(folder: Path | None = None, model: str = "digits") -> dict[str, bool]:
    with tempfile.TemporaryDirectory() as made_here:
        return detect(folder or made(Path(made_here)), model)


if __name__ == "__main__":
    tyro.cli(main)
