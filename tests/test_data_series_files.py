"""A user's own series: the same numbers from every kind of file, and one line for what is wrong with a file."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from igebm.data.images import MissingSplit
from igebm.data.series import Windows
from igebm.data.series_files import load_series
from igebm.errors import InputError

X = np.random.default_rng(0).normal(size=(3, 5, 2)).astype(np.float32)
NAMES = ("height", "speed")


def rows(x: np.ndarray = X, ids: tuple[str, ...] = ("b", "a", "7")) -> list[tuple]:
    """(series, step, height, speed), steps from 1."""
    return [(ids[i], k + 1, *map(float, x[i, k])) for i in range(x.shape[0]) for k in range(x.shape[1])]


def write_csv(path, lines, head="series,step,height,speed"):
    path.write_text("\n".join([head, *(",".join(map(str, line)) for line in lines)]) + "\n", encoding="utf-8")
    return path


def write_parquet(path, lines, types=(None, None, None, None)):
    columns = zip(*lines, strict=True)
    names = ("series", "step", *NAMES)
    pq.write_table(pa.table({n: pa.array(c, t) for n, c, t in zip(names, columns, types, strict=True)}), path)
    return path


def test_a_check_says_what_is_in_series(tmp_path, capsys):
    """Two series of three states: 1, 2, 3 and 3, 4, 5 (mean 3, variance 10 / 6) beside a feature that stays."""
    from igebm.cli import main

    lines = [(name, k, start + k, 7) for name, start in (("a", 1), ("b", 3)) for k in range(3)]
    path = tmp_path / "s.csv"
    write_csv(path, lines, "series,step,up,still")
    assert main(["data", "check", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    split = found["splits"]["train"]
    assert (split["series"], split["states"], found["features"]) == (2, 3, ["up", "still"])
    assert split["of_features"]["up"] == pytest.approx({"mean": 3, "std": (10 / 6) ** 0.5, "least": 1, "greatest": 5})
    assert "train: the feature still has one value throughout, which training refuses" in found["warnings"]
    assert "train: series of 3 states; the presets' --past 3 needs at least 4" in found["warnings"]
    np.savez(tmp_path / "s.npz", train_x=np.zeros((2, 5, 1)), test_x=np.ones((1, 5, 1)))
    assert main(["data", "check", str(tmp_path / "s.npz"), "--series"]) == 0
    assert "states: 5" in capsys.readouterr().out
    assert main(["data", "check", str(path), "--channels", "3"]) == 2
    assert main(["data", "check", str(tmp_path / "none.csv")]) == 2
    assert "there is no such file" in capsys.readouterr().err
    (tmp_path / "photos.csv").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "photos.csv" / "a.png")
    assert main(["data", "check", str(tmp_path / "photos.csv")]) == 0  # a folder of pictures, whatever it is called
    assert "count: 1" in capsys.readouterr().out
    assert main(["train", "--data", str(path)]) == 2
    assert f"for series: igebm train balls-langevin --data {path}" in capsys.readouterr().err


def test_every_kind_of_file_gives_the_same_series(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, features=np.array(NAMES))
    np.savez_compressed(tmp_path / "b.npz", train_x=X.astype(np.float64), test_x=X[:1], features=np.array(NAMES))
    for path in (
        tmp_path / "a.npz",
        tmp_path / "b.npz",
        write_csv(tmp_path / "c.csv", rows()),
        write_parquet(tmp_path / "d.parquet", rows()),
    ):
        found = load_series(path)
        assert found.x.dtype == np.float32 and np.array_equal(found.x, X) and found.features == NAMES, path
    np.save(tmp_path / "e.npy", X)
    assert np.array_equal(load_series(tmp_path / "e.npy").x, X)
    assert load_series(tmp_path / "e.npy").features == ("x1", "x2")
    assert np.array_equal(load_series(tmp_path / "b.npz", "test").x, X[:1])


def test_rows_may_stand_in_any_order(tmp_path):
    """Series in the order in which they first appear, states by their step."""
    shuffled = [rows()[i] for i in np.random.default_rng(1).permutation(15)]
    order = [("b", "a", "7").index(name) for name in dict.fromkeys(row[0] for row in shuffled)]
    assert order != [0, 1, 2]
    assert np.array_equal(load_series(write_csv(tmp_path / "a.csv", shuffled)).x, X[order])
    assert np.array_equal(load_series(write_parquet(tmp_path / "a.parquet", shuffled)).x, X[order])


def test_a_byte_order_mark_quotes_and_empty_lines_are_no_matter(tmp_path):
    text = "\ufeffseries, step,height,speed\r\n" + "".join(f'"{s}",{k},{a},{b}\r\n' for s, k, a, b in rows()) + "\r\n"
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    assert np.array_equal(load_series(tmp_path / "a.csv").x, X)


def test_a_split_that_is_not_there_is_named(tmp_path):
    np.savez(tmp_path / "a.npz", train_x=X, val_x=X)
    assert load_series(tmp_path / "a.npz", "validation").x.shape == X.shape
    for path in (tmp_path / "a.npz", write_csv(tmp_path / "c.csv", rows())):
        with pytest.raises(MissingSplit, match="has no split 'test'; it has: train"):
            load_series(path, "test")


def refused(path, *words):
    with pytest.raises(InputError) as caught:
        load_series(path)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "x, words",
    [
        (X[0], ("series x steps x features", "(5, 2)")),
        (X[:, :, 0], ("(3, 5)",)),
        (X[:0], ("(0, 5, 2)",)),
        (X[:, :1], ("series of 1 states; at least 2",)),
        (X.astype(np.complex64), ("complex64",)),
        (X > 0, ("bool",)),
        (X.astype(str), ("<U",)),
        (np.where(X == X[1, 3, 1], np.nan, X), ("1 values", "nan", "series 1, row 3", "x2")),
        (np.where(X == X[2, 0, 0], 1e39, X.astype(np.float64)), ("1e+39", "series 2, row 0", "x1")),
    ],
)
def test_arrays_that_are_no_series_are_refused(tmp_path, x, words):
    np.savez(tmp_path / "a.npz", x=x)
    refused(tmp_path / "a.npz", *words)


def test_objects_and_pickles_stay_closed(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([X[0], X[1, :3]], dtype=object))
    refused(tmp_path / "a.npz", "Python objects", "never unpickled")


def changed(old, new):
    """The rows with one cell changed in line 7 of the file (series "a", step 1)."""
    return [tuple(new if i == 5 and cell == old else cell for cell in row) for i, row in enumerate(rows())]


@pytest.mark.parametrize(
    "lines, words",
    [
        (changed(float(X[1, 0, 0]), "tall"), ("line 7", "'tall' in column height is not a number")),
        (changed(float(X[1, 0, 0]), "1_000"), ("line 7", "'1_000' in column height")),
        (changed(float(X[1, 0, 1]), ""), ("line 7", "'' in column speed")),
        (changed(float(X[1, 0, 1]), "nan"), ("line 7", "nan in column speed", "series a")),
        (changed(float(X[1, 0, 1]), "-inf"), ("line 7", "-inf in column speed")),
        (changed(1, "1.5"), ("line 7", "step '1.5' is not a whole number")),
        (changed(1, "9" * 30), ("line 7", "is not a whole number")),
        (rows()[:-1], ("series 7 has 4 states and series b has 5",)),
        ([*rows()[:1], *rows()[2:]], ("series b has no step 2: 1 is followed by 3",)),
        ([*rows(), rows()[3]], ("series b has step 4 twice",)),
        ([("b", 1, 0.5)], ("line 2", "3 values under 4 names")),
        ([], ("no rows",)),
    ],
)
def test_rows_that_are_no_series_are_refused_with_their_line(tmp_path, lines, words):
    refused(write_csv(tmp_path / "a.csv", lines), *words)


@pytest.mark.parametrize(
    "head, says",
    [
        ("series,step", "must have a column for each feature"),
        ("series,step,a,a", "has two columns a"),
        ("series,series,a", "has two columns series"),
        ("step,a,", "has a column without a name"),
        ("", "must have a column for each feature"),
        ("series;step;up", "separate columns by commas, not by ';'"),
        ("61.2,1.02", "begins with numbers (61.2, 1.02); its first line must name the columns"),
    ],
)
def test_a_table_needs_its_columns(tmp_path, head, says):
    refused(write_csv(tmp_path / "a.csv", [], head), says)


def test_a_table_without_series_is_one_and_without_step_in_order(tmp_path):
    """Of a file with both columns, one or none: the same numbers, and a line that says what was taken."""
    both, told = rows(), []
    one = [row for row in both if row[0] == "a"]
    cases = {
        "both": ("series,step,height,speed", both, X, None),
        "no-step": ("series,height,speed", [(s, a, b) for s, _, a, b in both], X,
                    "has no column step: the rows of a series follow each other as they stand (3 series of 5 states)"),
        "no-series": ("step,height,speed", [row[1:] for row in reversed(one)], X[1:2],
                      "has no column series: all rows are one series (1 series of 5 states)"),
        "neither": ("height,speed", [row[2:] for row in one], X[1:2],
                    "has no column series or step: all rows are one series, as they stand (1 series of 5 states)"),
    }  # fmt: skip
    for name, (head, lines, x, said) in cases.items():
        columns = zip(head.split(","), zip(*lines, strict=True), strict=True)
        pq.write_table(pa.table({key: pa.array(values) for key, values in columns}), tmp_path / f"{name}.parquet")
        for path in (write_csv(tmp_path / f"{name}.csv", lines, head), tmp_path / f"{name}.parquet"):
            told.clear()
            found = load_series(path, say=told.append)
            assert np.array_equal(found.x, x) and found.features == NAMES, path
            assert told == ([f"{path} {said}"] if said else [])
    # Rows of several series in turn: each in its own order. The last step is the file's own 5, else 4 counted from 0.
    mixed = [both[i] for i in (0, 5, 1, 6, 2, 7)]
    found = load_series(write_csv(tmp_path / "m.csv", [(s, a, b) for s, _, a, b in mixed], "series,height,speed"))
    assert np.array_equal(found.x, X[:2, :3]) and (found.ids, found.last) == (("b", "a"), (2, 2))
    assert load_series(tmp_path / "both.csv").last == (5, 5, 5) and load_series(tmp_path / "neither.csv").last == (4,)


def test_a_column_of_times_or_words_is_named_with_what_to_do(tmp_path):
    times = [(f"2024-01-0{k + 1} 00:00", k, 0.5 * k) for k in range(4)]
    hint = "leave out one of times or other words"
    refused(write_csv(tmp_path / "a.csv", times, "time,up,down"), "line 2", "'2024-01-01 00:00' in column time", hint)
    at = pa.array(np.arange(4).astype("datetime64[D]"))
    pq.write_table(pa.table({"time": at, "up": pa.array([0.0, 1.0, 2.0, 4.0])}), tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", "column time holds date32", hint)


def test_windows_and_the_check_of_one_long_series(tmp_path, capsys):
    """Of 10 states 7 windows of 3 and the next: each state from the fourth on once an epoch, after the three before."""
    from igebm.cli import main

    path = write_csv(tmp_path / "long.csv", [(k, -k) for k in range(10)], "up,down")
    series = load_series(path)
    windows = Windows(series, 3, 7, (0.0, 0.0), (1.0, 1.0))
    x, y = windows(0)
    assert sorted(x[:, 0, 0].tolist()) == list(range(3, 10))
    assert (y[:, :, 0] == x[:, :, 0] - torch.tensor([3.0, 2.0, 1.0])).all()
    assert main(["data", "check", str(path), "--json"]) == 0
    told = capsys.readouterr()
    split = json.loads(told.out)["splits"]["train"]
    assert (split["series"], split["states"]) == (1, 10) and told.err.count("all rows are one series") == 1
    assert split["of_features"]["up"] == pytest.approx({"mean": 4.5, "std": 8.25**0.5, "least": 0, "greatest": 9})
    words = ["train", "balls-feedforward", "--data", str(path), "--width", "8", "--batch", "4", "--steps", "1"]
    assert main([*words, "--threads", "1", "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert (
        main(["forecast", str(tmp_path / "run"), str(path), "--steps", "2", "--out", str(tmp_path / "next.csv")]) == 0
    )
    assert [row.split(",")[:2] for row in (tmp_path / "next.csv").read_text().split()[1:]] == [["0", "10"], ["0", "11"]]


def test_a_head_of_several_lines_is_shown_in_one(tmp_path):
    """Damage can leave a quote open: what follows it is a name, over lines and all."""
    refused(write_csv(tmp_path / "a.csv", [("b", 1, 0.5)], 'series,,"st'), r"among series, , st\x0ab,1,0.5")


def test_parquet_columns_must_hold_numbers_without_gaps(tmp_path):
    bad = [list(row) for row in rows()]
    bad[4][3] = None
    refused(write_parquet(tmp_path / "a.parquet", bad), "1 empty cells in column speed")
    text = [(*row[:3], str(row[3])) for row in rows()]
    refused(write_parquet(tmp_path / "b.parquet", text), "column speed holds string")
    halves = write_parquet(tmp_path / "c.parquet", rows(), (None, pa.float64(), None, None))
    refused(halves, "column step holds double where whole numbers")
    bad[4][3] = float("nan")
    refused(write_parquet(tmp_path / "d.parquet", bad), "series b, row 4", "feature speed")
    (tmp_path / "e.parquet").write_bytes(b"PAR1 and no more")
    refused(tmp_path / "e.parquet", "is not a Parquet file")


def test_other_files_are_refused(tmp_path):
    refused(tmp_path / "none.csv", "there is no such file")
    (tmp_path / "a.txt").write_text("series,step,x")
    refused(tmp_path / "a.txt", "must end in .npz, .npy, .csv, .parquet")
    (tmp_path / "b.csv").write_bytes(b"series,step,h\xf6he\n")
    refused(tmp_path / "b.csv", "not UTF-8")
    (tmp_path / "c.npz").write_bytes(b"PK no zip")
    refused(tmp_path / "c.npz", "not an .npz file")
    np.savez(tmp_path / "d.npz", y=X)
    refused(tmp_path / "d.npz", "no time series", "it has: y")
    np.savez(tmp_path / "e.npz", x=X, features=np.array(["one"]))
    refused(tmp_path / "e.npz", "2 features and the names one")


@pytest.mark.parametrize("there", ["spéed", "bé"])
def test_parquet_names_and_cells_that_are_no_utf8_are_refused(there, tmp_path):
    """A damaged byte in a column's name, or in a series' name, is found only when it is looked at."""
    columns = {"series": ["bé", "bé", "bé"], "step": [0, 1, 2], "spéed": [0.5, 1.0, 2.0]}
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), path, compression="none", store_schema=False)
    whole = path.read_bytes()
    assert there.encode() in whole
    path.write_bytes(whole.replace(there.encode(), there.encode().replace(b"\xa9", b"(")))
    refused(path, "is not a Parquet file that can be read, or it is damaged")


def test_changes_too_fine_for_float32_are_refused_and_not_rounded_away(tmp_path):
    """About 1.7e7 float32 has steps of 2: changes of 1 become five values. With its mean off it is taken."""
    x = np.random.default_rng(0).normal(size=(4, 50, 2))
    x[..., 1] += 1.7e7
    np.save(tmp_path / "a.npy", x)
    with pytest.raises(InputError, match="feature x2 of .* changes by .* float32 cannot tell apart; take its mean off"):
        load_series(tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", x - x.mean((0, 1)))
    assert load_series(tmp_path / "b.npy").x.std() == pytest.approx(1, rel=0.2)


@pytest.mark.parametrize(
    "arrays, hinted",
    [
        ({"train_x": X, "features": np.array(NAMES)}, True),  # below 0: no pixels
        ({"x": np.zeros((4, 9, 3), np.float32)}, True),  # the channels cannot be told
        ({"series": X}, True),  # no array that could be images
        ({"x": np.zeros((4, 9, 3), np.uint8)}, False),
        ({"x": np.full((4, 9, 9, 1), 2.0)}, False),
    ],
)
def test_what_is_no_set_of_images_but_may_be_series_says_how_they_are_looked_at(arrays, hinted, tmp_path, capsys):
    from igebm.cli import main

    np.savez(tmp_path / "sensors.npz", **arrays)
    assert main(["data", "check", str(tmp_path / "sensors.npz")]) == 2
    told = capsys.readouterr().err
    assert ("if it holds time series: igebm data check --series" in told) == hinted and told.count("\n") == 1
    if hinted:
        x = next(iter(arrays.values()))
        assert main(["data", "check", str(tmp_path / "sensors.npz"), "--series", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["splits"]["train"]["states"] == x.shape[1]
