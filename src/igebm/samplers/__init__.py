"""Kernels (one file each), the loop that runs them (chain.py), annealed importance sampling (ais.py)."""

from .ais import Bracket, log_partition_bracket, log_weights
from .chain import Info, Kernel, State, run
from .hmc import hmc
from .langevin import langevin
from .mala import mala
from .masked import masked
from .mppi import mppi

__all__ = [
    "Bracket",
    "Info",
    "Kernel",
    "State",
    "hmc",
    "langevin",
    "log_partition_bracket",
    "log_weights",
    "mala",
    "masked",
    "mppi",
    "run",
]
