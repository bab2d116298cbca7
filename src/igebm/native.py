"""The project's piece of C (winograd.c): compiled at first use by the machine's gcc, in under a second, kept in the
user's cache, loaded with ctypes."""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

from .errors import Fault, InputError
from .files import user_cache, whole, write_text

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
    found = _library()
    return found if isinstance(found, str) else None


def library() -> ctypes.CDLL:
    """winograd.c, compiled. Raises InputError where there is no gcc, or a machine that it is not written for."""
    found = _library()
    if isinstance(found, str):
        raise InputError(found)
    return found


@cache
def _library() -> ctypes.CDLL | str:
    """The library, or why there is none: asked once, since a compiler that fails takes its time too."""
    capability = torch.backends.cpu.get_cpu_capability()
    if platform.system() != "Linux" or capability not in FLAGS:
        return "its kernel wants Linux on a processor with AVX2"
    compiler, openmp = _compiler(), _openmp()
    if compiler is None:
        return "no gcc"
    if openmp is None:
        return "torch has no OpenMP here"
    # -fopenmp alone could bring a second OpenMP runtime along, whose threads and torch's would wait for each other.
    flags = ["-O3", *FLAGS[capability], "-shared", "-fPIC", "-fopenmp", str(SOURCE), "-Wl,--as-needed", openmp]
    command = [*compiler, *flags, "-o"]
    about = b"\0".join([SOURCE.read_bytes(), *map(os.fsencode, command)])
    name = f"winograd-{hashlib.sha256(about).hexdigest()[:16]}.so"
    kept, why = user_cache(), ""
    for place in ([kept / "native"] if kept else []) + [None]:  # None: nothing can be kept, or what is kept not be run
        try:
            if place is not None:
                place.mkdir(parents=True, exist_ok=True, mode=0o700)
                return _loaded(_made(place / name, command))
            with tempfile.TemporaryDirectory() as aside:
                return _loaded(_made(Path(aside, name), command))
        except InputError as error:
            return str(error)
        except (OSError, Fault) as error:
            why = f"its kernel cannot be loaded: {error}"
    return why


def _compiler() -> list[str] | None:
    """$CC where that is a gcc, with its arguments; else gcc."""
    try:
        asked = shlex.split(os.environ.get("CC", ""))
    except ValueError:  # a quotation mark left open
        asked = []
    if asked and shutil.which(asked[0]) and "clang" not in asked[0]:  # whose OpenMP is another
        return asked
    found = shutil.which("gcc")
    return [found] if found else None


def _openmp() -> str | None:
    """The file of the OpenMP runtime that torch has loaded; other packages may have brought one of their own."""
    lines = Path("/proc/self/maps").read_bytes().splitlines()
    files = {Path(os.fsdecode(line.split(maxsplit=5)[5])) for line in lines if b"/" in line}
    found = [f for f in files if f.name.startswith(("libgomp", "libiomp5", "libomp"))]
    home = Path(torch.__file__).parent
    ours = lambda f: home in f.parents or home.with_name("torch.libs") in f.parents
    return str(min(found, key=lambda f: (not ours(f), f))) if found else None


def _made(path: Path, command: list[str]) -> Path:
    """`path`, compiled where it does not lie there whole: a library that was cut short would end the process."""
    digest = path.with_suffix(".sha256")
    sound = lambda: digest.read_bytes() == hashlib.sha256(path.read_bytes()).hexdigest().encode()
    if not (path.exists() and digest.exists() and sound()):
        with whole(path) as temporary:
            done = subprocess.run([*command, str(temporary)], capture_output=True, text=True, errors="replace")
            if done.returncode:
                told = done.stderr.splitlines()
                why = [line for line in told if "error" in line] or told[-1:] or ["no reason given"]
                raise InputError(f"{Path(command[0]).name} refuses its kernel: {why[0].strip()}")
            made = hashlib.sha256(temporary.read_bytes()).hexdigest()
        write_text(digest, made)
    return path


def _loaded(path: Path) -> ctypes.CDLL:
    found = ctypes.CDLL(str(path))
    found.convolve.argtypes = [ctypes.POINTER(Convolution)]
    _prove(found)
    return found


def _prove(found: ctypes.CDLL) -> None:
    """Convolve by the kernel that changes nothing: a compiler that got it wrong is found out before it is believed."""
    panel = found.panel()
    g = torch.tensor([0.0, -4.0, 4.0, 2.0, -2.0, 0.0]) / 24  # G (0, 1, 0)ᵀ
    u = (torch.outer(g, g).reshape(36, 1, 1) * torch.eye(panel)).contiguous()
    x = torch.linspace(-1, 1, 35 * panel).reshape(1, 5, 7, panel)  # not drawn: nobody's random numbers are moved on
    y = torch.empty_like(x)
    asked = Convolution(
        x=x.data_ptr(), u=u.data_ptr(), y=y.data_ptr(), images=1, h=5, w=7, c=panel, o=panel, threads=1, slope=1.0
    )
    if found.convolve(ctypes.byref(asked)) or not torch.allclose(x, y, atol=1e-5):
        raise InputError("its kernel, as gcc compiled it, computes something else")
