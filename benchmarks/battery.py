"""The slow battery, with its outcome on record: `python benchmarks/battery.py` (45 minutes; needs the test extra).

- kills: a run killed 20 times (SIGKILL) at random moments and resumed each time must end, bit for bit, with the numbers
  of one that was not; once more with SIGTERM;
- fuzz: damaged files of every kind, in a process of its own for each seed, must be read or refused in one line;
- soak: half an hour of digits, memory and time sampled each second; straight lines are fitted after the first fifth.
  Memory must be flat (the line rises by less than 2 % in all) and the processor time of a step must not grow (by less
  than 5 % in all). The rate by the clock is recorded beside it: on a shared machine it follows the others' load.

Writes results/battery.json after each part; `--only` does some parts again and keeps the others' record.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import linregress

from igebm.circumstances import circumstances
from igebm.files import write_json
from igebm.runtime import probe

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
PARTS = ("sigkill", "sigterm", "fuzz", "soak")


def kills(count: int, number: signal.Signals, folder: Path) -> dict[str, Any]:
    """The test's own function, with its outcome as numbers."""
    from test_faults import AS_USERS_HAVE_IT, kill_and_resume

    try:
        reached = kill_and_resume(folder, count, max(120, 150 * count), number, AS_USERS_HAVE_IT)
    except AssertionError as error:
        return {"passed": False, "kills": count, "reason": str(error)[:500]}
    ran = {"settings": " ".join(AS_USERS_HAVE_IT), "runtime": runtime_of(folder / "killed")}
    return {"passed": True, "kills": count, "checkpoints_at": reached, "bit_identical": True} | ran


def runtime_of(run: Path) -> str:
    """How a run computed, in its own words."""
    return json.loads((run / "preset.json").read_text())["machine"]["runtime"]


def fuzz(minutes: float, folder: Path, seed: int = 0) -> dict[str, Any]:
    """One process for each five minutes, each with a seed of its own, so that a crash is seen and told apart."""
    parts, left = [], 60 * minutes
    while left > 0:
        seconds, out = min(300.0, left), folder / f"fuzz-{seed}.json"
        command = [sys.executable, str(ROOT / "tests" / "fuzz.py"), "--seconds", str(seconds), "--seed", str(seed)]
        command += ["--json", str(out), "--keep", str(ROOT / "fuzz-failures" / str(seed))]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        part = json.loads(out.read_text()) if out.exists() else {"seed": seed, "failures": ["the process crashed"]}
        parts.append(part | {"exit_code": done.returncode})
        left, seed = left - seconds, seed + 1
    return {
        "passed": all(part["exit_code"] == 0 for part in parts),
        "files": sum(part.get("files", 0) for part in parts),
        "parts": parts,
    }


def soak(minutes: float, folder: Path) -> dict[str, Any]:
    """Train digits for so long with one thread, and look at the process from outside each second."""
    out = folder / "soak"
    command = [sys.executable, "-m", "igebm", "train", "digits", "--out", str(out), "--steps", str(10**9)]
    command += f"--minutes {minutes} --threads 1 --device cpu --sample-steps 10".split()  # and else as a user has it
    rows = []
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = out / "metrics.jsonl"
    while process.poll() is None:
        time.sleep(1)
        try:
            pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
            used = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            last = json.loads(log.read_text().splitlines()[-1])
        except (OSError, IndexError, ValueError, KeyError):
            continue  # not begun, or gone, or a line half written
        cpu = (int(used[11]) + int(used[12])) / TICKS
        rows.append((last["seconds"], last["step"], pages * PAGE, cpu, os.getloadavg()[0]))
    if process.returncode != 0 or len(rows) < 10:
        return {"passed": False, "exit_code": process.returncode, "samples": len(rows)}
    return {"exit_code": 0, "minutes": minutes, "runtime": runtime_of(out)} | fits(np.array(rows))


def fits(rows: np.ndarray) -> dict[str, Any]:
    """Straight lines through memory, processor time a step and rate against time, from a fifth of the time on."""
    rows = rows[np.unique(rows[:, 1], return_index=True)[1]]  # once for each line of the log
    rows = rows[rows[:, 0] >= rows[-1, 0] / 5]
    seconds, step, memory, cpu, load = rows.T
    middle = (seconds[1:] + seconds[:-1]) / 2
    lines = {
        "memory_bytes": line(seconds, memory),
        "cpu_seconds_per_step": line(middle, np.diff(cpu) / np.diff(step), np.diff(step)),
        "steps_per_second": line(middle, np.diff(step) / np.diff(seconds)),
    }
    cpu_time = lines["cpu_seconds_per_step"]
    flat = lines["memory_bytes"]["change_in_all"] < 0.02
    steady = cpu_time["change_in_all"] < 0.05
    return {
        "passed": bool(flat and steady), "memory_is_flat": bool(flat), "processor_time_does_not_grow": bool(steady),
        "steps": int(step[-1]), "samples": len(rows), "load_mean": round(float(load.mean()), 2), **lines,
    }  # fmt: skip


def line(t: np.ndarray, y: np.ndarray, weight: np.ndarray | None = None) -> dict[str, float]:
    """Mean, slope an hour with its standard error, and the change of the fitted line over all the time, as a share of
    the mean. `weight`: means of so many, put into ten bins first, since processor time is counted in hundredths."""
    if weight is not None:
        bins = np.array_split(np.arange(len(t)), min(10, len(t)))
        t = np.array([np.average(t[b], weights=weight[b]) for b in bins])
        y = np.array([np.average(y[b], weights=weight[b]) for b in bins])
    fit: Any = linregress(t, y)
    mean = float(y.mean())
    return {
        "mean": mean,
        "slope_per_hour": 3600 * float(fit.slope),
        "slope_standard_error": 3600 * float(fit.stderr),
        "change_in_all": float(fit.slope) * float(t[-1] - t[0]) / mean,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--fuzz-minutes", type=float, default=10)
    parser.add_argument("--soak-minutes", type=float, default=30)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "battery.json")
    parser.add_argument("--only", nargs="+", default=PARTS, choices=PARTS)
    asked = parser.parse_args()
    about = circumstances(probe("cpu", threads=1), " ".join(["python benchmarks/battery.py", *sys.argv[1:]]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "sigkill": lambda: kills(asked.kills, signal.SIGKILL, new(folder / "sigkill")),
            "sigterm": lambda: kills(asked.kills, signal.SIGTERM, new(folder / "sigterm")),
            "fuzz": lambda: fuzz(asked.fuzz_minutes, folder),
            "soak": lambda: soak(asked.soak_minutes, folder),
        }
        for part in asked.only:
            start, load = time.monotonic(), os.getloadavg()[0]
            done = parts[part]() | {"seconds": round(time.monotonic() - start, 1), "load_before": round(load, 2)}
            print(part, json.dumps(done)[:600], flush=True)
            found = json.loads(asked.out.read_text()) if asked.out.exists() else {}
            found[part] = done | {"machine": about}
            found["passed"] = all(p in found and found[p]["passed"] for p in PARTS)
            write_json(asked.out, found)
    return 0 if all(found[part]["passed"] for part in asked.only) else 1


def new(folder: Path) -> Path:
    folder.mkdir()
    return folder


if __name__ == "__main__":
    sys.exit(main())
