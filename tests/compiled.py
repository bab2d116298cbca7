"""Run by test_runtime.py in a process without type checks, which the compiler cannot trace: `compiled.py DEVICE DTYPE
MODE`, MODE on or graphs.

A compiled twin against the eager float32 one on the CPU, over other labels and other weights, in a product; prints the
largest deviations of energies and gradients, relative to the largest values, and the number of graphs compiled. Then
the compiled update: the deviation of its weight gradient from the plain network's, and its graphs; and what a batch of
yet another size gives where the compiler keeps no more.
"""

import json
import sys

import torch
from torch._dynamo.utils import counters

from igebm.compose import product, tempered
from igebm.energy import energy_and_grad
from igebm.nets.bound import updated
from igebm.nets.fold import Twin
from igebm.nets.image import ImageEnergy

device, dtype = sys.argv[1], {"float32": torch.float32, "bfloat16": torch.bfloat16}[sys.argv[2]]
torch.manual_seed(0)
net = ImageEnergy(1, 8, [(1, True), (2, False)], 3)
with torch.no_grad():
    for p in net.parameters():
        p.add_(0.1 * torch.randn_like(p))
other = ImageEnergy(1, 8, [(1, True), (2, False)], 3).to(device)
mode = "graphs" if sys.argv[3] == "graphs" else True
x, eager, compiled = torch.rand(4, 1, 8, 8), Twin(net), Twin(other, dtype, compiled=mode)
off_e = off_g = 0.0
for labels in ([0, 1, 2, -1], [2, 2, 2, 2], [0, 0, 1, 1]):
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(1.05)
    other.load_state_dict(net.state_dict())
    eager.refresh()
    compiled.refresh()
    y = torch.tensor(labels)
    # Both energies of a product are asked before either is used.
    both = lambda twin, y: product(twin.given(y), tempered(twin.given(y.flip(0)), 0.5))
    e, g = energy_and_grad(both(eager, y), x)
    e2, g2 = energy_and_grad(both(compiled, y.to(device)), x.to(device))
    off_e = max(off_e, ((e2.cpu() - e).abs().max() / e.abs().max()).item())
    off_g = max(off_g, ((g2.cpu() - g).norm() / g.norm()).item())
found = {"energy": off_e, "gradient": off_g, "graphs": counters["stats"]["unique_graphs"]}

counters.clear()
update, off_w = updated(other, dtype, compiled=True), 0.0
contrast = lambda e: e[:2].mean() - e[2:].mean() + 0.1 * e.square().mean()
for labels in ([0, 1, 2, -1], [2, 2, 0, 1]):
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(0.95)
    other.load_state_dict(net.state_dict())
    for more in (0, 2):  # alone, and with the first image under two further labels
        y, x_all = torch.tensor(labels + [1, 0][:more]), torch.cat([x, *[x[:1]] * more])
        want = torch.autograd.grad(contrast(net(x_all, y)), list(net.parameters()))
        got = torch.autograd.grad(contrast(update(y.to(device), (1, more))(x.to(device))), list(other.parameters()))
        want, got = (torch.cat([g.cpu().flatten() for g in gradients]) for gradients in (want, got))
        off_w = max(off_w, ((got - want).norm() / want.norm()).item())

# One shape more than the compiler keeps: eagerly, and no end of the chain.
compiled.refresh()
few, wanted = (x[:3].to(device), y[:3].to(device)), net(x[:3], y[:3])
with torch._dynamo.config.patch(recompile_limit=1):
    beyond = update(few[1])(few[0]), energy_and_grad(compiled.given(few[1]), few[0])[0]
found["beyond"] = max(((e.detach().cpu() - wanted).abs().max() / wanted.abs().max()).item() for e in beyond)
print(json.dumps(found | {"weights": off_w, "weights_graphs": counters["stats"]["unique_graphs"]}))
