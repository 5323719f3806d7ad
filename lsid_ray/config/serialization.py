"""An experiment as JSON and back, and whatever else is written as JSON.

Reading an experiment is strict: unknown fields and values of another type are refused. A field that an older version
did not have takes its default, so a new field's default must be what older versions did.
"""

import dataclasses
import json
import math
from numbers import Integral, Real
from typing import Any

from pydantic import TypeAdapter, ValidationError

from lsid_ray.config.schema import Experiment
from lsid_ray.errors import InputError

ABSENT = "absent"


def to_json(experiment: Experiment) -> str:
    """The resolved experiment as indented JSON."""
    return json.dumps(dataclasses.asdict(experiment), indent=2)


def from_json(text: str | bytes, source: str) -> Experiment:
    """Read what `to_json` wrote, in UTF-8. `source` names the file in errors.

    Raises: InputError for an unknown field, a value of another type, or an experiment without a name.
    """
    expected = f"{source} is not an experiment of this version"
    try:
        experiment = TypeAdapter(Experiment).validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        problem = "is missing" if first["type"] == "missing" else f"is {first['input']!r}: {first['msg']}"
        raise InputError(f"{expected}: {f'the field {field} {problem}' if field else first['msg']}") from None
    if unknown := _unknown_field(json.loads(text), dataclasses.asdict(experiment)):
        raise InputError(f"{expected}: the field {unknown} is unknown")
    return experiment


def _unknown_field(given: dict[str, Any], known: dict[str, Any], prefix: str = "") -> str | None:
    """The first field of `given` that `known` does not have, with its section."""
    for name, value in given.items():
        if name not in known:
            return prefix + name
        if isinstance(value, dict) and (unknown := _unknown_field(value, known[name], f"{prefix}{name}.")):
            return unknown
    return None


def jsonable(value: Any) -> Any:
    """A value in the types of JSON, with None for the numbers that it lacks: NaN and infinity."""
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, bool | None):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else None
    return str(value)


def identity(experiment: Experiment) -> dict[str, Any]:
    """What two runs of one name must share besides their data: everything but where they run and where files are."""
    fields = json.loads(to_json(experiment))
    for name in ("name", "storage", "cluster", "data"):
        del fields[name]
    for name in ("checkpoint_every", "accumulate", "max_rollbacks", "metrics"):
        del fields["training"][name]
    return fields


def difference(before: Any, now: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """The first field in which two JSON values differ: its dotted name and both values, ABSENT where it is missing."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            field = f"{name}.{key}".lstrip(".")
            if found := difference(before.get(key, ABSENT), now.get(key, ABSENT), field):
                return found
        return None
    return None if before == now else (name, before, now)
