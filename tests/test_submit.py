"""Jobs as one submits them to a cluster: over HTTP, with a token, to machines that lack this package."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from conftest import free_ports
from test_jobs import TINY

from lsid_ray.train.launch import last_step

HOUSE = Path(__file__).parents[1]
RAY = [sys.executable, "-m", "ray.scripts.scripts"]

BOOKKEEPERS = {"ActorLocationTracker", "_StatsActor", "_AutoscalingCoordinatorActor"}  # Ray Data's, one a cluster


@dataclass(frozen=True)
class Head:
    """A cluster of one node, started as a user does."""

    address: str
    metrics: str
    """URL of what Prometheus reads."""
    environment: dict[str, str]

    def ray(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        """Run `ray ARGUMENTS --address ADDRESS` from the checkout."""
        verb = 2 if arguments[0] == "job" else 1
        command = [*RAY, *arguments[:verb], "--address", self.address, *arguments[verb:]]
        return subprocess.run(
            command, cwd=HOUSE, env=self.environment | environment, capture_output=True, text=True, timeout=300
        )

    def scrape(self) -> str:
        return urllib.request.urlopen(self.metrics).read().decode()

    def submit(self, *arguments: str) -> subprocess.CompletedProcess:
        return self.ray("job", "submit", "--working-dir", ".", *arguments)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """`ray start --head` with token authentication, ports and a folder of its own."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex, "RAY_JOB_STOP_WAIT_TIME_S": "30"}
    environment["RAY_metrics_report_interval_ms"] = "500"
    gcs, dashboard, agent, grpc, runtime, metrics, client = free_ports(7)
    folder = tmp_path_factory.mktemp("r")
    command = [
        *RAY, "start", "--head", "--block", f"--port={gcs}", f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={grpc}",
        f"--runtime-env-agent-port={runtime}", f"--metrics-export-port={metrics}",
        f"--ray-client-server-port={client}", "--num-cpus=4", "--object-store-memory=300000000",
        f"--temp-dir={folder}",
    ]  # fmt: skip
    # Where several clusters share a machine Ray Train's own cleaner must be told which is its.
    own = {"RAY_ADDRESS": f"127.0.0.1:{gcs}"}
    with (folder / "head.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment | own, stdout=log, stderr=log)
    while "Ray runtime started" not in (folder / "head.log").read_text():
        assert process.poll() is None, (folder / "head.log").read_text()
        time.sleep(0.1)
    yield Head(f"http://127.0.0.1:{dashboard}", f"http://127.0.0.1:{metrics}/metrics", environment)
    processes = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    for each in psutil.wait_procs(processes, timeout=5)[1]:  # Ray would take 30 s
        each.kill()
    process.wait(60)


def until(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


PROBE = (
    "import sys, lsid_ray, ray; ray.init(logging_level='ERROR'); print('driver', lsid_ray.__file__); "
    "print('worker', ray.get(ray.remote(lambda: __import__('lsid_ray').__file__).remote())); sys.exit(7)"
)


def test_the_package_travels_and_the_jobs_exit_code_comes_back(head: Head) -> None:
    done = head.submit("--", "python", "-c", PROBE)
    said = done.stdout + done.stderr
    for place in ("driver", "worker"):
        assert re.search(rf"^{place} .*/working_dir_files/", said, re.MULTILINE), said
    assert done.returncode == 1 and "exit code 7" in said


def test_without_the_token_nobody_gets_in(head: Head) -> None:
    done = head.ray("job", "list", RAY_AUTH_TOKEN="wrong" * 8)
    assert done.returncode != 0 and "token" in done.stderr


@pytest.mark.timeout(600)
def test_a_stopped_training_goes_on_from_its_checkpoint(head: Head, data_root: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "stopped"
    job = f"python jobs/train.py demo --data.root {data_root} --storage {tmp_path / 'runs'} --name stopped {TINY}"
    job += " --training.epochs 100 --training.validate-every 10"
    done = head.submit("--no-wait", "--submission-id", "first", "--", *job.split())
    assert done.returncode == 0, done.stderr
    assert until(lambda: last_step(run) > 0, 200), head.ray("job", "logs", "first").stdout
    for name in ("samples_per_s", "waiting_for_data", "psnr_db"):
        gauge = rf'^ray_lsid_{name}{{.*run="stopped".*}} [\d.e-]+$'
        assert until(lambda g=gauge: bool(re.search(g, head.scrape(), re.MULTILINE)), 60), name
    head.ray("job", "stop", "first")
    assert "was stopped" in head.ray("job", "status", "first").stdout
    assert "interrupted" in head.ray("job", "logs", "first").stdout
    step = last_step(run)
    assert 0 < step < 200

    def left() -> set[str]:
        actors = json.loads(head.ray("list", "actors", "--filter", "state=ALIVE", "--format", "json").stdout)
        return {actor["class_name"] for actor in actors} - BOOKKEEPERS

    assert until(lambda: not left(), 60), left()

    done = head.submit("--", *job.split())
    assert done.returncode == 0, done.stdout + done.stderr
    starts = [e["step"] for e in map(json.loads, (run / "metrics.jsonl").open()) if e["kind"] == "start"]
    assert starts == [0, step] and "report: " in done.stdout
