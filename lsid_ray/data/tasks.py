"""The same work on many files, as a Ray Data job with a task a file."""

import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import ray.data
from ray.data import DataContext
from ray.util.annotations import RayDeprecationWarning

Item, Outcome = TypeVar("Item"), TypeVar("Outcome")
RETRIES = 2  # of a file whose process died; Ray Data's own retries have no end


def over_ray(
    work: Callable[..., Outcome], items: Sequence[Item], *arguments: Any
) -> Iterator[tuple[Item, Outcome | None]]:
    """work(item, *arguments) of each item, as they are done; last, with None, those whose process died.

    Raises: what `work` raises, at once.
    """
    if not items:
        return

    def one(row: dict[str, Any]) -> dict[str, Any]:
        try:
            outcome: Outcome | Exception = work(pickle.loads(row["item"]), *arguments)
        except Exception as error:
            outcome = error
        return {"number": row["number"], "outcome": pickle.dumps(outcome)}

    context = DataContext.get_current().copy()
    context.max_errored_blocks = -1  # a process that dies (memory, a decoder's crash) costs its own file only
    rows = [{"number": number, "item": pickle.dumps(item)} for number, item in enumerate(items)]
    with DataContext.current(context), warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)  # of the last argument, which has no other name yet
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            one, num_cpus=1, ray_remote_args_fn=lambda: {"max_retries": RETRIES}
        )
        results = iter(dataset.iter_batches(batch_size=None, prefetch_batches=0))  # or each waits for the next
    left = dict(enumerate(items))
    for batch in results:
        for number, pickled in zip(batch["number"], batch["outcome"], strict=True):
            outcome = pickle.loads(pickled)
            if isinstance(outcome, Exception):
                raise outcome
            yield left.pop(int(number)), outcome
    for item in left.values():
        yield item, None
