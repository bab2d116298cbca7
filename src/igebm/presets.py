"""Every setting of a run, and the table of named settings. Plain data: no torch, so that the command line answers at
once.

The paper is Du & Mordatch, arXiv:1903.08689v1; "released" is what its authors' released code does where the paper says
otherwise. A preset is a starting point: any field is a flag of `igebm train`.
"""

import dataclasses
import math
import reprlib
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from .errors import InputError, unknown


@dataclass(frozen=True)
class Preset:
    """All settings of one run; the defaults are the paper's for conditional CIFAR-10 (section 8.2 and Fig. 14a)."""

    # Data
    data: str = "cifar10"
    """data set: a name of `igebm data list`, hf:owner/name, a folder of images, or an .npz;
    dsprites-scale:without:scale=0.5..0.7,x=0..0.6 holds combinations of a sprite's factors out"""
    image_size: int = 0
    """height and width in pixels; 0: as the data are"""
    channels: int = 0
    """1 or 3; 0: as the data are"""
    conditional: bool = True
    """E(x | label) instead of E(x)"""
    flip: bool = False
    """mirror each training image with probability 1/2"""
    crop: int = 0
    """shift each training image by up to this many pixels"""

    past: int = 3
    """of a time series: states that condition the next one"""

    # Network (Fig. 14)
    network: Literal["image", "trajectory"] = "image"
    """image: Fig. 14a and 14b, by --blocks; trajectory: Fig. 14c, for time series"""
    width: int = 128
    """channels of the first stage"""
    blocks: str = "1d 1 2d 2 2d 2"
    """residual blocks: channels in multiples of the width, d = halve the image. Fig. 14a: 1d 1 2d 2 2d 2; 14b: 1d 1
    1 2d 2 2 2d 2 2"""
    stem: Literal["3x3", "4x4/2"] = "3x3"
    """first convolution; 4x4/2 halves the image at once, for small machines"""
    activation: Literal["leaky-relu", "swish"] = "leaky-relu"
    modulation: Literal["paper", "release"] = "paper"
    """paper: gain and bias after both convs of a block; release: bias before them, gain after the second alone"""
    skip_kernel: Literal[1, 3] = 1
    """kernel of the skip convolution; released code: 3"""
    skip_down: bool = False
    """a skip convolution in blocks that halve the image without widening, too (igebm-pytorch)"""
    stem_bias: bool = False
    """a bias after the first convolution (igebm-pytorch)"""
    head_relu: bool = False
    """one more ReLU before the sum pooling (released code)"""
    pooling: Literal["sum", "none"] = "sum"
    """before the dense layer: the sum over the image; none: a weight for each place (the released code's sprites)"""
    harmonics: int = 1
    """of an angle as the condition: cos and sin of the angle and of its multiples up to this one (a square looks alike
    each quarter turn: 4); 1: the angle alone, as in the paper"""
    dropout: float = 0.0
    """after each block's first activation, in the chain too (released large net: 0.5)"""
    scales: int = 1
    """energies at full, half, quarter size, ... summed (later work: 3)"""
    spectral: bool = True
    """spectral normalisation of every convolution"""
    init: Literal["he", "unit"] = "he"
    """first weights N(0, 2/fan-in), or N(0, 1) as in the released code"""

    # Negatives (eqs. 4, 5)
    sampler: Literal["langevin", "mppi"] = "langevin"
    """Langevin dynamics (eq. 4), or MPPI, which needs no gradient (eq. 5)"""
    chain_steps: int = 60
    """K, MCMC steps for each training iteration"""
    step_size: float = 10.0
    """what multiplies the gradient in a Langevin step"""
    noise: float = 0.005
    """standard deviation of the noise of a Langevin step, in units of x"""
    clip: float = 0.01
    """bound of each entry of the chain's gradient; 0: none"""
    noise_order: Literal["after", "before"] = "after"
    """noise after the gradient step (Algorithm 1), or before the gradient is taken (released code)"""
    candidates: int = 5
    """MPPI: candidates of a step"""
    temperature: float = 1.0
    """MPPI: T of the candidates' weights softmax(-E / T)"""
    start: Literal["noise", "last"] = "noise"
    """where a fresh chain starts: noise, or (time series) the last state of the past"""
    max_chain_steps: int = 0
    """raise K by 10 up to this while E(x-) stays far above E(x+) (paper, 8.7); 0: never"""
    raise_gap: float = 0.5
    """how far above counts as far, in units of E"""

    latent_steps: int = 0
    """chain steps over the latents of each sample, after those over its image, as `igebm infer` takes them: latent
    sampling in the proposal (section 6); 0: samples keep the latents they were started with"""

    # Replay buffer
    buffer_size: int = 10_000
    """samples it holds; 0: none, every chain starts afresh"""
    restart: float = 0.05
    """share of chains that start from uniform noise"""
    buffer_fill: float = 0.05
    """at least this share while the buffer is not full: it grows by the fresh chains"""
    buffer_policy: Literal["slots", "ring"] = "slots"
    """slots: drawn without replacement, written back to the drawn slots; ring: with replacement, first in first out
    (released)"""
    buffer_labels: Literal["stored", "batch"] = "stored"
    """labels of continued chains: their own, or the new batch's (released code)"""
    buffer_rounding: Literal["unbiased", "release"] = "unbiased"
    """8-bit storage: stochastic rounding, or floor(255 x) / 256, which darkens (released code)"""
    buffer_augment: bool = False
    """augment continued chains' starts: crop and resize, mirror, colour, blur (later work)"""

    # Objective
    objective: Literal["maximum-likelihood", "contrastive", "log-partition", "softplus", "squared-error"] = (
        "maximum-likelihood"
    )
    """eq. 8; eq. 3 (released code); eq. 7; softplus of pairs; squared-error: no energy but a plain predictor of the
    next state (time series), to compare with"""
    alpha: float = 1.0
    """weight of the energies' squares (eq. 10)"""
    kl: Literal["none", "last", "all"] = "none"
    """L_KL (eq. 9) through no step of the chain, its last, or all"""
    kl_weight: float = 1.0
    label_weight: float = 0.0
    """weight of -log p(y | x) of the data, p(y | x) ~ exp(-E(x | y) / T) over the label and --label-candidates others
    (later work); 0: none"""
    label_temperature: float = 1.0
    """T of p(y | x): at 1 energies must differ by more than spectral normalisation and L_reg let them"""
    label_candidates: int = 2
    """other labels, or latents drawn from their ranges, that an image might have had instead"""

    # Optimiser
    batch: int = 128
    """images of each kind, data and samples"""
    accumulate: int = 1
    """parts in which a batch is worked through, their gradients added up: less memory, and the same update (but the
    softmax of eq. 8 is over each part)"""
    lr: float = 1e-4
    warmup: int = 0
    """iterations over which the learning rate rises to lr"""
    beta1: float = 0.0
    beta2: float = 0.999
    sigma_clip: Literal["paper", "release", "none"] = "paper"
    """bound of each gradient entry: 3 sqrt(second moment); the same + 0.1 (released code); none"""
    ema: float = 0.999
    """decay of the averaged weights that are saved for use"""

    # Run
    steps: int = 100_000
    """training iterations, in total"""
    minutes: float = 0.0
    """stop after this much time; 0: no limit"""
    seed: int = 0
    log_every: int = 10
    """iterations between lines of metrics.jsonl"""
    grid_every: int = 500
    """iterations between sample grids"""
    save_every: int = 500
    """iterations between checkpoints"""
    snapshot_every: int = 2_500
    """iterations between snapshots of the averaged weights, which are all kept but for what a rollback undoes"""
    on_divergence: Literal["rollback", "stop"] = "rollback"
    """go back to the last good checkpoint with a new seed (three times at most), or stop"""
    gap_limit: float = 25.0
    """an energy gap beyond this, either way, for 20 iterations is divergence; 0: however wide it is"""

    # Sampling from a finished model
    sample_steps: int = 600
    """chain steps of `igebm sample` from noise"""

    def __post_init__(self) -> None:
        """Check what is said: every number in its range, every choice on its list. Raises InputError."""
        for name, kind in get_type_hints(Preset).items():
            value, choices = getattr(self, name), get_args(kind) if get_origin(kind) is Literal else None
            if isinstance(value, int) and abs(value) >= 2**63:  # too long to be shown, or to be a float
                raise InputError(f"{flag(name)}: a number this large is no setting")
            got = f"{flag(name)} {reprlib.repr(value)}"
            if choices and not any(value == c and type(value) is type(c) for c in choices):
                raise InputError(f"{got}: choose {' or '.join(str(c) for c in choices)}")
            if kind in (int, float) and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise InputError(f"{got}: a number is wanted")
            wanted = {int: int, bool: bool, str: str}.get(kind)
            if wanted is not None and not isinstance(value, wanted):
                raise InputError(f"{got}: a {wanted.__name__} is wanted")
            if kind in (int, float) and not math.isfinite(value):
                raise InputError(f"{got}: a finite number is wanted")
            low, high = RANGES.get(name, (-math.inf, math.inf))
            if name in RANGES and not low <= value <= high:
                choice = f"choose between {low:g} and {high:g}" if math.isfinite(high) else f"give {low:g} or more"
                raise InputError(f"{got}: {choice}")
        parse_blocks(self.blocks)
        if self.channels not in (0, 1, 3):
            raise InputError(f"--channels {self.channels}: choose 1 or 3 (0: as the data are)")


@dataclass(frozen=True)
class Machine:
    """Where a run computes; "auto" is found out by a short trial (runtime.py)."""

    device: str = "auto"
    """cpu, cuda or cuda:N"""
    dtype: str = "auto"
    """of the chains: float32 or bfloat16; their states, the weights and the optimiser's sums are float32 in any case"""
    compile: str = "quick"
    """on: compile the chain's step, for a minute once, which long chains of large models pay back; graphs: launch it as
    one CUDA graph too; fused: that by kernels of its own, on Hopper; winograd: a CPU's 3x3 convolutions with
    a quarter of the multiplications, by gcc in a second; quick: that where it is faster (not for bfloat16 with AMX),
    else off; auto: as training does"""
    threads: int = 0
    """CPU threads; 0: as many as there are cores"""


@dataclass(frozen=True)
class Trainer(Machine):
    """A machine that also updates weights."""

    compile: str = "auto"
    """on: compile the chain's step and the update, for a minute once; graphs: launch the step as one CUDA graph too;
    fused: that by kernels of its own, in bfloat16 on Hopper; winograd: a CPU's 3x3 convolutions with a
    quarter of the multiplications, by gcc in a second; off; quick: winograd or off. auto: fused or graphs on a GPU, on
    for bfloat16 with AMX, else winograd"""
    update_dtype: str = "auto"
    """of the update's forward and backward pass: float32 or bfloat16; auto: as the chains'"""


@dataclass(frozen=True)
class Sampler:
    """A chain's settings that differ from the model's own."""

    step_size: float | None = None
    """what multiplies the gradient; default: the model's"""
    noise: float | None = None
    """standard deviation of the noise; default: the model's"""
    clip: float | None = None
    """bound of each entry of the chain's gradient (0: none); default: the model's"""


RANGES: dict[str, tuple[float, float]] = {
    "image_size": (0, 1024),
    "crop": (0, 64),
    "width": (1, 4096),
    "dropout": (0, 0.95),
    "scales": (1, 4),
    "harmonics": (1, 64),
    "chain_steps": (1, 100_000),
    "step_size": (0, math.inf),
    "noise": (0, math.inf),
    "clip": (0, math.inf),
    "max_chain_steps": (0, 100_000),
    "buffer_size": (0, 100_000_000),
    "past": (1, 10_000),
    "candidates": (1, 100_000),
    "latent_steps": (0, 100_000),
    "temperature": (1e-12, 1e12),
    "restart": (0, 1),
    "buffer_fill": (0, 1),
    "alpha": (0, math.inf),
    "kl_weight": (0, math.inf),
    "label_weight": (0, math.inf),
    "label_temperature": (1e-12, 1e12),
    "label_candidates": (1, 10_000),
    "batch": (1, 1_000_000),
    "accumulate": (1, 10**6),
    "lr": (0, 10),
    "warmup": (0, 10_000_000),
    "beta1": (0, 0.999999),
    "beta2": (0, 0.999999),
    "ema": (0, 0.999999),
    "steps": (0, 10**12),
    "minutes": (0, 10**7),
    "seed": (0, 2**31 - 1),
    "log_every": (1, 10**9),
    "grid_every": (1, 10**9),
    "save_every": (1, 10**9),
    "snapshot_every": (1, 10**9),
    "gap_limit": (0, math.inf),
    "sample_steps": (0, 10**7),
}


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def checked(preset: Preset) -> Preset:
    """The preset, its settings checked against each other (each by itself is checked when it is made). Raises
    InputError."""
    p = preset
    if 0 < p.buffer_size < p.batch:
        raise InputError(
            f"--buffer-size {p.buffer_size} is smaller than --batch {p.batch}; give at least {p.batch}, or 0 for none"
        )
    if p.accumulate > p.batch:
        raise InputError(f"--accumulate {p.accumulate}: a batch of {p.batch} has no more than {p.batch} parts")
    series = p.network == "trajectory"
    if not series and (p.objective == "squared-error" or p.start == "last"):
        raise InputError("--objective squared-error and --start last are for time series (--network trajectory)")
    if series and (p.buffer_size or p.buffer_augment or p.flip or p.crop):
        raise InputError("--network trajectory takes no replay buffer and no flips or crops; give --buffer-size 0")
    if p.max_chain_steps and p.max_chain_steps < p.chain_steps:
        raise InputError(f"--max-chain-steps {p.max_chain_steps} is below --chain-steps {p.chain_steps}")
    return p


_CHAIN = "sampler chain_steps max_chain_steps alpha kl label_weight latent_steps start gap_limit sample_steps"
_BUFFER = "restart buffer_fill buffer_policy buffer_labels buffer_rounding buffer_augment"
_OF_IMAGES = (
    "image_size channels flip crop conditional blocks stem activation modulation skip_kernel skip_down stem_bias "
    "head_relu pooling harmonics dropout scales spectral init latent_steps label_weight buffer_size"
)


def idle(p: Preset) -> dict[str, str]:
    """The settings that change nothing where the others are as they are, by name, each with what keeps it so."""
    rules = (
        (p.network == "trajectory", _OF_IMAGES, "--network trajectory"),
        (p.network == "image", "past start", "--network image"),
        (p.objective == "squared-error", _CHAIN, "--objective squared-error"),
        (p.sampler == "mppi", "step_size clip noise_order", "--sampler mppi"),
        (p.sampler == "langevin", "candidates temperature", "--sampler langevin"),
        (not p.max_chain_steps, "raise_gap", "--max-chain-steps 0"),
        (not p.buffer_size, _BUFFER, "--buffer-size 0"),
        (p.kl == "none", "kl_weight", "--kl none"),
        (not p.label_weight, "label_temperature label_candidates", "--label-weight 0"),
    )
    return {name: why for so, names, why in reversed(rules) if so for name in names.split()}


_MULTIPLES = {str(n) for n in range(1, 65)}


def parse_blocks(text: str) -> list[tuple[int, bool]]:
    """ "1d 2" -> [(1, True), (2, False)]: channels in multiples of the width, and whether the block halves the
    image."""
    blocks = [(word.removesuffix("d"), word.endswith("d")) for word in text.split()]
    if not 1 <= len(blocks) <= 100 or not all(n in _MULTIPLES for n, _ in blocks):
        raise InputError(
            f"--blocks {reprlib.repr(text)}: give words such as '1d 1 2d 2' (multiples of the width from 1 to 64, d = "
            "halve the image)"
        )
    return [(int(n), down) for n, down in blocks]


@dataclass(frozen=True)
class Entry:
    """A row of the table: the settings and where in the paper they belong."""

    source: str
    preset: Preset
    note: str = ""


_RELEASE: dict[str, Any] = dict(
    objective="contrastive",
    lr=3e-4,
    noise_order="before",
    sigma_clip="release",
    skip_kernel=3,
    modulation="release",
    head_relu=True,
    init="unit",
    buffer_policy="ring",
    buffer_labels="batch",
    buffer_rounding="release",
    ema=0.0,
)
"""What the released code does differently everywhere (its README's commands)."""

_COND = Preset()
_UNCOND = replace(_COND, conditional=False, blocks="1d 1 1 2d 2 2 2d 2 2")
_IMAGENET = replace(_UNCOND, data="imagenet32")

_BALLS = Preset(
    data="balls",
    network="trajectory",
    spectral=False,
    chain_steps=20,
    step_size=1.0,
    noise=0.005,
    clip=0.0,
    start="noise",
    buffer_size=0,
    kl="all",
    objective="contrastive",
    batch=256,
    lr=1e-3,
    steps=5_000,
    grid_every=10**9,
    sample_steps=20,
)
"""Section 5: no buffer, no spectral norm, L_KL through the whole chain; noise in standard deviations of the data. The
paper is silent on step and start: from the last state, which 98 of 100 next states hardly differ from, nothing is
learned beyond it; without L_KL chains from noise end ever farther from the data. MPPI's noise is how far 30 steps can
go (0.15 is some 5 standard deviations), and what is left of it at the end. Eq. 3 at lr 1e-3, in minutes; the paper has
eq. 8 at 1e-4."""

_DSPRITES = Preset(
    data="dsprites-scale",
    image_size=32,
    width=32,
    stem="4x4/2",
    blocks="1d 2d 2d",
    chain_steps=20,
    step_size=20.0,
    noise=0.01,
    clip=0.0,
    sigma_clip="none",
    batch=32,
    buffer_size=1_000,
    restart=0.2,
    objective="contrastive",
    label_weight=1.0,
    label_temperature=0.05,
    lr=1e-3,
    ema=0.995,
    steps=1_000,
    grid_every=100,
    save_every=250,
    snapshot_every=250,
    gap_limit=0.3,
    sample_steps=400,
)
"""Section 6, on two cores: a small Fig. 14a at half the data's size. Black and white needs larger steps than the
paper's 10 with a clip, at which chains stay in grey. Contrast alone teaches what a condition says in many thousands of
iterations; with the posterior of the data it is learned in hundreds, unless weight gradients are clipped at 3σ, which
holds it at what a sprite's size tells. In the end energies sharpen beyond what chains of this step can follow: the gap
leaves zero for good, which `gap_limit` takes for divergence; `steps` ends before that (seed 0)."""

PRESETS: dict[str, Entry] = {
    "digits": Entry(
        "the default: no figure of the paper",
        replace(
            _COND,
            data="digits",
            width=32,
            blocks="1d 2d",
            chain_steps=20,
            batch=64,
            buffer_size=4_000,
            lr=6e-4,
            ema=0.99,
            steps=1_000,
            grid_every=100,
            save_every=250,
            snapshot_every=500,
            sample_steps=400,
        ),
        "8x8 handwritten digits on two cores in two minutes",
    ),
    "cifar10-cond": Entry("Fig. 14a; Table 3b, Figs. 2-5", _COND, "paper: 74,700 iterations in the released model"),
    "cifar10-cond-release": Entry("Fig. 14a as released", replace(_COND, **_RELEASE)),
    "cifar10-uncond": Entry(
        "Fig. 14b; Table 3b, Figs. 2, 4", _UNCOND, "paper: 121,200 iterations in the released model"
    ),
    "cifar10-uncond-release": Entry(
        "Fig. 14b as released (512 channels, dropout in the chain)",
        replace(_UNCOND, **_RELEASE, blocks="1d 1 1 2d 2 2 4d 4 4", dropout=0.5),
    ),
    "imagenet32": Entry("Fig. 14b; Table 3b, Fig. 3", _IMAGENET),
    "imagenet32-release": Entry(
        "Fig. 14b as released (256 to 1,024 channels, conditional, batch 32)",
        replace(_IMAGENET, **_RELEASE, conditional=True, width=256, blocks="1d 1 1 2d 2 2 4d 4 4", batch=32),
        "step 10 as its README means; typed as it stands there the flag is not read and 1 is used",
    ),
    "cifar10-cond-small": Entry(
        "a smaller Fig. 14a on images halved at once, with the posterior of the labels: no figure of the paper",
        replace(
            _COND,
            width=64,
            stem="4x4/2",
            blocks="1d 1 2d 2",
            chain_steps=20,
            batch=64,
            buffer_size=1_500,
            label_weight=0.2,  # 4 T: at T it pulls on energies as hard as eq. 3 does, and labels are learned later
            label_temperature=0.05,
            lr=2e-4,
            ema=0.99,
            steps=10_000,
            grid_every=100,
            save_every=100,
            snapshot_every=500,
            sample_steps=400,
        ),
        "two cores, hours",
    ),
    "balls-langevin": Entry("Fig. 8, EBM with Langevin", _BALLS, "eq. 3 and lr 1e-3; paper: eq. 8, 1e-4"),
    "balls-mppi": Entry(
        "Fig. 8, EBM with MPPI",
        replace(_BALLS, sampler="mppi", chain_steps=30, noise=0.15, temperature=0.03),
        "eq. 3 and lr 1e-3; paper: eq. 8, 1e-4",
    ),
    "balls-feedforward": Entry(
        "Fig. 8, feed-forward", replace(_BALLS, objective="squared-error", kl="none"), "lr 1e-3; paper: 1e-4"
    ),
    "dsprites-scale": Entry("Fig. 9", _DSPRITES),
    "dsprites-position": Entry(
        "Fig. 9",
        replace(
            _DSPRITES,
            data="dsprites-position",
            pooling="none",
            blocks="1d 2d",
            activation="swish",
            step_size=100.0,
            sigma_clip="paper",
            label_weight=0.05,
            lr=6e-4,
            steps=2_000,
        ),
    ),
    "dsprites-rotation": Entry(
        "Fig. 9",
        replace(_DSPRITES, data="dsprites-rotation", harmonics=4, label_weight=0.5, lr=6e-4, steps=1_500),
    ),
    "dsprites-shape": Entry("Fig. 9", replace(_DSPRITES, data="dsprites-shape", ema=0.99, steps=4_500)),
    "cifar10-cond-modern": Entry(
        "Fig. 14a with what later work found better (arXiv:2012.01316)",
        replace(
            _COND,
            activation="swish",
            scales=3,
            chain_steps=40,
            step_size=100.0,
            noise=0.001,
            clip=0.0,
            restart=0.001,
            buffer_augment=True,
            kl="last",
            objective="contrastive",
            flip=True,
            lr=2e-4,
            ema=0.99,
            warmup=1_000,
        ),
    ),
}
DEFAULT = "digits"


def entry(name: str) -> Entry:
    """The table's row of that name. Raises InputError with the nearest names."""
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return PRESETS[name]


def named(name: str) -> Preset:
    """The preset of that name. Raises InputError with the nearest names."""
    return entry(name).preset


def from_dict(values: Any) -> Preset:
    """A Preset from the JSON of a run or a model. Raises InputError for fields it does not know, or of another type."""
    if not isinstance(values, dict):
        raise InputError(f"settings must be a JSON object, got {type(values).__name__}")
    known = {f.name for f in dataclasses.fields(Preset)}
    strange = sorted(reprlib.repr(name) for name in set(values) - known)
    if strange:
        raise InputError(f"unknown settings {', '.join(strange[:5])}; was this written by a newer igebm?")
    return Preset(**values)


def stepped(preset: Preset, sampler: Sampler) -> Preset:
    """The preset with what `sampler` says otherwise of its chain. Raises InputError for what is no such number, and for
    what MPPI's chains have no use for."""
    names = [field.name for field in dataclasses.fields(Sampler)]  # an experiment's options are more
    said = {name: getattr(sampler, name) for name in names if getattr(sampler, name) is not None}
    unused = sorted(said.keys() & {"step_size", "clip"}) if preset.sampler == "mppi" else []
    if unused:
        raise InputError(f"{flag(unused[0])}: this model's chains are MPPI's, which take --noise alone")
    return dataclasses.replace(preset, **said)


INPAINTING = 10
"""times K: the released code's chain steps for in-painting"""


def filling_steps(preset: Preset) -> int:
    """Chain steps that a hole of noise takes. The released code's 10 K, 600 with its K = 60, leave noise where K is
    smaller."""
    return max(INPAINTING * preset.chain_steps, preset.sample_steps)


def chain(preset: Preset) -> dict[str, float]:
    """What a chain's step is made of, for the record."""
    return {field.name: getattr(preset, field.name) for field in dataclasses.fields(Sampler)}


def to_dict(preset: Preset) -> dict[str, Any]:
    return dataclasses.asdict(preset)


def beside(*several: Preset) -> dict[str, tuple[Any, ...]]:
    """Every field with its value in each of `several` presets; of more than one those alone in which they differ."""
    each = [to_dict(preset) for preset in several]
    values = {name: tuple(settings[name] for settings in each) for name in each[0]}
    return values if len(each) == 1 else {name: v for name, v in values.items() if len(set(v)) > 1}
