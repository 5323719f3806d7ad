"""What a run keeps of the speed of its training step; reading, Ray, DDP, logging and checkpoints take the rest."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from lsid_ray import cluster
from lsid_ray.benchmark.step import MAX_COUNT, WARM_UP_STEPS, adversarial_from_the_start, random_batch, seconds_per_step
from lsid_ray.config.presets import PRESETS
from lsid_ray.config.schema import ClusterConfig, DataConfig, Experiment
from lsid_ray.data.index import open_shards
from lsid_ray.data.schedule import Schedule
from lsid_ray.errors import InputError, PartialFailure
from lsid_ray.progress import align_columns
from lsid_ray.train.events import Event
from lsid_ray.train.run_folder import STOP
from lsid_ray.train.step import GanStep
from lsid_ray.train.trainer import train

MIN_SECONDS = 10.0  # before what is measured: the first steps are slow


@dataclass(frozen=True)
class Train:
    """Train for a while, and compare the rate with that of the same step on one cached batch."""

    preset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PRESET")]
    """Name of a preset, whose networks, losses, batch and crop are used, with the adversarial loss on."""
    shards: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SHARDS")]
    """Folder of the shards that packing wrote, or its s3:// or gs:// address."""
    seconds: float = 60.0
    """How long the run is measured, after its first 10 seconds."""
    steps: int = 30
    """Steps on the cached batch, before and after the run."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def run(self, folder: Path) -> tuple[str, Any]:
        """The table, and the figures in it. folder: for the run."""
        rates = measure_training(self, folder)
        return training_table(rates), rates


@dataclass(frozen=True)
class TrainingRates:
    """Measurements of one run."""

    preset: str
    workers: int
    batch_size: int
    crop: int
    samples_per_s: float
    """Of the run."""
    cached_samples_per_s: float
    """Of all workers, if each took its steps alone, on a cached batch."""
    waiting: float
    """Share of the run's time in which it waited for data."""

    @property
    def share(self) -> float:
        """What the run keeps of the step's speed."""
        return self.samples_per_s / self.cached_samples_per_s


def measure_training(options: Train, folder: Path) -> TrainingRates:
    """Measure on the connected cluster; the cached batch in this process, with the threads or the GPU of a worker.

    Raises: InputError for an option out of range, and as `train`.
    """
    if options.preset not in PRESETS:
        raise InputError(f"{options.preset}: no such preset, expected one of {', '.join(PRESETS)}")
    for name in ("seconds", "steps"):
        if not 0 < getattr(options, name) <= MAX_COUNT:
            raise InputError(f"--{name} is {getattr(options, name)}: expected more than 0 and at most {MAX_COUNT:,}")
    e = adversarial_from_the_start(PRESETS[options.preset][1])
    training = replace(e.training, epochs=MAX_COUNT, validate_every=MAX_COUNT)
    e = replace(e, name="train", storage=str(folder), data=DataConfig(shards=options.shards))
    e = replace(e, training=training, cluster=options.cluster)
    cached = [_cached_step_s(e, options.steps)]
    events = _train_for(e, options)
    cached.append(_cached_step_s(e, options.steps))
    first, measured = events[0], events[1:]
    seconds = sum(event["seconds"] for event in measured)
    return TrainingRates(
        preset=options.preset,
        workers=e.cluster.num_workers,
        batch_size=training.batch_size,
        crop=training.crop,
        samples_per_s=(measured[-1]["step"] - first["step"]) * training.batch_size / seconds,
        cached_samples_per_s=training.batch_size / (sum(cached) / len(cached)),
        waiting=sum(event["seconds"] * event["waiting_for_data"] for event in measured) / seconds,
    )


def training_table(rates: TrainingRates) -> str:
    """The measurements as a table, with a verdict below."""
    head = ("preset", "workers", "batch, crop", "samples/s", "on a cached batch", "share", "waiting")
    row = (
        rates.preset,
        str(rates.workers),
        f"{rates.batch_size} of {rates.crop}",
        f"{rates.samples_per_s:.1f}",
        f"{rates.cached_samples_per_s:.1f}",
        f"{rates.share:.2f}",
        f"{rates.waiting:.1%}",
    )
    rest = max(1 - rates.share - rates.waiting, 0)
    verdict = (
        f"Training keeps {rates.share:.0%} of the speed of its step. It waits for data {rates.waiting:.0%} of the "
        f"time; {rest:.0%} goes to what workers and readers share, DDP and logging."
    )
    return "\n".join([*align_columns([head, row]), "", verdict])


def _train_for(e: Experiment, options: Train) -> list[Event]:
    """The "train" events of a run from MIN_SECONDS after its start, for the seconds asked for."""
    cluster.connect()
    events: list[Event] = []

    def on_event(event: Event) -> None:
        if event["kind"] != "train":
            return
        events.append(event)
        seconds = sum(each["seconds"] for each in events)
        if seconds > MIN_SECONDS + options.seconds:
            Path(e.storage, e.name, STOP).touch()

    try:
        train(e, e.data.shards, on_event=on_event)
    except PartialFailure:
        if not events:
            raise
    passed = 0.0
    for number, event in enumerate(events):
        passed += event["seconds"]
        if passed >= MIN_SECONDS:
            return events[number:]
    raise PartialFailure("the run ended before anything was measured")


def _cached_step_s(e: Experiment, steps: int) -> float:
    """Seconds of a worker's step on a cached batch of its own, with nobody beside it."""
    local = -(-e.training.batch_size // e.cluster.num_workers)
    e = replace(e, training=replace(e.training, batch_size=local))
    schedule = Schedule(open_shards(e.data.shards, ["train"], e.cluster.cache_gb).pairs, e.training)  # checks the crop
    device = torch.device("cuda" if e.cluster.use_gpu else "cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(max(int(e.cluster.cpus_per_worker), 1))
    try:
        step, batch = GanStep(e, schedule.total_steps, device), random_batch(e, device)
        seconds_per_step(step, batch, WARM_UP_STEPS)
        return seconds_per_step(step, batch, steps)
    finally:
        torch.set_num_threads(threads)
