"""The folder of a run: its contents, who may use it, and how far the run has come.

STORAGE/NAME/experiment.json    the resolved experiment
STORAGE/NAME/data.sha256        digest of the data that it is trained and validated on
STORAGE/NAME/metrics.jsonl      one event per line
STORAGE/NAME/tensorboard/       the same for TensorBoard
STORAGE/NAME/checkpoint_*/      the best checkpoint, of those that were validated, the latest, and those that await
                                their validation
STORAGE/NAME/best/              a copy of the best, for other jobs
STORAGE/NAME/tracking.json      its runs in MLflow or W&B, and what they were sent
STORAGE/NAME/rollbacks.json     how the run went on after losses that were not finite
STORAGE/NAME/stop               create this file to end the run early

Ray Train's checkpoint_manager_snapshot.json is not relied upon: Ray writes it in place, and refuses a run whose
snapshot is cut or names a folder that is gone. The checkpoints themselves tell what there is, and Ray deletes none: it
would take one whose scores are still to come for the worst.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

from lsid_ray import storage
from lsid_ray.config.schema import Experiment
from lsid_ray.config.serialization import difference, from_json, identity, jsonable, to_json
from lsid_ray.errors import InputError, PartialFailure
from lsid_ray.model.checkpoint import EXPERIMENT, METRICS, WEIGHTS, is_complete, load_metrics
from lsid_ray.storage import AnyPath

STOP = "stop"
AWAITS_VALIDATION = "awaits_validation"  # in the metrics of a checkpoint whose scores are still to come
ROLLBACKS = "rollbacks.json"


def claim_run(folder: AnyPath, experiment: Experiment, data_digest: str) -> None:
    """Write the experiment and the digest of its data into the run's folder, or check that it holds the same ones.

    Only `training.epochs` may have grown since, if nothing else depends on it: with a constant learning rate.
    Raises: InputError if the folder holds another experiment, or one on other data.
    """
    path, data = folder / EXPERIMENT, folder / "data.sha256"
    if path.exists():
        before, now = identity(from_json(path.read_bytes(), str(path))), identity(experiment)
        epochs = before["training"]["epochs"]
        is_longer = experiment.optimizer.schedule == "constant" and experiment.training.epochs > epochs
        if is_longer:
            now["training"]["epochs"] = epochs
        if changed := difference(before, now):
            field, old, new = changed
            raise InputError(
                f"--name {experiment.name}: {folder} holds another experiment ({field} is {old} there, {new} here); "
                "choose another --name"
            )
        if data.read_text() != data_digest:
            raise InputError(
                f"--name {experiment.name}: {folder} was trained on other data than "
                f"{experiment.data.shards or experiment.data.root}; choose another --name"
            )
        if is_longer:
            _write(path, experiment)
        return
    folder.mkdir(parents=True, exist_ok=True)
    data.write_text(data_digest)
    _write(path, experiment)


def _write(path: AnyPath, experiment: Experiment) -> None:
    with storage.atomic_write(path) as file:
        file.write(to_json(experiment).encode())


@dataclass(frozen=True)
class SavedCheckpoint:
    """A complete checkpoint of a run."""

    folder: AnyPath
    metrics: dict[str, Any]
    """Step, epoch and, if it was validated, scores."""

    @property
    def step(self) -> int:
        return self.metrics["step"]

    @property
    def is_scored(self) -> bool:
        """Whether it was validated."""
        return "psnr_db" in self.metrics

    @property
    def awaits_validation(self) -> bool:
        """Whether it is to be validated apart from training."""
        return AWAITS_VALIDATION in self.metrics


def checkpoint_name(step: int) -> str:
    """Name of the folder of a step's checkpoint."""
    return f"checkpoint_{step:09d}"


def saved_checkpoints(folder: AnyPath) -> list[SavedCheckpoint]:
    """The complete checkpoints of a run, by step; a cut or partly deleted one is left out."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.name.startswith("checkpoint_") and path.suffix != ".json"]
    complete = [SavedCheckpoint(path, load_metrics(path)) for path in found if is_complete(path)]
    return sorted(complete, key=lambda checkpoint: checkpoint.step)


def checkpoint_step(folder: AnyPath) -> int:
    """Step of a run's latest checkpoint; 0 if it has none."""
    checkpoints = saved_checkpoints(folder)
    return checkpoints[-1].step if checkpoints else 0


def best_checkpoint(checkpoints: list[SavedCheckpoint]) -> SavedCheckpoint | None:
    """The one with the highest validation PSNR; None if none was validated."""
    scored = [checkpoint for checkpoint in checkpoints if checkpoint.is_scored]
    return max(scored, key=lambda checkpoint: (checkpoint.metrics["psnr_db"], checkpoint.step), default=None)


@dataclass(frozen=True)
class Rollback:
    """A return to a checkpoint after a loss that was not finite."""

    skipped_step: int
    """The step of that loss; its batch is left out."""
    resumed_step: int
    """The step of the checkpoint, 0 if there was none."""
    halves_rate: bool
    """Whether the learning rates are halved from that checkpoint on."""


def read_rollbacks(folder: AnyPath) -> tuple[Rollback, ...]:
    """The rollbacks of a run so far, oldest first."""
    path = folder / ROLLBACKS
    return tuple(Rollback(**fields) for fields in json.loads(path.read_text())) if path.exists() else ()


def add_rollback(folder: AnyPath, skipped_step: int) -> Rollback:
    """Record that the run goes back to its latest checkpoint, and how it goes on."""
    before, resumed_step = read_rollbacks(folder), checkpoint_step(folder)
    repeated = any(rollback.resumed_step == resumed_step for rollback in before)
    rollback = Rollback(skipped_step, resumed_step, halves_rate=repeated)
    with storage.atomic_write(folder / ROLLBACKS) as file:
        file.write(json.dumps([asdict(each) for each in (*before, rollback)], indent=1).encode())
    return rollback


def rate_scale(rollbacks: tuple[Rollback, ...], step: int) -> float:
    """Factor of the learning rates at a step."""
    return 0.5 ** sum(rollback.halves_rate and rollback.resumed_step <= step for rollback in rollbacks)


def remove_superseded(folder: AnyPath) -> None:
    """Delete the complete checkpoints that are neither the best nor the latest, nor await their validation."""
    checkpoints = saved_checkpoints(folder)
    kept = _kept(checkpoints)
    for checkpoint in checkpoints:
        if checkpoint.folder not in kept:
            storage.remove_tree(checkpoint.folder)


def _kept(checkpoints: list[SavedCheckpoint]) -> set[AnyPath]:
    """The folders of the best, the latest, and those that await their validation."""
    awaiting = [checkpoint for checkpoint in checkpoints if checkpoint.awaits_validation]
    best = best_checkpoint(checkpoints)
    return {checkpoint.folder for checkpoint in (*checkpoints[-1:], *awaiting, best) if checkpoint}


def remove_leftovers(folder: AnyPath) -> list[AnyPath]:
    """Delete as `remove_superseded`, and what killed processes left half-written.

    To be called only while no worker of the run is alive. Returns the incomplete checkpoints among them.
    """
    checkpoints = saved_checkpoints(folder)
    complete, kept = {checkpoint.folder for checkpoint in checkpoints}, _kept(checkpoints)
    incomplete = []
    for path in list(folder.iterdir()):
        if path in kept or not (path.name.startswith("checkpoint_") or path.suffix == ".partial"):
            continue
        if path.is_dir():
            storage.remove_tree(path)
            if path not in complete and path.suffix != ".partial":
                incomplete.append(path)
        else:
            path.unlink(missing_ok=True)
    return incomplete


def copy_best(folder: AnyPath) -> tuple[AnyPath, dict[str, Any]]:
    """Copy the checkpoint with the best validation PSNR to best/; returns its path, and its step, epoch and scores.

    Raises: PartialFailure if there is none yet.
    """
    checkpoints = saved_checkpoints(folder)
    best = best_checkpoint(checkpoints)
    if best is None:
        step = checkpoints[-1].step if checkpoints else 0
        raise PartialFailure(
            f"{folder} was stopped before its first validation; the same command resumes from step {step}"
        )
    with storage.atomic_folder(folder / "best", last=EXPERIMENT) as copy:
        (copy / METRICS).write_text(json.dumps(jsonable(best.metrics), indent=2, allow_nan=False))
        for name in (WEIGHTS, EXPERIMENT):
            storage.copy_file(best.folder / name, copy / name)
    return folder / "best", best.metrics
