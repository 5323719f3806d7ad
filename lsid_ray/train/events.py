"""What a run reports while it trains: events, their way to the driver, and the log that the driver keeps.

An event is a dictionary with a "kind". Those that are logged have a "step":

"start"       total_steps; the worker group starts at `step`, from a checkpoint unless that is 0
"train"       epoch, losses (l1, and adversarial and discriminator if there is one), learning_rate, seconds,
              samples_per_s, waiting_for_data (share of the time), seconds_left; about once per second
"validation"  epoch, frames, psnr_db, ssim, seconds
"diverged"    losses, pairs (names)
"failure"     reason; the run restarts from its latest checkpoint, at `step`

These are only shown:

"waiting"     message, seconds; no worker has started yet
"warning"     message
"""

import errno
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.util.metrics import Gauge
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch.utils.tensorboard import SummaryWriter

from lsid_ray import storage
from lsid_ray.errors import InputError
from lsid_ray.object_store import RemotePath
from lsid_ray.storage import AnyPath

Event = dict[str, Any]
LOG = "metrics.jsonl"
GAUGES = {  # event fields exported to Prometheus: ray_lsid_samples_per_s{run="..."} at each node's metrics port
    "samples_per_s": "Training samples per second.",
    "waiting_for_data": "Share of the time that training waits for data.",
    "psnr_db": "Validation PSNR in dB.",
}
UPLOAD_S = 15.0  # between uploads of a growing log to an object store
POLL_S = 0.5  # between calls of `EventBuffer.take`
TAKE_TIMEOUT_S = 60.0
QUIET_WAIT_S, WAIT_LINE_S = 15.0, 10.0  # before the first "waiting" event (workers start in less), and between them


def read_events(folder: AnyPath) -> list[Event]:
    """The events of a run so far. A line that is still being written is left out."""
    path = folder / LOG
    lines = path.read_text().splitlines(True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


class EventBuffer:
    """An actor that holds the events of the workers until the driver takes them.

    It runs on the driver's node, so that the loss of any other node leaves it alone.
    """

    def __init__(self) -> None:
        self.events: list[Event] = []

    def put(self, event: Event) -> None:
        """Add an event. Workers do not wait for the call, and so cannot fail in it."""
        self.events.append(event)

    def take(self) -> list[Event]:
        """Remove and return all events."""
        events, self.events = self.events, []
        return events


def start_buffer() -> Any:
    """Start an EventBuffer on this node; returns its actor handle."""
    this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(EventBuffer).options(num_cpus=0, scheduling_strategy=this_node).remote()


class RunLog:
    """Writes events to metrics.jsonl, TensorBoard and Prometheus; drops those that a restart will repeat.

    Objects cannot be appended to, so the log of a run in an object store grows locally and is uploaded now and then.
    If the log cannot be written (a full disk), training goes on: events are kept and written once there is room.
    """

    def __init__(self, folder: AnyPath, on_event: Callable[[Event], None]):
        self.folder, self.on_event = folder, on_event
        self.temporary = tempfile.TemporaryDirectory(prefix="lsid-run-") if isinstance(folder, RemotePath) else None
        self.local = Path(self.temporary.name) if self.temporary else folder
        self.last_upload = time.monotonic()
        self.unwritten: list[Event] = []
        self.tensorboard: SummaryWriter | None = None
        self.diverged: Event | None = None
        self.gauges = {name: Gauge(f"lsid_{name}", text, tag_keys=("run",)) for name, text in GAUGES.items()}
        for gauge in self.gauges.values():
            gauge.set_default_tags({"run": folder.name})

    @contextmanager
    def following(self, buffer: Any, describe_wait: Callable[[], str]) -> Iterator[None]:
        """Handle the events of a buffer in a thread until the block has ended and the buffer is empty.

        describe_wait: says what the run waits for, called now and then until its workers have started.
        """
        ended = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            follower = pool.submit(self._follow, buffer, describe_wait, ended)
            try:
                yield
            finally:  # an error of the run goes before one of the follower
                ended.set()
                error = follower.exception()
                self._write([], upload=True)
            if error is not None:
                raise error

    def _follow(self, buffer: Any, describe_wait: Callable[[], str], ended: threading.Event) -> None:
        start = last_shown = time.monotonic()
        waiting = True
        while True:
            last = ended.wait(POLL_S)  # set before the last `take`, so that no event is left
            try:
                events = ray.get(buffer.take.remote(), timeout=TAKE_TIMEOUT_S)
            except ray.exceptions.RayError as error:
                reason = str(error).splitlines()[0]
                self.on_event({"kind": "warning", "message": f"events of the workers are lost: {reason}"})
                return
            for event in events:
                waiting = waiting and event["kind"] != "start"
                self.write(event)
            if last:
                return
            now = time.monotonic()
            if waiting and now - start >= QUIET_WAIT_S and now - last_shown >= WAIT_LINE_S:
                last_shown = now
                self.on_event({"kind": "waiting", "message": describe_wait(), "seconds": now - start})

    def write(self, event: Event) -> None:
        """Log one event, with the time, and hand it to `on_event`."""
        event = {**event, "time": time.time()}
        if event["kind"] == "diverged":
            self.diverged = event
        for name, value in event.items():
            if name in self.gauges:
                self.gauges[name].set(value)
        self.on_event(event)
        self._write([event], upload=event["kind"] != "train" or time.monotonic() - self.last_upload > UPLOAD_S)

    def _write(self, events: list[Event], upload: bool) -> None:
        """Append events, after those that could not be written before."""
        was_failing = bool(self.unwritten)
        self.unwritten += events
        try:
            while self.unwritten:
                self._append(self.unwritten[0])
                self._show_in_tensorboard(self.unwritten.pop(0))
            if upload and self.local != self.folder:
                for name in storage.list_files(self.local):
                    storage.copy_file(self.local / name, self.folder / name)
                self.last_upload = time.monotonic()
        except (OSError, InputError) as error:  # InputError: the object store refuses
            self.tensorboard = None
            if not was_failing:
                reason = getattr(error, "strerror", None) or str(error)
                consequence = "training continues; metrics stay in memory until they can be written"
                message = f"{self.folder} cannot be written to: {reason}; {consequence}"
                self.on_event({"kind": "warning", "message": message})

    def _append(self, event: Event) -> None:
        path = self.local / LOG
        if event["kind"] == "start":
            if earlier := read_events(self.folder):
                kept = [json.dumps(one) + "\n" for one in earlier if one["step"] <= event["step"]]
                with storage.atomic_write(path) as file:
                    file.write("".join(kept).encode())
            self.tensorboard = None
        line = (json.dumps(event) + "\n").encode()
        with path.open("ab", buffering=0) as file:
            size = file.tell()
            if file.write(line) < len(line):
                file.truncate(size)  # half a line would make the log unreadable
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _show_in_tensorboard(self, event: Event) -> None:
        if self.tensorboard is None:
            self.tensorboard = SummaryWriter(str(self.local / "tensorboard"), purge_step=event["step"])
        for name, value in event.items():
            if isinstance(value, float) and name != "time":
                self.tensorboard.add_scalar(f"{event['kind']}/{name}", value, event["step"])
        self.tensorboard.flush()
