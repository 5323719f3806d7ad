"""Runs that go on with fewer workers when nodes leave, and with more when nodes join."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_interruption import SMALL, trained_steps
from test_jobs import JOBS
from test_trainer import events

from lsid_ray.benchmark.nodes import NodeCluster, until
from lsid_ray.train.run_folder import checkpoint_step


@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_a_run_goes_on_with_fewer_workers_and_with_more_again(
    data_root: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    nodes = NodeCluster(tmp_path_factory.mktemp("e"), {"RAY_AUTH_MODE": "disabled"}, "--num-cpus=2")
    run, output = tmp_path / "run", tmp_path / "output"
    options = f"demo --data.root {data_root} --data.shards {tmp_path}/shards --storage {tmp_path} --name run {SMALL}"
    options += " --training.checkpoint-every 10steps --cluster.num-workers 2 --cluster.min-workers 1"
    options += " --cluster.cpus-per-worker 3"  # a worker fits on each of the other nodes, none on the head

    def starts() -> list[tuple[int, int]]:
        return [(event["step"], event["workers"]) for event in events(run) if event["kind"] == "start"]

    try:
        others = [nodes.add("--num-cpus=3") for _ in range(2)]
        with output.open("w") as file:
            command = [sys.executable, JOBS / "train.py", *options.split()]
            job = subprocess.Popen(command, env=nodes.environment, stdout=file, stderr=file)
        assert until(lambda: run.exists() and checkpoint_step(run) > 0, 120), output.read_text()
        nodes.kill(others[0])
        assert until(lambda: len(starts()) == 2, 120), output.read_text()
        assert until(lambda: trained_steps(run)[-1] > starts()[1][0], 60), output.read_text()
        nodes.add("--num-cpus=3")
        assert until(lambda: len(starts()) == 3, 120), output.read_text()
        assert until(lambda: trained_steps(run)[-1] > starts()[2][0], 60), output.read_text()
        job.send_signal(signal.SIGINT)
        assert job.wait(60) == 130, output.read_text()
    finally:
        nodes.close()
    text, (first, fewer, more) = output.read_text(), starts()
    assert first == (0, 2) and fewer[0] > 0 and (fewer[1], more[1]) == (1, 2)
    assert "the cluster has grown: going on with 2 workers" in text and "Traceback" not in text
    assert more[0] >= max(step for step in trained_steps(run) if step <= more[0]), "growing repeats no step"
    (resize,) = [event for event in events(run) if event["kind"] == "resize"]
    assert (resize["step"], resize["workers"]) == more
