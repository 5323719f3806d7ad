"""Apply one function to many items in parallel, as Ray Data tasks."""

import ctypes
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import ray
import ray.data
from ray.data import DataContext, TaskPoolStrategy
from ray.util.annotations import RayDeprecationWarning

Item, Result = TypeVar("Item"), TypeVar("Result")
TASKS_IN_FLIGHT_PER_CORE = 3  # all but one queued: Ray Data submits the next only 0.1 s after one ends (ray 2.60)
MAX_ITEMS_PER_TASK = 8  # each task costs Ray 12 ms (ray 2.60)
MIN_TASKS_PER_CORE = 6  # so that all cores finish at about the same time
REUSED_BYTES = 512 << 20  # of freed memory that a process keeps
RETRIES = 1  # of a task whose process or node died; Ray Data's default is no limit


def reuse_freed_memory() -> None:
    """Tune malloc to reuse the memory of large arrays, up to REUSED_BYTES, instead of returning it to the system.

    The system maps fresh memory page by page, with a page fault for each: a quarter of the time of decoding a frame.
    Has an effect with glibc only.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
        libc.mallopt(trim_threshold, REUSED_BYTES)
        libc.mallopt(mmap_max, 0)


def parallel_map(
    function: Callable[..., Result], items: Sequence[Item], *arguments: Any
) -> Iterator[tuple[Item, Result | None]]:
    """Yields each item with function(item, *arguments), in order of completion.

    Items whose process died come last, with None. Raises: whatever `function` raises, at once.
    """
    remaining = dict(enumerate(items))
    cores = max(int(ray.cluster_resources().get("CPU", 1)), 1)
    # The items of a task whose process died are retried, each in a task of its own.
    for max_items in (MAX_ITEMS_PER_TASK, 1):
        for number, result in _map_once(function, list(remaining.items()), arguments, cores, max_items):
            yield remaining.pop(number), result
    for item in remaining.values():
        yield item, None


def _map_once(
    function: Callable[..., Result],
    items: list[tuple[int, Item]],
    arguments: tuple[Any, ...],
    cores: int,
    max_items: int,
) -> Iterator[tuple[int, Result]]:
    """Numbers and results of numbered items, at most `max_items` per task, without those whose process died."""

    def process_row(row: dict[str, Any]) -> dict[str, Any]:
        reuse_freed_memory()
        try:
            result: Result | Exception = function(pickle.loads(row["item"]), *arguments)
        except Exception as error:
            result = error
        return {"number": row["number"], "result": pickle.dumps(result)}

    if not items:
        return
    tasks = -(-len(items) // max(min(max_items, len(items) // (MIN_TASKS_PER_CORE * cores)), 1))
    rows = [{"number": number, "item": pickle.dumps(item)} for number, item in items]
    context = DataContext.get_current().copy()
    context.max_errored_blocks = -1  # a process that dies (out of memory, a decoder crash) does not stop the others
    with DataContext.current(context), warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)  # for ray_remote_args_fn, which has no replacement yet
        # Ray Data reserves no CPUs, so that it submits more tasks than there are CPUs; Ray itself runs one per CPU.
        dataset = ray.data.from_items(rows, override_num_blocks=tasks).map(
            process_row,
            num_cpus=0,
            compute=TaskPoolStrategy(size=min(TASKS_IN_FLIGHT_PER_CORE * cores, tasks)),
            ray_remote_args_fn=lambda: {"num_cpus": 1, "max_retries": RETRIES},
        )
        batches = iter(dataset.iter_batches(batch_size=None, prefetch_batches=0))  # prefetching delays each result
    for batch in batches:
        for number, pickled in zip(batch["number"].tolist(), batch["result"], strict=True):
            result = pickle.loads(pickled)
            if isinstance(result, Exception):
                raise result
            yield number, result
