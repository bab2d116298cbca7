"""What a MODEL, a DATA and an IMAGE argument mean: opened, and checked against each other."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from . import data, model, presets, terminal
from .data import Images
from .data.decode import Head, Picture, decode, look
from .data.images import MixedSizes, to_test_on
from .errors import InputError
from .files import what_is
from .model import Model
from .presets import Machine, Preset, Sampler
from .runtime import Runtime, probe


def open_model(where: str, machine: Machine) -> tuple[Model, Runtime]:
    """A MODEL argument as a Model on the machine's device, in its sampling dtype."""
    model.find(where)  # a wrong name is said before the machine is looked at
    runtime = probe(machine.device, machine.dtype, machine.compile, machine.threads)
    return model.load(where, runtime.device, runtime.dtype, runtime.compiled), runtime


def stepped(m: Model, sampler: Sampler) -> Preset:
    """The model's preset with what `sampler` says otherwise of its chain; what is far from the model's own is said."""
    preset = presets.stepped(m.preset, sampler)
    for name, value in presets.chain(preset).items():
        own = getattr(m.preset, name)
        if own and value and not 0.1 <= value / own <= 10 and name != "clip":
            terminal.say(f"{presets.flag(name)} {value:g} is far from the {own:g} that {m.name} was trained with")
    return preset


def load_split(
    spec: str, split: str | None, m: Model, data_dir: Path | None, skip_bad: bool = False, resize: bool = True
) -> Images:
    """A data set in the model's image size and channels; without a split named, the test split where there is one.

    Images of another size or number of channels are converted, or refused without `resize`.
    """
    # What its own training had to leave out is left out here.
    skip_bad = skip_bad or (spec == m.preset.data and bool(m.facts.get("skip_bad", False)))
    options: dict[str, Any] = dict(data_dir=data_dir, skip_bad=skip_bad, say=terminal.say)
    if resize:
        options["channels"] = m.shape.channels
        if m.shape.height == m.shape.width:
            options["image_size"] = m.shape.height
    load = lambda split: data.load(spec, split, **options)
    try:
        images = load(split) if split is not None else to_test_on(spec, load, terminal.say)
    except MixedSizes as error:
        raise InputError(f"{error.what}; --resize makes them the model's size") from None
    got, want = images.x.shape[1:], (m.shape.height, m.shape.width, m.shape.channels)
    if got != want:
        size = lambda shape: f"{shape[0]}x{shape[1]} with {shape[2]} channel{'s' if shape[2] > 1 else ''}"
        how = "give images of that size" if resize else "--resize makes them so"
        raise InputError(f"{spec} has images of {size(got)}, {m.name} takes {size(want)}; {how}")
    return images


def read_picture(path: Path, m: Model) -> np.ndarray:
    """An image file as one of the model's images, uint8 (1, H, W, C): short side resized, central square cut out."""
    if (there := what_is(path)) != "file":
        what = f"{path} is a {there}" if there != "nothing" else f"there is no file {path}"
        raise InputError(f"{what}; give a PNG, JPEG or another picture")
    if m.shape.height != m.shape.width:
        raise InputError(f"{m.name} is of images {m.shape.height}x{m.shape.width}; only square ones can be read here")
    picture, side = Picture(str(path), lambda: path), m.shape.height
    try:
        x = decode(picture, side, m.shape.channels)[None]
    except Exception as error:  # Pillow raises a dozen kinds for damaged files, without a common base
        raise InputError(f"{path} cannot be read as a picture: {' '.join(str(error).split())[:120]}") from error
    w, h = picture_size(path) or (side, side)
    if (w, h) != (side, side):
        terminal.say(f"{path}: {w}x{h} pixels, {'cut to the middle and ' if w != h else ''}made {side}x{side}")
    return x


def picture_size(path: Path) -> tuple[int, int] | None:
    """Width and height of an image file as it is meant to be looked at; None where it does not tell."""
    head = look(Picture(str(path), lambda: path))
    return head.size if isinstance(head, Head) else None


def labels_for(at: str, images: Images, m: Model) -> np.ndarray | None:
    """The labels to take energies at; None for the minimum over all, or an unconditional model. `at`: auto, label or
    min."""
    why = ""
    if not m.conditional:
        why = f"{m.name} is unconditional"
    elif images.y is None or not matches(images, m):
        known = m.shape.classes or tuple(latent.name for latent in m.shape.latents)
        why = f"{m.name} knows {', '.join(known[:5])}{', ...' if len(known) > 5 else ''}, the data do not"
    elif images.classes and (images.y < 0).any():
        why = f"{(images.y < 0).sum()} images of {images.name} have no label"
    if at == "label" and why:
        raise InputError(f"--at label: {why}; use --at min")
    return None if why or at == "min" else images.y


def matches(images: Images, m: Model) -> bool:
    """Whether the data's labels, or latents, are the model's."""
    return tuple(images.classes) == m.shape.classes and tuple(images.latents) == m.shape.latents


def tally(names: Iterable[str]) -> str:
    """Names with how often each is there, the most frequent first: "cat (3), dog (1)"."""
    return ", ".join(f"{name} ({count})" for name, count in Counter(names).most_common())
