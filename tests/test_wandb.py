"""Runs in W&B, by its own package: offline in files, online on a stand-in for its server."""

import json
import os
import re
import struct
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from test_tracking import start, train_event, validation, wait_for, write_log

from lsid_ray.config.schema import Experiment
from lsid_ray.errors import InputError
from lsid_ray.train import tracker as tracker_module
from lsid_ray.train import tracking as tracking_module
from lsid_ray.train.events import Event
from lsid_ray.train.tracker import check_tracker, parse_tracker
from lsid_ray.train.tracking import STATE, tracking


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "runs" / "demo"
    path.mkdir(parents=True)
    return path


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
