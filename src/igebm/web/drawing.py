"""What the page shows of a chain and of energies, as HTML and SVG in one piece: nothing is fetched, nothing is kept."""

import base64
import io
from collections.abc import Sequence
from typing import Any
from xml.etree.ElementTree import Element, tostring

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from ..report.curves import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, Point, band, grid, limits, line
from ..report.markup import tag, written
from ..report.plots import grid as tiles
from .work import Frame, Reference, Spread, verdict

POINTS = 160
BARS = 48


def text(*children: Any, class_: str | None = None) -> str:
    return tostring(tag("div", *children, class_=class_), encoding="unicode", method="html")


def picture(images: UInt8[np.ndarray, "n h w c"], label: str) -> Element:
    """Images side by side, each pixel a square; the gaps are clear, so that they are the page's colour."""
    n, h, _, _ = images.shape
    large = images.repeat(k := max(1, round(32 / h)), 1).repeat(k, 2)
    inside = (slice(1, -1), slice(1, -1))  # no gap around all
    shown = tiles(large, least=1)[inside]
    clear = 255 - tiles(np.zeros_like(large[..., :1]), least=1)[inside]
    file = io.BytesIO()
    Image.fromarray(np.concatenate([np.broadcast_to(shown, (*shown.shape[:2], 3)), clear], 2)).save(file, "PNG")
    source = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return tag("img", src=source, alt=label, decoding="sync", class_="pixels")


def moving(frame: Frame, note: str = "") -> str:
    """A chain as it stands: its images, and beside them the curve of its energy."""
    label = f"{len(frame.x)} images after step {frame.step} of {frame.of}"
    said = f"step {frame.step:,} of {frame.of:,}"
    if frame.energies:
        said += f" · energy {written(frame.energies[-1].mean, 4)}"
    caption = tag("figcaption", bar(frame.step / max(1, frame.of)), tag("span", said))
    images = tag("figure", picture(frame.images, label), caption, class_="images")
    below = tag("p", note, class_="note") if note else None
    return text(images, curve(frame.energies, frame.of), below, class_="moving")


def bar(share: float) -> Element:
    return tag("span", tag("i", style=f"width:{share:.1%}"), class_="bar", aria_hidden="true")


def curve(energies: Sequence[Spread], steps: int) -> Element:
    """E(x⁰), E(x¹), ...: the mean over the chains, and the band between the least and the greatest."""
    title = tag("figcaption", "Energy, mean and range of the chains")
    size = max(1, -(-len(energies) // POINTS))
    kept = []
    for i in range(0, len(energies), size):
        part = energies[i : i + size]
        mean = sum(e.mean for e in part) / len(part)
        values = {"E": (mean, min(e.least for e in part), max(e.greatest for e in part))}
        kept.append(Point(i, i + len(part) - 1, values))
    x = Axis(0, max(1, steps), LEFT, WIDTH - RIGHT)
    drawn: list[Element] = []
    told = "no step yet"
    if kept:
        low, high = (f(p.values["E"][i] for p in kept) for f, i in ((min, 1), (max, 2)))
        y = Axis(*limits(low, high, False), HEIGHT - BOTTOM, TOP)
        drawn = [grid(x, y), tag("path", d=band(kept, "E", x, y), class_="band")]
        drawn += [tag("path", d=line(kept, "E", x, y), class_="line")]
        told = f"from {written(energies[0].mean)} to {written(energies[-1].mean)} after {len(energies) - 1} steps"
    svg = tag("svg", drawn, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=f"Mean energy {told}")
    return tag("figure", title, svg, class_="curve")


def histogram(e: float, reference: Float[np.ndarray, "n"]) -> Element:
    """The training set's energies, and a line at this image's."""
    low, high = min(reference[0], e), max(reference[-1], e)
    x = Axis(*limits(float(low), float(high), False), LEFT, WIDTH - RIGHT)
    counts, edges = np.histogram(reference, BARS, (x.low, x.high))
    y = Axis(0, 1.12 * float(counts.max()), HEIGHT - BOTTOM, TOP)
    bars = [
        tag("rect", x=x(float(left)), y=y(int(count)), width=round(max(0.5, x(float(right)) - x(float(left)) - 0.6), 1),
            height=round(HEIGHT - BOTTOM - y(int(count)), 1))
        for count, left, right in zip(counts, edges, edges[1:], strict=False) if count
    ]  # fmt: skip
    at = x(e)
    left = at > (LEFT + WIDTH) / 2
    mark = [
        tag("line", x1=at, x2=at, y1=TOP - 4, y2=HEIGHT - BOTTOM),
        tag("text", "this image", x=at + (-5 if left else 5), y=TOP + 4, text_anchor="end" if left else "start"),
    ]
    told = f"Histogram of training energies from {written(float(reference[0]))} to {written(float(reference[-1]))}; "
    svg = tag(
        "svg", grid(x, y), tag("g", bars, class_="bars"), tag("g", mark, class_="mark"),
        viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=f"{told}this image {written(e)}",
    )  # fmt: skip
    return tag("figure", tag("figcaption", "How many training images have which energy"), svg, class_="curve")


def compared(image: UInt8[np.ndarray, "h w c"], e: float, reference: Reference) -> str:
    """An image as the model sees it, its energy among those of the training set, and what that means in words."""
    caption = tag("figcaption", "as the model sees it")
    seen = tag("figure", picture(image[None], "the image as the model sees it"), caption, class_="images one")
    energy = tag("p", f"Energy {written(e, 4)}")
    if reference.energies is None:
        return text(seen, tag("div", energy, tag("p", reference.about, class_="note")), class_="moving")
    first, rest = verdict(e, reference.energies)
    words = tag("div", tag("h3", first), tag("p", f"Its energy, {written(e, 4)}, is {rest}."), class_="verdict")
    note = tag("p", f"Of {reference.about}.", class_="note")
    return text(seen, tag("div", words, histogram(e, reference.energies), note), class_="moving")


def empty(words: str) -> str:
    return text(tag("p", words), class_="empty")


def refused(words: str) -> str:
    return text(tag("p", words, role="alert"), class_="empty refused")
