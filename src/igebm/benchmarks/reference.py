"""What `igebm bench` compares with: Figure 14a and its training written plainly, the way popular PyTorch ports do it.

float32, NCHW, convolution and average pool apart, spectral norm by a power iteration in every forward pass (so in every
Langevin step), `backward()` to all parameters in the chain, the optimiser's clip in a Python loop. Correct, and nothing
more: it serves no other purpose than to be measured against.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Conv(nn.Module):
    """A convolution that normalises its weight each time it is used."""

    u: Tensor

    def __init__(self, c_in: int, c_out: int, kernel: int, zero: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(c_out, c_in, kernel, kernel) * (1e-5 if zero else 0.05))
        self.zero = zero
        self.register_buffer("u", F.normalize(torch.randn(c_out), dim=0))

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight.flatten(1)
        with torch.no_grad():
            v = F.normalize(w.T @ self.u, dim=0)
            self.u = F.normalize(w @ v, dim=0)
        sigma = self.u @ w @ v
        return F.conv2d(
            x, self.weight / (sigma.clamp(min=1) if self.zero else sigma), padding=self.weight.shape[-1] // 2
        )


class Block(nn.Module):
    def __init__(self, c_in: int, c_out: int, down: bool, classes: int):
        super().__init__()
        self.conv1, self.conv2 = Conv(c_in, c_out, 3), Conv(c_out, c_out, 3, zero=True)
        self.skip = Conv(c_in, c_out, 1) if c_in != c_out else None
        self.gain1, self.gain2 = nn.Embedding(classes, c_out), nn.Embedding(classes, c_out)
        self.bias1, self.bias2 = nn.Embedding(classes, c_out), nn.Embedding(classes, c_out)
        self.down = down
        for table, value in ((self.gain1, 1.0), (self.gain2, 1.0), (self.bias1, 0.0), (self.bias2, 0.0)):
            nn.init.constant_(table.weight, value)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.conv1(x)
        h = self.gain1(y)[:, :, None, None] * h + self.bias1(y)[:, :, None, None]
        h = F.leaky_relu(h, 0.2)
        h = self.conv2(h)
        h = self.gain2(y)[:, :, None, None] * h + self.bias2(y)[:, :, None, None]
        h = h + (x if self.skip is None else self.skip(x))
        if self.down:
            h = F.avg_pool2d(h, 2)
        return F.leaky_relu(h, 0.2)


class Figure14a(nn.Module):
    def __init__(self, width: int = 128, classes: int = 10):
        super().__init__()
        w = width
        self.stem = Conv(3, w, 3)
        shape = (
            (w, w, True),
            (w, w, False),
            (w, 2 * w, True),
            (2 * w, 2 * w, False),
            (2 * w, 2 * w, True),
            (2 * w, 2 * w, False),
        )
        self.blocks = nn.ModuleList(Block(i, o, down, classes) for i, o, down in shape)
        self.head = nn.Linear(2 * w, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = F.leaky_relu(self.stem(x), 0.2)
        for block in self.blocks:
            h = block(h, y)
        return self.head(h.sum((2, 3)))[:, 0]


def chain(net: nn.Module, x: Tensor, y: Tensor, steps: int) -> Tensor:
    """The paper's Langevin chain: gradient by `backward`, which fills every parameter's gradient too."""
    x = x.detach().requires_grad_()
    for _ in range(steps):
        net(x, y).sum().backward()
        assert x.grad is not None
        x.data.add_(x.grad.clamp(-0.01, 0.01), alpha=-10.0)
        x.data.add_(torch.randn_like(x), alpha=0.005)
        x.data.clamp_(0, 1)
        x.grad = None
    return x.detach()


def iteration(
    net: nn.Module, optimizer: torch.optim.Optimizer, x_pos: Tensor, x: Tensor, y: Tensor, steps: int
) -> None:
    """A training iteration: chain, contrastive divergence and squares, 3-sigma clip, Adam."""
    x_neg = chain(net, x, y, steps)
    optimizer.zero_grad()
    e_pos, e_neg = net(x_pos, y), net(x_neg, y)
    (e_pos.mean() - e_neg.mean() + e_pos.square().mean() + e_neg.square().mean()).backward()
    for p in net.parameters():
        state = optimizer.state[p]
        if "exp_avg_sq" in state and p.grad is not None:
            bound = 3 * (state["exp_avg_sq"] / (1 - 0.999 ** float(state["step"]))).sqrt() + 0.1
            p.grad.data.copy_(torch.max(torch.min(p.grad, bound), -bound))
    optimizer.step()
