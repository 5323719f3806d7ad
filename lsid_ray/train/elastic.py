"""Runs that go on with fewer workers, and with more when nodes join (`--cluster.min-workers`).

Ray Train's own elastic training (`num_workers=(min, max)`) leaves no room for the tasks that feed the workers, counts
on nodes as they were up to 20 s ago, and to take more workers it ends the run without a checkpoint (ray 2.60). So the
number is found here for each attempt, and a run that may grow saves a checkpoint, ends, and starts again.
"""

import time

from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

from lsid_ray.cluster import reader_needs, worker_count, worker_needs
from lsid_ray.config.schema import ClusterConfig

POLL_S = 0.2
GRANT_S = 10.0  # Ray places workers at once on nodes that answer; a node that is lost counts as alive for a while


def workers_to_start(cluster: ClusterConfig) -> int:
    """The most workers that the cluster takes now beside the readers, from `min_workers` to `num_workers`.

    The fewest if there is no room, for which the run waits.
    """
    most, fewest = worker_count(cluster), cluster.min_workers or cluster.num_workers
    if most == fewest:
        return fewest
    readers = [placement_group([needs]) for needs in reader_needs(cluster)]
    workers, end = _request(cluster, most), time.monotonic() + GRANT_S
    while (_granted(readers) < len(readers) or _granted(workers) < most) and time.monotonic() < end:
        time.sleep(POLL_S)
    granted = _granted(workers) if _granted(readers) == len(readers) else fewest
    _withdraw(readers + workers)
    return max(granted, fewest)


class MissingWorkers:
    """The workers that a run lacks: a request for each, which makes an autoscaler start nodes."""

    def __init__(self, cluster: ClusterConfig):
        self.cluster = cluster
        self.requests: list[PlacementGroup] | None = None
        self.granted = 0

    def have_joined(self, workers: int) -> bool:
        """Whether there is room for more than `workers` that train, unchanged since the last call."""
        if self.requests is None:  # readers have taken their CPUs by now
            self.requests = _request(self.cluster, self.cluster.num_workers - workers)
        before, self.granted = self.granted, _granted(self.requests)
        return 0 < self.granted == before and worker_count(self.cluster) > workers

    def withdraw(self) -> None:
        """Give back what was granted, and request no more."""
        _withdraw(self.requests or [])


def _request(cluster: ClusterConfig, workers: int) -> list[PlacementGroup]:
    return [placement_group([worker_needs(cluster)]) for _ in range(workers)]


def _granted(requests: list[PlacementGroup]) -> int:
    """How many there is room for. Not by `wait(0)`, of whose answers for one that was placed 8 of 20 were right."""
    return sum(placement_group_table(request).get("state") == "CREATED" for request in requests)


def _withdraw(requests: list[PlacementGroup]) -> None:
    for request in requests:
        remove_placement_group(request)
