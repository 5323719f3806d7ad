"""What validations take from the training of a preset: in line, and apart."""

import copy
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from lsid_ray import cluster
from lsid_ray.benchmark.step import MAX_COUNT, adversarial_from_the_start
from lsid_ray.cluster import validation_slots
from lsid_ray.config.presets import PRESETS
from lsid_ray.config.schema import ClusterConfig
from lsid_ray.data.index import open_shards
from lsid_ray.data.schedule import Schedule
from lsid_ray.errors import InputError
from lsid_ray.evaluate.score import validate
from lsid_ray.progress import align_columns
from lsid_ray.train.step import GanStep


@dataclass(frozen=True)
class Validate:
    """Time the validation of some frames, and compute what validations take from training at a stated step time."""

    preset: Annotated[str, tyro.conf.Positional]
    """Name of a preset, whose networks and epochs between validations are used."""
    shards: Annotated[str, tyro.conf.Positional]
    """Folder of the shards that packing wrote, or its s3:// or gs:// address."""
    step_ms: float = 100.0
    """Duration of a training step."""
    frames: int = 4
    """Validation frames that are timed, each by a worker (in line) and by a task (apart)."""
    slots: int = 0
    """Frames that are scored at a time apart from training. 0: as many as this cluster has room for."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def run(self, folder: Path) -> tuple[str, Any]:
        """The table, and the figures in it."""
        cost = measure_validation(self)
        return validation_table(cost), cost


@dataclass(frozen=True)
class ValidationCost:
    """Of one validation of all frames; computed from the frames that were timed."""

    preset: str
    frames: int
    megapixels: float
    """Of a frame, the mean."""
    interval_s: float
    """Training between two validations."""
    workers: int
    slots: int
    frame_s: float
    """Of a frame, in line."""
    apart_frame_s: float
    """Of a frame, in a task."""
    save_s: float
    """Copying what a checkpoint holds, for which training stops either way."""

    @property
    def in_line_s(self) -> float:
        """How long training stops for it in line."""
        return self.save_s + -(-self.frames // self.workers) * self.frame_s

    @property
    def apart_s(self) -> float:
        """How long one takes apart."""
        return -(-self.frames // self.slots) * self.apart_frame_s if self.slots else float("inf")

    @property
    def blocked_s(self) -> float:
        """How long training stops for it apart: for the checkpoint, and until the one before has ended."""
        return self.save_s + max(self.apart_s - self.interval_s, 0.0)

    def share(self, blocked_s: float) -> float:
        """Of a run's time, if it stops for so long at each validation."""
        return blocked_s / (blocked_s + self.interval_s)


def measure_validation(options: Validate) -> ValidationCost:
    """Time frames in this process, with the threads or the GPU of a worker, then of a task.

    Raises: InputError for an option out of range, or shards that cannot be used.
    """
    if options.preset not in PRESETS:
        raise InputError(f"{options.preset}: no such preset, expected one of {', '.join(PRESETS)}")
    for name, least in (("step_ms", 1e-3), ("frames", 1), ("slots", 0)):
        if not least <= getattr(options, name) <= MAX_COUNT:
            option, value = name.replace("_", "-"), getattr(options, name)
            raise InputError(f"--{option} is {value}: expected {least:g} to {MAX_COUNT:,}")
    e, config = adversarial_from_the_start(PRESETS[options.preset][1]), options.cluster
    schedule = Schedule(open_shards(options.shards, ["train"]).pairs, e.training)
    slots = options.slots
    if not slots:
        cluster.connect()
        slots = validation_slots(config, config.num_workers)
    gan_step = GanStep(e, schedule.total_steps, torch.device("cuda" if config.use_gpu else "cpu"))
    start = time.perf_counter()
    copy.deepcopy((gan_step.scored, gan_step.state_dict()))
    save_s = time.perf_counter() - start
    pairs = open_shards(options.shards, ["validation"]).pairs
    threads = max(int(config.cpus_per_worker), 1)
    return ValidationCost(
        preset=options.preset,
        frames=len(pairs),
        megapixels=sum(pair.short.height * pair.short.width for pair in pairs) / len(pairs) / 1e6,
        interval_s=e.training.validate_every * schedule.steps_per_epoch * options.step_ms / 1000,
        workers=config.num_workers,
        slots=slots,
        frame_s=_frame_s(gan_step, options, threads),
        apart_frame_s=_frame_s(gan_step, options, 1),
        save_s=save_s,
    )


def _frame_s(gan_step: GanStep, options: Validate, threads: int) -> float:
    """Seconds of a frame, the mean of the first `options.frames`."""
    shards = open_shards(options.shards, ["validation"], options.cluster.cache_gb)
    pairs, before = shards.pairs[: options.frames], torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        generator = gan_step.scored.eval()
        list(validate(generator, shards, pairs[:1], gan_step.device))  # the first is slow
        start = time.perf_counter()
        for _ in validate(generator, shards, pairs, gan_step.device):
            pass
        return (time.perf_counter() - start) / len(pairs)
    finally:
        torch.set_num_threads(before)


def validation_table(cost: ValidationCost) -> str:
    """The measurements as a table, with a verdict below."""
    rows = [("validation", "s a frame", "frames at a time", "takes s", "stops training s", "share of a run")]
    ways = [("in line", cost.frame_s, cost.workers, cost.in_line_s, cost.in_line_s)]
    if cost.slots:
        ways.append(("apart", cost.apart_frame_s, cost.slots, cost.apart_s, cost.blocked_s))
    for name, frame_s, count, takes_s, stops_s in ways:
        share = f"{cost.share(stops_s):.1%}"
        rows.append((name, f"{frame_s:.3g}", str(count), f"{takes_s:.3g}", f"{stops_s:.3g}", share))
    verdict = (
        f"{cost.preset}: {cost.frames} frames of {cost.megapixels:.3g} megapixels after every {cost.interval_s:.0f} s "
        "of training. "
    )
    if not cost.slots:
        verdict += "Nothing is free beside workers and readers, so training stops for each validation."
    elif cost.apart_s > cost.interval_s:
        verdict += f"Apart, training waits {cost.apart_s - cost.interval_s:.0f} s for the validation before."
    else:
        verdict += "Apart, training only stops to copy the checkpoint."
    return "\n".join([*align_columns(rows), "", verdict])
