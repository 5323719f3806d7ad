"""Nodes that are to be taken away soon, as spot instances are: the run saves a checkpoint while there is time."""

import time
from typing import Any

import ray
import ray.train

from lsid_ray.progress import format_duration

CHECK_S = 5.0  # between questions, for which all workers meet; Ray Train looks as often


class PreemptionWatch:
    """One worker's knowledge of nodes that will go."""

    def __init__(self, rank: int, events: Any):
        """events: handle of the `train.events.EventBuffer`."""
        self.rank, self.events = rank, events
        self.known: set[str] = set()
        self.last_check = time.monotonic()

    def is_due(self) -> bool:
        """Whether to ask again."""
        return time.monotonic() - self.last_check >= CHECK_S

    def ask(self) -> bool:
        """Whether another node of the workers has been announced; all workers must ask at the same step."""
        self.last_check = time.monotonic()
        info = ray.train.get_preemption_info()
        new = set(info.preempted_node_ids) - self.known if info else set()
        self.known |= new
        if new and self.rank == 0:
            addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
            nodes = ", ".join(addresses.get(node, node) for node in sorted(new))
            left = f" in {format_duration(max(info.deadline_ms / 1000 - time.time(), 0))}" if info.deadline_ms else ""
            message = f"node {nodes} will be taken away{left}; saving a checkpoint"
            self.events.put.remote({"kind": "warning", "message": message})
        return bool(new)
