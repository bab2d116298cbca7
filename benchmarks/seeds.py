"""Does training give the same quality again? `python benchmarks/seeds.py digits --json results/digits.json`: a preset
trained with several seeds, samples of each run from noise judged as quality.py does, a table and the spread. Options
that are none of these go to `igebm train`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from quality import judge, judging

from igebm import model
from igebm.circumstances import circumstances
from igebm.files import write_json
from igebm.runtime import probe


def train(preset: str, seed: int, folder: Path, more: list[str]) -> dict:
    """Train as a user would, with the numbers that it ended with."""
    words = ["train", preset, "--seed", str(seed), *more]
    subprocess.run([sys.executable, "-m", "igebm", *words, "--out", folder], check=True)
    about = json.loads((folder / "preset.json").read_text())
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    ended = {"iterations": last["step"], "training_seconds": last["seconds"]}
    return {"command": " ".join(["igebm", *words]), "seed": seed} | ended | {
        **{name: last[name] for name in ("e_pos", "e_neg", "gap")},
        "versions": about["versions"],
        "machine": about["machine"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("preset")
    parser.add_argument("--seeds", type=int, default=3, help="of training")
    parser.add_argument("--sample-steps", type=int, nargs="+", default=[200, 400], help="chain steps of samples")
    parser.add_argument("--n", type=int, default=500, help="samples of a run, of each sampling seed")
    parser.add_argument("--sampling-seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, required=True)
    asked, more = parser.parse_known_args()
    runtime, runs, rows = probe(compile="quick"), [], []
    # Before anything is written: the commit that trains.
    about = circumstances(runtime, "python benchmarks/seeds.py " + " ".join(sys.argv[1:]))
    with tempfile.TemporaryDirectory() as kept:
        folders = [Path(kept, f"seed-{seed}") for seed in range(asked.seeds)]
        for seed, folder in enumerate(folders):
            runs.append(train(asked.preset, seed, folder, more))
        real, net, judged = judging(model.load(folders[0]).preset.data, runtime)
        print("classifier", judged, flush=True)
        for seed, folder in enumerate(folders):
            m = model.load(folder, runtime.device, runtime.dtype, runtime.compiled)
            for steps in asked.sample_steps:
                for k in range(asked.sampling_seeds):
                    found = judge(m, net, real, asked.n, steps, k, runtime.device)
                    rows.append({"trained_with_seed": seed, "model_step": m.step} | found)
                    print(rows[-1], flush=True)
    spread = {
        f"{name}_{steps}_steps": three([row[name] for row in rows if row["chain_steps"] == steps])
        for steps in asked.sample_steps
        for name in ("accuracy", "diversity")
    }
    write_json(asked.json, {"machine": about, "runs": runs, "classifier": judged, "rows": rows, "summary": spread})


def three(values: list[float]) -> list[float]:
    """The least, the mean and the largest."""
    return [round(v, 4) for v in (min(values), sum(values) / len(values), max(values))]


if __name__ == "__main__":
    main()
