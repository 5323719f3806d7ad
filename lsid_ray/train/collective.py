"""Python objects exchanged by the workers of a run; all of them must call these at the same step."""

from typing import Any

import torch.distributed as dist


def from_first(value: Any, world_size: int) -> Any:
    """Rank 0's value."""
    if world_size == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def gather(part: list[Any], world_size: int) -> list[Any]:
    """The parts of all workers in one list, by rank."""
    if world_size == 1:
        return part
    parts: list[Any] = [None] * world_size
    dist.all_gather_object(parts, part)
    return [item for each in parts for item in each]
