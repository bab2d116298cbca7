"""The network as a classifier: its features are the energy's own, a separable toy is learned, runs are repeatable."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from igebm import data, model, presets
from igebm.cli import main
from igebm.errors import Fault
from igebm.evaluation import finetune
from igebm.evaluation.classes import in_turn
from igebm.evaluation.settings import Common, Finetune
from igebm.evaluation.work import Work
from igebm.model import Shape, build_net
from igebm.nets.image import ImageEnergy
from igebm.presets import parse_blocks
from igebm.runtime import probe

MACHINE = "--device cpu --dtype float32 --compile off --threads 1".split()


@pytest.fixture
def toy(tmp_path) -> Path:
    """Two classes, dark and bright, that their mean tells apart; 40 and 20 images of 8x8."""
    rng = np.random.default_rng(0)
    parts = {}
    for split, n in (("train", 40), ("test", 20)):
        y = np.arange(n) % 2
        parts |= {f"{split}_x": (rng.integers(0, 100, (n, 8, 8, 1)) + 100 * y[:, None, None, None]).astype(np.uint8)}
        parts |= {f"{split}_y": y}
    np.savez(tmp_path / "toy.npz", **parts, classes=np.array(["dark", "bright"]))
    return tmp_path / "toy.npz"


def tiny(folder: Path, **settings) -> Path:
    """An untrained model of 8x8 images in a file."""
    preset = presets.Preset(**{"width": 4, "blocks": "1d", "data": "digits", "conditional": False} | settings)
    shape = Shape(1, 8, 8, tuple("0123456789") if preset.conditional else ())
    torch.manual_seed(0)
    model.save(folder / "tiny.safetensors", build_net(preset, shape), preset, shape, 0, {})
    return folder / "tiny.safetensors"


def tuned(out: Path, where: Path | str, *args) -> dict:
    assert main(["eval", "finetune", str(where), "--out", str(out), *map(str, args), *MACHINE]) == 0
    return json.loads((out / "finetune.json").read_text())["numbers"]


@pytest.mark.parametrize("options", [dict(), dict(condition=3, scales=2), dict(head_relu=True, stem="4x4/2")], ids=str)
def test_features_and_the_last_layer_are_the_energy(options):
    net = ImageEnergy(1, 4, parse_blocks("1d 2"), **options).double()
    x, y = torch.rand(5, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, -1, 0])
    f = net.features(x, y)
    heads = [tower.head for tower in net.towers]
    assert f.shape == (5, 8 * len(heads))
    e = sum(h(part)[:, 0] for h, part in zip(heads, f.split(8, 1), strict=True))
    assert torch.equal(e, net(x, y))


def test_a_classifier_with_the_energys_own_layer_gives_the_energy():
    """Scores as one class of weight head / scale: the energy at the neutral condition, to rounding."""
    m = model.load("digits")
    x = torch.rand(6, 1, 8, 8)
    classifier = finetune.Classifier(m.net, 1, x)
    assert (classifier(x) == 0).all()
    head = m.net.towers[0].head
    classifier.head.load_state_dict({"weight": head.weight / classifier.scale, "bias": head.bias})
    assert torch.allclose(classifier(x)[:, 0], m.net(x), atol=1e-5)


def test_a_separable_toy_is_learned(toy, tmp_path):
    numbers = tuned(tmp_path, tiny(tmp_path), "--data", toy, "--steps", 40, "--batch-size", 20, "--lr", 0.02)
    assert numbers["labelled_images"] == 40 and numbers["classes"] == 2 and numbers["steps"] == 40
    assert {name: a["share"] for name, a in numbers["accuracy"].items()} == dict.fromkeys(finetune.RUNS, 1.0)
    assert numbers["gain_of_pretraining"] == {"gain": 0.0, "se": None}
    curve = numbers["curves"]["scratch"]
    assert curve["steps"] == list(range(2, 41, 2)) and curve["accuracy"][-1] == 1.0
    assert curve["loss"][0] == pytest.approx(np.log(2), abs=0.1)  # the scores start at zero
    assert numbers["pretraining"].startswith("without labels")


def test_pretraining_helps_the_bundled_digits(tmp_path, monkeypatch):
    """After 30 iterations with 50 labels; a conditional model is named as one that saw labels."""
    monkeypatch.setattr(finetune, "CURVE", 20)
    numbers = tuned(tmp_path, "digits", "--steps", 30, "--labels", 50, "--batch-size", 50)
    assert numbers["accuracy"]["pretrained"]["share"] > numbers["accuracy"]["scratch"]["share"] + 0.1
    assert numbers["labelled_images"] == 50 and "not the paper's case" in numbers["pretraining"]
    for end in ("", "_augmented"):
        ours, theirs = (numbers["accuracy"][name + end]["share"] for name in ("pretrained", "scratch"))
        assert numbers[f"gain_of_pretraining{end}"]["gain"] == pytest.approx(ours - theirs, abs=2e-6)


def test_the_gain_and_its_error_are_of_the_differences_image_by_image():
    """d = 0, 1, 1, 0: mean ½, standard deviation √(1/3), of the mean half of it; taken for two sets of images, 3/4 and
    1/4 of four would have √(2 (3/16) / 4) = 0.306."""
    ours, theirs = np.array([1, 1, 1, 0], bool), np.array([1, 0, 0, 0], bool)
    assert finetune.gain(ours, theirs) == {"gain": 0.5, "se": pytest.approx(0.288675)}
    assert finetune.gain(theirs, ours)["gain"] == -0.5
    assert finetune.gain(ours, ours) == {"gain": 0.0, "se": None}


def test_hits_are_image_by_image_of_the_first_so_many(toy, tmp_path):
    """A classifier that says "bright" of all is right on every other image."""
    test = data.load(str(toy), "test")
    task = finetune.Task(model.load(tiny(tmp_path)), test, test, Finetune(), 0, batch=3)
    classifier = task.classifier(False)
    torch.nn.init.constant_(classifier.head.bias[1:], 1.0)
    assert finetune.hits(classifier, task, 7).tolist() == [False, True] * 3 + [False]
    assert finetune.hits(classifier, task, 1_000).tolist() == [False, True] * 10


def test_the_four_differ_in_their_start_and_in_flips_and_crops(toy, tmp_path, monkeypatch):
    """All images being one whose 64 pixels differ, what the nets are trained on tells how it was moved: not at all, or
    mirrored and by up to a pixel each way (an eighth of 8), in all 18 ways. Rates fall along the cosine to 0."""
    image = np.arange(64, dtype=np.uint8).reshape(8, 8)
    padded = np.pad(image, 1, "reflect")
    moved = [padded[a : a + 8, b : b + 8] for a in range(3) for b in range(3)]
    ways = {way.tobytes() for part in moved for way in (part, part[:, ::-1])}
    x = np.broadcast_to(image[..., None], (40, 8, 8, 1))
    np.savez(tmp_path / "one.npz", train_x=x, train_y=np.arange(40) % 2, test_x=x, test_y=np.arange(40) % 2)
    seen, starts, rates = [], [], []

    class Watched(finetune.Classifier):
        def __init__(self, net, *args):
            super().__init__(net, *args)
            seen.append(set())
            starts.append(net.towers[0].stem.weight.detach().clone())

        def forward(self, x):
            if self.training:
                seen[-1] |= {picture.tobytes() for picture in data.quantise(x)[:, 0].numpy()}
            return super().forward(x)

    class Adam(torch.optim.Adam):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    monkeypatch.setattr(finetune, "Classifier", Watched)
    monkeypatch.setattr(torch.optim, "Adam", Adam)
    where = tiny(tmp_path)
    tuned(tmp_path, where, "--data", tmp_path / "one.npz", "--steps", 4, "--batch-size", 100, "--lr", 0.02, "--seed", 3)
    assert list(finetune.RUNS) == ["pretrained", "pretrained_augmented", "scratch", "scratch_augmented"]
    assert seen == [{image.tobytes()}, ways, {image.tobytes()}, ways] and len(ways) == 18
    own = model.load(where).net.towers[0].stem.weight
    assert [torch.equal(start, own) for start in starts] == [True, True, False, False]
    assert rates == pytest.approx([0.02, 0.01 * (1 + 0.5**0.5), 0.01, 0.01 * (1 - 0.5**0.5)] * 4)


def test_a_run_that_time_ended_is_repeated_by_its_steps(toy, tmp_path):
    where = tiny(tmp_path, dropout=0.2)
    timed = tuned(tmp_path / "a", where, "--data", toy, "--minutes", 0.004, "--batch-size", 8)
    assert 1 <= timed["steps"] <= 300
    again = tuned(tmp_path / "b", where, "--data", toy, *timed["rerun"].split(), "--batch-size", 8)
    assert again == timed


def test_the_pretrained_run_starts_at_the_models_weights_and_scratch_does_not(toy, tmp_path):
    m = model.load(tiny(tmp_path))
    images = data.load(str(toy))
    task = finetune.Task(m, images, images, Finetune(), 3)
    ours, theirs = task.classifier(True).net.state_dict(), m.net.state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    other = task.classifier(False).net.state_dict()
    assert not torch.equal(other["towers.0.stem.weight"], theirs["towers.0.stem.weight"])
    assert all(p.requires_grad for p in task.classifier(True).parameters())
    assert not any(p.requires_grad for p in m.net.parameters())


def test_a_loss_that_is_no_number_is_a_fault(toy, tmp_path):
    images = data.load(str(toy))
    task = finetune.Task(model.load(tiny(tmp_path)), images, images, Finetune(lr=float("inf"), batch_size=8), 0)
    with pytest.raises(Fault, match="not finite at step .*; lower --lr"):
        finetune.learn(task, True, False, 20, lambda *_: None)


def test_labels_are_taken_from_the_classes_alike():
    """Of 6, 2 and 3: seven are 3, 2, 2, and nine 4, 2, 3."""
    y = np.array([0] * 6 + [1] * 2 + [2] * 3)
    order, rank = in_turn(y)
    assert sorted(order) == list(range(11))
    assert [np.bincount(y[order[:n]], minlength=3).tolist() for n in (3, 7, 9)] == [[1, 1, 1], [3, 2, 2], [4, 2, 3]]
    assert rank.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 3, 4, 5]


def test_a_set_without_a_test_split_lends_a_fifth_of_its_images(toy, tmp_path):
    both = np.load(toy)
    np.savez(tmp_path / "one.npz", train_x=both["train_x"], train_y=both["train_y"])
    m = model.load(tiny(tmp_path))
    said = []
    work = Work(m, "tiny", probe("cpu", "float32", "off", 1), Common(data=str(tmp_path / "one.npz")), tmp_path)
    work = work.__class__(**{**work.__dict__, "screen": work.screen._replace(say=said.append)})
    train, test = finetune.splits(work, 0)
    assert (len(train.x), len(test.x)) == (32, 8) and "8 of its 40 images are held out" in said[-1]
    every = sorted(map(bytes, np.concatenate([train.x, test.x])))
    assert every == sorted(map(bytes, both["train_x"]))


WRONG = {
    "no labels": (["--data", "none.npz"], "finetune needs class labels, none.npz has none"),
    "one class": (["--data", "one.npz"], "the same two or more are needed"),
    "too few labels asked": (["--labels", "3"], "--labels 3: digits has 10 classes and 1438 labelled"),
    "too many": (["--labels", "5000"], "--labels 5000"),
    "no steps": (["--steps", "0"], "--steps 0: a number of at least 1"),
    "rate": (["--lr", "-1"], "--lr -1.0: a number of at least 0"),
    "batch": (["--batch-size", "0"], "--batch-size 0"),
}


@pytest.mark.parametrize("args, says", WRONG.values(), ids=WRONG.keys())
def test_a_mistake_is_one_line(args, says, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = np.zeros((4, 8, 8, 1), np.uint8)
    np.savez("none.npz", train_x=x, test_x=x)
    np.savez("one.npz", train_x=x, train_y=np.zeros(4, int), test_x=x, test_y=np.zeros(4, int))
    assert main(["eval", "finetune", "digits", "--out", "out", *args, *MACHINE]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("igebm: ") and says in lines[-1]
    assert list(Path("out").iterdir()) == []
