"""Means and shares with their errors: against hand calculations, and what is said where little is known."""

import math

import numpy as np
import pytest

from igebm.evaluation.likelihood import bits
from igebm.evaluation.numbers import interval, mean, share
from igebm.evaluation.ood import interval as auroc_interval
from igebm.report.tables import measure, shown
from igebm.share import numbers


def test_a_mean_and_its_error():
    """0, 0, 2, 2: standard deviation √(4/3), of the mean half of it; one that is not known does not count."""
    assert mean(np.array([0, 0, 2, 2, np.nan])) == {"mean": 1.0, "se": 0.57735, "n": 4}
    assert mean(np.array([3.0])) == {"mean": 3.0, "se": None, "n": 1} and mean(np.empty(0))["mean"] is None


def test_a_share_has_its_error_and_its_interval():
    """Of 1 in 4: √(3/16 / 4). P(1 or more of 4 | low) = P(1 or fewer of 4 | high) = 2.5 %."""
    found = share(np.array([True, False, False, False]))
    assert (found["share"], found["se"], found["n"]) == (0.25, pytest.approx(math.sqrt(3) / 8, rel=1e-5), 4)
    low, high = found["low"], found["high"]
    assert 1 - (1 - low) ** 4 == pytest.approx(0.025, rel=1e-4)
    assert (1 - high) ** 4 + 4 * high * (1 - high) ** 3 == pytest.approx(0.025, rel=1e-4)


def test_five_of_five_is_no_certainty():
    """p⁵ = 2.5 % at p = 0.478; none of five is its mirror image. The standard error would be 0, and is not given."""
    end = 0.025 ** (1 / 5)
    assert share(np.ones(5, bool)) == {
        "share": 1.0,
        "se": None,
        "low": pytest.approx(end, rel=1e-5),
        "high": 1.0,
        "n": 5,
    }
    assert interval(0, 5) == (0.0, pytest.approx(1 - end))
    assert share(np.empty(0, bool)) == {"share": None, "se": None, "low": None, "high": None, "n": 0}


def test_an_interval_stands_where_there_is_no_standard_error():
    all_of, some = share(np.ones(5, bool)), share(np.arange(4) < 1)
    assert measure(all_of) == (1.0, None)
    assert ["".join(part.itertext()) for part in shown(all_of)] == ["1", " (0.48 to 1), n 5"]
    assert ["".join(part.itertext()) for part in shown(some)] == ["0.25", " ± 0.22, n 4"]
    assert numbers({"a": all_of, "b": some}) == {"a": "1 (0.48 to 1)", "b": "0.25 ± 0.22"}


def test_one_image_leaves_the_bits_open():
    assert bits(np.array([0.0]), 0.0, 0.0, 1) == {"bits": 8.0, "low": None, "high": None, "n": 1}


def test_energies_that_are_all_one_say_nothing_of_the_auroc():
    assert auroc_interval(np.ones(5), np.ones(7)) == (0.0, 1.0)
