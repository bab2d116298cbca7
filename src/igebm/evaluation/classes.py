"""Which class an image is of: by its label, by the model's own energies, and which images make the classes alike."""

import numpy as np
import torch

from ..data import Images
from ..errors import InputError, NotApplicable
from ..inputs import matches
from ..model import Model, batches


def of_classes(m: Model) -> bool:
    """Whether the model is conditional on classes (and not on latents)."""
    return m.conditional and bool(m.shape.classes)


def need_labels(images: Images, what: str) -> np.ndarray:
    """The class labels (N,). Raises NotApplicable where there are none, InputError where not on all images."""
    if images.y is None or not images.classes:
        raise NotApplicable(
            f"{what} needs class labels, {images.name} has none; give --data a folder with one folder a class, or an "
            ".npz with train_y and test_y"
        )
    if (images.y < 0).any():
        raise InputError(f"{what} needs class labels, {(images.y < 0).sum()} images of {images.name} have none")
    return images.y


def true_conditions(m: Model, images: Images, what: str) -> np.ndarray:
    """The images' labels (N,), or latents (N, d), which are those that the model is conditional on. Raises InputError
    where the data do not have them."""
    y = need_labels(images, what) if m.shape.classes else images.y
    if y is None or not matches(images, m):
        known = m.shape.classes or tuple(latent.name for latent in m.shape.latents)
        others = images.classes or tuple(latent.name for latent in images.latents) or ("none",)
        raise InputError(f"{what} needs what {m.name} knows ({few(known)}); {images.name} has others ({few(others)})")
    return y


def few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def lowest(m: Model, images: np.ndarray, batch: int = 128) -> np.ndarray:
    """argmin_y E(x | y) of uint8 images (N, H, W, C): (N,) int64, the class that a conditional model itself would give.

    As the paper and the released code do; it takes every label's Z to be alike, which training does not see to.
    """
    found = [np.empty(0, np.int64)]
    with torch.no_grad():
        for part in batches(len(images), batch):
            e = [m.energy(images[part], np.full(part.stop - part.start, c), batch) for c in range(m.net.condition)]
            found.append(np.stack(e).argmin(0))
    return np.concatenate(found)


def in_turn(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices that go round the classes of y, and how many of its class came before each: the first n are as evenly
    spread over the classes as the data allow."""
    rank = np.empty(len(y), np.int64)
    for c in np.unique(y):
        mine = y == c
        rank[mine] = np.arange(mine.sum())
    order = np.lexsort((y, rank))
    return order, rank[order]
