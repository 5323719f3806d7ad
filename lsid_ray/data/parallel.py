"""Apply one function to many items in parallel, as Ray tasks."""

import ctypes
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayTaskError, WorkerCrashedError

from lsid_ray.capacity import check_task, current_capacity, describe_free, format_amounts
from lsid_ray.progress import format_duration, show_waiting

Item, Result = TypeVar("Item"), TypeVar("Result")
REUSED_BYTES = 512 << 20  # of freed memory that a process keeps
RETRIES = 1  # of a task whose process or node died; Ray's default is 3
LOST = (WorkerCrashedError, NodeDiedError, OutOfMemoryError, ObjectLostError)
POLL_S = 1.0  # between looks at the nodes
QUIET_WAIT_S, WAIT_LINE_S = 15.0, 10.0  # before waiting is shown first (a process starts in less), and between


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
    """Yields each item with function(item, *arguments), in order of completion; with None if its process died twice.

    Each item is a task with so many CPUs and GPUs, in a process that later tasks reuse. Nodes that join are used, and
    an autoscaler is asked for them. While all tasks wait for resources the open display of progress says so.
    Raises: whatever `function` raises, at once; InputError if the cluster can never hold a task.
    """

    def run(item: Item) -> Iterator[Result | None]:
        yield None  # it has started
        yield function(item, *arguments)

    needs = {"CPU": cpus, "GPU": gpus}
    check_task(needs)
    # Ray would end a process after each task with a GPU.
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_calls=0, max_retries=RETRIES, num_returns="streaming")(run)
    queue = deque(items)
    pending: dict[ray.ObjectRefGenerator, Item] = {}
    running: set[ray.ObjectRefGenerator] = set()
    limit, looked_at, shown_at, busy_at = 0, -POLL_S, 0.0, time.monotonic()
    try:
        while queue or pending:
            now = time.monotonic()
            if now - looked_at >= POLL_S:
                looked_at, limit = now, current_capacity().task_count(needs)
            while queue and len(pending) < limit:
                item = queue.popleft()
                pending[task.remote(item)] = item
            ready, _ = ray.wait(list(pending), timeout=POLL_S, fetch_local=False)
            if ready or running:
                busy_at = time.monotonic()
            elif now - busy_at >= QUIET_WAIT_S and now - shown_at >= WAIT_LINE_S:
                shown_at = now
                show_waiting(f"{format_amounts(needs)}: {describe_free(needs)}, {format_duration(now - busy_at)}")
            for outputs in ready:
                try:
                    result = ray.get(next(outputs))
                except LOST:
                    result = None
                except RayTaskError as error:
                    raise error.cause from None
                else:
                    if outputs not in running:
                        running.add(outputs)
                        continue
                running.discard(outputs)
                yield pending.pop(outputs), result
    finally:
        for outputs in pending:
            ray.cancel(outputs)
