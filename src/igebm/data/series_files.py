"""A user's own time series, from a file: .npz or .npy (an array, series x steps x features), .csv or .parquet (a row a
state: `series`, `step`, and a column a feature; without `series` all rows are one, without `step` they are in order).

Nothing is unpickled, filled in or cut to fit: what is missing, not a number or of another length is refused by name.
"""

import csv
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from ..errors import InputError, many
from .arrays import names_in, read_npy, read_npz
from .images import MissingSplit, canonical, existing, shown, silent
from .series import Series, unnamed

KINDS = (".npz", ".npy", ".csv", ".parquet")
KEYS = ("series", "step")


def load_series(path: str | Path, split: str = "train", least: int = 2, say: Callable[[str], None] = silent) -> Series:
    """One split of a file of time series: x float32 (n, t, f) and the features' names.

    An .npz may hold `train_x`, `test_x`, ... or one set (`x`, `series` or `arr_0`), which is the train split, and
    `features`, the columns' names; the other kinds hold the train split alone. `least` is the number of states that
    each series must have; what a table without `series` or `step` is taken for is told to `say`. Raises InputError, in
    one line, for what is wrong with the file; it is a MissingSplit where the file is sound but lacks the split.
    """
    path, wanted = Path(path), canonical(split)
    where, kind = shown(path), path.suffix.lower()
    if not existing(path) or kind not in KINDS:
        what = "there is no such file" if kind in KINDS else f"its name must end in {', '.join(KINDS)}"
        raise InputError(f"no time series in {where}: {what}")
    if path.is_dir():
        raise InputError(f"no time series in {where}: it is a folder")
    ids: Sequence[str] = ()
    last: Sequence[int] = ()
    if kind == ".npz":
        x, names = _of_arrays(read_npz(path), wanted, split, where)
    elif wanted != "train":
        raise MissingSplit(where, split, ("train",))
    elif kind == ".npy":
        x, names = read_npy(path), ()
    else:
        x, names, ids, last = (_csv if kind == ".csv" else _parquet)(path, where, say)
    return Series(where, *checked(x, names, least, where, ids), wanted, tuple(ids), tuple(last))


FINE = 100
"""steps of float32 that a standard deviation must have"""


def checked(
    x: np.ndarray, names: Sequence[str], least: int, where: str, ids: Sequence[str] = ()
) -> tuple[Float32[np.ndarray, "n t f"], tuple[str, ...]]:
    """The array as float32 and the names of its features (x1, x2, ... without). Raises InputError for what is no set of
    series: another shape, too few states, values that are not numbers or too fine for float32; `ids` are what the file
    calls its series."""
    if x.ndim != 3 or not x.size:
        raise InputError(f"{where} must hold one array, series x steps x features, got shape {x.shape}")
    if x.dtype.kind not in "fiu":
        raise InputError(f"{where} holds {x.dtype} where numbers are wanted; save it as float32")
    n, t, f = x.shape
    if t < least:
        raise InputError(f"{where} has series of {t} states; at least {least} are needed")
    names = tuple(names) or unnamed(f)
    if len(names) != f or len(set(names)) != f:
        raise InputError(f"{where} has {f} features and the names {', '.join(names)}; give each its own name")
    with np.errstate(over="ignore"):
        y = np.array(x, np.float32)
    bad = np.argwhere(~np.isfinite(y))
    if len(bad):
        i, k, j = bad[0]
        series = ids[i] if len(ids) else i
        raise InputError(
            f"{where} has {len(bad)} values that are no finite float32, the first ({x[i, k, j]}) in series {series}, "
            f"row {k} (from 0), feature {names[j]}; repair or drop those series"
        )
    mean, std = x.mean((0, 1), dtype=np.float64).tolist(), x.std((0, 1), dtype=np.float64).tolist()
    for name, m, s in zip(names, mean, std, strict=True):
        if 0 < s < FINE * np.spacing(np.float32(abs(m))):
            raise InputError(
                f"the feature {name} of {where} changes by {s:.3g} about {m:.9g}, which float32 cannot tell apart; "
                f"take its mean off"
            )
    return y, names


def _of_arrays(
    arrays: dict[str, np.ndarray], wanted: str, split: str, where: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    found = {canonical(key.removesuffix("_x")): x for key, x in arrays.items() if key.endswith("_x")}
    unnamed = [arrays[key] for key in ("x", "series", "arr_0") if key in arrays]
    if not found and unnamed:
        found = {"train": unnamed[0]}
    if not found:
        raise InputError(
            f"no time series in {where}: expected an array x, series, arr_0 or train_x (series x steps x features); "
            f"it has: {', '.join(sorted(arrays)) or 'none'}"
        )
    if wanted not in found:
        raise MissingSplit(where, split, found)
    return found[wanted], names_in(arrays, ("features",), where)


Table = tuple[np.ndarray, tuple[str, ...], list[str], list[int]]
"""series x steps x features, the features' names, what the series are called, and the step of each one's last state"""


def _csv(path: Path, where: str, say: Callable[[str], None]) -> Table:
    ids: list[str] = []
    steps, lines, values = array("q"), array("q"), array("d")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            head = [word.strip() for word in next(reader, [])]
            if head and all(map(_is_number, head)):
                raise InputError(
                    f"{where} begins with numbers ({', '.join(head)}); its first line must name the columns"
                )
            names, a, b = _columns(head, where)
            rest = [i for i in range(len(head)) if i not in (a, b)]
            for row in reader:
                if not row:
                    continue  # an empty line, as at the end of many files
                line = f"{where}, line {reader.line_num}"
                if len(row) != len(head):
                    raise InputError(f"{line}: {len(row)} values under {len(head)} names")
                ids.append("0" if a is None else row[a])
                if b is not None:
                    steps.append(_whole(row[b], line))
                lines.append(reader.line_num)
                values.extend([_number(row[i], head[i], line) for i in rest])
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    except csv.Error as error:
        raise InputError(f"{where} is not a CSV file that can be read: {error}") from None
    except OSError as error:
        raise InputError(f"cannot read {where}: {error.strerror}") from None
    rows = np.array(values, np.float64).reshape(-1, len(names))
    bad = np.flatnonzero(~np.isfinite(rows).all(1))
    if len(bad):
        column = int(np.argmin(np.isfinite(rows[bad[0]])))
        value, line = rows[bad[0], column], lines[bad[0]]
        raise InputError(f"{where}, line {line}: {value} in column {names[column]} (series {ids[bad[0]]}); "
                         f"{len(bad)} such lines in all: repair or drop those series")  # fmt: skip
    which = np.array(ids)
    x, ids, last = _stacked(which, counted(which) if b is None else np.array(steps, np.int64), rows, where)
    _say_taken(a, b, x, where, say)
    return x, names, ids, last


def _parquet(path: Path, where: str, say: Callable[[str], None]) -> Table:
    # Arrow comes with `datasets`; reading images never needs it directly, so it is imported here.
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        head = table.column_names  # names and cells are decoded here, and may be no UTF-8
        cells = table.column("series").to_pylist() if head.count("series") == 1 else []
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).split("\n")[0]
        raise InputError(f"{where} is not a Parquet file that can be read, or it is damaged: {reason}") from None
    names, a, b = _columns(head, where)
    for name in (*(key for key in KEYS if key in head), *names):
        kind, nulls = table.schema.field(name).type, table.column(name).null_count
        number = pa.types.is_integer(kind) or (name not in KEYS and pa.types.is_floating(kind))
        if nulls:
            raise InputError(f"{where} has {nulls} empty cells in column {name}; repair or drop those series")
        if name != "series" and not number:
            wanted = "whole numbers are wanted" if name == "step" else f"numbers are wanted; {LEAVE_OUT}"
            raise InputError(f"{where}: column {name} holds {kind} where {wanted}")
    ids = np.array(["0"] * len(table) if a is None else [str(v) for v in cells])
    steps = counted(ids) if b is None else table.column("step").to_numpy().astype(np.int64)
    columns = [table.column(name).to_numpy().astype(np.float64) for name in names]
    rows = np.stack(columns, 1) if len(table) else np.empty((0, len(names)))
    x, series, last = _stacked(ids, steps, rows, where)
    _say_taken(a, b, x, where, say)
    return x, names, series, last


def _columns(head: Sequence[str], where: str) -> tuple[tuple[str, ...], int | None, int | None]:
    """The features' names, and where `series` and `step` stand, if they do."""
    names = tuple(word for word in head if word not in KEYS)
    other = next((mark for mark in ";\t|" if len(head) == 1 and mark in head[0]), "")
    if other:
        raise InputError(f"{where} has one column, {head[0]}; separate columns by commas, not by {other!r}")
    if not names:
        raise InputError(f"{where} must have a column for each feature, beside series and step; got: {', '.join(head)}")
    if "" in names:
        hint = "name it, or leave it out where it only numbers the rows"
        raise InputError(f"{where} has a column without a name among {', '.join(head)}; {hint}")
    twice = sorted({name for name in head if head.count(name) > 1})
    if twice:
        raise InputError(f"{where} has two columns {twice[0]}")
    a, b = (head.index(key) if key in head else None for key in KEYS)
    return names, a, b


def counted(ids: np.ndarray) -> np.ndarray:
    """The place of each row among those of its series, from 0."""
    _, which, counts = np.unique(ids, return_inverse=True, return_counts=True)
    order = np.argsort(which, kind="stable")
    steps = np.empty(len(ids), np.int64)
    steps[order] = np.arange(len(ids)) - np.repeat(np.cumsum(counts) - counts, counts)
    return steps


def _say_taken(a: int | None, b: int | None, x: np.ndarray, where: str, say: Callable[[str], None]) -> None:
    """What a table without `series` (a) or `step` (b) is taken for."""
    missing = [key for key, column in zip(KEYS, (a, b), strict=True) if column is None]
    if missing:
        what = "all rows are one series" if a is None else "the rows of a series follow each other as they stand"
        what += ", as they stand" if len(missing) == 2 else ""
        found = f"{many(len(x), 'series', 'series')} of {many(x.shape[1], 'state')}"
        say(f"{where} has no column {' or '.join(missing)}: {what} ({found})")


def _stacked(
    ids: np.ndarray, steps: np.ndarray, rows: np.ndarray, where: str
) -> tuple[np.ndarray, list[str], list[int]]:
    """Rows as series x steps x features, what the series are called and each one's last step: series as they first
    appear, states by their step, which must rise by 1."""
    if not len(rows):
        raise InputError(f"{where} has no rows")
    _, first, which = np.unique(ids, return_index=True, return_inverse=True)
    place = np.argsort(np.argsort(first))[which]  # the n-th series that appears is the n-th of the array
    order = np.lexsort((steps, place))
    place, steps, ids = place[order], steps[order], ids[order]
    jump = np.flatnonzero((np.diff(steps) != 1) & (np.diff(place) == 0))
    if len(jump):
        a, b = steps[jump[0]], steps[jump[0] + 1]
        what = f"has step {a} twice" if a == b else f"has no step {a + 1}: {a} is followed by {b}"
        raise InputError(f"{where}: series {ids[jump[0]]} {what}; its steps must rise by 1")
    lengths = np.bincount(place)
    ends = np.cumsum(lengths) - 1
    names = ids[ends].tolist()
    if lengths.min() != lengths.max():
        odd = int(np.flatnonzero(lengths != lengths[0])[0])
        raise InputError(
            f"{where}: series {names[odd]} has {lengths[odd]} states and series {names[0]} has {lengths[0]}; all must "
            "have as many: cut them, or give each length its own file"
        )
    return rows[order].reshape(len(lengths), lengths[0], -1), names, steps[ends].tolist()


LEAVE_OUT = (
    "call a column series that says which series a row is of, and leave out one of times or other words: rows follow "
    "each other by step, or as they stand without it"
)


def _number(text: str, column: str, line: str) -> float:
    if _is_number(text):
        return float(text)
    hint = f"; {LEAVE_OUT}" if text.strip() else "; fill the cell, or leave out those rows or that column"
    raise InputError(f"{line}: {text!r} in column {column} is not a number{hint}")


def _is_number(text: str) -> bool:
    try:
        return "_" not in text and float(text) is not None  # float() takes 1_000, which no table means
    except ValueError:
        return False


def _whole(text: str, line: str) -> int:
    if not text.strip().removeprefix("-").isdecimal() or len(text) > 18:
        raise InputError(f"{line}: step {text!r} is not a whole number")
    return int(text)
