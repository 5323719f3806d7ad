"""Runs that go on with fewer workers when nodes leave, and with more when nodes join."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from nodes import NodeCluster, until
from test_jobs import JOBS, TINY
from test_trainer import events, validation_psnr, weights

from lsid_ray.train.run_folder import checkpoint_step

EPOCHS = 400


@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_a_run_goes_on_with_fewer_workers_and_with_more_again(
    data_root: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    nodes = NodeCluster(tmp_path_factory.mktemp("e"), {"RAY_AUTH_MODE": "disabled"}, "--num-cpus=2")
    run, output = tmp_path / "elastic", tmp_path / "output"

    def start(name: str, options: str) -> subprocess.Popen:
        options = (
            f"--data.root {data_root} --data.shards {tmp_path}/shards --storage {tmp_path} --name {name} {options}"
        )
        options += f" {TINY} --training.epochs {EPOCHS} --training.validate-every 40 --cluster.cpus-per-worker 3"
        with output.open("w") as file:
            command = [sys.executable, JOBS / "train.py", "demo", *options.split()]
            return subprocess.Popen(command, env=nodes.environment, stdout=file, stderr=file)

    def workers() -> list[int]:
        return [event["workers"] for event in events(run) if event["kind"] == "start"]

    try:
        others = [nodes.add("--num-cpus=3") for _ in range(2)]  # a worker fits on each, none on the head
        job = start("elastic", "--cluster.num-workers 2 --cluster.min-workers 1")
        assert until(lambda: checkpoint_step(run) > 0, 120), output.read_text()
        nodes.kill(others[0])
        assert until(lambda: workers() == [2, 1], 120), output.read_text()
        nodes.add("--num-cpus=3")
        assert until(lambda: workers() == [2, 1, 2], 120), output.read_text()
        assert job.wait(240) == 0, output.read_text()
        text = output.read_text()
        undisturbed = start("undisturbed", "--cluster.num-workers 1")
        assert undisturbed.wait(240) == 0, output.read_text()
    finally:
        nodes.close()
    assert "the cluster has grown: going on with 2 workers" in text and "Traceback" not in text
    log = events(run)
    resized = next(event["step"] for event in log if event["kind"] == "resize")
    assert [event["step"] for event in log if event["kind"] == "start"][-1] == resized, "no step is done twice"
    before = [event["step"] for event in log if event["kind"] == "train" and event["step"] <= resized]
    assert resized - before[-1] < 60, "and the checkpoint is of the last step"
    assert validation_psnr(run) == pytest.approx(validation_psnr(tmp_path / "undisturbed"), abs=0.02)
    torch.testing.assert_close(weights(run / "best"), weights(tmp_path / "undisturbed" / "best"), atol=2e-3, rtol=2e-2)
