"""Options in, one-line mistakes out."""

import runpy
import sys
from pathlib import Path
from typing import Annotated

import pytest
import tyro

import lsid_ray
from lsid_ray.commandline import parse_call, parse_experiment, run_job
from lsid_ray.config.presets import PRESETS
from lsid_ray.errors import InputError, PartialFailure
from lsid_ray.object_store import StoreError


@pytest.mark.parametrize("preset", PRESETS)
def test_the_name_of_a_preset_gives_the_preset(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", preset])
    command = parse_experiment(None)
    assert command.experiment == PRESETS[preset][1] and not command.dry_run


def test_fields_of_a_preset_can_be_overridden(monkeypatch: pytest.MonkeyPatch) -> None:
    options = "chen --training.epochs 5 --cluster.no-use-gpu --optimizer.betas 0.1 0.2 --name x --dry-run"
    monkeypatch.setattr(sys, "argv", ["train.py", *options.split()])
    command = parse_experiment(None)
    experiment = command.experiment
    assert command.dry_run and experiment.name == "x" and experiment.optimizer.betas == (0.1, 0.2)
    assert experiment.training.epochs == 5 and not experiment.cluster.use_gpu


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ("demo --nope 3", "--nope"),
        ("demo --training.crop abc", "--training.crop"),
        ("demo --training.precision fp8", "fp8"),
        ("demos", "demos"),
        ("", "demo, sid-sony"),
    ],
)
def test_a_wrong_option_is_one_line_that_names_it(arguments: str, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments.split()])
    with pytest.raises(InputError) as caught:
        parse_experiment(None)
    assert word in str(caught.value) and "\n" not in str(caught.value)


def test_a_function_is_a_subcommand_that_is_called_later(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def count(name: Annotated[str, tyro.conf.Positional], times: int = 2) -> None:
        """Count."""
        calls.append((name, times))

    def other() -> None:
        """Do nothing."""

    for arguments, expected in (("count x", ("x", 2)), ("count y --times 5", ("y", 5))):
        monkeypatch.setattr(sys, "argv", ["job.py", *arguments.split()])
        call = parse_call((count, other), None)
        assert expected not in calls
        call()
        assert calls[-1] == expected
    mistakes = {"": "{count, other}", "count": "str", "nope": "nope", "count x --times z": "--times"}
    for arguments, word in mistakes.items():
        monkeypatch.setattr(sys, "argv", ["job.py", *arguments.split()])
        with pytest.raises(InputError) as caught:
            parse_call((count, other), None)
        assert word in str(caught.value).lower() and "\n" not in str(caught.value)


@pytest.mark.parametrize("preset", PRESETS)
def test_help_explains_every_field(preset: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", preset, "--help"])
    with pytest.raises(SystemExit) as caught:
        parse_experiment(None)
    written = capsys.readouterr().out
    assert not caught.value.code
    assert "--dry-run" in written and "--loss.adv-weight" in written and "DDP" in written


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("x is 3"), 2, "error: x is 3\n"),
        (PartialFailure("2 files"), 1, "incomplete: 2 files\n"),
        (StoreError(5, "not reached", "s3://b/x"), 1, "incomplete: s3://b/x: not reached\n"),
    ],
)
def test_a_failed_job_prints_one_line_and_sets_the_exit_code(
    error: Exception, code: int, line: str, capsys: pytest.CaptureFixture
) -> None:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as caught:
        run_job(main)
    assert caught.value.code == code and capsys.readouterr().err == line


def test_windows_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(Path(lsid_ray.__file__)))
    assert stop.value.code == 2 and capsys.readouterr().err.startswith("error: lsid_ray does not run on Windows")
