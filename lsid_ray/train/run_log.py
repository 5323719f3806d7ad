"""The log of a run: metrics.jsonl, TensorBoard and Prometheus."""

import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from ray.util.metrics import Gauge
from torch.utils.tensorboard import SummaryWriter

from lsid_ray import storage
from lsid_ray.config.serialization import jsonable
from lsid_ray.errors import InputError
from lsid_ray.model.checkpoint import with_nan
from lsid_ray.object_store import RemotePath, store_errors
from lsid_ray.storage import AnyPath
from lsid_ray.train.events import SHOWN_ONLY, Event, scalars
from lsid_ray.train.run_folder import saved_checkpoints

LOG = "metrics.jsonl"
GAUGES = {  # event fields exported to Prometheus: ray_lsid_samples_per_s{run="..."} at each node's metrics port
    "samples_per_s": "Training samples per second.",
    "waiting_for_data": "Share of the time that training waits for data.",
    "psnr_db": "Validation PSNR in dB.",
}
UPLOAD_S = 15.0  # between uploads of a growing log to an object store


def read_events(folder: AnyPath) -> list[Event]:
    """The events of a run so far. A line that is still being written is left out.

    A metric that could not be computed, as of frames that are too small for it, is null in the file and NaN here.
    """
    path = folder / LOG
    lines = path.read_bytes().splitlines(True) if path.exists() else []
    return [_event(line) for line in lines if line.endswith(b"\n")]


def _event(line: bytes) -> Event:
    event = json.loads(line)
    return with_nan(event) if event["kind"] == "validation" else event


def _line(event: Event) -> bytes:
    return (json.dumps(jsonable(event), allow_nan=False) + "\n").encode()


class LogReader:
    """Follows the log of a run: reads what has been added since the last time, of an object only that range."""

    def __init__(self, folder: AnyPath):
        self.path = folder / LOG
        self.end, self.last_line = 0, b""

    def read(self) -> tuple[list[Event], bool]:
        """The events since the last call; and whether the log was written anew, in which case they are all of them.

        A restart drops events (see `RunLog`). Each line has the time, and so no other is like the last that was read:
        where that still stands, no event before it has been dropped.
        """
        with self.path.open("rb") as file, store_errors(self.path):
            start = self.end - len(self.last_line)
            is_new = file.seek(0, os.SEEK_END) < self.end
            file.seek(0 if is_new else start)
            content = file.read()
            if not is_new and not content.startswith(self.last_line):
                is_new = True
                file.seek(0)
                content = file.read()
        if is_new:
            self.end, self.last_line = 0, b""
        lines = content[len(self.last_line) :].splitlines(keepends=True)
        lines = lines[: len(lines) - (content[-1:] != b"\n")]  # without one that is still being written
        self.end += sum(map(len, lines))
        self.last_line = lines[-1] if lines else self.last_line
        return [_event(line) for line in lines], is_new


@contextmanager
def open_log(folder: AnyPath, on_event: Callable[[Event], None]) -> Iterator["RunLog"]:
    """The log in a run's folder. on_event: called with each event, also with those that are only shown."""
    with storage.temporary_folder() if isinstance(folder, RemotePath) else nullcontext(folder) as local:
        log = RunLog(folder, local, on_event)
        try:
            yield log
        finally:
            log.flush()


class RunLog:
    """Writes events to metrics.jsonl, TensorBoard and Prometheus; drops those that a restart will repeat.

    Objects cannot be appended to, so the log of a run in an object store grows locally and is uploaded now and then.
    If the log cannot be written (a full disk), training goes on: events are kept and written once there is room.
    """

    def __init__(self, folder: AnyPath, local: Path, on_event: Callable[[Event], None]):
        self.folder, self.local, self.on_event = folder, local, on_event
        self.last_upload = time.monotonic()
        self.unwritten: list[Event] = []
        self.tensorboard: SummaryWriter | None = None
        self.diverged: Event | None = None
        self.has_started = False
        """Whether there was a "start", which adds validations that are only in checkpoints."""
        self.gauges = {name: Gauge(f"lsid_{name}", text, tag_keys=("run",)) for name, text in GAUGES.items()}
        for gauge in self.gauges.values():
            gauge.set_default_tags({"run": folder.name})

    def write(self, event: Event) -> None:
        """Log one event, with the time, and hand it to `on_event`."""
        if event["kind"] in SHOWN_ONLY:
            if event["kind"] == "image" and self.tensorboard is not None:
                self._show_image(event)
            self.on_event(event)
            return
        event = {**event, "time": time.time()}
        if event["kind"] == "diverged":
            self.diverged = event
        for name, value in event.items():
            if name in self.gauges:
                self.gauges[name].set(value)
        self.on_event(event)
        self._write([event], upload=event["kind"] != "train" or time.monotonic() - self.last_upload > UPLOAD_S)

    def flush(self) -> None:
        """Write and upload all that is not yet."""
        self._write([], upload=True)

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
            self.has_started = True
            kept = [one for one in read_events(self.folder) if one["step"] <= event["step"]]
            if event["step"]:
                kept += self._unlogged_validation(kept, event)
            with storage.atomic_write(path) as file:
                file.write(b"".join(map(_line, kept)))
            self.tensorboard = None
        elif not path.exists() and (self.folder / LOG).exists():  # the log in an object store, of earlier calls
            storage.copy_file(self.folder / LOG, path)
        line = _line(event)
        with path.open("ab", buffering=0) as file:
            size = file.tell()
            if file.write(line) < len(line):
                file.truncate(size)  # half a line would make the log unreadable
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _unlogged_validation(self, logged: list[Event], start: Event) -> list[Event]:
        """Validations up to the step that a run resumes from of which the checkpoints know, but not the log."""
        known = {one["step"] for one in logged if one["kind"] == "validation"}
        checkpoints = [one for one in saved_checkpoints(self.folder) if one.is_scored and one.step <= start["step"]]
        return [
            {"kind": "validation", **one.metrics, "seconds": 0.0, "time": start["time"]}
            for one in checkpoints
            if one.step not in known
        ]

    def _show_image(self, event: Event) -> None:
        """Add it to TensorBoard; on a full disk it is left out."""
        with suppress(OSError):
            self.tensorboard.add_image(f"validation/{event['name']}", event["pixels"], event["step"], dataformats="HWC")

    def _show_in_tensorboard(self, event: Event) -> None:
        if self.tensorboard is None:
            # Replaces what was shown of the steps that will be repeated; a resumed run has done its first step.
            first = event["step"] + (event["kind"] == "start")
            self.tensorboard = SummaryWriter(str(self.local / "tensorboard"), purge_step=first)
        for name, value in scalars(event).items():
            self.tensorboard.add_scalar(name, value, event["step"])
        self.tensorboard.flush()
