"""The Ray cluster that a job runs on, and how much of it a run may take.

If training workers hold every CPU, the tasks that feed them wait forever, silently. So what a run needs is compared
with what the cluster has before anything starts.
"""

import contextlib
import logging
import math
import os
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path

import ray
from ray.data import DataContext

from lsid_ray.capacity import Capacity, Resources, current_capacity, describe_free, format_amounts
from lsid_ray.config.schema import ClusterConfig
from lsid_ray.errors import InputError, PartialFailure
from lsid_ray.ray_internals import cluster_address, send_existing_token, use_loopback_only
from lsid_ray.storage import is_utf8

CPUS_PER_READER = 0.5
REPARTITION_CPUS = 1  # the task that deals sample numbers to the readers
MIN_RESOURCE = 1e-4  # smallest amount of a resource that a Ray actor can request
CONNECT_TIMEOUT_S = 10.0
START_ATTEMPTS = 2
TOKEN_FOLDER = "~/.ray"
NUM_WORKERS = "--cluster.num-workers"


def connect() -> None:
    """Join the cluster that RAY_ADDRESS or `ray start` names, or start one on this machine.

    Raises: InputError if the cluster does not answer or refuses this process, or if Ray cannot start in it.
    """
    if ray.is_initialized():
        return
    for text in (*sys.argv, os.getcwd()):
        if not is_utf8(text):
            raise InputError(f"{text}: not UTF-8, which Ray requires of options and of the current folder")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # or what a worker prints appears twice
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # 2 s by default; a run waits for one at its end
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "16")  # or Ray warns about every further process
    try:
        address = cluster_address()
    except ValueError as error:
        raise InputError(f"RAY_ADDRESS: {error}") from None
    if address is None:
        use_loopback_only()
        _start()
    else:
        _join(address)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `ray job stop` acts like Ctrl-C
    quiet_ray_logs()


def lost_nodes() -> dict[str, str]:
    """ID and address of each node that has left the connected cluster."""
    return {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if not node["Alive"]}


def _start() -> None:
    """Start a cluster on this machine; on a busy one Ray may give up at first, after 30 s."""
    # Ray demands a token, but everyone may read the file that it keeps it in (2.60).
    with contextlib.suppress(OSError):  # the home folder may be read-only
        Path(TOKEN_FOLDER).expanduser().mkdir(mode=0o700, exist_ok=True)
        Path(TOKEN_FOLDER).expanduser().chmod(0o700)
    for attempt in range(START_ATTEMPTS):
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
            return
        except Exception as error:  # Ray raises plain exceptions too
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            ray.shutdown()
            if attempt + 1 == START_ATTEMPTS:
                raise PartialFailure(f"Ray does not start on this machine: {reason}") from None
            print(f"Ray has not started: {reason}; trying again", flush=True)


def _join(address: str) -> None:
    print(f"joining the Ray cluster at {address}", flush=True)
    logging.getLogger("ray").setLevel(logging.ERROR)
    send_existing_token()
    try:
        if "://" not in address:  # fails at once; Ray takes minutes
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
        raise InputError(
            f"the Ray cluster at {address} cannot be joined: {reason}; expected a running cluster of ray "
            f"{ray.__version__}, and its token in ~/.ray/auth_token or RAY_AUTH_TOKEN"
        ) from None


def quiet_ray_logs() -> None:
    """Silence Ray Data's and Ray Train's own progress and notes, in favor of the job's."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # a lost process is no traceback
    logging.getLogger("ray.train").setLevel(logging.ERROR)


def check_capacity(config: ClusterConfig, capacity: Capacity | None = None) -> int:
    """The number of such runs that the cluster, scaled up to its limits, holds side by side; at least 1.

    A run is its workers, its readers and the task that feeds them. If the limits are not known, the number is that of
    now, and nothing is refused: the run waits. capacity: of the connected cluster if None.
    Raises: InputError naming the options, what they need and what the cluster has.
    """
    capacity = capacity or current_capacity()
    elastic = config.min_workers > 0
    config = replace(config, num_workers=config.min_workers or config.num_workers)
    runs = max(_count_runs(config, nodes) for nodes in (capacity.alive, capacity.limit or ()))
    if not runs and capacity.limit is not None:
        has = "has at most" if capacity.may_grow else "has"
        raise InputError(_shortage(config, capacity.limit, has, "--cluster.min-workers" if elastic else NUM_WORKERS))
    return max(runs, 1)


def _shortage(config: ClusterConfig, nodes: tuple[Resources, ...], has: str, option: str) -> str:
    """Why these nodes do not hold a run. option: where its number of workers comes from."""
    if config.readers_on and not any(node.get(config.readers_on) for node in nodes):
        return f"--cluster.readers-on {config.readers_on}: no node of the cluster has that resource"
    cpus, gpus = (sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU"))
    reading_cpus = _reading_cpus(config)
    needed = config.num_workers * config.cpus_per_worker + reading_cpus
    if needed > cpus:
        return (
            f"{option} {config.num_workers} with --cluster.cpus-per-worker {config.cpus_per_worker:g} "
            f"needs {needed:g} CPUs ({reading_cpus:g} of them to read data, with --cluster.readers {config.readers}), "
            f"the cluster {has} {cpus:g}"
        )
    if config.use_gpu and config.num_workers * config.gpus_per_worker > gpus:
        return (
            f"--cluster.use-gpu with {option} {config.num_workers} needs "
            f"{config.num_workers * config.gpus_per_worker:g} GPUs, the cluster {has} {gpus:g}"
        )
    sizes = ", ".join(format(node.get("CPU", 0), "g") for node in nodes)
    return (
        f"--cluster.cpus-per-worker {config.cpus_per_worker:g}: {config.num_workers} such workers and their readers do "
        f"not fit on the nodes, which have {sizes} CPUs"
    )


def _count_runs(config: ClusterConfig, nodes: tuple[Resources, ...]) -> int:
    """The number of such runs that these nodes hold side by side."""
    free, runs = [dict(node) for node in nodes], 0
    while _reserve_run(config, free):
        runs += 1
    return runs


def validation_slots(config: ClusterConfig, workers: int) -> int:
    """How many frames of a validation the nodes that are alive can score at a time beside a run with so many workers.

    Each takes a CPU and, in a run on GPUs, a GPU. What other jobs hold is not known in advance: it counts as free.
    """
    free, slots = [dict(node) for node in current_capacity().alive], 0
    if not _reserve_run(replace(config, num_workers=workers), free):
        return 0
    while _reserve(free, {"CPU": 1, "GPU": int(config.use_gpu)}):
        slots += 1
    return slots


def _reserve_run(config: ClusterConfig, free: list[Resources]) -> bool:
    """Take what a run needs from what is free on each node; False if it does not fit, after a part of it was taken."""
    needs = [worker_needs(config)] * config.num_workers + reader_needs(config)
    return all(_reserve(free, each) for each in needs)


def _reserve(free: list[Resources], needs: Resources) -> bool:
    """Take resources from the first node that has them; False if none has."""
    for node in free:
        if all(node.get(name, 0) + 1e-9 >= amount for name, amount in needs.items()):
            node.update({name: node.get(name, 0) - amount for name, amount in needs.items()})
            return True
    return False


def worker_needs(config: ClusterConfig) -> Resources:
    """The resources of one training worker."""
    return {"CPU": config.cpus_per_worker} | ({"GPU": config.gpus_per_worker} if config.use_gpu else {})


def reader_needs(config: ClusterConfig) -> list[Resources]:
    """The resources of each process that feeds the workers."""
    on = {config.readers_on: MIN_RESOURCE} if config.readers_on else {}
    return [*[{"CPU": CPUS_PER_READER, **on}] * config.readers, {"CPU": REPARTITION_CPUS}]


def _reading_cpus(config: ClusterConfig) -> float:
    return sum(needs["CPU"] for needs in reader_needs(config))


def worker_count(config: ClusterConfig) -> int:
    """The most workers, up to `num_workers`, that fit on the nodes that are alive, beside the readers.

    At least `min_workers`, for which the run waits if they do not fit.
    """
    alive = current_capacity().alive
    least = config.min_workers or config.num_workers
    fitting = (n for n in range(config.num_workers, least, -1) if _count_runs(replace(config, num_workers=n), alive))
    return next(fitting, least)


def describe_wait(config: ClusterConfig, have_workers: bool = False) -> str:
    """What a run waits for: "2 workers with 1 CPU each: 0.5 of 2 CPUs free", or, when they have started, for data."""
    if have_workers:
        needs = {"CPU": _reading_cpus(config)}
        return f"data, whose readers need {format_amounts(needs)}: {describe_free(needs)}"
    needs, least = worker_needs(config), config.min_workers or config.num_workers
    workers = "1 worker" if least == 1 else f"{least} workers"
    at_least = "at least " if least < config.num_workers else ""
    return f"{at_least}{workers} with {format_amounts(needs)} each: {describe_free(needs)}"


def start_attempts(config: ClusterConfig) -> int:
    """Ray Train's limit of failed starts of a worker group that makes a run wait for `config.wait_minutes`; -1: none.

    Ray Train gives up each start after RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S (default 60) and tries again.
    """
    if not config.wait_minutes:
        return -1
    timeout_s = float(os.environ.get("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "60"))
    return max(math.ceil(60 * config.wait_minutes / timeout_s) - 1, 0)
