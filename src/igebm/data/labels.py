"""Labels as the rest of the package needs them: 0, 1, ... one per class, -1 for an unlabelled image, int64."""

from collections.abc import Callable, Mapping

import numpy as np

from ..errors import InputError


def tidy_labels(
    labels: Mapping[str, np.ndarray],
    counts: Mapping[str, int],
    classes: tuple[str, ...],
    where: str,
    say: Callable[[str], None],
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Labels of every split (int64, 0..K-1 or -1) and the K class names, from labels as they were found.

    All splits are taken together, so that a class that is missing from one keeps its number. Labels with gaps, such as
    1, 2, 7, are renumbered 0, 1, 2 in order and this is said; their names are then the old numbers. Where `classes` is
    given the labels must fit it. Raises InputError for two classes of one name, and for labels that are not integers,
    below -1, too large or of another number than the images (`counts`).
    """
    flat = {split: _vector(y, counts[split], f"the {split} labels of {where}") for split, y in labels.items()}
    values = np.unique(np.concatenate(list(flat.values()))) if flat else np.empty(0, np.int64)
    if values.size and values[0] < -1:
        raise InputError(f"labels of {where} must be 0 or more (-1 for unlabelled images), got {values[0]}")
    found = values[values >= 0]
    if not found.size and not classes:
        return {}, ()
    if repeated := sorted({name for name in classes if classes.count(name) > 1}):
        raise InputError(f"two classes of {where} are called {repeated[0]}; give each a name of its own")
    if classes:
        if found.size and found[-1] >= len(classes):
            raise InputError(
                f"labels of {where} go up to {found[-1]}, but there are {len(classes)} class names, "
                f"so the largest label expected is {len(classes) - 1}"
            )
        return flat, classes
    if found[-1] != len(found) - 1:
        listed = ", ".join(str(v) for v in found[:10]) + (", ..." if len(found) > 10 else "")
        say(f"labels of {where}: {len(found)} classes, {listed} renumbered 0 to {len(found) - 1}")
        flat = {split: np.where(y < 0, -1, np.searchsorted(found, y)) for split, y in flat.items()}
    return flat, tuple(str(v) for v in found)


def _vector(y: np.ndarray, n: int, what: str) -> np.ndarray:
    if y.dtype.kind not in "iu":
        raise InputError(f"{what} must be integers, got {y.dtype}")
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.shape != (n,):
        raise InputError(f"{what} must be one number per image, shape ({n},), got {y.shape}")
    if y.size and int(y.max()) > np.iinfo(np.int64).max:
        raise InputError(f"{what} are too large, got {y.max()}")
    return np.array(y, dtype=np.int64)
