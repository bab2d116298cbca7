"""Who says what class an image is of, and by which features two images are alike: the classifier of the data, and the
Inception network where it is at hand."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from ..data import MissingSplit, data_folder
from ..data.images import if_there
from ..errors import InputError
from . import classifier
from .classifier import extractor, trained
from .features import Extractor, describe, inception
from .work import Work


@dataclass(frozen=True)
class Judge:
    """A classifier that was trained on the data's training images, apart from the model that is judged."""

    extractor: Extractor
    accuracy: float | None
    """on the data's test images; None without, or where they have no labels"""

    @property
    def about(self) -> dict[str, Any]:
        return {"name": self.extractor.name, "test_accuracy": self.accuracy}

    def classes(self, images: UInt8[np.ndarray, "n h w c"]) -> Int64[np.ndarray, "n"]:
        """The class of each image."""
        return describe(self.extractor, images)[1].argmax(1) if len(images) else np.empty(0, np.int64)


def judge_of(work: Work) -> Judge | None:
    """The classifier of the data, trained once and kept in the data folder; None, which is said, where the data have
    no train split, or no classes to tell apart."""
    try:
        train = work.images("train")
    except MissingSplit as missing:
        if work.first:
            work.screen.say(f"{missing}: no classifier says what class an image is of")
        return None
    if train.latents or len(train.classes) < 2 or train.y is None or not (train.y >= 0).any():
        if work.first:
            work.screen.say(f"{train.name} has no labels: no classifier says what class an image is of")
        return None
    kept = data_folder(work.asked.data_dir, work.screen.say)
    most = work.asked.classifier_steps
    steps = None if most is None else min(most, classifier.steps_for(train))
    found = trained(train, if_there(work.images, "test"), kept, steps, device=work.model.device, screen=work.screen)
    return Judge(extractor(found, work.model.device), found.facts["accuracy"])


def features_of(work: Work) -> Extractor | None:
    """The Inception network, or the data's classifier where that cannot be had; None, which is said, without both.
    Raises InputError where an --inception file that was named is not the network."""
    try:
        return inception(work.asked.inception, work.asked.data_dir, work.model.device, work.screen)
    except InputError as error:
        if work.asked.inception is not None:
            raise
        if work.first:
            work.screen.say(f"{error}: features are those of a classifier")
    judge = judge_of(work)
    return None if judge is None else judge.extractor
