"""Every script of examples/ is run, in short, and what it prints is held to what is known; --slow runs them as they
are."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

FOLDER = Path(__file__).resolve().parents[1] / "examples"
TESTED = {"ring_2d", "own_network", "own_data", "own_energy_hmc", "ood_folder", "compose", "finetune"}


@pytest.fixture
def example(tmp_path, monkeypatch):
    """A script as a module, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")

    def script(name: str):
        spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    return script


def picture(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_every_example_is_tested_and_listed():
    assert {path.stem for path in FOLDER.glob("*.py")} == TESTED
    listed = (FOLDER / "README.md").read_text(encoding="utf-8")
    for path in [*FOLDER.glob("*.py"), *FOLDER.glob("*.png")]:
        assert f"({path.name})" in listed


def test_the_ring(example):
    """A hundred iterations put the samples nearer to the ring than the noise they start from; 2,000 on it."""
    found = example("ring_2d").main(steps=100, chain=200)
    assert abs(found["samples mean radius"] - 1) < 0.2 and found["samples spread"] < 0.6  # noise: 1.25 and 0.65
    assert picture("ring_2d.png").std() > 10


@pytest.mark.slow
def test_the_ring_in_full(example):
    found = example("ring_2d").main()
    assert found["samples mean radius"] == pytest.approx(1, abs=0.02)
    assert found["samples spread"] == pytest.approx(0.1, abs=0.02)


def test_the_own_energys_moments(example):
    """Within five standard errors of what integrals give: of ⟨x₁⟩ 1/√n, of ⟨x₂⟩ 1.5/√n, of Var x₁ √2/√n."""
    module, n = example("own_energy_hmc"), 2_000
    found = module.main(steps=60, chains=n)
    se = {"mean of x1": 1.0, "mean of x2": 1.5, "variance of x1": 2**0.5}
    for name, one in se.items():
        assert abs(found[name] - module.TRUE[name]) < 5 * one / n**0.5
    assert picture("own_energy_hmc.png").std() > 10


def test_the_banana_is_what_it_says():
    """Its moments by quadrature of e^(-E)."""
    t, u = torch.linspace(-5, 5, 801, dtype=torch.float64), torch.linspace(-6, 30, 2401, dtype=torch.float64)
    x = torch.cartesian_prod(t, u)
    p = torch.exp(-(0.5 * x[:, 0] ** 2 + (x[:, 1] - x[:, 0] ** 2) ** 2 / 0.5))
    p /= p.sum()
    mean = p @ x
    centred = x - mean
    got = [*mean.tolist(), *(p @ centred**2).tolist(), (p @ centred.prod(1)).item()]
    assert got == pytest.approx([0.0, 1.0, 1.0, 2.25, 0.0], abs=1e-3)


def test_the_own_network(example):
    found = example("own_network").main(steps=25)
    assert found["test digits"] < found["noise"]
    assert picture("own_network.png").shape[0] < picture("own_network.png").shape[1]


def test_the_own_data(example):
    """Two classes by the names of their folders, and samples of each; a few iterations teach no more."""
    ebm = example("own_data").main(steps=5, chain=5, threads=1)
    assert ebm.classes == ("filled", "hollow") and ebm.shape == (1, 12, 12)
    assert picture("own_data.png").ndim == 2


@pytest.mark.slow
def test_the_own_data_in_full(example):
    """Filled squares have 64 white pixels of 144, hollow ones 48."""
    ebm = example("own_data").main(threads=1)
    filled, hollow = (ebm.sample(24, name).mean().item() for name in ebm.classes)
    assert filled > hollow + 0.05


def test_the_detector(example, capsys):
    out = example("ood_folder").main()
    assert len(out) == 15 and all(out[name] for name in ("noise-0", "noise-1", "noise-2", "inverted", "flat"))
    assert sum(out[f"digit-{i}"] for i in range(10)) <= 2  # one in twenty is beyond the limit by its making
    assert capsys.readouterr().out.count("out") == sum(out.values())


def test_the_compositions(example):
    """What a product samples is no worse as an 8 than a 3 is, what a negation samples is worse."""
    import igebm

    found, ebm = example("compose").main(steps=80, n=6), igebm.load("digits")
    as_eight = {name: ebm.energy(x, "8").mean().item() for name, x in found.items()}
    assert as_eight["3 and 8"] < as_eight["3"] < as_eight["3 and not 8"]
    either = torch.minimum(ebm.energy(found["0 or 1"], "0"), ebm.energy(found["0 or 1"], "1"))
    assert either.mean() < min(ebm.energy(found["3"], "0").mean(), ebm.energy(found["3"], "1").mean())
    assert picture("compose.png").std() > 10


def test_the_classifier(example):
    found = example("finetune").main(labels=100, steps=40)
    assert found["pre-trained"] > found["from scratch"] > 0.1
