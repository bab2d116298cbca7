"""Pictures inside a page: as data: URIs, re-encoded where they are large."""

import base64
import io
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element

from PIL import Image, ImageSequence, features

from .markup import tag

LARGE = 60_000
"""bytes beyond which a picture is re-encoded as WebP: lossless where it has 256 colours at most, else at quality 80"""
HUGE = 2_000_000
"""bytes beyond which a moving picture loses every second frame"""
WIDEST = 1_600
"""pixels beyond which it is also made smaller"""
KINDS = {"PNG": "image/png", "GIF": "image/gif", "JPEG": "image/jpeg", "WEBP": "image/webp"}


class Embedded(NamedTuple):
    """A picture's bytes as a URI, its size in pixels, and its last frame as a picture of its own where it moves."""

    uri: str
    width: int
    height: int
    still: str | None = None

    def elements(self, alt: str) -> list[Element]:
        """<img>; of a moving picture also its still, which the style shows instead on paper and to readers who want
        no motion."""
        size = {"alt": alt, "width": self.width, "height": self.height}
        if self.still is None:
            return [tag("img", src=self.uri, **size)]
        return [tag("img", src=self.uri, class_="moving", **size), tag("img", src=self.still, class_="still", **size)]


def embed(path: Path, troubles: list[str], shown: str = "") -> Embedded | None:
    """The picture in `path`, decoded as a whole first; None, and a line in `troubles`, where it is missing or
    damaged. `shown` is what the line calls it (default: its name)."""
    shown = shown or path.name
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            kind, size = image.format or "", image.size
            if kind not in KINDS:
                troubles.append(f"{shown} is {kind or 'no picture'}, not PNG, GIF, JPEG or WebP: it is not shown")
                return None
            times = []
            frames = []
            for frame in ImageSequence.Iterator(image):
                times.append(int(frame.info.get("duration", 100)))
                frames.append(frame.convert("RGBA" if "transparency" in frame.info or frame.mode == "RGBA" else "RGB"))
    except FileNotFoundError:
        troubles.append(f"{shown} is missing")
        return None
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        troubles.append(f"{shown} is damaged ({' '.join(str(error).split())})")
        return None
    if len(data) > LARGE:
        data, kind, size = smaller(data, kind, frames, times)
    still = None
    if len(frames) > 1:
        png = io.BytesIO()
        frames[-1].save(png, "PNG")
        still = uri(png.getvalue(), "PNG")
    return Embedded(uri(data, kind), *size, still)


def smaller(data: bytes, kind: str, frames: list[Image.Image], times: list[int]) -> tuple[bytes, str, tuple[int, int]]:
    """The picture as WebP where that has fewer bytes, at most WIDEST pixels wide; otherwise as it is."""
    own = size = frames[0].size
    if not features.check("webp"):
        return data, kind, own
    few = frames[0].getcolors(256) is not None
    if size[0] > WIDEST:
        size = (WIDEST, max(1, round(size[1] * WIDEST / size[0])))
        frames = [frame.resize(size, Image.Resampling.LANCZOS) for frame in frames]
    if len(frames) > 2 and len(data) > HUGE:
        frames = [*frames[:-1:2], frames[-1]]
        times = [a + b for a, b in zip(times[:-1:2], [*times[1:-1:2], 0], strict=False)] + times[-1:]
    how: dict[str, Any] = {"lossless": True, "quality": 50} if few else {"quality": 80}
    if len(frames) > 1:
        how |= {"save_all": True, "append_images": frames[1:], "duration": times, "loop": 0}
    webp = io.BytesIO()
    frames[0].save(webp, "WEBP", method=4, **how)
    best = webp.getvalue()
    return (best, "WEBP", size) if len(best) < len(data) else (data, kind, own)


def uri(data: bytes, kind: str) -> str:
    return f"data:{KINDS[kind]};base64,{base64.b64encode(data).decode()}"
