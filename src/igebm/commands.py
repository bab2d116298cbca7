"""What `igebm sample`, `energy` and `data check` do, with their arguments parsed."""

import csv
import io
import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from . import __version__, data, forecast, model, presets, terminal
from .arguments import ConceptsOf, DataCheck, EnergyOf, Evaluate, RolloutOf, Sample
from .data import Images
from .errors import MOST, Fault, InputError, many, within
from .evaluation.classes import lowest
from .files import (
    results_folder,
    what_is,
    writable_file,
    writable_folder,
    write_array,
    write_json,
    write_text,
)
from .inputs import labels_for, load_split, matches, open_model, stepped, tally
from .model import Model
from .report.plots import sample_picture, write_png
from .runtime import probe
from .training.state import read_checkpoint


def sample(asked: Sample) -> Path:
    """`igebm sample`: the folder with samples.png, samples.npy, labels.npy and sample.json."""
    for flag, value, low in (("--n", asked.n, 1), ("--batch", asked.batch, 1), ("--steps", asked.steps, 0)):
        within(flag, value, low, MOST)
    within("--seed", asked.seed, 0, 2**31 - 1)
    if asked.data is not None and asked.init != "data":
        raise InputError(f"--data {asked.data}: chains start from it with --init data; leave it out, or give both")
    m, _ = open_model(asked.model, asked.machine)
    preset = stepped(m, asked.chain)
    start, labels = starts(asked, m)
    taken = None
    if start is not None and labels is None and m.shape.classes:
        labels = lowest(m, start, asked.batch)
        taken = [m.shape.classes[i] for i in labels]
        told = f"{asked.data or m.preset.data} has no labels that {m.name} knows"
        terminal.say(f"{told}: each goes on as the class of its least energy: {tally(taken)}")
    steps = asked.steps
    if steps is None:
        steps = m.preset.sample_steps if asked.init == "noise" else m.preset.chain_steps
    n = asked.n if start is None else len(start)
    with results_folder(asked.out, Path("samples") / m.name) as out:
        with terminal.bar("sampling") as screen:
            images, y = m.sample(
                n,
                label=asked.label if labels is None else None,
                steps=steps,
                start=start,
                labels=labels,
                seed=asked.seed,
                batch=asked.batch,
                progress=lambda done, total: screen.step(done, total),
                kernel=model.build_kernel(preset),
            )
        write_png(out / "samples.png", sample_picture(images, y, m.shape.classes))
        write_array(out / "samples.npy", images)
        write_array(out / "labels.npy", np.full(n, -1, np.int64) if y is None else y)
        about = {
            "model": str(asked.model),
            "model_step": m.step,
            "weights": "ema",
            "n": n,
            "label": asked.label,
            "labels_taken": taken,
            "classes": list(m.shape.classes),
            "init": asked.init,
            "chain": {"steps": steps} | presets.chain(preset),
            "seed": asked.seed,
            "dtype": str(m.dtype).removeprefix("torch."),
            "compiled": m.compiled,
            "versions": {"igebm": __version__, "torch": torch.__version__, "python": platform.python_version()},
        }
        write_json(out / "sample.json", about)
    terminal.say(
        f"{many(n, 'sample')} by {many(steps, 'step')} from {asked.init}, with the averaged weights of step {m.step}"
    )
    return out


def starts(asked: Sample, m: Model) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Where the chains of `igebm sample` start: images (None: noise) and their labels or latents (None: they have none
    that the model knows, or --label says them)."""
    wanted = None if asked.label is None else m.condition(asked.label)
    if asked.init == "noise":
        return None, None
    if asked.init == "buffer":
        x, y = from_buffer(Path(asked.model))
    else:
        spec = asked.data or m.preset.data
        images = load_split(spec, None, m, asked.data_dir)
        order = np.random.default_rng(asked.seed).permutation(len(images.x))[: asked.n if wanted is None else None]
        x, y = np.asarray(images.x[order]), None
        if m.conditional and matches(images, m) and images.y is not None:
            y = images.y[order]
        elif wanted is not None:
            y = np.broadcast_to(wanted, (len(x), *wanted.shape)).copy()
    if wanted is not None and y is not None and m.shape.latents:
        y = np.broadcast_to(wanted, y.shape).copy()  # hardly any start has these very values: all go on under them
    elif wanted is not None and y is not None:
        x, y = x[y == wanted], y[y == wanted]
    if len(x) == 0:
        raise InputError(
            f"there is nothing to start from in the {asked.init} for label {asked.label}; use --init noise"
        )
    if len(x) < asked.n:
        terminal.say(f"the {asked.init} holds {many(len(x), 'such image')}, fewer than the {asked.n} asked for")
    x, y = x[: asked.n], None if y is None else y[: asked.n]
    return x, y


def from_buffer(folder: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """The images and labels in a run's replay buffer."""
    if what_is(folder) != "folder":
        raise InputError(
            f"--init buffer needs a run folder with its checkpoint, and {folder} is none; use --init noise"
        )
    saved = read_checkpoint(folder, terminal.say)["buffer"]
    return saved["x"].permute(0, 2, 3, 1).numpy(), None if saved["y"] is None else saved["y"].numpy()


def energy(asked: EnergyOf) -> None:
    """`igebm energy`: one energy an image, to a file or as CSV to stdout."""
    within("--batch", asked.batch, 1, MOST)
    if asked.out is not None and asked.out.suffix not in (".csv", ".npy"):
        raise InputError(f"--out {asked.out}: give a name that ends in .csv or .npy")
    if asked.out is not None:
        writable_file(asked.out)  # before the work
    m, _ = open_model(asked.model, asked.machine)
    images = load_split(asked.data, asked.split, m, asked.data_dir, asked.skip_bad)
    labels = labels_for(asked.at, images, m)
    with terminal.bar("energies") as screen:
        parts = []
        for part in model.batches(len(images.x), asked.batch):
            parts.append(m.energy(np.asarray(images.x[part]), None if labels is None else labels[part], asked.batch))
            screen.step(part.stop, len(images.x))
    e = np.concatenate(parts)
    if not np.isfinite(e).all():
        raise Fault(f"{(~np.isfinite(e)).sum()} of {len(e)} energies are not finite; the model is broken")
    if asked.out is not None and asked.out.suffix == ".npy":
        write_array(asked.out, e)
    elif asked.out is not None:
        write_text(asked.out, as_csv(e, images))
    where = "at its label" if labels is not None else "minimum over labels" if m.conditional else "unconditional"
    if asked.json or asked.out is None:
        rows = [row | {"energy": float(value)} for row, value in zip(named(images), e, strict=True)]
        about = {"model": str(asked.model), "data": images.name, "split": images.split, "at": where, "energies": rows}
        about |= {"mean": float(e.mean()), "standard_deviation": float(e.std())}
        terminal.result(about, asked.json, lambda: as_csv(e, images).removesuffix("\n"))
    terminal.say(f"{len(e)} energies ({where}): mean {e.mean():.4f}, standard deviation {e.std():.4f}")


def as_csv(e: np.ndarray, images: Images) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["index", *(["file"] if images.files else []), "label", "energy"])
    for row, value in zip(named(images), e, strict=True):
        rows.writerow([*row.values(), f"{value:.6g}"])
    return text.getvalue()


def named(images: Images) -> list[dict[str, int | str]]:
    """What says which image it is: its number, its file where it has one, its label."""
    file = lambda i: {"file": images.files[i]} if images.files else {}
    return [{"index": i} | file(i) | {"label": label_text(images, i)} for i in range(len(images.x))]


def label_text(images: Images, i: int) -> str:
    """An image's label as a word, or its latents as numbers; nothing where it has none."""
    if images.y is None:
        return ""
    if images.latents:
        return " ".join(f"{value:.4g}" for value in images.y[i])
    return "" if images.y[i] < 0 else images.classes[images.y[i]]


def check(asked: DataCheck) -> None:
    """`igebm data check`: a page of text, or JSON."""
    if asked.series or data.sources.are_series(asked.data):
        if asked.image_size or asked.channels or asked.skip_bad:
            raise InputError(f"{asked.data}: --image-size, --channels and --skip-bad are for images")
        found = data.check_series(asked.data, terminal.say)
        terminal.result(found, asked.json, lambda: "\n".join(terminal.pretty(found)))
        return
    with terminal.bar("looking") as screen:
        found = data.check(
            asked.data,
            data_dir=asked.data_dir,
            image_size=asked.image_size or None,
            channels=asked.channels or None,
            skip_bad=asked.skip_bad,
            say=screen.say,
            step=screen.step,
        )
    terminal.result(found, asked.json, lambda: "\n".join(terminal.pretty(found)))


def evaluate(name: str, asked: Evaluate) -> int:
    """`igebm eval`: one experiment, or all; its numbers are printed, then the folder with the rest."""
    within("--batch", asked.common.batch, 1, MOST)
    within("--seed", asked.common.seed, 0, 2**31 - 1)
    if asked.common.classifier_steps is not None:
        within("--classifier-steps", asked.common.classifier_steps, 1, MOST)
    from . import ranks
    from .evaluation.work import Work, folder_of, run_all, run_one

    m, runtime = open_model(asked.model, asked.machine)
    with ranks.together():
        out = writable_folder(asked.common.out or folder_of(asked.model))
        work = Work(m, asked.model, runtime, asked.common, out)
        if name == "all":
            failed = run_all(work, asked.options.quick)
            found = results(out, failed) if work.first else {}
        else:
            failed = []
            found = run_one(work, name, asked.options)
        if work.first:
            every = found if name == "all" else {"numbers": found}
            shown = {k: shortened(about.get("numbers", about)) for k, about in every.items()}
            terminal.result(found, asked.common.json, lambda: "\n".join([*terminal.pretty(shown), f"folder: {out}"]))
    return 1 if failed else 0


def results(out: Path, failed: Sequence[str] = ()) -> dict:
    """What lies in an evaluation's folder: NAME.json by its name, or why there is none (NAME.failed.json, or
    NAME.skipped.json). Of those that `failed` just now a NAME.json is of an earlier attempt, and not given."""
    from .evaluation.settings import EXPERIMENTS

    last = lambda name: ["json", "failed.json"] if name in failed else ["failed.json", "json", "skipped.json"]
    paths = {name: [out / f"{name}.{end}" for end in last(name)] for name in EXPERIMENTS}
    there = {name: path for name, both in paths.items() for path in both if path.is_file()}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in there.items()}


def shortened(numbers: dict) -> dict:
    """Without long lists and matrices, which are for the file."""
    short = {k: shortened(v) if isinstance(v, dict) else v for k, v in numbers.items()}
    long = lambda v: isinstance(v, list) and (len(v) > 12 or any(isinstance(row, list) for row in v))
    return {k: v for k, v in short.items() if v != {} and not long(v)}


def rollout(asked: RolloutOf) -> int:
    """`igebm eval rollout`: models of time series beside each other."""
    from .evaluation import rollout as experiment
    from .evaluation.work import folder_of, record_plain

    if not asked.models:
        raise InputError("give at least one model of time series, such as balls-langevin")
    for name in ("length", "n", "average"):
        within(f"--{name}", getattr(asked.options, name), 1, MOST)
    within("--seed", asked.seed, 0, 2**31 - 1)
    models = [forecast.load(where) for where in asked.models]
    runtime = probe("cpu", "float32", "off", asked.threads)
    out = writable_folder(asked.out or folder_of(asked.models[0]))
    start = time.perf_counter()
    with terminal.bar("rollout") as screen:
        found = experiment.run(models, asked.options, out, asked.data, asked.seed, screen)
    about = record_plain(out, "rollout", asked.options, found, asked.seed, runtime, time.perf_counter() - start)
    rows = [
        {"model": kind, "seeds": row["seeds"]}
        | {f"after {h}": f"{v:.4g}" for h, v in zip(row["horizons"], row["mse"], strict=True)}
        for kind, row in found["kinds"].items()
    ]
    still, horizons = found["standing_still"]["mse"], next(iter(found["kinds"].values()))["horizons"]
    rows.append({"model": "standing still"} | {f"after {h}": f"{still[h - 1]:.4g}" for h in horizons})
    head = "squared error per feature, in shares of its variance, after so many states:"
    terminal.result(about, asked.json, lambda: f"{head}\n{terminal.table(rows)}\nfolder: {out}")
    return 0


def concepts(asked: ConceptsOf) -> int:
    """`igebm eval concepts`: models of a sprite's factors, combined."""
    from .evaluation import concepts as experiment
    from .evaluation.work import record_plain

    if not asked.models:
        raise InputError("give at least one model of a sprite's factor, such as dsprites-scale")
    if asked.options.n < 1 or asked.batch < 1:
        raise InputError(f"--n {asked.options.n} --batch {asked.batch}: give at least 1 of each")
    within("--seed", asked.seed, 0, 2**31 - 1)
    within("--steps", asked.options.steps, 1, MOST)
    opened = [open_model(where, asked.machine) for where in asked.models]
    out = writable_folder(asked.out or Path("evaluation") / "concepts")
    start = time.perf_counter()
    with terminal.bar("concepts") as screen:
        found = experiment.run([m for m, _ in opened], asked.options, out, asked.seed, asked.batch, screen)
    found |= {"steps": {m.name: m.step for m, _ in opened}}
    seconds = time.perf_counter() - start
    about = record_plain(out, "concepts", asked.options, found, asked.seed, opened[0][1], seconds)
    told = [(row["models"], " + ".join(row["factors"]), row["errors"], row) for row in reversed(found["rows"])]
    told.append(
        (0, "blind guess", {k: v for k, v in found["blind"].items() if not isinstance(v, dict)}, found["blind"])
    )
    rows = []
    for models, of, every, parts in told:
        rows.append({"models": models, "of": of} | every)
        rows += [{"models": "", "of": f"  {k}, {parts[k]['n']}"} | parts[k] for k in ("seen", "held_out") if k in parts]
    rows = [{k: v for k, v in row.items() if k != "n"} for row in rows]
    terminal.result(about, asked.json, lambda: f"{terminal.table(rows)}\nfolder: {out}")
    return 0
