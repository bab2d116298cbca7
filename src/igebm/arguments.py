"""What each command takes, as --help shows it: a dataclass each, its docstrings the help. Plain data: no torch, so that
the command line answers at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

from tyro.conf import OmitArgPrefixes, Positional, arg

from . import presets
from .baselines import settings as baselines
from .evaluation.settings import Common, Concepts, Rollout
from .presets import Machine, Preset, Sampler, Trainer

Options = TypeVar("Options")


def some(what: str) -> Any:
    """How one or more of these are shown in the help."""
    return arg(metavar=f"{what} [{what} ...]", help_behavior_hint="(at least one)")


@dataclass(frozen=True)
class Train:
    """Train an energy-based model; with no arguments, on handwritten digits in about two minutes.

    Leaves in its folder: preset.json, metrics.jsonl, samples/*.png, checkpoint.pt (for --resume),
    snapshots/*.safetensors and model.safetensors (the averaged weights, for use).
    """

    settings: OmitArgPrefixes[Preset]
    machine: OmitArgPrefixes[Trainer]
    preset: Annotated[Positional[str], arg(metavar="PRESET")] = presets.DEFAULT
    """a name of `igebm presets`"""
    out: Path | None = None
    """run folder; default: the next free runs/PRESET"""
    resume: Path | None = None
    """go on with the run in this folder; --steps is the total"""
    init_from: str | None = None
    """start from this model's weights, with a fresh optimiser and buffer"""
    data_dir: Path | None = None
    """where named data sets are kept; default: $IGEBM_DATA or ~/.cache/igebm"""
    skip_bad: bool = False
    """leave out images that cannot be read, instead of refusing the folder"""
    dry_run: bool = False
    """print the settings and what they cost as JSON, and end"""
    json: bool = False
    """how the run ended, as JSON instead of the folder's name"""


@dataclass(frozen=True)
class Sample:
    """Draw samples from a model: samples.png, samples.npy (uint8, N x H x W x C), labels.npy, sample.json."""

    machine: OmitArgPrefixes[Machine]
    chain: OmitArgPrefixes[Sampler]
    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """a run folder, a .safetensors file, a name of `igebm models`, or hf:owner/name"""
    n: int = 64
    """how many"""
    label: str | None = None
    """one class for all, by name or number; default: all classes in turn; with --init buffer or data each start's own,
    or that of its least energy where the images have no labels"""
    steps: int | None = None
    """chain steps; default: the preset's sample_steps from noise, its chain_steps from buffer or data"""
    init: Literal["noise", "buffer", "data"] = "noise"
    """where chains start: uniform noise, the run's replay buffer, or test images"""
    data: str | None = None
    """with --init data: the data set; default: the one the model was trained on"""
    seed: int = 0
    out: Path | None = None
    """folder; default: the next free samples/MODEL"""
    batch: int = 128
    """chains at a time"""
    data_dir: Path | None = None
    """where named data sets are kept"""


@dataclass(frozen=True)
class EnergyOf:
    """The energy of each image of a data set (lower: more like the training data), as CSV or .npy."""

    machine: OmitArgPrefixes[Machine]
    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """a run folder, a .safetensors file, a name of `igebm models`, or hf:owner/name"""
    data: Annotated[Positional[str], arg(metavar="DATA")]
    """a data set's name, hf:owner/name, a folder of images, an image, or an .npz"""
    out: Path | None = None
    """a .csv or .npy file; default: CSV to stdout"""
    split: Literal["test", "train"] | None = None
    """default: test where there is one, otherwise train"""
    at: Literal["auto", "label", "min"] = "auto"
    """a conditional model's energy at each image's label, or the minimum over labels; auto: at the label where
    classes match"""
    batch: int = 256
    data_dir: Path | None = None
    """where named data sets are kept"""
    skip_bad: bool = False
    """leave out images that cannot be read"""
    json: bool = False
    """the table and its mean as JSON to stdout, beside what --out asks for"""


@dataclass(frozen=True)
class Presets:
    """The named settings and where in the paper they belong; with a NAME, all of its settings, with several, those in
    which they differ."""

    names: Annotated[Positional[tuple[str, ...]], arg(metavar="[NAME ...]")] = ()
    """some of them"""
    json: bool = False
    """with all settings, as JSON"""


@dataclass(frozen=True)
class Models:
    """The models that come with the package; with a NAME, its card: data, command, machine, what it can and cannot
    do."""

    name: Annotated[Positional[str | None], arg(metavar="[NAME]")] = None
    """one of them"""
    json: bool = False
    """as JSON"""


@dataclass(frozen=True)
class DataList:
    """The named data sets and where they are."""

    data_dir: Path | None = None
    """where named data sets are kept; default: $IGEBM_DATA or ~/.cache/igebm"""
    json: bool = False
    """as JSON"""


@dataclass(frozen=True)
class DataCheck:
    """Read a data set as training would and say what is in it."""

    data: Annotated[Positional[str], arg(metavar="DATA")]
    """a data set's name, hf:owner/name, a folder of images, an .npz, or time series: balls, .csv, .parquet"""
    series: bool = False
    """an .npz or .npy of time series (series x steps x features), not of images"""
    image_size: int = 0
    """resize to this many pixels; 0: as the data are"""
    channels: int = 0
    """1 or 3; 0: as the data are"""
    skip_bad: bool = False
    """leave out images that cannot be read"""
    data_dir: Path | None = None
    """where named data sets are kept"""
    json: bool = False
    """as JSON"""


@dataclass(frozen=True)
class Evaluate(Generic[Options]):
    """An experiment of the paper on one model: NAME.json and its figures as PNG and PDF."""

    options: Annotated[OmitArgPrefixes[Options], arg(name="experiment")]
    common: OmitArgPrefixes[Common]
    machine: OmitArgPrefixes[Machine]
    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """a run folder, a .safetensors file, a name of `igebm models`, or hf:owner/name"""


@dataclass(frozen=True)
class RolloutOf:
    """Rollouts of one or several models of time series beside each other: rollout.json, rollout.png, rollout.gif."""

    options: OmitArgPrefixes[Rollout]
    models: Annotated[Positional[tuple[str, ...]], some("MODEL")]
    """run folders, .safetensors files or names of `igebm models`; models of one preset count as its seeds"""
    out: Path | None = None
    """folder; default: evaluation in the run folder, or evaluation/MODEL, of the first model"""
    data: str | None = None
    """series to evaluate on; default: those that the first model was trained on"""
    seed: int = 0
    threads: int = 0
    """CPU threads; 0: as many as there are cores"""
    json: bool = False
    """rollout.json to stdout, instead of its numbers as text"""


@dataclass(frozen=True)
class ConceptsOf:
    """Models that each know one factor of a sprite, combined: concepts.json and concepts.png."""

    options: OmitArgPrefixes[Concepts]
    machine: OmitArgPrefixes[Machine]
    models: Annotated[Positional[tuple[str, ...]], some("MODEL")]
    """run folders, .safetensors files or names of `igebm models`, such as dsprites-scale dsprites-position"""
    out: Path | None = None
    """folder; default: evaluation/concepts"""
    seed: int = 0
    batch: int = 128
    """chains at a time"""
    json: bool = False
    """concepts.json to stdout, instead of its numbers as text"""


@dataclass(frozen=True)
class Compose:
    """Samples of several energies combined (section 6): samples.png, samples.npy, compose.json.

    A term is [not:|or:][WEIGHT*]MODEL[=VALUE]: a class, a number or numbers with commas (an angle in degrees), such as
    dsprites-scale=0.8, dsprites-position=0.2,0.7, 2*digits=3, not:0.3*digits=8, or:digits=1. module:function is an
    energy of your own, any Python callable of images (B, C, H, W) that gives (B,). Chains are the first model's, in all
    that is not said otherwise.
    """

    machine: OmitArgPrefixes[Machine]
    chain: OmitArgPrefixes[Sampler]
    terms: Annotated[Positional[tuple[str, ...]], some("TERM")]
    """the terms; those with or: form one factor, a mixture, those with not: push away"""
    mode: Literal["product", "cyclic"] = "product"
    """chains on the sum of the energies; cyclic: one step on each in turn (released code)"""
    n: int = 16
    """samples"""
    steps: int | None = None
    """chain steps; default: the first model's sample_steps"""
    seed: int = 0
    out: Path | None = None
    """folder; default: the next free composed"""
    batch: int = 128
    """chains at a time"""


@dataclass(frozen=True)
class Infer:
    """The condition of an image (section 6): chains over a model's latents, or the energies under its classes."""

    machine: OmitArgPrefixes[Machine]
    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """conditional on latents or classes: a run folder, a .safetensors file, a bundled model, or hf:owner/name"""
    image: Annotated[Positional[Path], arg(metavar="IMAGE")]
    """a picture, brought to the model's size"""
    n: int | None = None
    """chains, from starts all over the latents' ranges; default: 256"""
    steps: int | None = None
    """chain steps; default: 200"""
    step_size: float | None = None
    """what multiplies the gradient, latents counted in shares of their ranges; default: noise² / 2T for a model that
    was trained with the posterior of its data at T (--label-weight, --label-temperature), else 4 (released: 1 in
    units of a size from 0.5 to 1)"""
    noise: float | None = None
    """standard deviation of a step's noise; default: 0.03, without that posterior 0.06 (released: 0.03 in units of a
    size from 0.5 to 1)"""
    seed: int = 0
    out: Path | None = None
    """folder; default: the next free inferred/IMAGE"""
    json: bool = False
    """infer.json to stdout, instead of its numbers as text"""


@dataclass(frozen=True)
class Restore:
    """A picture repaired (Fig. 4): what a mask says is filled in by chains, in several ways; the rest is kept to the
    last bit. With --denoise chains begin at the picture and move all of it. restored.png (the picture, the same with
    its hole, and what came out), restored.npy, restore.json.
    """

    machine: OmitArgPrefixes[Machine]
    chain: OmitArgPrefixes[Sampler]
    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """a run folder, a .safetensors file, a bundled model, or hf:owner/name"""
    image: Annotated[Positional[Path], arg(metavar="IMAGE")]
    """a picture, brought to the model's size"""
    mask: Path | None = None
    """an image of the size of IMAGE, cut and shrunk with it, or of the model's: white is filled, black is kept;
    default: the lower half is filled (released code)"""
    denoise: bool = False
    """no hole: chains begin at the picture itself and move all of it"""
    label: str | None = None
    """what a conditional model is to see in it: a class, or latents with commas; default: the class of the least
    energy of the picture with noise in its hole, which is a guess: name it where it is known"""
    n: int = 6
    """ways of repairing it"""
    steps: int | None = None
    """chain steps; default: as many as a sample takes, at least 10 times the model's chain_steps (released code); with
    --denoise the model's chain_steps"""
    seed: int = 0
    out: Path | None = None
    """folder; default: the next free restored/IMAGE"""


@dataclass(frozen=True)
class Forecast:
    """Your own time series, continued: each state from the ones before it, one or several futures a series.

    Leaves in its folder: forecast.csv (series, step, sample where there are several, features), forecast.npy (float32,
    N x series x steps x features), forecast.png and forecast.json.
    """

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """of time series: a run folder, a .safetensors file, a bundled model, or hf:owner/name"""
    data: Annotated[Positional[str], arg(metavar="DATA")]
    """a file of series as training takes it (.csv, .parquet, .npz, .npy); the last states of each are its past"""
    steps: int = 20
    """states that follow, each from the ones before it"""
    n: int = 1
    """futures of each series, whose chains have noise of their own; a plain predictor has one"""
    split: Literal["test", "train"] | None = None
    """default: test where there is one, otherwise train"""
    seed: int = 0
    out: Path | None = None
    """folder, or one .csv or .npy file alone; default: the next free forecasts/DATA"""
    threads: int = 0
    """CPU threads; 0: as many as there are cores"""
    json: bool = False
    """forecast.json to stdout, instead of the folder's name"""


@dataclass(frozen=True)
class Serve:
    """A page to play with models: watch chains, repair images, combine energies, compare an image with the data.

    It needs pip install '.[web]'. Nothing that it shows or is given leaves this machine.
    """

    machine: OmitArgPrefixes[Machine]
    models: Annotated[Positional[tuple[str, ...]], arg(metavar="[MODEL ...]")] = ()
    """run folders, .safetensors files, names of `igebm models`, or hf:owner/name; default: all bundled models"""
    host: str = "127.0.0.1"
    """where to listen; any other than this machine alone needs a password: $IGEBM_PASSWORD, or asked for"""
    port: int = 7860
    """0: any free one"""
    user: str = "igebm"
    """the name that goes with the password"""
    data_dir: Path | None = None
    """where named data sets are kept; default: $IGEBM_DATA or ~/.cache/igebm"""


@dataclass(frozen=True)
class Report:
    """One HTML page on a run and its evaluations, whole in itself: curves, samples, figures, numbers, settings."""

    folder: Annotated[Positional[Path], arg(metavar="FOLDER")]
    """a run folder, or the evaluation folder of a model that has none (evaluation/MODEL)"""
    out: Path | None = None
    """the page; default: report.html in the folder"""


@dataclass(frozen=True)
class Watch:
    """A run's numbers in the terminal, with small curves, kept up to date while it trains (Ctrl-C ends it)."""

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """a run folder"""
    every: float = 5.0
    """seconds between two looks"""
    once: bool = False
    """look once and end"""
    json: bool = False
    """look once: how far the run is and its last numbers, as JSON"""


@dataclass(frozen=True)
class Compare:
    """Several runs beside each other: a table of their last numbers (means over the last tenth of each log), the
    settings that differ, curves."""

    runs: Annotated[Positional[tuple[Path, ...]], some("RUN")]
    """run folders"""
    out: Path = Path("compared")
    """folder for compare.json, compare.png and compare.pdf"""
    json: bool = False
    """the table as JSON"""


@dataclass(frozen=True)
class BaselineOf:
    """Train a model with a likelihood, to compare an energy with (Table 2): Glow or PixelCNN++, on the same data.

    Leaves in its folder: preset.json, metrics.jsonl, checkpoint.pt (for --resume) and model.safetensors (the averaged
    weights, with settings, origin and bits per dimension on train and test).
    """

    settings: OmitArgPrefixes[baselines.Settings]
    kind: Annotated[Positional[str], arg(metavar="KIND")] = ""
    """glow (needs pip install '.[baselines]') or pixelcnn; with --resume the run's own"""
    out: Path | None = None
    """run folder; default: the next free runs/KIND-DATA"""
    resume: Path | None = None
    """go on with the run in this folder; --steps is the total"""
    device: str = "auto"
    """cpu, cuda or cuda:N"""
    threads: int = 0
    """CPU threads; 0: as many as there are cores"""
    data_dir: Path | None = None
    """where named data sets are kept; default: $IGEBM_DATA or ~/.cache/igebm"""
    skip_bad: bool = False
    """leave out images that cannot be read, instead of refusing the folder"""
    json: bool = False
    """what came of it to stdout, instead of the folder's name"""


@dataclass(frozen=True)
class Push:
    """Pass a model on, with a card written from its run: to the Hugging Face hub, or into a folder.

    What is written: README.md (the card), model.safetensors, preset.json, evaluation/*.json of igebm eval and
    samples.png; never a pickle. A new repository on the hub is private unless --public.
    """

    machine: OmitArgPrefixes[Machine]
    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """a run folder, a .safetensors file, a name of `igebm models`, or hf:owner/name"""
    to: Annotated[Positional[str], arg(metavar="TO")]
    """owner/name on the hub (by HF_TOKEN, or hf auth login), or a folder: DIR/"""
    licence: str = "mit"
    """of the weights, as the hub names it: mit, apache-2.0, cc-by-4.0, ..."""
    public: bool = False
    """make a new repository public, or write to one that is"""
    to_folder: bool = False
    """TO is a folder, whatever it looks like"""
    picture: Path | None = None
    """for the card; default: the run's last samples, or some that are drawn now"""


@dataclass(frozen=True)
class Pull:
    """Fetch a model with its card and numbers from the Hugging Face hub, as a folder that every command takes as MODEL.

    Safetensors, JSON, the card and its picture are fetched and read; whatever else is there is left there.
    """

    source: Annotated[Positional[str], arg(metavar="SOURCE")]
    """owner/name or owner/name@revision on the hub, or a folder that igebm push has written"""
    out: Path | None = None
    """folder; default: the next free models/NAME"""


@dataclass(frozen=True)
class Convert:
    """A checkpoint of the PyTorch port igebm-pytorch (github.com/rosinality/igebm-pytorch) as a model of ours.

    Its energies stay what they are. The file, a pickle, is read by torch's restricted reader, which runs nothing of it.
    """

    file: Annotated[Positional[Path], arg(metavar="FILE")]
    """a .pt file: the port's state dict, alone or in a dict beside other things"""
    out: Path
    """folder for model.safetensors and preset.json"""
    data: str = "cifar10"
    """the data set that it was trained on"""
    classes: tuple[str, ...] = ()
    """names of its classes, in the order of their numbers; default: CIFAR-10's, or the numbers"""
    image_size: int = 32
    """height and width of its images in pixels"""
    blocks: str | None = None
    """its residual blocks, where they are not the port's own 1d 1 2d 2 2d 2"""
    key: str | None = None
    """which of several networks in the file"""
    step: int = 0
    """the iteration that it was saved at, for the record"""


@dataclass(frozen=True)
class Bench:
    """Measure this machine: speed of chain and training against a plain reference and the machine's own limit."""

    machine: OmitArgPrefixes[Trainer]
    quick: bool = False
    """a small selection, under a minute on two cores; all of it takes several"""
    json: Path | None = None
    """write the rows and their circumstances to this file; -: to stdout"""


@dataclass(frozen=True)
class Completion:
    """A script that completes commands, flags and their values at the tab key.

    bash: igebm completion bash > ~/.local/share/bash-completion/completions/igebm
    zsh: echo 'eval "$(igebm completion zsh)"' >> ~/.zshrc
    fish: igebm completion fish > ~/.config/fish/completions/igebm.fish
    """

    shell: Positional[Literal["bash", "zsh", "fish"]]
