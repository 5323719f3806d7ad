"""One experiment trained with Ray Train, from its checks to its best checkpoint."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray.data
import ray.train
from ray.train import CheckpointConfig, DataConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util.queue import Queue

from lsid_ray import storage
from lsid_ray.cluster import check_capacity
from lsid_ray.config.checks import check_experiment
from lsid_ray.config.schema import Experiment
from lsid_ray.config.serialization import to_json
from lsid_ray.data.index import open_shards
from lsid_ray.data.schedule import Schedule
from lsid_ray.data.stream import execution_options, training_stream
from lsid_ray.errors import InputError, PartialFailure
from lsid_ray.storage import AnyPath
from lsid_ray.train.events import Event, RunLog
from lsid_ray.train.gloo import GlooTorchConfig
from lsid_ray.train.loop import training_loop
from lsid_ray.train.run_folder import STOP, checkpoint_step, claim_run, copy_best, ray_result


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
    until_epoch: stop after this epoch, while all schedules follow `training.epochs`; a later call with a greater
        one, or with None, continues as if there had been no stop.
    A file STOP in the run's folder ends it within a second or two; its best checkpoint is then that of the
    validations so far.
    Raises: InputError for what cannot run; PartialFailure if a loss was not finite, workers kept failing, or the run
    was stopped before its first checkpoint.
    """
    # --- Check the experiment, the data and the cluster
    check_experiment(experiment)
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

    # --- Claim the run's folder; nothing is left to do if the run has come far enough
    folder = storage.to_path(experiment.storage).resolve() / experiment.name
    claim_run(folder, experiment, data_digest)
    (folder / STOP).unlink(missing_ok=True)
    log = RunLog(folder, on_event)
    stop_step = schedule.steps_per_epoch * min(until_epoch or experiment.training.epochs, experiment.training.epochs)
    if (step := checkpoint_step(folder)) >= stop_step:
        log.write({"kind": "start", "step": step, "total_steps": schedule.total_steps})
        return Run(folder, *copy_best(folder, ray_result(folder)))

    # --- Train
    def stream() -> ray.data.Dataset:
        """The samples after the latest checkpoint; Ray calls this at every start of a worker group."""
        start_step = min(checkpoint_step(folder), schedule.total_steps - 1)
        return training_stream(shards, schedule, start_step, cluster.num_workers, cluster.readers, cluster.readers_on)

    filesystem, storage_path = storage.arrow_filesystem(folder.parent)
    events = Queue(actor_options={"num_cpus": 0})
    resources = {"CPU": cluster.cpus_per_worker} | ({"GPU": cluster.gpus_per_worker} if cluster.use_gpu else {})
    trainer = TorchTrainer(
        training_loop,
        train_loop_config={
            "experiment": to_json(experiment),
            "shards": shards_folder,
            "events": events,
            "stop_file": str(folder / STOP),
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
            failure_config=FailureConfig(max_failures=cluster.max_failures, controller_failure_limit=3),
            checkpoint_config=CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute="psnr_db", checkpoint_score_order="max"
            ),
        ),
        datasets={"train": stream},
        dataset_config=DataConfig(["train"], execution_options=execution_options(schedule)),
    )
    with log.following(events):
        try:
            result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            reason = str(error).strip().splitlines()[-1]
            raise PartialFailure(f"training {folder} failed after {cluster.max_failures} restarts: {reason}") from error
        except SystemExit:
            raise KeyboardInterrupt from None  # how Ray ends on Ctrl-C, which would count as a success

    # --- Keep the best checkpoint
    if log.diverged is not None:
        losses = ", ".join(f"{name} {value}" for name, value in log.diverged["losses"].items())
        files = ", ".join(log.diverged["files"])
        raise PartialFailure(f"step {log.diverged['step']}: a loss is not finite ({losses}); files: {files}")
    if result.checkpoint is None:
        raise PartialFailure(f"{folder} was stopped before its first checkpoint")
    return Run(folder, *copy_best(folder, result))
