"""The peak memory of a function, run in a process of its own."""

import multiprocessing
import re
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any


def peak_bytes(function: Callable[..., Any], *arguments: Any) -> int:
    """Peak resident memory, in bytes, of a new process that only runs function(*arguments)."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(_run_and_measure, function, arguments).result()


def _run_and_measure(function: Callable[..., Any], arguments: tuple[Any, ...]) -> int:
    function(*arguments)
    status = Path("/proc/self/status")
    if status.exists():  # Linux: ru_maxrss is inherited from the parent
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text()).group(1))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: bytes
