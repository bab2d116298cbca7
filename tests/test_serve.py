"""The page of `igebm serve`: what it computes, held against the library; then served for real, by requests and in a
browser."""

import base64
import io
import itertools
import os
import re
import shlex
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from xml.etree.ElementTree import fromstring

import numpy as np
import pytest
import torch
from PIL import Image

from igebm import data, model, presets, pretrained, terms
from igebm.cli import main
from igebm.data.latents import Latent
from igebm.errors import Fault, InputError
from igebm.samplers import langevin
from igebm.shapes import Shape
from igebm.web import drawing, server, work
from igebm.web.work import Chain, Frame, Spread

SHORT = Chain(steps=6, step_size=10.0, noise=0.005, seed=3, n=5)


@pytest.fixture(scope="module")
def digits() -> model.Model:
    return model.load("digits")


def untrained(shape: Shape, **settings) -> model.Model:
    """A small model whose weights are far from 0, so that conditions matter."""
    preset = replace(presets.PRESETS["digits"].preset, width=4, blocks="1d", sample_steps=20, **settings)
    net = model.build_image_net(preset, shape)
    with torch.no_grad():
        for weights in net.parameters():
            weights.add_(0.1 * torch.randn(weights.shape, generator=torch.Generator().manual_seed(0)))
    return model.Model(net, preset, shape)


@pytest.fixture(scope="module")
def placed(tmp_path_factory) -> Path:
    """A model of 8x8 images, conditional on a place; what it was trained on is nowhere."""
    m = untrained(Shape(1, 8, 8, latents=(Latent("x", 0.0, 1.0), Latent("y", -1.0, 1.0))), data="/nowhere/shapes")
    path = tmp_path_factory.mktemp("models") / "pla=ced.safetensors"
    model.save(path, m.net, m.preset, m.shape, 0, {})
    return path


def quadratic(x):
    return 0.5 * x.flatten(1).square().sum(1)


# Chains


def test_a_chain_is_that_of_igebm_sample(digits):
    for condition in ("7", None):
        *_, last = work.watch(digits, condition, SHORT)
        images, _ = digits.sample(5, condition, steps=6, seed=3)
        assert np.array_equal(last.images, images) and (last.step, last.of) == (6, 6)


def test_each_energy_is_that_of_its_state(digits):
    y = torch.as_tensor(digits.conditions(5))
    states, energies = [], []
    for frame in work.watch(digits, None, SHORT):
        assert len(frame.energies) == frame.step + (frame.step == 6)
        states.append(frame.x)
        energies = frame.energies
    for x, e in zip(states, energies, strict=True):
        e_x = digits.given(y)(x).double()
        assert e == pytest.approx((e_x.mean().item(), e_x.min().item(), e_x.max().item()), abs=1e-6)


def test_a_chain_without_noise_goes_downhill_as_by_hand():
    """On x²/2 with step 0.1 each x is 0.9 times the one before, each energy 0.81 times."""
    x = torch.tensor([[1.0], [-2.0]], dtype=torch.float64)
    seen = list(work.frames(langevin(0.1, 0.0), quadratic, x, 4, torch.Generator()))
    for k, frame in enumerate(seen):
        assert torch.allclose(frame.x, x * 0.9**k)
    expected = [(1.25 * 0.81**k, 0.5 * 0.81**k, 2.0 * 0.81**k) for k in range(5)]
    assert np.allclose(seen[-1].energies, expected)


def test_who_stops_asking_ends_the_work():
    asked = []

    def E(x):
        asked.append(len(x))
        return quadratic(x)

    chain = work.frames(langevin(0.1, 0.0), E, torch.ones(1, 1), 1000, torch.Generator())
    for _ in range(4):
        next(chain)
    assert len(asked) == 3  # the start costs nothing
    chain.close()
    assert next(chain, None) is None and len(asked) == 3


def test_no_step_leaves_noise(digits):
    (only,) = work.watch(digits, None, replace(SHORT, steps=0))
    generator = torch.Generator().manual_seed(3)
    assert torch.equal(only.x, torch.rand((5, 1, 8, 8), generator=generator))


def test_a_chain_that_leaves_the_numbers_says_at_which_step():
    with pytest.raises(Fault, match="step 2; lower the step size"):
        list(work.frames(langevin(1e30, 0.0), quadratic, torch.ones(1, 1), 9, torch.Generator()))


def test_a_page_shows_the_first_frame_the_last_and_few_between():
    moving = [Frame(k, 50, torch.zeros(0), []) for k in range(51)]
    assert [f.step for f in work.paced(iter(moving), every=60.0)] == [0, 50]
    assert [f.step for f in work.paced(iter(moving), every=0.0)] == list(range(51))


@pytest.mark.parametrize(
    "wrong", [{"steps": -1}, {"steps": 10**9}, {"n": 0}, {"n": 10**6}, {"seed": -1}, {"step_size": -1.0},
              {"step_size": float("nan")}, {"noise": float("inf")}], ids=str,
)  # fmt: skip
def test_settings_that_no_page_sends_are_refused(digits, wrong):
    with pytest.raises(InputError, match="choose between"):
        next(work.watch(digits, None, replace(SHORT, **wrong)))


# Repair


@pytest.mark.parametrize("hole", ["left half", "one pixel", "all"])
def test_repair_keeps_every_byte_outside_the_hole(digits, hole):
    picture = data.load("digits").x[7]
    mask = np.zeros((8, 8), bool)
    mask[{"left half": np.s_[:, :4], "one pixel": np.s_[4, 4], "all": np.s_[:]}[hole]] = True
    for frame in work.repair(digits, picture, mask, "3", replace(SHORT, n=3)):
        assert (frame.images[:, ~mask] == picture[~mask]).all()
    assert len(np.unique(frame.images[:, mask], axis=0)) == 3  # three different fillings


def test_nothing_painted_is_nothing_to_fill(digits):
    with pytest.raises(InputError, match="nothing is painted"):
        next(work.repair(digits, data.load("digits").x[0], np.zeros((8, 8), bool), None, SHORT))


def test_painted_pixels_are_those_a_quarter_covered():
    painted = np.zeros((320, 320), bool)
    painted[:, :160] = True
    assert np.array_equal(work.hole_of(painted, 8, 8), np.tile(np.arange(8) < 4, (8, 1)))
    painted[:] = False
    painted[40:80, 80:89] = True  # 9 of a pixel's 40 columns
    assert not work.hole_of(painted, 8, 8).any()
    painted[40:80, 80:91] = True  # 11 of them
    assert np.argwhere(work.hole_of(painted, 8, 8)).tolist() == [[1, 2]]


# Combine


def test_one_term_is_that_class(digits):
    parsed = work.combined([("and", 1.0, "digits=7")], {"digits": digits})
    *_, a = work.combine(parsed, {"digits": digits}, SHORT)
    *_, b = work.watch(digits, "7", SHORT)
    assert torch.equal(a.x, b.x)


def test_a_sum_of_energies_is_the_sum(digits):
    parsed = work.combined([("and", 1.0, "digits=3"), ("not", 0.25, "digits=8")], {"digits": digits})
    frame = next(itertools.islice(work.combine(parsed, {"digits": digits}, SHORT), 1, None))
    x, _ = work.noise(digits, SHORT)
    three, eight = (digits.given(torch.full((5,), k))(x).double() for k in (3, 8))
    assert frame.energies[0].mean == pytest.approx((three - 0.25 * eight).mean().item(), abs=1e-6)


def test_formula_and_command_say_what_is_done(digits):
    rows = [("and", 1.0, "digits=3"), ("and", 0.0, "digits=1"), ("or", 2.0, "digits=4"), ("or", 1.0, "digits=5"),
            ("not", 0.25, "digits=8"), ("and", 1.0, "")]  # fmt: skip
    parsed = work.combined(rows, {"digits": digits})
    formula = "E(x) = E(x | 3) + (−T log(2 e^(−E(x | 4)/T) + e^(−E(x | 5)/T))) − 0.25 E(x | 8)"
    assert work.formula(parsed) == formula
    assert [terms.parse(t) for t in shlex.split(work.command(parsed))[2:]] == parsed


@pytest.mark.parametrize("word", ["x;reboot", "a';reboot;'", "$(reboot)", "a b", '"', "`reboot`", "x&y|z>w", "\\"])
def test_a_class_of_any_name_is_one_word_to_a_shell(word):
    """Names of classes come from a model's file, and the line is there to be pasted."""
    m = untrained(Shape(1, 8, 8, (word, "other")), conditional=True)
    parsed = work.combined([("and", 1.0, f"m={word}"), ("or", 2.0, f"m={word}")], {"m": m})
    said = subprocess.run(["sh", "-c", f"printf '%s\\n' {work.command(parsed)}"], capture_output=True, text=True)
    assert said.stdout.splitlines() == ["igebm", "compose", f"m={word}", f"or:2*m={word}"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("and", 1.0, "os:getcwd")], "unknown model 'os:getcwd'"),
        ([("and", 1.0, "this:that")], "unknown model"),
        ([("and", 1.0, "/etc/passwd")], "unknown model"),
        ([("and", 1.0, "digit=3")], "did you mean digits"),
        ([("and", -1.0, "digits=3")], "above 0"),
        ([("and", 0.0, "digits=3")], "there is no term"),
        ([("and", 1.0, "digits=eleven")], "unknown label"),
        ([("not", 1.0, "digits=3")], "no mode"),
        ([("and", 1.0, "digits=3")] * 9, "at most 8"),
        ([("and", 1.0, "digits=3"), ("and", 1.0, "other")], "unlike size"),
    ],
)  # fmt: skip
def test_terms_that_make_no_sense_are_refused(digits, rows, message):
    """Above all a function: a page must not import what a visitor names."""
    other = untrained(Shape(3, 32, 32), conditional=False)
    with pytest.raises(InputError, match=message):
        next(work.combine(work.combined(rows, {"digits": digits, "other": other}), {"digits": digits}, SHORT))
    assert "this" not in sys.modules


def test_choices_can_be_chosen(digits, placed):
    models = {"digits": digits, "placed": model.load(placed)}
    offered = work.choices(models)
    assert offered[:10] == [f"digits={k}" for k in range(10)] and offered[10:] == [
        "placed=0.1,-0.8", "placed=0.5,0", "placed=0.9,0.8"
    ]  # fmt: skip
    for text in offered:
        (term,) = work.combined([("and", 1.0, text)], models)
        terms.bound(term, models[term.source], 2, models[term.source])


# Out of distribution


def kinds_of_pictures(folder: Path) -> None:
    """Files of eight colour modes, as a folder of training images may hold them."""
    flat = lambda mode, colour: Image.new(mode, (32, 24), colour)
    flat("CMYK", (0, 255, 255, 0)).save(folder / "a.jpg")
    flat("LA", (100, 255)).save(folder / "b.png")
    flat("RGB", (10, 200, 30)).convert("P", palette=Image.Palette.ADAPTIVE).save(folder / "c.png")
    flat("1", 1).save(folder / "d.png")
    flat("L", 77).save(folder / "e.png")
    flat("RGBA", (255, 0, 0, 255)).save(folder / "f.png")
    flat("RGBA", (255, 0, 0, 0)).save(folder / "g.png")
    flat("RGB", (0, 255, 0)).save(folder / "h.gif", save_all=True, append_images=[flat("RGB", (0, 0, 255))])


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_is_read_as_training_reads_it(tmp_path, channels):
    kinds_of_pictures(tmp_path)
    trained = data.load(str(tmp_path), image_size=8, channels=channels)
    m = untrained(Shape(channels, 8, 8), conditional=False)
    read = np.stack([work.read_picture(path, m) for path in sorted(tmp_path.iterdir())])
    assert np.array_equal(read, trained.x)
    if channels == 3:
        expected = [(255, 0, 0), (100,) * 3, (10, 200, 30), (255,) * 3, (77,) * 3, (255, 0, 0), (255,) * 3, (0, 255, 0)]
        assert np.abs(read[:, 4, 4].astype(int) - expected).max() <= 3


def png_of(width: int, height: int) -> bytes:
    """A small file that says it is a large picture."""
    chunk = lambda kind, body: struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width // 8 + 1) * min(height, 50)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (png_of(60_000, 60_000), "too many pixels"),
        (png_of(9_000, 9_000), "9,000 x 9,000 pixels"),
        (b"not a picture", "cannot be read as a picture"),
        (b"", "cannot be read as a picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "cannot be read as a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot be read as a picture"),
        (png_of(64, 64)[:50], "cannot be read as a picture"),
    ],
    ids=["bomb", "large", "text", "empty", "svg", "eps", "cut off"],
)  # fmt: skip
def test_pictures_of_hostile_size_or_kind_are_refused(digits, tmp_path, content, message):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(InputError, match=message) as refused:
        work.read_picture(tmp_path / "x.png", digits)
    assert str(tmp_path) not in str(refused.value)  # a visitor need not know where


def test_score_is_the_least_over_all_conditions(digits, placed):
    x = data.load("digits", "test").x[:4]
    every = [digits.energy(x, np.full(4, k)) for k in range(10)]
    assert np.allclose(work.score(digits, x), np.min(every, 0), atol=1e-7)
    m = model.load(placed)
    at = lambda a, b: m.energy(x, np.tile(np.float32([a, b]), (4, 1)))
    every = [at((i + 0.5) / 6, -1 + (j + 0.5) / 3) for i in range(6) for j in range(6)]
    assert np.allclose(work.score(m, x), np.min(every, 0), atol=1e-6) and np.ptp(every, 0).min() > 1e-3


@pytest.fixture(scope="module")
def whole(digits):
    """What `scored` gives at last, of all training images."""
    *_, last = work.scored(digits, data.load("digits", "train"))
    return last


def test_the_reference_is_the_training_set_sorted(digits, whole, monkeypatch):
    images = data.load("digits", "train")
    done, total, reference = whole
    assert done == total == 1438 and reference.about == "all 1,438 training images of digits"
    assert np.allclose(reference.energies, np.sort(digits.energy(images.x)), atol=1e-6)
    monkeypatch.setattr(work, "FORWARDS", 2_000)
    *_, (done, total, reference) = work.scored(digits, images)
    assert done == total == len(reference.energies) == 200 and "200 of the 1,438" in reference.about


def test_quantiles_by_hand():
    e = np.array([1.0, 2.0, 2.0, 3.0])
    found = [work.share_below(v, e) for v in (0.5, 1.0, 1.5, 2.0, 3.0, 9.0)]
    assert found == [0.0, 0.125, 0.25, 0.5, 0.875, 1.0]


def test_the_quantile_in_words():
    e = np.arange(1000.0)
    said = lambda v: work.verdict(v, e)
    assert said(400.5) == ("Looks like the training set", "higher than that of 40.1 % of 1,000 training images")
    assert said(960.5)[0] == "Unusual"
    assert said(995.5) == ("Out of distribution", "higher than that of 99.6 % of 1,000 training images")
    assert said(5000.0) == ("Out of distribution", "higher than that of every one of 1,000 training images")
    assert said(-1.0)[0] == "Suspiciously low" and "plain, smooth" in said(-1.0)[1]


def test_noise_is_out_and_training_images_are_in(digits, whole):
    reference = whole[2]
    noise = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), dtype=np.uint8)
    assert {work.verdict(float(e), reference.energies)[0] for e in work.score(digits, noise)} == {"Out of distribution"}
    fine = [work.verdict(float(e), reference.energies)[0] for e in reference.energies]
    assert 0.93 < fine.count("Looks like the training set") / len(fine) < 0.95


# Drawings


def image_in(shown: str) -> np.ndarray:
    """The pixels (RGBA) of the picture in what is shown."""
    (source,) = re.findall(r'src="data:image/png;base64,([^"]+)"', shown)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source))))


def tiles_in(shown: str, n: int, size: int = 8) -> np.ndarray:
    """The images that it is made of: each pixel a square of four, one clear line between two images."""
    canvas, large = image_in(shown), size * round(32 / size)
    columns = (canvas.shape[1] + 1) // (large + 1)
    corners = [((i // columns) * (large + 1), (i % columns) * (large + 1)) for i in range(n)]
    return np.stack([canvas[t : t + large : large // size, l : l + large : large // size, :1] for t, l in corners])


def test_a_picture_holds_every_pixel_and_clear_gaps():
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
    shown = drawing.text(drawing.picture(images, "five"))
    assert np.array_equal(tiles_in(shown, 5), images)
    canvas = image_in(shown)
    assert canvas.shape == (65, 98, 4) and (canvas[32, :, 3] == 0).all() and (canvas[:, 32, 3] == 0).all()
    assert (canvas[:32, :32, 3] == 255).all()


def test_the_curve_goes_through_its_energies():
    energies = [Spread(v, v - 1, v + 1) for v in (4.0, 2.0, 1.0)]
    figure = drawing.curve(energies, 4)
    path = next(p for p in figure.iter("path") if p.get("class") == "line").get("d") or ""
    x, y = np.array([[float(v) for v in pair.split()] for pair in re.split("[ML]", path)[1:]]).T
    assert np.allclose(np.diff(x), (400 - 8 - 50) / 4, atol=0.1)  # a quarter of the axis a step
    assert (y[1] - y[0]) / (y[2] - y[1]) == pytest.approx(2.0, abs=0.02)
    assert any("from 4 to 1 after 2 steps" in (svg.get("aria-label") or "") for svg in figure.iter("svg"))


def test_the_histogram_counts_every_image():
    e = np.random.default_rng(0).normal(size=500)
    figure = drawing.histogram(9.0, np.sort(e))
    bars = [float(b.get("height") or 0) for b in figure.iter("rect")]
    counts = np.histogram(e, 48, work_range(e, 9.0))[0]
    assert np.allclose(np.array(bars) / max(bars), counts[counts > 0] / counts.max(), atol=0.01)
    mark = next(line for line in figure.iter("line") if line.get("x1") == line.get("x2"))
    assert float(mark.get("x1") or 0) == pytest.approx(50 + (1 - 0.05 / 1.1) * 342, abs=0.2)


def work_range(e, marked):
    """The axis that `limits` makes: a twentieth more than there is, at both ends."""
    low, high = e.min(), max(e.max(), marked)
    return low - 0.05 * (high - low), high + 0.05 * (high - low)


def test_words_of_others_are_no_markup():
    for shown in (drawing.refused("<script>alert(1)</script>"), drawing.empty("<img src=x onerror=alert(1)>")):
        assert not re.search("<(script|img)", shown)
        fromstring(shown)


# The command, before there is a page


def test_the_port_is_free_or_said_to_be_taken(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        pytest.importorskip("gradio")
        assert main(["serve", "--port", str(port)]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and f"port {port}" in said and "--port" in said
    assert 0 < server.free_port("127.0.0.1", 0) < 65536


@pytest.mark.parametrize("options", [["--port", "70000"], ["--host", "no.such.host.invalid"], ["--host", "a b"]])
def test_places_that_are_none_are_refused(options, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setenv("IGEBM_PASSWORD", "secret")
    assert main(["serve", *options]) == 2
    assert options[1] in capsys.readouterr().err


def test_without_gradio_there_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["serve"]) == 2
    assert capsys.readouterr().err == "igebm: the page needs gradio: pip install '.[web]'\n"


def test_others_need_a_password(capsys, monkeypatch):
    monkeypatch.delenv("IGEBM_PASSWORD", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    for host in ("0.0.0.0", "::", "192.168.0.7", "example.org"):
        assert main(["serve", "--host", host]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "IGEBM_PASSWORD" in said and host in said
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        assert server.password_for(host, "igebm") == ""
    monkeypatch.setenv("IGEBM_PASSWORD", "secret")
    assert server.password_for("0.0.0.0", "igebm") == server.password_for("127.0.0.1", "igebm") == "secret"
    with pytest.raises(InputError, match="--user is empty"):
        server.password_for("0.0.0.0", "")


def test_names_fit_into_terms():
    taken = dict.fromkeys(("digits", "digits-2"), untrained(Shape(1, 8, 8), conditional=False))
    assert [server.unused(n, taken) for n in ("digits", "a=b*c:d", "run")] == ["digits-3", "a-b-c-d", "run"]


# Served for real


@pytest.fixture(scope="module")
def serving(tmp_path_factory):
    """Starts `igebm serve` as a user does: serving(*models, **environment) -> its address and process."""
    pytest.importorskip("gradio", reason="no gradio: pip install '.[web]'")
    started = []
    signal.signal(signal.SIGINT, signal.default_int_handler)  # where it is ignored here, it would be there

    def start(*models: str, **environment: str) -> SimpleNamespace:
        folder = tmp_path_factory.mktemp("serve")
        command = [sys.executable, "-m", "igebm", "serve", *models, "--port", "0", "--device", "cpu", "--threads", "1",
                   "--dtype", "float32"]  # fmt: skip
        env = os.environ | {"TMPDIR": str(folder), "IGEBM_DATA": str(folder), "HTTP_PROXY": "http://192.0.2.1:9"}
        env.pop("IGEBM_PASSWORD", None)
        with open(folder / "err", "w") as err:
            process = subprocess.Popen(
                command, env=env | environment, stdout=subprocess.PIPE, stderr=err, text=True, cwd=folder,
                start_new_session=True,
            )  # fmt: skip
        started.append(process)
        return SimpleNamespace(process=process, folder=folder, url="")

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def ready(server):
    """The server once its page can be opened."""
    server.url = server.process.stdout.readline().strip()
    assert server.url.startswith("http://127.0.0.1:"), (server.folder / "err").read_text()
    return server


@pytest.fixture(scope="module")
def page(serving, placed):
    return ready(serving("digits", str(placed)))


def test_without_a_model_it_opens_with_every_bundled_model_of_images(serving):
    """By the line that names them: all that `igebm models` lists but those of time series, which have no pictures."""
    served = ready(serving())
    told = (served.folder / "err").read_text()
    for name in pretrained.names():
        if name.startswith("balls"):
            with pytest.raises(InputError, match="time series"):
                model.load(name)
        assert (name in told) == (not name.startswith("balls")), told


@pytest.fixture(scope="module")
def client(page):
    from gradio_client import Client

    opened = Client(page.url, verbose=False)
    yield opened
    opened.close()


def fetched(url: str, headers: dict[str, str] | None = None, body: bytes | None = None) -> tuple[int, str]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, body, headers or {}), timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


WATCH = ["digits", "", 0.5, 0.0]
"""the first inputs of /watch: model, its class, and the latents of the other model"""


def test_a_chain_through_the_page_is_that_of_the_library(client, digits):
    images, _ = digits.sample(5, "4", steps=20, seed=11)
    shown = client.predict("digits", "4", 0.5, 0.0, 5, 20, 10.0, 0.005, 11, api_name="/watch")
    assert "step 20 of 20" in shown and np.array_equal(tiles_in(shown, 5), images)


def test_latents_and_terms_through_the_page(client, placed):
    m = model.load(placed)
    images, _ = m.sample(2, "0.25,-0.5", steps=5, seed=1)
    shown = client.predict("pla-ced", "", 0.25, -0.5, 2, 5, 10.0, 0.005, 1, api_name="/watch")
    assert np.array_equal(tiles_in(shown, 2), images)
    rows = ["and", 1, "digits=3", "and not", 0.25, "pla-ced=0.5,0", "and", 1, "", "and", 1, ""]
    shown = client.predict(*rows, 2, 5, 10.0, 0.005, 0, api_name="/combine")
    assert "E(x) = E(x | 3) − 0.25 E(x | 0.5,0)" in shown and "step 5 of 5" in shown


def test_mistakes_are_said_in_the_page(client, tmp_path):
    from gradio_client import handle_file

    rows = ["and", 1, "os:getcwd", "and", 1, "", "and", 1, "", "and", 1, ""]
    assert "unknown model" in client.predict(*rows, 2, 5, 10.0, 0.005, 0, api_name="/combine")
    (tmp_path / "bomb.png").write_bytes(png_of(60_000, 60_000))
    assert "too many pixels" in client.predict("digits", handle_file(tmp_path / "bomb.png"), api_name="/compare")
    said = client.predict("digits", None, *WATCH[1:], 2, 5, 10.0, 0.005, 0, api_name="/repair")
    assert "take one of the training set" in said


def test_compare_through_the_page(client, tmp_path):
    from gradio_client import handle_file

    Image.fromarray(data.load("digits").x[5][..., 0]).save(tmp_path / "five.png")
    shown = client.predict("digits", handle_file(tmp_path / "five.png"), api_name="/compare")
    assert "Looks like the training set" in shown and "1,438 training images" in shown
    shown = client.predict("pla-ced", handle_file(tmp_path / "five.png"), api_name="/compare")
    assert "The training set, shapes, is not on the machine" in shown and "nowhere" not in shown


def step_in(shown: str) -> int:
    found = re.search(r"step ([\d,]+) of", shown)
    return int(found[1].replace(",", "")) if found else 0


def answered_before(waiting, at, of: int, end) -> None:
    """`waiting` is answered once `end` has ended the chain of `of` steps before it, in under half the time that the
    chain would have gone on for; `at()` is how far it is."""
    start = time.monotonic()
    first = at()
    while at() < first + 40:
        time.sleep(0.05)
    rest = (of - at()) * (time.monotonic() - start) / (at() - first)
    assert not waiting.done()  # one at a time
    end()
    start = time.monotonic()
    assert "step 1 of 1" in waiting.result(timeout=60)
    assert time.monotonic() - start < rest / 2


def test_stopping_ends_the_work_and_the_next_one_starts(client):
    long = client.submit(*WATCH, 36, 1000, 10.0, 0.005, 0, api_name="/watch")
    while not long.outputs():
        time.sleep(0.05)
    waiting = client.submit(*WATCH, 1, 1, 10.0, 0.005, 0, api_name="/watch")
    answered_before(waiting, lambda: step_in(long.outputs()[-1]), 1000, long.cancel)


def test_an_upload_over_the_limit_is_refused(page):
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + bytes(11 * 2**20)
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    code, said = fetched(f"{page.url}gradio_api/upload", headers, body + b"\r\n--x--\r\n")
    assert code == 413 and "maximum" in said


def test_nothing_of_the_machine_is_served(page):
    (page.folder / "private.txt").write_text("private")
    for path in (page.folder / "private.txt", "/etc/passwd", "../private.txt"):
        assert fetched(f"{page.url}gradio_api/file={path}")[0] in (403, 404)


def test_the_page_names_no_other_host(page):
    """Of what a browser fetches; requests are counted in the browser below."""
    code, text = fetched(page.url)
    assert code == 200
    followed = re.findall(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="([^"]*)"', text)
    assert followed and not [url for url in followed if "//" in url]
    assert not re.search(r"@import|url\(['\"]?(https?:)?//", fetched(f"{page.url}theme.css")[1])


def test_with_a_password(serving):
    locked = ready(serving("digits", IGEBM_PASSWORD="secret"))
    for path in ("config", "gradio_api/info", "gradio_api/queue/data?session_hash=a"):
        assert fetched(locked.url + path)[0] == 401
    assert fetched(f"{locked.url}gradio_api/upload", {}, b"")[0] == 401
    assert "watch-go" not in fetched(locked.url)[1]
    from gradio_client import Client

    with pytest.raises(ValueError, match="login"):
        Client(locked.url, auth=("igebm", "wrong"), verbose=False)
    visitor = Client(locked.url, auth=("igebm", "secret"), verbose=False)
    chain = visitor.submit("digits", "", 36, 1000, 10.0, 0.005, 0, api_name="/watch")
    while not chain.outputs():
        time.sleep(0.05)
    # Ctrl-C in the middle of a chain ends it at once, and nothing is left.
    start = time.monotonic()
    for _ in range(2):
        locked.process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    assert locked.process.wait(10) == 130 and time.monotonic() - start < 5
    assert (locked.folder / "err").read_text().splitlines()[-1] == "igebm: interrupted"
    assert not list(locked.folder.glob("igebm-*"))
    visitor.close()


# In a browser


def opened(context, page):
    """The page in a new tab, and what the tab asks for and complains of."""
    tab, asked, errors = context.new_page(), [], []
    tab.set_default_timeout(45_000)
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.goto(page.url, wait_until="domcontentloaded")
    tab.locator("#watch-go").wait_for()
    return tab, asked, errors


def stroke(tab, canvas, share):
    """Paints from left to right at a share of the canvas's height."""
    box = canvas.bounding_box()
    middle, reach = box["x"] + box["width"] / 2, 60
    y = box["y"] + box["height"] / 2 + (share - 0.5) * 240
    tab.mouse.move(middle - reach, y)
    tab.mouse.down()
    tab.mouse.move(middle + reach, y, steps=3)
    tab.mouse.up()


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), pytest.param(1280, "light", marks=pytest.mark.slow)])
def test_in_a_browser(width, scheme, browser, page):
    """Each tab does its work; nothing sticks out; nothing is asked of another host."""
    with browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme) as context:
        tab, asked, errors = opened(context, page)
        ends = lambda key, text: tab.locator(f"#{key}-out", has_text=text).wait_for()
        fits = lambda: tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        tab.locator("#watch-go").click()
        tab.locator("#watch-out img").wait_for()
        tab.locator("#watch-stop").click()
        assert fits()
        tab.get_by_role("tab", name="Repair").click()
        tab.locator("#repair-some").click()
        tab.locator("#repair-hint", has_text="Paint over").wait_for()
        canvas = tab.locator("#repair-canvas canvas").first
        canvas.scroll_into_view_if_needed()
        tab.wait_for_timeout(1000)  # for the editor to draw the picture
        stroke(tab, canvas, 0.4)
        stroke(tab, canvas, 0.5)
        tab.locator("#repair-go").click()
        ends("repair", "step 200 of 200")
        share = re.search(r"(\d+)% of the pixels", tab.locator("#repair-out").inner_text())
        fillings = tiles_in(tab.locator("#repair-out").inner_html(), 4)
        assert share and 0 < np.ptp(fillings, 0).astype(bool).mean() <= int(share[1]) / 100 + 0.005 < 0.5
        assert fits()
        tab.get_by_role("tab", name="Combine").click()
        tab.locator("#combine-go").click()
        ends("combine", "E(x) = E(x | 3) − 0.3 E(x | 8)")
        tab.locator("#combine-stop").click()
        assert fits()
        tab.get_by_role("tab", name="Compare").click()
        tab.locator("#compare-noise").click()
        ends("compare", "Out of distribution")
        assert fits()
        ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", ground)[:3])) > 600) == (scheme == "light")
    assert {url.split("/")[2].split(":")[0] for url in asked if not url.startswith(("data:", "blob:"))} == {"127.0.0.1"}
    assert not errors


def test_a_closed_tab_ends_its_chain(browser, page, client):
    with browser.new_context() as context:
        tab, _, _ = opened(context, page)
        tab.locator("#watch-settings button").first.click()
        for key, value in (("steps", "1000"), ("n", "36")):
            tab.locator(f"#watch-{key} input[type=number]").fill(value)
            tab.keyboard.press("Tab")
        tab.locator("#watch-go").click()
        caption = tab.locator("#watch-out .images figcaption")
        caption.wait_for()
        waiting = client.submit(*WATCH, 1, 1, 10.0, 0.005, 0, api_name="/watch")
        answered_before(waiting, lambda: step_in(caption.inner_text()), 1000, tab.close)


def test_a_model_is_chosen_with_its_inputs(browser, page):
    with browser.new_context(viewport={"width": 1000, "height": 900}) as context:
        tab, _, errors = opened(context, page)
        assert tab.locator("#watch-class-0").is_visible() and not tab.locator("#watch-x-1").is_visible()
        tab.locator("#model input").click()
        tab.get_by_role("option", name="pla-ced").click()
        tab.locator("#watch-x-1").wait_for()
        assert not tab.locator("#watch-class-0").is_visible()
        assert "conditional on x, y" in tab.locator("#facts").inner_text()
        tab.locator("#watch-go").click()
        tab.locator("#watch-out", has_text="step 20 of 20").wait_for()
    assert not errors
