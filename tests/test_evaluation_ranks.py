"""Evaluation over several processes (torchrun, gloo, CPU): the same numbers as one, no image counted twice."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

MACHINE = "--device cpu --dtype float32 --compile off --threads 1".split()
RUNS = {
    "ood": "--n 23 --batch 5 --against constant interpolation --score gradient-norm",
    "likelihood": "--n 23 --batch 5 --samples 4 --steps 2 --chains 7 --rungs 6 --leapfrog 2 --burn 1",
    "generation": "--n 13 --pool 5 --rounds 3 --last 1 --steps 2 --splits 3 --real 23 --kept 9 --batch 5",
}
CIRCUMSTANCES = ("seconds", "processes", "machine", "options")


def evaluate(name, out, processes):
    launch = ["-m"]
    if processes > 1:
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m", "--"]
    args = ["igebm", "eval", name, "digits", "--out", str(out), *RUNS[name].split(), *MACHINE]
    environment = os.environ | {"IGEBM_INCEPTION": "/nowhere/inception.pt", "IGEBM_DATA": str(out.parent / "data")}
    done = subprocess.run(
        [sys.executable, *launch, *args], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"folder: {out}\n") == 1 and done.stdout.endswith(f"folder: {out}\n")
    return json.loads((out / f"{name}.json").read_text())


def close(one, other) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(close, one, other))
    return one == other if not isinstance(one, float) else one == pytest.approx(other, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("processes", [(2,), pytest.param((2, 3), marks=pytest.mark.slow)], ids=["two", "more"])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name == "likelihood" else []) for name in RUNS]
)
def test_c07_c25_processes_give_the_numbers_of_one(name, processes, tmp_path):
    """Two and three processes, sets that their batches do not divide, more processes than parts at times: no image is
    counted twice, every number is the same, samples are equal to the last byte."""
    one, several = evaluate(name, tmp_path / "1", 1), processes
    for processes in several:
        found = evaluate(name, tmp_path / str(processes), processes)
        assert found["processes"] == processes
        for key in one.keys() - set(CIRCUMSTANCES):
            assert close(one[key], found[key]), (key, one[key], found[key])
        if name == "generation":
            for file in ("samples.npy", "labels.npy"):
                a, b = (np.load(tmp_path / str(n) / file) for n in (1, processes))
                assert np.array_equal(a, b)


@pytest.mark.parametrize("n", [1, 4, 5, 23])
def test_parts_of_all_processes_are_the_whole(n, monkeypatch):
    """The short form: whatever the number of processes, their parts of at most 5 cover n items once."""
    from igebm import ranks

    for size in (1, 2, 3, 7):
        seen = []
        for rank in range(size):
            monkeypatch.setattr(ranks, "size", lambda size=size: size)
            monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
            seen += [i for part in ranks.my_parts(n, 5) for i in range(part.start, part.stop)]
        assert sorted(seen) == list(range(n))
