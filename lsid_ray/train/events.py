"""What a run reports while it trains: events, and the log that follows them.

An event is a dictionary with a "kind" and a "step":

"start"       total_steps; the worker group starts at `step`, from a checkpoint unless that is 0
"train"       epoch, losses (l1, and adversarial and discriminator if there is one), learning_rate, seconds,
              samples_per_s, waiting_for_data (share of the time), seconds_left; about once per second
"validation"  epoch, frames, psnr_db, ssim, seconds
"diverged"    losses, files
"""

import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray.util.metrics import Gauge
from ray.util.queue import Empty, Queue
from torch.utils.tensorboard import SummaryWriter

from lsid_ray import storage
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


def read_events(folder: AnyPath) -> list[Event]:
    """The events of a run so far. A line that is still being written is left out."""
    path = folder / LOG
    lines = path.read_text().splitlines(True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


class RunLog:
    """Writes events to metrics.jsonl, TensorBoard and Prometheus; drops those that a restart will repeat.

    Objects cannot be appended to, so the log of a run in an object store grows locally and is uploaded now and then.
    """

    def __init__(self, folder: AnyPath, on_event: Callable[[Event], None]):
        self.folder, self.on_event = folder, on_event
        self.temporary = tempfile.TemporaryDirectory(prefix="lsid-run-") if isinstance(folder, RemotePath) else None
        self.local = Path(self.temporary.name) if self.temporary else folder
        self.last_upload = time.monotonic()
        self.diverged: Event | None = None
        self.gauges = {name: Gauge(f"lsid_{name}", text, tag_keys=("run",)) for name, text in GAUGES.items()}
        for gauge in self.gauges.values():
            gauge.set_default_tags({"run": folder.name})

    @contextmanager
    def following(self, events: Queue) -> Iterator[None]:
        """Write events from the queue in a thread, until the block has ended and the queue is empty."""
        ended = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            follower = pool.submit(self._follow, events, ended)
            try:
                yield
            finally:
                ended.set()
                follower.result(timeout=60)
                self._upload()
                events.shutdown()

    def _follow(self, events: Queue, ended: threading.Event) -> None:
        while True:
            try:
                self.write(events.get(timeout=0.5))
            except Empty:
                if ended.is_set():
                    return

    def write(self, event: Event) -> None:
        """Write one event, with the time, and hand it to `on_event`."""
        path, event = self.local / LOG, {**event, "time": time.time()}
        if event["kind"] == "start":
            if earlier := read_events(self.folder):
                kept = [json.dumps(one) + "\n" for one in earlier if one["step"] <= event["step"]]
                with storage.atomic_write(path) as file:
                    file.write("".join(kept).encode())
            self.tensorboard = SummaryWriter(str(self.local / "tensorboard"), purge_step=event["step"])
        with path.open("a") as file:
            file.write(json.dumps(event) + "\n")
        for name, value in event.items():
            if isinstance(value, float) and name != "time":
                self.tensorboard.add_scalar(f"{event['kind']}/{name}", value, event["step"])
            if name in self.gauges:
                self.gauges[name].set(value)
        self.tensorboard.flush()
        if event["kind"] != "train" or time.monotonic() - self.last_upload > UPLOAD_S:
            self._upload()
        if event["kind"] == "diverged":
            self.diverged = event
        self.on_event(event)

    def _upload(self) -> None:
        if self.local != self.folder:
            for name in storage.list_files(self.local):
                storage.copy_file(self.local / name, self.folder / name)
            self.last_upload = time.monotonic()
