"""Reject an experiment or a sweep that cannot run, before anything starts."""

import math

from lsid_ray.config.schema import Experiment, SweepConfig
from lsid_ray.errors import InputError

RANGES = (
    (
        "generator.width generator.depth discriminator.width discriminator.layers optimizer.generator_lr "
        "optimizer.discriminator_lr training.epochs training.batch_size training.crop training.crops_per_pair "
        "training.validate_every cluster.num_workers cluster.cpus_per_worker cluster.readers loss.l1_weight",
        lambda value: 0 < value < math.inf,
        "more than 0",
    ),
    (
        "loss.adv_weight loss.warmup_steps loss.ramp_steps cluster.max_failures cluster.cache_gb "
        "cluster.wait_minutes training.seed",
        lambda value: 0 <= value < math.inf,
        "0 or more",
    ),
    (
        "training.flip_probability training.transpose_probability optimizer.ema_decay",
        lambda value: 0 <= value <= 1,
        "0 to 1",
    ),
)


def check_experiment(experiment: Experiment) -> None:
    """Raises: InputError naming the option, its value and what was expected."""
    e = experiment
    for names, is_allowed, expected in RANGES:
        for name in names.split():
            section, field = name.split(".")
            value = getattr(getattr(e, section), field)
            if not is_allowed(value):
                raise InputError(f"--{name.replace('_', '-')} is {value}: expected {expected}")
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
            f"--cluster.gpus-per-worker is {gpus:g}: expected 1, or less for a single worker (nccl needs whole GPUs)"
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
    if e.name in ("", ".", "..") or "/" in e.name or not e.name.isprintable() or len(e.name.encode()) > 200:
        raise InputError(f"--name is {e.name[:80]!r}: expected a folder name of at most 200 bytes, without slashes")
    if not math.isfinite(e.generator.negative_slope):
        raise InputError(f"--generator.negative-slope is {e.generator.negative_slope}: expected a number")
    if not e.data.root and not e.data.shards:
        raise InputError("--data.root is empty: expected the folder that holds short/ and long/")


def check_sweep(sweep: SweepConfig) -> None:
    """Raises: InputError naming the option, its value and what was expected."""
    counts = ("trials", "hours", "samples", "grace_epochs", "trial_epochs", "zero_every", "seed")
    for name in counts:
        if not 0 <= getattr(sweep, name) < math.inf:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(sweep, name)}: expected 0 or more")
    if not 0.1 <= sweep.keep <= 0.9:
        raise InputError(f"--keep is {sweep.keep}: expected 0.1 to 0.9")
    if not 0 <= sweep.max_failed <= 1:
        raise InputError(f"--max-failed is {sweep.max_failed}: expected 0 to 1")
    if sweep.finalists < 1:
        raise InputError(f"--finalists is {sweep.finalists}: expected 1 or more")
    if sweep.objectives == "psnr-ssim" and sweep.searcher != "optuna":
        raise InputError(f"--objectives is {sweep.objectives}: expected psnr with --searcher {sweep.searcher}")
