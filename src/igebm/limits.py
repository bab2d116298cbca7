"""What the surroundings allow: the memory there is, and numbers in environment variables, which anybody may set."""

import ctypes
import os
import sys
from pathlib import Path

from .errors import InputError


def memory(limit: Path = Path("/sys/fs/cgroup/memory.max")) -> float:
    """Bytes of memory that this machine, or the container this runs in, has; infinite where neither says so."""
    had = float("inf")
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" in names and "SC_PAGE_SIZE" in names:
        had = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    try:
        return min(had, float(limit.read_text()))
    except (OSError, ValueError):  # no such file, or the word "max"
        return had


def release_memory() -> None:
    """Give back what is freed already. glibc keeps some of it in each thread that ever asked for any, which after large
    pictures is hundreds of megabytes."""
    if sys.platform == "linux":
        getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)


def affordable(needed: int | float, what: str) -> None:
    """Raises InputError where `what` needs more bytes than there are: the system would end the process, or another."""
    had = memory()
    if needed > had:
        raise InputError(f"{what} need {needed / 2**30:.3g} GiB of memory, there are {had / 2**30:.3g}; ask for less")


def from_environment(name: str, otherwise: int) -> int:
    """The whole number in an environment variable; `otherwise` where there is none, or something else."""
    text = os.environ.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else otherwise


def processes() -> int:
    """How many processes torchrun started: 1 unless it said all that they need to find each other."""
    whole = all(os.environ.get(name) for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"))
    return max(1, from_environment("WORLD_SIZE", 1)) if whole else 1
