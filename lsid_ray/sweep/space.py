"""What a sweep searches: fields of the experiment, each with a distribution."""

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from lsid_ray import config
from lsid_ray.config import Experiment
from lsid_ray.errors import InputError

ADV_WEIGHT = "loss.adv_weight"
DEFAULTS = {
    ADV_WEIGHT: "loguniform:1e-4:1e-1",  # of L1: what is in use lies between pix2pix's .01 and Real-ESRGAN's .1
    "optimizer.generator_lr": "loguniform:1e-4:5e-3",
    "optimizer.discriminator_lr": "loguniform:1e-5:1e-3",
}
ROOMS = ("generator", "discriminator", "loss", "optimizer", "training")  # of the experiment, that may be searched
Parameters = dict[str, Any]  # "loss.adv_weight" -> 0.01


class Draw(Protocol):
    """What hands out values, as an Optuna trial does."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...
    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int: ...
    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...


@dataclass(frozen=True)
class Dimension:
    """One searched field."""

    field: str
    """As "loss.adv_weight"."""
    text: str
    """As it was given: "loguniform:1e-4:1e-1"."""
    kind: Literal["loguniform", "uniform", "choice"]
    values: tuple[Any, ...]
    """Low and high, or the choices; of the field's type."""

    def draw(self, source: Draw) -> Any:
        """A value; low and high are both possible."""
        if self.kind == "choice":
            return source.suggest_categorical(self.field, self.values)
        suggest = source.suggest_int if type(self.values[0]) is int else source.suggest_float
        return suggest(self.field, *self.values, log=self.kind == "loguniform")


def read_space(given: Mapping[str, str], experiment: Experiment) -> tuple[Dimension, ...]:
    """The searched fields: DEFAULTS, and what is `given` ("loss.adv-weight" -> "uniform:0.001:0.1") added or instead.

    Raises: InputError naming the option, for a field that does not exist or cannot be searched, for what is no
    distribution, a range upside down, and for a value of another type or with which the experiment cannot run.
    """
    texts = {**DEFAULTS, **{field.replace("-", "_"): text for field, text in given.items()}}
    space = tuple(_dimension(field, text, experiment) for field, text in texts.items())
    for dimension in space:
        for value in dimension.values:
            try:
                config.check(with_parameters(experiment, {dimension.field: value}))
            except InputError as error:
                raise InputError(f"{_option(dimension.field)} is {dimension.text}: {error}") from None
    return space


def with_parameters(experiment: Experiment, parameters: Parameters) -> Experiment:
    """The experiment with these fields changed."""
    for name, value in parameters.items():
        room, field = name.split(".")
        changed = dataclasses.replace(getattr(experiment, room), **{field: value})
        experiment = dataclasses.replace(experiment, **{room: changed})
    return experiment


def draw(space: tuple[Dimension, ...], source: Draw, zero: bool) -> Parameters:
    """Parameters of one trial. zero: without adversarial loss, and so without what only that needs."""
    found: Parameters = {ADV_WEIGHT: 0.0} if zero else {}
    for dimension in space:
        room, field = dimension.field.split(".")
        if not (zero and (room in ("discriminator", "loss") or field == "discriminator_lr")):
            found[dimension.field] = dimension.draw(source)
    return found


def _dimension(field: str, text: str, experiment: Experiment) -> Dimension:
    option = _option(field)
    kind = _type_of(field, experiment)
    name, *rest = text.split(":")
    if name == "choice" and len(rest) == 1:
        return Dimension(field, text, "choice", tuple(_value(kind, part, field) for part in rest[0].split(",")))
    if name not in ("uniform", "loguniform") or len(rest) != 2:
        raise InputError(f"{option} is {text}: expected loguniform:LOW:HIGH, uniform:LOW:HIGH or choice:A,B,...")
    if kind not in (int, float):
        raise InputError(f"{option} is {text}: expected choice:A,B,... for what is not a number")
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
    room, _, name = field.partition(".")
    if room not in ROOMS:
        raise InputError(f"{_option(field)}: expected a field of {', '.join(ROOMS)}, as in --search.loss.adv-weight")
    hints = typing.get_type_hints(type(getattr(experiment, room)))
    if name not in hints:
        known = ", ".join(key.replace("_", "-") for key in hints)
        raise InputError(f"{_option(field)}: {room} has no such field, expected one of {known}")
    if typing.get_origin(hints[name]) is tuple:
        raise InputError(f"{_option(field)}: a field of several values cannot be searched")
    return hints[name]


def _value(kind: Any, text: str, field: str) -> Any:
    """A text as a value of a field's type."""
    try:
        if kind in (int, float):
            return kind(text)
        return config.build(kind, {"true": True, "false": False}.get(text, text), field)
    except (ValueError, TypeError) as error:
        expected = kind.__name__ if kind in (int, float) else str(error).rpartition("expected ")[2]
        raise InputError(f"{_option(field)} holds {text!r}: expected {expected}") from None
