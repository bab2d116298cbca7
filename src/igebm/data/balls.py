"""Balls in a box, simulated (section 5, Fig. 8): they slow down, bounce off the walls and, where there are several, off
each other.

Between collisions a ball moves on a straight line and its speed s obeys

    ds/dt = -γ s - a   while s > 0, then 0:   drag γ (linear damping) and friction a (constant deceleration),

which has a closed form. With τ(t) = (1 - e^{-γt}) / γ and κ(t) = (t - τ) / γ (t and t²/2 where γ = 0),

    s(t) = s₀ e^{-γt} - a τ(t),   way(t) = s₀ τ(t) - a κ(t),   at rest from t* = ln(1 + γ s₀/a) / γ on.

A wall turns the sign of one component of the velocity and leaves the speed, so the walls fold the straight line: p(t)
is the free path, folded into the box by a triangle wave, exactly, however many walls are met. Two balls of equal mass
that touch exchange their velocities' components along the line between their centres. So the order of operations is:
fly and fold to the first contact, exchange, fly on, until the step is over; nothing is split or rounded to a step.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Bool, Float32, Float64

from ..errors import Fault, InputError
from .series import Series

TRAIN, TEST, STEPS = 4_500, 500, 500
"""section 5: trajectories of either split, and the states of each"""


@dataclass(frozen=True)
class World:
    """The box [0, 1]², its balls, and what slows them; lengths in boxes, times in units in which a ball of speed 1
    crosses the box."""

    dt: float = 0.02
    """time between two states"""
    radius: float = 0.05
    drag: float = 0.1
    """γ, per unit of time"""
    friction: float = 0.05
    """a, speed lost per unit of time; with the other defaults about every fourth ball is at rest after 500 states"""
    speed: tuple[float, float] = (0.5, 2.0)
    """range of the speeds at the start, uniform"""

    def __post_init__(self) -> None:
        """Raises InputError for a number out of its range."""
        low, high = self.speed
        for name, value, least in (("dt", self.dt, 1e-9), ("drag", self.drag, 0.0), ("friction", self.friction, 0.0)):
            if not least <= value < np.inf:
                raise InputError(f"{name} {value:g}: a finite number of at least {least:g} is wanted")
        if not 0 < self.radius < 0.5:
            raise InputError(f"radius {self.radius:g}: choose between 0 and 0.5, half the box")
        if not 0 <= low <= high < np.inf:
            raise InputError(
                f"speed {low:g} to {high:g}: two finite numbers are wanted, 0 or more, the lower one first"
            )


def features(balls: int = 1) -> tuple[str, ...]:
    """What the columns of a trajectory are: place (of the centre, in boxes) and velocity of each ball."""
    names = ("x", "y", "vx", "vy")
    return names if balls == 1 else tuple(f"{name}{i + 1}" for i in range(balls) for name in names)


def splits(
    balls: int = 1,
    seed: int = 0,
    *,
    train: int = TRAIN,
    test: int = TEST,
    steps: int = STEPS,
    world: World | None = None,
) -> dict[str, Series]:
    """The splits "train" and "test": the first trajectories of one seed and the ones after them."""
    name = "balls" if balls == 1 else f"balls-{balls}"
    x = simulate(train + test, steps, balls, seed, world=world)
    return {
        "train": Series(name, x[:train], features(balls)),
        "test": Series(name, x[train:], features(balls)),
    }


def simulate(
    n: int, steps: int, balls: int = 1, seed: int = 0, *, first: int = 0, world: World | None = None
) -> Float32[np.ndarray, "n t f"]:
    """n trajectories of `steps` states, the start being the first: (n, steps, 4 balls), columns as `features` says.

    Places are uniform in the box (balls do not overlap), speeds uniform in `world.speed`, directions on the circle.
    Trajectory i is a function of (seed, first + i) alone: no other one, and no n, has a part in it. Raises InputError
    where a number makes no sense or the balls do not fit.
    """
    world = world or World()
    for what, value, least in (
        ("n", n, 0),
        ("steps", steps, 1),
        ("balls", balls, 1),
        ("seed", seed, 0),
        ("first", first, 0),
    ):
        if value < least:
            raise InputError(f"{what} {value}: at least {least} is wanted")
    starts = [_start(np.random.default_rng((seed, first + i)), balls, world) for i in range(n)]
    p, v = np.array(starts, np.float64).reshape(n, 2, balls, 2).swapaxes(0, 1)
    return follow(p, v, steps, world)


def follow(
    p: Float64[np.ndarray, "n b 2"], v: Float64[np.ndarray, "n b 2"], steps: int, world: World
) -> Float32[np.ndarray, "n t f"]:
    """The trajectories from places p and velocities v. Raises InputError for a start outside the box or overlapping."""
    n, balls, _ = p.shape
    if not (np.isfinite(v).all() and ((p >= world.radius) & (p <= 1 - world.radius)).all()):
        raise InputError(
            "balls start inside the box, at finite velocities: a centre is closer to a wall than its radius"
        )
    if _overlapping(p, world).any():
        raise InputError("two balls overlap at the start")
    looks = _looks(max(world.speed[1], np.linalg.norm(v, axis=-1).max(initial=0.0)), balls, world)
    out = np.empty((n, steps, balls, 4), np.float32)
    for k in range(steps):
        if k:
            p, v = _step(p, v, looks, world)
        out[:, k, :, :2], out[:, k, :, 2:] = p, v
    return out.reshape(n, steps, 4 * balls)


def fly(
    p: Float64[np.ndarray, "n b 2"], v: Float64[np.ndarray, "n b 2"], t: Float64[np.ndarray, "*k n 1 1"], world: World
) -> tuple[Float64[np.ndarray, "*k n b 2"], Float64[np.ndarray, "*k n b 2"]]:
    """Places and velocities a time t later, by the closed form; walls count, other balls do not."""
    gamma, a = world.drag, world.friction
    speed = np.hypot(v[..., :1], v[..., 1:])
    loss = np.divide(a, speed, out=np.zeros_like(speed), where=speed > 0)  # a / s₀
    rest = stopping_time(speed, world)
    t = np.minimum(t, rest)
    tau, kappa = _tau(t, gamma), _kappa(t, gamma)
    share = np.where(t < rest, np.exp(-gamma * t) - loss * tau, 0.0)  # s(t) / s₀; 1 exactly where nothing slows it
    free = p + v * (tau - loss * kappa)
    place, sign = fold(free, world.radius, 1 - world.radius)
    return place, v * share * sign


def stopping_time(speed: Float64[np.ndarray, "*n"], world: World) -> Float64[np.ndarray, "*n"]:
    """t* = ln(1 + γ s₀/a) / γ; s₀/a without drag, ∞ without friction (0 at rest)."""
    if world.friction == 0:
        return np.where(speed > 0, np.inf, 0.0)
    if world.drag == 0:
        return speed / world.friction
    return np.log1p(world.drag * speed / world.friction) / world.drag


def fold(
    x: Float64[np.ndarray, "*n"], low: float, high: float
) -> tuple[Float64[np.ndarray, "*n"], Float64[np.ndarray, "*n"]]:
    """Where a free path at x is between two mirrors, and the sign (±1) that its velocity has there: a triangle wave."""
    width = high - low
    q = np.mod(x - low, 2 * width)
    back = q > width
    inside = np.where((x >= low) & (x <= high), x, low + np.where(back, 2 * width - q, q))
    return np.clip(inside, low, high), np.where(back, -1.0, 1.0)  # the clip takes off rounding alone


def _tau(t: Float64[np.ndarray, "*n"], gamma: float) -> Float64[np.ndarray, "*n"]:
    return -np.expm1(-gamma * t) / gamma if gamma else t


def _kappa(t: Float64[np.ndarray, "*n"], gamma: float) -> Float64[np.ndarray, "*n"]:
    """(t - τ) / γ; for small γt, where that cancels, its series t²/2 - γt³/6 + γ²t⁴/24 - ..."""
    z = gamma * t
    series = t * t * (1 / 2 - z / 6 + z * z / 24 - z**3 / 120)
    return series if not gamma else np.where(z < 1e-3, series, (t - _tau(t, gamma)) / gamma)


def _step(
    p: Float64[np.ndarray, "n b 2"], v: Float64[np.ndarray, "n b 2"], looks: int, world: World
) -> tuple[Float64[np.ndarray, "n b 2"], Float64[np.ndarray, "n b 2"]]:
    """One time dt later. Trajectories in which two balls may touch go from contact to contact, the others at once."""
    near = _within_reach(p, v, world)
    t = np.full((len(p), 1, 1), world.dt)
    new_p, new_v = fly(p, v, t, world)
    rows = np.flatnonzero(near)
    p, v, left = p[rows], v[rows], t[rows]
    for _ in range(10_000):
        if not len(rows):
            return new_p, new_v
        hit = _first_contact(p, v, left, looks, world)
        p, v = fly(p, v, hit, world)
        v = _exchanged(p, v, world)
        left = left - hit
        done = left[:, 0, 0] <= 0
        new_p[rows[done]], new_v[rows[done]] = p[done], v[done]
        rows, p, v, left = rows[~done], p[~done], v[~done], left[~done]
    raise Fault("balls that met 10,000 times within one step are jammed; take fewer, smaller or slower ones")


def _looks(speed: float, balls: int, world: World) -> int:
    """How often to look for contacts in a step, so that no two balls come closer by more than r/4 from look to look."""
    most = speed * np.sqrt(2 * balls)  # |v_i - v_j|² ≤ 2 Σ |v|², which no collision raises
    return max(1, int(np.ceil(most * world.dt / (world.radius / 4))))


def _first_contact(
    p: Float64[np.ndarray, "n b 2"],
    v: Float64[np.ndarray, "n b 2"],
    left: Float64[np.ndarray, "n 1 1"],
    looks: int,
    world: World,
) -> Float64[np.ndarray, "n 1 1"]:
    """The time of the first contact, or `left` where there is none before: the interval is divided into `looks` parts,
    and the part that ends in the first contact into 8, twelve times over, to 2⁻³⁶ of it.

    A graze that begins and ends within one part (the balls would overlap by less than r/250) is passed over.
    """
    found, low, high = left.copy(), np.zeros_like(left), left
    rows = np.arange(len(p))
    for depth, parts in enumerate((looks, *[8] * 12)):
        t = low + (high - low) * (np.arange(1, parts + 1) / parts)[:, None, None, None]  # (parts, n, 1, 1)
        t[-1] = high  # found before to be in contact, to the last bit
        touch = np.asarray(_meeting(*fly(p, v, t, world), world).any(-1))  # (parts, n)
        if depth == 0:
            rows = np.flatnonzero(touch.any(0))
            p, v, low, t, touch = p[rows], v[rows], low[rows], t[:, rows], touch[:, rows]
        first, every = touch.argmax(0), np.arange(len(rows))
        low, high = np.where((first > 0)[:, None, None], t[first - 1, every], low), t[first, every]
    found[rows] = high
    return found


@cache
def _pairs(balls: int) -> tuple[np.ndarray, np.ndarray]:
    return np.triu_indices(balls, 1)


def _overlapping(p: Float64[np.ndarray, "*n b 2"], world: World) -> Bool[np.ndarray, "*n pairs"]:
    i, j = _pairs(p.shape[-2])
    return np.square(p[..., i, :] - p[..., j, :]).sum(-1) < (2 * world.radius) ** 2


def _meeting(
    p: Float64[np.ndarray, "*n b 2"], v: Float64[np.ndarray, "*n b 2"], world: World
) -> Bool[np.ndarray, "*n pairs"]:
    """Which pairs overlap and come closer still: an exchange ends that, so no pair meets twice at one time."""
    i, j = _pairs(p.shape[-2])
    closing = ((p[..., i, :] - p[..., j, :]) * (v[..., i, :] - v[..., j, :])).sum(-1) < 0
    return _overlapping(p, world) & closing


def _within_reach(
    p: Float64[np.ndarray, "n b 2"], v: Float64[np.ndarray, "n b 2"], world: World
) -> Bool[np.ndarray, " n"]:
    """Whether some pair is close enough to touch within dt."""
    i, j = _pairs(p.shape[1])
    most = np.sqrt(2 * np.square(v).sum((-1, -2)))[:, None]  # bounds |v_i - v_j|, whatever is exchanged
    distance = np.linalg.norm(p[:, i] - p[:, j], axis=-1)
    return (distance < 2 * world.radius + most * world.dt).any(-1)


def _exchanged(
    p: Float64[np.ndarray, "n b 2"], v: Float64[np.ndarray, "n b 2"], world: World
) -> Float64[np.ndarray, "n b 2"]:
    """Velocities after the contacts at places p: v_i += ((v_j - v_i)·n) n, v_j -= the same, n the line of centres."""
    v = v.copy()
    for i, j in zip(*_pairs(p.shape[1]), strict=True):
        line = p[:, i] - p[:, j]
        rate = (line * (v[:, j] - v[:, i])).sum(-1, keepdims=True)  # above 0: they come closer
        square = np.square(line).sum(-1, keepdims=True)
        meet = (rate > 0) & (square < (2 * world.radius) ** 2)
        swap = np.where(meet, rate / np.where(meet, square, 1.0), 0.0) * line
        v[:, i] += swap
        v[:, j] -= swap
    return v


def _start(rng: np.random.Generator, balls: int, world: World) -> tuple[np.ndarray, np.ndarray]:
    """Places and velocities of one trajectory's balls, each (balls, 2)."""
    places = np.empty((balls, 2))
    for k in range(balls):
        for _ in range(1_000):
            places[k] = rng.uniform(world.radius, 1 - world.radius, 2)
            if (np.square(places[:k] - places[k]).sum(-1) >= (2 * world.radius) ** 2).all():
                break
        else:
            raise InputError(f"{balls} balls of radius {world.radius:g} do not fit into the box; take fewer or smaller")
    speed, angle = rng.uniform(*world.speed, (balls, 1)), rng.uniform(0, 2 * np.pi, (balls, 1))
    return places, speed * np.concatenate([np.cos(angle), np.sin(angle)], 1)
