"""Models passed on and fetched: into folders, to a hub on this machine, and everything that can go wrong there."""

import json
import pickle
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_server import Hub
from PIL import Image
from test_cli import TINY, files

import igebm
from igebm import forecast, hub, model, presets, pretrained, shapes, share
from igebm.cli import main
from igebm.errors import InputError
from igebm.report import found
from igebm.shapes import SeriesShape, Shape

FAST = ["--dtype", "float32", "--threads", "1"]
TREE = {"README.md", "model.safetensors", "preset.json", "samples.png"}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    """A finished tiny run on the digits, with one experiment done."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["train", "--steps", "4", "--out", str(folder), *TINY]) == 0
    words = ["--n", "20", "--against", "uniform", "--dtype", "float32"]
    assert main(["eval", "ood", str(folder), *words]) == 0
    return folder


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A hub on this machine, which alice is logged in to, and an empty cache."""
    from huggingface_hub import constants

    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "https_proxy", "http_proxy", "all_proxy", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    here = Hub()
    monkeypatch.setenv("HF_ENDPOINT", here.url)
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # read when it was first imported, by whichever test
    monkeypatch.chdir(tmp_path)
    hub.model_file.cache_clear()
    yield here
    here.close()
    hub.model_file.cache_clear()


def front(card: str) -> dict:
    """The front matter: each line a key with JSON, which is YAML."""
    assert card.startswith("---\n")
    lines = card.split("---\n")[1].splitlines()
    return {line.partition(": ")[0]: json.loads(line.partition(": ")[2]) for line in lines}


def refused(capsys, *words: str) -> str:
    """The one line of a command that ends with exit code 2."""
    capsys.readouterr()
    assert main(list(words)) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("igebm: ")]
    assert len(told) == 1
    return told[0]


# Folders


def test_pushed_into_a_folder_and_pulled_from_it_a_model_is_the_same(run_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["push", str(run_folder), "shared/", *FAST, "--licence", "cc-by-4.0"]) == 0
    assert files(Path("shared")) == TREE | {"evaluation/ood.json"}
    assert main(["pull", "shared/", "--out", "mine"]) == 0
    assert files(Path("mine")) == files(Path("shared"))
    for name in ("model.safetensors", "evaluation/ood.json", "preset.json"):
        origin = run_folder / name
        assert (
            json.loads(Path("mine", name).read_text()) == json.loads(origin.read_text())
            if name[-1] == "n"
            else (Path("mine", name).read_bytes() == origin.read_bytes())
        )
    x = torch.rand(5, 1, 8, 8)
    assert torch.equal(igebm.load("mine").energy(x), igebm.load(run_folder).energy(x))
    with Image.open("mine/samples.png") as ours, Image.open(run_folder / "samples" / "noise-0000004.png") as theirs:
        assert np.array_equal(np.asarray(ours.convert("RGB")), np.asarray(theirs.convert("RGB")))
    capsys.readouterr()
    assert main(["report", "mine"]) == 0 and "AUROC" in Path("mine/report.html").read_text()


def test_the_card_says_what_the_run_says(run_folder, tmp_path):
    assert main(["push", str(run_folder), str(tmp_path / "a"), *FAST]) == 0
    card = (tmp_path / "a" / "README.md").read_text()
    told = front(card)
    assert told["license"] == "mit" and told["library_name"] == "igebm" and "arxiv:1903.08689" in told["tags"]
    loaded = model.load(run_folder)
    count = sum(p.numel() for p in loaded.net.parameters())
    command = json.loads((run_folder / "preset.json").read_text())["command"]
    for word in (
        f"| parameters | {count:,} |",
        "| iterations | 4 |",
        "| `width` | 4 |",
        shlex.join(command),
        "samples.png",
    ):
        assert word in card
    result = json.loads((run_folder / "evaluation" / "ood.json").read_text())
    auroc = result["numbers"]["auroc"]["uniform"]
    assert f"| auroc, uniform, high | {auroc['high']:.4g} |" in card
    assert "igebm sample a --n 16" in card and str(tmp_path) not in card  # a path of this machine is nobody else's


@pytest.mark.parametrize("name", pretrained.names())
def test_parameters_are_those_of_the_network_wherever_they_are_told(name):
    """cifar10-cond is stored in 8 bits, with scales that no network has."""
    path = pretrained.FOLDER / f"{name}.safetensors"
    tensors, about = model.read(path)
    net = model.build_net(presets.from_dict(about["settings"]), shapes.from_dict(about, path))
    count = sum(p.numel() for p in net.parameters())
    assert pretrained.card(name)["parameters"] == found.read_weights(path, [])[2] == count
    assert f"| parameters | {count:,} |" in share.card(name, name, "mit", tensors, about, "", {}, False)


def test_numbers_of_a_card_are_the_numbers():
    found = {
        "a": 1.23456,
        "b": {"mean": 0.5, "se": 0.01, "n": 10},
        "c": {"d_e": 3, "figures": ["x"]},
        "f": "word",
        "g": [1],
    }
    assert share.numbers(found) == {"a": "1.235", "b": "0.5 ± 0.01", "c, d e": "3"}


@pytest.mark.parametrize("theirs", ["README.md", "preset.json", "model.safetensors", "samples.png"])
def test_what_others_have_written_is_not_written_over(theirs, run_folder, tmp_path, capsys):
    """A folder with a file of that name is no place for a push, unless an earlier one made it: that is brought up to
    date."""
    mine = tmp_path / "project"
    mine.mkdir()
    (mine / theirs).write_text("my own")
    line = refused(capsys, "push", str(run_folder), str(mine), *FAST)
    assert f"{mine / theirs} would be replaced" in line
    assert [path.name for path in mine.iterdir()] == [theirs] and (mine / theirs).read_text() == "my own"
    (mine / theirs).rename(mine / "notes.txt")
    for _ in range(2):
        assert main(["push", str(run_folder), str(mine), *FAST]) == 0
    assert (mine / "notes.txt").read_text() == "my own"


def test_a_push_that_was_cut_short_can_be_done_again(run_folder, tmp_path, capsys, monkeypatch):
    """The disk is full when the settings are written: what lies there is known as ours, and replaced."""
    import errno

    from igebm import share

    def full(path, value):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(share, "write_json", full)
        assert main(["push", str(run_folder), str(tmp_path / "p"), *FAST]) == 1
    assert "No space left on device" in capsys.readouterr().err and not (tmp_path / "p" / "model.safetensors").exists()
    assert main(["push", str(run_folder), str(tmp_path / "p"), *FAST]) == 0
    assert (tmp_path / "p" / "model.safetensors").exists()


def test_results_of_another_step_are_left_out_and_said(run_folder, tmp_path, capsys):
    again = tmp_path / "tiny"
    shutil.copytree(run_folder, again)
    result = json.loads((again / "evaluation" / "ood.json").read_text())
    (again / "evaluation" / "ood.json").write_text(json.dumps(result | {"model": result["model"] | {"step": 3}}))
    assert main(["push", str(again), str(tmp_path / "a"), *FAST]) == 0
    assert "of step 3, the model of step 4" in capsys.readouterr().err
    assert files(tmp_path / "a") == TREE and "None were measured" in (tmp_path / "a" / "README.md").read_text()


def series_run(folder: Path) -> Path:
    """A run folder with a model of time series of step 7."""
    folder.mkdir()
    preset = presets.replace(presets.named("balls-langevin"), width=4)
    shape = SeriesShape(2, ("x", "y"), (0.0, 1.0), (1.0, 2.0))
    model.save(folder / "model.safetensors", model.build_net(preset, shape), preset, shape, 7, {})
    return folder


def rolled_out(folder: Path, *models: tuple[str, int, list[float]]) -> None:
    """A rollout.json as igebm eval rollout leaves it in the folder of its first model."""
    kind = {"seeds": len(models), "horizons": [1, 2], "mse": [8.0, 8.0], "growth_1_to_10": 1.0}
    numbers = {
        "windows": 5,
        "models": [{"name": name, "step": step, "mse": mse} for name, step, mse in models],
        "kinds": {"balls-langevin": kind},
    }
    (folder / "evaluation").mkdir(exist_ok=True)
    about = {"experiment": "rollout", "numbers": numbers, "seed": 0}
    (folder / "evaluation" / "rollout.json").write_text(json.dumps(about))


def test_of_a_rollout_of_several_models_the_card_has_one(tmp_path):
    """Errors 1 and 3 grow threefold; what the two models have in common, and what the other has, stays here. What was
    passed on is passed on again, whatever its folder is called."""
    run = series_run(tmp_path / "mine")
    rolled_out(run, ("mine", 7, [1.0] * 9 + [3.0]), ("other", 9, [2.0] * 9 + [10.0]))
    assert main(["push", str(run), str(tmp_path / "a"), *FAST]) == 0
    assert main(["push", str(tmp_path / "a"), str(tmp_path / "b"), *FAST]) == 0
    for to in ("a", "b"):
        card = (tmp_path / to / "README.md").read_text()
        assert "| windows | 5 |" in card and "| kinds, mine, growth 1 to 10 | 3 |" in card
        found = json.loads((tmp_path / to / "evaluation" / "rollout.json").read_text())
        assert [entry["name"] for entry in found["numbers"]["models"]] == ["mine"]
        assert list(found["numbers"]["kinds"]) == ["mine"] and found["model"] == {"name": "mine", "step": 7}


@pytest.mark.parametrize(
    ("measured", "push_says", "report_says"),
    [
        (("other", 7), "is of other models, none of which is called mine", "none of them is called mine"),
        (("mine", 6), "is of step 6, the model of step 7", "Measured at step 6; the model is now at step 7."),
    ],
)
def test_a_rollout_of_another_model_or_step_is_left_out_and_said(measured, push_says, report_says, tmp_path, capsys):
    run = series_run(tmp_path / "mine")
    rolled_out(run, (*measured, [1.0, 3.0]))
    assert main(["push", str(run), str(tmp_path / "a"), *FAST]) == 0
    assert push_says in capsys.readouterr().err and files(tmp_path / "a") == TREE - {"samples.png"}
    assert main(["report", str(run)]) == 0 and report_says in (run / "report.html").read_text()
    rolled_out(run, ("mine", 7, [1.0, 3.0]))
    assert main(["report", str(run)]) == 0 and "Measured " not in (run / "report.html").read_text()


def test_of_concepts_combined_the_card_has_what_the_model_took_part_in():
    rows = [{"factors": ["shape"]}, {"factors": ["shape", "scale"]}]
    numbers = {"rows": rows, "names": {"a": "shape", "b": "scale"}, "steps": {"a": 3, "b": 4}, "blind": {"shape": 0.6}}
    kept = share.of_one({"numbers": numbers}, ("b",), 4)
    assert kept == {
        "numbers": {"rows": rows[1:], "names": {"b": "scale"}, "blind": {"shape": 0.6}},
        "model": {"name": "b", "step": 4},
    }
    known = [found.measured_at({"numbers": numbers}, (name,)) for name in "abc"]
    assert known == [(True, 3), (True, 4), (False, None)]
    del numbers["steps"]
    assert found.measured_at({"numbers": numbers}, ("a",)) == (True, None)


def test_the_weights_are_those_that_the_card_tells_of(run_folder, tmp_path, monkeypatch):
    """A run that goes on while its model is passed on: the model of step 4 was read, one of step 5 is there then."""
    again = tmp_path / "tiny"
    shutil.copytree(run_folder, again)
    before = (again / "model.safetensors").read_bytes()

    def goes_on(*_):
        m = model.load(again)
        model.save(again / "model.safetensors", m.net, m.preset, m.shape, 5, m.facts)

    monkeypatch.setattr(share, "picture_of", goes_on)
    assert main(["push", str(again), str(tmp_path / "a"), *FAST]) == 0
    assert "| iterations | 4 |" in (tmp_path / "a" / "README.md").read_text()
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == before
    assert model.load(again).step == 5


def test_concepts_say_of_which_steps_their_models_are(tmp_path):
    words = ["eval", "concepts", "dsprites-scale", "--n", "1", "--steps", "1", "--out", str(tmp_path), *FAST]
    assert main(words) == 0
    result, step = json.loads((tmp_path / "concepts.json").read_text()), pretrained.card("dsprites-scale")["iterations"]
    assert result["numbers"]["steps"] == {"dsprites-scale": step}
    assert found.measured_at(result, ("dsprites-scale",)) == (True, step)


def test_a_second_push_leaves_nothing_of_the_first(run_folder, tmp_path):
    """Numbers of other weights beside these would be believed."""
    other = tmp_path / "other.safetensors"
    shutil.copy(run_folder / "model.safetensors", other)
    picture = tmp_path / "p.png"
    Image.new("L", (4, 4), 9).save(picture)
    for source in (run_folder, other):
        assert main(["push", str(source), str(tmp_path / "a"), *FAST, "--picture", str(picture)]) == 0
    assert files(tmp_path / "a") == TREE
    with Image.open(tmp_path / "a" / "samples.png") as shown:
        assert np.array_equal(np.asarray(shown), np.full((4, 4, 3), 9))


def test_odd_names_cannot_break_the_card():
    shape = Shape(1, 8, 8, ("a|b", "<script>", "c\nd"))
    about = shape.to_dict() | {"settings": presets.to_dict(presets.named("digits")), "facts": {}, "step": 1}
    told = share.card("x", "hf:a/b", "mit", {}, about, "igebm train", {}, False)
    row = next(line for line in told.splitlines() if line.startswith("| conditional on"))
    assert "a\\|b" in row and "\\<script\\>" in row and row.count(" | ") == 1


@pytest.mark.parametrize(
    "command", ["train\n\n<script>alert(1)</script>\n", "a\r\n|b`c`|\n# d", "x\x0b\x1b[2Jy\u2028z"]
)
def test_a_command_of_many_lines_cannot_break_the_card(command):
    about = Shape(1, 8, 8, ()).to_dict() | {
        "settings": presets.to_dict(presets.named("digits")),
        "facts": {},
        "step": 1,
    }
    told = share.card("x", "hf:a/b", "mit", {}, about, command, {}, False)
    rows = [line for line in told.splitlines() if line.startswith("| command |")]
    assert len(rows) == 1 and re.fullmatch(r"\| command \| `[^`|]*` \|", rows[0])
    assert told.count("\n") == share.card("x", "hf:a/b", "mit", {}, about, "igebm train", {}, False).count("\n")
    assert share.code("`|\n") == ""


def test_the_card_tells_of_data_that_were_changed_on_the_way():
    settings = presets.to_dict(presets.replace(presets.named("digits"), data="/home/me/new.npz"))
    facts = {"data": {"name": "old set", "images": 7}, "data_since": [{"name": "x", "images": 1234, "step": 50}]}
    about = Shape(1, 8, 8, ()).to_dict() | {"settings": settings, "facts": facts, "step": 90}
    told = share.card("x", "hf:a/b", "mit", {}, about, "igebm train", {}, False)
    assert "| trained on | new.npz, 1,234 items |" in told
    assert "| begun on | old set, 7 items, until iteration 50 |" in told
    about["facts"] = {"data": facts["data"]}
    told = share.card("x", "hf:a/b", "mit", {}, about, "igebm train", {}, False)
    assert "| trained on | new.npz, 7 items |" in told and "begun on" not in told


def test_models_of_series_and_baselines_travel_too(tmp_path):
    preset = presets.replace(presets.named("balls-langevin"), width=4)
    shape = SeriesShape(2, ("x", "y"), (0.0, 1.0), (1.0, 2.0))
    net = model.build_net(preset, shape)
    model.save(tmp_path / "s.safetensors", net, preset, shape, 7, {})
    assert main(["push", str(tmp_path / "s.safetensors"), str(tmp_path / "a"), *FAST]) == 0
    assert files(tmp_path / "a") == TREE - {"samples.png"}
    assert main(["pull", str(tmp_path / "a"), "--out", str(tmp_path / "b")]) == 0
    again = forecast.load(tmp_path / "b").net.state_dict()
    assert all(torch.equal(t, again[name]) for name, t in net.state_dict().items())
    assert front((tmp_path / "a" / "README.md").read_text())["pipeline_tag"] == "time-series-forecasting"


# The hub


def test_pushed_to_the_hub_a_model_is_found_there(run_folder, world, capsys):
    assert main(["push", str(run_folder), "alice/tiny", *FAST]) == 0
    assert capsys.readouterr().out.strip() == f"{world.url}/alice/tiny"
    assert set(world.files["alice/tiny"]) == TREE | {"evaluation/ood.json"} and world.private["alice/tiny"]
    assert world.files["alice/tiny"]["model.safetensors"] == (run_folder / "model.safetensors").read_bytes()
    assert b"hf:alice/tiny" in world.files["alice/tiny"]["README.md"]

    ebm, x = igebm.load("hf:alice/tiny"), torch.rand(5, 1, 8, 8)
    assert torch.equal(ebm.energy(x), igebm.load(run_folder).energy(x)) and ebm.model.name == "tiny"
    assert main(["pull", "alice/tiny"]) == 0
    assert files(Path("models/tiny")) == TREE | {"evaluation/ood.json"}
    for name in ("README.md", "preset.json", "model.safetensors"):
        assert Path("models/tiny", name).read_bytes() == world.files["alice/tiny"][name]


def test_a_hub_model_goes_wherever_a_model_goes(run_folder, world, capsys):
    assert main(["push", str(run_folder), "hf:alice/tiny", "--public", *FAST]) == 0
    assert not world.private["alice/tiny"]
    quick = ["--steps", "1", "--dtype", "float32", "--threads", "1"]
    assert main(["sample", "hf:alice/tiny", "--n", "2", *quick]) == 0 and Path("samples/tiny/samples.npy").is_file()
    assert main(["compose", "hf:alice/tiny=3", "not:hf:alice/tiny=8", "--n", "2", *quick]) == 0
    assert main(["energy", "hf:alice/tiny@main", "digits", "--out", "e.npy", *quick[2:]]) == 0
    assert np.array_equal(np.load("e.npy"), model.load(run_folder).energy(*digits_test()))
    assert main(["eval", "trajectory", "hf:alice/tiny", "--n", "1", *quick]) == 0
    assert Path("evaluation/alice--tiny/trajectory.json").is_file()
    assert main(["train", "--init-from", "hf:alice/tiny", "--steps", "1", "--out", "on", *TINY]) == 0
    # Once fetched it needs no network.
    world.close()
    assert main(["sample", "hf:alice/tiny", "--n", "2", *quick]) == 0
    hub.model_file.cache_clear()
    capsys.readouterr()
    assert main(["sample", "hf:alice/tiny", "--n", "2", *quick]) == 0
    assert "cannot be reached" in (told := capsys.readouterr().err) and "on this machine is used" in told


def digits_test():
    from igebm import data

    test = data.load("digits", "test")
    return test.x, test.y


def test_what_is_public_stays_so_only_when_it_is_said(run_folder, world, capsys):
    assert main(["push", str(run_folder), "alice/tiny", "--public", *FAST]) == 0
    before = dict(world.files["alice/tiny"])
    assert "public: everybody would see" in refused(capsys, "push", str(run_folder), "alice/tiny", *FAST)
    assert world.files["alice/tiny"] == before
    world.files["alice/tiny"]["evaluation/generation.json"] = b"{}"
    assert main(["push", str(run_folder), "alice/tiny", "--public", *FAST]) == 0
    assert "evaluation/generation.json" not in world.files["alice/tiny"]  # of weights that are gone


@pytest.mark.parametrize("theirs", ["README.md", "preset.json", "model.safetensors", "samples.png"])
def test_a_repository_of_something_else_is_not_written_over(theirs, run_folder, world, capsys, monkeypatch):
    """Nor does work begin; one with other files alone, as the hub makes it, is written to."""
    world.files["alice/mine"] = {theirs: b"---\nlicense: mit\n---\nmy own", ".gitattributes": b""}
    world.private["alice/mine"] = True
    before = dict(world.files["alice/mine"])
    with monkeypatch.context() as patch:
        patch.setattr(share, "picture_of", lambda *_: pytest.fail("drew a picture"))
        told = refused(capsys, "push", str(run_folder), "alice/mine", *FAST)
    assert f"{theirs} of alice/mine would be replaced, and igebm push did not write it; give another repository" in told
    assert world.files["alice/mine"] == before
    del world.files["alice/mine"][theirs]
    for _ in range(2):
        assert main(["push", str(run_folder), "alice/mine", *FAST]) == 0
    assert set(world.files["alice/mine"]) == TREE | {"evaluation/ood.json", ".gitattributes"}


def test_no_pickle_is_fetched(run_folder, world, capsys):
    """A repository with more in it than igebm writes: the rest is neither asked for nor written, and is named."""

    @dataclass
    class Bomb:
        def __reduce__(self):
            return Path.touch, (Path("bomb"),)

    good = (run_folder / "model.safetensors").read_bytes()
    more = {"pytorch_model.bin": pickle.dumps(Bomb()), "evaluation/x.json": b"{}", "code.py": b"1"}
    world.files["bob/more"] = {"model.safetensors": good, "README.md": b"hello", ".gitattributes": b""} | more
    world.files["bob/only"] = {"pytorch_model.bin": pickle.dumps(Bomb())}
    world.private |= {"bob/more": False, "bob/only": False}
    assert main(["pull", "bob/more", "--out", "got"]) == 0
    assert files(Path("got")) == {"model.safetensors", "README.md"}
    assert "left where they are: code.py, evaluation/x.json, pytorch_model.bin" in capsys.readouterr().err
    told = refused(capsys, "pull", "bob/only")
    assert "holds no model.safetensors but pytorch_model.bin; other formats, pickles among them, are not opened" in told
    assert "has no model.safetensors" in refused(capsys, "sample", "hf:bob/only")
    assert not any("bin" in path or "code" in path for path in world.asked) and not Path("bomb").exists()


BROKEN = {
    "weights of others": ("model.safetensors", lambda good: foreign(), "was not written by igebm"),
    "a pickle by that name": ("model.safetensors", lambda good: pickle.dumps({"a": 1}), "not a whole safetensors file"),
    "a flipped bit": ("model.safetensors", lambda good: good[:-1] + bytes([good[-1] ^ 1]), "is damaged"),
    "JSON that is none": ("preset.json", lambda good: b"{", "preset.json is damaged"),
    "a picture that is none": ("samples.png", lambda good: b"<svg/>", "samples.png cannot be read as a picture"),
    "bytes for a card": ("README.md", lambda good: b"\xff", "README.md is damaged"),
}


def foreign() -> bytes:
    from safetensors.torch import save

    return save({"a": torch.zeros(3)})


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_refused_before_anything_is_written(name, run_folder, world, capsys):
    file, make, why = BROKEN[name]
    good = (run_folder / "model.safetensors").read_bytes()
    world.files["bob/b"] = {"model.safetensors": good, "README.md": b"hello"} | {file: make(good)}
    world.private["bob/b"] = False
    assert why in refused(capsys, "pull", "bob/b", "--out", "got")
    assert not Path("got").exists()


def test_a_small_file_that_is_large_is_refused(run_folder, world, capsys, monkeypatch):
    """A card of 65 bytes where 64 are the most is not read, and one of 64 is: that of a push is 32 MiB at most."""
    assert share.LARGEST == 33_554_432
    good = (run_folder / "model.safetensors").read_bytes()
    monkeypatch.setattr(share, "LARGEST", 64)
    for name, size in (("more", 65), ("most", 64)):
        world.files[f"bob/{name}"] = {"model.safetensors": good, "README.md": b"x" * size}
        world.private[f"bob/{name}"] = False
    told = refused(capsys, "pull", "bob/more", "--out", "got")
    assert "README.md has 65 bytes, more than any that igebm push writes" in told and not Path("got").exists()
    assert main(["pull", "bob/most", "--out", "got"]) == 0 and Path("got/README.md").read_bytes() == b"x" * 64


def test_what_the_hub_refuses_is_one_line(run_folder, world, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_bob")
    world.files["alice/secret"], world.private["alice/secret"] = {"model.safetensors": b""}, True
    for words in (["sample", "hf:alice/secret"], ["pull", "alice/secret"], ["pull", "alice/none"]):
        assert "is not on the hub, or is private and not yours" in refused(capsys, *words)
    assert "does not let you at alice/tiny (403)" in refused(capsys, "push", str(run_folder), "alice/tiny", *FAST)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert "nothing can be pushed without a token" in refused(capsys, "push", str(run_folder), "alice/tiny", *FAST)


@pytest.mark.parametrize("away", ["offline", "nobody there"])
def test_without_a_network_it_is_one_line_at_once(away, run_folder, world, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1") if away == "offline" else monkeypatch.setenv(
        "HF_ENDPOINT", "http://127.0.0.1:9"
    )
    why = "HF_HUB_OFFLINE is set" if away == "offline" else "cannot be reached"
    for words in (["sample", "hf:alice/tiny"], ["pull", "alice/tiny"], ["push", str(run_folder), "alice/tiny", *FAST]):
        assert why in refused(capsys, *words)
    assert world.asked == []


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["push", "RUN", "nobody"], "no name on the hub; write hf:owner/name"),
        (["push", "RUN", "a/b/c"], "no name on the hub"),
        (["push", "RUN", "alice/x@main"], "leave out @main"),
        (["push", "RUN", "RUN/"], "the model's own folder"),
        (["push", "RUN", "out/", "--public"], "--public is for a repository on the hub"),
        (["push", "RUN", "out/", "--licence", "My Own!"], "give a short name as the hub has them"),
        (["push", "RUN", "out/", "--picture", "none.png"], "no picture none.png"),
        (["push", "digit", "out/"], "did you mean digits"),
        (["sample", "hf:tiny"], "no name on the hub"),
        (["sample", "hf:../../etc"], "no name on the hub"),
        (["pull", "./none"], "no folder none"),
        (["pull", "."], "holds no model.safetensors"),
        (["pull", "RUN/", "--out", "RUN"], "is there and holds something"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(words, why, run_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert why in refused(capsys, *[word.replace("RUN", str(run_folder)) for word in words])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("spec", ["hf:a/b", "a/b", "hf:a-1/b.c_d@v1.0", "hf:a/b@refs/pr/1"])
def test_names_on_the_hub(spec):
    name, _, revision = spec.removeprefix("hf:").partition("@")
    assert hub.parse(spec) == (name, revision or None)
    assert model.called(f"hf:{name}") == name.split("/")[1]


@pytest.mark.parametrize(
    "spec", ["a", "a/", "/a", "a//b", "a/b/c", "a/..", "../a", "a/b@", "a b/c", "a/b\n", "-a/b", "a/b--c"]
)
def test_no_names_on_the_hub(spec):
    with pytest.raises(InputError, match="no name on the hub"):
        hub.parse(spec)


def test_a_place_that_takes_no_files_is_refused_before_a_picture_is_drawn(run_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(share, "picture_of", lambda *_: pytest.fail("drew a picture"))
    Path("taken").write_text("")
    said = refused(capsys, "push", str(run_folder), "taken/")
    assert "cannot write to the folder taken" in said and "--out" not in said


def test_a_tilde_is_home(run_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert main(["push", str(run_folder), "~/models/tiny", *FAST]) == 0
    assert (tmp_path / "home" / "models" / "tiny" / "model.safetensors").is_file() and not Path("~").exists()


def test_serve_fetches_from_the_hub_before_it_keeps_from_the_network(run_folder, world, capsys, monkeypatch):
    """It said that HF_HUB_OFFLINE was set, which it had set itself."""
    from igebm.web import server

    assert main(["push", str(run_folder), "alice/tiny", *FAST]) == 0
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    seen = []
    monkeypatch.setattr(server, "alone", lambda *_: seen.append(hub.model_file("hf:alice/tiny")))
    monkeypatch.setattr(server, "open_model", lambda *_: (_ for _ in ()).throw(InputError("far enough")))
    monkeypatch.setattr(server.signal, "signal", lambda *_: None)
    assert "far enough" in refused(capsys, "serve", "hf:alice/tiny", "--port", "0")
    assert seen[0].is_file() and any("model.safetensors" in asked for asked in map(str, world.asked))
