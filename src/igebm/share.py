"""What `igebm push` and `igebm pull` do: a model with its card, to others and from them.

What travels is README.md (the card), model.safetensors, preset.json, evaluation/NAME.json and samples.png, and nothing
else: no pickle is written, fetched or opened, and JSON, picture and weights are read before they are passed on.
"""

import json
import re
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import hub, model, presets, pretrained, terminal
from .arguments import Pull, Push
from .data.decode import Picture, decode
from .data.images import shown
from .data.named import NAMED
from .errors import InputError, many
from .evaluation.rollout import summary
from .evaluation.settings import EXPERIMENTS
from .evaluation.work import folder_of
from .files import new_folder, what_is, writable_folder, write_json, write_text
from .files import whole as write_whole
from .inputs import open_model
from .report.found import at, measured_at, number, parameters, read_json
from .report.plots import sample_picture, write_png
from .report.tables import measure, uncertainty
from .shapes import SeriesShape, Shape
from .shapes import from_dict as shape_from_dict

RESULTS = (*EXPERIMENTS, "rollout", "concepts")
SMALL = ("README.md", "preset.json", "samples.png", *(f"evaluation/{name}.json" for name in RESULTS))
"""what may lie beside the weights"""
LARGEST = 32 * 2**20
"""bytes of each of those"""


def push(asked: Push) -> str:
    """`igebm push`: writes the tree into a folder, or uploads it; returns where it is."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,63}", asked.licence):
        raise InputError(
            f"--licence {asked.licence!r}: give a short name as the hub has them, such as mit or apache-2.0"
        )
    folder = Path(asked.to).expanduser() if is_folder(asked.to, asked.to_folder) else None
    if folder and asked.public:
        raise InputError(f"--public is for a repository on the hub, and {asked.to} is a folder")
    at = None if folder else hub.parse(asked.to)
    if at and at.revision:
        raise InputError(f"{asked.to}: leave out @{at.revision}; igebm push writes to the repository's main branch")
    path = model.find(asked.model)
    weights = model.whole_file(path)  # once: a run that goes on writes others there
    tensors, about = model.parsed(weights, path)
    if folder and what_is(folder) == "folder" and path.resolve().parent == folder.resolve():
        raise InputError(f"{folder} is the model's own folder; give another, or owner/name")
    if at:
        hub.ready_to_push()
    there, its_card = hub.found_at(at) if at else in_folder(Path(asked.to).expanduser())
    if foreign := not_ours(there, its_card):
        place, kind = (folder / foreign, "folder") if folder else (f"{foreign} of {asked.to}", "repository")
        raise InputError(f"{place} would be replaced, and igebm push did not write it; give another {kind}")
    if folder and asked.picture is None:  # else drawing one takes its time
        writable_folder(folder, "give another")
    data = about["settings"].get("data", "")
    if Path(data).is_absolute():
        terminal.say(f"the weights and preset.json say where the data were on this machine: {shown(data)}")
    name = model.called(asked.model) if path.name != "model.safetensors" else path.resolve().parent.name
    name = model.called(asked.model) if asked.model.startswith("hf:") else name
    picture = picture_of(asked, about, path)
    if folder:
        called = folder.resolve().name
        write_tree(writable_folder(folder, "give another"), asked, name, called, path, weights, tensors, about, picture)
        return str(folder)
    assert at is not None
    with tempfile.TemporaryDirectory(prefix="igebm-push-") as made:
        write_tree(Path(made), asked, name, f"hf:{at.name}", path, weights, tensors, about, picture)
        said = f"{name}, step {about['step']}"
        return hub.push(Path(made), at.name, asked.public, said, ["evaluation/*.json", "samples.png"])


def is_folder(to: str, said: bool) -> bool:
    """Whether a target is a folder: --to-folder, a path that starts or ends as one, or one that is there."""
    return said or to.startswith((".", "/", "~")) or to.endswith("/") or what_is(Path(to)) == "folder"


def in_folder(folder: Path) -> tuple[list[str], str]:
    """Which of push's files are in a folder, and the text of its README.md."""
    path = folder / "README.md"
    card = path.read_text(encoding="utf-8", errors="replace") if what_is(path) == "file" else ""
    return [name for name in (*SMALL, hub.MODEL) if what_is(folder / name) != "nothing"], card


def not_ours(there: Sequence[str], card: str) -> str | None:
    """Of the files `there`, one that push would write over, where `card`, the README.md, is of no earlier push."""
    if card.startswith("---\n") and 'library_name: "igebm"' in card:
        return None
    return next((name for name in (*SMALL, hub.MODEL) if name in there), None)


def write_tree(
    folder: Path,
    asked: Push,
    name: str,
    where: str,
    path: Path,
    weights: bytes,
    tensors: dict[str, Any],
    about: dict[str, Any],
    picture: np.ndarray | None,
) -> None:
    """The files that travel, each whole or not at all, the card first and the weights last."""
    results = results_of(asked.model, (name, model.called(asked.model)), about["step"])
    preset = preset_of(path, about)
    told = card(name, where, asked.licence, tensors, about, command_of(path, preset), results, picture is not None)
    write_text(folder / "README.md", told)  # first: by it a push that did not come to its end is known as ours
    if results or what_is(folder / "evaluation") == "folder":
        evaluation = writable_folder(folder / "evaluation")
        for old in RESULTS:
            (evaluation / f"{old}.json").unlink(missing_ok=True)
        for experiment, result in results.items():
            write_json(evaluation / f"{experiment}.json", result)
    (folder / "samples.png").unlink(missing_ok=True)
    if picture is not None:
        write_png(folder / "samples.png", picture)
    write_json(folder / "preset.json", preset)
    with write_whole(folder / hub.MODEL) as temporary:
        temporary.write_bytes(weights)


def results_of(where: str, names: Sequence[str], step: int) -> dict[str, Any]:
    """The model's evaluations, where igebm eval leaves them; those of another model or of another step are left out,
    and this is said."""
    folder, troubles, results = folder_of(where), [], {}
    for name in RESULTS:
        found = read_json(folder / f"{name}.json", troubles, needed=False)
        if not isinstance(found, dict) or not isinstance(found.get("numbers"), dict):
            continue
        alone, (ours, of_step) = isinstance(found.get("model"), dict), measured_at(found, names)
        if not ours:
            troubles.append(f"{folder / name}.json is of other models, none of which is called {names[0]}")
        elif of_step != step and (alone or of_step is not None):
            troubles.append(f"{folder / name}.json is of step {of_step}, the model of step {step}")
        else:
            results[name] = found if alone else of_one(found, names, step)
    for trouble in troubles:
        terminal.say(f"left out: {trouble}")
    return results


def of_one(result: dict[str, Any], names: Sequence[str], step: int) -> dict[str, Any]:
    """A result of several models (rollout, concepts) with what it says of the one that is called by one of `names`, and
    `model` as results of one model have it."""
    told = result["numbers"]
    kept = {key: v for key, v in told.items() if key not in ("models", "kinds", "names", "steps", "rows")}
    if isinstance(told.get("models"), list):
        entry = next(entry for entry in told["models"] if at(entry, "name") in names)
        name, mse = entry["name"], entry.get("mse")
        kept["models"] = [entry]
        if isinstance(mse, list) and mse and all(number(v) is not None for v in mse):
            kept["kinds"] = {name: summary([np.array(mse)])}  # what was told of a kind may be of several models
    else:
        name = next(name for name in names if name in told["names"])
        factor, rows = told["names"][name], told.get("rows")
        kept["names"] = {name: factor}
        kept["rows"] = [row for row in rows if factor in (at(row, "factors") or ())] if isinstance(rows, list) else []
    return result | {"model": {"name": name, "step": step}, "numbers": kept}


def preset_of(path: Path, about: dict[str, Any]) -> dict[str, Any]:
    """preset.json of the model's run, or what the weights say of it."""
    told = read_json(path.parent / "preset.json", [], needed=False) if path.name == hub.MODEL else None
    if isinstance(told, dict) and told.get("settings") == about["settings"]:
        return told
    return {key: about.get(key) for key in ("settings", "facts", "shape", "classes", "latents", "series")}


def command_of(path: Path, preset: dict[str, Any]) -> str:
    """What the model was trained by: as its run folder says, or a bundled model's card."""
    if path.parent == pretrained.FOLDER:
        return pretrained.card(path.stem)["command"]
    told = preset.get("command")
    return shlex.join(map(str, told)) if isinstance(told, list) else ""


def picture_of(asked: Push, about: dict[str, Any], path: Path) -> np.ndarray | None:
    """The card's picture (H, W, 3): --picture, or the run's last samples, or samples drawn now; None for a model that
    draws no images."""
    if asked.picture is not None:
        return picture_at(asked.picture)
    there = sorted((path.parent / "samples").glob("*.png")) if path.name == hub.MODEL else []
    there = [p for p in there if p.stem.startswith("noise-")] or [p for p in there if p.stem.isdecimal()]
    if there:
        return picture_at(there[-1])
    if "baseline" in about or not isinstance(shape_from_dict(about, path), Shape):
        return None
    m, _ = open_model(asked.model, asked.machine)
    n = min(40, 2 * m.net.condition) if m.shape.classes and m.conditional else 16
    with terminal.bar("samples for the card") as screen:
        images, y = m.sample(n, progress=lambda done, total: screen.step(done, total))
    return sample_picture(images, y, m.shape.classes)


def picture_at(path: Path) -> np.ndarray:
    if what_is(path) != "file":
        raise InputError(f"no picture {shown(path)}: give a PNG, JPEG or another picture")
    try:
        return decode(Picture(str(path), lambda: path), None, 3)
    except Exception as error:  # Pillow raises a dozen kinds for damaged files, without a common base
        raise InputError(f"{shown(path)} cannot be read as a picture: {hub.first_line(error)}") from error


def pull(asked: Pull) -> Path:
    """`igebm pull`: the folder with the model, its card and its numbers, as a run folder has them."""
    here = is_folder(asked.source, False)
    if here:
        at, source = None, Path(asked.source)
        if what_is(source) != "folder":
            raise InputError(f"no folder {source}; give owner/name, or a folder that igebm push has written")
        there = sorted(p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file())
    else:
        at, there = hub.listed(hub.parse(asked.source))
        source = None
    name = at.name.partition("/")[2] if at else Path(asked.source).resolve().name
    left = [n for n in there if n not in (hub.MODEL, *SMALL, ".gitattributes", ".gitignore")]
    if hub.MODEL not in there:
        listed = ", ".join(left[:5]) + (", ..." if len(left) > 5 else "")
        raise InputError(
            f"{asked.source} holds no {hub.MODEL}" + (f" but {listed}" if left else "") + "; other formats, pickles "
            "among them, are not opened"
        )
    if asked.out is not None and what_is(asked.out) == "folder" and any(asked.out.iterdir()):
        raise InputError(f"{asked.out} is there and holds something; choose another --out")
    fetch = (lambda n: hub.fetched(at, n)) if at else (lambda n: (source or Path()) / n)
    weights = model.whole_file(path := fetch(hub.MODEL))
    model.parsed(weights, path)  # before anything is written
    small = {n: content(n, fetch(n)) for n in SMALL if n in there}
    out = new_folder(Path("models") / name) if asked.out is None else writable_folder(asked.out)
    for n, value in small.items():
        writable_folder((out / n).parent)
        if isinstance(value, np.ndarray):
            write_png(out / n, value)
        else:
            write_text(out / n, value)
    with write_whole(out / hub.MODEL) as temporary:
        temporary.write_bytes(weights)
    if left:
        terminal.say(f"left where they are: {', '.join(map(shown, left[:5]))}{', ...' if len(left) > 5 else ''}")
    return out


def content(name: str, path: Path) -> str | np.ndarray:
    """A small file as what its name says: text, JSON as text, or a picture. Raises InputError for anything else."""
    if path.stat().st_size > LARGEST:
        raise InputError(f"{name} has {path.stat().st_size:,} bytes, more than any that igebm push writes")
    if name.endswith(".png"):
        return picture_at(path)
    try:
        text = path.read_text(encoding="utf-8")
        if name.endswith(".json"):
            json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is damaged ({hub.first_line(error)}); nothing was written") from error
    return text


# The card


def card(
    name: str,
    where: str,
    licence: str,
    tensors: dict[str, Any],
    about: dict[str, Any],
    command: str,
    results: dict[str, Any],
    picture: bool,
) -> str:
    """README.md: what the model is, from what and how it was made, how to use it, and what was measured on it."""
    shape, settings, facts = shape_from_dict(about, Path(name)), about["settings"], about["facts"]
    kind = about.get("baseline")
    data = settings.get("data", "")
    if series := isinstance(shape, SeriesShape):
        of = f"the next state of time series of {many(len(shape.features), 'feature')}"
    else:
        of = f"images of {shape.height}x{shape.width} with {many(shape.channels, 'channel')}"
    front = {
        "license": licence,
        "library_name": "igebm",
        "pipeline_tag": "time-series-forecasting" if series else "unconditional-image-generation",
        "tags": ["igebm", "safetensors", "arxiv:1903.08689"]
        + ([] if kind else ["energy-based-model", "mcmc", "langevin"]),
    }
    if dataset := on_hub(data):
        front["datasets"] = [dataset]
    what = f"a {kind} model, a baseline" if kind else "an energy-based model"
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items()), "---", "", f"# {plain(name)}", ""]
    lines += [f"This is {what} of {of}, trained by igebm after Du & Mordatch, *Implicit Generation and Generalization "
              "with Energy-Based Models* ([arXiv:1903.08689](https://arxiv.org/abs/1903.08689))."]  # fmt: skip
    if picture:
        lines += ["", "![Samples](samples.png)"]
    lines += ["", *usage(where, shape, kind), "", "## The model", ""]
    since = told if isinstance(told := facts.get("data_since"), list) else []
    first, now = facts.get("data"), since[-1] if since else facts.get("data")
    items = lambda of: f", {at(of, 'images'):,} items" if isinstance(at(of, "images"), int) else ""
    facts_told = {
        "parameters": f"{parameters({name: t.shape for name, t in tensors.items()}):,}",
        "trained on": spelled(data) + items(now),
        "begun on": f"{spelled(at(first, 'name'))}{items(first)}, until iteration {plain(at(since[0], 'step'))}"
        if since
        else "",
        "iterations": f"{about['step']:,}",
        "preset": plain(facts.get("preset", "")),
        "seed": plain(facts.get("seed", "")),
        "igebm": plain(about.get("igebm", "")),
        "command": code(command),
        "conditional on": condition(shape, settings),
        "made from": plain(facts.get("converted", "")),
    }
    lines += table([(key, value) for key, value in facts_told.items() if value])
    lines += ["", "All settings are in `preset.json`; the main ones:", ""]
    lines += table([(code(key), plain(value)) for key, value in main_settings(settings, kind).items()])
    lines += ["", "## Numbers", ""]
    if not results:
        lines += ["None were measured on this model with `igebm eval`, or none are passed on with it.", ""]
    for experiment, result in results.items():
        told = [f"`{experiment}` ({plain(result.get('date') or at(result, 'machine', 'date') or 'no date')}; "
                f"[all of it](evaluation/{experiment}.json)):", ""]  # fmt: skip
        said = result["numbers"].get("warnings")
        doubts = [f"- {plain(line)}" for line in said] if isinstance(said, list) else []
        lines += told + table(list(numbers(result["numbers"]).items())) + [""] + (doubts and [*doubts, ""])
    lines += ["## What to keep in mind", "", *caveats(shape, settings, kind), ""]
    return "\n".join(lines)


def usage(where: str, shape: Shape | SeriesShape, kind: str | None) -> list[str]:
    sh = lambda line: ["Where igebm is installed:", "", "```sh", line, "```"]
    if kind:
        return sh(f"igebm eval ood MODEL --baselines {terminal.quoted(where)}")
    if isinstance(shape, SeriesShape):
        return sh(f"igebm forecast {terminal.quoted(where)} DATA\nigebm eval rollout {terminal.quoted(where)}")
    return [
        *sh(f"igebm sample {terminal.quoted(where)} --n 16"),
        "",
        "```python",
        "import igebm",
        "",
        f"ebm = igebm.load({json.dumps(where)})",
        "x = ebm.sample(16)  # float (16, {}, {}, {}) in [0, 1]".format(*shape.image),
        "e = ebm.energy(x)  # (16,): lower is more like the training data",
        "```",
    ]


def main_settings(settings: dict[str, Any], kind: str | None) -> dict[str, Any]:
    """What the network, the chain and the objective were."""
    if kind:
        return settings
    preset = presets.from_dict(settings)
    names = ["network", "width", "objective", "alpha", "lr", "batch", "sampler", "chain_steps", "step_size", "noise"]
    if preset.network == "image":
        names += ["clip", "sample_steps", "blocks", "stem", "activation", "spectral", "buffer_size", "restart", "ema"]
    return {name: settings[name] for name in sorted(names) if name in settings}


def caveats(shape: Shape | SeriesShape, settings: dict[str, Any], kind: str | None) -> list[str]:
    if kind or isinstance(shape, SeriesShape):
        return ["- Nobody has checked it on other data than it was trained on."]
    told = [
        "- Energies are known up to a constant, and compare images of this size, read as this model's data were.",
        "- Samples are chains of a stated number of steps from noise; longer ones may look otherwise.",
        "- Nobody has checked it on other data than it was trained on.",
    ]
    if settings.get("conditional") and shape.classes:
        told += ["- The class with the least energy is a guess: conditional training does not make a classifier."]
    return told


def numbers(found: dict[str, Any], before: str = "", most: int = 12) -> dict[str, str]:
    """Single numbers of a result, with their standard errors, by the words on the way to them; at most `most`."""
    told: dict[str, str] = {}
    for key, value in found.items():
        name = f"{before}{str(key).replace('_', ' ')}"
        pair = measure(value) if isinstance(value, dict) else (value, None)
        if key in ("paper", "figures", "classifier", "chain", "curves"):
            continue
        if pair is None:
            told |= numbers(value, f"{name}, ")
        elif isinstance(pair[0], int | float) and not isinstance(pair[0], bool):
            told[plain(name)] = f"{pair[0]:.4g}{uncertainty(value) if isinstance(value, dict) else ''}"
    return dict(list(told.items())[:most]) if not before else told


def condition(shape: Shape | SeriesShape, settings: dict[str, Any]) -> str:
    if isinstance(shape, SeriesShape):
        return f"{many(shape.past, 'state')} before"
    if not settings.get("conditional", False):
        return ""
    names = shape.classes or tuple(latent.name for latent in shape.latents)
    few = ", ".join(names[:10]) + (f", ... ({len(names)})" if len(names) > 10 else "")
    return plain(few)


def on_hub(data: str) -> str:
    """The hub's name of a data set, or nothing."""
    if data in NAMED:
        return NAMED[data].repository
    return "/".join(data[3:].split("/")[:2]) if re.fullmatch(r"hf:[\w.-]+/[\w.-]+(/[\w.-]+)?", data) else ""


def spelled(data: Any) -> str:
    """A data set's name; of a path on somebody's machine the last part."""
    name = str(data)
    return plain(Path(name).name if Path(name).is_absolute() else name)


def table(rows: list[tuple[str, str]]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows)]


def plain(value: Any) -> str:
    """A value as text that Markdown takes for text: names of classes and files are not ours."""
    return re.sub(r"([\\`*_{}\[\]<>#|!])", r"\\\1", " ".join(shown(str(value)).split()))


def code(text: str) -> str:
    """Words as Markdown's code, on one line whatever they are: commands and settings come from a model's files."""
    line = shown(" ".join(text.replace("`", "").replace("|", "").split()))
    return f"`{line}`" if line else ""
