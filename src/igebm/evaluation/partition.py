"""log Z of an energy on [0, 1]^D between two estimates of annealed importance sampling (section 4.2 of the paper).

Forwards from the uniform density, E₀ = 0 and log Z₀ = 0, whose samples are exact; backwards from the model's own. The
transitions are HMC with mirrors for walls. (The released code has a soft wall, Σ (100 (x - clip x))², on all rungs, so
that neither Z is the box's; a fixed law for the step; and averages log w where log Z wants the log of averaged w.)
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..compose import tempered
from ..energy import Energy
from ..errors import Fault
from ..samplers import Kernel, State, hmc, log_weights
from ..samplers import run as run_chain
from ..samplers.ais import log_mean_exp

BOX = (0.0, 1.0)
TARGET = 0.8
"""acceptance that a step is tuned to"""
LARGEST_STEP = 0.5
"""half the box: beyond it a step only bounces more"""
TUNING = 12
"""transitions of the pilot on each of its knots"""
APART = 3.0
"""nats: Δβ sd(E) between two knots of the pilot"""
KNOTS = 2_000
BINS = 50
"""parts of the rungs for which acceptance and mean energy are kept"""
E_0: Energy = lambda x: x.new_zeros(len(x))


class Ladder(NamedTuple):
    """What a pilot found along β, knot by knot: HMC's step, how often it is accepted, and how energies spread."""

    beta: np.ndarray
    step: np.ndarray
    accepted: np.ndarray
    spread: np.ndarray  # sd of E over chains, nats

    def step_at(self, beta: float) -> float:
        return float(np.exp(np.interp(beta, self.beta, np.log(self.step))))

    def betas(self, n: int) -> list[float]:
        """n rungs from 0 to 1, as dense as the energies' spread: equal Δβ sd_β(E), which keeps Σ Δβ² var_β(E), the
        variance of log w where the chains mix, the least."""
        spread = np.maximum(self.spread, 0.1 * self.spread.mean()) + 1e-30
        length = np.concatenate([[0], np.cumsum(np.diff(self.beta) * (spread[1:] + spread[:-1]) / 2)])
        found = np.interp(np.linspace(0, length[-1], n + 1), length, self.beta)
        return [0.0, *found[1:-1].tolist(), 1.0]


def kernel(step: float, leapfrog: int) -> Kernel:
    return hmc(step, leapfrog, box=BOX, wall="mirror")


def pilot(
    E: Energy,
    x: Float[Tensor, "b *d"],
    leapfrog: int,
    generator: torch.Generator,
    tell: Callable[[], None] = lambda: None,
) -> Ladder:
    """Anneal uniform samples x down to β = 1 in strides that suit the energies' spread, tuning the step on the way.

    On each knot log ε grows by (acceptance - TARGET) / √t after transition t; what is kept are the means over the
    second half. Raises Fault where energies are not finite or are so steep that KNOTS strides do not reach β = 1.
    """
    beta, step, knots = 0.0, 0.1, []
    while True:
        steps, accepted, energies = [], [], []
        for t in range(1, TUNING + 1):
            state, info = run_chain(kernel(step, leapfrog), tempered(E, beta), State(x), 1, generator)
            assert info.accept_prob is not None  # HMC's
            x, rate = state.x, float(info.accept_prob.mean())
            step = min(LARGEST_STEP, step * math.exp((rate - TARGET) / math.sqrt(t)))
            steps.append(step)
            accepted.append(rate)
            with torch.no_grad():
                energies.append(E(x).double())
        half, e = TUNING // 2, torch.cat(energies[TUNING // 2 :])
        if not torch.isfinite(e).all():
            raise Fault(f"{int((~torch.isfinite(e)).sum())} of {len(e)} energies are not finite at β = {beta:.3g}")
        step = math.exp(float(np.mean(np.log(steps[half:]))))
        spread = float(e.std()) if len(e) > 1 else 0.0
        knots.append((beta, step, float(np.mean(accepted[half:])), spread))
        tell()
        if beta == 1.0:
            return Ladder(*(np.array(column) for column in zip(*knots, strict=True)))
        if len(knots) >= KNOTS:
            raise Fault(f"the energy is too steep for AIS: after {KNOTS} strides β is {beta:.3g}; raise --temperature")
        beta += min(0.1, APART / max(spread, 1e-30))
        beta = 1.0 if beta > 0.999 else beta


class Walk(NamedTuple):
    """What chains went through: log w and divergent proposals of each, acceptance and E in bins along the rungs."""

    log_w: np.ndarray  # (b,)
    divergent: np.ndarray  # (b,)
    at: np.ndarray  # (k,) the bins' places, as shares of the rungs from 0 to 1; those that were not visited left out
    accepted: np.ndarray  # (k,) means over chains
    energy: np.ndarray  # (k,)

    @classmethod
    def of(cls, rows: np.ndarray) -> "Walk":
        """From `walk`'s rows of all chains."""
        accepted, energy = rows[:, 2 : 2 + BINS], rows[:, 2 + BINS :]
        seen = ~np.isnan(accepted[0])
        at = (np.arange(BINS)[seen] + 0.5) / BINS
        return cls(rows[:, 0], rows[:, 1], at, accepted[:, seen].mean(0), energy[:, seen].mean(0))


def walk(
    x: Float[Tensor, "b *d"],
    betas: list[float],
    E: Energy,
    ladder: Ladder,
    leapfrog: int,
    transitions: int,
    generator: torch.Generator,
    tell: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Chains along `betas`, 0 to 1 from uniform samples x or 1 to 0 from the model's: a Walk's rows, (b, 2 + 2 BINS)
    float64, which processes can gather."""
    rungs = len(betas) - 1
    accepted, energy = (torch.zeros(BINS, len(x), dtype=torch.float64, device=x.device) for _ in range(2))
    divergent = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    visits, calls = np.zeros(BINS), 0

    def recorded(beta: float) -> Kernel:
        moved = kernel(ladder.step_at(beta), leapfrog)

        def one(E_beta: Energy, state: State, generator: torch.Generator | None):
            nonlocal calls
            state, info = moved(E_beta, state, generator)
            assert info.accept_prob is not None and info.divergent is not None and info.e is not None  # HMC's
            rung = calls // transitions + 1
            bin = (rung if betas[0] == 0 else rungs - rung) * BINS // rungs
            accepted[bin] += info.accept_prob
            energy[bin] += info.e.double() / beta  # E_beta = β E
            divergent.add_(info.divergent)
            visits[bin], calls = visits[bin] + 1, calls + 1
            tell()
            return state, info

        return one

    log_w = log_weights(E_0, E, x, betas, recorded, transitions, generator)
    with np.errstate(invalid="ignore"):
        means = [(total.cpu().numpy() / visits[:, None]).T for total in (accepted, energy)]
    return np.concatenate([log_w.cpu().numpy()[:, None], divergent.cpu().numpy()[:, None], *means], 1)


class End(NamedTuple):
    """One estimate of log Z in nats, with its standard error and the effective number of weights behind it."""

    log_z: float
    se: float
    effective: float


def end(log_w: np.ndarray, backwards: bool = False) -> End:
    """log ⟨w⟩ forwards, -log ⟨w⟩ backwards; effective = (Σ w)² / Σ w². Raises Fault where a weight is not finite."""
    if not np.isfinite(log_w).all():
        raise Fault(
            f"{int((~np.isfinite(log_w)).sum())} of {len(log_w)} AIS weights are not finite; the model is broken"
        )
    log_mean, se = log_mean_exp(torch.from_numpy(np.ascontiguousarray(log_w)))
    w = np.exp(log_w - log_w.max())
    return End(-log_mean if backwards else log_mean, se, float(w.sum() ** 2 / (w**2).sum()))


def span(forwards: End, backwards: End) -> tuple[float, float]:
    """The interval that holds both ends, each with two standard errors."""
    ends = [e.log_z + s * 2 * e.se for e in (forwards, backwards) for s in (-1, 1)]
    return min(ends), max(ends)


def doubts(forwards: End, backwards: End, up: Walk, down: Walk) -> list[str]:
    """Why not to believe the bracket, one line each; none where nothing speaks against it."""
    said = []
    gap = backwards.log_z - forwards.log_z
    if abs(gap) > 2 * (forwards.se + backwards.se) and abs(gap) > 0.01:
        cause = "the model's samples are no samples of e^(-E)" if gap < 0 else "the chains lag behind beta"
        said.append(
            f"the two ends lie {abs(gap):.3g} nats apart, beyond their errors ({cause}): try more --rungs, "
            "--transitions or --burn"
        )
    for walked, way in ((up, "forwards"), (down, "backwards")):
        if len(walked.at) and walked.accepted.min() < 0.4:
            at = walked.at[walked.accepted.argmin()]
            said.append(
                f"{way}, HMC accepts only {walked.accepted.min():.2f} of its proposals {at:.0%} along the rungs: "
                "try fewer --leapfrog or more --rungs"
            )
        if walked.divergent.sum():
            said.append(
                f"{way}, {int(walked.divergent.sum())} HMC proposals diverged: their energies were out of reach"
            )
    for e, way, n in ((forwards, "forwards", len(up.log_w)), (backwards, "backwards", len(down.log_w))):
        if e.effective < max(2.0, n / 4):
            said.append(f"{way}, {e.effective:.1f} of {n} chains carry the weight: try more --rungs or --chains")
    return said
