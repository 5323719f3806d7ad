"""The Ray cluster this process works on, and what may be taken of it.

Ray waits forever, in silence, when workers hold every CPU and the tasks that feed them get none; so what a
job needs is compared with what the cluster has before anything starts.
"""

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.data import DataContext

from lsid_ray.config import Cluster
from lsid_ray.errors import InputError

READER_CPUS = 0.5  # of one actor that reads training samples
SOURCE_CPUS = 1  # of the task that hands out work to the readers


def connect() -> None:
    """Join the cluster that RAY_ADDRESS or `ray start` names, or else start one on this machine."""
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # a worker's print would appear twice
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "16")  # or Ray warns of each further process
    ray.init(log_to_driver=False, logging_level=logging.ERROR)
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


def check_workers(wanted: Cluster) -> None:
    """Refuse a worker group that the cluster cannot hold beside what reads the data for it.

    Raises: InputError naming the options, what they need and what the cluster has.
    """
    has = ray.cluster_resources()
    cpus, gpus = has.get("CPU", 0), has.get("GPU", 0)
    reading = SOURCE_CPUS + wanted.readers * READER_CPUS
    needs = wanted.num_workers * wanted.cpus_per_worker + reading
    if needs > cpus:
        raise InputError(
            f"--cluster.num-workers {wanted.num_workers} with --cluster.cpus-per-worker {wanted.cpus_per_worker:g} "
            f"needs {needs:g} CPUs ({reading:g} of them to read data, with --cluster.readers {wanted.readers}), "
            f"the cluster has {cpus:g}"
        )
    if wanted.use_gpu and wanted.num_workers > gpus:
        raise InputError(
            f"--cluster.use-gpu with --cluster.num-workers {wanted.num_workers} needs {wanted.num_workers} GPUs, "
            f"the cluster has {gpus:g}"
        )
