"""The documentation does what it says: its commands are parsed by the real parser and, where this machine can, run in
small; its Python is run; its links lead somewhere; its numbers are those of the files in results/."""

import contextlib
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hub_server import Hub
from PIL import Image
from test_convert import made_up as igebm_pytorch

from igebm import arguments, cli, presets
from igebm.baselines import settings as baselines
from igebm.cli import main

HERE = Path(__file__).resolve().parents[1]
PAGES = sorted([HERE / "README.md", HERE / "CONTRIBUTING.md", *(HERE / "docs").rglob("*.md")])
EXAMPLES = HERE / "examples"
name_of = lambda page: str(page.relative_to(HERE))
each_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


def pages_where(test) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", [page for page in PAGES if test(page)], ids=name_of)


SMALL = "--threads 1 --device cpu --dtype float32 --compile off".split()
TINY = (
    "--width 4 --chain-steps 2 --save-every 2 --log-every 1 --grid-every 2 --snapshot-every 4 --sample-steps 2".split()
)
SHRINK = {
    "train": [*TINY, *"--blocks 1d --batch 8 --buffer-size 24".split(), *SMALL],
    "sample": ["--n", "2", "--steps", "2", *SMALL],
    "compose": ["--n", "2", "--steps", "2", *SMALL],
    "infer": ["--n", "4", "--steps", "2", *SMALL],
    "energy": SMALL,
    "forecast": ["--steps", "3", "--threads", "1"],
    "eval ood": ["--n", "20", *SMALL],
    "eval rollout": ["--n", "2", "--length", "3", "--steps", "2", "--threads", "1"],
    "eval concepts": ["--n", "2", "--steps", "2", *SMALL],
    "eval generation": "--n 8 --pool 4 --rounds 2 --steps 2 --splits 2 --real 30 --kept 8".split() + SMALL,
    "eval all": ["--classifier-steps", "2", *SMALL],
    "baseline": "--steps 2 --batch 4 --threads 1 --device cpu".split(),
}
"""what makes each command one of seconds; a flag that is given twice counts as it is given last"""
ELSEWHERE = {
    r"cifar10|imagenet32|MODEL|hf:": "needs data that are not part of the package",
    r"igebm (push|pull|convert|serve)": "needs the hub, a file of another program, or a browser",
    r"eval all|eval concepts|baseline|bench": "takes minutes",
    r"train (balls|dsprites)(?!.* --data)": "makes its data for half a minute",
    r"runs/(balls|dsprites)": "needs models that took hours",
}
"""commands that every run of the tests parses and only the slow ones run, on stand-ins, and why"""
OTHERS = {"pip", "python", "python3", "pytest", "torchrun", "sbatch", "kubectl", "zensical", "git", "bash"}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)


def commands(page: Path) -> list[list[str]]:
    """The commands of a page's sh blocks, each as words."""
    lines = [line for block in blocks(page, "sh") for line in block.replace("\\\n", " ").splitlines()]
    parts = [part for line in lines for part in re.split(r" && | ; ", re.sub(r"(^|\s)#.*", "", line))]
    return [shlex.split(part) for part in parts if part.strip()]


def ours(page: Path) -> list[list[str]]:
    """The commands of igebm itself, without torchrun before them."""
    found = [words[words.index("igebm") :] if "--" in words else words for words in commands(page)]
    return [words[1:] for words in found if words and words[0] == "igebm"]


def mentioned(page: Path) -> list[list[str]]:
    """Commands within tables and sentences, but for those that are only begun (a name alone, NAME, ...)."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    spans = re.findall(r"`igebm ([^`]+)`", text)
    return [shlex.split(span) for span in spans if not re.search(r"NAME|COMMAND|--help|\||\.\.\.|^\w+$", span)]


def runnable(page: Path) -> list[list[str]]:
    return [words for words in ours(page) if not any(re.search(why, "igebm " + " ".join(words)) for why in ELSEWHERE)]


class Parsed(Exception):
    """Thrown by a parser that has understood, before anything is done."""


def understood(words: list[str], monkeypatch) -> None:
    """Raises InputError where the command would refuse its words."""
    real = cli.parse

    def parse(kind, command, args, default=None):
        asked = real(kind, command, args, default)
        if command == "train" and asked.resume is None:
            asked = real(kind, command, args, arguments.Train(presets.named(asked.preset), presets.Trainer()))
            presets.checked(asked.settings)
        if command == "baseline":
            assert asked.kind in baselines.DEFAULTS
        raise Parsed

    with monkeypatch.context() as patch:
        patch.setattr(cli, "parse", parse)
        with pytest.raises(Parsed):
            cli._dispatch(words)


@each_page
def test_commands_are_understood(page, monkeypatch):
    """By the parser that a user meets."""
    for words in ours(page) + mentioned(page):
        understood(words, monkeypatch)
    for words in commands(page):
        assert words[0] in OTHERS | {"igebm", "."}, f"{name_of(page)}: nobody checks {' '.join(words)}"


def prepared(folder: Path) -> Path:
    """What pages take for granted: two finished runs, and pictures and series of one's own."""
    os.chdir(folder)
    assert main(["train", "--steps", "2", "--out", "runs/digits", *SHRINK["train"]]) == 0
    shutil.copytree("runs/digits", "runs/digits-2")
    rng = np.random.default_rng(0)
    for name in ("cat/a", "cat/b", "dog/c", "dog/d"):
        path = folder / "photos" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(path)
    for name in ("sprite", "photo"):
        Image.fromarray(rng.integers(0, 256, (32, 32), dtype=np.uint8)).save(folder / f"{name}.png")
    rows = [f"pump {s},{k},{rng.normal():.3f},{rng.normal():.3f}" for s in "AB" for k in range(120)]
    (folder / "pumps.csv").write_text("\n".join(["series,step,temperature,pressure", *rows]) + "\n")
    return folder


@pytest.fixture(scope="module")
def ready(tmp_path_factory) -> Path:
    here = Path.cwd()
    try:
        return prepared(tmp_path_factory.mktemp("ready"))
    finally:
        os.chdir(here)


def shrunk(words: list[str]) -> list[str]:
    """The command with numbers that make it one of seconds."""
    name = next((n for n in sorted(SHRINK, key=len, reverse=True) if words[: len(n.split())] == n.split()), None)
    if words[0] == "train" and "--resume" in words:
        return [*words, "--steps", "3"]
    if words[0] == "train":
        buffer = ["--buffer-size", "0"] if words[1:2] and words[1].startswith("balls") else []
        return [*words, "--steps", "2", *SHRINK["train"], *buffer]
    against = ["--against", "uniform"] if name == "eval ood" and "--against" not in words else []
    return [*words, *SHRINK.get(name or "", []), *against]


@pages_where(runnable)
def test_commands_run_in_small(page, ready, tmp_path, monkeypatch, capsys):
    """One after the other in one folder, as a reader types them."""
    shutil.copytree(ready, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    for words in runnable(page):
        assert main(shrunk(words)) == 0, f"{' '.join(words)}: {capsys.readouterr().err}"


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    """What those commands need that is not part of the package: small sets under the names of CIFAR-10 and ImageNet, a
    hub on this machine, a checkpoint of another program."""
    from huggingface_hub import constants

    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for name in ("cifar10", "imagenet32"):
        sets = {
            f"{split}_x": rng.integers(0, 256, (n, 32, 32, 3), np.uint8) for split, n in (("train", 60), ("test", 40))
        }
        labels = {f"{split}_y": np.arange(n) % 10 for split, n in (("train", 60), ("test", 40))}
        np.savez(tmp_path / "data" / f"{name}.npz", **sets, **labels)
    torch.save(igebm_pytorch(), tmp_path / "model.pt")
    monkeypatch.setenv("IGEBM_DATA", str(tmp_path / "data"))
    here = Hub()
    monkeypatch.setenv("HF_ENDPOINT", here.url)
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield tmp_path
    here.close()


@pytest.mark.slow
@pages_where(ours)
def test_every_command_runs_in_small(page, ready, stand_ins, monkeypatch, capsys):
    """As above, none left out (but the page, which test_serve.py opens), in the order in which a reader meets them."""
    shutil.copytree(ready, stand_ins / "work")
    shutil.copy(stand_ins / "model.pt", stand_ins / "work")
    monkeypatch.chdir(stand_ins / "work")
    for words in ours(page):
        if words[0] == "serve":
            continue
        words = [word.replace("you/", "alice/") for word in words]
        with contextlib.suppress(SystemExit):  # --help, --version
            assert main(shrunk(words)) == 0, f"{' '.join(words)}: {capsys.readouterr().err}"


@pages_where(lambda page: blocks(page, "python"))
def test_python_runs(page, ready, tmp_path, monkeypatch):
    """The blocks of a page in turn, in one namespace."""
    shutil.copytree(ready, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    namespace: dict = {"__name__": "page"}
    for block in blocks(page, "python"):
        exec(compile(block, name_of(page), "exec"), namespace)


def anchors(page: Path) -> set[str]:
    """The headings of a page as links name them."""
    heads = re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S), re.M
    )
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", head).strip().lower()) for head in heads}


@each_page
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{name_of(page)}: {target}"
        assert not anchor or anchor in anchors(there), f"{name_of(page)}: {target}"


def test_every_page_is_in_the_table_of_contents():
    listed = set(re.findall(r'"([\w/-]+\.md)"', (HERE / "zensical.toml").read_text()))
    assert listed == {str(page.relative_to(HERE / "docs")) for page in (HERE / "docs").rglob("*.md")}


def test_every_module_named_in_the_reference_exists():
    import importlib

    for page in (HERE / "docs" / "api").glob("*.md"):
        for module in re.findall(r"^::: (\S+)$", page.read_text(), re.M):
            importlib.import_module(module)


def test_flags_in_tables_exist():
    """Every flag that the page on other code gives as ours is one of ours."""
    known = {presets.flag(f.name) for kind in (presets.Preset, presets.Trainer, arguments.Train) for f in fields(kind)}
    known |= {presets.flag(f.name) for kind in cli.EXPERIMENTS.values() for f in fields(kind)}
    known |= {"--no-conditional", "--mode", "--nproc-per-node"}
    rows = re.findall(r"^\| (.*) \|$", (HERE / "docs" / "coming-from.md").read_text(), re.M)
    for cells in (re.split(r" \| |\| ", row) for row in rows):
        for flag in re.findall(r"--[a-z][a-z0-9-]*", cells[1] if len(cells) > 1 else ""):
            assert flag in known, cells


def test_numbers_on_samplers_are_those_of_the_file():
    found = json.loads((HERE / "results" / "samplers.json").read_text())
    page = (HERE / "docs" / "samplers.md").read_text()
    for row in found["rows"]:
        numbers = f"| {row['mean_energy']:.3f} | {row['share_on_the_left']:.3f} | {row['total_variation']:.3f} |"
        assert numbers in page, row
    assert f"truth {found['target']['mean_energy']}" in page


def test_numbers_on_the_paper_are_those_of_the_files():
    folder = HERE / "results" / "digits-evaluation"
    of = {path.stem: json.loads(path.read_text())["numbers"] for path in folder.glob("*.json")}
    page = (HERE / "docs" / "reproducing.md").read_text()
    share = lambda row: f"{row['share']:.3f} ± {row['se']:.3f}"
    mse = lambda kind, when: f"{of['restoration'][kind]['mse_damaged_pixels'][when]['mean']:.3f}"
    accuracy, auroc, near = of["finetune"]["accuracy"], of["ood"]["auroc"], of["neighbours"]["pixels"]
    distance = "Fréchet distance (classifier of digits), "
    scores = of["generation"]["scores"]
    target = of["cross-class"]["by_classifier"]["target"]
    for said in (
        f"accuracy {share(accuracy['pretrained'])} after training, {share(accuracy['scratch'])} from scratch",
        ", ".join(f"{auroc[n]['auroc']:.3f} {n}" for n in ("constant", "uniform")),
        f"{auroc['interpolation']['auroc']:.3f} interpolated",
        f"distance {scores['samples'][distance + 'train']:.2f} for 200 samples",
        f"{scores['train images'][distance + 'test']:.2f} for test digits",
        f"{of['likelihood']['bits_per_dim']['bits']:.3f} bits",
        f"{mse('inpaint', 'before')} before, {mse('inpaint', 'after')} after",
        f"salt and pepper {mse('salt-pepper', 'before')}, {mse('salt-pepper', 'after')}",
        f"{target['share']:.2f} ({target['low']:.2f} to {target['high']:.2f})",
        f"{near['samples']['mean']:.2f} ± {near['samples']['se']:.2f} from samples",
        f"{near['tests']['mean']:.2f} ± {near['tests']['se']:.2f} from test digits",
        f"E from {of['trajectory']['energy_start']:.3f} to {of['trajectory']['energy_end']:.4f}",
    ):
        assert said in page, said


RECORDS = sorted(path for folder in ("results", "benchmarks/results", "src/igebm/pretrained")
                 for path in (HERE / folder).rglob("*.json"))  # fmt: skip


def held(value: object, name: str) -> list:
    """All values that go by this name, however deep."""
    branches = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    return [v for k, v in branches if k == name] + [found for _, v in branches for found in held(v, name)]


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_number_has_its_circumstances(path):
    """The commit it was made at and the versions of what made it; and no place of a machine that nobody else has."""
    text = path.read_text(encoding="utf-8")
    about = json.loads(text)
    for name in ("commit", "versions"):
        assert all(held(about, name)) and held(about, name), f"{path.name} lacks its {name}"
    assert not re.search(r"/(root|work|tmp|home)/", text)
    if path.parent.name == "pretrained":
        assert len(about["note"]) > 60 and about["training_seconds"] > 0


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_page_waits_to_be_filled_in(page):
    assert not re.search(r"@[A-Z]{2,}@|TODO|FIXME|XXX", page.read_text(encoding="utf-8"))


def test_numbers_on_cifar10_are_those_of_the_files():
    """README's table of the two bundled models, row by row."""
    page = (HERE / "README.md").read_text()
    columns = []
    for folder in ("cifar10-cond-small-evaluation", "cifar10-cond-evaluation"):
        files = (HERE / "results" / folder).glob("*.json")
        of = {path.stem: json.loads(path.read_text())["numbers"] for path in files}
        auroc, restored, crossed = of["ood"]["auroc"], of["restoration"], of["cross-class"]["by_classifier"]
        column = [f"{auroc[name]['auroc']:.2f}" for name in ("dtd", "constant", "uniform", "interpolation", "cifar100")]
        for kind in ("inpaint", "salt-pepper"):
            squares = restored[kind]["mse_damaged_pixels"]
            column.append(f"{squares['before']['mean']:.3f}, {squares['after']['mean']:.3f}")
        before, after = crossed["target_before"], crossed["target"]
        columns.append([*column, f"{before['share']:.2f}, {after['share']:.2f} ± {after['se']:.2f}"])
    start = page.index("| | `cifar10-cond-small` | `cifar10-cond` | paper |")
    rows = page[start : page.index("\n\n", start)].splitlines()[2:]
    assert [[cell.strip() for cell in row.split("|")[2:4]] for row in rows] == [
        list(pair) for pair in zip(*columns, strict=True)
    ]


def test_numbers_on_the_models_in_the_box_are_those_of_the_files():
    """docs/models.md: the baselines' table row by row, with the paper's, and how the bundled cifar10-cond is read."""
    from igebm.evaluation.ood import PAPER

    page = (HERE / "docs" / "models.md").read_text(encoding="utf-8")
    auroc = json.loads((HERE / "results" / "baselines-cifar10.json").read_text())["auroc"]
    names = ("dtd", "constant", "uniform", "interpolation", "cifar100")
    kinds = ("glow", "pixelcnn")
    ours = json.loads((HERE / "results" / "cifar10-cond-evaluation" / "ood.json").read_text())["numbers"]["auroc"]
    wanted = [
        [f"{ours[name]['auroc']:.2f}"]
        + [f"{auroc[kind][name]:.2f}" for kind in kinds]
        + [f"{PAPER[name][kind]:.2f}" if name in PAPER else "" for kind in kinds]
        for name in names
    ]
    start = page.index("| AUROC, test images against | `cifar10-cond` | Glow |")
    rows = page[start : page.index("\n\n", start)].splitlines()[2:]
    assert [[cell.strip() for cell in row.split("|")[2:7]] for row in rows] == wanted
    card = json.loads((HERE / "src" / "igebm" / "pretrained" / "cifar10-cond.json").read_text())
    (row,) = card["quality"]["rows"]
    read_as, words = f"{100 * row['accuracy']:.0f} %", lambda text: " ".join(text.split())
    assert f"kernels in eight bits, {read_as} are given the class" in words(page) and read_as in card["note"]
    assert f"{read_as} of those of `cifar10-cond`" in words((HERE / "README.md").read_text())
    assert f"differ {row['diversity']:.2f} times" in words(page)
    small = json.loads((HERE / "src" / "igebm" / "pretrained" / "cifar10-cond-small.json").read_text())
    of = lambda name: sum(r[name] for r in small["quality"]["rows"]) / len(small["quality"]["rows"])
    small_as = f"{100 * of('accuracy'):.0f} %"
    assert f"to {small_as} of 1,200 such samples" in words(page) and f"{small_as} of 1,200" in small["note"]
    assert f"{small_as} are read as the class asked for" in words((HERE / "README.md").read_text())
    assert f"{of('diversity'):.2f} times as much as real images. It was 28.5" in words(page)
    went = [f"{100 * r['accuracy']:.0f}" for r in small["growth"]["rows"]]
    assert f"{', '.join(went[:-1])} and {went[-1]} % after 500, 1,000, 1,500 and 2,000" in words(page)
    judged = json.loads((HERE / "results" / "cifar10-cond.json").read_text())["goes_on"]["judged"]["rows"]
    early, last, mean = (f"{100 * of['accuracy']:.0f} %" for of in judged[:3])
    assert f"it was {early} after 200 iterations, {last} after 853 and {mean} for the mean" in words(page)
    (began,) = json.loads((HERE / "results" / "cifar10-cond.json").read_text())["quality"]["in_eight_bits"]["rows"]
    began_as = f"{100 * began['accuracy']:.0f} %"
    assert f"gave {began_as} of 1,000 samples by 600 steps" in words(page) and f"was {began['diversity']:.2f}" in words(
        page
    )
    rose = f"from {began_as.removesuffix(' %')} to {read_as}"
    assert rose in words((HERE / "docs" / "divergence.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["avx512-bf16", "avx2", "amx", "h100"])
def test_speeds_are_those_of_the_files(name):
    """The tables of `igebm bench` in docs/speed.md: each row's numbers, as rounded there, are one row of the file named
    before it; and the shares outside the work."""
    found = json.loads((HERE / "benchmarks" / "results" / f"{name}.json").read_text())["rows"]
    page = (HERE / "docs" / "speed.md").read_text(encoding="utf-8")
    rows = page[page.index(f"`benchmarks/results/{name}.json`") :].split("\n\n")[1].splitlines()[2:]
    assert len(rows) == (4 if name == "h100" else 8)
    for row in rows:
        what, *cells = (cell.strip() for cell in row.strip("|").split("|"))
        shown = [number for cell in cells for number in re.findall(r"[0-9][0-9.,]*", cell)]
        near = [
            shown == [f"{value:,.{len(text.partition('.')[2])}f}" for value, text in zip(said, shown, strict=True)]
            for r in found
            for per in ((1, 1000) if "iteration" in r["what"] else (1,))
            for said in [
                [r["ours_mib"], r["reference_mib"], r["ratio"]]
                if "ratio" in r
                else [r["ours_ms"] / per, r["reference_ms"] / per, r["speedup"], r["share_of_matrix_rate"]]
            ]
            if len(said) == len(shown)
        ]
        assert near.count(True) == 1, row
    outside = [100 * r["outside"] for r in found if "outside" in r]
    if name.startswith("avx"):
        low, high = re.search(r"Of an iteration ([0-9.]+) to ([0-9.]+) % are spent outside", page).groups()
        assert all(float(low) <= round(share, 1) <= float(high) for share in outside)
    else:
        said = (
            "Of such an iteration {:.1f} and {:.1f} %" if name == "amx" else "in batches of 32 it is {:.0f} to {:.0f} %"
        )
        assert said.format(*outside) in page


def test_speeds_in_short_are_those_of_the_files():
    """README's table: a machine a row, at width 128."""
    page = (HERE / "README.md").read_text(encoding="utf-8")
    start = page.index("| | Langevin step, times faster |")
    rows = [row.split("|")[2:5] for row in page[start : page.index("\n\n", start)].splitlines()[2:]]
    for name, row in zip(("avx512-bf16", "avx2", "amx", "h100"), rows, strict=True):
        found = json.loads((HERE / "benchmarks" / "results" / f"{name}.json").read_text())["rows"]
        found = [r for r in found if r.get("width") == 128 and (r["batch"] == 128 or name != "h100")]
        of = lambda what, found=found: [r for r in found if r["what"] == what]
        between = lambda values, digits: " to ".join(sorted({f"{v:.{digits}f}" for v in values}, key=float))
        assert [cell.strip() for cell in row] == [
            between([r["speedup"] for r in of("langevin step")], 1),
            between([r["speedup"] for r in of("training iteration")], 1),
            f"{between([r['ratio'] for r in of('peak memory of a chain')], 2)} of it",
        ]


def test_orders_of_cost_are_those_of_the_file():
    page = " ".join((HERE / "docs" / "speed.md").read_text(encoding="utf-8").split())
    found = json.loads((HERE / "benchmarks" / "results" / "scaling.json").read_text())["rows"]
    slope = {name: f"{row['slope']:.2f}" for name, row in found.items()}
    assert (
        "steps (exponent {steps}) and to the number of composed energies ({energies}). "
        "With its batch, its side and its width it grows by exponents of {batch}, {size} and {width}"
    ).format(**slope) in page


@pytest.mark.parametrize("name", ["avx512-bf16", "avx2"])
def test_gains_are_those_of_the_files(name):
    """docs/speed.md: errors against float64, what the compiler brings, what packing brings."""
    found = json.loads((HERE / "benchmarks" / "results" / f"gains-{name}.json").read_text())
    page = (HERE / "docs" / "speed.md").read_text(encoding="utf-8")
    for row in found["relative errors"]:
        head = f"{row['dtype']}{', Winograd' if row['winograd'] else ''}"
        assert f"| {head} | {row['energy']:.0e} | {row['gradient']:.0e} |" in page
    for width in (128, 64):
        ms = {row["what"]: row["ms"] for row in found["rows"] if row["width"] == width}
        dtype, plain = ("bfloat16", "bfloat16") if "bfloat16" in ms else ("float32", "folded")
        gain = 100 * (ms[plain] / ms[f"beside: compiled, {dtype}"] - 1)
        low, high = map(float, re.search(r"by ([0-9]+) to ([0-9]+) %", page).groups())
        assert low <= round(gain) <= high
    packed = found["weights packed for oneDNN, seconds of a forward pass"]
    share = float(re.search(r"saves at most ([0-9.]+) % of a forward pass", page).group(1))
    assert 100 * (1 - packed["once"] / packed["each call"]) <= share + 0.05


def test_what_a_gpus_step_consists_of_is_that_of_the_files():
    page = " ".join((HERE / "docs" / "speed.md").read_text(encoding="utf-8").split())
    results = HERE / "benchmarks" / "results"
    for row in json.loads((results / "gains-h100.json").read_text())["relative errors"]:
        if row["dtype"] == "bfloat16":
            head = "bfloat16, fused kernels" if row.get("fused") else "bfloat16, cuDNN"
            assert f"| {head} | {row['energy']:.0e} | {row['gradient']:.0e} |" in page
    bench = json.loads((results / "h100.json").read_text())
    before = bench["where_a_step_goes"]["before_fused_kernels"]
    forward, backward, stem, between, rest = [v for v in before.values() if isinstance(v, int)]
    total, convolutions = (forward + backward + stem + between + rest) / 1e3, (forward + backward) / 1e3
    assert f"of {total:.2f} ms" in page and f"convolutions take {convolutions:.2f}, at" in page
    assert f"{between / 1e3:.2f} go into passes" in page and f"and {stem / 1e3:.2f} into one convolution" in page
    flop = 128 * next(r["flop_per_image"] for r in bench["rows"] if r["width"] == 128)
    assert f"at {flop / (convolutions * 1e-3) / bench['rate_flop_per_s']['bfloat16']:.1f} of the rate" in page
    tiles = json.loads((results / "h100-tiles.json").read_text())["rows"]
    large = [r["chosen"]["share"] for r in tiles if r["image"][0] == 32]
    assert f"{min(large):.2f} to {max(large):.2f} of the matrix rate (each" in page


def test_numbers_on_concepts_are_those_of_the_files():
    """README's table: each factor alone by the models' cards, in the product of four, by a blind guess; and what was
    held out of training beside the rest."""
    text = (HERE / "README.md").read_text(encoding="utf-8")
    found = json.loads((HERE / "results" / "dsprites-concepts.json").read_text())["numbers"]
    product = next(row for row in found["rows"] if row["models"] == 4)["errors"]
    digits = {"shape": 2, "scale": 3, "position": 3, "rotation": 1}
    for head, factor in (("shape", "shape"), ("scale", "scale"), ("place", "position"), ("rotation", "rotation")):
        card = json.loads((HERE / "src" / "igebm" / "pretrained" / f"dsprites-{factor}.json").read_text())
        alone = card["quality"]["numbers"]["rows"][0]["errors"][factor]
        wanted = " | ".join(f"{v:.{digits[factor]}f}" for v in (alone, product[factor], found["blind"][factor]))
        assert re.search(rf"^\| {head},.* \| {re.escape(wanted)} \|$", text, re.M), f"{factor}: {wanted}"
    held = json.loads((HERE / "results" / "dsprites-held-out.json").read_text())["numbers"]["rows"][-1]
    text = " ".join((HERE / "docs" / "models.md").read_text(encoding="utf-8").split())
    sentence = "off by {scale:.3f} in scale and {position:.3f} in place on the {n} of 200 that were held out"
    assert sentence.format(**held["held_out"]) in text
    assert f"{held['seen']['scale']:.3f} and {held['seen']['position']:.3f} on the rest" in text


def test_numbers_on_sick_runs_are_the_last_of_their_logs():
    page = (HERE / "docs" / "divergence.md").read_text()
    for sick in json.loads((HERE / "results" / "sick-runs.json").read_text())["runs"]:
        last = sick["log"][-1]
        flags = re.sub(r"igebm train | --steps.*| --save-every.*", "", sick["command"])
        row = next(line for line in page.splitlines() if line.startswith(f"| `{flags}`"))
        for cell, name in zip(
            row.split("|")[2:7], ("gap", "e_pos", "chain_gradient", "clipped_chain", "saturated"), strict=True
        ):
            assert float(cell) == pytest.approx(last[name], rel=0.05, abs=6e-4), (flags, name)


def test_the_pictures_of_how_it_works(tmp_path, monkeypatch):
    """The script of the page, in small: every figure of the page is one that it makes; the moons' moments as sampled,
    against those of two half circles, by quadrature, with their noise; a landscape that is lower at data than about."""
    monkeypatch.setattr(sys, "argv", ["how_it_works.py", "--out", str(tmp_path), "--steps", "100", "--chain", "5"])
    runpy.run_path(str(HERE / "docs" / "how_it_works.py"), run_name="__main__")
    shown = re.findall(r"\]\(([\w-]+\.(?:png|gif))\)", (HERE / "docs" / "how-it-works.md").read_text())
    made = [path for path in tmp_path.iterdir() if path.suffix in (".png", ".gif")]
    assert sorted(shown) == sorted(path.name for path in made) and len(shown) == 6
    for path in made:
        with Image.open(path) as picture:
            assert picture.width > 400 and getattr(picture, "n_frames", 1) > (20 if path.suffix == ".gif" else 0)
    t = np.linspace(0, np.pi, 10_001)
    both = np.concatenate([[np.cos(t), np.sin(t)], [1 - np.cos(t), 0.5 - np.sin(t)]], 1)
    found = json.loads((tmp_path / "how-it-works.json").read_text())
    assert found["data"]["mean"] == pytest.approx(both.mean(1), abs=0.02)
    assert found["data"]["standard deviation"] == pytest.approx(np.sqrt(both.var(1) + 0.1**2), abs=0.02)
    assert found["data"]["share on the right"] == pytest.approx(0.5, abs=0.02)
    assert found["mean energy"]["of data"] < found["mean energy"]["of N(0, 1)"] - 0.1


def test_what_chains_on_the_moons_miss_is_as_the_page_says():
    """The moments of the page's own run: close to the data's but for the share on the right, which it quotes."""
    page = (HERE / "docs" / "how-it-works.md").read_text(encoding="utf-8")
    found = json.loads((HERE / "results" / "how-it-works.json").read_text())
    share = {of: f"{100 * found[of]['share on the right']:.0f} %" for of in ("samples", "data", "exp(-E)")}
    assert f"exp(-E) has {share['exp(-E)']} there" in " ".join(page.split())
    assert f"{share['samples']} of those above end on the moon at the right" in " ".join(page.split())
    assert f"{share['data']} of the data" in " ".join(page.split())
    assert found["samples"]["standard deviation"] == pytest.approx(found["data"]["standard deviation"], abs=0.1)
    assert found["mean energy"]["of data"] < found["mean energy"]["of N(0, 1)"] - 1


def test_samplers_example_knows_the_target(tmp_path, monkeypatch):
    """The script of the picture, in small; its ⟨E⟩ by quadrature against scipy's adaptive one."""
    import math

    from scipy.integrate import dblquad

    words = ["samplers.py", "--out", str(tmp_path), "--chains", "50", "--evaluations", "20"]
    monkeypatch.setattr(sys, "argv", words)
    runpy.run_path(str(HERE / "docs" / "samplers.py"), run_name="__main__")
    with Image.open(tmp_path / "samplers.png") as picture:
        assert picture.width > 500

    def E(r):
        ring = 0.5 * ((r[0] - 2) / 0.4) ** 2
        x = r[0] * math.cos(r[1])
        return ring - math.log(math.exp(-0.5 * ((x - 2) / 0.8) ** 2) + math.exp(-0.5 * ((x + 2) / 0.8) ** 2))

    # In polar coordinates, an eighth of the whole by symmetry a quarter: the factors cancel.
    quarter = lambda f: dblquad(lambda a, r: r * f(E((r, a))), 0, 5, 0, math.pi / 2, epsabs=1e-6)[0]
    want = quarter(lambda e: e * math.exp(-e)) / quarter(lambda e: math.exp(-e))
    assert json.loads((tmp_path / "samplers.json").read_text())["target"]["mean_energy"] == pytest.approx(
        want, abs=2e-3
    )


# Examples for clusters

STUBS = {
    "srun": 'shift; exec "$@"',
    "scontrol": 'if [ "$1" = show ]; then echo localhost; else echo "$@" >> requeued; fi',
    "torchrun": f'while [ "$1" != -- ]; do shift; done; shift 2; exec {sys.executable} -m igebm "$@" $SHRINK',
}
"""what a cluster has and this machine may lack: one node, one process"""


@pytest.fixture
def cluster(tmp_path, monkeypatch) -> Path:
    for name, text in STUBS.items():
        (tmp_path / "bin" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    small = [w for w in SHRINK["train"] if w != "--steps"]
    for name, value in {
        "PRESET": "digits",
        "RUN": "run",
        "GPUS": "1",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "n1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SHRINK", " ".join([*small, "--save-every", "100000"]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def steps(folder: Path) -> list[int]:
    lines = (folder / "metrics.jsonl").read_text().splitlines() if (folder / "metrics.jsonl").exists() else []
    return [json.loads(line)["step"] for line in lines]


def interrupted_and_again(command: list[str], folder: Path, monkeypatch) -> tuple[int, int]:
    """Start, send SIGTERM when it trains, start once more for a few steps; the two exit codes."""
    monkeypatch.setenv("STEPS", "1000000")
    first = subprocess.Popen(command)
    end = time.monotonic() + 60
    while len(steps(folder)) < 3 and time.monotonic() < end:
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    code, reached = first.wait(60), steps(folder)[-1]
    monkeypatch.setenv("STEPS", str(reached + 2))
    again = subprocess.run(command, timeout=60).returncode
    assert steps(folder) == list(range(1, reached + 3))
    return code, again


def test_slurm_script_saves_requeues_and_goes_on(cluster, monkeypatch):
    script = EXAMPLES / "cluster" / "slurm.sh"
    code, again = interrupted_and_again(["bash", str(script)], cluster / "run", monkeypatch)
    assert code == 130 and again == 0
    assert (cluster / "requeued").read_text() == "requeue 7\n"  # once: the second job had finished


def kubernetes_job() -> tuple[dict, dict]:
    """The pod of the example, and its container."""
    _, job = yaml.safe_load_all((EXAMPLES / "cluster" / "job.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    return pod, pod["containers"][0]


def test_kubernetes_job_is_whole():
    pod, container = kubernetes_job()
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    given = {variable["name"] for variable in container["env"]}
    assert {"PRESET", "RUN", "STEPS", "GPUS"} <= given and all(isinstance(v["value"], str) for v in container["env"])
    assert subprocess.run(["bash", "-n", "-c", container["args"][0]]).returncode == 0


@pytest.mark.slow
def test_kubernetes_job_saves_and_goes_on(cluster, monkeypatch):
    _, container = kubernetes_job()
    code, again = interrupted_and_again([*container["command"], *container["args"]], cluster / "run", monkeypatch)
    assert code == 130 and again == 0


# The site


@pytest.mark.skipif(shutil.which("zensical") is None, reason="needs pip install '.[docs]'")
def test_the_site_is_built_without_a_warning_and_fetches_nothing(tmp_path):
    for name in ("docs", "src", "zensical.toml"):
        (tmp_path / name).symlink_to(HERE / name)
    done = subprocess.run(["zensical", "build", "--strict"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for page in (tmp_path / "build" / "site").rglob("*.html"):
        fetched = re.findall(
            r'<(?:script|img)[^>]*src="(https?:[^"]*)|<link[^>]*href="(https?:[^"]*)', page.read_text()
        )
        assert not fetched, page
        # What a page leads to, or shows, is in the site.
        for target in re.findall(r'(?:href|src)="([^"#?]+)', page.read_text()):
            if not re.match("[a-z]+:|//", target):
                assert (page.parent / target).exists() or target.startswith("/"), f"{page.name} leads to {target}"
