"""A run: check it, hand it to Ray Train, follow its events, keep its best checkpoint at hand.

STORAGE/NAME/experiment.json    the resolved experiment
STORAGE/NAME/data.sha256        digest of what it is trained and validated on
STORAGE/NAME/metrics.jsonl      one event a line
STORAGE/NAME/tensorboard/       the same for TensorBoard
STORAGE/NAME/checkpoint_*/      Ray Train's: the best and the last
STORAGE/NAME/best/              a copy of the best, as other jobs take it
STORAGE/NAME/stop               made by whoever wants the run to end early
"""

import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.data
import ray.train
from ray.train import CheckpointConfig, DataConfig, FailureConfig, Result, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util.metrics import Gauge
from ray.util.queue import Empty, Queue
from torch.utils.tensorboard import SummaryWriter

from lsid_ray import config, storage
from lsid_ray.cluster import check_workers
from lsid_ray.data.schedule import Schedule
from lsid_ray.data.shards import Shards, open_shards
from lsid_ray.data.stream import execution_options, training_stream
from lsid_ray.errors import InputError, PartFailure
from lsid_ray.model import checkpoint
from lsid_ray.storage import AnyPath, Remote
from lsid_ray.train.network import Torch
from lsid_ray.train.worker import train_worker

Event = dict[str, Any]
GAUGES = {  # of events' fields, for Prometheus: ray_lsid_samples_per_s{run="..."} at each node's metrics port
    "samples_per_s": "Training samples a second.",
    "waiting_for_data": "Share of its time that training waits for data.",
    "psnr_db": "Validation PSNR in dB.",
}
STOP = "stop"
COPY_S = 15.0  # between two copies of a growing log to an object store


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: AnyPath
    best: AnyPath
    """Checkpoint of the best validation PSNR."""
    facts: dict[str, Any]
    """Its step, epoch and scores."""


def train(
    experiment: config.Experiment,
    shards_folder: str,
    on_event: Callable[[Event], None] = lambda event: None,
    epochs: int | None = None,
) -> Run:
    """Run an experiment to its end on the connected cluster; the same name again goes on from its last checkpoint.

    on_event: called in a thread with each event as it arrives (see `worker`). epochs: end there, of the experiment's
    `training.epochs`; called again with more, or with none, it goes on as if it had not. A file STOP in its folder
    ends it within a second or two; its best checkpoint is then of the validations that there were.
    Raises: InputError for what cannot run; PartFailure when a loss was not finite, workers kept failing, or it was
    stopped before its first checkpoint.
    """
    config.check(experiment)
    shards_folder = str(storage.path(shards_folder).resolve())
    shards = open_shards(shards_folder, ["train"], experiment.cluster.cache_gb)
    digest = open_shards(shards_folder, ["train", "validation"]).digest
    schedule = Schedule(shards.pairs, experiment.training)
    if schedule.layout.kind != experiment.generator.cfa:
        raise InputError(
            f"--generator.cfa is {experiment.generator.cfa}: the frames in {shards_folder} are {schedule.layout.kind}"
        )
    cluster = experiment.cluster
    check_workers(cluster)
    folder = storage.path(experiment.storage).resolve() / experiment.name
    _claim(folder, experiment, digest)
    (folder / STOP).unlink(missing_ok=True)
    log = _Log(folder, on_event)
    last = schedule.steps_per_epoch * min(epochs or experiment.training.epochs, experiment.training.epochs)
    if (done := last_step(folder)) >= last:
        log.write({"kind": "start", "step": done, "total_steps": schedule.total_steps})
        return Run(folder, *_keep_best(folder, _result(folder)))
    files, kept_in = storage.filesystem(folder.parent)
    events = Queue(actor_options={"num_cpus": 0})
    resources = {"CPU": cluster.cpus_per_worker} | ({"GPU": cluster.gpus_per_worker} if cluster.use_gpu else {})
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={
            "experiment": config.to_json(experiment),
            "shards": shards_folder,
            "events": events,
            "stop_file": str(folder / STOP),
            "last_step": last,
        },
        torch_config=Torch(),
        scaling_config=ScalingConfig(
            num_workers=cluster.num_workers, use_gpu=cluster.use_gpu, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=experiment.name,
            storage_path=kept_in,
            storage_filesystem=files,
            failure_config=FailureConfig(max_failures=cluster.max_failures, controller_failure_limit=3),
            checkpoint_config=CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute="psnr_db", checkpoint_score_order="max"
            ),
        ),
        datasets={"train": lambda: _stream(shards, schedule, folder, cluster)},
        dataset_config=DataConfig(["train"], execution_options=execution_options(schedule)),
    )
    with log.following(events):
        try:
            result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            reason = str(error).strip().splitlines()[-1]
            raise PartFailure(f"training {folder} failed after {cluster.max_failures} restarts: {reason}") from error
        except SystemExit:
            raise KeyboardInterrupt from None  # Ray's answer to Ctrl-C, which would count as a success
    if log.diverged is not None:
        raise PartFailure(_divergence(log.diverged))
    if result.checkpoint is None:
        raise PartFailure(f"{folder} was stopped before its first checkpoint")
    return Run(folder, *_keep_best(folder, result))


def _stream(shards: Shards, schedule: Schedule, folder: AnyPath, cluster: config.Cluster) -> ray.data.Dataset:
    """The dataset from the last checkpoint's step on; Ray calls this again for each new group of workers."""
    start = min(last_step(folder), schedule.total_steps - 1)
    return training_stream(shards, schedule, start, cluster.num_workers, cluster.readers, cluster.readers_on)


def last_step(folder: AnyPath) -> int:
    """Step of a run's last checkpoint, 0 without one."""
    if not (folder / "checkpoint_manager_snapshot.json").exists():
        return 0
    last = _result(folder).checkpoint
    return 0 if last is None else last.get_metadata()["step"]


def _result(folder: AnyPath) -> Result:
    """What Ray Train has kept of a run."""
    files, kept_in = storage.filesystem(folder)
    return Result.from_path(kept_in, storage_filesystem=files)


def _claim(folder: AnyPath, experiment: config.Experiment, data_digest: str) -> None:
    """Write the experiment and its data's digest into the run's folder, or find there the same ones.

    Raises: InputError when the folder holds another experiment, or one on other data.
    """
    path, data = folder / "experiment.json", folder / "data.sha256"
    if path.exists():
        before = config.identity(config.from_json(path.read_text(), str(path)))
        now = config.identity(experiment)
        if changed := [name for name in now if now[name] != before[name]]:
            room = changed[0]
            field = next(key for key in now[room] if now[room][key] != before[room][key])
            raise InputError(
                f"--name {experiment.name}: {folder} holds another experiment ({room}.{field} is "
                f"{before[room][field]} there, {now[room][field]} here); choose another --name"
            )
        if data.read_text() != data_digest:
            raise InputError(
                f"--name {experiment.name}: {folder} was trained on other data than "
                f"{experiment.data.shards or experiment.data.root}; choose another --name"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    data.write_text(data_digest)
    with storage.writing(path) as file:
        file.write(config.to_json(experiment).encode())


def _keep_best(folder: AnyPath, result: Result) -> tuple[AnyPath, dict[str, Any]]:
    best = result.get_best_checkpoint("psnr_db", "max")
    assert best is not None, "the last step leaves a checkpoint"
    with best.as_directory() as source, storage.writing_folder(folder / "best", last="experiment.json") as kept:
        for name in ("generator.safetensors", "checkpoint.json", "experiment.json"):
            shutil.copy(Path(source, name), kept)
    return folder / "best", checkpoint.load_facts(folder / "best")


def _divergence(event: Event) -> str:
    losses = ", ".join(f"{name} {value}" for name, value in event["losses"].items())
    return f"step {event['step']}: a loss is not finite ({losses}); files: {', '.join(event['files'])}"


class _Log:
    """Writes events as they arrive: metrics.jsonl, TensorBoard, Prometheus. What a restart repeats is dropped first.

    Files of an object store cannot grow, so those of a run there grow here, and are copied there now and then.
    """

    def __init__(self, folder: AnyPath, on_event: Callable[[Event], None]):
        self.folder, self.on_event = folder, on_event
        self.temporary = tempfile.TemporaryDirectory(prefix="lsid-run-") if isinstance(folder, Remote) else None
        self.near = Path(self.temporary.name) if self.temporary else folder
        self.copied = time.monotonic()
        self.diverged: Event | None = None
        self.gauges = {name: Gauge(f"lsid_{name}", text, tag_keys=("run",)) for name, text in GAUGES.items()}
        for gauge in self.gauges.values():
            gauge.set_default_tags({"run": folder.name})

    @contextmanager
    def following(self, events: Queue) -> Iterator[None]:
        """Take events from the queue in a thread, until the run has ended and the queue is empty."""
        ended = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            follower = pool.submit(self._follow, events, ended)
            try:
                yield
            finally:
                ended.set()
                follower.result(timeout=60)
                self._copy()
                events.shutdown()

    def _follow(self, events: Queue, ended: threading.Event) -> None:
        while True:
            try:
                self.write(events.get(timeout=0.5))
            except Empty:
                if ended.is_set():
                    return

    def write(self, event: Event) -> None:
        path, event = self.near / "metrics.jsonl", {**event, "time": time.time()}
        if event["kind"] == "start":
            there = self.folder / path.name
            if there.exists():
                lines = [line for line in there.read_text().splitlines(True) if line.endswith("\n")]
                kept = [line for line in lines if json.loads(line)["step"] <= event["step"]]
                with storage.writing(path) as file:
                    file.write("".join(kept).encode())
            self.board = SummaryWriter(str(self.near / "tensorboard"), purge_step=event["step"])
        with path.open("a") as file:
            file.write(json.dumps(event) + "\n")
        for name, value in event.items():
            if isinstance(value, float) and name != "time":
                self.board.add_scalar(f"{event['kind']}/{name}", value, event["step"])
            if name in self.gauges:
                self.gauges[name].set(value)
        self.board.flush()
        if event["kind"] != "train" or time.monotonic() - self.copied > COPY_S:
            self._copy()
        if event["kind"] == "diverged":
            self.diverged = event
        self.on_event(event)

    def _copy(self) -> None:
        if self.near != self.folder:
            for name in storage.files_below(self.near):
                storage.copy(self.near / name, self.folder / name)
            self.copied = time.monotonic()
