"""The folder of a run: its contents, who may use it, and how far the run has come.

STORAGE/NAME/experiment.json    the resolved experiment
STORAGE/NAME/data.sha256        digest of the data that it is trained and validated on
STORAGE/NAME/metrics.jsonl      one event per line
STORAGE/NAME/tensorboard/       the same for TensorBoard
STORAGE/NAME/checkpoint_*/      Ray Train's checkpoints: the best and the latest
STORAGE/NAME/best/              a copy of the best, for other jobs
STORAGE/NAME/stop               create this file to end the run early
"""

import shutil
from pathlib import Path
from typing import Any

from ray.train import Result

from lsid_ray import storage
from lsid_ray.config.schema import Experiment
from lsid_ray.config.serialization import difference, from_json, identity, to_json
from lsid_ray.errors import InputError
from lsid_ray.model.checkpoint import EXPERIMENT, METRICS, WEIGHTS, load_metrics
from lsid_ray.storage import AnyPath

STOP = "stop"


def claim_run(folder: AnyPath, experiment: Experiment, data_digest: str) -> None:
    """Write the experiment and the digest of its data into the run's folder, or check that it holds the same ones.

    Raises: InputError if the folder holds another experiment, or one on other data.
    """
    path, data = folder / EXPERIMENT, folder / "data.sha256"
    if path.exists():
        before = identity(from_json(path.read_text(), str(path)))
        if changed := difference(before, identity(experiment)):
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
        return
    folder.mkdir(parents=True, exist_ok=True)
    data.write_text(data_digest)
    with storage.atomic_write(path) as file:
        file.write(to_json(experiment).encode())


def ray_result(folder: AnyPath) -> Result:
    """What Ray Train has stored of a run."""
    filesystem, path = storage.arrow_filesystem(folder)
    return Result.from_path(path, storage_filesystem=filesystem)


def checkpoint_step(folder: AnyPath) -> int:
    """Step of a run's latest checkpoint; 0 if it has none."""
    if not (folder / "checkpoint_manager_snapshot.json").exists():
        return 0
    latest = ray_result(folder).checkpoint
    return 0 if latest is None else latest.get_metadata()["step"]


def copy_best(folder: AnyPath, result: Result) -> tuple[AnyPath, dict[str, Any]]:
    """Copy the checkpoint with the best validation PSNR to best/; returns its path, and its step, epoch and scores."""
    best = result.get_best_checkpoint("psnr_db", "max")
    assert best is not None, "the last step leaves a checkpoint"
    with best.as_directory() as source, storage.atomic_folder(folder / "best", last=EXPERIMENT) as copy:
        for name in (WEIGHTS, METRICS, EXPERIMENT):
            shutil.copy(Path(source, name), copy)
    return folder / "best", load_metrics(folder / "best")
