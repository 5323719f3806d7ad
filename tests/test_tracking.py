"""Runs in a tracker: what metrics.jsonl has is there, once, after a kill too; one that fails ends nothing."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lsid_ray.config.schema import Experiment
from lsid_ray.train import tracking as tracking_module
from lsid_ray.train.events import Event
from lsid_ray.train.tracker import Point, Tracker, check_tracker, parse_tracker
from lsid_ray.train.tracking import STATE, tracking


def train_event(step: int, l1: float) -> Event:
    return {"kind": "train", "step": step, "epoch": 1, "l1": l1, "time": 1e9 + step}


def validation(step: int, psnr_db: float) -> Event:
    return {"kind": "validation", "step": step, "epoch": 1, "frames": 3, "psnr_db": psnr_db, "time": 1e9 + step}


def start(step: int) -> Event:
    return {"kind": "start", "step": step, "total_steps": 100, "workers": 2, "time": 1e9 + step}


def write_log(folder: Path, *events: Event) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "runs" / "demo"
    path.mkdir(parents=True)
    return path


class FakeRun:
    """Stands for a run of a tracker that may fail or hang."""

    def __init__(self) -> None:
        self.id, self.where, self.points, self.status = "an-id", "a tracker", [], ""
        self.fails, self.hangs = False, threading.Event()
        self.hangs.set()

    def log(self, points: list[Point]) -> None:
        self.hangs.wait()
        if self.fails:
            raise ConnectionError("no route to host\nand more")
        self.points += points

    def close(self, status: str) -> None:
        self.status = status

    @property
    def curve(self) -> list[tuple[int, float]]:
        return [(point.step, value) for point in self.points for value in point.values.values()]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRun:
    run = FakeRun()
    monkeypatch.setattr(tracking_module, "open_run", lambda tracker, run_id, experiment, folder: run)
    monkeypatch.setattr(tracking_module, "SEND_S", 0.02)
    monkeypatch.setattr(tracking_module, "RETRY_S", 0.02)
    return run


TRACKER = Tracker("mlflow", "http://nowhere")


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within 20 s"
        time.sleep(0.01)


def test_events_are_sent_while_the_run_goes_on(folder: Path, fake: FakeRun):
    shown = []
    with tracking(TRACKER, folder, Experiment("demo"), shown.append) as on_event:
        on_event(start(0))
        on_event(train_event(2, 0.5))
        on_event({"kind": "waiting", "message": "for a CPU", "seconds": 3.0})
        wait_for(lambda: fake.curve == [(2, 0.5)])
        on_event(validation(2, 20.0))
        wait_for(lambda: fake.curve == [(2, 0.5), (2, 20.0)])
        assert not fake.status
    assert fake.status == "FINISHED"
    assert [event["kind"] for event in shown if event["kind"] != "warning"] == [
        "start",
        "train",
        "waiting",
        "validation",
    ]


def test_what_a_killed_driver_had_not_sent_is_sent_first_and_repeated_steps_once(folder: Path, fake: FakeRun):
    sent = {"run": "an-id", "sent": {"train": 4}}
    (folder / STATE).write_text(json.dumps({TRACKER.option: sent, "--track wandb:other": {"run": "x", "sent": {}}}))
    write_log(folder, start(0), train_event(2, 0.5), train_event(4, 0.4), validation(4, 20.0), train_event(6, 0.3))
    with tracking(TRACKER, folder, Experiment("demo"), lambda event: None) as on_event:
        wait_for(lambda: fake.curve == [(4, 20.0), (6, 0.3)])
        on_event(start(4))
        on_event(train_event(6, 0.31))  # again
        on_event(train_event(8, 0.2))
        wait_for(lambda: len(fake.curve) == 3)
    assert fake.curve == [(4, 20.0), (6, 0.3), (8, 0.2)]
    state = json.loads((folder / STATE).read_text())
    assert state[TRACKER.option] == {"run": "an-id", "sent": {"train": 8, "validation": 4}}
    assert state["--track wandb:other"] == {"run": "x", "sent": {}}


def test_a_validation_that_the_log_gets_at_a_restart_is_sent(folder: Path, fake: FakeRun):
    with tracking(TRACKER, folder, Experiment("demo"), lambda event: None) as on_event:
        on_event(start(4))
        write_log(folder, validation(4, 20.0), start(4))  # as `RunLog` does if the driver died before it was logged
        wait_for(lambda: fake.curve == [(4, 20.0)])


def test_a_failing_tracker_is_said_once_and_gets_everything_when_it_is_back(folder: Path, fake: FakeRun):
    shown: list[Event] = []
    fake.fails = True
    with tracking(TRACKER, folder, Experiment("demo"), shown.append) as on_event:
        for step in (2, 4, 6):
            on_event(train_event(step, 1 / step))
            write_log(folder, *(train_event(one, 1 / one) for one in range(2, step + 1, 2)))
            time.sleep(0.1)
        warnings = [event["message"] for event in shown if event["kind"] == "warning"]
        assert [text for text in warnings if "no route" in text] == [
            "--track mlflow:http://nowhere: no route to host; training goes on; what is not sent is tried again, at "
            "last when the same command is run again"
        ]
        fake.fails = False
    assert fake.curve == [(2, 1 / 2), (4, 1 / 4), (6, 1 / 6)]


def test_a_tracker_that_fails_to_the_end_ends_nothing_and_loses_nothing(folder: Path, fake: FakeRun):
    fake.fails = True
    write_log(folder, train_event(2, 0.5))
    with tracking(TRACKER, folder, Experiment("demo"), lambda event: None):
        pass
    fake.fails = False
    with tracking(TRACKER, folder, Experiment("demo"), lambda event: None):
        pass
    assert fake.curve == [(2, 0.5)]


def test_a_tracker_that_hangs_holds_the_run_up_only_briefly(
    folder: Path, fake: FakeRun, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tracking_module, "END_S", 0.2)
    shown: list[Event] = []
    fake.hangs.clear()
    began = time.monotonic()
    with tracking(TRACKER, folder, Experiment("demo"), shown.append) as on_event:
        for step in range(100):
            on_event(train_event(step, 0.5))
    assert time.monotonic() - began < 5
    assert any("no answer" in event.get("message", "") for event in shown)
    fake.hangs.set()


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), "KILLED"), (ValueError(), "FAILED")])
def test_how_the_run_ended_is_sent_and_its_error_goes_on(
    folder: Path, fake: FakeRun, error: BaseException, status: str
):
    with pytest.raises(type(error)), tracking(TRACKER, folder, Experiment("demo"), lambda event: None):
        raise error
    assert fake.status == status


def test_without_a_tracker_events_are_only_shown(folder: Path):
    shown = []
    with tracking(None, folder, Experiment("demo"), shown.append) as on_event:
        on_event(train_event(2, 0.5))
    assert shown == [train_event(2, 0.5)] and not list(folder.iterdir())


def test_mlflow_has_the_run_and_a_resumed_one_continues_it(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tracking_module, "END_S", 300.0)
    client_of = pytest.importorskip("mlflow.tracking").MlflowClient
    tracker = parse_tracker(f"mlflow:sqlite:///{tmp_path}/mlflow.db", group="a-sweep")
    check_tracker(tracker)
    write_log(folder, start(0), *(train_event(step, step / 4096) for step in range(1, 1201)))
    with tracking(tracker, folder, Experiment("demo"), lambda event: None):
        pass
    client = client_of(f"sqlite:///{tmp_path}/mlflow.db")
    parent = client.get_experiment_by_name("a-sweep")
    (run,) = client.search_runs([parent.experiment_id])
    assert run.info.status == "FINISHED" and run.info.run_name == "demo"
    assert run.data.params["generator.width"] == str(Experiment("demo").generator.width)
    assert run.data.tags["folder"] == str(folder)
    with tracking(tracker, folder, Experiment("demo"), lambda event: None) as on_event:
        on_event(validation(1200, 21.5))
        on_event(train_event(1201, 0.25))
    (again,) = client.search_runs([parent.experiment_id])
    assert again.info.run_id == run.info.run_id and again.info.status == "FINISHED"
    curve = client.get_metric_history(run.info.run_id, "train/l1")
    assert [(point.step, point.value) for point in curve] == [
        *((step, step / 4096) for step in range(1, 1201)),
        (1201, 0.25),
    ]
    assert curve[0].timestamp == 1_000_000_001_000
    assert [
        (point.step, point.value) for point in client.get_metric_history(run.info.run_id, "validation/psnr_db")
    ] == [(1200, 21.5)]
