"""A run on a cluster that never stays the same. Takes 40 minutes: pytest -m slow tests/test_soak.py"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_jobs import JOBS
from test_trainer import events, validation_psnr, weights

from lsid_ray.benchmark.nodes import NodeCluster, until
from lsid_ray.train.run_folder import checkpoint_step

KILL_EVERY_S, MINUTES = 120, 20
EPOCHS = int(os.environ.get("LSID_SOAK_EPOCHS", "12000"))  # more than 20 minutes of work for 2 cores
OPTIONS = (
    "--generator.width 8 --generator.depth 2 --discriminator.width 8 --discriminator.layers 1 --training.crop 32 "
    "--training.batch-size 4 --training.crops-per-pair 2 --cluster.num-workers 2 --cluster.cpus-per-worker 1 "
    f"--training.epochs {EPOCHS} --training.validate-every {EPOCHS // 100}"
)


def start(nodes: NodeCluster, data_root: Path, storage: Path, name: str) -> tuple[subprocess.Popen, Path]:
    """The job that trains a run on a cluster, and the file with its output."""
    arguments = f"demo --data.root {data_root} --data.shards {storage}/shards --storage {storage} {OPTIONS}"
    output = storage / f"{name}.txt"
    with output.open("w") as file:
        command = [sys.executable, JOBS / "train.py", *arguments.split(), "--name", name]
        return subprocess.Popen(command, env=nodes.environment, stdout=file, stderr=file), output


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(4 * 3600)
def test_a_run_that_loses_a_node_every_two_minutes_ends_like_an_undisturbed_one(
    data_root: Path, tmp_path: Path, node_folder: Callable[[], Path]
) -> None:
    nodes = NodeCluster(node_folder(), {"RAY_AUTH_MODE": "disabled"}, "--num-cpus=1")
    try:  # on the head there is no room for a worker
        others = [nodes.add("--num-cpus=2") for _ in range(2)]
        job, output = start(nodes, data_root, tmp_path, "disturbed")
        assert until(lambda: checkpoint_step(tmp_path / "disturbed") > 0, 300), output.read_text()
        began, killed = time.monotonic(), 0
        while time.monotonic() - began < 60 * MINUTES and job.poll() is None:
            time.sleep(KILL_EVERY_S)
            nodes.kill(others.pop(0))
            others.append(nodes.add("--num-cpus=2"))
            killed += 1
        assert job.wait(3600) == 0, output.read_text()
        minutes = (time.monotonic() - began) / 60
        undisturbed, text = start(nodes, data_root, tmp_path, "undisturbed")
        assert undisturbed.wait(3600) == 0, text.read_text()
    finally:
        nodes.close()
    assert "Traceback" not in output.read_text()
    failures = [event for event in events(tmp_path / "disturbed") if event["kind"] == "failure"]
    assert failures, "workers were lost too"
    print(f"{killed} nodes killed in {minutes:.1f} min; restarts: {[event['reason'] for event in failures]}")
    assert killed >= MINUTES * 60 / KILL_EVERY_S - 1
    assert validation_psnr(tmp_path / "disturbed") == validation_psnr(tmp_path / "undisturbed")
    assert torch.equal(weights(tmp_path / "disturbed" / "best"), weights(tmp_path / "undisturbed" / "best"))
