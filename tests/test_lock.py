"""One driver at a time for a folder."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from lsid_ray.benchmark.nodes import until
from lsid_ray.errors import InputError, PartialFailure
from lsid_ray.storage import AnyPath, to_path
from lsid_ray.train import lock
from lsid_ray.train.lock import LOCK, locked

HOLD = """
import sys, time
from lsid_ray.storage import to_path
from lsid_ray.train.lock import locked
with locked(to_path(sys.argv[1]), print):
    print("held", flush=True)
    time.sleep(300)
"""


@pytest.fixture(params=["disk", "store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AnyPath:
    for name, seconds in {"BEAT_S": 0.1, "DEAD_S": 1.5, "SETTLE_S": 0.2}.items():
        monkeypatch.setattr(lock, name, seconds)
    if request.param == "store":
        request.getfixturevalue("store")
        return to_path("s3://bucket/test/run")
    return tmp_path / "run"


def test_a_second_process_is_refused_until_the_first_ends_or_dies(folder: AnyPath) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        refusal = rf"--name run: \S+run is in use by process {holder.pid} on \S+ since 20\S+ \S+; stop it"
        with pytest.raises(InputError, match=refusal), locked(folder, print):
            pass
        os.kill(holder.pid, signal.SIGSTOP)  # it does not touch the lock, but lives
        with pytest.raises(InputError, match="is in use by process"), locked(folder, print):
            pass
        holder.kill()
    said: list[str] = []
    with locked(folder, said.append):
        assert json.loads((folder / LOCK).read_text())["pid"] == os.getpid()
        with pytest.raises(InputError, match=f"in use by process {os.getpid()}"), locked(folder, print):
            pass
    assert not said and not (folder / LOCK).exists(), "on one machine the death of a process is certain"


def other_machine(folder: AnyPath) -> None:
    """Make the lock look as if its holder ran elsewhere."""
    holder = json.loads((folder / LOCK).read_text())
    (folder / LOCK).write_text(json.dumps({**holder, "machine": "other", "host": "other", "pid": 1}))


def test_a_holder_on_another_machine_is_watched(folder: AnyPath, monkeypatch: pytest.MonkeyPatch) -> None:
    short_watch = lock.DEAD_S
    monkeypatch.setattr(lock, "DEAD_S", 30.0)  # a store has times in whole seconds, and a busy machine pauses
    folder.mkdir(parents=True)
    lock._write(folder / LOCK, lock.Holder.this_process())
    other_machine(folder)
    ended = threading.Event()

    def beat() -> None:
        holder = lock._read(folder / LOCK)
        assert holder
        while not ended.wait(0.3):
            lock._touch(folder / LOCK, holder)

    said: list[str] = []
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(InputError, match="in use by process 1 on other since"), locked(folder, said.append):
            pass
    finally:
        ended.set()
        thread.join()
    assert "waiting up to" in said[0]
    monkeypatch.setattr(lock, "DEAD_S", short_watch)
    with locked(folder, said.append):  # nobody touches it any more
        assert json.loads((folder / LOCK).read_text())["machine"] != "other"


def test_of_two_that_start_together_one_wins(folder: AnyPath) -> None:
    results: list[str] = []

    def hold() -> None:
        try:
            with locked(folder, print):
                results.append("held")
                until(lambda: len(results) == 3, 10)
        except InputError:
            results.append("refused")

    threads = [threading.Thread(target=hold) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["held", "refused", "refused"]


def test_a_lock_that_is_cut_holds_nothing(folder: AnyPath) -> None:
    folder.mkdir(parents=True)
    (folder / LOCK).write_text('{"id": "')
    with locked(folder, print):
        assert json.loads((folder / LOCK).read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("ignored", [False, True], ids=["foreground", "nohup"])
def test_who_was_suspended_and_lost_the_folder_ends(folder: AnyPath, ignored: bool, request) -> None:
    for kind in (signal.SIGINT, signal.SIGTERM):
        request.addfinalizer(partial(signal.signal, kind, signal.getsignal(kind)))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as `cluster.connect` does
    signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.default_int_handler)
    message = "was taken over by process 1 on other"
    with pytest.raises(PartialFailure, match=message), locked(folder, print):
        other_machine(folder)
        time.sleep(20)
    assert json.loads((folder / LOCK).read_text())["host"] == "other", "the new holder's lock stays"
