"""The search space: fields of the experiment, each with a distribution."""

import dataclasses
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pydantic import TypeAdapter, ValidationError

from lsid_ray.config.checks import check_experiment
from lsid_ray.config.schema import Experiment
from lsid_ray.errors import InputError

ADV_WEIGHT = "loss.adv_weight"
DEFAULTS = {
    ADV_WEIGHT: "loguniform:1e-4:1e-1",  # relative to L1; in use are .01 (pix2pix) to .1 (Real-ESRGAN)
    "optimizer.generator_lr": "loguniform:1e-4:5e-3",
    "optimizer.discriminator_lr": "loguniform:1e-5:1e-3",
}
SEARCHABLE = ("generator", "discriminator", "loss", "optimizer", "training")  # sections of the experiment
MAX_CHECKED = 10_000  # values of a range of integers
Parameters = dict[str, Any]
"""Field -> value: {"loss.adv_weight": 0.01}."""


class Sampler(Protocol):
    """What draws values: the interface of an Optuna trial."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...
    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int: ...
    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...


@dataclass(frozen=True)
class Dimension:
    """One searched field."""

    field: str
    """Such as "loss.adv_weight"."""
    text: str
    """As given: "loguniform:1e-4:1e-1"."""
    kind: Literal["loguniform", "uniform", "choice"]
    values: tuple[Any, ...]
    """Low and high, or the choices; of the field's type."""

    @property
    def checked_values(self) -> Iterable[Any]:
        """The values with which an experiment must run: of a range of integers all, of other ranges the ends."""
        low, high = self.values[0], self.values[-1]
        if self.kind == "choice" or type(low) is not int or high - low > MAX_CHECKED:
            return self.values
        return range(low, high + 1)

    def draw(self, sampler: Sampler) -> Any:
        """A value; low and high are included."""
        if self.kind == "choice":
            return sampler.suggest_categorical(self.field, self.values)
        suggest = sampler.suggest_int if type(self.values[0]) is int else sampler.suggest_float
        return suggest(self.field, *self.values, log=self.kind == "loguniform")


def read_space(given: Mapping[str, str], experiment: Experiment) -> tuple[Dimension, ...]:
    """The searched fields: DEFAULTS, overridden or extended by `given` ("loss.adv-weight" -> "uniform:0.001:0.1").

    Raises: InputError naming the option, for a field that does not exist or cannot be searched, text that is not a
    distribution, an empty range, and a value of another type or one that the experiment cannot run with.
    """
    texts = {**DEFAULTS, **{field.replace("-", "_"): text for field, text in given.items()}}
    space = tuple(_dimension(field, text, experiment) for field, text in texts.items())
    for dimension in space:
        for value in dimension.checked_values:
            try:
                check_experiment(with_parameters(experiment, {dimension.field: value}))
            except InputError as error:
                raise InputError(f"{_option(dimension.field)} is {dimension.text}: {error}") from None
    return space


def with_parameters(experiment: Experiment, parameters: Parameters) -> Experiment:
    """The experiment with these fields changed."""
    for name, value in parameters.items():
        section, field = name.split(".")
        changed = dataclasses.replace(getattr(experiment, section), **{field: value})
        experiment = dataclasses.replace(experiment, **{section: changed})
    return experiment


def draw(space: tuple[Dimension, ...], sampler: Sampler, zero: bool) -> Parameters:
    """Parameters of one trial. zero: without adversarial loss, and so without the fields that only it uses."""
    parameters: Parameters = {ADV_WEIGHT: 0.0} if zero else {}
    for dimension in space:
        section, field = dimension.field.split(".")
        is_adversarial = section in ("discriminator", "loss") or field == "discriminator_lr"
        if not zero or not is_adversarial or dimension.field in ("loss.l1_weight", "loss.ssim_weight"):
            parameters[dimension.field] = dimension.draw(sampler)
    return parameters


def _dimension(field: str, text: str, experiment: Experiment) -> Dimension:
    option = _option(field)
    kind = _type_of(field, experiment)
    name, *rest = text.split(":")
    if name == "choice" and len(rest) == 1:
        return Dimension(field, text, "choice", tuple(_value(kind, part, field) for part in rest[0].split(",")))
    if name not in ("uniform", "loguniform") or len(rest) != 2:
        raise InputError(f"{option} is {text}: expected loguniform:LOW:HIGH, uniform:LOW:HIGH or choice:A,B,...")
    if kind not in (int, float):
        raise InputError(f"{option} is {text}: expected choice:A,B,... for a field that is not a number")
    low, high = (_value(kind, part, field) for part in rest)
    if not low < high:
        raise InputError(f"{option} is {text}: expected LOW below HIGH")
    if name == "loguniform" and not low > 0:
        raise InputError(f"{option} is {text}: expected LOW above 0 for loguniform")
    return Dimension(field, text, name, (low, high))


def _option(field: str) -> str:
    return f"--search.{field.replace('_', '-')}"


def _type_of(field: str, experiment: Experiment) -> Any:
    """Type of a field of the experiment."""
    section, _, name = field.partition(".")
    if section not in SEARCHABLE:
        sections = ", ".join(SEARCHABLE)
        raise InputError(f"{_option(field)}: expected a field of {sections}, such as --search.loss.adv-weight")
    hints = typing.get_type_hints(type(getattr(experiment, section)))
    if name not in hints:
        known = ", ".join(key.replace("_", "-") for key in hints)
        raise InputError(f"{_option(field)}: {section} has no such field, expected one of {known}")
    if typing.get_origin(hints[name]) is tuple:
        raise InputError(f"{_option(field)}: a field with several values cannot be searched")
    return hints[name]


def _value(kind: Any, text: str, field: str) -> Any:
    """A text as a value of a field's type."""
    try:
        return TypeAdapter(kind).validate_strings(text)
    except ValidationError as error:
        raise InputError(f"{_option(field)} is {text!r}: {error.errors()[0]['msg']}") from None
