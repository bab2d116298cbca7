"""One run in several processes (gloo, on the CPU): the same numbers as one process's, where they can be."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from igebm import forecast, model, ranks
from igebm.buffer import Buffer
from igebm.training import distributed, ema
from igebm.training.state import read_checkpoint

SMALL = ["--width", "8", "--blocks", "1d", "--batch", "8", "--chain-steps", "2", "--buffer-size", "16",
         "--log-every", "1", "--sample-steps", "1", "--save-every", "2", "--threads", "1"]  # fmt: skip


def start(processes: int, *words: str) -> subprocess.Popen:
    """`igebm train` in so many processes, as torchrun starts them."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    line = [*(torchrun if processes > 1 else [sys.executable, "-m"]), "igebm", "train", *words]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def train(processes: int, *words: str, within: float = 300) -> tuple[str, str]:
    out, err = (process := start(processes, *words)).communicate(timeout=within)
    assert process.returncode == 0, err
    return out, err


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def series(path: Path) -> Path:
    rng = np.random.default_rng(0)
    np.savez(path, train_x=rng.standard_normal((6, 20, 2)).cumsum(1).astype(np.float32))
    return path


def test_two_processes_take_the_step_of_the_whole_batch(tmp_path):
    """A plain predictor draws nothing at random, so two halves of a batch must give the update of the whole."""
    words = ["balls-feedforward", "--data", str(series(tmp_path / "s.npz")), "--width", "8", "--batch", "16"]
    words += ["--steps", "5", "--log-every", "1", "--threads", "1"]
    out, _ = train(2, *words, "--out", str(tmp_path / "two"))
    train(1, *words, "--out", str(tmp_path / "one"))
    assert out == f"{tmp_path / 'two'}\n"  # said once
    one, two = (forecast.load(tmp_path / name).net.state_dict() for name in ("one", "two"))
    assert all(torch.allclose(one[name], two[name], atol=1e-6) for name in one)
    logs = [lines(tmp_path / n) for n in ("one", "two")]
    assert [e["seen"] for e in logs[1]] == [16, 32, 48, 64, 80] == [e["seen"] for e in logs[0]]
    assert [e["loss"] for e in logs[0]] == pytest.approx([e["loss"] for e in logs[1]], rel=1e-4)


def test_c20_two_processes_save_what_one_saves(tmp_path):
    """The same keys without a prefix; and the file that one plain process loads has the energies, within 1e-6, of the
    averaged weights as the run had them, which its checkpoint holds."""
    found = []
    for processes in (1, 2):
        run = tmp_path / str(processes)
        train(processes, "digits", "--steps", "2", *SMALL, "--out", str(run))
        saved, loaded = read_checkpoint(run, print), model.load(run)
        found.append((set(saved["net"]), set(loaded.net.state_dict())))
        had = model.build_net(loaded.preset, loaded.shape)
        had.load_state_dict(saved["net"])
        x, y = torch.rand(3, 1, 8, 8), torch.tensor([0, 4, 9])
        with torch.no_grad():
            want = ema.network(saved["averages"], had)(x, y)
            assert torch.allclose(loaded.net(x, y), want, atol=1e-6) and want.std() > 0
    assert found[0] == found[1]
    assert not any(key.startswith(("module.", "_orig_mod.")) for keys in found[1] for key in keys)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_an_energy_learns_the_same_in_two_processes(seed, tmp_path):
    """The same weights to begin with, the same data, the same global batch, other random numbers in the chains: the
    slope that chains meet and the share of black and white, over 50 iterations each, agree to a few percent, where two
    seeds differ by twenty."""
    words = [
        "digits",
        "--width",
        "16",
        "--blocks",
        "1d",
        "--batch",
        "32",
        "--chain-steps",
        "10",
        "--buffer-size",
        "256",
    ]
    words += ["--steps", "150", "--lr", "1e-3", "--log-every", "1", "--sample-steps", "1", "--threads", "1"]
    found = []
    for processes in (1, 2):
        run = tmp_path / str(processes)
        train(processes, *words, "--seed", str(seed), "--dtype", "float32", "--compile", "off", "--out", str(run))
        curve = np.array([[entry["chain_gradient"], entry["saturated"]] for entry in lines(run)])
        found.append(curve.reshape(3, 50, 2).mean(1))
    assert found[1] == pytest.approx(found[0], rel=0.06)


@pytest.mark.slow
def test_a_run_moves_between_two_processes_and_one(tmp_path):
    run = tmp_path / "run"
    train(2, "digits", "--steps", "4", *SMALL, "--out", str(run))
    saved = read_checkpoint(run, print)
    assert saved["buffer"]["capacity"] == 16 and len(saved["buffer"]["parts"]) == 2 and saved["counters"]["seen"] == 32
    keys = set(model.load(run).net.state_dict())
    train(1, "--resume", str(run), "--steps", "6")
    train(2, "--resume", str(run), "--steps", "8")
    steps = [entry["step"] for entry in lines(run)]
    assert steps == [1, 2, 3, 4, 5, 6, 7, 8] and set(model.load(run).net.state_dict()) == keys
    assert [entry["seen"] for entry in lines(run)] == [8, 16, 24, 32, 40, 48, 56, 64]  # the batch is all processes'


@pytest.mark.slow
def test_resumed_in_as_many_processes_it_is_the_same_run(tmp_path):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    train(2, "digits", "--steps", "6", *SMALL, "--out", str(whole))
    train(2, "digits", "--steps", "4", *SMALL, "--out", str(halves))
    train(2, "--resume", str(halves), "--steps", "6")
    a, b = (model.load(folder).net.state_dict() for folder in (whole, halves))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_a_killed_process_ends_the_run_and_what_was_saved_goes_on(tmp_path):
    run = tmp_path / "run"
    process = start(2, "digits", "--steps", "100000", *SMALL, "--out", str(run))
    deadline = time.monotonic() + 120
    while not (run / "checkpoint.previous.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(children[-1]), signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode != 0
    step = read_checkpoint(run, print)["counters"]["step"]
    train(1, "--resume", str(run), "--steps", str(step + 2))


def test_c25_fewer_images_than_processes_train_with_repeats(tmp_path):
    np.savez(tmp_path / "three.npz", x=np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), dtype=np.uint8))
    words = ["digits", "--data", str(tmp_path / "three.npz"), "--steps", "2", *SMALL, "--out", str(tmp_path / "r")]
    _, err = train(4, *words, within=120)
    assert "3 images, fewer than the batch of 8" in err
    assert read_checkpoint(tmp_path / "r", pytest.fail)["counters"]["step"] == 2 and len(lines(tmp_path / "r")) == 2


def test_alone_every_call_is_free():
    t = [torch.tensor([1.0, 2.0])]
    ranks.mean_(t)
    assert t[0].tolist() == [1.0, 2.0] and ranks.agree(True) and not ranks.agree(False)
    assert ranks.text("here") == "here" and ranks.rank() == 0 and ranks.size() == 1


def test_a_buffer_is_dealt_out_to_more_processes_without_loss(monkeypatch):
    saved = {"x": torch.arange(12).reshape(12, 1), "y": torch.arange(12), "cursor": 0, "capacity": 24}
    parts = []
    for rank in range(3):
        monkeypatch.setattr(ranks, "size", lambda: 3)
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        parts.append(distributed.shared(saved, 8))
    assert all(part["capacity"] == 8 and len(part["x"]) == 4 for part in parts)
    assert sorted(torch.cat([part["y"] for part in parts]).tolist()) == list(range(12))
    assert all(torch.equal(part["x"][:, 0], part["y"]) for part in parts)
    # A ring goes on where its samples end: beyond it there are none.
    assert [part["cursor"] for part in parts] == [4, 4, 4]


def test_a_buffer_of_parts_goes_into_one_that_does_not_divide_by_them(monkeypatch):
    """1,500 in eight processes are eight times 187: four samples fewer, and it goes on in one all the same."""
    saved = {"x": torch.arange(16)[:, None], "y": None, "cursor": 2, "capacity": 1496, "parts": [2] * 8}
    one = distributed.shared(saved, 1500)
    assert one["capacity"] == 1500 and one["x"][:, 0].tolist() == list(range(16)) and one["cursor"] == 16
    buffer = Buffer(1500, (1,), dtype=torch.int64)
    buffer.load_state_dict(one)
    assert len(buffer) == 16
    monkeypatch.setattr(ranks, "size", lambda: 8)
    monkeypatch.setattr(ranks, "rank", lambda: 3)
    same = distributed.shared(saved, 187)
    assert same["x"][:, 0].tolist() == [6, 7] and (same["capacity"], same["cursor"]) == (187, 2)
