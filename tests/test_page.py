"""The page of `igebm report`: parsed, and held against the files it was made from; then looked at in a browser."""

import base64
import io
import itertools
import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from igebm import model, presets
from igebm.cli import main
from igebm.errors import Fault, InputError
from igebm.evaluation.settings import EXPERIMENTS
from igebm.report import curves, found, page
from igebm.report.embedded import embed
from igebm.report.markup import tag, written

TINY = (
    "--width 4 --blocks 1d --chain-steps 3 --batch 8 --buffer-size 24 --save-every 2 --log-every 1 --grid-every 2 "
    "--sample-steps 2 --device cpu --dtype float32 --compile off --threads 1"
).split()
HOSTILE = "<script>alert(1)</script>\" onload='x' & </style>"
VOID = {"meta", "link", "img", "input", "br"}


class Node:
    """An element of a parsed page: its name, attributes, and all that lies in it."""

    def __init__(self, name, attributes):
        self.name, self.attributes, self.children = name, attributes, []

    def all(self, name=None, **wanted):
        for child in self.children:
            if isinstance(child, Node):
                if name in (None, child.name) and all(child.attributes.get(k) == v for k, v in wanted.items()):
                    yield child
                yield from child.all(name, **wanted)

    def first(self, name=None, **wanted):
        return next(self.all(name, **wanted))

    @property
    def text(self):
        return "".join(child if isinstance(child, str) else child.text for child in self.children)


class Parser(HTMLParser):
    """The page as a tree; every element must be closed, and in order."""

    def __init__(self):
        super().__init__()
        self.root = Node("", {})
        self.open = [self.root]

    def handle_starttag(self, name, attributes):
        node = Node(name, dict(attributes))
        self.open[-1].children.append(node)
        if name not in VOID:
            self.open.append(node)

    def handle_endtag(self, name):
        assert self.open.pop().name == name

    def handle_data(self, data):
        self.open[-1].children.append(data)


def parsed(text) -> Node:
    parser = Parser()
    parser.feed(text)
    parser.close()
    assert parser.open == [parser.root]
    return parser.root


def report(folder) -> Node:
    return parsed(page.page(found.find(folder, EXPERIMENTS), EXPERIMENTS))


def troubles(root) -> str:
    return " | ".join(line.text for box in root.all("aside") for line in box.all("li"))


def values(node) -> set[float]:
    """All exact numbers in it."""
    return {float(data.attributes["value"]) for data in node.all("data")}


def table_rows(table) -> list[list[str]]:
    return [[c.text for c in row.children if isinstance(c, Node)] for row in table.all("tr")]


def numbers_in(value) -> list[float]:
    if isinstance(value, dict):
        return [n for k, v in value.items() if k != "figures" for n in numbers_in(v)]
    if isinstance(value, list):
        # Of a long list the page has the ends, and the rest as a line.
        return [n for v in (value if len(value) <= 12 else [value[0], value[-1]]) for n in numbers_in(v)]
    return [float(value)] if isinstance(value, int | float) and not isinstance(value, bool) else []


# Folders to report on


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Path:
    """A tiny run with one evaluation, by the commands that a user types."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["train", "--steps", "6", "--out", str(folder), *TINY]) == 0
    options = ["--n", "2", "--steps", "20", "--frames", "3", *TINY[TINY.index("--device") :]]
    assert main(["eval", "trajectory", str(folder), *options]) == 0
    return folder


def log_line(step, **more):
    numbers = {"e_pos": 0.5, "e_neg": 0.25, "gap": -0.25, "gradient": 2.0, "saturated": 0.5}
    return {"step": step, "seen": 8 * step} | numbers | more


def write_log(folder, entries):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def write_result(folder, name, numbers, **more):
    about = {
        "experiment": name,
        "numbers": numbers,
        "model": {"name": "hand", "step": 40, "preset": "digits", "data": "digits"},
        "options": {},
        "seed": 0,
        "seconds": 75.0,
        "machine": {"cpu": "a CPU", "cores": 2, "command": f"igebm eval {name} runs/hand", "commit": "abc1234"},
    }
    (folder / f"{name}.json").write_text(json.dumps(about | more))


@pytest.fixture
def hand(tmp_path) -> Path:
    """A run folder made by hand: all its numbers are known."""
    folder = tmp_path / "hand"
    (folder / "samples").mkdir(parents=True)
    (folder / "evaluation").mkdir()
    about = {
        "settings": presets.to_dict(presets.PRESETS["digits"].preset) | {"lr": 0.001, "steps": 40},
        "shape": [1, 8, 8],
        "classes": ["zero", "one"],
        "latents": [],
        "facts": {"preset": "digits", "seed": 0, "data": {"name": "digits", "images": 1438}},
        "command": ["igebm", "train", "--lr", "0.001"],
        "versions": {"igebm": "0.1.0"},
        "machine": {"system": "Linux", "cores": 2, "runtime": "CPU"},
    }
    (folder / "preset.json").write_text(json.dumps(about))
    write_log(folder, [log_line(step, seconds=step / 2) for step in (10, 20, 30, 40)])
    for step in (10, 20, 30, 40):
        Image.fromarray(np.full((20, 20), step, np.uint8)).save(folder / "samples" / f"{step:07d}.png")
    return folder


# The page of a run


def test_a_real_run_as_a_user(real, capsys):
    assert main(["report", str(real)]) == 0
    assert capsys.readouterr().out.strip() == str(real / "report.html")
    root = parsed((real / "report.html").read_text(encoding="utf-8"))
    trained = model.load(real)
    shown = {div.first("dt").text: div.first("dd").text for div in root.first("dl").all("div")}
    assert shown["parameters"] == str(sum(p.numel() for p in trained.net.parameters()))
    assert shown["iterations"] == "6 of 6" and shown["preset"].startswith("digits")
    assert shown["data"] == "digits, 1,438 images, 8 × 8 pixels, grey" and shown["condition"].startswith(
        "10 classes: 0, 1"
    )
    assert not list(root.all("aside"))  # nothing is missing or damaged

    about = json.loads((real / "evaluation" / "trajectory.json").read_text())
    there = root.first("section", id="experiment-trajectory")
    assert set(numbers_in(about["numbers"])) <= values(there)
    assert about["machine"]["command"] in [code.text for code in there.all("code")]

    # The pictures are the files' own bytes, or have the files' pixels where these were large.
    images = {image.attributes["alt"]: image.attributes["src"] for image in root.all("img")}
    noise = next(src for alt, src in images.items() if "from noise" in alt)
    assert base64.b64decode(noise.partition(",")[2]) == (real / "samples" / "noise-0000006.png").read_bytes()
    assert [f.first("figcaption").text for f in root.first("div", **{"class": "frames"}).all("figure")] == [
        "step 2", "step 4", "step 6"
    ]  # fmt: skip


def test_nothing_is_asked_of_anybody(real):
    text = page.page(found.find(real, EXPERIMENTS), EXPERIMENTS)
    root = parsed(text)
    for node in root.all():
        for name, value in node.attributes.items():
            if name in ("src", "srcset", "href", "poster", "data", "action", "xlink:href"):
                assert value.startswith(("data:", "#")), (node.name, name, value[:60])
    assert "@import" not in text and not re.search(r"url\((?!#)", text) and "//" not in text.split("</head>")[0]
    policy = root.first("meta", **{"http-equiv": "Content-Security-Policy"}).attributes["content"]
    assert policy.startswith("default-src 'none'; img-src data:; ")
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text


def test_every_experiment_is_there_or_listed_with_its_command(real):
    root = report(real)
    listed = {item.first("h3").text.lower(): item for item in root.first("section", id="not-run").all("li")}
    done = {s.attributes["id"].removeprefix("experiment-") for s in root.all("section")} & set(EXPERIMENTS)
    assert done == {"trajectory"} and set(listed) == set(EXPERIMENTS) - done
    assert all(item.first("code").text == f"igebm eval {name} {real}" for name, item in listed.items())


def test_the_same_files_give_the_same_page_and_nothing_else_is_left(real, tmp_path):
    before = {p for p in real.rglob("*") if p.name not in ("report.html", ".lock")}
    first = page.write(real, EXPERIMENTS, tmp_path / "new" / "a.html").read_bytes()
    assert page.write(real, EXPERIMENTS, tmp_path / "new" / "a.html").read_bytes() == first
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.html"]
    assert {p for p in real.rglob("*") if p.name not in ("report.html", ".lock")} == before
    assert len(first) < 3_000_000


def test_a_page_that_cannot_be_written_leaves_the_old_one(hand, monkeypatch):
    out = page.write(hand, EXPERIMENTS)
    old = out.read_bytes()
    write_log(hand, [log_line(10)])

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(Fault, match="No space left"):
        page.write(hand, EXPERIMENTS)
    assert out.read_bytes() == old and not list(hand.glob(".report*"))


def test_a_bundled_model_without_a_run_folder(tmp_path):
    folder = tmp_path / "evaluation" / "my digits"
    folder.mkdir(parents=True)
    told = {"name": "digits", "step": 1000, "preset": "digits", "data": "digits"}
    write_result(folder, "ood", {"auroc": 0.75}, model=told, machine={"command": "igebm eval ood digits --out x"})
    root = report(folder)
    shown = {div.first("dt").text: div.first("dd").text for div in root.first("dl").all("div")}
    assert root.first("h1").text == "digits" and shown["parameters"] == "80,353" and shown["wall time"] == "11:08"
    commands = [code.text for code in root.first("section", id="not-run").all("code")]
    assert f"igebm eval likelihood digits --out '{folder}'" in commands
    assert root.first("section", id="settings") and 0.75 in values(root.first("section", id="experiment-ood"))


@pytest.mark.parametrize("make", [lambda f: None, lambda f: f.mkdir(), lambda f: f.write_text("x")])
def test_a_folder_of_neither_kind_is_refused(make, tmp_path, capsys):
    make(tmp_path / "other")
    assert main(["report", str(tmp_path / "other")]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and "other" in said and "igebm eval" in said


@pytest.mark.parametrize(
    ("command", "where"),
    [
        ("igebm eval ood 'my runs/hand' --n 2", "my runs/hand"),
        ("igebm eval ood --data 'a b' 'it'\"'\"'s/hand.safetensors'", "it's/hand.safetensors"),
        ("igebm eval ood 'my runs/hand", "out"),
    ],
)
def test_the_model_of_an_evaluation_is_a_word_of_its_command(command, where, tmp_path):
    """As a shell has its words; where the line is none, the folder's name stands for it."""
    (tmp_path / "out").mkdir()
    write_result(tmp_path / "out", "ood", {"n": 1}, machine={"command": command})
    assert found.find(tmp_path / "out", EXPERIMENTS).model == where


def test_out_must_be_a_file(hand, tmp_path):
    with pytest.raises(InputError, match="is a folder; give a file"):
        page.write(hand, EXPERIMENTS, tmp_path)


# Numbers and settings


def test_the_papers_numbers_stand_beside_those_of_the_same_name(hand):
    numbers = {
        "extractor": "classifier",
        "fid": {"mean": 37.123456, "se": 0.5, "n": 1000},
        "auroc": {"svhn": 0.6123456, "dtd": None, "own": 0.9},
        "sets": {"svhn": {"mean": 1.5, "far": 2}, "dtd": {"mean": 2.5, "far": 3, "paper": {"mean": 2.75}}},
        "confusion": [[5, 0], [1, 4]],
        "paper": {
            "fid": 40.58,
            "auroc": {"svhn": 0.63, "dtd": 0.48, "uniform": 1.0},
            "is": 8.3,
            "sets": {"svhn": {"mean": 7}},
        },
    }
    write_result(hand / "evaluation", "ood", numbers)
    single, sets, confusion = report(hand).first("section", id="experiment-ood").all("table")
    assert table_rows(single) == [
        ["", "this model", "the paper"],
        ["extractor", "classifier", ""],
        ["fid", "37.12 ± 0.5, n 1,000", "40.58"],
        ["auroc", ""],
        ["svhn", "0.6123", "0.63"],
        ["dtd", "–", "0.48"],
        ["own", "0.9", ""],
        ["uniform", "", "1"],
        ["is", "", "8.3"],
    ]
    assert {37.123456, 0.6123456, 40.58} <= values(single)
    assert table_rows(sets) == [
        ["", "mean", "mean, the paper", "far"],
        ["svhn", "1.5", "7", "2"],
        ["dtd", "2.5", "2.75", "3"],
    ]
    assert table_rows(confusion) == [["", "0", "1"], ["0", "5", "0"], ["1", "1", "4"]]


def test_settings_that_differ_from_the_preset_are_marked_and_no_others(hand):
    there = report(hand).first("section", id="settings")
    marked = {
        div.first("dt").text: div.first("dd").text for div in there.all("div") if list(div.all("mark"))
    }  # fmt: skip
    assert marked == {"lr": "0.001 digits: 0.0006", "steps": "40 digits: 1,000"}
    assert len(list(there.all("dt"))) == len(presets.to_dict(presets.Preset()))


def test_options_that_differ_from_their_defaults_are_marked(hand):
    write_result(hand / "evaluation", "trajectory", {"energy_end": 1.0}, options={"n": 3, "steps": None, "frames": 10})
    there = report(hand).first("section", id="experiment-trajectory")
    marked = [div.first("dd").text for div in there.all("div") if list(div.all("mark"))]
    assert marked == ["3 default: 10"]


def test_why_there_is_no_result(hand):
    folder = hand / "evaluation"
    (folder / "generation.failed.json").write_text(
        json.dumps({"experiment": "generation", "why": "no network; give it"})
    )
    (folder / "likelihood.json").write_text('{"experiment": "likelihood", "numb')
    write_result(folder, "ood", {"auroc": 1}, model={"name": "hand", "step": 20})
    (folder / "ood.failed.json").write_text(json.dumps({"why": "too many"}))
    root = report(hand)
    listed = {item.first("h3").text: item.text for item in root.first("section", id="not-run").all("li")}
    assert "It failed: no network; give it" in listed["Generation"]
    assert "likelihood.json, is damaged" in listed["Likelihood"] and "likelihood.json is damaged" in troubles(root)
    assert "Not run yet." in listed["Finetune"] and "OOD" not in listed
    there = root.first("section", id="experiment-ood").text
    assert "Measured at step 20; the model is now at step 40." in there and "A later attempt failed: too many" in there


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (80353, "80,353"),
        (-0.25, "−0.25"),
        (0.03081148, "0.03081"),
        (300.0, "300"),
        (True, "yes"),
        (None, "–"),
        ("a", "a"),
    ],
)
def test_written(value, text):
    assert written(value) == text


# The log


def test_a_rollback_is_marked_and_what_it_undid_is_apart(hand):
    lines = [log_line(s, seconds=s / 10) for s in (10, 20, 30)]
    event = {"event": "rollback", "diverged_at": 37, "cause": "the loss is not finite", "back_to": 15}
    # The clock starts anew on resuming: 3 s, then 4.5 s.
    again = [log_line(s, e_pos=0.75, seconds=t) for s, t in ((20, 1.0), (30, 2.0), (40, 4.5))]
    write_log(hand, [*lines, event, *again])
    told: list[str] = []
    log = found.read_log(hand / "metrics.jsonl", told)
    assert told == [] and log.seconds == 7.5
    assert [(e["step"], e["e_pos"]) for e in log.entries] == [(10, 0.5), (20, 0.75), (30, 0.75), (40, 0.75)]
    assert [[e["step"] for e in branch] for branch in log.undone] == [[10, 20, 30]]
    root = report(hand)
    marks = [mark.text for mark in root.all("g", **{"class": "rollbacks"})]
    assert len(marks) == 4 and all("rollback 1: diverged at step 37, back to 15" in m and "↶1" in m for m in marks)
    assert root.first("ol").text == "Step 37: the loss is not finite. Back to step 15."


def test_a_log_cut_anywhere_keeps_its_whole_lines(hand):
    path = hand / "metrics.jsonl"
    text = path.read_bytes()
    last = text[:-1].rindex(b"\n") + 1
    for end in range(last, len(text) - 1):
        path.write_bytes(text[:end])
        told: list[str] = []
        assert [e["step"] for e in found.read_log(path, told).entries] == [10, 20, 30]
        assert told == ([] if end == last else ["metrics.jsonl: line 4 is cut or damaged and left out"])
    root = report(hand)
    assert "line 4 is cut" in troubles(root)
    assert "3 lines of the log, steps 10 to 30" in root.first("section", id="training").text


def test_a_curve_lies_where_its_numbers_are():
    log = found.Log([{"step": s, "v": v} for s, v in ((0, 2.0), (50, 4.0), (75, math.nan), (100, 6.0))])
    figure = curves.chart(log, "a", {"v": "V"})
    path = next(e.get("d") for e in figure.iter("path") if e.get("class") == "line c1")
    assert path.count("M") == 2  # a gap where there is no number
    points = [tuple(map(float, p.split())) for p in re.split("[ML]", path.replace(" L", "L").replace(" M", "M"))[1:]]
    xs, ys = zip(*points, strict=True)
    width = curves.WIDTH - curves.LEFT - curves.RIGHT
    assert xs == pytest.approx([curves.LEFT, curves.LEFT + width / 2, curves.LEFT + width], abs=0.06)
    assert ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.11) and ys[0] > ys[2]
    titles = [e.text for e in figure.iter("title")]
    assert titles == ["step 0\nV: 2", "step 50\nV: 4", "step 75", "step 100\nV: 6"]


def test_a_long_log_is_averaged_and_its_spread_shown():
    entries = [{"step": s, "v": float(s % 4)} for s in range(1, 1001)]
    points = curves.points(entries, ["v"])
    assert len(points) == 143 and points[0] == (1, 7, {"v": (12 / 7, 0.0, 3.0)})  # 1 2 3 0 1 2 3, by sevens
    assert sum(p.last - p.first + 1 for p in points) == 1000
    figure = curves.chart(found.Log(entries), "a", {"v": "V"})
    assert [e.get("class") for e in figure.iter("path")] == ["band c1", "line c1"]


@pytest.mark.parametrize(
    ("low", "high", "want"),
    [(0, 1, [0, 0.5, 1]), (-0.03, 0.018, [-0.02, 0]), (0, 100_000, [0, 50_000, 100_000]), (7, 9, [7, 7.5, 8, 8.5, 9])],
)
def test_ticks_are_round_numbers(low, high, want):
    assert curves.ticks(curves.Axis(low, high, 0, 1)) == pytest.approx(want)


def test_logarithmic_ticks_are_powers_of_ten():
    assert curves.ticks(curves.Axis(0.006, 40, 0, 1, True)) == pytest.approx([0.01, 0.1, 1, 10])


# What was damaged, and what means harm


@pytest.mark.parametrize("damage", [b"", b"\x00\xff\xfe", b"[1, 2", b"[]", b"null", b'"x"', b"{}", b"[" * 100_000])
@pytest.mark.parametrize("file", ["preset.json", "metrics.jsonl", "model.safetensors", "evaluation/ood.json"])
def test_a_damaged_file_is_named_and_the_rest_is_shown(file, damage, hand):
    write_result(hand / "evaluation", "trajectory", {"energy_end": 0.125})
    (hand / file).write_bytes(damage)
    root = report(hand)
    assert Path(file).name in troubles(root)
    assert 0.125 in values(root.first("section", id="experiment-trajectory"))


def test_damaged_and_missing_pictures_are_named(hand):
    path = hand / "samples" / "0000020.png"
    path.write_bytes(path.read_bytes()[:50])
    (hand / "samples" / "0000030.png").write_text("no picture")
    write_result(hand / "evaluation", "ood", {"figures": ["gone.png", "../preset.json", 7]})
    root = report(hand)
    assert [f.first("figcaption").text for f in root.first("div", **{"class": "frames"}).all("figure")] == [
        "step 10", "step 40"
    ]  # fmt: skip
    said = troubles(root)
    assert all(
        part in said for part in ("0000020.png is damaged", "0000030.png", "gone.png of ood is missing", "'../preset")
    )
    assert "igebm train" not in root.first("section", id="experiment-ood").text


def test_missing_files_are_named(hand):
    shutil.rmtree(hand / "samples")
    (hand / "metrics.jsonl").unlink()
    said = troubles(report(hand))
    assert "samples/ holds no pictures" in said and "metrics.jsonl is missing" in said and "model.safetensors" in said


def test_hostile_text_is_text(hand):
    about = json.loads((hand / "preset.json").read_text())
    about |= {"classes": [HOSTILE, "b"], "command": ["igebm", HOSTILE], "facts": {"preset": HOSTILE}}
    about["settings"] |= {"data": HOSTILE, HOSTILE: HOSTILE}
    (hand / "preset.json").write_text(json.dumps(about))
    write_result(hand / "evaluation", "ood", {HOSTILE: {"a": HOSTILE, "b": 1}, "t": {HOSTILE: {"x": 1}, "c": {"x": 2}}})
    write_result(
        hand / "evaluation", "trajectory", {"x": 1.0}, machine={"command": HOSTILE}, data=HOSTILE, seed=HOSTILE
    )
    (hand / "evaluation" / "generation.failed.json").write_text(json.dumps({"why": HOSTILE}))
    write_log(
        hand, [log_line(20), {"event": "rollback", "diverged_at": 30, "back_to": 25, "cause": HOSTILE}, log_line(30)]
    )
    root = report(hand)
    assert [s.text for s in root.all("script")] == [(Path(page.__file__).parent / "page.js").read_text()]
    assert not [name for node in root.all() for name in node.attributes if name.startswith("on")]
    text = root.first("main").text + root.first("header").text
    assert text.count(HOSTILE) >= 10


def test_odd_characters_survive(hand):
    """Halves of characters and control characters, which JSON may hold, are no UTF-8 text of a page."""
    write_result(hand / "evaluation", "ood", {"a\ud800": "b\udfff", "nul\0": "é猫\x1b[0m"})
    text = report(hand).first("section", id="experiment-ood").text
    assert "a\\ud800" in text and "b\\udfff" in text and "é猫\ufffd[0m" in text


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["paper", "mean", "se", "n", "figures", "a"]) | st.text(max_size=4), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(anything, anything, st.sampled_from(["settings", "shape", "classes", "latents", "facts", "machine", "versions"]))
def test_no_json_is_too_odd(hand, one, two, key):
    """Whatever the values of the files are, there is a page, and it is well-formed."""
    about = json.loads((hand / "preset.json").read_text())
    (hand / "preset.json").write_text(json.dumps(about | {key: one}))
    more = {"model": two, "machine": one, "options": two, "seconds": one, "paper": two}
    write_result(hand / "evaluation", "ood", {"x": one, "y": two}, **more)
    write_log(
        hand, [log_line(10), log_line(20, e_pos=one, chain_steps=two, gradient=two), {"event": "rollback"} | {key: 1}]
    )
    assert report(hand).first("section", id="experiment-ood")
    (hand / "preset.json").write_text(json.dumps(about))


# Pictures


def test_large_pictures_are_encoded_anew_and_small_ones_kept(tmp_path):
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (50, 50), dtype=np.uint8).repeat(20, 0).repeat(20, 1)
    noise = rng.integers(0, 256, (300, 2000, 3), dtype=np.uint8)
    Image.fromarray(blocks).save(tmp_path / "grey.bmp.png", compress_level=0)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    grey, colour = (embed(tmp_path / name, []) for name in ("grey.bmp.png", "noise.png"))
    assert grey is not None and colour is not None
    data = base64.b64decode(grey.uri.partition(",")[2])
    assert grey.uri.startswith("data:image/webp") and len(data) < 100_000
    again = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
    assert np.array_equal(again, blocks)  # few colours: without loss
    assert (colour.width, colour.height) == (1600, 240) and colour.still is None
    assert len(colour.uri) < (tmp_path / "noise.png").stat().st_size / 2


def test_a_moving_picture_keeps_its_frames_and_has_a_still(tmp_path):
    rng = np.random.default_rng(0)
    frames = [
        Image.fromarray(rng.integers(0, 256, (40, 40), dtype=np.uint8).repeat(9, 0).repeat(9, 1)) for _ in range(5)
    ]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=[60, 60, 60, 60, 2000], loop=0)
    told = []
    moving = embed(tmp_path / "a.gif", told)
    assert moving is not None and moving.still is not None and told == []
    again = Image.open(io.BytesIO(base64.b64decode(moving.uri.partition(",")[2])))
    assert again.n_frames == 5 and again.size == (360, 360)
    still = Image.open(io.BytesIO(base64.b64decode(moving.still.partition(",")[2])))
    assert np.array_equal(np.asarray(still.convert("L")), np.asarray(frames[-1]))
    moving_tag, still_tag = moving.elements("alt")
    assert (moving_tag.get("class"), still_tag.get("class")) == ("moving", "still")


def test_pictures_over_time_are_chosen_evenly():
    assert page.evenly(list(range(5)), 5) == [0, 1, 2, 3, 4]
    assert page.evenly(list(range(101)), 5) == [0, 25, 50, 75, 100]


def test_many_large_pictures_do_not_make_a_large_page(hand):
    rng = np.random.default_rng(0)
    for step in range(100, 3100, 100):
        noise = rng.integers(0, 256, (200, 200, 3), dtype=np.uint8)
        Image.fromarray(noise).save(hand / "samples" / f"{step:07d}.png")
    root = parsed(page.write(hand, EXPERIMENTS).read_text())
    steps = [f.first("figcaption").text for f in root.first("div", **{"class": "frames"}).all("figure")]
    assert steps[0] == "step 10" and steps[-1] == "step 3,000" and 4 <= len(steps) <= page.FILM
    assert f"{len(steps)} of " in root.first("section", id="samples").text
    assert (hand / "report.html").stat().st_size < 2_000_000


# What a reader sees


def test_elements_are_escaped_and_nested():
    element = tag("p", "a<b", [tag("b", 1), " & ", None], "c", class_="x", aria_label='"')
    from xml.etree.ElementTree import tostring

    assert tostring(element, "unicode", "html") == '<p class="x" aria-label="&quot;">a&lt;b<b>1</b> &amp; c</p>'


def contrast(one, two) -> float:
    """WCAG 2: (L₁ + 0.05) / (L₂ + 0.05), L the relative luminance of sRGB."""

    def luminance(colour):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in
                  (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))]  # fmt: skip
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    a, b = sorted((luminance(one), luminance(two)), reverse=True)
    return (a + 0.05) / (b + 0.05)


def test_text_and_lines_stand_out_in_light_and_dark():
    """4.5 for text and 3 for lines (WCAG 2.2, AA)."""
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    style = Path(page.__file__).with_suffix(".css").read_text()
    palettes = [
        dict(re.findall(r"--([\w]+): (#[0-9a-f]{6})", block)) for block in re.findall(r":root \{(.*?)\}", style, re.S)
    ]
    assert len(palettes) == 3  # light, dark, paper
    for p in palettes:
        for text, ground in itertools.product(("ink", "soft", "accent", "warned"), ("page", "raised")):
            assert contrast(p[text], p[ground]) >= 4.5, (text, ground)
        assert contrast(p["ink"], p["marked"]) >= 4.5 and all(
            contrast(p[c], p["page"]) >= 3 for c in ("c1", "c2", "c3")
        )


def test_pictures_and_drawings_have_words(real):
    root = report(real)
    assert all(image.attributes["alt"] for image in root.all("img"))
    assert all(svg.attributes.get("aria-label") or svg.attributes.get("aria-hidden") for svg in root.all("svg"))
    headings = [int(node.name[1]) for node in root.all() if re.fullmatch("h[1-6]", node.name)]
    assert headings[0] == 1 and headings.count(1) == 1 and all(b <= a + 1 for a, b in itertools.pairwise(headings))
    assert all(th.attributes.get("scope") for th in root.all("th"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser(width, scheme, browser, real):
    """Nothing sticks out, nothing is requested, nothing is complained of; the film shows one picture at a time."""
    path = page.write(real, EXPERIMENTS)
    with browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme) as context:
        tab, said = context.new_page(), []
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda request: said.append(request.url) if not request.url.startswith("data:") else None)
        tab.goto(path.as_uri())
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert tab.evaluate("[...document.images].every((i) => i.complete && i.naturalWidth > 0)")
        ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
        shown = lambda: tab.locator(".film figure:visible figcaption").all_inner_texts()
        assert shown() == ["step 6"]
        tab.locator(".film input").press("Home")
        assert shown() == ["step 2"]
        tab.locator(".film input").press("ArrowRight")
        assert shown() == ["step 4"]
        tab.locator(".film button").click()
        tab.locator(".film button", has_text="Play").wait_for()
        assert shown() == ["step 6"]
    assert said == [path.as_uri()]
