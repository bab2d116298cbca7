"""The folded twin: the same energy as an ImageEnergy, in the form that is cheapest to sample.

conv3x3 followed by a 2x2 average pool is exactly one 4x4 convolution of stride 2 with a box-filtered kernel (2.25 times
fewer operations), a 1x1 skip commutes with the pool, W / σ is divided once, and an unconditional gain goes into the
kernel. On a CPU without matrix units its 3x3 convolutions are Winograd's instead (winograd.py).
The algebra is differentiable (`fold`, `bind`, `energy`), so that training can take it too; `Twin` is its frozen copy
in the sampling dtype, refreshed in place, on which chains run.
"""

# pyright: reportPrivateImportUsage=false
import warnings
from collections.abc import Callable, Iterator
from functools import cached_property
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..energy import Energy, energy_and_grad, over
from ..gpu import Recorded, in_place
from ..runtime import Compiled, lack_of_fused
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


def bind(net: ImageEnergy, y: Tensor | None, dtype: torch.dtype | None = None) -> Affines:
    """The gains and biases of `net` for labels y (B,) or latents (B, condition), differentiable in both; in `dtype`
    (None: the parameters')."""
    code = encode(y, net.condition, next(net.parameters()).dtype, net.harmonics)
    blocks = [block for tower in _towers(net) for block in _blocks(tower)]
    gains = [gain for b in blocks for gain in (b.gain1, b.gain2) if gain is not None]
    gain = (a[:, :, None, None] for a in conditioned(gains, code, dtype))
    bias = (
        a[:, :, None, None] for a in conditioned([bias for b in blocks for bias in (b.bias1, b.bias2)], code, dtype)
    )
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
    """E(x) with its gradient worked out in the same call: however E is composed, autograd only multiplies by it. Where
    the gradient is to be differentiated itself, it is worked out once more, on the network as it is now."""

    @staticmethod
    def forward(ctx, x: Tensor, E: "Given") -> Tensor:
        e, g = E.value_and_grad(x)
        ctx.E = E
        ctx.save_for_backward(x, g)
        return e

    @staticmethod
    def backward(ctx, grad_e: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        x, g = ctx.saved_tensors
        if torch.is_grad_enabled():
            again = frozen(ctx.E.twin.net, ctx.E.y)
            (g,) = torch.autograd.grad(again(x).sum(), x, create_graph=True)
        return g * over(grad_e, g), None


MOST_GRAPHS = 4
"""steps whose graphs are kept, each for one shape: it holds the memory of a step"""
BEFORE_RECORDING = 2
"""times that a step is asked for before it is recorded, which takes as long as a dozen: a chain with other settings at
each step is better off kernel by kernel"""


class Twin:
    """The frozen folded copy of `net` that chains run on, in `dtype`, with static storage refreshed in place."""

    def __init__(self, net: ImageEnergy, dtype: torch.dtype = torch.float32, compiled: Compiled = False):
        self.net, self.dtype = net, dtype
        self._conv3x3 = self._winograd_if if compiled == "winograd" else _pooled_if
        with torch.no_grad():
            self.weights: Weights = _map(self._stored, fold(net, self._conv3x3))
        device = next(net.parameters()).device
        self.launches = compiled in ("graphs", "fused") and device.type == "cuda"
        self._plain = compile(self._traced, self._eager) if compiled in (True, "graphs", "fused") else self._eager
        self._fused = _fused() if compiled == "fused" and lack_of_fused(device, dtype) is None else None
        self._packed: Any = None
        self._take_over_at_once = in_place(self._take_over, device) if self.launches else self._take_over
        self._recorded: dict[tuple, Recorded] = {}
        self._asked: dict[tuple, int] = {}

    def refresh(self) -> None:
        """Take over the network's weights as they are now."""
        self._take_over_at_once()
        for recorded in self._recorded.values():
            recorded.bound = None  # gains and biases are to be worked out anew too

    @torch.no_grad()
    def _take_over(self) -> None:
        new = fold(self.net, self._conv3x3)
        torch._foreach_copy_(list(_leaves(self.weights)), list(_leaves(new)))
        if self._fused is not None and self._packed is not None:
            torch._foreach_copy_(list(_leaves(self._packed)), list(_leaves(self._fused.pack(self.weights))))

    def given(self, y: Tensor | None = None, launches: bool = True) -> "Given":
        """E(· | y): labels (B,) or latents (B, condition) bound, their gains worked out once. With `launches` False its
        steps are no CUDA graphs, whatever the twin's are."""
        return Given(self, None if y is None else y.clone(), self.launches and launches)

    def over(self, x: Tensor) -> Energy:
        """E(x | ·) at a fixed x (B, ...) or (1, ...), as a function of labels (B,) or of latents y (B, condition),
        differentiable in them: for chains over the condition, and for trying one label after the other."""
        with torch.no_grad():
            begun = begin(self.net, self.weights, x)
        return lambda y: _finish(self.net, self.weights, bind(self.net, y, self.dtype), begun, x.dtype)

    def value_and_grad(self, affines: Affines, x: Tensor) -> tuple[Tensor, Tensor]:
        """E(x) and ∇ₓE(x), kernel by kernel."""
        if self._fused is not None and x.is_cuda and self._fused.suits(self.net, self.dtype, x.shape):
            if self._packed is None:
                self._packed = _map(torch.Tensor.contiguous, self._fused.pack(self.weights))
                self._take_over_at_once = in_place(self._take_over, x.device)  # these too
            with torch.cuda.device(x.device):
                return self._fused.value_and_grad(self.net, self._packed, affines, x)
        return self._plain(self.weights, affines, x)

    def replay(self, E: "Given", step: Any, f: Callable, x: Tensor, generator: torch.Generator | None) -> Any:
        """f(E, x, generator), which `step` tells from others: one CUDA graph for each shape, from the third time on.
        Gains and biases are worked out by another where E is not the one that it was launched for before."""
        y = E.y
        key = (step, x.shape, x.dtype, None if y is None else (y.shape, y.dtype), generator is None)
        recorded = self._recorded.pop(key, None)
        if recorded is None:
            times = self._asked.pop(key, 0)
            if times < BEFORE_RECORDING:
                self._asked[key] = times + 1
                if len(self._asked) > 100 * MOST_GRAPHS:
                    del self._asked[next(iter(self._asked))]
                return f(E.one_by_one, x, generator)
            if len(self._recorded) == MOST_GRAPHS:
                del self._recorded[next(iter(self._recorded))]
            recorded = self._record(y, f, x, generator)
        self._recorded[key] = recorded  # last: the first is the one that was not asked for for longest
        return recorded(E, x, generator)

    def _record(self, y: Tensor | None, f: Callable, x: Tensor, generator: torch.Generator | None) -> Recorded:
        mine = self.given(y, launches=False)
        leaves = list(_leaves(mine.affines))

        @torch.no_grad()
        def work_out() -> None:
            torch._foreach_copy_(leaves, list(_leaves(bind(self.net, mine.y, self.dtype))))

        bound = in_place(work_out, x.device)

        def to(E: Given) -> None:
            if mine.y is not None and E.y is not None:
                mine.y.copy_(E.y)
            bound()

        return Recorded(lambda x, g: f(mine, x, g), to, x, generator)

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


class Given:
    """E(· | y) on a twin: an energy that works out its value and gradient in one, and a step on it as one launch where
    the twin's steps are CUDA graphs."""

    def __init__(self, twin: Twin, y: Tensor | None, launches: bool):
        self.twin, self.y, self.launches = twin, y, launches
        if not launches:
            _ = self.affines  # now, from the weights as they are; a graph works out its own

    @cached_property
    def one_by_one(self) -> "Given":
        """The same, its steps kernel by kernel."""
        return Given(self.twin, self.y, False)

    @cached_property
    def affines(self) -> Affines:
        with torch.no_grad():
            return bind(self.twin.net, self.y, self.twin.dtype)

    def __call__(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b"]:
        if torch.is_grad_enabled() and x.requires_grad:
            return _ValueAndGrad.apply(x, self)
        with torch.no_grad():
            return energy(self.twin.net, self.twin.weights, self.affines, x)

    def value_and_grad(self, x: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b"], Float[Tensor, "b c h w"]]:
        if self.launches:
            return self.replay("gradient", lambda E, x, _: E.value_and_grad(x), x, None)  # type: ignore[return-value]
        return self.twin.value_and_grad(self.affines, x)

    def replay(
        self, step: Any, f: Callable[..., tuple[Tensor, ...]], x: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, ...]:
        """f(E, x, generator): all of a chain's step at once. `step` tells this f from others."""
        return self.twin.replay(self, step, f, x, generator) if self.launches else f(self, x, generator)


def _fused() -> ModuleType:
    from . import fused  # needs Triton, which torch for CPUs comes without

    return fused


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
    weights, affines = fold(net), bind(net, y, dtype)
    if dtype is not None:
        weights = _map(lambda w: _laid_out(w.to(dtype)), weights)
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
