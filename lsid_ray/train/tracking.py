"""The events of a run are also sent to a tracker, by a thread of the driver: one that fails or hangs stops no run.

The file tracking.json of the run's folder has the tracked run's ID and the latest step that was sent of each kind of
event. So a resumed run continues the same tracked run, and first sends what metrics.jsonl has and the tracker lacks;
steps that are trained again after a restart are sent once.
"""

import json
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lsid_ray import storage
from lsid_ray.config.schema import Experiment
from lsid_ray.storage import AnyPath
from lsid_ray.train.events import SHOWN_ONLY, Event, scalars
from lsid_ray.train.run_log import read_events
from lsid_ray.train.tracker import MLflowRun, Point, Tracker, WandbRun, open_run, reason

STATE = "tracking.json"
SEND_S, RETRY_S = 5.0, 60.0  # between sends; after one that failed, because then the whole log is read
END_S = 30.0  # that a run waits for its last send


@contextmanager
def tracking(
    tracker: Tracker | None, folder: AnyPath, experiment: Experiment, on_event: Callable[[Event], None]
) -> Iterator[Callable[[Event], None]]:
    """Send the events of a run to a tracker until the block ends; yields what to call with each event.

    folder: of the run. on_event: called with each event, also if there is no tracker, and with what is to be said about
    the tracker: from another thread, a "warning".
    """
    if tracker is None:
        yield on_event
        return
    sender = _Sender(tracker, folder, experiment, on_event)
    status = "FAILED"
    try:
        yield sender.put
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        sender.end(status)


class _Sender:
    """The thread that sends events."""

    def __init__(self, tracker: Tracker, folder: AnyPath, experiment: Experiment, on_event: Callable[[Event], None]):
        self.tracker, self.folder, self.experiment, self.on_event = tracker, folder, experiment, on_event
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.run: MLflowRun | WandbRun | None = None
        self.sent: dict[str, int] = {}  # the latest step of each kind of event
        self.has_failed = False
        self.status = ""
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._send_all, daemon=True)
        self.thread.start()

    def put(self, event: Event) -> None:
        if event["kind"] not in SHOWN_ONLY:
            self.events.put(event)
        self.on_event(event)

    def end(self, status: str) -> None:
        """Send the rest, if that is possible within END_S."""
        self.status = status
        self.ended.set()
        self.thread.join(END_S)
        if self.thread.is_alive():
            self._warn(f"no answer for {END_S:.0f} s")

    def _send_all(self) -> None:
        read_log = True  # whether it may have what was not sent
        failed = ended = False
        while not ended:
            ended = self.ended.wait(RETRY_S if failed else SEND_S)
            events = [self.events.get() for _ in range(self.events.qsize())]
            try:
                self._send([*read_events(self.folder), *events] if read_log or ended else events)
                if ended and (message := self.run.close(self.status)):
                    self.on_event({"kind": "warning", "message": f"{self.tracker.option}: {message}"})
                read_log = any(event["kind"] == "start" for event in events)  # it is then written anew, in a moment
                failed = False
            except Exception as error:  # of many kinds; none may end the run
                read_log = failed = True
                self._warn(reason(error))

    def _send(self, events: list[Event]) -> None:
        """Send the events that were not sent before."""
        if self.run is None:
            self._open()
        points, sent = [], dict(self.sent)
        for event in events:
            if event.get("step", -1) > sent.get(event["kind"], -1) and (values := scalars(event)):
                points.append(Point(event["step"], event["time"], values))
                sent[event["kind"]] = event["step"]
        if points:
            self.run.log(points)
            self.sent = sent
            self._save()

    def _open(self) -> None:
        path = self.folder / STATE
        saved = json.loads(path.read_text()).get(self.tracker.option, {}) if path.exists() else {}
        self.run = open_run(self.tracker, saved.get("run"), self.experiment, self.folder)
        self.sent = saved.get("sent", {})
        self._save()
        self.on_event({"kind": "warning", "message": f"logged to {self.run.where}"})

    def _save(self) -> None:
        path = self.folder / STATE
        others = json.loads(path.read_text()) if path.exists() else {}
        with storage.atomic_write(path) as file:
            state = {"run": self.run.id, "sent": self.sent}
            file.write(json.dumps(others | {self.tracker.option: state}, indent=1).encode())

    def _warn(self, why: str) -> None:
        """Say once that events cannot be sent."""
        if not self.has_failed:
            self.has_failed = True
            consequence = (
                "training goes on; what is not sent is tried again, at last when the same command is run again"
            )
            self.on_event({"kind": "warning", "message": f"{self.tracker.option}: {why}; {consequence}"})
