"""Put a trained model into the package: `python benchmarks/bundle.py RUN NAME --note "what it can and cannot do"`.

Writes src/igebm/pretrained/NAME.safetensors (weights in bfloat16, the vectors of the power iteration in float32) and
the card NAME.json from the run's own files; `--snapshot` takes a snapshot of the run instead of its last model, or the
mean of several; `--quality FILE` adds the numbers of benchmarks/quality.py on what is bundled, `--growth FILE ...`
those on snapshots, `--begun-from CARD` what the card of the model says whose weights the run began with.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch

from igebm import forecast, model, pretrained
from igebm.circumstances import commit
from igebm.files import write_json
from igebm.training import ema


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--snapshot", type=Path, nargs="+", default=[])
    parser.add_argument("--note", required=True)
    parser.add_argument("--quality", type=Path)
    parser.add_argument("--growth", type=Path, nargs="+", default=[])
    parser.add_argument("--begun-from", type=Path)
    parser.add_argument("--step-size", type=float, help="of chains from noise; default: as in training")
    parser.add_argument("--sample-steps", type=int, help="chain steps from noise; default: as in training")
    parser.add_argument("--int8", action="store_true", help="kernels in 8 bits: for a network of millions of weights")
    asked = parser.parse_args()
    begun = json.loads(asked.begun_from.read_text()) if asked.begun_from else None
    settings = json.loads((asked.run / "preset.json").read_text())["settings"]
    opened = forecast.load if settings.get("network") == "trajectory" else model.load
    parts = [opened(path) for path in asked.snapshot or [asked.run]]
    m = parts[-1]
    if len(parts) > 1:
        every = [dict(part.net.named_parameters()) for part in parts]
        mean = {name: torch.stack([of[name].detach() for of in every]).mean(0) for name in every[0]}
        m.net = ema.network(mean, m.net)  # of averages of one run: an average over a longer stretch
    said = {k: v for k in ("step_size", "sample_steps") if (v := getattr(asked, k)) is not None}
    m.preset = replace(m.preset, **said)
    target = pretrained.FOLDER / f"{asked.name}.safetensors"
    model.save(target, m.net, m.preset, m.shape, m.step, m.facts, weights=torch.int8 if asked.int8 else torch.bfloat16)
    about = json.loads((asked.run / "preset.json").read_text())
    lines = [json.loads(line) for line in (asked.run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line.get("step", m.step + 1) <= m.step]
    card = {
        "name": asked.name,
        "preset": m.facts.get("preset"),
        "data": m.facts.get("data"),
        **m.shape.to_dict(),
        "command": " ".join(about["command"]),
        **({"resumed_by": again} if (again := [a for a in about.get("resumed_by", []) if a["step"] < m.step]) else {}),
        "commit": about.get("commit") or commit(),
        "iterations": m.step,
        **({"mean_of": [part.step for part in parts]} if len(parts) > 1 else {}),
        "training_seconds": wall_seconds(steps),
        "machine": about["machine"],
        "versions": about["versions"],
        "parameters": sum(p.numel() for p in m.net.parameters()),
        "bytes": target.stat().st_size,
        "note": asked.note,
    }
    if begun:
        weights = {"weights": f"src/igebm/pretrained/{begun['name']}.safetensors as of commit {commit()}"}
        kept = ("command", "commit", "iterations", "training_seconds", "machine")
        card["begun_from"] = weights | {k: begun[k] for k in kept}
    if asked.quality:
        card["quality"] = json.loads(asked.quality.read_text())
    if asked.growth:
        found = [json.loads(path.read_text()) for path in asked.growth]
        steps = [row | {"model": f"step {row['model_step']}"} for of in found for row in of["rows"]]
        card["growth"] = {key: found[0][key] for key in ("machine", "classifier")} | {
            "rows": sorted(steps, key=lambda row: row["model_step"])
        }
    write_json(target.with_suffix(".json"), card)
    print(f"{target}: {target.stat().st_size / 1e6:.2f} MB, step {m.step}")


def wall_seconds(lines: list[dict]) -> float:
    """The run's time: the clock starts anew each time a run is resumed."""
    clocks = [line["seconds"] for line in lines]
    ends = [a for a, b in zip(clocks, clocks[1:], strict=False) if b < a]
    return round(sum(ends) + (clocks[-1] if clocks else 0.0), 1)


if __name__ == "__main__":
    main()
