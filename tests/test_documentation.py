"""Every command of the documentation is one that its job understands. The jobs' parsers read it; nothing is run."""

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
