"""Where igebm runs: readers that stop, closed streams, full devices, other users, no home, odd names and locales.

Commands run as a user would run them, in processes of their own. Numbered cases are users' own.
"""

import itertools
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_cli import TINY

from igebm import limits, ranks, runtime, terminal
from igebm.cli import main
from igebm.errors import InputError
from igebm.files import what_is, writable_file

IGEBM = f"{sys.executable} -m igebm"
LIGHT = ["train --help", "presets --json", "models digits", "data list"]
HEAVY = ["--help", "presets", "models --json", "sample --help", "data check digits", "data check digits --json"]
HEAVY += ["energy digits digits", "train --dry-run", "bench --help", "eval", "eval ood --help"]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["train", "--steps", "3", "--out", str(folder), *TINY]) == 0
    return folder


def shell(line: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=300, **options)


def quiet(told: str) -> bool:
    return "Traceback" not in told and "Exception ignored" not in told and "Error" not in told


# Readers and streams


@pytest.mark.parametrize("args", LIGHT + [pytest.param(a, marks=pytest.mark.slow) for a in HEAVY])
def test_c08_every_command_may_be_cut_short(args, request):
    """`igebm ... | head -n 1` and a reader that has gone at once, buffered or not, with stderr in the pipe or not."""
    short = [("true", "", ""), ("head -n 1", "1", "2>&1")]
    every = list(itertools.product(("true", "head -n 1"), ("", "1"), ("", "2>&1")))
    for reader, unbuffered, also in every if request.config.getoption("--slow") else short:
        line = f"PYTHONUNBUFFERED={unbuffered} {IGEBM} {args} {also} | {reader}; echo code ${{PIPESTATUS[0]}}"
        done = shell(line)
        assert done.stdout.splitlines()[-1] in ("code 0", "code 141"), (line, done)
        assert quiet(done.stdout + done.stderr), (line, done)


@pytest.mark.parametrize("streams", ["2>&1 | true", "<&- >&- 2>&-", ">/dev/full 2>/dev/full"])
def test_c08_a_run_goes_on_though_nobody_can_be_told(streams, tmp_path):
    """A reader of stderr that has gone, all streams closed, a device without room: the run is done and saved whole."""
    out = tmp_path / "run"
    shell(f"{IGEBM} train --steps 3 --out {out} {' '.join(TINY)} {streams}")
    assert torch.load(out / "checkpoint.pt", weights_only=True)["counters"]["step"] == 3
    assert [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]


def test_c08_results_that_cannot_be_written_are_no_success():
    """A full device under stdout: exit code 1 and one line, nothing of Python's own."""
    done = shell(f"{IGEBM} presets >/dev/full")
    assert done.returncode == 1 and done.stderr == "igebm: reading or writing failed: No space left on device\n"


def test_c08_redirected_streams_hold_lines_and_results_alone(tmp_path):
    """50 steps into files: no carriage return, no escape, no more than a line each interval; stdout is the folder."""
    out = tmp_path / "run"
    shell(f"{IGEBM} train --steps 50 --out {out} {' '.join(TINY)} >{tmp_path}/o 2>{tmp_path}/e")
    told, results = (tmp_path / "e").read_bytes(), (tmp_path / "o").read_text()
    assert results == f"{out}\n" and b"\r" not in told and b"\x1b" not in told and told.count(b"\n") < 12


def test_a_terminal_that_goes_away_ends_nothing(tmp_path):
    """The other end of a pseudo-terminal closes under the bar, and SIGHUP is ignored: the run ends as it would have."""
    out = tmp_path / "run"
    here, there = os.openpty()
    line = f"trap '' HUP; exec {IGEBM} train --steps 60 --out {out} {' '.join(TINY)}"
    process = subprocess.Popen(
        ["sh", "-c", line], stdin=there, stdout=subprocess.PIPE, stderr=there, start_new_session=True
    )
    os.close(there)
    end = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists() and time.monotonic() < end:
        os.read(here, 4096)
    os.close(here)
    process.communicate(timeout=120)
    assert process.returncode == 0
    assert torch.load(out / "checkpoint.pt", weights_only=True)["counters"]["step"] == 60


def test_what_is_said_never_moves_a_cursor(capsys):
    terminal.say("a name with \x1b[2J, \r and \n in it")
    assert capsys.readouterr().err == "a name with \\x1b[2J, \\x0d and \\x0a in it\n"


@pytest.mark.parametrize("size", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"])
@pytest.mark.parametrize("value", ["", "0", "3", "abc", "9" * 5000], ids=lambda value: value[:4])
def test_numbers_of_other_programs_in_the_environment_do_not_matter(size, value, monkeypatch):
    """One alone of what torchrun sets makes no job of several processes, and does not silence this one."""
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(size, value)
    assert limits.processes() == 1
    with ranks.together():
        assert ranks.size() == 1
    assert runtime._threads(0) >= 1
    for name, text in (("RANK", "1"), ("WORLD_SIZE", "4"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, text)
    assert limits.processes() == 4


def test_odd_surroundings_change_nothing(tmp_path):
    """No room in the terminal for a word, junk in variables, no stdin: help comes at once, and a run is told of."""
    env = os.environ | {"COLUMNS": "2", "RANK": "abc", "WORLD_SIZE": "4", "TERM": "none of these", "LINES": "-1"}
    command = [sys.executable, "-m", "igebm", "train"]
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, env=env, timeout=60)
    assert done.returncode == 0 and "--chain-steps" in done.stdout
    args = ["--steps", "1", "--out", str(tmp_path / "r"), *TINY]
    done = subprocess.run([*command, *args], capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0 and "step 1 after" in done.stderr and quiet(done.stderr)


def test_a_folder_that_is_gone_is_named(tmp_path):
    (tmp_path / "gone").mkdir()
    done = shell(f"cd {tmp_path}/gone; rmdir ../gone; {IGEBM} train --steps 1")
    assert (
        done.returncode == 2
        and done.stderr == "igebm: the folder that you are in is no longer there; change to another\n"
    )


def test_memory_is_the_least_of_machine_and_container(tmp_path):
    machine = limits.memory(tmp_path / "nowhere")
    assert 2**28 < machine < 2**50
    for text, want in (("1048576\n", 2**20), ("max\n", machine), ("junk", machine)):
        (tmp_path / "memory.max").write_text(text)
        assert limits.memory(tmp_path / "memory.max") == want


# Names and locales


PLAIN = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
LATIN, GERMAN = {"PYTHONIOENCODING": "latin-1:strict"}, {"LC_ALL": "de_DE.UTF-8"}


@pytest.mark.parametrize("locale", [PLAIN, LATIN, pytest.param(GERMAN, marks=pytest.mark.slow)])
def test_c31_every_name_can_be_shown_and_used(locale, tmp_path):
    """Classes, files and folders with names beyond ASCII, and a run folder whose name is no text: read, trained on,
    resumed, sampled from, listed; numbers with dots."""
    if locale == GERMAN and "de_DE" not in subprocess.run(["locale", "-a"], capture_output=True, text=True).stdout:
        pytest.skip("this machine has no German locale")
    data = tmp_path / "été 2024"
    rng = np.random.default_rng(0)
    for folder in ("猫 1", "chien\x1b[2J"):
        (data / folder).mkdir(parents=True)
        for name in (b"\xc3\xb1 \xc3\xa9.png", b"\xff.png"):
            with open(os.path.join(os.fsencode(data / folder), name), "wb") as file:
                Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(file, format="PNG")
    out = tmp_path / os.fsdecode(b"out dir \xff") / "ü"
    env = {k: v for k, v in os.environ.items() if k != "LANG"} | locale
    commands = (
        ["data", "check", data],
        ["train", "--data", data, "--steps", 2, "--out", out, *TINY],
        ["train", "--resume", out, "--steps", 3],
        ["sample", out, "--n", 2, "--label", "猫 1", "--steps", 1, "--threads", 1, "--out", out / "s"],
        ["energy", out, data, "--threads", 1],
    )
    # All in one process, which imports torch once; its arguments arrive as the locale has them.
    code = "import sys; from igebm.cli import main\nargs = ' '.join(sys.argv[1:]).split(' --next ')"
    code += "\nfor line in args: print('exit', main(line.split('|')), flush=True)"
    words = [word for args in commands for word in ("|".join(map(str, args)), "--next")][:-1]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, env=env, timeout=120)
    told, results = done.stderr.decode(errors="replace"), done.stdout.decode(errors="replace")
    assert quiet(told) and [line for line in results.splitlines() if line.startswith("exit")] == ["exit 0"] * 5, told
    assert "\x1b" not in results + told
    rows = [line.split(",") for line in results.split("index,file,label,energy")[1].splitlines()[1:5]]
    assert all(abs(float(e)) < 1e6 for _, _, _, e in rows)
    log = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2, 3] and all(isinstance(line["lr"], float) for line in log)
    assert main(["train", "--resume", str(out), "--steps", "4"]) == 0  # under another locale than it began with


# Devices


@pytest.mark.parametrize("device", ["cuda", "cuda:7", "gpu", "cuda:" + "9" * 5000], ids=lambda name: name[:8])
def test_c29_a_device_that_is_not_there_is_refused_before_data_are_read(device):
    """The data set is not there either, and it is not what is complained of."""
    used = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])  # no other's load counts
    before = used()
    env = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    args = ["train", "--device", device, "--data", "/nowhere/at/all"]
    done = subprocess.run([sys.executable, "-m", "igebm", *args], capture_output=True, text=True, env=env)
    assert done.returncode == 2 and done.stdout == "" and used() - before < 10
    assert device[:20] in done.stderr and "cpu" in done.stderr and done.stderr.count("\n") == 1


def test_c29_without_a_device_asked_for_the_processor_is_taken_and_said(tmp_path):
    env = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    args = ["train", "--steps", "1", "--width", "4", "--blocks", "1d", "--chain-steps", "2", "--batch", "8"]
    args += ["--buffer-size", "16", "--sample-steps", "1", "--out", str(tmp_path / "r")]
    done = subprocess.run([sys.executable, "-m", "igebm", *args], capture_output=True, text=True, env=env)
    assert done.returncode == 0
    assert [line for line in done.stderr.splitlines() if "machine:" in line][0].startswith(
        "machine: CPU (no GPU found)"
    )
    assert done.stderr.count("machine:") == 1


# Paths that cannot be looked at, other users


LONG = "a" * 5000
UNUSABLE = {
    "data check": ["data", "check", LONG],
    "data, an array": ["data", "check", LONG + ".npz"],
    "model": ["sample", LONG],
    "resume": ["train", "--resume", LONG],
    "out": ["train", "--out", LONG],
    "train on": ["train", "--data", LONG],
    "init from": ["train", "--init-from", LONG],
    "energy file": ["energy", "digits", "digits", "--out", LONG + ".csv"],
    "bench file": ["bench", "--json", LONG],
    "pipe as model": ["sample", "/dev/stdin"],
    "device as data": ["data", "check", "/dev/zero"],
    "file is a folder": ["energy", "digits", "digits", "--out", "folder.csv"],
}


@pytest.mark.parametrize("args", UNUSABLE.values(), ids=UNUSABLE.keys())
def test_a_path_that_cannot_be_used_is_one_line_before_any_work(args, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.csv").mkdir()
    assert main(args) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("machine:")]
    assert len(lines) == 1 and "cannot" in lines[0] or "neither a file nor a folder" in lines[0]
    assert [path.name for path in tmp_path.iterdir()] == ["folder.csv"]


def test_what_lies_at_a_path(tmp_path):
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "link").symlink_to(tmp_path)
    found = {name: what_is(tmp_path / name) for name in ("file", "link", "nowhere", "file/below")}
    assert found == {"file": "file", "link": "folder", "nowhere": "nothing", "file/below": "nothing"}
    for name, words in (("pipe", "neither"), ("loop", "symbolic links"), ("zero\0", "null byte"), (LONG, "too long")):
        with pytest.raises(InputError, match=words):
            what_is(tmp_path / name)
    with pytest.raises(InputError, match="it is a folder"):
        writable_file(tmp_path / "link")


STRANGER = 54321
AS_A_STRANGER = """
import contextlib, os, sys
from igebm.cli import main
with contextlib.redirect_stdout(None), contextlib.redirect_stderr(None):  # imports all, while it may read everything
    main(["train", "--steps", "1", "--out", sys.argv[1], *sys.argv[3].split()])
    main(["data", "check", "cifar10"])
    main(["sample", sys.argv[1], "--n", "1", "--steps", "1", "--out", sys.argv[1] + "-s"])
os.chdir(sys.argv[2])
os.setgroups([])
os.setgid({stranger})
os.setuid({stranger})
for line in sys.argv[4:]:
    if line.startswith("HOME="):
        os.environ["HOME"] = line.removeprefix("HOME=")
    else:
        print("exit", main(line.split()), flush=True)
"""


def as_a_stranger(lines: list[str], tmp_path: Path, folder: Path, env: dict[str, str]) -> subprocess.CompletedProcess:
    """The commands as a user that this machine does not know (no passwd entry), in `folder`."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    packages = Path(np.__file__).resolve()
    if closed := [str(path) for path in packages.parents if not path.stat().st_mode & 0o001]:
        pytest.skip(f"the packages are in a folder closed to other users ({closed[-1]})")
    for path in (tmp_path, *tmp_path.parents):  # pytest's folders are closed to others
        if path.stat().st_uid == 0 and str(path) not in ("/", "/tmp"):
            path.chmod(path.stat().st_mode | 0o011)
    code = AS_A_STRANGER.format(stranger=STRANGER)
    args = [sys.executable, "-c", code, str(tmp_path / "warm"), str(folder), " ".join(TINY), *lines]
    # A hub where nobody answers, and no data at hand: what is fetched or looked through is no part of these tests.
    env = {k: v for k, v in env.items() if k != "IGEBM_DATA"} | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    return subprocess.run(args, capture_output=True, text=True, timeout=120, env=env)


def test_c23_train_and_sample_without_a_home_as_nobody_known(tmp_path):
    """No HOME, one that is not there, one that is read-only; no user's name anywhere."""
    folder, locked = tmp_path / "open", tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o777)
    locked.mkdir(mode=0o555)
    env = {k: v for k, v in os.environ.items() if k not in ("HOME", "USER", "LOGNAME", "IGEBM_DATA")}
    lines = []
    for i, home in enumerate(("", "HOME=/nonexistent", f"HOME={locked}")):
        lines += [home] if home else []
        lines += [f"train --steps 2 --out r{i} {' '.join(TINY)}", f"train --resume r{i} --steps 3"]
        lines += [f"sample r{i} --n 2 --out s{i} --threads 1", f"energy r{i} digits --out e.csv --threads 1"]
        lines += ["data check cifar10"]
    done = as_a_stranger(lines, tmp_path, folder, env)
    codes = [line for line in done.stdout.splitlines() if line.startswith("exit")]
    assert codes == (["exit 0"] * 4 + ["exit 2"]) * 3, done.stderr
    assert "cifar10.npz" in done.stderr.splitlines()[-1] and quiet(done.stderr)
    assert all((folder / f"s{i}" / "samples.png").stat().st_uid == STRANGER for i in range(3))


def test_c23_what_another_user_may_not_touch_is_named(run_folder, tmp_path):
    """A run folder of somebody else's, a locked one, files that may not be read: exit code 2 and one line."""
    import shutil

    shutil.copytree(run_folder, tmp_path / "theirs")
    shutil.copytree(run_folder, tmp_path / "closed")
    np.savez(tmp_path / "secret.npz", x=np.zeros((2, 8, 8, 1), np.uint8))
    (tmp_path / "closed").chmod(0o700)
    (tmp_path / "secret.npz").chmod(0)
    (tmp_path / "theirs" / "model.safetensors").chmod(0)
    lines = {
        "train --resume theirs --steps 9": "cannot write to the folder theirs",
        f"train --steps 1 {' '.join(TINY)}": "cannot write to the folder runs",
        f"train --steps 1 --out theirs {' '.join(TINY)}": "already holds a run",
        f"train --steps 1 --out new {' '.join(TINY)}": "cannot write to the folder new",
        "sample theirs --n 1": "Permission denied",
        "train --resume closed": "Permission denied",
        "sample closed": "cannot look at",
        "data check closed": "cannot look into closed",
        "data check secret.npz": "secret.npz",
        "energy digits digits --out e.csv": "cannot write to the folder",
    }
    done = as_a_stranger(list(lines), tmp_path, tmp_path, dict(os.environ))
    assert done.stdout.splitlines() == ["exit 2"] * len(lines), done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("igebm: ")]
    assert quiet(done.stderr) and len(told) == len(lines)
    for line, words in zip(told, lines.values(), strict=True):
        assert words in line
