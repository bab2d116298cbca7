"""Any input whatever: settings, flags, arrays, folders, metadata and checkpoints made up by hypothesis. Each gives a
valid result or InputError, in one line; no other exception comes out.
"""

import contextlib
import io
import json
import os
import tempfile
import warnings
from dataclasses import fields, replace
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from fuzz import RUNTIME, TINY
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from safetensors.torch import save_file

from igebm import cli, model, presets
from igebm.data import MissingSplit, check, load
from igebm.errors import InputError
from igebm.presets import Preset
from igebm.runtime import probe
from igebm.shapes import Shape, from_dict
from igebm.training import state as states

NAMES = [field.name for field in fields(Preset)]
LARGE = st.sampled_from([2**31, 2**63, 2**64, 10**400, -(10**400)])
SIMPLE = st.none() | st.booleans() | st.integers() | LARGE | st.floats() | st.text(max_size=20)
JSON = st.recursive(
    SIMPLE, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


@pytest.fixture(autouse=True, scope="module")
def as_users_have_it():
    """Without the tests' type checks, which would be the first to complain."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def refused(error: InputError) -> None:
    """A refusal is one line."""
    assert str(error) and "\n" not in str(error)


# Settings and flags


@settings(max_examples=150)
@given(JSON | st.dictionaries(st.sampled_from(NAMES), JSON, max_size=3))
def test_settings_from_any_json(values):
    try:
        preset = presets.from_dict(values)
    except InputError as error:
        return refused(error)
    again = json.loads(json.dumps(presets.to_dict(preset)))
    assert presets.from_dict(again) == preset
    assert all(getattr(preset, name) == value for name, value in values.items())


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_refuses_what_is_of_another_kind(name):
    """JSON has no whole numbers that are True, and none that are too large to be one."""
    had = getattr(Preset(), name)
    for value in (None, [], {}, 10**400, 10**5000, float("nan"), float("inf"), True, 1.0, "\0"):
        if type(value) is type(had) and (value == had or isinstance(had, (bool, str))):
            continue  # such a value may be one
        if isinstance(had, float) and value in (1.0, True) and not isinstance(value, bool):
            continue
        with pytest.raises(InputError):
            Preset(**{name: value})


@settings(max_examples=150)
@given(
    st.text(max_size=12) | st.from_regex(r"(\d{1,3}d? ?){1,6}", fullmatch=True) | st.sampled_from(["1" * 5000, "²d"])
)
def test_blocks_from_any_text(text):
    try:
        blocks = presets.parse_blocks(text)
    except InputError as error:
        return refused(error)
    assert 1 <= len(blocks) <= 100 and all(1 <= multiple <= 64 for multiple, _ in blocks)
    assert presets.parse_blocks(" ".join(f"{n}d" if down else str(n) for n, down in blocks)) == blocks


TEXT = st.text(st.characters(exclude_characters="\0"), max_size=12)
WORDS = TEXT | st.sampled_from(["-1", "0,5", "1e999", "nan", "--", "-", "=", "9" * 5000, "\udcff", "[", "None", "True"])
FLAGS = st.sampled_from([presets.flag(name) for name in [*NAMES, "device", "threads", "out", "resume", "no_flip"]])


@settings(max_examples=25)
@given(st.lists(st.tuples(FLAGS, WORDS).map(list) | WORDS.map(lambda word: [word]), max_size=3))
def test_training_flags_with_any_text(pairs):
    args = [word for pair in pairs for word in pair]
    try:
        asked = cli._parse_train(args, presets.named(presets.DEFAULT))
    except SystemExit as end:
        assert not end.code and {"-h", "--help"} & set(args)
    except InputError as error:
        refused(error)
    else:
        assert isinstance(asked.settings, Preset)


@settings(max_examples=60)
@given(st.sampled_from(["presets", "models", "data list", "data", "eval", "nothing", ""]), st.lists(WORDS, max_size=3))
def test_commands_with_any_text(command, words):
    """Exit code 0 or 2; with 2 one line on stderr and nothing on stdout."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.main([*command.split(), *words])
        except SystemExit as end:
            code = end.code
    assert code in (0, 2)
    if code == 2:
        assert out.getvalue() == "" and err.getvalue().startswith("igebm: ") and err.getvalue().count("\n") == 1


NUMBERS = ["-1", "9223372036854775808", "1" + "0" * 400]


@pytest.mark.parametrize("flag", ["--n", "--batch", "--steps", "--seed", "--threads"])
@pytest.mark.parametrize("value", NUMBERS, ids=["negative", "2^63", "10^400"])
def test_numbers_of_sample_out_of_all_range(flag, value, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["sample", "digits", "--n", "1", "--steps", "1", "--device", "cpu", flag, value]) == 2
    assert capsys.readouterr().err.startswith("igebm: ") and not list(tmp_path.iterdir())


def test_a_label_with_thousands_of_digits_is_unknown():
    with pytest.raises(InputError, match="unknown label"):
        model.load("digits").label("1" * 5000)


# Arrays


KINDS = hnp.scalar_dtypes() | hnp.array_dtypes(max_size=2)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)
PIXELS = hnp.arrays(
    np.uint8, st.tuples(st.integers(0, 3), st.integers(1, 4), st.integers(4, 5), st.sampled_from([1, 3]))
)
ANY = hnp.arrays(KINDS, SHAPES) | st.sampled_from([np.array([None, "a"]), np.zeros((2, 3, 3, 1), "V0"), np.array("")])
KEYS = ["train_x", "test_x", "x", "images", "arr_0", "x_val", "train_y", "test_y", "y", "arr_1", "classes", "latents"]


@settings(max_examples=150)
@given(
    st.dictionaries(st.sampled_from(KEYS), ANY | PIXELS, max_size=4), PIXELS | ANY, st.sampled_from(["train", "test"]),
    st.none() | st.integers(1, 9), st.booleans(),
)  # fmt: skip
def test_arrays_of_any_kind(arrays, pixels, split, image_size, compressed):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "any.npz")
        warnings.simplefilter("ignore")  # that names of fields need a newer format
        (np.savez_compressed if compressed else np.savez)(path, **(arrays | {f"{split}_x": pixels}))
        np.save(Path(folder, "any.npy"), pixels)
        for where in ("any.npz", "any.npy"):
            try:
                images = load(str(Path(folder, where)), split, image_size=image_size)
            except InputError as error:
                refused(error)
                continue
            n, h, w, c = images.x.shape
            assert images.x.dtype == np.uint8 and n == len(pixels) and c in (1, 3)
            assert image_size is None or (h, w) == (image_size, image_size)
            if images.latents:
                assert images.y.shape == (n, len(images.latents)) and np.isfinite(images.y).all()
            elif images.y is not None:
                assert images.y.shape == (n,) and images.y.dtype == np.int64
                assert not n or (images.y.min() >= -1 and images.y.max() < len(images.classes))
            assert all(name.isprintable() or "\xa0" <= max(name) for name in images.classes)


def test_another_split_that_is_no_array_of_images_does_not_matter(tmp_path):
    x = np.zeros((2, 4, 4, 1), np.uint8)
    np.savez(tmp_path / "a.npz", train_x=x, test_x=np.float32(1), train_y=[0, 1])
    assert load(str(tmp_path / "a.npz")).y.tolist() == [0, 1]
    with pytest.raises(InputError, match="no images|cannot tell"):
        load(str(tmp_path / "a.npz"), "test")


def test_names_of_classes_that_are_no_text_can_be_shown(tmp_path, capsys):
    """A lone surrogate, an escape sequence: shown as \\x..., and the set is checked without a fault."""
    x = np.zeros((2, 4, 4, 1), np.uint8)
    np.savez(tmp_path / "a.npz", train_x=x, train_y=[0, 1], classes=["\ud800", "\x1b[2J"])
    assert load(str(tmp_path / "a.npz")).classes == ("\\ud800", "\\x1b[2J")
    assert cli.main(["data", "check", str(tmp_path / "a.npz")]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_latents_beyond_float32_are_refused(tmp_path):
    x = np.zeros((2, 4, 4, 1), np.uint8)
    np.savez(tmp_path / "a.npz", train_x=x, train_y=np.array([[1e300], [0.0]]))
    with pytest.raises(InputError, match="1 of the train latents .* too large for float32"):
        load(str(tmp_path / "a.npz"))


# Folders


def png(size=(5, 4), mode="RGB") -> bytes:
    content = io.BytesIO()
    Image.new(mode, size, 7 if mode != "RGB" else (1, 2, 3)).save(content, "png")
    return content.getvalue()


CONTENTS = {
    "picture": png(), "grey": png(mode="L"), "line": png((300, 1)), "empty": b"", "text": b"no picture",
    "cut": png()[:40], "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(%pipe%id) run",
}  # fmt: skip
PARTS = st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=8)
PARTS |= st.sampled_from(["train", "test", "val", "a", "__MACOSX", ".hidden"])
FILES = st.tuples(
    st.lists(PARTS.filter(lambda part: part not in (".", "..")), max_size=2).map(tuple),
    PARTS, st.sampled_from([".png", ".PNG", ".gif", ".txt", ""]), st.sampled_from([*CONTENTS, "pipe", "nowhere"]),
)  # fmt: skip


@settings(max_examples=60)
@given(st.lists(FILES, max_size=6), st.booleans(), st.none() | st.just(4))
def test_folders_of_any_content(entries, skip_bad, image_size):
    with tempfile.TemporaryDirectory() as root:
        for folders, name, extension, kind in entries:
            path = Path(root, *folders, name + extension)
            if os.path.lexists(path):
                continue  # to write to a pipe would wait for a reader
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                if kind == "pipe":
                    os.mkfifo(path)
                elif kind == "nowhere":
                    path.symlink_to(Path(root, "nowhere"))
                else:
                    path.write_bytes(CONTENTS[kind])
            except OSError:
                continue  # a name that is taken, or too long for this disk
        for split in ("train", "test"):
            try:
                images = load(root, split, skip_bad=skip_bad, image_size=image_size)
            except MissingSplit:
                continue
            except InputError as error:
                refused(error)
                continue
            assert images.x.dtype == np.uint8 and len(images.x) > 0
            assert images.y is None or (len(images.y) == len(images.x) and images.y.max() < len(images.classes))


def test_a_postscript_file_is_no_picture_and_is_not_run(tmp_path):
    """Pillow would hand it to an interpreter, whatever its name is."""
    (tmp_path / "a.png").write_bytes(CONTENTS["postscript"])
    with pytest.raises(InputError, match=r"a\.png \(not an image\)"):
        load(str(tmp_path))


def test_pipes_and_broken_links_among_pictures_are_named_and_not_waited_for(tmp_path):
    (tmp_path / "a.png").write_bytes(CONTENTS["picture"])
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"2 of 3 .* link\.png \(No such file.*pipe\.png \(neither a file nor a link"):
        load(str(tmp_path))
    assert len(load(str(tmp_path), skip_bad=True).x) == 1


def test_a_picture_of_one_line_does_not_grow_beyond_what_is_asked_for(tmp_path):
    """60,000 x 1 pixels at 1024: its central pixel, not a picture of 61 million columns."""
    x = np.zeros((1, 60_000, 3), np.uint8)
    x[0, 29_999:30_001] = 200
    Image.fromarray(x).save(tmp_path / "a.png")
    assert check(str(tmp_path), image_size=1024)["splits"]["train"]["shape"] == [1024, 1024, 3]
    with pytest.raises(InputError, match="at most 4096"):
        load(str(tmp_path), image_size=10**6)


# Models and checkpoints


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A folder with a checkpoint and a model of a tiny untrained network."""
    folder = tmp_path_factory.mktemp("saved")
    state = states.start(TINY, Shape(1, 8, 8, ("a", "b")), RUNTIME, {})
    state.buffer.write(torch.arange(4), torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 0, 1]))
    states.save_checkpoint(folder, state, RUNTIME)
    states.save_model(folder / "model.safetensors", state)
    return folder


ABOUT = ["settings", "shape", "classes", "latents", "series", "step", "facts", "sha256"]


@settings(max_examples=60)
@given(st.data())
def test_metadata_of_any_kind(saved, data):
    """One or two entries of a model's metadata, or of its settings, replaced by any JSON."""
    tensors, about = model.read(saved / "model.safetensors")
    for key in data.draw(st.lists(st.sampled_from(ABOUT), min_size=1, max_size=2)):
        about[key] = data.draw(JSON)
    if isinstance(about.get("settings"), dict):
        about["settings"] |= data.draw(st.dictionaries(st.sampled_from(NAMES), SIMPLE, max_size=2))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "m.safetensors")
        try:
            text = json.dumps(about)
        except ValueError:
            return  # a number that JSON cannot have been written with
        save_file(tensors, path, {"igebm": text})
        try:
            m = model.load(path)
        except InputError as error:
            return refused(error)
        assert m.energy(np.zeros((1, 8, 8, 1), np.uint8)).shape == (1,) or m.shape.latents


def test_a_small_file_that_asks_for_a_gigantic_network_takes_no_memory(saved, tmp_path):
    """--width 4096 --blocks "64 64 64": 10^12 weights; refused for the shapes that the file holds."""
    tensors, about = model.read(saved / "model.safetensors")
    about["settings"] |= {"width": 4096, "blocks": "64 64 64"}
    save_file(tensors, tmp_path / "m.safetensors", {"igebm": json.dumps(about)})
    with pytest.raises(InputError, match="this network's is|of another network"):
        model.load(tmp_path / "m.safetensors")


PARTS_OF = ["settings", "shape", "classes", "net", "averages", "optimizer", "buffer", "counters", "runtime", "facts"]
TENSORS = st.sampled_from([torch.zeros(()), torch.zeros(3), torch.zeros(5, 1, 8, 8, dtype=torch.uint8)])


@settings(max_examples=60)
@given(st.data())
def test_checkpoints_of_any_content(saved, data):
    """One part of a checkpoint, or one entry of a part, replaced by anything that can be saved without code."""
    found = torch.load(saved / states.CHECKPOINT, weights_only=True)
    part, value = data.draw(st.sampled_from(PARTS_OF)), data.draw(JSON | TENSORS)
    inner = found[part]
    if isinstance(inner, dict) and inner and data.draw(st.booleans()):
        inner[data.draw(st.sampled_from(sorted(inner)))] = value
    else:
        found[part] = value
    with tempfile.TemporaryDirectory() as folder:
        torch.save(found, Path(folder, states.CHECKPOINT))
        try:
            read = states.read_checkpoint(Path(folder), pytest.fail)
            probe("cpu", before=read["runtime"])
            preset, shape = presets.from_dict(read["settings"]), from_dict(read, Path(folder))
            if preset.width > 16 or preset.buffer_size > 1000:
                return  # it fits no longer, but would take long to find out
            state = states.start(replace(preset, blocks="1d"), shape, RUNTIME, read["facts"])
            states.restore(state, read, Path(folder))
        except InputError as error:
            refused(error)


def test_a_checkpoint_that_was_compiled_in_a_way_unheard_of(saved, tmp_path):
    """From a later version, say: refused by name, not looked up."""
    found = torch.load(saved / states.CHECKPOINT, weights_only=True)
    for way in ("off", "quick", "tomorrow's", 3, None):
        torch.save(found | {"runtime": found["runtime"] | {"compiled": way}}, tmp_path / states.CHECKPOINT)
        with pytest.raises(InputError, match="no igebm checkpoint: it lacks runtime.compiled"):
            states.read_checkpoint(tmp_path, pytest.fail)


def test_a_checkpoint_without_one_of_its_parts_names_it(saved, tmp_path):
    """C16: averages or buffer that a file lacks are named, never made up."""
    whole = torch.load(saved / states.CHECKPOINT, weights_only=True)
    for part in PARTS_OF:
        torch.save({key: value for key, value in whole.items() if key != part}, tmp_path / states.CHECKPOINT)
        with pytest.raises(InputError, match=rf"no igebm checkpoint: it lacks {part}"):
            states.read_checkpoint(tmp_path, pytest.fail)
