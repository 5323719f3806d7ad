"""The schedule as a Ray Data dataset: the scheduled crops, in an order independent of the number of workers."""

import dataclasses
import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from ray.data import Dataset
from test_shard import flipped, messages_of_damage

from lsid_ray.config.schema import Experiment, TrainingConfig
from lsid_ray.data import stream
from lsid_ray.data.index import Shards, open_shards
from lsid_ray.data.schedule import Schedule
from lsid_ray.data.stream import (
    BLOCK_BYTES,
    MAX_STEPS_PER_BLOCK,
    Blocks,
    check_order,
    execution_options,
    local_batches,
    training_stream,
)
from lsid_ray.errors import InputError
from lsid_ray.object_store import StoreError
from lsid_ray.train.trainer import train

TRAINING = TrainingConfig(epochs=3, batch_size=4, crop=16, crops_per_pair=3)


@pytest.fixture
def opened(shards: Path) -> Shards:
    return open_shards(shards, ["train"])


consumer = ray.remote(num_cpus=0.1, max_calls=1)
"""Of functions that read a stream: its readers end with the process, or they would take the next stream's CPUs."""


@consumer
def consume(iterator: ray.data.DataIterator, num_workers: int) -> list[list[int]]:
    return [batch.sample for batch in local_batches(iterator, TRAINING.batch_size, num_workers, torch.device("cpu"))]


def read_steps(dataset: Dataset, schedule: Schedule, num_workers: int) -> list[list[list[int]]]:
    """The sample numbers of each local batch: by worker, then by step."""
    dataset.context.execution_options = execution_options(schedule)
    iterators = dataset.streaming_split(num_workers, equal=True)
    return ray.get([consume.remote(iterator, num_workers) for iterator in iterators], timeout=120)


@pytest.mark.parametrize(
    ("num_workers", "block_bytes"),
    [
        (1, BLOCK_BYTES),
        (2, BLOCK_BYTES),
        pytest.param(2, 10_000, id="2, in blocks of half a local batch"),
        pytest.param(3, BLOCK_BYTES, id="3, of which two have a sample less"),
    ],
)
def test_a_step_has_the_same_samples_for_any_number_of_workers(
    opened: Shards, num_workers: int, block_bytes: int, monkeypatch
) -> None:
    monkeypatch.setattr(stream, "BLOCK_BYTES", block_bytes)
    schedule = Schedule(opened.pairs, TRAINING)
    dataset = training_stream(opened, schedule, 0, num_workers, readers=2)
    workers = read_steps(dataset, schedule, num_workers)
    workers = [batches[: schedule.total_steps] for batches in workers]  # without the repetitions in the last block
    assert len(workers[0]) == schedule.total_steps
    for step, batches in enumerate(zip(*workers, strict=True)):
        for batch in batches:
            check_order(batch, step, TRAINING.batch_size, num_workers)
        assert sorted(number for batch in batches for number in batch) == list(range(4 * step, 4 * step + 4))


def test_a_stream_can_start_at_any_step(opened: Shards) -> None:
    schedule = Schedule(opened.pairs, TRAINING)
    steps = read_steps(training_stream(opened, schedule, 5, 1), schedule, 1)[0]
    remaining = schedule.total_steps - 5
    assert steps[:remaining] == [list(range(4 * step, 4 * step + 4)) for step in range(5, schedule.total_steps)]
    assert all(step == steps[remaining - 1] for step in steps[remaining:]) and len(steps) < remaining + 16


def test_crops_are_the_scheduled_windows_of_the_shards(opened: Shards) -> None:
    schedule = Schedule(opened.pairs, TRAINING)
    crops = schedule.samples(range(schedule.total_steps * 4))
    numbers = set()
    for row in training_stream(opened, schedule, 0, 1).iter_rows():
        crop = crops[row["sample"]]
        pair = opened.pairs[crop.pair]
        np.testing.assert_array_equal(row["short"], opened.planes(pair)[:, crop.y :, crop.x :][:, :17, :17])
        np.testing.assert_array_equal(row["long"], opened.target(pair)[:, 2 * crop.y :, 2 * crop.x :][:, :34, :34])
        assert row["short"].dtype == row["long"].dtype == np.uint16
        assert row["pair"] == pair.name and row["ratio"] == np.float32(pair.ratio)
        assert row["flips"].tolist() == [crop.flip_rows, crop.flip_columns, crop.transpose]
        np.testing.assert_array_equal(row["black"], np.full((4, 1, 1), 512))
        numbers.add(row["sample"])
    assert numbers == set(range(len(crops)))


@pytest.mark.parametrize("numbers", [[0, 1], [4, 4], [3, 4], [4, 5, 6], [5, 6], [8, 9]])
def test_samples_of_another_step_or_worker_are_refused(numbers: list[int]) -> None:
    check_order([6, 7], 1, 4, 2)
    with pytest.raises(AssertionError, match="step 1"):
        check_order(numbers, 1, 4, 2)


def test_blocks_hold_complete_steps_or_a_fraction_of_one_and_are_bounded_in_size(opened: Shards) -> None:
    def blocks(local_batch_size: int, crop: int) -> Blocks:
        training = TrainingConfig(batch_size=2 * local_batch_size, crop=crop)
        schedule = Schedule(opened.pairs, TRAINING)  # of the frames here, which are smaller than the crops
        object.__setattr__(schedule, "training", training)
        return Blocks.of(schedule, 0, 2)

    for local_batch_size in (1, 2, 3, 16, 17):
        rows, steps = (block := blocks(local_batch_size, 511)).rows, block.steps
        assert steps == 1 if rows < local_batch_size else rows == steps * local_batch_size
        assert local_batch_size % rows == 0 or rows % local_batch_size == 0
        assert rows == 1 or rows * 32 * 512**2 <= BLOCK_BYTES
    assert blocks(16, 256).rows == 16, "a step of the usual size is one block"
    small, large = blocks(8, 15), blocks(1, 2047)
    assert (small.rows, small.steps) == (8 * MAX_STEPS_PER_BLOCK, MAX_STEPS_PER_BLOCK)
    assert (large.rows, large.steps) == (1, 1)


def test_fifty_blocks_fit_the_object_store(opened: Shards) -> None:
    """Other datasets have their shares of it, and with five blocks in its own a stream was seen to stall."""
    schedule = Schedule(opened.pairs, dataclasses.replace(TRAINING, batch_size=1024))
    block = next(iter(training_stream(opened, schedule, 0, 1).iter_batches(batch_size=None)))
    size = sum(column.nbytes for column in block.values())
    store = ray.cluster_resources()["object_store_memory"]
    assert store / 100 < size <= store / 50 < BLOCK_BYTES


@pytest.mark.parametrize(
    ("batch_size", "workers", "steps"), [(4, 1, 1), (6, 3, 4), (10, 2, 16), (1, 1, 16), (7, 3, 4), (5, 4, 2)]
)
@pytest.mark.parametrize("parts", [1, 2])
def test_the_blocks_of_each_worker_follow_the_order_of_steps(
    batch_size: int, workers: int, steps: int, parts: int
) -> None:
    size = -(-batch_size // workers)
    rows, steps = (size // 2, 1) if parts == 2 and size % 2 == 0 else (size * steps, steps)
    blocks = Blocks(7, 50, batch_size, workers, rows, steps)
    for worker in range(workers):
        own = [blocks.samples(block) for block in range(worker, blocks.count, workers)]
        assert {len(numbers) for numbers in own} == {rows}
        local_batches = np.concatenate(own).reshape(-1, size)
        assert 43 <= len(local_batches) < 43 + steps
        for i, row in enumerate(local_batches):
            step = min(7 + i, 49)
            expected = step * batch_size + np.array_split(np.arange(batch_size), workers)[worker]
            assert row[: len(expected)].tolist() == expected.tolist()
            assert row[len(expected) :].tolist() == [expected[-1]] * (size - len(expected)), "filled up with its last"


def test_a_long_run_of_small_crops_begins_at_once(opened: Shards) -> None:
    """Ray numbers all blocks of a run beside the reading: neither their memory nor the wait for them may grow."""
    schedule = Schedule(opened.pairs, dataclasses.replace(TRAINING, epochs=10**6, batch_size=1024))
    dataset = training_stream(opened, schedule, 0, 1)
    dataset.context.execution_options = execution_options(schedule)
    (iterator,) = dataset.streaming_split(1, equal=True)

    def read(iterator: ray.data.DataIterator) -> int:
        batches = local_batches(iterator, 1024, 1, torch.device("cpu"))
        return sum(len(next(batches).sample) for _ in range(50))

    assert ray.get(consumer(read).remote(iterator), timeout=60) == 50 * 1024


def error_of(shards: Shards) -> tuple[type, str]:
    """The error that a training worker gets from a stream."""

    def read(iterator: ray.data.DataIterator) -> tuple[type, str]:
        try:
            for _ in local_batches(iterator, 4, 1, torch.device("cpu")):
                pass
        except Exception as error:
            return type(error), str(error)
        raise AssertionError("the stream came to its end")

    schedule = Schedule(shards.pairs, TRAINING)
    dataset = training_stream(shards, schedule, 0, 1)
    dataset.context.execution_options = execution_options(schedule)
    (iterator,) = dataset.streaming_split(1, equal=True)
    return ray.get(consumer(read).remote(iterator), timeout=100)


def test_a_damaged_shard_ends_the_stream_with_one_line_that_names_it(shards: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(shards, tmp_path / "copy")
    victim, other = sorted((copy / "short").glob("0*"))[:2]
    for expected in messages_of_damage(victim, other, slice(1)):
        kind, message = error_of(open_shards(copy, ["train"]))
        assert kind is InputError and expected.fullmatch(message)


def test_a_store_that_fails_ends_the_stream_with_one_line(opened: Shards) -> None:
    class Failing(Shards):
        def short_window(self, *_: object, **__: object) -> np.ndarray:
            raise StoreError(errno.EIO, "does not answer", "s3://bucket/short/x.parquet")

    failing = Failing(**{field.name: getattr(opened, field.name) for field in dataclasses.fields(opened)})
    assert error_of(failing) == (OSError, "s3://bucket/short/x.parquet: does not answer")


@pytest.mark.slow
def test_a_damaged_shard_ends_a_run_with_one_line_that_names_it(
    shards: Path, experiment: Callable[..., Experiment], tmp_path: Path
) -> None:
    copy = shutil.copytree(shards, tmp_path / "copy")
    victim = next((copy / "long").glob("2*"))  # of validation, which all read
    victim.write_bytes(flipped(victim.read_bytes()))
    with pytest.raises(InputError) as caught:
        train(experiment("damaged", cluster={"num_workers": 1}), str(copy))
    assert str(caught.value).startswith(f"{victim}: its content is not what the index says (xxh128 ")
    assert "\n" not in str(caught.value)
