"""What a Ray cluster has, what it may become and what is free.

These are three things: the nodes that are alive, the nodes that an autoscaler may add, and what no other job holds.
A request that fits neither of the first two is refused; any other waits, and says what for.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lsid_ray.errors import InputError
from lsid_ray.ray_internals import autoscaler_configuration

Resources = dict[str, float]
"""Amounts by name: {"CPU": 8, "GPU": 1}."""
HEAD = "node:__internal_head__"  # a resource that only the head has
READ_TIMEOUT_S = 30.0  # for the autoscaler's configuration from another node


@dataclass(frozen=True)
class Capacity:
    """The nodes of a cluster, each by its resources."""

    alive: tuple[Resources, ...]
    """The nodes that are alive now."""
    limit: tuple[Resources, ...] | None
    """All nodes at the limits of the autoscaler; without an autoscaler, `alive`. None: its limits are not known."""

    @property
    def may_grow(self) -> bool:
        """An autoscaler may add nodes."""
        return self.limit is None or len(self.limit) > len(self.alive)

    def holds(self, needs: Resources) -> bool:
        """Whether a node that is alive or may be added has these resources; True if the limits are not known."""
        return self.limit is None or any(_times(node, needs) for node in (*self.alive, *self.limit))

    def task_count(self, needs: Resources) -> int:
        """Number of tasks with these needs that the cluster at its largest holds, at least 1.

        GPU nodes that are not alive count only for tasks that need a GPU. If the limits are not known it is twice what
        the cluster holds now.
        """
        now = sum(_times(node, needs) for node in self.alive)
        if self.limit is None:
            return max(2 * now, 2)
        largest = sum(_times(node, needs) for node in self.limit if needs.get("GPU") or not node.get("GPU"))
        return max(now, largest, 1)

    def queue_limit(self, needs: Resources) -> int | None:
        """Number of tasks to have in flight; None: as many as there are, so that nodes that join by hand are used.

        The autoscaler starts nodes for tasks that wait, GPU nodes too if no others are left: not for tasks without one.
        """
        alive, limit = (sum(node.get("GPU", 0) for node in nodes) for nodes in (self.alive, self.limit or ()))
        return self.task_count(needs) if limit > alive and not needs.get("GPU") else None


def _times(node: Resources, needs: Resources) -> int:
    """How many tasks with these needs a node holds."""
    return min(math.floor(node.get(name, 0) / amount + 1e-9) for name, amount in needs.items() if amount)


def current_capacity() -> Capacity:
    """The capacity of the connected cluster. Takes milliseconds, but for the first call on a node that is no head."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    alive = tuple(node["Resources"] for node in nodes)
    head = next((node for node in nodes if HEAD in node["Resources"]), None)
    return Capacity(alive, at_limits(alive, _autoscaler(head["NodeID"])) if head else None)


def at_limits(alive: tuple[Resources, ...], autoscaler: dict[str, Any] | None) -> tuple[Resources, ...] | None:
    """The nodes of a cluster at its largest; None if nobody knows.

    autoscaler: its configuration, as in `ray up`'s file; empty if there is no autoscaler, None if it cannot be read.
    """
    if autoscaler is None:
        return None
    kinds = autoscaler.get("available_node_types", {}).values()
    added = [kind.get("resources", {}) for kind in kinds for _ in range(kind.get("max_workers", 0))]
    if len(alive) > len(added):  # the head and all that may be added, or more: nodes may join by hand
        return alive
    if not all(added):  # Ray detects the resources of one's own machines only when they join
        return None
    return (*[node for node in alive if HEAD in node], *added)


@lru_cache(maxsize=1)
def _autoscaler(head_id: str) -> dict[str, Any] | None:
    """The autoscaler's configuration, which only the head has; see `at_limits`."""
    context = ray.get_runtime_context()
    port = context.gcs_address.rpartition(":")[2]
    if context.get_node_id() == head_id:
        return autoscaler_configuration(port)
    on_head = NodeAffinitySchedulingStrategy(head_id, soft=False)
    read = ray.remote(num_cpus=0)(autoscaler_configuration).options(scheduling_strategy=on_head)
    try:
        return ray.get(read.remote(port), timeout=READ_TIMEOUT_S)
    except ray.exceptions.RayError:
        return None


def check_task(needs: Resources, option: str = "") -> None:
    """Refuse what would wait forever: a task that no node that is alive or may be added can hold.

    option: "--use-gpu: " if it is what asks for it. Raises: InputError that says what the cluster has.
    """
    capacity = current_capacity()
    if not capacity.holds(needs):
        nodes = [{"CPU": node.get("CPU", 0), "GPU": node.get("GPU", 0)} for node in capacity.limit]
        sizes = ", ".join(sorted({format_amounts(node) or "no CPU" for node in nodes}))
        lacks_gpus = needs.get("GPU") and not any(node["GPU"] for node in nodes)
        missing = "GPU" if lacks_gpus else f"node with {format_amounts(needs)}"
        raise InputError(f"{option}the cluster has no {missing}, expected at least one; its nodes have {sizes}")


def describe_free(needs: Resources) -> str:
    """How much of what is needed is free: "0.5 of 2 CPUs free, an autoscaler may add nodes"."""
    total, free, capacity = ray.cluster_resources(), ray.available_resources(), current_capacity()
    parts = [
        f"{free.get(name, 0):g} of {_amount(name, total.get(name, 0))} free" for name, amount in needs.items() if amount
    ]
    if capacity.limit is None:
        parts.append("an autoscaler may add nodes (its limits are unknown)")
    elif capacity.may_grow:
        parts.append("an autoscaler may add nodes")
    return ", ".join(parts)


def format_amounts(needs: Resources) -> str:
    """ "1 CPU and 2 GPUs"."""
    return " and ".join(_amount(name, amount) for name, amount in needs.items() if amount)


def _amount(name: str, amount: float) -> str:
    return f"{amount:g} {name}" if amount == 1 else f"{amount:g} {name}s"
