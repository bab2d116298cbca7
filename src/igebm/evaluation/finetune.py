"""The network made a classifier: its last layer replaced and all weights trained, against the same network from
scratch, each with and without flips and crops (Table 1).

What is compared is where training starts from and nothing else: the same images in the same order, the same number of
iterations, the same Adam with a cosine. The paper's case is unsupervised: an unconditional model. A conditional one is
read at its neutral condition, that of an unlabelled image; it has seen the labels before, and the result says so.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .. import ranks
from ..data import Images, Loader, centred
from ..data.images import if_there
from ..errors import Fault, InputError, NotApplicable, many
from ..model import Model, batches, build_image_net
from ..nets.image import ImageEnergy
from ..nets.layers import power_iteration
from ..report import figures
from .classes import in_turn, need_labels
from .numbers import mean, of_split, share
from .settings import Finetune
from .work import Work

RUNS = {
    "pretrained": (True, False),
    "pretrained_augmented": (True, True),
    "scratch": (False, False),
    "scratch_augmented": (False, True),
}
"""name: (starts from the model's weights, flips and crops)"""
POINTS = 20
CURVE = 1_000
"""test images behind each of a curve's 20 points; the final accuracy takes all"""


class Classifier(nn.Module):
    """Class scores, linear in the pooled features of an energy's network (y neutral). All weights are trained.

    The scores start at zero. `scale` brings the features to root mean square 1, so that one learning rate serves
    images of any size: summed pooling grows with the image.
    """

    scale: Tensor

    def __init__(self, net: ImageEnergy, classes: int, x: Float[Tensor, "b c h w"]):
        super().__init__()
        self.net = net
        with torch.no_grad():
            f = net.features(x)
        self.head = nn.Linear(f.shape[1], classes, device=f.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("scale", 1 / f.square().mean().sqrt().clamp(min=1e-12))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        return self.head(self.scale * self.net.features(x))


@dataclass(frozen=True)
class Task:
    """What the four runs share."""

    model: Model
    train: Images
    test: Images
    options: Finetune
    seed: int
    batch: int = 500
    """images at a time that are only looked at"""

    @property
    def crop(self) -> int:
        """An eighth of the image: 4 pixels of 32."""
        return min(self.model.shape.height, self.model.shape.width) // 8

    def classifier(self, pretrained: bool) -> Classifier:
        m = self.model
        net = build_image_net(m.preset, m.shape)  # its weights are drawn from torch's own generator, as dropout is
        if pretrained:
            net.load_state_dict(m.net.state_dict())
        x = pixels(self.train.x[: self.options.batch_size], m.device)
        return Classifier(net.to(m.device), len(self.train.classes), x)


def run(work: Work, options: Finetune) -> dict[str, Any]:
    """Numbers: the test accuracy of each of the four, and what pre-training gains.

    Their errors are those of the choice of test images alone: each of the four is one run, of one seed.
    """
    check(options)
    m = work.model
    train, test = splits(work, options.labels)
    task = Task(m, train, test, options, work.asked.seed, work.asked.batch)
    steps, limit = wanted_steps(options, len(train.x))
    if limit:
        steps = min(steps, fitting(task, limit))
        steps = steps if ranks.size() == 1 else int(ranks.gather(np.array([steps]))[0][0])  # as the first has it

    def one(part: slice) -> np.ndarray:
        before = part.start * steps
        tell = lambda k, shown: work.screen.step(before + k, len(RUNS) * steps, shown)
        with torch.random.fork_rng([m.device] if m.device.type == "cuda" else []):
            torch.manual_seed(task.seed)
            pretrained, augmented = list(RUNS.values())[part.start]
            curves, right = learn(task, pretrained, augmented, steps, tell)
            return np.concatenate([curves.ravel(), right])[None]

    at, n = checkpoints(steps), len(test.x)
    rows = ranks.rows(len(RUNS), 1, one)
    curves = rows[:, : 2 * len(at)].reshape(len(RUNS), 2, len(at))  # test accuracy, training loss
    if work.first:
        draw(work.out, at, curves[:, 0])
    right = dict(zip(RUNS, rows[:, 2 * len(at) :] == 1, strict=True))
    return {
        "accuracy": {name: share(right[name]) for name in RUNS},
        "gain_of_pretraining": gain(right["pretrained"], right["scratch"]),
        "gain_of_pretraining_augmented": gain(right["pretrained_augmented"], right["scratch_augmented"]),
        "pretraining": "without labels (the paper's case)" if not m.conditional else "with labels: not the paper's "
        "case, and no measure of what few labels can do; the network is read at its neutral condition",
        "labelled_images": len(train.x),
        "classes": len(train.classes),
        "steps": steps,
        "rerun": f"--steps {steps}",
        "passes": round(steps * options.batch_size / len(train.x), 2),
        "augmentation": f"mirrored with probability 1/2, moved by up to {task.crop} pixels",
        "parameters": sum(p.numel() for p in m.net.parameters()),
        "curves": {
            name: {"steps": at, "accuracy": row[0].round(5).tolist(), "loss": row[1].round(6).tolist()}
            for name, row in zip(RUNS, curves, strict=True)
        },
        "curve_images": min(CURVE, n),
        **of_split(test),
        "figures": ["finetune.png"],
    }  # fmt: skip


def gain(ours: Bool[np.ndarray, "n"], theirs: Bool[np.ndarray, "n"]) -> dict[str, Any]:
    """⟨d⟩ and its standard error sd(d) / √n, d = a - b being 1, 0 or -1 for each of n test images that both are asked;
    no error (None) where they are right on the same ones, which does not say how often they would differ."""
    d = mean(ours.astype(float) - theirs)
    return {"gain": d["mean"], "se": d["se"] or None}


def check(options: Finetune) -> None:
    for name, low in {"steps": 1, "minutes": 0, "batch_size": 1, "labels": 0, "lr": 0}.items():
        value = getattr(options, name)
        if value is not None and not low <= value < math.inf:
            raise InputError(f"--{name.replace('_', '-')} {value}: a number of at least {low} is wanted")


def splits(work: Work, labels: int) -> tuple[Images, Images]:
    """Training images (`labels` of them, the classes alike; 0: all) and test images, both with labels."""
    train = shuffled(labelled(work, "train"), work.asked.seed)
    test = if_there(lambda split: labelled(work, split), "test")
    if test is None:
        held = max(1, len(train.x) // 5)
        work.screen.say(f"{train.name} has no test split: {held} of its {len(train.x)} images are held out as one")
        test, train = taken(train, np.arange(held)), taken(train, np.arange(held, len(train.x)))
    if tuple(train.classes) != tuple(test.classes) or len(train.classes) < 2:
        kind = NotApplicable if len(train.classes) < 2 else InputError
        raise kind(
            f"{train.name} has {len(train.classes)} classes to train on and {len(test.classes)} in its test split; "
            "the same two or more are needed"
        )
    test = shuffled(test, work.asked.seed)
    if not labels:
        return train, test
    if not len(train.classes) <= labels <= len(train.x):
        raise InputError(
            f"--labels {labels}: {train.name} has {len(train.classes)} classes and {len(train.x)} labelled training "
            f"images; choose a number between"
        )
    assert train.y is not None
    return taken(train, in_turn(train.y)[0][:labels]), test


def labelled(work: Work, split: str) -> Images:
    images = work.images(split)
    if images.classes and images.y is not None and (images.y < 0).any():
        work.screen.say(
            f"{many(int((images.y < 0).sum()), 'image')} without a label of {images.name}'s {split} split are left out"
        )
        images = taken(images, np.flatnonzero(images.y >= 0))
    need_labels(images, "finetune")
    return images


def shuffled(images: Images, seed: int) -> Images:
    return taken(images, np.random.default_rng(seed).permutation(len(images.x)))


def taken(images: Images, index: np.ndarray) -> Images:
    y = None if images.y is None else images.y[index]
    return images._replace(x=np.asarray(images.x[index]), y=y, files=())


def wanted_steps(options: Finetune, n: int) -> tuple[int, float]:
    """Iterations, and the minutes that may cut them (0: none)."""
    if options.steps is not None:
        return options.steps, options.minutes or 0.0
    passes = max(300, math.ceil(30 * n / options.batch_size))
    return passes, 10.0 if options.minutes is None else options.minutes


def fitting(task: Task, minutes: float) -> int:
    """How many iterations fit in `minutes`, by a short trial on a network that is thrown away. Decided beforehand, so
    that the cosine has an end, the four are alike, and --steps with this number gives the same run."""
    trial, device = task.classifier(False), task.model.device
    update = updates(task, trial, True, lambda k: task.options.lr)
    warm = [seconds(lambda k=k: update(k), device) for k in range(13)][3:]
    looks = POINTS * seconds(lambda: hits(trial, task, CURVE), device)
    return max(1, int((60 * minutes - looks) / float(np.median(warm))))


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def updates(
    task: Task, classifier: Classifier, augmented: bool, rate: Callable[[int], float]
) -> Callable[[int], Tensor]:
    """update(k): iteration k (from 0) of Adam on the cross-entropy at the rate `rate(k)`; gives the loss."""
    o, device = task.options, task.model.device
    crop = task.crop if augmented else 0
    loader = Loader(task.train, o.batch_size, seed=task.seed, device=device, flip=augmented, crop=crop)
    generator = torch.Generator(device).manual_seed(task.seed)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=o.lr)

    def update(k: int) -> Tensor:
        x, y = loader(k * o.batch_size, generator)
        assert y is not None
        loss = F.cross_entropy(classifier(x), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.param_groups[0]["lr"] = rate(k)
        optimizer.step()
        power_iteration(classifier)
        return loss.detach()

    return update


def learn(
    task: Task, pretrained: bool, augmented: bool, steps: int, tell: Callable[[int, str], None]
) -> tuple[Float[np.ndarray, "2 points"], Bool[np.ndarray, "n"]]:
    """One of the four: test accuracy and mean training loss at each of the curve's points, and whether it is right on
    each test image in the end. Raises Fault on a loss that is not finite."""
    classifier = task.classifier(pretrained)
    cosine = lambda k: 0.5 * task.options.lr * (1 + math.cos(math.pi * k / steps))
    update = updates(task, classifier, augmented, cosine)
    device, at = task.model.device, checkpoints(steps)
    curve, losses, total, since = [], [], torch.zeros((), device=device), 0
    for k in range(steps):
        total += update(k)
        if k + 1 in at:
            loss = total.item() / (k + 1 - since)
            if not math.isfinite(loss):
                raise Fault(f"the classifier's loss is not finite at step {k + 1} ({loss}); lower --lr")
            curve.append(float(hits(classifier, task, CURVE).mean()))
            losses.append(loss)
            total, since = torch.zeros((), device=device), k + 1
            tell(k + 1, f"accuracy {curve[-1]:.3f}")
        elif k % 10 == 0:
            tell(k + 1, "")
    return np.array([curve, losses]), hits(classifier, task, len(task.test.x))


def checkpoints(steps: int) -> list[int]:
    """The steps at which a curve has its points: at most 20, the last one among them."""
    return sorted({round(steps * (i + 1) / POINTS) for i in range(POINTS)} - {0})


@torch.no_grad()
def hits(classifier: Classifier, task: Task, most: int) -> Bool[np.ndarray, "n"]:
    """Whether the classifier is right on each of the first `most` test images."""
    test = task.test
    assert test.y is not None
    classifier.eval()
    guess = [
        classifier(pixels(test.x[part], task.model.device)).argmax(1).cpu().numpy()
        for part in batches(min(most, len(test.x)), task.batch)
    ]
    classifier.train()
    return np.concatenate(guess) == test.y[:most]


def pixels(images: np.ndarray, device: torch.device) -> Float[Tensor, "b c h w"]:
    """uint8 (N, H, W, C) -> pixels at the centre of their bin."""
    x = torch.from_numpy(np.require(images, requirements=["C", "W"])).to(device)
    return centred(x.permute(0, 3, 1, 2))


def draw(out: Path, at: list[int], curves: Float[np.ndarray, "4 points"]) -> None:
    figure, ax = figures.axes(size=(5.0, 3.4))
    for (name, (pretrained, augmented)), curve in zip(RUNS.items(), curves, strict=True):
        colour, line = figures.COLOURS[0 if pretrained else 1], "-" if augmented else "--"
        ax[0, 0].plot(at, 100 * curve, line, color=colour, label=name.replace("_", ", "))
    ax[0, 0].set(xlabel="training step", ylabel="test accuracy (%)", title="the network as a classifier")
    ax[0, 0].legend(loc="lower right")
    figures.save(figure, out, "finetune")
