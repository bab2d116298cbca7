"""What is launched as CUDA graphs, with a stand-in for a graph that does its work again where its results lie: which
steps are recorded, and that none is launched with labels, weights or settings of before. (That graphs do the same:
fused.py and compiled.py, on a GPU.)"""

import pytest
import torch

from igebm import gpu
from igebm.nets.fold import BEFORE_RECORDING, MOST_GRAPHS, Twin
from igebm.nets.image import ImageEnergy
from igebm.samplers import State, langevin, run

X, Y = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2])


@pytest.fixture
def recordings(monkeypatch) -> list:
    """What has been recorded, in turn."""
    found = []

    class Graph:
        def __init__(self, f):
            self.f, self.results = f, [f() for _ in range(4)][-1]
            found.append(self)

        def replay(self) -> None:
            for had, new in zip(self.results or (), self.f() or (), strict=True):
                had.copy_(new)

    def captured(f, device, generator=None):
        graph = Graph(f)
        return graph, graph.results

    monkeypatch.setattr(gpu, "_captured", captured)
    return found


def network() -> ImageEnergy:
    net = ImageEnergy(1, 8, [(1, True), (1, False)], 3)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net.requires_grad_(False)


def launching(twin: Twin) -> Twin:
    twin.launches = True
    return twin


def chain(E, steps: int = 6, step_size: float = 0.1) -> list[torch.Tensor]:
    """Without noise, so that one needs no GPU's random numbers."""
    state, info = run(langevin(step_size, 0.0, 0.01, (0.0, 1.0)), E, X, steps)
    return [state.x, info.e, info.g]


def same(a, b) -> bool:
    return all(map(torch.equal, a, b))


def test_a_step_is_recorded_once_and_follows_labels_and_weights(recordings):
    net = network()
    plain, twin = Twin(net), launching(Twin(net))
    E = twin.given(Y)
    for labels in (Y, Y.flip(0), None, Y):
        assert same(chain(twin.given(labels)), chain(plain.given(labels)))
    assert same(chain(E), chain(plain.given(Y)))
    assert len(recordings) == 2  # with labels, and without
    for p in net.parameters():
        p.mul_(0.8)
    plain.refresh()
    twin.refresh()
    assert same(chain(E), chain(plain.given(Y))) and same(chain(twin.given(Y)), chain(plain.given(Y)))
    assert len(recordings) == 2


def test_labels_that_change_in_place_change_nothing(recordings):
    net = network()
    twin, y = launching(Twin(net)), Y.clone()
    E = twin.given(y)
    y[:] = 0
    assert same(chain(E), chain(Twin(net).given(Y)))


def test_two_energies_in_turn_and_values_that_are_kept(recordings):
    """Each launch writes where the last one did: what was given before stays as it was."""
    net = network()
    plain, twin = Twin(net), launching(Twin(net))
    energies, truths = ([t.given(y) for y in (Y, Y.flip(0))] for t in (twin, plain))
    kernel, kept = langevin(0.1, 0.0), []
    for k in range(8):
        state, info = kernel(energies[k % 2], State(X + 0.01 * k), None)
        kept.append((state.x, info.e, info.g))
    for k, got in enumerate(kept):
        state, info = kernel(truths[k % 2], State(X + 0.01 * k), None)
        assert same(got, (state.x, info.e, info.g))
    assert len(recordings) == 1


def test_a_chain_with_other_settings_at_each_step_records_nothing(recordings):
    """Annealing: kernel by kernel. A setting that comes back is recorded, and the one that is not asked for for longest
    gives way."""
    net = network()
    plain, E = Twin(net).given(Y), launching(Twin(net)).given(Y)
    for k in range(20):
        assert same(chain(E, 1, 0.1 + k), chain(plain, 1, 0.1 + k))
    assert not recordings
    for k in range(MOST_GRAPHS):
        assert same(chain(E, 1 + BEFORE_RECORDING, 100.0 + k), chain(plain, 1 + BEFORE_RECORDING, 100.0 + k))
    assert len(recordings) == MOST_GRAPHS
    chain(E, 1, 100.0)  # asked for again: now the second is the oldest
    chain(E, 1 + BEFORE_RECORDING, 200.0)
    chain(E, 1, 100.0)
    assert len(recordings) == MOST_GRAPHS + 1
    chain(E, 1 + BEFORE_RECORDING, 101.0)
    assert len(recordings) == MOST_GRAPHS + 2


def test_what_is_done_in_place_is_done_once_a_call(recordings):
    """Recording does it a few times over, and puts back what that changed."""
    n = torch.zeros(2)

    def count():
        n.add_(1)

    again = gpu.in_place(count, torch.device("cuda"), changed=[n])
    for k in range(1, 4):
        again()
        assert n.tolist() == [k, k]
    assert len(recordings) == 1
    assert gpu.in_place(count, torch.device("cpu")) is count
