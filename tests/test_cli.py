"""The command line end to end, as a subprocess where that is the point, and every user's mistake as one line with
exit code 2."""

import csv
import dataclasses
import io
import json
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from test_data_folder import c01, c26

from igebm import cli, forecast, model, presets, pretrained
from igebm.cli import COMMANDS, main
from igebm.errors import InputError
from igebm.evaluation.settings import EXPERIMENTS
from igebm.files import results_folder
from igebm.training.loop import Outcome

TINY = (
    "--width 4 --blocks 1d --chain-steps 3 --batch 8 --buffer-size 24 --save-every 2 --log-every 1 --grid-every 3 "
    "--snapshot-every 4 --sample-steps 2 --device cpu --dtype float32 --compile off --threads 1"
).split()


def igebm(*args, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "igebm", *map(str, args)], capture_output=True, text=True, timeout=120, **options
    )


def files(folder: Path) -> set[str]:
    """What a run leaves, but for its lock and TensorBoard's files, which are there where that is installed."""
    named = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    return {name for name in named if name != ".lock" and not name.startswith("tensorboard/")}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    """A finished tiny run on the digits, shared by the tests that only read it."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["train", "--steps", "6", "--out", str(folder), *TINY]) == 0
    return folder


# The main job, end to end


def test_train_resume_sample_energy_as_a_user(tmp_path):
    """Train 4 steps, resume to 6, sample, take energies; what each leaves is whole and agrees with the others."""
    out = tmp_path / "run"
    first = igebm("train", "digits", "--steps", 4, "--out", out, *TINY)
    assert first.returncode == 0 and first.stdout.strip() == str(out), first.stderr
    more = igebm("train", "--resume", out, "--steps", 6)
    assert more.returncode == 0 and "going on" in more.stderr, more.stderr
    assert files(out) == {
        "preset.json", "metrics.jsonl", "checkpoint.pt", "checkpoint.previous.pt", "model.safetensors",
        "samples/0000003.png", "samples/0000006.png", "samples/noise-0000004.png", "samples/noise-0000006.png",
        "snapshots/0000004.safetensors",
    }  # fmt: skip
    assert [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4, 5, 6]
    assert json.loads((out / "preset.json").read_text())["settings"]["width"] == 4

    drawn = igebm("sample", out, "--n", 12, "--steps", 3, "--seed", 5, "--out", tmp_path / "s")
    assert drawn.returncode == 0, drawn.stderr
    x, y = np.load(tmp_path / "s" / "samples.npy"), np.load(tmp_path / "s" / "labels.npy")
    assert x.shape == (12, 8, 8, 1) and x.dtype == np.uint8 and y.tolist() == [*range(10), 0, 1]
    about = json.loads((tmp_path / "s" / "sample.json").read_text())
    assert about["seed"] == 5 and about["chain"]["steps"] == 3 and about["weights"] == "ema"

    got = igebm("energy", out / "model.safetensors", "digits")
    assert got.returncode == 0, got.stderr
    rows = list(csv.DictReader(io.StringIO(got.stdout)))
    loaded = model.load(out)
    from igebm import data

    test = data.load("digits", "test")
    want = loaded.energy(test.x, test.y)
    assert [r["label"] for r in rows] == [str(c) for c in test.y]
    assert [float(r["energy"]) for r in rows] == pytest.approx(
        want.tolist(), rel=2e-2, abs=1e-4
    )  # the probe may take bfloat16


def test_same_seed_same_samples_other_seed_other_samples(run_folder, tmp_path):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        # One dtype: on a machine under load the trial that chooses it may not fall out alike each time.
        words = ["--n", "4", "--seed", seed, "--steps", "2", "--dtype", "float32", "--out", str(tmp_path / name)]
        assert main(["sample", str(run_folder), *words]) == 0
    a, b, c = (np.load(tmp_path / n / "samples.npy") for n in "abc")
    assert np.array_equal(a, b) and not np.array_equal(a, c)


@pytest.mark.parametrize("init", ["buffer", "data"])
def test_chains_start_where_asked(init, run_folder, tmp_path):
    """With no chain step the samples are the starts: the buffer's images, or test images of the class."""
    assert (
        main(
            [
                "sample",
                str(run_folder),
                "--n",
                "6",
                "--init",
                init,
                "--label",
                "3",
                "--steps",
                "0",
                "--out",
                str(tmp_path),
            ]
        )
        == 0
    )
    x, y = np.load(tmp_path / "samples.npy"), np.load(tmp_path / "labels.npy")
    assert len(x) and (y == 3).all()
    if init == "buffer":
        saved = torch.load(run_folder / "checkpoint.pt", weights_only=True)["buffer"]
        known = saved["x"][saved["y"] == 3].permute(0, 2, 3, 1).numpy()
    else:
        from igebm import data

        test = data.load("digits", "test")
        known = test.x[test.y == 3]
    assert all((known == image).all((1, 2, 3)).any() for image in x)


@pytest.mark.parametrize(("init", "steps"), [("noise", 2), ("buffer", 3), ("data", 3)])
def test_chains_go_on_by_as_many_steps_as_in_training(init, steps, run_folder, tmp_path, capsys):
    """--sample-steps 2 from noise; from the buffer or the data, where chains have come to already, --chain-steps 3."""
    words = ["--n", "4", "--init", init, "--out", str(tmp_path), "--dtype", "float32"]
    assert main(["sample", str(run_folder), *words]) == 0
    assert json.loads((tmp_path / "sample.json").read_text())["chain"]["steps"] == steps
    assert f"4 samples by {steps} steps from {init}" in capsys.readouterr().err
    at = model.load(run_folder)
    if init == "noise":
        assert np.array_equal(np.load(tmp_path / "samples.npy"), at.sample(4, steps=2)[0])


def test_the_seed_chooses_the_images_to_start_from(run_folder, tmp_path):
    """With no chain step the samples are the starts: the same images with the same seed, others with another, each with
    its own label, and none twice."""
    from igebm import data

    test = data.load("digits", "test")
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        words = ["--n", "20", "--init", "data", "--seed", seed, "--steps", "0", "--out", str(tmp_path / name)]
        assert main(["sample", str(run_folder), *words]) == 0
        x, y = np.load(tmp_path / name / "samples.npy"), np.load(tmp_path / name / "labels.npy")
        at = [np.flatnonzero((test.x == image).all((1, 2, 3))) for image in x]
        assert all(label in test.y[i] for i, label in zip(at, y, strict=True)) and len(np.unique(x, axis=0)) == 20
    a, b, c = (np.load(tmp_path / name / "samples.npy") for name in "abc")
    assert np.array_equal(a, b) and not np.array_equal(np.unique(a, axis=0), np.unique(c, axis=0))


@pytest.mark.parametrize("split", ["test", "train"])
def test_energies_are_of_the_split_and_at_the_labels_asked_for(split, run_folder, tmp_path, capsys):
    """The 359 images of digits' test split or the 1,438 of train; at their labels, or at the best of all ten."""
    from igebm import data

    images, m = data.load("digits", split), model.load(run_folder)
    assert len(images.x) == {"test": 359, "train": 1438}[split]
    every = np.stack([m.energy(images.x, np.full(len(images.x), c)) for c in range(10)])
    want = {"min": every.min(0), "label": every[images.y, np.arange(len(images.x))]}
    assert (want["min"] < want["label"] - 1e-5).any()
    for at, said in (("min", "minimum over labels"), ("label", "at its label"), ("auto", "at its label")):
        words = ["--split", split, "--at", at, "--out", str(tmp_path / "e.npy"), "--dtype", "float32"]
        assert main(["energy", str(run_folder), "digits", *words]) == 0
        assert np.load(tmp_path / "e.npy") == pytest.approx(want["label" if at == "auto" else at], abs=1e-5)
        assert f"{len(images.x)} energies ({said})" in capsys.readouterr().err


def test_pictures_without_labels_go_on_as_the_class_of_their_least_energy(tmp_path, capsys):
    """Of seven pictures of no class: the bundled model's own guesses, said and noted with their number."""
    import igebm
    from igebm import data

    x = data.load("digits", "test").x[:7]
    np.savez(tmp_path / "bare.npz", x=x)
    words = ["--init", "data", "--data", str(tmp_path / "bare.npz"), "--n", "7", "--steps", "0", "--dtype", "float32"]
    assert main(["sample", "digits", *words, "--out", str(tmp_path / "s")]) == 0
    images, y = np.load(tmp_path / "s" / "samples.npy"), np.load(tmp_path / "s" / "labels.npy")
    ebm = igebm.load("digits")
    assert y.tolist() == ebm.energies(images).argmin(1).tolist()
    taken = json.loads((tmp_path / "s" / "sample.json").read_text())["labels_taken"]
    assert taken == [ebm.classes[i] for i in y]
    said = capsys.readouterr().err
    assert "as the class of its least energy: " in said and all(f"{c} ({taken.count(c)})" in said for c in taken)


def test_energy_of_a_folder_is_the_minimum_over_labels(run_folder, tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 8, 8), dtype=np.uint8)
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    assert main(["energy", str(run_folder), str(tmp_path), "--out", str(tmp_path / "e.npy"), "--dtype", "float32"]) == 0
    m = model.load(run_folder)
    every = np.stack([m.energy(images[..., None], np.full(5, c)) for c in range(10)])
    assert np.load(tmp_path / "e.npy") == pytest.approx(every.min(0), abs=1e-5)


def test_dry_run_counts_without_training(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "digits", "--dry-run", "--width", "8", "--batch", "16"]) == 0
    about = json.loads(capsys.readouterr().out)
    net = model.build_net(presets.from_dict(about["settings"]), model.Shape(1, 8, 8, tuple("0123456789")))
    assert about["cost"]["parameters"] == sum(p.numel() for p in net.parameters())
    c = about["cost"]
    assert c["flop_per_iteration"] == 16 * (
        20 * c["flop_per_image_and_chain_step"] + 2 * c["flop_per_image_and_update"]
    )
    here = about["here"]
    assert here["hours"] == pytest.approx(here["seconds_per_iteration"] * about["settings"]["steps"] / 3600, rel=0.02)
    assert here["bytes_at_least"] > 4 * c["parameters"] and here["by"] == "a chain step on 16 images"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["balls-langevin", "balls-mppi", "balls-feedforward"])
def test_dry_runs_of_series_count_too(name, tmp_path, capsys, monkeypatch):
    """The dense layer alone has 2 x width operations; a gradient at the weights costs more than one at the states."""
    monkeypatch.chdir(tmp_path)
    assert main(["train", name, "--dry-run", "--width", "8", "--batch", "4"]) == 0
    told = capsys.readouterr()
    about = json.loads(told.out)
    c, here = about["cost"], about["here"]
    seconds = here["seconds_per_iteration"] * about["settings"]["steps"]
    assert here["hours"] == pytest.approx(seconds / 3600, rel=0.02) and here["seconds_per_iteration"] > 0
    assert " here (the best of 2 iterations)" in told.err
    step, update = c["flop_per_image_and_chain_step"], c["flop_per_image_and_update"]
    assert update > step >= (0 if name == "balls-feedforward" else 16) and c["flop_per_iteration"] >= 4 * update
    assert list(tmp_path.iterdir()) == []


def test_a_time_limit_ends_a_run_and_is_not_handed_on(tmp_path, capsys):
    """--minutes is for the session it was given to: a resumed run goes on to its last step."""
    out = tmp_path / "r"
    assert main(["train", *TINY, "--steps", "1000000", "--minutes", "0.002", "--out", str(out)]) == 0
    said = capsys.readouterr().err
    step = int(re.search(r"time is up at step (\d+)", said)[1])
    assert 0 < step < 1_000_000 and (out / "checkpoint.pt").exists()
    assert main(["train", "--resume", str(out), "--steps", str(step + 300)]) == 0
    assert f"step {step + 300} after" in capsys.readouterr().err


def test_default_folders_do_not_collide(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for want in ("runs/digits", "runs/digits-2"):
        assert main(["train", "--steps", "1", *TINY]) == 0
        assert capsys.readouterr().out.strip() == want


@pytest.mark.parametrize("name", pretrained.names())
def test_bundled_models_work_right_after_install(name, tmp_path, capsys, monkeypatch):
    """Small, whole, described by a card that says where it comes from, and sampled (or, for time series, followed) by
    name from any folder."""
    monkeypatch.chdir(tmp_path)
    card = pretrained.card(name)
    if "series" in card:
        assert main(["eval", "rollout", name, "--n", "3", "--length", "4", "--out", "s"]) == 0
        m = forecast.load(name)
        assert len(json.loads(Path("s/rollout.json").read_text())["numbers"]["models"][0]["mse"]) == 4
    else:
        assert main(["sample", name, "--n", "3", "--steps", "2", "--out", "s"]) == 0
        m = model.load(name)
        assert np.load("s/samples.npy").shape == (3, m.shape.height, m.shape.width, m.shape.channels)
    capsys.readouterr()
    assert card["iterations"] == m.step and card["parameters"] == sum(p.numel() for p in m.net.parameters())
    assert model.find(name).stat().st_size == card["bytes"] < 6e6
    assert main(["models", name]) == 0
    told = capsys.readouterr().out
    assert all(
        word in told for word in ("command", "commit", "training_seconds", "machine", "note", card["data"]["sha256"])
    )


def test_bundled_digits_are_the_digits_asked_for():
    """A nearest-mean classifier made from the data, right on most real test digits, reads 80 % of the samples."""
    from igebm import data

    train, test = data.load("digits"), data.load("digits", "test")
    means = np.stack([train.x[train.y == c].astype(float).mean(0) for c in range(10)])
    nearest = lambda x: ((x[:, None].astype(float) - means) ** 2).sum((2, 3, 4)).argmin(1)
    assert (nearest(test.x) == test.y).mean() > 0.85
    x, y = model.load("digits").sample(100)
    assert (nearest(x) == y).mean() > 0.8


# What answers at once, and where it goes


def test_help_does_not_wait_for_heavy_imports():
    code = (
        "import sys, io, contextlib\nfrom igebm.cli import main\n"
        "for args in (['--help'], ['train', '--help'], ['presets']):\n"
        "    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit): main(args)\n"
        "print([m for m in ('torch', 'numpy', 'datasets', 'sklearn', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("command", [c for c in COMMANDS if c != "eval"] + [f"eval {name}" for name in EXPERIMENTS])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([*command.split(), "--help"])
    assert end.value.code == 0 and f"igebm {command}" in capsys.readouterr().out


@pytest.mark.parametrize("preset", sorted(presets.PRESETS))
def test_help_shows_the_defaults_of_the_preset_that_is_named(preset, capsys):
    with pytest.raises(SystemExit):
        main(["train", preset, "--help"])
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    settings = presets.named(preset)
    assert f"channels of the first stage (default: {settings.width})" in told
    assert f"training iterations, in total (default: {settings.steps})" in told


@pytest.mark.parametrize("words", ["eval ood digits", "sample digits", "restore digits a.png"])
def test_help_in_the_middle_of_a_line_is_the_whole_help(words, capsys):
    shown = []
    for line in (words, words.split(" digits")[0]):
        with pytest.raises(SystemExit):
            main([*line.split(), "--help"])
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] and " MODEL " in shown[0]


def test_eval_lists_every_experiment(capsys):
    assert main(["eval"]) == 0
    listed = capsys.readouterr().out
    assert all(f"igebm eval {name} " in listed for name in EXPERIMENTS)


def test_presets_table_is_json_too(capsys):
    assert main(["presets", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert table.keys() == presets.PRESETS.keys()
    assert {n: presets.from_dict(row["settings"]) for n, row in table.items()} == {
        n: e.preset for n, e in presets.PRESETS.items()
    }


def test_presets_beside_each_other_show_what_differs_and_no_more(capsys):
    """Figures 14a and 14b: with classes or without, and two residual blocks more at either size."""
    assert main(["presets", "cifar10-cond", "cifar10-uncond"]) == 0
    _, differing = capsys.readouterr().out.split("\n\n")
    assert [line.split(maxsplit=2)[0] for line in differing.splitlines()] == ["setting", "--conditional", "--blocks"]
    assert main(["presets", "digits"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("--")]
    assert [words[0] for words in lines] == [presets.flag(f.name) for f in dataclasses.fields(presets.Preset)]
    assert ["--step-size", "10"] in lines and ["--noise", "0.005"] in lines  # the paper's, section 4
    assert main(["presets", "digits", "cifar"]) == 2
    assert "did you mean cifar10-cond" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, said",
    [
        (["balls-langevin", "--activation", "swish"], "--activation swish changes nothing with --network trajectory"),
        (["balls-feedforward", "--kl", "all"], "--kl all changes nothing with --objective squared-error"),
        (["digits", "--candidates", "9"], "--candidates 9 changes nothing with --sampler langevin"),
        (["digits", "--sampler", "mppi", "--clip", "1"], "--clip 1.0 changes nothing with --sampler mppi"),
        (["digits", "--kl-weight", "2"], "--kl-weight 2.0 changes nothing with --kl none"),
        (["digits", "--kl-weight", "2", "--kl", "last", "--buffer-size", "0"], ""),
        (["digits"], ""),
    ],
)
def test_a_setting_that_changes_nothing_is_said(words, said, capsys):
    assert main(["train", "--dry-run", *words]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "changes nothing" in line]
    assert lines == ([said] if said else [])


def test_every_preset_says_nothing_of_settings_that_it_does_not_use():
    """A name that is in the table of rules is a setting's, and no preset's own setting is told of."""
    known = {field.name for field in dataclasses.fields(presets.Preset)}
    for name in presets.PRESETS:
        assert set(presets.idle(presets.named(name))) < known


@pytest.mark.parametrize("args", [["--help"], ["presets"], ["data", "list"], ["train", "--dry-run"]], ids=" ".join)
def test_c08_a_reader_that_stops_early(args):
    """`igebm ... | head -n 1`: no traceback, no "Exception ignored", exit code 0 (or 141)."""
    line = f"{sys.executable} -m igebm {' '.join(args)} 2>&1 | head -n 1; echo code ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] in ("code 0", "code 141"), done.stdout
    assert "Traceback" not in done.stdout + done.stderr and "Exception ignored" not in done.stdout + done.stderr


def test_c08_redirected_output_has_no_control_characters_and_closed_stdout_still_saves(tmp_path):
    with open(tmp_path / "log", "wb") as log:
        code = subprocess.run(
            ["bash", "-c", 'exec "$@" >&-', "-", sys.executable, "-m", "igebm", "train", "--steps", "2", *TINY]
            + ["--out", str(tmp_path / "r")],
            stderr=log,
        ).returncode  # fmt: skip
    assert code == 0 and (tmp_path / "r" / "checkpoint.pt").exists()
    text = (tmp_path / "log").read_bytes()
    assert b"\r" not in text and b"\x1b" not in text and b"Traceback" not in text


@pytest.mark.parametrize("words", ["models digits", "presets", "compose --help"])
@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_nowhere_to_print_to_and_no_fault(words, closed):
    shell = f'exec "$@" {closed}'
    done = subprocess.run(
        ["bash", "-c", shell, "-", sys.executable, "-m", "igebm", *words.split()], capture_output=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


# Interrupts


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_ends_and_the_run_goes_on(number, tmp_path):
    out = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "igebm", "train", "--steps", "100000", "--out", str(out), *TINY]
        + ["--save-every", "1000000"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    log, end = out / "metrics.jsonl", time.monotonic() + 60
    while (not log.exists() or log.read_text().count("\n") < 3) and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and f"igebm train --resume {out}" in err and "Traceback" not in err
    step = torch.load(out / "checkpoint.pt", weights_only=True)["counters"]["step"]
    assert step >= 3
    assert main(["train", "--resume", str(out), "--steps", str(step + 2)]) == 0
    assert torch.load(out / "checkpoint.pt", weights_only=True)["counters"]["step"] == step + 2


@pytest.mark.parametrize(
    "words",
    ["sample digits --steps 1000000", "compose digits=3 --steps 1000000", "restore digits {png} --steps 1000000"]
    + ["infer dsprites-rotation {png} --steps 1000000"],
)
def test_an_interrupt_leaves_no_empty_folder(words, tmp_path):
    """Ctrl-C while chains run: one line, and of the folders made for results none is left; the one above them is."""
    Image.new("L", (32, 32)).save(tmp_path / "x.png")
    out = tmp_path / "some" / "where"
    args = [*words.format(png=tmp_path / "x.png").split(), "--out", str(out)]
    # What is started in the background of a script is deaf to SIGINT, and so would this be.
    hears = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    command = [sys.executable, "-m", "igebm", *args]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=hears) as process:
        try:
            end = time.monotonic() + 60
            while not out.exists() and time.monotonic() < end:
                time.sleep(0.02)
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130 and err.endswith("igebm: interrupted\n") and "Traceback" not in err
    assert not out.parent.exists() and tmp_path.exists()


def test_a_folder_of_results_stays_with_what_is_in_it(tmp_path):
    """As far as results were written it stays, and so does a folder that was there before, empty as it is."""
    (tmp_path / "empty").mkdir()
    for name, left in (("new/one", True), ("new/two", False), ("empty", True)):
        with pytest.raises(KeyboardInterrupt), results_folder(tmp_path / name, tmp_path) as out:
            if name == "new/one":
                (out / "samples.npy").touch()
            raise KeyboardInterrupt
        assert (tmp_path / name).exists() == left
    assert (tmp_path / "new" / "one" / "samples.npy").exists()


def test_two_commands_at_once_have_a_folder_each(tmp_path):
    """Without --out the next free one is taken by making it, so that of eight none has another's."""
    taken, both = [], threading.Barrier(8)

    def command() -> None:
        both.wait()
        with results_folder(None, tmp_path / "samples" / "digits") as out:
            taken.append(out)
            (out / "samples.npy").touch()

    threads = [threading.Thread(target=command) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(taken)) == 8 and all((out / "samples.npy").exists() for out in taken)
    with pytest.raises(KeyboardInterrupt), results_folder(None, tmp_path / "samples" / "digits") as out:
        raise KeyboardInterrupt
    assert not out.exists() and out.name == "digits-9"
    # A folder that another command has made meanwhile is not ours to remove, and a link to nothing is passed over.
    with pytest.raises(KeyboardInterrupt), results_folder(None, tmp_path / "new" / "digits") as out:
        out.rmdir()
        out.with_name("digits-2").mkdir()
        raise KeyboardInterrupt
    assert (tmp_path / "new" / "digits-2").exists()
    (tmp_path / "new" / "digits").symlink_to("/nowhere/at/all")
    with results_folder(None, tmp_path / "new" / "digits") as out:
        assert out.name == "digits-3"


def test_pictures_of_a_run_name_the_classes(tmp_path):
    """Beside the chains, black on white, in the buffer's picture and in the last one; without classes there is no room
    left for names, and the picture is square."""
    for flags, named in ((["--conditional"], True), (["--no-conditional"], False)):
        out = tmp_path / str(named)
        assert main(["train", "--steps", "3", "--out", str(out), *TINY, *flags]) == 0
        for name in ("0000003.png", "noise-0000003.png"):
            picture = np.asarray(Image.open(out / "samples" / name))
            margin = picture[:, :18]  # six pixels, and the digit's name, which is some eight wide
            assert (picture.shape[0] != picture.shape[1]) == named
            assert not named or ((margin == 255).mean() > 0.8 and (margin < 100).any(1).sum() > 50)


# Mistakes: one line, exit code 2, nothing left behind


def mistake(capsys, *args) -> str:
    """Runs the command, wants exit code 2 and one line on stderr beyond the machine's; returns that line."""
    assert main([str(a) for a in args]) == 2
    told = capsys.readouterr()
    lines = [line for line in told.err.splitlines() if not line.startswith("machine:")]
    assert told.out == "" and lines[-1].startswith("igebm: ") and "Traceback" not in told.err
    return lines[-1]


MISTAKES = {
    "unknown command": (["trian"], "did you mean train?"),
    "unknown preset": (["train", "cifar10-con"], "did you mean cifar10-cond"),
    "unknown setting": (["train", "--widht", "3"], "did you mean --width"),
    "not a number": (["train", "--width", "wide"], "give a whole number, got 'wide'"),
    "decimal comma (C31)": (["train", "--lr", "0,0001"], "'0,0001' (write decimals with a dot)"),
    "out of range": (["train", "--restart", "1.5"], "--restart 1.5: choose between 0 and 1"),
    "not finite": (["train", "--lr", "nan"], "finite"),
    "wrong choice": (["train", "--stem", "5x5"], "give one of 3x3, 4x4/2, got"),
    "blocks": (["train", "--blocks", "1d two"], "give words such as '1d 1 2d 2'"),
    "buffer smaller than the batch (C25)": (
        ["train", "--buffer-size", "1", "--batch", "4"],
        "--buffer-size 1 is smaller than --batch 4",
    ),
    "batch checked against its own preset": (
        ["train", "cifar10-cond", "--batch", "20000"],
        "--buffer-size 10000 is smaller",
    ),
    "weights beyond the memory": (
        ["train", "--width", "4096", "--blocks", "64 64"],
        "--width 4096 --blocks '64 64' --batch 64 --buffer-size 4000 need ",
    ),
    "pictures beyond the memory": (
        ["train", "--width", "4096", "--batch", "1000000", "--buffer-size", "1000000"],
        "GiB of memory, there are ",
    ),
    "unknown data": (["train", "--data", "cifar11"], "did you mean cifar10"),
    "device (C29)": (["train", "--device", "gpu"], "use cpu, cuda or cuda:N"),
    "no cuda (C29)": (["train", "--device", "cuda:7"], "--device cpu"),
    "resume nothing": (["train", "--resume", "/nowhere/at/all"], "no run folder"),
    "no model": (["sample", "/nowhere/at/all"], "give a run folder, a .safetensors file, a bundled name or hf"),
    "energy file": (["energy", "/nowhere", "digits", "--out", "e.txt"], ".csv or .npy"),
    "data to start from, and noise": (["sample", "digits", "--data", "digits"], "with --init data"),
    "a negative step": (["sample", "digits", "--step-size", "-1"], "--step-size -1.0: give 0 or more"),
    "chains over classes": (["infer", "digits", "/nowhere.png", "--n", "5"], "--n is of chains over latents"),
    "a dry run of crops beyond the image": (["train", "--dry-run", "--crop", "40"], "--crop 40: random crops"),
    "a dry run from nowhere": (["train", "--dry-run", "--init-from", "/nowhere"], "no model"),
    "a dry run of what is not to be had": (["train", "balls-langevin", "--dry-run", "--dtype", "bfloat16"], "float32"),
    "seed of samples": (["sample", "digits", "--seed", "-1"], "--seed -1: choose between 0"),
    "seed of a composition": (["compose", "digits=3", "--seed", "9" * 20], "--seed ...: choose between 0"),
    "noise of an inference": (
        ["infer", "dsprites-scale", "/nowhere.png", "--noise", "0"],
        "--noise 0: give a number above",
    ),
    "step of an inference": (
        ["infer", "dsprites-scale", "/nowhere.png", "--step-size", "-4"],
        "--step-size -4: give a number above",
    ),
    "seed of an inference": (["infer", "dsprites-scale", "/nowhere.png", "--seed", "-1"], "--seed -1"),
    "seed of rollouts": (["eval", "rollout", "balls-langevin", "--seed", "-1"], "--seed -1"),
    "seed of concepts": (["eval", "concepts", "dsprites-scale", "--seed", "-1"], "--seed -1"),
    "no step at all": (["eval", "concepts", "dsprites-scale", "--steps", "0"], "--steps 0"),
}


@pytest.mark.parametrize("args, says", MISTAKES.values(), ids=MISTAKES.keys())
def test_mistake_is_one_line(args, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "cuda" in " ".join(args) and torch.cuda.is_available():
        args = ["train", "--device", "cuda:77"]
    assert says in mistake(capsys, *args)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_says_what_it_would_cost_and_then_what_is_in_the_way(capsys):
    assert main(["train", "--dry-run", "--width", "32", "--batch", "1000000", "--buffer-size", "1000000"]) == 2
    told = capsys.readouterr()
    assert json.loads(told.out)["cost"]["parameters"] > 10**4
    assert "GiB of memory, there are " in told.err.splitlines()[-1] and "Traceback" not in told.err


def test_a_label_of_latents_is_refused(capsys, tmp_path):
    words = "eval ood dsprites-position --score gradient-norm --against uniform --out".split()
    assert main([*words, str(tmp_path / "e")]) == 2
    assert "dsprites-position has no labels" in capsys.readouterr().err
    with pytest.raises(InputError, match="latents must be 3 x 2 numbers"):
        model.load("dsprites-position").energy(np.zeros((3, 32, 32, 1), np.uint8), np.ones(3, np.int64))


def test_a_chain_that_stands_still_leaves_its_noise(run_folder, tmp_path):
    """--step-size 0 --noise 0: samples are where chains began, U(0, 1), and a hole stays as it was filled."""
    still = "--step-size 0 --noise 0 --seed 3 --device cpu --dtype float32 --compile off --threads 1".split()
    assert main(["sample", str(run_folder), "--n", "3", "--steps", "5", "--out", str(tmp_path / "s"), *still]) == 0
    noise = torch.rand((3, 1, 8, 8), generator=torch.Generator().manual_seed(3))
    found = np.load(tmp_path / "s" / "samples.npy")[..., 0]
    assert np.array_equal(found, (noise[:, 0] * 256).floor().numpy().astype(np.uint8))
    assert json.loads((tmp_path / "s" / "sample.json").read_text())["chain"] == {
        "steps": 5, "step_size": 0.0, "noise": 0.0, "clip": 0.01,
    }  # fmt: skip
    Image.fromarray(np.full((8, 8), 77, np.uint8)).save(tmp_path / "grey.png")
    words = ["restore", str(run_folder), str(tmp_path / "grey.png"), "--n", "2", "--steps", "4"]
    assert main([*words, "--out", str(tmp_path / "r"), *still]) == 0
    noise = torch.rand((2, 1, 8, 8), generator=torch.Generator().manual_seed(3))
    found = np.load(tmp_path / "r" / "restored.npy")[..., 0]
    assert (found[:, :4] == 77).all()
    assert np.array_equal(found[:, 4:], (noise[:, 0, 4:] * 256).floor().numpy().astype(np.uint8))


def test_a_step_far_from_training_s_is_said(tmp_path, capsys):
    """digits was trained with 10: a step of 1e6 is a slip of the hand, one of 20 is not."""
    words = ["sample", "digits", "--n", "1", "--steps", "1", "--out", str(tmp_path), "--step-size"]
    for value, said in (("1e6", True), ("20", False), ("0", False)):
        assert main([*words, value]) == 0
        assert ("is far from the 10 that digits was trained with" in capsys.readouterr().err) == said


def test_mppi_has_no_step_size(tmp_path, capsys):
    words = ["train", "--sampler", "mppi", "--noise", "0.1", "--steps", "1", "--out", str(tmp_path / "r"), *TINY]
    assert main(words) == 0
    capsys.readouterr()
    said = mistake(capsys, "sample", tmp_path / "r", "--step-size", "1")
    assert "--step-size: this model's chains are MPPI's, which take --noise alone" in said
    assert main(["sample", str(tmp_path / "r"), "--noise", "0.2", "--n", "2", "--out", str(tmp_path / "s")]) == 0


def test_seeds_that_follow_each_other_share_no_chain(run_folder, tmp_path):
    """The second batch of seed 0 is not the first of seed 2."""
    found = []
    for seed, n in ((0, 4), (2, 2)):
        words = ["compose", f"{run_folder}=3", "--n", str(n), "--batch", "2", "--steps", "2", "--seed", str(seed)]
        assert main([*words, "--out", str(tmp_path / str(seed)), "--device", "cpu", "--compile", "off"]) == 0
        found.append(np.load(tmp_path / str(seed) / "samples.npy"))
    assert not np.array_equal(found[0][2:], found[1])


def test_what_a_folder_is_called_keeps_its_dots(tmp_path, monkeypatch):
    """lr-0.0003 and lr-0.0006 are two runs; a folder of data that is called as a bundled model is no run of it."""
    from igebm.evaluation.work import folder_of

    assert model.called("runs/digits-lr0.0003") == "digits-lr0.0003"
    assert model.called(tmp_path / "a.safetensors") == "a" and model.called("hf:you/digits") == "digits"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits" / "0").mkdir(parents=True)
    assert folder_of("digits") == Path("evaluation/digits")


@pytest.mark.parametrize(
    "name, says",
    [
        ("a.csv", "is a table; a MODEL is a run folder"),
        ("a.PNG", "is a picture; a MODEL is a run folder"),
        ("a.npz", "is a file of arrays"),
        ("checkpoint.pt", "is a checkpoint, which is not opened here (of a run give its folder)"),
    ],
)
def test_a_file_of_another_kind_is_called_what_it_is(name, says, tmp_path, capsys):
    (tmp_path / name).write_text("series,step,temperature,pressure\n" * 4)
    assert main(["sample", str(tmp_path / name)]) == 2
    said = capsys.readouterr().err
    assert says in said and "header" not in said and len(said.splitlines()) == 1


def test_a_single_picture_has_an_energy(tmp_path, capsys):
    """That of the same pixels in an array; what cannot be read is named."""
    import igebm

    x = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    Image.fromarray(x).save(tmp_path / "a.png")
    words = ["energy", "digits", str(tmp_path / "a.png"), "--dtype", "float32"]
    assert main([*words, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["energies"]
    assert row["file"] == "a.png"
    assert row["energy"] == pytest.approx(igebm.load("digits").energy(x[None, ..., None]).item(), abs=1e-4)
    (tmp_path / "a.png").write_text("no picture")
    assert main(words) == 2
    assert "a.png (not an image)" in capsys.readouterr().err


def test_a_run_without_a_step_names_no_pictures(tmp_path, capsys):
    assert main(["train", "--steps", "0", "--out", str(tmp_path / "run"), *TINY]) == 0
    said = capsys.readouterr().err
    assert "step 0 after" in said and "pictures in" not in said
    assert main(["train", "--resume", str(tmp_path / "run"), "--steps", "1"]) == 0
    assert "pictures in" in capsys.readouterr().err


@pytest.fixture
def photos(tmp_path, monkeypatch) -> Path:
    """Two classes of two pictures in ./photos."""
    monkeypatch.chdir(tmp_path)
    for k, name in enumerate(("cat/1.png", "cat/2.png", "dog/3.png", "dog/4.png")):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 60 * k).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


OUTS = {
    "the data": ("--data photos --out photos", "photos lies in photos"),
    "in the data": ("--data photos --out photos/cat/../run", "lies in photos"),
    "by another way": ("--data photos/../photos --out link/run", "link/run lies in"),
    "another folder of photos": ("--data digits --out photos", "photos holds pictures (cat/1.png) and no run"),
    "one without classes": ("--data digits --out photos/dog", "photos/dog holds pictures (3.png)"),
}


@pytest.mark.parametrize("command", ["train digits", "baseline pixelcnn"])
@pytest.mark.parametrize("words, says", OUTS.values(), ids=OUTS.keys())
def test_a_run_is_not_written_among_pictures(command, words, says, photos, capsys):
    (photos.parent / "link").symlink_to(photos)
    before = sorted(photos.rglob("*"))
    assert main([*command.split(), *words.split(), "--steps", "1"]) == 2
    assert says in capsys.readouterr().err.splitlines()[-1]
    assert sorted(photos.rglob("*")) == before


def test_a_run_goes_beside_its_pictures_and_among_logs(photos, monkeypatch, capsys):
    words = ["--steps", "1", *TINY]
    (photos.parent / "job").mkdir()
    (photos.parent / "job" / "slurm-1.out").write_text("begun")
    assert main(["train", "digits", "--data", "photos", "--out", "job", *words]) == 0
    monkeypatch.chdir(photos)
    assert main(["train", "digits", "--data", ".", *words]) == 2
    assert "runs lies in ." in capsys.readouterr().err and not (photos / "runs").exists()


@pytest.mark.parametrize("command", ["train", "baseline pixelcnn", "baseline"])
def test_going_on_with_no_run_writes_nothing(command, photos, capsys):
    before = sorted(photos.rglob("*"))
    assert main([*command.split(), "--resume", "photos"]) == 2
    said = capsys.readouterr().err
    assert "photos holds no run of igebm" in said and "--out photos" not in said
    assert sorted(photos.rglob("*")) == before


def test_a_folder_that_holds_a_run_is_refused_and_kept(run_folder, capsys):
    before = {name: (run_folder / name).read_bytes() for name in files(run_folder)}
    line = mistake(capsys, "train", "--steps", "2", "--out", run_folder, *TINY)
    assert "already holds a run" in line and f"--resume {run_folder}" in line
    assert {name: (run_folder / name).read_bytes() for name in files(run_folder)} == before


def test_lines_to_be_pasted_are_words_to_a_shell(tmp_path, capsys, monkeypatch):
    """A folder of two words: what is said of it goes on with it, whichever way the run ended."""
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--steps", "2", "--out", "out dir", *TINY]) == 0
    said = capsys.readouterr().err
    assert shlex.split(said[said.index("next: ") :].strip()) == ["next:", "igebm", "sample", "out dir"]
    assert "--resume 'out dir', or" in mistake(capsys, "train", "--steps", "2", "--out", "out dir", *TINY)
    assert "(--init-from 'out dir' takes" in mistake(capsys, "train", "--resume", "out dir", "--seed", "8")
    assert cli._ended(Outcome("interrupted", 2, 0.0), Path("out dir"), False) == 130
    assert capsys.readouterr().err.endswith("igebm train --resume 'out dir'\n")
    assert cli._ended(Outcome("unpictured", 2, 0.0), Path("out dir"), False) == 130
    assert "igebm sample 'out dir' draws samples" in capsys.readouterr().err
    assert cli._baseline_ended(SimpleNamespace(kind="glow"), Outcome("interrupted", 2, 0.0), Path("a b"), False) == 130
    assert capsys.readouterr().err.endswith("igebm baseline glow --resume 'a b'\n")


def test_unknown_label_names_the_nearest(run_folder, capsys, tmp_path):
    assert "unknown label 'horse'" in mistake(capsys, "sample", run_folder, "--label", "horse", "--out", tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_an_unwritable_folder_is_named(run_folder, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot write to the folder" in mistake(capsys, "sample", run_folder, "--out", tmp_path / "file" / "s")
    assert "cannot write to the folder" in mistake(
        capsys, "train", "--steps", "1", "--out", tmp_path / "file" / "r", *TINY
    )


def test_images_of_another_size_are_fitted_or_refused(run_folder, capsys, tmp_path):
    """Larger pictures are resized to the model's 8x8 and to grey; pixels of a wrong kind are refused."""
    Image.new("RGB", (32, 32), (255, 0, 0)).save(tmp_path / "red.png")
    assert main(["energy", str(run_folder), str(tmp_path), "--out", str(tmp_path / "e.csv")]) == 0
    capsys.readouterr()
    np.savez(tmp_path / "nan.npz", train_x=np.full((4, 8, 8, 1), np.nan, np.float32))
    assert "nan" in mistake(capsys, "energy", run_folder, tmp_path / "nan.npz").lower()


def test_c01_every_command_sees_the_same_pictures(run_folder, tmp_path, capsys):
    """A folder that desktops have been at: checked, trained on and given energies, each time 5 images in 2 classes."""
    root = str(c01(tmp_path / "c01"))
    assert main(["data", "check", root, "--json"]) == 0
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert found["classes"] == ["cat", "dog"] and found["splits"]["train"]["per_class"] == {"cat": 3, "dog": 2}
    assert told.err.count("passed over 6 files") == 1 and "zebra" in told.err
    assert main(["train", "--data", root, "--steps", "1", "--out", str(tmp_path / "r"), *TINY]) == 0
    told = capsys.readouterr().err
    assert "5 images, fewer than the batch of 8" in told and "passed over 6 files" in told
    assert model.load(tmp_path / "r").shape.classes == ("cat", "dog")
    assert main(["energy", str(tmp_path / "r"), root]) == 0
    assert [line.split(",")[2] for line in capsys.readouterr().out.splitlines()[1:]] == ["cat"] * 3 + ["dog"] * 2


@pytest.mark.parametrize("command", ["train", "energy", "data check"])
def test_c26_damaged_pictures_are_refused_or_left_out_by_every_command(command, run_folder, tmp_path, capsys):
    """3 of 20: exit code 2 and all names, before anything is made; with --skip-bad 17 are used, and it is said."""
    root, out = c26(tmp_path / "c26"), tmp_path / "out.csv"
    args = {
        "train": ["train", "--data", root, "--steps", "1", "--out", tmp_path / "out", *TINY],
        "energy": ["energy", run_folder, root, "--out", out],
        "data check": ["data", "check", root, "--json"],
    }[command]
    line = mistake(capsys, *args)
    assert all(word in line for word in ("3 of 20", "17.png", "empty.png", "x.png", "--skip-bad"))
    assert [path.name for path in tmp_path.iterdir()] == ["c26"]
    assert main([*map(str, args), "--skip-bad"]) == 0
    told = capsys.readouterr()
    assert all(name in told.err for name in ("left out 3 of 20", "17.png", "empty.png", "x.png"))
    if command == "energy":
        assert len(out.read_text().splitlines()) == 1 + 17
    if command == "data check":
        assert json.loads(told.out)["splits"]["train"]["count"] == 17


def test_what_was_left_out_once_is_left_out_on_going_on(tmp_path, capsys):
    """The line that an interrupted run prints is all that going on with it takes."""
    folder = tmp_path / "photos"
    for k in range(6):
        (folder / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 40 * k).save(folder / "ab"[k % 2] / f"{k}.png")
    (folder / "a" / "7.png").write_bytes(b"no picture")
    words = ["train", "--data", str(folder), *TINY, "--out", str(tmp_path / "r"), "--steps"]
    assert main([*words, "1"]) == 2 and not (tmp_path / "r").exists()
    assert main([*words, "1", "--skip-bad"]) == 0
    assert main(["train", "--resume", str(tmp_path / "r"), "--steps", "2"]) == 0
    assert capsys.readouterr().err.count("left out 1 of 7 images") == 2
    for words in (["eval", "ood", "--against", "uniform", "--n", "2"], ["sample", "--init", "data", "--n", "2"]):
        name, *rest = words if words[0] == "sample" else [" ".join(words[:2]), *words[2:]]
        assert main([*name.split(), str(tmp_path / "r"), *rest, "--out", str(tmp_path / name)]) == 0
    (folder / "a" / "8.png").write_bytes(b"no picture")
    (tmp_path / "q").mkdir()
    baseline = "baseline pixelcnn --steps 1 --batch 2 --width 4 --depth 1 --threads 1 --device cpu".split()
    assert main([*baseline, "--data", str(folder), "--skip-bad", "--out", str(tmp_path / "b")]) == 0
    assert main(["baseline", "pixelcnn", "--resume", str(tmp_path / "b"), "--steps", "2"]) == 0
    capsys.readouterr()
    (folder / "b").rename(folder / "c")
    line = mistake(capsys, "train", "--resume", tmp_path / "r", "--steps", "3")
    assert (
        "was trained on images of 8x8x1 with 2 classes: a, b; now the data are images of 8x8x1 with 2 classes: a, c"
        in line
    )


def test_pictures_of_several_sizes_are_made_the_models_with_the_option_that_there_is(run_folder, tmp_path, capsys):
    for k, size in enumerate([(40, 50), (9, 8)]):
        Image.new("L", size, 90).save(tmp_path / f"{k}.png")
    words = ["eval", "ood", run_folder, "--data", tmp_path, "--against", "uniform", "--n", "2", "--out", tmp_path / "o"]
    assert "have 2 sizes (9x8, 40x50); --resize makes them the model's size" in mistake(capsys, *words)
    assert main([*map(str, words), "--resize"]) == 0
    capsys.readouterr()
    assert "make them one with --image-size 8" in mistake(capsys, "train", "--data", tmp_path)


def test_a_picture_says_what_was_made_of_it(run_folder, tmp_path, capsys):
    Image.new("RGB", (40, 50), (9, 90, 200)).save(tmp_path / "a.png")
    assert main(["infer", str(run_folder), str(tmp_path / "a.png"), "--out", str(tmp_path / "i")]) == 0
    # Training compared images under one label, never labels of one image: no probabilities are made of that.
    assert "posterior" not in json.loads((tmp_path / "i" / "infer.json").read_text())
    assert "a.png: 40x50 pixels, cut to the middle and made 8x8" in capsys.readouterr().err
    assert f"there is no file {tmp_path / 'b.png'}; give a PNG" in mistake(
        capsys, "infer", run_folder, tmp_path / "b.png"
    )
    assert f"{tmp_path} is a folder; give a PNG" in mistake(capsys, "infer", run_folder, tmp_path)


def test_samples_are_shown_by_class_and_those_without_a_label_say_so(tmp_path, capsys):
    """The picture has a margin for names where there are several classes; of one class it has none."""
    folder = tmp_path / "photos"
    for k in range(6):
        (folder / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 40 * k).save(folder / "ab"[k % 2] / f"{k}.png")
    Image.new("L", (8, 8), 250).save(folder / "loose.png")
    run = str(tmp_path / "r")
    assert main(["train", "--data", str(folder), *TINY, "--out", run, "--steps", "1"]) == 0
    shape = {}
    for name, words in {"both": [], "one": ["--label", "a"], "data": ["--init", "data", "--n", "7"]}.items():
        assert main(["sample", run, "--n", "6", "--steps", "0", *words, "--out", str(tmp_path / name)]) == 0
        with Image.open(tmp_path / name / "samples.png") as shown:
            shape[name] = shown.size
    assert sorted(np.load(tmp_path / "data" / "labels.npy").tolist()) == [-1, 0, 0, 0, 1, 1, 1]
    # Three columns of 8x8 in a frame, 28 pixels, enlarged to about 210: 8 times; two rows, and three.
    assert shape["both"][1] == 8 * 19 and shape["data"][1] == 8 * 28 and shape["both"][0] > 8 * 28
    assert shape["data"][0] > shape["both"][0]  # "no label" is the longest name
    assert shape["one"][0] % 28 == 0  # a plain grid of three by two


def test_c13_help_says_what_multiplies_the_gradient_and_what_is_noise(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "what multiplies the gradient in a Langevin step" in told
    assert "standard deviation of the noise of a Langevin step, in units of x" in told


# Foreign and damaged files


class Bomb:
    """Unpickling it would write a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


def test_a_pickle_is_never_executed(run_folder, tmp_path, capsys):
    """As MODEL, as --init-from, and as a run's checkpoint: refused, and its code did not run."""
    bomb, target = tmp_path / "model.safetensors", tmp_path / "ran"
    torch.save({"net": Bomb(target)}, bomb)
    assert "not a whole safetensors file" in mistake(capsys, "sample", bomb)
    assert "not a whole safetensors file" in mistake(
        capsys, "train", "--init-from", bomb, "--out", tmp_path / "r", *TINY
    )
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint.pt").write_bytes(bomb.read_bytes())
    assert "damaged or no checkpoint" in mistake(capsys, "train", "--resume", tmp_path / "run")
    assert not target.exists()


def test_a_flipped_bit_in_a_model_is_noticed(run_folder, tmp_path, capsys):
    whole = bytearray((run_folder / "model.safetensors").read_bytes())
    for place in (5, 200, len(whole) // 2, len(whole) - 3):
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        (tmp_path / "model.safetensors").write_bytes(damaged)
        mistake(capsys, "sample", tmp_path, "--n", "1")


def test_c20_a_renamed_weight_is_named(run_folder, tmp_path, capsys):
    """Missing and extra key, never random weights; and a file of somebody else's is foreign, not broken."""
    tensors, about = model.read(run_folder / "model.safetensors")
    tensors["module.towers.0.stem.weight"] = tensors.pop("towers.0.stem.weight")
    about["sha256"] = model.digest(tensors)
    save_file(tensors, tmp_path / "renamed.safetensors", {"igebm": json.dumps(about)})
    line = mistake(capsys, "sample", tmp_path / "renamed.safetensors")
    assert "missing towers.0.stem.weight; extra module.towers.0.stem.weight" in line
    save_file(tensors, tmp_path / "foreign.safetensors")
    assert "not written by igebm" in mistake(capsys, "sample", tmp_path / "foreign.safetensors")


def test_foreign_values_in_a_models_metadata_are_one_line(run_folder, tmp_path):
    """Wrong shapes, classes and settings; in one process of its own, without type checks."""
    tensors, about = model.read(run_folder / "model.safetensors")
    had = about["settings"]
    foreign = (
        {"shape": [1, 8]}, {"classes": 5}, {"settings": had | {"blocks": 3}}, {"settings": [1]},
        {"settings": had | {"width": 4.5}}, {"settings": had | {"flip": "no"}}, {"settings": had | {"more": 1}},
    )  # fmt: skip
    for i, change in enumerate(foreign):
        save_file(tensors, tmp_path / f"{i}.safetensors", {"igebm": json.dumps(about | change)})
    code = "import sys\nfrom igebm.cli import main\nprint([main(['sample', f]) for f in sys.argv[1:]])"
    paths = sorted(map(str, tmp_path.glob("*.safetensors")))
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == str([2] * len(foreign)), done.stderr
    assert done.stderr.count("\n") == len(foreign)


def test_samples_need_fitting_starts_and_labels(run_folder):
    m = model.load(run_folder)
    for options in (
        dict(start=np.zeros((2, 9, 9, 1), np.uint8)),
        dict(start=np.zeros((3, 8, 8, 1), np.uint8)),
        dict(labels=np.array([0, 99])),
        dict(labels=np.array([0])),
    ):
        with pytest.raises(InputError):
            m.sample(2, steps=1, **options)


def test_a_truncated_checkpoint_falls_back_to_the_one_before(run_folder, tmp_path, capsys):
    """Cut at 20 places: each time the previous checkpoint (step 4) is taken, and the user is told."""
    import shutil

    whole = (run_folder / "checkpoint.pt").read_bytes()
    for i in range(20):
        copy = tmp_path / str(i)
        shutil.copytree(run_folder, copy)
        (copy / "checkpoint.pt").write_bytes(whole[: len(whole) * i // 20])
        from igebm.training.state import read_checkpoint

        told = []
        assert read_checkpoint(copy, told.append)["counters"]["step"] == 4
        assert "checkpoint.previous.pt (step 4)" in told[0]
    assert main(["train", "--resume", str(copy), "--steps", "7"]) == 0
    capsys.readouterr()
    (copy / "checkpoint.pt").write_bytes(b"")
    (copy / "checkpoint.previous.pt").write_bytes(b"PK")
    assert "damaged or no checkpoint" in mistake(capsys, "train", "--resume", copy, "--steps", "9")


def test_two_processes_on_one_run_folder(tmp_path, capsys):
    out = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "igebm", "train", "--steps", "100000", "--out", str(out), *TINY], stderr=subprocess.PIPE
    )
    try:
        end = time.monotonic() + 60
        while not (out / "metrics.jsonl").exists() and time.monotonic() < end:
            time.sleep(0.05)
        assert "another process is training" in mistake(capsys, "train", "--resume", out, "--steps", "200000")
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("classes, weight", [("a b", 0.2), ("a", 0.0), ("", 0.0)])
def test_a_presets_posterior_of_labels_needs_two_of_them(classes, weight, tmp_path, capsys):
    """What the user did not ask for is left out where it cannot be, and that is said (asked for, it is refused)."""
    photos = tmp_path / "photos"
    for folder in [photos / name for name in classes.split()] or [photos]:
        folder.mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (32, 32), (60 * i, 0, 0)).save(folder / f"{i}.png")
    line = ["train", "cifar10-cond-small", "--data", str(photos), "--dry-run"]
    assert main(line) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["settings"]["label_weight"] == weight
    assert ("no labels to tell apart" in said.err) == (weight == 0)
    if not weight:
        assert main([*line, "--label-weight", "0.1"]) == 2


# The real thing


@pytest.mark.slow
def test_real_cifar10_trains_stops_and_resumes(real_data, tmp_path):
    small = ["cifar10-cond-small", "--data-dir", real_data, "--width", 16, "--batch", 16, "--buffer-size", 64]
    assert (
        igebm("train", *small, "--steps", 4, "--save-every", 2, "--sample-steps", 5, "--out", tmp_path / "r").returncode
        == 0
    )
    done = igebm("train", "--resume", tmp_path / "r", "--steps", 6, "--data-dir", real_data)
    assert done.returncode == 0, done.stderr
    drawn = igebm("sample", tmp_path / "r", "--label", "horse", "--n", 2, "--steps", 2, "--out", tmp_path / "s")
    assert drawn.returncode == 0 and np.load(tmp_path / "s" / "labels.npy").tolist() == [7, 7], drawn.stderr
