"""What a number needs beside it to be believed: machine, versions, command, commit, date."""

import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from . import __version__
from .runtime import Runtime

ASKS_FOR_LESS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "OMP_NUM_THREADS")
"""variables by which torch and its libraries use less of a processor than there is"""


def circumstances(runtime: Runtime, command: str | None = None) -> dict[str, Any]:
    """Plain data for a JSON file. `command` is what a user would type to get the number (default: this process's)."""
    return {
        "cpu": cpu_name(),
        "cpu_flags": [flag for flag in cpu_flags() if flag.startswith(("avx", "amx", "fma"))],
        "capability": torch.backends.cpu.get_cpu_capability(),
        "environment": {name: os.environ[name] for name in ASKS_FOR_LESS if name in os.environ},
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "runtime": runtime.reason,
        "dtype": runtime.dtype_name,
        "load": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "versions": {"igebm": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "commit": commit(),
        "command": command or shlex.join(["igebm", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
    }


def commit(folder: Path = Path(__file__).parent) -> str | None:
    """The source's commit, with a + where files differ from it; None where the package is not run from a checkout."""
    try:
        ask = ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--abbrev=7", "--exclude=*"]
        found = subprocess.run(ask, capture_output=True, text=True, timeout=10)
        tracked = subprocess.run(["git", "-C", str(folder), "ls-files", "--error-unmatch", __file__],
                                 capture_output=True, timeout=10)  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == tracked.returncode == 0 else None


def cpu_name() -> str:
    return next((v for k, v in _cpu_info() if k == "model name"), platform.processor() or "unknown CPU")


def cpu_flags() -> list[str]:
    return next((v.split() for k, v in _cpu_info() if k == "flags"), [])


def _cpu_info() -> list[tuple[str, str]]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return [(k.strip(), v.strip()) for k, _, v in (line.partition(":") for line in lines)]
