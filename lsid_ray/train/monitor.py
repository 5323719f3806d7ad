"""The driver's watch over a running worker group: its events, its waiting, its end on request, its hanging workers."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray

from lsid_ray.cluster import lost_nodes
from lsid_ray.errors import InputError
from lsid_ray.storage import AnyPath
from lsid_ray.train.elastic import MissingWorkers
from lsid_ray.train.heartbeat import TRAINING, WAITING_FOR_DATA, WAITING_FOR_VALIDATION, Beat, StallDetector
from lsid_ray.train.run_log import RunLog
from lsid_ray.train.validator import Validator

POLL_S = 0.5  # between calls of `EventBuffer.take`
TAKE_TIMEOUT_S = 60.0
STOP_CHECK_S = 1.0  # between looks for the stop file
NODE_CHECK_S = 5.0  # between looks for lost nodes
QUIET_WAIT_S, WAIT_LINE_S = 15.0, 10.0  # before the first "waiting" event (workers start in less), and between them


@dataclass
class Monitor:
    """What is watched in one attempt to train."""

    buffer: Any
    """Actor handle of a `train.events.EventBuffer`."""
    log: RunLog
    stop_file: AnyPath
    """Creating it ends the run."""
    stall_s: float
    """Seconds without progress after which the workers that hang are killed; 0: never."""
    describe_wait: Callable[[bool], str]
    """Says what the run waits for before its first step; called with whether its workers have started."""
    missing_workers: MissingWorkers | None = None
    """The workers that the run lacks; None if it never takes more."""
    validator: Validator | None = None
    """Validates checkpoints apart from training; None if nobody does."""
    stall: str = ""
    """Which workers were killed, and why."""
    lost: dict[str, str] = field(default_factory=lost_nodes)
    """The nodes that have left the cluster, as `cluster.lost_nodes`; given: those that are known, so not announced."""
    lost_node: bool = False
    """Whether one has left during this attempt."""
    stopping: bool = False
    """Whether the workers were asked to end after the current step."""
    resizing: bool = False
    """Whether that was to go on with more workers."""
    has_trained: bool = False
    """Whether the workers have got to a step."""
    beats: dict[int, Beat] = field(default_factory=dict)
    """The latest heartbeat of each worker."""

    def stop(self) -> bool:
        """Have the workers save a checkpoint and end; False if there are none yet, which then end when they start."""
        self.stopping = True
        return bool(self.beats)

    def kill_workers(self) -> None:
        """End the attempt at once."""
        self.stopping = True  # those that are still starting
        for beat in self.beats.values():
            ray.kill(beat.actor)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch in a thread until the block has ended and the buffer is empty."""
        ended = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            watcher = pool.submit(self._watch, ended)
            try:
                yield
            finally:  # an error of the run goes before one of the watcher
                ended.set()
                error = watcher.exception()
            if error is not None:
                raise error

    def _watch(self, ended: threading.Event) -> None:
        wait_start = last_shown = last_stop_check = last_node_check = time.monotonic()
        self._announce_lost_nodes()  # since the last attempt ended
        detector = StallDetector(self.stall_s)
        while True:
            last = ended.wait(POLL_S)  # set before the last `take`, so that no event is left
            now = time.monotonic()
            if not self.stopping and now - last_stop_check >= STOP_CHECK_S:
                last_stop_check = now
                if self._is_stop_requested():
                    self.stopping = True
            if last or now - last_node_check >= NODE_CHECK_S:
                last_node_check, has_lost_node = now, self._announce_lost_nodes()
                self.lost_node = self.lost_node or has_lost_node
                if self.missing_workers and not last:
                    self._resize(has_lost_node)
            try:
                events, beats = ray.get(self.buffer.take.remote(self.stopping), timeout=TAKE_TIMEOUT_S)
            except ray.exceptions.RayError as error:
                reason = str(error).splitlines()[0]
                self.log.write({"kind": "warning", "message": f"events of the workers are lost: {reason}"})
                while not ended.wait(POLL_S):  # workers may wait for a validation
                    self._validate()
                return
            started, self.beats = bool(beats), beats
            activities = {beat.activity for beat in beats.values()}
            self.has_trained = self.has_trained or TRAINING in activities
            if self.has_trained or activities - {WAITING_FOR_DATA}:
                wait_start = now
            for event in events:
                self.log.write(event)
            if last:
                return
            self._validate()
            if stalled := detector.stalled(beats, now):
                self.stall = "; ".join(detector.describe(rank, beat, now) for rank, beat in stalled.items())
                for beat in stalled.values():
                    ray.kill(beat.actor)
                detector = StallDetector(self.stall_s)
            waited_s = now - wait_start
            if waited_s >= QUIET_WAIT_S and now - last_shown >= WAIT_LINE_S:
                last_shown = now
                self.log.write({"kind": "waiting", "message": self.describe_wait(started), "seconds": waited_s})

    def _announce_lost_nodes(self) -> bool:
        """Say which nodes have left since the last call; returns whether there are any."""
        known, self.lost = self.lost, lost_nodes()
        new = self.lost.keys() - known.keys()
        for node in new:
            self.log.write({"kind": "warning", "message": f"node {self.lost[node]} has left the cluster"})
        return bool(new)

    def _resize(self, has_lost_node: bool) -> None:
        """Stop the workers if there is room for more, or if those that start may leave no CPU to the readers."""
        if not self.has_trained:
            if has_lost_node:
                self.kill_workers()
        elif not self.stopping and self.missing_workers.have_joined(len(self.beats)):
            self.stopping = self.resizing = True

    def _validate(self) -> None:
        if self.validator is not None:
            self.validator.poll()
            if any(beat.activity == WAITING_FOR_VALIDATION for beat in self.beats.values()):
                self.validator.give_up()
            self.stopping = self.stopping or self.validator.gave_up or self.validator.error is not None

    def _is_stop_requested(self) -> bool:
        try:
            return self.stop_file.exists()
        except (OSError, InputError):  # a store that fails or refuses now is asked again
            return False
