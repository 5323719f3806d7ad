"""The training stream for as many workers as Ray Train starts."""

from typing import Any

from ray.data import DataIterator, Dataset
from ray.train import DataConfig

from lsid_ray.config.schema import ClusterConfig
from lsid_ray.data.index import Shards
from lsid_ray.data.schedule import Schedule
from lsid_ray.data.stream import execution_options, training_stream


class StreamSplit(DataConfig):
    """Makes the stream when the number of workers is known, and splits it; it stands for a dataset of any content."""

    def __init__(self, shards: Shards, schedule: Schedule, start_step: int, cluster: ClusterConfig):
        super().__init__(["train"], execution_options=execution_options(schedule))
        self.shards, self.schedule, self.cluster = shards, schedule, cluster
        self.start_step = start_step

    def configure(
        self, datasets: dict[str, Dataset], world_size: int, *args: Any, **kwargs: Any
    ) -> list[dict[str, DataIterator]]:
        """As in ray.train.DataConfig."""
        readers, readers_on = self.cluster.readers, self.cluster.readers_on
        stream = training_stream(self.shards, self.schedule, self.start_step, world_size, readers, readers_on)
        return super().configure({name: stream for name in datasets}, world_size, *args, **kwargs)
