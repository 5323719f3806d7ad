"""The experiment: every choice of a run, frozen.

A resolved experiment is printed before a run, written beside its results and inside its checkpoints, and
`from_json` reads it back. `--help` of a job is made of the docstrings below.
"""

import dataclasses
import json
import math
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from lsid_ray.errors import InputError


@dataclass(frozen=True)
class Data:
    """Where the photographs are."""

    root: str = ""
    """Folder that holds short/ and long/ raw files with SID's names (10003_00_0.04s.ARW). data/demo is made when it is
    not there: scikit-image's photographs with calibrated sensor noise."""
    shards: str = ""
    """Folder of the packed shards; made from `root` when it is not there. Empty: `root` + "-shards"."""


@dataclass(frozen=True)
class Generator:
    """Attention U-Net (Oktay et al. 2018, arXiv 1804.03999) or SID's U-Net (arXiv 1805.01934)."""

    width: int = 32
    """Channels of the finest level; doubled at each level below."""
    depth: int = 4
    """Number of halvings; the coarsest level has stride 2**depth."""
    gates: bool = True
    """Attention gates on the skips. Without them: SID's U-Net."""
    norm: Literal["none", "batch"] = "none"
    """"none": an output pixel depends on what it sees alone, and the batch per worker may be small."""
    upsample: Literal["nearest", "transpose"] = "nearest"
    """Nearest neighbour and a 3x3 convolution, or SID's 2x2 transposed convolution."""
    negative_slope: float = 0.2
    """Slope of the LeakyReLU below zero; 0 is ReLU."""
    output: Literal["full", "half"] = "full"
    """RGB at the sensor's resolution (pixel shuffle), or at half of it."""
    cfa: Literal["bayer", "xtrans"] = "bayer"
    """The sensors it is for: Bayer in any phase (4 planes at a half), or Fuji's X-Trans (9 planes at a third)."""
    white_balance: bool = True
    """Multiply the input by the camera's own white balance, as the target's rendering is."""
    color_matrix: bool = True
    """Learn in the colours of SID's Sony; any other camera's come from there by its own colour matrix."""


@dataclass(frozen=True)
class Discriminator:
    """PatchGAN that sees input and image at one scale (pix2pix, arXiv 1611.07004); 70x70 at 3 layers."""

    width: int = 64
    """Channels of the first layer; doubled up to eightfold."""
    layers: int = 3
    """Layers of stride 2."""
    norm: Literal["none", "batch", "spectral"] = "spectral"
    """Normalisation of its layers."""


@dataclass(frozen=True)
class Loss:
    """Generator: l1_weight * L1 + adv_weight * adversarial."""

    l1_weight: float = 1.0
    """Weight of the mean absolute error, target in [0, 1]."""
    adv_weight: float = 0.01
    """Weight of the adversarial loss. 0 builds no discriminator at all."""
    adversarial: Literal["relativistic", "hinge", "bce"] = "relativistic"
    """Relativistic average (arXiv 1807.00734), hinge (arXiv 1705.02894), or pix2pix's cross entropy."""
    warmup_steps: int = 0
    """Steps with L1 only, before the discriminator starts."""
    ramp_steps: int = 0
    """Steps over which adv_weight then rises linearly from 0."""


@dataclass(frozen=True)
class Optimizer:
    """Adam for both networks."""

    generator_lr: float = 2e-4
    """Learning rate of the generator."""
    discriminator_lr: float = 2e-4
    """Learning rate of the discriminator."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Adam's decay rates."""
    schedule: Literal["constant", "drop", "cosine"] = "cosine"
    """constant; drop: a tenth in the second half (SID); cosine: down to a hundredth at the end."""
    ema_decay: float = 0.999
    """Decay a step of the generator's moving average, which is what is scored. 0: the generator itself."""


@dataclass(frozen=True)
class Training:
    """How long, on what crops."""

    epochs: int = 500
    """Passes over the training pairs."""
    batch_size: int = 16
    """Samples of one step over all workers: the result does not depend on their number."""
    crop: int = 512
    """Side of a training crop in packed pixels (half the sensor's)."""
    crops_per_pair: int = 1
    """Crops of each pair in one epoch."""
    epoch_draw: Literal["pairs", "scenes"] = "pairs"
    """pairs: every pair once; scenes: one random short of each scene's first burst frames (SID)."""
    flip_probability: float = 0.5
    """Of each of the two flips."""
    transpose_probability: float = 0.5
    """Of a transpose."""
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    """Autocast on CUDA. On the CPU always float32."""
    validate_every: int = 10
    """Epochs between validations on full frames; each may leave a checkpoint."""
    seed: int = 0
    """Of the initial weights and of the schedule of crops."""


@dataclass(frozen=True)
class Cluster:
    """What the run takes of the cluster. Not part of the experiment's identity."""

    num_workers: int = 1
    """Training processes (DDP); batch_size must be a multiple of it."""
    use_gpu: bool = False
    """GPUs and nccl, instead of CPUs and gloo."""
    gpus_per_worker: float = 1.0
    """Below 1 several runs of one worker each share a GPU: for small networks in a sweep."""
    cpus_per_worker: float = 1.0
    """CPUs of each worker, and so its threads (at least 1). One CPU and the readers' must be left."""
    readers: int = 1
    """Actors that read and crop for all workers, half a CPU each. More where training waits for data."""
    readers_on: str = ""
    """A resource of Ray that nodes have which are to read, so that those that train do not. Empty: any node."""
    cache_gb: float = 0.0
    """GiB of each node's temporary folder for tiles of shards that lie in an object store. 0: none is kept."""
    max_failures: int = 3
    """Worker failures (a lost node, a killed process) after which the run gives up."""


@dataclass(frozen=True)
class Experiment:
    """Everything that decides a run's result, and where it runs."""

    name: str
    """The run's name: the same name again continues from its last checkpoint."""
    storage: str = "runs"
    """Folder of the runs, reachable from every node, or s3://BUCKET/NAME, gs://BUCKET/NAME."""
    data: Data = field(default_factory=Data)
    generator: Generator = field(default_factory=Generator)
    discriminator: Discriminator = field(default_factory=Discriminator)
    loss: Loss = field(default_factory=Loss)
    optimizer: Optimizer = field(default_factory=Optimizer)
    training: Training = field(default_factory=Training)
    cluster: Cluster = field(default_factory=Cluster)


@dataclass(frozen=True)
class Sweep:
    """How to search. What decides which trials there are and when they are stopped cannot change once it began."""

    trials: int = 0
    """Trials at most. 0: 16, or with --hours or --samples as many as they allow."""
    hours: float = 0.0
    """Hours after which every trial ends at its next validation. 0: no limit."""
    samples: int = 0
    """Training samples of all trials together, after which they end likewise. 0: no limit."""
    searcher: Literal["random", "optuna"] = "random"
    """Independent draws, or Optuna's tree-structured Parzen estimator, which learns from the trials that have ended."""
    objectives: Literal["psnr", "psnr-ssim"] = "psnr"
    """What Optuna maximises: PSNR, or the front of PSNR and SSIM."""
    scheduler: Literal["asha", "none"] = "asha"
    """Stop trials whose validation PSNR is not among the best at an epoch (ASHA, arXiv 1810.05934), or run all to their
    end. Population based training is left out: Ray Tune 2.60 cannot hand one Ray Train run's weights to another."""
    grace_epochs: int = 0
    """Epoch of ASHA's first decision. 0: the first validation with the whole adversarial loss."""
    keep: float = 1 / 3
    """Share of the trials that goes on at each decision; the next one is as many times later."""
    trial_epochs: int = 0
    """Epochs that a trial may take of the experiment's --training.epochs, whose schedule it follows. 0: all."""
    zero_every: int = 4
    """One trial in so many has an adversarial weight of exactly 0. 0: none has."""
    best: int = 3
    """Trials that are compared on all validation frames at the end."""
    train_winner: bool = False
    """Train the winner, and its twin without adversarial loss, on to --training.epochs."""
    max_failed: float = 0.5
    """Share of failed trials, of 4 or more that have ended, above which the sweep stops."""
    seed: int = 0
    """Of the draws. All trials have the same --training.seed."""


def check(experiment: Experiment) -> None:
    """Refuse what cannot run, before anything starts.

    Raises: InputError naming the option, its value and what was expected.
    """
    e = experiment
    positive = {
        "--generator.width": e.generator.width,
        "--generator.depth": e.generator.depth,
        "--discriminator.width": e.discriminator.width,
        "--discriminator.layers": e.discriminator.layers,
        "--optimizer.generator-lr": e.optimizer.generator_lr,
        "--optimizer.discriminator-lr": e.optimizer.discriminator_lr,
        "--training.epochs": e.training.epochs,
        "--training.batch-size": e.training.batch_size,
        "--training.crop": e.training.crop,
        "--training.crops-per-pair": e.training.crops_per_pair,
        "--training.validate-every": e.training.validate_every,
        "--cluster.num-workers": e.cluster.num_workers,
        "--cluster.cpus-per-worker": e.cluster.cpus_per_worker,
        "--cluster.readers": e.cluster.readers,
        "--loss.l1-weight": e.loss.l1_weight,
    }
    for option, value in positive.items():
        if not 0 < value < math.inf:
            raise InputError(f"{option} is {value}: expected more than 0")
    not_negative = {
        "--loss.adv-weight": e.loss.adv_weight,
        "--loss.warmup-steps": e.loss.warmup_steps,
        "--loss.ramp-steps": e.loss.ramp_steps,
        "--cluster.max-failures": e.cluster.max_failures,
        "--cluster.cache-gb": e.cluster.cache_gb,
        "--training.seed": e.training.seed,
    }
    for option, value in not_negative.items():
        if not 0 <= value < math.inf:
            raise InputError(f"{option} is {value}: expected 0 or more")
    probabilities = {
        "--training.flip-probability": e.training.flip_probability,
        "--training.transpose-probability": e.training.transpose_probability,
        "--optimizer.ema-decay": e.optimizer.ema_decay,
    }
    for option, value in probabilities.items():
        if not 0 <= value <= 1:
            raise InputError(f"{option} is {value}: expected 0 to 1")
    if e.generator.output == "half" and e.generator.cfa != "bayer":
        raise InputError(f"--generator.output is half: expected full with --generator.cfa {e.generator.cfa}")
    stride = 2**e.generator.depth
    if e.training.crop % stride:
        raise InputError(
            f"--training.crop is {e.training.crop}: expected a multiple of {stride} "
            f"(--generator.depth {e.generator.depth})"
        )
    gpus = e.cluster.gpus_per_worker
    if gpus != 1 and not (0 < gpus < 1 and e.cluster.num_workers == 1):
        raise InputError(
            f"--cluster.gpus-per-worker is {gpus:g}: expected 1, or less for a single worker (nccl wants whole GPUs)"
        )
    if e.training.batch_size % e.cluster.num_workers:
        raise InputError(
            f"--training.batch-size is {e.training.batch_size}: "
            f"expected a multiple of --cluster.num-workers {e.cluster.num_workers}"
        )
    patches = e.training.crop // 2**e.discriminator.layers
    if e.loss.adv_weight > 0 and patches < 3:
        raise InputError(
            f"--training.crop is {e.training.crop}: too small for --discriminator.layers {e.discriminator.layers}, "
            f"expected at least {3 * 2**e.discriminator.layers}"
        )
    if not all(0 <= beta < 1 for beta in e.optimizer.betas):
        raise InputError(f"--optimizer.betas is {e.optimizer.betas}: expected two numbers from 0 to below 1")
    if e.name in ("", ".", "..") or "/" in e.name:
        raise InputError(f"--name is {e.name!r}: expected a folder name")
    if not e.data.root and not e.data.shards:
        raise InputError("--data.root is empty: expected the folder that holds short/ and long/")


def check_sweep(sweep: Sweep) -> None:
    """Raises: InputError naming the option, its value and what was expected."""
    counts = ("trials", "hours", "samples", "grace_epochs", "trial_epochs", "zero_every", "seed")
    for name in counts:
        if not 0 <= getattr(sweep, name) < math.inf:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(sweep, name)}: expected 0 or more")
    if not 0.1 <= sweep.keep <= 0.9:
        raise InputError(f"--keep is {sweep.keep}: expected 0.1 to 0.9")
    if not 0 <= sweep.max_failed <= 1:
        raise InputError(f"--max-failed is {sweep.max_failed}: expected 0 to 1")
    if sweep.best < 1:
        raise InputError(f"--best is {sweep.best}: expected 1 or more")
    if sweep.objectives == "psnr-ssim" and sweep.searcher != "optuna":
        raise InputError(f"--objectives is {sweep.objectives}: expected psnr with --searcher {sweep.searcher}")


def to_json(experiment: Experiment) -> str:
    """The resolved experiment as indented JSON."""
    return json.dumps(dataclasses.asdict(experiment), indent=2)


def from_json(text: str, source: str) -> Experiment:
    """Read `to_json`'s output. `source` is named in errors.

    Raises: InputError for an unknown or missing field, or a value of another type.
    """
    try:
        return build(Experiment, json.loads(text), "experiment")
    except (ValueError, TypeError) as error:
        raise InputError(f"{source} is not an experiment of this version: {error}") from None


def build(kind: type, value: Any, where: str) -> Any:
    """`value` (parsed JSON) as a dataclass, tuple, literal or number of type `kind`.

    Raises: TypeError that names `where`, the value and what was expected.
    """
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise TypeError(f"{where} is {value!r}, expected an object")
        hints = typing.get_type_hints(kind)
        if unknown := sorted(set(value) - set(hints)):
            raise TypeError(f"{where} has the unknown field {unknown[0]!r}")
        if missing := sorted(set(hints) - set(value)):
            raise TypeError(f"{where} lacks the field {missing[0]!r}")
        return kind(**{name: build(hints[name], value[name], f"{where}.{name}") for name in hints})
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value not in arguments:
            raise TypeError(f"{where} is {value!r}, expected one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, list) or len(value) != len(arguments):
            raise TypeError(f"{where} is {value!r}, expected {len(arguments)} values")
        return tuple(build(item, v, where) for item, v in zip(arguments, value, strict=True))
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise TypeError(f"{where} is {value!r}, expected {kind.__name__}")
    return value


def identity(experiment: Experiment) -> dict[str, Any]:
    """What two runs of one name must share, beside their data: all but where they run and where files lie."""
    fields = dataclasses.asdict(experiment)
    for name in ("name", "storage", "cluster", "data"):
        del fields[name]
    return fields
