"""Run by test_fused.py in a process of its own: `fused.py interpreted` (Triton's interpreter, on a CPU) or `fused.py
gpu`.

The fused kernels' E(x) and ∇E(x) against the plain network's, each block with its own convolutions, in float64; on a
GPU against those and, as a chain of several steps launched as graphs, against the same kernels launched one by one.
Prints the largest relative deviations.
"""

import json
import os
import sys

interpreted = sys.argv[1] == "interpreted"
if interpreted:
    os.environ["TRITON_INTERPRET"] = "1"

import torch  # noqa: E402

from igebm.energy import energy_and_grad  # noqa: E402
from igebm.nets import fold, fused  # noqa: E402
from igebm.nets.image import ImageEnergy  # noqa: E402
from igebm.samplers import langevin, run  # noqa: E402

device = "cpu" if interpreted else "cuda"
CASES = [
    # blocks, width, channels, size, condition, labels, further settings
    ([(1, True), (1, False)], 64, 3, (8, 8), 3, [0, 2], {}),
    ([(1, True), (2, False), (2, True)], 64, 1, (8, 8), 3, [0, -1, 1], {"stem_bias": True, "head_relu": True}),
    ([(1, True), (2, True)], 64, 3, (16, 16), 0, None, {}),
    ([(2, False), (1, True)], 64, 2, (4, 16), 4, [3], {}),
    ([(1, False), (3, True), (3, False)], 64, 3, (8, 4), 4, None, {}),
]
if not interpreted:
    figure_14a = [(1, True), (1, False), (2, True), (2, False), (2, True), (2, False)]
    CASES += [(figure_14a, 128, 3, (32, 32), 10, [k % 10 for k in range(n)], {}) for n in (1, 50, 128)]
    CASES += [(figure_14a, 256, 3, (64, 64), 10, [1, 2, 3], {})]


def network(blocks, width, channels, condition, settings) -> ImageEnergy:
    net = ImageEnergy(channels, width, blocks, condition, **settings)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.03 * torch.randn_like(p))
    return net.to(device).requires_grad_(False)


def off(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def deviations(blocks, width, channels, size, condition, labels, settings) -> tuple[float, float, float]:
    """Of the energy and of the gradient from the truth, and the latter's as a multiple of the eager network's in the
    same dtype."""
    net = network(blocks, width, channels, condition, settings)
    y = None if labels is None else torch.tensor(labels, device=device)
    x = torch.rand(2 if labels is None else len(labels), channels, *size, device=device)
    dtype = torch.float32 if interpreted else torch.bfloat16
    assert fused.suits(net, torch.bfloat16, x.shape)
    weights, affines = fold._map(lambda t: t.to(dtype), fold.fold(net)), fold.bind(net, y, dtype)
    e, g = fused.value_and_grad(net, fold._map(torch.Tensor.contiguous, fused.pack(weights)), affines, x)
    _, g_eager = energy_and_grad(lambda x: fold.energy(net, weights, affines, x), x)
    exact = net.double()
    e_true, g_true = energy_and_grad(lambda x: exact(x, y), x.double())
    off_g = off(g.double(), g_true)
    return off(e.double(), e_true), off_g, off_g / off(g_eager.double(), g_true)


torch.manual_seed(0)
measured = [deviations(*case) for case in CASES]
found = dict(zip(("energy", "gradient", "as_good"), map(max, zip(*measured, strict=True)), strict=True))
found["cases"] = len(CASES)

if not interpreted:
    net = network(figure_14a, 128, 3, 10, {})
    twin, y = fold.Twin(net, torch.bfloat16, "fused"), torch.arange(8, device=device)
    kernel = langevin(10.0, 0.005, 0.01, (0.0, 1.0))
    ends = []
    for launches in (False, True, True):
        random = torch.Generator(device).manual_seed(3)
        E, other = twin.given(y, launches=launches), twin.given(y.flip(0), launches=launches)
        x = torch.rand(8, 3, 32, 32, device=device, generator=random)
        state, info = run(kernel, E, x, 5, random)
        state, info = run(kernel, other, state, 2, random)  # by the same graph
        ends.append([*state[:1], info.e, info.g, torch.rand(3, device=device, generator=random)])
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(0.9)
    twin.refresh()
    renewed = fold.Twin(net, torch.bfloat16, "fused").given(y, launches=False)
    E = twin.given(y)
    ends += [[E.value_and_grad(x) for _ in range(3)][-1], renewed.value_and_grad(x)]
    found["launched"] = [all(map(torch.equal, *pair)) for pair in (ends[:2], ends[1:3], ends[3:])]
print(json.dumps(found))
