"""The schedule through Ray Data: the right crops, in an order that does not depend on the workers."""

from pathlib import Path

import numpy as np
import pytest
import ray
from ray.data import Dataset

from lsid_ray.config import Training
from lsid_ray.data.schedule import Schedule
from lsid_ray.data.shards import Shards, open_shards
from lsid_ray.data.stream import check_order, execution_options, training_stream

TRAINING = Training(epochs=3, batch_size=4, crop=16, crops_per_pair=3)


@pytest.fixture
def opened(shards: Path) -> Shards:
    return open_shards(shards, ["train"])


@ray.remote(num_cpus=0.1)
def consume(iterator: ray.data.DataIterator, rows: int) -> list[list[int]]:
    return [batch["number"].tolist() for batch in iterator.iter_batches(batch_size=rows, prefetch_batches=1)]


def steps_of(stream: Dataset, schedule: Schedule, world: int) -> list[list[list[int]]]:
    """The sample numbers of each worker's part of each step."""
    stream.context.execution_options = execution_options(schedule)
    parts = stream.streaming_split(world, equal=True)
    return ray.get([consume.remote(part, TRAINING.batch_size // world) for part in parts], timeout=120)


@pytest.mark.parametrize("world", [1, 2])
def test_each_step_has_its_samples_whatever_the_number_of_workers(opened: Shards, world: int) -> None:
    schedule = Schedule(opened.pairs, TRAINING)
    workers = steps_of(training_stream(opened, schedule, 0, world, readers=2), schedule, world)
    assert len(workers[0]) == schedule.total_steps
    for step, parts in enumerate(zip(*workers, strict=True)):
        for part in parts:
            check_order(np.array(part), step, TRAINING.batch_size, world)
        assert sorted(number for part in parts for number in part) == list(range(4 * step, 4 * step + 4))


def test_a_stream_can_begin_at_any_step(opened: Shards) -> None:
    schedule = Schedule(opened.pairs, TRAINING)
    steps = steps_of(training_stream(opened, schedule, 5, 1), schedule, 1)[0]
    assert steps[0] == [20, 21, 22, 23] and len(steps) == schedule.total_steps - 5


def test_crops_are_windows_of_the_shards_at_the_schedules_places(opened: Shards) -> None:
    schedule = Schedule(opened.pairs, TRAINING)
    samples = schedule.samples(0, schedule.total_steps * 4)
    seen = 0
    for row in training_stream(opened, schedule, 0, 1).iter_rows():
        sample = samples[row["number"]]
        pair = opened.pairs[sample.pair]
        np.testing.assert_array_equal(row["short"], opened.planes(pair)[:, sample.y :, sample.x :][:, :17, :17])
        np.testing.assert_array_equal(row["long"], opened.target(pair)[:, 2 * sample.y :, 2 * sample.x :][:, :34, :34])
        assert row["short"].dtype == row["long"].dtype == np.uint16
        assert row["name"] == pair.name and row["ratio"] == np.float32(pair.ratio)
        assert row["flips"].tolist() == [sample.flip_rows, sample.flip_columns, sample.transpose]
        np.testing.assert_array_equal(row["black"], np.full((4, 1, 1), 512))
        seen += 1
    assert seen == len(samples)


@pytest.mark.parametrize("numbers", [[0, 1], [4, 4], [3, 4], [4, 5, 6], [8, 9]])
def test_samples_of_another_step_are_not_trained_on(numbers: list[int]) -> None:
    check_order(np.array([4, 7]), 1, 4, 2)
    with pytest.raises(RuntimeError, match="step 1"):
        check_order(np.array(numbers), 1, 4, 2)


def test_blocks_are_parts_of_a_workers_batch_of_bounded_size() -> None:
    from lsid_ray.data.stream import BLOCK_BYTES, _block_rows

    sample = 8_400_000
    for batch in (1, 2, 3, 16, 17):
        rows = _block_rows(batch, sample)
        assert batch % rows == 0 and (rows == 1 or rows * sample <= BLOCK_BYTES)
    assert _block_rows(8, 1000) == 8
