"""The schedule as a Ray Data dataset: numbers of blocks go in, crops come out."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import ray.data
from ray.data import ActorPoolStrategy, DataIterator, Dataset, ExecutionOptions, ExecutionResources
from ray.data.collate_fn import NumpyBatchCollateFn
from ray.exceptions import RayTaskError

from lsid_ray import storage
from lsid_ray.cluster import CPUS_PER_READER, MIN_RESOURCE
from lsid_ray.data.batch import Batch
from lsid_ray.data.index import Shards
from lsid_ray.data.schedule import Crop, Schedule
from lsid_ray.errors import InputError
from lsid_ray.object_store import RemotePath
from lsid_ray.raw.color import srgb_from_camera
from lsid_ray.ray_internals import SchedulingPause

if TYPE_CHECKING:  # readers do not import torch
    import torch

BLOCK_BYTES = 48 << 20  # 16 samples of crop 256 fit; blocks of 134 MB stream 2.5 times slower than blocks of 64 MB
BLOCKS_IN_STORE = 50  # at least: where a stream's share of the object store held five, its readers stalled
MAX_STEPS_PER_BLOCK = 16  # more than one, because Ray spends milliseconds on each block, however small
READ_AHEAD_STEPS = 2 * MAX_STEPS_PER_BLOCK
READ_AHEAD_BLOCKS = 8  # Ray gives the readers half of it; with less than two blocks of their own they stall
REMOTE_READ_THREADS = 16  # per reader, for shards in an object store
PREFETCH_BATCHES = 2  # local batches on the device, beside the one in use
TASKS_PER_READER = 6  # submitted ahead, so that readers work through the pauses of Ray's scheduling loop


def training_stream(
    shards: Shards, schedule: Schedule, start_step: int, num_workers: int, readers: int = 1, readers_on: str = ""
) -> Dataset:
    """All remaining steps of a run as one dataset, so that there is no pause between epochs.

    Each block holds the local batches of one worker for some steps, or a fraction of one local batch. Ray preserves
    the order of blocks and assigns them to the workers round-robin, so the samples of a step are the same for any
    number of workers; `check_order` verifies this. The last step may be repeated to fill its block. If the batch size
    is no multiple of the number of workers, some get one sample twice, to be dropped (see `local_batches`).

    readers, readers_on: as in `ClusterConfig`. Columns: the fields of `data.batch.Batch`, one row per sample.
    """
    blocks = Blocks.of(schedule, start_step, num_workers, _block_bytes())
    # Of blocks, not of samples: all are in memory at once. `from_numpy` would wait for a task with a CPU of its own.
    numbers = ray.data.from_items(list(range(blocks.count)), override_num_blocks=1)
    stream = numbers.repartition(target_num_rows_per_block=1).map_batches(
        _CropReader,
        fn_constructor_args=(shards, schedule, blocks),
        batch_size=1,
        # A pool of fixed size: Ray stops idle task workers beyond the number of CPUs, and idle actors of an
        # autoscaling pool, and starting one again costs seconds of CPU time.
        compute=ActorPoolStrategy(size=readers, max_tasks_in_flight_per_actor=TASKS_PER_READER),
        num_cpus=CPUS_PER_READER,
        resources={readers_on: MIN_RESOURCE} if readers_on else {},
    )
    stream.context.custom_execution_callback_classes = [SchedulingPause]
    stream.context.raise_original_map_exception = True  # else the reader's error does not reach `local_batches`
    return stream


def local_batches(stream: DataIterator, batch_size: int, num_workers: int, device: "torch.device") -> Iterator[Batch]:
    """The local batches of one worker, made of the columns of `training_stream` and copied to the device ahead of time.

    Their sizes differ by at most 1: of 16 samples, 3 workers get 6, 5 and 5.

    Raises: InputError for a shard that is missing or damaged, OSError if its disk or object store fails.
    """
    rows = -(-batch_size // num_workers)
    try:
        yield from stream.iter_torch_batches(
            batch_size=rows, prefetch_batches=PREFETCH_BATCHES, collate_fn=_Collate(device), device=device
        )
    except RayTaskError as error:
        if not isinstance(error.cause, InputError | OSError):
            raise
        message = str(error.cause).partition("\n")[0]  # Ray appends lines of its own
        raise (InputError if isinstance(error.cause, InputError) else OSError)(message) from None


class _Collate(NumpyBatchCollateFn):
    """Makes a `Batch`, in a thread of Ray's."""

    def __init__(self, device: "torch.device"):
        self.device = device

    def __call__(self, batch: dict[str, np.ndarray]) -> Batch:
        count = len(np.unique(batch["sample"]))  # a sample that fills up a row comes last
        return Batch.from_columns({name: column[:count] for name, column in batch.items()}, self.device)


def execution_options(schedule: Schedule) -> ExecutionOptions:
    """Execution options of a training stream: preserve the order, and limit the prefetching.

    Without a limit Ray reads ahead until the object store is full, and takes CPU time from training.
    """
    blocks = Blocks.of(schedule, 0, 1, _block_bytes())
    samples = max(READ_AHEAD_STEPS * blocks.batch_size, READ_AHEAD_BLOCKS * blocks.rows)
    memory = ExecutionResources(object_store_memory=samples * _sample_bytes(schedule))
    return ExecutionOptions(preserve_order=True, resource_limits=memory)


def _block_bytes() -> int:
    """The largest block that fits the connected cluster's object store.

    Ray Data shares the store among all datasets: those of other runs, and for three minutes after its end that of a run
    whose driver was killed (ray 2.60). A store of 2.5 GB, as on a machine with 8 GB, has room for five streams.
    """
    store = ray.cluster_resources().get("object_store_memory", math.inf)
    return int(min(BLOCK_BYTES, store / BLOCKS_IN_STORE))


def _sample_bytes(schedule: Schedule) -> int:
    layout = schedule.layout
    return 2 * schedule.window_side**2 * (len(layout.colors) + 3 * layout.block**2)


@dataclass(frozen=True)
class Blocks:
    """Which samples each block of the stream holds."""

    start: int
    """First step."""
    stop: int
    """The step after the last."""
    batch_size: int
    workers: int
    rows: int
    """Samples of a block."""
    steps: int
    """Steps whose local batches a block holds; 1 if it holds a fraction of a local batch."""

    @classmethod
    def of(cls, schedule: Schedule, start_step: int, workers: int, block_bytes: int = BLOCK_BYTES) -> "Blocks":
        """The blocks of all remaining steps of a run, each of at most `block_bytes` (or one row).

        A block holds the local batches of up to MAX_STEPS_PER_BLOCK steps; if one local batch is too large for a
        block, a fraction of it.
        """
        batch_size, sample_bytes = schedule.training.batch_size, _sample_bytes(schedule)
        local = -(-batch_size // workers)
        steps = min(block_bytes // (local * sample_bytes), MAX_STEPS_PER_BLOCK)
        divisors = [n for n in range(1, local + 1) if local % n == 0 and n * sample_bytes <= block_bytes]
        rows = local * steps or max(divisors, default=1)
        return cls(start_step, schedule.total_steps, batch_size, workers, rows, max(steps, 1))

    @property
    def _shape(self) -> tuple[int, int, int]:
        """Groups of steps, parts of a local batch, workers: in this order, as blocks go to the workers in turn."""
        local = -(-self.batch_size // self.workers)
        return -(-(self.stop - self.start) // self.steps), max(local // self.rows, 1), self.workers

    @property
    def count(self) -> int:
        """Number of blocks; the last steps are repetitions of the last one, to fill the blocks."""
        return math.prod(self._shape)

    def samples(self, block: int) -> np.ndarray:
        """The numbers of the samples of a block, (rows,) int64."""
        group, part, worker = np.unravel_index(block, self._shape)
        steps = (self.start + group * self.steps + np.arange(self.steps)).clip(max=self.stop - 1)
        positions = np.array_split(_dealt(self.batch_size, self.workers)[worker], self._shape[1])[part]
        return (steps[:, None] * self.batch_size + positions).ravel()


def _dealt(batch_size: int, num_workers: int) -> np.ndarray:
    """Position in the batch of each worker's samples, (num_workers, rows); a row that is one short repeats its last."""
    parts = np.array_split(np.arange(batch_size), num_workers)
    return np.stack([np.pad(part, (0, len(parts[0]) - len(part)), "edge") for part in parts])


class _CropReader:
    """Ray Data UDF: the number of a block to its crops."""

    def __init__(self, shards: Shards, schedule: Schedule, blocks: Blocks):
        self.shards, self.schedule, self.blocks = shards, schedule, blocks
        is_remote = isinstance(storage.to_path(shards.folder), RemotePath)  # then threads hide the latency of reads
        self.map = ThreadPoolExecutor(REMOTE_READ_THREADS).map if is_remote else map

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        (block,) = batch["item"]
        numbers = self.blocks.samples(block)
        crops = self.schedule.samples(numbers)
        layout, side = self.schedule.layout, self.schedule.window_side
        short = np.empty((len(crops), len(layout.colors), side, side), np.uint16)
        long = np.empty((len(crops), 3, layout.block * side, layout.block * side), np.uint16)
        try:
            list(self.map(self._read, crops, short, long))
        except OSError as error:  # as plain text, because Ray changes the arguments of exceptions
            raise OSError(f"{error.filename or self.shards.folder}: {error.strerror or error}") from None
        pairs = [self.shards.pairs[crop.pair] for crop in crops]
        return {
            "sample": numbers,
            "pair": np.array([pair.name for pair in pairs]),
            "short": short,
            "long": long,
            "black": np.stack([pair.short.plane_black for pair in pairs]),
            "white": np.array([pair.short.white for pair in pairs], np.float32),
            "white_balance": np.array([pair.short.white_balance for pair in pairs], np.float32),
            "srgb_from_camera": np.stack([_srgb_from_camera(pair.short.color_matrix) for pair in pairs]),
            "ratio": np.array([pair.ratio for pair in pairs], np.float32),
            "flips": np.array([(crop.flip_rows, crop.flip_columns, crop.transpose) for crop in crops]),
        }

    def _read(self, crop: Crop, short: np.ndarray, long: np.ndarray) -> None:
        """Read the pixels of one sample into its place in the block."""
        side, block = self.schedule.window_side, self.schedule.layout.block
        pair = self.shards.pairs[crop.pair]
        top, _, left, _ = pair.short.padding
        self.shards.short_window(pair, crop.y, crop.x, side, side, out=short)
        y, x = block * crop.y - top, block * crop.x - left
        self.shards.long_window(pair, y, x, block * side, block * side, out=long)


@lru_cache(maxsize=4096)
def _srgb_from_camera(color_matrix: tuple[tuple[float, ...], ...]) -> np.ndarray:
    return srgb_from_camera(color_matrix).astype(np.float32)


def check_order(numbers: list[int], step: int, batch_size: int, num_workers: int) -> None:
    """Raise AssertionError unless these sample numbers are one worker's complete local batch of this step."""
    expected = [list(dict.fromkeys(row)) for row in (step * batch_size + _dealt(batch_size, num_workers)).tolist()]
    if numbers not in expected:
        raise AssertionError(f"step {step} got samples {numbers}: expected one of {', '.join(map(str, expected))}")
