"""The schedule as a Ray Data dataset: sample numbers go in, crops come out."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import ray.data
from ray.data import ActorPoolStrategy, DataIterator, Dataset, ExecutionOptions, ExecutionResources
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data.collate_fn import NumpyBatchCollateFn
from ray.exceptions import RayTaskError

from lsid_ray import storage
from lsid_ray.cluster import CPUS_PER_READER
from lsid_ray.data.batch import Batch
from lsid_ray.data.index import Shards
from lsid_ray.data.schedule import Crop, Schedule
from lsid_ray.errors import InputError
from lsid_ray.object_store import RemotePath
from lsid_ray.raw.color import srgb_from_camera

if TYPE_CHECKING:  # readers do not import torch
    import torch

BLOCK_BYTES = 32 << 20  # blocks of 134 MB stream 2.5 times slower than blocks of 64 MB (2 cores, ray 2.60)
MAX_STEPS_PER_BLOCK = 16  # more than one, because Ray spends milliseconds on each block, however small
READ_AHEAD_STEPS = 2 * MAX_STEPS_PER_BLOCK
MIN_READ_AHEAD_BYTES = 64 << 20
NUMBERING_CPUS = 0.01  # `ray.data.range` would reserve a full CPU
MIN_RESOURCE = 1e-4  # smallest amount of a resource that a Ray actor can request
REMOTE_READ_THREADS = 16  # per reader, for shards in an object store
MAX_NUMBERS_PER_BATCH = 1 << 16
PREFETCH_BATCHES = 2  # local batches on the device, beside the one in use
SCHEDULING_PAUSE_S = 0.02  # per iteration of Ray's scheduling loop, which handles all blocks that are ready


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
    dealt = _dealt(schedule.training.batch_size, num_workers)
    rows, steps = _block_size(dealt.shape[1], _sample_bytes(schedule))
    numbers = ray.data.from_items([{"start": start_step, "stop": schedule.total_steps}])
    numbers = numbers.map_batches(
        _sample_numbers, fn_args=(dealt, schedule.training.batch_size, steps), num_cpus=NUMBERING_CPUS
    )
    stream = numbers.repartition(target_num_rows_per_block=rows).map_batches(
        _CropReader,
        fn_constructor_args=(shards, schedule),
        batch_size=rows,
        # A pool of fixed size: Ray stops idle task workers beyond the number of CPUs, and idle actors of an
        # autoscaling pool, and starting one again costs seconds of CPU time.
        compute=ActorPoolStrategy(size=readers),
        num_cpus=CPUS_PER_READER,
        resources={readers_on: MIN_RESOURCE} if readers_on else {},
    )
    stream.context.custom_execution_callback_classes = [_SchedulingPause]
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


class _SchedulingPause(ExecutionCallback):
    """Slows Ray's scheduling loop: under backpressure it would otherwise spin and occupy a core."""

    def on_execution_step(self, executor: Any) -> None:
        time.sleep(SCHEDULING_PAUSE_S)


def execution_options(schedule: Schedule) -> ExecutionOptions:
    """Execution options of a training stream: preserve the order, and limit the prefetching.

    Without a limit Ray reads ahead until the object store is full, and takes CPU time from training.
    """
    read_ahead_bytes = READ_AHEAD_STEPS * schedule.training.batch_size * _sample_bytes(schedule)
    memory = ExecutionResources(object_store_memory=max(read_ahead_bytes, MIN_READ_AHEAD_BYTES))
    return ExecutionOptions(preserve_order=True, resource_limits=memory)


def _sample_bytes(schedule: Schedule) -> int:
    layout = schedule.layout
    return 2 * schedule.window_side**2 * (len(layout.colors) + 3 * layout.block**2)


def _block_size(local_batch_size: int, sample_bytes: int) -> tuple[int, int]:
    """Rows per block, and the steps that they span, for blocks of at most BLOCK_BYTES (or one row).

    A block holds the local batches of up to MAX_STEPS_PER_BLOCK steps; if one local batch is too large for a block, a
    fraction of it.
    """
    steps = min(BLOCK_BYTES // (local_batch_size * sample_bytes), MAX_STEPS_PER_BLOCK)
    if steps:
        return local_batch_size * steps, steps
    divisors = [n for n in range(1, local_batch_size + 1) if local_batch_size % n == 0]
    return max([n for n in divisors if n * sample_bytes <= BLOCK_BYTES], default=1), 1


def _dealt(batch_size: int, num_workers: int) -> np.ndarray:
    """Position in the batch of each worker's samples, (num_workers, rows); a row that is one short repeats its last."""
    parts = np.array_split(np.arange(batch_size), num_workers)
    return np.stack([np.pad(part, (0, len(parts[0]) - len(part)), "edge") for part in parts])


def _sample_numbers(
    batch: dict[str, np.ndarray], dealt: np.ndarray, batch_size: int, steps: int
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the sample numbers of the run: for each group of `steps` steps, worker by worker. dealt: of `_dealt`."""
    start, stop = int(batch["start"][0]), int(batch["stop"][0])
    chunk = max(MAX_NUMBERS_PER_BATCH // (dealt.size * steps), 1) * steps
    for first in range(start, stop, chunk):
        last = min(first + chunk, stop)
        step = np.arange(first, last + (first - last) % steps).clip(max=stop - 1)
        yield {"sample": (step.reshape(-1, 1, steps, 1) * batch_size + dealt[:, None]).ravel()}


class _CropReader:
    """Ray Data UDF: sample numbers to crops."""

    def __init__(self, shards: Shards, schedule: Schedule):
        self.shards, self.schedule = shards, schedule
        is_remote = isinstance(storage.to_path(shards.folder), RemotePath)  # then threads hide the latency of reads
        self.map = ThreadPoolExecutor(REMOTE_READ_THREADS).map if is_remote else map

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        numbers, crops = batch["sample"], self.schedule.samples(batch["sample"])
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
