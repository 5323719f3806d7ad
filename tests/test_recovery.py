"""Runs whose checkpoints are damaged, or cannot be written for a while."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Store
from test_trainer import events

from lsid_ray.benchmark.nodes import until
from lsid_ray.config.schema import Experiment
from lsid_ray.errors import InputError, PartialFailure
from lsid_ray.model.checkpoint import METRICS, WEIGHTS, load_generator
from lsid_ray.train.events import Event
from lsid_ray.train.run_folder import checkpoint_name, checkpoint_step
from lsid_ray.train.trainer import train

MakeExperiment = Callable[..., Experiment]
SNAPSHOT = "checkpoint_manager_snapshot.json"


def kinds(folder: Path, kind: str) -> list[Event]:
    return [event for event in events(folder) if event["kind"] == kind]


@pytest.mark.parametrize("snapshot", ["cut", pytest.param("foreign", marks=pytest.mark.slow)])
def test_a_run_resumes_whatever_has_become_of_its_latest_checkpoint_and_of_rays_snapshot(
    snapshot: str, shards: Path, experiment: MakeExperiment
) -> None:
    e = experiment("damaged", cluster={"num_workers": 1})
    folder = Path(e.storage, e.name)
    snapshots: list[str] = []

    warnings: list[str] = []

    def keep_snapshot(event: Event) -> None:
        if event["kind"] == "warning":
            warnings.append(event["message"])
        if event["kind"] == "validation":
            assert until(lambda: (folder / SNAPSHOT).exists() and (folder / SNAPSHOT).read_text(), 10)
            snapshots.append((folder / SNAPSHOT).read_text())

    train(e, str(shards), on_event=keep_snapshot, until_epoch=1)
    damaged = shutil.copytree(folder / checkpoint_name(3), folder / checkpoint_name(6))
    (damaged / METRICS).write_text((damaged / METRICS).read_text().replace('"step": 3', '"step": 6'))
    (damaged / WEIGHTS).unlink()
    foreign = snapshots[0].replace(checkpoint_name(3), checkpoint_name(1))
    (folder / SNAPSHOT).write_text(snapshots[0][:100] if snapshot == "cut" else foreign)
    train(e, str(shards), on_event=keep_snapshot)
    assert warnings == [f"{damaged} is incomplete; it was deleted"]
    assert [event["step"] for event in kinds(folder, "start")] == [0, 3]
    assert [event["epoch"] for event in kinds(folder, "validation")] == [1, 2]


def test_a_run_goes_on_while_its_disk_is_full_and_its_checkpoint_is_written_when_there_is_room(
    full_disk: Path, shards: Path, experiment: MakeExperiment
) -> None:
    filler = full_disk / "filler"
    filler.write_bytes(bytes((4 << 20) - (40 << 10)))  # 40 KiB are left
    shown: list[Event] = []

    def free(event: Event) -> None:
        shown.append(event)
        if event["kind"] == "warning" and "checkpoint_" in event["message"]:
            filler.unlink()

    e = experiment("full", training={"epochs": 3}, cluster={"num_workers": 1})
    run = train(Experiment(**{**vars(e), "storage": str(full_disk)}), str(shards), on_event=free)
    warnings = [event["message"] for event in shown if event["kind"] == "warning"]
    assert any(
        re.fullmatch(rf"{run.folder}/checkpoint_\d+ cannot be written: No space left on device; trying again", line)
        for line in warnings
    ), warnings
    assert not kinds(run.folder, "failure") and [event["epoch"] for event in kinds(run.folder, "validation")] == [
        1,
        2,
        3,
    ]
    assert checkpoint_step(run.folder) == 9 and load_generator(run.best)
    assert not list(run.folder.glob(".*partial"))


def test_a_checkpoint_that_cannot_be_written_ends_the_run_after_the_allowed_wait(
    full_disk: Path, shards: Path, experiment: MakeExperiment
) -> None:
    (full_disk / "filler").write_bytes(bytes((4 << 20) - (40 << 10)))
    e = experiment("full", training={"epochs": 1}, cluster={"num_workers": 1, "wait_minutes": 0.001})
    message = r"checkpoint_000000003 cannot be written: No space left on device; the same command resumes from step 0"
    with pytest.raises(PartialFailure, match=message):
        train(Experiment(**{**vars(e), "storage": str(full_disk)}), str(shards))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_survives_a_store_that_refuses_now_and_then(
    store: Store, shards: Path, experiment: MakeExperiment
) -> None:
    refused: list[str] = []

    def refuse_the_first(verb: str, path: str) -> str:
        """Each kind of request that a run makes, once; no library tries a refused PUT again."""
        kind = next((part for part in (WEIGHTS, SNAPSHOT, "metrics.jsonl", "lock.json", "/stop") if part in path), "")
        if not kind or f"{verb} {kind}" in refused:
            return ""
        refused.append(f"{verb} {kind}")
        return "AccessDenied" if verb == "PUT" else "throttled"

    shown: list[Event] = []

    def show(event: Event) -> None:
        shown.append(event)
        if event["kind"] == "start" and event["step"] == 0:
            store.fault = refuse_the_first

    e = experiment("refused", training={"epochs": 4}, cluster={"num_workers": 1})
    run = train(Experiment(**{**vars(e), "storage": "s3://bucket/test"}), str(shards), on_event=show)
    store.fault = Store.fault
    warnings = " ".join(event["message"] for event in shown if event["kind"] == "warning")
    assert f"PUT {WEIGHTS}" in refused and f"PUT {SNAPSHOT}" in refused, refused
    assert "access denied; trying again" in warnings
    assert checkpoint_step(run.folder) == 12 and load_generator(run.best)


def test_a_store_that_refuses_the_run_from_the_start_is_one_line(
    store: Store, shards: Path, experiment: MakeExperiment
) -> None:
    store.fault = lambda verb, path: "AccessDenied" if verb == "PUT" else ""
    e = experiment("refused", training={"epochs": 1})
    with pytest.raises(InputError, match=r"s3://bucket/test/refused\S*: access denied$"):
        train(Experiment(**{**vars(e), "storage": "s3://bucket/test"}), str(shards))
