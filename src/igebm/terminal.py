"""What a person sees while something runs: lines and a progress bar on stderr; results go to stdout.

Where stderr is no terminal there is no bar, no colour and no carriage return, but a line now and then. Work never ends
because nobody can be told of it: where stderr cannot be written to (a reader that has gone, a full disk), it goes on.
"""

import io
import itertools
import json
import os
import shlex
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TextIO, cast

from .errors import CONTROL
from .limits import from_environment, processes
from .plain import plain

Step = Callable[..., None]
"""step(done, total, shown=""): what is done, what there is to do, and a few numbers to show"""


class Screen(NamedTuple):
    """Where to say a line and where to report progress, while a bar is up."""

    say: Any
    step: Step


ALONE = processes() == 1 or from_environment("RANK", 0) == 0
"""of several processes at one job the first alone speaks"""


def open_streams() -> None:
    """Make stdin, stdout and stderr safe to use: none closed, and none that fails at a character it cannot show.

    A closed one is opened to nowhere, or the next file opened would take its number, and whatever a library prints
    would land in that file.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    # Python has None for a stream that was closed when it started.
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def flush_results() -> None:
    """What was printed reaches stdout now. Raises OSError where it cannot, and then Python does not try again at exit,
    where it could only complain."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        sys.stdout = None
        raise


def say(line: str, always: bool = False) -> None:
    """One line to stderr, whatever its encoding can show; of several processes by the first, or `always`."""
    stream = sys.stderr
    if stream is None or not (ALONE or always):
        return
    encoding = getattr(stream, "encoding", None) or "ascii"
    try:
        print(line.translate(CONTROL).encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)
    except OSError:
        sys.stderr = None  # nobody listens any more; Python must not try to flush it at exit either


class _Listener:
    """stderr for a bar: as `say`, it stops writing where nobody listens any more (a terminal that was closed)."""

    def __init__(self, stream: TextIO | None):
        self._stream = stream

    def write(self, text: str) -> int:
        return self._tried(lambda stream: stream.write(text), len(text))

    def flush(self) -> None:
        self._tried(lambda stream: stream.flush(), None)

    def _tried(self, act: Callable[[TextIO], Any], otherwise: Any) -> Any:
        try:
            return otherwise if self._stream is None else act(self._stream)
        except OSError:
            self._stream = sys.stderr = None
            return otherwise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def bar(what: str, every: float = 10.0, first: int = 0) -> Iterator[Screen]:
    """A progress bar with rate and time left; without a terminal a line at most each `every` seconds. `first`: what was
    done before."""
    if sys.stderr is not None and sys.stderr.isatty() and ALONE:
        with _rich_bar(what, first) as screen:
            yield screen
    else:
        yield Screen(say, _lines(what, every, first))


def _lines(what: str, every: float, first: int) -> Step:
    started = last = time.monotonic()

    def step(done: int, total: int, shown: str = "") -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < every:
            return
        last = now
        each = (now - started) / max(1, done - first)
        rate = f"{1 / each:.3g}/s" if each < 1 else f"{each:.3g} s each"
        left = clock(each * (total - done))
        say(f"{what} {done}/{total}, {rate}, {clock(now - started)} gone, {left} left{', ' if shown else ''}{shown}")

    return step


@contextmanager
def _rich_bar(what: str, first: int) -> Iterator[Screen]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column

    console = Console(file=cast(TextIO, _Listener(sys.stderr)), highlight=False)
    # Where it is narrow the numbers of the work give way, and then the bar: never the count or the time left.
    whole, last = lambda: Column(no_wrap=True), Column(no_wrap=True, overflow="ellipsis", ratio=1, min_width=0)
    width = min(24, max(8, console.width - 92))
    columns = (
        TextColumn("{task.description}", table_column=whole()),
        *([BarColumn(bar_width=width, table_column=whole())] if console.width >= 64 else []),
        TextColumn("{task.fields[count]}", table_column=whole()),
        *([TextColumn("{task.fields[rate]}", table_column=whole())] if console.width >= 60 else []),
        *([TimeElapsedColumn(table_column=whole()), TextColumn("gone,")] if console.width >= 72 else []),
        TimeRemainingColumn(table_column=whole()),
        TextColumn("left", table_column=whole()),
        TextColumn("{task.fields[shown]}", table_column=last),
    )
    with Progress(*columns, console=console, speed_estimate_period=60, expand=True) as progress:
        task = progress.add_task(what, total=None, completed=first, count="", rate="", shown="")

        def step(done: int, total: int, shown: str = "") -> None:
            speed = progress.tasks[0].speed or 0.0
            rate = f"{speed:.3g}/s" if speed >= 1 else f"{1 / speed:.3g} s each" if speed else ""
            progress.update(task, completed=done, total=total, count=f"{done}/{total}", rate=rate, shown=shown)

        yield Screen(lambda line: console.print(line.translate(CONTROL), markup=False), step)


def result(found: Any, as_json: bool, text: Callable[[], str]) -> None:
    """What a command has found, to stdout: as one JSON document, or as `text()` says it to people."""
    print(json.dumps(plain(found), indent=2, allow_nan=False) if as_json else lines_of(text()))


def lines_of(text: str) -> str:
    """`text` with what would move a cursor as text, all but the ends of its lines."""
    return text.translate({c: told for c, told in CONTROL.items() if c != ord("\n")})


def quoted(word: Any) -> str:
    """A word of a line that is to be pasted into a shell: names of folders and classes are not ours."""
    return shlex.quote(str(word))


def clock(seconds: float) -> str:
    """75 -> 1:15; 3700 -> 1:01:40"""
    h, rest = divmod(int(seconds), 3600)
    return f"{h}:{rest // 60:02d}:{rest % 60:02d}" if h else f"{rest // 60}:{rest % 60:02d}"


def written(value: Any) -> str:
    """A value as people read it: six digits of a number, nothing where there is none."""
    if isinstance(value, dict):
        return ", ".join(f"{k} {written(v)}" for k, v in value.items() if v is not None)
    if isinstance(value, list | tuple):
        return ", ".join(map(written, value))
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def table(rows: list[dict[str, Any]], width: int | None = None) -> str:
    """Rows as plain text columns, headed by their keys. What is wider than `width` (by default a terminal's, where the
    result goes to one) has its widest columns in lines below each other."""
    if not rows:
        return ""
    heads = list(rows[0])
    cells = [heads] + [[written(row.get(h)) for h in heads] for row in rows]
    widths = [max(len(r[i]) for r in cells) for i in range(len(heads))]
    width = width or (shutil.get_terminal_size().columns if sys.stdout.isatty() else 0)
    words = [max(len(word) for r in cells for word in [*r[i].split(), ""]) for i in range(len(heads))]
    least = [min(w, max(LEGIBLE, word)) for w, word in zip(widths, words, strict=True)]
    gaps, narrow = 2 * (len(widths) - 1), list(widths)
    while width < sum(narrow) + gaps and narrow != least:
        widest = max((i for i in range(len(narrow)) if narrow[i] > least[i]), key=narrow.__getitem__)
        narrow[widest] -= 1
    widths = narrow if sum(narrow) + gaps <= width else widths
    lines = []
    for row in cells:
        parts = [
            textwrap.wrap(c, w, break_on_hyphens=False) if len(c) > w else [c] for c, w in zip(row, widths, strict=True)
        ]
        for line in itertools.zip_longest(*parts, fillvalue=""):
            lines.append("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip())
    return "\n".join(lines)


LEGIBLE = 24
"""letters that a column of text has at least; where a terminal has less room the lines are left to it"""


def pretty(value: Any, name: str = "", depth: int = 0) -> list[str]:
    """Nested plain data as indented lines; long tables of counts on one line."""
    indent = "  " * depth
    if isinstance(value, dict) and value:
        flat = all(not isinstance(v, dict | list) for v in value.values())
        if flat and depth > 1:
            return [f"{indent}{name}: {written(value)}"]
        head = [f"{indent}{name}:"] if name else []
        inner = depth + 1 if name else depth
        return head + [line for k, v in value.items() for line in pretty(v, str(k), inner)]
    if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
        return [f"{indent}{name}:", *(f"{indent}  {line}" for line in table(value).splitlines())]
    nothing = value is None or (isinstance(value, dict | list | tuple) and not value)
    return [f"{indent}{name}: {'none' if nothing else written(value)}"]
