"""A bounded fuzzer for everything that is read from a file: `python tests/fuzz.py --seconds 300 --json FILE`.

Valid files of every kind are damaged at random (bits, bytes, cuts, repetitions, splices, extreme numbers) and then
read as a user would have them read. Each must give a result or one line of InputError or Fault: no other exception, no
hang, no allocation beyond what a small file can need.
"""

import argparse
import io
import json
import random
import signal
import struct
import sys
import tempfile
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from igebm import data, model, presets
from igebm.benchmarks.speed import RESET, resident
from igebm.data.decode import MOST_PIXELS
from igebm.errors import Fault, InputError
from igebm.limits import release_memory
from igebm.runtime import probe
from igebm.shapes import Shape, from_dict
from igebm.training import state as states

SLOWEST = 10.0
"""seconds that one small file may take at most"""
GROWTH = 2**29
"""bytes that memory may grow by over all files"""
LARGEST = 8 * MOST_PIXELS + 2**26
"""bytes that memory may grow by while one file is read: the largest picture that is allowed, and what else there is"""
KEPT = 2**26
"""bytes that all files together may leave behind: by the least that was held in the first and in the last fifth of the
time, since the allocators of Pillow and of its threads keep a picture's memory for a while and let go of it"""
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFF, 0x8000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 50_000)
TINY = replace(presets.named("digits"), width=4, blocks="1d", batch=4, buffer_size=8)
RUNTIME = probe("cpu", "float32", "off", 1)


@cache
def valid_files() -> dict[str, bytes]:
    """One or more files of every kind that is read: name -> content."""
    rng = np.random.default_rng(0)
    colour, grey = (rng.integers(0, 256, shape, dtype=np.uint8) for shape in ((12, 12, 3), (12, 12)))
    files = {}

    def picture(name: str, image: Image.Image, **options) -> None:
        content = io.BytesIO()
        image.save(content, **options)
        files[name] = content.getvalue()

    rgb = Image.fromarray(colour)
    for kind in ("png", "jpeg", "webp", "gif", "bmp", "tiff", "ppm"):
        picture(f"rgb.{kind}", rgb, format=kind)
    picture("palette.png", rgb.quantize(16), format="png", transparency=3)
    picture("alpha.png", rgb.convert("RGBA"), format="png")
    picture("deep.png", Image.fromarray(grey.astype(np.uint16) * 257), format="png")
    picture("cmyk.jpeg", rgb.convert("CMYK"), format="jpeg")
    picture("progressive.jpeg", rgb, format="jpeg", progressive=True, exif=_turned())
    picture("two.gif", rgb, format="gif", save_all=True, append_images=[Image.fromarray(colour[::-1])])
    picture("lossless.webp", rgb.convert("RGBA"), format="webp", lossless=True)
    for packing in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "group4"):
        picture(f"{packing}.tiff", rgb.convert("1") if packing == "group4" else rgb, format="tiff", compression=packing)

    arrays = {"train_x": colour[None].repeat(3, 0), "train_y": np.arange(3), "classes": np.array(["a", "b", "c"])}
    for name, save in (("stored.npz", np.savez), ("packed.npz", np.savez_compressed)):
        content = io.BytesIO()
        save(content, **arrays)
        files[name] = content.getvalue()
    content = io.BytesIO()
    np.save(content, arrays["train_x"])
    files["x.npy"] = content.getvalue()

    files |= series_files()
    state = states.start(TINY, Shape(1, 8, 8, ("a", "b")), RUNTIME, {})
    state.buffer.write(torch.arange(4), torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 0, 1]))
    with tempfile.TemporaryDirectory() as folder:
        states.save_checkpoint(Path(folder), state, RUNTIME)
        states.save_model(Path(folder, "m.safetensors"), state)
        files["checkpoint.pt"] = Path(folder, states.CHECKPOINT).read_bytes()
        files["m.safetensors"] = Path(folder, "m.safetensors").read_bytes()
    files["repacked.pt"] = _repacked(files["checkpoint.pt"])
    return files


def series_files() -> dict[str, bytes]:
    """Time series of two features, as arrays and as tables."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    x = np.random.default_rng(0).normal(size=(2, 4, 2)).astype(np.float32)
    table = {"series": [0] * 4 + [1] * 4, "step": [0, 1, 2, 3] * 2, "a": x[..., 0].ravel(), "b": x[..., 1].ravel()}
    lines = [",".join(table), *(",".join(map(str, row)) for row in zip(*table.values(), strict=True))]
    packed, parquet = io.BytesIO(), io.BytesIO()
    np.savez_compressed(packed, train_x=x, features=np.array(["a", "b"]))
    pq.write_table(pa.table(table), parquet)
    return {
        "series.csv": "\n".join(lines).encode(), "series.npz": packed.getvalue(), "series.parquet": parquet.getvalue(),
    }  # fmt: skip


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def _repacked(content: bytes) -> bytes:
    """The same archive with its parts compressed."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    return out.getvalue()


# Damage


def mutated(content: bytes, other: bytes, rng: random.Random) -> bytes:
    """`content` with one to four random damages."""
    b = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        b = rng.choice(DAMAGES)(b, other, rng) or bytearray(b"\0")
    return bytes(b)


def _place(b: bytearray, rng: random.Random) -> int:
    """Anywhere, but every other time near the start or the end, where headers and directories are."""
    near = min(len(b), 96)
    return rng.choice((rng.randrange(len(b)), rng.randrange(near), len(b) - 1 - rng.randrange(near)))


def flip_bits(b: bytearray, other: bytes, rng: random.Random) -> bytearray:
    for _ in range(rng.choice((1, 2, 8, 32))):
        b[_place(b, rng)] ^= 1 << rng.randrange(8)
    return b


def set_number(b: bytearray, other: bytes, rng: random.Random) -> bytearray:
    """An extreme whole number, of either order of bytes, somewhere."""
    size, at = rng.choice((1, 2, 4, 8)), _place(b, rng)
    b[at : at + size] = (rng.choice(NUMBERS) % 256**size).to_bytes(size, rng.choice(("little", "big")))
    return b


def set_digits(b: bytearray, other: bytes, rng: random.Random) -> bytearray:
    """Another number written in digits, as headers of arrays, models and PPM have them."""
    digits = [i for i, c in enumerate(b[:4096]) if 48 <= c < 58]
    if digits:
        at = rng.choice(digits)
        b[at : at + 1] = rng.choice((b"0", b"-1", b"9", b"1000000000000", b"9" * 30, b"1e9", b"(1,)", b"None", b"[[["))
    return b


def cut(b: bytearray, other: bytes, rng: random.Random) -> bytearray:
    return b[: rng.randrange(len(b))]


def remove(b: bytearray, other: bytes, rng: random.Random) -> bytearray:
    at = _place(b, rng)
    del b[at : at + rng.choice((1, 4, 64))]
    return b


def repeat(b: bytearray, other: bytes, rng: random.Random) -> bytearray:
    at = _place(b, rng)
    piece = b[at : at + rng.choice((1, 4, 64, 512))]
    return b[:at] + piece * rng.choice((2, 8)) + b[at:]


def splice(b: bytearray, other: bytes, rng: random.Random) -> bytearray:
    start, end = rng.randrange(len(b)), rng.randrange(len(other))
    return b[:start] + other[end : end + rng.choice((16, 256, len(other)))] + b[start + rng.choice((0, 16, len(b))) :]


def scramble(b: bytearray, other: bytes, rng: random.Random) -> bytearray:
    at = _place(b, rng)
    size = min(len(b) - at, rng.choice((4, 16, 128)))
    b[at : at + size] = rng.randbytes(size)
    return b


DAMAGES = (flip_bits, set_number, set_digits, cut, remove, repeat, splice, scramble)


def resealed(content: bytes, other: bytes, rng: random.Random) -> bytes:
    """The same damages inside a checksum: a member of an archive or a chunk of a PNG, its CRC made to fit again."""
    if content.startswith(b"PK"):
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
            members = old.infolist()
            hit = rng.choice(members)
            for info in members:
                part = old.read(info)
                part = mutated(part, other, rng) if info is hit and part else part
                new.writestr(info.filename, part, info.compress_type)
        return out.getvalue()
    if content.startswith(b"\x89PNG"):
        chunks, at = [], 8
        while at < len(content):
            size = int.from_bytes(content[at : at + 4])
            chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
            at += 12 + size
        hit = rng.randrange(len(chunks))
        chunks = [
            (kind, mutated(part, other, rng) if i == hit and part else part) for i, (kind, part) in enumerate(chunks)
        ]
        return content[:8] + b"".join(chunk(kind, part) for kind, part in chunks)
    return mutated(content, other, rng)


def chunk(kind: bytes, content: bytes) -> bytes:
    """A part of a PNG, with its length and its checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


# Reading


def read_picture(path: Path) -> None:
    images = data.load(str(path.parent), image_size=8)
    assert images.x.shape[1:3] == (8, 8) and images.x.dtype == np.uint8


def read_array(path: Path) -> None:
    for split in ("train", "test"):
        try:
            images = data.load(str(path), split, image_size=8)
        except data.MissingSplit:
            continue
        assert images.x.shape[1:3] == (8, 8) and images.x.dtype == np.uint8
        assert images.y is None or len(images.y) == len(images.x)


def read_series(path: Path) -> None:
    found = data.sources.load_series(str(path))
    assert found.x.ndim == 3 and found.x.dtype == np.float32 and np.isfinite(found.x).all()
    assert len(found.features) == found.x.shape[2]


def read_model(path: Path) -> None:
    m = model.load(path)
    assert m.energy(np.zeros((1, *m.shape.image[1:], m.shape.channels), np.uint8)).shape == (1,)


def read_checkpoint(path: Path) -> None:
    saved = states.read_checkpoint(path.parent, lambda line: None)
    probe("cpu", compile="off", before=saved["runtime"])
    state = states.start(presets.from_dict(saved["settings"]), from_dict(saved, path), RUNTIME, saved["facts"])
    states.restore(state, saved, path)


READERS: dict[str, Callable[[Path], None]] = {
    ".npz": read_array, ".npy": read_array, ".safetensors": read_model, ".pt": read_checkpoint,
}  # fmt: skip


def read(name: str, content: bytes) -> str:
    """What became of it: "read", or the kind of refusal. Raises whatever else the reader raises."""
    kind = Path(name).suffix
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        path = Path(folder, states.CHECKPOINT if kind == ".pt" else f"x{kind}")
        path.write_bytes(content)
        try:
            (read_series if name.startswith("series") else READERS.get(kind, read_picture))(path)
        except (InputError, Fault) as error:
            assert "\n" not in str(error), f"more than one line: {error}"
            return "refused"
    return "read"


class Slow(Exception):
    pass


def fuzz(seconds: float, seed: int = 0, keep: Path | None = None) -> dict:
    """Damage and read for so long. The outcome as plain data; files that did something else are kept in `keep`."""
    files, rng = valid_files(), random.Random(seed)
    for name, content in files.items():
        assert read(name, content) == "read", f"{name} is not read undamaged"
    contents, outcomes, failures = list(files.values()), Counter(), []
    before = most = _resident("VmHWM")
    release_memory()
    if RESET.exists():
        RESET.write_text("5")
    slowest, largest, begun, held = ("", 0.0), ("", 0), time.monotonic(), []
    end = begun + seconds

    def ring(number, frame):
        raise Slow(f"still reading after {SLOWEST:g} s")

    had = signal.signal(signal.SIGALRM, ring)
    try:
        while time.monotonic() < end:
            name = rng.choice(list(files))
            content = rng.choice((mutated, resealed))(files[name], rng.choice(contents), rng)
            started, had_before = time.monotonic(), _resident("VmRSS")
            signal.setitimer(signal.ITIMER_REAL, SLOWEST)
            try:
                kind = "series" * name.startswith("series") + Path(name).suffix
                outcomes[f"{kind} {read(name, content)}"] += 1
            except Exception as error:
                failures.append(f"{name}: {type(error).__name__}: {error}")
                if keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{len(failures)}-{name}").write_bytes(content)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            slowest = max(slowest, (name, time.monotonic() - started), key=lambda row: row[1])
            peak = _resident("VmHWM")
            most = max(most, peak)
            largest = max(largest, (name, peak - had_before), key=lambda row: row[1])
            held.append((time.monotonic(), _resident("VmRSS")))
            if peak - held[-1][1] > 2**24 and RESET.exists():
                RESET.write_text("5")  # or the next file would be taken for as large
    finally:
        signal.signal(signal.SIGALRM, had)
    least = lambda low, high: min([r for t, r in held if low <= (t - begun) / seconds <= high], default=0)
    return {
        "seed": seed, "seconds": seconds, "files": sum(outcomes.values()) + len(failures),
        "outcomes": dict(sorted(outcomes.items())), "failures": failures, "slowest": slowest[0],
        "slowest_seconds": round(slowest[1], 3), "largest": largest[0], "largest_bytes": largest[1],
        "memory_growth_bytes": most - before, "kept_bytes": least(0.8, 2) - least(0, 0.2),
    }  # fmt: skip


def sound(found: dict) -> bool:
    bounds = {"memory_growth_bytes": GROWTH, "largest_bytes": LARGEST, "kept_bytes": KEPT}
    return not found["failures"] and all(found[name] < most for name, most in bounds.items())


def _resident(field: str) -> int:
    """Bytes that this process holds now (VmRSS), or held at most since RESET (VmHWM); 0 where it cannot be told."""
    return int(1024 * resident(field)) if RESET.exists() else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder for the files that did something else")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    found = fuzz(asked.seconds, asked.seed, asked.keep)
    print(json.dumps(found, indent=2))
    if asked.json is not None:
        asked.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0 if sound(found) else 1


if __name__ == "__main__":
    sys.exit(main())
