"""The options of each experiment, with the paper's values as defaults. Plain data: no torch, so that the command line
answers at once.

The paper is Du & Mordatch, arXiv:1903.08689v1; "released" is what its authors' released code does.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..presets import Sampler


@dataclass(frozen=True)
class Common:
    """What all experiments take."""

    out: Path | None = None
    """folder for NAME.json and figures; default: evaluation in the run folder, or evaluation/MODEL (of hf:
    OWNER--NAME, of a file FOLDER-FILE)"""
    data: str | None = None
    """data set to evaluate on; default: the one the model was trained on"""
    resize: bool = False
    """make images of another --data the model's size and channels: short side resized, central square, grey or RGB"""
    data_dir: Path | None = None
    """where named data sets are kept; default: $IGEBM_DATA or ~/.cache/igebm"""
    skip_bad: bool = False
    """leave out images that cannot be read, instead of refusing the folder"""
    seed: int = 0
    batch: int = 128
    """images or chains at a time, as memory has room"""
    inception: Path | None = None
    """the 2015 Inception network, inception-2015-12-05.pt; default: $IGEBM_INCEPTION, or the data folder, where it is
    downloaded to (96 MB). Where it cannot be had a classifier trained on the data serves, and no number is called IS or
    FID"""
    classifier_steps: int | None = None
    """train the data's classifier for no more than these; default: 8 passes over large sets, 30 over small ones"""
    again: bool = False
    """of `all`: do each experiment although its result, of this model and these settings, is there"""
    json: bool = False
    """NAME.json to stdout, instead of its numbers as text; of `all` an object with each by its name"""


@dataclass(frozen=True)
class Trajectory(Sampler):
    """One chain from noise to image, as a strip and as an animation, with its energies (Fig. 13)."""

    n: int = 10
    """chains, the classes in turn"""
    label: str | None = None
    """one class for all, by name or number"""
    steps: int | None = None
    """chain steps; default: the model's sample_steps"""
    frames: int = 10
    """pictures in a strip"""


@dataclass(frozen=True)
class Generation(Sampler):
    """Samples of the mixing protocol (section 8.4; Table 3b, Figs. 2, 3), scored."""

    n: int = 1_000
    """samples (paper: 50,000); they go to samples.npy as they come, so that memory does not grow with them"""
    protocol: Literal["paper", "release"] = "paper"
    """paper: the model's own clip, a round's chains all different; release: clip 0.05, a round's chains drawn with
    replacement, as the authors' script has them"""
    steps: int | None = None
    """chain steps of a round; default: 20 (released), or the model's chain_steps if it has fewer"""
    rounds: int = 200
    """how often a pool is visited, the rounds that fill it included (released: 200, about 100 visits a chain)"""
    pool: int = 1_000
    """chains in a pool; pools follow each other until there are n samples (released: 1,000)"""
    visit: float = 0.512
    """share of the pool that goes on in a round (released: 512 of 1,000)"""
    restart: float = 0.01
    """share of a visit's chains that start anew from noise"""
    relabel: float = 0.1
    """share that goes on under a new random label"""
    last: int = 10
    """rounds at the end without restarts and new labels"""
    ensemble: int | None = None
    """snapshots that take turns, the last ones of the run; default: 10, or as many as there are (without any, the model
    itself). 1: the model itself"""
    splits: int = 10
    """of the Inception score"""
    real: int = 50_000
    """real images of each split that samples are compared with, at most"""
    kept: int = 10_000
    """images of each set whose features are kept for kernel distance, precision and recall, at most"""


@dataclass(frozen=True)
class Likelihood(Sampler):
    """Energies of train, test and samples, and bits per dimension (section 4.2, Fig. 1): log Z between two estimates of
    annealed importance sampling (AIS), in float32."""

    n: int = 10_000
    """images of each split at most"""
    samples: int = 100
    """samples whose energies are shown beside the data's"""
    steps: int | None = None
    """chain steps of those, and of the samples that AIS goes backwards from; default: the model's sample_steps"""
    label: str | None = None
    """the class whose log Z is bracketed, of a conditional model; default: the first (released)"""
    temperature: float = 1.0
    """T of the density e^(-E/T) whose log Z and bits per dimension are meant (paper: 1); chains of the paper's
    settings sample T = noise^2 / (2 step-size) = 1.25e-6"""
    chains: int = 16
    """AIS chains, each way (released: 16)"""
    rungs: int = 1_000
    """temperatures from the uniform density to the model's, as dense as the energies' spread (released: 10, evenly)"""
    transitions: int = 1
    """HMC transitions on each rung"""
    leapfrog: int = 10
    """leapfrog steps of a transition; their size is tuned by a pilot"""
    burn: int = 100
    """HMC transitions at the model's own temperature that samples take before AIS goes backwards from them"""


@dataclass(frozen=True)
class Restoration(Sampler):
    """Chains that repair test images: salt and pepper, and in-painting by masked chains (Fig. 4)."""

    n: int = 1_000
    """test images that count; the figure shows the first"""
    corrupt: Literal["both", "salt-pepper", "inpaint"] = "both"
    """what is done to them: single pixels set to two levels, a hole filled with noise, or one after the other"""
    share: float = 0.1
    """share of pixels that salt and pepper hits, half of them each"""
    levels: tuple[float, float] = (0.1, 0.9)
    """grey levels of pepper and salt, in all channels (released: 0.1 0.9; black and white: 0 1)"""
    mask: Path | None = None
    """for in-painting, an image file in the size of the model's images: white is filled, black (or transparent) is
    kept; default: the lower half is filled. The hole starts from uniform noise"""
    at: Literal["label", "lowest"] = "label"
    """where a conditional model's chain runs: at the image's true label, or at the one with the lowest energy of the
    damaged image"""
    steps: int | None = None
    """chain steps; default: 5 (salt and pepper) and 10 (in-painting) times the model's chain_steps (released)"""
    show: int = 10
    """images in the figures, at most one batch"""
    frames: int = 10
    """pictures in a strip from start to end"""


@dataclass(frozen=True)
class CrossClass(Sampler):
    """Chains that start at another class's images, under the target's label (Figs. 5, 11)."""

    n: int = 1_000
    """test images, each under one other class's label: all pairs of classes alike"""
    steps: int | None = None
    """chain steps; default: 10 times the model's chain_steps (released)"""
    show: int = 3
    """examples of each target in the figure"""


@dataclass(frozen=True)
class Neighbours(Sampler):
    """The training images nearest to samples, in pixels and in features (Fig. 12)."""

    n: int = 100
    """samples, the classes in turn; the figure shows the first (--show)"""
    k: int = 5
    """neighbours"""
    tests: int = 1_000
    """test images whose nearest training images are measured beside the samples'"""
    train: int = 0
    """training images that are searched; 0: all"""
    steps: int | None = None
    """chain steps; default: the model's sample_steps (released: 10 times chain_steps)"""
    show: int = 10
    """samples in the figure"""


@dataclass(frozen=True)
class Finetune:
    """The network made a classifier (Table 1): the last layer replaced and all weights trained, against the same net
    from scratch, each with and without flips and crops."""

    minutes: float | None = None
    """at most, for each of the four: a short trial decides how many iterations fit (0: no limit); default: 10, or no
    limit with --steps. The result names the number; --steps with it is the same run"""
    steps: int | None = None
    """iterations of each of the four; default: 30 passes over the labelled images, at least 300"""
    batch_size: int = 128
    """labelled images of a training step"""
    lr: float = 1e-3
    """of Adam at the start; a cosine takes it to 0"""
    labels: int = 0
    """labelled training images that are used, the classes alike; 0: all"""


@dataclass(frozen=True)
class Ood:
    """How well the energy tells the test set from other images (Table 2, Figs. 6, 7): AUROC, and histograms.

    All sets go through one preprocessing: resized and cropped to the model's images, bytes at the centre of their bin.
    """

    against: tuple[str, ...] = ("svhn", "dtd", "constant", "uniform", "interpolation", "cifar100")
    """data sets, folders or files, or the made-up sets constant, uniform, interpolation and gaussian (the released
    code's "uniform"); a named set that is not at hand is left out and said"""
    score: Literal["energy", "gradient-norm", "min-label"] = "min-label"
    """what counts as out: a high E at the label (energy; the minimum for a set without the model's labels), a high
    |grad E| at the label with the lowest E, or a high minimum of E over all labels (released)"""
    n: int = 10_000
    """images of each set at most"""
    baselines: tuple[str, ...] = ()
    """models of igebm baseline to put beside it"""


@dataclass(frozen=True)
class Rollout:
    """How far models of time series can be followed (section 5, Fig. 8): the error of rollouts over their length."""

    length: int | None = None
    """states that are predicted, each from the ones before it; default: 100, or as many as the series have"""
    n: int = 500
    """windows of the test set, one from each series in turn"""
    steps: int | None = None
    """chain steps of a state; default: the model's chain_steps"""
    average: int = 1
    """the state is the mean of the chain's last so many states"""


@dataclass(frozen=True)
class Concepts(Sampler):
    """Concepts that combine (section 6, Fig. 9): samples of one model, of two, ... and the latents read back."""

    n: int = 100
    """sprites that are asked for"""
    steps: int | None = None
    """chain steps; default: the first model's sample_steps (released: 20 rounds of the four models)"""


@dataclass(frozen=True)
class All:
    """All experiments, the cheapest first (what is done alike is skipped, what fails is reported)."""

    quick: bool = False
    """small numbers of images and steps: minutes on two cores, and numbers with wide errors"""


EXPERIMENTS: dict[str, type] = {
    "ood": Ood,
    "trajectory": Trajectory,
    "neighbours": Neighbours,
    "cross-class": CrossClass,
    "restoration": Restoration,
    "likelihood": Likelihood,
    "generation": Generation,
    "finetune": Finetune,
}
"""by cost, the cheapest first: the order of `igebm eval all`"""

QUICK_CLASSIFIER = 600
"""--classifier-steps of `igebm eval all --quick`"""

QUICK: dict[str, dict] = {
    "ood": {"n": 1_000},
    "neighbours": {"n": 20, "tests": 200},
    "cross-class": {"n": 100},
    "restoration": {"n": 100},
    "likelihood": {"n": 1_000, "rungs": 100, "chains": 8},
    "generation": {"n": 200, "pool": 200, "rounds": 30, "splits": 2, "real": 5_000, "kept": 1_000},
    "finetune": {"minutes": 1.0},
}
"""what `igebm eval all --quick` asks for instead of the defaults"""
