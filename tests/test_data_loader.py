"""Which images a batch holds, and what becomes of their pixels."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from igebm.data import Images, Loader, augment, batch_indices, dequantise, quantise, restarts
from igebm.data.restarts import augmented
from igebm.errors import InputError


def numbered(n: int, h: int = 4, w: int = 5, c: int = 3, labels: bool = True) -> Images:
    """Image i has the value i everywhere, and the label i."""
    x = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, h, w, c)).copy()
    return Images("numbered", x, np.arange(n) if labels else None, tuple(map(str, range(n))) if labels else ())


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 40), batch=st.integers(1, 50), seed=st.integers(0, 2**64), epoch=st.integers(0, 5))
def test_each_epoch_is_a_permutation_whatever_the_batch(n, batch, seed, epoch):
    read = np.concatenate([batch_indices(n, batch, seen, seed) for seen in range(0, (epoch + 1) * n, batch)])
    assert sorted(read[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_epochs_and_seeds_differ():
    first, second = batch_indices(100, 100, 0, 1), batch_indices(100, 100, 100, 1)
    assert (first != second).any() and (first != batch_indices(100, 100, 0, 2)).any()
    assert (first == batch_indices(100, 100, 0, 1)).all()


def test_a_resumed_run_with_another_batch_goes_on_in_the_stream():
    straight = batch_indices(10, 30, 0, 3)
    parts = [batch_indices(10, 4, 0, 3), batch_indices(10, 20, 4, 3), batch_indices(10, 6, 24, 3)]
    assert (np.concatenate(parts) == straight).all()


def test_ranks_share_out_the_batch_of_one_process():
    one = batch_indices(10, 8, 16, 0)
    shares = [batch_indices(10, 8, 16, 0, rank, 4) for rank in range(4)]
    assert all(len(share) == 2 for share in shares)
    assert (np.stack(shares, axis=1).ravel() == one).all()


def test_c25_a_set_smaller_than_the_batch_repeats():
    said = []
    loader = Loader(numbered(3), 64, say=said.append)
    x, y = loader(0)
    assert x.shape == (64, 3, 4, 5) and sorted(y.bincount().tolist()) == [21, 21, 22]
    assert said == ["numbered has 3 images, fewer than the batch of 64: every batch repeats some"]
    ranks = [Loader(numbered(3), 64, rank=rank, world=4)(0)[1] for rank in range(4)]
    assert [len(y) for y in ranks] == [16] * 4
    assert Loader(numbered(1), 2)(5)[1].tolist() == [0, 0]


@pytest.mark.parametrize(
    "n, options, words",
    [
        (0, {"batch": 4}, "no images found in numbered"),
        (3, {"batch": 0}, "got 0"),
        (3, {"batch": 3, "world": 2}, "multiple of the 2 processes that share it, got 3"),
        (3, {"batch": 3, "crop": 4}, "--crop 4: random crops move images by less than their size, 5x4"),
        (3, {"batch": 3, "seed": -1}, "got -1"),
    ],
)
def test_what_cannot_be_loaded_is_refused(n, options, words):
    with pytest.raises(InputError, match=words):
        Loader(numbered(n), **options)


def test_a_batch_is_its_images_and_their_labels():
    loader = Loader(numbered(20), 8, seed=5)
    x, y = loader(16, torch.Generator().manual_seed(0))
    assert y.tolist() == batch_indices(20, 8, 16, 5).tolist() and y.dtype == torch.int64
    assert (quantise(x) == y[:, None, None, None]).all() and x.dtype == torch.float32 and x.is_contiguous()
    assert Loader(numbered(20, labels=False), 8)(0)[1] is None


def test_large_sets_stay_where_they_are_and_give_the_same(tmp_path, monkeypatch):
    images = numbered(20)
    np.save(tmp_path / "x.npy", images.x)
    small = Loader(images, 48, flip=True, crop=1)
    monkeypatch.setattr("igebm.data.loader.ON_DEVICE", 100)
    large = Loader(images._replace(x=np.load(tmp_path / "x.npy", mmap_mode="r")), 48, flip=True, crop=1)
    assert large.x is None and small.x is not None
    for seen in (0, 48):
        (x, y), (u, v) = (loader(seen, torch.Generator().manual_seed(1)) for loader in (small, large))
        assert torch.equal(x, u) and torch.equal(y, v)


def test_a_small_mapped_set_is_copied(tmp_path):
    np.save(tmp_path / "x.npy", numbered(4, c=1).x)
    loader = Loader(Images("mapped", np.load(tmp_path / "x.npy", mmap_mode="r"), None, ()), 4)
    assert quantise(loader(0)[0]).sum() == (0 + 1 + 2 + 3) * 20


def test_c22_bytes_that_are_written():
    x = torch.tensor([-0.1, 0, 0.5, 0.9999, 1, 1.1])
    assert quantise(x).tolist() == [0, 0, 128, 255, 255, 255]


def test_dequantised_bytes_are_uniform_in_their_interval_and_come_back():
    u8 = torch.arange(256, dtype=torch.uint8).repeat(40 * 1024)[:, None, None, None]
    x = dequantise(u8, torch.Generator().manual_seed(0))
    assert x.min() >= 0 and x.max() < 1 and torch.equal(quantise(x), u8)
    u = x.double() * 256 - u8
    # The mean of 10^7 uniform numbers is 1/2 within 5 standard errors of 0.2887 / sqrt(10^7) = 9.1e-5, var 1/12.
    assert abs(u.mean() - 0.5) < 5e-4 and abs(u.var() - 1 / 12) < 5e-4


def test_flips_are_mirror_images_of_half_the_batch():
    x = torch.arange(3.0).expand(1000, 1, 1, 3)
    out = augment(x, torch.Generator().manual_seed(0))[:, 0, 0]
    mirrored = (out == torch.tensor([2.0, 1.0, 0.0])).all(1)
    assert ((out == torch.tensor([0.0, 1.0, 2.0])).all(1) ^ mirrored).all()
    assert 430 < mirrored.sum() < 570  # 500 and 4.4 standard deviations of 15.8
    assert augment(x, flip=False) is x


def test_crops_move_by_up_to_two_pixels_and_reflect():
    x = torch.arange(4, dtype=torch.uint8).expand(400, 1, 4, 4)  # columns 0 1 2 3; reflected: 2 1 [0 1 2 3] 2 1
    out = augment(x, torch.Generator().manual_seed(0), flip=False, crop=2)
    seen = {tuple(row.tolist()) for row in out[:, 0, 0]}
    assert seen == {(2, 1, 0, 1), (1, 0, 1, 2), (0, 1, 2, 3), (1, 2, 3, 2), (2, 3, 2, 1)}
    assert (out == out[:, :, :1]).all()  # every row of an image moves alike
    down = augment(x.transpose(2, 3), torch.Generator().manual_seed(0), flip=False, crop=2)
    assert {tuple(column.tolist()) for column in down[:, 0, :, 0]} == seen


# Augmented chain starts


def test_augmented_images_stay_images(generator):
    """Flat ones stay flat (but for their level), grey ones grey, and all in [0, 1]."""
    flat = torch.rand(64, 1, 1, 1, generator=generator).expand(64, 3, 16, 16).contiguous()
    x = augmented(flat, generator)
    assert (x.amax((2, 3)) - x.amin((2, 3))).abs().max() < 1e-5
    grey = torch.rand(64, 1, 16, 16, generator=generator).expand(64, 3, 16, 16).contiguous()
    x = augmented(grey, generator)
    assert (x - x.mean(1, keepdim=True)).abs().max() < 1e-5
    x = augmented(torch.rand(64, 3, 16, 16, generator=generator), generator)
    assert x.min() >= 0 and x.max() <= 1
    assert torch.equal(augmented(grey[:, :1], torch.Generator().manual_seed(0)), augmented(
        grey[:, :1], torch.Generator().manual_seed(0)
    ))  # fmt: skip


def test_half_of_augmented_images_are_mirrored(generator):
    """Of a ramp from left to right half fall in the end (5 σ)."""
    n = 4_000
    ramp = torch.linspace(0.2, 0.8, 16).expand(n, 1, 16, 16).contiguous()
    x = augmented(ramp, generator)
    falling = int((x[..., -1].mean((1, 2)) < x[..., 0].mean((1, 2))).sum())
    assert abs(falling - n / 2) < 5 * math.sqrt(n / 4)


@pytest.mark.parametrize("size", [(1, 9), (9, 1), (1, 1)])
def test_a_level_image_one_pixel_wide_stays_level(size, generator):
    x = torch.full((50, 1, *size), 0.25)
    assert torch.allclose(restarts._blurred(x, generator), x)


def test_blurring_keeps_the_light_of_a_point(generator):
    """One bright pixel in the middle: a 3x3 spot of the same sum for about half of the images, symmetric."""
    x = torch.zeros(2_000, 1, 9, 9)
    x[..., 4, 4] = 1
    y = restarts._blurred(x, generator)
    assert torch.allclose(y.sum((1, 2, 3)), torch.ones(2_000), atol=1e-6)
    assert torch.allclose(y, y.flip(2)) and torch.allclose(y, y.flip(3)) and torch.allclose(y, y.transpose(2, 3))
    assert abs(int((y[..., 4, 4] < 1).sum()) - 1_000) < 5 * math.sqrt(500)
