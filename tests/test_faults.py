"""What a run does when nodes, processes, disks and the capacity of a cluster fail it."""

import contextlib
import errno
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray
import torch
from test_jobs import JOBS, TINY
from test_trainer import events, worker_processes

from lsid_ray.benchmark.nodes import NodeCluster, until
from lsid_ray.cluster import describe_wait, start_attempts
from lsid_ray.config.schema import ClusterConfig, Experiment
from lsid_ray.errors import InputError, PartialFailure
from lsid_ray.train import monitor as monitor_module
from lsid_ray.train import trainer
from lsid_ray.train.events import Event, start_buffer
from lsid_ray.train.failures import describe, is_deterministic
from lsid_ray.train.monitor import Monitor
from lsid_ray.train.run_folder import checkpoint_step
from lsid_ray.train.run_log import open_log
from lsid_ray.train.trainer import train

MakeExperiment = Callable[..., Experiment]


@pytest.fixture
def nodes(node_folder: Callable[[], Path]) -> Iterator[NodeCluster]:
    """A head with 3 CPUs."""
    cluster = NodeCluster(node_folder(), {"RAY_AUTH_MODE": "disabled"}, "--num-cpus=3")
    yield cluster
    cluster.close()


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(400)
def test_a_run_survives_the_loss_of_every_node_but_the_drivers(
    nodes: NodeCluster, data_root: Path, tmp_path: Path
) -> None:
    others = [nodes.add("--num-cpus=1"), nodes.add("--num-cpus=4")]  # only the second has room for the worker
    run = tmp_path / "runs" / "lost"
    arguments = f"train.py demo --data.root {data_root} --data.shards {tmp_path}/shards --storage {run.parent} {TINY}"
    arguments += " --name lost --training.epochs 120 --training.validate-every 12 --cluster.num-workers 1"
    arguments += " --cluster.cpus-per-worker 3.5 --cluster.max-failures 0"
    script, *options = arguments.split()
    with (tmp_path / "output").open("w") as output:
        job = subprocess.Popen(
            [sys.executable, JOBS / script, *options], env=nodes.environment, stdout=output, stderr=output
        )
    text = (tmp_path / "output").read_text
    for node in others:
        step = checkpoint_step(run) if run.exists() else 0
        assert until(lambda step=step: run.exists() and checkpoint_step(run) > step, 120), text()
        nodes.kill(node)
    nodes.add("--num-cpus=4")
    assert job.wait(240) == 0, text()
    assert "Traceback" not in text() and "report: " in text()
    assert "worker 0 died" in text() and text().count("has left the cluster") == 2 and "(raylet)" not in text()
    assert [event["epoch"] for event in events(run) if event["kind"] == "validation"] == list(range(12, 121, 12))


def test_an_event_that_cannot_be_delivered_does_not_stop_its_sender(cluster: None) -> None:
    buffer = start_buffer()
    ray.get(buffer.put.remote({"kind": "start"}))
    ray.kill(buffer)

    def is_dead() -> bool:
        try:
            ray.get(buffer.put.remote({}), timeout=10)
        except ray.exceptions.RayActorError:
            return True
        return False

    assert until(is_dead, 30)
    undelivered = buffer.put.remote({"kind": "train"})  # as the training loop does, which does not wait for it
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(undelivered)


def test_the_error_of_a_run_goes_before_one_of_its_log(cluster: None, tmp_path: Path) -> None:
    def broken(event: Event) -> None:
        raise ZeroDivisionError

    with open_log(tmp_path, broken) as log:
        monitor = Monitor(start_buffer(), log, tmp_path / "stop", 0.0, str)
        ray.get(monitor.buffer.put.remote({"kind": "start", "step": 0, "total_steps": 9}))
        with pytest.raises(PartialFailure), monitor.watching():
            raise PartialFailure("of the run")
        ray.get(monitor.buffer.put.remote({"kind": "start", "step": 0, "total_steps": 9}))
        with pytest.raises(ZeroDivisionError), monitor.watching():
            pass


def test_a_lost_buffer_is_a_warning(cluster: None, tmp_path: Path) -> None:
    buffer, seen = start_buffer(), []
    ray.kill(buffer)
    with open_log(tmp_path, seen.append) as log, Monitor(buffer, log, tmp_path / "stop", 0.0, str).watching():
        pass
    assert [event["kind"] for event in seen] == ["warning"] and "lost" in seen[0]["message"]


def test_a_node_that_left_between_two_attempts_is_announced_once(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = {"a": "10.0.0.7"}
    monkeypatch.setattr(monitor_module, "lost_nodes", lambda: left)
    seen, known, buffer = [], {}, start_buffer()
    with open_log(tmp_path, seen.append) as log:
        for _ in range(2):
            monitor = Monitor(buffer, log, tmp_path / "stop", 0.0, str, lost=known)
            with monitor.watching():
                pass
            known = monitor.lost
            assert not monitor.lost_node, "it is no excuse for the next failure"
    assert [event["message"] for event in seen] == ["node 10.0.0.7 has left the cluster"]


@contextlib.contextmanager
def occupied(cpus: float) -> Iterator[Callable[[], None]]:
    """Another job holds CPUs of the session's cluster; yields what frees them."""
    holder = ray.remote(num_cpus=cpus)(threading.Event).remote()
    ray.get(holder.is_set.remote())
    yield lambda: ray.kill(holder)
    ray.kill(holder)
    assert until(lambda: ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"], 30)


def test_a_run_waits_for_busy_cpus_and_says_so(
    shards: Path, experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1")
    monkeypatch.setattr(monitor_module, "QUIET_WAIT_S", 1.0)
    monkeypatch.setattr(monitor_module, "WAIT_LINE_S", 1.0)
    seen: list[Event] = []
    e = experiment("waiting", cluster={"num_workers": 1})

    def show(event: Event) -> None:
        seen.append(event)
        if event["kind"] == "waiting" and event["message"].startswith("data"):
            free_the_rest()

    with occupied(2.5) as free_the_rest, occupied(1) as free_one:
        threading.Timer(8, free_one).start()  # room for the worker, but not for its readers
        run = train(e, str(shards), on_event=show)
    waits = [event["message"] for event in seen if event["kind"] == "waiting"]
    assert len(waits) >= 3 and waits[0] == "1 worker with 1 CPU each: 0.5 of 4 CPUs free"
    assert any(re.match(r"data, whose readers need 1.5 CPUs: (0|0\.5) of 4 CPUs free", wait) for wait in waits)
    assert run.metrics["epoch"] and "waiting" not in {event["kind"] for event in events(run.folder)}


def test_a_limited_wait_ends_with_what_was_missing(
    shards: Path, experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1")
    e = experiment("impatient", cluster={"num_workers": 1, "wait_minutes": 0.05})
    missing = r"wait-minutes 0\.05: 1 worker with 1 CPU each: 0\.5 of 4 CPUs"
    with occupied(3.5), pytest.raises(PartialFailure, match=missing):
        train(e, str(shards))


def test_the_wait_is_described_with_gpus_and_limited_by_attempts(cluster: None, monkeypatch) -> None:
    config = ClusterConfig(num_workers=2, use_gpu=True, cpus_per_worker=0.5)
    assert describe_wait(config) == "2 workers with 0.5 CPUs and 1 GPU each: 4 of 4 CPUs free, 0 of 0 GPUs free"
    assert describe_wait(replace(config, min_workers=1)).startswith("at least 1 worker with 0.5 CPUs and 1 GPU each: ")
    monkeypatch.delenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", raising=False)
    assert [start_attempts(replace(config, wait_minutes=minutes)) for minutes in (0, 0.5, 1, 4)] == [-1, 0, 0, 3]


@pytest.mark.parametrize(
    ("raised", "starts", "error", "message"),
    [
        (InputError("short/a.ARW: cannot be read"), 1, InputError, r"^short/a\.ARW: cannot be read$"),
        (
            RuntimeError("Connection closed by peer [127.0.0.1]:1"),
            2,
            PartialFailure,
            r"failed 2 times in a row without a new checkpoint.*Connection closed by peer.*resumes from step 0$",
        ),
    ],
)
def test_only_errors_that_may_pass_are_tried_again(
    raised: Exception,
    starts: int,
    error: type,
    message: str,
    shards: Path,
    experiment: MakeExperiment,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing_loop(options: dict) -> None:
        with open(options["folder"] + "/starts", "a") as file:
            file.write("x")
        raise raised

    monkeypatch.setattr(trainer, "training_loop", failing_loop)
    e = experiment("failing", cluster={"num_workers": 1, "max_failures": 1})
    with pytest.raises(error, match=message) as caught:
        train(e, str(shards))
    assert "\n" not in str(caught.value)
    assert Path(e.storage, e.name, "starts").read_text() == "x" * starts


@pytest.mark.parametrize(
    ("error", "deterministic", "line"),
    [
        (ValueError("a shape\nthat does not fit"), True, "worker 0: ValueError: a shape"),
        (torch.OutOfMemoryError("CUDA out of memory."), True, "CUDA out of memory. (try a lower --training.batch-size"),
        (OSError(errno.EIO, "the store does not answer", "s3://b/x"), False, "worker 0: [Errno 5] the store does not"),
        (RuntimeError("Connection closed by peer"), False, "worker 0: RuntimeError: Connection closed by peer"),
        (RuntimeError("essay " * 100), False, "essay essay ..."),
    ],
)
def test_errors_are_described_in_one_line(error: Exception, deterministic: bool, line: str) -> None:
    described = describe("worker 0", error)
    assert line in described and "\n" not in described and len(described) < 350
    assert is_deterministic(error) == deterministic


def test_a_lost_process_is_named_with_its_node() -> None:
    text = "A worker health check failed.\nWorker info: Worker(\n  node_ip='10.0.0.7',\n  pid=123,\n)"
    assert describe("worker 1", Exception(text)) == "worker 1 died (process 123 on node 10.0.0.7)"
    assert describe("worker 1", KeyError("x")) == "worker 1: KeyError: 'x'"
    assert is_deterministic(KeyError("x")) and not is_deterministic(ConnectionError())


def test_a_full_disk_silences_nothing_and_loses_no_metrics(full_disk: Path, cluster: None) -> None:
    run, seen = full_disk / "run", []
    run.mkdir()
    with open_log(run, seen.append) as log:
        log.write({"kind": "start", "step": 0, "total_steps": 9})
        filler = full_disk / "more"
        with contextlib.suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(bytes(512))
                file.flush()
        for step in range(1, 200):
            log.write({"kind": "train", "step": step, "l1": 0.5})
        shown = [event["step"] for event in seen if event["kind"] == "train"]
        assert shown == list(range(1, 200)), "every event is shown"
        warnings = [event["message"] for event in seen if event["kind"] == "warning"]
        assert len(warnings) == 1 and str(run) in warnings[0] and "No space left" in warnings[0]
        filler.unlink()
        log.write({"kind": "validation", "step": 200, "psnr_db": 20.0})
        assert [event["step"] for event in events(run)] == list(range(201)), "and logged once there is room"


def test_a_worker_that_hangs_is_named_killed_and_replaced(shards: Path, experiment: MakeExperiment) -> None:
    e = experiment("hanging", training={"epochs": 40, "validate_every": 4}, cluster={"stall_minutes": 0.3})
    stopped: list[int] = []

    def stop_one(event: Event) -> None:
        if event["kind"] == "validation" and event["epoch"] >= 8 and not stopped:
            stopped.append(worker_processes()[0])
            os.kill(stopped[0], signal.SIGSTOP)

    run = train(e, str(shards), on_event=stop_one)
    failures = [event for event in events(run.folder) if event["kind"] == "failure"]
    failure = next(event for event in failures if f"(process {stopped[0]} on node " in event["reason"])
    assert re.match(r"worker [01] \(process \d+ on node [\d.]+\) has ", failure["reason"]) and failure["step"] > 0
    assert [event["epoch"] for event in events(run.folder) if event["kind"] == "validation"][-1] == 40
    assert not psutil.pid_exists(stopped[0]), "the process is gone"
