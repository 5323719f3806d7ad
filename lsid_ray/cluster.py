"""The Ray cluster that a job runs on, and how much of it a run may take.

If training workers hold every CPU, the tasks that feed them wait forever, silently. So what a run needs is compared
with what the cluster has before anything starts.
"""

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
import yaml
from ray._private import ray_constants, services
from ray.data import DataContext

from lsid_ray.config.schema import ClusterConfig
from lsid_ray.errors import InputError

CPUS_PER_READER = 0.5
SCHEDULE_TASK_CPUS = 1  # the task that hands sample numbers to the readers
AUTOSCALER_CONFIG = "~/ray_bootstrap_config.yaml"  # where `ray up` keeps its file on the head; no public API tells


def connect() -> None:
    """Join the cluster that RAY_ADDRESS or `ray start` names, or start one on this machine."""
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # or what a worker prints appears twice
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "16")  # or Ray warns about every further process
    if services.canonicalize_bootstrap_address(None) is None:
        # Ray will start a cluster. Restrict it to the loopback interface, which is the default on macOS only; there
        # is no public option.
        os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
        ray_constants.ENABLE_RAY_CLUSTER = False
    ray.init(log_to_driver=False, logging_level=logging.ERROR)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `ray job stop` acts like Ctrl-C
    quiet_ray_logs()


def quiet_ray_logs() -> None:
    """Silence Ray Data's and Ray Train's own progress and notes, in favor of the job's."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    logging.getLogger("ray.train").setLevel(logging.ERROR)


@contextmanager
def hidden_actor_warnings() -> Iterator[None]:
    """Drop the lines that Ray's core writes to stderr for each new actor of Ray Data (ray issue 53727)."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as buffer:
        os.dup2(buffer.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            buffer.seek(0)
            for line in buffer:
                if b"ray/issues/53727" not in line:
                    os.write(2, line)


def check_capacity(config: ClusterConfig) -> int:
    """The number of such runs that the cluster, scaled up to its limits, holds side by side; at least 1.

    A run is its workers, its readers and the task that feeds them.
    Raises: InputError naming the options, what they need and what the cluster has.
    """
    nodes = _nodes()
    free = [[node.get("CPU", 0), node.get("GPU", 0)] for node in nodes]
    reading_nodes = [
        resources
        for resources, node in zip(free, nodes, strict=True)
        if not config.readers_on or node.get(config.readers_on)
    ]
    if not reading_nodes:
        raise InputError(f"--cluster.readers-on {config.readers_on}: no node of the cluster has that resource")
    cpus, gpus = (sum(column) for column in zip(*free, strict=True))
    reading_cpus = SCHEDULE_TASK_CPUS + config.readers * CPUS_PER_READER
    needed = config.num_workers * config.cpus_per_worker + reading_cpus
    if needed > cpus:
        raise InputError(
            f"--cluster.num-workers {config.num_workers} with --cluster.cpus-per-worker {config.cpus_per_worker:g} "
            f"needs {needed:g} CPUs ({reading_cpus:g} of them to read data, with --cluster.readers {config.readers}), "
            f"the cluster has {cpus:g}"
        )
    gpu = config.gpus_per_worker if config.use_gpu else 0
    if config.num_workers * gpu > gpus:
        raise InputError(
            f"--cluster.use-gpu with --cluster.num-workers {config.num_workers} needs {config.num_workers * gpu:g} "
            f"GPUs, the cluster has {gpus:g}"
        )
    run = [
        *[(free, config.cpus_per_worker, gpu)] * config.num_workers,
        *[(reading_nodes, CPUS_PER_READER, 0)] * config.readers,
        (free, SCHEDULE_TASK_CPUS, 0),
    ]
    runs = 0
    while all(_reserve(*part) for part in run):
        runs += 1
    if not runs:
        sizes = ", ".join(format(node.get("CPU", 0), "g") for node in nodes)
        raise InputError(
            f"--cluster.cpus-per-worker {config.cpus_per_worker:g}: {config.num_workers} such workers and their "
            f"readers do not fit on the nodes, which have {sizes} CPUs"
        )
    return runs


def _nodes() -> list[dict[str, float]]:
    """Resources of each node: of those alive or, if that is more, of all that the autoscaler of `ray up` may start."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    path = Path(AUTOSCALER_CONFIG).expanduser()
    if not path.exists():
        return alive
    config = yaml.safe_load(path.read_text())
    types = [kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"]]
    planned = [kind["resources"] for kind in types for _ in range(kind["max_workers"])]
    return max(alive, planned, key=lambda nodes: sum(node.get("CPU", 0) for node in nodes))


def _reserve(free: list[list[float]], cpus: float, gpus: float) -> bool:
    """Take CPUs and GPUs from the first node that has them; False if none has."""
    for node in free:
        if node[0] + 1e-9 >= cpus and node[1] + 1e-9 >= gpus:
            node[0] -= cpus
            node[1] -= gpus
            return True
    return False
