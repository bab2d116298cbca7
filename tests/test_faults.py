"""What can happen to a run from outside: kills, full disks, damaged files, bad numbers. The state before and after
is compared.

Each fault has a short form that always runs; the long one (20 kills) is marked slow.
"""

import gc
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from runs import trained
from test_training import CPU, RUNTIME, TINY, assert_same, contents, dataset, fresh, images  # noqa: F401

from igebm import files, model, native, presets
from igebm.benchmarks.speed import RESET, resident
from igebm.cli import main
from igebm.data import Images, Loader
from igebm.errors import Fault, InputError
from igebm.limits import release_memory
from igebm.model import Shape
from igebm.training import state as states
from igebm.training.guard import Divergence, Guard
from igebm.training.loop import Watcher, open_log, train, train_step, write_line
from igebm.training.run import resume

RUN = [sys.executable, "-m", "igebm", "train"]
SETTINGS = (
    "--width 4 --blocks 1d --chain-steps 2 --batch 8 --buffer-size 64 --save-every 3 --log-every 1 --grid-every 50 "
    "--snapshot-every 40 --sample-steps 1 --device cpu --dtype float32 --compile off --threads 1"
).split()


AS_USERS_HAVE_IT = (
    "--width 32 --blocks 1d --chain-steps 2 --batch 8 --buffer-size 64 --save-every 3 --log-every 1 --grid-every 50 "
    "--snapshot-every 40 --sample-steps 1 --threads 1"
).split()
"""with dtype and convolutions left to the machine"""


def kill_and_resume(
    tmp_path: Path, kills: int, steps: int, number: signal.Signals, settings: list[str] = SETTINGS
) -> list[int]:
    """A run killed `kills` times at random moments and resumed each time ends with the numbers of one that was not.
    Returns the steps of the checkpoints that it was killed at."""
    out, rng = tmp_path / "killed", random.Random(0)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command, reached = [*RUN, "--steps", str(steps), "--out", str(out), *settings], []
    for kill in range(kills):
        saved, stale = reached[-1] if reached else 0, text(out)  # stale: resuming drops lines beyond the checkpoint
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        # Three of four hit a run at its steps, or while it saves; the fourth while it starts.
        end = time.monotonic() + 60
        while kill % 4 < 3 and (text(out) == stale or last_step(out) <= saved):
            if process.poll() is not None or time.monotonic() > end:
                break
            time.sleep(0.02)
        time.sleep(rng.uniform(0.0, 1.5))
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode in (-number, 130, 0), err.decode()
        # Whole: pytest.fail is what would be told of a damaged one.
        reached.append(states.read_checkpoint(out, pytest.fail)["counters"]["step"])
        command = [*RUN, "--resume", str(out), "--steps", str(steps)]
    last = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert last.returncode == 0, last.stderr
    straight = tmp_path / "straight"
    done = subprocess.run(
        [*RUN, "--steps", str(steps), "--out", str(straight), *settings], capture_output=True, env=environment
    )
    assert done.returncode == 0
    (got, got_log), (want, want_log) = contents(out), contents(straight)
    assert_same(got, want)
    assert got_log == want_log
    return reached


def last_step(folder: Path) -> int:
    """The step that a run's log has come to."""
    return max(map(int, re.findall(r'"step": (\d+)', text(folder))), default=0)


def text(folder: Path) -> str:
    log = folder / "metrics.jsonl"
    return log.read_text() if log.exists() else ""


@pytest.mark.parametrize("settings", [SETTINGS, AS_USERS_HAVE_IT], ids=["float32", "as users have it"])
def test_killed_twice_and_resumed_is_uninterrupted(settings, tmp_path):
    kill_and_resume(tmp_path, 2, 120, signal.SIGKILL, settings)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_twenty_times_and_resumed_is_uninterrupted(tmp_path, number):
    kill_and_resume(tmp_path, 20, 3000, number, AS_USERS_HAVE_IT)


@pytest.mark.parametrize("spinning", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_sigterm_under_load_saves_and_ends(spinning, tmp_path):
    """While other processes take all the machine: the signal is seen between two chain steps, the run saves, ends with
    130 and goes on."""
    out = tmp_path / "run"
    spin = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(spinning)]
    try:
        process = subprocess.Popen([*RUN, "--steps", "100000", "--out", str(out), *SETTINGS], stderr=subprocess.PIPE)
        end = time.monotonic() + 120
        while not (out / "metrics.jsonl").exists() and time.monotonic() < end:
            time.sleep(0.05)
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 130 and b"Traceback" not in err and time.monotonic() - started < 30
    finally:
        for other in spin:
            other.kill()
            other.wait()
    step = states.read_checkpoint(out, pytest.fail)["counters"]["step"]
    assert main(["train", "--resume", str(out), "--steps", str(step + 1)]) == 0


def test_of_two_runs_started_at_once_in_one_folder_one_goes_on(tmp_path):
    """Neither writes into the other's: one ends with 2, the other with its own numbers."""
    out = tmp_path / "run"
    command = [*RUN, "--steps", "30", "--out", str(out), *SETTINGS]
    both = [subprocess.Popen([*command, "--seed", str(i)], stderr=subprocess.PIPE, text=True) for i in range(2)]
    told = [process.communicate(timeout=120)[1] for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) == [0, 2], told
    assert re.search("another process is training|already holds a run", told[codes.index(2)])
    saved = states.read_checkpoint(out, pytest.fail)
    assert saved["counters"]["step"] == 30 and saved["facts"]["seed"] == codes.index(0)


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


LIMITED = """
import resource, sys
from igebm.cli import main
out, data, *settings = sys.argv[1:]
machine = ["--device", "cpu", "--dtype", "float32", "--threads", "1"]
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
for limit in (100, 8_000):  # bytes that a file may have: as a full disk does, the write fails
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    codes = [main(["train", "--steps", "6", "--out", f"{out}-{limit}", *settings])]
    codes += [main(["sample", "digits", "--n", "300", "--steps", "0", "--out", f"{out}-s", *machine])]
    codes += [main(["energy", "digits", data, "--out", f"{out}-e.csv", *machine])]
    print(limit, *codes, flush=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
"""


def test_every_file_that_cannot_be_written_is_named(tmp_path):
    """Checkpoint, model, settings, pictures, arrays, tables: exit code 1 and one line that names the file; nothing
    half-written stays."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "many.npz", x=rng.integers(0, 256, (3000, 8, 8, 1), dtype=np.uint8))
    args = [sys.executable, "-c", LIMITED, str(tmp_path / "run"), str(tmp_path / "many.npz"), *SETTINGS]
    done = subprocess.run([*args, "--width", "16"], capture_output=True, text=True, timeout=300)
    assert [line.split()[1:] for line in done.stdout.splitlines() if line[0].isdigit()] == [["1", "1", "1"]] * 2, done
    told = [line for line in done.stderr.splitlines() if line.startswith("igebm: ")]
    assert len(told) == 6 and all("cannot write" in line and str(tmp_path) in line for line in told), told
    assert "Traceback" not in done.stderr and not list(tmp_path.rglob("*.part"))


def test_a_line_of_the_log_that_cannot_be_written_is_a_fault_and_said_once(tmp_path):
    """Closing the log afterwards does not fail once more and hide what was said."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": "two"}\n[1]\n{"step": 9}\n{"st')
    with open_log(tmp_path, 5) as log:
        write_line(log, {"step": 2, "loss": 0.1})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2, "loss": 0.1}\n'
    with pytest.raises(Fault, match="cannot write /dev/full: No space left"), open("/dev/full", "ab", 0) as full:
        write_line(full, {"step": 3})


def test_a_folder_of_the_users_own_keeps_its_files(dataset, tmp_path):  # noqa: F811
    """--out may be a folder with other things in it: hidden .part files deeper in it are not a killed run's."""
    out = tmp_path / "mine"
    (out / "films").mkdir(parents=True)
    (out / "films" / ".film.mp4.abc.part").write_text("half of a download")
    trained("tiny", replace(TINY, data=str(dataset)), CPU, out)
    resume(out, lambda had: replace(had, steps=8), CPU)
    assert (out / "films" / ".film.mp4.abc.part").read_text() == "half of a download"


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    """Whole or not at all: the block fails half-way, the old bytes stay, no temporary file is left."""
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(Fault, match="cannot write"), files.whole(path) as temporary:
        temporary.write_text("ne")
        raise OSError(28, "No space left on device")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["mode", "disk", "no folder"])
def test_a_read_only_folder(kind, tmp_path, capsys):
    """A folder of mode 555 (root may write to it: left out), a disk mounted to be read alone, a file in the folder's
    place. One line, exit code 2."""
    if kind == "mode":
        if os.geteuid() == 0:
            pytest.skip("root may write anywhere")
        (where := tmp_path / "locked").mkdir(mode=0o555)
    elif kind == "disk":
        where = small_disk(tmp_path, "200k,ro")
    else:
        (where := tmp_path / "plain").write_text("")
    try:
        assert main(["train", "--steps", "1", "--out", str(where / "run"), *SETTINGS]) == 2
        assert "cannot write to the folder" in capsys.readouterr().err
    finally:
        if kind == "disk":
            subprocess.run(["umount", "-l", where], check=True)


# Damaged files


def test_a_flipped_bit_in_a_checkpoint_is_noticed(dataset, tmp_path):  # noqa: F811
    """Anywhere in a tensor: the archive's own checksums tell, and the previous checkpoint is taken."""
    trained("tiny", replace(TINY, data=str(dataset)), CPU, tmp_path / "run")
    path = tmp_path / "run" / states.CHECKPOINT
    whole = path.read_bytes()
    for i in range(1, 12):
        damaged = bytearray(whole)
        damaged[len(whole) * i // 13] ^= 1
        path.write_bytes(damaged)
        told = []
        saved = states.read_checkpoint(tmp_path / "run", told.append)
        if told:
            assert saved["counters"]["step"] == 4 and ("fails its checksum" in told[0] or "damaged" in told[0])
        else:  # the bit was in padding between two parts, which nothing reads
            path.write_bytes(whole)
            assert_same(saved, states.read_checkpoint(tmp_path / "run", pytest.fail))


def test_a_checkpoint_of_other_settings_is_refused(dataset, tmp_path):  # noqa: F811
    """Another run's checkpoint copied into the folder's place, with a buffer or a network of another size."""
    p = replace(TINY, data=str(dataset))
    trained("a", p, CPU, tmp_path / "a")
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
    trained("tiny", p, CPU, tmp_path / "a")
    now = iter(range(10**9, 0, -31_536_000 // 100))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    trained("tiny", p, CPU, tmp_path / "b")
    (saved, log), (other, other_log) = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert_same(saved, other)
    assert log == other_log
    seconds = [json.loads(line)["seconds"] for line in (tmp_path / "b" / "metrics.jsonl").read_text().splitlines()]
    assert seconds == sorted(seconds) and seconds[0] >= 0


def test_files_from_the_future_change_nothing(dataset, tmp_path):  # noqa: F811
    """A clock that was set back leaves files with times to come: a run resumes, its log and its data are read."""
    ends = []
    for name in ("a", "b"):
        trained("tiny", replace(TINY, data=str(dataset), steps=4), CPU, tmp_path / name)
        if name == "b":
            for path in [dataset, tmp_path / name, *(tmp_path / name).rglob("*")]:
                os.utime(path, (4e9, 4e9))  # in 2096
        resume(tmp_path / name, lambda had: replace(had, steps=8), CPU)
        ends.append(contents(tmp_path / name))
    assert_same(*(saved for saved, _ in ends))
    assert ends[0][1] == ends[1][1]


@pytest.mark.parametrize("where", ["weights", "gradient", "data"])
@pytest.mark.parametrize("choice", ["stop", "rollback"])
def test_nan_is_stopped_or_rolled_back_as_chosen(where, choice, tmp_path, monkeypatch):
    """Planted once at step 4: "stop" ends with the step and the remedy, "rollback" goes on from step 4 to the end."""
    state, x = fresh(replace(TINY, on_divergence=choice))
    states.save_checkpoint(tmp_path, state, RUNTIME)
    planted = []

    def at_step_4(step: int | None = None) -> bool:
        if (state.step if step is None else step) == 4 and not planted:
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
            return (pixels * math.nan if at_step_4(seen // self.batch) else pixels), labels  # drawn an iteration ahead

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


@pytest.mark.parametrize("at", [2, 4, 6])
@pytest.mark.parametrize("choice", ["stop", "rollback"])
def test_weights_that_an_update_broke_are_never_saved(choice, at, tmp_path, monkeypatch):
    """After all numbers of the iteration were looked at, at a step that saves, or at the last: the checkpoint and the
    model that lie there stay those from before."""
    state, x = fresh(replace(TINY, steps=6, save_every=2, snapshot_every=2, on_divergence=choice))
    states.save_checkpoint(tmp_path, state, RUNTIME)
    plain, planted = state.optimizer.step, []

    def step(*args, **kwargs):
        plain(*args, **kwargs)
        if state.step + 1 == at and not planted:
            planted.append(next(state.net.parameters()).data.fill_(math.nan))

    monkeypatch.setattr(state.optimizer, "step", step)
    if choice == "stop":
        with pytest.raises(Fault, match=f"diverged at step {at}: the weights are not finite; lower --lr"):
            train(state, Loader(x, 8), tmp_path, RUNTIME, Watcher())
    else:
        assert train(state, Loader(x, 8), tmp_path, RUNTIME, Watcher()).step == 6 and state.rollbacks == 1
    kept = states.read_checkpoint(tmp_path, pytest.fail)
    assert kept["counters"]["step"] == (at - 2 if choice == "stop" else 6)
    saved = [kept["net"], kept["averages"], *(model.read(path)[0] for path in tmp_path.rglob("*.safetensors"))]
    assert all(torch.isfinite(t.float()).all() for of in saved for t in of.values())


def test_a_run_ended_and_resumed_while_it_goes_wrong_is_found_out_and_its_last_good_state_kept(dataset, tmp_path):  # noqa: F811
    """The gap is out of bounds from the first step, and the run is ended every six: at the twentieth in a row it stops,
    as it would have in one piece, and what is then there is the state from before the first."""
    p = replace(TINY, data=str(dataset), gap_limit=1e-9, save_every=1, on_divergence="stop")
    trained("tiny", p, CPU, tmp_path / "run")
    for steps in (12, 18):
        resume(tmp_path / "run", lambda had, steps=steps: replace(had, steps=steps), CPU)
    assert states.read_checkpoint(tmp_path / "run", pytest.fail)["counters"]["outside"] == 18
    with pytest.raises(Fault, match="diverged at step 20: .*last good checkpoint"):
        resume(tmp_path / "run", lambda had: replace(had, steps=24), CPU)
    assert states.read_checkpoint(tmp_path / "run", pytest.fail)["counters"]["step"] == 0


def test_a_chain_that_explodes_stops_the_run():
    """An energy that falls ever faster: its gradient leaves the numbers after two steps, the training step says so and
    leaves the weights as they were."""
    state, x = fresh()
    E = lambda x: -(1e10 * x).pow(4).flatten(1).sum(1)
    state.twin = SimpleNamespace(refresh=lambda: None, given=lambda y: E)
    before = [q.detach().clone() for q in state.net.parameters()]
    with pytest.raises(Divergence, match="diverged at step 1: the chain's gradient is not finite"):
        train_step(state, Loader(x, 8), Guard(10.0))
    assert all(torch.equal(a, b) for a, b in zip(before, state.net.parameters(), strict=True)) and state.step == 0
    assert all(moments["step"] == 0 for moments in state.optimizer.state.values())


def test_a_run_that_really_explodes_says_what_to_lower_and_goes_on_when_it_is_lowered(tmp_path, capsys):
    """A network without spectral norm, steps of 10 and no squares of energies: exit code 1 with step, cause and remedy;
    the last good checkpoint resumes with the remedy."""
    out = tmp_path / "run"
    wild = ["--no-spectral", "--lr", "10", "--alpha", "0", "--sigma-clip", "none", "--clip", "0"]
    wild += ["--on-divergence", "stop"]
    assert main(["train", "--steps", "300", "--out", str(out), *SETTINGS, *wild]) == 1
    told = capsys.readouterr().err.splitlines()
    assert re.search(r"igebm: diverged at step \d+: .*lower --lr .*last good checkpoint", told[-1])
    saved = states.read_checkpoint(out, pytest.fail)
    assert all(torch.isfinite(t).all() for t in saved["net"].values() if t.is_floating_point())
    steps = str(saved["counters"]["step"] + 3)
    tame = ["--lr", "1e-4", "--alpha", "1", "--sigma-clip", "paper", "--clip", "0.01"]
    assert main(["train", "--resume", str(out), "--steps", steps, *tame]) == 0


def test_c19_nan_everywhere_ends_with_1_and_names_it(dataset, tmp_path, capsys):  # noqa: F811
    """A model that is not a number anywhere: no energies and no samples of it are written."""
    trained("tiny", replace(TINY, data=str(dataset)), CPU, tmp_path / "run")
    m = model.load(tmp_path / "run")
    with torch.no_grad():
        m.net.towers[0].head.bias.fill_(math.nan)
    model.save(tmp_path / "nan.safetensors", m.net, m.preset, m.shape, m.step, m.facts)
    out = tmp_path / "e.csv"
    assert main(["energy", str(tmp_path / "nan.safetensors"), str(dataset), "--out", str(out)]) == 1
    assert "25 of 25 energies are not finite" in capsys.readouterr().err and not out.exists()


def test_a_model_with_broken_weights_says_so(dataset, tmp_path, capsys):  # noqa: F811
    """nan in a model's weights: sampling ends with exit code 1 and one line, and writes no picture."""
    trained("tiny", replace(TINY, data=str(dataset)), CPU, tmp_path / "run")
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


@pytest.mark.skipif(not RESET.exists(), reason="the resident set can be told on Linux alone")
@pytest.mark.parametrize("compiled", [False, "winograd"])
def test_a_short_soak(compiled, tmp_path):
    """Two hundred iterations with checkpoints and pictures after a hundred have warmed up: nothing stays behind. An
    update whose graph were kept by each would be hundreds of MiB."""
    if compiled and native.fault():
        pytest.skip(f"no Winograd here: {native.fault()}")
    p = replace(TINY, width=32, batch=16, steps=100, grid_every=50, save_every=25, snapshot_every=50)
    machine = replace(RUNTIME, compiled=compiled)
    x = images()
    state = states.start(p, Shape(1, 8, 8, x.classes), machine, {})

    def trained_to(steps: int) -> float:
        state.preset = replace(p, steps=steps)
        train(state, Loader(x, p.batch), tmp_path, machine, Watcher())
        gc.collect()
        release_memory()
        return resident("VmRSS") / 1024

    before = trained_to(100)
    assert trained_to(300) - before < 4


@pytest.mark.slow
def test_soak(tmp_path):
    """Ten minutes of tiny digits: resident memory flat within 2 % and the processor time of a step within 10 % between
    the second and the last fifth."""
    p = replace(
        presets.named("digits"), minutes=10.0, steps=10**9, grid_every=500, save_every=500, snapshot_every=10**6
    )
    seen = []

    def watch(m):
        if m["step"] % 20 == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            seen.append((time.process_time(), m["step"], pages))

    from igebm import data

    digits = data.load("digits")
    state = states.start(p, Shape(1, 8, 8, digits.classes), RUNTIME, {})
    train(state, Loader(digits, state.preset.batch), tmp_path, RUNTIME, Watcher(report=watch))
    fifth = len(seen) // 5
    early, late = seen[fifth : 2 * fifth], seen[-fifth:]
    rate = lambda rows: (rows[-1][1] - rows[0][1]) / (rows[-1][0] - rows[0][0])
    memory = lambda rows: np.median([pages for _, _, pages in rows])
    assert memory(late) < 1.02 * memory(early)
    assert 0.9 < rate(late) / rate(early) < 1.1
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
        trained("tiny", replace(p, steps=2), CPU, tmp_path / name)
        saved = states.read_checkpoint(tmp_path / name, print)
        saved["counters"]["rollbacks"] = 1
        torch.save(saved, tmp_path / name / states.CHECKPOINT)
        for total in pieces:
            resume(tmp_path / name, lambda had, total=total: replace(had, steps=total), CPU)
        ends.append(contents(tmp_path / name)[0])
    assert_same(*ends)
    trained("tiny", p, CPU, tmp_path / "c")
    assert not torch.equal(contents(tmp_path / "c")[0]["buffer"]["x"], ends[0]["buffer"]["x"])
