"""Energies, their compositions and the objectives, against closed forms and hand calculations."""

import math

import pytest
import torch
from targets import PRECISION, gaussian

from igebm.compose import bridge, mixture, negation, product, tempered
from igebm.energy import energy_and_grad, given
from igebm.errors import InputError
from igebm.objectives import (
    OBJECTIVES,
    contrastive,
    kl,
    log_partition,
    maximum_likelihood,
    posterior,
    regulariser,
    softplus,
)

X = torch.randn(9, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
P, Q = PRECISION, torch.tensor([[0.5, -0.1], [-0.1, 0.3]], dtype=torch.float64)
A, B = gaussian(P), gaussian(Q)


def test_energy_and_grad_of_a_gaussian():
    """E = ½ xᵀPx, ∇E = Px."""
    e, g = energy_and_grad(A, X)
    assert torch.allclose(e, 0.5 * torch.einsum("bi,ij,bj->b", X, P, X))
    assert torch.allclose(g, X @ P)
    assert not e.requires_grad and not g.requires_grad


def test_energy_and_grad_keeps_the_graph_when_asked():
    """d/dθ of Σ ∇(θ x²/2) = Σ x."""
    theta = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    _, g = energy_and_grad(lambda x: theta * x.square().sum(1) / 2, X, create_graph=True)
    (d,) = torch.autograd.grad(g.sum(), theta)
    assert torch.allclose(d, X.sum())


def test_given_binds_the_condition():
    net = lambda x, y: (x.sum(1) - y).square()
    assert torch.equal(given(net, torch.full((9,), 3.0))(X), (X.sum(1) - 3).square())


COMPOSITIONS = {
    "product": (product(A, B), gaussian(P + Q)),  # precisions add
    "negation": (negation(A, B, 0.5), gaussian(P - 0.5 * Q)),  # and subtract
    "tempered": (tempered(A, 2.5), gaussian(2.5 * P)),  # and scale
    "bridge": (bridge(A, B, 0.3), gaussian(0.7 * P + 0.3 * Q)),
    "mixture of one": (mixture(A), A),
    "nested": (product(tempered(A, 2.0), negation(A, B)), gaussian(3 * P - Q)),
}


@pytest.mark.parametrize("composed, truth", COMPOSITIONS.values(), ids=COMPOSITIONS.keys())
def test_compositions_of_gaussians(composed, truth):
    for got, want in zip(energy_and_grad(composed, X), energy_and_grad(truth, X), strict=True):
        assert torch.allclose(got, want, atol=1e-12)


def test_mixture_is_the_explicit_density():
    e = mixture(A, B, weights=(0.2, 3.0))(X)
    assert torch.allclose(torch.exp(-e), 0.2 * torch.exp(-A(X)) + 3.0 * torch.exp(-B(X)))


@pytest.mark.parametrize("T", [0.01, 1.0, 30.0])
def test_mixture_is_the_explicit_density_at_the_temperature_of_the_chain(T):
    e = mixture(A, B, weights=(0.2, 3.0), temperature=T)(X)
    explicit = 0.2 * torch.exp(-A(X) / T) + 3.0 * torch.exp(-B(X) / T)
    there = explicit > 0  # exp underflows in the tails at T = 0.01, its logarithm does not
    assert there.any() and torch.allclose(torch.exp(-e / T)[there], explicit[there], rtol=1e-9)


def test_a_cold_mixture_is_the_least_of_its_terms():
    least = torch.minimum(A(X), B(X))
    assert torch.equal(mixture(A, B, temperature=0.0)(X), least)
    assert torch.allclose(mixture(A, B, temperature=1e-6)(X), least, atol=1e-6)  # within T log 2


@pytest.mark.parametrize("wrong", [dict(weights=(1.0,)), dict(weights=(1.0, 0.0)), dict(temperature=-1.0)])
def test_what_is_no_mixture_is_refused(wrong):
    with pytest.raises(InputError, match="a positive weight each"):
        mixture(A, B, **wrong)
    with pytest.raises(InputError, match="at least"):
        product()


@pytest.mark.parametrize("compose", [product, mixture])
def test_symmetric_compositions_do_not_mind_the_order(compose):
    C = tempered(B, 0.1)
    assert torch.allclose(compose(A, B, C)(X), compose(C, A, B)(X), rtol=1e-12)


# Objectives: e⁺ = (1, 3), e⁻ = (0, 2)

E_POS = torch.tensor([1.0, 3.0], dtype=torch.float64)
E_NEG = torch.tensor([0.0, 2.0], dtype=torch.float64)
W0 = 1 / (1 + math.exp(-2))  # softmax(-e⁻) of the first

BY_HAND = {
    "contrastive": 2 - 1,
    "log-partition": 2 + math.log(1 + math.exp(-2)) - math.log(2),
    "maximum-likelihood": 2 - (1 - W0) * 2,
    "softplus": (math.log(1 + math.e) + math.log(1 + math.e)) / 2,
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objective_by_hand(name):
    assert OBJECTIVES[name](E_POS, E_NEG).item() == pytest.approx(BY_HAND[name], rel=1e-12)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objective_gradcheck(name):
    """Against finite differences; eq. 8 is not the derivative of its value but of eq. 7's, checked below."""
    objective = log_partition if name == "maximum-likelihood" else OBJECTIVES[name]
    assert torch.autograd.gradcheck(objective, (E_POS.clone().requires_grad_(), E_NEG.clone().requires_grad_()))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objective_lowers_data_and_raises_samples(name):
    pos, neg = E_POS.clone().requires_grad_(), E_NEG.clone().requires_grad_()
    OBJECTIVES[name](pos, neg).backward()
    assert (pos.grad > 0).all() and (neg.grad < 0).all()


def test_maximum_likelihood_has_the_gradient_of_log_partition():
    """The gradient by e⁻ is -softmax(-e⁻), by hand (-W0, -(1 - W0)); the weights carry no gradient of their own."""
    for objective in (log_partition, maximum_likelihood):
        neg = E_NEG.clone().requires_grad_()
        objective(E_POS, neg).backward()
        assert neg.grad.tolist() == pytest.approx([-W0, -(1 - W0)])


def test_softplus_at_equal_energies_is_log_two():
    assert softplus(E_POS, E_POS).item() == pytest.approx(math.log(2))


def test_equal_energies_cost_nothing():
    e = torch.full((4,), 0.7)
    for objective in (contrastive, log_partition, maximum_likelihood):
        assert objective(e, e).item() == pytest.approx(0, abs=1e-6)


def test_posterior_by_hand():
    """Two images, energies (own, others): p = 1 / (1 + 1/3) = 3/4 and 1 / (1 + 1 + 2) = 1/4, and d/de is 1 - p, -pⱼ
    (halved by the mean)."""
    e = torch.tensor([[0.0, math.log(3), 1e9], [0.0, 0.0, -math.log(2)]], dtype=torch.float64, requires_grad=True)
    loss = posterior(e)
    loss.backward()
    assert loss.item() == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)
    assert e.grad.flatten().tolist() == pytest.approx([1 / 8, -1 / 8, 0, 3 / 8, -1 / 8, -1 / 4])


def test_regulariser_by_hand():
    assert regulariser(E_POS, E_NEG, 0.1).item() == pytest.approx(0.1 * ((1 + 9) / 2 + (0 + 4) / 2))


def test_kl_through_one_step_in_closed_form():
    """E = θ x²/2, x⁻ = x - η θ x (no noise): d/dθ of θ̄ (x⁻)²/2 is -η θ̄ x² (1 - η θ), and θ̄ itself gets nothing."""
    from igebm.samplers import langevin, run

    theta, eta, x = (
        torch.tensor(0.8, dtype=torch.float64, requires_grad=True),
        0.3,
        torch.tensor([[2.0]], dtype=torch.float64),
    )
    E = lambda x: theta * x.square().sum(1) / 2
    frozen = theta.detach()
    end, _ = run(langevin(eta, 0.0), E, x, 1, differentiate="last")
    loss = kl(frozen * end.x.square().sum(1) / 2)
    loss.backward()
    assert loss.item() == pytest.approx(0.8 * (2 * (1 - eta * 0.8)) ** 2 / 2)
    assert theta.grad.item() == pytest.approx(-eta * 0.8 * 4 * (1 - eta * 0.8))
