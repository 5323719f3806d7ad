"""Jobs submitted to a cluster of several nodes: over HTTP, with a token, to nodes without this package."""

import json
import os
import re
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from conftest import free_ports
from ray.autoscaler._private.util import prepare_config
from ray.util import get_node_ip_address
from ray.util.state import list_nodes
from ray.util.state.common import NodeState
from test_jobs import TINY

from lsid_ray.benchmark.nodes import RAY, Node, NodeCluster, until
from lsid_ray.train.run_folder import checkpoint_step

REPOSITORY = Path(__file__).parents[1]

RAY_DATA_ACTORS = {"ActorLocationTracker", "_StatsActor", "_AutoscalingCoordinatorActor"}  # one per cluster


pytestmark = pytest.mark.cluster


@dataclass(frozen=True)
class Cluster:
    """A head without CPUs, a node that reads and one that trains."""

    address: str
    environment: dict[str, str]
    nodes: NodeCluster

    def ray(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        """Run `ray ARGUMENTS --address ADDRESS` from the checkout."""
        verb = 2 if arguments[0] == "job" else 1
        command = [*RAY, *arguments[:verb], "--address", self.address, *arguments[verb:]]
        return subprocess.run(
            command, cwd=REPOSITORY, env=self.environment | environment, capture_output=True, text=True, timeout=300
        )

    def scrape(self) -> str:
        return "".join(urllib.request.urlopen(url).read().decode() for url in self.nodes.metrics)

    def submit(self, *arguments: str) -> subprocess.CompletedProcess:
        return self.ray("job", "submit", "--working-dir", ".", *arguments)

    def actors(self) -> list[dict]:
        """All actors that are alive."""
        done = self.ray("list", "actors", "--filter", "state=ALIVE", "--limit", "500", "--format", "json", "--detail")
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def cluster(node_folder: Callable[[], Path]) -> Iterator[Cluster]:
    """Three nodes on this machine, with token authentication and their own ports and folders."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # the jobs' Python
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex, "RAY_JOB_STOP_WAIT_TIME_S": "30"}
    environment |= {"RAY_metrics_report_interval_ms": "500"}
    nodes = NodeCluster(node_folder(), environment, "--num-cpus=0")
    nodes.add("--num-cpus=1", '--resources={"feeding": 1}')
    nodes.add("--num-cpus=3")
    yield Cluster(nodes.dashboard, environment, nodes)
    nodes.close()


PROBE = (
    "import sys, lsid_ray, ray; ray.init(logging_level='ERROR'); print('driver', lsid_ray.__file__); "
    "print('worker', ray.get(ray.remote(lambda: __import__('lsid_ray').__file__).remote())); sys.exit(7)"
)


def test_the_package_is_uploaded_and_the_exit_code_comes_back(cluster: Cluster) -> None:
    done = cluster.submit("--", "python", "-c", PROBE)
    output = done.stdout + done.stderr
    for process in ("driver", "worker"):
        assert re.search(rf"^{process} .*/working_dir_files/", output, re.MULTILINE), output
    assert done.returncode == 1 and "exit code 7" in output


def test_requests_without_the_token_are_refused(cluster: Cluster) -> None:
    done = cluster.ray("job", "list", RAY_AUTH_TOKEN="wrong" * 8)
    assert done.returncode != 0 and "token" in done.stderr


@pytest.mark.timeout(600)
def test_a_stopped_run_leaves_a_checkpoint_and_no_processes_and_feeding_nodes_read_for_it(
    cluster: Cluster, data_root: Path, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "stopped"
    job = f"python jobs/train.py demo --data.root {data_root} --storage {tmp_path / 'runs'} --name stopped {TINY}"
    job += " --training.crop 48"  # or all is read ahead, and the readers are gone
    job += " --training.epochs 160 --training.validate-every 20 --cluster.readers-on feeding"
    done = cluster.submit("--no-wait", "--submission-id", "first", "--", *job.split())
    assert done.returncode == 0, done.stderr
    assert until(lambda: checkpoint_step(run) > 0, 200), cluster.ray("job", "logs", "first").stdout
    actors = [(actor["class_name"], actor["node_id"]) for actor in cluster.actors()]
    readers, trainers = ({node for name, node in actors if word in name} for word in ("_CropReader", "RayTrainWorker"))
    assert len(readers) == 1 and len(trainers) == 1 and readers != trainers, actors
    for name in ("samples_per_s", "waiting_for_data", "psnr_db"):
        gauge = rf'^ray_lsid_{name}{{.*run="stopped".*}} [\d.e-]+$'
        assert until(lambda g=gauge: bool(re.search(g, cluster.scrape(), re.MULTILINE)), 60), name
    cluster.ray("job", "stop", "first")
    assert "was stopped" in cluster.ray("job", "status", "first").stdout
    assert "interrupted" in cluster.ray("job", "logs", "first").stdout
    assert 0 < checkpoint_step(run) < 480

    def remaining_actors() -> set[str]:
        return {actor["class_name"] for actor in cluster.actors()} - RAY_DATA_ACTORS

    assert until(lambda: not remaining_actors(), 60), remaining_actors()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_sweep_survives_the_loss_of_the_training_node(cluster: Cluster, data_root: Path, tmp_path: Path) -> None:
    job = f"python jobs/tune.py demo --data.root {data_root} --storage {tmp_path / 'runs'} --name lost {TINY}"
    job += " --trials 2 --scheduler none --zero-every 1 --finalists 1 --training.epochs 40 --training.validate-every 4"
    done = cluster.submit("--no-wait", "--submission-id", "lost", "--", *job.split())
    assert done.returncode == 0, done.stderr
    trials = [tmp_path / "runs" / "lost" / "trials" / f"trial-00{number}" for number in (0, 1)]
    assert until(lambda: checkpoint_step(trials[0]) > 0, 200), cluster.ray("job", "logs", "lost").stdout
    cluster.nodes.kill(cluster.nodes.nodes[-1])
    cluster.nodes.add("--num-cpus=3")

    status = ""

    def ended() -> bool:
        nonlocal status
        status = cluster.ray("job", "status", "lost").stdout
        return "succeeded" in status or "failed" in status

    assert until(ended, 300) and "succeeded" in status, cluster.ray("job", "logs", "lost").stdout
    for trial in trials:
        events = [json.loads(line) for line in (trial / "metrics.jsonl").read_text().splitlines()]
        assert [event["epoch"] for event in events if event["kind"] == "validation"] == list(range(4, 41, 4))
        starts = [event["step"] for event in events if event["kind"] == "start"]
        if trial == trials[0]:
            assert max(starts) > 0, "it resumed from a checkpoint"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_autoscaled_cluster_grows_from_nothing_and_shrinks_again(
    data_root: Path, node_folder: Callable[[], Path]
) -> None:
    """With Ray's fake provider and smaller versions of the node types of cluster.yaml."""
    folder = node_folder()
    sizes = {"head": {"CPU": 0}, "gpu": {"CPU": 2, "GPU": 1}, "cpu": {"CPU": 3, "feeding": 1}}
    described = prepare_config(yaml.safe_load((REPOSITORY / "cluster.yaml").read_text()))
    for name, kind in described["available_node_types"].items():
        assert kind["resources"].keys() == sizes[name].keys()
        kind |= {"resources": sizes[name], "node_config": {}}
    gcs, dashboard, client, agent, grpc, runtime, metrics = free_ports(7)
    kinds = described["available_node_types"]
    described["head_node_type"] = "ray.head.default"  # the only name that the fake provider knows
    kinds[described["head_node_type"]] = kinds.pop("head") | {"max_workers": 0}
    provider = {"type": "fake_multinode", "use_node_id_as_ip": True, "disable_node_updaters": True}
    provider["gcs_address"] = f"{get_node_ip_address()}:{gcs}"
    described |= {"idle_timeout_minutes": 0.1, "provider": provider, "file_mounts": {}}
    for name in [key for key in described if key.endswith("_commands")]:
        described[name] = []
    bootstrap = folder / "ray_bootstrap_config.yaml"  # `ray up` writes it to the home folder of the head
    bootstrap.write_text(yaml.dump(described))
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}
    environment |= {"HOME": str(folder), "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    environment["RAY_AUTH_MODE"] = "disabled"  # independent of the other cluster of this session
    environment["RAY_ADDRESS"] = f"127.0.0.1:{gcs}"
    ports = [
        f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}",
        f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={grpc}",
        f"--runtime-env-agent-port={runtime}", f"--metrics-export-port={metrics}",
    ]  # fmt: skip
    head = ["--head", "--num-cpus=0", f"--autoscaling-config={bootstrap}", f"--temp-dir={folder}/t"]
    node = Node([*head, *ports], environment, folder)
    try:
        done = subprocess.run(
            [sys.executable, REPOSITORY / "jobs" / "train.py", "demo", "--data.root", data_root, *TINY.split(),
             "--data.shards", "shards", "--cluster.num-workers", "1", "--cluster.readers-on", "feeding"],
            cwd=folder, env=environment, capture_output=True, text=True, timeout=150,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

        def nodes() -> list[NodeState]:
            return [each for each in list_nodes(f"http://127.0.0.1:{dashboard}") if not each.is_head_node]

        started = [each.resources_total for each in nodes()]
        assert started and all(each.get("feeding") == 1 and "GPU" not in each for each in started), started
        assert until(lambda: all(each.state == "DEAD" for each in nodes()), 90), "idle nodes are removed"
    finally:
        node.kill()
