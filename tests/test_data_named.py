"""Sets by name, from the cache and from the hub's own format; where things are kept; what `check` counts."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from igebm.data import MissingSplit, available, check, data_folder, hub, load, named
from igebm.errors import InputError
from igebm.files import one_at_a_time

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)


def dataset(columns: dict, labels=None):
    import datasets

    features = {
        name: datasets.Image() if isinstance(values[0], Image.Image) else datasets.Value("int64")
        for name, values in columns.items()
    }
    if labels:
        features["label"] = datasets.ClassLabel(names=labels)
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def pictures(pixels=PIXELS) -> list[Image.Image]:
    return [Image.fromarray(row) for row in pixels]


def silent(message: str) -> None: ...


def test_digits():
    raw = load_digits()
    train, test = load("digits"), load("digits", "test")
    assert train.x.shape == (1438, 8, 8, 1) and test.x.shape == (359, 8, 8, 1)
    assert train.classes == tuple("0123456789") and test.y.tolist() == raw.target[4::5].tolist()
    # 16 -> 255; 8 -> 127.5, to the even 128; 1 -> 15.94 -> 16
    levels = dict(zip(raw.images[:4].ravel().tolist(), train.x[:4].ravel().tolist(), strict=True))
    assert (levels[0], levels[1], levels[8], levels[16]) == (0, 16, 128, 255)
    assert load("digits", image_size=32, channels=3).x.shape == (1438, 32, 32, 3)
    with pytest.raises(MissingSplit, match="no split 'val'; it has: train, test"):
        load("digits", "val")


def test_c17_columns_are_found_by_their_type(tmp_path):
    import datasets

    said = []
    train = dataset({"fine_label": [7, 1, 2, 7, 1, 2], "img": pictures()})
    train.to_parquet(tmp_path / "train.parquet")
    files = {"train": str(tmp_path / "train.parquet")}
    stored = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "hf"))["train"]
    test = dataset({"fine_label": [-1, 7], "img": pictures(PIXELS[:2])})
    path = tmp_path / "set.npz"
    hub.store({"train": stored, "test": test}, path, "set", say=said.append)
    images = load(str(path))
    assert (images.x == PIXELS).all() and images.y.tolist() == [2, 0, 1, 2, 0, 1] and len(images.classes) == 3
    assert load(str(path), "test").y.tolist() == [-1, 2]
    assert said == ["labels of set: 3 classes, 1, 2, 7 renumbered 0 to 2"]
    with pytest.raises(InputError, match="no column 'image'; it has: fine_label, img"):
        hub.read(stored, "set", image="image", say=silent, spill=Path)
    with pytest.raises(InputError, match="no column 'label'; it has: fine_label, img"):
        hub.store({"train": stored}, path, "set", label="label", say=silent)


def test_hub_sets_with_class_names_grey_and_none(tmp_path):
    grey = pictures(PIXELS[..., 0])
    x, y, classes = hub.read(
        dataset({"image": grey, "label": [1, 0, None, 1, 0, 1]}, ["cat", "dog"]), "set", say=silent, spill=Path
    )
    assert (x[..., 0] == PIXELS[..., 0]).all() and x.shape == (6, 8, 8, 1)
    assert y.tolist() == [1, 0, -1, 1, 0, 1] and classes == ("cat", "dog")
    said = []
    assert hub.read(dataset({"a": grey, "w": [1] * 6, "h": [2] * 6}), "set", say=said.append, spill=Path)[1] is None
    assert "no column of labels among a, w, h" in said[0]
    with pytest.raises(InputError, match="none of its columns is of images; it has: w"):
        hub.read(dataset({"w": [1]}), "set", say=silent, spill=Path)
    with pytest.raises(InputError, match=r"1 of 6 images in set cannot be read: row 0 \(no image in this row\)"):
        hub.read(dataset({"w": [1] * 6, "img": [*grey[1:], None]}).select([5, 0, 1, 2, 3, 4]), "set", say=silent,
                 spill=Path)  # fmt: skip


def test_hub_sets_of_many_sizes_are_kept_at_the_size_asked_for(tmp_path):
    splits = {"train": dataset({"image": [Image.new("RGB", (8, 8)), Image.new("RGB", (16, 8))], "label": [0, 1]})}

    def get(**options):
        return named.load_cached(
            "many", "many", "train", lambda _: splits, label="label", data_dir=tmp_path, channels=None,
            skip_bad=False, say=silent, **options,
        )  # fmt: skip

    with pytest.raises(InputError, match=r"2 sizes \(8x8, 16x8\); make them one with --image-size 8"):
        get(image_size=None)
    assert list(tmp_path.iterdir()) == []
    assert get(image_size=4).x.shape == (2, 4, 4, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["many-4.npz"]
    splits.clear()  # now only the kept file can answer
    assert get(image_size=4).y.tolist() == [0, 1]


def test_of_several_processes_one_fetches(tmp_path):
    """Four ask at once for a set that is not there yet: it is fetched once, and all have it."""
    splits = {"train": dataset({"image": [Image.new("L", (8, 8), k) for k in range(5)], "label": [0, 1, 0, 1, 0]})}
    fetched, said, found = [], [], []

    def fetch(_: str):
        fetched.append(1)
        end = time.monotonic() + 30
        while sum("waiting for another process" in line for line in said) < 3 and time.monotonic() < end:
            time.sleep(0.01)
        return splits

    def get() -> None:
        found.append(named.load_cached(
            "five", "five", "train", fetch, label="label", data_dir=tmp_path, image_size=None, channels=None,
            skip_bad=False, say=said.append,
        ))  # fmt: skip

    threads = [threading.Thread(target=get) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fetched) == 1 and len(found) == 4 and all(x.y.tolist() == [0, 1, 0, 1, 0] for x in found)
    assert sum("waiting for another process that is at the same (five)" in line for line in said) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["five.npz"]


def test_a_lock_of_another_users_does_not_keep_one_out(tmp_path):
    (tmp_path / ".five.lock").mkdir()  # cannot be opened, as a file that only its owner may write
    with one_at_a_time(tmp_path / ".five.lock", pytest.fail):
        pass
    assert (tmp_path / ".five.lock").is_dir()


@pytest.mark.parametrize("spec", ["hf:", "hf:a", "hf:a/b/c/d", "hf:a b/c"])
def test_hub_names_have_a_form(spec):
    with pytest.raises(InputError, match="write hf:owner/name or hf:owner/name/config"):
        load(spec)
    assert hub.parse("hf:a/b-1.c/d+e") == ("a/b-1.c", "d+e") and hub.parse("hf:a/b") == ("a/b", None)


def test_unknown_names_and_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="unknown data set 'cifar'; did you mean cifar10 .* folder .* hf:owner/name"):
        load("cifar")
    for spec in ("./nothing", "nothing.npz", "a/b"):
        with pytest.raises(InputError, match=f"no data set at {spec}: there is no such folder or file"):
            load(spec)
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(InputError, match="x.txt is neither a folder of images nor an .npz or .npy file"):
        load("x.txt")


def test_neither_kept_nor_reachable_is_said_at_once(tmp_path, monkeypatch):
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(InputError, match=r"127\.0\.0\.1 cannot be reached .* uoft-cs/cifar10; put") as caught:
        load("cifar10", data_dir=tmp_path)
    assert str(tmp_path / "cifar10.npz") in str(caught.value) and "\n" not in str(caught.value)


def kept(folder: Path) -> Path:
    np.savez(
        folder / "svhn.npz", train_x=PIXELS, train_y=[0, 1, 1, 1, 1, -1], test_x=PIXELS[4:], test_y=[1, 0],
        classes=["a", "b"],
    )  # fmt: skip
    return folder


def test_the_cache_is_read_and_listed(tmp_path, monkeypatch):
    monkeypatch.setenv("IGEBM_DATA", str(kept(tmp_path)))
    images = load("svhn")
    assert images.name == "svhn" and (images.x == PIXELS).all() and images.classes == ("a", "b")
    (tmp_path / "mnist.npz").write_bytes(b"no zip")
    rows = {row["name"]: row for row in available()}
    assert list(rows) == [
        "digits", *named.SPRITES, "cifar10", "cifar100", "svhn", "dtd", "imagenet32", "mnist", "fashion_mnist",
        "celeba",
    ]  # fmt: skip
    assert rows["digits"]["counts"] == {"train": 1438, "test": 359}
    assert rows["svhn"] == {
        "name": "svhn", "where": "cache", "source": str(tmp_path / "svhn.npz"), "shape": [8, 8, 3], "classes": 2,
        "counts": {"train": 6, "test": 2},
    }  # fmt: skip
    assert rows["mnist"]["where"] == "damaged" and "mnist.npz" in rows["mnist"]["source"]
    assert rows["cifar10"]["where"] == "hub" and rows["cifar10"]["source"] == "uoft-cs/cifar10"


def test_c23_without_a_home_data_go_to_a_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("IGEBM_DATA", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "home").write_text("a file, so that nothing can be made below it")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    said = []
    folder = data_folder(say=said.append)
    assert folder == tmp_path / f"igebm-{os.getuid()}" and folder.is_dir()
    assert len(said) == 1 and "cannot keep data in" in said[0] and str(folder) in said[0]
    kept(folder)
    assert len(load("svhn").x) == 6
    with pytest.raises(InputError, match="cannot keep data in .*; choose another folder with --data-dir"):
        data_folder(tmp_path / "home" / "x")


def test_check_counts(tmp_path):
    report = check("svhn", data_dir=kept(tmp_path))
    train, test = report["splits"]["train"], report["splits"]["test"]
    assert train["count"] == 6 and train["shape"] == [8, 8, 3] and train["dtype"] == "uint8"
    assert train["per_class"] == {"a": 1, "b": 4} and train["unlabelled"] == 1 and test["per_class"] == {"a": 1, "b": 1}
    assert np.allclose(train["mean"], (PIXELS / 255).mean((0, 1, 2)))
    assert np.allclose(train["std"], (PIXELS / 255).std((0, 1, 2)))
    assert train["range"] == [PIXELS.min(), PIXELS.max()] and train["duplicates"] == 0
    assert report["duplicates_across"] == 1 and report["classes"] == ["a", "b"]
    assert "100.0% of the test images are also in the train split" in report["warnings"]
    assert any("train: 6 images are fewer than a batch of 64" in line for line in report["warnings"])


def test_check_warns(tmp_path):
    x = np.repeat(PIXELS[:1], 64, axis=0)
    x[:16] = 7  # 16 constant images and 48 equal ones: 62 of 64 repeat
    y = np.array([1] * 61 + [0] * 3)
    np.savez(tmp_path / "a.npz", x=x, y=y, classes=["a", "b", "c"])
    report = check(str(tmp_path / "a.npz"))
    assert report["duplicates_across"] is None and list(report["splits"]) == ["train"]
    assert report["splits"]["train"]["constant"] == 16 and report["splits"]["train"]["duplicates"] == 62 / 64
    assert report["warnings"] == [
        "train: 1 classes have no images: c",
        "train: the largest class has 61 images, the smallest 3",
        "train: 16 images have one value only",
        "train: 96.9% of the images repeat an earlier one",
        "no test split: evaluations use the images that were trained on; give one as folders train/ and test/, or as "
        "test_x and test_y of an .npz",
    ]


def test_check_warns_of_a_missing_test_split_and_of_no_other(tmp_path):
    """Of folders and files alike, as the warning says it is given."""
    for folder in ("flat", "split/train", "split/test"):
        (tmp_path / folder).mkdir(parents=True)
        Image.fromarray(PIXELS[0]).save(tmp_path / folder / "a.png")
    np.savez(tmp_path / "split.npz", x_train=PIXELS, test_x=PIXELS)
    warned = lambda name: any("no test split" in line for line in check(str(tmp_path / name))["warnings"])
    assert [warned(name) for name in ("flat", "split", "split.npz")] == [True, False, False]


def test_looking_at_data_imports_neither_torch_nor_datasets(tmp_path):
    code = (
        "import sys, igebm.data as d; d.available(); d.load(sys.argv[1]); "
        "print([m for m in ('torch', 'datasets', 'sklearn') if m in sys.modules])"
    )
    spec = str(kept(tmp_path) / "svhn.npz")
    source = str(Path(named.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code, spec], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": source}
    )
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.slow
def test_cifar10_as_unpacked(real_data):
    report = check("cifar10", data_dir=real_data)
    assert report["splits"]["train"]["per_class"] == dict.fromkeys(report["classes"], 5000)
    assert report["splits"]["test"]["count"] == 10_000
    # The means that everyone subtracts: 0.4914, 0.4822, 0.4465.
    assert np.allclose(report["splits"]["train"]["mean"], [0.4914, 0.4822, 0.4465], atol=5e-4)


def test_where_no_file_is_the_same_as_itself_there_is_no_lock(tmp_path, monkeypatch):
    """Some file systems number files anew at each look: then it goes on without, and does not wait for ever."""
    monkeypatch.setattr("igebm.files.os.path.samestat", lambda a, b: False)
    with one_at_a_time(tmp_path / ".five.lock", pytest.fail):
        pass
