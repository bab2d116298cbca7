"""Terms of a composition as a user types them: `dsprites-scale=0.8`, `not:cifar10-cond-small=dog`, `or:2*RUN=ship`,
`module:function`; each a factor of one energy (section 6)."""

import importlib
import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .compose import mixture, tempered
from .energy import Energy, checked
from .errors import Fault, InputError
from .files import located, what_is
from .model import Model, temperature
from .samplers import Info, Kernel, State


@dataclass(frozen=True)
class Term:
    """One term: how it takes part, its weight, what it names, and the value it is bound to ("": none)."""

    part: str
    """and, not or or"""
    weight: float
    source: str
    value: str = ""

    @property
    def custom(self) -> bool:
        """Whether it names a Python function instead of a model."""
        return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", self.source) is not None


def parse(text: str) -> Term:
    """`[not:|or:][WEIGHT*]MODEL[=VALUE]`. Raises InputError."""
    part, rest = "and", text
    for word in ("not", "or"):
        if text.startswith(f"{word}:"):
            part, rest = word, text.removeprefix(f"{word}:")
    weight, star, source = rest.partition("*")
    if not star:
        weight, source = "1", rest
    try:
        number = float(weight)
    except ValueError:
        raise InputError(f"{text!r}: the weight {weight!r} before * is not a number") from None
    if not 0 < number < float("inf"):
        raise InputError(f"{text!r}: the weight must be above 0, got {weight}; write not: to push away")
    source, value = _split(source)
    if not source:
        raise InputError(f"{text!r} names no model: write MODEL=VALUE, such as dsprites-scale=0.8 or digits=3")
    return Term(part, number, source, value)


def _split(text: str) -> tuple[str, str]:
    """MODEL and VALUE of MODEL=VALUE: at the first =, but for a folder or file that has one in its name."""
    ends = [i for i, letter in enumerate(text) if letter == "="] + [len(text)]
    there = (i for i in reversed(ends) if what_is(located(text[:i])) != "nothing")
    end = next(there, ends[0])
    return text[:end], text[end + 1 :]


def function(name: str) -> Energy:
    """The user's own energy `module:function`, a callable (B, C, H, W) -> (B,); the working folder is searched first.

    Raises InputError where there is no such thing, Fault where calling it fails.
    """
    module, _, attribute = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Callable[[Tensor], Tensor] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(f"no energy {name}: {error}") from error
    if not callable(found):
        raise InputError(f"{name} is not callable: an energy is a function (B, C, H, W) -> (B,)")

    def E(x: Tensor) -> Tensor:
        try:
            return checked(found(x), x)
        except InputError:
            raise
        except Exception as error:  # whatever the user's function raises, it is named as theirs
            raise Fault(f"{name} failed: {type(error).__name__}: {error}") from error

    return E


def bound(term: Term, m: Model, n: int, first: Model) -> Energy:
    """A term's model with its value bound for n chains, in the units of the `first` term's model. Raises InputError for
    a value that it does not take."""
    if not m.conditional and term.value:
        raise InputError(f"{m.name} is unconditional and takes no value, got {term.value!r}")
    if not term.value:
        return in_units_of(first, m, m.given(None))  # p(x): the condition left open, as for an unlabelled image
    row = torch.as_tensor(m.condition(term.value), device=m.device)
    return in_units_of(first, m, m.given(row.expand(n, *row.shape)))


def in_units_of(first: Model, m: Model, E: Energy) -> Energy:
    """(T₁ / T) E, for chains at the first model's temperature T₁: p ∝ exp(-E / T) is what m's own chains draw from and
    what it was trained as, so that models whose settings differ have their say each (nothing changes where they do
    not)."""
    T1, T = temperature(first.preset), temperature(m.preset)
    return weighted(E, T1 / T if 0 < T1 < math.inf and 0 < T < math.inf else 1.0)


def factors(terms: Sequence[Term], energies: Sequence[Energy], T: float) -> list[Energy]:
    """What is added up: wᵢ Eᵢ of each plain term, -T log Σ wⱼ e^(-Eⱼ / T) over the or: terms, -wₖ Eₖ of each not: term.

    T is the temperature of the chains that are to sample it (infinite where they do not move: 1 is taken). Raises
    InputError where nothing but not: terms is there: they push away from something, towards nothing.
    """
    of = lambda part: [(t.weight, E) for t, E in zip(terms, energies, strict=True) if t.part == part]
    found = [weighted(E, w) for w, E in of("and")]
    if of("or"):
        weights, Es = zip(*of("or"), strict=True)
        found.append(mixture(*Es, weights=weights, temperature=T if T < math.inf else 1.0))
    if not found:
        raise InputError("not: terms alone have no mode: give at least one term without not:")
    return found + [weighted(E, -w) for w, E in of("not")]


def weighted(E: Energy, w: float) -> Energy:
    return E if w == 1 else tempered(E, w)


def cyclic(kernel: Kernel, Es: Sequence[Energy]) -> Kernel:
    """One step of `kernel` on each energy in turn (the released code's combination), instead of one on their sum: the
    chain wanders between the factors' modes, and its stationary density is none that can be written down."""

    def step(_: Energy, state: State, generator: torch.Generator | None) -> tuple[State, Info]:
        info = Info()
        for E in Es:
            state, info = kernel(E, State(state.x), generator)
        return state, info

    return step
