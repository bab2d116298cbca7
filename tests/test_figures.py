"""Figures, whatever the names in them are."""

import matplotlib.text
import numpy as np
import pytest

from igebm.report import figures

ODD = ("$\\frac$", "$a_1$", "\\$ {", "_mine", "_$x$", "%")


def drawn(figure, tmp_path, monkeypatch) -> list[str]:
    """All text that is drawn as it is, and all that is drawn as a formula, which is given in < >."""
    told, before = [], matplotlib.text.Text._preprocess_math

    def noted(self, s):
        text, formula = before(self, s)
        told.append(f"<{text}>" if formula else text)
        return text, formula

    monkeypatch.setattr(matplotlib.text.Text, "_preprocess_math", noted)
    figures.save(figure, tmp_path, "x", kinds=("png",))
    assert (tmp_path / "x.png").stat().st_size > 0
    return told


@pytest.mark.parametrize("name", ODD)
def test_names_are_no_markup_wherever_they_stand(name, tmp_path, monkeypatch):
    figure, axes = figures.axes(2)
    axes[0, 0].set(title=name, xlabel=name)
    axes[0, 0].set_xticks([0, 1], [name, "other"])
    figures.histogram(axes[0, 1], [(name, np.arange(5.0)), ("other", np.arange(5.0))], name)
    told = drawn(figure, tmp_path, monkeypatch)
    assert {name, figures.entry(name), "other"} <= set(told) and not [text for text in told if text.startswith("<")]
    legend = [text.get_text().removeprefix("\u200b") for text in axes[0, 1].get_legend().get_texts()]
    assert legend == [name, "other"]


def test_names_beside_pictures_are_no_markup(tmp_path, monkeypatch):
    rows = [np.zeros((2, 4, 4, 1), np.uint8)] * 2
    told = drawn(figures.pictures(rows, ["$\\frac$", "$b$"], ["$\\frac$", "$c$"]), tmp_path, monkeypatch)
    assert {"$\\frac$", "$b$", "$c$"} <= set(told)


@pytest.mark.parametrize("scale", ["log", "symlog"])
def test_powers_of_ten_stay_formulas(scale, tmp_path, monkeypatch):
    figure, axes = figures.axes()
    axes[0, 0].plot([1, 2, 3], [1e-3, 1.0, 1e4], label="$\\frac$")
    axes[0, 0].set(yscale=scale, ylabel="$\\frac$")
    axes[0, 0].legend()
    told = drawn(figure, tmp_path, monkeypatch)
    assert "$\\frac$" in told and any(text.startswith("<") and "10^{4}" in text for text in told)
    assert not any("10^" in text for text in told if not text.startswith("<"))
