"""The peak memory of a piece of work, in a process of its own."""

import multiprocessing
import re
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any


def peak_bytes(work: Callable[..., Any], *arguments: Any) -> int:
    """The most resident memory that a new process ever had while it did nothing but work(*arguments)."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(_peak_here, work, arguments).result()


def _peak_here(work: Callable[..., Any], arguments: tuple[Any, ...]) -> int:
    work(*arguments)
    status = Path("/proc/self/status")
    if status.exists():  # Linux hands a parent's ru_maxrss on to its children
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text()).group(1))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: bytes
