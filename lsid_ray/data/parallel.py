"""Apply one function to many items in parallel, as Ray Data tasks."""

import ctypes
import pickle
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, TypeVar

import ray
import ray.data
from ray.data import DataContext, TaskPoolStrategy
from ray.util.annotations import RayDeprecationWarning
from ray.util.state import list_tasks
from ray.util.state.exception import RayStateApiException

from lsid_ray.capacity import Resources, check_task, current_capacity, describe_free, format_amounts
from lsid_ray.progress import format_duration, show_waiting

Item, Result = TypeVar("Item"), TypeVar("Result")
MAX_ITEMS_PER_TASK = 8  # each task costs Ray 12 ms (ray 2.60)
MIN_TASKS_PER_CORE = 6  # so that all cores finish at about the same time
MAX_RESULT_BYTES = 1 << 20  # what Ray Data expects of a task; by its default it would keep most of them back
REUSED_BYTES = 512 << 20  # of freed memory that a process keeps
QUIET_WAIT_S, WAIT_LINE_S = 15.0, 10.0  # without a result, before a wait is shown first and between


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
    function: Callable[..., Result], items: Sequence[Item], *arguments: Any, cpus: float = 1, gpus: float = 0
) -> Iterator[tuple[Item, Result | None]]:
    """Yields each item with function(item, *arguments), in order of completion.

    Items whose process died twice come last, with None. Each task has so many CPUs and GPUs, and a process that later
    tasks reuse. Nodes that join are used, and an autoscaler is asked for them. While all tasks wait for resources, the
    open display of progress says so.
    Raises: whatever `function` raises, at once; InputError if the cluster can never hold a task.
    """
    needs = {"CPU": cpus, "GPU": gpus}
    check_task(needs)
    remaining = dict(enumerate(items))
    # The items of a task whose process died are retried, each in a task of its own.
    for max_items in (MAX_ITEMS_PER_TASK, 1):
        for number, result in _map_once(function, list(remaining.items()), arguments, needs, max_items):
            yield remaining.pop(number), result
    for item in remaining.values():
        yield item, None


def _map_once(
    function: Callable[..., Result],
    items: list[tuple[int, Item]],
    arguments: tuple[Any, ...],
    needs: Resources,
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
    capacity = current_capacity()
    slots = capacity.task_count(needs)
    tasks = -(-len(items) // max(min(max_items, len(items) // (MIN_TASKS_PER_CORE * slots)), 1))
    rows = [{"number": number, "item": pickle.dumps(item)} for number, item in items]
    ray_options = {"num_cpus": needs["CPU"], "num_gpus": needs["GPU"], "max_retries": 0}
    context = DataContext.get_current().copy()
    context.max_errored_blocks = -1  # a process that dies (out of memory, a decoder crash) does not stop the others
    context.target_max_block_size = MAX_RESULT_BYTES
    with DataContext.current(context), warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)  # for ray_remote_args_fn, which has no replacement yet
        # Ray Data reserves no CPUs, so that it submits all tasks at once: it submits the next only 0.1 s after one ends
        # (2.60). Ray itself starts them where there is room, also on nodes that join.
        dataset = ray.data.from_items(rows, override_num_blocks=tasks).map(
            process_row,
            num_cpus=0,
            compute=TaskPoolStrategy(capacity.queue_limit(needs)),
            ray_remote_args_fn=lambda: ray_options,
            max_calls=0,  # reuse the process: on a GPU, Ray would start one per task
        )
        batches = iter(dataset.iter_batches(batch_size=None, prefetch_batches=0))  # prefetching delays each result
    with closing(batches), waiting_shown(needs) as result_came:  # closed, it ends the other tasks
        for batch in batches:
            for number, pickled in zip(batch["number"].tolist(), batch["result"], strict=True):
                result_came()
                result = pickle.loads(pickled)
                if isinstance(result, Exception):
                    raise result
                yield number, result


@contextmanager
def waiting_shown(needs: Resources) -> Iterator[Callable[[], None]]:
    """Show now and then, from a thread, that no task of this job runs. Yields what to call at each result."""
    ended, last_result = threading.Event(), time.monotonic()

    def result_came() -> None:
        nonlocal last_result
        last_result = time.monotonic()

    def show() -> None:
        shown = 0.0
        while not ended.wait(1.0):
            now = time.monotonic()
            if now - last_result < QUIET_WAIT_S or now - shown < WAIT_LINE_S or is_running():
                continue
            shown = now
            show_waiting(f"{format_amounts(needs)}: {describe_free(needs)}, {format_duration(now - last_result)}")

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield result_came
    finally:
        ended.set()
        thread.join()


def is_running() -> bool:
    """Whether a task of this job runs; False if the cluster's dashboard, which knows, does not answer."""
    job = ray.get_runtime_context().get_job_id()
    filters = [("job_id", "=", job), ("state", "=", "RUNNING"), ("type", "=", "NORMAL_TASK")]
    try:
        address = ray.get_runtime_context().gcs_address  # or Ray finds several clusters on one machine
        return bool(list_tasks(address, filters=filters, limit=1, raise_on_missing_output=False))
    except (RayStateApiException, ConnectionError):
        return False
