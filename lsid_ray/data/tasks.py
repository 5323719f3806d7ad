"""The same work on many files, as plain Ray tasks.

Not Ray Data: it tries a file that kills its process again for ever, and costs 20 ms a file more (ray 2.60).
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import ray

Item, Outcome = TypeVar("Item"), TypeVar("Outcome")


def over_ray(
    work: Callable[..., Outcome], items: Sequence[Item], *arguments: Any
) -> Iterator[tuple[Item, Outcome | None]]:
    """work(item, *arguments) of each item as a Ray task, as they are done; None for one whose process died."""
    if not items:
        return
    remote = ray.remote(work).options(num_cpus=1, max_retries=2)
    waiting, running = iter(items), {}
    at_once = 16 + 2 * int(ray.cluster_resources().get("CPU", 0))  # a cluster that grows needs tasks that wait
    try:
        while True:
            for item in itertools.islice(waiting, at_once - len(running)):
                running[remote.remote(item, *arguments)] = item
            if not running:
                return
            for task in ray.wait(list(running))[0]:
                item = running.pop(task)
                try:
                    outcome = ray.get(task)
                except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
                    outcome = None
                yield item, outcome
    finally:
        for task in running:
            ray.cancel(task)
        if running:
            ray.wait(list(running), num_returns=len(running))
