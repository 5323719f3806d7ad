"""The schedule as a Ray Data dataset: rows of samples go in, crops as bytes of pixels come out."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import ray.data
from ray.data import ActorPoolStrategy, Dataset, ExecutionOptions, ExecutionResources
from ray.data._internal.execution.execution_callback import ExecutionCallback

from lsid_ray import storage
from lsid_ray.cluster import READER_CPUS
from lsid_ray.data.schedule import Sample, Schedule
from lsid_ray.data.shards import Shards
from lsid_ray.raw.color import srgb_from_camera
from lsid_ray.storage import Remote

BLOCK_BYTES = 32 << 20  # blocks of 134 MB stream 2.5 times slower than blocks of 64 MB (2 cores, ray 2.60)
STEPS_A_BLOCK = 16  # at most: Ray spends milliseconds on a block, however small
READ_AHEAD_STEPS = 2 * STEPS_A_BLOCK
READ_AHEAD_LEAST_BYTES = 64 << 20
NUMBERING_CPUS = 0.01  # `ray.data.range` would hold a whole one
LEAST_SHARE = 1e-4  # that Ray can take of a resource
THREADS_AWAY = 16  # of a reader of shards in an object store
NUMBERS_AT_ONCE = 1 << 16
TURN_S = 0.02  # of Ray's scheduling loop, at least; each turn takes in all blocks that are ready


def training_stream(
    shards: Shards, schedule: Schedule, start_step: int, num_workers: int, readers: int = 1, readers_on: str = ""
) -> Dataset:
    """All remaining steps of a run as one dataset, so that no epoch waits for the next one's plan.

    Every block holds one worker's parts of some steps, or a part of them, and Ray, told to preserve the order, hands
    blocks out in turn: so the samples of a step are the same for any number of workers. `check_order` holds it to
    that. The last steps may be followed by repetitions of the last one, which fill its block. readers, readers_on: as
    `config.Cluster` has them.

    Columns, for a crop of s packed pixels (C, k and r as in `model.inputs.Batch`): number () int64, name,
    short (C, s+r, s+r) uint16, long (3, k(s+r), k(s+r)) uint16, black (C, r, r) float32 DN, white () float32 DN,
    white_balance (3,) float32, colors (3, 3) float32, ratio () float32, flips (3,) bool: rows, columns, transpose.
    """
    part = schedule.training.batch_size // num_workers
    rows, steps = _block(part, _sample_bytes(schedule))
    numbers = ray.data.from_items([{"start": start_step, "stop": schedule.total_steps}])
    numbers = numbers.map_batches(_number, fn_args=(part, num_workers, steps), num_cpus=NUMBERING_CPUS)
    stream = numbers.repartition(target_num_rows_per_block=rows).map_batches(
        _Reader,
        fn_constructor_args=(shards, schedule),
        batch_size=rows,
        # Readers that stay: Ray ends idle tasks' processes beyond the number of CPUs, and idle actors of a pool that
        # may shrink; starting one again costs seconds of a core.
        compute=ActorPoolStrategy(size=readers),
        num_cpus=READER_CPUS,
        resources={readers_on: LEAST_SHARE} if readers_on else {},
    )
    stream.context.custom_execution_callback_classes = [_Paced]
    return stream


class _Paced(ExecutionCallback):
    """Lets Ray's scheduling loop rest: while a block waits for room, it would turn at once and take a core."""

    def on_execution_step(self, executor: Any) -> None:
        time.sleep(TURN_S)


def execution_options(schedule: Schedule) -> ExecutionOptions:
    """How a training stream is to be run: in order, and only so far ahead that training does not wait.

    Without a limit Ray reads ahead until the object store is full, at the cost of the cores that train.
    """
    ahead = READ_AHEAD_STEPS * schedule.training.batch_size * _sample_bytes(schedule)
    memory = ExecutionResources(object_store_memory=max(ahead, READ_AHEAD_LEAST_BYTES))
    return ExecutionOptions(preserve_order=True, resource_limits=memory)


def _sample_bytes(schedule: Schedule) -> int:
    layout = schedule.layout
    return 2 * schedule.side**2 * (len(layout.colors) + 3 * layout.block**2)


def _block(part: int, sample_bytes: int) -> tuple[int, int]:
    """Rows of a block of about BLOCK_BYTES at most, and the steps it holds.

    A worker's `part` of each of up to STEPS_A_BLOCK steps, or where one such part is larger a fraction of it.
    """
    steps = min(BLOCK_BYTES // (part * sample_bytes), STEPS_A_BLOCK)
    if steps:
        return part * steps, steps
    fractions = [n for n in range(1, part + 1) if part % n == 0]
    return max([n for n in fractions if n * sample_bytes <= BLOCK_BYTES], default=1), 1


def _number(batch: dict[str, np.ndarray], part: int, num_workers: int, steps: int) -> Iterator[dict[str, np.ndarray]]:
    """Numbers of the samples, `steps` steps of each worker before those of the next."""
    start, stop = int(batch["start"][0]), int(batch["stop"][0])
    rows = np.arange(part * num_workers).reshape(num_workers, 1, part)
    at_once = max(NUMBERS_AT_ONCE // (rows.size * steps), 1) * steps
    for first in range(start, stop, at_once):
        last = min(first + at_once, stop)
        step = np.arange(first, last + (first - last) % steps).clip(max=stop - 1)
        yield {"number": (step.reshape(-1, 1, steps, 1) * rows.size + rows).ravel()}


class _Reader:
    """Reads the samples of given numbers."""

    def __init__(self, shards: Shards, schedule: Schedule):
        self.shards, self.schedule = shards, schedule
        away = isinstance(storage.path(shards.folder), Remote)  # where one waits, and for many at once no longer
        self.map = ThreadPoolExecutor(THREADS_AWAY).map if away else map

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        rows = list(self.map(self._row, batch["number"], self.schedule.samples(batch["number"])))
        return {name: np.stack(column) for name, column in zip(COLUMNS, zip(*rows, strict=True), strict=True)}

    def _row(self, number: np.int64, sample: Sample) -> tuple[Any, ...]:
        """The columns of one sample."""
        side, block = self.schedule.side, self.schedule.layout.block
        pair = self.shards.pairs[sample.pair]
        top, _, left, _ = pair.short.padding
        y, x = block * sample.y - top, block * sample.x - left
        return (
            number,
            pair.name,
            self.shards.short_window(pair, sample.y, sample.x, side, side),
            self.shards.long_window(pair, y, x, block * side, block * side),
            pair.short.plane_black,
            np.float32(pair.short.white),
            np.asarray(pair.short.white_balance, np.float32),
            srgb_from_camera(pair.short.color_matrix).astype(np.float32),
            np.float32(pair.ratio),
            np.array([sample.flip_rows, sample.flip_columns, sample.transpose]),
        )


COLUMNS = ("number", "name", "short", "long", "black", "white", "white_balance", "colors", "ratio", "flips")


def check_order(numbers: np.ndarray, step: int, batch_size: int, num_workers: int) -> None:
    """Raise RuntimeError unless these sample numbers are one worker's whole part of a step."""
    expected = batch_size // num_workers
    low, high = step * batch_size, (step + 1) * batch_size
    if len(numbers) != expected or len(set(numbers)) != expected or min(numbers) < low or max(numbers) >= high:
        raise RuntimeError(
            f"step {step} got samples {sorted(map(int, numbers))}, not {expected} of {low} to {high - 1}"
        )
