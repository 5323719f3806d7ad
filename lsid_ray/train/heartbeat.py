"""How the driver knows that workers are alive: each tells once a second what it does, and whether it gets on with it.

All workers of a run begin the same activities in the same order and meet in every step, so if one hangs, soon none
gets on. The one that hangs is behind the others, or does not answer at all.
"""

import os
import threading
from dataclasses import dataclass
from typing import Any

import ray

from lsid_ray.progress import format_duration

BEAT_S = 1.0
ANSWER_TIMEOUT_S = 30.0
SILENT_S = 15.0  # without a beat: not only the training loop hangs, but its process
STARTING, WAITING_FOR_DATA, TRAINING, VALIDATING, SAVING, WAITING_FOR_VALIDATION = (
    "starting", "waiting for data", "training", "validating", "saving a checkpoint", "waiting for a validation",
)  # fmt: skip


@dataclass(frozen=True)
class Beat:
    """What a worker does."""

    number: int
    """Grows with every beat."""
    actor: Any
    """Handle of the worker's actor."""
    node: str
    """IP address of its node."""
    pid: int
    step: int
    activity: str
    position: int
    """How many activities it has begun."""
    progress: int
    """Grows with every activity, and while one gets on."""


class Heartbeat:
    """A worker's side: tells a `train.events.EventBuffer` what the worker does, from a thread."""

    def __init__(self, buffer: Any, rank: int):
        self.buffer, self.rank = buffer, rank
        self.stopping = False
        """Whether the run is to end early."""
        self.step, self.activity, self.position, self.progress = 0, STARTING, 0, 0
        self.ended = threading.Event()
        node = ray.util.get_node_ip_address()
        self.place = (ray.get_runtime_context().current_actor, node, os.getpid())
        threading.Thread(target=self._beat, daemon=True).start()

    def begin(self, activity: str, step: int) -> None:
        """Begin an activity; all workers begin the same ones in the same order."""
        self.activity, self.step = activity, step
        self.position += 1
        self.progress += 1

    def go_on(self) -> None:
        """The activity gets on; to be called more often than once in `--cluster.stall-minutes`."""
        self.progress += 1

    def end(self) -> None:
        """The worker has done its work."""
        self.ended.set()

    def _beat(self) -> None:
        number = 0
        while True:
            number += 1
            ended = self.ended.is_set()
            beat = Beat(number, *self.place, self.step, self.activity, self.position, self.progress)
            try:
                answer = self.buffer.beat.remote(self.rank, None if ended else beat)
                self.stopping = ray.get(answer, timeout=ANSWER_TIMEOUT_S)
            except ray.exceptions.RayError:  # a lost buffer does not end a worker
                pass
            if ended:
                return
            self.ended.wait(BEAT_S)


class StallDetector:
    """The driver's side: finds the workers that keep all others waiting."""

    def __init__(self, stall_s: float):
        """stall_s: how long no worker may get on; 0: for ever."""
        self.stall_s = stall_s
        self.seen: dict[int, tuple[int, float]] = {}  # rank -> number of its latest beat, and when it came
        self.progress: dict[int, int] = {}
        self.last_progress = 0.0

    def stalled(self, beats: dict[int, Beat], now: float) -> dict[int, Beat]:
        """The workers, by rank, because of which no worker has got on for `stall_s`; empty if some have.

        beats: the latest of each rank that has not ended. now: seconds of a monotonic clock.
        """
        for rank, beat in beats.items():
            if self.seen.get(rank, (0, 0.0))[0] != beat.number:
                self.seen[rank] = beat.number, now
        progress = {rank: beat.progress for rank, beat in beats.items()}
        if progress != self.progress:
            self.progress, self.last_progress = progress, now
        if not beats or not self.stall_s or now - self.last_progress < self.stall_s:
            return {}
        silent = {rank: beat for rank, beat in beats.items() if now - self.seen[rank][1] > SILENT_S}
        last = min(beat.position for beat in beats.values())
        return silent or {rank: beat for rank, beat in beats.items() if beat.position == last}

    def describe(self, rank: int, beat: Beat, now: float) -> str:
        """ "worker 1 (process 123 on node 10.0.0.7) has been waiting for data at step 38 for 10:00 min" """
        silent_s = now - self.seen[rank][1]
        state = "has not answered" if silent_s > SILENT_S else f"has been {beat.activity}"
        seconds = silent_s if silent_s > SILENT_S else now - self.last_progress
        return (
            f"worker {rank} (process {beat.pid} on node {beat.node}) {state} at step {beat.step} "
            f"for {format_duration(seconds)}"
        )
