"""Models on the Hugging Face hub, through `huggingface_hub`, which is imported when it is first needed.

What is read there is what `igebm push` writes: safetensors, JSON, the card and one picture. A repository's other files
are never fetched.
"""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from . import __version__, terminal
from .data.hub import unreachable
from .errors import Fault, InputError

MODEL = "model.safetensors"
LOGIN = "log in by `hf auth login`, or set HF_TOKEN"


class Repository(NamedTuple):
    """A place on the hub: hf:owner/name, or hf:owner/name@revision (a branch, a tag or a commit)."""

    name: str
    revision: str | None = None


def parse(spec: str) -> Repository:
    """`hf:owner/name[@revision]`, the hf: left out or not. Raises InputError."""
    part = r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9_])?"
    match = re.fullmatch(rf"(?:hf:)?({part}/{part})(?:@([\w][\w./-]*))?", spec)
    if not match or "--" in match[1] or ".." in spec or len(match[1]) > 96:
        raise InputError(
            f"{spec!r} is no name on the hub; write hf:owner/name, or hf:owner/name@revision (a folder: ./{spec}/)"
        )
    return Repository(match[1], match[2])


def api() -> Any:
    """The hub as $HF_ENDPOINT, $HF_TOKEN and $HF_HOME have it; bars of its own only on a terminal."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    if sys.stderr is None or not sys.stderr.isatty():
        disable_progress_bars()
    endpoint = os.environ.get("HF_ENDPOINT") or None
    return HfApi(endpoint, library_name="igebm", library_version=__version__)


@cache
def model_file(spec: str) -> Path:
    """The safetensors file of hf:owner/name, downloaded once and then kept in the hub's own cache.

    Without a network the kept copy is used, and this is said. Raises InputError where there is none.
    """
    at = parse(spec)
    if away := not_there():
        from huggingface_hub import try_to_load_from_cache

        kept = try_to_load_from_cache(at.name, MODEL, revision=at.revision)
        if not isinstance(kept, str):
            raise InputError(f"{at.name} is not on this machine and {away}; connect to the network, or give a file")
        terminal.say(f"{away}; the copy of {at.name} that is on this machine is used")
        return Path(kept)
    return fetched(at, MODEL)


def fetched(at: Repository, name: str) -> Path:
    """One file of a repository, from the cache or downloaded. Raises InputError where it cannot be had."""
    with told(at.name, f"no {name}"):
        return Path(api().hf_hub_download(at.name, name, revision=at.revision))


def listed(at: Repository) -> tuple[Repository, list[str]]:
    """The repository at the commit that it is at now, and the names of all its files. Raises InputError."""
    if away := not_there():
        raise InputError(f"{at.name} cannot be listed: {away}")
    with told(at.name, "no such revision"):
        found = api().model_info(at.name, revision=at.revision)
    return Repository(at.name, found.sha or at.revision), sorted(file.rfilename for file in found.siblings or [])


def ready_to_push() -> None:
    """Raises InputError without a network or a token, before any work is done."""
    if away := not_there():
        raise InputError(f"nothing can be pushed: {away}; igebm push MODEL FOLDER/ writes the same files into a folder")
    import huggingface_hub

    if huggingface_hub.get_token() is None:
        raise InputError(f"nothing can be pushed without a token: {LOGIN}")


def found_at(at: Repository) -> tuple[list[str], str]:
    """The names of all files of a repository, and the text of its README.md; nothing of one that is not there, or that
    is not shown to this user. Raises InputError where the hub cannot be asked."""
    from huggingface_hub import errors

    with told(at.name, "no README.md"):
        try:
            files = [file.rfilename for file in api().model_info(at.name).siblings or []]
        except errors.RepositoryNotFoundError:
            return [], ""
    card = fetched(at, "README.md").read_text(encoding="utf-8", errors="replace") if "README.md" in files else ""
    return files, card


def push(folder: Path, name: str, public: bool, message: str, stale: list[str]) -> str:
    """Upload all of `folder` in one commit, making the repository where there is none; returns its address.

    A new repository is private unless `public`. `stale` are patterns of files there that go where `folder` lacks them.
    Raises InputError without the right to write, and for a repository that is public already unless `public` is said.
    """
    with told(name, "nothing to write to"):
        hub = api()
        address = hub.create_repo(name, private=not public, exist_ok=True)
        if not public and not hub.model_info(name).private:
            raise InputError(f"{name} is there and public: everybody would see what is pushed; say --public to do so")
        hub.upload_folder(repo_id=name, folder_path=folder, commit_message=message, delete_patterns=stale)
    return str(address)


def not_there() -> str:
    """Why the hub cannot be asked, or nothing."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "HF_HUB_OFFLINE is set"
    return unreachable()


@contextmanager
def told(name: str, missing: str) -> Iterator[None]:
    """Whatever the hub raises as one line of ours: InputError, or Fault where the hub itself fails."""
    from huggingface_hub import errors

    try:
        yield
    except (InputError, Fault):
        raise
    except errors.GatedRepoError as error:
        raise InputError(f"{name} is open only to those whom its owner has let in: ask there, and {LOGIN}") from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"{name} is not on the hub, or is private and not yours; check the name, or {LOGIN}"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise InputError(f"{name} cannot be reached ({first_line(error)}); try again when the hub answers") from error
    except (errors.EntryNotFoundError, errors.RevisionNotFoundError) as error:
        raise InputError(f"{name} has {missing}; was it written by igebm push, or is the name mistyped?") from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", 0)
        if status in (401, 403):
            raise InputError(
                f"the hub does not let you at {name} ({status}): {LOGIN} with the right to write"
            ) from error
        kind = Fault if status >= 500 else InputError
        raise kind(f"the hub answers {status} for {name}: {error.server_message or first_line(error)}") from error
    except (errors.HFValidationError, errors.LocalTokenNotFoundError, ValueError, OSError) as error:
        raise InputError(f"{name}: {first_line(error)}") from error
    except Exception as error:  # of the HTTP library beneath, whose kinds have changed with its versions
        if not type(error).__module__.partition(".")[0].startswith(("httpx", "requests", "httpcore", "urllib3")):
            raise
        raise InputError(f"{name} cannot be reached ({first_line(error)}); try again when the hub answers") from error


def first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0][:200]
