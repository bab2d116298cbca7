"""A run for TensorBoard, where it is installed (`pip install '.[track]'`, then `tensorboard --logdir runs`): the
numbers of metrics.jsonl, histograms of energies and the buffer's grids, in the run's folder `tensorboard`.

A fault in writing them ends the pictures and not the run, whose own log is metrics.jsonl.
"""

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor


def opened(folder: Path | None, step: int, say: Callable[[str], None]) -> Any:
    """A writer that goes on after `step` (what an earlier one wrote beyond it is hidden); None without TensorBoard or
    a folder."""
    if folder is None or importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    try:
        return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
    except UnicodeEncodeError:
        return say("nothing for TensorBoard, which takes no folder whose name is not text")
    except OSError as error:
        return say(f"nothing for TensorBoard: {error.strerror or error}")


def report(
    board: Any,
    metrics: Mapping[str, int | float],
    energies: tuple[Tensor, Tensor] | None,
    grid: np.ndarray | None,
    say: Callable[[str], None],
) -> Any:
    """A curve for each number of an iteration; histograms of E(x⁺) and E(x⁻), each (B,); a grid (h, w, channels),
    uint8. Returns the writer, or None once it has failed."""
    if board is None:
        return None
    step = metrics["step"]
    try:
        for name, value in metrics.items():
            if name != "step":
                board.add_scalar(name, value, step)
        for name, e in zip(("E(x+)", "E(x-)"), energies or (), strict=False):
            board.add_histogram(name, e.float().cpu().numpy(), step)
        if grid is not None:
            board.add_image("buffer", grid, step, dataformats="HWC")
    except OSError as error:
        return say(f"nothing more for TensorBoard: {error.strerror or error}")
    return board
