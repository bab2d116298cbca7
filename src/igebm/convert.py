"""What `igebm convert` does: a checkpoint of the PyTorch port igebm-pytorch (github.com/rosinality/igebm-pytorch) as a
model of ours, with the same energies.

Its network is Fig. 14a with a bias after the first convolution (our setting stem_bias), a skip convolution in every
block that halves the image (skip_down) and one more ReLU before the pooling (head_relu); the rest is ours by other
names. It divides by σ in every forward pass, after one power iteration from the u that it keeps; here that iteration is
done once, so that our energies are those of its first forward pass after loading.

Its files are pickles. They are opened by torch's restricted reader alone, which builds tensors and plain containers and
calls nothing else; a file that asks for more is refused.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from . import model, presets, terminal
from .arguments import Convert
from .data.images import shown
from .errors import InputError, within
from .files import what_is, writable_folder, write_json
from .nets.image import ImageEnergy, smallest_image
from .presets import Preset
from .shapes import Shape

State = dict[str, Tensor]

PORT: dict[str, Any] = dict(
    skip_down=True,
    stem_bias=True,
    head_relu=True,
    init="unit",
    objective="contrastive",
    noise_order="before",
    sigma_clip="release",
    buffer_policy="ring",
    ema=0.0,
)
"""how the port's network, chain and training differ from the paper's, in our settings"""

WRITTEN = (
    "model.safetensors", "preset.json", "checkpoint.pt", "metrics.jsonl", "samples", "samples.png", "README.md",
    "evaluation",
)  # fmt: skip
"""what a run, or igebm push, has in its folder: another model's beside these would be taken for this one's"""

BLOCKS = "1d 1 2d 2 2d 2"
"""the port's only table: Fig. 14a"""

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def convert(asked: Convert) -> Path:
    """`igebm convert`: the folder with model.safetensors and preset.json."""
    within("--step", asked.step, 0, 10**12)
    within("--image-size", asked.image_size, 1, 1024)
    if twice := [name for name in dict.fromkeys(asked.classes) if asked.classes.count(name) > 1]:
        raise InputError(f"--classes names {', '.join(twice)} more than once; give each class a name of its own")
    if taken := next((asked.out / name for name in WRITTEN if what_is(asked.out / name) != "nothing"), None):
        raise InputError(f"{taken} is there, and {asked.out} would hold two models; choose another --out")
    state = opened(asked.file, asked.key)
    blocks = asked.blocks or blocks_of(state)
    preset, shape = described(state, blocks, asked.image_size, tuple(asked.classes), asked.data)
    net = model.build_image_net(preset, shape)
    net.load_state_dict(converted(state, net))
    out = writable_folder(asked.out)
    facts = {"converted": f"a checkpoint of igebm-pytorch, {shown(asked.file.name)}", "data": {"name": asked.data}}
    about = {"settings": presets.to_dict(preset), "facts": facts} | shape.to_dict()
    write_json(out / "preset.json", about)
    model.save(out / "model.safetensors", net, preset, shape, asked.step, facts)
    count = sum(p.numel() for p in net.parameters())
    of = f"{len(shape.classes)} classes" if preset.conditional else "no classes"
    terminal.say(
        f"{count:,} parameters, width {preset.width}, blocks {blocks}, {of}; iteration {asked.step} as --step says"
    )
    terminal.say("as the port has them: stem_bias, skip_down, head_relu; its chain adds noise before the gradient")
    return out


def is_checkpoint(path: Path) -> bool:
    """Whether a file begins as torch.save's do: a zip, or (before torch 1.6) a pickle."""
    try:
        with open(path, "rb") as file:
            return file.read(2).startswith((b"PK", b"\x80"))
    except OSError as error:
        raise InputError(f"{shown(path)} cannot be read: {error.strerror}") from error


def opened(path: Path, key: str | None = None) -> State:
    """The tensors of a checkpoint by the port's names. Raises InputError for whatever is not one."""
    if what_is(path) != "file":
        raise InputError(f"no file {shown(path)}; give a .pt file that igebm-pytorch has written")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a dozen kinds; each means the same here
        if not is_checkpoint(path):
            raise InputError(f"{shown(path)} is no file of torch.save; give a .pt file of igebm-pytorch") from error
        said = str(error)
        more = "Unsupported" in said or "WeightsUnpickler" in said or "weights_only" in said
        why = (
            "it holds more than tensors, and opening it could run what its maker wrote; save model.state_dict() instead"
            if more
            else f"it is no file of torch.save, or damaged ({type(error).__name__})"
        )
        raise InputError(f"{shown(path)} is not opened: {why}") from error
    inside = {"": found} | ({str(k): v for k, v in found.items()} if isinstance(found, dict) else {})
    states = {k: state for k, v in inside.items() if (state := as_state(v)) is not None}
    if key is not None:
        states = {k: state for k, state in states.items() if k == key}
    if not states:
        where = f" under {key!r}" if key is not None else ""
        raise InputError(f"{shown(path)} holds no network of igebm-pytorch{where}: no tensor conv1.weight_orig")
    if len(states) > 1:
        raise InputError(f"{shown(path)} holds several networks; choose by --key {' or '.join(states)}")
    return next(iter(states.values()))


def as_state(value: Any) -> State | None:
    """A state dict of the port, without what DataParallel puts before its names; None for anything else."""
    if not isinstance(value, dict) or not value or not all(isinstance(k, str) for k in value):
        return None
    state = {k.removeprefix("module."): v for k, v in value.items()}
    if not all(isinstance(v, Tensor) for v in state.values()) or "conv1.weight_orig" not in state:
        return None
    return state


def blocks_of(state: State) -> str:
    """Which blocks there are. Whether a block that widens also halves the image leaves no trace in the weights, so that
    only the port's own table is known; another needs --blocks. Raises InputError."""
    width = state["conv1.weight_orig"].shape[0]
    found, n = [], 0
    while (conv := state.get(f"blocks.{n}.conv1.weight_orig")) is not None and conv.dim() == 4:
        found.append(conv.shape[0] / width)
        n += 1
    if found != [multiple for multiple, _ in presets.parse_blocks(BLOCKS)]:
        widths = " ".join(f"{multiple:g}" for multiple in found)
        raise InputError(
            f"its blocks are {widths or 'none'} times {width} wide, not the port's {BLOCKS}: say by --blocks which of "
            f"them halve the image, which the weights do not tell"
        )
    return BLOCKS


def described(state: State, blocks: str, size: int, classes: tuple[str, ...], data: str) -> tuple[Preset, Shape]:
    """The settings of the checkpoint's network, and its images. Raises InputError where they cannot be ours."""
    stem, embedding = state["conv1.weight_orig"], state.get("blocks.0.class_embed.weight")
    if stem.dim() != 4 or stem.shape[1] not in (1, 3):
        raise InputError(f"its first convolution is {tuple(stem.shape)}: not one of images with 1 or 3 channels")
    k = 0 if embedding is None else len(embedding)
    if classes and len(classes) != k:
        raise InputError(f"--classes names {len(classes)}, the checkpoint has {k}")
    names = classes or (CIFAR10 if (k, data) == (10, "cifar10") else tuple(map(str, range(k))))
    settings: dict[str, Any] = PORT | {"data": data, "width": stem.shape[0], "blocks": blocks, "conditional": k > 0}
    preset, shape = Preset(**settings), Shape(stem.shape[1], size, size, names)
    if size < smallest_image(presets.parse_blocks(blocks), preset.stem, preset.scales):
        raise InputError(f"--image-size {size} is too small for the halvings of {blocks}")
    return preset, shape


def converted(state: State, net: ImageEnergy) -> State:
    """`state` by our names, for `net`. Raises InputError where tensors are missing, extra, of other shapes, or not
    finite."""
    state = dict(state)
    ours = net.state_dict()
    made: State = {}
    conditional = net.condition > 0

    def take(name: str, shape: torch.Size | tuple[int, ...]) -> Tensor:
        t = state.pop(name, None)
        if t is None:
            kind = "conditional" if conditional else "unconditional"
            raise InputError(f"the checkpoint lacks {name}, which the port's {kind} network has")
        if not t.is_floating_point() or t.shape != shape:
            raise InputError(f"the checkpoint's {name} is {t.dtype} {tuple(t.shape)}, {tuple(shape)} is wanted")
        if not torch.isfinite(t).all():
            raise InputError(f"the checkpoint's {name} is not finite: the run that wrote it had diverged")
        return t.float()

    def convolution(theirs: str, name: str) -> None:
        W = take(f"{theirs}.weight_orig", ours[f"{name}.weight"].shape)
        u = take(f"{theirs}.weight_u", ours[f"{name}.u"].shape)
        state.pop(f"{theirs}.weight", None)  # W/σ of its last forward pass, which it works out anew
        made[f"{name}.weight"], (made[f"{name}.u"], made[f"{name}.v"]) = W, vectors(W, u)

    convolution("conv1", "towers.0.stem")
    made["towers.0.stem_bias"] = take("conv1.bias", ours["towers.0.stem_bias"].shape)
    for i in range(len(net.towers[0].blocks)):  # type: ignore[arg-type]
        theirs, name = f"blocks.{i}", f"towers.0.blocks.{i}"
        convolution(f"{theirs}.conv1", f"{name}.conv1")
        convolution(f"{theirs}.conv2", f"{name}.conv2")
        if f"{name}.skip.weight" in ours:
            convolution(f"{theirs}.skip.0", f"{name}.skip")
        (c,) = ours[f"{name}.bias1.base"].shape
        if conditional:
            rows = take(f"{theirs}.class_embed.weight", (net.condition, 4 * c))
            for part, a, start in zip(
                ("gain1", "gain2", "bias1", "bias2"), rows.chunk(4, 1), (1, 1, 0, 0), strict=True
            ):
                # a(y) = start + base + W y. The port knows no unlabelled image; here it gets the mean of the classes.
                mean = a.mean(0)
                made[f"{name}.{part}.base"], made[f"{name}.{part}.weight"] = mean - start, a - mean
        else:
            for part in ("gain1", "gain2"):
                made[f"{name}.{part}.base"] = torch.zeros(c)
            for n in (1, 2):
                made[f"{name}.bias{n}.base"] = take(f"{theirs}.conv{n}.bias", (c,))
    for part in ("weight", "bias"):
        made[f"towers.0.head.{part}"] = take(f"linear.{part}", ours[f"towers.0.head.{part}"].shape)
    if state:
        few = ", ".join(sorted(state)[:3]) + (f" and {len(state) - 3} more" if len(state) > 3 else "")
        raise InputError(f"the checkpoint has {few}, which the port's network has not; is it of another network?")
    return made


def vectors(W: Float[Tensor, "o i k k"], u: Float[Tensor, "o"]) -> tuple[Float[Tensor, "o"], Float[Tensor, "n"]]:
    """u and v after the power iteration that the port's next forward pass makes: v ← Wᵀu / ‖Wᵀu‖, u ← Wv / ‖Wv‖.

    Its weights W / σ are then ours. So are those of a block's second convolution, W min(σ, 1) / (σ + 10⁻⁶), but for the
    10⁻⁶: ours are W / max(σ, 1).
    """
    M = W.flatten(1)
    v = F.normalize(M.T @ u, dim=0, eps=1e-30)
    return F.normalize(M @ v, dim=0, eps=1e-30), v
