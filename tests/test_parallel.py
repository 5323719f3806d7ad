"""Every item is processed once, even if worker processes die."""

import os
import signal
import time
from contextlib import closing
from pathlib import Path

import pytest
import ray

from lsid_ray.data.parallel import parallel_map


def test_every_item_is_processed_once(cluster: None) -> None:
    def square_plus(number: int, offset: int) -> int:
        return number**2 + offset

    assert sorted(parallel_map(square_plus, range(100), 5)) == [(number, number**2 + 5) for number in range(100)]
    assert list(parallel_map(square_plus, [], 5)) == []


def test_a_dying_process_loses_only_its_own_item(cluster: None, tmp_path: Path) -> None:
    def crash_on_3(number: int, folder: str) -> int:
        if number == 3:
            Path(folder, str(time.time_ns())).touch()
            os.kill(os.getpid(), signal.SIGSEGV)
        return number

    results = dict(parallel_map(crash_on_3, range(8), str(tmp_path)))
    assert results == {number: None if number == 3 else number for number in range(8)}
    assert len(list(tmp_path.iterdir())) == 2, "it is tried again once"


def test_dying_processes_lose_no_other_item_of_their_tasks(cluster: None) -> None:
    def crash_on_two(number: int) -> int:
        if number % 50 == 30:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    results = dict(parallel_map(crash_on_two, range(100)))
    assert results == {number: None if number in (30, 80) else number for number in range(100)}


def test_an_exception_in_the_function_is_raised(cluster: None) -> None:
    def invert(number: int) -> int:
        return 1 // number

    with pytest.raises(ZeroDivisionError):
        list(parallel_map(invert, range(3)))


def test_closing_the_iterator_cancels_the_remaining_tasks(cluster: None, tmp_path: Path) -> None:
    def sleep_long(number: int, folder: str) -> int:
        Path(folder, str(number)).touch()
        if number:
            time.sleep(60)
        return number

    with closing(parallel_map(sleep_long, range(20), str(tmp_path))) as results:
        assert next(results) == (0, 0)
    for _ in range(40):
        time.sleep(1)
        if ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"]:
            break
    else:
        pytest.fail(f"tasks still run after 40 s: {ray.available_resources()}")
    started = len(list(tmp_path.iterdir()))
    time.sleep(1)
    assert len(list(tmp_path.iterdir())) == started < 20
