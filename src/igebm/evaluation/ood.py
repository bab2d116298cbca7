"""How well the energy tells the test set from other images: AUROC and histograms (Table 2, Figs. 6, 7).

A higher energy counts as out. Every set goes through one preprocessing: its uint8 images, resized and cropped to the
model's, each pixel at the centre of its bin, (u + ½) / 256. (The released code scaled CIFAR-10 by 255/256 without
noise and gave the other sets noise of ±1/512, so that its AUROC may tell the two treatments apart as well.)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import norm, rankdata

from .. import ranks
from ..data import Images
from ..data.images import NotAtHand
from ..data.named import NAMES
from ..data.outliers import MADE_UP, make
from ..energy import energy_and_grad
from ..errors import Fault, InputError, NotApplicable
from ..inputs import matches
from ..report import figures
from .metrics import auroc
from .numbers import of_split, rounded
from .settings import Ood
from .work import Work

PAPER: dict[str, dict[str, float]] = {
    "svhn": {"auroc": 0.63, "glow": 0.24, "pixelcnn": 0.32},
    "dtd": {"auroc": 0.48, "glow": 0.27, "pixelcnn": 0.33},
    "constant": {"auroc": 0.30, "glow": 0.0, "pixelcnn": 0.0},
    "uniform": {"auroc": 1.0, "glow": 1.0, "pixelcnn": 1.0},
    "interpolation": {"auroc": 0.70, "glow": 0.59, "pixelcnn": 0.71},
    "average": {"auroc": 0.62, "glow": 0.42, "pixelcnn": 0.47},
}
"""Table 2 of arXiv:1903.08689: models of CIFAR-10 (its Textures are dtd). CIFAR-100 is not in it."""

UNREADABLE = "it cannot be read"  # what a result says of a set whose trouble names a place on this machine
AVERAGED = [name for name in PAPER if name != "average"]


class Scored(NamedTuple):
    """One set of images with the energies that the model, and each baseline, gives it."""

    images: Images
    energies: dict[str, np.ndarray]


def run(work: Work, options: Ood) -> dict[str, Any]:
    """Numbers: AUROC of each set with its 95 % interval, the energies' means, and what was left out and why."""
    if options.n < 2:
        raise InputError(f"--n {options.n}: give at least 2 images")
    if not options.against:
        raise InputError("--against names no set: give data sets, folders or constant, uniform, interpolation")
    if options.score != "energy" and work.model.conditional and work.model.shape.latents:
        raise NotApplicable(
            f"--score {options.score} is at the label with the lowest E, and {work.model.name} has no labels"
        )
    m, baselines = work.model, open_baselines(work, options.baselines)
    test = work.images(most=options.n)
    others, left_out = other_sets(work, options, test)
    if not others:
        raise InputError(f"none of the sets is at hand: {'; '.join(f'{k}: {why}' for k, why in left_out.items())}")
    specs = [spec for spec, _ in others]
    names = apart([test.name, *specs])
    sets = [images._replace(name=n) for n, images in zip(names, [test, *(x for _, x in others)], strict=True)]
    total = sum(len(images.x) for images in sets) * (1 + len(baselines))
    tell, done = work.screen.step, 0
    scored = []
    for images in sets:
        energies = {}
        for name in ("", *baselines):
            step = lambda k, _, before=done: tell(before + k, total)
            if name:
                energies[name] = surprise(work, baselines[name], images, step)
            else:
                energies[name] = model_scores(work, images, options.score, step)
            if not np.isfinite(energies[name]).all():
                bad = int((~np.isfinite(energies[name])).sum())
                raise Fault(f"{bad} of {len(images.x)} energies of {images.name} are not finite; {m.name} is broken")
            done += len(images.x)
        scored.append(Scored(images, energies))
    inside, *outside = scored
    # By what was asked for: a folder may be called as a data set of the paper is.
    published = PAPER if (work.asked.data or m.preset.data) == m.preset.data == "cifar10" else {}
    rows: dict[str, dict[str, Any]] = {}
    for spec, out in zip(specs, outside, strict=True):
        row = against(inside.energies[""], out.energies[""]) | {"n": len(out.images.x)}
        for b in baselines:
            row[b] = rounded(auroc(inside.energies[b], out.energies[b]))
        rows[spec] = row | ({"paper": published[spec]} if spec in published else {})
    table = dict(zip(names[1:], rows.values(), strict=True))
    if all(spec in rows for spec in AVERAGED):
        mean = {c: rounded(float(np.mean([rows[spec][c] for spec in AVERAGED]))) for c in ("auroc", *baselines)}
        table["average"] = mean | ({"paper": published["average"]} if published else {})
    if work.first:
        draw(work, options.score, inside, outside, table)
    return {
        "score": options.score,
        "auroc": table,
        "energies": {
            images.name: {"mean": rounded(e[""].mean()), "std": rounded(e[""].std()), "n": len(e[""])}
            for images, e in scored
        },
        "scored_at": {images.name: where(work, images, options.score) for images in sets},
        "baselines": {name: about(baseline) for name, baseline in baselines.items()},
        "left_out": left_out,
        **of_split(test),
        "figures": ["ood.png", "ood-sets.png"],
    }


def other_sets(work: Work, options: Ood, test: Images) -> tuple[list[tuple[str, Images]], dict[str, str]]:
    """The sets to tell the test set from, by what was asked for, each once; and the named ones that are not at hand,
    with the reason.

    A path that leads nowhere is the user's mistake and raises InputError; so does an empty set.
    """
    found, left_out, told = [], {}, {}
    for name in dict.fromkeys(options.against):
        if name in MADE_UP:
            found.append((name, Images(name, make(name, np.asarray(test.x), work.asked.seed), None, ())))
            continue
        try:
            images = work.images(most=options.n, spec=name)
        except InputError as error:
            if name not in NAMES and not name.startswith("hf:"):
                raise
            left_out[name] = error.reason if isinstance(error, NotAtHand) else UNREADABLE
            told[name] = str(error)
        else:
            found.append((name, images))
    # The result has the reasons, without places on this machine; those that several share are said once.
    for reason in dict.fromkeys(left_out.values()) if work.first else ():
        names = [name for name in left_out if left_out[name] == reason]
        if len(names) > 1 and reason != UNREADABLE:
            more = "put their .npz files where IGEBM_DATA or --data-dir says, or connect to the network"
            work.screen.say(f"left out: {', '.join(names)}: {reason}; {more}")
        else:
            for name in names:
                work.screen.say(f"left out: {name}: {told[name]}")
    return found, left_out


def called(spec: str) -> str:
    """What a set is called in tables and figures: a folder or file without the way to it."""
    name = Path(spec).name
    return spec if spec in NAMES or spec.startswith("hf:") else name.removesuffix(".npz").removesuffix(".npy") or spec


def apart(specs: Sequence[str]) -> list[str]:
    """What the sets are called, the test set first, no two alike: of two a/photos, b/photos the second is photos (2).

    Named and made-up sets keep their names before folders do; "average" is a row of the table.
    """
    in_turn = sorted(range(len(specs)), key=lambda i: i > 0 and specs[i] not in (*NAMES, *MADE_UP))
    names = {}
    for i in in_turn:
        short = called(specs[i])
        each = (short, *(f"{short} ({k})" for k in range(2, len(specs) + 2)))
        names[i] = next(name for name in each if name not in {"average", *names.values()})
    return [names[i] for i in range(len(specs))]


def model_scores(work: Work, images: Images, score: str, step: Any) -> np.ndarray:
    """The energy, or what stands for it, of each image: (N,) float64, higher = out."""
    y = images.y if score == "energy" and labelled(work, images) else None

    def compute(part: slice) -> np.ndarray:
        x, labels = images.x[part], None if y is None else y[part]
        if score == "gradient-norm":
            return gradient_norms(work, x)
        return work.model.energy(x, labels, work.asked.batch)

    return ranks.rows(len(images.x), work.asked.batch, compute, step).astype(np.float64)


def gradient_norms(work: Work, images: np.ndarray) -> np.ndarray:
    """‖∇ₓ minᵧ E(x | y)‖₂ of uint8 images: how steep log p is; typical images lie where it is flat."""
    m, x = work.model, work.tensor(images)
    y = None
    if m.conditional:
        of = [m.energy(images, np.full(len(images), c), work.asked.batch) for c in range(m.net.condition)]
        y = torch.as_tensor(np.stack(of).argmin(0), device=m.device)
    _, g = energy_and_grad(m.given(y), x)
    return g.float().flatten(1).norm(dim=1).cpu().numpy()


def labelled(work: Work, images: Images) -> bool:
    """Whether each image has a label, or latents, of the model's."""
    if not work.model.conditional or images.y is None or not matches(images, work.model):
        return False
    return bool(images.latents) or bool((images.y >= 0).all())


def where(work: Work, images: Images, score: str) -> str:
    if not work.model.conditional:
        return "unconditional"
    if score == "energy" and labelled(work, images):
        return "its label"
    return "the label with the lowest energy"


def against(e_in: Float[np.ndarray, "m"], e_out: Float[np.ndarray, "n"]) -> dict[str, Any]:
    """AUROC, P(E_in < E_out) + ½ P(E_in = E_out), with its 95 % interval."""
    low, high = interval(e_in, e_out)
    return {"auroc": rounded(auroc(e_in, e_out)), "low": rounded(low), "high": rounded(high)}


def interval(e_in: Float[np.ndarray, "m"], e_out: Float[np.ndarray, "n"], level: float = 0.95) -> tuple[float, float]:
    """The interval of AUROC after DeLong, DeLong & Clarke-Pearson (Biometrics 44, 1988, 837-845), on the logit scale.

    With v_i the share of out above in_i and w_j the share of in below out_j, Var = var(v)/m + var(w)/n. Where no pair
    is out of order that is 0; then k = min(m, n) pairs without a common image are all in order, which has probability
    A^k, and the lower end solves A^k = (1 - level) / 2; likewise where all are out of order. Where all energies are
    one it is 0 too, and nothing is known: 0 to 1.
    """
    m, n = len(e_in), len(e_out)
    pooled = rankdata(np.concatenate([e_in, e_out]))  # ties share their mean rank
    v = 1 - (pooled[:m] - rankdata(e_in)) / n
    w = (pooled[m:] - rankdata(e_out)) / m
    a, z = float(w.mean()), float(norm.ppf(0.5 + level / 2))
    end = ((1 - level) / 2) ** (1 / min(m, n))
    if a in (0.0, 1.0):
        return (end, 1.0) if a else (0.0, 1 - end)
    if min(m, n) < 2:
        return 0.0, 1.0
    half = z * np.sqrt(v.var(ddof=1) / m + w.var(ddof=1) / n) / (a * (1 - a))
    if half == 0:
        return 0.0, 1.0
    logit = np.log(a / (1 - a))
    return tuple(float(1 / (1 + np.exp(-(logit + s * half)))) for s in (-1, 1))  # type: ignore[return-value]


def open_baselines(work: Work, paths: tuple[str, ...]) -> dict[str, Any]:
    """The baselines by what the table calls them: glow, pixelcnn; by file name where there are two of a kind."""
    if not paths:
        return {}
    from ..baselines import load

    loaded = [load(path, work.model.device) for path in paths]
    for baseline in loaded:
        if baseline.shape.image != work.model.shape.image:
            raise InputError(
                f"--baselines: {baseline.name} is of images (channels, height, width) {baseline.shape.image}, "
                f"{work.model.name} of {work.model.shape.image}; train one on the same data"
            )
    kinds = [baseline.kind for baseline in loaded]
    names = [b.kind if kinds.count(b.kind) == 1 else f"{b.kind} {b.name}" for b in loaded]
    if len(set(names)) < len(names):
        raise InputError(f"--baselines names one model twice: {', '.join(names)}")
    return dict(zip(names, loaded, strict=True))


def surprise(work: Work, baseline: Any, images: Images, step: Any) -> np.ndarray:
    """-log p(x) in nats: (N,) float64, a baseline's energy."""
    seed = work.asked.seed
    compute = lambda part: -baseline.log_likelihood(images.x[part], work.asked.batch, seed + part.start)
    return ranks.rows(len(images.x), work.asked.batch, compute, step)


def about(baseline: Any) -> dict[str, Any]:
    """How large a baseline is, what it was trained on and for how long, for the table's reader."""
    facts = {k: v for k, v in baseline.facts.items() if isinstance(v, str | int | float)}
    return facts | {"parameters": sum(p.numel() for p in baseline.net.parameters()), "iterations": baseline.step}


def draw(work: Work, score: str, inside: Scored, outside: list[Scored], table: dict[str, dict]) -> None:
    """Histograms, the test set beside each other set, a row for the model and for each baseline; and pictures."""
    names = list(inside.energies)
    figure, ax = figures.axes(len(outside), len(names), (2.7, 2.3))
    for i, name in enumerate(names):
        for j, out in enumerate(outside):
            what = "-log p(x), nats" if name else {"gradient-norm": "|∇E(x)|"}.get(score, "E(x)")
            values = [(cut(s.images.name), s.energies[name]) for s in (inside, out)]
            figures.histogram(ax[i, j], values, f"{name}: {what}" if name else what)
            found = table[out.images.name][name or "auroc"]
            ax[i, j].set(title=f"AUROC {found:.3f}", ylabel="density" if j == 0 else "")
    figures.save(figure, work.out, "ood")
    strips = [np.asarray(s.images.x[:10]) for s in (inside, *outside)]
    names = [cut(s.images.name) for s in (inside, *outside)]
    figures.save(figures.pictures(strips, names=names), work.out, "ood-sets")


def cut(name: str, longest: int = 20) -> str:
    """A name as it fits a legend: both of its ends, in which names differ."""
    half = longest // 2
    return name if len(name) <= longest else f"{name[:half]}…{name[half + 1 - longest :]}"
