"""`igebm bench`: this machine's speed against its own limit and against the plain reference, all in one run.

Times are the best of several runs, ours and the reference's in turn, so that a machine whose speed drifts treats both
alike. The limit is the rate of a large matrix product in the sampling dtype; the share is of the folded network's
operations (the reference would need about twice as many for the same energies).
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from .. import presets
from ..circumstances import circumstances, cpu_name
from ..data import Images, Loader
from ..errors import Fault
from ..limits import release_memory
from ..model import Shape, build_image_net, build_kernel
from ..nets.fold import Twin
from ..presets import Trainer
from ..runtime import DTYPES, Runtime, probe
from ..samplers import run
from ..training import loop
from ..training import state as states
from ..training.cost import cost
from ..training.guard import Guard
from ..training.loop import train_step
from . import reference

Say = Callable[[str], None]
CLASSES = tuple("0123456789")
FIGURE_14A = presets.named("cifar10-cond")


class Plan(NamedTuple):
    """What is measured, and how often: widths, batches and chain steps of Fig. 14a."""

    langevin: tuple[tuple[int, int], ...] = ((128, 32), (128, 128), (64, 32), (64, 128))
    iteration: tuple[tuple[int, int, int], ...] = ((128, 32, 20), (64, 32, 20))
    memory: tuple[tuple[int, int], ...] = ((128, 32), (128, 128))
    repeats: int = 5
    products: int = 20


QUICK = Plan(((64, 32),), ((64, 32, 6),), ((64, 32),), repeats=3)
PAPER = (128, 128, 60)
"""the paper's iteration, on a GPU alone: on a CPU the reference takes an hour for it"""


def bench(machine: Trainer, plan: Plan | None = None, quick: bool = False, say: Say = print) -> dict[str, Any]:
    """Measure and return plain data: `machine`, `rate_flop_per_s` (matrix products), `seconds` (of all), `rows` (each
    with ours_ms, reference_ms, speedup, share_of_matrix_rate; those of memory with ours_mib, reference_mib, ratio)."""
    began, load_before = time.perf_counter(), os.getloadavg()
    plan = plan or (QUICK if quick else Plan())
    runtime = probe(machine.device, machine.dtype, machine.compile, machine.threads, update_dtype=machine.update_dtype)
    if quick and machine.compile == "auto" and runtime.traced and runtime.device.type == "cpu":
        runtime = replace(runtime, compiled=False, reason=runtime.reason + "; eager for --quick (a compiler's minute)")
    say(f"machine: {cpu_name()}; {runtime.reason}; load {load_before[0]:.2f}")
    rate = {name: matrix_rate(runtime, dtype, plan.products) for name, dtype in DTYPES.items()}
    say("matrix products: " + ", ".join(f"{name} {r / 1e9:.0f} GFLOP/s" for name, r in rate.items()))
    rows = []

    def done(row: dict[str, Any]) -> None:
        # The limit is the best rate of the whole run: on a shared machine one moment may have a third of the speed.
        again = matrix_rate(runtime, runtime.dtype, plan.products)
        rate[runtime.dtype_name] = max(rate[runtime.dtype_name], again)
        rows.append(row)
        say(line(row | share(row, rate[runtime.dtype_name])))

    for width, batch in plan.langevin:
        done(langevin_row(runtime, width, batch, plan.repeats))
    paper = (PAPER,) if runtime.device.type == "cuda" and not quick else ()
    for width, batch, steps in plan.iteration + paper:
        done(iteration_row(runtime, width, batch, steps, repeats=2))
    for width, batch in plan.memory:
        done(memory_row(runtime, width, batch))
    limit = rate[runtime.dtype_name]
    say(f"shares in the file are of {limit / 1e9:.0f} GFLOP/s, the best {runtime.dtype_name} rate of the whole run")
    return {
        "machine": circumstances(runtime) | {"load_before": load_before, "load_after": os.getloadavg()},
        "seconds": round(time.perf_counter() - began, 1),
        "rate_flop_per_s": rate,
        "quick": quick,
        "rows": [row | share(row, limit) for row in rows],
    }


def share(row: dict[str, Any], limit: float) -> dict[str, float]:
    """Of the folded network's operations, at the rate `limit` in FLOP/s; nothing for a row of memory."""
    return {"share_of_matrix_rate": row["flop_per_s"] / limit} if "flop_per_s" in row else {}


def langevin_row(runtime: Runtime, width: int, batch: int, repeats: int) -> dict[str, Any]:
    """ms per image and Langevin step of Fig. 14a on 32x32 images: chains on the twin, and the reference's loop."""
    preset = replace(FIGURE_14A, width=width, batch=batch)
    net, kernel = build_image_net(preset, Shape(3, 32, 32, CLASSES)).to(runtime.device), build_kernel(preset)
    plain = reference.Figure14a(width).to(runtime.device)
    x, y = start(runtime, batch)
    E = Twin(net, runtime.dtype, runtime.compiled).given(y)
    steps = 2 if runtime.device.type == "cpu" else 20  # a GPU works off what it is asked for while more is asked
    ours, theirs = in_turn(
        lambda: run(kernel, E, x, steps), lambda: reference.chain(plain, x, y, steps), repeats, runtime.device
    )
    flop = cost(preset, Shape(3, 32, 32, CLASSES))["flop_per_image_and_chain_step"]
    each = 1e3 / (batch * steps)
    return {
        "what": "langevin step",
        "unit": "ms per image",
        "width": width,
        "batch": batch,
        "ours_ms": ours * each,
        "reference_ms": theirs * each,
        "speedup": theirs / ours,
        "flop_per_image": flop,
        "flop_per_s": flop * batch * steps / ours,
    }


def iteration_row(runtime: Runtime, width: int, batch: int, steps: int, repeats: int) -> dict[str, Any]:
    """ms of a whole training iteration; `outside` is the share that is neither chain nor the update's two passes."""
    preset = replace(FIGURE_14A, width=width, batch=batch, chain_steps=steps, buffer_size=4 * batch)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (512, 32, 32, 3), dtype=np.uint8)
    state = states.start(preset, Shape(3, 32, 32, CLASSES), runtime, {})
    loader = Loader(Images("noise", pixels, np.arange(512) % 10, CLASSES), batch, device=runtime.device)
    plain = reference.Figure14a(width).to(runtime.device)
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-4, betas=(0.0, 0.999))
    x, y = start(runtime, batch)
    ours, theirs = in_turn(
        lambda: train_step(state, loader, Guard(float("inf"))),
        lambda: reference.iteration(plain, optimizer, x.clone(), x, y, steps),
        repeats,
        runtime.device,
    )
    flop = cost(preset, Shape(3, 32, 32, CLASSES))["flop_per_iteration"]
    return {
        "what": "training iteration",
        "unit": "ms",
        "width": width,
        "batch": batch,
        "chain_steps": steps,
        "ours_ms": ours * 1e3,
        "reference_ms": theirs * 1e3,
        "speedup": theirs / ours,
        "flop_per_s": flop / ours,
        "outside": statistics.median(outside_share(state, loader) for _ in range(3)),
    }


def outside_share(state: states.TrainState, loader: Loader) -> float:
    """The share of an iteration spent neither in the chain nor in folding and the update's forward and backward passes:
    what the loop adds around the method's own work. On a GPU both are by its own clock: nothing waits for what it would
    not wait for otherwise."""
    gpu, spans = state.device.type == "cuda", []

    def now() -> Any:
        if not gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def timed(f: Callable) -> Callable:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            start = now()
            result = f(*args, **kwargs)
            spans.append((start, now()))
            return timed(result) if callable(result) and not isinstance(result, torch.Tensor) else result

        return wrapped

    plain = loop.samplers.run, state.updated, torch.Tensor.backward
    loop.samplers.run, state.updated, torch.Tensor.backward = map(timed, plain)  # type: ignore[method-assign]
    try:
        start = now()
        train_step(state, loader, Guard(float("inf")))
        whole = (start, now())
    finally:
        loop.samplers.run, state.updated, torch.Tensor.backward = plain  # type: ignore[method-assign]
    if gpu:
        torch.cuda.synchronize()
    seconds = lambda span: span[0].elapsed_time(span[1]) / 1e3 if gpu else span[1] - span[0]
    return 1 - sum(map(seconds, spans)) / seconds(whole)


def memory_row(runtime: Runtime, width: int, batch: int) -> dict[str, Any]:
    """Peak memory of a chain beyond the network's own, in MiB; on a CPU each is measured in a process of its own, and
    `fault` says where one failed (minutes of other rows are not lost for it)."""
    row = {"what": "peak memory of a chain", "unit": "MiB", "width": width, "batch": batch}
    peak = gpu_peak if runtime.device.type == "cuda" else child_peak
    try:
        ours, theirs = (peak(runtime, kind, width, batch) for kind in ("ours", "reference"))
    except Fault as fault:
        return row | {"fault": str(fault)}
    return row | {"ours_mib": ours, "reference_mib": theirs, "ratio": ours / theirs}


def peak_work(runtime: Runtime, kind: str, width: int, batch: int) -> Callable[[], Any]:
    """Two steps of the chain whose memory is asked, with all that lives longer made beforehand."""
    x, y = start(runtime, batch)
    if kind == "reference":
        plain = reference.Figure14a(width).to(runtime.device)
        return lambda: reference.chain(plain, x, y, 2)
    preset = replace(FIGURE_14A, width=width)
    net = build_image_net(preset, Shape(3, 32, 32, CLASSES)).to(runtime.device)
    # What a graph keeps for good is this peak.
    E = Twin(net, runtime.dtype, runtime.compiled).given(y, launches=False)
    return lambda: run(build_kernel(preset), E, x, 2)


def gpu_peak(runtime: Runtime, kind: str, width: int, batch: int) -> float:
    work = peak_work(runtime, kind, width, batch)
    work()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def child_peak(runtime: Runtime, kind: str, width: int, batch: int) -> float:
    """`peak_growth` of the chain in a fresh process, where no other row's memory lies about; nan where it cannot be
    told (no Linux). Raises Fault where the process fails, for want of memory say."""
    if not RESET.exists():
        return float("nan")
    code = "from igebm.benchmarks.speed import print_peak; print_peak(*__import__('sys').argv[1:])"
    compile = {True: "on", False: "off"}.get(runtime.compiled, str(runtime.compiled))  # type: ignore[call-overload]
    args = [kind, str(width), str(batch), runtime.dtype_name, compile, str(runtime.threads)]
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["it said nothing; was it out of memory?"])[-1]
        raise Fault(f"the memory of {kind} at width {width}, batch {batch}: exit code {done.returncode}: {why}")
    return float(done.stdout)


def print_peak(kind: str, width: str, batch: str, dtype: str, compile: str, threads: str) -> None:
    print(peak_growth(peak_work(probe("cpu", dtype, compile, int(threads)), kind, int(width), int(batch))))


RESET = Path("/proc/self/clear_refs")
"""where Linux lets a process begin its highest resident set anew"""


def peak_growth(work: Callable[[], Any]) -> float:
    """By how many MiB the resident set grows, at most, while `work` is done a second time: what starting up and
    compiling take is no part of it."""
    work()
    release_memory()
    RESET.write_text("5")
    before = resident("VmRSS")
    work()
    return (resident("VmHWM") - before) / 1024


def resident(field: str) -> float:
    """A field of /proc/self/status in KiB: VmRSS is the resident set now, VmHWM its highest since RESET."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(field)))


def start(runtime: Runtime, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator(runtime.device).manual_seed(0)
    x = torch.rand(batch, 3, 32, 32, generator=generator, device=runtime.device)
    return x, torch.arange(batch, device=runtime.device) % 10


def matrix_rate(runtime: Runtime, dtype: torch.dtype, products: int = 20) -> float:
    """FLOP/s of a large matrix product, the fastest of so many: what this machine can do at best."""
    n = 8192 if runtime.device.type == "cuda" else 2048
    a = torch.randn(n, n, device=runtime.device).to(dtype)  # ones would run faster than numbers do
    slow = runtime.device.type == "cpu" and dtype != runtime.dtype  # a dtype without units may take minutes
    if slow:
        a = a[:512, :512].contiguous()
    seconds = best(lambda: a @ a, 2 if slow else products, runtime.device)
    return 2 * a.shape[0] ** 3 / seconds


def in_turn(a: Callable, b: Callable, repeats: int, device: torch.device) -> tuple[float, float]:
    """The best times of a and b in seconds, run in turn after a warm-up each."""
    for warm_up in (a, b):
        warm_up()
    pairs = [(best(a, 1, device), best(b, 1, device)) for _ in range(repeats)]
    return min(p[0] for p in pairs), min(p[1] for p in pairs)


def best(f: Callable, repeats: int, device: torch.device) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        f()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


def line(row: dict[str, Any]) -> str:
    """A row as a person reads it."""
    head = f"{row['what']}, width {row['width']}, batch {row['batch']}"
    if "fault" in row:
        return f"{head}: not measured: {row['fault']}"
    if "ratio" in row:
        return f"{head}: {row['ours_mib']:.0f} MiB, reference {row['reference_mib']:.0f} MiB ({row['ratio']:.2f} of it)"
    steps = f", K {row['chain_steps']}" if "chain_steps" in row else ""
    outside = f", {row['outside']:.1%} outside chain and update" if "outside" in row else ""
    return (
        f"{head}{steps}: {row['ours_ms']:.4g} {row['unit']}, reference {row['reference_ms']:.4g} "
        f"({row['speedup']:.1f} times "
        f"faster), {row['share_of_matrix_rate']:.2f} of the matrix rate{outside}"
    )
