"""The energies that eval trajectory gives are those of the chains' states at the start, half-way and at the end."""

import json

import numpy as np
import pytest
import torch

from igebm.cli import main
from igebm.evaluation import trajectory
from igebm.model import load


def test_energies_are_those_of_the_states_at_their_steps(tmp_path, monkeypatch):
    """Three chains of seven steps in parts of two: the middle is step 3, the last is step 7."""
    chain, states = trajectory.run_chain, []

    def watched(kernel, E, x, steps, generator, record):
        of = [x.clone()]

        def both(k, state, info):
            of.append(state.x.clone())
            record(k, state, info)

        states.append(of)
        return chain(kernel, E, x, steps, generator, both)

    monkeypatch.setattr(trajectory, "run_chain", watched)
    words = "eval trajectory digits --n 3 --steps 7 --frames 3 --batch 2 --device cpu --dtype float32 --compile off"
    assert main([*words.split(), "--threads", "1", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "trajectory.json").read_text())["numbers"]
    m, every = load("digits"), [torch.cat(parts) for parts in zip(*states, strict=True)]  # labels 0, 1, 2 in turn
    with torch.no_grad():
        e = [m.given(torch.arange(3))(x).mean().item() for x in every]
    assert len(every) == 8 and np.unique(np.round(e, 4)).size == 8
    got = [found[f"energy_{when}"] for when in ("start", "middle", "end")]
    assert got == pytest.approx([e[0], e[3], e[7]], abs=1e-6)
    assert found["energies"] == pytest.approx(e, abs=1e-5)
