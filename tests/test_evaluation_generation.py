"""The mixing protocol by what can be counted, statistics of images that stream by, the command end to end."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from igebm import model
from igebm.cli import main
from igebm.data import quantise
from igebm.errors import Fault, InputError
from igebm.evaluation import features, metrics, streams
from igebm.evaluation.generation import Protocol, check, conditions_of, ensemble, filling, mix, scored, visits
from igebm.evaluation.judge import features_of
from igebm.evaluation.settings import Common, Generation
from igebm.evaluation.work import Work, kernel
from igebm.runtime import Runtime
from igebm.samplers import Info, State
from igebm.samplers import run as run_chain

MACHINE = "--device cpu --dtype float32 --compile off --threads 1".split()
SMALL = "--n 30 --pool 12 --rounds 4 --last 1 --steps 2 --splits 2 --real 60".split()


@pytest.fixture(scope="module")
def digits():
    return model.load("digits")


pytestmark = pytest.mark.usefixtures("quick_classifier")


def generation(out, *args, where="digits") -> int:
    return main(["eval", "generation", where, "--out", str(out), *map(str, args), *MACHINE])


def numbers(out) -> dict:
    return json.loads((out / "generation.json").read_text())["numbers"]


# Mixing


def stay(E, state, generator):
    return State(state.x), Info()


def count(E, state, generator):
    """Adds one to the first pixel: how often a chain has been visited."""
    x = state.x.clone()
    x[:, 0, 0, 0] += 1
    return State(x), Info()


def stamp(E, state, generator):
    """Writes E of the rest of the image into the first pixel: under which label and weights a chain was last run."""
    x = state.x.clone()
    x[:, 0, 0, 0] = 0.5
    with torch.no_grad():
        x[:, 0, 0, 0] = E(x)
    return State(x), Info()


def stamped(m, x, y):
    """What `stamp` would write now."""
    x = x.clone()
    x[:, 0, 0, 0] = 0.5
    with torch.no_grad():
        return m.given(torch.from_numpy(y))(x)


def mixed(m, one, size, seed=0, turns=(("own", None),), batch=64, **options):
    protocol = Protocol(one, 1, Generation(**options), batch, conditions_of(m))
    g = torch.Generator().manual_seed(seed)
    return mix(m, list(turns), size, protocol, np.random.default_rng(seed), g)


def noise(m, size, seed=0):
    return torch.rand((size, *m.shape.image), generator=torch.Generator().manual_seed(seed))


def labels(m, size, seed=0):
    return np.random.default_rng(seed).integers(0, 10, size)


@pytest.mark.parametrize("protocol", ["paper", "release"])
def test_labels_travel_with_their_chains(digits, protocol):
    """However often chains were restarted and relabelled, each last ran under the label that is kept beside it."""
    x, y = mixed(digits, stamp, 90, rounds=20, last=3, relabel=0.5, restart=0.2, visit=0.4, protocol=protocol)
    assert x[:, 0, 0, 0].numpy() == pytest.approx(stamped(digits, x, y).numpy(), abs=1e-5)
    assert len(set(y.tolist())) == 10


def test_the_share_of_restarts(digits):
    """Never restarted in 5 rounds with p = 0.1, all chains visited: 0.9^5 = 0.59 of them; the last rounds restart
    none."""
    n = 3000
    x, _ = mixed(digits, stay, n, rounds=1 + 5 + 4, last=4, relabel=0.0, restart=0.1, visit=1.0)
    kept = (x == noise(digits, n)).flatten(1).all(1).float().mean().item()
    assert kept == pytest.approx(0.9**5, abs=5 * math.sqrt(0.59 * 0.41 / n))


def test_the_share_of_new_labels(digits):
    """Drawn anew with p = 0.2 in 4 rounds, of 10 labels: (1 - 0.8^4) 0.9 = 0.53 have another at the end."""
    n = 3000
    _, y = mixed(digits, stay, n, rounds=1 + 4 + 3, last=3, relabel=0.2, restart=0.0, visit=1.0)
    changed, p = (y != labels(digits, n)).mean(), (1 - 0.8**4) * 0.9
    assert changed == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / n))


def test_how_often_chains_are_visited(digits):
    """paper: exactly `visit` different chains a round; release: 512 draws of 1,000 with replacement reach
    1 - e^-0.512 = 40 % of them. Each fills the pool first, in two rounds."""
    for protocol, share in (("paper", 0.512), ("release", 1 - math.exp(-0.512))):
        options = dict(rounds=42, last=0, relabel=0.0, restart=0.0, visit=0.512, protocol=protocol)
        x, _ = mixed(digits, count, 1000, batch=1000, **options)
        times = (x - noise(digits, 1000))[:, 0, 0, 0].round()
        assert times.min() >= 1 and times.max() <= 41
        assert times.mean().item() == pytest.approx(1 + 40 * share, rel=1e-6 if protocol == "paper" else 0.01)
        assert visits(Generation(**options)) == pytest.approx(1 + 40 * share)


def test_the_released_numbers_give_about_a_hundred_visits():
    assert visits(Generation()) == pytest.approx(1 + 198 * 0.512) and filling(Generation()) == 2


def test_one_round_without_relabelling_is_a_plain_chain(digits):
    """All of a pool, once: the chain that `run` gives from the same noise, under the labels that were drawn."""
    options = Generation(rounds=1, visit=1.0, relabel=0.0)
    protocol = Protocol(kernel(digits, options), 7, options, 64, conditions_of(digits))
    x, y = mix(digits, [("own", None)], 20, protocol, np.random.default_rng(0), torch.Generator().manual_seed(0))
    g = torch.Generator().manual_seed(0)
    start = torch.rand((20, 1, 8, 8), generator=g)
    state, _ = run_chain(kernel(digits, options), digits.given(torch.from_numpy(labels(digits, 20))), start, 7, g)
    assert torch.equal(x, state.x) and np.array_equal(y, labels(digits, 20))


def test_a_chain_that_leaves_the_numbers_is_a_fault(digits):
    lost = lambda E, state, generator: (State(state.x * torch.nan), Info())
    with pytest.raises(Fault, match="left the numbers; lower --step-size"):
        mixed(digits, lost, 4, rounds=1, visit=1.0)


# Snapshots in turn


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, digits):
    """A run with three snapshots, whose heads are the digits model's times 1, 2 and 3."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "snapshots").mkdir()
    m = model.load("digits")
    for k in (1, 2, 3):
        m.net.load_state_dict(digits.net.state_dict())
        for tower in m.net.towers:
            tower.head.weight.data *= k
            tower.head.bias.data *= k
        model.save(folder / "snapshots" / f"{k:07d}.safetensors", m.net, m.preset, m.shape, k, m.facts)
    model.save(folder / "model.safetensors", m.net, m.preset, m.shape, 3, m.facts)
    return folder


def work_at(where, out) -> Work:
    runtime = Runtime(torch.device("cpu"), torch.float32, torch.float32, False, 1, "test")
    return Work(model.load(where), str(where), runtime, Common(), out)


def test_the_last_snapshots_take_turns_the_newest_first(run_folder, tmp_path, capsys):
    work = work_at(run_folder, tmp_path)
    assert [name for name, _ in ensemble(work, 2)] == ["0000003", "0000002"]
    assert [name for name, _ in ensemble(work, None)] == ["0000003", "0000002", "0000001"]
    assert "holds 3 snapshots" in capsys.readouterr().err
    assert ensemble(work, 1) == [(run_folder.name, None)]


def test_a_round_runs_on_the_snapshot_whose_turn_it_is(run_folder, tmp_path, digits):
    """Five rounds of snapshots 3, 2, 1, 3, 2: the last one's energies are twice the digits model's."""
    work = work_at(run_folder, tmp_path)
    options = dict(rounds=5, visit=1.0, relabel=0.0, restart=0.0)
    x, y = mixed(work.model, stamp, 12, turns=ensemble(work, 3), **options)
    assert x[:, 0, 0, 0].numpy() == pytest.approx(2 * stamped(digits, x, y).numpy(), abs=1e-5)


def test_an_ensemble_without_snapshots(tmp_path):
    work = work_at("digits", tmp_path)
    assert ensemble(work, None) == [("digits", None)]
    with pytest.raises(InputError, match=r"--ensemble 10 takes turns.*--snapshot-every N.*or --ensemble 1"):
        ensemble(work, 10)


# Statistics of what streams by


@pytest.fixture(scope="module")
def extractor() -> features.Extractor:
    """Features of images by a fixed linear map, class probabilities by a softmax of it."""
    rng = np.random.default_rng(0)
    map = rng.normal(size=(48, 6))

    def of(x):
        h = (x.reshape(len(x), -1) / 256 @ map).astype(np.float32)
        e = np.exp(h - h.max(1, keepdims=True))
        return h, (e / e.sum(1, keepdims=True)).astype(np.float32)

    return features.Extractor("test", of)


def test_streams_give_what_whole_arrays_give(extractor):
    x = np.random.default_rng(1).integers(0, 256, (103, 4, 4, 3), dtype=np.uint8)
    h, p = extractor(x)
    found = streams.describe(extractor, x, batch=10, splits=4, kept=1000, seed=5)
    want = metrics.inception_score(p, 4, seed=5)
    assert found.score.mean == pytest.approx(want.mean, rel=1e-9) and found.score.std == pytest.approx(want.std)
    assert found.moments.mean == pytest.approx(h.mean(0), rel=1e-6)
    assert found.moments.covariance == pytest.approx(np.cov(h.T), rel=1e-5, abs=1e-6)
    assert found.n == 103 and np.array_equal(found.kept, h)


def test_features_kept_are_a_bounded_seeded_choice(extractor):
    x = np.random.default_rng(1).integers(0, 256, (103, 4, 4, 3), dtype=np.uint8)
    h, _ = extractor(x)
    kept = [streams.describe(extractor, x, batch, 2, 20, 0).kept for batch in (7, 103)]
    assert kept[0].shape == (20, 6) and np.allclose(*kept)
    rows = [int(np.abs(h - row).sum(1).argmin()) for row in kept[0]]
    assert len(set(rows)) == 20 and rows == sorted(rows)


def test_scores_of_inception_alone_bear_its_names_and_stand_beside_the_papers(extractor, tmp_path):
    """For a conditional model of CIFAR-10: IS 8.30, and FID 37.9 against train and test together, as in the released
    script. With any other network on the same images: other names, and no number of the paper."""
    work = work_at("digits", tmp_path)
    cifar = replace(work, model=replace(work.model, preset=replace(work.model.preset, data="cifar10")))
    samples, train, test = np.random.default_rng(0).integers(0, 256, (3, 40, 4, 4, 3), dtype=np.uint8)
    options, real = Generation(splits=2), {"train": train, "test": test}
    found = scored(cifar, options, replace(extractor, inception=True), samples, real)["scores"]["samples"]
    assert found["paper"] == {"IS": 8.3, "FID, train and test": 37.9} and {"IS", "FID, train", "KID, test"} <= set(
        found
    )
    h = [extractor(x)[0] for x in (samples, np.concatenate([train, test]))]
    assert found["FID, train and test"] == pytest.approx(metrics.frechet(*map(metrics.moments, h)), rel=1e-5)
    other = scored(cifar, options, extractor, samples, real)["scores"]["samples"]
    assert "paper" not in other and not any(key.startswith(("IS", "FID", "KID")) for key in other)


def test_each_score_is_of_the_sets_that_it_names(extractor, tmp_path):
    """Samples that are all near one of the training images, on which they lie: precision 1, recall below a half. The
    distances are those of the features, set by set, and the row of training images is theirs."""
    rng = np.random.default_rng(0)
    train, test = (
        rng.integers(0, 256, (40, 4, 4, 3), dtype=np.uint8),
        rng.integers(90, 256, (30, 4, 4, 3), dtype=np.uint8),
    )
    samples = np.clip(train[7].astype(int) + rng.integers(-3, 4, (20, 4, 4, 3)), 0, 255).astype(np.uint8)
    real = {"train": train, "test": test}
    table = scored(work_at("digits", tmp_path), Generation(splits=2), extractor, samples, real)["scores"]
    h, p = {}, {}
    for name, x in {"samples": samples, "train": train, "test": test}.items():
        h[name], p[name] = extractor(x)
    rows = [("samples", "samples", "train"), ("samples", "samples", "test"), ("train images", "train", "test")]
    for row, fake, other in rows:
        found = {key: v for key, v in table[row].items() if key.endswith(f", {other}")}
        (kernel,) = (v for key, v in found.items() if key.startswith("kernel"))
        (frechet,) = (v for key, v in found.items() if key.startswith("Fréchet"))
        assert kernel == pytest.approx(metrics.kernel_distance(h[fake], h[other]).mean, rel=1e-4), row
        assert frechet == pytest.approx(metrics.frechet(*(metrics.moments(h[k]) for k in (fake, other))), rel=1e-4)
        (score,) = (v for key, v in table[row].items() if key.startswith("classifier score"))
        assert score == pytest.approx(metrics.inception_score(p[fake], 2).mean, rel=1e-4)
    # In balls that reach to the third nearest neighbour, counted here pair by pair.
    apart = lambda a, b: np.linalg.norm(a[:, None] - b[None], axis=2)
    within = lambda x, of: (apart(x, of) <= np.sort(apart(of, of), 1)[:, 3]).any(1).mean()
    assert within(h["samples"], h["train"]) == 1 and within(h["train"], h["samples"]) < 0.5
    for row, fake, other in (rows[0], rows[2]):
        assert table[row][f"precision, {other}"] == pytest.approx(within(h[fake], h[other]), abs=1e-6)
        assert table[row][f"recall, {other}"] == pytest.approx(within(h[other], h[fake]), abs=1e-6)


def test_too_few_images_of_any_set_are_warned_of(extractor, tmp_path, capsys):
    """Six features: 7 images are enough, and 6 of whichever set are not, which is named."""
    work, options = work_at("digits", tmp_path), Generation(splits=2)
    x = np.random.default_rng(0).integers(0, 256, (60, 4, 4, 3), dtype=np.uint8)
    for few in ("samples", "train", "test", None):
        n = {name: 6 if name == few else 7 for name in ("samples", "train", "test")}
        real = {"train": x[20 : 20 + n["train"]], "test": x[40 : 40 + n["test"]]}
        warnings = scored(work, options, extractor, x[: n["samples"]], real)["warnings"]
        said = f"{few}: 6 images on a side for 6 features: 6 < 7, a covariance is singular and the distance too large"
        assert warnings == ([said] if few else [])
        assert (f"generation: {said}" in capsys.readouterr().err) == (few is not None)


# The command


def test_eval_generation_end_to_end(tmp_path, digits):
    """samples.npy and labels.npy are the pools', one after the other, and the scores are those of their pictures: none
    is called IS or FID without Inception."""
    assert generation(tmp_path, *SMALL) == 0
    found = numbers(tmp_path)
    x, y = np.load(tmp_path / "samples.npy"), np.load(tmp_path / "labels.npy")
    assert x.shape == (30, 8, 8, 1) and x.dtype == np.uint8 and y.shape == (30,)

    options = Generation(n=30, pool=12, rounds=4, last=1, steps=2)
    protocol = Protocol(kernel(digits, options), 2, options, 128, conditions_of(digits))
    work = work_at("digits", tmp_path)
    third, labels_of_third = mix(
        digits, [("own", None)], 6, protocol, np.random.default_rng([0, 1, 2]), work.generator(1, 2)
    )
    assert np.array_equal(x[24:], quantise(third).permute(0, 2, 3, 1).numpy())
    assert np.array_equal(y[24:], labels_of_third)

    judge = features_of(work)
    train = work.images("train", 60).x
    h, p = judge(x)
    name = "(classifier of digits)"
    row = found["scores"]["samples"]
    assert row[f"Fréchet distance {name}, train"] == pytest.approx(
        metrics.frechet(metrics.moments(h), metrics.moments(judge(train)[0])), rel=1e-4
    )
    assert row[f"classifier score {name}"] == pytest.approx(metrics.inception_score(p, 2).mean, rel=1e-5)
    assert "paper" not in row and not any(key.startswith(("IS", "FID", "KID")) for key in row)
    assert found["ensemble"] == ["digits"] and found["images"] == {"samples": 30, "train": 60, "test": 60}
    assert {"generation.png", "generation.pdf"} <= {p.name for p in tmp_path.iterdir()}
    assert not list(tmp_path.glob(".*part"))


def test_the_release_protocol_has_its_own_clip(tmp_path):
    assert generation(tmp_path, *SMALL, "--protocol", "release") == 0
    assert numbers(tmp_path)["chain"] == {"step_size": 10.0, "noise": 0.005, "clip": 0.05, "steps": 2}
    assert generation(tmp_path, *SMALL, "--protocol", "release", "--clip", "0.02") == 0
    assert numbers(tmp_path)["chain"]["clip"] == 0.02


def test_snapshots_of_a_run_are_recorded(tmp_path, run_folder):
    assert generation(tmp_path, *SMALL, "--ensemble", "2", where=str(run_folder)) == 0
    assert numbers(tmp_path)["ensemble"] == ["0000003", "0000002"]


def test_an_unconditional_model_has_no_labels(tmp_path, digits):
    m = replace(digits.preset, conditional=False)
    net = model.build_image_net(m, digits.shape)
    model.save(tmp_path / "plain.safetensors", net, m, digits.shape, 0, {})
    assert generation(tmp_path / "out", *SMALL, where=str(tmp_path / "plain.safetensors")) == 0
    assert not (tmp_path / "out" / "labels.npy").exists() and numbers(tmp_path / "out")["samples"] == ["samples.npy"]


def test_data_without_labels_give_samples_and_no_scores(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "plain.npz", train_x=x, test_x=x)
    assert generation(tmp_path, *SMALL, "--data", tmp_path / "plain.npz") == 0
    found = numbers(tmp_path)
    assert found["scores"] is None and "no scores" in found["warnings"][0]
    assert np.load(tmp_path / "samples.npy").shape == (30, 8, 8, 1)


def test_a_failure_leaves_no_half_written_samples(tmp_path, digits):
    """Chains that leave the numbers: exit 1, and neither samples.npy nor its temporary file stays."""
    m = model.load("digits")
    for tower in m.net.towers:
        tower.head.weight.data[:] = torch.nan
    model.save(tmp_path / "broken.safetensors", m.net, m.preset, m.shape, 0, {})
    assert generation(tmp_path / "out", *SMALL, where=str(tmp_path / "broken.safetensors")) == 1
    assert not [p for p in (tmp_path / "out").iterdir() if "samples" in p.name]


def test_c14_c02_too_few_samples(capsys, tmp_path):
    """Five images cannot be split into ten parts; one image has no covariance: exit 2, and what is needed."""
    assert generation(tmp_path, "--n", "5", "--splits", "10") == 2
    assert "--splits 10 of --n 5 samples: give fewer splits or more samples" in capsys.readouterr().err
    assert generation(tmp_path, "--n", "1", "--splits", "1") == 2
    assert "--n 1: give at least 2" in capsys.readouterr().err


def test_bad_input_is_one_line(tmp_path, capsys):
    cases = [
        (["--pool", "0"], "--pool 0: give at least 1"),
        (["--visit", "0"], "--visit 0"),
        (["--visit", "0.3", "--rounds", "3"], "--rounds 3 do not fill a pool with --visit 0.3: give at least 4"),
        (["--restart", "1.5"], "--restart 1.5: give a share"),
        (["--steps", "0"], "--steps 0"),
        (["--clip", "nan"], "--clip nan"),
        (["--ensemble", "10"], "digits has none; give a run folder"),
        (["--ensemble", "0"], "--ensemble 0"),
        (["--inception", str(tmp_path / "none.pt")], "no Inception network at"),
        (["--data", "svnh"], "did you mean svhn"),
    ]
    for args, said in cases:
        assert generation(tmp_path / "out", *SMALL, *args) == 2, args
        err = capsys.readouterr().err
        assert said in err.splitlines()[-1] and "Traceback" not in err, err


def test_options_are_checked_before_anything_is_done(digits):
    with pytest.raises(InputError, match="--last -1"):
        check(digits, Generation(last=-1))
