"""The replay buffer: which slots, which labels, and an 8-bit store that does not darken."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from igebm.buffer import Buffer
from igebm.errors import InputError

LABELS = torch.empty(0, dtype=torch.long)


def filled(capacity=20, **options) -> Buffer:
    """Slot i holds the constant image i / 255 under the label i."""
    buffer = Buffer(capacity, (1, 2, 2), LABELS, **options)
    x = (torch.arange(capacity) / 255).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    buffer.write(torch.arange(capacity), x, torch.arange(capacity))
    return buffer


def noise(n):
    return torch.full((n, 1, 2, 2), 0.9), torch.full((n,), -7)


def test_an_empty_buffer_gives_fresh_chains_and_new_slots(generator):
    buffer = Buffer(10, (1, 2, 2), LABELS)
    draw = buffer.draw(*noise(4), restart=0.0, host=generator)
    assert draw.fresh.all() and draw.slots.tolist() == [0, 1, 2, 3]
    assert (draw.x == 0.9).all() and (draw.y == -7).all()


def test_it_grows_by_the_restarts_until_it_is_full(generator):
    buffer = Buffer(10, (1, 2, 2), LABELS)
    sizes = []
    for _ in range(200):
        draw = buffer.draw(*noise(4), restart=0.2, host=generator)
        buffer.write(draw.slots, draw.x, draw.y)
        sizes.append(len(buffer))
    assert sizes[0] == 4 and sizes[-1] == 10 and sizes == sorted(sizes)


def test_continued_chains_bring_their_label_and_go_back_to_their_slot(generator):
    buffer = filled()
    draw = buffer.draw(*noise(20), restart=0.0, host=generator)
    assert not draw.fresh.any()
    assert draw.slots.sort().values.tolist() == list(range(20))  # without replacement: each once
    assert torch.equal(draw.y, draw.slots)
    assert torch.allclose(draw.x[:, 0, 0, 0] * 255, draw.slots.float(), atol=1e-5)
    buffer.write(draw.slots, draw.x, draw.y + 100)
    assert torch.equal(buffer.y, torch.arange(20) + 100)


def test_the_share_of_restarts(generator):
    """5 % of 200 x 128 draws: binomial, within 5 standard deviations."""
    buffer = filled(300)
    fresh = sum(int(buffer.draw(*noise(128), restart=0.05, host=generator).fresh.sum()) for _ in range(200))
    assert abs(fresh - 1280) < 5 * (25_600 * 0.05 * 0.95) ** 0.5


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.floats(0, 1), st.integers(0, 2**20), st.integers(1, 12))
def test_slots_are_distinct_and_never_lost(capacity, n, restart, seed, rounds):
    """Whatever the sizes: slots differ within a draw, lie in the buffer, and a continued chain's slot is the one it
    came from."""
    n = min(n, capacity)
    g = torch.Generator().manual_seed(seed)
    buffer = Buffer(capacity, (1,), LABELS, dtype=torch.float32)
    serial = 0
    for _ in range(rounds):
        before = buffer.x[: len(buffer), 0].clone()
        draw = buffer.draw(torch.full((n, 1), -1.0), torch.full((n,), -1), restart, g)
        assert len(draw.slots.unique()) == n and draw.slots.min() >= 0 and draw.slots.max() < capacity
        old = ~draw.fresh
        assert torch.equal(draw.x[old, 0], before[draw.slots[old]])
        values = torch.arange(serial, serial + n, dtype=torch.float32)
        serial += n
        buffer.write(draw.slots, values[:, None], torch.arange(n))
        assert torch.equal(buffer.x[draw.slots, 0], values)
        assert n <= len(buffer) <= capacity


def test_c25_a_batch_larger_than_the_buffer_is_refused(generator):
    with pytest.raises(InputError, match="batch of 4 chains does not fit a buffer of 1"):
        Buffer(1, (1, 2, 2)).draw(noise(4)[0], None, 0.05)


def test_unbiased_rounding(generator):
    """One round trip moves no value by more than 1/255; after 50 the mean of any, ends included, is what it was (5
    sigma)."""
    values = torch.tensor([0.0, 0.001, 0.3, 0.5, 0.9985, 1.0])
    x = values.reshape(-1, 1).expand(-1, 20_000).contiguous()
    buffer = Buffer(6, (20_000,))
    for trip in range(50):
        buffer.write(torch.arange(6), x, None, generator)
        back = buffer.draw(x, None, 0.0, generator)
        x = back.x[back.slots.argsort()]
        assert trip or ((x - values[:, None]).abs() <= 1 / 255 + 1e-6).all()
    error = 0.5 / 255 / 20_000**0.5
    assert ((x.mean(1) - values).abs() < 5 * error).all()
    assert (x[0] == 0).all() and (x[5] == 1).all()


def test_release_rounding_darkens(generator):
    """floor(255 x) read as (u + U) / 256 loses x/256 + ... each visit: 0.5 falls to 0.4625 in 20 trips (as the
    released code does)."""
    x = torch.full((1, 50_000), 0.5)
    buffer = Buffer(1, (50_000,), policy="ring", rounding="release")
    for _ in range(20):
        buffer.write(torch.tensor([0]), x, None, generator)
        x = buffer.draw(x, None, 0.0, generator, generator).x
    assert x.mean().item() == pytest.approx(0.4625, abs=0.001)


def test_ring_is_first_in_first_out(generator):
    """The released code's policy: a full ring overwrites the oldest."""
    buffer = Buffer(5, (1,), dtype=torch.float32, policy="ring")
    for i in range(4):
        draw = buffer.draw(torch.zeros(2, 1), None, 1.0, generator)
        buffer.write(draw.slots, torch.tensor([[2.0 * i], [2.0 * i + 1]]), None)
    assert buffer.x[:, 0].tolist() == [5.0, 6.0, 7.0, 3.0, 4.0]


def test_state_is_saved_and_restored(generator):
    a, b = filled(), Buffer(20, (1, 2, 2), LABELS)
    b.load_state_dict(a.state_dict())
    assert torch.equal(a.x, b.x) and torch.equal(a.y, b.y) and len(a) == len(b)
    da, db = (c.draw(*noise(8), 0.3, torch.Generator().manual_seed(1)) for c in (a, b))
    assert all(torch.equal(u, v) for u, v in zip(da, db, strict=True))


@pytest.mark.parametrize("other", [Buffer(19, (1, 2, 2), LABELS), Buffer(20, (1, 2, 3), LABELS), Buffer(20, (1, 2, 2))])
def test_a_buffer_of_other_settings_is_refused(other):
    with pytest.raises(InputError, match="the saved buffer's"):
        other.load_state_dict(filled().state_dict())


class Replay(RuleBasedStateMachine):
    """Any order of draws, writes and saves, beside a model of a buffer that is a plain dictionary: slot -> value."""

    @initialize(
        capacity=st.integers(0, 12), seed=st.integers(0, 2**20), policy=st.sampled_from(["slots", "ring"]),
        labelled=st.booleans(),
    )  # fmt: skip
    def make(self, capacity, seed, policy, labelled):
        self.host, self.labelled, self.policy = torch.Generator().manual_seed(seed), labelled, policy
        self.new = lambda: Buffer(capacity, (2,), LABELS if labelled else None, dtype=torch.float32, policy=policy)
        self.buffer, self.held, self.next, self.cursor = self.new(), {}, 0.0, 0

    @rule(n=st.integers(1, 13), restart=st.sampled_from([0.0, 0.3, 1.0]))
    def draw_and_write(self, n, restart):
        fresh = torch.full((n, 2), -1.0), torch.full((n,), -1) if self.labelled else None
        capacity = self.buffer.capacity
        if 0 < capacity < n:
            with pytest.raises(InputError, match="does not fit"):
                self.buffer.draw(*fresh, restart, self.host)
            return
        draw = self.buffer.draw(*fresh, restart, self.host)
        if capacity == 0:
            assert draw.fresh.all() and not len(draw.slots)
        for i, slot in enumerate(draw.slots.tolist()):
            if draw.fresh[i]:
                assert draw.x[i].tolist() == [-1.0, -1.0]
            elif self.policy == "slots":
                assert draw.x[i].tolist() == [self.held[slot]] * 2  # its own slot's, which it will go back to
                assert not self.labelled or draw.y[i] == int(self.held[slot])
            else:
                assert draw.x[i, 0].item() in self.held.values()
        if self.policy == "ring" and capacity:
            assert draw.slots.tolist() == [(self.cursor + i) % capacity for i in range(n)]
            self.cursor = (self.cursor + n) % capacity
        assert len(set(draw.slots.tolist())) == len(draw.slots)  # without replacement
        values = [self.next + i for i in range(n)]
        self.next += n
        y = torch.tensor([int(v) for v in values]) if self.labelled else None
        self.buffer.write(draw.slots, torch.tensor(values)[:, None].expand(n, 2), y)
        self.held |= dict(zip(draw.slots.tolist(), values, strict=False))

    @rule()
    def save_and_restore(self):
        saved, self.buffer = self.buffer.state_dict(), self.new()
        self.buffer.load_state_dict(saved)

    @rule(key=st.sampled_from(["capacity", "cursor", "x", "y"]), wrong=st.sampled_from([-1, 99, "more", "other"]))
    def a_damaged_state_is_refused(self, key, wrong):
        saved = self.buffer.state_dict()
        if key in ("capacity", "cursor"):
            saved[key] = 99 if wrong in ("more", "other") else wrong
        else:
            extra = 13 if wrong in (99, "more") else 0
            saved[key] = torch.zeros(len(saved["x"]) + extra, *((3,) if wrong in (-1, "other") else (2,)))
            if key == "y" and not extra and self.labelled is False:
                saved[key] = torch.zeros(len(saved["x"]))
        with pytest.raises(InputError, match="the saved buffer"):
            self.new().load_state_dict(saved)

    @invariant()
    def holds_what_was_written(self):
        if not hasattr(self, "held"):
            return
        assert len(self.buffer) == len(self.held) and sorted(self.held) == list(range(len(self.held)))
        for slot, value in self.held.items():
            assert self.buffer.x[slot].tolist() == [value, value]
            assert not self.labelled or self.buffer.y[slot] == int(value)


TestReplay = Replay.TestCase
TestReplay.settings = settings(max_examples=40, stateful_step_count=15, deadline=None, derandomize=True)
