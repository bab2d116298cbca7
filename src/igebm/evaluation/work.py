"""What an experiment works with (model, data, where results go), and what it leaves: NAME.json beside its figures."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import hub, model, presets, ranks, terminal
from ..circumstances import circumstances
from ..data import Images, centred
from ..errors import Fault, InputError, NotApplicable, out_of_memory
from ..files import write_json
from ..inputs import load_split
from ..model import Model
from ..plain import plain
from ..presets import Sampler
from ..report.found import at, is_result, read_json
from ..runtime import Runtime
from ..samplers import Kernel
from ..terminal import Screen, Step
from .settings import EXPERIMENTS, QUICK, QUICK_CLASSIFIER, Common


@dataclass(frozen=True)
class Work:
    """A model under evaluation; every experiment gets one."""

    model: Model
    where: str
    """the MODEL argument: a run folder, a file or a bundled name"""
    runtime: Runtime
    asked: Common
    out: Path
    screen: Screen = Screen(terminal.say, lambda *_, **__: None)

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks: rank 0."""
        return ranks.rank() == 0

    def images(self, split: str | None = None, most: int = 0, spec: str | None = None) -> Images:
        """A split of the model's data set, or of `spec`, in the model's size and channels (default: test where there
        is one). With `most`, a seeded choice of as many images, in a seeded order.

        The data that a model was trained on are made as training made them, and so is `spec`; another --data is
        refused where its images are of another size, unless --resize is given."""
        trained, asked = self.model.preset.data, spec or self.asked.data or self.model.preset.data
        resize = self.asked.resize or spec is not None or asked == trained
        images = load_split(asked, split, self.model, self.asked.data_dir, self.asked.skip_bad, resize)
        if not most:
            return images
        order = np.random.default_rng(self.asked.seed).permutation(len(images.x))[:most]
        y = None if images.y is None else images.y[order]
        return images._replace(x=np.asarray(images.x[order]), y=y, files=())

    def generator(self, *key: int) -> torch.Generator:
        """Random numbers of the part `key` of this experiment: the same whichever process does the part."""
        seed = np.random.SeedSequence([self.asked.seed, *key]).generate_state(1, np.uint64)[0]
        return torch.Generator(self.model.device).manual_seed(int(seed >> 1))

    def tensor(self, images: np.ndarray) -> Tensor:
        """uint8 (N, H, W, C) -> float (N, C, H, W) on the model's device, at the centre of each pixel's bin."""
        return centred(self.bytes(images))

    def bytes(self, images: np.ndarray) -> Tensor:
        """uint8 (N, H, W, C) -> uint8 (N, C, H, W) on the model's device."""
        return torch.from_numpy(np.require(images, requirements=["C", "W"])).to(self.model.device).permute(0, 3, 1, 2)


def meter(step: Step, total: int) -> Callable[..., None]:
    """Progress through several loops as one count: each call of `advance(k=1)` adds k of `total` to the bar."""
    done = 0

    def advance(k: int = 1) -> None:
        nonlocal done
        done += k
        step(min(done, total), total)

    return advance


def kernel(m: Model, sampler: Sampler) -> Kernel:
    """The model's chain with what `sampler` says otherwise."""
    return model.build_kernel(presets.stepped(m.preset, sampler))


def chain_settings(m: Model, sampler: Sampler) -> dict[str, float]:
    """The chain's step size, noise and clip, for the record."""
    return presets.chain(presets.stepped(m.preset, sampler))


def labels_in_turn(m: Model, n: int, label: str | None = None) -> np.ndarray | None:
    """n labels: one class, or all in turn (latents: drawn); None for an unconditional model."""
    return m.conditions(n, label)


def names_of(m: Model, y: np.ndarray | None) -> list[str]:
    """What stands beside a picture: its class, or its latents; nothing for an unconditional model."""
    if y is None:
        return []
    return [m.shape.classes[c] for c in y] if m.shape.classes else [" ".join(f"{v:.2g}" for v in row) for row in y]


def folder_of(where: str) -> Path:
    """Where the evaluation of MODEL goes without --out: into the run folder, or into evaluation/NAME.

    NAME is OWNER--NAME[@REVISION] of hf:, FOLDER-FILE of a file (RUN-snapshots-FILE of a snapshot): many a file is
    called model.safetensors.
    """
    if where.startswith("hf:"):
        at = hub.parse(where)
        name = at.name + (f"@{at.revision}" if at.revision else "")
        return Path("evaluation") / name.replace("/", "--")
    path = Path(where)
    if path.is_dir() and model.find(where).parent == path:  # not a folder that is called as a bundled model is
        return path / "evaluation"
    if not path.is_file():
        return Path("evaluation") / model.called(where)
    *above, folder = path.resolve().parent.parts
    parts = [*(above[-1:] if folder == "snapshots" else []), folder.strip("/"), model.called(where)]
    return Path("evaluation") / "-".join(part for part in parts if part)


def basis(work: Work, options: Any) -> dict[str, Any]:
    """What decides an experiment's numbers, as NAME.json has it."""
    m, asked = work.model, work.asked
    about = {"name": m.name, "step": m.step, "sha256": m.sha256, "preset": m.facts.get("preset"), "data": m.preset.data}
    return {
        "model": about,
        "options": plain(asdict(options)),
        "data": asked.data or m.preset.data,
        "seed": asked.seed,
        "resize": asked.resize,
        "skip_bad": asked.skip_bad,
        "classifier_steps": asked.classifier_steps,
    }


def differences(had: dict[str, Any], now: dict[str, Any]) -> str:
    """In what a result differs from what is asked for, given the `basis` of each: "seed 0, now 1"; nothing where it
    is the same. A model's name alone makes no difference."""
    values = lambda about: {
        "model's step": at(about, "model", "step"),
        "data": at(about, "data"),
        "seed": at(about, "seed"),
        **{presets.flag(k): at(about, k) for k in ("resize", "skip_bad", "classifier_steps")},
        **{presets.flag(k): at(about, "options", k) for k in now["options"]},
    }
    before, after = values(had), values(now)
    said = [f"{k} {in_words(before[k])}, now {in_words(v)}" for k, v in after.items() if v != before[k]]
    if at(had, "model", "sha256") != now["model"]["sha256"]:
        said.insert(0, "other weights" if at(had, "model", "sha256") else "weights that it does not name")
    return "; ".join(said[:3]) + (f"; and {len(said) - 3} more" if len(said) > 3 else "")


def in_words(value: Any) -> str:
    return "not set" if value is None else " ".join(map(str, value)) if isinstance(value, list) else str(value)


def record(work: Work, name: str, options: Any, numbers: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Write NAME.json: the numbers, and all that they depend on; an earlier attempt's failure no longer stands beside
    it. Returns what was written."""
    about = {
        "experiment": name,
        "numbers": numbers,
        **basis(work, options),
        "batch": work.asked.batch,
        "processes": ranks.size(),
        "seconds": round(seconds, 1),
        # An experiment may have a dtype of its own.
        "machine": circumstances(work.runtime) | {k: numbers[k] for k in ["dtype"] if k in numbers},
    }
    if work.first:
        write_json(work.out / f"{name}.json", about)
        forget(work, name)
    return about


def record_plain(
    out: Path, name: str, options: Any, numbers: dict[str, Any], seed: int, runtime: Runtime, seconds: float
) -> dict[str, Any]:
    """Write NAME.json of an experiment on several models. Returns what was written."""
    about = {"experiment": name, "numbers": numbers, "options": asdict(options), "seed": seed}
    about = about | {"seconds": round(seconds, 1), "machine": circumstances(runtime)}
    write_json(out / f"{name}.json", about)
    return about


def run_one(work: Work, name: str, options: Any) -> dict[str, Any]:
    """One experiment, with a bar, timed and recorded. Raises MemoryError, saying what to lower, where a GPU's memory
    is not enough either."""
    from importlib import import_module

    module = import_module(f".{name.replace('-', '_')}", __package__)
    start = time.perf_counter()
    with terminal.bar(name) if work.first else nullcontext(work.screen) as screen:
        try:
            numbers = module.run(replace(work, screen=screen), options)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            raise MemoryError("out of memory; lower --batch") from error
    return record(work, name, options, numbers, time.perf_counter() - start)


def run_all(work: Work, quick: bool = False) -> list[str]:
    """Every experiment, the cheapest first: skips what is done of this model in the way asked for now, leaves out
    what does not apply to it, goes on after one fails. Returns the names that failed."""
    failed = []
    if quick and work.asked.classifier_steps is None:
        work = replace(work, asked=replace(work.asked, classifier_steps=QUICK_CLASSIFIER))
    for name, kind in EXPERIMENTS.items():
        options = kind(**QUICK.get(name, {})) if quick else kind()
        if not work.asked.again and done(work, name, options):
            continue
        try:
            run_one(work, name, options)
        except NotApplicable as error:
            work.screen.say(f"{name}: skipped: {error}")
            note(work, name, "skipped", str(error))
        except (InputError, Fault, OSError, MemoryError) as error:
            if isinstance(error, MemoryError) and ranks.size() > 1:
                raise  # it may be this process's alone, for which the others would wait without end
            failed.append(name)
            work.screen.say(f"{name}: {' '.join(str(error).split())}")
            note(work, name, "failed", str(error))
        else:
            work.screen.say(f"{name}: done")
    return failed


def note(work: Work, name: str, end: str, why: str) -> None:
    """Write NAME.failed.json or NAME.skipped.json, instead of an earlier attempt's."""
    if work.first:
        forget(work, name)
        write_json(work.out / f"{name}.{end}.json", {"experiment": name, "why": why})


def forget(work: Work, name: str) -> None:
    """Take away why an earlier attempt gave no result."""
    for end in ("failed", "skipped"):
        (work.out / f"{name}.{end}.json").unlink(missing_ok=True)


def done(work: Work, name: str, options: Any) -> bool:
    """Whether NAME.json is what is asked for now; says so, or in what it differs."""
    path = work.out / f"{name}.json"
    found = read_json(path, [], needed=False)
    why = differences(found, basis(work, options)) if is_result(found) else "damage" if path.exists() else "nothing"
    same = ranks.agree(work.first and not why)  # the first process's word: it writes these files while others look
    if same:
        work.screen.say(f"{name}: done before; --again does it anew")
    elif why != "nothing":
        work.screen.say(f"{name}: done anew, for the result that is there is of {why}")
    return same
