"""Reject an experiment or a sweep that cannot run, before anything starts."""

import math
import re

from lsid_ray.config.schema import Experiment, GeneratorConfig, SweepConfig, TrainingConfig
from lsid_ray.errors import InputError

# Least and most. The most is beyond what is useful; above it are numbers that fail only when workers have started.
RANGES = (
    ("generator.width discriminator.width", 1, 4096),
    ("generator.depth discriminator.layers", 1, 12),
    ("generator.negative_slope", -1, 1),
    ("optimizer.generator_lr optimizer.discriminator_lr", 1e-12, 1e30),
    ("loss.l1_weight", 1e-6, 10**6),
    ("loss.ssim_weight loss.adv_weight training.clip_norm", 0, 10**6),
    ("training.flip_probability training.transpose_probability optimizer.ema_decay", 0, 1),
    ("training.epochs training.batch_size training.validate_every", 1, 10**6),
    ("training.crop", 1, 2**16),
    ("training.crops_per_pair training.accumulate cluster.num_workers cluster.readers", 1, 10**4),
    ("training.max_rollbacks", 0, 1000),
    ("training.seed", 0, 2**32 - 1),
    ("loss.warmup_steps loss.ramp_steps cluster.max_failures", 0, 10**9),
    ("cluster.cpus_per_worker", 0.001, 10**4),
    ("cluster.gpus_per_worker", 0.001, 1),
    ("cluster.cache_gb cluster.wait_minutes cluster.stall_minutes", 0, 10**6),
)
SWEEP_RANGES = (
    ("trials samples grace_epochs trial_epochs zero_every", 0, 10**9),
    ("hours", 0, 10**6),
    ("seed", 0, 2**32 - 1),
    ("keep", 0.1, 0.9),
    ("max_failed", 0, 1),
    ("tolerance_db", 0, 100),
    ("finalists", 1, 1000),
    ("test_seeds", 1, 100),
)
SSIM_WINDOW = 11  # pixels
RESERVED_RESOURCES = ("CPU", "GPU", "memory", "object_store_memory")  # Ray's own


def check_experiment(experiment: Experiment) -> None:
    """Raises: InputError naming the option, its value and what was expected."""
    e = experiment
    for section in ("discriminator", "optimizer", "loss", "training", "cluster"):
        _check_ranges(getattr(e, section), RANGES, section)
    check_generator(e.generator)
    stride = 2**e.generator.depth
    if e.training.crop % stride:
        raise InputError(
            f"--training.crop is {e.training.crop}: expected a multiple of {stride} "
            f"(--generator.depth {e.generator.depth})"
        )
    if e.cluster.gpus_per_worker < 1 and e.cluster.num_workers > 1:
        raise InputError(
            f"--cluster.gpus-per-worker is {e.cluster.gpus_per_worker:g}: expected 1, or less for a single worker "
            "(nccl needs whole GPUs)"
        )
    if e.cluster.readers_on in RESERVED_RESOURCES:
        raise InputError(f"--cluster.readers-on is {e.cluster.readers_on}: expected a custom resource")
    if e.training.batch_size < e.cluster.num_workers * e.training.accumulate:
        accumulate = f" times --training.accumulate {e.training.accumulate}" if e.training.accumulate > 1 else ""
        raise InputError(
            f"--training.batch-size is {e.training.batch_size}: "
            f"expected at least --cluster.num-workers {e.cluster.num_workers}{accumulate}"
        )
    if not 0 <= e.cluster.min_workers <= e.cluster.num_workers:
        raise InputError(
            f"--cluster.min-workers is {e.cluster.min_workers}: "
            f"expected 0 to --cluster.num-workers {e.cluster.num_workers}"
        )
    checkpoint_interval(e.training)
    patches = e.training.crop // 2**e.discriminator.layers
    if e.loss.adv_weight > 0 and patches < 3:
        raise InputError(
            f"--training.crop is {e.training.crop}: too small for --discriminator.layers {e.discriminator.layers}, "
            f"expected at least {3 * 2**e.discriminator.layers}"
        )
    if e.loss.ssim_weight > 0 and e.training.crop < SSIM_WINDOW:
        raise InputError(
            f"--training.crop is {e.training.crop}: too small for --loss.ssim-weight {e.loss.ssim_weight:g}, "
            f"expected at least {SSIM_WINDOW}"
        )
    if not all(0 <= beta < 1 for beta in e.optimizer.betas):
        raise InputError(f"--optimizer.betas is {e.optimizer.betas}: expected two numbers from 0 to below 1")
    if e.name.strip() in ("", ".", "..") or "/" in e.name or not e.name.isprintable() or len(e.name.encode()) > 200:
        raise InputError(f"--name is {e.name[:80]!r}: expected a folder name of at most 200 bytes, without slashes")
    if not e.storage:
        raise InputError("--storage is empty: expected the folder of the runs")
    if not e.data.root and not e.data.shards:
        raise InputError("--data.root is empty: expected the folder that holds short/ and long/")
    if e.data.lists and not e.data.root:
        raise InputError(f"--data.lists is {' '.join(e.data.lists)}: expected --data.root with the listed files, too")


def checkpoint_interval(training: TrainingConfig) -> tuple[float, float]:
    """The most steps and the most seconds between two checkpoints; one of them is unlimited.

    Raises: InputError naming the option.
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)min|([0-9]+)steps", training.checkpoint_every)
    minutes, steps = float(found[1] or 0) if found else 0.0, int(found[2] or 0) if found else 0
    if not minutes and not steps:
        raise InputError(
            f"--training.checkpoint-every is {training.checkpoint_every!r}: expected a number above 0 with its unit, "
            "like 5min or 1000steps"
        )
    return (steps, math.inf) if steps else (math.inf, 60 * minutes)


def check_generator(generator: GeneratorConfig) -> None:
    """Raises: InputError naming the option, its value and what was expected."""
    _check_ranges(generator, RANGES, "generator")
    if generator.output == "half" and generator.cfa != "bayer":
        raise InputError(f"--generator.output is half: expected full with --generator.cfa {generator.cfa}")


def check_sweep(sweep: SweepConfig, experiment: Experiment) -> None:
    """Raises: InputError naming the option, its value and what was expected."""
    _check_ranges(sweep, SWEEP_RANGES)
    names = sweep.objectives
    if len(set(names)) != len(names) or not 1 <= len(names) <= 3 or (len(names) > 1 and names[0] != "psnr"):
        raise InputError(f"--objectives is {' '.join(names) or 'empty'}: expected one, or psnr and one or two others")
    check_early_end("--trial-epochs", sweep.trial_epochs, experiment.training)


def check_early_end(option: str, epoch: int, training: TrainingConfig) -> None:
    """A run that ends before its last epoch ends with a validation that the complete run has too.

    Raises: InputError naming the option.
    """
    if epoch < training.epochs and epoch % training.validate_every:
        raise InputError(
            f"{option} is {epoch}: expected a multiple of --training.validate-every {training.validate_every}"
        )


def _check_ranges(options: object, ranges: tuple[tuple[str, float, float], ...], section: str = "") -> None:
    """Check the fields of one section of an experiment, or of a sweep."""
    for names, least, most in ranges:
        for name in names.split():
            group, _, field = name.rpartition(".")
            if group != section:
                continue
            value = getattr(options, field)
            if not least <= value <= most:
                raise InputError(f"--{name.replace('_', '-')} is {value}: expected {least:,} to {most:,}")
