"""Terms of a composition, chains on them, and latents from images: against Gaussians and posteriors that are known."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from igebm import inference, model, presets, terms
from igebm.cli import main
from igebm.compose import product, tempered
from igebm.concepts import on_turn
from igebm.data.dsprites import Sprites, pictures
from igebm.data.latents import Latent, drawn
from igebm.errors import Fault, InputError
from igebm.model import temperature
from igebm.samplers import langevin, run
from igebm.shapes import Shape


def gaussian(mean: float, precision: float = 1.0):
    return lambda x: 0.5 * precision * (x - mean).square().flatten(1).sum(1)


# What a term means


@pytest.mark.parametrize(
    "text, part, weight, source, value",
    [
        ("digits=3", "and", 1.0, "digits", "3"),
        ("not:0.5*runs/a=dog", "not", 0.5, "runs/a", "dog"),
        ("or:2*b.safetensors=0.2,0.7", "or", 2.0, "b.safetensors", "0.2,0.7"),
        ("mine:energy", "and", 1.0, "mine:energy", ""),
        ("run", "and", 1.0, "run", ""),
    ],
)
def test_a_term_is_read_in_parts(text, part, weight, source, value):
    term = terms.parse(text)
    assert (term.part, term.weight, term.source, term.value) == (part, weight, source, value)
    assert term.custom == (source == "mine:energy")


def test_a_run_may_have_the_sign_in_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=0.1").mkdir()
    found = [terms.parse(text) for text in ("lr=0.1", "lr=0.1=dog", "lr=0.2=dog", "not:2*lr=0.1=a=b")]
    assert [(t.source, t.value) for t in found] == [
        ("lr=0.1", ""), ("lr=0.1", "dog"), ("lr", "0.2=dog"), ("lr=0.1", "a=b"),
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["x*digits=3", "-1*digits=3", "0*digits", "inf*digits", "=3", "not:", "2*"])
def test_other_terms_are_refused(text):
    with pytest.raises(InputError):
        terms.parse(text)


def test_terms_compose_to_the_densities_that_gaussians_give():
    """Precisions add, weighted; a not: term takes its own away; or: terms are a mixture."""
    parsed = [terms.parse(t) for t in ("a", "2*b", "not:0.5*c")]
    E = product(*terms.factors(parsed, [gaussian(0.0), gaussian(3.0), gaussian(-1.0)], 1.0))
    # p ∝ N(0, 1) N(3, 1)^2 / N(-1, 1)^0.5: precision 1 + 2 - 0.5, mean (0 + 6 + 0.5) / 2.5
    x = torch.linspace(-4, 8, 50)[:, None]
    expected = gaussian(6.5 / 2.5, 2.5)(x)
    difference = E(x) - expected
    assert torch.allclose(difference, difference[0].expand(50), atol=1e-4)
    # Beside a plain term the mixture is one factor: a cycle of chains has two, not three.
    plain, either = terms.factors(
        [terms.parse(t) for t in ("or:a", "c", "or:3*b")], [gaussian(m) for m in (0.0, 1.0, 5.0)], 1.0
    )
    assert torch.equal(plain(x), gaussian(1.0)(x))
    assert torch.allclose(either(x), -torch.log(torch.exp(-gaussian(0.0)(x)) + 3 * torch.exp(-gaussian(5.0)(x))))


def test_a_composition_of_not_terms_alone_is_refused():
    with pytest.raises(InputError, match="no mode"):
        terms.factors([terms.parse("not:a")], [gaussian(0.0)], 1.0)


def test_a_chain_on_or_terms_ends_at_one_of_them():
    """N(±½, 1) at the paper's temperature: half of the chains from around 0 end at each, none at the mean of both; of
    terms weighed for T = 1 all would."""
    parsed, Es = [terms.parse("or:a"), terms.parse("or:b")], [gaussian(-0.5), gaussian(0.5)]
    step, noise = 0.1, 0.0005
    x = 0.5 * torch.randn((400, 1), generator=torch.Generator().manual_seed(0))
    E = product(*terms.factors(parsed, Es, noise**2 / (2 * step)))
    end = run(langevin(step, noise), E, x, 200, torch.Generator().manual_seed(1))[0].x
    assert (end.abs() - 0.5).abs().max() < 0.01 and 0.4 < (end > 0).float().mean() < 0.6
    blended = run(langevin(step, noise), product(*terms.factors(parsed, Es, 1.0)), x, 200)[0].x
    assert blended.abs().max() < 0.01


def test_or_terms_of_a_model_are_its_own_pictures(tmp_path):
    """Of one term the mixture is that term, to the byte; of two, each picture has as low an energy under one of them as
    that one's own have (the mean of both energies makes blends, which lie above)."""
    from igebm import model

    common = ["--n", "12", "--steps", "300", "--dtype", "float32", "--out"]
    for name, asked in {"zero": ["digits=0"], "alone": ["or:digits=0"], "one": ["digits=1"]}.items():
        assert main(["compose", *asked, *common, str(tmp_path / name)]) == 0
    assert main(["compose", "or:digits=0", "or:digits=1", *common, str(tmp_path / "either")]) == 0
    found = {name: np.load(tmp_path / name / "samples.npy") for name in ("zero", "alone", "one", "either")}
    assert np.array_equal(found["zero"], found["alone"])
    m = model.load("digits")
    e = lambda name, k: m.energy(found[name], np.full(12, k))
    assert np.minimum(e("either", 0), e("either", 1)).mean() < max(e("zero", 0).mean(), e("one", 1).mean()) + 0.002


def test_a_cycle_of_two_gaussians_alternates_between_their_pulls():
    """Noise-free, with step η on each in turn: the fixed cycle ends at x = (b + (1 - η) a) / (2 - η) after b's turn."""
    eta, a, b = 0.5, 0.0, 3.0
    kernel = terms.cyclic(langevin(eta, 0.0), [gaussian(a), gaussian(b)])
    end, _ = run(kernel, gaussian(0.0), torch.zeros(2, 1), 60)
    assert end.x == pytest.approx(torch.full((2, 1), (b + (1 - eta) * a) / (2 - eta)))


def test_a_function_of_the_users_is_found_checked_and_named_when_it_fails(tmp_path, monkeypatch):
    (tmp_path / "mine_energy.py").write_text(
        "def bright(x):\n    return -x.flatten(1).mean(1)\n"
        "def wrong(x):\n    return x.mean()\n"
        "def fails(x):\n    raise KeyError('here')\n"
    )
    monkeypatch.chdir(tmp_path)
    x = torch.rand(3, 1, 4, 4)
    assert torch.equal(terms.function("mine_energy:bright")(x), -x.flatten(1).mean(1))
    with pytest.raises(InputError, match="one number for each item"):
        terms.function("mine_energy:wrong")(x)
    with pytest.raises(Fault, match="mine_energy:fails failed: KeyError"):
        terms.function("mine_energy:fails")(x)
    with pytest.raises(InputError, match="no energy mine_energy:missing"):
        terms.function("mine_energy:missing")


# Latents from an image


def test_units_and_latents_are_each_others_inverse():
    place, angle = (Latent("a", -1.0, 3.0), Latent("b", 0.5, 1.0)), (Latent("cos", -1.0, 1.0), Latent("sin", -1.0, 1.0))
    z = torch.rand(100, 2)
    assert torch.allclose(inference.to_unit(inference.from_unit(z, place), place), z, atol=1e-6)
    assert inference.from_unit(torch.tensor([[0.25, 1.0]]), place).tolist() == [[0.0, 1.0]]
    turn = torch.rand(100, 1)
    assert torch.allclose(inference.to_unit(inference.from_unit(turn, angle), angle), turn, atol=1e-5)
    assert torch.allclose(inference.from_unit(torch.tensor([[0.25]]), angle), torch.tensor([[0.0, 1.0]]), atol=1e-6)


def test_a_chain_over_latents_samples_the_posterior_it_should(generator):
    """E = k (y - m)² / 2 over a range of 4: in unit steps η, σ the stationary variance is known at a finite step."""
    latent, k, m = (Latent("a", -1.0, 3.0),), 40.0, 1.5
    y = torch.full((4000, 1), 0.0)
    eta, sigma = 2e-4, 0.01
    end = inference.chain(
        lambda y: 0.5 * k * (y[:, 0] - m).square(), y, latent, 400, inference.Steps(eta, sigma), generator
    )
    # In z = (y + 1) / 4 the precision is P = 16 k, and z' = z - η P (z - z₀) + σ ω has variance σ² / (1 - (1 - η P)²).
    P = 16 * k
    variance = sigma**2 / (1 - (1 - eta * P) ** 2) * 16
    assert end.mean().item() == pytest.approx(m, abs=5 * (variance / 4000) ** 0.5)
    assert end.var().item() == pytest.approx(variance, rel=0.1)


def test_the_bundled_models_know_place_and_scale_of_pictures_they_are_shown():
    """Four sprites whose latents are known: the mean of the posterior at the temperature of training is nearer to them
    than the middle of the range, which is off by 0.25 in place and by 0.15 in scale."""
    turn = np.radians([0, 40, 200, 70])
    place = np.array([[0.2, 0.7], [0.8, 0.2], [0.5, 0.5], [0.3, 0.9]])
    scale = np.array([1, 0.9, 1, 0.8])
    z = Sprites(np.array([0, 1, 2, 0]), scale, turn, place[:, 0], place[:, 1])
    x = torch.from_numpy(pictures(z, 32)).permute(0, 3, 1, 2).float() / 255
    for factor, true, most in (("position", place, 0.06), ("scale", scale[:, None], 0.1)):
        m = model.load(f"dsprites-{factor}")
        each, found = inference.steps_of(m.preset), []
        for k in range(len(x)):
            y = torch.from_numpy(drawn(m.shape.latents, 16, np.random.default_rng(k)))
            E = m.twin.over(x[k : k + 1].expand(16, -1, -1, -1))
            end = inference.chain(E, y, m.shape.latents, 200, each, torch.Generator().manual_seed(k))
            found.append(end.mean(0).numpy())
        assert np.abs(np.array(found) - true).mean() < most


def test_the_step_over_latents_draws_the_posterior_that_training_asked_for():
    """T = σ² / 2λ is label_temperature; without the posterior in training it is the released code's step."""
    p = replace(presets.named("dsprites-scale"), label_temperature=0.05)
    assert inference.steps_of(p) == inference.Steps(pytest.approx(0.009), 0.03)
    assert inference.steps_of(p, noise=0.06) == inference.Steps(pytest.approx(0.036), 0.06)
    p = replace(p, label_weight=0.0)
    assert inference.steps_of(p) == (4.0, 0.06, "before") and inference.steps_of(p, 1.0) == (1.0, 0.06, "before")


def test_the_released_chain_over_a_size_by_hand():
    """l ← clip(l + 0.03 ω, then - ∂E/∂l there) in [0.5, 1], E = (l - 0.7)² / 4."""
    size, l = (Latent("size", 0.5, 1.0),), torch.tensor([[0.6], [0.9], [0.55]])
    E = lambda y: (y[:, 0] - 0.7).square() / 4
    got = inference.chain(E, l, size, 1, inference.RELEASED, torch.Generator().manual_seed(3))
    noised = l + 0.03 * torch.randn(3, 1, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(got, (noised - 0.5 * (noised - 0.7)).clamp(0.5, 1.0), atol=1e-6)


def test_other_conditions_are_other_labels_none_twice():
    shape, y = Shape(1, 8, 8, classes=tuple("abcde")), torch.arange(5).repeat(200)
    found = inference.others(y, shape, 3)
    assert found.shape == (3, 1000) and found.dtype == y.dtype and found.min() == 0 and found.max() == 4
    together = torch.cat([y[None], found]).sort(0).values
    assert (together.diff(dim=0) > 0).all()  # the own label and three others: four distinct
    # Each of the 4 others is as likely: of 3,000 draws a label is each of its others 150 times on average.
    counts = torch.stack([((found - y) % 5 == k).sum() for k in range(1, 5)])
    assert counts.sum() == 3000 and (counts - 750).abs().max() < 5 * 750**0.5
    assert inference.others(y, shape, 99).shape == (4, 1000)


def test_other_latents_are_uniform_over_their_ranges():
    place, angle = (Latent("a", -1.0, 3.0), Latent("b", 0.5, 1.0)), (Latent("cos", -1.0, 1.0), Latent("sin", -1.0, 1.0))
    found = inference.others(torch.zeros(1000, 2), Shape(1, 8, 8, latents=place), 2)
    assert found.shape == (2, 1000, 2)
    mean, var = found.flatten(0, 1).mean(0), found.flatten(0, 1).var(0)
    assert mean.tolist() == pytest.approx([1.0, 0.75], abs=0.15) and var.tolist() == pytest.approx(
        [16 / 12, 0.25 / 12], rel=0.1
    )
    turns = inference.others(torch.zeros(1000, 2), Shape(1, 8, 8, latents=angle), 1)[0]
    assert torch.allclose(turns.norm(dim=1), torch.ones(1000)) and turns.mean(0).norm() < 0.15


# On the command line


def test_compose_at_the_command_line_leaves_pictures_numbers_and_energies(tmp_path):
    out = tmp_path / "out"
    words = ["compose", "digits=3", "not:0.1*digits=8", "--n", "5", "--steps", "3", "--out", str(out), "--threads", "1"]
    assert main(words) == 0
    about = json.loads((out / "compose.json").read_text())
    assert np.load(out / "samples.npy").shape == (5, 8, 8, 1) and (out / "samples.png").stat().st_size > 0
    assert [t["part"] for t in about["terms"]] == ["and", "not"] and about["chain"]["steps"] == 3


def test_one_term_of_a_composition_is_that_models_own_sample(tmp_path):
    out = tmp_path / "out"
    main(
        ["compose", "digits=3", "--n", "4", "--steps", "20", "--out", str(out), "--dtype", "float32", "--threads", "1"]
    )
    alone, _ = model.load("digits").sample(4, label="3", steps=20, seed=0)
    assert np.array_equal(np.load(out / "samples.npy"), alone)


def test_models_of_two_temperatures_have_their_say_each(generator):
    """Two Gaussians, each as chains of its own settings draw it: precision a₁ / T₁ and a₂ / T₂ at 0.3 and 0.7. A chain
    by the first one's settings on the composition draws their product: precisions add, means are weighed by them."""
    one, two = (replace(presets.named("digits"), step_size=s, noise=n) for s, n in ((0.05, 0.01), (0.2, 0.03)))
    (a1, T1), (a2, T2) = (1.0, 0.01**2 / 0.1), (0.8, 0.03**2 / 0.4)
    assert (temperature(one), temperature(two)) == (pytest.approx(T1), pytest.approx(T2))
    F = tempered(gaussian(0.7, a2), temperature(one) / temperature(two))
    x, _ = run(
        langevin(one.step_size, one.noise), product(gaussian(0.3, a1), F), torch.zeros(20_000, 1), 400, generator
    )
    precision = a1 / T1 + a2 / T2
    assert x.x.mean().item() == pytest.approx((0.3 * a1 / T1 + 0.7 * a2 / T2) / precision, abs=1e-3)
    assert 1 / x.x.var().item() == pytest.approx(precision, rel=0.05)


def test_a_term_is_in_the_units_of_the_first():
    """E / T is what a model was trained as: at three times the step (a third of the temperature) its energy counts
    three times, at the same step once, to the last bit."""
    m = model.load("digits")
    fast = replace(m, preset=replace(m.preset, step_size=3 * m.preset.step_size))
    x, term = torch.rand(2, 1, 8, 8), terms.parse("digits=3")
    e = m.given(torch.tensor([3, 3]))(x)
    assert torch.equal(terms.bound(term, m, 2, m)(x), e)
    assert torch.allclose(terms.bound(term, fast, 2, m)(x), 3 * e)
    assert torch.allclose(terms.bound(term, m, 2, fast)(x), e / 3)
    free = replace(m, preset=replace(m.preset, noise=0.0))
    assert torch.equal(terms.bound(term, free, 2, m)(x), e)  # no noise, no temperature


@pytest.mark.parametrize(
    "words, said",
    [
        (["digits=12"], "unknown label '12'"),
        (["nothing=3"], "no model 'nothing'"),
        (["digits=3", "json:dumps=1"], "takes no value"),
        (["json:dumps"], "at least one term of a model"),
        ([], "at least one term"),
    ],
)
def test_bad_terms_at_the_command_line_are_one_line(words, said, capsys, tmp_path):
    assert main(["compose", *words, "--steps", "1", "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert said in err.splitlines()[-1] and not (tmp_path / "out").exists()


def test_infer_gives_the_energy_under_every_class(tmp_path):
    from igebm import data, model

    x = data.load("digits", "test").x[:1]
    Image.fromarray(x[0, ..., 0]).save(tmp_path / "a.png")
    words = ["infer", "digits", str(tmp_path / "a.png"), "--out", str(tmp_path / "o"), "--dtype", "float32"]
    assert main(words) == 0
    about = json.loads((tmp_path / "o" / "infer.json").read_text())
    m = model.load("digits")
    expected = [m.energy(x, np.array([k])).item() for k in range(10)]
    assert list(about["energies"].values()) == pytest.approx(expected, abs=1e-6)
    assert about["least"] == str(int(np.argmin(expected)))
    first, second = np.sort(expected)[:2]
    assert about["next"] == str(expected.index(second)) and about["lead"] == pytest.approx(second - first, abs=1e-6)
    e = -np.array(expected) / 0.05  # training had the posterior of the labels at this temperature
    assert list(about["posterior"].values()) == pytest.approx(np.exp(e - e.max()) / np.exp(e - e.max()).sum(), abs=1e-3)


def test_infer_gives_the_posterior_where_training_had_it(tmp_path):
    """p(square) / p(ellipse) = exp(-(E(x | square) - E(x | ellipse)) / T), T = 0.05."""
    one = lambda v: np.array([v])
    ellipse = pictures(Sprites(np.array([1]), one(0.9), one(0.3), one(0.5), one(0.5)), 32)[0, ..., 0]
    Image.fromarray(ellipse).save(tmp_path / "a.png")
    assert main(["infer", "dsprites-shape", str(tmp_path / "a.png"), "--out", str(tmp_path), "--dtype", "float32"]) == 0
    about = json.loads((tmp_path / "infer.json").read_text())
    e, p = about["energies"], about["posterior"]
    assert about["least"] == "ellipse" and sum(p.values()) == pytest.approx(1, abs=2e-4)
    assert p["square"] / p["ellipse"] == pytest.approx(math.exp((e["ellipse"] - e["square"]) / 0.05), abs=1e-4)


def test_what_lies_there_from_before_is_kept(tmp_path, monkeypatch):
    """Without --out, one composition and one inference after the other each get a folder of their own."""
    from igebm import data

    Image.fromarray(data.load("digits", "test").x[0, ..., 0]).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main(["compose", "digits=3", "--n", "1", "--steps", "1", "--dtype", "float32"]) == 0
        assert main(["infer", "digits", "a.png", "--dtype", "float32"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "composed", "composed-2", "inferred"}
    assert {path.name for path in (tmp_path / "inferred").iterdir()} == {"a", "a-2"}


def test_a_picture_of_ones_own_is_repaired(tmp_path, capsys):
    """Black in the mask is kept to the last bit, in each of the ways; white is filled, each time otherwise. Without a
    mask the lower half is. What comes out is what the library gives."""
    import igebm
    from igebm import data

    picture = data.load("digits", "test").x[:1]
    Image.fromarray(picture[0, ..., 0]).save(tmp_path / "a.png")
    hole = np.zeros((8, 8), bool)
    hole[2:6, 3:] = True
    Image.fromarray(np.uint8(255 * hole)).save(tmp_path / "mask.png")
    Image.new("L", (8, 8)).save(tmp_path / "black.png")
    words = ["restore", "digits", str(tmp_path / "a.png"), "--n", "3", "--steps", "20", "--dtype", "float32"]
    masked = [*words, "--mask", str(tmp_path / "mask.png"), "--label", "4", "--out", str(tmp_path / "m")]
    assert main(masked) == 0
    x = np.load(tmp_path / "m" / "restored.npy")
    assert x.shape == (3, 8, 8, 1) and (x[:, ~hole] == picture[:, ~hole]).all()
    assert (x[0, hole] != x[1, hole]).any() and (x[:, hole] != picture[:, hole]).any()
    same = igebm.load("digits").restore(np.repeat(picture, 3, 0), hole, label=4, steps=20)
    assert np.abs(data.quantise(same).permute(0, 2, 3, 1).numpy().astype(int) - x).max() <= 1
    about = json.loads((tmp_path / "m" / "restore.json").read_text())
    assert about["filled_pixels"] == 20 and len(about["energies"]) == 3
    with Image.open(tmp_path / "m" / "restored.png") as shown:
        assert shown.width > 500
    assert main([*words, "--out", str(tmp_path / "l")]) == 0
    lower = np.load(tmp_path / "l" / "restored.npy")
    assert (lower[:, :4] == picture[:, :4]).all() and (lower[:, 4:] != picture[:, 4:]).any()
    ebm, half = igebm.load("digits"), np.repeat([[False] * 8, [True] * 8], 4, 0)
    same = ebm.restore(np.repeat(picture, 3, 0), half, steps=20)  # told of no class, the library takes them itself
    assert np.abs(data.quantise(same).permute(0, 2, 3, 1).numpy().astype(int) - lower).max() <= 1
    taken = json.loads((tmp_path / "l" / "restore.json").read_text())["labels_taken"]
    noisy = ebm.restore(np.repeat(picture, 3, 0), half, steps=0)
    assert taken == [ebm.classes[i] for i in ebm.energies(noisy).argmin(1)]
    capsys.readouterr()
    for wrong, why in (
        (["--mask", str(tmp_path / "a.png")], "grey pixels"),
        (["--label", "eleven"], "eleven"),
        (["--n", "0"], "--n"),
        (["--steps", "-1"], "--steps -1: give 0 or more"),
        (["--mask", str(tmp_path / "black.png")], "black.png is black: nothing is to be filled"),
    ):
        assert main([*words, *wrong, "--out", str(tmp_path / "no")]) == 2
        told = capsys.readouterr().err
        assert why in told and len(told.strip().splitlines()) == 1 and not (tmp_path / "no").exists()


def test_a_mask_is_drawn_on_the_picture_as_it_is(tmp_path, capsys):
    """Of 24 x 16 pixels the middle 16 x 16 are looked at: white in their left half fills the left half of 8 x 8, and
    white beside them nothing."""
    levels = np.random.default_rng(0).integers(0, 256, (16, 24), np.uint8)
    Image.fromarray(levels).save(tmp_path / "a.png")
    masks = {"left": np.zeros((16, 24), np.uint8), "beside": np.zeros((16, 24), np.uint8)}
    masks["left"][:, 4:12] = masks["beside"][:, :4] = 255
    for name, x in masks.items():
        Image.fromarray(x).save(tmp_path / f"{name}.png")
    words = ["restore", "digits", str(tmp_path / "a.png"), "--n", "1", "--steps", "0", "--dtype", "float32"]
    words += ["--out", str(tmp_path / "r"), "--mask"]
    assert main([*words, str(tmp_path / "left.png")]) == 0
    assert "32 of 64 pixels filled" in capsys.readouterr().err
    found = np.load(tmp_path / "r" / "restored.npy")[0, ..., 0]
    shrunk = np.asarray(Image.fromarray(levels).resize((8, 8), Image.Resampling.LANCZOS, (4, 0, 20, 16)))
    assert (found[:, 4:] == shrunk[:, 4:]).all() and (found[:, :4] != shrunk[:, :4]).mean() > 0.9
    assert main([*words, str(tmp_path / "beside.png")]) == 2
    assert "is black in the middle" in capsys.readouterr().err


def test_a_picture_is_denoised_by_chains_that_begin_at_it(tmp_path, capsys):
    """Without a step it stays what it is; with the default's, salt and pepper comes nearer to the truth. The class is
    that of the least energy of the picture, and both are what the library gives."""
    import igebm
    from igebm import data

    truth, rng = data.load("digits", "test").x[:1], np.random.default_rng(0)
    hit, salt = rng.random((8, 8)) < 0.2, rng.random((8, 8)) < 0.5
    noisy = np.where(hit[..., None], np.where(salt, 230, 25)[..., None], truth[0]).astype(np.uint8)
    Image.fromarray(noisy[..., 0]).save(tmp_path / "a.png")
    words = ["restore", "digits", str(tmp_path / "a.png"), "--denoise", "--n", "3", "--dtype", "float32"]
    assert main([*words, "--steps", "0", "--out", str(tmp_path / "still")]) == 0
    assert (np.load(tmp_path / "still" / "restored.npy") == noisy).all()
    capsys.readouterr()
    assert main([*words, "--out", str(tmp_path / "r")]) == 0
    ebm, said = igebm.load("digits"), capsys.readouterr().err
    seen = ebm.classes[ebm.energies(noisy).argmin()]
    assert f"each is of the class seen in it: {seen} (3)" in said
    about = json.loads((tmp_path / "r" / "restore.json").read_text())
    assert about["labels_taken"] == [seen] * 3 and about["denoise"] and about["filled_pixels"] is None
    assert about["chain"]["steps"] == ebm.model.preset.chain_steps
    x = np.load(tmp_path / "r" / "restored.npy")
    same = ebm.sample(3, seen, about["chain"]["steps"], start=np.repeat(noisy[None], 3, 0))
    assert np.abs(data.quantise(same).permute(0, 2, 3, 1).numpy().astype(int) - x).max() <= 1
    error = lambda images: ((images.astype(float) - truth) ** 2).mean()
    assert error(x) < 0.7 * error(noisy[None])
    assert main([*words, "--mask", "m.png"]) == 2
    assert "--denoise moves all of the picture, --mask fills a part" in capsys.readouterr().err


def test_energies_name_the_files_of_a_folder(tmp_path, capsys):
    """In the order of names, class folders before them; one that cannot be read is left out and moves no name."""
    for k, name in enumerate(("b/2.png", "a/1.png", "b/9.png")):
        (tmp_path / "x" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 80 * k).save(tmp_path / "x" / name)
    (tmp_path / "x" / "b" / "3.png").write_bytes(b"no picture")
    words = ["digits", str(tmp_path / "x"), "--skip-bad", "--dtype", "float32"]
    assert main(["energy", *words]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head == "index,file,label,energy"
    assert [row.split(",")[:3] for row in rows] == [["0", "a/1.png", "a"], ["1", "b/2.png", "b"], ["2", "b/9.png", "b"]]
    assert main(["energy", *words, "--json"]) == 0
    assert [row["file"] for row in json.loads(capsys.readouterr().out)["energies"]] == ["a/1.png", "b/2.png", "b/9.png"]


def test_angles_are_averaged_on_the_circle():
    """Either side of 0 the mean is 0 and not 180; for a normal spread σ of angles √(-2 log R) is σ, for R is
    exp(-σ²/2); opposite directions have no mean worth the name, and say so by their spread."""
    assert (on_turn(np.array([350.0, 20.0]))["mean"], on_turn(np.array([340.0, 10.0]))["mean"]) == pytest.approx(
        (5, 355)
    )
    found = on_turn(np.random.default_rng(0).normal(90.0, 25.0, 100_000))
    assert found == {"mean": pytest.approx(90.0, abs=0.5), "std": pytest.approx(25.0, rel=0.02)}
    assert on_turn(np.array([40.0, 220.0]))["std"] > 300


def test_a_turn_is_inferred_in_degrees(tmp_path, capsys):
    """An ellipse at 40 degrees looks the same at 220: chains end at both, and the least energy is at one of them."""
    picture = pictures(
        Sprites(np.array([1]), np.array([0.9]), np.radians([40.0]), np.array([0.5]), np.array([0.5])), 32
    )
    Image.fromarray(picture[0, ..., 0]).save(tmp_path / "e.png")
    words = ["infer", "dsprites-rotation", str(tmp_path / "e.png"), "--out", str(tmp_path), "--threads", "1"]
    assert main([*words, "--dtype", "float32", "--n", "128", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["latents"]
    assert list(found) == ["angle in degrees"]
    assert found["angle in degrees"]["least_energy"] % 180 == pytest.approx(40.0, abs=15)
    ends = np.load(tmp_path / "latents.npy")
    turn = np.degrees(np.arctan2(ends[:, 1], ends[:, 0])) % 180
    assert np.mean(np.abs(turn - 40) < 45) > 0.6  # half of them by chance


def test_infer_without_a_picture_is_one_line(tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(b"no picture")
    assert main(["infer", "digits", str(tmp_path / "a.png")]) == 2
    assert "cannot be read as a picture" in capsys.readouterr().err.splitlines()[-1]
    assert main(["infer", "digits", str(tmp_path / "b.png")]) == 2
    assert "there is no file" in capsys.readouterr().err.splitlines()[-1]
