"""The validation of a run apart from its training, by tasks on what its workers and readers leave free.

Training goes on: the saver writes a checkpoint that says that it awaits its validation, the driver finds it in the
run's folder, has its frames scored by tasks of a CPU (or a GPU) each, and writes the scores into it. At most one
validation is behind: when the next is due, training waits for it; if other jobs leave no room for it, the run goes on
with validations in line. These give the same scores.

The folder alone says what is to be validated, and the driver owns the tasks: so neither a killed worker nor a killed
driver forgets a checkpoint, and a task whose node is lost is tried again. Ray Train's own asynchronous validation
(`ValidationConfig`, ray 2.60) keeps what is due in its snapshot, which we do not rely on (see `run_folder`), ends with
its controller, so at each restart, takes a validation that failed for done, and lets any number queue up.
"""

import math
import time
import uuid
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import RayError, RayTaskError

from lsid_ray import storage
from lsid_ray.capacity import Capacity, current_capacity, describe_free
from lsid_ray.cluster import validation_slots
from lsid_ray.config.schema import Experiment
from lsid_ray.data.index import Shards, open_shards
from lsid_ray.data.parallel import is_running
from lsid_ray.errors import InputError, PartialFailure
from lsid_ray.evaluate.score import Measure
from lsid_ray.inference.raw_file import prediction_device
from lsid_ray.model.checkpoint import METRICS, load_generator, write_metrics
from lsid_ray.model.generator import Generator
from lsid_ray.storage import AnyPath
from lsid_ray.train.failures import describe, is_deterministic
from lsid_ray.train.run_folder import AWAITS_VALIDATION, SavedCheckpoint, saved_checkpoints
from lsid_ray.train.run_log import RunLog
from lsid_ray.train.validation import Wait, image_event, mean_scores, score_pairs, validation_event

POLL_S = 0.2
TASK_RETRIES = 3  # of Ray's, after the loss of a process or node
MAX_PAIRS_PER_TASK = 8  # of one long exposure, which is read once for them
STARVED_S = 60.0  # without a task that runs, while training waits for it
MIN_SHARE = 0.25  # of the workers' CPUs, or GPUs, must be free beside them: with less, training would wait for long


@dataclass
class _Validation:
    """The validation of a checkpoint, under way."""

    checkpoint: SavedCheckpoint
    todo: deque[list[int]]
    """Numbers of pairs, for each task that is still to start."""
    running: dict[ray.ObjectRef, list[int]] = field(default_factory=dict)
    rows: dict[int, dict[str, float]] = field(default_factory=dict)
    """The scores of each pair."""
    pixels: np.ndarray | None = None
    """The image of the first pair."""
    failures: int = 0
    """In a row."""
    start: float = field(default_factory=time.perf_counter)
    last_result: float = field(default_factory=time.monotonic)
    call: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def step(self) -> int:
        return self.checkpoint.step


class Validator:
    """The driver's side: validates the checkpoints of a run that await it, one after the other."""

    def __init__(
        self, folder: AnyPath, experiment: Experiment, shards: str, measures: ray.ObjectRef, log: RunLog, apart: bool
    ):
        """folder: of the run. shards: their folder. apart: whether checkpoints may be validated beside training."""
        self.folder, self.shards, self.measures, self.log, self.apart = folder, shards, measures, log, apart
        self.cluster = experiment.cluster
        self.needs = {"CPU": 1, "GPU": int(self.cluster.use_gpu)}
        self.score = ray.remote(num_cpus=1, num_gpus=self.needs["GPU"], max_retries=TASK_RETRIES)(_score_part)
        self.pairs = open_shards(shards, ["validation"]).pairs
        self.slots = 0  # tasks at a time
        self.listed: dict[str, Any] = {}  # the checkpoints that were there at the last look
        self.current: _Validation | None = None
        self.error: InputError | PartialFailure | None = None
        """What ends the run."""
        self.gave_up = False
        """Whether the workers are to end, to go on with validations in line."""
        self.last_look = 0.0  # for a task that runs
        self.has_warned = self.has_failed = False

    def begin(self, workers: int) -> bool:
        """Whether the checkpoints of an attempt with so many workers are validated apart.

        If not, those that earlier attempts have left are validated first. Raises: as `finish`.
        """
        if self.error is not None:
            raise self.error
        self.gave_up = False
        self.slots = validation_slots(self.cluster, workers) if self.apart else 0
        needed = MIN_SHARE * workers * (1 if self.cluster.use_gpu else max(self.cluster.cpus_per_worker, 1))
        if 0 < self.slots >= needed:
            return True
        if self.apart and not self.has_warned:
            self.has_warned = True
            unit = "GPUs" if self.cluster.use_gpu else "CPUs"
            free = f"{self.slots} {unit} are free beside it, expected {max(math.ceil(needed), 1)} or more"
            self._warn(f"training stops during each validation: {free} to validate apart")
        self.finish()
        self.slots = 0
        return False

    def finish(self) -> None:
        """Validate all that is left, on the whole cluster. To be called while no worker of the run is alive.

        Raises: InputError as a validation in line; PartialFailure if tasks kept failing.
        """
        alive, wait = current_capacity().alive, Wait()
        self.slots = Capacity(alive, alive).task_count(self.needs)
        try:
            while self.poll():
                if self.current and (event := wait.event(self.current.step)):
                    self.log.write(event)
                time.sleep(POLL_S)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("the same command validates what is left") from None
        if self.error is not None:
            raise self.error

    def poll(self) -> bool:
        """Start and collect what can be now. Returns whether anything may be left to do."""
        if self.error is not None or not self.slots:
            return False
        try:
            if self.current is not None:
                self._collect(self.current)
                self._start(self.current)
        except (InputError, PartialFailure) as error:
            self.cancel()
            self.error = error
            return True
        try:
            if self.current is not None and len(self.current.rows) == len(self.pairs):
                self._write(self.current)
                self.current = None
            if self.current is None:
                self.current = self._next()
            self.has_failed = False
        except (OSError, InputError) as error:  # InputError: the object store refuses
            if not self.has_failed:
                reason = getattr(error, "strerror", None) or str(error)
                self._warn(f"scores cannot be written to {self.folder}: {reason}; trying again")
            self.has_failed = True
            return True
        return self.current is not None

    def give_up(self) -> None:
        """Validate in line from now on if no task has run for STARVED_S. To be called while training waits.

        What other jobs take was not known when the attempt began.
        """
        now = time.monotonic()
        if self.current is None or now - max(self.current.last_result, self.last_look) < STARVED_S:
            return
        self.last_look = now
        if not is_running():
            self.gave_up, self.apart = True, False
            free = describe_free(self.needs)
            self._warn(
                f"no room for the validation of step {self.current.step}: {free}; training stops for each from now on"
            )

    def cancel(self) -> None:
        """End the tasks; their checkpoint is validated when the run resumes."""
        if self.current is not None:
            for task in self.current.running:
                ray.cancel(task, force=True)
        self.current, self.listed = None, {}

    def _next(self) -> _Validation | None:
        """The first checkpoint that awaits its validation. Raises: OSError if the folder cannot be read."""
        files = storage.list_files(self.folder)
        listed = {name: version for name, version in files.items() if name.endswith(f"/{METRICS}")}
        if listed == self.listed:
            return None
        awaiting = [each for each in saved_checkpoints(self.folder) if each.awaits_validation]
        self.listed = listed
        return _Validation(awaiting[0], deque(self._parts())) if awaiting else None

    def _parts(self) -> list[list[int]]:
        """The numbers of the pairs of each task."""
        by_long: dict[str, list[int]] = {}
        for number, pair in enumerate(self.pairs):
            by_long.setdefault(pair.long.shard.path, []).append(number)
        size = MAX_PAIRS_PER_TASK
        parts = [numbers[i : i + size] for numbers in by_long.values() for i in range(0, len(numbers), size)]
        if not self.cluster.use_gpu:
            return parts
        count = min(self.slots, len(parts))  # few, since each has a process of its own, which then frees its GPU
        return [list(chain(*parts[i::count])) for i in range(count)]

    def _start(self, validation: _Validation) -> None:
        measures = [self.measures]  # in a list, Ray passes on the reference
        while validation.todo and len(validation.running) < self.slots:
            numbers = validation.todo.popleft()
            folder, use_gpu = str(validation.checkpoint.folder), self.cluster.use_gpu
            arguments = (validation.call, folder, self.shards, self.cluster.cache_gb, measures, use_gpu)
            validation.running[self.score.remote(numbers, *arguments)] = numbers

    def _collect(self, validation: _Validation) -> None:
        """Take the results that have come. Raises: InputError as a task; PartialFailure if tasks keep failing."""
        running, now = validation.running, time.monotonic()
        done = ray.wait(list(running), num_returns=len(running), timeout=0)[0] if running else []
        for task in done:
            numbers = running.pop(task)
            try:
                result = ray.get(task)
            except RayError as error:
                result = error
            if isinstance(result, InputError):
                raise result
            if isinstance(result, Exception):
                self._retry(validation, numbers, result)
                continue
            rows, pixels = result
            validation.rows |= dict(zip(numbers, rows, strict=True))
            validation.pixels = validation.pixels if pixels is None else pixels
            validation.failures, validation.last_result = 0, now
        longest = max(map(len, running.values()), default=0)
        if self.cluster.stall_minutes and now - validation.last_result > 60 * self.cluster.stall_minutes * longest > 0:
            self._warn(f"the validation of step {validation.step} does not get on; starting its tasks again")
            for task in running:
                ray.cancel(task, force=True)
            validation.todo.extend(running.values())
            running.clear()
            validation.last_result = now

    def _retry(self, validation: _Validation, numbers: list[int], error: Exception) -> None:
        validation.failures += 1
        cause = error.cause if isinstance(error, RayTaskError) else error
        reason = describe("a task", cause)
        if validation.failures > self.cluster.max_failures or is_deterministic(cause):
            raise PartialFailure(
                f"the validation of step {validation.step} failed: {reason}; the same command tries it again"
            )
        validation.todo.append(numbers)
        self._warn(f"validation of step {validation.step}: {reason}; trying again")

    def _write(self, validation: _Validation) -> None:
        """Write the scores into the checkpoint, then into the log, which otherwise takes them from there at a start."""
        metrics = {name: value for name, value in validation.checkpoint.metrics.items() if name != AWAITS_VALIDATION}
        metrics |= mean_scores([validation.rows[number] for number in range(len(self.pairs))])
        write_metrics(validation.checkpoint.folder, metrics)
        if self.log.has_started:
            if validation.pixels is not None:
                self.log.write(image_event(metrics, self.pairs[0], validation.pixels))
            self.log.write(validation_event(metrics, validation.start))

    def _warn(self, message: str) -> None:
        self.log.write({"kind": "warning", "message": message})


def _score_part(
    numbers: list[int],
    call: str,
    checkpoint: str,
    shards: str,
    cache_gb: float,
    measures: list[ray.ObjectRef],
    use_gpu: bool,
) -> tuple[list[dict[str, float]], np.ndarray | None] | Exception:
    """The scores of these validation pairs, and the image of the first if its number is 0; what the user must know."""
    try:
        generator, opened, device, functions = _load(call, checkpoint, shards, cache_gb, measures[0], use_gpu)
        pairs = [opened.pairs[number] for number in numbers]
        scored = list(score_pairs(generator, opened, pairs, device, functions, with_image=numbers[0] == 0))
    except (InputError, OSError) as error:
        return error
    return [row for row, _ in scored], scored[0][1]


@lru_cache(maxsize=1)
def _load(
    call: str, checkpoint: str, shards: str, cache_gb: float, measures: ray.ObjectRef, use_gpu: bool
) -> tuple[Generator, Shards, torch.device, Mapping[str, Measure]]:
    """Network, index and metrics, loaded once per process and validation."""
    device = prediction_device(use_gpu)
    generator = load_generator(checkpoint)[0].to(device, memory_format=torch.channels_last)  # as while training
    return generator, open_shards(shards, ["validation"], cache_gb), device, ray.get(measures).load(device)
