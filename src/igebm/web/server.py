"""`igebm serve`: a port, a password where others can reach it, and the page on it; nothing leaves the machine."""

import importlib.util
import ipaddress
import os
import signal
import socket
import sys
import tempfile
import time
import warnings
from getpass import getpass

from .. import hub, pretrained, terminal
from ..arguments import Serve
from ..data.decode import MOST_PIXELS
from ..errors import InputError
from ..inputs import open_model
from ..model import Model

MOST_BYTES = 10 * 2**20
"""of an upload"""


def serve(asked: Serve) -> None:
    """Opens the page and waits; ends by Ctrl-C (KeyboardInterrupt). Raises InputError before anything is loaded."""
    if importlib.util.find_spec("gradio") is None:
        raise InputError("the page needs gradio: pip install '.[web]'")
    password = password_for(asked.host, asked.user)
    port = free_port(asked.host, asked.port)
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        signal.signal(number, lambda number, _: sys.exit(128 + number))  # so that the folder goes, too
    for where in asked.models:
        if where.startswith("hf:"):
            hub.model_file(where)  # fetched while the network may still be asked
    with tempfile.TemporaryDirectory(prefix="igebm-", ignore_cleanup_errors=True) as folder:
        alone(asked.host, folder)
        models: dict[str, Model] = {}
        for where in asked.models or pretrained.of_images():
            m, _ = open_model(where, asked.machine)
            m.name = unused(m.name, models)
            models[m.name] = m
        from PIL import Image

        from . import page

        # What gradio itself opens on the way, with its own reader, it refuses from twice this on.
        Image.MAX_IMAGE_PIXELS = MOST_PIXELS // 2
        warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
        login = (asked.user, password) if password else None
        address = page.launch(page.Served(models, asked.data_dir), asked.host, port, login, MOST_BYTES)
        terminal.say(f"{', '.join(models)}: open the address in a browser; Ctrl-C ends it")
        if not loopback(asked.host):
            terminal.say("the password travels unencrypted: use it in networks that you trust, or behind HTTPS")
        print(address, flush=True)
        try:
            while True:
                time.sleep(60)
        finally:  # a second Ctrl-C must not stop what clears the folder away
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def alone(host: str, folder: str) -> None:
    """Settings that gradio reads when it is imported: it keeps its files in `folder`, asks no other machine for
    anything, and reaches this one by no proxy."""
    os.environ |= {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "GRADIO_TEMP_DIR": folder,
        "GRADIO_SHARE": "False",
        "GRADIO_MCP_SERVER": "False",
    }
    if "huggingface_hub.constants" in sys.modules:  # imported to fetch a model, so that it has read the old setting
        sys.modules["huggingface_hub.constants"].HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1", "localhost", "::1", host]))


def loopback(host: str) -> bool:
    """Whether this machine alone can reach it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def password_for(host: str, user: str) -> str:
    """The password that visitors must give; "": none, where only this machine can reach the page.

    From IGEBM_PASSWORD, or asked for in the terminal. Raises InputError where the page would be open to others.
    """
    given, alone = os.environ.get("IGEBM_PASSWORD", ""), loopback(host)
    if not user and (given or not alone):
        raise InputError("--user is empty: give the name that visitors log in with")
    if given or alone:
        return given
    if sys.stdin is not None and sys.stdin.isatty():
        given = getpass(f"password for visitors ({user}): ", stream=sys.stderr)
    if not given:
        raise InputError(f"--host {host} lets others reach the page, so it needs a password: set IGEBM_PASSWORD")
    return given


def free_port(host: str, port: int) -> int:
    """`port`, which nothing else listens at (0: any such). Raises InputError where there is none, or no such host."""
    if not 0 <= port < 65536:
        raise InputError(f"--port {port}: choose between 0 and 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
            trial.listen(1)
            return trial.getsockname()[1]
    except socket.gaierror:
        raise InputError(f"--host {host}: there is no such host; give 127.0.0.1, or 0.0.0.0 for all networks") from None
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot listen at {host} port {port} ({reason}); choose another with --port") from None


def unused(name: str, taken: dict[str, Model]) -> str:
    """A model's name as a term can have it, and no other model has it: digits, digits-2, ..."""
    plain = name.translate({ord(c): "-" for c in "=*:,"}).strip() or "model"
    number, found = 1, plain
    while found in taken:
        number += 1
        found = f"{plain}-{number}"
    return found
