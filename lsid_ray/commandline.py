"""The command line of a job: options from dataclasses; a user's mistake is one line and exit code 2."""

import contextlib
import errno
import functools
import io
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, TypeVar

import tyro

from lsid_ray import storage
from lsid_ray.config.presets import PRESETS
from lsid_ray.config.schema import Experiment, SweepConfig
from lsid_ray.config.serialization import from_json
from lsid_ray.errors import InputError, PartialFailure, failure_lines

Options = TypeVar("Options")
REFUSED = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
MAX_EXPERIMENT_BYTES = 1 << 20
MAX_MEMORY_GB = 10**6


@dataclass(frozen=True)
class ExperimentCommand:
    """A preset with fields overridden."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    track: str = ""
    """Where the run is also logged: mlflow:URI (http://HOST:5000, sqlite:///FILE) or wandb:PROJECT."""
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
    option, _, file = next(iter(sys.argv[1:]), "").partition("=")
    if option == "--experiment":
        arguments = sys.argv[2:]
        experiment = read_experiment(file or next(iter(arguments), ""))
        arguments = arguments if file else arguments[1:]
        default = ExperimentCommand(experiment)
        return _one_line(lambda: tyro.cli(ExperimentCommand, default=default, description=description, args=arguments))
    presets = {name: (text, ExperimentCommand(experiment)) for name, (text, experiment) in PRESETS.items()}
    return _one_line(lambda: tyro.extras.overridable_config_cli(presets, description=description))


def read_experiment(file: str) -> Experiment:
    """The experiment of a JSON file. Raises: InputError if the file cannot be read, is too large or no experiment."""
    expected = "expected experiment.json of a run or best.json of a sweep"
    if not file:
        raise InputError(f"--experiment: no file given; {expected}")
    path = storage.to_path(file)
    try:
        if path.exists() and not path.is_file():  # a pipe could block, a device be endless
            reason = "not a file"
        elif path.stat().st_size > MAX_EXPERIMENT_BYTES:
            reason = f"larger than {MAX_EXPERIMENT_BYTES} bytes"
        else:
            return from_json(path.read_bytes(), f"--experiment {file}")
    except OSError as error:
        reason = error.strerror
    raise InputError(f"--experiment {file}: {reason}; {expected}")


@dataclass(frozen=True)
class SweepCommand:
    """A preset with fields overridden, and how to search around it."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    sweep: Annotated[SweepConfig, tyro.conf.arg(name="")] = field(default_factory=SweepConfig)
    track: str = ""
    """Where each trial is also logged: mlflow:URI (http://HOST:5000, sqlite:///FILE) or wandb:PROJECT."""
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


def memory_limit(memory_gb: float) -> int:
    """The value of --memory-gb, in bytes. Raises: InputError if it is out of range."""
    if not 0 < memory_gb <= MAX_MEMORY_GB:
        raise InputError(f"--memory-gb is {memory_gb}: expected more than 0 and at most {MAX_MEMORY_GB:,}")
    return int(memory_gb * 2**30)


def run_job(main: Callable[[], None]) -> None:
    """Run a job's `main`; a failure is one line on stderr and an exit code.

    InputError, and a file that is missing or refused: 2. PartialFailure, and a disk or object store that fails: 1.
    Ctrl-C: 130.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # a file name may be no valid text
    try:
        main()
    except InputError as error:
        _fail(2, f"error: {error}")
    except PartialFailure as failure:
        _fail(1, f"incomplete: {failure}")
    except OSError as error:
        message = f"{error.filename or ''}: {error.strerror or error}".removeprefix(": ")
        _fail(*((2, f"error: {message}") if error.errno in REFUSED else (1, f"incomplete: {message}")))
    except KeyboardInterrupt as interrupt:
        _fail(130, f"interrupted; {interrupt}".removesuffix("; "))


def report(status: str, failures: Sequence[tuple[str, str]], summary: str) -> None:
    """Print failures, each as "STATUS NAME: REASON", and a summary. Raises: PartialFailure if there are any."""
    print(*(f"{status} {line}" for line in failure_lines(failures)), summary, sep="\n")
    if failures:
        raise PartialFailure(f"{len(failures)} files were {status}")


def _fail(code: int, message: str) -> None:
    """Print one line, whatever characters a file name or option in it has, and end the process."""
    print("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message), file=sys.stderr)
    sys.exit(code)


def _one_line(parse_arguments: Callable[[], Options]) -> Options:
    """Run a tyro parser; turn the box in which it reports a mistake into an InputError of one line.

    From its text, as tyro gives it in no other public way: its hook for mistakes (pull request 478) is private.
    """
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
