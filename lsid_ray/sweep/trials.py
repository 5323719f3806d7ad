"""The folder of a sweep: its contents, and all that a sweep resumes from and reports.

STORAGE/NAME/sweep-definition.json   the search space and the experiment that it changes
STORAGE/NAME/clock.json              seconds that the sweep has run
STORAGE/NAME/trials/trial-000/       each trial: a run's folder (see `train.run_folder`) and trial.json
"""

import dataclasses
import json
import threading
import time
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean
from typing import Any, Literal

from lsid_ray import storage
from lsid_ray.config.schema import Experiment, SweepConfig
from lsid_ray.config.serialization import difference, identity, jsonable
from lsid_ray.errors import InputError
from lsid_ray.storage import AnyPath
from lsid_ray.sweep.space import Dimension, Parameters, with_parameters
from lsid_ray.train.events import Event
from lsid_ray.train.run_log import LOG, LogReader
from lsid_ray.train.tracker import Tracker

DEFINITION = "sweep-definition.json"
FIXED_OPTIONS = ("searcher", "scheduler", "grace_epochs", "keep", "trial_epochs", "zero_every", "seed")
State = Literal["running", "finished", "stopped", "failed"]


@dataclass(frozen=True)
class SweepDefinition:
    """A sweep whose options have been checked."""

    folder: AnyPath
    experiment: Experiment
    space: tuple[Dimension, ...]
    sweep: SweepConfig
    shards: str
    """Absolute path of the folder of shards."""
    tracker: Tracker | None = None
    """Where the trials are logged besides their folders."""

    @property
    def trial_epochs(self) -> int:
        """Last epoch of a trial: --trial-epochs, but at most the experiment's --training.epochs, and that for 0.

        Learning-rate schedules follow --training.epochs, so a trial is the beginning of a full run.
        """
        epochs = self.experiment.training.epochs
        return min(self.sweep.trial_epochs or epochs, epochs)

    def trial_experiment(self, name: str, parameters: Parameters) -> Experiment:
        """The experiment of the trial (or ablation) `name`."""
        e = with_parameters(self.experiment, parameters)
        return dataclasses.replace(e, name=name, storage=str(self.folder / "trials"))


def claim_sweep(definition: SweepDefinition) -> None:
    """Write a sweep's definition into its folder, or check that it holds the same one.

    Raises: InputError if the folder holds another sweep, or a single run.
    """
    folder, path = definition.folder, definition.folder / DEFINITION
    content = {
        "experiment": identity(definition.experiment),
        "search": {dimension.field: dimension.text for dimension in definition.space},
        "sweep": {name: getattr(definition.sweep, name) for name in FIXED_OPTIONS} | _objectives(definition.sweep),
        "shards": definition.shards,
    }
    content = json.loads(json.dumps(content))  # tuples become lists, as in the file
    if path.exists():
        if changed := difference(read_json(path), content):
            name, old, new = changed
            raise InputError(
                f"--name {folder.name}: {folder} holds another sweep ({name} is {old} there, {new} here); "
                "choose another --name"
            )
        return
    if (folder / "experiment.json").exists():
        raise InputError(f"--name {folder.name}: {folder} holds a run, not a sweep; choose another --name")
    (folder / "trials").mkdir(parents=True, exist_ok=True)
    write_json(path, content)


def _objectives(sweep: SweepConfig) -> dict[str, Any]:
    """As they were written when there was no choice but "psnr" and "psnr-ssim", and no tolerance."""
    return {"objectives": "-".join(sweep.objectives)} | (
        {"tolerance_db": sweep.tolerance_db} if len(sweep.objectives) > 1 else {}
    )


@dataclass(frozen=True)
class Trial:
    """The state of a trial, from its trial.json and its events."""

    number: int
    folder: AnyPath
    parameters: Parameters
    state: State
    """"running" also for a trial that a killed sweep left unfinished."""
    reason: str
    """Why it failed or was stopped."""
    began: float
    """Seconds since 1970."""
    validations: tuple[dict[str, Any], ...]
    """Epoch, psnr_db, ssim and further metrics on full frames, in order of the epochs."""
    epoch: int
    """Of its last event."""
    samples: int
    """Training samples it has seen."""
    discriminator_accuracy: float | None
    """Share of the images that the discriminator was right about, half of them real, in the last epoch that trained it.
    At 0.5 it has had nothing to teach, whatever its weight. None: it has not been trained."""
    overhead_s: float | None
    """From its beginning to its first step."""
    busy_s: float
    """Time spent in training (without waiting for data) and validation."""
    seconds_left: float | None
    """Estimated time to --training.epochs."""

    @property
    def name(self) -> str:
        """ "trial-000" """
        return self.folder.name

    @property
    def best_validation(self) -> dict[str, Any] | None:
        """The validation with the highest PSNR, whose checkpoint is the run's best; None before the first."""
        return max(self.validations, key=lambda validation: validation["psnr_db"], default=None)


def trial_folder(definition: SweepDefinition, number: int) -> AnyPath:
    """The folder of a trial's run."""
    return definition.folder / "trials" / f"trial-{number:03d}"


def begin_trial(definition: SweepDefinition, number: int, parameters: Parameters) -> AnyPath:
    """Record that a trial is running; a resumed one keeps the time at which it began. Returns its folder."""
    folder = trial_folder(definition, number)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "trial.json"
    if path.exists():
        end_trial(folder, "running", "")
    else:
        metadata = {"number": number, "parameters": parameters, "state": "running", "reason": "", "began": time.time()}
        write_json(path, metadata)
    return folder


def end_trial(folder: AnyPath, state: State, reason: str) -> None:
    """Record the state of a trial and the reason for it."""
    metadata = read_json(folder / "trial.json")
    write_json(folder / "trial.json", {**metadata, "state": state, "reason": reason})


def read_trials(definition: SweepDefinition) -> list[Trial]:
    """All trials that have begun, by number."""
    trials = definition.folder / "trials"
    files = storage.list_files(trials)
    names = sorted(name.removesuffix("/trial.json") for name in files if name.endswith("/trial.json"))
    batch_size = definition.experiment.training.batch_size
    return [
        _reader(trials / name).read(batch_size, files[f"{name}/trial.json"], files.get(f"{name}/{LOG}"))
        for name in names
    ]


class _TrialReader:
    """Reads a trial again and again: of its files those that have changed, of its log what was added."""

    def __init__(self, folder: AnyPath):
        self.folder = folder
        self.log = LogReader(folder)
        self.lock = threading.Lock()  # of the thread that shows the sweep, and Ray Tune's
        self.metadata: dict[str, Any] = {}
        self.versions: tuple[Any, Any] = (None, None)
        self._forget()

    def read(self, batch_size: int, metadata: tuple[int, int], log: tuple[int, int] | None) -> Trial:
        """The trial. metadata, log: size and modification time of both files; batch_size: of the experiment."""
        with self.lock:
            if metadata != self.versions[0]:
                self.metadata = read_json(self.folder / "trial.json")
            if log is None:
                self._forget()
            elif log != self.versions[1]:
                events, is_new = self.log.read()
                if is_new:
                    self._forget()
                for event in events:
                    self._add(event)
            self.versions = metadata, log
            return self._trial(batch_size)

    def _forget(self) -> None:
        self.validations: list[Event] = []
        self.first: Event | None = None
        self.last: Event | None = None
        self.epoch, self.step, self.busy_s = 0, 0, 0.0
        self.judged_epoch, self.accuracies = 0, list[float]()

    def _add(self, event: Event) -> None:
        self.epoch, self.step = max(self.epoch, event.get("epoch", 0)), max(self.step, event["step"])
        if event["kind"] == "validation":
            self.validations.append(event)
            self.busy_s += event["seconds"]
        elif event["kind"] == "train":
            self.first, self.last = self.first or event, event
            self.busy_s += event["seconds"] * (1 - event["waiting_for_data"])
            if "real_accuracy" in event:
                if event["epoch"] != self.judged_epoch:
                    self.judged_epoch, self.accuracies = event["epoch"], []
                self.accuracies.append((event["real_accuracy"] + event["fake_accuracy"]) / 2)

    def _trial(self, batch_size: int) -> Trial:
        first, metadata = self.first, self.metadata
        return Trial(
            number=metadata["number"],
            folder=self.folder,
            parameters=metadata["parameters"],
            state=metadata["state"],
            reason=metadata["reason"],
            began=metadata["began"],
            validations=tuple(self.validations),
            epoch=self.epoch,
            samples=metadata["parameters"].get("training.batch_size", batch_size) * self.step,
            discriminator_accuracy=fmean(self.accuracies) if self.accuracies else None,
            overhead_s=first and first["time"] - first["seconds"] * (1 - first["waiting_for_data"]) - metadata["began"],
            busy_s=self.busy_s,
            seconds_left=self.last and self.last["seconds_left"],
        )


_reader = lru_cache(maxsize=4096)(_TrialReader)


def elapsed_s(folder: AnyPath) -> float:
    """Seconds that a sweep has run, over all its starts."""
    path = folder / "clock.json"
    return read_json(path)["seconds"] if path.exists() else 0.0


def add_elapsed(folder: AnyPath, seconds: float) -> None:
    """Add to the seconds that a sweep has run."""
    write_json(folder / "clock.json", {"seconds": elapsed_s(folder) + seconds})


def read_json(path: AnyPath) -> dict[str, Any]:
    """The object in a JSON file of a sweep. Raises: InputError if it is damaged."""
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged: expected a file that a sweep has written")
    return content


def write_json(path: AnyPath, content: Any) -> None:
    """Write a JSON file atomically."""
    with storage.atomic_write(path) as file:
        file.write((json.dumps(jsonable(content), indent=1, allow_nan=False) + "\n").encode())
