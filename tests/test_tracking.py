"""Runs in MLflow and W&B: what metrics.jsonl has is there, once, after a kill too; one that fails ends nothing."""

import json
import os
import re
import struct
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lsid_ray.config.schema import Experiment
from lsid_ray.errors import InputError
from lsid_ray.train import tracker as tracker_module
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


def test_wandb_has_the_run_offline_and_a_resumed_one_continues_it(folder: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("wandb").teardown()  # it reads its environment once
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(tracking_module, "END_S", 300.0)
    tracker = parse_tracker("wandb:someone/photographs", group="a-sweep")
    check_tracker(tracker)
    write_log(folder, start(0), train_event(2, 0.5), validation(2, 20.0))
    said: list[Event] = []
    with tracking(tracker, folder, Experiment("demo"), said.append):
        pass
    with tracking(tracker, folder, Experiment("demo"), lambda event: None) as on_event:
        on_event(train_event(4, 0.25))
    files = sorted((folder / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2 and len({file.name for file in files}) == 1, "two parts of one run"
    assert said[0]["message"] == f"logged to {files[0].parent}, to upload with wandb sync"
    runs, rows = zip(*map(read_wandb, files), strict=True)
    assert [(run.entity, run.project, run.run_group, run.display_name) for run in runs] == [
        ("someone", "photographs", "a-sweep", "demo")
    ] * 2
    assert rows == (
        [{"train/l1": 0.5, "step": 2}, {"validation/psnr_db": 20.0, "step": 2}],
        [{"train/l1": 0.25, "step": 4}],
    )


class WandbServer(ThreadingHTTPServer):
    """As much of W&B's server as its package (0.31) asks for: runs with the rows that were sent, and how they ended."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _WandbRequest)
        self.runs: dict[str, dict] = {}
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def answer(self, query: str, variables: dict) -> dict:
        name, entity = variables.get("name"), {"id": "e", "name": "someone"}
        if "viewer" in query:
            teams = {"edges": []}
            return {"viewer": {"id": "v", "entity": "someone", "username": "someone", "flags": "{}", "teams": teams}}
        if "upsertBucket" in query:
            run = self.runs.setdefault(name, {"group": variables["groupName"], "rows": [], "ends": []})
            project = {"id": "p", "name": variables["project"], "entity": entity}
            bucket = {"id": name, "name": name, "displayName": "demo", "config": "{}", "project": project}
            return {"upsertBucket": {"bucket": {**bucket, "historyLineCount": len(run["rows"])}, "inserted": True}}
        if "historyTail" in query:
            bucket = None
            if run := self.runs.get(name):
                counts = {"historyLineCount": len(run["rows"]), "eventsLineCount": 0, "logLineCount": 0}
                tails = {"historyTail": json.dumps([json.dumps(run["rows"][-1])]), "eventsTail": "[]"}
                texts = {"summaryMetrics": "{}", "config": "{}", "wandbConfig": '{"t": 1}', "displayName": "demo"}
                bucket = {"name": name, "tags": [], **counts, **tails, **texts}
            return {"model": {"id": "p", "name": variables["project"], "entity": entity, "bucket": bucket}}
        if "createRunFiles" in query:
            address = f"http://127.0.0.1:{self.server_port}/file"
            files = [{"name": file, "uploadUrl": address} for file in variables["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        return {}

    def stream(self, name: str, content: dict) -> None:
        run = self.runs[name]
        if history := content.get("files", {}).get("wandb-history.jsonl"):
            run["rows"][history["offset"] :] = map(json.loads, history["content"])
        if "exitcode" in content:
            run["ends"].append(content["exitcode"])


class _WandbRequest(BaseHTTPRequestHandler):
    server: WandbServer

    def do_POST(self) -> None:
        content, reply = self.rfile.read(int(self.headers["Content-Length"])), {}
        if self.path.endswith("/graphql"):
            request = json.loads(content)
            reply = {"data": self.server.answer(request["query"], request.get("variables") or {})}
        elif self.path.endswith("/file_stream"):
            self.server.stream(self.path.split("/")[-2], json.loads(content))
        body = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_PUT = do_POST

    def log_message(self, *arguments: object) -> None:
        """Nothing."""


@pytest.fixture
def wandb_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    wandb = pytest.importorskip("wandb")
    wandb.teardown()
    server = WandbServer()
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(tracking_module, "SEND_S", 0.1)
    yield server
    server.shutdown()
    server.server_close()
    wandb.teardown()


def test_wandb_has_the_run_online_and_a_resumed_one_continues_it(folder: Path, wandb_server: WandbServer):
    tracker = parse_tracker("wandb:photographs", group="a-sweep")
    check_tracker(tracker)
    assert "WANDB_SERVICE" not in os.environ, "trials have a service of their own"
    with tracking(tracker, folder, Experiment("demo"), lambda event: None) as on_event:
        on_event(train_event(2, 0.5))
    with (
        pytest.raises(KeyboardInterrupt),
        tracking(tracker, folder, Experiment("demo"), lambda event: None) as on_event,
    ):
        on_event(train_event(4, 0.25))
        raise KeyboardInterrupt
    ((name, run),) = wandb_server.runs.items()
    assert (run["group"], run["ends"]) == ("a-sweep", [0, 130])
    rows = [{key: value for key, value in row.items() if key in ("_step", "step", "train/l1")} for row in run["rows"]]
    assert rows == [{"_step": 0, "step": 2, "train/l1": 0.5}, {"_step": 1, "step": 4, "train/l1": 0.25}]
    assert json.loads((folder / STATE).read_text())[tracker.option] == {"run": name, "sent": {"train": 4}}


def test_a_wandb_server_that_is_gone_at_the_end_holds_the_run_up_only_briefly(
    folder: Path, wandb_server: WandbServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tracker_module, "UPLOAD_S", 1)
    said: list[Event] = []
    tracker = parse_tracker("wandb:photographs")
    with tracking(tracker, folder, Experiment("demo"), said.append) as on_event:
        wait_for(lambda: said)
        wandb_server.shutdown()
        wandb_server.server_close()
        on_event(train_event(2, 0.5))
        began = time.monotonic()
    assert time.monotonic() - began < 10
    sync = rf"wandb sync --include-online {folder}/wandb/run-\w+-\w+"
    assert re.fullmatch(rf"{tracker.option}: not all was uploaded within 1 s; do it with {sync}", said[-1]["message"])


def test_wandb_that_logs_nothing_is_refused(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("wandb").teardown()
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with pytest.raises(InputError, match=r"^--track wandb:p: WANDB_MODE is disabled; expected online or offline$"):
        check_tracker(parse_tracker("wandb:p"))


def read_wandb(file: Path) -> tuple:
    """The run's record and the rows of its history; a file of less than one block (32 KiB) of LevelDB's log format."""
    from wandb.proto import wandb_internal_pb2

    content, run, rows = file.read_bytes()[7:], None, []
    while content:
        length, kind = struct.unpack_from("<HB", content, 4)  # after a checksum
        assert kind == 1, "a record in one part"
        record = wandb_internal_pb2.Record()
        record.ParseFromString(content[7 : 7 + length])
        content = content[7 + length :]
        if record.WhichOneof("record_type") == "run":
            run = record.run
        if record.WhichOneof("record_type") == "history":
            row = {"".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            rows.append({name: value for name, value in row.items() if not name.startswith("_")})
    return run, rows
