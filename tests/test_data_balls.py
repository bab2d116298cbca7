"""Balls in a box against closed forms: triangle waves, exponentials, stopping ways, and collisions by hand."""

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from igebm.data.balls import World, features, follow, simulate, splits
from igebm.errors import InputError

FREE = World(drag=0.0, friction=0.0)


def one(p, v, steps, world):
    """One ball's places and velocities, (steps, 2) each."""
    x = follow(np.array([[p]], np.float64), np.array([[v]], np.float64), steps, world)
    return x[0, :, :2], x[0, :, 2:]


def triangle(x, low, high):
    """A free path between two mirrors, by another road than the code's: arccos(cos) is a triangle wave of period 2π."""
    width = high - low
    return low + width / np.pi * np.arccos(np.cos(np.pi * (x - low) / width))


@pytest.mark.parametrize("dt", [0.02, 1.7], ids=["short steps", "several walls in one step"])
def test_without_drag_and_friction_the_path_is_a_triangle_wave(dt):
    world = World(dt=dt, drag=0.0, friction=0.0, radius=0.1)
    p0, v0 = np.array([0.3141593, 0.7548777]), np.array([-1.2337006, 3.2103119])
    p, v = one(p0, v0, 3_000, world)
    t = dt * np.arange(3_000)[:, None]
    assert np.abs(p - triangle(p0 + v0 * t, 0.1, 0.9)).max() < 1e-6
    assert (np.abs(v) == np.abs(v0).astype(np.float32)).all()  # to the last bit
    # The sign is that of the wave's slope: + on even stretches between mirrors, - on odd ones.
    stretch = np.floor((p0 + v0 * t - 0.1) / 0.8)
    assert (np.sign(v) == np.sign(v0) * (-1.0) ** stretch).all()


def test_a_wall_turns_one_component_and_leaves_the_other():
    """From 0.9, with the wall for its centre at 0.95: after 0.1 at speed 1 it is at 0.9 again."""
    p, v = one([0.9, 0.5], [1.0, 0.25], 2, World(dt=0.1, drag=0.0, friction=0.0, radius=0.05))
    assert v[1].tolist() == [-1.0, 0.25]
    assert p[1] == pytest.approx([0.9, 0.525], abs=1e-7)


def test_drag_alone_is_an_exponential():
    """v = v₀ e^{-γt}; the way is v₀ (1 - e^{-γt}) / γ."""
    world = World(drag=0.7, friction=0.0)
    p, v = one([0.2, 0.3], [0.3, -0.1], 300, world)
    t = world.dt * np.arange(300)[:, None]
    v0 = np.array([0.3, -0.1])
    assert np.abs(v - v0 * np.exp(-0.7 * t)).max() < 1e-7
    assert np.abs(p - [0.2, 0.3] - v0 * (1 - np.exp(-0.7 * t)) / 0.7).max() < 1e-6


def test_friction_alone_stops_a_ball_after_v2_over_2a():
    """v₀ = 0.5, a = 0.4: at rest after 1.25, 0.3125 farther; from then on nothing moves."""
    world = World(drag=0.0, friction=0.4)
    p, v = one([0.2, 0.2], [0.3, 0.4], 100, world)
    t = world.dt * np.arange(100)
    assert np.linalg.norm(v, axis=1) == pytest.approx(np.maximum(0.5 - 0.4 * t, 0), abs=1e-7)
    assert p[-1] == pytest.approx([0.2 + 0.6 * 0.3125, 0.2 + 0.8 * 0.3125], abs=1e-6)
    rest = t > 1.25
    assert (v[rest] == 0).all() and (p[rest] == p[-1]).all()


def test_drag_and_friction_together_solve_the_equation():
    """Against a Runge-Kutta solution of ds/dt = -γ s - a, up to rest at ln(1 + γ s₀/a)/γ."""
    world = World(drag=0.8, friction=0.3)
    p, v = one([0.1, 0.5], [0.9, 0.0], 100, world)
    t = world.dt * np.arange(100)
    rest = np.log(1 + 0.8 * 0.9 / 0.3) / 0.8
    moving = t < rest
    want = solve_ivp(lambda _, y: [y[1], -0.8 * y[1] - 0.3], (0, t[-1]), [0.1, 0.9], t_eval=t, rtol=1e-10, atol=1e-12)
    assert np.abs(p[moving, 0] - want.y[0][moving]).max() < 1e-6
    assert np.abs(v[moving, 0] - want.y[1][moving]).max() < 1e-6
    assert (v[~moving] == 0).all() and (~moving).any()


def test_a_vanishing_drag_is_no_drag():
    """The closed form cancels as γ → 0; its series takes over."""
    paths = [one([0.1, 0.4], [1.0, 0.7], 200, World(drag=g, friction=0.2))[0] for g in (0.0, 1e-9, 1e-5)]
    assert np.abs(paths[1] - paths[0]).max() < 1e-6
    assert np.abs(paths[2] - paths[0]).max() < 1e-4


@pytest.mark.parametrize("count", [1, 2, 4])
def test_energy_never_grows_and_no_ball_leaves_the_box_or_enters_another(count):
    x = simulate(20, 200, count, seed=1).reshape(20, 200, count, 4)
    p, v = x[..., :2].astype(np.float64), x[..., 2:].astype(np.float64)
    energy = np.square(v).sum((2, 3)) / 2
    assert (np.diff(energy, axis=1) <= 1e-6 * energy[:, :-1]).all() and (energy[:, -1] < energy[:, 0]).all()
    assert x[..., :2].min() >= np.float32(0.05) and x[..., :2].max() <= np.float32(0.95)
    for i in range(count):
        for j in range(i):
            assert np.linalg.norm(p[:, :, i] - p[:, :, j], axis=-1).min() > 0.1 - 0.05 / 250


def test_balls_that_meet_head_on_exchange_their_velocities():
    """Centres 0.4 apart, radii 0.05: contact after 0.3, then the other one moves on."""
    p, v = np.array([[[0.3, 0.5], [0.7, 0.5]]]), np.array([[[1.0, 0.0], [0.0, 0.0]]])
    x = follow(p, v, 21, FREE).reshape(21, 2, 4)
    assert x[-1, 0] == pytest.approx([0.6, 0.5, 0, 0], abs=1e-6)
    assert x[-1, 1] == pytest.approx([0.8, 0.5, 1, 0], abs=1e-6)


def test_an_oblique_collision_exchanges_the_components_along_the_centres():
    """Offset d = 0.06 of 2r = 0.1: n = (0.8, 0.6) from the moving ball to the other, so v = (1, 0) becomes
    (1 - 0.64, -0.48) and (0.64, 0.48)."""
    p, v = np.array([[[0.3, 0.5], [0.7, 0.56]]]), np.array([[[1.0, 0.0], [0.0, 0.0]]])
    x = follow(p, v, 21, FREE).reshape(21, 2, 4)
    assert x[-1, :, 2:] == pytest.approx(np.array([[0.36, -0.48], [0.64, 0.48]]), abs=1e-6)
    contact = 0.32  # 0.4 less 2r · 0.8
    assert x[-1, 0, :2] == pytest.approx([0.3 + contact + 0.36 * (0.4 - contact), 0.5 - 0.48 * 0.08], abs=1e-6)


def test_collisions_keep_momentum_and_energy():
    """Of two balls away from the walls, over many random collisions; and the energy of four, walls and all."""
    rng = np.random.default_rng(0)
    n = 200
    angle, offset = rng.uniform(0, 2 * np.pi, n), rng.uniform(-0.09, 0.09, n)
    along, across = np.stack([np.cos(angle), np.sin(angle)], 1), np.stack([-np.sin(angle), np.cos(angle)], 1)
    p = np.stack([np.full((n, 2), 0.5), 0.5 + 0.2 * along + offset[:, None] * across], 1)
    v = np.stack([0.5 * along, -rng.uniform(0, 0.4, (n, 1)) * along], 1)
    x = follow(p, v, 20, FREE).reshape(n, 20, 2, 4)[..., 2:].astype(np.float64)
    assert (np.abs(x[:, -1] - x[:, 0]).max((1, 2)) > 1e-3).all()  # every pair collides
    assert x.sum(2) == pytest.approx(np.broadcast_to(v.sum(1)[:, None], (n, 20, 2)), abs=1e-6)
    assert np.square(x).sum((2, 3)) == pytest.approx(np.tile(np.square(v).sum((1, 2))[:, None], 20), abs=1e-6)
    four = simulate(10, 150, 4, world=FREE).reshape(10, 150, 4, 4)[..., 2:].astype(np.float64)
    energy = np.square(four).sum((2, 3))
    assert energy == pytest.approx(np.tile(energy[:, :1], 150), rel=1e-5)


@pytest.mark.parametrize("count", [1, 3])
def test_a_trajectory_is_a_function_of_the_seed_and_its_number(count):
    x = simulate(6, 80, count, seed=5)
    assert np.array_equal(x, simulate(6, 80, count, seed=5))
    assert np.array_equal(x[4], simulate(1, 80, count, seed=5, first=4)[0])
    assert np.array_equal(x[:, :30], simulate(6, 30, count, seed=5))
    assert not np.array_equal(x, simulate(6, 80, count, seed=6))


def test_the_splits_are_the_papers_and_share_no_trajectory():
    found = splits()
    train, test = found["train"], found["test"]
    assert train.x.shape == (4_500, 500, 4) and test.x.shape == (500, 500, 4)
    assert train.features == ("x", "y", "vx", "vy") and features(2)[4:] == ("x2", "y2", "vx2", "vy2")
    assert len(np.unique(np.concatenate([train.x[:, 0], test.x[:, 0]]), axis=0)) == 5_000
    # Places are uniform over [0.05, 0.95] at the start, directions over the circle: five standard errors.
    start = train.x[:, 0].astype(np.float64)
    assert start[:, :2].mean(0) == pytest.approx([0.5, 0.5], abs=5 * 0.9 / np.sqrt(12 * 4_500))
    speed = np.linalg.norm(start[:, 2:], axis=1)
    assert 0.5 <= speed.min() and speed.max() <= 2 and abs(speed.mean() - 1.25) < 5 * 1.5 / np.sqrt(12 * 4_500)
    assert (start[:, 2:] / speed[:, None]).mean(0) == pytest.approx([0, 0], abs=5 / np.sqrt(2 * 4_500))


@pytest.mark.parametrize(
    "act, said",
    [
        (lambda: World(radius=0.5), "radius 0.5: choose between 0 and 0.5"),
        (lambda: World(drag=-1.0), "drag -1"),
        (lambda: World(friction=np.inf), "friction inf"),
        (lambda: World(speed=(2.0, 1.0)), "speed 2 to 1"),
        (lambda: simulate(1, 0), "steps 0: at least 1"),
        (lambda: simulate(1, 5, seed=-1), "seed -1"),
        (lambda: simulate(1, 5, 300), "300 balls of radius 0.05 do not fit"),
        (lambda: one([0.01, 0.5], [0.0, 0.0], 5, FREE), "inside the box"),
        (lambda: follow(np.full((1, 2, 2), 0.5), np.zeros((1, 2, 2)), 5, FREE), "overlap"),
    ],
)
def test_what_makes_no_world_is_refused(act, said):
    with pytest.raises(InputError, match=said):
        act()
