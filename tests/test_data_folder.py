"""Folders of images: what is a class, what is a picture, what is refused. Numbered cases are users' own."""

import os
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from igebm.benchmarks.speed import RESET, peak_growth, resident
from igebm.data import MissingSplit, check, load
from igebm.data import decode as decoding
from igebm.data.decode import Picture, converted, decode, decode_all
from igebm.errors import InputError


def picture(path: Path, colour=(10, 20, 30), size=(8, 8), mode="RGB", **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)
    return path


def junk(path: Path, content: bytes = b"x" * 120) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def colours(images) -> list[list[int]]:
    """The value of each image's first pixel; all pictures here have one colour."""
    assert (images.x == images.x[:, :1, :1]).all()
    return images.x[:, 0, 0].tolist()


def c01(root: Path, extensions=("JPG", "jpeg", "PNG", "png", "webp")) -> Path:
    for name, extension in zip(("cat/a", "cat/b", "cat/c", "dog/d", "dog/e"), extensions, strict=True):
        picture(root / f"{name}.{extension}", size=(32, 32))
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "notes.txt", "cat/._a.JPG", "__MACOSX/._x.png"):
        junk(root / name)
    (root / "zebra").mkdir()
    return root


def test_c01_desktop_files(tmp_path):
    said = []
    images = load(str(c01(tmp_path / "a")), say=said.append)
    assert images.classes == ("cat", "dog") and images.y.tolist() == [0, 0, 0, 1, 1]
    assert images.x.shape == (5, 32, 32, 3) and images.x.dtype == np.uint8 and images.y.dtype == np.int64
    assert [line for line in said if "passed over 6 files" in line] and [line for line in said if "zebra" in line]
    assert len(said) == 2
    lower = load(str(c01(tmp_path / "b", ("jpg", "jpeg", "png", "png", "webp"))))
    assert lower.y.tolist() == [0, 0, 0, 1, 1]


def test_c11_colour_modes(tmp_path):
    picture(tmp_path / "0.jpg", (0, 255, 255, 0), mode="CMYK", quality=95)
    picture(tmp_path / "1.png", (100, 255), mode="LA")
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([10, 200, 30] + [0] * 765)
    palette.save(tmp_path / "2.png")
    picture(tmp_path / "3.png", 1, mode="1")
    picture(tmp_path / "4.png", 77, mode="L")
    picture(tmp_path / "5.png", (255, 0, 0, 255), mode="RGBA")
    picture(tmp_path / "6.png", (255, 0, 0, 0), mode="RGBA")
    second = Image.new("RGB", (8, 8), (0, 0, 255))
    Image.new("RGB", (8, 8), (0, 255, 0)).save(tmp_path / "7.gif", save_all=True, append_images=[second])
    images = load(str(tmp_path))
    first, *rest = colours(images)
    assert np.abs(np.array(first) - (255, 0, 0)).max() <= 3
    white, green = [255, 255, 255], [0, 255, 0]
    assert rest == [[100] * 3, [10, 200, 30], white, [77] * 3, [255, 0, 0], white, green]
    assert load(str(tmp_path), channels=1).x[4, 0, 0].tolist() == [77]


def test_grey_levels_of_16_bits_are_scaled_not_clipped(tmp_path):
    # 65535 -> 255, 257 * 77 -> 77, 128 -> 0.498 -> 0
    Image.fromarray(np.array([[65535, 257 * 77, 128, 0]], dtype=np.uint16)).save(tmp_path / "a.png")
    Image.fromarray(np.array([[65535, 257 * 77, 128, 0]], dtype=np.uint16)).save(tmp_path / "b.tif")
    images = load(str(tmp_path))
    assert images.x[..., 0].tolist() == [[[255, 77, 0, 0]]] * 2 and images.x.shape[-1] == 1


def test_grey_only_where_all_are_grey(tmp_path):
    picture(tmp_path / "a.png", 77, mode="L")
    assert load(str(tmp_path)).x.shape == (1, 8, 8, 1)
    assert load(str(tmp_path), channels=3).x[0, 0, 0].tolist() == [77, 77, 77]
    picture(tmp_path / "b.png", (255, 0, 0))
    assert colours(load(str(tmp_path))) == [[77] * 3, [255, 0, 0]]
    assert colours(load(str(tmp_path), channels=1)) == [[77], [76]]  # 0.299 * 255 = 76.2


def test_half_transparent_is_laid_over_white(tmp_path):
    picture(tmp_path / "a.png", (0, 0, 0, 51), mode="RGBA")  # 20 % black: 204 remains
    picture(tmp_path / "b.png", (0, 51), mode="LA")
    assert colours(load(str(tmp_path))) == [[204] * 3, [204] * 3]


def test_float_pictures_are_refused_by_name(tmp_path):
    picture(tmp_path / "a.tif", 0.5, mode="F")
    picture(tmp_path / "b.tif", 5, mode="I")
    with pytest.raises(InputError, match=r"a\.tif \(pixel format F .*b\.tif \(pixel format I "):
        load(str(tmp_path))


def test_exif_orientation(tmp_path):
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, 8:] = 255  # right half white; orientation 6 is shown turned a quarter clockwise: lower half white
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=95)
    Image.fromarray(pixels).save(tmp_path / "b.png", exif=exif)
    x = load(str(tmp_path)).x
    assert x.shape == (2, 16, 8, 3) and (x[:, :7] < 20).all() and (x[:, 9:] > 235).all()


def test_c17_split_folders_are_not_classes(tmp_path):
    picture(tmp_path / "a/train/0.png", (1, 1, 1))
    picture(tmp_path / "a/test/1.png", (2, 2, 2))
    train, test = load(str(tmp_path / "a")), load(str(tmp_path / "a"), "test")
    assert train.classes == test.classes == () and train.y is None
    assert colours(train) == [[1, 1, 1]] and colours(test) == [[2, 2, 2]]
    with pytest.raises(MissingSplit, match="has no split 'val'; it has: test, train"):
        load(str(tmp_path / "a"), "val")
    for name in ("train", "pika", "chu"):
        picture(tmp_path / f"b/{name}.png")
    flat = load(str(tmp_path / "b"))
    assert len(flat.x) == 3 and flat.y is None and flat.classes == ()
    with pytest.raises(MissingSplit, match="it has: train"):
        load(str(tmp_path / "b"), "test")


def test_classes_are_those_of_all_splits(tmp_path):
    for name in ("train/ant/0", "train/bee/0", "validation/bee/deep/er/0", "validation/cow/0"):
        picture(tmp_path / f"{name}.png")
    (tmp_path / "train/cow").mkdir()
    train, val = load(str(tmp_path)), load(str(tmp_path), "val")
    assert train.classes == val.classes == ("ant", "bee", "cow")
    assert train.y.tolist() == [0, 1] and val.y.tolist() == [1, 2]
    assert load(str(tmp_path), "validation").y.tolist() == [1, 2]


def test_splits_beside_other_folders_are_refused(tmp_path):
    for name in ("train/0", "bus/0"):
        picture(tmp_path / f"{name}.png")
    with pytest.raises(InputError, match=r"name splits \(train\) beside others \(bus\)"):
        load(str(tmp_path))


def test_pictures_beside_class_folders_have_no_label(tmp_path):
    picture(tmp_path / "a/0.png")
    picture(tmp_path / "z.png")
    said = []
    assert load(str(tmp_path), say=said.append).y.tolist() == [-1, 0] and "1 image beside" in said[0]


def test_a_folder_that_links_to_itself(tmp_path):
    picture(tmp_path / "a/0.png")
    os.symlink(tmp_path, tmp_path / "a/loop")
    assert load(str(tmp_path)).x.shape[0] == 1


def test_c25_no_images(tmp_path):
    junk(tmp_path / "notes.txt")
    with pytest.raises(InputError, match=r"no images found in .*; looked for \.png \.jpg \.jpeg \.webp"):
        load(str(tmp_path))


def c26(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(18):
        root.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(root / f"{i:02}.png")
    cut = (root / "17.png").read_bytes()
    (root / "17.png").write_bytes(cut[: len(cut) * 6 // 10])
    junk(root / "empty.png", b"")
    junk(root / "x.png", b"this is no picture")
    return root


def test_c26_damaged_pictures(tmp_path):
    root = c26(tmp_path / "c26")
    with pytest.raises(InputError) as caught:
        load(str(root))
    assert all(word in str(caught.value) for word in ("3 of 20", "17.png", "empty.png", "x.png", "--skip-bad"))
    assert "\n" not in str(caught.value)
    said = []
    assert load(str(root), skip_bad=True, say=said.append).x.shape == (17, 32, 32, 3)
    assert len(said) == 1 and all(name in said[0] for name in ("17.png", "empty.png", "x.png"))
    for path in sorted(root.glob("*.png"))[:17]:
        path.unlink()
    with pytest.raises(InputError, match="3 of 3 images"):
        load(str(root), skip_bad=True)


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "gif", "bmp", "tif", "ppm"])
@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9])
def test_cut_off_files_of_every_kind_are_named(tmp_path, extension, share):
    pixels = np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    path = tmp_path / f"cut.{extension}"
    Image.fromarray(pixels).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(InputError, match=rf"1 of 1 image .* cut\.{extension} \("):
        load(str(tmp_path))


def test_a_decompression_bomb_is_a_bad_file(tmp_path):
    picture(tmp_path / "good.png")
    bomb = bytearray(picture(tmp_path / "bomb.bmp").read_bytes())
    bomb[18:26] = struct.pack("<ii", 20_000, 20_000)  # width and height in the header
    (tmp_path / "bomb.bmp").write_bytes(bomb)
    with pytest.raises(InputError, match=r"1 of 2 images .*bomb\.bmp \(too many pixels"):
        load(str(tmp_path))
    bomb[18:26] = struct.pack("<ii", 10_000, 10_000)  # only a warning of Pillow's
    (tmp_path / "bomb.bmp").write_bytes(bomb)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        with pytest.raises(InputError, match=r"bomb\.bmp \(too many pixels"):
            load(str(tmp_path))


@pytest.mark.skipif(not RESET.exists(), reason="the resident set can be told on Linux alone")
@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_a_large_picture_takes_eight_bytes_a_pixel(mode, tmp_path):
    """Twelve million pixels, more rows than a strip has, and the last strip not a whole one."""
    picture = Image.new(mode, (4000, 3001))
    if mode == "P":
        picture.info["transparency"] = 0
    picture.save(tmp_path / "a.png")
    read = lambda: decode(Picture("a", lambda: tmp_path / "a.png"), 8, 3)
    assert peak_growth(read) < 8 * 4000 * 3001 / 2**20 + 16
    assert read().shape == (8, 8, 3)


@pytest.mark.skipif(not RESET.exists(), reason="the resident set can be told on Linux alone")
def test_large_pictures_leave_nothing_behind(tmp_path):
    """Four of 18 million pixels: 144 MB for one while it is read, 576 MB for four at once, and then given back."""
    for i in range(4):
        picture(tmp_path / f"{i}.png", (i, 0, 0), (6000, 3000))
    read = lambda: load(str(tmp_path), image_size=8)
    assert peak_growth(read) < 8 * 18 + 32
    before = resident("VmRSS")
    assert colours(read()) == [[i, 0, 0] for i in range(4)]
    assert resident("VmRSS") - before < 2**14  # KiB


def test_how_far_it_is_is_said_while_pictures_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "EVERY", 0.0)
    for i in range(3):
        picture(tmp_path / f"{i}.png")
    said = []
    load(str(tmp_path), say=said.append)
    assert [line.split(": ")[-1] for line in said] == [f"{k} of 3 images read" for k in (1, 2, 3)]


def test_large_pictures_keep_their_place(tmp_path, monkeypatch):
    """Large ones are decoded by the calling thread, the others by threads: in the order of their names all the same."""
    monkeypatch.setattr(decoding, "LARGE", 64)
    for i in range(6):
        picture(tmp_path / f"{i}.png", (i, 0, 0), (8, 8) if i % 3 else (8, 9))
    junk(tmp_path / "0.png", (tmp_path / "0.png").read_bytes()[:-24])
    said = []
    assert colours(load(str(tmp_path), image_size=8, skip_bad=True, say=said.append)) == [
        [i, 0, 0] for i in range(1, 6)
    ]
    assert any("left out 1 of 6" in line for line in said), said


@pytest.mark.parametrize("mode", ["LA", "RGBA", "I;16"])
def test_strips_are_the_whole(mode, monkeypatch):
    """Rows of a strip, one at a time or all at once: the same pixels."""
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 65536, (7, 5), dtype=np.uint16)
    picture = Image.fromarray(grey if mode == "I;16" else rng.integers(0, 256, (7, 5, len(mode)), dtype=np.uint8))
    at_once = converted(picture, None, 3)
    monkeypatch.setattr(decoding, "STRIP", 5)
    assert np.array_equal(converted(picture, None, 3), at_once)
    if mode == "I;16":
        assert np.array_equal(at_once[..., 0], np.rint(grey / 257))


def test_mixed_sizes_need_an_image_size(tmp_path):
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, 4:12] = 200  # the central square of the wide picture
    Image.fromarray(pixels).save(tmp_path / "a.png")
    picture(tmp_path / "b.png", (200, 200, 200), size=(8, 24))
    with pytest.raises(InputError, match=r"2 sizes \(8x24, 16x8\); make them one with --image-size 8"):
        load(str(tmp_path))
    assert (load(str(tmp_path), image_size=8).x == 200).all()
    with pytest.raises(InputError, match="at least 1 pixel, got 0"):
        load(str(tmp_path), image_size=0)
    with pytest.raises(InputError, match="1 channel .* or 3 .* got 2"):
        load(str(tmp_path), channels=2)


def test_c31_names_outside_ascii(tmp_path):
    root = tmp_path / "été 2024/猫 1"
    for name in ("ñ é", "ü", "猫", "a b"):
        picture(root / f"{name}.png")
    odd = os.path.join(os.fsencode(root), b"\xff.png")
    with open(odd, "wb") as file:
        Image.new("RGB", (8, 8)).save(file, "png")
    assert len(load(str(root)).x) == 5
    images = load(str(tmp_path / "été 2024"))
    assert images.classes == ("猫 1",) and images.y.tolist() == [0] * 5
    with open(odd, "wb"):
        pass
    with pytest.raises(InputError, match=r"\\xff\.png \("):
        load(str(root))


def test_large_sets_go_to_a_file(tmp_path, monkeypatch):
    root = c26(tmp_path / "c26")
    expected = load(str(root), skip_bad=True).x
    monkeypatch.setattr("igebm.data.decode.IN_MEMORY", 1000)
    pictures = [Picture(path.name, lambda path=path: path) for path in sorted(root.iterdir())]
    target = tmp_path / "x.npy"

    def decoded(skip_bad):
        return decode_all(pictures, "c26", skip_bad=skip_bad, say=lambda _: None, spill=lambda: target)

    with pytest.raises(InputError, match="3 of 20"):
        decoded(False)
    assert [path.name for path in tmp_path.iterdir()] == ["c26"]  # nothing half-written stays
    x, kept = decoded(True)
    assert isinstance(x, np.memmap) and (x == expected).all() and kept.tolist() == list(range(17))
    # A row that is found to be damaged only when it is decoded shortens the file: its header still fits.
    assert target.stat().st_size == x.offset + 17 * 32 * 32 * 3
    assert (load(str(root), skip_bad=True, data_dir=tmp_path / "data").x == expected).all()


def test_decoded_pixels_are_reused(tmp_path, monkeypatch):
    monkeypatch.setattr("igebm.data.decode.IN_MEMORY", 1000)
    monkeypatch.setattr("igebm.data.folder.WORTH_KEEPING", 0)
    root = c26(tmp_path / "c26")
    said = []
    first, again = (load(str(root), skip_bad=True, data_dir=tmp_path / "d", say=said.append) for _ in range(2))
    assert isinstance(again.x, np.memmap) and (first.x == again.x).all()
    assert ["left out" in line for line in said] == [True, False, True]
    kept = lambda: {path.name for path in (tmp_path / "d/folders").iterdir()}
    before = kept()
    assert len(before) == 2 and str(tmp_path / "d" / "folders") in said[1]
    # Where a file has changed they are made anew, and what there was goes; those of another size stay.
    load(str(root), skip_bad=True, data_dir=tmp_path / "d", image_size=16)
    other = kept() - before
    os.utime(root / "00.png", (1, 1))
    load(str(root), skip_bad=True, data_dir=tmp_path / "d")
    assert len(kept()) == 4 and other < kept() and not before & kept()


def test_what_is_done_to_pictures_is_said(tmp_path):
    """Three of five oblong and cut, two of five transparent; nothing of it where there is nothing to say. And pictures
    of 12 bits in 16, which are read as dark ones, are warned of: 4095 of 65535 is 16 of 255."""
    for k, size in enumerate([(8, 8), (8, 12), (12, 8), (16, 16), (9, 8)]):
        Image.new("RGBA" if k < 2 else "RGB", size, (9, k, 200)).save(tmp_path / f"{k}.png")
    said: list[str] = []
    load(str(tmp_path), image_size=8, say=said.append)
    assert [line.split(": ", 1)[1] for line in said] == [
        "not square, cut to the middle: 3 of 5 images",
        "transparent, laid over white: 2 of 5 images",
    ]
    (plain := tmp_path / "plain").mkdir()
    for k in range(3):
        Image.fromarray(np.full((8, 8), 4095 - 50 * k, np.uint16)).save(plain / f"{k}.png")
    said.clear()
    assert load(str(plain), say=said.append).x.max() == 16 and not said
    assert any("no pixel exceeds 16 of 255" in line for line in check(str(plain))["warnings"])
