"""Why an attempt to train failed, in one line, and whether another attempt can help."""

import re
import textwrap

import ray.train
import torch
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.train import ControllerError, PreemptionError, WorkerGroupError

from lsid_ray.errors import InputError

MAX_LENGTH = 300  # of an error's first line, some of Ray's are essays
# Errors that come back at every attempt. Lost processes, connections, stores and disks raise others.
DETERMINISTIC = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    TypeError,
    ValueError,
    torch.OutOfMemoryError,
)


def cause_of(error: ray.train.TrainingFailedError | RayError | OSError) -> tuple[str, Exception]:
    """Where an attempt failed ("worker 1"), and the exception that ended it."""
    if isinstance(error, OSError):
        return "the driver", error
    if isinstance(error, WorkerGroupError):
        # Ray reports only the workers that failed first; others fail because of them.
        rank, cause = min(error.worker_failures.items())
        return f"worker {rank}", cause
    if isinstance(error, ControllerError):
        cause = error.controller_failure
        return "Ray Train", cause.cause if isinstance(cause, RayTaskError) and cause.cause else cause
    if isinstance(error, PreemptionError):
        return f"worker {', '.join(map(str, error.preemption_info.preempted_ranks))}", error
    return "Ray Train", error


def is_deterministic(cause: Exception) -> bool:
    """Whether the same error would end the next attempt too."""
    return isinstance(cause, DETERMINISTIC)


def describe(where: str, cause: Exception) -> str:
    """One line: where it happened and what."""
    text = str(cause).strip()
    if isinstance(cause, PreemptionError):
        return f"the node of {where} was taken away"
    if "health check failed" in text:  # Ray's text for a process that is gone, with a dump of its actor
        node, pid = (re.search(pattern, text) for pattern in (r"node_ip='([^']*)'", r"pid=(\d+)"))
        place = f" (process {pid[1]} on node {node[1]})" if node and pid else ""
        return f"{where} died{place}"
    if isinstance(cause, torch.OutOfMemoryError):
        text = f"{text.splitlines()[0]} (try a lower --training.batch-size or --training.crop)"
    lines = text.splitlines() or [type(cause).__name__]
    if isinstance(cause, RayActorError):  # a traceback, of which the last line says what happened
        return f"{where}: {textwrap.shorten(lines[-1], MAX_LENGTH, placeholder=' ...')}"
    prefix = "" if isinstance(cause, InputError | OSError) else f"{type(cause).__name__}: "
    return f"{where}: {prefix}{textwrap.shorten(lines[0], MAX_LENGTH, placeholder=' ...')}"
