"""Commands and options of the documentation are those that the jobs understand. Parsers read them; nothing is run."""

import re
import runpy
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lsid_ray import commandline
from lsid_ray.config.presets import PRESETS

REPOSITORY = Path(__file__).parents[1]
PAGES = ("README.md", "jobs/README.md")
JOBS = [f"jobs/{path.name}" for path in sorted((REPOSITORY / "jobs").glob("*.py"))]


class Parsed(BaseException):
    """The command line was read."""


def commands(file: str) -> list[str]:
    """The commands in a page's code blocks or in a job's description: "jobs/train.py demo"."""
    text = (REPOSITORY / file).read_text()
    if file.endswith(".md"):
        text = "\n".join(re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    return [command.strip() for command in re.findall(r"python (jobs/\w+\.py [^\n#&]*)", text)]


@pytest.mark.parametrize("file", [*PAGES, *JOBS])
def test_every_command_of_the_documentation_is_understood(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop_after(parse: Callable) -> Callable:
        def stopped(*arguments: object) -> None:
            parse(*arguments)
            raise Parsed

        return stopped

    for name in ("parse", "parse_call", "parse_experiment", "parse_sweep"):
        monkeypatch.setattr(commandline, name, stop_after(getattr(commandline, name)))
    monkeypatch.setattr(commandline, "read_experiment", lambda file: PRESETS["demo"][1])
    found = commands(file)
    for command in found:
        script, *options = shlex.split(command)
        monkeypatch.setattr(sys, "argv", [script, *options])
        with pytest.raises(Parsed):
            runpy.run_path(str(REPOSITORY / script), run_name="__main__")
    assert len(found) >= (10 if file in PAGES else 1)


def test_every_option_of_an_experiment_that_the_documentation_names_exists(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["jobs/train.py", "demo", "--help"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(REPOSITORY / "jobs" / "train.py"), run_name="__main__")
    option = r"--(?!search\.)[a-z]+\.[a-z-]+"
    known, found = set(re.findall(option, capsys.readouterr().out)), 0
    for page in (*REPOSITORY.glob("*.md"), *REPOSITORY.glob("jobs/*.md"), *REPOSITORY.glob("lsid_ray/**/*.md")):
        for name, value in re.findall(rf"({option})( True| False)?", page.read_text()):
            found += 1
            assert name in known, page
            assert not value, f"{page}: {name} is a flag"
    assert found > 50
