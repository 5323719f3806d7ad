"""The command line of a job: options from dataclasses, and a user's mistake as one line with exit code 2."""

import contextlib
import functools
import io
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from lsid_ray.config import Experiment, Sweep, from_json
from lsid_ray.errors import InputError, PartFailure
from lsid_ray.presets import PRESETS
from lsid_ray.storage import StoreError

Options = TypeVar("Options")


@dataclass(frozen=True)
class ExperimentCommand:
    """A preset with its fields overridden."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    dry_run: bool = False
    """Print the resolved experiment and stop."""


def parse(kind: type[Options], description: str | None) -> Options:
    """The process's arguments as `kind`, a dataclass whose docstrings are the help."""
    return _one_line(lambda: tyro.cli(kind, description=description))


def parse_call(functions: Sequence[Callable[..., None]], description: str | None) -> Callable[[], None]:
    """The process's arguments as a call of one of `functions`, yet to be made; each is a subcommand of its name."""

    def later(function: Callable[..., None]) -> Callable[..., Callable[[], None]]:
        return functools.wraps(function)(lambda *given, **named: functools.partial(function, *given, **named))

    commands = {function.__name__: later(function) for function in functions}
    return _one_line(lambda: tyro.extras.subcommand_cli_from_dict(commands, description=description))


def parse_experiment(description: str | None) -> ExperimentCommand:
    """The process's arguments: a preset's name or --experiment and a JSON file, then fields of it."""
    if sys.argv[1:2] == ["--experiment"]:
        file, arguments = Path(*sys.argv[2:3]), sys.argv[3:]
        try:
            experiment = from_json(file.read_text(), str(file))
        except OSError as error:
            raise InputError(f"--experiment {file}: {error.strerror}; expected a file as winner.json") from None
        default = ExperimentCommand(experiment)
        return _one_line(lambda: tyro.cli(ExperimentCommand, default=default, description=description, args=arguments))
    presets = {name: (text, ExperimentCommand(experiment)) for name, (text, experiment) in PRESETS.items()}
    return _one_line(lambda: tyro.extras.overridable_config_cli(presets, description=description))


@dataclass(frozen=True)
class SweepCommand:
    """A preset with its fields overridden, and how to search from there."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    sweep: Annotated[Sweep, tyro.conf.arg(name="")] = field(default_factory=Sweep)
    dry_run: bool = False
    """Print what would be searched and stop."""


def parse_sweep(description: str | None) -> tuple[SweepCommand, dict[str, str]]:
    """The process's arguments: a preset's name, fields of it and of the sweep; and what --search.FIELD gives."""
    arguments, search = [], {}
    given = iter(sys.argv[1:])
    for argument in given:
        if argument.startswith("--search."):
            name, _, text = argument.removeprefix("--search.").partition("=")
            search[name] = text or next(given, "")
        else:
            arguments.append(argument)
    presets = {
        name: (text, SweepCommand(replace(experiment, name=f"{name}-sweep")))
        for name, (text, experiment) in PRESETS.items()
    }
    parse_arguments = functools.partial(tyro.extras.overridable_config_cli, presets, description=description)
    return _one_line(lambda: parse_arguments(args=arguments)), search


def run_job(main: Callable[[], None]) -> None:
    """Run a job's `main`; an InputError becomes one line and exit code 2, PartFailure and StoreError exit code 1."""
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except PartFailure as failure:
        print(f"incomplete: {failure}", file=sys.stderr)
        sys.exit(1)
    except StoreError as error:
        print(f"incomplete: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _one_line(parse_arguments: Callable[[], Options]) -> Options:
    """tyro's box of a mistake as an InputError: what it says first, on one line."""
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return parse_arguments()
    except SystemExit as stop:
        if not stop.code:
            raise
    inside = [line.strip(" │╭╮╰╯─|+-\n") for line in box.getvalue().splitlines()]
    said = [line for line in inside if line and "helptext" not in line and not line.endswith("options")]
    sentence = re.sub(r"\s+", " ", "; ".join(said[:3])).replace(":;", ":")
    raise InputError(f"{sentence} (see {sys.argv[0]} --help)")
