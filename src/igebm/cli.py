"""The command line: what each command is called and takes. No logic: it parses, calls, and turns errors into one line.

Heavy imports wait inside the functions, so that --help answers at once.
"""

import contextlib
import io
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import tyro
from tyro.conf import OmitArgPrefixes, Positional

from . import __version__, presets, terminal
from .baselines import settings as baselines
from .errors import Fault, InputError, unknown
from .evaluation.settings import EXPERIMENTS, All, Common, Concepts, Rollout
from .limits import processes
from .presets import Machine, Preset, Trainer

Options = TypeVar("Options")


@dataclass(frozen=True)
class Train:
    """Train an energy-based model; with no arguments, on handwritten digits in about two minutes.

    Leaves in its folder: preset.json, metrics.jsonl, samples/*.png, checkpoint.pt (for --resume),
    snapshots/*.safetensors and model.safetensors (the averaged weights, for use).
    """

    settings: OmitArgPrefixes[Preset]
    machine: OmitArgPrefixes[Trainer]
    preset: Positional[str] = presets.DEFAULT
    """a name of `igebm presets`"""
    out: Path | None = None
    """run folder; default: the next free runs/PRESET"""
    resume: Path | None = None
    """go on with the run in this folder; --steps is the total"""
    init_from: str | None = None
    """start from this model's weights, with a fresh optimiser and buffer"""
    data_dir: Path | None = None
    """where named data sets are kept; default: $IGEBM_DATA or ~/.cache/igebm"""
    skip_bad: bool = False
    """leave out images that cannot be read, instead of refusing the folder"""
    dry_run: bool = False
    """print the settings and what they cost as JSON, and end"""
    json: bool = False
    """how the run ended, as JSON instead of the folder's name"""


@dataclass(frozen=True)
class Sample:
    """Draw samples from a model: samples.png, samples.npy (uint8, N x H x W x C), labels.npy, sample.json."""

    machine: OmitArgPrefixes[Machine]
    model: Positional[str]
    """a run folder, a .safetensors file, a name of `igebm models`, or hf:owner/name"""
    n: int = 64
    """how many"""
    label: str | None = None
    """one class for all, by name or number; default: all classes in turn"""
    steps: int | None = None
    """chain steps; default: the preset's sample_steps from noise, its chain_steps from buffer or data"""
    init: Literal["noise", "buffer", "data"] = "noise"
    """where chains start: uniform noise, the run's replay buffer, or test images"""
    data: str | None = None
    """with --init data: the data set; default: the one the model was trained on"""
    seed: int = 0
    out: Path | None = None
    """folder; default: the next free samples/MODEL"""
    batch: int = 128
    """chains at a time"""
    data_dir: Path | None = None
    """where named data sets are kept"""


@dataclass(frozen=True)
class EnergyOf:
    """The energy of each image of a data set (lower: more like the training data), as CSV or .npy."""

    machine: OmitArgPrefixes[Machine]
    model: Positional[str]
    """a run folder, a .safetensors file, a name of `igebm models`, or hf:owner/name"""
    data: Positional[str]
    """a data set's name, hf:owner/name, a folder of images, or an .npz"""
    out: Path | None = None
    """a .csv or .npy file; default: CSV to stdout"""
    split: Literal["test", "train"] | None = None
    """default: test where there is one, otherwise train"""
    at: Literal["auto", "label", "min"] = "auto"
    """a conditional model's energy at each image's label, or the minimum over labels; auto: at the label where
    classes match"""
    batch: int = 256
    data_dir: Path | None = None
    """where named data sets are kept"""
    skip_bad: bool = False
    """leave out images that cannot be read"""
    json: bool = False
    """the table and its mean as JSON to stdout, beside what --out asks for"""


@dataclass(frozen=True)
class Presets:
    """The named settings and where in the paper they belong."""

    json: bool = False
    """all settings, as JSON"""


@dataclass(frozen=True)
class Models:
    """The models that come with the package; with a NAME, its card: data, command, machine, what it can and cannot
    do."""

    name: Positional[str | None] = None
    json: bool = False
    """as JSON"""


@dataclass(frozen=True)
class DataList:
    """The named data sets and where they are."""

    data_dir: Path | None = None
    """where named data sets are kept; default: $IGEBM_DATA or ~/.cache/igebm"""
    json: bool = False
    """as JSON"""


@dataclass(frozen=True)
class DataCheck:
    """Read a data set as training would and say what is in it."""

    data: Positional[str]
    """a data set's name, hf:owner/name, a folder of images, or an .npz"""
    image_size: int = 0
    """resize to this many pixels; 0: as the data are"""
    channels: int = 0
    """1 or 3; 0: as the data are"""
    skip_bad: bool = False
    """leave out images that cannot be read"""
    data_dir: Path | None = None
    """where named data sets are kept"""
    json: bool = False
    """as JSON"""


@dataclass(frozen=True)
class Evaluate(Generic[Options]):
    """An experiment of the paper on one model: NAME.json and its figures as PNG and PDF."""

    options: OmitArgPrefixes[Options]
    common: OmitArgPrefixes[Common]
    machine: OmitArgPrefixes[Machine]
    model: Positional[str]
    """a run folder, a .safetensors file, a name of `igebm models`, or hf:owner/name"""


@dataclass(frozen=True)
class RolloutOf:
    """Rollouts of one or several models of time series beside each other: rollout.json, rollout.png, rollout.gif."""

    options: OmitArgPrefixes[Rollout]
    models: Positional[tuple[str, ...]]
    """run folders, .safetensors files or names of `igebm models`; models of one preset count as its seeds"""
    out: Path | None = None
    """folder; default: evaluation in the run folder, or evaluation/MODEL, of the first model"""
    data: str | None = None
    """series to evaluate on; default: those that the first model was trained on"""
    seed: int = 0
    threads: int = 0
    """CPU threads; 0: as many as there are cores"""
    json: bool = False
    """rollout.json to stdout, instead of its numbers as text"""


@dataclass(frozen=True)
class ConceptsOf:
    """Models that each know one factor of a sprite, combined: concepts.json and concepts.png."""

    options: OmitArgPrefixes[Concepts]
    machine: OmitArgPrefixes[Machine]
    models: Positional[tuple[str, ...]]
    """run folders, .safetensors files or names of `igebm models`, such as dsprites-scale dsprites-position"""
    out: Path | None = None
    """folder; default: evaluation/concepts"""
    seed: int = 0
    batch: int = 128
    """chains at a time"""
    json: bool = False
    """concepts.json to stdout, instead of its numbers as text"""


@dataclass(frozen=True)
class Compose:
    """Samples of several energies combined (section 6): samples.png, samples.npy, compose.json.

    A term is [not:|or:][WEIGHT*]MODEL[=VALUE]: a class, a number or numbers with commas (an angle in degrees), such as
    dsprites-scale=0.8, dsprites-position=0.2,0.7, 2*digits=3, not:digits=8, or:digits=1. module:function is an energy
    of your own, any Python callable of images (B, C, H, W) that gives (B,).
    """

    machine: OmitArgPrefixes[Machine]
    terms: Positional[tuple[str, ...]]
    """the terms; those with or: form one factor, a mixture, those with not: push away"""
    mode: Literal["product", "cyclic"] = "product"
    """chains on the sum of the energies; cyclic: one step on each in turn (released code)"""
    n: int = 16
    """samples"""
    steps: int | None = None
    """chain steps; default: the first model's sample_steps"""
    step_size: float | None = None
    noise: float | None = None
    clip: float | None = None
    """of the chain; default: the first model's"""
    seed: int = 0
    out: Path | None = None
    """folder; default: composed"""
    batch: int = 128
    """chains at a time"""


@dataclass(frozen=True)
class Infer:
    """The condition of an image (section 6): chains over a model's latents, or the energies under its classes."""

    machine: OmitArgPrefixes[Machine]
    model: Positional[str]
    """conditional on latents or classes: a run folder, a .safetensors file, a bundled model, or hf:owner/name"""
    image: Positional[Path]
    """a picture, brought to the model's size"""
    n: int = 256
    """chains, from starts all over the latents' ranges"""
    steps: int = 200
    """chain steps"""
    step_size: float | None = None
    """what multiplies the gradient, latents counted in shares of their ranges; default: noise² / 2T for a model that
    was trained with the posterior of its data at T (--label-weight, --label-temperature), else 1 (released)"""
    noise: float = 0.03
    """standard deviation of a step's noise (released: 0.03)"""
    seed: int = 0
    out: Path | None = None
    """folder; default: inferred/IMAGE"""
    json: bool = False
    """infer.json to stdout, instead of its numbers as text"""


@dataclass(frozen=True)
class Serve:
    """A page to play with models: watch chains, repair images, combine energies, compare an image with the data.

    It needs pip install 'igebm[web]'. Nothing that it shows or is given leaves this machine.
    """

    machine: OmitArgPrefixes[Machine]
    models: Positional[tuple[str, ...]] = ()
    """run folders, .safetensors files, names of `igebm models`, or hf:owner/name; default: all bundled models"""
    host: str = "127.0.0.1"
    """where to listen; any other than this machine alone needs a password: $IGEBM_PASSWORD, or asked for"""
    port: int = 7860
    """0: any free one"""
    user: str = "igebm"
    """the name that goes with the password"""
    data_dir: Path | None = None
    """where named data sets are kept; default: $IGEBM_DATA or ~/.cache/igebm"""


@dataclass(frozen=True)
class Report:
    """One HTML page on a run and its evaluations, whole in itself: curves, samples, figures, numbers, settings."""

    folder: Positional[Path]
    """a run folder, or the evaluation folder of a model that has none (evaluation/MODEL)"""
    out: Path | None = None
    """the page; default: report.html in the folder"""


@dataclass(frozen=True)
class Watch:
    """A run's numbers in the terminal, with small curves, kept up to date while it trains (Ctrl-C ends it)."""

    run: Positional[Path]
    """a run folder"""
    every: float = 5.0
    """seconds between two looks"""
    once: bool = False
    """look once and end"""
    json: bool = False
    """look once: how far the run is and its last numbers, as JSON"""


@dataclass(frozen=True)
class Compare:
    """Several runs beside each other: a table of their last numbers, the settings that differ, curves."""

    runs: Positional[tuple[Path, ...]]
    """run folders"""
    out: Path = Path("compared")
    """folder for compare.json, compare.png and compare.pdf"""
    json: bool = False
    """the table as JSON"""


@dataclass(frozen=True)
class BaselineOf:
    """Train a model with a likelihood, to compare an energy with (Table 2): Glow or PixelCNN++, on the same data.

    Leaves in its folder: metrics.jsonl, checkpoint.pt (for --resume) and model.safetensors (the averaged weights, with
    settings, origin and bits per dimension on train and test).
    """

    settings: OmitArgPrefixes[baselines.Settings]
    kind: Positional[str] = ""
    """glow (needs pip install 'igebm[baselines]') or pixelcnn"""
    out: Path | None = None
    """run folder; default: the next free runs/KIND-DATA"""
    resume: Path | None = None
    """go on with the run in this folder; --steps is the total"""
    device: str = "auto"
    """cpu, cuda or cuda:N"""
    threads: int = 0
    """CPU threads; 0: as many as there are cores"""
    data_dir: Path | None = None
    """where named data sets are kept; default: $IGEBM_DATA or ~/.cache/igebm"""
    skip_bad: bool = False
    """leave out images that cannot be read, instead of refusing the folder"""
    json: bool = False
    """what came of it to stdout, instead of the folder's name"""


@dataclass(frozen=True)
class Push:
    """Pass a model on, with a card written from its run: to the Hugging Face hub, or into a folder.

    What is written: README.md (the card), model.safetensors, preset.json, evaluation/*.json of igebm eval and
    samples.png; never a pickle. A new repository on the hub is private unless --public.
    """

    machine: OmitArgPrefixes[Machine]
    model: Positional[str]
    """a run folder, a .safetensors file, a name of `igebm models`, or hf:owner/name"""
    to: Positional[str]
    """owner/name on the hub (by HF_TOKEN, or hf auth login), or a folder: DIR/"""
    licence: str = "mit"
    """of the weights, as the hub names it: mit, apache-2.0, cc-by-4.0, ..."""
    public: bool = False
    """make a new repository public, or write to one that is"""
    to_folder: bool = False
    """TO is a folder, whatever it looks like"""
    picture: Path | None = None
    """for the card; default: the run's last samples, or some that are drawn now"""


@dataclass(frozen=True)
class Pull:
    """Fetch a model with its card and numbers from the Hugging Face hub, as a folder that every command takes as MODEL.

    Safetensors, JSON, the card and its picture are fetched and read; whatever else is there is left there.
    """

    source: Positional[str]
    """owner/name or owner/name@revision on the hub, or a folder that igebm push has written"""
    out: Path | None = None
    """folder; default: the next free models/NAME"""


@dataclass(frozen=True)
class Convert:
    """A checkpoint of the PyTorch port igebm-pytorch (github.com/rosinality/igebm-pytorch) as a model of ours.

    Its energies stay what they are. The file, a pickle, is read by torch's restricted reader, which runs nothing of it.
    """

    file: Positional[Path]
    """a .pt file: the port's state dict, alone or in a dict beside other things"""
    out: Path
    """folder for model.safetensors and preset.json"""
    data: str = "cifar10"
    """the data set that it was trained on"""
    classes: tuple[str, ...] = ()
    """names of its classes, in the order of their numbers; default: CIFAR-10's, or the numbers"""
    image_size: int = 32
    """height and width of its images in pixels"""
    blocks: str | None = None
    """its residual blocks, where they are not the port's own 1d 1 2d 2 2d 2"""
    key: str | None = None
    """which of several networks in the file"""
    step: int = 0
    """the iteration that it was saved at, for the record"""


@dataclass(frozen=True)
class Bench:
    """Measure this machine: speed of chain and training against a plain reference and the machine's own limit."""

    machine: OmitArgPrefixes[Trainer]
    quick: bool = False
    """a small selection, under a minute on two cores; all of it takes several"""
    json: Path | None = None
    """write the rows and their circumstances to this file; -: to stdout"""


@dataclass(frozen=True)
class Completion:
    """A script that completes commands, flags and their values at the tab key.

    bash: igebm completion bash > ~/.local/share/bash-completion/completions/igebm
    zsh: echo 'eval "$(igebm completion zsh)"' >> ~/.zshrc
    fish: igebm completion fish > ~/.config/fish/completions/igebm.fish
    """

    shell: Positional[Literal["bash", "zsh", "fish"]]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0: done, 1: a fault while running, 2: the user's mistake, 130: interrupted."""
    args = list(sys.argv[1:] if argv is None else argv)
    terminal.open_streams()
    try:
        code = _dispatch(args)
        terminal.flush_results()
        return code
    except InputError as error:
        return _fail(2, str(error))
    except Fault as error:
        return _fail(1, str(error))
    except KeyboardInterrupt:
        return _fail(130, "interrupted")
    except BrokenPipeError:
        sys.stdout = None  # whoever read our output has stopped reading: nothing is wrong
        return 0
    except (MemoryError, OSError) as error:
        with contextlib.suppress(OSError):
            terminal.flush_results()
        return _fail(1, f"{error or 'out of memory'}")
    except RuntimeError as error:
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            return _fail(1, f"chains cannot be compiled here ({str(error).splitlines()[0]}); use --compile off")
        if not re.search("out of memory|can't allocate memory", str(error)):
            raise
        return _fail(1, "out of memory; raise --accumulate, or lower --batch, --width or --buffer-size")


def program() -> int:
    """What the console command runs: main, and then the end of the process."""
    code = main()
    if processes() > 1 or "gradio" in sys.modules:
        # gloo's threads may hold tensors yet; where Python is half gone, letting go of one aborts the process. And
        # nobody waits for a chain that a page was showing.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, AttributeError):
                stream.flush()
        os._exit(code)
    return code


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        print(_overview())
        return 0
    try:
        os.getcwd()
    except OSError:  # libraries that ask for it end the process without a word of ours
        raise InputError("the folder that you are in is no longer there; change to another") from None
    if args[0] == "--version":
        print(f"igebm {__version__}")
        return 0
    for words in (2, 1):
        command = COMMANDS.get(" ".join(args[:words]))
        if command is not None:
            return command.run(args[words:])
    if args[0] == "data" and (len(args) == 1 or args[1] in ("-h", "--help")):
        print(_overview("data "))
        return 0
    raise unknown("command", " ".join(args[: 2 if args[0] == "data" else 1]), COMMANDS)


def train(args: list[str]) -> int:
    asked = _parse_train(args, presets.named(presets.DEFAULT))
    if asked.resume is not None:
        return _resume(asked, args)
    # Once more, with the defaults of the preset that was named.
    asked = _parse_train(args, presets.named(asked.preset))
    if asked.dry_run:
        return _dry_run(asked)
    from . import ranks
    from .training.run import new

    with ranks.together():
        outcome, folder = new(
            asked.preset, asked.settings, asked.machine, asked.out, asked.init_from, asked.data_dir, asked.skip_bad
        )
        return _ended(outcome, folder, asked.json)


def _parse_train(args: list[str], settings: Preset) -> Train:
    """`args` with `settings` as the defaults of all settings that they do not name."""
    return parse(Train, "train", args, Train(settings, Trainer()))


def _resume(asked: Train, args: list[str]) -> int:
    given = [name for name, value in (("--out", asked.out), ("--init-from", asked.init_from)) if value is not None]
    if given or asked.dry_run:
        raise InputError(
            f"{', '.join(given) or '--dry-run'} does not go with --resume, which goes on in the folder it names"
        )
    if asked.preset != presets.DEFAULT:
        raise InputError(f"--resume takes its settings from {asked.resume}; leave out {asked.preset!r}")
    from . import ranks
    from .training.run import resume

    assert asked.resume is not None
    # A time limit was for the session that it was given to.
    ask = lambda had: _parse_train(args, replace(had, minutes=0.0)).settings
    with ranks.together():
        return _ended(*resume(asked.resume, ask, asked.machine, asked.data_dir, asked.skip_bad), asked.json)


def _ended(outcome: Any, folder: Path, as_json: bool) -> int:
    from . import ranks

    about = {"folder": folder, "reason": outcome.reason, "step": outcome.step, "seconds": round(outcome.seconds, 2)}
    if ranks.rank() == 0 and (as_json or outcome.reason != "interrupted"):
        terminal.result(about, as_json, lambda: str(folder))
    if outcome.reason == "interrupted":
        terminal.say(f"interrupted at step {outcome.step}, saved; go on with: igebm train --resume {folder}")
        return 130
    ended = "time is up at step" if outcome.reason == "minutes" else "step"
    terminal.say(
        f"{ended} {outcome.step} after {terminal.clock(outcome.seconds)}; pictures in {folder / 'samples'}; "
        f"next: igebm sample {folder}"
    )
    return 0


def _dry_run(asked: Train) -> int:
    from .diagnostics import temperature
    from .training.run import open_data, settled, shape_of

    presets.checked(asked.settings)
    images = open_data(asked.settings, asked.data_dir, asked.skip_bad)
    preset = settled(asked.preset, asked.settings, images)
    from .training.cost import cost

    about = {
        "preset": asked.preset,
        "source": presets.PRESETS[asked.preset].source,
        "settings": presets.to_dict(preset),
        "images": len(images.x),
        "shape": list(shape_of(preset, images).item),
        "classes": len(getattr(images, "classes", ())),
        "temperature": temperature(preset.step_size, preset.noise),
        "cost": cost(preset, shape_of(preset, images)),
    }
    terminal.result(about, True, str)
    return 0


def sample(args: list[str]) -> int:
    asked = parse(Sample, "sample", args)
    from .commands import sample as run

    print(run(asked))
    return 0


def energy(args: list[str]) -> int:
    asked = parse(EnergyOf, "energy", args)
    from .commands import energy as run

    run(asked)
    return 0


def list_presets(args: list[str]) -> int:
    asked = parse(Presets, "presets", args)
    every = {
        n: {"source": e.source, "note": e.note, "settings": presets.to_dict(e.preset)}
        for n, e in presets.PRESETS.items()
    }
    rows = [
        {"preset": n, "data": e.preset.data, "reproduces": e.source, "note": e.note} for n, e in presets.PRESETS.items()
    ]
    terminal.result(every, asked.json, lambda: terminal.table(rows))
    return 0


def list_models(args: list[str]) -> int:
    asked = parse(Models, "models", args)
    from . import pretrained

    if asked.name is not None and asked.name not in pretrained.names():
        raise unknown("bundled model", asked.name, pretrained.names())
    cards = {name: pretrained.card(name) for name in ([asked.name] if asked.name else pretrained.names())}

    def text() -> str:
        if asked.name:
            return "\n".join(terminal.pretty(cards[asked.name]))
        shown = ("parameters", "iterations", "note")
        return terminal.table([{"model": name} | {k: card[k] for k in shown} for name, card in cards.items()])

    terminal.result(cards, asked.json, text)
    return 0


def list_data(args: list[str]) -> int:
    asked = parse(DataList, "data list", args)
    from .data import available

    rows = available(asked.data_dir)
    terminal.result(rows, asked.json, lambda: terminal.table(rows))
    return 0


def check_data(args: list[str]) -> int:
    asked = parse(DataCheck, "data check", args)
    from .commands import check as run

    run(asked)
    return 0


def evaluate(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        print(_experiments())
        return 0
    name, *rest = args
    if name == "rollout":
        from .commands import rollout

        return rollout(parse(RolloutOf, "eval rollout", rest))
    if name == "concepts":
        from .commands import concepts

        return concepts(parse(ConceptsOf, "eval concepts", rest))
    if name not in EXPERIMENTS and name != "all":
        raise unknown("experiment", name, [*EXPERIMENTS, "rollout", "concepts", "all"])
    asked = parse(Evaluate[EXPERIMENTS.get(name, All)], f"eval {name}", rest)
    from .commands import evaluate as run

    return run(name, asked)


def report(args: list[str]) -> int:
    asked = parse(Report, "report", args)
    from .report.page import write

    print(write(asked.folder, EXPERIMENTS, asked.out))
    return 0


def compose(args: list[str]) -> int:
    asked = parse(Compose, "compose", args)
    from .concepts import compose as run

    print(run(asked))
    return 0


def infer(args: list[str]) -> int:
    asked = parse(Infer, "infer", args)
    from .concepts import infer as run

    run(asked)
    return 0


def serve(args: list[str]) -> int:
    asked = parse(Serve, "serve", args)
    from .web.server import serve as run

    run(asked)
    return 0


def watch(args: list[str]) -> int:
    asked = parse(Watch, "watch", args)
    from .follow import watch as run

    run(asked.run, asked.every, asked.once, asked.json)
    return 0


def compare(args: list[str]) -> int:
    asked = parse(Compare, "compare", args)
    from .follow import compare as run

    run(list(asked.runs), asked.out, asked.json)
    return 0


def baseline(args: list[str]) -> int:
    ask = lambda settings: parse(BaselineOf, "baseline", args, BaselineOf(settings))
    kind = ask(baselines.Settings()).kind
    if kind not in baselines.DEFAULTS:
        raise unknown("baseline", kind, baselines.DEFAULTS)
    asked = ask(baselines.DEFAULTS[kind])  # once more, with the defaults of the kind that was named
    machine = Trainer(asked.device, "float32", "off", asked.threads)
    if asked.resume is not None and asked.out is not None:
        raise InputError("--out does not go with --resume, which goes on in the folder it names")
    from .baselines.train import new, resume

    if asked.resume is None:
        trained, outcome, folder = new(kind, asked.settings, machine, asked.out, asked.data_dir, asked.skip_bad)
    else:
        again = lambda had: ask(replace(had, minutes=0.0)).settings  # a time limit was for the session it was given to
        trained, outcome, folder = resume(kind, asked.resume, again, machine, asked.data_dir, asked.skip_bad)
    return _baseline_ended(trained, outcome, folder, asked.json)


def _baseline_ended(trained: Any, outcome: Any, folder: Path, as_json: bool) -> int:
    from .terminal import clock, result, say

    if outcome.reason == "interrupted":
        go_on = f"igebm baseline {trained.kind} --resume {folder}"
        say(f"interrupted at step {outcome.step}, saved; go on with: {go_on}")
        return 130
    bits = ", ".join(f"{b:.3f} on {split}" for split, b in trained.facts["bits_per_dim"].items() if b is not None)
    say(f"step {outcome.step} after {clock(trained.facts['seconds'])}; bits per dimension: {bits}")
    found = {"folder": folder, "baseline": trained.kind, "step": outcome.step, "seconds": trained.facts["seconds"]}
    result(found | {"bits_per_dim": trained.facts["bits_per_dim"]}, as_json, lambda: str(folder))
    return 0


def push(args: list[str]) -> int:
    asked = parse(Push, "push", args)
    from .share import push as run

    print(run(asked))
    return 0


def pull(args: list[str]) -> int:
    asked = parse(Pull, "pull", args)
    from .share import pull as run

    print(run(asked))
    return 0


def convert(args: list[str]) -> int:
    asked = parse(Convert, "convert", args)
    from .convert import convert as run

    print(run(asked))
    return 0


def bench(args: list[str]) -> int:
    asked = parse(Bench, "bench", args)
    from .benchmarks.speed import bench as run
    from .files import writable_file, write_json

    if asked.json == Path("-"):
        terminal.result(run(asked.machine, quick=asked.quick, say=terminal.say), True, str)
        return 0
    if asked.json is not None:
        writable_file(asked.json)  # before minutes of work
    measured = run(asked.machine, quick=asked.quick)
    if asked.json is not None:
        write_json(asked.json, measured)
    return 0


def completion(args: list[str]) -> int:
    asked = parse(Completion, "completion", args)
    from . import pretrained
    from .completion import known, script
    from .data.named import NAMES, SPRITES

    models, sets = pretrained.names(), ["balls", *NAMES, *SPRITES]
    every = {
        "train": known(Train, words=list(presets.PRESETS)),
        "sample": known(Sample, words=models),
        "energy": known(EnergyOf, words=[*models, *sets]),
        "presets": known(Presets),
        **{f"eval {n}": known(Common, Machine, kind, words=models) for n, kind in (EXPERIMENTS | {"all": All}).items()},
        "eval rollout": known(RolloutOf),
        "eval concepts": known(ConceptsOf),
        "report": known(Report),
        "serve": known(Serve, words=models),
        "watch": known(Watch),
        "compare": known(Compare),
        "compose": known(Compose, words=models),
        "infer": known(Infer, words=models),
        "baseline": known(BaselineOf, words=list(baselines.DEFAULTS)),
        "push": known(Push, words=models),
        "pull": known(Pull),
        "convert": known(Convert),
        "bench": known(Bench),
        "models": known(Models, words=models),
        "data list": known(DataList),
        "data check": known(DataCheck, words=sets),
        "completion": known(Completion, words=["bash", "zsh", "fish"]),
    }
    print(script(asked.shell, every, {name: command.help for name, command in COMMANDS.items()}))
    return 0


@dataclass(frozen=True)
class Command:
    run: Callable[[list[str]], int]
    help: str


COMMANDS = {
    "train": Command(train, "train a model (no arguments: handwritten digits, two minutes)"),
    "sample": Command(sample, "draw samples from a model"),
    "energy": Command(energy, "the energy of each image of a data set"),
    "presets": Command(list_presets, "the named settings, and the paper's tables and figures they reproduce"),
    "eval": Command(evaluate, "an experiment of the paper on a model, with its figure and numbers; `all` for all"),
    "report": Command(report, "one HTML page on a run and its evaluations, to look at and to hand on"),
    "serve": Command(serve, "a page to play with models in the browser"),
    "watch": Command(watch, "a run's numbers in the terminal, kept up to date"),
    "compare": Command(compare, "several runs beside each other: numbers, settings, curves"),
    "compose": Command(compose, "samples of several energies combined: concepts, classes, an energy of your own"),
    "infer": Command(infer, "the latents, or the class, of an image"),
    "baseline": Command(baseline, "train Glow or PixelCNN++ on the same data, to compare with (Table 2)"),
    "push": Command(push, "pass a model on, with a card: to the Hugging Face hub, or into a folder"),
    "pull": Command(pull, "fetch a model from the hub; hf:owner/name is a MODEL everywhere, too"),
    "convert": Command(convert, "a checkpoint of igebm-pytorch as a model of ours"),
    "bench": Command(bench, "measure this machine against a plain reference and its own limit"),
    "models": Command(list_models, "the models that come with the package"),
    "data list": Command(list_data, "the named data sets, and where they are"),
    "data check": Command(check_data, "read a data set as training would and say what is in it"),
    "completion": Command(completion, "a script for bash, zsh or fish that completes commands, flags and values"),
}


def _overview(prefix: str = "") -> str:
    rows = [f"  igebm {name:<12} {command.help}" for name, command in COMMANDS.items() if name.startswith(prefix)]
    return "\n".join(
        [
            f"igebm {__version__}: energy-based models with MCMC (Du & Mordatch, arXiv:1903.08689)",
            "",
            *rows,
            "",
            "igebm COMMAND --help shows a command's options. Exit codes: 0 done, 1 fault, 2 mistake, 130 interrupted.",
        ]
    )


def _experiments() -> str:
    head = lambda kind: re.split(r" \(| by |: ", " ".join((kind.__doc__ or "").split()))[0].rstrip(".")
    every = EXPERIMENTS | {"rollout": Rollout, "concepts": Concepts, "all": All}
    rows = [f"  igebm eval {name:<12} {head(kind)}" for name, kind in every.items()]
    return "\n".join(
        ["usage: igebm eval NAME MODEL [options]", "", *rows, "", "igebm eval NAME --help shows its options"]
    )


def parse(kind: Any, command: str, args: list[str], default: Any = None) -> Any:
    """`args` as a `kind`. Raises InputError with one line where they cannot be parsed; --help prints and exits."""
    if shutil.get_terminal_size().columns < 40:
        os.environ["COLUMNS"] = "40"  # where there is less room than for a word, tyro looks for it without end
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            more = {} if default is None else {"default": default}
            return tyro.cli(kind, prog=f"igebm {command}", args=args, **more)
    except SystemExit as end:
        if not end.code:
            terminal.flush_results()
            raise
        raise InputError(f"{one_line(printed.getvalue())}; see igebm {command} --help") from None


def one_line(panel: str) -> str:
    """What tyro says in a box, as one line: the first part of it, and the options that may have been meant."""
    # With boxes: a title in the frame, rules between the parts. Without (no UTF-8): the title is a part of its own.
    lines = [line.strip("│ ") for line in panel.splitlines() if not line.startswith(("╭", "╰"))]
    parts = [part.split("\n") for part in re.split(r"\n[─-]{5,}\n", "\n".join(lines))]
    parts = parts if "╭" in panel else parts[1:]
    said = re.sub(r" \.(?= |$)", "", " ".join(parts[0])).removeprefix("Error parsing settings: ").strip()
    if re.search(r"float: '-?\d*,\d+'", said):
        said += " (write decimals with a dot)"
    meant = [
        option
        for part in parts[1:]
        if part[0].startswith("Perhaps")
        for option in re.findall(r"--[a-z0-9-]+", " ".join(part))
    ]
    return said + (f"; did you mean {' or '.join(dict.fromkeys(meant[:3]))}?" if meant else "")


def _fail(code: int, message: str) -> int:
    # A mistake is every process's, and said once; a fault may be one's alone.
    terminal.say("igebm: " + " ".join(message.split()), always=code == 1)
    return code


if __name__ == "__main__":
    sys.exit(main())
