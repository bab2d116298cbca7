"""igebm: train, sample, evaluate and compose energy-based models with MCMC (Du & Mordatch, arXiv:1903.08689)."""

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["load"]

if TYPE_CHECKING:
    from .library import load


def __getattr__(name: str):
    # `igebm --help` and `igebm.__version__` must not wait for torch.
    if name == "load":
        from .library import load

        return load
    raise AttributeError(f"module 'igebm' has no attribute {name!r}")
