"""The Ray cluster this process works on, and what may be taken of it.

Ray waits forever, in silence, when workers hold every CPU and the tasks that feed them get none; so what a
job needs is compared with what the cluster has before anything starts.
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

from lsid_ray.config import Cluster
from lsid_ray.errors import InputError

READER_CPUS = 0.5  # of one actor that reads training samples
SOURCE_CPUS = 1  # of the task that hands out work to the readers
AUTOSCALER = "~/ray_bootstrap_config.yaml"  # where `ray up` keeps its file on the head; Ray tells no driver of it


def connect() -> None:
    """Join the cluster that RAY_ADDRESS or `ray start` names, or else start one on this machine."""
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # a worker's print would appear twice
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "16")  # or Ray warns of each further process
    if services.canonicalize_bootstrap_address(None) is None:
        # Ray will start one: on the loopback, as on a Mac, or all ports but the dashboard's are open to the network.
        os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
        ray_constants.ENABLE_RAY_CLUSTER = False
    ray.init(log_to_driver=False, logging_level=logging.ERROR)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `ray job stop` as Ctrl-C; Ray's own leaves silently
    quiet()


def quiet() -> None:
    """Let a job's own progress be what one sees, instead of Ray's notes on every plan."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    logging.getLogger("ray.train").setLevel(logging.ERROR)


@contextmanager
def starting_actors() -> Iterator[None]:
    """Keep from the terminal that Ray's core calls each actor of Ray Data an error, which it is not (issue 53727)."""
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as meanwhile:
        os.dup2(meanwhile.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
            meanwhile.seek(0)
            for line in meanwhile:
                if b"ray/issues/53727" not in line:
                    os.write(2, line)


def check_workers(wanted: Cluster) -> int:
    """Refuse a worker group that the cluster, grown to its limits, cannot hold beside what reads the data for it.

    Returns how many such runs it holds side by side.
    Raises: InputError naming the options, what they need and what the cluster has.
    """
    nodes = _nodes()
    free = [[node.get("CPU", 0), node.get("GPU", 0)] for node in nodes]
    feeding = [
        node for node, has in zip(free, nodes, strict=True) if not wanted.readers_on or has.get(wanted.readers_on)
    ]
    if not feeding:
        raise InputError(f"--cluster.readers-on {wanted.readers_on}: no node of the cluster has that resource")
    cpus, gpus = (sum(column) for column in zip(*free, strict=True))
    reading = SOURCE_CPUS + wanted.readers * READER_CPUS
    needs = wanted.num_workers * wanted.cpus_per_worker + reading
    if needs > cpus:
        raise InputError(
            f"--cluster.num-workers {wanted.num_workers} with --cluster.cpus-per-worker {wanted.cpus_per_worker:g} "
            f"needs {needs:g} CPUs ({reading:g} of them to read data, with --cluster.readers {wanted.readers}), "
            f"the cluster has {cpus:g}"
        )
    gpu = wanted.gpus_per_worker if wanted.use_gpu else 0
    if wanted.num_workers * gpu > gpus:
        raise InputError(
            f"--cluster.use-gpu with --cluster.num-workers {wanted.num_workers} needs {wanted.num_workers * gpu:g} "
            f"GPUs, the cluster has {gpus:g}"
        )
    run = [
        *[(free, wanted.cpus_per_worker, gpu)] * wanted.num_workers,
        *[(feeding, READER_CPUS, 0)] * wanted.readers,
        (free, SOURCE_CPUS, 0),
    ]
    runs = 0
    while all(_take(*part) for part in run):
        runs += 1
    if not runs:
        sizes = [format(node.get("CPU", 0), "g") for node in nodes]
        raise InputError(
            f"--cluster.cpus-per-worker {wanted.cpus_per_worker:g}: {wanted.num_workers} such workers and what reads "
            f"for them do not fit on the nodes, which have {', '.join(sizes)} CPUs"
        )
    return runs


def _nodes() -> list[dict[str, float]]:
    """Resources of each node: those that are there, or more, all those that the autoscaler of `ray up` may start."""
    there = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    path = Path(AUTOSCALER).expanduser()
    if not path.exists():
        return there
    config = yaml.safe_load(path.read_text())
    kinds = [kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"]]
    planned = [kind["resources"] for kind in kinds for _ in range(kind["max_workers"])]
    return max(there, planned, key=lambda nodes: sum(node.get("CPU", 0) for node in nodes))


def _take(free: list[list[float]], cpus: float, gpus: float) -> bool:
    """Take CPUs and GPUs of one node, if one has them."""
    for node in free:
        if node[0] + 1e-9 >= cpus and node[1] + 1e-9 >= gpus:
            node[0] -= cpus
            node[1] -= gpus
            return True
    return False
