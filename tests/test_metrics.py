"""Metrics against closed forms, hand calculations and other people's implementations; no network anywhere."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist
from sklearn.metrics import roc_auc_score
from torch import nn

from igebm.errors import Fault, InputError
from igebm.evaluation.metrics import (
    Moments,
    auroc,
    few,
    frechet,
    inception_score,
    kernel_distance,
    merge,
    mmd,
    moments,
    precision_recall,
)

rng = lambda seed=0: np.random.default_rng(seed)
column = lambda *values: np.array(values, np.float64)[:, None]


def gaussian(mean, covariance, n: int = 101) -> Moments:
    """Moments of n rows that have exactly this mean and covariance."""
    return Moments(n, np.asarray(mean, np.float64), np.asarray(covariance, np.float64) * (n - 1))


# Means and covariances


def test_moments_are_numpys():
    x = rng().normal(size=(2500, 6)) @ rng(1).normal(size=(6, 6)) + 3
    m = moments(x)
    assert m.n == 2500 and np.allclose(m.mean, x.mean(0)) and np.allclose(m.covariance, np.cov(x.T))
    assert moments(x.astype(np.float32)).mean.dtype == np.float64


@pytest.mark.parametrize("cuts", [[], [1], [7, 8], [0, 40], [5, 10, 15, 20, 25, 30, 35]])
def test_merged_moments_are_those_of_all(cuts):
    """In any partition, with parts of one row and of none, sorted so that the parts' means differ."""
    x = np.sort(rng().normal(size=(40, 3)) * [1, 10, 1e-3], axis=0)
    whole = Moments(0, np.zeros(3), np.zeros((3, 3)))
    for part in np.split(x, cuts):
        whole = merge(whole, moments(part))
    assert whole.n == 40
    assert np.allclose(whole.mean, x.mean(0), rtol=1e-13)
    assert np.allclose(whole.scatter, np.cov(x.T) * 39, rtol=1e-12, atol=1e-18)
    with pytest.raises(InputError, match="of 3 and of 2 numbers cannot be compared"):
        merge(whole, moments(np.ones((4, 2))))


def test_moments_at_a_mean_far_above_the_spread():
    """1e8 + {0, 1, 2}: variance n/(n-1) · 2/3. A sum of squares would have kept no digit of it (1e16 ± 1)."""
    x = 1e8 + np.tile(column(0, 1, 2), (1000, 1))
    assert moments(x).covariance.item() == pytest.approx(3000 / 2999 * 2 / 3, rel=1e-10)


def test_moments_of_nearly_singular_rows_at_a_large_mean():
    """(c + t, c + t + e), t = ±1 and e = ±2⁻²⁰: variance n/(n-1) 2⁻⁴⁰ along (-1, 1), at c = 2²⁰; no negative
    eigenvalue, and distances are still those of the means."""
    t, e = np.tile([1.0, 1.0, -1.0, -1.0], 500), np.tile([1.0, -1.0], 1000) * 2.0**-20
    x = 2.0**20 + np.stack([t, t + e], 1)
    m = moments(x)
    u = np.array([-1.0, 1.0])
    assert u @ m.covariance @ u == pytest.approx(2000 / 1999 * 2.0**-40, rel=1e-3)
    assert frechet(m, m) == pytest.approx(0, abs=1e-12)
    assert frechet(m, moments(x + [3.0, 4.0])) == pytest.approx(25.0, rel=1e-9)


def test_features_that_are_not_finite_are_counted():
    x = np.ones((10, 3))
    x[2, 1], x[5, 0], x[5, 2] = np.nan, np.inf, -np.inf
    with pytest.raises(Fault, match="features of 2 of 10 images are not finite"):
        moments(x)
    with pytest.raises(Fault, match="2 of 10"):
        kernel_distance(x, np.ones((10, 3)))
    with pytest.raises(Fault, match="2 of 10"):
        precision_recall(np.ones((10, 3)), x)


# Fréchet distance


def test_frechet_of_gaussians_with_a_common_basis():
    """Diagonal covariances: ‖δ‖² + Σ (√a - √b)², here 25 + 1 + 4 + 9 + 0."""
    a, b = gaussian([0, 0, 0, 0], np.diag([1, 4, 0, 2])), gaussian([3, 0, 0, 4], np.diag([4, 16, 9, 2]))
    assert frechet(a, b) == pytest.approx(39.0, rel=1e-12) and frechet(b, a) == pytest.approx(39.0, rel=1e-12)


@pytest.mark.parametrize("c", [0.3, 0.999999, 1.0], ids=["full", "nearly-singular", "singular"])
def test_frechet_of_two_dimensions_in_closed_form(c):
    """tr (S_a S_b)^½ = √(tr(S_a S_b) + 2 √det(S_a S_b)) for 2 x 2, which do not commute here."""
    s_a, s_b = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, c], [c, 1.0]])
    root = math.sqrt(np.trace(s_a @ s_b) + 2 * math.sqrt(1.75 * max(0.0, 1 - c * c)))
    want = 1.0 + np.trace(s_a) + np.trace(s_b) - 2 * root
    assert frechet(gaussian([0, 1], s_a), gaussian([0, 0], s_b)) == pytest.approx(want, rel=1e-9)


def test_frechet_is_that_of_a_matrix_root():
    parts = [rng(i).normal(size=(30, 12)) @ rng(10 + i).normal(size=(12, 12)) for i in range(2)]
    s_a, s_b = (np.cov(x.T) for x in parts)
    delta = parts[0].mean(0) - parts[1].mean(0)
    want = delta @ delta + np.trace(s_a + s_b - 2 * sqrtm(s_a @ s_b).real)
    assert frechet(*map(moments, parts)) == pytest.approx(want, rel=1e-9)


def test_c02_singular_covariances():
    """Five rows of 2,048 features: rank 4. The distance of a set to itself was 7 or 242 elsewhere."""
    F = rng().normal(size=(5, 2048))
    m = moments(F)
    assert abs(frechet(m, m)) < 1e-6
    assert frechet(m, moments(F + 0.5)) == pytest.approx(512.0, abs=1e-3)
    want = (F.mean(0) ** 2).sum() + np.trace(np.cov(F.T))  # tr(S + 4S - 2 · 2S) = tr S
    assert want == pytest.approx(2445.353, abs=1e-3) and frechet(m, moments(2 * F)) == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize("n", [2, 3, 10, 40])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_c02_never_complex_nor_nan_whatever_the_rank(n, scale):
    """Few rows against many, features that are always 0 (as after a ReLU), any scale: real, and 0 to itself."""
    few_rows, many = (scale * np.maximum(0, rng(i).normal(size=(k, 60))) for i, k in ((0, n), (1, 500)))
    few_rows[:, :30] = 0
    a, b = moments(few_rows), moments(many)
    assert isinstance(frechet(a, b), float) and frechet(a, b) > 0
    assert frechet(a, b) == pytest.approx(frechet(b, a), rel=1e-9)
    assert abs(frechet(a, a)) < 1e-10 * scale**2 and abs(frechet(b, b)) < 1e-10 * scale**2


def test_c02_by_hand_copies_and_one_image():
    """{0, 1, 2} and {0, 2, 4}: (1 - 2)² + (1 - 2)² = 2. Copies have no variance. One image has no covariance."""
    assert frechet(moments(column(0, 1, 2)), moments(column(0, 2, 4))) == 2.0
    copies = moments(np.tile(rng().normal(size=(1, 50)), (10, 1)))
    assert frechet(copies, copies) == pytest.approx(0, abs=1e-20)
    assert frechet(copies, moments(np.tile(copies.mean + 1, (3, 1)))) == pytest.approx(50.0)
    for a, b in ((1, 1), (1, 5), (5, 1)):
        with pytest.raises(InputError, match="at least 2 images are needed on each side, got 1"):
            frechet(moments(np.ones((a, 4))), moments(np.ones((b, 4))))
    with pytest.raises(InputError, match="at least 2 images are needed on each side, got 0"):
        frechet(moments(np.ones((0, 4))), moments(np.ones((5, 4))))


def test_c02_few_images_are_warned_of():
    ten, many = (Moments(n, np.zeros(2048), np.zeros((2048, 2048))) for n in (10, 2049))
    assert "10 images on a side for 2048 features" in (few(ten, many) or "")
    assert few(many, many) is None


# Kernel distance


def test_mmd_by_hand():
    """d = 1, x = {0, 1}, y = {2, 3}, k = (xy + 1)³: k(0, 1) = 1; k(2, 3) = 343; Σ k(x, y) = 1 + 1 + 27 + 64."""
    assert mmd(column(0, 1), column(2, 3)) == pytest.approx(1 + 343 - 2 * 93 / 4)


def test_mmd_of_more_rows_than_a_block():
    x, y = rng().normal(size=(1500, 3)), rng(1).normal(size=(2100, 3)) + 0.2
    k = lambda a, b: (a @ b.T / 3 + 1) ** 3
    off = lambda m: m[~np.eye(len(m), dtype=bool)].mean()
    assert mmd(x, y) == pytest.approx(off(k(x, x)) + off(k(y, y)) - 2 * k(x, y).mean(), rel=1e-9)


def test_kernel_distance_is_unbiased_and_reproducible():
    """Both sides of one distribution: 0 within 4 standard errors, below 0 about as often as above."""
    draws = np.array([mmd(rng(2 * i).normal(size=(20, 4)), rng(2 * i + 1).normal(size=(20, 4))) for i in range(400)])
    assert abs(draws.mean()) < 4 * draws.std() / 20 and 0.3 < (draws < 0).mean() < 0.8
    x, y = rng().normal(size=(60, 4)), rng(1).normal(size=(50, 4))
    first, again, other = (kernel_distance(x, y, 10, 30, seed) for seed in (5, 5, 6))
    assert first == again != other and (first.subsets, first.size) == (10, 30)


def test_kernel_distance_says_the_size_of_its_subsets():
    """As many as the smaller side has; where both sides are drawn whole, every subset is the same."""
    x, y = rng().normal(size=(40, 4)), rng(1).normal(size=(40, 4))
    whole = kernel_distance(x, y, subsets=5)
    assert whole.size == 40 and whole.std < 1e-12 and whole.mean == pytest.approx(mmd(x, y))
    assert kernel_distance(x, y[:7], subsets=5).size == 7
    with pytest.raises(InputError, match="at least 2 images are needed on each side, got 1 and 1"):
        kernel_distance(x, y[:1])
    with pytest.raises(InputError, match="at least 1 subset of 2 images, got 0 of 1000"):
        kernel_distance(x, y, subsets=0)


# Inception score


def test_c14_shuffled_splits_and_copies():
    """Sorted by class, each of ten splits is one class and scores 1; shuffled, near 10."""
    p = np.repeat(np.eye(10), 50, 0)
    assert inception_score(p, 1).mean == pytest.approx(10.0, abs=1e-9)
    for seed in range(5):
        score = inception_score(p, 10, seed)
        assert 8.8 < score.mean < 9.5 and score == inception_score(p, 10, seed)
    for splits in (1, 10):
        copies = inception_score(np.tile([[0.7, 0.2, 0.1]], (20, 1)), splits)
        assert copies.mean == pytest.approx(1.0, abs=1e-12) and copies.std == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("n", [0, 1, 5, 9])
def test_c14_fewer_rows_than_splits(n):
    with pytest.raises(InputError, match=f"{n} images? cannot be split into 10 parts"):
        inception_score(np.full((n, 10), 0.1), 10)


def test_inception_score_in_closed_form():
    """Half the rows (p, 1-p), half (1-p, p): exp(log 2 - H(p))."""
    q = 0.9
    p = np.array([[q, 1 - q], [1 - q, q]] * 30)
    want = math.exp(math.log(2) + q * math.log(q) + (1 - q) * math.log(1 - q))
    assert inception_score(p, 1).mean == pytest.approx(want, rel=1e-12)
    assert inception_score(p.astype(np.float32), 1).mean == pytest.approx(want, rel=1e-6)


def test_what_is_no_probability_is_refused():
    with pytest.raises(InputError, match="got from -3 and sums from 1 to 1; apply softmax"):
        inception_score(np.array([[4.0, -3.0]] * 5), 1)
    with pytest.raises(InputError, match="sums from 2 to 2"):
        inception_score(np.ones((5, 2)), 1)
    with pytest.raises(Fault, match="class probabilities of 5 of 5 images are not finite"):
        inception_score(np.full((5, 2), np.nan), 1)


# Precision and recall


def test_precision_and_recall_by_hand():
    """Real at 0, 1, 2, 3 (k = 1: every radius 1), fake at 1.5, 4, 9, 9.5 (radii 2.5, 2.5, 0.5, 0.5).

    1.5 lies in the balls of 1 and 2; 4 on the edge of 3's, which counts; 9 and 9.5 in none: precision 2/4, density
    3 / (1 · 4). All real ones lie within 2.5 of 1.5: recall 1. 0's ball is empty: coverage 3/4."""
    found = precision_recall(column(0, 1, 2, 3), column(1.5, 4, 9, 9.5), k=1)
    assert found == (0.5, 1.0, 0.75, 0.75, 1)


def test_precision_and_recall_of_one_lost_mode():
    """Real in two clusters, fake in one of them: all fake are good, half the real are reached."""
    real = column(0, 1, 2, 3, 100, 101, 102, 103)
    found = precision_recall(real, column(0.5, 1.5, 2.5, 1.0), k=2)
    assert found.precision == 1.0 and found.recall == 0.5 and found.coverage == 0.5


def test_precision_and_recall_are_a_plain_double_loops():
    real, fake = rng().normal(size=(300, 5)), 1.3 * rng(1).normal(size=(200, 5))
    radius = lambda x: np.sort(cdist(x, x), axis=1)[:, 3]
    d = cdist(fake, real)
    inside = d <= radius(real)
    want = (
        inside.any(1).mean(),
        (d <= radius(fake)[:, None]).any(0).mean(),
        inside.sum() / (3 * 200),
        inside.any(0).mean(),
        3,
    )
    assert precision_recall(real, fake) == pytest.approx(want)
    assert precision_recall(real + 1e6, fake + 1e6) == pytest.approx(want)  # wherever the origin is


def test_a_set_lies_on_its_own_manifold():
    x = rng().normal(size=(50, 8)).astype(np.float32)
    found = precision_recall(x, x, k=4)
    assert found[:2] == (1.0, 1.0) and found.coverage == 1.0 and found.density >= 1.0
    with pytest.raises(InputError, match="3 neighbours take at least 4 images a side, got 3 and 50"):
        precision_recall(x[:3], x)


# AUROC


def test_c05_scale_ties_and_sides():
    """Energies of 30 to 42 became 1.0 in a sigmoid elsewhere, and the area ½."""
    e = lambda *values: np.array(values, np.float64)
    assert auroc(e(30, 31, 32), e(40, 41, 42)) == 1.0
    assert auroc(e(40, 41, 42), e(30, 31, 32)) == 0.0
    assert auroc(np.full(3, -1e4), np.full(3, -1e4)) == 0.5
    assert auroc(e(0, 1), e(1, 1, 2)) == pytest.approx(5 / 6)
    assert auroc(e(-np.inf, 0), e(np.inf, 1e300)) == 1.0
    scores = np.arange(-2, 2, 0.2)
    assert auroc(scores[scores <= 1e-9], scores[scores > 1e-9]) == 1.0


def test_c05_an_empty_side_and_nan():
    some, none = np.arange(10.0), np.empty(0)
    with pytest.raises(InputError, match="no images in the out-of-distribution set"):
        auroc(some, none)
    with pytest.raises(InputError, match="no images in the in-distribution set"):
        auroc(none, some)
    bad = some.copy()
    bad[3] = np.nan
    with pytest.raises(Fault, match="1 of 10 energies of the out-of-distribution set are NaN"):
        auroc(some, bad)
    with pytest.raises(Fault, match="1 of 10 energies of the in-distribution set are NaN"):
        auroc(bad, some)


energies = st.lists(st.integers(-5, 5) | st.floats(-1e30, 1e30), min_size=1, max_size=30).map(
    lambda values: np.array(values, np.float64)
)


@settings(deadline=None)
@given(energies, energies)
def test_c05_auroc_of_any_energies(inside, out):
    """sklearn's area, ties and all; swapped, exactly 1 minus it; the same under any increasing map."""
    got = auroc(inside, out)
    labels = np.concatenate([np.zeros(len(inside)), np.ones(len(out))])
    assert got == pytest.approx(roc_auc_score(labels, np.concatenate([inside, out])), abs=1e-12)
    assert auroc(out, inside) == 1 - got
    both, n = np.unique(np.concatenate([inside, out]), return_inverse=True)[1], len(inside)
    assert auroc(both[:n], both[n:]) == got


# torchmetrics


class Columns(nn.Module):
    """Features that are the pixels themselves."""

    num_features = 12

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1).double() / 255


def theirs(module: str):
    """A module of torchmetrics.image, without what it warns of on import."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # It fails in many ways where torchvision or torch-fidelity is there but does not fit torch.
        return pytest.importorskip(f"torchmetrics.image.{module}", exc_type=Exception)


@pytest.fixture
def pictures() -> list[torch.Tensor]:
    """Two sets of uint8 pictures with different statistics, 80 and 60 of 2 x 2 pixels."""
    g = torch.Generator().manual_seed(0)
    return [
        torch.randint(0, 256, (80, 3, 2, 2), generator=g, dtype=torch.uint8),
        torch.randint(30, 200, (60, 3, 2, 2), generator=g, dtype=torch.uint8),
    ]


def test_frechet_is_torchmetrics(pictures):
    fid = theirs("fid").FrechetInceptionDistance(feature=Columns(), input_img_size=(3, 2, 2))
    fid.set_dtype(torch.float64)
    fid.update(pictures[0], real=True)
    fid.update(pictures[1], real=False)
    ours = frechet(*(moments(Columns()(x).numpy()) for x in pictures))
    assert ours == pytest.approx(fid.compute().item(), rel=1e-6)


@pytest.mark.filterwarnings("ignore:Metric")  # that it keeps all features
def test_kernel_distance_is_torchmetrics(pictures):
    """Over the one subset that is all of both sets."""
    kid = theirs("kid").KernelInceptionDistance(feature=Columns(), subsets=1, subset_size=60)
    kid.update(pictures[0][:60], real=True)
    kid.update(pictures[1], real=False)
    ours = kernel_distance(*(Columns()(x[:60]).numpy() for x in pictures), subsets=1, size=60)
    assert ours.mean == pytest.approx(kid.compute()[0].item(), rel=1e-5)


@pytest.mark.filterwarnings("ignore:Metric", r"ignore:std\(\)")  # ... and that one split has no deviation
def test_inception_score_is_torchmetrics(pictures):
    """Which takes what the network gives for logits."""
    score = theirs("inception").InceptionScore(feature=Columns(), splits=1)
    score.update(pictures[0])
    ours = inception_score(Columns()(pictures[0]).softmax(1).numpy(), 1)
    assert ours.mean == pytest.approx(score.compute()[0].item(), rel=1e-6)
