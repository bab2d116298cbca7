"""The page: what stands where, and which function of work.py answers which button.

gradio is imported here alone, so that everything else works without it.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from gradio import themes

from .. import presets, terminal
from ..data import Images
from ..data.latents import on_circle
from ..errors import Fault, InputError
from ..model import Model
from ..report.markup import tag
from . import drawing, work
from .work import Chain, Reference

ROWS = 4
"""terms that can be combined"""
CANVAS = 320
"""pixels a side of the picture that is painted on"""
FIRST = "First take an image, of the training set or your own."
PAINT = "Paint over what is to be filled in."
BRUSH = 40
"""a pixel of an 8x8 image; of larger ones, several"""
EVERY = "every class in turn"
OPEN = "left open"
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_id": "chains", "concurrency_limit": 1}
"""chains queue: two at once on the same cores would both be slower than one after the other"""
WAITING = 16
"""people in the queue; the next one is told to come back"""
WAIT = drawing.empty("It starts when the chains before it have ended; Stop takes it out of the queue.")
PARTS = {"and": "and", "or": "or", "and not": "not"}
INK = "#e5484d"
STYLE = Path(__file__).with_name("page.css")


@dataclass
class Served:
    """The models by their names, and what is found out about each once and kept."""

    models: dict[str, Model]
    data_dir: Path | None = None
    sets: dict[str, Images | str] = field(default_factory=dict)
    """a model's training set, or why there is none"""
    references: dict[str, Reference] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def training(self, name: str) -> Images | str:
        with self.lock:
            if name not in self.sets:
                try:
                    self.sets[name] = work.training_images(self.models[name], self.data_dir)
                except (InputError, Fault, OSError) as error:
                    # Where it was looked for is for the person who runs the page, not for its visitors.
                    terminal.say(f"{name}: no training set to compare with: {error}")
                    m = self.models[name]
                    self.sets[name] = f"The training set, {work.trained_on(m)}, is not on the machine that serves this."
            return self.sets[name]

    def needed(self, name: str) -> Images:
        images = self.training(name)
        if isinstance(images, str):
            raise InputError(images)
        return images


@dataclass(frozen=True)
class Condition:
    """The inputs of one model's condition: a class to choose, or a slider a latent; none where it has no condition."""

    group: Any
    inputs: list[Any]
    read: Callable[[Sequence[Any]], str | None]
    """the inputs' values as `Model.condition` takes them; None: none chosen"""


def build(served: Served) -> gr.Blocks:
    names = list(served.models)
    with gr.Blocks(title="igebm", analytics_enabled=False, fill_width=True, delete_cache=(600, 1800)) as page:
        gr.HTML(head(), elem_id="head")
        model = gr.Dropdown(names, value=names[0], label="Model", visible=len(names) > 1, elem_id="model")
        facts = gr.HTML(about(served.models[names[0]]), elem_id="facts")
        model.input(lambda name: about(served.models[name]), model, facts, queue=False, api_visibility="private")
        with gr.Tabs():
            with gr.Tab("Watch", id="watch"):
                watching(served, model)
            with gr.Tab("Repair", id="repair"):
                repairing(served, model)
            with gr.Tab("Combine", id="combine"):
                combining(served, names[0])
            with gr.Tab("Compare", id="compare"):
                comparing(served, model)
    page.queue(max_size=WAITING, default_concurrency_limit=4)
    return page


def head() -> str:
    words = [
        "An energy-based model gives every image a number, its energy, low for what looks like the data: p(x) ∝ e",
        tag("sup", "−E(x)"), ". Chains walk downhill on it, from noise and with a little noise at each step.",
    ]  # fmt: skip
    return drawing.text(tag("h1", "igebm"), tag("p", *words))


def about(m: Model) -> str:
    s = m.shape
    grey = "grey" if s.channels == 1 else "colour"
    weights = sum(p.numel() for p in m.net.parameters())
    knows = f"{len(s.classes)} classes" if s.classes else ", ".join(e.name for e in s.latents)
    parts = [
        f"{s.width}×{s.height} {grey} images", f"trained on {work.trained_on(m)}",
        f"conditional on {knows}" if m.conditional else "unconditional", f"{weights:,} weights",
    ]  # fmt: skip
    return drawing.text(tag("b", m.name), " · ", " · ".join(parts))


def told(function: Callable[..., Iterator[str]]) -> Callable[..., Iterator[str]]:
    """A generator of what is shown, whose mistakes and faults are shown in the same place, in their own words."""

    @wraps(function)
    def answering(*values: Any) -> Iterator[str]:
        try:
            yield from function(*values)
        except (InputError, Fault) as error:
            yield drawing.refused(str(error))

    return answering


def launch(served: Served, host: str, port: int, login: tuple[str, str] | None, most_bytes: int) -> str:
    """Serves the page in a thread of its own. Returns its address. Raises InputError where the port is taken."""
    theme = themes.Default(
        primary_hue="indigo", neutral_hue="zinc", font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )  # fmt: skip
    try:
        _, address, _ = build(served).launch(
            server_name=f"[{host}]" if ":" in host else host,  # gradio puts it before a colon and the port as it is
            server_port=port, share=False, prevent_thread_lock=True, quiet=True, inbrowser=False,
            auth=login, auth_message="The person who runs this page has the password." if login else None,
            show_error=False, footer_links=[], run_history=False, ssr_mode=False, pwa=False, mcp_server=False,
            enable_monitoring=False, max_file_size=most_bytes, theme=theme, css_paths=[STYLE],
        )  # fmt: skip
    except OSError as error:
        raise InputError(f"cannot listen at {host} port {port} ({error}); choose another with --port") from error
    return address


# Parts that several tabs have


def conditions(served: Served, model: gr.Dropdown, none: str, key: str) -> dict[str, Condition]:
    """The condition's inputs for each model, of which those of the chosen one are visible."""
    found = {}
    first = next(iter(served.models))
    for name, m in served.models.items():
        latents = m.shape.latents if m.conditional else ()
        with gr.Group(visible=name == first and m.conditional) as group:
            if m.conditional and m.shape.classes:
                # Values are numbers, since a class may be called as the choice of none is.
                options = [(none, "")] + [(c, str(i)) for i, c in enumerate(m.shape.classes)]
                inputs = [gr.Dropdown(options, value="", label="Class", elem_id=f"{key}-class-{len(found)}")]
                read = lambda values, m=m: m.shape.classes[int(values[0])] if values[0] else None
            elif on_circle(latents):
                inputs = [gr.Slider(0, 360, 0, step=1, label="angle, degrees", elem_id=f"{key}-angle-{len(found)}")]
                read = lambda values: f"{float(values[0])}"
            else:
                inputs = [
                    gr.Slider(e.low, e.high, (e.low + e.high) / 2, step=(e.high - e.low) / 100 or 0.01, label=e.name,
                              elem_id=f"{key}-{e.name}-{len(found)}")
                    for e in latents
                ]  # fmt: skip
                read = lambda values: ",".join(str(float(v)) for v in values) if values else None
        found[name] = Condition(group, inputs, read)
    groups = [c.group for c in found.values()]
    if len(found) > 1:
        shown = lambda chosen: [gr.update(visible=name == chosen and bool(c.inputs)) for name, c in found.items()]
        model.change(shown, model, groups, queue=False, show_progress="hidden", api_visibility="private")
    return found


def chosen(name: str, found: dict[str, Condition], values: Sequence[Any]) -> tuple[str | None, Sequence[Any]]:
    """The condition of the chosen model among the values of all inputs, and the values after them."""
    condition = None
    for other, c in found.items():
        mine, values = values[: len(c.inputs)], values[len(c.inputs) :]
        if other == name:
            condition = c.read(mine)
    return condition, values


def settings(start: Chain, key: str, images: str = "Images", n: int = 16) -> list[Any]:
    """Inputs for a Chain, in the order of `chain_of`."""
    count = gr.Slider(1, 36, n, step=1, label=images, elem_id=f"{key}-n")
    with gr.Accordion("The chain's settings", open=False, elem_id=f"{key}-settings"):
        most = max(1000, start.steps)
        steps = gr.Slider(1, most, start.steps, step=1, label="Steps", elem_id=f"{key}-steps")
        size = gr.Number(start.step_size, label="Step size", info="what multiplies the energy's gradient", minimum=0,
                         elem_id=f"{key}-step-size")  # fmt: skip
        noise = gr.Number(start.noise, label="Noise", info="standard deviation of what is added at each step",
                          minimum=0, elem_id=f"{key}-noise")  # fmt: skip
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, elem_id=f"{key}-seed")
    return [count, steps, size, noise, seed]


def chain_of(n: float, steps: float, step_size: float, noise: float, seed: float) -> Chain:
    if None in (n, steps, step_size, noise, seed):
        raise InputError("a setting of the chain is empty: give a number")
    return Chain(int(steps), float(step_size), float(noise), int(seed), int(n))


def follow(served: Served, model: gr.Dropdown, inputs: list[Any], steps: Callable[[Model], int | None]) -> None:
    """Steps, step size and noise become those of the model that is chosen."""
    if len(served.models) > 1:
        change = lambda name: its_own(served.models[name], steps(served.models[name]))
        model.change(change, model, inputs[1:4], queue=False, show_progress="hidden", api_visibility="private")


def its_own(m: Model, steps: int | None) -> list[Any]:
    start = work.defaults(m, steps)
    return [gr.update(value=start.steps, maximum=max(1000, start.steps)), start.step_size, start.noise]


def buttons(go: str, key: str) -> tuple[gr.Button, gr.Button]:
    with gr.Row(elem_classes="buttons"):
        start = gr.Button(go, variant="primary", scale=2, min_width=120, elem_id=f"{key}-go")
        return start, gr.Button("Stop", scale=1, min_width=70, elem_id=f"{key}-stop")


def run_by(
    go: gr.Button, stop: gr.Button, work_of: Callable[..., Any], inputs: list[Any], output: Any, key: str
) -> None:
    """`go` starts the chain, `stop` ends it: its generator is closed, and with it the work."""
    asked = go.click(lambda: WAIT, None, output, queue=False, show_progress="hidden", api_visibility="private")
    event = asked.then(told(work_of), inputs, output, api_name=key, show_progress="hidden", **ONE_AT_A_TIME)
    stop.click(None, cancels=[event], queue=False, api_visibility="private")


# The tabs


def watching(served: Served, model: gr.Dropdown) -> None:
    def watch(name: str, *values: Any) -> Iterator[str]:
        m = of(served, name)
        condition, rest = chosen(name, found, values)
        for frame in work.paced(work.watch(m, condition, chain_of(*rest))):
            yield drawing.moving(frame)

    first = next(iter(served.models.values()))
    with gr.Row(elem_classes="lab"):
        with gr.Column(elem_classes="first"):
            found = conditions(served, model, EVERY, "watch")
            go, stop = buttons("Start from noise", "watch")
        shown = result("watch", "Noise turns into images here, and their energy falls.")
        with gr.Column(elem_classes="more"):
            inputs = settings(work.defaults(first), "watch")
    follow(served, model, inputs, lambda m: None)
    run_by(go, stop, watch, [model, *every(found), *inputs], shown, "watch")


def repairing(served: Served, model: gr.Dropdown) -> None:
    def repair(name: str, original: np.ndarray | None, painted: dict[str, Any] | None, *values: Any) -> Iterator[str]:
        m = of(served, name)
        if original is None or original.shape != (m.shape.height, m.shape.width, m.shape.channels):
            raise InputError("there is no image of this model: take one of the training set, or upload your own")
        layers = [layer for layer in (painted or {}).get("layers") or [] if layer is not None]
        ink = np.any([layer[..., 3] > 127 for layer in layers], axis=0) if layers else np.zeros((1, 1), bool)
        hole = work.hole_of(ink, m.shape.height, m.shape.width)
        condition, rest = chosen(name, found, values)
        share = f"{hole.mean():.0%} of the pixels are filled in; all others keep their bytes."
        for frame in work.paced(work.repair(m, original, hole, condition, chain_of(*rest))):
            yield drawing.moving(frame, share)

    def take(name: str) -> tuple[Any, Any, str]:
        try:
            images = served.needed(name)
        except InputError as error:
            return gr.skip(), gr.skip(), drawing.refused(str(error))
        picture = np.asarray(images.x[np.random.default_rng().integers(len(images.x))])
        return picture, editable(picture), note(PAINT)

    def upload(name: str, path: str) -> tuple[Any, Any, str]:
        try:
            picture = read(served, name, path)
        except InputError as error:
            return gr.skip(), gr.skip(), drawing.refused(str(error))
        return picture, editable(picture), note(PAINT)

    first = next(iter(served.models.values()))
    original = gr.State(None)
    with gr.Row(elem_classes="lab"):
        with gr.Column(elem_classes="first"):
            with gr.Row(elem_classes="buttons"):
                some = gr.Button("A training image", scale=2, min_width=120, elem_id="repair-some")
                own = gr.UploadButton("Upload", file_types=["image"], scale=1, min_width=70, elem_id="repair-own")
            canvas = gr.ImageEditor(
                type="numpy", sources=(), transforms=(), layers=False, label="Picture", show_label=False,
                brush=gr.Brush(default_size=BRUSH, colors=[INK], color_mode="fixed"),
                eraser=gr.Eraser(default_size=BRUSH), canvas_size=(CANVAS, CANVAS), fixed_canvas=True,
                height=CANVAS + 90, elem_id="repair-canvas",
                buttons=[],
            )  # fmt: skip
            hint = gr.HTML(note(FIRST), elem_id="repair-hint")
            go, stop = buttons("Fill it in", "repair")
        shown = result("repair", "Take an image, paint over a part of it, and have it filled in.")
        with gr.Column(elem_classes="more"):
            found = conditions(served, model, OPEN, "repair")
            inputs = settings(
                work.defaults(first, presets.filling_steps(first.preset)), "repair", "Different fillings", 4
            )
    taken = [original, canvas, hint]
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    moment = lambda: note("One moment …")
    some.click(moment, None, hint, queue=False, **quiet).then(take, model, taken, **quiet)
    own.upload(moment, None, hint, queue=False, **quiet).then(upload, [model, own], taken, **quiet)
    if len(served.models) > 1:
        model.change(lambda: (None, None, note(FIRST)), None, taken, queue=False, api_visibility="private")
    follow(served, model, inputs, lambda m: presets.filling_steps(m.preset))
    run_by(go, stop, repair, [model, original, canvas, *every(found), *inputs], shown, "repair")


def combining(served: Served, first: str) -> None:
    def combine(*values: Any) -> Iterator[str]:
        rows, rest = values[: 3 * ROWS], values[3 * ROWS :]
        parsed = work.combined([row(*rows[k : k + 3]) for k in range(0, len(rows), 3)], served.models)
        note = f"{work.formula(parsed)}. In a terminal: {work.command(parsed)}"
        for frame in work.paced(work.combine(parsed, served.models, chain_of(*rest))):
            yield drawing.moving(frame, note)

    def of_first(term: str | None) -> list[Any]:
        """The chain is that of the first term's model, as with igebm compose."""
        m = served.models.get((term or "").partition("=")[0])
        return [gr.skip()] * 3 if m is None else its_own(m, None)

    options = work.choices(served.models)
    start = work.defaults(served.models[first])
    with gr.Row(elem_classes="lab"):
        with gr.Column(elem_classes="first"):
            rows = opening(served.models, options)
            terms = [i for k in range(2) for i in term_inputs(k, options, *rows[k])]
            with gr.Accordion("More terms", open=False, elem_id="more-terms"):
                terms += [i for k in range(2, ROWS) for i in term_inputs(k, options, *rows[k])]
            go, stop = buttons("Start from noise", "combine")
        shown = result("combine", "Energies add up: an image of low energy under all terms.")
        with gr.Column(elem_classes="more"):
            inputs = settings(start, "combine")
            gr.HTML(note("A term is MODEL=VALUE; type your own value for a latent. Terms with or form one mixture; and "
                         "not pushes away. A weight of 0 leaves a term out."))  # fmt: skip
    if len(served.models) > 1:
        terms[2].change(of_first, terms[2], inputs[1:4], queue=False, show_progress="hidden", api_visibility="private")
    run_by(go, stop, combine, [*terms, *inputs], shown, "combine")


def comparing(served: Served, model: gr.Dropdown) -> None:
    def compare(name: str, path: str | None) -> Iterator[str]:
        m = of(served, name)
        if path is None:
            raise InputError("there is no picture: drop one first")
        picture = read(served, name, path)
        yield from compared(name, m, picture)

    def example(name: str, kind: str) -> Iterator[str]:
        m = of(served, name)
        yield from compared(name, m, made(served, name, kind))

    def compared(name: str, m: Model, picture: np.ndarray) -> Iterator[str]:
        e = float(work.score(m, picture[None])[0])
        images = served.training(name)
        if isinstance(images, str):
            yield drawing.compared(picture, e, Reference(None, images))
            return
        if name not in served.references:
            for done, total, reference in work.scored(m, images):
                yield drawing.empty(f"Energies of the training set, once: {done:,} of {total:,}")
                if reference is not None:
                    served.references[name] = reference
        yield drawing.compared(picture, e, served.references[name])

    with gr.Row(elem_classes="lab"):
        with gr.Column(elem_classes="first"):
            drop = gr.File(label="Your image", file_types=["image"], height=150, elem_id="compare-drop")
            gr.HTML(note("Or try one:"))
            with gr.Row(elem_classes="kinds"):
                kinds = [gr.Button(kind, min_width=120, size="md", elem_id=f"compare-{kind.split()[0].lower()}")
                         for kind in KINDS]  # fmt: skip
        shown = result("compare", "Does the model take your image for one of its kind?")
        with gr.Column(elem_classes="more"):
            gr.HTML(note("A picture is cropped to its central square and brought to the model's size. A conditional "
                         "model's energy is the least over its conditions."))  # fmt: skip
    drop.upload(told(compare), [model, drop], shown, api_name="compare", show_progress="hidden", **ONE_AT_A_TIME)
    for button, kind in zip(kinds, KINDS, strict=True):
        trial = told(lambda name, kind=kind: example(name, kind))
        button.click(trial, model, shown, api_visibility="private", show_progress="hidden", **ONE_AT_A_TIME)


def term_inputs(k: int, options: list[str], part: str, weight: float, term: str) -> list[Any]:
    """How a term takes part, its weight, and what it is."""
    with gr.Group(elem_classes="term"):
        with gr.Row():
            parts = gr.Dropdown(list(PARTS), value=part, label=f"How term {k + 1} takes part", show_label=False,
                                scale=2, min_width=80, filterable=False, elem_id=f"part-{k}")  # fmt: skip
            what = gr.Dropdown(["", *options], value=term, label=f"Term {k + 1}", show_label=False, scale=3,
                               min_width=100, allow_custom_value=True, elem_id=f"term-{k}")  # fmt: skip
        weights = gr.Slider(0, 3, weight, step=0.05, label="weight", buttons=[], elem_id=f"weight-{k}")
    return [parts, weights, what]


def row(part: str, weight: float | None, term: str | None) -> tuple[str, float, str]:
    """A row's inputs as `work.combined` takes them."""
    return PARTS.get(part, "and"), float(weight or 0), (term or "").strip()


KINDS = ("Noise", "Plain grey", "Training image", "Upside down")


def made(served: Served, name: str, kind: str) -> np.ndarray:
    """A picture to compare, for those who have none at hand."""
    shape, rng = served.models[name].shape, np.random.default_rng()
    size = (shape.height, shape.width, shape.channels)
    if kind == "Noise":
        return rng.integers(0, 256, size, dtype=np.uint8)
    if kind == "Plain grey":
        return np.full(size, 128, np.uint8)
    images = served.needed(name)
    # One image for all who ask, so that upside down is the same one.
    picture = np.asarray(images.x[len(images.x) // 3])
    return picture if kind == "Training image" else np.ascontiguousarray(picture[::-1])


def opening(models: dict[str, Model], options: list[str]) -> list[tuple[str, float, str]]:
    """Rows to begin with: a three and not an eight, where the first model has so many classes; else what there is."""
    m, name = next(iter(models.values())), next(iter(models))
    if len(m.shape.classes) > 8:
        rows = [("and", 1.0, f"{name}={m.shape.classes[3]}"), ("and not", 0.3, f"{name}={m.shape.classes[8]}")]
    else:
        rows = [("and", 1.0, options[0])]
    return rows + [("and", 1.0, "")] * (ROWS - len(rows))


def result(key: str, words: str) -> gr.HTML:
    """Where a tab's answer appears: beside what is asked, or on a narrow screen right below it."""
    with gr.Column(elem_classes="result"):
        return gr.HTML(drawing.empty(words), elem_id=f"{key}-out")


def note(words: str) -> str:
    return drawing.text(tag("p", words, class_="note"))


def every(found: dict[str, Condition]) -> list[Any]:
    return [i for c in found.values() for i in c.inputs]


def of(served: Served, name: str) -> Model:
    if name not in served.models:
        raise InputError(f"there is no model {str(name)[:40]!r} here")
    return served.models[name]


def read(served: Served, name: str, path: str) -> np.ndarray:
    return work.read_picture(Path(path), of(served, name))


def editable(picture: np.ndarray) -> dict[str, Any]:
    """An image as the editor shows it: enlarged to its canvas, each pixel a square."""
    h, w, _ = picture.shape
    rows, columns = np.arange(CANVAS) * h // CANVAS, np.arange(CANVAS) * w // CANVAS
    enlarged = np.broadcast_to(picture[rows][:, columns], (CANVAS, CANVAS, 3))
    return {"background": enlarged, "layers": [], "composite": None}
