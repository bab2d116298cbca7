"""`igebm report`: one HTML page on a run or on evaluations, whole in itself: pictures inside, no request to anywhere.

A page shows what lies in a folder and says what does not: experiments that were not run, files that are missing or
damaged. found.py reads, curves.py draws, tables.py tabulates, embedded.py holds the pictures; here are the sections.
"""

import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from .. import presets
from ..errors import InputError
from ..files import writable_folder, write_text
from ..terminal import clock
from .curves import chart
from .embedded import Embedded, embed
from .found import Found, at, find, measured_at, number, whole_number
from .markup import command, document, facts, scrolling, tag, written
from .tables import numbers_tables, settings_list, spoken

PAPER = "Du & Mordatch, Implicit Generation and Generalization with Energy-Based Models, arXiv:1903.08689"
FILM = 24
"""pictures of the buffer at most, evenly over the run"""
FILM_BYTES = 1_200_000
"""of these pictures, together and about"""


def write(folder: Path, experiments: Mapping[str, type], out: Path | None = None) -> Path:
    """Write the page on `folder` to `out` (default: report.html in it), whole or not at all. Returns its path.

    `experiments` are names with the dataclass of their options: its docstring says what the experiment is, its
    defaults tell which options were set. Raises InputError where `folder` is neither a run's nor an evaluation's.
    """
    found = find(folder, experiments)
    out = folder / "report.html" if out is None else out
    if out.is_dir():
        raise InputError(f"--out {out} is a folder; give a file, such as {out / 'report.html'}")
    writable_folder(out.parent)
    write_text(out, page(found, experiments))
    return out


def page(found: Found, experiments: Mapping[str, type]) -> str:
    """The page's text. The same files give the same text."""
    troubles = list(found.troubles)
    sections = [
        training(found) if found.is_run else None,
        pictures(found, troubles) if found.grids else None,
        *measured(found, experiments, troubles),
        not_run(found, experiments),
        settings(found),
    ]
    shown = [section for section in sections if section is not None]
    links = [tag("li", tag("a", section[0].text, href=f"#{section.get('id')}")) for section in shown]
    body = tag(
        "body",
        tag("a", "Skip to the page", href="#page", class_="skip"),
        opening(found, troubles),
        tag("nav", tag("ul", links), aria_label="Sections"),
        tag("main", trouble_box(troubles), shown, id="page"),
        tag("footer", tag("p", f"Made by igebm report from {found.folder}. The paper is {PAPER}.")),
    )
    here = Path(__file__)
    style, script = (here.with_suffix(kind).read_text(encoding="utf-8") for kind in (".css", ".js"))
    return document(f"{found.name}: igebm report", body, style, script)


def section(heading: str, name: str, *children: Any) -> Element:
    return tag("section", tag("h2", heading), children, id=name)


# What the model is


def opening(found: Found, troubles: list[str]) -> Element:
    about, card = found.about, found.card
    noise = embed(found.noise[-1], troubles, f"samples/{found.noise[-1].name}") if found.noise else None
    data = at(about, "settings", "data")
    lead = [
        "An energy-based model",
        [" of ", tag("strong", Path(data).name)] if isinstance(data, str) else None,
        [" after ", tag("strong", f"{found.step:,}"), " training iterations"] if found.step is not None else None,
        ", its training and its evaluations." if found.is_run else ", and its evaluations.",
    ]
    shown = None
    if noise is not None:
        at_step = found.noise[-1].stem.removeprefix("noise-")
        step = f"{int(at_step):,}" if at_step.isdecimal() else at_step
        caption = f"Samples from noise after {step} iterations{rows_of(found)}."
        alt = f"Grid of samples that chains from noise reach after {step} training iterations"
        shown = tag("figure", noise.elements(alt), tag("figcaption", caption), class_="hero")
    return tag(
        "header",
        tag(
            "div",
            tag("p", "igebm report", class_="eyebrow"),
            tag("h1", found.name),
            tag("p", lead, class_="lead"),
            tag("p", str(at(card, "note"))) if at(card, "note") else None,
            facts(model_facts(found)),
        ),
        shown,
        facts(origin_facts(about), "origin"),
        class_=None if shown is not None else "plain",
    )


def model_facts(found: Found) -> list[tuple[str, Any]]:
    """Name and value of what there is to know about the model; None where the files do not say."""
    about, log = found.about, found.log
    preset = at(about, "facts", "preset")
    source = presets.PRESETS[preset].source if isinstance(preset, str) and preset in presets.PRESETS else None
    goal = whole_number(at(about, "settings", "steps"))
    steps = None if found.step is None else f"{found.step:,}" + (f" of {goal:,}" if goal and found.is_run else "")
    seconds = log.seconds if found.is_run else number(at(found.card, "training_seconds"))
    return [
        ("preset", [written(preset), tag("small", f" ({source})") if source else None] if preset else None),
        ("data", described_data(found)),
        ("condition", condition(found)),
        ("parameters", None if found.parameters is None else written(found.parameters)),
        ("iterations", steps),
        ("wall time", None if seconds is None else clock(seconds)),
        ("rollbacks", str(len(log.rollbacks)) if found.is_run and log.entries else None),
        ("seed", None if at(about, "settings", "seed") is None else str(at(about, "settings", "seed"))),
    ]


def origin_facts(about: dict[str, Any]) -> list[tuple[str, Any]]:
    """What a model was made by: command, machine, versions."""
    said, machine, runtime = at(about, "command"), at(about, "machine"), at(about, "machine", "runtime")
    cores = whole_number(at(machine, "cores"))
    cpu = at(machine, "cpu")
    where = [
        cpu if isinstance(cpu, str) else None,
        f"{cores} cores" if cores else None,
        at(machine, "system"),
        runtime if isinstance(runtime, str) else None,
    ]
    return [
        ("command", command(shlex.join(map(str, said))) if isinstance(said, list) else None),
        ("machine", "; ".join(str(part) for part in where if part)),
        ("versions", versions(at(about, "versions"))),
    ]


def versions(told: Any) -> str | None:
    return ", ".join(f"{name} {v}" for name, v in told.items()) if isinstance(told, dict) else None


def described_data(found: Found) -> str | None:
    about, told, since = found.about, at(found.about, "facts", "data"), at(found.about, "facts", "data_since")
    later = since if isinstance(since, list) else []
    name = at(told, "name") or at(about, "settings", "data")
    images, shape = whole_number(at(told, "images")), at(about, "shape")
    size = None
    if isinstance(shape, list) and len(shape) == 3 and all(whole_number(n) is not None for n in shape):
        colours = {1: "grey", 3: "colour"}.get(shape[0], f"{shape[0]} channels")
        size = f"{shape[1]} × {shape[2]} pixels, {colours}"
    parts = [
        str(name) if name else None,
        f"{images:,} {'series' if at(about, 'series') else 'images'}" if images else None,
        size,
    ]
    parts += [f"from iteration {at(of, 'step')} on {at(of, 'name')} ({at(of, 'images')} images)" for of in later]
    return ", ".join(part for part in parts if part) or None


def condition(found: Found) -> str | None:
    """What the energy is conditional on."""
    about = found.about
    classes, latents, conditional = at(about, "classes"), at(about, "latents"), at(about, "settings", "conditional")
    if conditional is False:
        return "none: E(x)"
    if isinstance(latents, list) and latents:
        return "latents " + ", ".join(
            str(latent[0]) if isinstance(latent, list) and latent else "?" for latent in latents
        )
    if isinstance(classes, list) and classes:
        few = ", ".join(str(c) for c in classes[:10])
        return f"{len(classes)} classes: {few}" + (", ..." if len(classes) > 10 else "")
    return None


def rows_of(found: Found) -> str:
    return ", one row a class" if at(found.about, "classes") and at(found.about, "settings", "conditional") else ""


# How it was trained


def training(found: Found) -> Element:
    log = found.log
    if not log.entries:
        return section("Training", "training", tag("p", "There is no log to draw curves from."))
    charts = [
        chart(log, "Energies", {"e_pos": "E(x⁺), data", "e_neg": "E(x⁻), samples"},
              "Means over a batch. Both near 0 and near each other: chains keep up with the energy."),
        chart(log, "Energy gap", {"gap": "E(x⁻) − E(x⁺)"}, "Far from 0 for long is divergence."),
        chart(log, "Gradient norms", {"gradient": "weights", "chain_gradient": "chain, ∇ₓE"},
              "Of the loss, and of the energy at the samples; logarithmic.", logarithmic=True),
        chart(log, "Clipped and saturated shares",
              {"clipped_weights": "clipped, weights' gradient", "clipped_chain": "clipped, chain's gradient",
               "saturated": "samples' pixels at 0 or 1"}, "Shares of all entries, 0 to 1."),
    ]  # fmt: skip
    steps = {entry.get("chain_steps") for entry in log.entries if number(entry.get("chain_steps")) is not None}
    if len(steps) > 1:
        charts.append(chart(log, "Chain steps", {"chain_steps": "K"}, "Raised while samples stay far above the data."))
    rolled = [tag("li", f"Step {r.diverged_at:,}: {r.cause}. Back to step {r.back_to:,}.") for r in log.rollbacks]
    first, last = log.entries[0]["step"], log.entries[-1]["step"]
    return section(
        "Training",
        "training",
        tag("p", f"{len(log.entries):,} lines of the log, steps {first:,} to {last:,}."
            + (" Point at a curve for its values." if len(log.entries) > 1 else ""), class_="note"),
        tag("div", charts, class_="charts"),
        [tag("h3", "Rollbacks"), tag("p", "The run diverged and went back to an earlier state; a dashed line marks "
         "the step, and a faint dashed curve what was undone.", class_="note"), tag("ol", rolled)] if rolled else None,
        tag("h3", "From first to last"),
        log_table(found),
    )  # fmt: skip


def log_table(found: Found) -> Element:
    """Each number of the log at its first and last step, with its least and greatest."""
    entries = found.log.entries
    names = dict.fromkeys(k for entry in entries for k in entry if k not in ("step", "seconds"))
    lines = []
    for name in names:
        values = [entry[name] for entry in entries if number(entry.get(name)) is not None]
        if values:
            shown = values[0], min(values), max(values), values[-1]
            cells = [tag("td", tag("data", written(v), value=repr(v)), class_="number") for v in shown]
            lines.append(tag("tr", tag("th", LOGGED.get(name, spoken(name)), scope="row"), cells))
    heads = [tag("th", name, scope="col", class_="number") for name in ("first", "least", "greatest", "last")]
    head = tag("thead", tag("tr", tag("th", "", scope="col"), heads))
    caption = tag("caption", "Numbers of the log", class_="unseen")
    return scrolling(tag("table", caption, head, tag("tbody", lines), class_="groups"), "Numbers of the log")


LOGGED = {
    "seen": "data seen",
    "e_pos": "E(x⁺), data",
    "e_neg": "E(x⁻), samples",
    "gap": "E(x⁻) − E(x⁺)",
    "gradient": "gradient norm, weights",
    "chain_gradient": "gradient norm, chain",
    "clipped_chain": "clipped share, chain's gradient",
    "saturated": "saturated share of the samples' pixels",
    "chain_steps": "chain steps K",
    "lr": "learning rate",
    "clipped_weights": "clipped share, weights' gradient",
}
"""names of metrics.jsonl in words"""


def pictures(found: Found, troubles: list[str]) -> Element:
    """The buffer over time, as a strip that page.js makes a film of."""
    frames = [(path, embed(path, troubles, f"samples/{path.name}")) for path in evenly(found.grids, FILM)]
    kept = [(path, frame) for path, frame in frames if frame is not None]
    size = sum(len(frame.uri) for _, frame in kept)
    kept = evenly(kept, max(4, len(kept) * FILM_BYTES // size)) if size > FILM_BYTES else kept
    figures = []
    for path, frame in kept:
        step = int(path.stem)
        alt = f"Grid of chains in the replay buffer at step {step:,}"
        figures.append(tag("figure", frame.elements(alt), tag("figcaption", f"step {step:,}")))
    whole = len(found.grids) - sum(frame is None for _, frame in frames)
    few = f" {len(kept)} of {whole} pictures, evenly over the run." if len(kept) < whole else ""
    text = f"Chains as they wait in the replay buffer, up to a hundred, in rows by class where there are classes.{few}"
    film = tag(
        "div", tag("div", figures, class_="frames"), class_="film", aria_label="Step", role="group", tabindex="0"
    )
    earlier = [(path, embed(path, troubles, f"samples/{path.name}")) for path in evenly(found.noise[:-1], 3)]
    others = [
        tag("figure", frame.elements(f"Grid of samples from noise, {path.stem}"), tag("figcaption", path.stem))
        for path, frame in earlier
        if frame is not None
    ]
    more = [tag("h3", "Samples from noise, earlier"), tag("div", others, class_="others")] if others else None
    return section("Samples over time", "samples", tag("p", text, class_="note"), film, more)


def evenly(items: list, most: int) -> list:
    """At most `most` of `items`, evenly spaced, the first and the last among them."""
    if len(items) <= most:
        return items
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


# What was measured


def measured(found: Found, experiments: Mapping[str, type], troubles: list[str]) -> list[Element]:
    """A section for each result, in the order of the experiments."""
    return [result(found, name, experiments.get(name), troubles) for name in found.results]


def result(found: Found, name: str, kind: type | None, troubles: list[str]) -> Element:
    about = found.results[name]
    ours, step = measured_at(about, (found.name, found.folder.name))
    seconds = number(at(about, "seconds"))
    machine = at(about, "machine")
    cores = whole_number(at(machine, "cores"))
    where = [at(machine, "gpu") or at(machine, "cpu"), f"{cores} cores" if cores else None]
    circumstances = [
        ("took", None if seconds is None else clock(seconds) if seconds >= 60 else f"{written(seconds, 3)} s"),
        ("seed", at(about, "seed")),
        ("data", at(about, "data")),
        ("model at step", None if step is None else f"{step:,}"),
        ("machine", ", ".join(str(part) for part in where if part)),
        ("dtype", at(machine, "dtype")),
        ("commit", at(machine, "commit")),
        ("date", at(machine, "date")),
        ("versions", versions(at(machine, "versions"))),
    ]
    typed, warnings = at(machine, "command"), []
    if found.is_run and not ours:
        warnings.append(f"Measured on other models: none of them is called {found.name}.")
    if found.step is not None and step is not None and step != found.step:
        warnings.append(f"Measured at step {step:,}; the model is now at step {found.step:,}.")
    numbers = dict(about["numbers"])
    said = numbers.pop("warnings") if isinstance(numbers.get("warnings"), list) else []
    warnings += [f"{line[:1].upper()}{line[1:]}." for line in map(str, said)]
    if name in found.failures:
        warnings.append(f"A later attempt {found.failures[name]}")
    return section(
        titled(name),
        f"experiment-{name}",
        tag("p", described(kind), class_="note") if kind else None,
        [tag("p", warning, class_="warn") for warning in warnings],
        figures_of(found, name, about, troubles),
        numbers_tables(numbers, f"{name}, numbers", about.get("paper")) or tag("p", "It gave no numbers."),
        options_of(at(about, "options"), kind),
        tag("h3", "Circumstances"),
        facts([(k, None if v is None else str(v)) for k, v in circumstances], "settings"),
        command(str(typed)) if typed else None,
    )


def options_of(options: Any, kind: type | None) -> list[Element]:
    if not isinstance(options, dict) or not options:
        return []
    note = tag("p", "A dash: not set, so that the model's own value holds.", class_="note")
    dashed = [note] if None in options.values() else []
    return [tag("h3", "Settings"), *dashed, settings_list(options, defaults_of(kind), "default")]


def figures_of(found: Found, name: str, about: dict[str, Any], troubles: list[str]) -> list[Element]:
    """The pictures that a result names; where it names none, those that bear its name."""
    named = at(about, "numbers", "figures")
    if not isinstance(named, list):
        named = [path.name for path in sorted(found.evaluation.glob("*.png")) if path.stem.split(".")[0] == name]
    figures = []
    for file in named:
        # A result speaks of its own folder alone.
        if not isinstance(file, str) or Path(file).name != file:
            troubles.append(f"{name}.json names a figure that is no file of its folder: {file!r}")
            continue
        picture: Embedded | None = embed(found.evaluation / file, troubles, f"the figure {file} of {name}")
        if picture is not None:
            moving = ", moving" if picture.still is not None else ""
            alt = f"Figure of the experiment {name}{moving}: {spoken(Path(file).stem).replace('-', ' ')}"
            figures.append(tag("figure", tag("div", picture.elements(alt), class_="plate"), tag("figcaption", file)))
    return [tag("div", figures, class_="figures")] if figures else []


def titled(name: str) -> str:
    """ood -> OOD, cross-class -> Cross-class"""
    return name.upper() if len(name) <= 3 else name[:1].upper() + name[1:]


def described(kind: type) -> str:
    return " ".join((kind.__doc__ or "").split())


def defaults_of(kind: type | None) -> dict[str, Any] | None:
    """The options' defaults, as JSON gives them back."""
    if kind is None or not dataclasses.is_dataclass(kind):
        return None
    own = {f.name: f.default for f in dataclasses.fields(kind) if f.default is not dataclasses.MISSING}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in own.items()}


def not_run(found: Found, experiments: Mapping[str, type]) -> Element | None:
    """What has no result, why, and the command that would make it."""
    missing = [name for name in experiments if name not in found.results]
    if not missing:
        return None
    entries = []
    for name in missing:
        why = f"It {found.failures[name]}" if name in found.failures else "Not run yet."
        if name in found.unreadable:
            why = f"Its result, {name}.json, is damaged." + (f" {why}" if name in found.failures else "")
        what = tag("p", described(experiments[name]))
        reason = tag("p", why, class_="note" if why == "Not run yet." else "warn")
        entries.append(tag("li", tag("h3", titled(name)), what, reason, command(evaluation_command(found, name))))
    every = tag("p", "All that are left, the cheapest first:", class_="note")
    rest = [every, command(evaluation_command(found, "all"))] if len(missing) > 1 else None
    return section("Not run", "not-run", rest, tag("ul", entries, class_="left"))


def evaluation_command(found: Found, name: str) -> str:
    words = ["igebm", "eval", name, found.model]
    return shlex.join(words if found.is_run else [*words, "--out", str(found.folder)])


# How it was set


def settings(found: Found) -> Element | None:
    values, preset = at(found.about, "settings"), at(found.about, "facts", "preset")
    if not isinstance(values, dict) or len(values) < 2:
        return None
    defaults, text = None, "All settings of the run. Its preset is not known here, so none is marked."
    if isinstance(preset, str) and preset in presets.PRESETS:
        defaults = presets.to_dict(presets.PRESETS[preset].preset)
        differ = sum(1 for name, value in values.items() if defaults.get(name, ...) != value)
        text = (
            f"All settings; {differ or 'none'} of them differ{'s' if differ == 1 else ''} from the preset {preset}"
            + (", and are marked." if differ > 1 else ", and is marked." if differ else ".")
        )
    return section("Settings", "settings", tag("p", text, class_="note"), settings_list(values, defaults, preset or ""))


def trouble_box(troubles: list[str]) -> Element | None:
    """What is missing or damaged, so that nobody takes the rest for all there is."""
    if not troubles:
        return None
    lines = [tag("li", line) for line in dict.fromkeys(troubles)]
    heading = tag("h2", "Missing or damaged")
    return tag("aside", heading, tag("ul", lines), class_="troubles", aria_label="Missing or damaged")
