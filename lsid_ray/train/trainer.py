"""One experiment trained with Ray Train, from its checks to its best checkpoint."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray.data
import ray.train
from ray.train import CheckpointConfig, DataConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from lsid_ray import storage
from lsid_ray.cluster import check_capacity, describe_wait, start_attempts
from lsid_ray.config.checks import check_early_end, check_experiment
from lsid_ray.config.schema import Experiment
from lsid_ray.config.serialization import to_json
from lsid_ray.data.index import Shards, open_shards
from lsid_ray.data.schedule import Schedule
from lsid_ray.data.stream import execution_options, training_stream
from lsid_ray.errors import InputError, PartialFailure
from lsid_ray.object_store import StoreError
from lsid_ray.storage import AnyPath
from lsid_ray.train.events import Event, start_buffer
from lsid_ray.train.failures import cause_of, describe, is_deterministic
from lsid_ray.train.gloo import GlooTorchConfig
from lsid_ray.train.initial_weights import read_initial_weights, with_absolute_init
from lsid_ray.train.lock import locked
from lsid_ray.train.loop import training_loop
from lsid_ray.train.monitor import Monitor
from lsid_ray.train.run_folder import STOP, checkpoint_step, claim_run, copy_best, remove_leftovers
from lsid_ray.train.run_log import RunLog, open_log


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: AnyPath
    best: AnyPath
    """Checkpoint with the best validation PSNR."""
    metrics: dict[str, Any]
    """Step, epoch and scores of that checkpoint."""


def train(
    experiment: Experiment,
    shards_folder: str,
    on_event: Callable[[Event], None] = lambda event: None,
    until_epoch: int | None = None,
) -> Run:
    """Train an experiment on the connected cluster; a run of the same name resumes from its latest checkpoint.

    on_event: called from a thread with each event (see `train.events`).
    until_epoch: stop after this epoch, a multiple of `training.validate_every`, while all schedules follow
        `training.epochs`; a later call with a greater one, or with None, continues as if there had been no stop.
    Creating the file `stop` in the run's folder ends the run after the current step, with its best checkpoint so far.
    If a worker fails, the run restarts from its latest checkpoint, unless the error is deterministic (see `failures`).
    Raises: InputError for what cannot run; PartialFailure if a loss was not finite, workers kept failing, or the run
    was stopped before its first validation.
    """
    # --- Check the experiment, the data and the cluster
    check_experiment(experiment)
    if until_epoch is not None:
        check_early_end("until_epoch", until_epoch, experiment.training)
    cluster = experiment.cluster
    shards_folder = str(storage.to_path(shards_folder).resolve())
    shards = open_shards(shards_folder, ["train"], cluster.cache_gb)
    data_digest = open_shards(shards_folder, ["train", "validation"]).digest
    schedule = Schedule(shards.pairs, experiment.training)
    if schedule.layout.kind != experiment.generator.cfa:
        raise InputError(
            f"--generator.cfa is {experiment.generator.cfa}: the frames in {shards_folder} are {schedule.layout.kind}"
        )
    check_capacity(cluster)

    # --- Claim the run's folder
    folder = storage.to_path(experiment.storage).resolve() / experiment.name
    with locked(folder, lambda line: on_event({"kind": "warning", "message": line})):
        claim_run(folder, experiment, data_digest)
        experiment = with_absolute_init(experiment)
        if experiment.init and not checkpoint_step(folder):
            on_event({"kind": "warning", "message": read_initial_weights(experiment).description})
        (folder / STOP).unlink(missing_ok=True)
        with open_log(folder, on_event) as log:
            epochs = min(until_epoch or experiment.training.epochs, experiment.training.epochs)
            _train(experiment, shards, schedule, folder, log, schedule.steps_per_epoch * epochs)
        return Run(folder, *copy_best(folder))


def _train(
    experiment: Experiment, shards: Shards, schedule: Schedule, folder: AnyPath, log: RunLog, stop_step: int
) -> None:
    """Train from the latest checkpoint to `stop_step`, restarting after failures that may pass."""
    cluster = experiment.cluster
    failures = 0  # since the latest checkpoint
    while True:
        attempt_step = checkpoint_step(folder)
        if attempt_step >= stop_step:
            log.write({"kind": "start", "step": attempt_step, "total_steps": schedule.total_steps})
            return
        buffer = start_buffer()
        monitor = Monitor(buffer, log, folder / STOP, 60 * cluster.stall_minutes, lambda: describe_wait(cluster))
        try:
            for checkpoint in remove_leftovers(folder):
                log.write({"kind": "warning", "message": f"{checkpoint} is incomplete; it was deleted"})
            with _sigint_handler_kept(), monitor.watching():
                _trainer(experiment, shards, schedule, folder, buffer, stop_step).fit()
            break
        except (ray.train.TrainingFailedError, ray.exceptions.RayError, StoreError) as error:
            where, cause = cause_of(error)
        except SystemExit:
            raise KeyboardInterrupt from None  # how Ray ends on Ctrl-C, which would count as a success
        reason = monitor.stall or describe(where, cause)
        step = checkpoint_step(folder)
        if "startup timed out" in reason:
            raise PartialFailure(
                f"no worker started within --cluster.wait-minutes {cluster.wait_minutes:g}: {describe_wait(cluster)}"
            )
        if isinstance(cause, InputError):
            raise InputError(str(cause)) from cause
        if isinstance(cause, PartialFailure):
            raise PartialFailure(f"{cause}; the same command resumes from step {step}") from cause
        if is_deterministic(cause):
            raise PartialFailure(f"training {folder} failed: {reason}") from cause
        failures = 0 if step > attempt_step else failures
        if not monitor.lost_node:  # that is no fault of the run, and another node may join
            failures += 1
        if failures > cluster.max_failures:
            raise PartialFailure(
                f"training {folder} failed {failures} times in a row without a new checkpoint; last failure: {reason}; "
                f"the same command resumes from step {step}"
            ) from cause
        log.write({"kind": "failure", "step": step, "reason": reason})
    if log.diverged is not None:
        losses = ", ".join(f"{name} {value}" for name, value in log.diverged["losses"].items())
        pairs = ", ".join(log.diverged["pairs"])
        raise PartialFailure(f"step {log.diverged['step']}: a loss is not finite ({losses}); pairs: {pairs}")
    remove_leftovers(folder)


@contextmanager
def _sigint_handler_kept() -> Iterator[None]:
    """Undo what `fit` leaves behind: a Ctrl-C in later work would end the process with exit code 0 (ray 2.60)."""
    if threading.current_thread() is not threading.main_thread():  # as in a trial, where Ray changes nothing
        yield
        return
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _trainer(
    experiment: Experiment, shards: Shards, schedule: Schedule, folder: AnyPath, buffer: Any, stop_step: int
) -> TorchTrainer:
    """Ray's trainer for one attempt: from the latest checkpoint until the end or the first failure of a worker."""
    cluster = experiment.cluster

    def stream() -> ray.data.Dataset:
        """The samples after the latest checkpoint; Ray calls this at every start of a worker group."""
        start_step = min(checkpoint_step(folder), schedule.total_steps - 1)
        return training_stream(shards, schedule, start_step, cluster.num_workers, cluster.readers, cluster.readers_on)

    filesystem, storage_path = storage.arrow_filesystem(folder.parent)
    resources = {"CPU": cluster.cpus_per_worker} | ({"GPU": cluster.gpus_per_worker} if cluster.use_gpu else {})
    return TorchTrainer(
        training_loop,
        train_loop_config={
            "experiment": to_json(experiment),
            "shards": shards.folder,
            "folder": str(folder),
            "events": buffer,
            "stop_step": stop_step,
        },
        torch_config=GlooTorchConfig(),
        scaling_config=ScalingConfig(
            num_workers=cluster.num_workers, use_gpu=cluster.use_gpu, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=experiment.name,
            storage_path=storage_path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=start_attempts(cluster)),
            checkpoint_config=CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute="psnr_db", checkpoint_score_order="max"
            ),
        ),
        datasets={"train": stream},
        dataset_config=DataConfig(["train"], execution_options=execution_options(schedule)),
    )
