"""Each item once, whatever becomes of a process."""

import os
import signal
import time
from contextlib import closing
from pathlib import Path

import pytest
import ray

from lsid_ray.data.tasks import over_ray


def test_every_item_is_worked_on_once(cluster: None) -> None:
    def square(number: int, added: int) -> int:
        return number**2 + added

    assert sorted(over_ray(square, range(100), 5)) == [(number, number**2 + 5) for number in range(100)]
    assert list(over_ray(square, [], 5)) == []


def test_a_process_that_dies_costs_its_own_item_only(cluster: None, tmp_path: Path) -> None:
    def work(number: int, folder: str) -> int:
        if number == 3:
            Path(folder, str(time.time_ns())).touch()
            os.kill(os.getpid(), signal.SIGSEGV)
        return number

    found = dict(over_ray(work, range(8), str(tmp_path)))
    assert found == {number: None if number == 3 else number for number in range(8)}
    assert len(list(tmp_path.iterdir())) == 4, "it may have been the machine's fault"


def test_processes_that_die_cost_no_other_item_of_many(cluster: None) -> None:
    def work(number: int) -> int:
        if number % 50 == 30:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    found = dict(over_ray(work, range(100)))
    assert found == {number: None if number in (30, 80) else number for number in range(100)}


def test_what_the_work_raises_is_raised(cluster: None) -> None:
    def work(number: int) -> int:
        return 1 // number

    with pytest.raises(ZeroDivisionError):
        list(over_ray(work, range(3)))


def test_who_stops_listening_stops_the_work(cluster: None, tmp_path: Path) -> None:
    def work(number: int, folder: str) -> int:
        Path(folder, str(number)).touch()
        if number:
            time.sleep(60)
        return number

    with closing(over_ray(work, range(20), str(tmp_path))) as results:
        assert next(results) == (0, 0)
    for _ in range(40):
        time.sleep(1)
        if ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"]:
            break
    else:
        pytest.fail(f"still at work after 40 s: {ray.available_resources()}")
    begun = len(list(tmp_path.iterdir()))
    time.sleep(1)
    assert len(list(tmp_path.iterdir())) == begun < 20
