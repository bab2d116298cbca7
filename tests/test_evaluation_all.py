"""All experiments one after the other: what is skipped, what is done anew, what fails, and where results go. The
experiments are stand-ins."""

import json
from pathlib import Path

import pytest

from igebm import model
from igebm.cli import main
from igebm.errors import Fault
from igebm.evaluation import neighbours, ood, trajectory
from igebm.evaluation.settings import EXPERIMENTS
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
