"""Writes the checkpoints of a run in the background, and does not give up while a disk is full or a store fails."""

import contextlib
import copy
import threading
import time
from typing import Any

import ray.train

from lsid_ray import storage
from lsid_ray.config.checks import checkpoint_interval
from lsid_ray.config.schema import Experiment, TrainingConfig
from lsid_ray.errors import InputError, PartialFailure
from lsid_ray.model.checkpoint import METRICS, save_checkpoint
from lsid_ray.storage import AnyPath
from lsid_ray.train.heartbeat import Heartbeat
from lsid_ray.train.run_folder import checkpoint_name, remove_superseded
from lsid_ray.train.step import GanStep

RETRY_S = 5.0  # between attempts to write
WARNING_S = 60.0  # between warnings


class Saver:
    """Rank 0's writer of checkpoints.

    Training goes on while a checkpoint is written. If it cannot be written, it is tried again, and training waits when
    the next one is due: no more than what lies between two checkpoints can be lost.
    """

    def __init__(
        self, folder: AnyPath, training: TrainingConfig, events: Any, heartbeat: Heartbeat, wait_minutes: float
    ):
        """folder: of the run. wait_minutes: how long a checkpoint is tried; 0: without a limit."""
        self.folder, self.events, self.heartbeat = folder, events, heartbeat
        self.wait_s = 60 * wait_minutes or float("inf")
        self.saved = threading.Event()
        self.saved.set()
        self.max_steps, self.max_s = checkpoint_interval(training)
        self.last_step, self.last_time = 0, time.monotonic()

    def is_due(self, step: int) -> bool:
        """Whether another checkpoint is due by steps or time; never while one is written."""
        elapsed_s = time.monotonic() - self.last_time
        return self.saved.is_set() and (step - self.last_step >= self.max_steps or elapsed_s >= self.max_s)

    def save(self, experiment: Experiment, gan_step: GanStep, metrics: dict[str, Any]) -> None:
        """Report a checkpoint of this very step to Ray Train; returns before it is written."""
        self.saved.wait()  # `_write` keeps the heart beating
        self.saved.clear()
        self.last_step, self.last_time = gan_step.step, time.monotonic()
        content = experiment, copy.deepcopy(gan_step.scored), copy.deepcopy(gan_step.state_dict()), metrics
        filesystem, path = storage.arrow_filesystem(self.folder / checkpoint_name(gan_step.step))
        ray.train.report(
            metrics,
            checkpoint=ray.train.Checkpoint(path, filesystem),
            checkpoint_dir_name=checkpoint_name(gan_step.step),
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=False,  # there is no local copy
            checkpoint_upload_fn=lambda checkpoint, name: self._write(checkpoint, self.folder / name, content),
        )

    def _write(self, checkpoint: ray.train.Checkpoint, folder: AnyPath, content: tuple) -> ray.train.Checkpoint:
        """Ray Train's own upload would not notice a missing file, and gives up after three attempts."""
        start, warned_at = time.monotonic(), float("-inf")
        while True:
            try:
                with storage.atomic_folder(folder, last=METRICS) as partial:
                    save_checkpoint(partial, *content)
                break
            except (OSError, InputError) as error:  # InputError: the object store refuses
                reason = getattr(error, "strerror", None) or str(error)
            now = time.monotonic()
            if now - start > self.wait_s:
                raise PartialFailure(f"{folder} cannot be written: {reason}")
            if now - warned_at > WARNING_S:
                warned_at = now
                message = f"{folder} cannot be written: {reason}; trying again"
                self.events.put.remote({"kind": "warning", "message": message})
            self.heartbeat.go_on()
            time.sleep(RETRY_S)
        with contextlib.suppress(OSError, InputError):  # the next one tries it again
            remove_superseded(self.folder)
        self.saved.set()
        return checkpoint
