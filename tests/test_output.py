"""What goes where: results to stdout, whole and alone, as text or as one JSON document; messages to stderr; no colour
and no bar where nobody looks at a terminal."""

import csv
import dataclasses
import io
import json
import math
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_cli import TINY
from test_follow import run_folder as told_run

from igebm import arguments, data, manual, model, presets, pretrained, terminal
from igebm.cli import COMMANDS, main
from igebm.commands import results
from igebm.data import available, hub
from igebm.evaluation.settings import EXPERIMENTS
from igebm.files import write_json
from igebm.plain import plain
from igebm.report import plots

SMALL = "--threads 1 --device cpu --dtype float32 --compile off".split()


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A folder with a tiny run, a picture, and a model of time series."""
    folder = tmp_path_factory.mktemp("work")
    assert main(["train", "--steps", "2", "--out", str(folder / "run"), *TINY]) == 0
    shutil.copytree(folder / "run", folder / "again")
    images = data.load("digits", "test").x
    Image.fromarray(images[0, ..., 0]).save(folder / "seven.png")
    t = np.arange(40)
    waves = np.stack([np.stack([np.sin(0.3 * t + i), np.cos(0.3 * t + i)], -1) for i in range(6)])
    np.savez(folder / "waves.npz", train_x=waves.astype(np.float32), test_x=waves[:3].astype(np.float32))
    return folder


def found(words: list, capfd) -> dict | list:
    """What a command prints with --json, as one document; and nothing beside it."""
    capfd.readouterr()
    assert main([*map(str, words), "--json"]) == 0, capfd.readouterr().err
    return json.loads(capfd.readouterr().out)


# JSON: the numbers that the text has


def test_tables_as_json(capfd):
    assert found(["models"], capfd) == {name: pretrained.card(name) for name in pretrained.names()}
    assert found(["models", "digits"], capfd) == {"digits": pretrained.card("digits")}
    assert found(["data", "list"], capfd) == json.loads(json.dumps(available(None)))
    rows = found(["presets"], capfd)
    assert found(["presets", "digits"], capfd) == {"digits": rows["digits"]}
    assert presets.from_dict(rows["balls-mppi"]["settings"]).chain_steps == 30 and rows["digits"]["source"]
    digits = found(["data", "check", "digits"], capfd)
    assert {name: row["count"] for name, row in digits["splits"].items()} == {"train": 1438, "test": 359}
    assert digits["classes"] == list("0123456789") and digits["duplicates_across"] == 0


def test_energies_as_json_are_those_of_the_csv_and_of_the_model(work, capfd):
    words = ["energy", work / "run", "digits", *SMALL]
    about = found(words, capfd)
    assert main([*map(str, words)]) == 0
    rows = list(csv.DictReader(io.StringIO(capfd.readouterr().out)))
    assert [r["label"] for r in rows] == [r["label"] for r in about["energies"]]
    assert [float(r["energy"]) for r in rows] == pytest.approx([r["energy"] for r in about["energies"]], rel=1e-5)
    test = data.load("digits", "test")
    e = model.load(work / "run").energy(test.x, test.y)
    assert about["mean"] == pytest.approx(float(e.mean()), abs=1e-6) and about["data"] == "digits"
    assert about["standard_deviation"] == pytest.approx(float(e.std()), rel=1e-4)


def test_runs_as_json(work, tmp_path, capfd):
    out = tmp_path / "run"
    ended = found(["train", "--steps", "3", "--out", out, *TINY], capfd)
    assert ended.pop("seconds") > 0 and ended == {"folder": str(out), "reason": "done", "step": 3}
    again = found(["train", "--resume", out, "--steps", "3"], capfd)
    assert again == {"folder": str(out), "reason": "done", "step": 3, "seconds": 0.0}
    planned = found(["train", "--dry-run", "--width", "8"], capfd)
    assert planned["settings"]["width"] == 8 and planned["shape"] == [1, 8, 8] and planned["images"] == 1438
    # 10 steps in 2 seconds, 50 of 100 left; E(x+) is 1 all along.
    now = found(["watch", told_run(tmp_path / "told", 50, 1.0, 0.1)], capfd)
    assert (now["step"], now["steps"], now["last"]["gap"], now["last"]["e_pos"]) == (50, 100, 5.0, 1.0)
    assert now["seconds_each"] == pytest.approx(0.2) and now["seconds_left"] is None  # nobody is at it
    assert now["rollbacks"] == [{"diverged_at": 35, "back_to": 30, "cause": "the loss is not finite"}]


def test_a_run_without_numbers_is_watched_as_json(tmp_path, capfd):
    (tmp_path / "preset.json").write_text('{"settings": {"steps": 7}}')
    now = found(["watch", tmp_path], capfd)
    assert (now["step"], now["steps"], now["seconds_each"], now["rollbacks"]) == (0, 7, None, [])


@pytest.mark.parametrize("words", ["ood --n 20 --against uniform", "trajectory --n 2 --steps 3"])
def test_an_evaluation_as_json_is_its_file(words, work, tmp_path, capfd):
    name, *options = words.split()
    about = found(["eval", name, work / "run", "--out", tmp_path, *options, *SMALL], capfd)
    assert about == json.loads((tmp_path / f"{name}.json").read_text()) and about["experiment"] == name


def test_all_evaluations_as_json_are_their_files_or_why_there_is_none(tmp_path):
    """A failure that a later success has made up for does not count."""
    write_json(tmp_path / "ood.json", {"numbers": 1})
    write_json(tmp_path / "ood.failed.json", {"why": "before"})
    write_json(tmp_path / "likelihood.failed.json", {"why": "no"})
    assert results(tmp_path) == {"ood": {"numbers": 1}, "likelihood": {"why": "no"}}


def test_rollouts_as_json(work, tmp_path, capfd):
    series = ["--data", str(work / "waves.npz"), "--batch", "4", "--width", "8", "--chain-steps", "2", *SMALL]
    out = str(tmp_path / "r")
    assert main(["train", "balls-feedforward", "--steps", "1", "--out", out, *series]) == 0
    about = found(["eval", "rollout", out, "--length", "3", "--n", "2", "--threads", "1"], capfd)
    assert about == json.loads((tmp_path / "r" / "evaluation" / "rollout.json").read_text())


def test_an_inference_as_json(work, tmp_path, capfd):
    about = found(["infer", work / "run", work / "seven.png", "--out", tmp_path, *SMALL], capfd)
    assert about == json.loads((tmp_path / "infer.json").read_text())
    e = about["energies"]
    assert len(e) == 10 and about["least"] == min(e, key=e.get)


@pytest.mark.slow
def test_the_benchmark_as_json(capfd):
    assert main(["bench", "--quick", "--json", "-", "--threads", "1"]) == 0
    measured = json.loads(capfd.readouterr().out)  # what is in it: test_bench.py
    asked = {("langevin step", 64, 32), ("training iteration", 64, 32), ("peak memory of a chain", 64, 32)}
    assert measured["quick"] and {(r["what"], r["width"], r["batch"]) for r in measured["rows"]} == asked


def test_a_number_that_is_not_finite_is_null():
    """JSON has no word for it, and many readers refuse Python's."""
    got = plain({"a": (math.nan, 1.5, [math.inf]), 3: Path("x"), "n": None, "b": True})
    assert got == {"a": [None, 1.5, [None]], "3": "x", "n": None, "b": True}


PRINTING = {"train", "energy", "presets", "watch", "compare", "infer", "bench", "models", "data list", "data check"}
PRINTING |= {"baseline", "forecast", "eval ood", "eval rollout", "eval concepts", "eval all"}


@pytest.mark.parametrize("command", sorted(PRINTING))
def test_every_command_that_prints_a_table_takes_json(command, capfd):
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    assert "--json" in capfd.readouterr().out


# Streams


LINES = {
    "sample {run} --n 2 --steps 2 --out {out} SMALL": "{out}",
    "compose {run}=3 --n 2 --steps 2 --out {out} SMALL": "{out}",
    "restore {run} {work}/seven.png --n 2 --steps 2 --out {out} SMALL": "{out}",
    "report {run} --out {out}/r.html": "{out}/r.html",
    "train --steps 2 --out {out} TINY": "{out}",
}
"""commands whose result is where it lies: that, and nothing else"""
TABLES = {
    "presets": ("preset  ", len(presets.PRESETS) + 3),
    "presets digits": ("preset  ", len(dataclasses.fields(presets.Preset)) + 4),
    "models": ("model  ", len(pretrained.names()) + 3),
    "models digits": ("", None),
    "data list": ("", None),
    "data check digits": ("name: digits", None),
    "energy {run} digits SMALL": ("index,label,energy", 360),
    "watch {run}": ("{run}: step 2 of 2", None),
    "compare {run} {work}/again --out {out}": ("means over the last tenth of each log:\n", None),
    "infer {run} {work}/seven.png --out {out} SMALL": (
        "least: ",
        15,
    ),  # the next, its lead, ten energies under a heading, and the folder
    "eval ood {run} --n 20 --against uniform --out {out} SMALL": ("numbers:\n", None),
    "eval trajectory {run} --n 2 --steps 3 --out {out} SMALL": ("numbers:\n", None),
    "eval": ("usage: igebm eval", None),
    "--help": ("igebm ", None),
    "--version": ("igebm ", 1),
}
"""commands whose result is text: how it begins, and its lines"""


def printed(text: str, work: Path, out: Path, capfd, monkeypatch) -> tuple[str, str]:
    """Both streams of a command, where the environment asks every library for colour."""
    for name in ("FORCE_COLOR", "CLICOLOR_FORCE", "PY_COLORS"):
        monkeypatch.setenv(name, "1")
    filled = text.format(run=work / "run", work=work, out=out).split()
    words = [w for word in filled for w in {"SMALL": SMALL, "TINY": TINY}.get(word, [word])]
    out.mkdir(exist_ok=True)
    capfd.readouterr()
    assert main(words) == 0
    shown, told = capfd.readouterr()
    for stream in (shown, told):
        assert "\x1b" not in stream and "\r" not in stream
    return shown, told


@pytest.mark.parametrize("text", LINES, ids=lambda text: text.split()[0])
def test_stdout_is_the_folder_alone(text, work, tmp_path, capfd, monkeypatch):
    shown, told = printed(text, work, tmp_path / "o", capfd, monkeypatch)
    assert shown == LINES[text].format(out=tmp_path / "o") + "\n"
    assert text.startswith("report") or told.strip()


@pytest.mark.parametrize("text", TABLES, ids=lambda text: " ".join(w for w in text.split() if w[0] not in "{S")[:24])
def test_stdout_is_the_table_alone(text, work, tmp_path, capfd, monkeypatch):
    head, lines = TABLES[text]
    shown, _ = printed(text, work, tmp_path / "o", capfd, monkeypatch)
    assert shown.startswith(head.format(run=work / "run")) and shown.endswith("\n") and not shown.endswith("\n\n")
    assert lines is None or shown.count("\n") == lines


@pytest.mark.parametrize("words", ["ood --n 20 --against uniform", "trajectory --n 2 --steps 3"])
def test_an_evaluation_prints_its_numbers_and_where_the_rest_lies(words, work, tmp_path, capfd, monkeypatch):
    """What a person reads on stdout is what the file holds, and its last line leads to the file."""
    name, *options = words.split()
    text = f"eval {name} {{run}} --out {{out}} {' '.join(options)} SMALL"
    shown, _ = printed(text, work, tmp_path, capfd, monkeypatch)
    assert shown.splitlines()[-1] == f"folder: {tmp_path}"
    about = json.loads((tmp_path / f"{name}.json").read_text())
    found = numbers_in(about["numbers"])
    assert found and all(f"{key}: {value:.6g}" in shown or f"{key} {value:.6g}" in shown for key, value in found)


def numbers_in(value: dict) -> list[tuple[str, float]]:
    """Every number of nested tables, with its name."""
    tables = [v for v in value.values() if isinstance(v, dict)]
    return [(k, v) for k, v in value.items() if isinstance(v, float)] + [pair for t in tables for pair in numbers_in(t)]


@pytest.mark.parametrize("words", ["train --nope", "sample", "presets --jsn", "eval nope", "nope", "data check /none"])
def test_mistakes_are_said_on_stderr_alone(words, capfd):
    assert main(words.split()) == 2
    shown, told = capfd.readouterr()
    assert shown == "" and told.startswith("igebm: ") and told.count("\n") == 1


@pytest.mark.parametrize("command", [c for c in COMMANDS if c != "eval"] + ["eval ood"])
def test_help_into_a_file_has_no_colour(command, capfd, monkeypatch):
    for name in ("FORCE_COLOR", "CLICOLOR_FORCE"):
        monkeypatch.setenv(name, "1")
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    shown, told = capfd.readouterr()
    assert "\x1b" not in shown and told == ""


def test_redirected_streams_of_a_process_hold_no_bar(tmp_path):
    """The same from outside, as whole processes: stdout into a file, stderr into another."""
    line = [sys.executable, "-m", "igebm", "sample", "digits", "--n", "2", "--steps", "5", "--out", str(tmp_path / "s")]
    done = subprocess.run([*line, *SMALL], capture_output=True)
    assert done.returncode == 0 and done.stdout.decode() == f"{tmp_path / 's'}\n"
    assert b"\x1b" not in done.stderr and b"\r" not in done.stderr


def test_libraries_that_read_from_the_hub_draw_no_bar_into_a_file(work, tmp_path, capfd, monkeypatch):
    """`datasets` draws bars whatever stderr is; a folder on disk is read as a set on the hub would be."""
    import datasets

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # not before the import: the library would stay offline
    (tmp_path / "set").mkdir()
    for i in range(3):
        Image.new("L", (8, 8), i).save(tmp_path / "set" / f"{i}.png")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    splits = hub.download(str(tmp_path / "set"), None, "nowhere", terminal.say)
    assert len(splits["train"]) == 3
    told = capfd.readouterr().err
    assert "\r" not in told and "\x1b" not in told and "reading" in told


def test_what_is_missing_keeps_its_dots(capfd):
    """The parser's " ." went, and with it that of " .safetensors"."""
    assert main(["sample"]) == 2
    assert "a .safetensors file" in capfd.readouterr().err


def test_the_time_left_is_told_from_what_was_done_since_the_start(monkeypatch, capsys):
    """A reporter in steps of fifty, at 2 s each, and a run that goes on from 1,000: both say 2 s each from the first
    line."""
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    for first in (0, 1000):
        now[0] = 0.0
        with terminal.bar("work", every=10.0, first=first) as screen:
            for _ in range(2):
                now[0] += 100.0
                screen.step(first + int(now[0] / 2), first + 1000)
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "work 50/1000, 2 s each, 1:40 gone, 31:40 left" and "2 s each, 3:20 gone, 30:00 left" in told[1]
    assert told[2] == "work 1050/2000, 2 s each, 1:40 gone, 31:40 left"


def test_a_table_fits_the_terminal():
    """The widest column goes on below itself, by whole words; numbers stay in their column; a file or a pipe gets a
    row in one line, and so does a terminal too narrow for words."""
    note = "three short lines of text are what is left here, see results/a-file.json"
    rows = [{"model": "digits", "note": note, "n": 1}, {"model": "b", "note": "short", "n": 22}]
    lines = terminal.table(rows, width=40).splitlines()
    assert max(map(len, lines)) <= 40 and lines[0].split() == ["model", "note", "n"]
    assert lines[1].split()[0] == "digits" and lines[1].endswith("  1") and lines[-1].split() == ["b", "short", "22"]
    assert " ".join(line[8:36].strip() for line in lines[1:-1]) == note
    assert len(terminal.table(rows).splitlines()) == len(terminal.table(rows, width=30).splitlines()) == 3
    both = [
        row | {"model": "the longer of two columns gives way first, and a-name-that-is-one-word stays"} for row in rows
    ]
    lines = terminal.table(both, width=64).splitlines()
    assert max(map(len, lines)) <= 64 and any("a-name-that-is-one-word" in line for line in lines)
    name = "n" * 40
    assert name in terminal.table([{"name": name, "note": note}], width=70)
    assert len(terminal.table([{"name": name, "note": note}], width=60).splitlines()) == 2


def test_rows_within_plain_data_are_a_table():
    told = {"rows": [{"seed": 0, "share": 0.5}, {"seed": 10, "share": 0.25}], "tags": ["a", "b"], "none": []}
    assert terminal.pretty(told) == [
        "rows:",
        "  seed  share",
        "  0     0.5",
        "  10    0.25",
        "tags: a, b",
        "none: none",
    ]


def test_a_picture_of_samples_has_a_row_a_class_and_its_name_beside_it():
    """Three pictures of class 2 and one of class 0, of 8x8: two rows of three, enlarged eight times on white, in the
    order of the classes, and letters in the margin of each row."""
    x = np.stack([np.full((8, 8, 3), v, np.uint8) for v in (10, 20, 30, 40)])
    shown = plots.class_rows(x, np.array([2, 0, 2, 2]), ("cat", "none", "dog"))
    body = shown[:, -8 * 28 :]
    assert body.shape == (8 * 19, 8 * 28, 3)
    middles = body[8 * 5 :: 8 * 9, 8 * 5 :: 8 * 9, 0]
    assert middles.tolist() == [[20, 255, 255], [10, 30, 40]]
    margin = shown[:, : -8 * 28, 0]
    assert (margin[:76] < 128).any() and (margin[76:] < 128).any() and margin.shape[1] < 60


def test_a_number_that_there_is_not_is_no_word_of_pythons():
    """The error of a mean of one, say: an empty place of a table, nothing in a line of counts, none by itself."""
    row = {"mean": 1.5, "se": None, "n": 1}
    assert terminal.table([row]).split() == ["mean", "se", "n", "1.5", "1"]
    assert terminal.pretty({"a": {"b": {"c": row}}, "d": None}) == ["a:", "  b:", "    c: mean 1.5, n 1", "d: none"]
    assert (
        terminal.written({"at": [0.1 + 0.2, 7], "of": None, "by": {"x": 63.339999999999996}}) == "at 0.3, 7, by x 63.34"
    )


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("command", sorted({*COMMANDS, "eval ood", "eval generation", "eval all"} - {"eval"}))
def test_help_is_paragraphs_of_the_terminals_width(command, columns, monkeypatch, capsys):
    """No line is broken where the next word would have fitted, and none is longer than the terminal is wide; what need
    not be given is shown as it is given."""
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    told = capsys.readouterr().out.splitlines()
    assert max(map(len, told)) <= columns
    assert not [line for line in told if "{None}" in line or "default: None" in line]
    inside = [line[2:-2].rstrip() for line in told if line.startswith(("│", "|"))]
    for before, line in pairwise(inside):
        goes_on = line.startswith(" " * 4) and re.search(r"\S  +\S|^    ", before)
        if goes_on:
            assert len(before) + 1 + len(line.split()[0]) > max(map(len, inside)), (before, line)


@pytest.mark.parametrize("columns", [40, 60, 80, 160])
def test_a_bar_never_cuts_the_count_and_the_time_left(columns, tmp_path, monkeypatch):
    """Where it is narrow the numbers of the work give way, then the bar itself."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    screen = open(tmp_path / "screen", "w+", encoding="utf-8")
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(terminal.sys, "stderr", screen)
    with terminal.bar("training", first=100) as shown:
        for k in range(101, 104):
            shown.step(k, 10000, "E(x+) -0.015  E(x-) -0.011  gap +0.005")
    screen.close()
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", (tmp_path / "screen").read_text()).replace("\r", "\n").split("\n")
    last = [line for line in lines if line.strip()][-1]
    assert re.match(r"training .*103/10000 .*\d:\d\d:\d\d left|training .*103/10000 .*-:--:-- left", last), last
    assert len(last.rstrip()) <= columns and ("gap +0.005" in last) == (columns == 160)


def test_a_mistake_is_answered_with_what_to_write(capsys):
    for words, says in (
        ("--threads 1 train", "options come after the command: igebm COMMAND --threads"),
        ("eval digits ood", "the experiment comes first: igebm eval ood digits"),
        ("sample digits --steps 1,5", "igebm: --steps: give a whole number, got '1,5'; see"),
        ("train --lr 1,5", "igebm: --lr: give a number, got '1,5' (write decimals with a dot); see"),
        ("sample digits --n x", "igebm: --n: give a whole number, got 'x'; see igebm sample --help"),
        ("train --lr abc", "igebm: --lr: give a number, got 'abc'; see igebm train --help"),
        ("train --stem 4x4", "igebm: --stem: give one of 3x3, 4x4/2, got '4x4'; see igebm train --help"),
        ("eval ood digits --split", "igebm: unknown option: --split; see igebm eval ood --help"),
        ("sample digits --nn 3", "igebm: unknown option: --nn 3; did you mean --n?; see igebm sample --help"),
        ("sample digits -n 3", "igebm: unknown option: -n 3; did you mean --n?; see igebm sample --help"),
        ("train --num_steps 60", "unknown option: --num_steps 60; did you mean --chain-steps or --steps?; see igebm"),
        ("eval ood digits --option 3", "unknown option: --option 3; did you mean --inception?; see igebm eval ood"),
        ("train --batch_size 3", "igebm: unknown option: --batch_size 3; did you mean --batch?; see igebm train"),
        ("train --epochs 3", "igebm: unknown option: --epochs 3; did you mean --steps?; see igebm train --help"),
        ("sample digits --count 3", "igebm: unknown option: --count 3; did you mean --n?; see igebm sample"),
        ("sample digits --learning-rate 3", "igebm: unknown option: --learning-rate 3; see igebm sample"),
        ("eval ood digits --batchsize 3", "unknown option: --batchsize 3; did you mean --batch?; see igebm eval"),
        ("sample digits --label", "igebm: --label wants a value; see igebm sample --help"),
        ("sample digits dogs", "igebm: not expected: dogs; see igebm sample --help"),
        ("push digits somewhere", "a folder: ./somewhere/"),
        ("resume runs/digits", "unknown command 'resume'; did you mean igebm train --resume DIR?"),
        ("generate digits", "did you mean igebm sample?"),
        ("eval ood digits --quick", "--quick is of igebm eval all; igebm eval ood takes fewer of everything by --n"),
        ("sample digits --init buffer", "--init buffer needs a run folder with its checkpoint, and digits is none"),
    ):
        assert main(words.split()) == 2
        assert says in capsys.readouterr().err


def test_the_iterations_of_a_model_are_those_of_what_it_began_with_too(capsys):
    """cifar10-cond: 3,000 on a GPU, and 853 that went on from them; digits: 4,000 and 1,000."""
    assert main(["models"]) == 0
    rows = {line.split()[0]: line.split()[1:3] for line in capsys.readouterr().out.splitlines() if line}
    assert rows["cifar10-cond"] == ["5,106,305", "3,853"] and rows["digits"] == ["80,353", "5,000"]


@pytest.mark.parametrize("word", ["epochs", "n_epochs", "iterations", "iters", "epoch_num"])
def test_words_of_training_are_answered_where_a_command_trains(word, capsys):
    """igebm sample has --steps, too: those of a chain."""
    for words, trains in ((["train"], True), (["baseline", "glow"], True), (["sample", "digits"], False)):
        assert main([*words, f"--{word}", "3"]) == 2
        assert ("did you mean --steps" in (said := capsys.readouterr().err)) == trains and "unknown option" in said
    assert main(["sample", "digits", "--num_steps", "3"]) == 2
    assert "did you mean --steps" in capsys.readouterr().err


def test_what_other_programs_call_an_option_is_one_of_ours(capsys):
    """A flag of the released code that docs/coming-from.md has in its table of training is answered with ours there,
    and every option that an answer can name is one of some command."""
    page = (Path(__file__).resolve().parents[1] / "docs" / "coming-from.md").read_text(encoding="utf-8")
    table = page[page.index("| `--dataset`") :].split("\n\n")[0]
    pairs = re.findall(r"^\| `--(\w+)`[^|]*\| `(--[\w-]+)", table, re.M)
    assert len(pairs) >= 20
    for theirs, ours in pairs:
        if f"--{theirs.replace('_', '-')}" not in manual.options(arguments.Train):
            assert main(["train", f"--{theirs}", "1"]) == 2
            assert re.search(rf"did you mean .*{ours}\b", capsys.readouterr().err), theirs
    kinds = (arguments.Train, arguments.Sample, arguments.Evaluate[EXPERIMENTS["ood"]])
    assert set(manual.MEANT) <= {option for kind in kinds for option in manual.options(kind)}
