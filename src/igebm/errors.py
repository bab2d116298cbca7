"""What can go wrong, in two words: the user's mistake (exit code 2) and a fault while running (exit code 1).

Each message is one line and says what was wrong, what was got and what to try; the command line prints it as it is.
"""

import re
from collections.abc import Iterable
from difflib import get_close_matches

CONTROL = {c: f"\\x{c:02x}" for c in (*range(32), *range(127, 160))}
"""what would move a cursor, as text: names of files, columns and classes are not ours"""


class InputError(ValueError):
    """A mistake in what the user gave: a flag, a file, a data set. Exit code 2."""

    def __init__(self, message: str):
        super().__init__(message.translate(CONTROL))


class NotApplicable(InputError):
    """What is asked for has no meaning for this model, or these data, whatever else is given."""


class Fault(RuntimeError):
    """A fault while running that no other input would have avoided for certain: divergence, a full disk. Exit code
    1."""

    def __init__(self, message: str):
        super().__init__(message.translate(CONTROL))


def unknown(kind: str, got: str, known: Iterable[str]) -> InputError:
    """The error for a name that is not on a list: names the nearest ones, or all of a short list."""
    known = list(known)
    near = get_close_matches(got.lower(), known, n=3, cutoff=0.5)
    hint = (
        f"did you mean {' or '.join(near)}?"
        if near
        else f"known: {', '.join(known[:16])}{', ...' if len(known) > 16 else ''}"
    )
    return InputError(f"unknown {kind} {got!r}; {hint}")


def out_of_memory(error: BaseException) -> bool:
    """Whether memory, a GPU's included, was not enough: torch says so by a RuntimeError like any other."""
    said = re.search("out of memory|can't allocate memory", str(error))
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and said is not None)


def many(n: int, thing: str, things: str | None = None) -> str:
    """1 image, 2 images: for messages."""
    return f"{n} {thing if n == 1 else things or thing + 's'}"


MOST = 10_000_000
"""of images, of those at a time, of steps: a slip of the keyboard, not a wish"""


def within(flag: str, value: int | None, low: int, high: int) -> None:
    """Raises InputError for a number outside low..high; None is no number."""
    if value is not None and not low <= value <= high:
        raise InputError(f"{flag} {str(value) if abs(value) < 2**63 else '...'}: choose between {low:,} and {high:,}")
