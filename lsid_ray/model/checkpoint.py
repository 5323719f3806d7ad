"""A checkpoint is a folder: the weights to use, the state to resume from, and the experiment that made them.

generator.safetensors   the generator that was scored (its moving average, if there is one)
training.pt             networks, optimizers and the step to resume from
experiment.json         the resolved experiment
checkpoint.json         step, epoch and, of a validation, its scores; names and sizes of the other files

checkpoint.json is written last: a checkpoint is complete if it has all files that checkpoint.json lists. It is replaced
when the scores come later.
"""

import io
import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from lsid_ray import storage
from lsid_ray.config.checks import check_generator
from lsid_ray.config.schema import Experiment
from lsid_ray.config.serialization import difference, from_json, jsonable, to_json
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
    """Write a checkpoint into an existing folder. `metrics`: step, epoch and scores, as plain JSON values.

    Raises: OSError if it cannot be written.
    """
    weights = {name: value.contiguous().cpu() for name, value in generator.state_dict().items()}
    state = io.BytesIO()
    torch.save(training_state, state)
    # Written by Python: on a full disk safetensors and torch raise errors of their own, which do not say why.
    (folder / WEIGHTS).write_bytes(save(weights))
    (folder / TRAINING_STATE).write_bytes(state.getbuffer())
    (folder / EXPERIMENT).write_text(to_json(experiment))
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    (folder / METRICS).write_text(json.dumps(jsonable({**metrics, "files": files}), indent=2, allow_nan=False))


def write_metrics(folder: AnyPath, metrics: dict[str, Any]) -> None:
    """Replace the step, epoch and scores of a complete checkpoint, atomically. Raises: OSError if they cannot be."""
    files = json.loads((folder / METRICS).read_text())["files"]
    with storage.atomic_write(folder / METRICS) as file:
        content = jsonable({**metrics, "files": files})
        file.write(json.dumps(content, indent=2, allow_nan=False).encode())


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

    The shapes of the weights are compared first, so that a wrong experiment takes no memory.
    Raises: InputError if the folder is not a checkpoint, or its weights are damaged or do not fit its experiment;
    OSError if a file cannot be read.
    """
    folder = storage.to_path(folder)
    weights, description = folder / WEIGHTS, folder / EXPERIMENT
    if not storage.is_utf8(folder):
        raise InputError(f"{folder}: its name is not UTF-8; expected one that is")
    for path in (weights, description):
        if not path.is_file():
            best = folder / "best"  # of the folder of a run
            hint = f", as in {best}" if (best / path.name).is_file() else ""
            missing = f"{folder} is not a checkpoint: expected {path.name} in it{hint}"
            raise InputError(f"{path}: not a file" if path.exists() else missing)
    experiment = from_json(description.read_bytes(), str(description))
    try:
        check_generator(experiment.generator)
    except InputError as error:
        raise InputError(f"{description}: {error}") from None
    with torch.device("meta"):
        expected = {name: tuple(value.shape) for name, value in Generator(experiment.generator).state_dict().items()}
    with storage.local_copy(weights) as file:
        file.open("rb").close()  # for the right error, safetensors takes any for a missing file
        try:
            with safe_open(file, "pt") as header:
                found = {name: tuple(header.get_slice(name).get_shape()) for name in header.keys()}  # noqa: SIM118
            if changed := difference(found, expected):
                name, saved, needed = changed
                raise InputError(
                    f"{weights} does not fit {EXPERIMENT} next to it: {name} is {saved}, expected {needed}"
                )
            values = load_file(file)
        except SafetensorError as error:
            raise InputError(f"{weights} is damaged: {str(error).splitlines()[0]}") from None
    if not all(value.isfinite().all() for value in values.values()):
        raise InputError(f"{weights} is damaged: values that are not finite")
    generator = Generator(experiment.generator)
    generator.load_state_dict(values)
    return generator.eval(), experiment


def load_training_state(folder: AnyPath) -> dict[str, Any]:
    """The `training_state` that `save_checkpoint` was given, on the CPU."""
    with storage.local_copy(folder / TRAINING_STATE) as path:
        return torch.load(path, map_location="cpu", weights_only=True)


def load_metrics(folder: str | AnyPath) -> dict[str, Any]:
    """Step, epoch and validation scores, NaN for those that could not be computed.

    Raises: InputError if they are missing or broken.
    """
    path = storage.to_path(folder) / METRICS
    try:
        metrics = json.loads(path.read_text())
        metrics.pop("files", None)
        return with_nan(metrics)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def with_nan(metrics: dict[str, Any]) -> dict[str, Any]:
    """Metrics as they were before `config.serialization.jsonable`: NaN for None."""
    return {name: math.nan if value is None else value for name, value in metrics.items()}
