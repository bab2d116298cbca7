"""Winograd's convolutions: the numbers of the sum over the kernel, whatever the size, the batch and the threads."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from igebm import native, presets, runtime
from igebm.energy import energy_and_grad
from igebm.errors import InputError
from igebm.model import Shape, build_image_net
from igebm.nets import fold, winograd
from igebm.nets.fold import Twin

needed = pytest.mark.skipif(native.fault() is not None, reason=f"no Winograd here: {native.fault()}")


@pytest.fixture(autouse=True)
def threads_as_they_were():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def drawn(b: int, c: int, o: int, h: int, w: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(h * 1000 + w)
    x = torch.randn(b, c, h, w, generator=generator)
    return x, torch.randn(o, c, 3, 3, generator=generator) / (3 * c**0.5)


def off(got: torch.Tensor, want: torch.Tensor) -> float:
    assert got.shape == want.shape
    return ((got.double() - want.double()).norm() / want.double().norm().clamp(min=1e-30)).item()


SIZES = [(1, 1), (1, 9), (2, 2), (3, 5), (4, 4), (5, 4), (8, 8), (13, 6), (16, 32)]


@needed
@pytest.mark.parametrize("h, w", SIZES)
@pytest.mark.parametrize("b, c, o", [(1, 32, 32), (3, 64, 32), (33, 32, 96)])
def test_the_convolution_and_its_gradient_are_the_sums(b, c, o, h, w):
    """Against torch's convolution in float64, borders, odd sizes and patches that stand over included."""
    x, weight = drawn(b, c, o, h, w)
    x.requires_grad_()
    y = winograd.conv3x3(x, winograd.kernel(weight))
    exact = x.detach().double().requires_grad_()
    want = F.conv2d(exact, weight.double(), padding=1)
    g = torch.randn(y.shape)
    assert off(y, want) < 1e-5
    assert off(*torch.autograd.grad(y, x, g), *torch.autograd.grad(want, exact, g.double())) < 1e-5


@needed
@pytest.mark.parametrize("h, w", [size for size in SIZES if min(size) > 1])
def test_the_pooled_convolution_and_its_gradient(h, w):
    x, weight = drawn(3, 32, 64, h, w)
    x.requires_grad_()
    y = winograd.conv3x3(x, winograd.kernel(weight, down=True), down=True)
    exact = x.detach().double().requires_grad_()
    want = F.avg_pool2d(F.conv2d(exact, weight.double(), padding=1), 2)
    g = torch.randn(y.shape)
    assert off(y, want) < 1e-5
    assert off(*torch.autograd.grad(y, x, g), *torch.autograd.grad(want, exact, g.double())) < 1e-5


@needed
@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("slope", [0.2, 1.0])
def test_what_is_done_in_the_same_pass(down, rows, added, slope):
    """leaky(gain conv(x) + bias + add) and its gradients in x and `add`, for one gain or one an image."""
    x, weight = drawn(3, 64, 32, 6, 9)
    pool = lambda t: F.avg_pool2d(t, 2) if down else t
    gain, bias = 1 + torch.rand(rows, 32, 1, 1), torch.randn(rows, 32, 1, 1)
    add = torch.randn(pool(torch.empty(3, 32, 6, 9)).shape) if added else None
    inputs = [x] if add is None else [x, add]
    exact = [t.double().requires_grad_() for t in inputs]
    z = gain.double() * pool(F.conv2d(exact[0], weight.double(), padding=1)) + bias.double()
    want = F.leaky_relu(z + exact[1] if added else z, slope)
    for t in inputs:
        t.requires_grad_()
    y = winograd.conv3x3(x, winograd.kernel(weight, down), down, gain, bias, add, slope)
    g = torch.randn(y.shape)
    assert off(y, want) < 1e-5
    for got, right in zip(torch.autograd.grad(y, inputs, g), torch.autograd.grad(want, exact, g.double()), strict=True):
        assert off(got, right) < 1e-5


@needed
def test_threads_change_no_bit():
    """A sum runs over the channels in their order, however patches and channels are shared."""
    for size in (4, 32):  # few patches: threads share the channels; many: the patches
        x, weight = drawn(8, 64, 64, size, size)
        found, k = [], winograd.kernel(weight)
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(winograd.conv3x3(x, k))
        assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@needed
def test_bfloat16_is_float32_rounded_to_the_nearest():
    """Of the same numbers, bit for bit as torch rounds; and what is no number stays none."""
    x, weight = drawn(2, 32, 32, 9, 9)
    x = x.bfloat16()
    k = winograd.kernel(weight)
    assert torch.equal(winograd.conv3x3(x, k), winograd.conv3x3(x.float(), k).bfloat16())
    x[0, 0, 0, 0] = float("nan")
    y = winograd.conv3x3(x, k)
    assert y[0, :, 0, 0].isnan().all() and y[0, :, 8, 8].isfinite().all() and y[1].isfinite().all()


@needed
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_dtypes_are_converted_and_shapes_that_do_not_fit_refused(dtype):
    """Never read as what they are not: the library knows no shapes of its own."""
    x, weight = drawn(2, 32, 64, 6, 6)
    k = winograd.kernel(weight)
    y = winograd.conv3x3(x.to(dtype), k)
    assert y.dtype is dtype and off(y, winograd.conv3x3(x.to(dtype).float(), k)) < 1e-3
    for wrong in (
        {"x": x[:, :16]},
        {"add": torch.zeros(2, 64, 6, 5)},
        {"gain": torch.ones(3, 64, 1, 1)},
        {"bias": torch.ones(1, 32, 1, 1)},
    ):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} of a convolution has the shape"):
            winograd._run(**({"x": x, "u": k.forth, "size": torch.Size((6, 6))} | wrong))


@needed
def test_one_image_under_several_labels():
    """Broadcast, as by the folded convolution."""
    x, weight = drawn(1, 32, 32, 6, 6)
    gain, bias = torch.rand(3, 32, 1, 1), torch.randn(3, 32, 1, 1)
    one, many = (
        fold._modulated(z, winograd.kernel(weight), gain, bias, "leaky-relu") for z in (x, x.repeat(3, 1, 1, 1))
    )
    assert one.shape == many.shape and off(one, many) < 1e-5


@needed
def test_no_images_and_a_batch_whose_channels_lie_apart():
    x, weight = drawn(2, 32, 32, 6, 6)
    k = winograd.kernel(weight)
    assert winograd.conv3x3(x[:0], k).shape == (0, 32, 6, 6)
    apart = torch.stack([x, x], -1)[..., 0]
    assert not apart.is_contiguous() and torch.equal(winograd.conv3x3(apart, k), winograd.conv3x3(x, k))


@needed
@pytest.mark.parametrize("name", ["cifar10-cond", "cifar10-uncond", "cifar10-cond-release"])
def test_a_twin_by_winograd_is_the_network(name):
    """Its energy and gradient against the plain network's in float64, before and after the weights move; the first
    convolution, of three channels, and the skips stay as they are."""
    torch.manual_seed(0)
    preset = replace(presets.named(name), width=32)
    net = build_image_net(preset, Shape(3, 16, 16, tuple("abc"))).eval()
    twin = Twin(net, torch.float32, "winograd")
    assert any(isinstance(b.conv1, winograd.Kernel) for b in twin.weights[0].blocks)
    x, y = torch.rand(3, 3, 16, 16), torch.tensor([0, 2, 1]) if net.condition else None
    with torch.no_grad():
        for q in net.parameters():
            q.add_(0.05 * torch.randn_like(q))
    twin.refresh()
    e, g = energy_and_grad(twin.given(y), x)
    exact = build_image_net(preset, Shape(3, 16, 16, tuple("abc"))).eval().double()
    exact.load_state_dict(net.state_dict())
    want_e, want_g = energy_and_grad(lambda x: exact(x, y), x.double())
    assert off(e, want_e) < 1e-5 and off(g, want_g) < 1e-2  # a leaky ReLU at its kink may go either way
    with torch.no_grad():
        assert torch.equal(twin.given(y)(x), e)
        if y is not None:
            assert off(twin.over(x)(y), want_e) < 1e-5


@needed
def test_a_narrow_network_keeps_its_folded_kernels():
    net = build_image_net(replace(presets.named("cifar10-cond"), width=8), Shape(3, 16, 16, tuple("abc")))
    plain, twin = Twin(net, torch.float32).given(), Twin(net, torch.float32, "winograd").given()
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(plain(x), twin(x))


@needed
def test_the_other_instruction_sets_give_the_same(tmp_path):
    """Compiled for AVX2 too, where the processor has more."""
    code = (
        "import torch, torch.nn.functional as F; from igebm.nets import winograd as W; torch.manual_seed(0);"
        "x, w = torch.randn(3, 64, 13, 6), torch.randn(32, 64, 3, 3);"
        "y, z = W.conv3x3(x, W.kernel(w)), F.conv2d(x.double(), w.double(), padding=1);"
        "print(torch.backends.cpu.get_cpu_capability(), ((y - z).norm() / z.norm()).item())"
    )
    env = os.environ | {"ATEN_CPU_CAPABILITY": "avx2", "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    capability, found = done.stdout.split()
    assert capability == "AVX2" and float(found) < 1e-5
    assert len(list(tmp_path.rglob("winograd-*.so"))) == 1


def fault_with(path: Path, **env: str) -> str:
    code = "from igebm import native; print(native.fault())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=path,
                          env=os.environ | {"HOME": str(path)} | env)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@needed
def test_what_is_lacking_is_said(tmp_path):
    """No compiler, one that fails, one that writes nonsense; and a home that cannot be written to is no hindrance."""
    assert fault_with(tmp_path, PATH=str(tmp_path), CC="gcc") == "no gcc"
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'no such option' >&2\nexit 1\n")
    broken.chmod(0o755)
    assert fault_with(tmp_path, CC=str(broken)) == "broken refuses its kernel: no such option"
    odd = tmp_path / "odd"
    odd.write_text('#!/bin/sh\nfor last; do :; done\necho nonsense > "$last"\n')
    odd.chmod(0o755)
    assert "cannot be loaded" in fault_with(tmp_path, CC=str(odd))
    wrong = tmp_path / "wrong"  # a sign lost: the kernel compiles and is no convolution
    wrong.write_text(f'#!/bin/sh\nexec gcc $(echo "$@" | sed "s#{native.SOURCE}#{tmp_path}/wrong.c#")\n')
    (tmp_path / "wrong.c").write_text(native.SOURCE.read_text(encoding="utf-8").replace("q = m[1] - m[2]", "q = m[1]"))
    wrong.chmod(0o755)
    assert "gcc refuses" in fault_with(tmp_path, CC=str(wrong)) or "something else" in fault_with(
        tmp_path, CC=str(wrong)
    )
    (tmp_path / "file").write_text("")
    assert fault_with(tmp_path, HOME=str(tmp_path / "file")) == "None"
    assert fault_with(tmp_path, ATEN_CPU_CAPABILITY="default") == "its kernel wants Linux on a processor with AVX2"


@needed
def test_a_kept_library_that_is_damaged_is_made_again(tmp_path):
    """Cut short, it would end every command with a signal."""
    assert fault_with(tmp_path) == "None"
    (kept,) = tmp_path.rglob("winograd-*.so")
    whole = kept.read_bytes()
    for damaged in (b"", whole[:8000], whole[:-1] + bytes([whole[-1] ^ 1])):
        kept.write_bytes(damaged)
        assert fault_with(tmp_path) == "None" and kept.read_bytes() == whole
    kept.with_suffix(".sha256").write_bytes(b"\xff")
    assert fault_with(tmp_path, CC="'") == "None" and kept.read_bytes() == whole  # and a CC that is no command


@needed
@pytest.mark.parametrize("env", [{"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}, {"HOME": ""}])
def test_plain_locales_and_no_home_are_no_hindrance(env, tmp_path):
    assert fault_with(tmp_path, **env) == "None" and not (tmp_path / "~").exists()


@needed
def test_nobodys_random_numbers_are_moved_on():
    code = (
        "import torch; from igebm import native; torch.manual_seed(0); native.library(); a = torch.rand(1);"
        "torch.manual_seed(0); print(torch.equal(a, torch.rand(1)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


@needed
def test_torchs_own_openmp_is_linked_whatever_else_is_loaded():
    """scikit-learn brings a runtime of its own, whose name comes first."""
    code = "import sklearn.tree, torch; from igebm import native; print(native._openmp())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert Path(torch.__file__).parent.parent in Path(done.stdout.strip()).parents and "/torch" in done.stdout


@needed
def test_it_is_chosen_where_it_is_faster_and_refused_where_it_is_not_to_be_had(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(native, "fault", lambda: None)
    for asked in ("auto", "quick", "winograd"):
        assert runtime.probe("cpu", "float32", asked, 1).compiled == "winograd"
    kept = runtime.probe("cpu", "float32", "auto", 1).kept
    assert runtime.probe("cpu", before=kept).compiled == "winograd"
    assert runtime.probe("cpu", before=kept | {"compiled": False}).compiled is False  # goes on as it was begun
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)  # matrix units are faster yet
    assert runtime.probe("cpu", "bfloat16", "quick", 1).compiled is False
    assert runtime.probe("cpu", "bfloat16", "auto", 1).compiled is True
    assert runtime.probe("cpu", "float32", "auto", 1).compiled == "winograd"
    monkeypatch.setattr(native, "fault", lambda: "no gcc")
    assert runtime.probe("cpu", "float32", "auto", 1).compiled is False
    gone = runtime.probe("cpu", before=kept)
    assert gone.compiled is False and "no gcc" in gone.reason
    with pytest.raises(InputError, match="--compile winograd: no gcc; use on or off"):
        runtime.probe("cpu", "float32", "winograd", 1)
