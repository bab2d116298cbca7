"""Checkpoints of igebm-pytorch: made up here in its layout, with its forward pass written anew in plain torch. The
energies before and after must agree; whatever is no such checkpoint is one line."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import igebm
from igebm import model
from igebm.cli import main
from igebm.convert import CIFAR10
from igebm.evaluation.classes import lowest
from igebm.library import EBM

WIDTHS, DOWN = [1, 1, 2, 2, 2, 2], [True, False, True, False, True, False]
FAST = ["--dtype", "float32", "--threads", "1"]


def made_up(width: int = 4, classes: int | None = 10, channels: int = 3, widths=WIDTHS, down=DOWN) -> dict[str, Tensor]:
    """A state dict of the port's IGEBM class, trained as it were: no entry at a value that would hide a mistake."""
    g, state = torch.Generator().manual_seed(0), {}
    draw = lambda *shape: torch.randn(*shape, generator=g)

    def convolution(name: str, c_in: int, c_out: int, kernel: int, size: float, bias: bool) -> None:
        state[f"{name}.weight_orig"], state[f"{name}.weight_u"] = size * draw(c_out, c_in, kernel, kernel), draw(c_out)
        state[f"{name}.weight"] = draw(c_out, c_in, kernel, kernel)  # of an earlier pass, as a checkpoint has it
        if bias:
            state[f"{name}.bias"] = 0.3 * draw(c_out)

    convolution("conv1", channels, width, 3, 1.0, True)
    c_in = width
    for i, (multiple, halves) in enumerate(zip(widths, down, strict=True)):
        c = width * multiple
        convolution(f"blocks.{i}.conv1", c_in, c, 3, 1.0, classes is None)
        # Below and above norm 1, and untrained: the three cases of the bound.
        convolution(f"blocks.{i}.conv2", c, c, 3, (0.01, 1.0, 1e-10)[i % 3], classes is None)
        if classes is not None:
            state[f"blocks.{i}.class_embed.weight"] = torch.tensor([1.0, 1, 0, 0]).repeat_interleave(c) + 0.3 * draw(
                classes, 4 * c
            )
        if c_in != c or halves:
            convolution(f"blocks.{i}.skip.0", c_in, c, 1, 1.0, False)
        c_in = c
    state["linear.weight"], state["linear.bias"] = draw(1, c_in), draw(1)
    return state


def energy(state: dict[str, Tensor], x: Tensor, y: Tensor | None, down=DOWN) -> Tensor:
    """The port's forward pass, in float64 from its description: E (B,)."""
    state = {name: t.double() for name, t in state.items()}

    def weight(name: str, bound: bool = False) -> Tensor:
        W, u = state[f"{name}.weight_orig"], state[f"{name}.weight_u"]
        M = W.reshape(len(W), -1)
        v = M.T @ u / (M.T @ u).norm()
        u = M @ v / (M @ v).norm()
        sigma = (u[:, None] * M * v).sum()
        return W / (sigma + 1e-6) * min(sigma.item(), 1.0) if bound else W / sigma

    x = x.double()
    h = F.leaky_relu(F.conv2d(x, weight("conv1"), state["conv1.bias"], padding=1), 0.2)
    for i, halves in enumerate(down):
        name = f"blocks.{i}"
        one = F.conv2d(h, weight(f"{name}.conv1"), state.get(f"{name}.conv1.bias"), padding=1)
        gains = None
        if y is not None:
            gains = state[f"{name}.class_embed.weight"][y][:, :, None, None].chunk(4, 1)
            one = gains[0] * one + gains[2]
        two = F.conv2d(
            F.leaky_relu(one, 0.2), weight(f"{name}.conv2", True), state.get(f"{name}.conv2.bias"), padding=1
        )
        two = two if gains is None else gains[1] * two + gains[3]
        skip = F.conv2d(h, weight(f"{name}.skip.0")) if f"{name}.skip.0.weight_orig" in state else h
        h = two + skip
        h = F.leaky_relu(F.avg_pool2d(h, 2) if halves else h, 0.2)
    h = F.relu(h).flatten(2).sum(2)
    return F.linear(h, state["linear.weight"], state["linear.bias"])[:, 0]


def converted(state, tmp_path: Path, *words: str) -> EBM:
    torch.save(state, tmp_path / "model.pt")
    assert main(["convert", str(tmp_path / "model.pt"), "--out", str(tmp_path / "out"), *words]) == 0
    return igebm.load(tmp_path / "out")


def test_energies_are_the_ports(tmp_path):
    state = made_up()
    ebm = converted(state, tmp_path, "--step", "70000")
    x, y = torch.rand(6, 3, 32, 32), torch.tensor([0, 3, 9, 3, 1, 5])
    want = energy(state, x, y)
    assert want.std() > 0.1
    assert ebm.energy(x, y).tolist() == pytest.approx(want.tolist(), rel=1e-4, abs=1e-3)
    assert ebm.model.net(x, y).tolist() == pytest.approx(want.tolist(), rel=1e-4, abs=1e-3)
    assert ebm.classes == CIFAR10 and ebm.shape == (3, 32, 32) and ebm.model.step == 70000
    every = torch.stack([energy(state, x, torch.full((6,), c)) for c in range(10)])
    assert ebm.classify(x).tolist() == every.argmin(0).tolist()
    # What chains follow: the gradient in x.
    a, b = x.clone().requires_grad_(), x.double().requires_grad_()
    ebm.given(y)(a).sum().backward()
    energy(state, b, y).sum().backward()
    assert a.grad is not None and b.grad is not None
    assert torch.allclose(a.grad.double(), b.grad, rtol=1e-3, atol=1e-4 * b.grad.abs().max().item())


def test_unconditional_networks_have_plain_biases(tmp_path):
    state = made_up(classes=None, channels=1)
    ebm = converted(state, tmp_path, "--data", "mnist", "--image-size", "28")
    x = torch.rand(5, 1, 28, 28)
    assert ebm.energy(x).tolist() == pytest.approx(energy(state, x, None).tolist(), rel=1e-4, abs=1e-3)
    assert ebm.classes == () and ebm.model.preset.data == "mnist"


def test_other_tables_of_blocks_need_to_be_said(tmp_path, capsys):
    widths, down = [1, 2, 2], [False, True, False]
    state = made_up(widths=widths, down=down, classes=3)
    torch.save(state, tmp_path / "model.pt")
    words = ["convert", str(tmp_path / "model.pt"), "--out", str(tmp_path / "out")]
    assert main(words) == 2 and "its blocks are 1 2 2 times 4 wide" in capsys.readouterr().err
    assert main([*words, "--blocks", "1d 2d 2"]) == 2 and "lacks blocks.0.skip.0" in capsys.readouterr().err
    ebm = converted(state, tmp_path, "--blocks", "1 2d 2", "--classes", "cat", "dog", "fox")
    x, y = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    assert ebm.energy(x, y).tolist() == pytest.approx(energy(state, x, y, down).tolist(), rel=1e-4, abs=1e-3)
    assert ebm.classes == ("cat", "dog", "fox")


@pytest.mark.parametrize("form", ["parallel", "beside others", "half"])
def test_where_the_network_lies_in_the_file_does_not_matter(form, tmp_path):
    state, words = made_up(), []
    saved: dict = state
    if form == "parallel":
        saved = {f"module.{name}": t for name, t in state.items()}
    elif form == "beside others":
        other = {name: t + 1 for name, t in state.items()}
        saved, words = {"model": state, "ema": other, "step": 5, "optimizer": {"lr": 1e-4}}, ["--key", "model"]
    else:
        saved = {name: t.bfloat16() for name, t in state.items()}
        state = saved
    ebm = converted(saved, tmp_path, *words)
    x, y = torch.rand(3, 3, 32, 32), torch.tensor([2, 1, 0])
    assert ebm.energy(x, y).tolist() == pytest.approx(energy(state, x, y).tolist(), rel=1e-4, abs=1e-3)


def test_a_converted_model_goes_wherever_a_model_goes(tmp_path, monkeypatch):
    """Sampled, pushed, trained on; and an unlabelled image is under the mean of the classes."""
    monkeypatch.chdir(tmp_path)
    state = made_up()
    ebm = converted(state, tmp_path)
    assert main(["sample", "out", "--n", "2", "--steps", "1", *FAST]) == 0
    assert main(["push", "out", "card/", *FAST, "--picture", "samples/out/samples.png"]) == 0
    assert "a checkpoint of igebm-pytorch, model.pt" in Path("card/README.md").read_text().replace("\\", "")
    x = torch.rand(2, 3, 32, 32)
    mean = {n: t.mean(0, keepdim=True) if "class_embed" in n else t for n, t in state.items()}
    want = energy(mean, x, torch.tensor([0, 0]))
    assert ebm.given()(x).tolist() == pytest.approx(want.tolist(), rel=1e-4, abs=1e-3)
    u8 = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    assert lowest(model.load("out"), u8).tolist() == ebm.classify(u8).tolist()


class Whole(nn.Module):
    """A network saved with its code, as torch.save(model) does."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("bomb"),)


def spoilt(**changes) -> dict[str, Tensor]:
    state = made_up() | {k: v for k, v in changes.items() if v is not None}
    return {k: v for k, v in state.items() if k not in changes or changes[k] is not None}


BAD = {
    "a whole model": (Whole, "it holds more than tensors"),
    "something that runs": (lambda: {"conv1.weight_orig": torch.zeros(1), "x": Bomb()}, "it holds more than tensors"),
    "another network": (lambda: {"layer.weight": torch.zeros(2)}, "holds no network of igebm-pytorch"),
    "a tensor": (lambda: torch.zeros(3), "holds no network"),
    "two networks": (lambda: {"a": made_up(), "b": made_up()}, "holds several networks; choose by --key a or b"),
    "missing": (lambda: spoilt(**{"blocks.3.conv2.weight_u": None}), "lacks blocks.3.conv2.weight_u"),
    "extra": (lambda: spoilt(**{"attention.weight": torch.zeros(2)}), "has attention.weight, which the port's network"),
    "of another shape": (
        lambda: spoilt(**{"linear.weight": torch.zeros(1, 9)}),
        r"linear.weight is torch.float32 (1, 9)",
    ),
    "not finite": (lambda: spoilt(**{"linear.bias": torch.tensor([torch.nan])}), "linear.bias is not finite"),
    "whole numbers": (lambda: spoilt(**{"linear.bias": torch.tensor([1])}), "linear.bias is torch.int64"),
    "no stem bias": (lambda: spoilt(**{"conv1.bias": None}), "lacks conv1.bias"),
    "torch's own spectral norm": (lambda: spoilt(**{"conv1.weight_v": torch.zeros(27)}), "has conv1.weight_v"),
    "five channels": (lambda: made_up(channels=5), "not one of images with 1 or 3 channels"),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", BAD)
def test_whatever_is_no_such_checkpoint_is_one_line(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, why = BAD[name]
    torch.save(make(), "x.pt")
    assert main(["convert", "x.pt", "--out", "out"]) == 2
    told = capsys.readouterr().err.strip()
    assert why in told and "\n" not in told
    assert not Path("out").exists() and not Path("bomb").exists()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is no file of torch.save; give a .pt file"),
        (b"not a pickle", "is no file of torch.save; give a .pt file"),
        (pickle.dumps(Bomb()), "is not opened"),
        (None, "no file x.pt"),
    ],
    ids=["empty", "text", "pickle", "none"],
)
def test_files_that_torch_did_not_write(content, why, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("x.pt").write_bytes(content)
    assert main(["convert", "x.pt", "--out", "out"]) == 2
    told = capsys.readouterr().err.strip()
    assert why in told and "\n" not in told and not Path("bomb").exists()


def test_a_file_that_was_cut_short_is_refused(tmp_path, capsys):
    torch.save(made_up(), tmp_path / "x.pt")
    whole = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "x.pt").write_bytes(whole[: len(whole) // 2])
    assert main(["convert", str(tmp_path / "x.pt"), "--out", str(tmp_path / "out")]) == 2
    assert "is not opened" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--classes", "a", "b"], "--classes names 2, the checkpoint has 10"),
        (["--image-size", "4"], "too small"),
        (["--step", "-1"], "--step -1"),
        (["--blocks", "1x"], "give words such as"),
        (["--key", "ema"], "under 'ema'"),
        (["--classes", *"abcdefghia"], "--classes names a more than once"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(words, why, tmp_path, capsys):
    torch.save(made_up(), tmp_path / "x.pt")
    assert main(["convert", str(tmp_path / "x.pt"), "--out", str(tmp_path / "out"), *words]) == 2
    assert why in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["preset.json", "metrics.jsonl", "checkpoint.pt", "README.md", "model.safetensors"])
def test_what_lies_there_is_not_written_over(name, tmp_path, capsys):
    """A run that has saved nothing but its settings yet, or somebody's own file of that name."""
    torch.save(made_up(), tmp_path / "x.pt")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("another's")
    assert main(["convert", str(tmp_path / "x.pt"), "--out", str(tmp_path / "out")]) == 2
    assert f"{tmp_path / 'out' / name} is there" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]
    assert (tmp_path / "out" / name).read_text() == "another's"
