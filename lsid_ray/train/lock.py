"""One driver at a time for the folder of a run or a sweep, on a disk or in an object store.

STORAGE/NAME/lock.json says who holds it. Its holder touches it every few seconds; if nobody does, the holder has died.
Clocks of different machines are never compared: who finds a lock watches whether it changes.
"""

import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from lsid_ray import storage
from lsid_ray.errors import InputError, PartialFailure
from lsid_ray.object_store import RemotePath
from lsid_ray.storage import AnyPath

LOCK = "lock.json"
BEAT_S = 5.0
DEAD_S = 60.0  # without a beat, more than a network disk caches a file's attributes
SETTLE_S = 1.0  # between writing a lock and reading back who has won


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock."""

    id: str
    host: str
    machine: str
    """Tells hosts and containers of one name apart."""
    pid: int
    process_start: float
    """Tells processes of one ID apart."""
    since: str

    @classmethod
    def this_process(cls) -> "Holder":
        """A new holder."""
        process = psutil.Process()
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        return cls(uuid.uuid4().hex, socket.gethostname(), _machine(), process.pid, process.create_time(), since)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"

    def is_known_dead(self) -> bool:
        """Whether it ran on this machine and does not any more."""
        if self.machine != _machine():
            return False
        try:
            return psutil.Process(self.pid).create_time() != self.process_start
        except psutil.NoSuchProcess:
            return True


@contextmanager
def locked(folder: AnyPath, say: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Hold a folder for this block. say: called with a line if it is not clear at once whether a holder has died.

    Yields a function that tells whether another process has taken the folder, which interrupts this one.
    Raises: InputError if another process holds it; PartialFailure at the end of a block during which another process
    took it, because this one had been suspended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, me = folder / LOCK, Holder.this_process()
    _refuse_a_living_holder(path, say)
    _write(path, me)
    time.sleep(SETTLE_S if isinstance(path, RemotePath) else SETTLE_S / 5)
    if (winner := _read(path)) != me:
        raise _in_use(path, winner or me)
    ended, taken = threading.Event(), threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_S):
            try:
                holder = _read(path)
                if holder not in (me, None):
                    taken.set()
                    signal.pthread_kill(threading.main_thread().ident, _interrupt())  # also ends a wait for Ray
                    return
                _touch(path, me)
            except (OSError, InputError):  # a store that fails or refuses now is asked again
                continue

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield taken.is_set
    except KeyboardInterrupt:
        if taken.is_set():
            raise PartialFailure(f"{folder} was taken over by {_read(path)} while this process did not run") from None
        raise
    finally:
        ended.set()
        thread.join()
        if not taken.is_set():
            path.unlink(missing_ok=True)


def _interrupt() -> signal.Signals:
    """The signal that ends this process as Ctrl-C does: one started with nohup or in the background ignores SIGINT."""
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    return signal.SIGTERM if ignored else signal.SIGINT  # `cluster.connect` handles SIGTERM like Ctrl-C


def _refuse_a_living_holder(path: AnyPath, say: Callable[[str], None]) -> None:
    holder = _read(path)
    if holder is None or holder.is_known_dead():
        return
    if holder.machine != _machine():
        say(f"{path.parent} is in use by {holder}; waiting up to {DEAD_S:.0f} s to see whether it is alive")
        if not _is_beating(path, holder):
            return
    raise _in_use(path, holder)


def _in_use(path: AnyPath, holder: Holder) -> InputError:
    folder = path.parent
    return InputError(f"--name {folder.name}: {folder} is in use by {holder}; stop it, or choose another --name")


def _is_beating(path: AnyPath, holder: Holder) -> bool:
    """Whether a lock changes within DEAD_S."""
    beat, end = path.stat().st_mtime_ns, time.monotonic() + DEAD_S
    while time.monotonic() < end:
        time.sleep(BEAT_S / 5)
        now = _read(path)
        if now is None:  # released
            return False
        if now != holder or path.stat().st_mtime_ns != beat:
            return True
    return False


def _read(path: AnyPath) -> Holder | None:
    """The holder, None if there is none; reading makes a network disk ask for the latest attributes."""
    try:
        return Holder(**json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError):  # a lock that is not complete holds nothing
        return None


def _write(path: AnyPath, holder: Holder) -> None:
    with storage.atomic_write(path) as file:
        file.write(json.dumps(asdict(holder), indent=1).encode())


def _touch(path: AnyPath, me: Holder) -> None:
    if isinstance(path, RemotePath):
        _write(path, me)
    else:
        os.utime(path)  # needs no room on a full disk


def _machine() -> str:
    """Boot and process namespace on Linux, so that process IDs are compared only where they mean the same."""
    parts = []
    for name in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        path = Path(name)
        if path.exists():
            parts.append(os.readlink(path) if path.is_symlink() else path.read_text().strip())
    return " ".join([socket.gethostname(), *parts])
