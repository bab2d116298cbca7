"""Concepts combined: which energies the chains run on, and what is said of sprites that are known."""

import numpy as np
import pytest
import torch

from igebm import model, terminal
from igebm.data.dsprites import Sprites, condition, pictures
from igebm.evaluation import concepts
from igebm.evaluation.settings import Concepts
from igebm.model import temperature
from igebm.samplers import Info, State
from igebm.terminal import Screen

N, SEED = 9, 3
MODELS = ("dsprites-rotation", "dsprites-position", "dsprites-scale", "dsprites-shape")


@pytest.fixture(scope="module")
def models() -> list[model.Model]:
    return [model.load(name) for name in MODELS]


def run(models, monkeypatch, out, end: Sprites, batch: int = 4) -> tuple[dict, list]:
    """The experiment with chains that end at the sprites `end`; and the energies that they had, part by part."""
    images = torch.from_numpy(pictures(end, 32)).permute(0, 3, 1, 2)
    had, at = [], 0

    def chain(kernel, E, x, steps, generator, tell):
        nonlocal at
        part = slice(at % N, at % N + len(x))
        had.append((part, E))
        at += len(x)
        return State((images[part] + 0.5) / 256), Info()

    monkeypatch.setattr(concepts, "run_chain", chain)
    screen = Screen(terminal.say, lambda *_, **__: None)
    return concepts.run(models, Concepts(n=N, steps=2), out, SEED, batch, screen), had


def test_the_truth_is_read_back_without_error(models, monkeypatch, tmp_path):
    """Where exactly the sprites that are asked for come out no factor is off by more than reading back is."""
    found, _ = run(models, monkeypatch, tmp_path, concepts.asked_for(N, SEED))
    assert [row["models"] for row in found["rows"]] == [1, 2, 3, 4]
    assert [row["factors"] for row in found["rows"]] == [list(concepts.FACTORS[: k + 1]) for k in range(4)]
    for row in found["rows"]:
        assert list(row["errors"]) == row["factors"] and row["misfit"] < 0.003
        assert row["errors"]["shape"] == 0
        for factor, most in {"scale": 0.02, "position": 0.02, "rotation": 5.0}.items():
            assert row["errors"].get(factor, 0) < most, row
    assert found["names"] == {f"dsprites-{factor}": factor for factor in concepts.FACTORS}
    assert found["chain"]["steps"] == 2 and (tmp_path / "concepts.png").stat().st_size > 1000


def test_what_comes_out_elsewhere_is_off_by_as_much(models, monkeypatch, tmp_path):
    """Sprites a quarter of the range to the side, or of the next shape: the errors are these, and no others."""
    z = concepts.asked_for(N, SEED)
    moved = z._replace(x=np.where(z.x < 0.5, z.x + 0.25, z.x - 0.25))
    found, _ = run(models, monkeypatch, tmp_path, moved)
    last = found["rows"][-1]["errors"]
    assert last["position"] == pytest.approx(0.25, abs=0.02)
    assert last["shape"] == 0 and last["scale"] < 0.02 and last["rotation"] < 5
    other = z._replace(shape=(z.shape + 1) % 3)
    found, _ = run(models, monkeypatch, tmp_path, other)
    assert found["rows"][0]["errors"] == {"shape": 1.0}


def test_chains_run_on_the_product_at_the_latents_asked_for(models, monkeypatch, tmp_path):
    """Of k models the energy is Σ T₁/Tₖ Eₖ(x | zₖ), each at its own part of the latents."""
    z = concepts.asked_for(N, SEED)
    _, had = run(models, monkeypatch, tmp_path, z)
    assert len(had) == 4 * 3  # of 9 sprites in parts of 4
    by_factor = dict(zip(("rotation", "position", "scale", "shape"), models, strict=True))
    T = {factor: temperature(m.preset) for factor, m in by_factor.items()}
    x = torch.rand((4, 1, 32, 32))
    for i, (part, E) in enumerate(had):
        want = torch.zeros(part.stop - part.start)
        for factor in concepts.FACTORS[: i // 3 + 1]:
            y = torch.as_tensor(condition(z, factor)[part])
            want += T["shape"] / T[factor] * by_factor[factor].given(y)(x[: len(want)])
        assert torch.allclose(E(x[: len(want)]), want, rtol=1e-4, atol=1e-6)


def test_a_blind_guess_is_another_draw(models, monkeypatch, tmp_path):
    """Counted here, sprite by sprite, for the factors without symmetries."""
    z, guess = concepts.asked_for(N, SEED), concepts.asked_for(N, SEED + 1)
    found, _ = run(models[1:2], monkeypatch, tmp_path, z)
    want = [((g - w) ** 2 + (h - v) ** 2) ** 0.5 for g, w, h, v in zip(guess.x, z.x, guess.y, z.y, strict=True)]
    assert found["blind"]["position"] == pytest.approx(sum(want) / N, abs=1e-4)
    assert found["blind"]["shape"] == pytest.approx(np.mean(guess.shape != z.shape), abs=1e-4)
    assert found["blind"]["scale"] == pytest.approx(np.abs(guess.scale - z.scale).mean(), abs=1e-4)
