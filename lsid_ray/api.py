"""For notebooks and scripts: load a checkpoint, enhance a raw file, run an experiment, read a run's metrics."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lsid_ray import storage
from lsid_ray.config.presets import PRESETS
from lsid_ray.config.schema import Experiment
from lsid_ray.errors import InputError
from lsid_ray.inference.frame import enhance_raw
from lsid_ray.inference.raw_file import Amplification
from lsid_ray.model.checkpoint import load_generator
from lsid_ray.model.generator import Generator
from lsid_ray.raw.frame import read_raw
from lsid_ray.train import events, run_log, trainer
from lsid_ray.train.prepare import prepare


def load_checkpoint(folder: str | Path, device: str = "cpu") -> tuple[Generator, Experiment]:
    """The generator of a checkpoint in evaluation mode, and its experiment. Raises: InputError as `load_generator`."""
    generator, experiment = load_generator(folder)
    return generator.to(device), experiment


def enhance(
    generator: Generator, path: str | Path, ratio: float | None = None, self_ensemble: bool = False
) -> np.ndarray:
    """A raw file enhanced on the generator's device: (H, W, 3) uint16, sRGB, upright.

    ratio: the amplification, at least 1; None estimates it from the file. self_ensemble: the mean of the predictions in
    all eight orientations, in eight times the time. Raises: InputError for a file that cannot be read, or from another
    kind of sensor than the generator was trained for, and for a self-ensemble at half resolution.
    """
    with storage.local_copy(storage.to_path(path)) as file:
        frame = read_raw(file)
    amplification, _ = Amplification(ratio=ratio).for_frame(frame)
    device = next(generator.parameters()).device
    return enhance_raw(generator, frame, amplification, device, self_ensemble=self_ensemble)


def preset(name: str, /, **changes: Any) -> Experiment:
    """A preset with fields changed: preset("demo", name="mine", training={"epochs": 4}).

    Raises: InputError for an unknown preset, TypeError for an unknown field.
    """
    if name not in PRESETS:
        raise InputError(f"preset {name!r}: expected one of {', '.join(PRESETS)}")
    experiment = PRESETS[name][1]
    sections = {
        field: dataclasses.replace(getattr(experiment, field), **value) if isinstance(value, dict) else value
        for field, value in changes.items()
    }
    return dataclasses.replace(experiment, **sections)


def run_experiment(
    experiment: Experiment, on_event: Callable[[events.Event], None] = lambda event: None
) -> trainer.Run:
    """Pack the data set if needed and train on the connected cluster, or on one started on this machine.

    on_event: called with each event of `train.events`. A run of the same name resumes from its latest checkpoint.
    Raises: InputError, PartialFailure as `trainer.train`; PartialFailure is not raised for raw files left out, which
    are printed.
    """
    shards, _ = prepare(experiment, print)
    return trainer.train(experiment, shards, on_event=on_event)


def read_metrics(folder: str | Path) -> list[events.Event]:
    """The events of a run so far, oldest first, also while it trains; see `train.events` for their fields."""
    return run_log.read_events(storage.to_path(folder))
