"""What lies in a sweep's folder. It is all that a sweep goes on from, and all that is shown and reported of it.

STORAGE/NAME/sweep-definition.json   what is searched, from what
STORAGE/NAME/clock.json              seconds that it has run
STORAGE/NAME/trials/trial-000/       each trial: a run as `train.launch` writes it, and trial.json
"""

import dataclasses
import json
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from lsid_ray import config, storage
from lsid_ray.config import Experiment, Sweep
from lsid_ray.errors import InputError
from lsid_ray.storage import AnyPath
from lsid_ray.sweep.space import Dimension, Parameters, with_parameters

DEFINITION = "sweep-definition.json"
State = Literal["running", "finished", "stopped", "failed"]


FIXED = ("searcher", "objectives", "scheduler", "grace_epochs", "keep", "trial_epochs", "zero_every", "seed")


@dataclass(frozen=True)
class Definition:
    """A sweep, checked."""

    folder: AnyPath
    experiment: Experiment
    space: tuple[Dimension, ...]
    sweep: Sweep
    shards: str
    """Their folder, absolute."""

    @property
    def trial_epochs(self) -> int:
        """Epochs that a trial may take."""
        epochs = self.experiment.training.epochs
        return min(self.sweep.trial_epochs or epochs, epochs)

    def trial(self, name: str, parameters: Parameters) -> Experiment:
        """The experiment of a trial, or of what follows from one."""
        e = with_parameters(self.experiment, parameters)
        return dataclasses.replace(e, name=name, storage=str(self.folder / "trials"))


def claim(definition: Definition) -> None:
    """Write a sweep's definition into its folder, or find the same one there.

    Raises: InputError when the folder holds another sweep, or a single run.
    """
    folder, path = definition.folder, definition.folder / DEFINITION
    now = {
        "experiment": config.identity(definition.experiment),
        "search": {dimension.field: dimension.text for dimension in definition.space},
        "sweep": {name: getattr(definition.sweep, name) for name in FIXED},
        "shards": definition.shards,
    }
    now = json.loads(json.dumps(now))  # tuples are lists there too
    if path.exists():
        before = json.loads(path.read_text())
        if difference := _difference(before, now):
            name, there, here = difference
            raise InputError(
                f"--name {folder.name}: {folder} holds another sweep ({name} is {there} there, {here} here); "
                "choose another --name"
            )
        return
    if (folder / "experiment.json").exists():
        raise InputError(f"--name {folder.name}: {folder} holds a run, not a sweep; choose another --name")
    (folder / "trials").mkdir(parents=True, exist_ok=True)
    write_json(path, now)


def _difference(before: Any, now: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """The first place where two JSON values differ, with both values."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            if found := _difference(before.get(key, "absent"), now.get(key, "absent"), f"{name}.{key}".lstrip(".")):
                return found
        return None
    return None if before == now else (name, before, now)


@dataclass(frozen=True)
class Trial:
    """What is known of a trial."""

    number: int
    folder: AnyPath
    parameters: Parameters
    state: State
    """"running" also of one that a killed sweep has left."""
    reason: str
    """Why it failed or was stopped."""
    began: float
    """Seconds since 1970."""
    validations: tuple[dict[str, Any], ...]
    """Epoch, psnr_db and ssim on full frames, in order of the epochs."""
    epoch: int
    """As far as it is known to have come."""
    samples: int
    """Training samples it has seen."""
    overhead_s: float | None
    """From its beginning to its first step."""
    busy_s: float
    """Seconds in which it trained or validated."""
    seconds_left: float | None
    """Of the whole experiment."""

    @property
    def name(self) -> str:
        """ "trial-000" """
        return self.folder.name

    @property
    def best(self) -> dict[str, Any] | None:
        """The validation of the highest PSNR, whose checkpoint is kept."""
        return max(self.validations, key=lambda v: v["psnr_db"], default=None)


def trial_folder(definition: Definition, number: int) -> AnyPath:
    """Where a trial's run lies."""
    return definition.folder / "trials" / f"trial-{number:03d}"


def begin_trial(definition: Definition, number: int, parameters: Parameters) -> AnyPath:
    """Say that a trial runs; one that ran before keeps when it began. Returns its folder."""
    folder = trial_folder(definition, number)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "trial.json"
    if path.exists():
        end_trial(folder, "running", "")
    else:
        facts = {"number": number, "parameters": parameters, "state": "running", "reason": "", "began": time.time()}
        write_json(path, facts)
    return folder


def end_trial(folder: AnyPath, state: State, reason: str) -> None:
    """Say what became of a trial."""
    facts = json.loads((folder / "trial.json").read_text())
    write_json(folder / "trial.json", {**facts, "state": state, "reason": reason})


def read_trials(definition: Definition) -> list[Trial]:
    """All trials that began, by number."""
    trials = definition.folder / "trials"
    files = storage.files_below(trials)
    names = sorted(name.removesuffix("/trial.json") for name in files if name.endswith("/trial.json"))
    size = definition.experiment.training.batch_size
    return [
        _read_trial(trials / name, size, files[f"{name}/trial.json"], files.get(f"{name}/metrics.jsonl"))
        for name in names
    ]


@lru_cache(maxsize=4096)
def _read_trial(folder: AnyPath, batch_size: int, *as_listed: tuple[int, int] | None) -> Trial:
    """A trial; read again only when its files have changed."""
    facts = json.loads((folder / "trial.json").read_text())
    batch_size = facts["parameters"].get("training.batch_size", batch_size)
    events = read_events(folder)
    steps = [event for event in events if event["kind"] == "train"]
    first = steps[0] if steps else None
    return Trial(
        number=facts["number"],
        folder=folder,
        parameters=facts["parameters"],
        state=facts["state"],
        reason=facts["reason"],
        began=facts["began"],
        validations=tuple(event for event in events if event["kind"] == "validation"),
        epoch=max((event["epoch"] for event in events if "epoch" in event), default=0),
        samples=batch_size * max((event["step"] for event in events), default=0),
        overhead_s=first and first["time"] - first["seconds"] * (1 - first["waiting_for_data"]) - facts["began"],
        busy_s=sum(event["seconds"] * (1 - event["waiting_for_data"]) for event in steps)
        + sum(event["seconds"] for event in events if event["kind"] == "validation"),
        seconds_left=steps[-1]["seconds_left"] if steps else None,
    )


def read_events(run: AnyPath) -> list[dict[str, Any]]:
    """The whole lines of a run's metrics.jsonl, which may be being written."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def clock(folder: AnyPath, add_s: float = 0.0) -> float:
    """Seconds that a sweep has run, `add_s` more than before."""
    path = folder / "clock.json"
    seconds = (json.loads(path.read_text())["seconds"] if path.exists() else 0.0) + add_s
    if add_s:
        write_json(path, {"seconds": seconds})
    return seconds


def write_json(path: AnyPath, content: Any) -> None:
    """Write a file that is whole or not there."""
    with storage.writing(path) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())
