"""What tyro says, made readable: the options of --help, and one line for what it cannot parse.

tyro shows the docstrings of arguments.py with the source's line breaks in them, and an option that need not be given as
`{None}|INT ... (default: None)`; here it is a paragraph, and `INT`.
"""

import dataclasses
import inspect
import io
import re
import shutil
import sys
import textwrap
from collections.abc import Collection
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from docstring_parser import parse_from_object
from tyro.conf import arg

from . import completion

NAMES = {str: "STR", int: "INT", float: "FLOAT", Path: "PATH"}
"""tyro's own names of these, for where one may be left out too"""
KINDS = {"INT": "a whole number", "FLOAT": "a number"}
PLAINER = (
    (r"^Error parsing ", lambda m: ""),
    (r"invalid literal for int\(\) with base 10: (.*)", lambda m: f"give a whole number, got {m[1]}"),
    (r"could not convert string to float: (.*)", lambda m: f"give a number, got {m[1]}"),
    (
        r"no type matching \{None\}\|(\S+) could be instantiated from \[(.*)\]",
        lambda m: f"give {KINDS.get(m[1], m[1])}, got {m[2]}",
    ),
    (r"^Unrecognized options: (-.*)", lambda m: f"unknown option: {m[1].replace(', ', ' ')}"),
    (r"^Unrecognized options: (.*)", lambda m: f"not expected: {m[1].replace(', ', ' ')}"),
    (r"^Missing value for argument '(.*)'\. Expected 1 values?", lambda m: f"{m[1]} wants a value"),
    (
        r"^invalid choice (.*) for argument '(.*)'\. Expected one of \((.*)\)",
        lambda m: f"{m[2]}: give one of {m[3].rstrip(',').replace(chr(39), '')}, got {m[1]}",
    ),
)
"""what tyro and Python say of a value, and what a user is told instead"""

MEANT = {
    "--batch": "batchsize bs",
    "--chain-steps": "numsteps nsteps langevinsteps mcmcsteps samplestep k",
    "--steps": "numsteps nsteps langevinsteps mcmcsteps maxsteps k",
    "--lr": "learningrate",
    "--out": "output outdir outputdir logdir exp dir",
    "--device": "gpu cuda cpu",
    "--n": "num count samples numsamples nsamples imnumber",
    "--label": "class classes",
    "--data": "dataset",
    "--step-size": "steplr",
    "--noise": "noisescale sigma",
    "--clip": "projnorm",
    "--image-size": "imsize size resolution",
    "--resume": "resumeiter continue checkpoint",
    "--init-from": "pretrained checkpoint weights",
    "--dtype": "precision fp16 bf16",
    "--buffer-size": "buffer replaybatch",
    "--conditional": "cclass",
    "--width": "filters numfilters",
    "--spectral": "specnorm",
    "--activation": "swishact",
    "--flip": "augment",
    "--alpha": "l2coeff",
    "--ema": "emadecay",
    "--log-every": "loginterval",
    "--save-every": "saveinterval",
    "--grid-every": "testinterval",
    "--skip-bad": "skip",
    "--against": "reference ood",
}
"""an option, and what other programs call it, without hyphens and underscores; said are those that the command has"""

ITERATIONS = "epochs epochnum nepochs numepochs iterations iters".split()
"""what others call the --steps of training: those of igebm sample are a chain's, and not meant"""


@cache
def describe(kind: Any) -> None:
    """Write it into the annotations, where tyro reads it, of a dataclass of options and of the dataclasses in it."""
    for part in get_args(kind):
        describe(part)
    for cls in filter(dataclasses.is_dataclass, inspect.getmro(get_origin(kind) or kind)):
        said = {doc.arg_name: " ".join((doc.description or "").split()) for doc in parse_from_object(cls).params}
        hints, own = get_type_hints(cls, include_extras=True), cls.__annotations__
        for name in own:
            plain, *more = get_args(hints[name]) if get_origin(hints[name]) is Annotated else [hints[name]]
            if dataclasses.is_dataclass(plain):
                describe(plain)
            else:
                shown = arg(help=said.get(name), metavar=_metavar(plain), help_behavior_hint=_default)
                own[name] = Annotated[plain, shown, *more]  # what arguments.py says itself comes last, and counts


def _metavar(kind: Any) -> str | None:
    """Of what may be None, its name where it is something; None: tyro's own."""
    some = [part for part in get_args(kind) if part is not type(None)]
    if type(None) not in get_args(kind) or len(some) != 1:
        return None
    return "{" + ",".join(get_args(some[0])) + "}" if get_origin(some[0]) is Literal else NAMES.get(some[0])


def _default(value: str) -> str:
    return "" if value in ("None", "", "''") else f"(default: {value})"


class Page(io.TextIOWrapper):
    """What tyro prints for --help, in the characters and colours that stdout has."""

    def __init__(self):
        self.pages, self.shown = io.BytesIO(), sys.stdout
        super().__init__(self.pages, encoding=self.shown.encoding or "utf-8", errors="replace")

    def isatty(self) -> bool:
        return self.shown.isatty()

    def text(self) -> str:
        """With the paragraphs above the boxes broken at words, which tyro leaves to the terminal."""
        self.flush()
        width = shutil.get_terminal_size().columns
        broken = lambda line: textwrap.fill(line, width) if line[:1].isalpha() else line
        return "\n".join(map(broken, self.pages.getvalue().decode(self.encoding).splitlines())) + "\n"


def options(kind: Any) -> list[str]:
    """The flags of a dataclass of options and of those in it."""
    return [name for part in (get_origin(kind) or kind, *get_args(kind)) for name, _ in completion.options(part)]


def one_line(panel: str, known: Collection[str]) -> str:
    """What tyro says in a box, as one line: the first part of it, and which of the `known` options may have been
    meant."""
    # With boxes: a title in the frame, rules between the parts. Without (no UTF-8): the title is a part of its own.
    lines = [line.strip("│ ") for line in panel.splitlines() if not line.startswith(("╭", "╰"))]
    parts = [part.split("\n") for part in re.split(r"\n[─-]{5,}\n", "\n".join(lines))]
    parts = parts if "╭" in panel else parts[1:]
    said = re.sub(r" \.(?= |$)", "", " ".join(parts[0])).removeprefix("Error parsing settings: ").strip()
    said = said.split(" Got errors: ")[0].rstrip(" .")  # what each of several types said on its own
    for words, plainer in PLAINER:
        said = re.sub(words, plainer, said)
    if re.search(r"give a number, got '-?\d*,\d+'", said):
        said += " (write decimals with a dot)"
    meant = [
        option
        for part in parts[1:]
        if part[0].startswith("Perhaps")
        for option in re.findall(r"--[a-z0-9-]+", " ".join(part))
    ]
    if got := re.match(r"unknown option: --?([\w-]+)", said):
        same = f"--{got[1]}"
        word = re.sub("[-_]", "", got[1].lower())
        ours = [option for option, others in MEANT.items() if word in others.split() and option in known]
        meant = [same] if same in known else ours or meant or get_close_matches(same, known, 3, 0.7)
        if word in ITERATIONS:
            meant = ["--steps"] if "--save-every" in known else []  # it trains
    return said + (f"; did you mean {' or '.join(dict.fromkeys(meant[:3]))}?" if meant else "")
