"""Files are written whole or not at all: to a temporary neighbour, synced, renamed."""

import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from .errors import Fault, InputError
from .plain import plain


@contextmanager
def whole(path: Path, then: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """A temporary file beside `path` to write to; it becomes `path` when the block ends, and vanishes if the block
    fails.

    The data reach the disk before the name does (fsync, rename, fsync of the folder), so that after a crash `path` is
    either the old file or the new one. `then` is called between the two: the new file is safe, the old one still
    there. Raises Fault, naming the file, where the disk is full or the folder unwritable.
    """
    path = Path(path)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        os.close(handle)
    except OSError as error:
        raise Fault(f"cannot write {path}: {error.strerror}; free some space or choose another folder") from error
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        then()
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise Fault(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another folder"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """As `plain` has it."""
    write_text(path, json.dumps(plain(value), indent=2, allow_nan=False) + "\n")


def write_array(path: Path, values: np.ndarray) -> None:
    """An .npy file, without pickles."""
    with whole(path) as temporary, open(temporary, "wb") as file:
        np.save(file, values, allow_pickle=False)


def located(text: str) -> Path:
    """The path that `text` names, under whatever locale it was written down: its UTF-8 bytes, and bytes that are no
    text as they were."""
    return Path(os.fsdecode(text.encode("utf-8", "surrogateescape")))


def what_is(path: Path) -> Literal["file", "folder", "nothing"]:
    """What lies at `path`. Raises InputError where that cannot be found out (a folder that may not be searched, a name
    that is too long), and for devices and pipes, which might never end."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "nothing"
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise InputError(f"cannot look at {path}: {getattr(error, 'strerror', None) or error}") from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InputError(f"{path} is neither a file nor a folder")
    return "folder" if stat.S_ISDIR(mode) else "file"


def user_cache() -> Path | None:
    """The folder of this user's in which what can be made or fetched again is kept; None where the user has no home."""
    home = os.path.expanduser("~")  # stays "~" without $HOME and an entry for the user
    return Path(home, ".cache", "igebm") if home != "~" else None


def writable_file(path: Path) -> Path:
    """`path` as a file that can be written, its folder made. Raises InputError otherwise, before any work is done."""
    writable_folder(path.parent)
    if what_is(path) == "folder":
        raise InputError(f"cannot write to {path}: it is a folder; give the name of a file")
    return path


def free_folder(wanted: Path) -> Path:
    """`wanted`, or the first of wanted-2, wanted-3, ... that is not there."""
    folder, n = wanted, 1
    while os.path.lexists(folder):  # an empty one may be that of a command at work, a link may lead to nothing
        n += 1
        folder = wanted.with_name(f"{wanted.name}-{n}")
    return folder


def writable_folder(path: Path, hint: str = "choose another with --out") -> Path:
    """`path` as a folder that exists and takes files. Raises InputError otherwise, before any work is done."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot write to the folder {path}: {reason}; {hint}") from error
    return path


def new_folder(wanted: Path) -> Path:
    """Make `wanted`, or the first of wanted-2, wanted-3, ... that nobody else has made."""
    while True:
        folder = free_folder(wanted)
        writable_folder(folder.parent)
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            continue  # made by another process since


@contextmanager
def results_folder(path: Path | None, default: Path) -> Iterator[Path]:
    """A `writable_folder` for one command alone to leave its results in: `path`, or a new one called as `default`.
    Where the block is interrupted or fails, those of the folders made for it go again in which it left nothing."""
    wanted = default if path is None else path
    made = [folder for folder in wanted.parents if not os.path.lexists(folder)]
    if path is not None and not os.path.lexists(path):
        made.insert(0, path)
    try:
        folder = new_folder(default) if path is None else writable_folder(path)
        if path is None:
            made.insert(0, folder)  # and no other: what is called so may be another command's
        yield folder
    except BaseException:
        for folder in made:
            with suppress(OSError):  # not empty: it stays
                folder.rmdir()
        raise


@contextmanager
def one_at_a_time(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """One process at a time in the block, as far as there are file locks; `path` is the lock's own file. Who has to
    wait says so, and looks again at what there is to do."""
    lock = _locked(path, say)
    try:
        yield
    finally:
        if lock is not None:
            path.unlink(missing_ok=True)  # while it is held: who waits for it takes another (see below)
            lock.close()


def _locked(path: Path, say: Callable[[str], None]) -> IO[bytes] | None:
    """The lock's open file; None where there are no locks (some network file systems), where it is another user's, or
    where no file is ever the same as itself (file systems that number files anew)."""
    told = False
    for _ in range(100):
        try:
            import fcntl

            lock = open(path, "ab")
        except (ImportError, OSError):
            return None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not told:
                say(f"waiting for another process that is at the same ({path.stem.lstrip('.')})")
                told = True
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            lock.close()
            return None
        with suppress(OSError):
            if os.path.samestat(os.fstat(lock.fileno()), os.stat(path)):
                return lock
        lock.close()  # whoever held it has removed it: what is locked now is no longer what others find
    return None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
