"""A run in a folder, as `igebm train` makes it, and a call as users make it, whom no type is checked for."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jaxtyping

from igebm.presets import Preset, Trainer
from igebm.training.loop import Outcome
from igebm.training.run import new, open_all


def trained(
    name: str, preset: Preset, machine: Trainer, out: Path, init_from: str | None = None
) -> tuple[Outcome, Path]:
    return new(open_all(name, preset, machine, out, init_from), out)


@contextmanager
def unchecked() -> Iterator[None]:
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
