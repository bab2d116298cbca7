"""What can happen to a run from outside: kills, full disks, damaged files, bad numbers. The state before and after
is compared.

Each fault has a short form that always runs; the long one (20 kills) is marked slow.
"""

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_training import CPU, RUNTIME, TINY, assert_same, contents, dataset, fresh, images  # noqa: F401

from igebm import files, model, presets
from igebm.cli import main
from igebm.data import Images, Loader
from igebm.errors import Fault, InputError
from igebm.model import Shape
from igebm.samplers import langevin, run
from igebm.training import state as states
from igebm.training.guard import Divergence, Guard
from igebm.training.loop import Watcher, train, train_step
from igebm.training.run import new, resume

RUN = [sys.executable, "-m", "igebm", "train"]
SETTINGS = (
    "--width 4 --blocks 1d --chain-steps 2 --batch 8 --buffer-size 64 --save-every 3 --log-every 1 --grid-every 50 "
    "--snapshot-every 40 --sample-steps 1 --device cpu --dtype float32 --compile off --threads 1"
).split()


def kill_and_resume(tmp_path: Path, kills: int, steps: int, number: signal.Signals) -> None:
    """A run killed `kills` times at random moments and resumed each time ends with the numbers of one that was not."""
    out, rng = tmp_path / "killed", random.Random(0)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [*RUN, "--steps", str(steps), "--out", str(out), *SETTINGS]
    for _ in range(kills):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        end = time.monotonic() + 60
        while not (out / "metrics.jsonl").exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(rng.uniform(0.1, 1.5))
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode in (-number, 130, 0), err.decode()
        states.read_checkpoint(out, pytest.fail)  # whole: pytest.fail is what would be told of a damaged one
        command = [*RUN, "--resume", str(out), "--steps", str(steps)]
    last = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert last.returncode == 0, last.stderr
    straight = tmp_path / "straight"
    done = subprocess.run(
        [*RUN, "--steps", str(steps), "--out", str(straight), *SETTINGS], capture_output=True, env=environment
    )
    assert done.returncode == 0
    (saved, log), (want, want_log) = contents(out), contents(straight)
    assert_same(saved, want)
    assert log == want_log


def test_killed_twice_and_resumed_is_uninterrupted(tmp_path):
    kill_and_resume(tmp_path, 2, 120, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_twenty_times_and_resumed_is_uninterrupted(tmp_path, number):
    kill_and_resume(tmp_path, 20, 3000, number)


# Disks


def small_disk(tmp_path: Path, size: str):
    """A tmpfs of a few hundred KiB; the test is skipped where this process may not mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("cannot mount a small tmpfs here")
    return disk


def test_a_full_disk_is_named_and_the_last_checkpoint_is_whole(dataset, tmp_path, capsys):  # noqa: F811
    """The disk takes a few checkpoints' bytes and no more: exit code 1, one line, and what was saved resumes
    elsewhere."""
    disk = small_disk(tmp_path, "200k")
    try:
        args = [
            "train",
            "--data",
            str(dataset),
            "--steps",
            "400",
            "--out",
            str(disk / "run"),
            *SETTINGS,
            "--width",
            "16",
        ]
        assert main(args) == 1
        err = capsys.readouterr().err
        assert "cannot write" in err.splitlines()[-1] and "Traceback" not in err
        assert not list(disk.rglob("*.part"))
        shutil.copytree(disk / "run", tmp_path / "moved")
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
    saved = states.read_checkpoint(tmp_path / "moved", print)
    step = saved["counters"]["step"]
    assert main(["train", "--resume", str(tmp_path / "moved"), "--steps", str(step + 2)]) == 0


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    """Whole or not at all: the block fails half-way, the old bytes stay, no temporary file is left."""
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(Fault, match="cannot write"), files.whole(path) as temporary:
        temporary.write_text("ne")
        raise OSError(28, "No space left on device")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_read_only_folder(tmp_path, capsys):
    """As anyone but root a folder of mode 555; as root a folder that is no folder. One line, exit code 2."""
    (tmp_path / "locked").mkdir(mode=0o555)
    target = tmp_path / "locked" / "run"
    if os.geteuid() == 0:
        (tmp_path / "plain").write_text("")
        target = tmp_path / "plain" / "run"
    assert main(["train", "--steps", "1", "--out", str(target), *SETTINGS]) == 2
    assert "cannot write to the folder" in capsys.readouterr().err


# Damaged files


def test_a_flipped_bit_in_a_checkpoint_is_noticed(dataset, tmp_path):  # noqa: F811
    """Anywhere in a tensor: the archive's own checksums tell, and the previous checkpoint is taken."""
    new("tiny", replace(TINY, data=str(dataset)), CPU, tmp_path / "run")
    path = tmp_path / "run" / states.CHECKPOINT
    whole = path.read_bytes()
    for i in range(1, 12):
        damaged = bytearray(whole)
        damaged[len(whole) * i // 13] ^= 1
        path.write_bytes(damaged)
        told = []
        saved = states.read_checkpoint(tmp_path / "run", told.append)
        if told:
            assert saved["counters"]["step"] == 4 and "fails its checksum" in told[0] or "damaged" in told[0]
        else:  # the bit was in padding between two parts, which nothing reads
            path.write_bytes(whole)
            assert_same(saved, states.read_checkpoint(tmp_path / "run", pytest.fail))


def test_a_checkpoint_of_other_settings_is_refused(dataset, tmp_path):  # noqa: F811
    """Another run's checkpoint copied into the folder's place, with a buffer or a network of another size."""
    p = replace(TINY, data=str(dataset))
    new("a", p, CPU, tmp_path / "a")
    saved = states.read_checkpoint(tmp_path / "a", print)
    for change, says in (
        (dict(buffer_size=32), "buffer's capacity"),
        (dict(width=8), "this network's is|of another network"),
    ):
        state, _ = fresh(replace(p, **change))
        with pytest.raises(InputError, match=says):
            states.restore(state, saved, tmp_path / "a")


# Clocks, bad numbers


def test_a_clock_set_back_changes_nothing(dataset, tmp_path, monkeypatch):  # noqa: F811
    """The wall clock jumps back by a year at every look: same numbers, times never negative."""
    p = replace(TINY, data=str(dataset), minutes=10.0)
    new("tiny", p, CPU, tmp_path / "a")
    now = iter(range(10**9, 0, -31_536_000 // 100))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    new("tiny", p, CPU, tmp_path / "b")
    (saved, log), (other, other_log) = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert_same(saved, other)
    assert log == other_log
    seconds = [json.loads(line)["seconds"] for line in (tmp_path / "b" / "metrics.jsonl").read_text().splitlines()]
    assert seconds == sorted(seconds) and seconds[0] >= 0


@pytest.mark.parametrize("where", ["weights", "gradient", "data"])
@pytest.mark.parametrize("choice", ["stop", "rollback"])
def test_nan_is_stopped_or_rolled_back_as_chosen(where, choice, tmp_path, monkeypatch):
    """Planted once at step 4: "stop" ends with the step and the remedy, "rollback" goes on from step 4 to the end."""
    state, x = fresh(replace(TINY, on_divergence=choice))
    states.save_checkpoint(tmp_path, state, RUNTIME)
    planted = []

    def at_step_4() -> bool:
        if state.step == 4 and not planted:
            planted.append(True)
            return True
        return False

    if where == "weights":

        def stop():
            if at_step_4():
                with torch.no_grad():
                    next(state.net.parameters()).fill_(math.nan)
            return False

    else:
        stop = lambda: False
    if where == "gradient":
        hook = lambda g: torch.full_like(g, math.nan) if at_step_4() else g
        next(state.net.parameters()).register_hook(hook)
    if where == "data":
        plain = Loader.__call__

        def poisoned(self, seen, generator=None):
            pixels, labels = plain(self, seen, generator)
            return (pixels * math.nan if at_step_4() else pixels), labels

        monkeypatch.setattr(Loader, "__call__", poisoned)
    watcher = Watcher(stop=stop)
    if choice == "stop":
        with pytest.raises(Fault, match=r"diverged at step 5: .*not finite.*lower --lr"):
            train(state, Loader(x, state.preset.batch), tmp_path, RUNTIME, watcher)
        kept = states.read_checkpoint(tmp_path, print)
        assert kept["counters"]["step"] == 4
        assert all(torch.isfinite(t).all() for t in kept["net"].values() if t.is_floating_point())
    else:
        assert train(state, Loader(x, state.preset.batch), tmp_path, RUNTIME, watcher).step == 6
        assert state.rollbacks == 1 and all(torch.isfinite(p).all() for p in state.net.parameters())


def test_a_chain_that_explodes_stops_the_run(tmp_path):
    """A chain without a box on an energy that falls without bound: the samples leave the numbers, and the guard says
    so."""
    E = lambda x: -x.pow(4).sum(1)
    end, info = run(langevin(10.0, 0.1), E, torch.ones(4, 2), 50)
    assert not torch.isfinite(end.x).any()
    with pytest.raises(Divergence, match="the chain's gradient is not finite"):
        Guard(10.0).check(
            3, dict(e_pos=0.0, e_neg=0.0, gap=0.0, loss=0.0, gradient=1.0, chain_gradient=info.g.norm().item())
        )


def test_a_model_with_broken_weights_says_so(dataset, tmp_path, capsys):  # noqa: F811
    """nan in a model's weights: sampling ends with exit code 1 and one line, and writes no picture."""
    new("tiny", replace(TINY, data=str(dataset)), CPU, tmp_path / "run")
    m = model.load(tmp_path / "run")
    with torch.no_grad():
        next(m.net.parameters()).fill_(math.nan)
    model.save(tmp_path / "nan.safetensors", m.net, m.preset, m.shape, m.step, m.facts)
    assert main(["sample", str(tmp_path / "nan.safetensors"), "--n", "2", "--out", str(tmp_path / "s")]) == 1
    assert "left the numbers" in capsys.readouterr().err
    assert not (tmp_path / "s" / "samples.png").exists()


# A step is the same for whoever labels what


def test_unlabelled_images_train_a_conditional_model():
    """Label -1 among the labels: a zero row of the condition, finite numbers, and kept in the buffer."""
    x = images(24)
    labels = x.y.copy()
    labels[::3] = -1
    state = states.start(TINY, Shape(1, 8, 8, x.classes), RUNTIME, {})
    for _ in range(4):
        metrics = train_step(state, Loader(Images("some", x.x, labels, x.classes), 8), Guard(1e9))
    assert all(math.isfinite(v) for v in metrics.values()) and -1 in state.buffer.y[: len(state.buffer)].tolist()


@pytest.mark.slow
def test_soak(tmp_path):
    """Ten minutes of tiny digits: resident memory flat within 5 % and the rate within 20 % between the second and
    last fifth."""
    p = replace(
        presets.named("digits"), minutes=10.0, steps=10**9, grid_every=500, save_every=500, snapshot_every=10**6
    )
    seen = []

    def watch(m):
        if m["step"] % 20 == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            seen.append((m["seconds"], m["step"], pages))

    from igebm import data

    digits = data.load("digits")
    state = states.start(p, Shape(1, 8, 8, digits.classes), RUNTIME, {})
    train(state, Loader(digits, state.preset.batch), tmp_path, RUNTIME, Watcher(report=watch))
    fifth = len(seen) // 5
    early, late = seen[fifth : 2 * fifth], seen[-fifth:]
    rate = lambda rows: (rows[-1][1] - rows[0][1]) / (rows[-1][0] - rows[0][0])
    memory = lambda rows: np.median([pages for _, _, pages in rows])
    assert memory(late) < 1.05 * memory(early)
    assert 0.8 < rate(late) / rate(early) < 1.25
    outcome = {
        "memory_ratio": memory(late) / memory(early),
        "rate_ratio": rate(late) / rate(early),
        "steps": state.step,
    }
    print(json.dumps(outcome))


def test_resume_after_rollback_keeps_its_random_numbers(dataset, tmp_path):  # noqa: F811
    """The number of rollbacks is part of the stream's key, so a run that went back, stopped and resumed is the one
    that did not."""
    p = replace(TINY, data=str(dataset), steps=8)
    ends = []
    for name, pieces in (("a", [8]), ("b", [6, 8])):
        new("tiny", replace(p, steps=2), CPU, tmp_path / name)
        saved = states.read_checkpoint(tmp_path / name, print)
        saved["counters"]["rollbacks"] = 1
        torch.save(saved, tmp_path / name / states.CHECKPOINT)
        for total in pieces:
            resume(tmp_path / name, lambda had, total=total: replace(had, steps=total), CPU)
        ends.append(contents(tmp_path / name)[0])
    assert_same(*ends)
    new("tiny", p, CPU, tmp_path / "c")
    assert not torch.equal(contents(tmp_path / "c")[0]["buffer"]["x"], ends[0]["buffer"]["x"])
