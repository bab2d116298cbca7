"""Extractors: the Inception network's file and its faults, with a small scripted module that takes its arguments; any
network; the classifier that is trained where there is none. A local server stands for the network."""

import hashlib
import http.server
import subprocess
import sys
import threading
import warnings
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from igebm import data, model, ranks
from igebm.data import Images, MissingSplit
from igebm.errors import InputError
from igebm.evaluation import classifier, features
from igebm.evaluation.features import INCEPTION, SHA256, URL, describe, inception, of_network, score_names
from igebm.evaluation.metrics import few, frechet, inception_score, moments
from igebm.terminal import Screen

PICTURES = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)
NOWHERE = "http://127.0.0.1:9/inception.pt"  # nothing answers there


class Small(nn.Module):
    """The arguments of the Inception network, on means of 4 x 4 patches: 192 features, 10 classes."""

    def __init__(self):
        super().__init__()
        self.pool = nn.AvgPool2d(4)
        self.output = nn.Linear(192, 10)

    def forward(
        self, x: torch.Tensor, return_features: bool = False, use_fp16: bool = False, no_output_bias: bool = False
    ) -> torch.Tensor:
        h = torch.nn.functional.interpolate(x.to(torch.float32), size=[32, 32])
        h = self.pool(h / 128.0 - 1.0).flatten(1)
        if return_features:
            return h
        if no_output_bias:
            return torch.nn.functional.linear(h, self.output.weight).softmax(1)
        return self.output(h).softmax(1)


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> tuple[Path, str, Small]:
    """A TorchScript file, its hash, and the module that it was made of."""
    torch.manual_seed(0)
    net, path = Small(), tmp_path_factory.mktemp("network") / "small.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.save(torch.jit.script(net), str(path))
    return path, hashlib.sha256(path.read_bytes()).hexdigest(), net


@pytest.fixture
def small(network) -> features.Extractor:
    path, sha256, _ = network
    return inception(path, sha256=sha256)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def screen(said) -> Screen:
    return Screen(said.append, lambda *_, **__: None)


@pytest.fixture(autouse=True)
def no_network_named(monkeypatch):
    monkeypatch.delenv("IGEBM_INCEPTION", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def distance(small, a, b) -> float:
    return frechet(*(moments(describe(small, x)[0]) for x in (a, b)))


# The Inception network: what it gives


def test_features_and_probabilities_are_the_networks(network, small):
    """Also those without the last bias, which are made of the features and not by a second pass."""
    _, _, net = network
    x = torch.from_numpy(PICTURES).permute(0, 3, 1, 2)
    h, p = small(PICTURES)
    with torch.no_grad():
        assert np.allclose(h, net(x, return_features=True).numpy(), atol=1e-6)
        assert np.allclose(p, net(x, no_output_bias=True).numpy(), atol=1e-6)
        assert not np.allclose(p, net(x).numpy(), atol=1e-3)


def test_grey_images_and_batches(small):
    """A grey picture is a colour picture with three equal channels; batches change nothing."""
    grey = PICTURES[..., :1]
    assert np.array_equal(small(grey)[0], small(np.repeat(grey, 3, -1))[0])
    seen = []
    for a, b in zip(describe(small, PICTURES, 5, lambda *done: seen.append(done)), small(PICTURES), strict=True):
        assert np.allclose(a, b, atol=1e-6) and len(a) == 16
    assert seen == [(5, 16), (10, 16), (15, 16), (16, 16)]
    with pytest.raises(InputError, match="no images found"):
        describe(small, PICTURES[:0])


def test_only_inception_gives_an_fid(small):
    other = of_network("photos classifier", lambda x: (x.flatten(1), x.flatten(1)))
    assert score_names(small) == ("IS", "FID", "KID")
    assert score_names(other) == (
        "classifier score (photos classifier)",
        "Fréchet distance (photos classifier)",
        "kernel distance (photos classifier)",
    )


def test_the_standard_network_is_asked_for_by_default():
    assert SHA256.startswith("f58cb9b6") and len(SHA256) == 64 and URL.endswith(f"/metrics/{INCEPTION}")


# C02, C22: folders and forms


def save_pictures(folder: Path, pictures: np.ndarray) -> Path:
    folder.mkdir()
    for i, x in enumerate(pictures):
        Image.fromarray(x).save(folder / f"{i:02d}.png")
    return folder


def test_c02_folders(small, tmp_path):
    """Ten pictures against themselves: 0, and a warning that they are fewer than the features. One: refused. Copies:
    0."""
    ten = data.load(str(save_pictures(tmp_path / "ten", PICTURES[:10])), data_dir=tmp_path).x
    m = moments(describe(small, ten)[0])
    assert abs(frechet(m, m)) < 0.01 and "10 images on a side for 192 features" in (few(m, m) or "")
    one = data.load(str(save_pictures(tmp_path / "one", PICTURES[:1])), data_dir=tmp_path).x
    with pytest.raises(InputError, match="at least 2 images are needed on each side, got 1"):
        distance(small, one, one)
    copies = np.repeat(one, 10, 0)
    assert abs(distance(small, copies, copies)) < 0.01
    assert inception_score(describe(small, copies)[1], 10).mean == pytest.approx(1.0, abs=1e-6)


def test_c22_every_readable_form_is_the_same_set(small, tmp_path):
    forms = {
        "uint8 NHWC": PICTURES,
        "uint8 NCHW": np.moveaxis(PICTURES, -1, 1),
        "float [0, 1]": (PICTURES / 255).astype(np.float32),
        "double [0, 1]": PICTURES / 255,
    }
    folder = save_pictures(tmp_path / "folder", PICTURES)
    read = {"folder": data.load(str(folder), data_dir=tmp_path).x}
    for i, (name, x) in enumerate(forms.items()):
        np.savez(tmp_path / f"{i}.npz", x)
        read[name] = data.load(str(tmp_path / f"{i}.npz")).x
    for name, x in read.items():
        assert abs(distance(small, PICTURES, x)) < 0.01, name


@pytest.mark.parametrize(
    "x, why",
    [
        (PICTURES / 127.5 - 1, r"float64 values from -1 to 1, shape \(16, 32, 32, 3\)"),
        (PICTURES.astype(np.float32), r"float32 values from 0 to 255, shape \(16, 32, 32, 3\)"),
        (np.moveaxis(PICTURES, -1, 2), r"cannot tell the channels of .*\(16, 32, 3, 32\)"),
        (PICTURES[:, :3], r"cannot tell the channels of .*\(16, 3, 32, 3\)"),
        (np.array([{}, {}], object), "pickle|object"),
    ],
    ids=["-1 to 1", "0 to 255", "NHCW", "two axes of 3", "objects"],
)
def test_c22_what_could_be_several_things_is_refused(x, why, tmp_path):
    np.savez(tmp_path / "x.npz", x)
    with pytest.raises(InputError, match=why):
        data.load(str(tmp_path / "x.npz"))


def test_c22_dark_pictures_stay_dark(tmp_path):
    """uint8 of 0 and 1 are bytes, not shares: far from what they would be if scaled to 255."""
    dark = PICTURES % 2
    np.savez(tmp_path / "dark.npz", dark)
    assert np.array_equal(data.load(str(tmp_path / "dark.npz")).x, dark)


def test_c22_samples_in_memory_and_their_files(small, tmp_path):
    """Pixels that overshoot stop at black and white; written and read back, a sample is itself."""
    bytes_ = data.quantise(torch.tensor([-0.1, 0.0, 0.5, 0.9999, 1.0, 1.1]))
    assert bytes_.tolist() == [0, 0, 128, 255, 255, 255]
    x = 0.5 + 0.4 * torch.randn(16, 3, 32, 32)
    samples = data.quantise(x).permute(0, 2, 3, 1).contiguous().numpy()
    read = data.load(str(save_pictures(tmp_path / "samples", samples)), data_dir=tmp_path).x
    assert abs(distance(small, samples, read)) < 0.01


# C23: the file of the Inception network


class Server:
    """Serves one file; `content` is what it sends, `claims` the length that it announces."""

    def __init__(self, content: bytes):
        self.content, self.claims, self.asked = content, len(content), 0
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                server.asked += 1
                self.send_response(200)
                self.send_header("Content-Length", str(server.claims))
                self.end_headers()
                self.wfile.write(server.content)

            def log_message(self, *_): ...

        self.http = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/{INCEPTION}"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()


@pytest.fixture
def server(network):
    server = Server(network[0].read_bytes())
    yield server
    server.http.shutdown()
    server.http.server_close()
    server.thread.join()


def damaged(content: bytes, how: str) -> bytes:
    if how == "cut":
        return content[: len(content) // 3]
    if how == "one byte":
        return content[:500] + bytes([content[500] ^ 1]) + content[501:]
    return {"empty": b"", "a web page": b"<html>please log in</html>"}[how]


DAMAGES = ["cut", "one byte", "empty", "a web page"]


def test_c23_offline_says_all_that_is_needed(tmp_path, screen):
    with pytest.raises(InputError) as caught:
        inception(None, tmp_path, screen=screen, url=NOWHERE)
    message = str(caught.value)
    for part in (NOWHERE, str(tmp_path / INCEPTION), SHA256, "--inception FILE", "refused"):
        assert part in message
    assert "\n" not in message and list(tmp_path.iterdir()) == []


def test_c23_downloaded_once_and_kept(network, server, tmp_path, screen, said):
    _, sha256, _ = network
    steps = []
    shown = screen._replace(step=lambda done, total, shown="": steps.append((done, total)))
    for _ in range(2):
        found = inception(None, tmp_path, screen=shown, sha256=sha256, url=server.url)
        assert found.inception and found(PICTURES)[0].shape == (16, 192)
    assert server.asked == 1 and steps and len(said) == 1 and "127.0.0.1" in said[0]
    assert [p.name for p in tmp_path.iterdir()] == [INCEPTION]


@pytest.mark.parametrize("how", DAMAGES)
def test_c23_a_damaged_copy_is_named_not_used_and_replaced(how, network, server, tmp_path, screen, said):
    path, sha256, _ = network
    kept = tmp_path / INCEPTION
    kept.write_bytes(damaged(path.read_bytes(), how))
    with pytest.raises(InputError, match=f"{kept} is damaged or another file and is not used.*127.0.0.1:9"):
        inception(None, tmp_path, screen=screen, sha256=sha256, url=NOWHERE)
    assert inception(None, tmp_path, screen=screen, sha256=sha256, url=server.url).inception
    assert kept.read_bytes() == path.read_bytes() and str(kept) in said[-1]


@pytest.mark.parametrize("how", DAMAGES)
def test_c23_a_damaged_download_is_not_kept(how, network, server, tmp_path, screen):
    path, sha256, _ = network
    server.content = damaged(path.read_bytes(), how)
    server.claims = len(server.content)
    with pytest.raises(InputError, match="gave is damaged or another file.*--inception FILE"):
        inception(None, tmp_path, screen=screen, sha256=sha256, url=server.url)
    assert list(tmp_path.iterdir()) == []


def test_c23_a_download_that_breaks_off_is_not_kept(network, server, tmp_path, screen):
    path, sha256, _ = network
    server.content = damaged(path.read_bytes(), "cut")
    with pytest.raises(InputError, match=rf"{server.url} (broke off after|cannot be had).*--inception FILE"):
        inception(None, tmp_path, screen=screen, sha256=sha256, url=server.url)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("named", ["flag", "environment"])
def test_c23_a_file_of_the_users_own_is_refused_and_left_alone(how, named, network, server, tmp_path, monkeypatch):
    path, sha256, _ = network
    own = tmp_path / "mine.pt"
    own.write_bytes(before := damaged(path.read_bytes(), how))
    if named == "environment":
        monkeypatch.setenv("IGEBM_INCEPTION", str(own))
    with pytest.raises(InputError, match=f"mine.pt is damaged .*expected {sha256}"):
        inception(own if named == "flag" else None, tmp_path, sha256=sha256, url=server.url)
    assert own.read_bytes() == before and server.asked == 0


def test_c23_flag_before_environment_before_data_folder(network, tmp_path, monkeypatch):
    path, sha256, _ = network
    good = lambda file=None: inception(file, tmp_path, sha256=sha256, url=NOWHERE).inception
    (tmp_path / INCEPTION).write_bytes(path.read_bytes())
    assert good()
    monkeypatch.setenv("IGEBM_INCEPTION", str(tmp_path / "nothing.pt"))
    with pytest.raises(InputError, match="no Inception network at .*nothing.pt; .*--inception FILE"):
        good()
    assert good(path)
    with pytest.raises(InputError, match="no Inception network at .*none.pt"):
        good(tmp_path / "none.pt")


# Any network


def test_a_network_sees_the_centres_of_bytes():
    """0, 128 and 255 are read as (u + ½) / 256, grey and colour, NHWC to NCHW."""
    x = np.array([0, 128, 255], np.uint8).reshape(1, 1, 1, 3)
    h, p = of_network("", lambda x: (x, torch.log(torch.tensor([[1.0, 3.0]]))))(x)
    assert h.tolist() == [[0.5 / 256, 128.5 / 256, 255.5 / 256]] and p[0] == pytest.approx([0.25, 0.75])


def test_looking_does_not_change_a_network():
    """Batch norm is in evaluation mode: the state is the same after 20 looks, and an image's features do not depend on
    its company."""
    net = classifier.Classifier(3, 10).train()
    seen = of_network("", net)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    first = seen(PICTURES)[0]
    for _ in range(20):
        seen(PICTURES)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert np.allclose(seen(PICTURES[:1])[0], first[:1], atol=1e-6)


# The classifier


@pytest.fixture(scope="module")
def digits() -> tuple[Images, Images]:
    return data.load("digits"), data.load("digits", "test")


@pytest.fixture(scope="module")
def kept(digits, tmp_path_factory) -> tuple[Path, classifier.Trained]:
    folder = tmp_path_factory.mktemp("run")
    return folder, classifier.trained(*digits, folder, steps=80, screen=Screen(lambda _: None, lambda *_: None))


def test_a_classifier_of_digits(kept, digits):
    """Held-out digits are told apart, and its own score of them is near the number of classes."""
    folder, found = kept
    p = classifier.probabilities(found.net, digits[1].x)
    right = (p.argmax(1) == digits[1].y).mean()
    assert right > 0.95 and found.facts["accuracy"] == pytest.approx(right, abs=1e-5)
    assert found.facts["test_images"] == 359 and found.name == "classifier of digits"
    extractor = classifier.extractor(found)
    h, q = describe(extractor, digits[1].x)
    assert h.shape == (359, 128) and np.allclose(p, q, atol=1e-6)
    assert 8 < inception_score(q, 1).mean <= 10
    a, b = moments(describe(extractor, digits[0].x[::2])[0]), moments(describe(extractor, digits[0].x[1::2])[0])
    noise = np.random.default_rng(0).integers(0, 256, (300, 8, 8, 1), dtype=np.uint8)
    assert frechet(a, moments(describe(extractor, noise)[0])) > 30 * frechet(a, b) > 0
    with pytest.raises(InputError, match=r"takes images of 8x8x1, got \(32, 32, 3\)"):
        extractor(PICTURES)


def test_a_classifier_is_trained_once(kept, digits, said, screen):
    """What is kept serves; other settings or other data do not take it for theirs."""
    folder, found = kept
    (path,) = folder.glob("classifier-*.safetensors")
    written = path.stat().st_mtime_ns
    again = classifier.trained(*digits, folder, steps=80, screen=screen)
    assert path.stat().st_mtime_ns == written and said == []
    assert all(torch.equal(v, found.net.state_dict()[k]) for k, v in again.net.state_dict().items())
    assert (again.facts, again.classes, again.image) == (found.facts, found.classes, (1, 8, 8))
    few_ = digits[0]._replace(x=digits[0].x[:200], y=digits[0].y[:200])
    classifier.trained(few_, None, folder, steps=3, screen=screen)
    classifier.trained(few_, None, folder, steps=3, seed=1, screen=screen)
    assert len(list(folder.glob("classifier-*.safetensors"))) == 3
    assert [s.split(",")[0] for s in said] == ["training a classifier of digits"] * 2


def test_a_classifier_is_the_same_from_the_same_seed(digits):
    torch.manual_seed(5)
    a, b, c = (classifier.train_classifier(digits[0], 3, seed) for seed in (1, 1, 2))
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    assert not torch.equal(a.head.weight, c.head.weight)
    expected = torch.manual_seed(5) and torch.rand(1)
    torch.manual_seed(5)
    classifier.train_classifier(digits[0], 1)
    assert torch.equal(torch.rand(1), expected)  # the global stream is left where it was


def test_a_damaged_classifier_is_said_and_trained_anew(digits, tmp_path, said, screen):
    some = digits[0]._replace(x=digits[0].x[:200], y=digits[0].y[:200])
    ask = partial(classifier.trained, some, None, tmp_path, steps=2, screen=screen)
    first = ask()
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    with pytest.raises(InputError, match="is damaged: its weights do not match their checksum"):
        classifier.load(path)
    again = ask()
    assert any("is damaged" in line and "trained anew" in line for line in said)
    assert torch.equal(first.net.head.weight, again.net.head.weight) and classifier.load(path).classes == some.classes


def test_an_energy_is_not_a_classifier(kept):
    with pytest.raises(InputError, match="not a classifier"):
        classifier.load(model.find("digits"))


def test_unlabelled_images_are_left_out(digits):
    """Twice the images, half of them without a label: the same weights as without those."""
    x, y = digits[0].x[:128], digits[0].y[:128]
    mixed = digits[0]._replace(x=np.stack([x, 255 - x], 1).reshape(256, 8, 8, 1), y=np.stack([y, 0 * y - 1], 1).ravel())
    some = digits[0]._replace(x=x, y=y)
    a, b = (classifier.train_classifier(images, 3) for images in (some, mixed))
    assert torch.equal(a.head.weight, b.head.weight)
    assert classifier.accuracy(a, mixed) == classifier.accuracy(a, some)


@pytest.mark.parametrize(
    "change, why",
    [
        ({"y": None, "classes": ()}, "at least 2 classes, digits has 0; .*--inception FILE"),
        ({"classes": ("cat",), "y": np.zeros(1438, np.int64)}, "at least 2 classes, digits has 1"),
        ({"y": np.full(1438, -1)}, "none of the 1438 images of digits has a label"),
        ({"x": np.zeros((1438, 2, 2, 1), np.uint8)}, "at least 4x4 pixels, digits has 2x2"),
    ],
    ids=["no labels", "one class", "unlabelled", "tiny"],
)
def test_what_cannot_be_classified_is_refused(change, why, digits):
    with pytest.raises(InputError, match=why):
        classifier.train_classifier(digits[0]._replace(**change), 5)


def test_colour_pictures_and_long_and_short_training(digits):
    y, small_ = np.arange(16) % 2, PICTURES[:, ::2, ::2]
    tinted = np.where(y[:, None, None, None] == 0, small_ // 2, small_ // 2 + 127).astype(np.uint8)
    images = Images("tinted", tinted, y, ("dark", "light"))
    told = []
    net = classifier.train_classifier(images, 4, progress=lambda *about: told.append(about))
    assert told[-1][:2] == (4, 4)
    assert classifier.train_classifier(images, 1)(torch.rand(2, 3, 16, 16))[1].shape == (2, 2)
    assert classifier.probabilities(net, tinted).shape == (16, 2)
    assert classifier.steps_for(images) == 300
    assert classifier.steps_for(digits[0]) == 30 * 1438 // 128


def test_test_images_without_labels_leave_the_accuracy_open(digits, tmp_path, said, screen):
    """They cost no second training: the first is kept, and measured once there are labels of its classes."""
    some, test = digits[0]._replace(x=digits[0].x[:200], y=digits[0].y[:200]), digits[1]
    ask = partial(classifier.trained, some, folder=tmp_path, steps=2, screen=screen)
    without = (
        None,
        test._replace(y=None, classes=()),
        test._replace(y=0 * test.y - 1),
        test._replace(classes=("a", "b")),
    )
    assert [ask(test=other).facts["accuracy"] for other in without] == [None] * 4
    found = ask(test=test)
    assert found.facts["accuracy"] == round(classifier.accuracy(found.net, test), 5)
    assert found.facts["test_images"] == 359 and ask(test=None).facts == found.facts
    assert len(said) == 1 and said[0].startswith("training a classifier")


def test_a_classifier_is_kept_before_it_is_measured(digits, tmp_path, said, screen, monkeypatch):
    some = digits[0]._replace(x=digits[0].x[:200], y=digits[0].y[:200])
    ask = partial(classifier.trained, some, digits[1], tmp_path, steps=2, screen=screen)
    with monkeypatch.context() as broken, pytest.raises(MemoryError):
        broken.setattr(classifier, "probabilities", Mock(side_effect=MemoryError))
        ask()
    assert ask().facts["test_images"] == 359 and len(said) == 1


FAILS = """
import sys
from igebm import ranks
from igebm.errors import Fault, InputError
def fail():
    raise {"InputError": InputError, "Fault": Fault, "OSError": OSError}[sys.argv[1]]("no room: é")
with ranks.together():
    ranks.first_does(lambda: None)
    try:
        ranks.first_does(fail)
    except Exception as error:
        print(f"{ranks.rank()} {type(error).__name__} {error}\\n", end="", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind, others", [("InputError", "InputError"), ("Fault", "Fault"), ("OSError", "Fault")])
def test_what_the_first_of_two_processes_raises_both_raise(kind, others, tmp_path):
    (tmp_path / "fails.py").write_text(FAILS, encoding="utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    out = subprocess.run([*launch, str(tmp_path / "fails.py"), kind], capture_output=True, text=True, timeout=120)
    assert sorted(out.stdout.splitlines()) == [f"0 {kind} no room: é", f"1 {others} no room: é"], out.stderr


def test_one_process_raises_what_it_raises():
    done = []
    ranks.first_does(lambda: done.append(1))
    error = MissingSplit("a", "test", ("train",))
    with pytest.raises(MissingSplit) as raised:
        ranks.first_does(Mock(side_effect=error))
    assert done == [1] and raised.value is error


TWO = """
import sys; from pathlib import Path
from igebm import data, ranks
from igebm.evaluation import classifier
with ranks.together():
    found = classifier.trained(data.load("digits"), None, Path(sys.argv[1]), steps=3)
    print(f"{ranks.rank()} {found.net.head.weight.sum().item():.6f}\\n", end="", flush=True)  # in one piece
"""


@pytest.mark.slow
def test_one_of_two_processes_trains_and_both_use_it(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    out = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, timeout=120)
    rows = sorted(line.split() for line in out.stdout.splitlines())
    assert [r[0] for r in rows] == ["0", "1"] and rows[0][1] == rows[1][1], out.stderr
    assert out.stderr.count("training a classifier") == 1 and len(list(tmp_path.glob("*.safetensors"))) == 1
