"""A run in a folder, as `igebm train` makes it."""

from pathlib import Path

from igebm.presets import Preset, Trainer
from igebm.training.loop import Outcome
from igebm.training.run import new, open_all


def trained(
    name: str, preset: Preset, machine: Trainer, out: Path, init_from: str | None = None
) -> tuple[Outcome, Path]:
    return new(open_all(name, preset, machine, out, init_from), out)
