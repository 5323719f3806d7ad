"""The configuration schema: every choice of a run or a sweep, as frozen dataclasses.

The docstring under a field is its text in a job's `--help`. A resolved experiment is printed before a run starts
and written next to its results.
"""

from dataclasses import dataclass, field
from typing import Literal

PerceptualMetric = Literal["texture", "flip", "lpips", "lpips_vgg", "dists"]
Objective = Literal["psnr", "ssim", "texture", "flip", "lpips", "lpips_vgg", "dists"]


@dataclass(frozen=True)
class DataConfig:
    """Where the data set is."""

    root: str = ""
    """Folder with short/ and long/, raw files named as in SID (10003_00_0.04s.ARW), or with the files of `lists`.
    data/demo is created if it does not exist: scikit-image's photographs with calibrated sensor noise."""
    lists: tuple[str, ...] = ()
    """Files that list the pairs, for any names: SID's (SHORT LONG ISO200 F8), or a CSV with short,long,split."""
    shards: str = ""
    """Folder of the packed shards, created from `root` if it does not exist. Empty: `root` + "-shards"."""
    weights: str = ""
    """Folder with the weights that --training.metrics need, or s3://BUCKET/NAME. Empty: torch's own, in TORCH_HOME."""


@dataclass(frozen=True)
class GeneratorConfig:
    """Attention U-Net (Oktay et al. 2018, arXiv 1804.03999) or SID's U-Net (arXiv 1805.01934)."""

    width: int = 32
    """Channels of the finest level, doubled at each coarser level."""
    depth: int = 4
    """Number of downsamplings; the coarsest level has stride 2**depth."""
    gates: bool = True
    """Attention gates on the skip connections. Without them it is SID's U-Net."""
    residual: bool = False
    """Add the input of each level's two convolutions, through a 1x1 convolution, to their output (arXiv 1512.03385)."""
    norm: Literal["none", "batch"] = "none"
    """"none" gives the same output for a tile as for the full frame, and allows small batches per worker."""
    upsample: Literal["nearest", "transpose"] = "nearest"
    """Nearest-neighbour upsampling followed by a 3x3 convolution, or SID's 2x2 transposed convolution."""
    negative_slope: float = 0.2
    """Negative slope of the LeakyReLU; 0 is ReLU."""
    output: Literal["full", "half"] = "full"
    """RGB at the sensor's full resolution (pixel shuffle) or at half of it."""
    cfa: Literal["bayer", "xtrans"] = "bayer"
    """Sensor type: Bayer in any phase (4 planes at half resolution) or Fuji X-Trans (9 planes at a third)."""
    white_balance: bool = True
    """Multiply the input by the camera's white balance, as the target's rendering does."""
    input_curve: Literal["linear", "tone"] = "linear"
    """linear: amplified counts from 0 to 1, as in SID. tone: with the rendering's tone curve, from -1.5 to 1.5, so that
    noise is about as strong in dark tones as in bright ones, and its mean is black where there is no light."""
    input_ratio: bool = False
    """Tell the network how much its input was amplified, and so how noisy it is, by one more plane: log2(ratio) / 8."""
    color_matrix: bool = True
    """Train in the colors of SID's Sony; outputs for other cameras are converted by their own color matrix."""


@dataclass(frozen=True)
class DiscriminatorConfig:
    """PatchGAN conditioned on the input (pix2pix, arXiv 1611.07004); 70x70 patches with 3 layers."""

    width: int = 64
    """Channels of the first layer, doubled up to eightfold."""
    layers: int = 3
    """Number of layers with stride 2."""
    norm: Literal["none", "batch", "spectral"] = "spectral"
    """Normalization of its layers."""


@dataclass(frozen=True)
class LossConfig:
    """The generator's loss: l1_weight * L1 + ssim_weight * (1 - SSIM) + adv_weight * adversarial."""

    l1_weight: float = 1.0
    """Weight of the mean absolute error, with targets in [0, 1]."""
    ssim_weight: float = 0.0
    """Weight of 1 minus the structural similarity (SSIM) of output and target. 0: only L1."""
    adv_weight: float = 0.01
    """Weight of the adversarial loss. 0 trains without a discriminator."""
    adversarial: Literal["relativistic", "hinge", "bce"] = "relativistic"
    """Relativistic average (arXiv 1807.00734), hinge (arXiv 1705.02894) or pix2pix's cross entropy."""
    warmup_steps: int = 0
    """Steps without the adversarial loss, before adversarial training starts."""
    ramp_steps: int = 0
    """Steps over which adv_weight then rises linearly from 0."""


@dataclass(frozen=True)
class OptimizerConfig:
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
    """Decay per step of the generator's moving average (EMA), which is what gets scored. 0: no moving average."""


@dataclass(frozen=True)
class TrainingConfig:
    """Length of the training and its crops."""

    epochs: int = 500
    """Passes over the training pairs. May be raised later if --optimizer.schedule is constant."""
    batch_size: int = 16
    """Samples per step over all workers: any number of them sees the same samples and computes the same gradients,
    except with BatchNorm (thesia), whose statistics are of each worker's own samples."""
    accumulate: int = 1
    """Parts in which each worker computes its samples of a step, one after the other, for batches that do not fit its
    memory. The gradients stay the same, except with BatchNorm. A step with a discriminator takes about 1.5 times as
    long. Not part of the experiment's identity."""
    crop: int = 512
    """Side of a training crop in packed pixels (half the sensor's)."""
    crops_per_pair: int = 1
    """Crops taken from each pair per epoch."""
    epoch_draw: Literal["pairs", "scenes"] = "pairs"
    """pairs: every pair once; scenes: one random first-frame short exposure per scene (SID)."""
    flip_probability: float = 0.5
    """Probability of each of the two flips."""
    transpose_probability: float = 0.5
    """Probability of a transpose."""
    clip_norm: float = 0.0
    """Largest norm of the gradient of either network: a longer one is scaled down to it. The norms before that are
    logged as gradient_norm and, of the discriminator, discriminator_gradient_norm. 0: no limit."""
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    """Autocast on CUDA. CPUs always train in float32."""
    validate_every: int = 10
    """Epochs between validations on full frames; each leaves a checkpoint, of which the best is kept. Training goes on
    meanwhile if enough CPUs (with --cluster.use-gpu GPUs) are free beside workers and readers."""
    metrics: tuple[PerceptualMetric, ...] = ()
    """Measured at validations besides PSNR and SSIM: texture, flip, lpips (with AlexNet), lpips_vgg, dists. All but
    texture cost more than those two: see jobs/README.md. Not part of the experiment's identity."""
    checkpoint_every: str = "5min"
    """Time or steps (5min, 1000steps) between checkpoints to resume from, of which the latest is kept. They are
    written in the background. Not part of the experiment's identity."""
    max_rollbacks: int = 3
    """How often a run goes back to its latest checkpoint because a loss is not finite, and goes on without that batch;
    if it happens again before the next checkpoint, also at half the learning rates. Not part of the experiment's
    identity."""
    seed: int = 0
    """Seed of the initial weights and of the order of crops."""


@dataclass(frozen=True)
class ClusterConfig:
    """Resources of the run. Not part of the experiment's identity."""

    num_workers: int = 1
    """Training workers (DDP), at most batch_size."""
    min_workers: int = 0
    """Go on with as few workers as this when nodes have left the cluster, with the same batches, and with more again
    when nodes join. 0: always num_workers."""
    use_gpu: bool = False
    """Train on GPUs with nccl instead of on CPUs with gloo."""
    gpus_per_worker: float = 1.0
    """Below 1, several single-worker runs share a GPU: for small networks in a sweep."""
    cpus_per_worker: float = 1.0
    """CPUs per worker, and so its number of threads (at least 1). One CPU and the readers' must remain free."""
    readers: int = 1
    """Actors that read and crop for all workers, half a CPU each. Add more if training waits for data."""
    readers_on: str = ""
    """Custom Ray resource of the nodes that run readers, so that GPU nodes only train. Empty: any node."""
    cache_gb: float = 0.0
    """GiB of each node's temporary folder used to cache tiles of shards in an object store. 0: no cache."""
    max_failures: int = 3
    """Failures in a row (a killed process, a lost connection), without a new checkpoint between them, that a run
    survives. It survives the loss of any number of nodes."""
    wait_minutes: float = 0.0
    """Minutes to wait for CPUs and GPUs that are in use or still starting, or for a disk or store that does not take
    a checkpoint. 0: no limit."""
    stall_minutes: float = 10.0
    """Minutes without progress after which the workers that hang are killed, and the run restarts from its latest
    checkpoint. More than a step, or the validation of one frame, takes. 0: never."""


@dataclass(frozen=True)
class Experiment:
    """Everything that decides a run's result, and where it runs."""

    name: str
    """Name of the run. Running the same name again resumes from its last checkpoint. Then only --cluster.* and where
    files are may differ and, with a constant learning rate, --training.epochs may be raised."""
    storage: str = "runs"
    """Folder of the runs, reachable from every node, or s3://BUCKET/NAME, gs://BUCKET/NAME."""
    init: str = ""
    """Checkpoint to take the first weights from: the folder of a run, its best/, or a copy of that. All of the
    generator that fits is taken, and the discriminator if it fits; the optimizers start anew. Empty: random weights."""
    data: DataConfig = field(default_factory=DataConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


@dataclass(frozen=True)
class SweepConfig:
    """How to search. What decides which trials exist and when they are stopped cannot change once a sweep began."""

    trials: int = 0
    """Maximum number of trials. 0: 16, or with --hours or --samples as many as they allow."""
    hours: float = 0.0
    """Hours after which every trial ends at its next validation. 0: no limit."""
    samples: int = 0
    """Training samples over all trials after which they end in the same way. 0: no limit."""
    searcher: Literal["random", "optuna"] = "random"
    """Independent random draws, or Optuna's tree-structured Parzen estimator, which learns from finished trials."""
    objectives: tuple[Objective, ...] = ("psnr",)
    """What trials are judged by, on the validation frames: one metric, or psnr and one or two others. Optuna draws for
    their front. lpips, lpips_vgg and dists need weights: see --data.weights."""
    tolerance_db: float = 0.2
    """With psnr and another objective: the best trial is the best by that among those whose PSNR is so close to the
    best."""
    scheduler: Literal["asha", "none"] = "asha"
    """Stop trials that are not among the best at an epoch (ASHA, arXiv 1810.05934), or run all of them to the end. No
    population based training: Ray Tune 2.60 cannot pass weights between Ray Train runs."""
    grace_epochs: int = 0
    """Epoch of ASHA's first decision. 0: the first validation with the full adversarial weight."""
    keep: float = 1 / 3
    """Fraction of the trials that continue at each decision; the next decision is 1/keep times later."""
    trial_epochs: int = 0
    """Epochs after which a trial ends, while its schedules follow the experiment's --training.epochs. 0: all."""
    zero_every: int = 4
    """One trial in this many has an adversarial weight of exactly 0. 0: none has."""
    finalists: int = 3
    """Best trials that are compared on all validation frames at the end."""
    train_best: bool = False
    """Train the best trial and its ablation on to --training.epochs."""
    test_seeds: int = 1
    """Trainings of the best trial, and of its ablation, that are tested, each with a seed of its own. A difference
    between two single ones may be chance."""
    max_failed: float = 0.5
    """Fraction of failed trials, of at least 4 that have ended, above which the sweep stops."""
    seed: int = 0
    """Seed of the draws. All trials share one --training.seed."""
