"""The project's piece of C (winograd.c): compiled at first use by the machine's gcc, in under a second, kept in the
user's cache, loaded with ctypes."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

from .errors import Fault, InputError
from .files import whole

SOURCE = Path(__file__).with_name("winograd.c")
FLAGS = {
    "AVX2": ["-mavx2", "-mfma"],
    "AVX512": ["-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mfma"],
}
"""by what torch found the processor to have (ATEN_CPU_CAPABILITY can ask for less)"""


class Convolution(ctypes.Structure):
    """The argument of `convolve`; what each is, says winograd.c."""

    _fields_ = (
        [(name, ctypes.c_void_p) for name in ("x", "sign", "in_gain", "u", "gain", "bias", "add", "y")]
        + [(name, ctypes.c_int) for name in ("images", "h", "w", "c", "o", "in_step", "step")]
        + [(name, ctypes.c_int) for name in ("up", "down", "half", "threads")]
        + [("slope", ctypes.c_float)]
    )


def fault() -> str | None:
    """Why the library cannot be had here, in a few words; None where it can."""
    try:
        library()
    except InputError as error:
        return str(error)
    return None


@cache
def library() -> ctypes.CDLL:
    """winograd.c, compiled. Raises InputError where there is no gcc, or a machine that it is not written for."""
    capability = torch.backends.cpu.get_cpu_capability()
    if platform.system() != "Linux" or capability not in FLAGS:
        raise InputError("its kernel wants Linux on a processor with AVX2")
    compiler = shutil.which(os.environ.get("CC", "gcc")) or shutil.which("gcc")
    if compiler is None:
        raise InputError("no gcc")
    # -fopenmp alone could bring a second OpenMP runtime along, whose threads and torch's would wait for each other.
    openmp = _openmp()
    words = ["-O3", *FLAGS[capability], "-shared", "-fPIC", "-fopenmp", str(SOURCE), "-Wl,--as-needed", openmp]
    about = "\0".join([SOURCE.read_text(), compiler, *words])
    name = f"winograd-{hashlib.sha256(about.encode()).hexdigest()[:16]}.so"
    try:
        folder = Path(os.path.expanduser("~"), ".cache", "igebm", "native")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not (folder / name).exists():
            with whole(folder / name) as temporary:
                _compile([compiler, *words, "-o", str(temporary)])
        return _loaded(folder / name)
    except (OSError, Fault):  # no home that can be written to
        with tempfile.TemporaryDirectory() as aside:
            _compile([compiler, *words, "-o", str(Path(aside, name))])
            return _loaded(Path(aside, name))


def _openmp() -> str:
    """The file of the OpenMP runtime that torch has loaded."""
    files = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line}
    found = sorted(f for f in files if Path(f).name.startswith(("libgomp", "libiomp5", "libomp")))
    if not found:
        raise InputError("torch has no OpenMP here")
    return found[0]


def _compile(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        why = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()[-1:] or ["?"]
        raise InputError(f"gcc refuses its kernel: {why[0].strip()}")


def _loaded(path: Path) -> ctypes.CDLL:
    try:
        found = ctypes.CDLL(str(path))
    except OSError as error:
        raise InputError(f"its kernel cannot be loaded: {error}") from error
    found.convolve.argtypes = [ctypes.POINTER(Convolution)]
    _prove(found)
    return found


def _prove(found: ctypes.CDLL) -> None:
    """Convolve by the kernel that changes nothing: a compiler that got it wrong is found out before it is believed."""
    panel = found.panel()
    g = torch.tensor([0.0, -4.0, 4.0, 2.0, -2.0, 0.0]) / 24  # G (0, 1, 0)ᵀ
    u = (torch.outer(g, g).reshape(36, 1, 1) * torch.eye(panel)).contiguous()
    x = torch.rand(1, 5, 7, panel)
    y = torch.empty_like(x)
    asked = Convolution(
        x=x.data_ptr(), u=u.data_ptr(), y=y.data_ptr(), images=1, h=5, w=7, c=panel, o=panel, threads=1, slope=1.0
    )
    if found.convolve(ctypes.byref(asked)) or not torch.allclose(x, y, atol=1e-5):
        raise InputError("its kernel, as gcc compiled it, computes something else")
