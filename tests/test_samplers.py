"""Kernels against densities whose moments are known, and one step of each against hand calculations."""

import math

import pytest
import torch
from runs import unchecked
from targets import GUMBEL, PRECISION, five_sigma, gaussian

from igebm.buffer import Buffer
from igebm.errors import InputError
from igebm.samplers import State, hmc, langevin, mala, masked, mppi, run
from igebm.samplers.chain import segment_length
from igebm.samplers.hmc import leapfrog, mirrored
from igebm.samplers.metropolis import point

KERNELS = {
    "langevin": langevin(0.05, math.sqrt(0.1)),
    "langevin-before": langevin(0.05, math.sqrt(0.1), order="before"),
    "langevin-box": langevin(0.05, math.sqrt(0.1), clip=0.5, box=(-1.0, 1.0)),
    "mala": mala(0.05),
    "mala-box": mala(0.05, box=(-1.0, 1.0)),
    "hmc": hmc(0.1, 5),
    "hmc-mass": hmc(0.1, 5, mass=2.0),
    "mppi": mppi(5, 0.1),
}
each_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS.keys())


def traced(kernel, E, x, steps, generator, burn=0):
    """Positions after each step beyond `burn`: (chains, draws, *shape)."""
    kept = []
    run(kernel, E, x, steps, generator, lambda k, state, _: kept.append(state.x) if k > burn else None)
    return torch.stack(kept, 1)


# One battery for every kernel


@each_kernel
def test_ten_and_ten_steps_are_twenty_bit_for_bit(kernel):
    x = 0.1 * torch.randn(7, 2, dtype=torch.float64)
    g = torch.Generator().manual_seed(1)
    halfway, _ = run(kernel, gaussian(), x, 10, g)
    twice, _ = run(kernel, gaussian(), halfway, 10, g)
    straight, _ = run(kernel, gaussian(), x, 20, torch.Generator().manual_seed(1))
    assert torch.equal(twice.x, straight.x)


@each_kernel
def test_a_state_goes_on_on_another_energy_as_its_positions_do(kernel):
    """What it keeps of E(x) is the first energy's: MALA and HMC that believed it would reject for ever."""
    x = 0.1 * torch.randn(7, 2, dtype=torch.float64)
    there = lambda x: gaussian()(x - 0.5)
    first, _ = run(kernel, gaussian(), x, 10, torch.Generator().manual_seed(1))
    a, b = (run(kernel, there, start, 10, torch.Generator().manual_seed(2))[0].x for start in (first, first.x))
    assert torch.equal(a, b) and not torch.equal(a, first.x)


def test_an_exact_chain_evaluates_its_energy_once_a_step():
    """Masked or not: what a state keeps is kept where the energy is the same."""
    times = []

    def E(x):
        times.append(len(x))
        return x.square().sum(1)

    x, mask = torch.zeros(3, 2), torch.tensor([True, False])
    for kernel in (mala(0.1), masked(mala(0.1), mask, x)):
        times.clear()
        state, _ = run(kernel, E, x, 10, torch.Generator().manual_seed(0))
        run(kernel, E, state, 10, torch.Generator().manual_seed(0))
        assert len(times) == 21


@pytest.mark.parametrize(
    "make",
    [
        lambda: langevin(0.1, 0.1, order="Before"),
        lambda: langevin(0.1, 0.1, clip=-0.01),
        lambda: langevin(-0.1, 0.1),
        lambda: hmc(0.1, wall="mirrored", box=(0, 1)),
        lambda: Buffer(4, (1,), policy="Ring"),
        lambda: Buffer(4, (1,), rounding="floor"),
        lambda: run(langevin(0.1, 0.1), gaussian(), torch.zeros(1, 2), 1, differentiate="al"),
    ],
)
def test_misspelt_choices_are_refused(make):
    with unchecked(), pytest.raises(InputError):
        make()


@each_kernel
def test_no_steps_leave_the_start(kernel, generator):
    x = torch.randn(3, 2)
    assert torch.equal(run(kernel, gaussian(PRECISION.float()), x, 0, generator)[0].x, x)


@each_kernel
def test_items_do_not_interact(kernel):
    """A chain's path does not depend on its neighbours' positions."""
    x = 0.1 * torch.randn(6, 2, dtype=torch.float64)
    other = x.clone()
    other[1:] += 0.3
    a, b = (run(kernel, gaussian(), start, 5, torch.Generator().manual_seed(3))[0].x for start in (x, other))
    assert torch.equal(a[0], b[0])


@each_kernel
def test_sampling_inside_no_grad_gives_the_same(kernel):
    x = 0.1 * torch.randn(4, 2, dtype=torch.float64)
    a = run(kernel, gaussian(), x, 5, torch.Generator().manual_seed(2))[0].x
    with torch.no_grad():
        b = run(kernel, gaussian(), x, 5, torch.Generator().manual_seed(2))[0].x
    assert torch.equal(a, b) and not a.requires_grad


@each_kernel
def test_masked_chains_keep_what_is_known(kernel, generator):
    """Masks: the kept entries are the same to the last bit after every step, and the free ones move."""
    known = 0.2 * torch.rand(5, 2, dtype=torch.float64)
    mask = torch.tensor([True, False])
    path = traced(masked(kernel, mask, known), gaussian(), torch.zeros_like(known), 8, generator)
    assert (path[..., 1] == known[:, None, 1]).all()
    assert (path[:, -1, 0] != 0).all()


def test_an_energy_of_the_wrong_shape_is_refused(generator):
    with pytest.raises(InputError, match=r"one number for each item.*got \(3, 1\)"):
        run(langevin(0.1, 0.1), lambda x: x.sum(1, keepdim=True), torch.randn(3, 2), 1, generator)


# Langevin


def test_langevin_finite_step_covariance(generator):
    """x ← x - (η P) x + √(2η) ω has covariance (P - η P²/2)⁻¹ exactly, at any stable η: a factor 2 anywhere would show.

    (C with C = (1-ηP) C (1-ηP) + 2η commutes with P: C (2ηP - η²P²) = 2η.)"""
    eta = 0.3
    x = torch.randn(20_000, 2, dtype=torch.float64, generator=generator)
    state, _ = run(langevin(eta, math.sqrt(2 * eta)), gaussian(), x, 120, generator)
    want = torch.linalg.inv(PRECISION - 0.5 * eta * PRECISION @ PRECISION)
    assert (torch.cov(state.x.T) - want).abs().max() < 0.04  # standard errors are below 0.013
    assert (want - torch.linalg.inv(PRECISION)).abs().max() > 0.2  # so that the exact target would fail


def test_c13_noise_is_not_multiplied_by_the_step(generator):
    """(a) tied x - (a/2) ∇E + √a ω on x²/2, a = 0.1: variance 1 / (1 - a/4). (b) untied, step 0.1, σ 0.005: σ² / (2η
    - η²)."""
    E = lambda x: 0.5 * x.square().sum(1)
    x = torch.randn(20_000, 1, dtype=torch.float64, generator=generator)
    tied, _ = run(langevin(0.05, math.sqrt(0.1)), E, x, 400, generator)
    assert abs(tied.x.var().item() - 1 / (1 - 0.1 / 4)) < 0.04
    untied, _ = run(langevin(0.1, 0.005), E, x, 400, generator)
    assert untied.x.var().item() == pytest.approx(0.005**2 / (2 * 0.1 - 0.1**2), rel=0.05)


def test_langevin_step_by_hand():
    """x = 2, E = x²/2, η = 0.5, clip 1, no noise: 2 - 0.5·1 = 1.5; box [0, 1] clamps to 1. The info's gradient is
    unclipped."""
    E = lambda x: 0.5 * x.square().sum(1)
    x = torch.tensor([[2.0], [-0.4]])
    state, info = run(langevin(0.5, 0.0, clip=1.0), E, x, 1)
    assert state.x.flatten().tolist() == pytest.approx([1.5, -0.2])
    assert info.e.tolist() == pytest.approx([2.0, 0.08]) and info.g.flatten().tolist() == pytest.approx([2.0, -0.4])
    boxed, _ = run(langevin(0.5, 0.0, clip=1.0, box=(0.0, 1.0)), E, x, 1)
    assert boxed.x.flatten().tolist() == [1.0, 0.0]


def test_langevin_noise_orders():
    """after: x - η x + ω; before: (x + ω) - η (x + ω), from the same ω, on E = x²/2."""
    E = lambda x: 0.5 * x.square().sum(1)
    x, seed = torch.tensor([[1.0]]), lambda: torch.Generator().manual_seed(5)
    omega = torch.randn(1, 1, generator=seed())
    after, _ = run(langevin(0.25, 1.0), E, x, 1, seed())
    before, _ = run(langevin(0.25, 1.0, order="before"), E, x, 1, seed())
    assert torch.allclose(after.x, 0.75 * x + omega)
    assert torch.allclose(before.x, 0.75 * (x + omega))


# MALA and HMC


@pytest.mark.parametrize("kernel", [mala(0.6), hmc(0.8, 4), hmc(2.5, 4, mass=10.0)], ids=["mala", "hmc", "hmc-mass"])
def test_asymmetric_target(kernel, generator):
    """E = eˣ - x: mean -γ and variance π²/6 (not the variance of a symmetric stand-in), within 5 standard errors."""
    x = torch.randn(100, 1, dtype=torch.float64, generator=generator)
    draws = traced(kernel, GUMBEL.E, x, 1100, generator, burn=100)[..., 0]
    five_sigma(draws, GUMBEL.mean)
    five_sigma((draws - GUMBEL.mean) ** 2, GUMBEL.variance)


BOXED = [mala(0.05, box=(0.0, 1.0)), hmc(0.1, 3, box=(0.0, 1.0)), hmc(0.3, 3, box=(0.0, 1.0), wall="mirror")]


@pytest.mark.parametrize("kernel", BOXED, ids=["mala", "hmc", "hmc-mirror"])
def test_box(kernel, generator):
    """E = 3x on [0, 1]: mean 1/3 - e⁻³ / (1 - e⁻³), by integration."""
    x = torch.rand(100, 1, dtype=torch.float64, generator=generator)
    draws = traced(kernel, lambda x: 3 * x.sum(1), x, 700, generator, burn=100)[..., 0]
    assert ((draws >= 0) & (draws <= 1)).all()
    five_sigma(draws, 1 / 3 - math.exp(-3) / (1 - math.exp(-3)))


@pytest.mark.parametrize("make", [lambda s: mala(s**2 / 2), lambda s: hmc(s, 3)], ids=["mala", "hmc"])
def test_acceptance_goes_to_one_with_the_step(make, generator):
    x = torch.randn(500, 2, dtype=torch.float64, generator=generator)
    accepted = [run(make(s), gaussian(), x, 1, generator)[1].accept_prob.mean().item() for s in (0.02, 2.5)]
    assert accepted[0] > 0.995 and accepted[1] < 0.6


def test_mala_and_one_leapfrog_step_are_the_same():
    """HMC with one leapfrog step of size ε is MALA with η = ε²/2: same noise, same path, same acceptance (Neal,
    5.5.2)."""
    x = torch.randn(50, 2, dtype=torch.float64)
    a, ia = run(mala(0.5 * 0.4**2), gaussian(), x, 20, torch.Generator().manual_seed(1))
    b, ib = run(hmc(0.4, 1), gaussian(), x, 20, torch.Generator().manual_seed(1))
    assert torch.allclose(a.x, b.x, atol=1e-10) and torch.allclose(ia.accept_prob, ib.accept_prob, atol=1e-10)


def test_c19_leapfrog_by_hand_and_back():
    """E = x²/2 from x = 1, p = 0 with ε = 0.1: x = 0.995, p = -0.09975, ΔH = -1.247e-5. Reversed after 20 steps:
    home again."""
    E = lambda x: 0.5 * x.square().sum(1)
    start, p = point(E, State(torch.tensor([[1.0]], dtype=torch.float64))), torch.zeros(1, 1, dtype=torch.float64)
    end, q = leapfrog(E, start, p, 0.1, 1)
    assert end.x.item() == pytest.approx(0.995) and q.item() == pytest.approx(-0.09975)
    assert (end.e + 0.5 * q.square()).item() - 0.5 == pytest.approx(-1.247e-5, rel=1e-3)
    far, q = leapfrog(E, start, p, 0.1, 20)
    home, _ = leapfrog(E, far, -q, 0.1, 20)
    assert home.x.item() == pytest.approx(1.0, abs=1e-12)


def test_a_flight_bounces_off_the_walls():
    """Of [0, 1]: 1.25 is 0.75 on its way back, -0.25 is 0.25, 2.5 has bounced twice and goes on; inside nothing
    changes."""
    ends = torch.tensor([[1.25], [-0.25], [2.5], [0.4]], dtype=torch.float64)
    x, p = mirrored(ends, torch.ones_like(ends), 0.0, 1.0)
    assert x[:, 0].tolist() == [0.75, 0.25, 0.5, 0.4] and p[:, 0].tolist() == [-1, -1, 1, 1]
    x, p = mirrored(torch.tensor([[3.5]], dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64), -1.0, 3.0)
    assert x.item() == 2.5 and p.item() == -1


def test_leapfrog_between_walls_can_be_run_back():
    """Forwards, turned round and back again: home, whatever bounced on the way."""
    E = lambda x: (3 * x.square()).sum(1)
    start = point(E, State(torch.rand(50, 4, dtype=torch.float64)))
    p = torch.randn(50, 4, dtype=torch.float64)
    far, q = leapfrog(E, start, p, 0.2, 12, walls=(0.0, 1.0))
    home, _ = leapfrog(E, far, -q, 0.2, 12, walls=(0.0, 1.0))
    assert ((far.x >= 0) & (far.x <= 1)).all() and torch.allclose(home.x, start.x, atol=1e-12)


def test_only_mirrors_move_in_a_box_of_many_dimensions(generator):
    """Uniform on [0, 1]^1000: a flight stays inside by chance hardly ever; a mirrored one is always accepted."""
    E, x = lambda x: 0 * x.sum(1), torch.rand(20, 1000, dtype=torch.float64)
    _, rejected = run(hmc(0.1, 5, box=(0.0, 1.0)), E, x, 1, generator)
    _, kept = run(hmc(0.1, 5, box=(0.0, 1.0), wall="mirror"), E, x, 1, generator)
    assert (rejected.accept_prob == 0).all() and (kept.accept_prob == 1).all()


def test_leapfrog_energy_error_is_of_second_order():
    """Halving ε quarters the error over a fixed time: slope 2 of log error on log ε."""
    E = lambda x: (x.exp() - x).sum(1)
    errors, sizes = [], [0.2, 0.1, 0.05, 0.025]
    for eps in sizes:
        start = point(E, State(torch.full((1, 1), -1.0, dtype=torch.float64)))
        p = torch.full((1, 1), 0.7, dtype=torch.float64)
        end, q = leapfrog(E, start, p, eps, round(1.0 / eps))
        errors.append(abs((end.e + q.square().sum() / 2 - start.e - p.square().sum() / 2).item()))
    slopes = [math.log(a / b) / math.log(2) for a, b in zip(errors, errors[1:], strict=False)]
    assert slopes[-1] == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("mass", [1.0, 10.0])
def test_c19_hmc_variance(mass, generator):
    """A slip in the bookkeeping of energies halved the variance: it is 1, for any mass."""
    E = lambda x: 0.5 * x.square().sum(1)
    x = torch.randn(20_000, 1, dtype=torch.float64, generator=generator)
    state, _ = run(hmc(0.3 * math.sqrt(mass), 5, mass), E, x, 50, generator)
    assert state.x.var().item() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("kernel", [mala(0.3), hmc(0.5, 5)], ids=["mala", "hmc"])
def test_c19_not_a_number_is_rejected_and_counted(kernel, generator):
    """E = x²/2 but nan where |x| >= 3: no chain goes there, and the divergences are counted."""
    E = lambda x: torch.where(x.abs() < 3, 0.5 * x.square(), torch.nan)[:, 0]
    seen = []
    x = torch.zeros(2000, 1, dtype=torch.float64)
    state, _ = run(
        kernel, E, x, 100, generator, lambda k, s, info: seen.append((s.x.abs().max(), info.divergent.sum()))
    )
    assert all(top < 3 for top, _ in seen)
    assert sum(int(n) for _, n in seen) > 0


@pytest.mark.parametrize("kernel", [mala(0.3), hmc(0.5, 5)], ids=["mala", "hmc"])
def test_c19_where_nothing_is_a_number_nothing_moves(kernel, generator):
    """nan everywhere: no chain moves, every step counts as divergent, and what is not a number stays one."""
    x = torch.randn(50, 1, dtype=torch.float64, generator=generator)
    divergent = []
    note = lambda k, s, info: divergent.append(info.divergent.all())
    state, info = run(kernel, lambda x: x[:, 0] * torch.nan, x, 5, generator, note)
    assert torch.equal(state.x, x) and all(divergent) and state.e.isnan().all() and (info.accept_prob == 0).all()


# MPPI


def test_mppi_by_hand():
    """One update on E = x²: the softmax-weighted mean of the candidates, worked out with numpy's arithmetic from the
    same noise."""
    x, g = torch.tensor([[1.0], [-2.0]]), torch.Generator().manual_seed(4)
    omega = torch.randn(2, 3, 1, generator=torch.Generator().manual_seed(4))
    state, _ = run(mppi(3, 0.5), lambda x: x.square().sum(1), x, 1, g)
    for i in range(2):
        candidates = [x[i, 0].item() + 0.5 * omega[i, k, 0].item() for k in range(3)]
        weights = [math.exp(-c * c) for c in candidates]
        want = sum(w * c for w, c in zip(weights, candidates, strict=True)) / sum(weights)
        assert state.x[i, 0].item() == pytest.approx(want, rel=1e-5)


def test_mppi_at_low_temperature_takes_the_best_candidate():
    x, g = torch.tensor([[1.0]]), torch.Generator().manual_seed(4)
    omega = torch.randn(1, 50, 1, generator=torch.Generator().manual_seed(4))
    candidates = 1.0 + 0.5 * omega[0, :, 0]
    best = candidates[candidates.square().argmin()]
    state, _ = run(mppi(50, 0.5, temperature=1e-6), lambda x: x.square().sum(1), x, 1, g)
    assert state.x.item() == pytest.approx(best.item(), rel=1e-5)


def test_mppi_drift_on_a_slope(generator):
    """E = a x: w ∝ e^(-a σ ω) tilts the noise's mean to -a σ², which many candidates reach."""
    state, _ = run(mppi(4000, 0.3), lambda x: 2.0 * x.sum(1), torch.zeros(200, 1), 1, generator)
    assert state.x.mean().item() == pytest.approx(-2.0 * 0.3**2, rel=0.02)


# Masked chains target the conditional


@pytest.mark.parametrize("kernel", [mala(0.2), hmc(0.4, 4)], ids=["mala", "hmc"])
def test_masked_chain_samples_the_conditional(kernel, generator):
    """Of the correlated Gaussian given x₂ = 1: mean -P₁₂/P₁₁, variance 1/P₁₁."""
    known = torch.tensor([[0.0, 1.0]], dtype=torch.float64).expand(400, 2).contiguous()
    draws = traced(masked(kernel, torch.tensor([True, False]), known), gaussian(), known, 400, generator, burn=50)[
        ..., 0
    ]
    five_sigma(draws, -0.3)
    five_sigma((draws + 0.3) ** 2, 0.5)


@pytest.mark.parametrize("kernel", [mala(0.02, box=(0.0, 1.0)), hmc(0.1, 3, box=(0.0, 1.0))], ids=["mala", "hmc"])
def test_kept_entries_at_the_wall_do_not_stop_a_masked_chain(kernel, generator):
    """E = 3 (x₁ + x₂) in the box with x₂ = 0 kept: x₁ has the mean of e^(-3x), and proposals are accepted."""
    known = torch.zeros(100, 2, dtype=torch.float64)
    start = torch.rand(100, 2, dtype=torch.float64, generator=generator)
    accepted, kept = [], masked(kernel, torch.tensor([True, False]), known)

    def note(k, state, info):
        accepted.append(info.accept_prob.mean())
        path.append(state.x)

    path = []
    run(kept, lambda x: 3 * x.sum(1), start, 1200, generator, note)
    assert torch.stack(accepted).mean() > 0.5
    draws = torch.stack(path[200:], 1)
    assert (draws[..., 1] == 0).all()
    five_sigma(draws[..., 0], 1 / 3 - math.exp(-3) / (1 - math.exp(-3)))


@pytest.mark.parametrize("kernel", [mala(0.3), hmc(0.5, 5)], ids=["mala", "hmc"])
def test_an_infinite_well_is_no_place_to_go(kernel, generator):
    """E = -inf beyond 2: such a proposal is divergent, not the best ever seen."""
    E = lambda x: torch.where(x.abs() < 2, 0.5 * x.square(), -torch.inf)[:, 0]
    divergent = []
    state, _ = run(
        kernel, E, torch.zeros(500, 1), 60, generator, lambda k, s, i: divergent.append(int(i.divergent.sum()))
    )
    assert (state.x.abs() < 2).all() and torch.isfinite(state.e).all() and sum(divergent) > 0


# Gradients through a chain


def _end_of_chain(theta, differentiate, recompute=1, steps=6, kernel=None, x=None):
    """The mean end of Langevin chains on E = θ x⁴/4 + x²/2, from fixed noise."""
    E = lambda x: (theta * x.pow(4) / 4 + x.square() / 2).sum(1)
    x = torch.linspace(-1, 1.5, 5, dtype=torch.float64)[:, None] if x is None else x
    g = torch.Generator().manual_seed(9)
    kernel = langevin(0.1, 0.2) if kernel is None else kernel
    return run(kernel, E, x, steps, g, differentiate=differentiate, recompute=recompute)[0].x.mean()


@pytest.mark.parametrize("kernel", [langevin(0.1, 0.2), langevin(0.1, 0.2, order="before"), mppi(4, 0.2)])
def test_gradient_through_all_steps_by_finite_differences(kernel):
    theta = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    (got,) = torch.autograd.grad(_end_of_chain(theta, "all", kernel=kernel), theta)
    h = 1e-5
    up, down = (_end_of_chain(torch.tensor(0.7 + s * h, dtype=torch.float64), "none", kernel=kernel) for s in (1, -1))
    assert got.item() == pytest.approx(((up - down) / (2 * h)).item(), rel=1e-6)


def test_gradient_through_the_last_step_alone():
    """∂/∂θ of x - η (θ x³ + x) is -η x³ at the last step's start, nothing more."""
    theta = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    (got,) = torch.autograd.grad(_end_of_chain(theta, "last"), theta)
    E = lambda x: (0.7 * x.pow(4) / 4 + x.square() / 2).sum(1)
    x = torch.linspace(-1, 1.5, 5, dtype=torch.float64)[:, None]
    before, _ = run(langevin(0.1, 0.2), E, x, 5, torch.Generator().manual_seed(9))
    assert got.item() == pytest.approx((-0.1 * before.x.pow(3)).mean().item(), rel=1e-12)


@pytest.mark.parametrize("kernel", [mala(0.1), hmc(0.1, 2)], ids=["mala", "hmc"])
def test_kernels_that_carry_no_gradient_say_so(kernel):
    theta = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    with pytest.raises(InputError, match="no gradient flows"):
        _end_of_chain(theta, "all", kernel=kernel)


@pytest.mark.parametrize("kernel", [langevin(0.1, 0.2), langevin(0.1, 0.2, order="before"), mppi(4, 0.2)])
@pytest.mark.parametrize("recompute", [2, 3, 4, 6, 10])
def test_recomputation_changes_neither_values_nor_gradients(recompute, kernel):
    """Also where the segments do not divide the steps; the noise drawn again is the same noise."""
    theta = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    a, b = (_end_of_chain(theta, "all", m, kernel=kernel) for m in (1, recompute))
    assert torch.equal(a, b)
    ga, gb = (torch.autograd.grad(v, theta)[0] for v in (a, b))
    assert torch.allclose(ga, gb, rtol=1e-12)


def test_recomputation_draws_the_dropout_again_that_it_drew():
    """F.dropout draws from torch's own generator, which ends where the chain without recomputation leaves it."""
    found = []
    for recompute in (1, 3):
        theta = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        E = lambda x, theta=theta: (theta * torch.nn.functional.dropout(x, 0.5).pow(4)).sum(1)
        torch.manual_seed(5)
        start, g = torch.ones(4, 6, dtype=torch.float64), torch.Generator().manual_seed(1)
        end, _ = run(langevin(0.05, 0.1), E, start, 9, g, differentiate="all", recompute=recompute)
        after = torch.rand(1)
        (got,) = torch.autograd.grad(end.x.mean(), theta)
        found.append((end.x.detach(), after, got))
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-12)


def test_recomputation_leaves_the_generator_where_the_chain_left_it():
    theta = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    E = lambda x: theta * x.square().sum(1)
    states = []
    for recompute in (1, 4):
        g = torch.Generator().manual_seed(1)
        end, _ = run(
            langevin(0.1, 0.2), E, torch.ones(2, 1, dtype=torch.float64), 8, g, differentiate="all", recompute=recompute
        )
        after_forward = torch.rand(1, generator=g.clone_state())
        torch.autograd.grad(end.x.sum(), theta)
        assert torch.equal(after_forward, torch.rand(1, generator=g.clone_state()))
        states.append(after_forward)
    assert torch.equal(*states)


def test_recomputation_keeps_fewer_tensors():
    """Tensors that autograd holds at once, forward and backward, at their most: about K without recomputation, of the
    order of √K with it. Held again in the forward pass they would be no fewer, so the whole gradient is watched."""
    theta = torch.tensor(0.7, requires_grad=True)

    class Held:
        live = most = 0

        def __init__(self, tensor):
            self.tensor = tensor
            Held.live += tensor.numel() >= 1000
            Held.most = max(Held.most, Held.live)

        def __del__(self):
            Held.live -= self.tensor.numel() >= 1000

    def most(steps: int, recompute: int) -> int:
        Held.most = Held.live
        with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
            E = lambda x: (theta * x.pow(4)).sum(1)
            x, g = torch.ones(1000, 1), torch.Generator()
            end, _ = run(langevin(0.01, 0.1), E, x, steps, g, differentiate="all", recompute=recompute)
            torch.autograd.grad(end.x.sum(), theta)
        del end
        return Held.most

    assert segment_length(64) == 8 and segment_length(256) == 16
    assert most(256, 1) > 3.5 * most(64, 1)
    assert most(64, 8) < most(64, 1) / 5 and most(256, 16) < most(256, 1) / 10
    assert most(256, 16) < 2.5 * most(64, 8)


def test_recomputation_where_the_start_alone_takes_a_gradient():
    """On E = x²/2 without noise x_K = (1 - η)ᴷ x_0, so that ∂x_K/∂x_0 = 0.9⁷ whatever the segments."""
    for recompute in (1, 2, 3, 7, 10):
        x = torch.ones(3, 1, dtype=torch.float64, requires_grad=True)
        E = lambda x: x.square().sum(1) / 2
        end, _ = run(langevin(0.1, 0.0), E, x, 7, differentiate="all", recompute=recompute)
        (g,) = torch.autograd.grad(end.x.sum(), x)
        assert torch.allclose(end.x, torch.full_like(x, 0.9**7)) and torch.allclose(g, torch.full_like(x, 0.9**7))


def test_recomputation_reaches_what_was_made_of_the_parameters_before_the_chain():
    """Weights that E holds as a function of its leaves (as the folded kernels are), gone through by every segment; a
    chain that starts from a point of its own takes its gradient as well; without a generator too."""
    found = []
    for recompute in (1, 3):
        theta = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        x = torch.full((4, 1), 0.5, dtype=torch.float64, requires_grad=True)
        made = theta.exp().sin()
        E = lambda x, made=made: (made * x.pow(4)).sum(1)
        end, _ = run(langevin(0.1, 0.0), E, 2 * x, 8, differentiate="all", recompute=recompute)
        (end.x.sum() + made).backward()
        found.append((end.x.detach(), theta.grad, x.grad))
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-12)
