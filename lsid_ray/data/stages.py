"""Items in three stages of a Ray Data pipeline: decoded by tasks, predicted by actors on GPUs, finished by tasks.

So no GPU waits for a CPU, and none is held afterwards: the actors end with the pipeline.
"""

import pickle
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import groupby
from typing import Any, TypeVar

import numpy as np
import ray.data
from ray.data import ActorPoolStrategy, DataContext
from ray.util.annotations import RayDeprecationWarning

from lsid_ray.capacity import Resources
from lsid_ray.data.parallel import MAX_RESULT_BYTES, reuse_freed_memory, waiting_shown

Item, Result = TypeVar("Item"), TypeVar("Result")
Arrays = dict[str, np.ndarray]
"""What one stage hands to the next, by name."""
MAX_GROUP = 8
TASKS_PER_ACTOR = 3  # one that is computed, and two whose arrays are on their way
FAILED = "result"  # the column in which an exception passes the later stages


def staged_map(
    items: Sequence[Item],
    key: Callable[[Item], Any],
    decode: Callable[[list[Item]], Iterable[Arrays]],
    predictor: Callable[[], Callable[[Item, Arrays], Arrays]],
    finish: Callable[[Item, Arrays], Result],
    needs: Resources,
    actors: int,
) -> Iterator[tuple[Item, Result | None]]:
    """Yields each item with its result, in order of completion; items whose process died twice come last, with None.

    key: items that follow one another with the same key are decoded together, at most MAX_GROUP. decode: the arrays of
    each item. predictor: called once in each actor; returns what adds arrays to those of an item. finish: takes all
    arrays. needs: CPUs and GPUs of an actor; a decoding or finishing task has one CPU.
    Raises: whatever a stage raises, at once.
    """
    remaining = dict(enumerate(items))
    for size in (MAX_GROUP, 1):  # the items of a group whose process died are tried again, each alone
        groups = [list(group) for _, group in groupby(remaining.items(), lambda numbered: key(numbered[1]))]
        parts = [group[i : i + size] for group in groups for i in range(0, len(group), size)]
        if parts:
            for number, result in _stage_once(parts, decode, predictor, finish, needs, min(actors, len(remaining))):
                yield remaining.pop(number), result
    for item in remaining.values():
        yield item, None


def _stage_once(
    groups: list[list[tuple[int, Item]]],
    decode: Callable[[list[Item]], Iterable[Arrays]],
    predictor: Callable[[], Callable[[Item, Arrays], Arrays]],
    finish: Callable[[Item, Arrays], Result],
    needs: Resources,
    actors: int,
) -> Iterator[tuple[int, Result]]:
    """Numbers and results of numbered items, without those whose process died."""

    def decode_group(batch: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
        reuse_freed_memory()
        group = pickle.loads(batch["group"][0])
        try:
            for (number, item), arrays in zip(group, decode([item for _, item in group]), strict=True):
                yield _row(number, item, arrays)
        except Exception as error:
            yield _failed(group[0][0], error)

    class Predictor:
        def __init__(self) -> None:
            self.predict = predictor()

        def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
            if FAILED in batch:
                return batch
            number, item, arrays = _unpacked(batch)
            try:
                return _row(number, item, arrays | self.predict(item, arrays))
            except Exception as error:
                return _failed(number, error)

    def finish_item(batch: dict[str, np.ndarray]) -> dict[str, Any]:
        if FAILED in batch:
            return batch
        reuse_freed_memory()
        number, item, arrays = _unpacked(batch)
        try:
            return {"number": [number], FAILED: [pickle.dumps(finish(item, arrays))]}
        except Exception as error:
            return _failed(number, error)

    context = DataContext.get_current().copy()
    context.max_errored_blocks = -1  # a process that dies (out of memory, a decoder crash) does not stop the others
    context.target_max_block_size = MAX_RESULT_BYTES  # so that each item is a block of its own
    tasks = {"batch_size": 1, "batch_format": "numpy", "num_cpus": 1, "max_retries": 0}
    with DataContext.current(context), warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)
        rows = [{"group": pickle.dumps(group)} for group in groups]
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
        dataset = dataset.map_batches(decode_group, **tasks)
        dataset = dataset.map_batches(
            Predictor,
            batch_size=1,
            batch_format="numpy",
            compute=ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=TASKS_PER_ACTOR),
            num_cpus=needs["CPU"],
            num_gpus=needs["GPU"],
            max_restarts=-1,
            max_task_retries=0,
        )
        dataset = dataset.map_batches(finish_item, **tasks)
        batches = iter(dataset.iter_batches(batch_size=None, prefetch_batches=0))  # prefetching delays each result
    with closing(batches), waiting_shown(needs) as result_came:  # closed, it ends tasks and actors
        for batch in batches:
            for number, pickled in zip(batch["number"].tolist(), batch[FAILED], strict=True):
                result_came()
                result = pickle.loads(pickled)
                if isinstance(result, Exception):
                    raise result
                yield number, result


def _row(number: int, item: Any, arrays: Arrays) -> dict[str, Any]:
    return {"number": [number], "item": [pickle.dumps(item)], **{name: array[None] for name, array in arrays.items()}}


def _unpacked(batch: dict[str, np.ndarray]) -> tuple[int, Any, Arrays]:
    arrays = {name: column[0] for name, column in batch.items() if name not in ("number", "item")}
    return int(batch["number"][0]), pickle.loads(batch["item"][0]), arrays


def _failed(number: int, error: Exception) -> dict[str, Any]:
    return {"number": [number], FAILED: [pickle.dumps(error)]}
