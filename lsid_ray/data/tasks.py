"""The same work on many files, as a Ray Data job of tasks of a few files each."""

import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import ray
import ray.data
from ray.data import DataContext
from ray.util.annotations import RayDeprecationWarning

Item, Outcome = TypeVar("Item"), TypeVar("Outcome")
MOST_A_TASK = 8  # files; between two tasks of Ray Data a core rests for about 0.1 s (ray 2.60)
TASKS_A_CORE = 8  # at least, where there are files enough, or some cores would end long before the others
RETRIES = 2  # of a file whose process died; Ray Data's own have no end


def over_ray(
    work: Callable[..., Outcome], items: Sequence[Item], *arguments: Any
) -> Iterator[tuple[Item, Outcome | None]]:
    """work(item, *arguments) of each item, as they are done; last, with None, those whose process died.

    Raises: what `work` raises, at once.
    """
    if not items:
        return
    cores = max(int(ray.cluster_resources().get("CPU", 1)), 1)
    together = min(max(len(items) // (TASKS_A_CORE * cores), 1), MOST_A_TASK)
    left = dict(enumerate(items))
    # A process that dies costs all files of its task: those are then tried one by one.
    for number, outcome in _tasks(work, left, arguments, together, retries=0 if together > 1 else RETRIES):
        yield left.pop(number), outcome
    if left and together > 1:
        for number, outcome in _tasks(work, left, arguments, 1, retries=RETRIES):
            yield left.pop(number), outcome
    for item in left.values():
        yield item, None


def _tasks(
    work: Callable[..., Outcome], items: dict[int, Item], arguments: tuple[Any, ...], together: int, retries: int
) -> Iterator[tuple[int, Outcome]]:
    """Number and outcome of each item as it is done, but for those whose process died."""

    def one(row: dict[str, Any]) -> dict[str, Any]:
        try:
            outcome: Outcome | Exception = work(pickle.loads(row["item"]), *arguments)
        except Exception as error:
            outcome = error
        return {"number": row["number"], "outcome": pickle.dumps(outcome)}

    context = DataContext.get_current().copy()
    context.max_errored_blocks = -1  # a process that dies (memory, a decoder's crash) does not stop the others
    rows = [{"number": number, "item": pickle.dumps(item)} for number, item in items.items()]
    with DataContext.current(context), warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)  # of the last argument, which has no other name yet
        dataset = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // together)).map(
            one, num_cpus=1, ray_remote_args_fn=lambda: {"max_retries": retries}
        )
        results = iter(dataset.iter_batches(batch_size=None, prefetch_batches=0))  # or each waits for the next
    for batch in results:
        for number, pickled in zip(batch["number"].tolist(), batch["outcome"], strict=True):
            outcome = pickle.loads(pickled)
            if isinstance(outcome, Exception):
                raise outcome
            yield number, outcome
