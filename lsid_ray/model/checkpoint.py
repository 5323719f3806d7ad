"""A checkpoint is a folder: the weights to use, the state to go on from, and the experiment that made them.

generator.safetensors   the generator that was scored (the moving average, where there is one)
training.pt             networks, optimisers and the step to continue from
experiment.json         the resolved experiment
checkpoint.json         step, epoch and validation scores
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lsid_ray import storage
from lsid_ray.config import Experiment, from_json, to_json
from lsid_ray.errors import InputError
from lsid_ray.model.generator import Generator
from lsid_ray.storage import AnyPath


def save(
    folder: Path, experiment: Experiment, generator: Generator, training: dict[str, Any], facts: dict[str, Any]
) -> None:
    """Write a checkpoint into an existing folder. `facts` (plain values) become checkpoint.json."""
    weights = {name: value.contiguous().cpu() for name, value in generator.state_dict().items()}
    save_file(weights, folder / "generator.safetensors")
    torch.save(training, folder / "training.pt")
    (folder / "experiment.json").write_text(to_json(experiment))
    (folder / "checkpoint.json").write_text(json.dumps(facts, indent=2))


def load_generator(folder: str | AnyPath) -> tuple[Generator, Experiment]:
    """The generator in evaluation mode, on the CPU, and its experiment.

    Raises: InputError when the folder is not a checkpoint, or its weights are not of its experiment's shape.
    """
    folder = storage.path(folder)
    weights, description = folder / "generator.safetensors", folder / "experiment.json"
    for path in (weights, description):
        if not path.is_file():
            raise InputError(f"{folder} is not a checkpoint: expected {path.name} in it")
    experiment = from_json(description.read_text(), str(description))
    generator = Generator(experiment.generator)
    try:
        with storage.local(weights) as here:
            generator.load_state_dict(load_file(here))
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise InputError(f"{weights} does not fit {description.name} beside it: {reason}") from None
    return generator.eval(), experiment


def load_training(folder: str | Path) -> dict[str, Any]:
    """The state that `save` was given as `training`, on the CPU."""
    return torch.load(Path(folder) / "training.pt", map_location="cpu", weights_only=True)


def load_facts(folder: str | AnyPath) -> dict[str, Any]:
    """Step, epoch and validation scores.

    Raises: InputError when they are missing or broken.
    """
    path = storage.path(folder) / "checkpoint.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
