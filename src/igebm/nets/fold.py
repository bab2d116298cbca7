"""The folded twin: the same energy as an ImageEnergy, in the form that is cheapest to sample.

conv3x3 followed by a 2x2 average pool is exactly one 4x4 convolution of stride 2 with a box-filtered kernel (2.25 times
fewer operations), a 1x1 skip commutes with the pool, W / σ is divided once, and an unconditional gain goes into the
kernel. On a CPU without matrix units its 3x3 convolutions are Winograd's instead (winograd.py).
The algebra is differentiable (`fold`, `bind`, `energy`), so that training can take it too; `Twin` is its frozen copy
in the sampling dtype, refreshed in place, on which chains run.
"""

import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..energy import Energy, energy_and_grad
from ..runtime import Compiled
from . import winograd
from .image import ImageEnergy, Tower, encode
from .layers import ResBlock, conditioned


class BlockWeights(NamedTuple):
    conv1: Tensor | winograd.Kernel
    conv2: Tensor | winograd.Kernel
    skip: Tensor | None


class TowerWeights(NamedTuple):
    stem: Tensor
    stem_bias: Tensor | None
    blocks: tuple[BlockWeights, ...]
    head_weight: Tensor
    head_bias: Tensor


class Begun(NamedTuple):
    """A tower as far as no label is asked for: its first block's first convolution, before the gain, and its skip."""

    conv1: Tensor
    skip: Tensor


class Affine(NamedTuple):
    """Gains and biases of one block, each (B or 1, C, 1, 1); a gain that was folded into its kernel is None."""

    gain1: Tensor | None
    bias1: Tensor
    gain2: Tensor | None
    bias2: Tensor


Weights = tuple[TowerWeights, ...]
Affines = tuple[tuple[Affine, ...], ...]


def pooled(w: Float[Tensor, "o i k k"]) -> Float[Tensor, "o i k2 k2"]:
    """The kernel that does `w` and then a 2x2 average pool, at stride 2:

    w'[i, j] = ¼ Σ_{a, b ∈ {0, 1}} w[i - a, j - b]
    """
    w = F.pad(_laid_out(w), (1, 1, 1, 1))  # channels last: sums over rows of channels, not of three numbers
    return (w[..., :-1, :-1] + w[..., 1:, :-1] + w[..., :-1, 1:] + w[..., 1:, 1:]) / 4


def _pooled_if(w: Tensor, down: bool) -> Tensor:
    return pooled(w) if down else w


def fold(net: ImageEnergy, conv3x3: Callable[[Tensor, bool], Tensor | winograd.Kernel] = _pooled_if) -> Weights:
    """The folded weights of `net`, as differentiable functions of its parameters. `conv3x3` gives what a block's kernel
    is kept as, from its weight and whether a pool follows."""
    return tuple(
        TowerWeights(
            tower.stem.normalised(),
            tower.stem_bias,
            tuple(_fold_block(block, net.condition == 0, conv3x3) for block in _blocks(tower)),
            tower.head.weight,
            tower.head.bias,
        )
        for tower in _towers(net)
    )


def _fold_block(block: ResBlock, unconditional: bool, conv3x3: Callable) -> BlockWeights:
    conv1, conv2 = block.conv1.normalised(), block.conv2.normalised()
    if unconditional:
        conv1 = conv1 if block.gain1 is None else conv1 * block.gain1(None).T[..., None, None]
        conv2 = conv2 * block.gain2(None).T[..., None, None]
    skip = None if block.skip is None else block.skip.normalised()
    if skip is not None and skip.shape[-1] > 1:
        skip = _pooled_if(skip, block.down)
    return BlockWeights(conv3x3(conv1, False), conv3x3(conv2, block.down), skip)


def bind(net: ImageEnergy, y: Tensor | None) -> Affines:
    """The gains and biases of `net` for labels y (B,) or latents (B, condition), differentiable in both."""
    code = encode(y, net.condition, next(net.parameters()).dtype, net.harmonics)
    blocks = [block for tower in _towers(net) for block in _blocks(tower)]
    gains = [gain for b in blocks for gain in (b.gain1, b.gain2) if gain is not None]
    gain = (a[:, :, None, None] for a in conditioned(gains, code))
    bias = (a[:, :, None, None] for a in conditioned([bias for b in blocks for bias in (b.bias1, b.bias2)], code))
    folded = net.condition == 0
    return tuple(
        tuple(
            Affine(
                gain1=None if folded or block.gain1 is None else next(gain),
                bias1=next(bias),
                gain2=None if folded else next(gain),
                bias2=next(bias),
            )
            for block in _blocks(tower)
        )
        for tower in _towers(net)
    )


def energy(
    net: ImageEnergy, weights: Weights, affines: Affines, x: Float[Tensor, "b c h w"], again: tuple[int, int] = (0, 0)
) -> Float[Tensor, "b2"]:
    """E(x | y) from folded weights and bound gains, in the weights' dtype; `net` gives the structure alone.

    again = (n, m): the affines are for the first n images m times more, after all of x: (B + m n,). What comes before
    the first gain is worked out once an image.
    """
    if not again[1]:
        return _finish(net, weights, affines, _stems(net, weights, x), x.dtype)
    more = lambda t: torch.cat([t, *[t[: again[0]]] * again[1]])
    return _finish(net, weights, affines, _map(more, begin(net, weights, x)), x.dtype)


def begin(net: ImageEnergy, weights: Weights, x: Float[Tensor, "b c h w"]) -> tuple[Begun | Tensor, ...]:
    """What of E(x | y) is the same for every y."""
    stems = zip(_stems(net, weights, x), _towers(net), weights, strict=True)
    return tuple(_begin(next(_blocks(tower)), w.blocks[0], h) for h, tower, w in stems)


def _stems(net: ImageEnergy, weights: Weights, x: Tensor) -> tuple[Tensor, ...]:
    """Each tower's first activations; the second is of the image at half the size, and so on."""
    found = []
    for s, (tower, w) in enumerate(zip(_towers(net), weights, strict=True)):
        x = F.avg_pool2d(x, 2) if s else x
        h = x.to(w.stem.dtype).contiguous(memory_format=torch.channels_last)
        h = F.conv2d(h, w.stem, w.stem_bias, stride=tower.stem.stride, padding=1)
        found.append(_activate(h, tower.activation))
    return tuple(found)


def _finish(
    net: ImageEnergy, weights: Weights, affines: Affines, begun: tuple[Begun | Tensor, ...], dtype: torch.dtype
) -> Tensor:
    """The blocks, the pooling and the dense layer. The last two run in float32 (or the images' float64): bfloat16 would
    round energies at the third digit."""
    total, exact = None, torch.promote_types(dtype, torch.float32)
    for tower, w, a, h in zip(_towers(net), weights, affines, begun, strict=True):
        for block, block_w, block_a in zip(_blocks(tower), w.blocks, a, strict=True):
            h = _block(block, block_w, block_a, h)
        assert isinstance(h, Tensor)
        if tower.head_relu:
            h = F.relu(h)
        h = h.to(exact).flatten(1) if tower.flat else h.sum((2, 3), dtype=exact)
        e = F.linear(h, w.head_weight.to(exact), w.head_bias.to(exact))[:, 0]
        total = e if total is None else total + e
    assert total is not None
    return total


def _begin(block: ResBlock, w: BlockWeights, x: Tensor) -> Begun | Tensor:
    return x if block.release else Begun(_conv(x, w.conv1), _skip(block, w, x))


def _skip(block: ResBlock, w: BlockWeights, x: Tensor) -> Tensor:
    x = F.avg_pool2d(x, 2) if block.down and (w.skip is None or w.skip.shape[-1] == 1) else x
    if w.skip is None:
        return x
    strided = block.down and w.skip.shape[-1] > 1
    return F.conv2d(x, w.skip, stride=2 if strided else 1, padding=1 if w.skip.shape[-1] > 1 else 0)


def _block(block: ResBlock, w: BlockWeights, a: Affine, x: Tensor | Begun) -> Tensor:
    """ResBlock.forward on folded weights."""
    kept = lambda h: F.dropout(h, block.dropout, training=block.training and block.dropout > 0)
    if isinstance(x, Begun):
        h = kept(_activate(_shifted(x.conv1, a.gain1, a.bias1), block.activation))
        skip = x.skip.expand(len(h), -1, -1, -1)  # one image may be under many labels
        return _modulated(h, w.conv2, a.gain2, a.bias2, block.activation, block.down, skip)
    skip = _skip(block, w, x)
    if block.release:
        h = kept(_activate(_conv(x + a.bias1, w.conv1), block.activation))
        h = _conv(h + a.bias2, w.conv2, block.down)
        return _activate((h if a.gain2 is None else h * a.gain2) + skip, block.activation)
    h = kept(_modulated(x, w.conv1, a.gain1, a.bias1, block.activation))
    return _modulated(h, w.conv2, a.gain2, a.bias2, block.activation, block.down, skip)


def _shifted(h: Tensor, gain: Tensor | None, bias: Tensor) -> Tensor:
    return h + bias if gain is None else torch.addcmul(bias, h, gain)


def _modulated(
    x: Tensor,
    w: Tensor | winograd.Kernel,
    gain: Tensor | None,
    bias: Tensor,
    activation: str,
    down: bool = False,
    skip: Tensor | None = None,
) -> Tensor:
    """activation(gain conv(x) + bias + skip); a folded gain leaves the bias to the convolution. Winograd's does all of
    it in one pass, where gain and bias need no gradient and one image has not many labels."""
    plain = not bias.requires_grad and bias.shape[0] in (1, x.shape[0])
    if isinstance(w, winograd.Kernel) and activation == "leaky-relu" and plain:
        return winograd.conv3x3(x, w, down, gain, bias, skip, slope=0.2)
    h = _conv(x, w, down, bias) if gain is None else _shifted(_conv(x, w, down), gain, bias)
    return _activate(h if skip is None else h + skip, activation)


def _conv(x: Tensor, w: Tensor | winograd.Kernel, down: bool = False, bias: Tensor | None = None) -> Tensor:
    if isinstance(w, winograd.Kernel):
        y = winograd.conv3x3(x, w, down)
        return y if bias is None else y + bias
    return F.conv2d(x, w, None if bias is None else bias.flatten(), stride=2 if down else 1, padding=1)


def _activate(h: Tensor, activation: str) -> Tensor:
    # In place: h is fresh, and the leaky ReLU's gradient needs its output only.
    return F.leaky_relu_(h, 0.2) if activation == "leaky-relu" else F.silu(h)


class _ValueAndGrad(torch.autograd.Function):
    """E(x) with its gradient worked out in the same call: however E is composed, autograd only multiplies by it."""

    @staticmethod
    def forward(ctx, x: Tensor, value_and_grad: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        e, g = value_and_grad(x)
        ctx.save_for_backward(g)
        return e

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_e: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (g,) = ctx.saved_tensors
        return g * grad_e.reshape(-1, *[1] * (g.dim() - 1)), None


class Recorded:
    """E(x) and its gradient as one CUDA graph: a step's hundred small kernels in one launch, which on a GPU costs less
    time than the processor needs to ask for them one by one. Weights are read where they lie, so they may change."""

    def __init__(self, graph: torch.cuda.CUDAGraph, affines: Affines, x: Tensor, e: Tensor, g: Tensor):
        self.graph, self.affines, self.x, self.e, self.g = graph, affines, x, e, g
        self.bound: Affines | None = None

    def __call__(self, affines: Affines, x: Tensor) -> tuple[Tensor, Tensor]:
        self.x.copy_(x)
        if self.bound is not affines:  # a chain keeps its labels for all its steps
            for mine, new in zip(_leaves(self.affines), _leaves(affines), strict=True):
                mine.copy_(new)
            self.bound = affines
        self.graph.replay()
        # The next replay writes to the same place, and a product asks two energies before it uses either.
        return self.e.clone(), self.g.clone()


def record(
    value_and_grad: Callable[[Weights, Affines, Tensor], tuple[Tensor, Tensor]],
    weights: Weights,
    affines: Affines,
    x: Tensor,
) -> Recorded:
    affines, x, graph = _map(torch.Tensor.clone, affines), x.clone(), torch.cuda.CUDAGraph()
    with torch.cuda.device(x.device):
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):  # compile, and let cuDNN choose its algorithms: neither can be recorded
                value_and_grad(weights, affines, x)
        torch.cuda.current_stream().wait_stream(aside)
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            e, g = value_and_grad(weights, affines, x)
    return Recorded(graph, affines, x, e, g)


MOST_GRAPHS = 4
"""shapes whose graphs are kept: each holds the memory of a step"""


class Twin:
    """The frozen folded copy of `net` that chains run on, in `dtype`, with static storage refreshed in place."""

    def __init__(self, net: ImageEnergy, dtype: torch.dtype = torch.float32, compiled: Compiled = False):
        self.net, self.dtype = net, dtype
        self._conv3x3 = self._winograd_if if compiled == "winograd" else _pooled_if
        with torch.no_grad():
            self.weights: Weights = _map(self._stored, fold(net, self._conv3x3))
        traced = compiled in (True, "graphs")
        self._value_and_grad = compile(self._traced, self._eager) if traced else self._eager
        self._recorded: dict[tuple, Recorded] | None = {} if compiled == "graphs" else None

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the network's weights as they are now."""
        for mine, new in zip(_leaves(self.weights), _leaves(fold(self.net, self._conv3x3)), strict=True):
            mine.copy_(new)

    def given(self, y: Tensor | None = None) -> Energy:
        """E(· | y): labels (B,) or latents (B, condition) bound, their gains worked out once."""
        with torch.no_grad():
            affines: Affines = _map(lambda t: t.to(self.dtype), bind(self.net, y))

        def E(x: Tensor) -> Tensor:
            if torch.is_grad_enabled() and x.requires_grad:
                return _ValueAndGrad.apply(x, lambda x: self._launched(affines, x))
            with torch.no_grad():
                return energy(self.net, self.weights, affines, x)

        return E

    def over(self, x: Tensor) -> Energy:
        """E(x | ·) at a fixed x (B, ...) or (1, ...), as a function of labels (B,) or of latents y (B, condition),
        differentiable in them: for chains over the condition, and for trying one label after the other."""
        with torch.no_grad():
            begun = begin(self.net, self.weights, x)
        stopped = lambda y: _map(lambda t: t.to(self.dtype), bind(self.net, y))
        return lambda y: _finish(self.net, self.weights, stopped(y), begun, x.dtype)

    def _launched(self, affines: Affines, x: Tensor) -> tuple[Tensor, Tensor]:
        """E(x) and its gradient: kernel by kernel, or all at once from the CUDA graph of this shape."""
        if self._recorded is None or not x.is_cuda:
            return self._value_and_grad(self.weights, affines, x)
        key = (x.shape, x.dtype, affines[0][0].bias1.shape)
        if key not in self._recorded:
            if len(self._recorded) == MOST_GRAPHS:
                del self._recorded[next(iter(self._recorded))]
            self._recorded[key] = record(self._value_and_grad, self.weights, affines, x)
        return self._recorded[key](affines, x)

    def _eager(self, weights: Weights, affines: Affines, x: Tensor) -> tuple[Tensor, Tensor]:
        return energy_and_grad(lambda x: energy(self.net, weights, affines, x), x)

    def _traced(self, weights: Weights, affines: Affines, x: Tensor) -> tuple[Tensor, Tensor]:
        """The same by torch.func, which the compiler can trace."""

        def total(x: Tensor) -> tuple[Tensor, Tensor]:
            e = energy(self.net, weights, affines, x)
            return e.sum(), e

        g, e = torch.func.grad(total, has_aux=True)(x)
        return e, g

    def _winograd_if(self, w: Tensor, down: bool) -> Tensor | winograd.Kernel:
        # A pool leaves less to be saved: there units for bfloat16 are faster.
        suits = winograd.suits(w, self.dtype) and not (down and self.dtype is torch.bfloat16)
        return winograd.kernel(w, down) if suits else _pooled_if(w, down)

    def _stored(self, w: Any) -> Any:
        return w if isinstance(w, winograd.Kernel) else _laid_out(w.to(self.dtype, copy=True))


def compile(f: Callable[..., Any], eager: Callable[..., Any]) -> Callable[..., Any]:
    """`f` compiled for each shape that it meets, and `eager` for those beyond the number that the compiler keeps."""
    from torch._dynamo.exc import FailOnRecompileLimitHit  # takes seconds, which what stays eager need not wait

    # fullgraph: an energy whose graph breaks would be slower than the eager one.
    compiled = torch.compile(f, fullgraph=True, dynamic=False)

    def call(*args: Any) -> Any:
        try:
            return compiled(*args)
        except FailOnRecompileLimitHit:
            warnings.warn("the compiler keeps no more shapes of batches: those beyond run eagerly", stacklevel=2)
            return eager(*args)

    return call


def attached(
    net: ImageEnergy,
    y: Tensor | None = None,
    dtype: torch.dtype | None = None,
    value: Callable[..., Tensor] = energy,
    again: tuple[int, int] = (0, 0),
) -> Energy:
    """E(· | y) on folded weights that stay functions of the parameters: for chains and losses that gradients flow
    through. The network runs in `dtype` (None: the parameters'), folding and its gradient in the parameters' own;
    `value` is `energy` or its compiled form, and takes `again`."""
    weights, affines = fold(net), bind(net, y)
    if dtype is not None:
        weights, affines = _map(lambda w: _laid_out(w.to(dtype)), weights), _map(lambda a: a.to(dtype), affines)
    return lambda x: value(net, weights, affines, x, again)


def frozen(net: ImageEnergy, y: Tensor | None = None) -> Energy:
    """E_θ̄(· | y): differentiable in x to any order, but not in the parameters (eq. 9)."""
    weights, affines = _map(torch.Tensor.detach, fold(net)), _map(torch.Tensor.detach, bind(net, y))
    return lambda x: energy(net, weights, affines, x)


def _laid_out(w: Tensor) -> Tensor:
    return w.contiguous(memory_format=torch.channels_last) if w.dim() == 4 else w


def _towers(net: ImageEnergy) -> Iterator[Tower]:
    return iter(net.towers)  # type: ignore[return-value]


def _blocks(tower: Tower) -> Iterator[ResBlock]:
    return iter(tower.blocks)  # type: ignore[arg-type]


def _map(f: Callable[[Any], Any], tree: Any) -> Any:
    """`f` on every tensor of nested tuples; a Winograd kernel is kept whole."""
    if isinstance(tree, Tensor | winograd.Kernel):
        return f(tree)
    if tree is None:
        return None
    parts = [_map(f, branch) for branch in tree]
    return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)


def _leaves(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif tree is not None:
        for branch in tree:
            yield from _leaves(branch)
