"""Labels as the rest of the package needs them: 0, 1, ... one per class, -1 for an unlabelled image, int64."""

from collections.abc import Callable, Mapping

import numpy as np

from ..errors import InputError
from .images import shown


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


def as_numbers(
    labels: Mapping[str, np.ndarray], classes: tuple[str, ...], where: str, say: Callable[[str], None]
) -> tuple[Mapping[str, np.ndarray], tuple[str, ...]]:
    """Labels given as names, or as rows with a single 1 (one-hot), in all splits, as the numbers that `tidy_labels`
    takes, with the K class names; any others as they are.

    Names count in the order of `classes`, without it in their own (sorted); an empty one is no label. Rows of floats
    have at least 3 columns, since those of 2 may be latents; how rows were read is said. Raises InputError for names
    that `classes` lacks, and for another number of classes than columns.
    """
    if labels and all(y.dtype.kind in "US" for y in labels.values()):
        return _from_names(labels, classes, where)
    if not labels or not all(_one_hot(y) for y in labels.values()):
        return labels, classes
    columns = {y.shape[1] for y in labels.values()} | ({len(classes)} if classes else set())
    if len(columns) > 1:
        listed = " and ".join(map(str, sorted(columns)))
        raise InputError(f"labels of {where} are rows with one 1, of {listed} classes; give all the same number")
    k = columns.pop()
    say(f"labels of {where}: rows with one 1, read as {k} classes (as latents where `latents` names the columns)")
    return {split: y.argmax(1) for split, y in labels.items()}, classes or tuple(map(str, range(k)))


def _one_hot(y: np.ndarray) -> bool:
    least = 3 if y.dtype.kind == "f" else 2
    if y.dtype.kind not in "fiub" or y.ndim != 2 or not len(y) or y.shape[1] < least:
        return False
    return bool(((y == 0) | (y == 1)).all() and (y.sum(1) == 1).all())


def _from_names(
    labels: Mapping[str, np.ndarray], classes: tuple[str, ...], where: str
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    try:
        texts = {split: [shown(name) for name in y.ravel().tolist()] for split, y in labels.items()}
    except (SystemError, ValueError) as error:  # characters that Unicode does not have
        raise InputError(f"labels of {where} are names that are no text ({error})") from error
    found = {name for names in texts.values() for name in names} - {""}
    if strange := sorted(found - set(classes)) if classes else []:
        dots = ", ..." if len(strange) > 5 else ""
        raise InputError(f"labels of {where} that are not among its classes: {', '.join(strange[:5])}{dots}")
    classes = classes or tuple(sorted(found))
    number = {name: k for k, name in enumerate(classes)} | {"": -1}
    shape = lambda y: y.shape if y.ndim else (1,)
    flat = {split: np.array([number[name] for name in names], np.int64) for split, names in texts.items()}
    return {split: y.reshape(shape(labels[split])) for split, y in flat.items()}, classes


def _vector(y: np.ndarray, n: int, what: str) -> np.ndarray:
    if y.dtype.kind not in "iu":
        raise InputError(f"{what} must be integers, or names in every split, got {y.dtype}")
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.shape != (n,):
        raise InputError(f"{what} must be one number per image, shape ({n},), got {y.shape}")
    if y.size and int(y.max()) > np.iinfo(np.int64).max:
        raise InputError(f"{what} are too large, got {y.max()}")
    return np.array(y, dtype=np.int64)
