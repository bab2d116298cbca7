"""The command line: what each command is called (arguments.py says what it takes). No logic: it parses, calls, and
turns errors into one line.

Heavy imports wait inside the functions, so that --help answers at once.
"""

import contextlib
import io
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import tyro

from . import __version__, arguments, presets, terminal
from .baselines import settings as baselines
from .errors import Fault, InputError, out_of_memory, unknown
from .evaluation.settings import EXPERIMENTS, All, Common, Concepts, Rollout
from .limits import processes
from .presets import Machine, Preset, Trainer

Parsed = TypeVar("Parsed")
Word = TypeVar("Word", bound=str)


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
    except MemoryError as error:
        return _fail(1, str(error) or "out of memory")
    except OSError as error:
        with contextlib.suppress(OSError):
            terminal.flush_results()
        return _fail(1, f"{error.filename or 'reading or writing failed'}: {error.strerror or error}")
    except Exception as error:
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor", "triton", "subprocess")):
            why = (str(error).splitlines() or [type(error).__name__])[0]
            return _fail(1, f"chains cannot be compiled here ({why}); use --compile off")
        if not out_of_memory(error):
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
    if args[0].startswith("-") and any(word in COMMANDS for word in args):
        raise InputError(f"options come after the command: igebm COMMAND {args[0]} ...")
    if args[0] in MEANT:
        raise InputError(f"unknown command {args[0]!r}; did you mean igebm {MEANT[args[0]]}?")
    raise unknown("command", " ".join(args[: 2 if args[0] == "data" else 1]), COMMANDS)


MEANT = {
    "resume": "train --resume DIR", "generate": "sample", "draw": "sample", "evaluate": "eval", "test": "eval",
    "inpaint": "restore", "repair": "restore", "classify": "infer", "score": "energy",
    "predict": "infer (an image) or igebm forecast (time series)",
    "benchmark": "bench", "list": "models", "check": "data check", "ood": "eval ood",
    "upload": "push", "download": "pull", "continue": "forecast", "extrapolate": "forecast",
}  # fmt: skip
"""what other programs call it"""


def train(args: list[str]) -> int:
    asked = _parse_train(args, presets.named(_word_of(presets.PRESETS, args) or presets.DEFAULT))
    if asked.resume is not None:
        return _resume(asked, args)
    # Once more, with the defaults of the preset that was named.
    asked = _parse_train(args, presets.named(asked.preset))
    if asked.dry_run:
        return _dry_run(asked)
    from . import ranks
    from .training.run import new

    with ranks.together():
        return _ended(*new(_opened(asked), asked.out), asked.json)


def _opened(asked: arguments.Train) -> Any:
    """training.run.Opened: what a new run is made of."""
    from .training.run import open_all

    return open_all(
        asked.preset, asked.settings, asked.machine, asked.out, asked.init_from, asked.data_dir, asked.skip_bad
    )


def _word_of(known: Iterable[Word], args: list[str]) -> Word | None:
    """The preset that a command line means, before it is parsed: for --help, which shows that preset's defaults."""
    return next((word for argument in args for word in known if word == argument), None)


def _parse_train(args: list[str], settings: Preset) -> arguments.Train:
    """`args` with `settings` as the defaults of all settings that they do not name."""
    return parse(arguments.Train, "train", args, arguments.Train(settings, Trainer()))


def _resume(asked: arguments.Train, args: list[str]) -> int:
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
        terminal.say(
            f"interrupted at step {outcome.step}, saved; go on with: igebm train --resume {terminal.quoted(folder)}"
        )
        return 130
    from .report.found import at, read_json

    about = read_json(folder / "preset.json", [], needed=False)
    series = at(about, "settings", "network") == "trajectory"
    drawn = f"igebm {'eval rollout' if series else 'sample'} {terminal.quoted(folder)}"
    if outcome.reason == "unpictured":
        draws = f"{drawn} draws {'rollouts' if series else 'samples'}"
        terminal.say(f"the run is whole and saved, all but its last picture; {draws}")
        return 130
    ended = "time is up at step" if outcome.reason == "minutes" else "step"
    kept = folder / "samples"
    pictures = f"pictures in {kept}; " if kept.is_dir() and any(kept.iterdir()) else ""
    then = f"{drawn}, or igebm forecast {terminal.quoted(folder)} DATA" if series else drawn
    terminal.say(f"{ended} {outcome.step} after {terminal.clock(outcome.seconds)}; {pictures}next: {then}")
    return 0


def _dry_run(asked: arguments.Train) -> int:
    from .model import temperature
    from .training.cost import cost, least_memory, time_here
    from .training.run import begin, open_loader

    opened = _opened(asked)
    preset, images, shape, runtime, *_ = opened
    loader = open_loader(preset, images, shape, runtime)
    counted = cost(preset, shape)
    about = {
        "preset": asked.preset,
        "source": presets.PRESETS[asked.preset].source,
        "settings": presets.to_dict(preset),
        "images": len(images.x),
        "shape": list(shape.item),
        "classes": len(getattr(images, "classes", ())),
        "temperature": temperature(preset),
        "cost": counted,
        "here": time_here(preset, shape, runtime, counted, loader) | {"bytes_at_least": least_memory(preset, shape)},
    }
    terminal.result(about, True, str)
    here = about["here"]
    took = f", about {terminal.clock(3600 * here['hours'])} here ({here['by']})" if "hours" in here else ""
    memory = f"; at least {here['bytes_at_least'] / 2**20:,.0f} MiB of memory" if here["bytes_at_least"] else ""
    terminal.say(f"{preset.steps:,} iterations on {len(images.x):,} items{took}{memory}")
    begin(opened)  # what does not fit this machine is refused, with all that it would cost said
    return 0


def sample(args: list[str]) -> int:
    asked = parse(arguments.Sample, "sample", args)
    from .commands import sample as run

    print(run(asked))
    return 0


def energy(args: list[str]) -> int:
    asked = parse(arguments.EnergyOf, "energy", args)
    from .commands import energy as run

    run(asked)
    return 0


def list_presets(args: list[str]) -> int:
    asked = parse(arguments.Presets, "presets", args)
    entries = {n: presets.entry(n) for n in asked.names or presets.PRESETS}
    every = {n: {"source": e.source, "note": e.note, "settings": presets.to_dict(e.preset)} for n, e in entries.items()}
    what = lambda e: f"{e.source}; {e.note}" if e.note else e.source

    def text() -> str:
        rows = [{"preset": n, "data": e.preset.data, "reproduces": what(e)} for n, e in entries.items()]
        if not asked.names:
            return f"{terminal.table(rows)}\n\nigebm presets NAME: its settings; of several, those in which they differ"
        settings = presets.beside(*(e.preset for e in entries.values()))
        columns = [{"setting": presets.flag(s)} | dict(zip(entries, v, strict=True)) for s, v in settings.items()]
        return f"{terminal.table(rows)}\n\n{terminal.table(columns)}"

    terminal.result(every, asked.json, text)
    return 0


def list_models(args: list[str]) -> int:
    asked = parse(arguments.Models, "models", args)
    from . import pretrained

    if asked.name is not None and asked.name not in pretrained.names():
        raise unknown("bundled model", asked.name, pretrained.names())
    cards = {name: pretrained.card(name) for name in ([asked.name] if asked.name else pretrained.names())}

    def text() -> str:
        if asked.name:
            return "\n".join(terminal.pretty(cards[asked.name]))
        begun = r"(?:\([^)]*\)|\.(?! )|[^:;.(])*"  # the note up to its first stop, but not within brackets
        taken = lambda card: card["iterations"] + card.get("begun_from", {}).get("iterations", 0)
        rows = [
            {"model": name, "parameters": f"{card['parameters']:,}", "iterations": f"{taken(card):,}"}
            | {"what it is": re.match(begun, card["note"])[0]}  # type: ignore[index]
            for name, card in cards.items()
        ]
        return f"{terminal.table(rows)}\n\nigebm models NAME: data, command, machine, what it can and cannot do"

    terminal.result(cards, asked.json, text)
    return 0


def list_data(args: list[str]) -> int:
    asked = parse(arguments.DataList, "data list", args)
    from .data import available

    rows = available(asked.data_dir)
    of = lambda row, split: f"{n:,}" if (n := (row["counts"] or {}).get(split)) else ""
    shown = [
        {"name": row["name"], "from": f"{row['where']}: {row['source']}"}
        | {"shape": "x".join(map(str, row["shape"] or ())), "classes": row["classes"]}
        | {"train": of(row, "train"), "test": of(row, "test")}
        for row in rows
    ]
    terminal.result(rows, asked.json, lambda: terminal.table(shown))
    return 0


def check_data(args: list[str]) -> int:
    asked = parse(arguments.DataCheck, "data check", args)
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

        return rollout(parse(arguments.RolloutOf, "eval rollout", rest))
    if name == "concepts":
        from .commands import concepts

        return concepts(parse(arguments.ConceptsOf, "eval concepts", rest))
    if name not in EXPERIMENTS and name != "all":
        if rest and rest[0] in (*EXPERIMENTS, "all"):
            raise InputError(f"the experiment comes first: igebm eval {rest[0]} {name}")
        raise unknown("experiment", name, [*EXPERIMENTS, "rollout", "concepts", "all"])
    if name != "all" and "--quick" in rest:
        raise InputError(f"--quick is of igebm eval all; igebm eval {name} takes fewer of everything by --n and others")
    kind: Any = arguments.Evaluate[EXPERIMENTS.get(name, All)]
    asked = parse(kind, f"eval {name}", rest)
    from .commands import evaluate as run

    return run(name, asked)


def report(args: list[str]) -> int:
    asked = parse(arguments.Report, "report", args)
    from .report.page import write

    print(write(asked.folder, EXPERIMENTS, asked.out))
    return 0


def compose(args: list[str]) -> int:
    asked = parse(arguments.Compose, "compose", args)
    from .concepts import compose as run

    print(run(asked))
    return 0


def infer(args: list[str]) -> int:
    asked = parse(arguments.Infer, "infer", args)
    from .concepts import infer as run

    run(asked)
    return 0


def restore(args: list[str]) -> int:
    asked = parse(arguments.Restore, "restore", args)
    from .restore import restore as run

    print(run(asked))
    return 0


def forecast(args: list[str]) -> int:
    asked = parse(arguments.Forecast, "forecast", args)
    from .futures import forecast as run

    run(asked)
    return 0


def serve(args: list[str]) -> int:
    asked = parse(arguments.Serve, "serve", args)
    from .web.server import serve as run

    run(asked)
    return 0


def watch(args: list[str]) -> int:
    asked = parse(arguments.Watch, "watch", args)
    from .follow import watch as run

    run(asked.run, asked.every, asked.once, asked.json)
    return 0


def compare(args: list[str]) -> int:
    asked = parse(arguments.Compare, "compare", args)
    from .follow import compare as run

    run(list(asked.runs), asked.out, asked.json)
    return 0


def baseline(args: list[str]) -> int:
    ask = lambda settings: parse(arguments.BaselineOf, "baseline", args, arguments.BaselineOf(settings))
    guess = _word_of(baselines.DEFAULTS, args)
    first = ask(baselines.DEFAULTS[guess] if guess else baselines.Settings())
    kind = first.kind or (_kind_of(first.resume) if first.resume is not None else "")
    if kind not in baselines.DEFAULTS:
        raise unknown("baseline", kind, baselines.DEFAULTS)
    asked = ask(baselines.DEFAULTS[kind])  # once more, with the defaults of the kind that was named
    if processes() > 1:
        raise InputError("igebm baseline trains in one process; leave torchrun out")
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


def _kind_of(run: Path) -> str:
    from .baselines.train import read_checkpoint

    return read_checkpoint(run)["baseline"]


def _baseline_ended(trained: Any, outcome: Any, folder: Path, as_json: bool) -> int:
    from .terminal import clock, quoted, result, say

    if outcome.reason == "interrupted":
        go_on = f"igebm baseline {trained.kind} --resume {quoted(folder)}"
        say(f"interrupted at step {outcome.step}, saved; go on with: {go_on}")
        return 130
    bits = ", ".join(f"{b:.3f} on {split}" for split, b in trained.facts["bits_per_dim"].items() if b is not None)
    say(f"step {outcome.step} after {clock(trained.facts['seconds'])}; bits per dimension: {bits}")
    found = {"folder": folder, "baseline": trained.kind, "step": outcome.step, "seconds": trained.facts["seconds"]}
    result(found | {"bits_per_dim": trained.facts["bits_per_dim"]}, as_json, lambda: str(folder))
    return 0


def push(args: list[str]) -> int:
    asked = parse(arguments.Push, "push", args)
    from .share import push as run

    print(run(asked))
    return 0


def pull(args: list[str]) -> int:
    asked = parse(arguments.Pull, "pull", args)
    from .share import pull as run

    print(run(asked))
    return 0


def convert(args: list[str]) -> int:
    asked = parse(arguments.Convert, "convert", args)
    from .convert import convert as run

    print(run(asked))
    return 0


def bench(args: list[str]) -> int:
    asked = parse(arguments.Bench, "bench", args)
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
    asked = parse(arguments.Completion, "completion", args)
    from . import pretrained
    from .completion import known, script
    from .data.named import NAMES, SPRITES

    models, sets = pretrained.names(), ["balls", *NAMES, *SPRITES]
    every = {
        "train": known(arguments.Train, words=list(presets.PRESETS)),
        "sample": known(arguments.Sample, words=models),
        "energy": known(arguments.EnergyOf, words=[*models, *sets]),
        "presets": known(arguments.Presets, words=list(presets.PRESETS)),
        **{f"eval {n}": known(Common, Machine, kind, words=models) for n, kind in (EXPERIMENTS | {"all": All}).items()},
        "eval rollout": known(arguments.RolloutOf),
        "eval concepts": known(arguments.ConceptsOf),
        "report": known(arguments.Report),
        "serve": known(arguments.Serve, words=models),
        "watch": known(arguments.Watch),
        "compare": known(arguments.Compare),
        "compose": known(arguments.Compose, words=models),
        "infer": known(arguments.Infer, words=models),
        "restore": known(arguments.Restore, words=models),
        "forecast": known(arguments.Forecast, words=models),
        "baseline": known(arguments.BaselineOf, words=list(baselines.DEFAULTS)),
        "push": known(arguments.Push, words=models),
        "pull": known(arguments.Pull),
        "convert": known(arguments.Convert),
        "bench": known(arguments.Bench),
        "models": known(arguments.Models, words=models),
        "data list": known(arguments.DataList),
        "data check": known(arguments.DataCheck, words=sets),
        "completion": known(arguments.Completion, words=["bash", "zsh", "fish"]),
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
    "restore": Command(restore, "a picture of yours repaired: what a mask says is filled in, or all of it denoised"),
    "forecast": Command(forecast, "time series of yours continued, with one or several futures"),
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


def parse(kind: Callable[..., Parsed], command: str, args: list[str], default: Parsed | None = None) -> Parsed:
    """`args` as a `kind`. Raises InputError with one line where they cannot be parsed; --help prints and exits."""
    if shutil.get_terminal_size().columns < 40:
        os.environ["COLUMNS"] = "40"  # where there is less room than for a word, tyro looks for it without end
    from . import manual

    if {"-h", "--help"} & set(args):
        args = ["--help"]  # tyro leaves out what was given already
        manual.describe(kind)
    printed, page = io.StringIO(), manual.Page()
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(page):
            more: dict[str, Any] = {} if default is None else {"default": default}
            return tyro.cli(kind, prog=f"igebm {command}", args=args, **more)
    except SystemExit as end:
        if not end.code:
            print(page.text(), end="")
            terminal.flush_results()
            raise
        raise InputError(
            f"{manual.one_line(printed.getvalue(), manual.options(kind))}; see igebm {command} --help"
        ) from None


def _fail(code: int, message: str) -> int:
    # A mistake is every process's, and said once; a fault may be one's alone.
    terminal.say("igebm: " + " ".join(message.split()), always=code == 1)
    return code


if __name__ == "__main__":
    sys.exit(main())
