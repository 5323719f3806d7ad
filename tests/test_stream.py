"""The schedule through Ray Data: the right crops, in an order that does not depend on the workers."""

from pathlib import Path

import numpy as np
import pytest
import ray
from ray.data import Dataset

from lsid_ray.config import Training
from lsid_ray.data import stream
from lsid_ray.data.schedule import Schedule
from lsid_ray.data.shards import Shards, open_shards
from lsid_ray.data.stream import (
    BLOCK_BYTES,
    STEPS_A_BLOCK,
    _block,
    _number,
    check_order,
    execution_options,
    training_stream,
)

TRAINING = Training(epochs=3, batch_size=4, crop=16, crops_per_pair=3)


@pytest.fixture
def opened(shards: Path) -> Shards:
    return open_shards(shards, ["train"])


@ray.remote(num_cpus=0.1)
def consume(iterator: ray.data.DataIterator, rows: int) -> list[list[int]]:
    return [batch["number"].tolist() for batch in iterator.iter_batches(batch_size=rows, prefetch_batches=1)]


def steps_of(dataset: Dataset, schedule: Schedule, world: int) -> list[list[list[int]]]:
    """The sample numbers of each worker's part of each step."""
    dataset.context.execution_options = execution_options(schedule)
    parts = dataset.streaming_split(world, equal=True)
    return ray.get([consume.remote(part, TRAINING.batch_size // world) for part in parts], timeout=120)


@pytest.mark.parametrize("world", [1, 2])
def test_each_step_has_its_samples_whatever_the_number_of_workers(opened: Shards, world: int) -> None:
    schedule = Schedule(opened.pairs, TRAINING)
    workers = steps_of(training_stream(opened, schedule, 0, world, readers=2), schedule, world)
    workers = [parts[: schedule.total_steps] for parts in workers]  # what fills the last block comes after
    assert len(workers[0]) == schedule.total_steps
    for step, parts in enumerate(zip(*workers, strict=True)):
        for part in parts:
            check_order(np.array(part), step, TRAINING.batch_size, world)
        assert sorted(number for part in parts for number in part) == list(range(4 * step, 4 * step + 4))


def test_a_stream_can_begin_at_any_step(opened: Shards) -> None:
    schedule = Schedule(opened.pairs, TRAINING)
    steps = steps_of(training_stream(opened, schedule, 5, 1), schedule, 1)[0]
    left = schedule.total_steps - 5
    assert steps[:left] == [list(range(4 * step, 4 * step + 4)) for step in range(5, schedule.total_steps)]
    assert all(step == steps[left - 1] for step in steps[left:]) and len(steps) < left + 16


def test_crops_are_windows_of_the_shards_at_the_schedules_places(opened: Shards) -> None:
    schedule = Schedule(opened.pairs, TRAINING)
    samples = schedule.samples(range(schedule.total_steps * 4))
    seen = set()
    for row in training_stream(opened, schedule, 0, 1).iter_rows():
        sample = samples[row["number"]]
        pair = opened.pairs[sample.pair]
        np.testing.assert_array_equal(row["short"], opened.planes(pair)[:, sample.y :, sample.x :][:, :17, :17])
        np.testing.assert_array_equal(row["long"], opened.target(pair)[:, 2 * sample.y :, 2 * sample.x :][:, :34, :34])
        assert row["short"].dtype == row["long"].dtype == np.uint16
        assert row["name"] == pair.name and row["ratio"] == np.float32(pair.ratio)
        assert row["flips"].tolist() == [sample.flip_rows, sample.flip_columns, sample.transpose]
        np.testing.assert_array_equal(row["black"], np.full((4, 1, 1), 512))
        seen.add(row["number"])
    assert seen == set(range(len(samples)))


@pytest.mark.parametrize("numbers", [[0, 1], [4, 4], [3, 4], [4, 5, 6], [8, 9]])
def test_samples_of_another_step_are_not_trained_on(numbers: list[int]) -> None:
    check_order(np.array([4, 7]), 1, 4, 2)
    with pytest.raises(RuntimeError, match="step 1"):
        check_order(np.array(numbers), 1, 4, 2)


def test_blocks_hold_whole_steps_or_a_fraction_of_one_in_bounded_size() -> None:
    for part in (1, 2, 3, 16, 17):
        rows, steps = _block(part, 8_400_000)
        assert steps == 1 if rows < part else rows == steps * part
        assert part % rows == 0 or rows % part == 0
        assert rows == 1 or rows * 8_400_000 <= BLOCK_BYTES
    assert _block(8, 1000) == (8 * STEPS_A_BLOCK, STEPS_A_BLOCK)
    assert _block(1, 50 << 20) == (1, 1)


@pytest.mark.parametrize("at_once", [1, 100, 1 << 16])
@pytest.mark.parametrize(("part", "workers", "steps"), [(4, 1, 1), (2, 3, 4), (5, 2, 16), (1, 1, 16)])
def test_each_workers_blocks_follow_the_steps(part: int, workers: int, steps: int, at_once: int, monkeypatch) -> None:
    monkeypatch.setattr(stream, "NUMBERS_AT_ONCE", at_once)
    batch = {"start": np.array([7]), "stop": np.array([50])}
    numbers = np.concatenate([part["number"] for part in _number(batch, part, workers, steps)])
    blocks = numbers.reshape(-1, workers, steps, part)  # as Ray hands them out: one to each worker in turn
    for worker in range(workers):
        parts = blocks[:, worker].reshape(-1, part)
        assert 43 <= len(parts) < 43 + steps
        for place, row in enumerate(parts):
            step = min(7 + place, 49)
            assert row.tolist() == [(step * workers + worker) * part + i for i in range(part)]
