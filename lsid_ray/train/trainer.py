"""One experiment trained with Ray Train, from its checks to its best checkpoint."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray.data
import ray.train
from ray.train import FailureConfig, PreemptionError, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from lsid_ray import storage
from lsid_ray.cluster import check_capacity, describe_wait, lost_nodes, start_attempts, worker_count, worker_needs
from lsid_ray.config.checks import check_early_end, check_experiment
from lsid_ray.config.schema import ClusterConfig, Experiment
from lsid_ray.config.serialization import to_json
from lsid_ray.data.index import Shards, open_shards
from lsid_ray.data.schedule import Schedule
from lsid_ray.data.split import StreamSplit
from lsid_ray.errors import InputError, PartialFailure
from lsid_ray.evaluate.measures import find_measures
from lsid_ray.object_store import StoreError
from lsid_ray.storage import AnyPath
from lsid_ray.train.elastic import MissingWorkers, workers_to_start
from lsid_ray.train.events import Event, start_buffer
from lsid_ray.train.failures import cause_of, describe, is_deterministic
from lsid_ray.train.gloo import GlooTorchConfig
from lsid_ray.train.initial_weights import read_initial_weights, with_absolute_init
from lsid_ray.train.interruption import fit
from lsid_ray.train.lock import locked
from lsid_ray.train.loop import training_loop
from lsid_ray.train.monitor import Monitor
from lsid_ray.train.run_folder import (
    STOP,
    add_rollback,
    best_checkpoint,
    checkpoint_step,
    claim_run,
    copy_best,
    read_rollbacks,
    remove_leftovers,
    saved_checkpoints,
)
from lsid_ray.train.run_log import RunLog, open_log
from lsid_ray.train.tracker import Tracker
from lsid_ray.train.tracking import tracking
from lsid_ray.train.validator import Validator


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
    tracker: Tracker | None = None,
    validate_apart: bool = True,
) -> Run:
    """Train an experiment on the connected cluster; a run of the same name resumes from its latest checkpoint.

    on_event: called from a thread with each event (see `train.events`).
    until_epoch: stop after this epoch, a multiple of `training.validate_every`, while all schedules follow
        `training.epochs`; a later call with a greater one, or with None, continues as if there had been no stop.
    tracker: where the run is logged besides its folder.
    validate_apart: validate while training goes on, if CPUs (or GPUs) are free for that (see `train.validator`).
    Creating the file `stop` in the run's folder ends the run after the current step, once all is validated, with its
    best checkpoint so far; Ctrl-C (KeyboardInterrupt) also saves a checkpoint first, but leaves its validation to the
    next call; a second one does not wait for the checkpoint either.
    If a worker fails, the run restarts from its latest checkpoint, unless the error is deterministic (see `failures`).
    Raises: InputError for what cannot run; PartialFailure if losses were not finite, workers kept failing, or the run
    was stopped before its first validation; KeyboardInterrupt, with the step of the latest checkpoint.
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
    measures = find_measures(experiment.training.metrics, experiment.data.weights)
    folder = storage.to_path(experiment.storage).resolve() / experiment.name
    with_init = with_absolute_init(experiment)
    starts_from_init = experiment.init and not checkpoint_step(folder)
    initial_weights = read_initial_weights(with_init).description if starts_from_init else ""
    check_capacity(cluster)

    # --- Claim the run's folder
    with locked(folder, lambda line: on_event({"kind": "warning", "message": line})) as is_taken:
        claim_run(folder, experiment, data_digest)
        experiment = with_init
        if initial_weights:
            on_event({"kind": "warning", "message": initial_weights})
        for name in experiment.training.metrics:
            if reason := measures.not_measured.get(name):
                on_event({"kind": "warning", "message": f"{name} is {reason}"})
        (folder / STOP).unlink(missing_ok=True)
        with tracking(tracker, folder, experiment, on_event) as on_event, open_log(folder, on_event) as log:
            epochs = min(until_epoch or experiment.training.epochs, experiment.training.epochs)
            stop_step, shared = schedule.steps_per_epoch * epochs, ray.put(measures)
            validator = Validator(folder, experiment, shards_folder, shared, log, validate_apart)
            try:
                _train(experiment, shards, schedule, folder, log, stop_step, shared, validator, is_taken)
            finally:
                validator.cancel()
        return Run(folder, *copy_best(folder))


def _train(
    experiment: Experiment,
    shards: Shards,
    schedule: Schedule,
    folder: AnyPath,
    log: RunLog,
    stop_step: int,
    measures: ray.ObjectRef,
    validator: Validator,
    is_taken: Callable[[], bool],
) -> None:
    """Train from the latest checkpoint to `stop_step`, restarting after failures that may pass."""
    cluster = experiment.cluster
    least = cluster.min_workers or cluster.num_workers
    failures = 0  # since the latest checkpoint
    lost = lost_nodes()
    while (attempt_step := checkpoint_step(folder)) < stop_step:
        for checkpoint in remove_leftovers(folder):
            log.write({"kind": "warning", "message": f"{checkpoint} is incomplete; it was deleted"})
        workers = workers_to_start(cluster)
        validates_apart = validator.begin(workers)
        missing_workers = MissingWorkers(cluster) if cluster.min_workers else None
        buffer = start_buffer()
        monitor = Monitor(
            buffer=buffer,
            log=log,
            stop_file=folder / STOP,
            stall_s=60 * cluster.stall_minutes,
            describe_wait=partial(describe_wait, cluster),
            missing_workers=missing_workers,
            lost=lost,
            validator=validator,
        )
        checkpoint = next(reversed(saved_checkpoints(folder)), None)
        options = {
            "experiment": to_json(experiment),
            "shards": shards.folder,
            "folder": str(folder),
            "events": buffer,
            "checkpoint": checkpoint and str(checkpoint.folder),
            "rollbacks": read_rollbacks(folder),
            "measures": measures,
            "validates_apart": validates_apart,
            "stop_step": stop_step,
        }
        first_step = checkpoint.step if checkpoint else 0
        trainer = _trainer(experiment, folder, StreamSplit(shards, schedule, first_step, cluster), options, workers)
        try:
            with monitor.watching():
                fit(trainer, monitor, log, folder, is_taken)
        except (ray.train.TrainingFailedError, ray.exceptions.RayError, StoreError) as error:
            failures = 0 if checkpoint_step(folder) > attempt_step else failures
            if not (monitor.lost_node or isinstance(error, PreemptionError)):  # no fault of the run; others may join
                failures += 1
            reason = _recoverable(error, monitor, folder, cluster, failures, may_start_fewer=workers > least)
            log.write({"kind": "failure", "step": checkpoint_step(folder), "reason": reason})
            continue
        finally:
            lost = monitor.lost
            if missing_workers:
                missing_workers.withdraw()
        if log.diverged is not None:
            _roll_back(experiment, folder, log)
        elif monitor.resizing:
            log.write({"kind": "resize", "step": checkpoint_step(folder), "workers": worker_count(cluster)})
        elif not validator.gave_up:
            validator.finish()
            remove_leftovers(folder)
            return
    log.write({"kind": "start", "step": attempt_step, "total_steps": schedule.total_steps})
    validator.finish()
    remove_leftovers(folder)


def _recoverable(
    error: ray.train.TrainingFailedError | ray.exceptions.RayError | StoreError,
    monitor: Monitor,
    folder: AnyPath,
    cluster: ClusterConfig,
    failures: int,
    may_start_fewer: bool,
) -> str:
    """Why an attempt failed, if another one may help. failures: in a row, with this one.

    Raises: InputError or PartialFailure if none can, or there were too many.
    """
    where, cause = cause_of(error)
    reason = monitor.stall or describe(where, cause)
    resumes = f"the same command resumes from step {checkpoint_step(folder)}"
    if "startup timed out" in reason and not may_start_fewer:
        raise PartialFailure(
            f"no worker started within --cluster.wait-minutes {cluster.wait_minutes:g}: {describe_wait(cluster)}"
        )
    if isinstance(cause, InputError):
        raise InputError(str(cause)) from cause
    if isinstance(cause, PartialFailure):
        raise PartialFailure(f"{cause}; {resumes}") from cause
    if is_deterministic(cause):
        raise PartialFailure(f"training {folder} failed: {reason}") from cause
    if failures > cluster.max_failures:
        raise PartialFailure(
            f"training {folder} failed {failures} times in a row without a new checkpoint; last failure: {reason}; "
            f"{resumes}"
        ) from cause
    return reason


def _roll_back(experiment: Experiment, folder: AnyPath, log: RunLog) -> None:
    """Go back to the latest checkpoint because a loss was not finite. Raises: PartialFailure if it was too often."""
    diverged, log.diverged = log.diverged, None
    losses = ", ".join(f"{name} {value}" for name, value in diverged["losses"].items())
    reason = f"step {diverged['step']}: a loss is not finite ({losses}); pairs: {', '.join(diverged['pairs'])}"
    earlier = len(read_rollbacks(folder))
    if earlier >= experiment.training.max_rollbacks:
        returned = f"{earlier} return{'s' * (earlier > 1)}"
        returns = f", after {returned} to a checkpoint (--training.max-rollbacks)" if earlier else ""
        has_best = best_checkpoint(saved_checkpoints(folder)) is not None
        weights = f" from this run's best checkpoint with --init {folder}," if has_best else ""
        raise PartialFailure(
            f"{reason}{returns}; look at these pairs, or start{weights} with another --name and a lower "
            "--optimizer.generator-lr or --training.clip-norm"
        )
    rollback = add_rollback(folder, diverged["step"])
    changes = {"skipped_step": rollback.skipped_step, "halves_rate": rollback.halves_rate}
    log.write({"kind": "rollback", "step": rollback.resumed_step, "reason": reason, **changes})


def _trainer(
    experiment: Experiment, folder: AnyPath, split: StreamSplit, options: dict[str, Any], workers: int
) -> TorchTrainer:
    """Ray's trainer for one attempt: from a checkpoint until the end or the first failure of a worker.

    options: of `train.loop.training_loop`.
    """
    cluster = experiment.cluster
    filesystem, storage_path = storage.arrow_filesystem(folder.parent)
    least = cluster.min_workers or cluster.num_workers
    return TorchTrainer(
        training_loop,
        train_loop_config=options,
        torch_config=GlooTorchConfig(),
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=cluster.use_gpu,
            resources_per_worker=worker_needs(cluster),
        ),
        run_config=RunConfig(
            name=experiment.name,
            storage_path=storage_path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(
                max_failures=0,
                max_preemption_failures=0,
                controller_failure_limit=start_attempts(cluster) if workers == least else 0,  # then with fewer
            ),
        ),
        datasets={"train": ray.data.from_items([0])},  # stands for what `StreamSplit` makes
        dataset_config=split,
    )
