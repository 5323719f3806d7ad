"""The command line of a job: options from dataclasses; a user's mistake is one line and exit code 2."""

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

from lsid_ray.config.presets import PRESETS
from lsid_ray.config.schema import Experiment, SweepConfig
from lsid_ray.config.serialization import from_json
from lsid_ray.errors import InputError, PartialFailure
from lsid_ray.object_store import StoreError

Options = TypeVar("Options")


@dataclass(frozen=True)
class ExperimentCommand:
    """A preset with fields overridden."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    dry_run: bool = False
    """Print the resolved experiment and stop."""


def parse(kind: type[Options], description: str | None) -> Options:
    """The command line as `kind`, a dataclass whose docstrings are the help text."""
    return _one_line(lambda: tyro.cli(kind, description=description))


def parse_call(functions: Sequence[Callable[..., None]], description: str | None) -> Callable[[], None]:
    """The command line as a deferred call of one of `functions`, each a subcommand of that name."""

    def defer(function: Callable[..., None]) -> Callable[..., Callable[[], None]]:
        return functools.wraps(function)(lambda *args, **kwargs: functools.partial(function, *args, **kwargs))

    commands = {function.__name__: defer(function) for function in functions}
    return _one_line(lambda: tyro.extras.subcommand_cli_from_dict(commands, description=description))


def parse_experiment(description: str | None) -> ExperimentCommand:
    """The command line: the name of a preset, or --experiment and a JSON file; then fields to override."""
    if sys.argv[1:2] == ["--experiment"]:
        file, arguments = Path(*sys.argv[2:3]), sys.argv[3:]
        try:
            experiment = from_json(file.read_text(), str(file))
        except OSError as error:
            raise InputError(
                f"--experiment {file}: {error.strerror}; expected experiment.json of a run or best.json of a sweep"
            ) from None
        default = ExperimentCommand(experiment)
        return _one_line(lambda: tyro.cli(ExperimentCommand, default=default, description=description, args=arguments))
    presets = {name: (text, ExperimentCommand(experiment)) for name, (text, experiment) in PRESETS.items()}
    return _one_line(lambda: tyro.extras.overridable_config_cli(presets, description=description))


@dataclass(frozen=True)
class SweepCommand:
    """A preset with fields overridden, and how to search around it."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    sweep: Annotated[SweepConfig, tyro.conf.arg(name="")] = field(default_factory=SweepConfig)
    dry_run: bool = False
    """Print the resolved sweep and stop."""


def parse_sweep(description: str | None) -> tuple[SweepCommand, dict[str, str]]:
    """The command line: the name of a preset, fields of it and of the sweep; and the text of each --search.FIELD."""
    others, search = [], {}
    arguments = iter(sys.argv[1:])
    for argument in arguments:
        if argument.startswith("--search."):
            name, _, text = argument.removeprefix("--search.").partition("=")
            search[name] = text or next(arguments, "")
        else:
            others.append(argument)
    presets = {
        name: (text, SweepCommand(replace(experiment, name=f"{name}-sweep")))
        for name, (text, experiment) in PRESETS.items()
    }
    parse_arguments = functools.partial(tyro.extras.overridable_config_cli, presets, description=description)
    return _one_line(lambda: parse_arguments(args=others)), search


def run_job(main: Callable[[], None]) -> None:
    """Run a job's `main`. InputError becomes one line and exit code 2, PartialFailure and StoreError exit code 1."""
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except PartialFailure as failure:
        print(f"incomplete: {failure}", file=sys.stderr)
        sys.exit(1)
    except StoreError as error:
        print(f"incomplete: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _one_line(parse_arguments: Callable[[], Options]) -> Options:
    """Run a tyro parser; turn the box in which it reports a mistake into an InputError of one line."""
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return parse_arguments()
    except SystemExit as stop:
        if not stop.code:
            raise
    lines = [line.strip(" │╭╮╰╯─|+-\n") for line in box.getvalue().splitlines()]
    lines = [line for line in lines if line and "helptext" not in line and not line.endswith("options")]
    message = re.sub(r"\s+", " ", "; ".join(lines[:3])).replace(":;", ":")
    raise InputError(f"{message} (see {sys.argv[0]} --help)")
