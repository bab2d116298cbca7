"""Glow and PixelCNN++: causal structure by Jacobians, densities that sum to one, change of variables by the full
determinant, an entropy that training reaches, and the command end to end."""

import json
import math
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import unchecked
from safetensors.torch import load_file, save_file
from torch import nn

from igebm import baselines, data, model
from igebm.baselines import glow, pixelcnn, train
from igebm.baselines.saved import Baseline, bits_per_dim, build, settled
from igebm.baselines.settings import Settings
from igebm.cli import main
from igebm.data import Images, Loader
from igebm.errors import Fault, InputError
from igebm.runtime import probe
from igebm.shapes import Shape

HAS_NORMFLOWS = find_spec("normflows") is not None
needs_normflows = pytest.mark.skipif(not HAS_NORMFLOWS, reason="needs pip install '.[baselines]'")
KINDS = [pytest.param("glow", marks=needs_normflows), "pixelcnn"]
RUNTIME = probe("cpu", "float32", "off", 1)
TINY = "--width 4 --depth 1 --batch 8 --log-every 1 --save-every 2 --device cpu --threads 1".split()


def pixel_cnn(channels=1, levels=1, width=6, depth=1, mixtures=2, dtype=torch.float64) -> pixelcnn.PixelCNN:
    """Random weights, the second convolutions of the blocks not small."""
    net = pixelcnn.PixelCNN(channels, width, depth, levels, mixtures, 0.0).to(dtype)
    for p in net.parameters():
        nn.init.normal_(p, std=0.3)
    return net.eval()


def flow(image: tuple[int, int, int], levels: int, width=6, depth=2) -> glow.Glow:
    """In float64; actnorms set by a batch of unlike scales, everything else random."""
    net = glow.Glow(image, width, depth, levels).double()
    with torch.no_grad():
        net.log_prob(torch.rand(32, *image, dtype=torch.float64) ** 2)
        for p in net.parameters():
            p += 0.1 * torch.randn_like(p)
    return net


# PixelCNN++: what a pixel depends on


@pytest.mark.parametrize("h, w, levels, channels", [(5, 6, 1, 1), (6, 6, 2, 1), (7, 9, 3, 3), (4, 5, 4, 1)])
def test_a_pixel_depends_on_those_before_it_and_on_no_other(h, w, levels, channels):
    """∂θᵢ/∂xⱼ = 0 exactly for j ≥ i in reading order; and ≠ 0 for the pixel to the left, those above and, where there
    are layers enough to reach it, the very first."""
    net = pixel_cnn(channels, levels, depth=2)
    x = torch.rand(1, channels, h, w, dtype=torch.float64) * 2 - 1
    mix = torch.randn(net(x).shape[1], dtype=torch.float64)  # one random combination of a pixel's parameters
    J = torch.autograd.functional.jacobian(lambda x: torch.einsum("p,bphw->hw", mix, net(x)), x)
    J = J.abs().sum((2, 3)).reshape(h * w, h * w)
    assert (J.triu() == 0).all()
    J = J.reshape(h, w, h, w)
    for i in range(1, h):
        for j in range(1, w):
            assert (J[i, j, i, j - 1], J[i, j, i - 1, j], J[i, j, i - 1, j - 1]) > (0, 0, 0)
            assert j == w - 1 or J[i, j, i - 1, j + 1] > 0
    assert J[-1, -1, 0, 0] > 0


def test_the_first_pixel_knows_nothing():
    net = pixel_cnn()
    a, b = (net(torch.rand(1, 1, 4, 4, dtype=torch.float64))[0, :, 0, 0] for _ in range(2))
    assert torch.equal(a, b)


# PixelCNN++: the likelihood of a pixel


def logistic(a: float, b: float, mu: float, s: float) -> float:
    """The mass of a logistic between a and b."""
    cdf = lambda t: 1 / (1 + math.exp(-(t - mu) / s))
    return cdf(b) - cdf(a)


def test_a_mixture_by_hand():
    """π = (1/4, 3/4); byte 128 is at 128 / 127.5 - 1 = 1/255, so its bin is [0, 2/255]; 0 and 255 have the tails."""
    log_pi, m, log_s = [0.0, math.log(3)], [0.1, -0.5], [-1.0, -3.0]
    theta = torch.tensor([log_pi, m, log_s], dtype=torch.float64).T.reshape(1, 6, 1, 1).expand(1, 6, 1, 3)
    got = pixelcnn.log_mixture(torch.tensor([[[[128.0, 0.0, 255.0]]]], dtype=torch.float64), theta, 2).exp()
    edges = [(0.0, 2 / 255), (-20.0, 1 / 255 - 1), (1 - 1 / 255, 20.0)]
    want = [
        0.25 * logistic(a, b, 0.1, math.exp(-1)) + 0.75 * logistic(a, b, -0.5, math.exp(-3)) for a, b in edges
    ]  # fmt: skip
    assert got.flatten().tolist() == pytest.approx(want, rel=1e-9)


def test_256_bytes_sum_to_one():
    """For means inside, at the ends and outside of [-1, 1], scales from below the least to far above the widest."""
    theta = torch.tensor(
        [[0.3, m, s, -0.7, -m, s + 1] for m in (-3.0, -1.0, 0.0, 0.7) for s in (-12.0, -7.0, -4.0, 0.0, 5.0, 200.0)],
        dtype=torch.float64,
    )[:, :, None, None].expand(-1, -1, 1, 256)
    v = torch.arange(256, dtype=torch.float64).expand(len(theta), 1, 1, 256)
    total = pixelcnn.log_mixture(v, theta, 2).exp().sum((1, 2))
    assert total.tolist() == pytest.approx([1.0] * len(theta), abs=1e-12)


def test_far_from_the_mean_no_digit_is_lost():
    """The tail of a logistic falls by e^(-1/s) for each unit: in float32 the difference of two σ would be 0 here."""
    mu, log_s = torch.tensor([-1.0]), torch.tensor([-5.0])
    got = pixelcnn.log_bins(torch.tensor([200.0, 201.0]), mu, log_s)
    step = 2 / 255 * math.exp(5)
    a = (200 / 127.5 - 1 - 1 / 255 + 1) * math.exp(5)  # the lower edge, in units of s above the mean
    assert got[0].item() == pytest.approx(-a + math.log1p(-math.exp(-step)), rel=1e-5)
    assert (got[0] - got[1]).item() == pytest.approx(step, rel=1e-3)


def colour_theta() -> torch.Tensor:
    """Two mixtures of a colour pixel: log π, means, log s, and α, β, γ before tanh."""
    rows = [
        [0.2, -0.4, 0.1, 0.3, -2.0, -2.5, -1.5, 0.8, -0.5, 1.2],
        [-0.3, 0.5, -0.2, 0.0, -3.0, -1.0, -2.0, -1.0, 0.4, -0.6],
    ]
    return torch.tensor(rows, dtype=torch.float64)


def log_p(pixels: torch.Tensor) -> torch.Tensor:
    """(N, 3) bytes -> (N,) log P under colour_theta."""
    n = len(pixels)
    theta = colour_theta().reshape(1, 20, 1, 1).expand(1, 20, 1, n)
    return pixelcnn.log_mixture(pixels.double().T.reshape(1, 3, 1, n), theta, 2).flatten()


def test_colours_red_then_green_then_blue():
    """Σ_{g,b} P(r, g, b) is the one-channel mixture of red, for a few r: red depends on nothing, and the conditionals
    of green and blue sum to one. Then P of one pixel by hand."""
    bytes_ = torch.arange(256)
    theta = colour_theta()
    red = theta[:, [0, 1, 4]].reshape(1, 6, 1, 1)
    for r in (0, 97, 255):
        pixels = torch.cartesian_prod(torch.tensor([r]), bytes_, bytes_)
        total = log_p(pixels).exp().sum().item()
        want = pixelcnn.log_mixture(torch.full((1, 1, 1, 1), float(r), dtype=torch.float64), red, 2).exp().item()
        assert total == pytest.approx(want, rel=1e-10)

    r, g, b = 60, 130, 200
    at = lambda v: v / 127.5 - 1
    want, pi = 0.0, theta[:, 0].exp() / theta[:, 0].exp().sum()
    for k, (_, m_r, m_g, m_b, s_r, s_g, s_b, alpha, beta, gamma) in enumerate(theta.tolist()):
        mu = (
            m_r,
            m_g + math.tanh(alpha) * at(r),
            m_b + math.tanh(beta) * at(r) + math.tanh(gamma) * at(g),
        )
        parts = [
            logistic(at(v) - 1 / 255, at(v) + 1 / 255, u, math.exp(s))
            for v, u, s in zip((r, g, b), mu, (s_r, s_g, s_b), strict=True)
        ]
        want += pi[k].item() * math.prod(parts)
    assert log_p(torch.tensor([[r, g, b]])).exp().item() == pytest.approx(want, rel=1e-9)


def test_an_image_of_two_pixels_sums_to_one():
    """Over all 256² images of 1 x 2 pixels, with random weights: the network's factors make one distribution."""
    net = pixel_cnn(width=2)
    v = torch.cartesian_prod(torch.arange(256), torch.arange(256)).reshape(-1, 1, 1, 2)
    with torch.no_grad():
        total = net.log_prob((v.double() + 0.5) / 256).exp().sum().item()
    assert total == pytest.approx(1.0, abs=1e-9)


def test_two_images_cost_one_bit():
    """Data drawn evenly from two images have 1 bit an image, which no model can undercut (Gibbs) and this one nearly
    reaches. Images of other bytes then have next to no probability."""
    g = torch.Generator().manual_seed(1)
    both = (255 * torch.randint(0, 2, (2, 3, 3, 1), generator=g)).to(torch.uint8).numpy()
    settings = Settings(width=32, depth=1, mixtures=4, lr=5e-3, batch=2, steps=80)
    shape = Shape(1, 3, 3)
    run = train.start("pixelcnn", settled("pixelcnn", settings, shape), shape, RUNTIME, {})
    loader = train.open_loader(settings, Images("two", both, None, ()), RUNTIME)
    for _ in range(settings.steps):
        train.train_step(run, loader)
    trained = Baseline(run.net, "pixelcnn", settings, shape)
    bits = -trained.log_likelihood(both) / math.log(2)
    assert 1.0 <= bits.mean() < 1.05
    assert -trained.log_likelihood(255 - both).max() / math.log(2) > 10


# Glow


@needs_normflows
@pytest.mark.parametrize("image, levels", [((1, 4, 4), 1), ((1, 4, 4), 2), ((3, 4, 4), 1), ((1, 4, 8), 2)])
def test_change_of_variables_by_the_full_jacobian(image, levels):
    """log p(x) = log N(z; μ, σ) + log |det ∂z/∂x|, with z and its Jacobian from autograd and the determinant of the
    whole D x D matrix."""
    net = flow(image, levels)
    x = torch.rand(1, *image, dtype=torch.float64)

    def latents(x):
        """z by the layers' maps alone; their own log-determinants are thrown away."""
        z, ends = x - 0.5, []
        for level in range(levels - 1, -1, -1):
            for layer in reversed(net.flow.flows[level]):
                z, _ = layer.inverse(z)
            if level > 0:
                z, end = z.chunk(2, 1)
                ends.append((level, end))
        return [(0, z), *reversed(ends)]

    flat = lambda x: torch.cat([z.flatten() for _, z in latents(x)])
    J = torch.autograd.functional.jacobian(flat, x).reshape(math.prod(image), -1)
    log_n = 0.0
    for level, z in latents(x):
        base = net.flow.q0[level]
        log_n += torch.distributions.Normal(base.loc, base.log_scale.exp()).log_prob(z).sum()
    want = log_n + torch.linalg.slogdet(J)[1]
    assert net.log_density(x).item() == pytest.approx(want.item(), abs=1e-9)
    assert net.log_prob(x).item() == pytest.approx(want.item() - math.prod(image) * math.log(256), abs=1e-9)


@needs_normflows
def test_the_density_integrates_to_one():
    """Four pixels, ∫ p(x) dx by importance sampling from a Gaussian with the flow's own mean and twice its spread."""
    net = flow((1, 2, 2), 1)
    with torch.no_grad():
        own, _ = net.flow.sample(20_000)
        q = torch.distributions.MultivariateNormal(own.flatten(1).mean(0), 4 * own.flatten(1).T.cov())
        x = q.sample((200_000,))
        ratio = (net.flow.log_prob(x.reshape(-1, 1, 2, 2), None) - q.log_prob(x)).exp()
    assert abs(ratio.mean().item() - 1) < 5 * ratio.std().item() / math.sqrt(len(ratio)) < 0.05


@needs_normflows
def test_a_uniform_density_is_eight_bits_a_byte():
    """p = 1 on [0, 1)^D: P = 256^-D whatever the image, exactly 8 bits per dimension."""

    class Uniform(nn.Module):
        def log_prob(self, x, y):
            assert (-0.5 <= x).all() and (x < 0.5).all()
            return torch.zeros(len(x))

    shape = Shape(3, 4, 6)
    uniform = Baseline(build("glow", Settings(width=2, depth=1, levels=1), shape), "glow", Settings(), shape)
    uniform.net.flow = Uniform()
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    nats = uniform.log_likelihood(images)
    assert nats.dtype == np.float64 and nats == pytest.approx([-72 * math.log(256)] * 5, rel=1e-7)
    assert bits_per_dim(nats, shape) == pytest.approx([8.0] * 5, rel=1e-7)


@needs_normflows
@pytest.mark.parametrize(
    "image, asked, want",
    [((3, 32, 32), 0, 3), ((1, 28, 28), 0, 2), ((1, 8, 8), 0, 2), ((1, 2, 2), 0, 1), ((1, 8, 8), 3, 3)],
)
def test_glows_levels_fit_the_image(image, asked, want):
    assert glow.checked_levels(image, asked) == want
    z = [glow.at_level(image, level) for level in range(1, want + 1)]
    halves = [math.prod(shape) // (1 if level == want else 2) for level, shape in enumerate(z, 1)]
    assert sum(halves) == math.prod(image)  # every dimension of x is one of z


@pytest.mark.parametrize("image, asked", [((1, 7, 8), 0), ((1, 28, 28), 3)])
def test_glow_refuses_what_it_cannot_halve(image, asked):
    with pytest.raises(InputError, match="--levels.*--image-size"):
        glow.checked_levels(image, asked)


def test_a_missing_package_is_named_with_the_line_that_installs_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "normflows", None)
    assert main(["baseline", "glow", "--out", str(tmp_path / "r"), *TINY]) == 2
    assert "pip install '.[baselines]'" in capsys.readouterr().err and not (tmp_path / "r").exists()


# Both


@pytest.mark.parametrize("kind", KINDS)
def test_likelihoods_depend_on_the_image_alone(kind):
    """The same in batches of any size, for the same seed; PixelCNN++ whatever the seed."""
    shape = Shape(1, 8, 8)
    net = build(kind, settled(kind, Settings(width=4, depth=1), shape), shape)
    images = np.random.default_rng(0).integers(0, 256, (11, 8, 8, 1), dtype=np.uint8)
    with torch.no_grad():
        net.log_prob(torch.rand(8, 1, 8, 8))  # sets the actnorms
    trained = Baseline(net, kind, Settings(), shape)
    a, b, c = (trained.log_likelihood(images, batch=n, seed=s) for n, s in ((11, 0), (4, 0), (11, 1)))
    assert a == pytest.approx(b, rel=1e-6)
    assert np.array_equal(a, c) == (kind == "pixelcnn") and c == pytest.approx(a, rel=0.05)
    with pytest.raises(InputError, match="height, width, channels"):
        trained.log_likelihood(images[:, :7])


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_number_stops_with_the_step_and_what_to_lower(kind):
    shape, settings = Shape(1, 8, 8), Settings(width=4, depth=1, batch=4)
    images = data.load("digits")
    run = train.start(kind, settled(kind, settings, shape), shape, RUNTIME, {})
    loader = Loader(images._replace(y=None, classes=()), 4)
    train.first_batch(run, loader)
    train.train_step(run, loader)
    with torch.no_grad():
        next(run.net.parameters()).fill_(float("nan"))
    with pytest.raises(Fault, match="diverged at step 2: bits_per_dim = nan; lower --lr"):
        train.train_step(run, loader)


# The command, end to end


def last_line(capsys) -> str:
    return capsys.readouterr().err.splitlines()[-1]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A run of six steps on the digits for each kind there is."""
    root, found = tmp_path_factory.mktemp("baselines"), {}
    for kind in ("glow", "pixelcnn"):
        if kind == "glow" and not HAS_NORMFLOWS:
            continue
        assert main(["baseline", kind, "--data", "digits", "--steps", "6", "--out", str(root / kind), *TINY]) == 0
        found[kind] = root / kind
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_run_leaves(kind, folders):
    """The files; a model that says where it comes from; and bits per dimension that its own likelihoods give."""
    folder = folders[kind]
    names = {p.name for p in folder.iterdir()} - {".lock"}
    assert names == {"metrics.jsonl", "preset.json", "checkpoint.pt", "model.safetensors"}
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in log] == [1, 2, 3, 4, 5, 6] and log[-1]["seen"] == 48
    assert all(math.isfinite(m["bits_per_dim"]) for m in log)

    trained = baselines.load(folder)
    assert (trained.kind, trained.step, trained.shape) == (kind, 6, Shape(1, 8, 8))
    assert trained.settings.data == "digits" and trained.settings.width == 4 and trained.name == kind
    facts = trained.facts
    assert facts["seed"] == 0 and facts["data"]["name"] == "digits" and facts["seconds"] > 0
    assert facts["measured"] == {"train": 1438, "test": 359}
    for split in ("train", "test"):
        nats = trained.log_likelihood(data.load("digits", split).x)
        assert nats.dtype == np.float64 and nats.shape == (facts["measured"][split],)
        assert facts["bits_per_dim"][split] == pytest.approx(-nats.mean() / 64 / math.log(2), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_three_and_three_steps_are_six_bit_for_bit(kind, folders, tmp_path, capsys):
    """Weights, averages and log; with dropout and mirrored images, so that every random stream counts."""
    options = [*TINY, "--dropout", "0.3", "--flip"]
    for name, steps in (("straight", "6"), ("halves", "3")):
        assert main(["baseline", kind, "--steps", steps, "--out", str(tmp_path / name), *options]) == 0
    assert main(["baseline", kind, "--resume", str(tmp_path / "halves"), "--steps", "6", "--device", "cpu"]) == 0
    assert "going on with" in capsys.readouterr().err
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("straight", "halves"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    a, b = (
        [json.loads(line) | {"seconds": 0} for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("straight", "halves")
    )
    assert a == b
    assert main(["baseline", kind, "--resume", str(tmp_path / "halves"), "--width", "5"]) == 2
    assert "--width 4 -> 5" in last_line(capsys)
    assert main(["baseline", kind, "--resume", str(tmp_path / "halves"), "--steps", "6"]) == 0
    assert "already at step 6" in capsys.readouterr().err


def test_a_run_in_the_way_and_a_run_of_another_kind(folders, capsys):
    out = str(folders["pixelcnn"])
    before = {p.name: p.read_bytes() for p in folders["pixelcnn"].iterdir()}
    assert main(["baseline", "pixelcnn", "--out", out, *TINY]) == 2
    assert f"--resume {out}" in last_line(capsys)
    assert main(["baseline", "glow", "--resume", out]) == 2
    assert "a run of pixelcnn, not of glow" in last_line(capsys)
    assert main(["baseline", "pixelcnn", "--resume", out, "--out", out]) == 2
    assert main(["train", "--resume", out]) == 2
    assert f"of igebm baseline; go on with: igebm baseline --resume {out}" in last_line(capsys)
    assert {p.name: p.read_bytes() for p in folders["pixelcnn"].iterdir()} == before


def test_a_run_is_gone_on_with_and_watched_as_an_energys_is(folders, tmp_path, capsys, monkeypatch):
    """--resume knows what kind it is of; watch and compare read its log; in several processes it is refused."""
    for name in ("a", "b"):
        shutil.copytree(folders["pixelcnn"], tmp_path / name)
    assert main(["baseline", "--resume", str(tmp_path / "a"), "--steps", "8"]) == 0
    assert baselines.load(tmp_path / "a").step == 8
    capsys.readouterr()
    assert main(["watch", str(tmp_path / "a")]) == 0
    assert "step 8 of 8" in (shown := capsys.readouterr().out) and "bits_per_dim" in shown
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "c")]) == 0
    assert "bits_per_dim" in (shown := capsys.readouterr().out) and "--steps" in shown
    energy = tmp_path / "energy"
    energy.mkdir()
    settings = {"lr": 0.5, "chain_steps": 7, "sigma_clip": "paper"}
    (energy / "preset.json").write_text(json.dumps({"name": "energy", "settings": settings}))
    (energy / "metrics.jsonl").write_text(json.dumps({"step": 1, "seconds": 0.1, "gap": 0.1}) + "\n")
    assert main(["compare", str(tmp_path / "a"), str(energy), "--out", str(tmp_path / "e")]) == 0
    both, _, alone = capsys.readouterr().out.partition("settings that not all of them have: ")
    assert "--lr" in both and "--sigma-clip" not in both and {"--chain-steps", "--sigma-clip"} < set(alone.split())
    assert main(["baseline", "--resume", str(tmp_path / "nothing")]) == 2
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert main(["baseline", "pixelcnn", "--out", str(tmp_path / "d"), *TINY]) == 2
    assert "in one process" in capsys.readouterr().err and not (tmp_path / "d").exists()


def test_likelihoods_are_of_bytes_alone(folders):
    """Floats in [0, 1] would be read as almost black."""
    m = baselines.load(folders["pixelcnn"])
    shape = (2, m.shape.height, m.shape.width, m.shape.channels)
    with pytest.raises(InputError, match="takes uint8 images .* got float32"), unchecked():
        m.log_likelihood(np.random.default_rng(0).random(shape, np.float32))


@pytest.mark.parametrize("what", ["averages", "optimizer"])
def test_a_checkpoint_of_another_network_is_refused(what, folders, tmp_path, capsys):
    """A bias cut to one number would be taken for all of them."""
    run = tmp_path / "a"
    shutil.copytree(folders["pixelcnn"], run)
    saved = torch.load(run / "checkpoint.pt", weights_only=True)
    cut = lambda t: t[:1].clone() if t.dim() == 1 and len(t) > 1 else t
    if what == "averages":
        saved["averages"] = {name: cut(t) for name, t in saved["averages"].items()}
    else:
        state = saved["optimizer"]["state"]
        saved["optimizer"]["state"] = {i: {name: cut(t) for name, t in of.items()} for i, of in state.items()}
    torch.save(saved, run / "checkpoint.pt")
    assert main(["baseline", "--resume", str(run), "--steps", "8"]) == 2
    assert "is of another network" in last_line(capsys)


def test_an_interrupt_saves_and_the_run_goes_on(tmp_path):
    """SIGINT: exit code 130, a line that tells how to go on, a model that says it is not measured; then it is."""
    out = tmp_path / "r"
    args = [sys.executable, "-m", "igebm", "baseline", "pixelcnn", "--out", str(out), *TINY]
    process = subprocess.Popen(args, stderr=subprocess.PIPE, text=True)
    log, end = out / "metrics.jsonl", time.monotonic() + 60
    while (not log.exists() or log.read_text().count("\n") < 3) and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and f"igebm baseline pixelcnn --resume {out}" in err and "Traceback" not in err
    stopped = baselines.load(out)
    assert stopped.step >= 3 and stopped.facts["bits_per_dim"] == {"train": None, "test": None}
    assert main(["baseline", "pixelcnn", "--resume", str(out), "--steps", str(stopped.step + 1)]) == 0
    assert baselines.load(out).step == stopped.step + 1 and baselines.load(out).facts["bits_per_dim"]["test"] > 0


def test_a_time_limit_ends_a_run(tmp_path, capsys):
    out = tmp_path / "r"
    assert main(["baseline", "pixelcnn", "--minutes", "0.001", "--out", str(out), *TINY]) == 0
    assert 0 < baselines.load(out).step < 100 and "bits per dimension" in capsys.readouterr().err


def test_data_without_a_test_split_and_in_colour(tmp_path, capsys, monkeypatch):
    """An .npz of its own, 6 x 7 pixels: measured on train alone, and said so; its path is kept absolute."""
    x = np.random.default_rng(0).integers(0, 256, (12, 6, 7, 3), dtype=np.uint8)
    np.savez(tmp_path / "own.npz", train_x=x)
    out = tmp_path / "r"
    monkeypatch.chdir(tmp_path)
    args = ["baseline", "pixelcnn", "--data", "own.npz", "--steps", "2", "--measured", "5"]
    assert main([*args, "--out", str(out), *TINY]) == 0
    trained = baselines.load(out / "model.safetensors")
    assert trained.settings.data == str(tmp_path / "own.npz")
    assert trained.facts["measured"] == {"train": 5, "test": 0} and trained.facts["bits_per_dim"]["test"] is None
    assert trained.shape == Shape(3, 6, 7) and "not measured on test" in capsys.readouterr().err

    np.savez(tmp_path / "other.npz", train_x=x[:, :, :6])
    assert main(["baseline", "pixelcnn", "--resume", str(out), "--data", "other.npz", "--steps", "3"]) == 2
    assert "trained on images (3, 6, 7), the data now are (3, 6, 6)" in last_line(capsys)


def test_foreign_and_damaged_files_are_refused(folders, tmp_path, capsys):
    """An energy where a baseline is wanted, and the other way round; a flipped bit; another network; a pickle."""
    with pytest.raises(InputError, match="is an energy, not a baseline"):
        baselines.load("digits")
    folder = folders["pixelcnn"]
    with pytest.raises(InputError, match=r"is a baseline \(pixelcnn\)"):
        model.load(folder)
    assert main(["sample", str(folder)]) == 2

    whole = bytearray((folder / "model.safetensors").read_bytes())
    whole[-3] ^= 0x10
    (tmp_path / "flipped.safetensors").write_bytes(whole)
    with pytest.raises(InputError, match="do not match their checksum"):
        baselines.load(tmp_path / "flipped.safetensors")

    tensors, about = model.read(folder / "model.safetensors")
    for name, change, says in (
        ("width", {"settings": about["settings"] | {"width": 5}}, "this network's is"),
        ("strange", {"settings": about["settings"] | {"more": 1}}, "unknown settings more"),
        ("kind", {"baseline": "glwo"}, "did you mean glow"),
        ("shape", {"shape": [2, 8, 8]}, "1 or 3 channels"),
    ):
        save_file(tensors, tmp_path / f"{name}.safetensors", {"igebm": json.dumps(about | change)})
        with pytest.raises(InputError, match=says):
            baselines.load(tmp_path / f"{name}.safetensors")

    (tmp_path / "run").mkdir()
    torch.save({"net": 1}, tmp_path / "run" / "checkpoint.pt")
    assert main(["baseline", "pixelcnn", "--resume", str(tmp_path / "run")]) == 2
    assert "no checkpoint of a baseline" in last_line(capsys)
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"PK")
    assert main(["baseline", "pixelcnn", "--resume", str(tmp_path / "run")]) == 2
    assert "damaged or no checkpoint" in last_line(capsys)
    assert main(["baseline", "pixelcnn", "--resume", str(tmp_path / "nothing")]) == 2
    assert "no run folder" in last_line(capsys)


@pytest.mark.parametrize(
    "args, says",
    [
        ([], "known: glow, pixelcnn"),
        (["glwo"], "did you mean glow"),
        (["pixelcnn", "--batch", "1"], "--batch 1: choose between 2 and"),
        (["pixelcnn", "--lr", "nan"], "--lr nan"),
        (["pixelcnn", "--data", "cifar11"], "did you mean cifar10"),
        (["pixelcnn", "--widht", "3"], "did you mean --width"),
    ],
)
def test_mistakes_are_one_line(args, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["baseline", *args]) == 2
    assert says in last_line(capsys) and list(tmp_path.iterdir()) == []
