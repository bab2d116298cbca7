"""Networks: spectral norm by SVD, the folded twin equal to the network, conditioning, and Figures 14a-c as the paper
counts them."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from igebm import presets
from igebm.data.dsprites import CONDITIONS
from igebm.energy import energy_and_grad, given
from igebm.errors import InputError
from igebm.model import Shape, build_net
from igebm.nets.bound import updated
from igebm.nets.fold import Twin, attached, fold, frozen, pooled
from igebm.nets.image import ImageEnergy, encode, least_weights
from igebm.nets.layers import Conditional, ResBlock, SpectralConv2d, power_iteration
from igebm.nets.trajectory import TrajectoryEnergy
from igebm.presets import parse_blocks
from igebm.samplers import langevin, run
from igebm.training import ema

Y = torch.tensor([0, 3, -1, 9])


def net(condition=10, blocks="1d 1 2d 2", width=8, channels=3, perturbed=0.1, **options) -> ImageEnergy:
    """A small network in float64, away from its start so that every weight matters."""
    n = ImageEnergy(channels, width, parse_blocks(blocks), condition, **options).double()
    with torch.no_grad():
        for p in n.parameters():
            p.add_(perturbed * torch.randn_like(p))
    power_iteration(n, 3)
    return n


# Spectral norm


def largest(w):
    return torch.linalg.svdvals(w.flatten(1).double())[0].item()


def test_spectral_norm_is_one_by_svd():
    conv = SpectralConv2d(5, 7, 3)
    power_iteration(conv, 200)
    assert largest(conv.normalised()) == pytest.approx(1, abs=1e-4)
    with torch.no_grad():
        conv.weight.add_(torch.randn_like(conv.weight))  # another weight: off at once, one again after iterating
    assert abs(largest(conv.normalised()) - 1) > 0.01
    power_iteration(conv, 200)
    assert largest(conv.normalised()) == pytest.approx(1, abs=1e-4)


def test_bounded_spectral_norm_leaves_small_weights_alone():
    """W / max(σ, 1): a zero-start conv stays as small as it is until its norm passes 1."""
    conv = SpectralConv2d(4, 4, 3, zero=True)
    assert conv.weight.abs().max() < 1e-8
    for size, want in ((0.3, 0.3), (5.0, 1.0)):
        with torch.no_grad():
            conv.weight.normal_()
            conv.weight.mul_(size / largest(conv.weight))
        power_iteration(conv, 300)
        assert largest(conv.normalised()) == pytest.approx(want, rel=1e-3)


def test_spectral_norm_gradient():
    """d/dW of W/σ with u, v held: by finite differences."""
    conv = SpectralConv2d(2, 3, 3).double()
    c = torch.randn(3, 2, 3, 3, dtype=torch.float64)

    def f(w):
        return (c * w / (conv.u.double() @ w.flatten(1) @ conv.v.double())).sum()

    (conv.normalised() * c).sum().backward()
    w = conv.weight.detach().requires_grad_()
    assert torch.autograd.gradcheck(f, w)
    (want,) = torch.autograd.grad(f(w), w)
    assert torch.allclose(conv.weight.grad, want)


def test_c10_looking_changes_nothing():
    """100 passes leave the state dict as it was, and give the same energies to the bit."""
    n = net()
    before = copy.deepcopy(n.state_dict())
    x = torch.rand(4, 3, 16, 16, dtype=torch.float64)
    e = [n(x, Y) for _ in range(100)]
    Twin(n, torch.float64).given(Y)(x)
    assert all(torch.equal(e[0], other) for other in e)
    assert all(torch.equal(v, before[k]) for k, v in n.state_dict().items())


def test_c10_vectors_have_unit_length_and_find_the_norm():
    """weight diag(3, 1, 1, 1), vectors drawn anew: 30 iterations find σ = 3 with |u| = |v| = 1."""
    conv = SpectralConv2d(4, 4, 1)
    with torch.no_grad():
        conv.weight.copy_(torch.diag(torch.tensor([3.0, 1, 1, 1])).reshape(4, 4, 1, 1))
        conv.u.copy_(nn.functional.normalize(torch.randn(4), dim=0))
    power_iteration(conv, 30)
    assert conv.u.norm().item() == pytest.approx(1, abs=1e-5) and conv.v.norm().item() == pytest.approx(1, abs=1e-5)
    assert largest(conv.normalised()) == pytest.approx(1, abs=0.01)


def test_c10_the_report_itself():
    """weight diag(3, 1, 1, 1), averages of decay 0.99 over 200 steps at learning rate 0, the vectors drawn anew at 50,
    100 and 150: the averaged layer's vectors have length 1, its norm is 1, and it gives what the layer gives."""
    layer = nn.Sequential(SpectralConv2d(4, 4, 1))
    conv = layer[0]
    with torch.no_grad():
        conv.weight.copy_(torch.diag(torch.tensor([3.0, 1, 1, 1])).reshape(4, 4, 1, 1))
    averages = ema.start(layer)
    for step in range(200):
        if step % 50 == 0:
            conv.u.copy_(nn.functional.normalize(torch.randn(4), dim=0))
        layer(torch.randn(2, 4, 3, 3))
        power_iteration(layer)
        ema.update(averages, layer, 0.99, step)
    averaged = ema.network(averages, layer)[0]
    assert averaged.u.norm().item() == pytest.approx(1, abs=1e-5)
    assert averaged.v.norm().item() == pytest.approx(1, abs=1e-5)
    assert largest(averaged.normalised()) == pytest.approx(1, abs=0.01)
    x = torch.randn(2, 4, 3, 3)
    assert torch.allclose(averaged(x), conv(x), atol=1e-5)


# Folding

VARIANTS = {
    "paper": {},
    "release": dict(modulation="release", skip_kernel=3, head_relu=True, init="unit"),
    "port": dict(skip_down=True, stem_bias=True, head_relu=True),
    "modern": dict(scales=3, activation="swish"),
    "small": dict(stem="4x4/2"),
    "without spectral norm": dict(spectral=False),
    "a weight for each place": dict(flat=True),
    "the same at several sizes": dict(flat=True, scales=2, stem="4x4/2"),
}


def test_a_weight_for_each_place_tells_places_apart_and_the_sum_is_the_same_weight_everywhere():
    """In the middle, away from what the borders do, a dot moved by whole pooled pixels changes nothing under the sum;
    with a weight for each place it does, and with equal weights it does not, being the sum again."""
    shared = dict(channels=1, width=4, blocks=[(1, True)])
    pooled, places = ImageEnergy(**shared).double(), ImageEnergy(**shared, flat=(16, 16)).double()
    x = torch.zeros(2, 1, 16, 16, dtype=torch.float64)
    x[0, :, 6, 6] = x[1, :, 8, 8] = 1
    assert pooled(x)[0].item() == pytest.approx(pooled(x)[1].item())
    assert places(x)[0].item() != pytest.approx(places(x)[1].item(), abs=1e-4)
    state = pooled.state_dict()
    state["towers.0.head.weight"] = state["towers.0.head.weight"].repeat_interleave(64, dim=1)
    places.load_state_dict(state)
    assert torch.allclose(places(x), pooled(x))


def test_pooled_kernel_is_convolution_then_pool():
    x, w = torch.randn(2, 3, 9, 12, dtype=torch.float64), torch.randn(4, 3, 3, 3, dtype=torch.float64)
    want = nn.functional.avg_pool2d(nn.functional.conv2d(x, w, padding=1), 2)
    assert torch.allclose(nn.functional.conv2d(x, pooled(w), stride=2, padding=1), want)


@pytest.mark.parametrize("condition", [0, 10])
@pytest.mark.parametrize("size", [8, 28, 16])
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_folded_is_the_network(options, size, condition):
    """The twin's, the attached and the frozen energy and gradient equal the plain network's to rounding."""
    options = options | ({"flat": (size, size)} if "flat" in options else {})
    blocks = "1 2d 2" if options.get("scales") or options.get("stem") else "1d 1 2d 2"
    n, x = net(condition, blocks, **options), torch.rand(4, 3, size, size, dtype=torch.float64)
    y = Y if condition else None
    e, g = energy_and_grad(given(n, y), x)
    assert e.std() > 0 and g.std() > 0
    for E in (Twin(n, torch.float64).given(y), attached(n, y), frozen(n, y)):
        e2, g2 = energy_and_grad(E, x)
        assert torch.allclose(e2, e, rtol=1e-10, atol=1e-10) and torch.allclose(g2, g, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("activation", ["swish", "leaky-relu"])
def test_a_chain_on_the_twin_can_be_differentiated(activation):
    """∂ end / ∂ start of Langevin steps is a product of 1 - η Hessian: that of the plain network, and by the twin's own
    gradient, which is no function of x to autograd, it would be 1."""
    n, x = net(10, "1 2d 2", activation=activation), torch.rand(2, 3, 16, 16, dtype=torch.float64)
    found = []
    for E in (given(n, Y[:2]), Twin(n, torch.float64).given(Y[:2])):
        start = x.clone().requires_grad_()
        end, _ = run(langevin(5.0, 0.0), E, start, 3, differentiate="all")
        found.append((end.x.detach(), torch.autograd.grad(end.x.square().sum(), start)[0]))
    (a, ga), (b, gb) = found
    assert torch.allclose(a, b) and torch.allclose(ga, gb, rtol=1e-8, atol=1e-10)
    assert not torch.allclose(ga, 2 * a, rtol=1e-6) or activation == "leaky-relu"


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_one_label_after_the_other_at_a_fixed_image(options):
    """What is the same for all labels is worked out once; energies are the plain network's, and so is the gradient of
    latents that are chained at one image."""
    options = options | ({"flat": (16, 16)} if "flat" in options else {})
    n, x = net(2, "1 2d 2", **options), torch.rand(3, 3, 16, 16, dtype=torch.float64)
    E = Twin(n, torch.float64).over(x)
    for y in (torch.tensor([0, 1, -1]), torch.tensor([1]), torch.rand(3, 2, dtype=torch.float64)):
        assert torch.allclose(E(y), n(x, y.expand(3, *y.shape[1:])), rtol=1e-10)
    assert torch.equal(E(torch.tensor([1])), E(torch.tensor([1])))  # trying has changed nothing
    many = torch.rand(5, 2, dtype=torch.float64)
    e, g = energy_and_grad(Twin(n, torch.float64).over(x[:1]), many)
    want, want_g = energy_and_grad(lambda y: n(x[:1].expand(5, -1, -1, -1), y), many)
    assert want_g.std() > 0 and torch.allclose(e, want) and torch.allclose(g, want_g)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_some_images_under_other_labels_too(options):
    """The energies and the weights' gradients of the plain network on the first images once more for each label."""
    options = options | ({"flat": (16, 16)} if "flat" in options else {})
    n, x = net(10, "1 2d 2", **options), torch.rand(4, 3, 16, 16, dtype=torch.float64)
    y = torch.cat([Y, torch.tensor([1, 2, 3, 4])])
    contrast = lambda e: (e * torch.arange(1.0, 9, dtype=e.dtype)).sum()
    e = n(torch.cat([x, x[:2], x[:2]]), y)
    want = torch.autograd.grad(contrast(e), list(n.parameters()))
    found = updated(n, torch.float64, False)(y, (2, 2))(x)
    got = torch.autograd.grad(contrast(found), list(n.parameters()))
    assert torch.allclose(found, e, rtol=1e-10)
    assert all(torch.allclose(a, b, rtol=1e-8, atol=1e-12) for a, b in zip(got, want, strict=True))


def test_a_further_label_costs_the_network_without_its_beginning():
    """Figure 14a at width 128, by hand: multiply-adds of the stem, of the first block's first convolution, and of all;
    its first block has no skip of its own."""
    p = presets.named("cifar10-cond")
    n = build_net(p, Shape(3, 32, 32, tuple("0123456789")))
    x, twin = torch.rand(1, 3, 32, 32), Twin(n)
    with FlopCounterMode(display=False) as all_of_it:
        twin.given(torch.tensor([3]))(x)
    with FlopCounterMode(display=False) as once:
        E = twin.over(x)
    with FlopCounterMode(display=False) as label:
        E(torch.tensor([3]))
    assert once.get_total_flops() == 2 * 1024 * 9 * (3 * 128 + 128 * 128)
    gains = label.get_total_flops() + once.get_total_flops() - all_of_it.get_total_flops()
    assert 0 <= gains < 1e-3 * all_of_it.get_total_flops()


def test_twin_follows_its_network_when_refreshed():
    n, x = net(), torch.rand(4, 3, 8, 8, dtype=torch.float64)
    twin = Twin(n, torch.float64)
    with torch.no_grad():
        for p in n.parameters():
            p.mul_(1.1)
    twin.refresh()
    assert torch.allclose(twin.given(Y)(x), n(x, Y))


def test_twin_composes():
    """Any composition of twins has the right gradient: the twin's own, multiplied by autograd."""
    from igebm.compose import product, tempered

    n, x = net(), torch.rand(4, 3, 8, 8, dtype=torch.float64)
    a, b = torch.zeros(4, dtype=torch.long), torch.ones(4, dtype=torch.long)
    twin = Twin(n, torch.float64)
    e, g = energy_and_grad(product(tempered(twin.given(a), 2.0), twin.given(b)), x)
    want_e, want_g = energy_and_grad(lambda x: 2 * n(x, a) + n(x, b), x)
    assert torch.allclose(e, want_e) and torch.allclose(g, want_g)


def test_attached_energy_has_the_networks_weight_gradients():
    n, x = net(), torch.rand(4, 3, 8, 8, dtype=torch.float64)
    want = torch.autograd.grad(n(x, Y).sum(), list(n.parameters()))
    got = torch.autograd.grad(attached(n, Y)(x).sum(), list(n.parameters()))
    assert all(torch.allclose(a, b) for a, b in zip(got, want, strict=True))


def test_bfloat16_update_is_close():
    """The gradient of a contrast by two passes in bfloat16 is float32 and has the direction of the exact one, for every
    weight by itself and for all."""
    n, x = net().float(), torch.rand(8, 3, 16, 16)
    y, parameters = Y.repeat(2), list(n.parameters())
    contrast = lambda e: e[:4].mean() - e[4:].mean() + e.square().mean()
    want = torch.autograd.grad(contrast(n(x, y)), parameters)
    got = torch.autograd.grad(contrast(updated(n, torch.bfloat16, False)(y)(x)), parameters)
    assert all(g.dtype == torch.float32 for g in got)
    cosine = lambda a, b: nn.functional.cosine_similarity(a.flatten(), b.flatten(), 0)
    assert all(cosine(a, b) > 0.98 for a, b in zip(got, want, strict=True) if b.norm())
    assert cosine(*(torch.cat([g.flatten() for g in gs]) for gs in (got, want))) > 0.999


def test_frozen_energy_gives_the_weights_nothing():
    n, x = net(), torch.rand(4, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    frozen(n, Y)(x).sum().backward()
    assert x.grad is not None and all(p.grad is None for p in n.parameters())


def test_bfloat16_twin_is_close():
    """Only the network runs in bfloat16; energies and states are float32. Half a percent in energies, the same
    direction."""
    n, x = net().float(), torch.rand(4, 3, 16, 16)
    e, g = energy_and_grad(given(n, Y), x)
    e2, g2 = energy_and_grad(Twin(n, torch.bfloat16).given(Y), x)
    assert e2.dtype == g2.dtype == torch.float32
    assert (e2 - e).abs().max() < 0.005 * e.abs().max()
    assert nn.functional.cosine_similarity(g.flatten(), g2.flatten(), 0) > 0.99


def test_dropout_runs_in_the_twin_while_training_and_is_seeded():
    n, x = net(dropout=0.5), torch.rand(4, 3, 8, 8, dtype=torch.float64)
    E = Twin(n, torch.float64).given(Y)
    n.eval()
    assert torch.equal(E(x), E(x)) and torch.allclose(E(x), n(x, Y))
    n.train()
    a, b = E(x), E(x)
    assert not torch.equal(a, b)
    torch.manual_seed(3)
    c = E(x)
    torch.manual_seed(3)
    assert torch.equal(c, E(x))


# Conditioning


def test_the_start_is_unconditional():
    """gain = 1 + W y with W = 0: at the start all labels give the same energy; after changing W they do not."""
    n = ImageEnergy(1, 4, [(1, True)], 3)
    x = torch.rand(3, 1, 8, 8)
    assert len(n(x[:1].expand(3, -1, -1, -1), torch.tensor([0, 1, 2])).unique()) == 1
    m = net(3, "1d", 4, 1).float()
    assert len(m(x[:1].expand(3, -1, -1, -1), torch.tensor([0, 1, 2])).unique()) == 3


def test_conditional_by_hand():
    a = Conditional(2, 3, start=1.0)
    with torch.no_grad():
        a.base.copy_(torch.tensor([0.5, 0.0]))
        a.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    got = a(torch.tensor([[0.0, 1.0, 0.0], [0.1, 0.0, 0.2]]))
    assert torch.allclose(got, torch.tensor([[4.5, 5.0], [2.6, 2.4]]))
    assert a(None).tolist() == [[1.5, 1.0]]


def test_continuous_and_class_conditions_agree():
    """One-hot latents are class labels; label -1 is the zero latent."""
    n, x = net(), torch.rand(4, 3, 8, 8, dtype=torch.float64)
    latent = torch.zeros(4, 10, dtype=torch.float64)
    latent[[0, 1, 3], [0, 3, 9]] = 1
    assert torch.allclose(n(x, Y), n(x, latent))


def test_harmonics_of_an_angle():
    """cos kθ and sin kθ by NumPy; an energy whose weights are of the fourth alone is the same each quarter turn, and of
    harmonics 1 it is the network of the angle itself."""
    angle = torch.linspace(-3, 3, 4, dtype=torch.float64)
    y = torch.stack([angle.cos(), angle.sin()], 1)
    k = np.arange(1, 5)
    want = np.stack([np.cos(angle.numpy()[:, None] * k), np.sin(angle.numpy()[:, None] * k)], 2).reshape(4, 8)
    assert np.allclose(encode(y, 2, torch.float64, harmonics=4), want, atol=1e-14)

    n, x = net(2, harmonics=4), torch.rand(4, 3, 8, 8, dtype=torch.float64)
    turned = torch.stack([-angle.sin(), angle.cos()], 1)
    assert not torch.allclose(n(x, y), n(x, turned))
    with torch.no_grad():
        for module in n.modules():
            if isinstance(module, Conditional) and module.weight is not None:
                module.weight[:6] = 0
    assert n(x, y).std() > 0 and torch.allclose(n(x, y), n(x, turned))
    assert torch.allclose(Twin(n, torch.float64).given(y)(x), n(x, y))

    plain, one = net(2), ImageEnergy(3, 8, parse_blocks("1d 1 2d 2"), 2, harmonics=1).double()
    one.load_state_dict(plain.state_dict())
    assert torch.equal(one(x, y), plain(x, y))


def test_harmonics_are_of_angles_alone():
    with pytest.raises(InputError, match="--harmonics 4: only an angle has them"):
        build_net(
            replace(presets.named("dsprites-position"), harmonics=4), Shape(1, 32, 32, (), CONDITIONS["position"])
        )


def test_zero_start_block_is_its_skip():
    """With the second conv at zero a block is act(pool(x)), leaky ReLU with slope 0.2."""
    block, x = ResBlock(4, 4, down=True), torch.randn(2, 4, 6, 6)
    want = nn.functional.leaky_relu(nn.functional.avg_pool2d(x, 2), 0.2)
    assert torch.allclose(block(x), want, atol=1e-6)


# Figures


def convolutions(blocks, width, channels=3):
    """Weights of the convolutions of a figure, from the figure: stem, two 3x3 a block, 1x1 skips where the width
    changes."""
    total, c = channels * width * 9, width
    for multiple, _ in parse_blocks(blocks):
        o = width * multiple
        total += 9 * c * o + 9 * o * o + (c * o if c != o else 0)
        c = o
    return total


@pytest.mark.parametrize("name", ["cifar10-cond", "cifar10-uncond"])
def test_figure_parameter_counts(name):
    preset = presets.named(name)
    n = build_net(preset, Shape(3, 32, 32, tuple("abcdefghij")))
    got = sum(m.weight.numel() for m in n.modules() if isinstance(m, SpectralConv2d))
    assert got == convolutions(preset.blocks, 128)


@pytest.mark.parametrize("name", presets.PRESETS)
def test_the_least_weights_are_a_bound_not_far_below(name):
    preset = replace(presets.named(name), width=8)
    if preset.network != "image":
        pytest.skip("a network of time series")
    for classes in ((), tuple("abcdefghij")):
        conditional = replace(preset, conditional=bool(classes), harmonics=1)
        total = sum(p.numel() for p in build_net(conditional, Shape(3, 32, 32, classes)).parameters())
        least = least_weights(8, presets.parse_blocks(preset.blocks), len(classes), preset.scales)
        assert 0.5 * total < least <= total


def test_released_large_net_has_18_6_million_weights():
    """released code, counted by its readers: 18.6 M (3x3 skips)"""
    n = build_net(presets.named("cifar10-uncond-release"), Shape(3, 32, 32))
    assert sum(m.weight.numel() for m in n.modules() if isinstance(m, SpectralConv2d)) == pytest.approx(
        18.6e6, rel=0.005
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 16, 28, 32, 64, 128])
@pytest.mark.parametrize("blocks", ["1d 1 2d 2 2d 2", "1d 1 1 2d 2 2 2d 2 2"], ids=["14a", "14b"])
def test_figures_at_any_size_and_channel_count(blocks, size, channels):
    n = ImageEnergy(channels, 4, parse_blocks(blocks), 10)
    x = torch.rand(2, channels, size, size)
    e, g = energy_and_grad(Twin(n).given(torch.tensor([1, 2])), x)
    assert e.shape == (2,) and g.shape == x.shape and torch.isfinite(g).all()
    assert torch.allclose(e, n(x, torch.tensor([1, 2])), rtol=1e-3, atol=1e-3)


def test_images_too_small_for_the_halvings_are_refused():
    with pytest.raises(InputError, match="4x4 are too small.*at least 8x8"):
        build_net(presets.named("cifar10-cond"), Shape(3, 4, 4, ("a",)))


# Trajectories (Fig. 14c)


def test_trajectory_energy_sees_the_past_and_the_order():
    n = TrajectoryEnergy(2, width=16).double()
    x, past = torch.randn(5, 1, 2, dtype=torch.float64), torch.randn(5, 3, 2, dtype=torch.float64)
    e = n(x, past)
    assert e.shape == (5,)
    assert torch.allclose(n(torch.cat([past, x], 1)), e)  # the past is the series' beginning
    assert not torch.allclose(n(x, past.flip(1)), e) and not torch.allclose(n(x, past + 0.1), e)


def test_trajectory_energy_has_second_derivatives():
    """L_KL through the sampler differentiates the gradient again."""
    n = TrajectoryEnergy(2, width=8).double()
    past = torch.randn(2, 3, 2, dtype=torch.float64)
    x = torch.randn(2, 1, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: n(x, past), x)


def test_fold_counts_fewer_operations():
    """Folding saves what the algebra says: the second conv of a halving block costs 16/36 of its operations."""
    from torch.utils.flop_counter import FlopCounterMode

    block = net(0, "1d", 16, 3)
    x = torch.rand(1, 3, 16, 16, dtype=torch.float64)
    counts = []
    for E in (given(block, None), Twin(block, torch.float64).given()):
        with FlopCounterMode(display=False) as counter:
            E(x)
        counts.append(counter.get_flop_counts()["Global"][torch.ops.aten.convolution])
    stem, first, second = (2 * 256 * k * 9 for k in (3 * 16, 16 * 16, 16 * 16))
    assert counts == [stem + first + second, stem + first + second * 16 // 36]
    assert fold(block)[0].blocks[0].conv2.shape == (16, 16, 4, 4)
