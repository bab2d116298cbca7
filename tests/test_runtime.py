"""The machine: what is found out, what is refused, and that compiled, GPU and eager energies are the same energies."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_training import TINY, assert_same, fresh

from igebm import native, runtime
from igebm.data import Images, Loader
from igebm.errors import InputError
from igebm.training import state as states
from igebm.training.guard import Guard
from igebm.training.loop import train_step


@pytest.fixture(autouse=True)
def threads_as_they_were():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_what_is_asked_for_is_what_is_given():
    r = runtime.probe("cpu", "float32", "off", 1)
    assert (r.device.type, r.dtype, r.compiled, r.threads) == ("cpu", torch.float32, False, 1)
    assert torch.get_num_threads() == 1


def test_the_faster_dtype_is_chosen(monkeypatch):
    """With bf16 units bfloat16, unless it is clearly slower all the same; without them never by chance: a fortieth,
    an equal."""
    cases = (
        (True, 2.0, "b"),
        (True, 0.9, "b"),
        (True, 0.1, "f"),
        (False, 1 / 40, "f"),
        (False, 1.2, "f"),
        (False, 3.0, "b"),
    )
    for units, gain, want in cases:
        seconds = {torch.float32: 1.0, torch.bfloat16: 1.0 / gain}
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda units=units: units)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        monkeypatch.setattr(runtime, "_convolution_seconds", lambda dtype, seconds=seconds: seconds[dtype])
        assert runtime.probe("cpu", "auto", "off", 1).dtype_name[0] == want


def test_a_resumed_run_keeps_its_dtype_unless_it_crawls(monkeypatch):
    kept = dict(device="cpu", dtype="bfloat16", compiled=False, threads=1)
    for gain, want in ((2.0, torch.bfloat16), (0.9, torch.bfloat16), (1 / 40, torch.float32)):
        seconds = {torch.float32: 1.0, torch.bfloat16: 1.0 / gain}
        monkeypatch.setattr(runtime, "_convolution_seconds", lambda dtype, seconds=seconds: seconds[dtype])
        assert runtime.probe("cpu", before=kept).dtype is want
        assert runtime.probe("cpu", before=kept | {"dtype": "float32"}).dtype is torch.float32


def test_updates_run_as_chains_do_unless_asked_otherwise_or_begun_otherwise(monkeypatch):
    """A run from before updates could run in bfloat16 kept no word of it: its updates stay in float32."""
    monkeypatch.setattr(runtime, "_convolution_seconds", lambda dtype: 1.0)
    f, b = torch.float32, torch.bfloat16
    for dtype, asked, want in (("bfloat16", "auto", b), ("bfloat16", "float32", f), ("float32", "bfloat16", b)):
        r = runtime.probe("cpu", dtype, "off", 1, update_dtype=asked)
        assert r.update is want and ("updates in" in r.reason) == (r.update is not r.dtype)
    old = dict(device="cpu", dtype="bfloat16", compiled=False, threads=1)
    assert runtime.probe("cpu", before=old).update is f
    assert runtime.probe("cpu", before=old, update_dtype="bfloat16").update is b
    assert runtime.probe("cpu", before=old | {"update": "bfloat16"}).update is b
    assert runtime.probe("cpu", before=old | {"dtype": "float32", "update": "float32"}).update is f
    with pytest.raises(InputError, match="unknown choice for --update-dtype 'half'; .*bfloat16"):
        runtime.probe("cpu", "float32", "off", 1, update_dtype="half")


def test_threads_are_the_cores_this_process_may_use(monkeypatch, tmp_path):
    monkeypatch.setattr(runtime.os, "sched_getaffinity", lambda pid: {0, 1, 2, 5}, raising=False)
    monkeypatch.setattr(runtime, "_cgroup_cores", lambda: None)
    assert runtime._threads(0) == 4 and runtime._threads(3) == 3
    monkeypatch.setattr(runtime.os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    monkeypatch.setattr(runtime, "_cgroup_cores", lambda: 8)  # four processes in a container of 8 cores of 64
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert runtime._threads(0) == 2
    monkeypatch.undo()
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    assert runtime._cgroup_cores(tmp_path / "cpu.max") == 2
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert runtime._cgroup_cores(tmp_path / "cpu.max") is None
    with pytest.raises(InputError, match="--threads -1"):
        runtime._threads(-1)


def test_without_a_compiler_a_run_stays_eager_and_says_so(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    native._library.cache_clear()
    r = runtime.probe("cpu", "float32", "auto", 1)
    assert r.compiled is False and "eager (no Winograd convolutions: " in r.reason
    with pytest.raises(InputError, match="no C.. compiler here"):
        runtime.probe("cpu", "float32", "on", 1)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    r = runtime.probe("cpu", "bfloat16", "auto", 1)
    assert r.compiled is False and "eager (no C++ compiler here" in r.reason
    gpu = torch.device("cuda")
    assert runtime._compiled("auto", gpu, torch.bfloat16) == (False, "eager (no C compiler here (install gcc))")
    with pytest.raises(InputError, match="--compile graphs: there is no C compiler here .install gcc.; or leave"):
        runtime._compiled("graphs", gpu, torch.bfloat16)
    native._library.cache_clear()


def test_a_gpu_takes_the_fused_kernels_where_they_run(monkeypatch):
    """On Hopper, in bfloat16, with a C compiler; else graphs of what torch compiles; and a run that was begun with them
    goes on without them elsewhere."""
    gpu, missing = torch.device("cuda"), ["its kernels are for Hopper"]
    monkeypatch.setattr(runtime, "_lacking_compiler", lambda gpu: None)
    monkeypatch.setattr(runtime, "lack_of_fused", lambda device, dtype: missing[0])
    chosen = lambda asked, dtype=torch.bfloat16, before=None: runtime._compiled(asked, gpu, dtype, before)[0]
    assert chosen("auto") == "graphs" and chosen("auto", before="fused") == "graphs"
    with pytest.raises(InputError, match="--compile fused: its kernels are for Hopper; use graphs"):
        chosen("fused")
    missing[0] = None
    assert chosen("auto") == chosen("fused") == chosen("auto", before="fused") == "fused"
    assert chosen("quick") is False and chosen("auto", before="graphs") == "graphs"


def test_why_the_fused_kernels_do_not_run(monkeypatch):
    gpu, found = torch.device("cuda"), []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: found[-1])
    monkeypatch.setattr(runtime.importlib.util, "find_spec", lambda name: None if name == found[0] else True)
    for missing, capability, dtype, why in (
        ("", (8, 0), torch.bfloat16, "for Hopper .capability 9.0., this GPU has 8.0"),
        ("", (9, 0), torch.float32, "for bfloat16, not float32"),
        ("triton", (9, 0), torch.bfloat16, "want Triton 3.4 or later"),
        ("triton.tools.tensor_descriptor", (9, 0), torch.bfloat16, "want Triton 3.4 or later"),
    ):
        found[:] = [missing, capability]
        assert re.search(why, runtime.lack_of_fused(gpu, dtype) or "")
    found[0] = ""
    assert runtime.lack_of_fused(gpu, torch.bfloat16) is None
    assert "are for a GPU" in (runtime.lack_of_fused(torch.device("cpu"), torch.bfloat16) or "")


def test_c29_a_card_too_old_to_run_anything(monkeypatch):
    """ "Available", yet its first kernel fails: refused by name and capability where it was asked for, else the CPU."""

    def fail(*args, **kwargs):
        raise RuntimeError("no kernel image is available for execution on the device\nmore lines")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Old Card")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (3, 5))
    monkeypatch.setattr(runtime.torch, "zeros", fail)
    where, why = runtime.choose_device("auto")
    assert where.type == "cpu" and "Old Card, capability 3.5: no kernel image" in why
    with pytest.raises(InputError, match="--device cuda: Old Card, capability 3.5: no kernel image .*--device cpu"):
        runtime.choose_device("cuda")
    with pytest.raises(InputError, match="there are 1 CUDA devices"):
        runtime.choose_device("cuda:1")


def test_of_several_processes_each_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Card")
    monkeypatch.setattr(runtime, "_cuda_fault", lambda where: None)
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert [runtime.choose_device(asked)[0].index for asked in ("auto", "cuda")] == [3, 3]
    current = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    runtime.probe("cuda", "float32", "off", 1)
    assert current == [torch.device("cuda", 3)]
    with pytest.raises(InputError, match="4 processes cannot share it"):
        runtime.choose_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match="4 processes for 2 CUDA devices"):
        runtime.choose_device("auto")
    with pytest.raises(InputError, match="there are 2 CUDA devices"):
        runtime.choose_device("cuda")


@pytest.mark.parametrize("threads", [-1, 100_000, 10**30])
def test_threads_that_cannot_be_started_are_refused(threads):
    """OpenMP would end the process without a word of ours."""
    with pytest.raises(InputError, match=f"--threads {threads}: give 1 to"):
        runtime._threads(threads)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cpu:1", "cuda0", ""])
def test_c29_unknown_devices(device):
    with pytest.raises(InputError, match="unknown device"):
        runtime.probe(device)


def compiled_against_eager(device: str, dtype: str, mode: str = "on") -> dict[str, float]:
    script = Path(__file__).with_name("compiled.py")
    env = {name: value for name, value in os.environ.items() if name != "TORCHDYNAMO_DISABLE"}
    done = subprocess.run([sys.executable, script, device, dtype, mode], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_step_is_the_eager_one_and_keeps_its_graph():
    """One compilation serves every label and every later weight; energies and gradients are the eager ones, in the
    chain and in the update, and for a batch size beyond those that the compiler keeps."""
    found = compiled_against_eager("cpu", "float32")
    assert found["beyond"] < 1e-4
    assert found["energy"] < 1e-4 and found["gradient"] < 1e-4 and found["graphs"] == 1
    assert found["weights"] < 1e-4 and found["weights_graphs"] == 2


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_graph_mode_is_the_eager_energy_too():
    """As far as a CPU goes: there the mode compiles alike and copies its results."""
    found = compiled_against_eager("cpu", "float32", "graphs")
    assert found["energy"] < 1e-4 and found["gradient"] < 1e-4


def test_graphs_without_a_gpu_are_refused():
    with pytest.raises(InputError, match="CUDA graphs need a GPU"):
        runtime.probe("cpu", "float32", "graphs")


# On a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["on", "graphs"])
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-3), ("bfloat16", 3e-2)])
def test_compiled_gpu_energies_are_the_cpus(dtype, tolerance, mode):
    found = compiled_against_eager("cuda", dtype, mode)
    assert found["energy"] < tolerance and found["gradient"] < 5 * tolerance and found["graphs"] == 1
    assert found["weights"] < 5 * tolerance and found["weights_graphs"] == 2 and found["beyond"] < tolerance


@pytest.mark.gpu
def test_gpu_run_repeats_itself_and_its_checkpoint_resumes_on_a_cpu(tmp_path):
    """C29: two runs on the GPU agree; the checkpoint loads on a CPU, with the same energies within 1e-4."""
    device = runtime.probe("cuda", "float32", "off")
    _, x = fresh()
    runs = []
    for _ in range(2):
        state = states.start(TINY, states.Shape(1, 8, 8, x.classes), device, {})
        loader = Loader(x, 8, device=state.device)
        for _ in range(3):
            metrics = train_step(state, loader, Guard(1e9))
        runs.append(metrics)
    assert runs[0]["e_neg"] == pytest.approx(runs[1]["e_neg"], rel=1e-3)
    states.save_checkpoint(tmp_path, state, device)
    cpu, _ = fresh()
    states.restore(cpu, states.read_checkpoint(tmp_path, print), tmp_path)
    z, y = torch.rand(3, 1, 8, 8), torch.tensor([0, 1, 2])
    with torch.no_grad():
        assert torch.allclose(cpu.net(z, y), state.net(z.cuda(), y.cuda()).cpu(), atol=1e-4)
    assert_same(cpu.buffer.state_dict(), state.buffer.state_dict())


def resumed_and_uninterrupted(folder: Path, device: runtime.Runtime) -> tuple[states.TrainState, states.TrainState]:
    """Four iterations on images of a size whose update is compiled too, and two, a checkpoint and two more."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 3), dtype=np.uint8)
    x = Images("noise", pixels, np.arange(64) % 4, tuple("abcd"))
    loader, shape = Loader(x, 8, device=device.device), states.Shape(3, 16, 16, x.classes)
    first, straight, later = (states.start(TINY, shape, device, {}) for _ in range(3))
    for _ in range(4):
        train_step(straight, loader, Guard(1e9))
    for _ in range(2):
        train_step(first, loader, Guard(1e9))
    states.save_checkpoint(folder, first, device)
    states.restore(later, states.read_checkpoint(folder, print), folder)
    for _ in range(2):
        train_step(later, loader, Guard(1e9))
    return later, straight


@pytest.mark.gpu
@pytest.mark.parametrize("dtype, mode, tolerance", [("float32", "off", 0.02), ("bfloat16", "graphs", 0.1)])
def test_a_gpu_run_goes_on_from_its_checkpoint(dtype, mode, tolerance, tmp_path):
    """As GPUs compute by default, too: bfloat16, updates compiled, chains as CUDA graphs recorded anew. cuDNN's sums
    are not the same bit for bit from one time to the next, and Adam's first steps are signs: so of the way gone."""
    device = runtime.probe("cuda", dtype, mode)
    later, straight = resumed_and_uninterrupted(tmp_path, device)
    assert later.step == straight.step == 4 and len(later.buffer) == len(straight.buffer)
    weights = lambda state: torch.cat([q.detach().flatten() for q in state.net.parameters()])
    begun = weights(states.start(TINY, straight.shape, device, {}))
    assert (weights(later) - weights(straight)).norm() < tolerance * (weights(straight) - begun).norm()


@pytest.mark.gpu
def test_gpu_loader_reads_a_memory_mapped_set(monkeypatch):
    from igebm.data import loader as module

    monkeypatch.setattr(module, "ON_DEVICE", 0)
    _, x = fresh()
    pixels, labels = Loader(x, 8, device="cuda")(0, torch.Generator("cuda"))
    assert pixels.device.type == "cuda" and pixels.shape == (8, 1, 8, 8) and labels.device.type == "cuda"
