"""The machine at hand: which device, sampling dtype, threads and compilation serve best, found by trying.

What is fastest differs a lot from machine to machine (bfloat16 is twice as fast on a CPU with bf16 units and forty
times slower on one without), so a small convolution is timed rather than a list of processors kept.
"""

import importlib.util
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F

from . import native
from .errors import InputError, unknown
from .limits import from_environment

MOST_THREADS = 256
COMPILATIONS = ("auto", "quick", "on", "off", "fused", "graphs", "winograd")
Compiled = bool | Literal["fused", "graphs", "winograd"]
"""How a chain's step is computed: kernel by kernel, by torch's compiler, so as one CUDA graph, by the kernels of
nets/fused.py as one (on a GPU); or kernel by kernel with the 3x3 convolutions by winograd.c (on a CPU)."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Runtime:
    """Where and how chains (`dtype`) and the update's two passes (`update`) run; `reason` says why in one line."""

    device: torch.device
    dtype: torch.dtype
    update: torch.dtype
    compiled: Compiled
    threads: int
    reason: str

    @property
    def kept(self) -> dict[str, Any]:
        """What a checkpoint keeps of it, for `probe(before=...)`."""
        return {
            "device": self.device.type,
            "dtype": self.dtype_name,
            "update": _name(self.update),
            "compiled": self.compiled,
            "threads": self.threads,
        }

    @property
    def traced(self) -> bool:
        """Whether torch's compiler makes the kernels, of the update at least."""
        return self.compiled in (True, "graphs", "fused")

    @property
    def dtype_name(self) -> str:
        return _name(self.dtype)


def probe(
    device: str = "auto",
    dtype: str = "auto",
    compile: str = "auto",
    threads: int = 0,
    before: dict[str, Any] | None = None,
    update_dtype: str = "auto",
) -> Runtime:
    """Choose what is "auto" (threads: 0) and check what is asked for. Takes under a second on a CPU.

    `before` is what a run that is resumed computed with (`Runtime.kept`): on the same kind of device it takes the
    place of "auto", so that the numbers go on as they were, except for a dtype that this machine runs at under half
    speed.
    Sets torch's thread count; a GPU is the current one then, and cuDNN tries its algorithms. Raises InputError for a
    device, dtype or compiler that this machine does not have.
    """
    where, why = choose_device(device)
    before = before if before is not None and before.get("device") == where.type else None
    if before is not None:
        threads = threads or min(before["threads"], _threads(0))
    threads = _threads(threads)
    torch.set_num_threads(threads)
    if where.type == "cuda":
        torch.cuda.set_device(where)  # events and peaks of memory are asked of the current one
        torch.backends.cudnn.benchmark = True  # a chain asks for the same few convolutions thousands of times
    if dtype == "auto":
        kind, why_dtype = _fastest_dtype(where, DTYPES[before["dtype"]] if before is not None else None)
    elif dtype in DTYPES:
        kind, why_dtype = DTYPES[dtype], "dtype as asked"
    else:
        raise unknown("dtype", dtype, ["auto", *DTYPES])
    if update_dtype not in ("auto", *DTYPES):
        raise unknown("choice for --update-dtype", update_dtype, ["auto", *DTYPES])
    # A run that was begun with updates in float32 (all were, once) goes on so.
    as_chains = before is None or before.get("update", "float32") != "float32"
    update = DTYPES.get(update_dtype, kind if as_chains else torch.float32)
    why_dtype += "" if update is kind else f", updates in {_name(update)}"
    compiled, why_compile = _compiled(compile, where, kind, before["compiled"] if before is not None else None)
    # The layout is no choice: channels last was faster by up to 16 % where it was measured (benchmarks/gains.py), and
    # Winograd's kernel takes no other.
    layout = "channels last (convolutions are fastest so)"
    reason = "; ".join([why, why_dtype, layout, why_compile, "1 thread" if threads == 1 else f"{threads} threads"])
    return Runtime(where, kind, update, compiled, threads, reason)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def choose_device(asked: str) -> tuple[torch.device, str]:
    """The device that `asked` names (auto, cpu, cuda, cuda:N), and why. Of several processes on one machine each has a
    GPU of its own. Raises InputError where there is none such, or are fewer than processes."""
    mine, here = from_environment("LOCAL_RANK", 0), from_environment("LOCAL_WORLD_SIZE", 1)
    if asked == "auto":
        if torch.cuda.is_available():
            if here > (gpus := torch.cuda.device_count()):
                raise InputError(f"{here} processes for {gpus} CUDA devices; start one for each, or use --device cpu")
            where = torch.device("cuda", mine)
            fault = _cuda_fault(where)
            if fault is None:
                return where, f"GPU {torch.cuda.get_device_name(where)}"
            return torch.device("cpu"), f"CPU, since the GPU cannot be used ({fault})"
        return torch.device("cpu"), "CPU (no GPU found)"
    kind, _, index = asked.partition(":")
    if (
        kind not in ("cpu", "cuda")
        or (index and not (index.isascii() and index.isdigit() and len(index) < 5))
        or (kind == "cpu" and index)
    ):
        raise InputError(f"unknown device {asked!r}; use cpu, cuda or cuda:N")
    if kind == "cpu":
        return torch.device("cpu"), "CPU as asked"
    if not torch.cuda.is_available():
        raise InputError(f"--device {asked}: this machine has no CUDA device that torch can use; use --device cpu")
    if index and here > 1:
        raise InputError(f"--device {asked}: {here} processes cannot share it; use --device cuda, and each has its own")
    if int(index or mine) >= torch.cuda.device_count():
        raise InputError(
            f"--device {asked}: there are {torch.cuda.device_count()} CUDA devices, counted from 0; or use --device cpu"
        )
    where = torch.device("cuda", int(index or mine))
    fault = _cuda_fault(where)
    if fault is not None:
        raise InputError(f"--device {asked}: {fault}; use --device cpu")
    return where, f"GPU {torch.cuda.get_device_name(where)} as asked"


def _cuda_fault(device: torch.device) -> str | None:
    """Why a GPU that is "available" cannot run a kernel (too old for this torch, say); None where it can."""
    try:
        torch.zeros(8, device=device).add_(1).sum().item()
    except RuntimeError as error:
        major, minor = torch.cuda.get_device_capability(device)
        return f"{torch.cuda.get_device_name(device)}, capability {major}.{minor}: {str(error).splitlines()[0]}"
    return None


def _threads(asked: int) -> int:
    """As many as the cores that this process may use: OpenMP's threads wait by spinning, so that one too many stalls
    all."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = min(cores, _cgroup_cores() or cores)
    cores = max(1, cores // max(1, from_environment("LOCAL_WORLD_SIZE", 1)))
    if not 0 <= asked <= max(MOST_THREADS, cores):  # OpenMP ends the process where it cannot start that many
        raise InputError(f"--threads {asked}: give 1 to {max(MOST_THREADS, cores)} (0: as many as there are cores)")
    return asked or cores


def _cgroup_cores(path: Path = Path("/sys/fs/cgroup/cpu.max")) -> int | None:
    """The container's CPU quota in whole cores, where there is one."""
    if not path.is_file():
        return None
    quota, period = path.read_text().split()
    return None if quota == "max" else max(1, int(quota) // int(period))


def _fastest_dtype(device: torch.device, before: torch.dtype | None = None) -> tuple[torch.dtype, str]:
    if before is not None and (before is torch.float32 or device.type == "cuda"):
        return before, f"{_name(before)} (as before)"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "bfloat16 (the GPU has it)"
        return torch.float32, "float32 (the GPU has no bfloat16)"
    # In turn and the best of many: another busy process slows single runs ten times, and must not decide.
    # On one thread: two wait for each other, and beside busy processes for those too (a ratio of 3 was seen as 0.06).
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    trials = [(_convolution_seconds(torch.float32), _convolution_seconds(torch.bfloat16)) for _ in range(12)]
    torch.set_num_threads(threads)
    gain = min(t for t, _ in trials) / min(t for _, t in trials)
    # The processor's flags are the first guess, and the trial must contradict them clearly to be heard: a noisy machine
    # must not choose by chance, or the same seed would give other samples. A run that had bfloat16 keeps it at half
    # speed.
    units = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    kind = torch.bfloat16 if gain > (0.5 if before is not None else 0.7 if units else 2.0) else torch.float32
    return kind, f"{_name(kind)} (bfloat16 runs at {gain:.2g} times the speed of float32 here)"


@torch.no_grad()
def _convolution_seconds(dtype: torch.dtype) -> float:
    """One 3x3 convolution like those of the networks, warm."""
    layout = torch.channels_last
    x = torch.ones(8, 64, 16, 16, dtype=dtype).to(memory_format=layout)
    w = torch.ones(64, 64, 3, 3, dtype=dtype).to(memory_format=layout)
    F.conv2d(x, w, padding=1)
    start = time.perf_counter()
    F.conv2d(x, w, padding=1)
    return time.perf_counter() - start


def _compiled(
    asked: str, device: torch.device, dtype: torch.dtype, before: Compiled | None = None
) -> tuple[Compiled, str]:
    """`quick` is the fastest that takes no minute of compiling, `auto` the fastest."""
    if asked not in COMPILATIONS:
        raise unknown("choice for --compile", asked, COMPILATIONS)
    gpu = device.type == "cuda"
    if asked == "off":
        return False, "eager (compile: off)"
    if asked in ("graphs", "fused") and not gpu:
        raise InputError(f"--compile {asked}: CUDA graphs need a GPU, chains run on the {device.type}; use on or off")
    if asked == "winograd" and gpu:
        raise InputError("--compile winograd is for a CPU; use auto, graphs, on or off")
    if asked == "winograd" and native.fault():
        raise InputError(f"--compile winograd: {native.fault()}; use on or off")
    lacking = _lacking_compiler(gpu)
    if asked in ("on", "graphs", "fused") and lacking:
        raise InputError(f"--compile {asked}: there is no {lacking}; or leave --compile off")
    if asked == "fused" and (no_kernels := lack_of_fused(device, dtype)):
        raise InputError(f"--compile fused: {no_kernels}; use graphs, on or off")
    if asked in ("on", "graphs", "fused", "winograd"):
        return True if asked == "on" else asked, _MEANING[asked] + " as asked"
    if before is not None:
        if before == "winograd" and native.fault():
            return False, f"eager (as before there were Winograd convolutions, and here is {native.fault()})"
        if before in (True, "graphs", "fused") and lacking:
            return False, f"eager (no {lacking})"
        if before == "fused" and (no_kernels := lack_of_fused(device, dtype)):
            return "graphs", f"{_MEANING['graphs']} (no kernels as before: {no_kernels})"
        return before, f"{_MEANING[before]} (as before)"
    if gpu:
        if asked == "quick" or lacking:
            return False, f"eager (no {lacking})" if lacking else "eager (compile: quick)"
        kind = "fused" if lack_of_fused(device, dtype) is None else "graphs"
        return kind, _MEANING[kind]
    if dtype is torch.bfloat16 and torch.cpu._is_amx_tile_supported():  # matrix units outrun what Winograd saves
        if asked == "quick" or lacking:
            return False, f"eager (no {lacking})" if lacking else "eager (compile: quick)"
        return True, "compiled (AMX)"
    if native.fault():
        return False, f"eager (no Winograd convolutions: {native.fault()})"
    why = f"no matrix units for {_name(dtype)}; of channels in multiples of {native.library().panel()}"
    return "winograd", f"{_MEANING['winograd']} ({why})"


_MEANING: dict[Any, str] = {
    False: "eager",
    True: "compiled",
    "on": "compiled",
    "graphs": "compiled, launched as CUDA graphs",
    "fused": "fused kernels, launched as CUDA graphs",
    "winograd": "Winograd convolutions",
}


def lack_of_fused(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the kernels of nets/fused.py cannot run there; None where they can."""
    if device.type != "cuda":
        return "its kernels are for a GPU"
    if dtype is not torch.bfloat16:
        return f"its kernels are for bfloat16, not {_name(dtype)}"
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) != (9, 0):
        return f"its kernels are for Hopper (capability 9.0), this GPU has {major}.{minor}"
    if importlib.util.find_spec("triton") is None or importlib.util.find_spec("triton.tools.tensor_descriptor") is None:
        return "its kernels want Triton 3.4 or later (torch brings it from 2.8 on)"
    return None


def _lacking_compiler(gpu: bool) -> str | None:
    """What torch's compiler wants and this machine lacks: C++ for a CPU's kernels, C for what launches a GPU's."""
    names = [os.environ.get("CC", "cc"), "gcc", "clang"] if gpu else [os.environ.get("CXX", "c++"), "g++", "clang++"]
    if any(map(shutil.which, names)):
        return None
    return "C compiler here (install gcc)" if gpu else "C++ compiler here (install g++)"
