"""Damaged files of every kind: a few seconds of the fuzzer each time, minutes of it with --slow; and bombs, small files
that announce gigantic contents.
"""

import io
import json
import random
import resource
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import fuzz
import numpy as np
import pytest
from PIL import Image

from igebm import data, model
from igebm.errors import InputError


def test_damaged_files_are_read_or_refused_in_one_line(tmp_path):
    """A different seed each hour would find more here, and fail where nothing was changed: minutes are for --slow."""
    found = fuzz.fuzz(4.0, seed=0, keep=tmp_path)
    assert fuzz.sound(found), json.dumps(found, indent=2)
    assert len(found["outcomes"]) > 12  # every kind was tried


@pytest.mark.slow
def test_damaged_files_for_minutes(tmp_path):
    """In a process of its own, whose crash would be seen as well; `benchmarks/battery.py` records the outcome."""
    command = [sys.executable, fuzz.__file__, "--seconds", "180", "--seed", "1", "--keep", str(tmp_path / "kept")]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert done.returncode == 0, done.stdout


def test_every_damage_changes_a_file_and_few_of_them_nothing():
    """The fuzzer's own oracle: of 50 damages of each kind, at least 40 give other bytes."""
    content, other, rng = random.Random(1).randbytes(500) + b"123", b"x" * 300, random.Random(0)
    for damage in fuzz.DAMAGES:
        results = [bytes(damage(bytearray(content), other, rng)) for _ in range(50)]
        assert sum(result != content for result in results) >= 40, damage.__name__


# Bombs


def png(width: int, height: int) -> bytes:
    """A sound PNG but for its pixels, of which there are a few."""
    pixels = zlib.compress(bytes(1000))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + fuzz.chunk(b"IHDR", head) + fuzz.chunk(b"IDAT", pixels) + fuzz.chunk(b"IEND", b"")


def npy(shape: str, descr: str = "'|u1'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + bytes(100)


def npz(content: bytes, method: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.writestr("train_x.npy", content)
    return out.getvalue()


def bmp(width: int, height: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (4, 4)).save(out, "bmp")
    content = bytearray(out.getvalue())
    content[18:26] = struct.pack("<ii", width, height)
    return bytes(content)


def gif(width: int, height: int) -> bytes:
    out = io.BytesIO()
    Image.new("P", (4, 4)).save(out, "gif")
    content = bytearray(out.getvalue())
    content[6:10] = struct.pack("<HH", width, height)
    return bytes(content)


def safetensors(header: dict | bytes, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(100)


SHAPE = "(1000000000000, 8, 8, 1)"
ABOUT = {"__metadata__": {"igebm": "{}"}}
GIGANTIC = {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}
BOMBS = {
    "50,000 x 50,000.png": png(50_000, 50_000),
    "2^31.png": png(2**31 - 1, 2**31 - 1),
    "9,000 x 9,000.png": png(9_000, 9_000),
    "50,000 x 50,000.bmp": bmp(50_000, 50_000),
    "65,535 x 65,535.gif": gif(65_535, 65_535),
    "10^12 items.npy": npy(SHAPE),
    "10^30 items.npy": npy(f"({10**30}, 1)"),
    "negative.npy": npy("(-1, 8, 8, 1)"),
    "items of no size.npy": npy(SHAPE, "'|V0'"),
    "unfinished header.npy": npy("(1, 8, 8, 1"),
    "nested header.npy": npy("(" * 40 + ")" * 40),
    "10^12 items, stored.npz": npz(npy(SHAPE), zipfile.ZIP_STORED),
    "10^12 items, packed.npz": npz(npy(SHAPE), zipfile.ZIP_DEFLATED),
    "items of no size, packed.npz": npz(npy(SHAPE, "'|V0'"), zipfile.ZIP_DEFLATED),
    "4 GiB of header.npz": npz(b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(2**20), zipfile.ZIP_DEFLATED),
    "10^12 weights.safetensors": safetensors(ABOUT | {"w": GIGANTIC}),
    "2^63 bytes of header.safetensors": safetensors({}, 2**63),
    "100 MB of header.safetensors": safetensors({}, 10**8),
    "deep header.safetensors": safetensors(b"[" * 100_000),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_in_one_line_and_takes_no_memory(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(BOMBS[name])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError) as caught:
        if path.suffix == ".safetensors":
            model.load(path)
        else:
            data.load(str(path if path.suffix in (".npz", ".npy") else tmp_path), image_size=8)
    assert "\n" not in str(caught.value) and name in str(caught.value)
    assert (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000
    )  # KiB; a 9,000 x 9,000 PNG takes 243,000


def test_an_archive_that_unpacks_to_more_than_the_memory_is_refused(tmp_path, monkeypatch):
    """On a machine with 1 MiB; uncompressed the same arrays are read in place."""
    x = np.zeros((100, 64, 64, 3), np.uint8)
    np.savez_compressed(tmp_path / "packed.npz", x=x)
    np.savez(tmp_path / "stored.npz", x=x)
    monkeypatch.setattr("igebm.limits.memory", lambda: 2.0**20)
    with pytest.raises(InputError, match=r"packed\.npz .*np\.savez.* need 0\.00114 GiB of memory, there are 0\.000977"):
        data.load(str(tmp_path / "packed.npz"))
    assert isinstance(data.load(str(tmp_path / "stored.npz")).x, np.memmap)


def test_a_large_file_of_another_kind_is_not_read_as_a_model(tmp_path):
    """1 TiB of nothing (a hole in a file): its first bytes tell."""
    path = Path(tmp_path, "film.safetensors")
    with open(path, "wb") as file:
        file.write(b"\0\0\0 ftypisom")
        file.truncate(2**40)
    with pytest.raises(InputError, match="not a whole safetensors file"):
        model.load(path)


def test_bits_flipped_anywhere_in_a_model_are_noticed():
    """300 single bits, in the weights and in the header: refused, or (in the padding) the file means what it meant."""
    whole, rng = fuzz.valid_files()["m.safetensors"], random.Random(0)
    unnoticed = 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        unnoticed += fuzz.read("m.safetensors", bytes(damaged)) == "read"
    assert unnoticed <= 3
