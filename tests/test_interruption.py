"""A run that is asked to end, by its user or because a node will be taken away, loses no step."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_jobs import JOBS, TINY
from test_trainer import events

from lsid_ray.benchmark.nodes import RAY, NodeCluster, until
from lsid_ray.train.run_folder import checkpoint_step

SMALL = f"{TINY} --training.epochs 100000 --training.validate-every 50000 --training.checkpoint-every 60min"


@pytest.fixture
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeCluster]:
    """A head with 2 CPUs, and a node with 4."""
    environment = {"RAY_AUTH_MODE": "disabled", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1"}
    cluster = NodeCluster(tmp_path_factory.mktemp("i"), environment, "--num-cpus=2")
    cluster.add("--num-cpus=4")
    yield cluster
    cluster.close()


@pytest.fixture
def start(nodes: NodeCluster, data_root: Path, tmp_path: Path) -> Callable[[], subprocess.Popen]:
    """A function that starts the same run again, in a process group of its own."""

    def popen() -> subprocess.Popen:
        options = f"--data.root {data_root} --data.shards {tmp_path}/shards --storage {tmp_path} --name run {SMALL}"
        options += " --cluster.num-workers 1 --cluster.cpus-per-worker 3.5"  # on the second node
        with (tmp_path / "output").open("w") as output:
            command = [sys.executable, JOBS / "train.py", "demo", *options.split()]
            return subprocess.Popen(
                command, env=nodes.environment, stdout=output, stderr=output, start_new_session=True
            )

    return popen


def trained_steps(run: Path) -> list[int]:
    return (
        [event["step"] for event in events(run) if event["kind"] == "train"] if (run / "metrics.jsonl").exists() else []
    )


@pytest.mark.cluster
@pytest.mark.timeout(400)
def test_ctrl_c_saves_a_checkpoint_first_and_a_second_signal_does_not_wait(
    start: Callable[[], subprocess.Popen], tmp_path: Path
) -> None:
    run, text = tmp_path / "run", (tmp_path / "output").read_text
    before = 0
    for signals in ([signal.SIGINT], [signal.SIGTERM, signal.SIGTERM]):  # SIGTERM acts like Ctrl-C
        job = start()
        assert until(lambda: max(trained_steps(run), default=0) > before + 20, 120), text()  # noqa: B023
        for number in signals:
            os.killpg(job.pid, number)  # as a terminal does
            time.sleep(0.02)
        assert job.wait(60) == 130, text()
        assert "Traceback" not in text()
        step = checkpoint_step(run)
        if len(signals) == 1:
            assert text().endswith(f"interrupted; the same command resumes from step {step}\n")
            assert "stopping after this step, with a checkpoint" in text()
            assert step >= max(trained_steps(run)), "no step is lost"
        else:
            assert text().endswith("interrupted\n")
        assert [event["step"] for event in events(run) if event["kind"] == "start"][-1] == before
        before = step


@pytest.mark.cluster
@pytest.mark.timeout(400)
def test_a_node_that_will_be_taken_away_leaves_a_checkpoint(
    nodes: NodeCluster, start: Callable[[], subprocess.Popen], tmp_path: Path
) -> None:
    run, text = tmp_path / "run", (tmp_path / "output").read_text
    job = start()
    assert until(lambda: max(trained_steps(run), default=0) > 20, 120), text()
    script = (
        "import ray\nray.init(logging_level='ERROR')\n"
        "print(*[node['NodeID'] for node in ray.nodes() if node['Resources']['CPU'] == 4])"
    )
    found = subprocess.run([sys.executable, "-c", script], env=nodes.environment, capture_output=True, text=True)
    drain = ["drain-node", "--node-id", found.stdout.strip(), "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    drain += ["--reason-message", "spot", "--deadline-remaining-seconds", "15", "--address", nodes.address]
    drained = subprocess.run([*RAY, *drain], env=nodes.environment, capture_output=True, text=True)
    assert drained.returncode == 0, drained.stderr
    assert until(lambda: checkpoint_step(run) > 20, 25), text()
    step = checkpoint_step(run)
    said = r"node [\d.]+ will be taken away in 1?\d s; saving a checkpoint"
    assert until(lambda: re.search(said, text()), 10), text()
    nodes.add("--num-cpus=4")
    assert until(lambda: len([e for e in events(run) if e["kind"] == "start"]) == 2, 120), text()
    assert [event["step"] for event in events(run) if event["kind"] == "start"] == [0, step]
    assert f"the node of worker 0 was taken away; restarting from step {step}" in text()
    os.killpg(job.pid, signal.SIGINT)
    assert job.wait(60) == 130 and "Traceback" not in text(), text()
