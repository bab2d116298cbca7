"""What images are described by before two sets of them are compared: the 2015 Inception network, or a classifier.

A number is called IS, FID or KID only where the features are that network's, since it is no other's; `score_names`
says what to call it otherwise.
"""

import hashlib
import io
import os
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32, UInt8
from torch import Tensor, nn

from .. import terminal
from ..data import centred
from ..data.images import existing, shown, with_channels
from ..data.named import data_folder, data_places
from ..errors import InputError
from ..files import one_at_a_time, whole
from ..terminal import Screen

INCEPTION = "inception-2015-12-05.pt"
SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
URL = f"https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/{INCEPTION}"
SILENT_FOR = 20.0
"""seconds without a byte after which a download is given up"""

QUIET = Screen(terminal.say, lambda *_, **__: None)

Described = tuple[Float32[np.ndarray, "n d"], Float32[np.ndarray, "n k"]]
"""features and class probabilities, a row an image"""


@dataclass(frozen=True)
class Extractor:
    """A function from uint8 images (N, H, W, C) to their features (N, d) and class probabilities (N, k), and the name
    that goes with every number from it. All N pass through the network at once; `describe` takes them in batches."""

    name: str
    of: Callable[[np.ndarray], Described]
    inception: bool = False
    """whether it is the 2015 Inception network"""

    def __call__(self, images: UInt8[np.ndarray, "n h w c"]) -> Described:
        return self.of(images)


class ScoreNames(NamedTuple):
    inception_score: str
    frechet: str
    kernel: str


def score_names(extractor: Extractor) -> ScoreNames:
    """What the numbers of metrics.py are called: IS, FID and KID for the Inception network alone."""
    if extractor.inception:
        return ScoreNames("IS", "FID", "KID")
    of = f"({extractor.name})"
    return ScoreNames(f"classifier score {of}", f"Fréchet distance {of}", f"kernel distance {of}")


def describe(
    extractor: Extractor,
    images: UInt8[np.ndarray, "n h w c"],
    batch: int = 64,
    step: Callable[[int, int], None] = lambda done, total: None,
) -> Described:
    """Features and class probabilities of all images, `batch` at a time. Raises InputError where there are none."""
    if not len(images):
        raise InputError("no images found: there is nothing to describe")
    found = []
    for start in range(0, len(images), batch):
        found.append(extractor(np.asarray(images[start : start + batch])))
        step(min(start + batch, len(images)), len(images))
    features, probabilities = zip(*found, strict=True)
    return np.concatenate(features), np.concatenate(probabilities)


def of_network(
    name: str, net: Callable[[Tensor], tuple[Tensor, Tensor]], device: torch.device | str = "cpu"
) -> Extractor:
    """The extractor of a network on `device` that takes x (B, C, H, W) in [0, 1] and gives features (B, d) and logits
    (B, k); a module is put into evaluation mode.

    Pixels are read at their bin's centre, (u + ½) / 256.
    """
    if isinstance(net, nn.Module):
        net.eval()

    @torch.no_grad()
    def of(images: np.ndarray) -> Described:
        h, logits = net(centred(_tensor(images, device)))
        return h.flatten(1).float().cpu().numpy(), logits.float().softmax(1).cpu().numpy()

    return Extractor(name, of)


def _tensor(images: UInt8[np.ndarray, "n h w c"], device: torch.device | str) -> UInt8[Tensor, "n c h w"]:
    return torch.from_numpy(np.array(np.moveaxis(images, -1, 1), order="C", copy=True)).to(device)


# The Inception network


def inception(
    file: Path | None = None,
    data_dir: Path | None = None,
    device: torch.device | str = "cpu",
    screen: Screen = QUIET,
    sha256: str = SHA256,
    url: str = URL,
) -> Extractor:
    """The network of Szegedy et al. as of December 2015, on which IS, FID and KID are defined: 2,048 features, and
    class probabilities without the last layer's bias, as the first implementation of the Inception score has them.

    Taken from `file`, else from $IGEBM_INCEPTION, else from the data folder, else downloaded to it; opened only if its
    SHA-256 is `sha256`. Grey images are given three equal channels; the network itself resizes to 299 x 299. Raises
    InputError, with address, place, hash and flag, where it cannot be had.
    """
    content = _find(file, data_dir, screen, sha256, url)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and is what the file is
        net = torch.jit.load(io.BytesIO(content), map_location=device).eval()
    weight = net.output.weight

    @torch.no_grad()
    def of(images: np.ndarray) -> Described:
        h = net(_tensor(with_channels(images, 3), device), return_features=True)
        # What net(x, no_output_bias=True) gives, without a second pass through all layers.
        p = F.linear(h, weight).softmax(1)
        return h.float().cpu().numpy(), p.float().cpu().numpy()

    return Extractor("Inception 2015", of, inception=True)


def _find(file: Path | None, data_dir: Path | None, screen: Screen, sha256: str, url: str) -> bytes:
    given = str(file or os.environ.get("IGEBM_INCEPTION") or "")
    if given:
        if not Path(given).is_file():
            raise InputError(f"no Inception network at {shown(given)}; {_advice(url, given, sha256)}")
        return _content(Path(given), sha256)
    damaged = ""
    for path in (place / INCEPTION for place in data_places(data_dir)):
        if existing(path):
            try:
                return _content(path, sha256)
            except InputError as error:
                damaged = f"{error}; "
    path = data_folder(data_dir, screen.say) / INCEPTION
    with one_at_a_time(path.with_name(f".{path.stem}.lock"), screen.say):  # of several processes one fetches, for all
        if existing(path):
            with suppress(InputError):
                return _content(path, sha256)
        screen.say(f"{damaged}downloading the Inception network, 96 MB, from {urlsplit(url).hostname} to {shown(path)}")
        try:
            _download(url, path, sha256, screen.step)
        except InputError as error:
            why = f"{damaged}{error}; {_advice(url, shown(path), sha256)}"
            raise InputError(f"the Inception network is not on this machine: {why}") from error
    return _content(path, sha256)


def _advice(url: str, path: str, sha256: str) -> str:
    return f"download {url} (SHA-256 {sha256}) to {path}, or name a copy with --inception FILE"


def _content(path: Path, sha256: str) -> bytes:
    """The bytes of a file, read once: what is checked is what is opened. Raises InputError where the hash differs."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {shown(path)}: {error.strerror or error}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise InputError(
            f"{shown(path)} is damaged or another file and is not used: {len(content):,} bytes with SHA-256 {found}, "
            f"expected {sha256}"
        )
    return content


def _download(url: str, path: Path, sha256: str, step: terminal.Step) -> None:
    """The file at `url` as `path`, whole and with the expected hash, or not at all. Raises InputError otherwise."""
    h = hashlib.sha256()
    with whole(path) as temporary, open(temporary, "wb") as file:
        for chunk in _fetched(url, step):
            file.write(chunk)
            h.update(chunk)
        if h.hexdigest() != sha256:
            raise InputError(f"what {url} gave is damaged or another file (SHA-256 {h.hexdigest()}) and was dropped")


def _fetched(url: str, step: terminal.Step) -> Iterator[bytes]:
    """What is at `url`, by the megabyte. Raises InputError where it cannot be reached or breaks off."""
    done, total = 0, 0
    try:
        with urllib.request.urlopen(url, timeout=SILENT_FOR) as answer:
            total = int(answer.headers.get("Content-Length") or 0)
            while chunk := answer.read(2**20):
                done += len(chunk)
                step(done >> 20, max(done, total) >> 20, "MiB of the Inception network")
                yield chunk
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise InputError(f"{url} cannot be had ({getattr(reason, 'strerror', None) or reason})") from error
    if done < total:
        raise InputError(f"{url} broke off after {done:,} of {total:,} bytes")
