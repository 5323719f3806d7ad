"""Runs that go on with fewer workers, and with more when nodes join (`--cluster.min-workers`).

Ray Train starts as many workers as the cluster has resources for, but leaves no room for the tasks that feed them, and
to take more workers it ends the run without a checkpoint (ray 2.60). So the most is counted here, and a run that may
grow saves a checkpoint, ends, and starts again.
"""

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from lsid_ray.cluster import worker_count, worker_needs
from lsid_ray.config.schema import ClusterConfig


class MissingWorkers:
    """The workers that a run lacks: a request for each, which makes an autoscaler start nodes."""

    def __init__(self, cluster: ClusterConfig):
        self.cluster = cluster
        self.requests: list[PlacementGroup] | None = None
        self.granted = 0

    def have_joined(self, workers: int) -> bool:
        """Whether there is room for more than `workers` that train, unchanged since the last call."""
        if self.requests is None:  # readers have taken their CPUs by now
            missing = self.cluster.num_workers - workers
            self.requests = [placement_group([worker_needs(self.cluster)]) for _ in range(missing)]
        before, self.granted = self.granted, sum(request.wait(0) for request in self.requests)
        return 0 < self.granted == before and worker_count(self.cluster) > workers

    def withdraw(self) -> None:
        """Give back what was granted, and request no more."""
        for request in self.requests or ():
            if ray.is_initialized():
                remove_placement_group(request)
