"""The weights that a run starts from: random ones, or, with --init, those of another run's checkpoint."""

import dataclasses
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lsid_ray import storage
from lsid_ray.config.schema import Experiment
from lsid_ray.errors import InputError
from lsid_ray.model.checkpoint import TRAINING_STATE, is_complete, load_generator, load_training_state
from lsid_ray.model.discriminator import Discriminator
from lsid_ray.model.generator import Generator
from lsid_ray.storage import AnyPath
from lsid_ray.train.run_folder import best_checkpoint, saved_checkpoints

BODY = ("width", "depth", "gates", "residual", "norm", "upsample", "input_ratio")  # what the generators must share
ENDS = {"encoders.0.": "first convolution", "head.": "head"}  # depend on the CFA and the resolution of the output


@dataclass(frozen=True)
class InitialWeights:
    """State dicts for the networks of a run."""

    generator: dict[str, Tensor]
    """Without the layers that do not fit."""
    discriminator: dict[str, Tensor]
    """Empty if there is none that fits."""
    description: str
    """What was taken and what was not, in one line."""


def with_absolute_init(experiment: Experiment) -> Experiment:
    """The experiment with `init` as every process finds it, whatever its working directory."""
    return replace(experiment, init=str(storage.to_path(experiment.init).resolve())) if experiment.init else experiment


def read_initial_weights(experiment: Experiment) -> InitialWeights:
    """The weights of the checkpoint `experiment.init` that fit the networks of the experiment.

    The generator's are those that were scored: the moving average, if there was one.
    Raises: InputError if it is not a complete checkpoint of this version, or its generator is of another size or kind;
    OSError if a file cannot be read.
    """
    folder = _checkpoint(storage.to_path(experiment.init))
    try:
        trained, source = load_generator(folder)
    except InputError as error:
        raise InputError(f"--init {experiment.init}: {error}") from None
    here = experiment.generator
    for name in BODY:
        before, now = getattr(source.generator, name), getattr(here, name)
        if before != now:
            raise InputError(f"--init {experiment.init}: its generator.{name} is {before}, expected {now} as here")
    with torch.device("meta"):
        generator = Generator(here)
        discriminator = Discriminator(experiment.discriminator, generator.planes, generator.scale)
    weights = _fitting(trained.state_dict(), generator.state_dict())
    random = [name for name in generator.state_dict() if name not in weights]
    missing = [text for prefix, text in ENDS.items() if any(name.startswith(prefix) for name in random)]
    taken = "the generator" + (f" but its {' and '.join(missing)}" if missing else "")
    discriminator_weights, why = _discriminator(folder, experiment, discriminator.state_dict())
    changed = [
        f"generator.{field.name} was {getattr(source.generator, field.name)}"
        for field in dataclasses.fields(here)
        if getattr(source.generator, field.name) != getattr(here, field.name)
    ]
    parts = [
        f"starting from {folder}: took {taken}{' and the discriminator' if discriminator_weights else ''}",
        why,
        *changed,
    ]
    return InitialWeights(weights, discriminator_weights, "; ".join(part for part in parts if part))


def _checkpoint(folder: AnyPath) -> AnyPath:
    """A checkpoint itself, or the best one of a run's folder."""
    checkpoints = saved_checkpoints(folder)
    best = best_checkpoint(checkpoints)
    if checkpoints and best is None:
        raise InputError(f"--init {folder}: none of its checkpoints has been validated yet")
    return best.folder if best else folder


def _fitting(found: dict[str, Tensor], needed: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in found.items() if name in needed and value.shape == needed[name].shape}


def _discriminator(folder: AnyPath, experiment: Experiment, needed: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The discriminator's state dict, or an empty one and the reason."""
    if not experiment.loss.adv_weight:
        return {}, ""
    if not (folder / TRAINING_STATE).exists():
        return {}, f"a new discriminator, as {folder.name} holds none"
    if not is_complete(folder):
        raise InputError(
            f"--init {experiment.init}: {folder} is not complete; expected a checkpoint with all its files"
        )
    found = load_training_state(folder).get("discriminator", {})
    fitting = _fitting(found, needed)
    if not found:
        return {}, "a new discriminator, as its run had none"
    if fitting.keys() != needed.keys() or found.keys() != needed.keys():
        return {}, "a new discriminator, as the one there is of another size or kind"
    return fitting, ""
