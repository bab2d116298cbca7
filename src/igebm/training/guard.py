"""What stops a run that goes wrong: a bad number is named with its step, its likely cause and what to change."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import Fault

PATIENCE = 20
"""iterations in a row that the gap must be out of bounds: a single bad batch is no divergence"""


class Divergence(Fault):
    """Training cannot go on from here. `step` is the iteration that showed it."""

    def __init__(self, step: int, cause: str, remedy: str):
        super().__init__(f"diverged at step {step}: {cause}; {remedy}")
        self.step, self.cause, self.remedy = step, cause, remedy


@dataclass
class Guard:
    """Watches the energy gap E(x⁻) - E(x⁺) from step to step. Healthy runs keep it within a few units."""

    gap_limit: float
    """0: none"""
    outside: int = 0
    """iterations in a row with the gap out of bounds, on either side: a run that swings from one to the other is lost
    as well"""

    @property
    def healthy(self) -> bool:
        """Nothing out of bounds: the state is worth going back to."""
        return not self.outside

    def check(self, step: int, metrics: Mapping[str, int | float]) -> None:
        """Raises Divergence on a number that is not finite, and after PATIENCE steps in a row with the gap out of
        bounds. A number that this kind of training does not have is not looked at."""
        for name, cause in _CAUSES.items():
            if not math.isfinite(metrics.get(name, 0.0)):
                raise Divergence(step, f"{cause} ({name} = {metrics[name]})", _LOWER)
        gap = metrics.get("gap", 0.0)
        self.outside = self.outside + 1 if abs(gap) > (self.gap_limit or math.inf) else 0
        if self.outside < PATIENCE:
            return
        if gap > 0:
            raise Divergence(
                step, f"samples' energies stay {gap:.3g} above the data's, so chains no longer keep up", _MORE_STEPS
            )
        raise Divergence(step, f"samples' energies fell {-gap:.3g} below the data's, so the gap collapsed", _LOWER)


def check_weights(step: int, weights: Iterable[Tensor]) -> None:
    """Raises Divergence where one is not finite: before they are saved, since the numbers that are looked at are of
    before an update."""
    if not all(torch.isfinite(w).all() for w in weights):
        raise Divergence(step, "the weights are not finite", _LOWER)


_CAUSES = {
    "e_pos": "the data's energies are not finite",
    "chain_gradient": "the chain's gradient is not finite",
    "e_neg": "the samples' energies are not finite",
    "loss": "the loss is not finite",
    "gradient": "the weights' gradient is not finite",
}
_LOWER = "lower --lr or --step-size, or raise --alpha"
_MORE_STEPS = "raise --chain-steps (or set --max-chain-steps), or lower --lr"


def raised_steps(chain_steps: int, max_chain_steps: int, slow_gap: float, raise_gap: float) -> int:
    """K + 10, at most `max_chain_steps`, while the averaged gap E(x⁻) - E(x⁺) is above `raise_gap` (paper, section
    8.7)."""
    return min(chain_steps + 10, max_chain_steps) if slow_gap > raise_gap else chain_steps
