"""A small classifier of a data set: what tells the class of samples that training never saw, and what describes images
where there is no Inception network.
"""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from safetensors.torch import save_file
from torch import Tensor, nn

from .. import __version__, model, ranks
from ..data import Images, Loader
from ..data.fingerprint import fingerprint
from ..errors import Fault, InputError
from ..files import whole
from ..model import Shape, batches
from ..terminal import Screen
from .features import QUIET, Extractor, of_network

BATCH = 128


class Classifier(nn.Module):
    """Four 3x3 convolutions with batch norm, global average pooling, dense -> logits.

    x is (B, C, H, W) in [0, 1], at least 4 x 4 pixels. Returns the 128 features before the dense layer, and the
    logits.
    """

    def __init__(self, channels: int, classes: int):
        super().__init__()
        stage = lambda i, o: [nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]
        self.body = nn.Sequential(
            *stage(channels, 32), *stage(32, 64), nn.MaxPool2d(2), *stage(64, 96), nn.MaxPool2d(2), *stage(96, 128),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(128, classes)

    def forward(self, x: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b 128"], Float[Tensor, "b k"]]:
        h = self.body(x)
        return h, self.head(h)


@dataclass(frozen=True)
class Trained:
    """A classifier with what it was trained on and how well it does."""

    net: Classifier
    image: tuple[int, int, int]
    """channels, height, width"""
    classes: tuple[str, ...]
    steps: int
    facts: dict[str, Any]
    """data (name, images, hash), seed, accuracy on test_images test images (None without), seconds"""

    @property
    def name(self) -> str:
        return f"classifier of {self.facts['data']['name']}"


def steps_for(images: Images) -> int:
    """Iterations that suffice: 30 passes over small sets, 8 over large ones."""
    n = len(images.x)
    return max(300, (30 if n < 10_000 else 8) * n // BATCH)


def train_classifier(
    images: Images,
    steps: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Callable[..., None] = lambda done, total, shown="": None,
) -> Classifier:
    """Cross-entropy by AdamW under a one-cycle rate; colour images are flipped and shifted by up to 2 pixels.

    Unlabelled images are left out. The same seed on the same machine gives the same weights. Raises InputError where
    there is nothing to tell apart, Fault where the loss is not finite.
    """
    images = labelled(images)
    _, h, w, c = images.x.shape
    if min(h, w) < 4:
        raise InputError(f"the classifier takes images of at least 4x4 pixels, {images.name} has {w}x{h}")
    if steps < 1:
        raise InputError(f"the classifier takes at least 1 step of training, got {steps}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Classifier(c, len(images.classes)).to(device).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=4e-3, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    load = Loader(images, BATCH, seed=seed, device=device, flip=c == 3, crop=2 if c == 3 else 0)
    generator = torch.Generator(device).manual_seed(seed)
    for step in range(steps):
        x, y = load(step * BATCH, generator)
        assert y is not None  # labelled
        loss = F.cross_entropy(net(x)[1], y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if not (step + 1) % 50 or step + 1 == steps:
            if not torch.isfinite(loss):
                raise Fault(f"the loss of the classifier of {images.name} is {loss.item()} at step {step + 1}")
            progress(step + 1, steps, f"classifier, loss {loss.item():.3f}")
    return net.eval()


def labelled(images: Images) -> Images:
    """The images that have a class. Raises InputError where there are fewer than 2 classes, or latents instead."""
    if images.y is None or images.latents or len(images.classes) < 2:
        raise InputError(
            f"a classifier needs images of at least 2 classes, {images.name} has {len(images.classes)}; give --data a "
            "folder with one folder a class, or --inception FILE"
        )
    known = images.y >= 0
    if not known.any():
        raise InputError(f"none of the {len(known)} images of {images.name} has a label")
    return images if known.all() else images._replace(x=images.x[known], y=images.y[known], files=())


def probabilities(
    net: Classifier, x: UInt8[np.ndarray, "n h w c"], device: torch.device | str = "cpu", batch: int = 256
) -> Float[np.ndarray, "n k"]:
    """p(y | x) of uint8 images."""
    of = of_network("", net, device)
    return np.concatenate([of(np.asarray(x[part]))[1] for part in batches(len(x), batch)])


def has_labels(images: Images | None, classes: tuple[str, ...]) -> TypeGuard[Images]:
    """Whether some of the images have one of these classes."""
    return images is not None and images.y is not None and images.classes == classes and bool((images.y >= 0).any())


def accuracy(net: Classifier, images: Images, device: torch.device | str = "cpu") -> float:
    """The share of labelled images that are given their class."""
    images = labelled(images)
    return float((probabilities(net, images.x, device).argmax(1) == images.y).mean())


def trained(
    images: Images,
    test: Images | None,
    folder: Path,
    steps: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    screen: Screen = QUIET,
) -> Trained:
    """The classifier of a data set: the one kept in `folder`, else trained (by one of several processes) and kept
    there, as classifier-KEY.safetensors, KEY standing for data and settings.

    `steps` defaults to `steps_for`. A kept file that is damaged is said and replaced. Its accuracy is None where `test`
    has no labels of its classes.
    """
    steps = steps_for(images) if steps is None else steps
    about = {"data": fingerprint(images), "classes": list(images.classes), "steps": steps, "seed": seed}
    path = folder / f"classifier-{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:12]}.safetensors"

    def keep() -> None:
        kept = _kept(path, device, screen)
        if kept is None:
            screen.say(f"training a classifier of {images.name}, {steps} steps; it is kept as {path}")
            kept = _new(images, steps, seed, device, screen)
            save(path, kept)  # before it is measured: whatever goes wrong there, it was not trained in vain
        if kept.facts["accuracy"] is None and has_labels(test, kept.classes):
            found = {"accuracy": round(accuracy(kept.net, test, device), 5), "test_images": len(labelled(test).x)}
            save(path, replace(kept, facts=kept.facts | found))

    ranks.first_does(keep)
    return load(path, device)


def _kept(path: Path, device: torch.device | str, screen: Screen) -> Trained | None:
    if not path.exists():
        return None
    try:
        return load(path, device)
    except InputError as error:
        screen.say(f"{error}; it is trained anew")
        return None


def _new(images: Images, steps: int, seed: int, device: torch.device | str, screen: Screen) -> Trained:
    start = time.perf_counter()
    net = train_classifier(images, steps, seed, device, screen.step)
    facts = {
        "data": fingerprint(images),
        "seed": seed,
        "accuracy": None,
        "test_images": None,
        "seconds": round(time.perf_counter() - start, 1),
    }
    _, h, w, c = images.x.shape
    return Trained(net, (c, h, w), images.classes, steps, facts)


def save(path: Path, trained: Trained) -> None:
    """One safetensors file with all that `load` needs: weights, image shape, classes, origin, a checksum."""
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in trained.net.state_dict().items()}
    about = {
        "igebm": __version__,
        "classifier": True,
        "settings": {},
        "shape": list(trained.image),
        "classes": list(trained.classes),
        "step": trained.steps,
        "facts": trained.facts,
        "sha256": model.digest(tensors),
    }
    with whole(path) as temporary:
        save_file(tensors, temporary, metadata={"igebm": json.dumps(about)})


def load(path: Path, device: torch.device | str = "cpu") -> Trained:
    """A classifier that igebm saved, in evaluation mode. Raises InputError where the file is damaged or another's."""
    tensors, about = model.read(path)
    shape = model.shape_from_dict(about, path)
    if not about.get("classifier") or not isinstance(shape, Shape):
        raise InputError(f"{path} is not a classifier that igebm trained")
    net = Classifier(shape.channels, len(shape.classes))
    model.fill(net, tensors, path)
    return Trained(net.to(device).eval(), shape.image, shape.classes, about["step"], about["facts"])


def extractor(trained: Trained, device: torch.device | str = "cpu") -> Extractor:
    """What describes images by it, for features.describe. Raises InputError for images of another shape."""
    c, h, w = trained.image
    inner = of_network(trained.name, trained.net, device)

    def of(images: np.ndarray):
        if images.shape[1:] != (h, w, c):
            raise InputError(f"the {trained.name} takes images of {h}x{w}x{c}, got {images.shape[1:]}")
        return inner(images)

    return Extractor(trained.name, of)
