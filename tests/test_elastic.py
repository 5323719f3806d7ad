"""Runs that go on with fewer workers when nodes leave, and with more when nodes join."""

import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from ray.util.placement_group import placement_group, remove_placement_group
from test_interruption import SMALL, trained_steps
from test_jobs import JOBS
from test_trainer import MakeExperiment, events

from lsid_ray.benchmark.nodes import RAY, NodeCluster, until
from lsid_ray.config.schema import ClusterConfig
from lsid_ray.errors import PartialFailure
from lsid_ray.train import elastic
from lsid_ray.train.elastic import MissingWorkers, _granted, _request, workers_to_start
from lsid_ray.train.events import Event
from lsid_ray.train.run_folder import checkpoint_step
from lsid_ray.train.trainer import train


def test_a_run_starts_with_the_workers_that_fit_and_goes_on_with_all_when_others_have_left(
    shards: Path, experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elastic, "GRANT_S", 1.0)
    training = {"epochs": 4000, "validate_every": 4000, "checkpoint_every": "60min"}
    e = experiment("growing", training=training, cluster={"min_workers": 1})
    folder = Path(e.storage, e.name)
    others = placement_group([{"CPU": 1}])  # of 4; two workers, their repartition and their reader need 3.5
    assert others.wait(30)
    seen: list[Event] = []

    def leave_and_stop(event: Event) -> None:
        if event["kind"] == "train":
            workers = [each["workers"] for each in seen if each["kind"] == "start"]
            if workers == [1] and seen[-1]["kind"] == "start":
                remove_placement_group(others)
            if len(workers) == 2:
                (folder / "stop").touch()
        seen.append(event)

    with pytest.raises(PartialFailure, match="stopped before its first validation"):
        train(e, str(shards), on_event=leave_and_stop)
    fewer, more = [(event["step"], event["workers"]) for event in seen if event["kind"] == "start"]
    assert fewer == (0, 1) and more[1] == 2
    assert more[0] >= max(step for step in trained_steps(folder) if step <= more[0]) > 0, "growing repeats no step"
    (resize,) = [event for event in seen if event["kind"] == "resize"]
    assert (resize["step"], resize["workers"]) == more


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_a_run_goes_on_with_the_workers_that_announced_and_sudden_losses_leave_and_with_more_again(
    data_root: Path, tmp_path: Path, node_folder: Callable[[], Path]
) -> None:
    environment = {"RAY_AUTH_MODE": "disabled", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1", "OMP_NUM_THREADS": "1"}
    nodes = NodeCluster(node_folder(), environment, "--num-cpus=2")
    run, output = tmp_path / "run", tmp_path / "output"
    options = f"demo --data.root {data_root} --data.shards {tmp_path}/shards --storage {tmp_path} --name run {SMALL}"
    options += " --cluster.num-workers 2 --cluster.min-workers 1"
    options += " --cluster.cpus-per-worker 3"  # a worker fits on each of the other nodes, none on the head

    def starts() -> list[tuple[int, int]]:
        logged = events(run) if (run / "metrics.jsonl").exists() else []
        return [(event["step"], event["workers"]) for event in logged if event["kind"] == "start"]

    def trains_since_start(number: int) -> None:
        assert until(lambda: len(starts()) == number, 120), output.read_text()
        assert until(lambda: max(trained_steps(run), default=0) > starts()[-1][0] + 20, 60), output.read_text()

    try:
        others = [nodes.add("--num-cpus=3") for _ in range(2)]
        with output.open("w") as file:
            command = [sys.executable, JOBS / "train.py", *options.split()]
            job = subprocess.Popen(command, env=nodes.environment, stdout=file, stderr=file)
        trains_since_start(1)
        assert nodes.nodes[0].processes("EventBuffer"), "on the driver's node, which nobody takes away"

        drain = ["drain-node", "--node-id", others[0].ray_id(), "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
        drain += ["--reason-message", "spot", "--deadline-remaining-seconds", "15", "--address", nodes.address]
        subprocess.run([*RAY, *drain], env=nodes.environment, capture_output=True, check=True)
        assert until(lambda: checkpoint_step(run) > 20, 25), "an announced loss leaves a checkpoint"
        announced = checkpoint_step(run)
        nodes.kill(others[0])
        trains_since_start(2)

        nodes.add("--num-cpus=3")
        trains_since_start(3)

        nodes.kill(others[1])
        trains_since_start(4)

        job.send_signal(signal.SIGINT)
        assert job.wait(60) == 130, output.read_text()
    finally:
        nodes.close()
    text, (first, fewer, more, last) = output.read_text(), starts()
    assert re.search(r"node [\d.]+ will be taken away in 1?\d s; saving a checkpoint", text), text
    assert first == (0, 2) and fewer == (announced, 1) and more[1] == 2 and last == (more[0], 1), text
    assert "the cluster has grown: going on with 2 workers" in text and "Traceback" not in text
    assert "(raylet)" not in text, text
    assert more[0] >= max(step for step in trained_steps(run) if step <= more[0]), "growing repeats no step"
    (resize,) = [event for event in events(run) if event["kind"] == "resize"]
    assert (resize["step"], resize["workers"]) == more


def test_room_for_a_worker_is_seen_each_time_it_is_looked_for(cluster: None) -> None:
    """Of Ray's `PlacementGroup.wait(0)` less than half of the answers are right."""
    config = ClusterConfig(num_workers=3, min_workers=1, cpus_per_worker=1, readers=1)  # two fit 4 CPUs
    requests = _request(config, 5)
    assert until(lambda: _granted(requests) == 4, 30)
    assert [_granted(requests) for _ in range(20)] == [4] * 20
    missing = MissingWorkers(config)
    missing.requests = requests[:1]
    assert not missing.have_joined(1), "what has just been granted may be on a node that is about to be lost"
    assert missing.have_joined(1) and not missing.have_joined(2), "readers need the rest"
    for request in requests:
        remove_placement_group(request)
    assert until(lambda: workers_to_start(config) == 2, 30)
