"""All experiments one after the other: what is skipped, what is done anew, what fails, and where results go. The
experiments are stand-ins."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from igebm import model
from igebm.cli import main
from igebm.errors import Fault, InputError
from igebm.evaluation import neighbours, ood, trajectory
from igebm.evaluation.settings import EXPERIMENTS, CrossClass, Finetune
from igebm.evaluation.work import folder_of

MACHINE = "--device cpu --dtype float32 --compile off --threads 1".split()


@pytest.fixture
def did(monkeypatch) -> list[str]:
    """The names of the experiments in the order in which they were done; there are three, which do nothing."""
    names: list[str] = []
    for name in set(EXPERIMENTS) - {"ood", "trajectory", "neighbours"}:
        monkeypatch.delitem(EXPERIMENTS, name)
    for module in (ood, trajectory, neighbours):
        stand_in(monkeypatch, module, names)
    return names


def stand_in(monkeypatch, module, names, error: BaseException | None = None) -> None:
    name = module.__name__.rpartition(".")[2]

    def run(work, options):
        names.append(name)
        if error is not None:
            raise error
        return {"step": work.model.step, "options": getattr(options, "n", None)}

    monkeypatch.setattr(module, "run", run)


def every(where, out, *args) -> int:
    return main(["eval", "all", str(where), "--out", str(out), *map(str, args), *MACHINE])


def saved(path: Path, step: int = 0, shift: float = 0.0) -> Path:
    m = model.load("digits")
    next(m.net.parameters()).data += shift
    path.parent.mkdir(exist_ok=True)
    model.save(path, m.net, m.preset, m.shape, step, m.facts)
    return path


def result(out: Path, name: str) -> dict:
    return json.loads((out / f"{name}.json").read_text())


def test_all_are_done_once_in_their_order(did, tmp_path, capsys):
    assert every("digits", tmp_path) == 0 and did == ["ood", "trajectory", "neighbours"]
    capsys.readouterr()
    assert every("digits", tmp_path) == 0 and len(did) == 3
    assert "ood: done before; --again does it anew" in capsys.readouterr().err
    assert every("digits", tmp_path, "--again") == 0 and did[3:] == did[:3]


def test_a_result_of_another_step_or_of_other_weights_is_not_this_ones(did, tmp_path, capsys):
    a, out = saved(tmp_path / "a.safetensors", 10), tmp_path / "out"
    assert every(a, out) == 0 and result(out, "ood")["numbers"]["step"] == 10
    saved(a, 20)
    assert every(a, out) == 0 and result(out, "ood")["numbers"]["step"] == 20 and len(did) == 6
    assert "ood: done anew, for the result that is there is of model's step 10, now 20" in capsys.readouterr().err
    other = saved(tmp_path / "b.safetensors", 20, shift=0.5)
    assert every(other, out) == 0 and len(did) == 9
    assert "is of other weights" in capsys.readouterr().err
    assert result(out, "ood")["model"]["sha256"] == model.load(other).sha256 != model.load(a).sha256
    # Under another name the same weights are the same model.
    assert every(saved(tmp_path / "c.safetensors", 20, shift=0.5), out) == 0 and len(did) == 9


def test_a_result_of_other_data_seed_or_options_is_done_anew(did, tmp_path, capsys):
    assert every("digits", tmp_path) == 0
    did.clear()
    for args, said in (
        (["--seed", 1], "seed 0, now 1"),
        (["--seed", 1, "--data", "mnist"], "data digits, now mnist"),
        (["--seed", 1, "--data", "mnist", "--classifier-steps", 7], "--classifier-steps not set, now 7"),
        (["--quick"], "data mnist, now digits; seed 1, now 0; --classifier-steps 7, now 600; and 1 more"),
    ):
        capsys.readouterr()
        assert every("digits", tmp_path, *args) == 0
        assert said in capsys.readouterr().err and len(did) == 3
        assert every("digits", tmp_path, *args) == 0 and len(did) == 3
        did.clear()
    assert result(tmp_path, "ood")["options"]["n"] == result(tmp_path, "ood")["numbers"]["options"] == 1000


def test_one_experiment_with_other_options_is_not_taken_for_the_one_of_all(did, tmp_path, capsys):
    assert main(["eval", "ood", "digits", "--n", "50", "--out", str(tmp_path), *MACHINE]) == 0
    assert every("digits", tmp_path) == 0 and did == ["ood", "ood", "trajectory", "neighbours"]
    assert "is of --n 50, now 10000" in capsys.readouterr().err and result(tmp_path, "ood")["numbers"]["options"] == 1e4


def test_a_damaged_result_or_one_that_names_no_weights_is_done_anew(did, tmp_path, capsys):
    assert every("digits", tmp_path) == 0
    (tmp_path / "ood.json").write_text('{"numb')
    old = result(tmp_path, "trajectory")
    del old["model"]["sha256"]
    (tmp_path / "trajectory.json").write_text(json.dumps(old))
    assert every("digits", tmp_path) == 0 and did[3:] == ["ood", "trajectory"]
    told = capsys.readouterr().err
    assert "ood: done anew, for the result that is there is of damage" in told
    assert "trajectory: done anew, for the result that is there is of weights that it does not name" in told


def test_models_of_one_file_name_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("ra", "rb"):
        saved(Path(name, "model.safetensors"))
        saved(Path(name, "snapshots", "0000010.safetensors"))
    there = ["ra/model.safetensors", "rb/model.safetensors", "ra/snapshots/0000010.safetensors",
             "rb/snapshots/0000010.safetensors", "hf:alice/tiny", "hf:bob/tiny", "hf:bob/tiny@v2",
             "digits"]  # fmt: skip
    names = ["ra-model", "rb-model", "ra-snapshots-0000010", "rb-snapshots-0000010", "alice--tiny", "bob--tiny",
             "bob--tiny@v2", "digits"]  # fmt: skip
    assert [folder_of(where) for where in there] == [Path("evaluation", name) for name in names]
    assert folder_of("ra") == Path("ra/evaluation")
    monkeypatch.chdir("ra")
    assert folder_of("model.safetensors") == Path("evaluation/ra-model")


def test_a_failure_is_forgotten_once_the_experiment_has_a_result(did, tmp_path, monkeypatch, capsys):
    """`eval all` fails on ood, `eval ood` then succeeds: the report says nothing of the failure."""
    with monkeypatch.context() as patch:
        stand_in(patch, ood, did, Fault("too many"))
        assert every("digits", tmp_path) == 1 and "ood: too many" in capsys.readouterr().err
    assert result(tmp_path, "ood.failed") == {"experiment": "ood", "why": "too many"}
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "r.html")]) == 0
    assert "It failed: too many" in (tmp_path / "r.html").read_text()
    assert main(["eval", "ood", "digits", "--out", str(tmp_path), *MACHINE]) == 0
    assert not (tmp_path / "ood.failed.json").exists()
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "r.html")]) == 0
    assert "too many" not in (tmp_path / "r.html").read_text()


def test_one_failure_does_not_end_the_others(did, tmp_path, monkeypatch, capsys):
    """Exit code 1, the reason in a file and in what --json gives, and the next time that one alone is done."""
    with monkeypatch.context() as patch:
        stand_in(patch, trajectory, did, InputError("no good"))
        assert every("digits", tmp_path, "--json") == 1 and did == ["ood", "trajectory", "neighbours"]
        told = capsys.readouterr()
    assert "trajectory: no good" in told.err
    found = json.loads(told.out)
    assert found["trajectory"] == {"experiment": "trajectory", "why": "no good"} and "numbers" in found["neighbours"]
    assert every("digits", tmp_path) == 0 and did[3:] == ["trajectory"]


def test_an_earlier_result_is_not_given_for_what_failed_now(did, tmp_path, monkeypatch, capsys):
    assert every("digits", tmp_path) == 0
    stand_in(monkeypatch, ood, did, InputError("no good"))
    capsys.readouterr()
    assert every("digits", tmp_path, "--seed", 1, "--json") == 1
    assert json.loads(capsys.readouterr().out)["ood"] == {"experiment": "ood", "why": "no good"}


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
     RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")],
)  # fmt: skip
def test_memory_that_is_not_enough_for_one_is_for_the_others(error, did, tmp_path, monkeypatch, capsys):
    """What to lower is an option that the command has."""
    stand_in(monkeypatch, ood, did, error)
    assert every("digits", tmp_path) == 1 and did == ["ood", "trajectory", "neighbours"]
    assert "ood: out of memory; lower --batch\n" in capsys.readouterr().err
    assert main(["eval", "ood", "digits", "--out", str(tmp_path), *MACHINE]) == 1
    assert capsys.readouterr().err.endswith("igebm: out of memory; lower --batch\n")


def test_an_error_of_the_program_ends_it(did, tmp_path, monkeypatch):
    stand_in(monkeypatch, ood, did, RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        every("digits", tmp_path)


def test_what_does_not_apply_to_a_model_is_skipped_and_said(did, tmp_path, monkeypatch, capsys):
    """Cross-class chains of a model without classes: exit code 0, and the report says why there are none. By itself
    the experiment is refused."""
    monkeypatch.setitem(EXPERIMENTS, "cross-class", CrossClass)
    m = model.load("digits")
    preset = replace(m.preset, conditional=False)
    plain, out = tmp_path / "plain.safetensors", tmp_path / "out"
    model.save(plain, model.build_image_net(preset, m.shape), preset, m.shape, 0, m.facts)
    assert every(plain, out) == 0
    assert "cross-class: skipped: cross-class needs a model of two classes or more" in capsys.readouterr().err
    assert not (out / "cross-class.failed.json").exists() and len(did) == 3
    assert main(["report", str(out), "--out", str(out / "r.html")]) == 0
    assert "It was skipped: cross-class needs a model of two classes" in (out / "r.html").read_text()
    assert main(["eval", "cross-class", str(plain), "--out", str(out), *MACHINE]) == 2


def test_a_model_of_latents_has_no_lowest_label(did, tmp_path, monkeypatch, capsys):
    monkeypatch.undo()
    for name in set(EXPERIMENTS) - {"ood"}:
        monkeypatch.delitem(EXPERIMENTS, name)
    assert every("dsprites-scale", tmp_path) == 0
    assert "ood: skipped: --score min-label is at the label with the lowest E" in capsys.readouterr().err


def test_data_without_labels_are_not_fine_tuned_on(did, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(EXPERIMENTS, "finetune", Finetune)
    x = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "bare.npz", train_x=x, test_x=x)
    assert every("digits", tmp_path / "out", "--data", tmp_path / "bare.npz") == 0
    told = capsys.readouterr().err
    assert "finetune: skipped: finetune needs class labels" in told and "bare.npz has none" in told
