"""Runs of MLflow and Weights & Biases, whose packages are installed only by those who use them."""

import importlib
import logging
import os
import re
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lsid_ray.config.schema import Experiment
from lsid_ray.errors import InputError
from lsid_ray.storage import AnyPath

UPLOAD_S = 20  # that W&B waits at the end of a run for what it has not uploaded; less than `tracking.END_S`
MLFLOW_EXPERIMENT = "lsid-ray"  # of single runs; the trials of a sweep are in one with its name
PACKAGES = {"mlflow": "mlflow-skinny", "wandb": "wandb"}
EXIT_CODES = {"FINISHED": 0, "FAILED": 1, "KILLED": 130}  # for W&B, by MLflow's names of how a run ends


@dataclass(frozen=True)
class Tracker:
    """Where runs are logged."""

    kind: str
    """A key of PACKAGES."""
    target: str
    """MLflow's tracking URI; W&B's PROJECT or ENTITY/PROJECT."""
    group: str = ""
    """The sweep to which the runs belong, if any."""

    @property
    def option(self) -> str:
        """As on the command line, without a user's name and password."""
        return f"--track {self.kind}:{re.sub('//[^/]*@', '//', self.target)}"


def parse_tracker(text: str, group: str = "") -> Tracker | None:
    """The value of --track; None if it is empty. A relative path of an SQLite file becomes absolute.

    Raises: InputError for any other value.
    """
    kind, _, target = text.partition(":")
    expected = "expected mlflow:URI (http://HOST:5000, sqlite:///FILE) or wandb:PROJECT"
    if not text:
        return None
    if kind not in PACKAGES or not target or (kind == "mlflow" and "://" not in target and target != "databricks"):
        raise InputError(f"--track {text}: {expected}")
    scheme, separator, file = target.partition("sqlite:///")
    if kind == "mlflow" and separator and not scheme:
        target = f"sqlite:///{Path(file).absolute()}"
    return Tracker(kind, target, group)


def check_tracker(tracker: Tracker | None) -> None:
    """Raises: InputError if the tracker's package is not installed, or its server cannot be reached or refuses."""
    if tracker is None:
        return
    try:
        importlib.import_module(tracker.kind)
    except ImportError as error:
        package = PACKAGES[tracker.kind]
        raise InputError(f"{tracker.option}: cannot be imported ({error}); pip install {package}") from None
    try:
        if tracker.kind == "mlflow":
            _mlflow_experiment(_mlflow_client(tracker), tracker)
        else:
            _check_wandb(tracker)
    except InputError:
        raise
    except Exception as error:  # of many kinds, and not only the package's own
        raise InputError(f"{tracker.option}: {reason(error)}") from None


def _check_wandb(tracker: Tracker) -> None:
    import wandb

    mode = wandb.setup().settings.mode
    if mode == "disabled":
        raise InputError(f"{tracker.option}: WANDB_MODE is {mode}; expected online or offline")
    # On a terminal it asks for a key that is not configured. Without `force` it also offers to log nothing.
    if mode not in ("offline", "dryrun") and not wandb.login(verify=True, force=True):
        raise InputError(f"{tracker.option}: no API key; expected one in WANDB_API_KEY, or from wandb login")
    # Or the trials of a local cluster would inherit it and share this process's service: with one run from a killed
    # trial and from the one that takes its place, and none if this process ends first.
    os.environ.pop("WANDB_SERVICE", None)


@dataclass(frozen=True)
class Point:
    """The numbers of one event."""

    step: int
    time: float
    """Seconds since 1970."""
    values: dict[str, float]


class MLflowRun:
    """A run of MLflow, created or continued."""

    def __init__(self, tracker: Tracker, run_id: str | None, experiment: Experiment, folder: AnyPath):
        from mlflow.entities import Param

        self.client = _mlflow_client(tracker)
        self.id = run_id
        if run_id:
            self.client.update_run(run_id, status="RUNNING")
        else:
            parent, tags = _mlflow_experiment(self.client, tracker), {"folder": str(folder)}
            self.id = self.client.create_run(parent, run_name=experiment.name, tags=tags).info.run_id
            self.client.log_batch(self.id, params=[Param(*item) for item in _flat(asdict(experiment)).items()])
        self.where = f"MLflow's run {self.id}"

    def log(self, points: list[Point]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, round(1000 * point.time), point.step)
            for point in points
            for name, value in point.values.items()
        ]
        for first in range(0, len(metrics), 1000):  # the most that a request may have
            self.client.log_batch(self.id, metrics=metrics[first : first + 1000])

    def close(self, status: str) -> str:
        """End the run; returns what is to be said, if anything."""
        self.client.set_terminated(self.id, status)
        return ""


class WandbRun:
    """A run of Weights & Biases, created or continued."""

    def __init__(self, tracker: Tracker, run_id: str | None, experiment: Experiment, folder: AnyPath):
        import wandb

        entity, _, project = tracker.target.rpartition("/")
        self.id = run_id or uuid.uuid4().hex[:16]
        self.run = wandb.init(
            entity=entity or None,
            project=project,
            id=self.id,
            resume="allow",
            name=experiment.name,
            group=tracker.group or None,
            config=asdict(experiment),
            dir=folder if isinstance(folder, Path) else None,
            reinit="create_new",
            settings=wandb.Settings(
                console="off", silent=True, finish_timeout=UPLOAD_S, finish_timeout_raises=True
            ),  # without a limit it waits for its server for ever, at the end of the process too
        )
        self.run.define_metric("*", step_metric="step")  # W&B's own step cannot go back, as that of a resumed run does
        self.folder = Path(self.run.dir).parent
        self.where = f"{self.folder}, to upload with wandb sync" if self.run.offline else self.run.url

    def log(self, points: list[Point]) -> None:
        for point in points:
            self.run.log({**point.values, "step": point.step})

    def close(self, status: str) -> str:
        """End the run; returns what is to be said, if anything."""
        try:
            self.run.finish(exit_code=EXIT_CODES[status])
        except TimeoutError:
            return f"not all was uploaded within {UPLOAD_S} s; do it with wandb sync --include-online {self.folder}"
        return ""


def open_run(tracker: Tracker, run_id: str | None, experiment: Experiment, folder: AnyPath) -> MLflowRun | WandbRun:
    """Create the tracked run of an experiment, or continue the one of this ID."""
    kind = MLflowRun if tracker.kind == "mlflow" else WandbRun
    return kind(tracker, run_id, experiment, folder)


def _mlflow_client(tracker: Tracker) -> Any:
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # its own 7 take four minutes
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracker.target)


def _mlflow_experiment(client: Any, tracker: Tracker) -> str:
    """ID of the MLflow experiment for a tracker's runs, which is created if there is none."""
    name = tracker.group or MLFLOW_EXPERIMENT
    found = client.get_experiment_by_name(name)
    return found.experiment_id if found else client.create_experiment(name)


def _flat(fields: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """The fields of an experiment by their dotted names."""
    flat = {}
    for name, value in fields.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": str(value)}
    return flat


def reason(error: Exception) -> str:
    """The first line of an error, of at most 300 characters."""
    return next(iter(str(error).splitlines()), "")[:300] or type(error).__name__
