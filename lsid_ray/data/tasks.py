"""The same work on many files, as a Ray Data job."""

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

Item, Outcome = TypeVar("Item"), TypeVar("Outcome")
IN_FLIGHT_A_CORE = 3  # tasks, all but one waiting: Ray Data gives out the next only 0.1 s after an end (ray 2.60)
MOST_TOGETHER = 8  # items in a task: each task costs Ray 12 ms of work (ray 2.60)
LEAST_A_CORE = 6  # tasks, so that all cores end at about the same time
KEPT_BYTES = 512 << 20  # of freed memory, by a process that may soon need it again
RETRIES = 1  # of a task whose process or node died; Ray Data's own have no end


def keep_memory() -> None:
    """Have this process reuse the memory of large arrays, within KEPT_BYTES, instead of returning it to the system.

    The system hands out fresh memory page by page, each fault cleared and counted: a quarter of the time of decoding
    a frame. glibc only; elsewhere nothing happens.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
        libc.mallopt(trim_threshold, KEPT_BYTES)
        libc.mallopt(mmap_max, 0)


def over_ray(
    work: Callable[..., Outcome], items: Sequence[Item], *arguments: Any
) -> Iterator[tuple[Item, Outcome | None]]:
    """work(item, *arguments) of each item, as they are done; last, with None, those whose process died.

    Raises: what `work` raises, at once.
    """
    left = dict(enumerate(items))
    cores = max(int(ray.cluster_resources().get("CPU", 1)), 1)
    # Items that shared a task with one whose process died are taken up again, each in a task of its own.
    for most in (MOST_TOGETHER, 1):
        for number, outcome in _map(work, list(left.items()), arguments, cores, most):
            yield left.pop(number), outcome
    for item in left.values():
        yield item, None


def _map(
    work: Callable[..., Outcome], items: list[tuple[int, Item]], arguments: tuple[Any, ...], cores: int, most: int
) -> Iterator[tuple[int, Outcome]]:
    """Numbers and outcomes of numbered items, at most so many a task; not those of a task whose process died."""

    def one(row: dict[str, Any]) -> dict[str, Any]:
        keep_memory()
        try:
            outcome: Outcome | Exception = work(pickle.loads(row["item"]), *arguments)
        except Exception as error:
            outcome = error
        return {"number": row["number"], "outcome": pickle.dumps(outcome)}

    if not items:
        return
    tasks = -(-len(items) // max(min(most, len(items) // (LEAST_A_CORE * cores)), 1))
    rows = [{"number": number, "item": pickle.dumps(item)} for number, item in items]
    context = DataContext.get_current().copy()
    context.max_errored_blocks = -1  # a process that dies (memory, a decoder's crash) does not stop the others
    with DataContext.current(context), warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)  # of the last argument, which has no other name yet
        # Ray Data counts no CPUs, so that it starts more tasks than there are; Ray itself runs one a CPU.
        dataset = ray.data.from_items(rows, override_num_blocks=tasks).map(
            one,
            num_cpus=0,
            compute=TaskPoolStrategy(size=min(IN_FLIGHT_A_CORE * cores, tasks)),
            ray_remote_args_fn=lambda: {"num_cpus": 1, "max_retries": RETRIES},
        )
        results = iter(dataset.iter_batches(batch_size=None, prefetch_batches=0))  # or each waits for the next
    for batch in results:
        for number, pickled in zip(batch["number"].tolist(), batch["outcome"], strict=True):
            outcome = pickle.loads(pickled)
            if isinstance(outcome, Exception):
                raise outcome
            yield number, outcome
