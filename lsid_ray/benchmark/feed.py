"""Whether a data set's shards keep a device busy: the stream of a run, with a stand-in for the device.

A stand-in step takes its time and no CPU. The reference is what users of PyTorch alone would write: a DataLoader over
memory-mapped .npy files of the same frames, which reads the same crops in the same order.
"""

import os
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import ray
import torch
import tyro

from lsid_ray import cluster
from lsid_ray.config.checks import check_experiment
from lsid_ray.config.schema import ClusterConfig, DataConfig, Experiment, LossConfig, TrainingConfig
from lsid_ray.data.index import Shards, open_shards
from lsid_ray.data.schedule import Schedule
from lsid_ray.data.split import StreamSplit
from lsid_ray.data.stream import local_batches
from lsid_ray.errors import InputError
from lsid_ray.progress import align_columns

LOADER_WORKERS = 2
WARM_UP_STEPS = 40  # more than the stream reads ahead
MAX_STEP_MS, MAX_COUNT = 1e6, 10**6
PARTS = {
    "_CropReader": "readers",
    "SplitCoordinator": "split coordinator",
    "_Consumer": "consumer",
    "multiprocessing.spawn": "loader workers",
    "ray::": "rest of Ray",
    "/ray/": "rest of Ray",
}
"""Parts of the system, by what their processes' command lines contain."""


@dataclass(frozen=True)
class Feed:
    """Stream a packed data set to a stand-in for a device, and compare that with a DataLoader over .npy files."""

    shards: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SHARDS")]
    """Folder of the shards that packing wrote, or its s3:// or gs:// address."""
    step_ms: float = 100.0
    """Time that the stand-in takes for a step, in milliseconds."""
    steps: int = 100
    """Steps that are measured, after the first 40."""
    rounds: int = 3
    """How often stream and DataLoader are measured, alternately; the median counts."""
    pairs: int = 16
    """Pairs of the data set that are read, so that they fit the page cache and the .npy files the disk."""
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(crop=256, crops_per_pair=2))
    cluster: ClusterConfig = field(default_factory=lambda: ClusterConfig(cpus_per_worker=0.25))

    def run(self, folder: Path) -> tuple[str, Any]:
        """The table, and the figures in it. folder: for the .npy files."""
        result = measure_feed(self, folder)
        return feed_table(result), result


@dataclass(frozen=True)
class Rate:
    """What one way of feeding kept up."""

    samples_per_s: float
    spread: float
    """Fastest over slowest round."""
    cpu_s_per_gb: dict[str, float]
    """CPU seconds by part of the system, of the processes on this machine, for each GB of crops."""
    waiting: float
    """Fraction of the time in which the consumer waited for data."""
    longest_wait_s: float
    """For the batch of a single step, after the first 40."""
    memory_bytes: dict[str, int]
    """Memory at the end by part of the system, of the processes on this machine: what neither files nor other processes
    share, so neither mapped shards nor the object store."""


@dataclass(frozen=True)
class FeedResult:
    """Measurements of one data set on one machine."""

    sample_bytes: int
    step_ms: float
    stream: Rate
    """As fast as the stream can."""
    paced: Rate
    """With the stand-in's steps."""
    loader: Rate
    """The DataLoader, as fast as it can."""


def measure_feed(feed: Feed, folder: Path) -> FeedResult:
    """Measure on the connected cluster. folder: for the .npy files.

    Raises: InputError for an option out of range, and as `open_shards` and `check_capacity`.
    """
    for name, most in (("step_ms", MAX_STEP_MS), ("steps", MAX_COUNT), ("rounds", MAX_COUNT), ("pairs", MAX_COUNT)):
        value = getattr(feed, name)
        if not 0 < value <= most:
            raise InputError(f"--{name.replace('_', '-')} is {value}: expected more than 0 and at most {most:,.0f}")
    training = replace(feed.training, epochs=MAX_COUNT)
    data, loss = DataConfig(shards=feed.shards), LossConfig(adv_weight=0)
    check_experiment(Experiment(name="feed", data=data, loss=loss, training=training, cluster=feed.cluster))
    shards = open_shards(feed.shards, ["train"], feed.cluster.cache_gb)
    shards = replace(shards, pairs=shards.pairs[: feed.pairs])
    schedule = Schedule(shards.pairs, training)
    cluster.connect()
    cluster.check_capacity(feed.cluster)
    dataset = _NpyCrops(shards, schedule, folder)
    streams, loaders = [], []
    for _ in range(feed.rounds):
        streams.append(_measure_stream(feed, shards, schedule, 0.0))
        loaders.append(_measure_loader(dataset, feed.steps))
    paced = _measure_stream(feed, shards, schedule, feed.step_ms / 1000)
    sample_bytes = sum(array.nbytes for array in dataset[0])
    rates = (_median(rounds, sample_bytes) for rounds in (streams, [paced], loaders))
    return FeedResult(sample_bytes, feed.step_ms, *rates)


def feed_table(result: FeedResult) -> str:
    """The measurements as a table, with a verdict below."""
    ways = {
        "DataLoader over .npy files": result.loader,
        "stream": result.stream,
        f"stream, {result.step_ms:g} ms a step": result.paced,
    }
    parts = dict.fromkeys(PARTS.values())
    head = ("", "samples/s", "MB/s", "fastest/slowest", "waiting", "longest, ms", "CPU s/GB", *parts)
    rows, memory = [head], [("MB of memory", *parts)]
    for name, rate in ways.items():
        cpu = [f"{rate.cpu_s_per_gb.get(part, 0.0):.2f}" for part in parts]
        mb_per_s = rate.samples_per_s * result.sample_bytes / 1e6
        speed = (f"{rate.samples_per_s:.0f}", f"{mb_per_s:.0f}", f"{rate.spread:.2f}")
        waiting = (f"{rate.waiting:.1%}", f"{1000 * rate.longest_wait_s:.0f}")
        rows.append((name, *speed, *waiting, f"{sum(rate.cpu_s_per_gb.values()):.2f}", *cpu))
        memory.append((name, *(f"{rate.memory_bytes.get(part, 0) / 1e6:.0f}" for part in parts)))
    relative_speed = result.stream.samples_per_s / result.loader.samples_per_s
    verdict = (
        f"At {result.step_ms:g} ms a step the device waits for data {result.paced.waiting:.1%} of the time. "
        f"The stream is {relative_speed:.2f} times as fast as the DataLoader."
    )
    if result.paced.waiting > 0.02:
        verdict += " More --cluster.readers, on nodes with free CPUs, feed it faster."
    return "\n".join([*align_columns(rows), "", *align_columns(memory), "", verdict])


@dataclass(frozen=True)
class _Round:
    """One measurement."""

    samples: int
    seconds: float
    waits_s: tuple[float, ...]
    """For each step's batch."""
    cpu_s: dict[str, float]
    memory_bytes: dict[str, int]


def _median(rounds: list[_Round], sample_bytes: int) -> Rate:
    rates = [each.samples / each.seconds for each in rounds]
    parts = {part for each in rounds for part in each.cpu_s}
    return Rate(
        samples_per_s=statistics.median(rates),
        spread=max(rates) / min(rates),
        cpu_s_per_gb={
            part: statistics.median(each.cpu_s.get(part, 0.0) / (each.samples * sample_bytes / 1e9) for each in rounds)
            for part in parts
        },
        waiting=statistics.median(sum(each.waits_s) / each.seconds for each in rounds),
        longest_wait_s=statistics.median(max(each.waits_s) for each in rounds),
        memory_bytes={part: max(each.memory_bytes.get(part, 0) for each in rounds) for part in parts},
    )


def _measure_stream(feed: Feed, shards: Shards, schedule: Schedule, step_s: float) -> _Round:
    """The stream, split as Ray Train splits it, to a consumer for each worker."""
    workers, gpus = feed.cluster.num_workers, feed.cluster.gpus_per_worker if feed.cluster.use_gpu else 0
    split = StreamSplit(shards, schedule, 0, feed.cluster)
    parts = split.configure({"train": ray.data.from_items([0])}, workers, None, None)
    consumers = [_Consumer.options(num_gpus=gpus).remote() for _ in parts]
    batch_size = schedule.training.batch_size
    try:
        rounds = [
            consumer.consume.remote(part["train"], batch_size, workers, feed.steps, step_s)
            for consumer, part in zip(consumers, parts, strict=True)
        ]
        return ray.get(rounds)[0]
    finally:
        for consumer in consumers:
            ray.kill(consumer)


@ray.remote(num_cpus=0)
class _Consumer:
    """A training worker whose device is a stand-in."""

    def consume(self, stream: Any, batch_size: int, workers: int, steps: int, step_s: float) -> _Round:
        """Take `steps` local batches; the result counts the samples of all workers."""
        device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
        return _consume(local_batches(stream, batch_size, workers, device), batch_size, steps, step_s)


def _consume(batches: Iterator[Any], batch_size: int, steps: int, step_s: float) -> _Round:
    for _ in range(WARM_UP_STEPS):
        next(batches)
        time.sleep(step_s)
    waits_s, (cpu_s, _), start = [], _usage(), time.perf_counter()
    for _ in range(steps):
        wait_start = time.perf_counter()
        next(batches)
        waits_s.append(time.perf_counter() - wait_start)
        time.sleep(step_s)
    seconds, (now, memory_bytes) = time.perf_counter() - start, _usage()
    used = {part: now[part] - cpu_s[part] for part in now}
    return _Round(batch_size * steps, seconds, tuple(waits_s), used, dict(memory_bytes))


def _usage() -> tuple[Counter[str], Counter[str]]:
    """CPU seconds so far and bytes of memory that is not shared, by part of the system.

    Of this process and of Ray's and the loader's on this machine.
    """
    seconds: Counter[str] = Counter()
    memory_bytes: Counter[str] = Counter()
    for process in psutil.process_iter(["pid", "cmdline", "cpu_times", "memory_info"]):
        command = " ".join(process.info["cmdline"] or ())
        times, memory = process.info["cpu_times"], process.info["memory_info"]
        part = next((part for sign, part in PARTS.items() if sign in command), None)
        part = "consumer" if process.info["pid"] == os.getpid() else part
        if part and times and memory:
            seconds[part] += times.user + times.system
            memory_bytes[part] += memory.rss - memory.shared
    return seconds, memory_bytes


class _NpyCrops(torch.utils.data.Dataset):
    """The samples of a schedule from memory-mapped .npy files: for each pair one of planes and one of the target."""

    def __init__(self, shards: Shards, schedule: Schedule, folder: Path):
        self.schedule = schedule
        self.files = [(folder / f"{i}-short.npy", folder / f"{i}-long.npy") for i in range(len(shards.pairs))]
        for pair, (short, long) in zip(shards.pairs, self.files, strict=True):
            np.save(short, shards.planes(pair))
            np.save(long, shards.target(pair))

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        (crop,) = self.schedule.samples([number])
        side, block = self.schedule.window_side, self.schedule.layout.block
        short, long = (np.load(file, mmap_mode="r") for file in self.files[crop.pair])
        top, _, left, _ = self.schedule.pairs[crop.pair].short.padding
        y, x = block * crop.y - top, block * crop.x - left
        return (
            np.array(short[:, crop.y : crop.y + side, crop.x : crop.x + side]),
            np.array(long[:, y : y + block * side, x : x + block * side]),
        )


def _measure_loader(dataset: _NpyCrops, steps: int) -> _Round:
    batch_size = dataset.schedule.training.batch_size
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=range((WARM_UP_STEPS + steps) * batch_size),
        num_workers=LOADER_WORKERS,
        multiprocessing_context="spawn",  # this process has Ray's threads
    )
    return _consume(iter(loader), batch_size, steps, 0.0)
