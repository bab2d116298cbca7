"""Cost of an evaluation against its images and its chain steps: `python benchmarks/evaluation.py`.

`igebm eval generation digits` in a process of its own for each row: its seconds should be linear in the samples and in
the steps, its peak memory (the kernel's count for the process) the same however many samples, for statistics are
streamed and samples go to a file as they come. Straight lines are fitted; writes results/evaluation.json beside this
file.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from scipy.stats import linregress

from igebm.circumstances import circumstances
from igebm.files import write_json
from igebm.runtime import probe

POOL, ROUNDS, KEPT = 500, 10, 500
SAMPLES, STEPS = [500, 1_000, 2_000, 4_000, 8_000], [5, 10, 20, 40]


def row(n: int, steps: int, threads: int) -> dict[str, float]:
    """One evaluation: its own seconds (start-up and the classifier's training, which all share, left out) and its peak
    resident set."""
    with tempfile.TemporaryDirectory() as folder:
        words = f"eval generation digits --n {n} --steps {steps} --pool {POOL} --rounds {ROUNDS} --kept {KEPT}"
        command = [sys.executable, "-m", "igebm", *words.split(), "--threads", str(threads), "--out", folder]
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert child.stderr is not None
        said = child.stderr.read()
        _, status, used = os.wait4(child.pid, 0)
        if status:
            raise SystemExit(f"{' '.join(command)} failed:\n{said}")
        seconds = json.loads((Path(folder) / "generation.json").read_text())["seconds"]
    found = {"n": n, "steps": steps, "seconds": seconds, "peak_mib": round(used.ru_maxrss / 1024, 1)}
    print(found, flush=True)
    return found


def line(rows: list[dict[str, float]], x: str, y: str) -> dict[str, float]:
    """y = a + b x by least squares, and how much of y's variance it explains."""
    fit = linregress([r[x] for r in rows], [r[y] for r in rows])
    return {"intercept": round(fit.intercept, 4), "slope": round(fit.slope, 8), "r_squared": round(fit.rvalue**2, 5)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "evaluation.json")
    asked = parser.parse_args()
    runtime = probe(threads=asked.threads)
    row(SAMPLES[0], STEPS[0], asked.threads)  # trains and keeps the classifier
    by_n = [row(n, 10, asked.threads) for n in SAMPLES]
    by_steps = [row(1_000, steps, asked.threads) for steps in STEPS]
    found = {
        "what": "igebm eval generation on the bundled digits, scored by the classifier of digits",
        "pool": POOL, "rounds": ROUNDS, "kept": KEPT,
        "by_samples": by_n, "by_steps": by_steps,
        "seconds_on_samples": line(by_n, "n", "seconds"),
        "seconds_on_steps": line(by_steps, "steps", "seconds"),
        "peak_mib_on_samples": line(by_n, "n", "peak_mib"),
        "machine": circumstances(runtime, "python benchmarks/evaluation.py"),
    }  # fmt: skip
    write_json(asked.json, found)
    print(json.dumps({k: v for k, v in found.items() if k.endswith(("samples", "steps")) and "_on_" in k}, indent=1))


if __name__ == "__main__":
    main()
