"""A checkpoint is a folder: the weights to use, the state to resume from, and the experiment that made them.

generator.safetensors   the generator that was scored (its moving average, if there is one)
training.pt             networks, optimizers and the step to resume from
experiment.json         the resolved experiment
checkpoint.json         step, epoch and validation scores; names and sizes of the other files

checkpoint.json is written last: a checkpoint is complete if it has all files that checkpoint.json lists.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lsid_ray import storage
from lsid_ray.config.schema import Experiment
from lsid_ray.config.serialization import from_json, to_json
from lsid_ray.errors import InputError
from lsid_ray.model.generator import Generator
from lsid_ray.storage import AnyPath

WEIGHTS, TRAINING_STATE = "generator.safetensors", "training.pt"
EXPERIMENT, METRICS = "experiment.json", "checkpoint.json"


def save_checkpoint(
    folder: Path,
    experiment: Experiment,
    generator: Generator,
    training_state: dict[str, Any],
    metrics: dict[str, Any],
) -> None:
    """Write a checkpoint into an existing folder. `metrics`: step, epoch and scores, as plain JSON values."""
    weights = {name: value.contiguous().cpu() for name, value in generator.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    torch.save(training_state, folder / TRAINING_STATE)
    (folder / EXPERIMENT).write_text(to_json(experiment))
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    (folder / METRICS).write_text(json.dumps({**metrics, "files": files}, indent=2))


def is_complete(folder: AnyPath) -> bool:
    """Whether a folder is a checkpoint whose files have the sizes that were written; content is not read."""
    found = {name: size for name, (size, _) in storage.list_files(folder).items()}
    try:
        expected = json.loads((folder / METRICS).read_text()).get("files")
    except (FileNotFoundError, NotADirectoryError, ValueError, AttributeError):
        return False
    if expected is None:  # written before there was a list
        return {WEIGHTS, TRAINING_STATE, EXPERIMENT} <= found.keys()
    return all(found.get(name) == size for name, size in expected.items())


def load_generator(folder: str | AnyPath) -> tuple[Generator, Experiment]:
    """The generator in evaluation mode, on the CPU, and its experiment.

    Raises: InputError if the folder is not a checkpoint, or its weights do not fit its experiment.
    """
    folder = storage.to_path(folder)
    weights, description = folder / WEIGHTS, folder / EXPERIMENT
    for path in (weights, description):
        if not path.is_file():
            raise InputError(f"{folder} is not a checkpoint: expected {path.name} in it")
    experiment = from_json(description.read_text(), str(description))
    generator = Generator(experiment.generator)
    try:
        with storage.local_copy(weights) as file:
            generator.load_state_dict(load_file(file))
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise InputError(f"{weights} does not fit {description.name} next to it: {reason}") from None
    return generator.eval(), experiment


def load_training_state(folder: AnyPath) -> dict[str, Any]:
    """The `training_state` that `save_checkpoint` was given, on the CPU."""
    with storage.local_copy(folder / TRAINING_STATE) as path:
        return torch.load(path, map_location="cpu", weights_only=True)


def load_metrics(folder: str | AnyPath) -> dict[str, Any]:
    """Step, epoch and validation scores.

    Raises: InputError if they are missing or broken.
    """
    path = storage.to_path(folder) / METRICS
    try:
        metrics = json.loads(path.read_text())
        metrics.pop("files", None)
        return metrics
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
