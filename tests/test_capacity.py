"""What a cluster has, may become and has free, seen by jobs on real clusters of several nodes."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from conftest import free_ports
from ray.autoscaler._private.util import prepare_config
from ray.util import get_node_ip_address
from test_faults import occupied
from test_files import RATIO_20, save_network, write_dark_frame

from lsid_ray.benchmark.nodes import Node, NodeCluster, until
from lsid_ray.capacity import HEAD, Capacity, at_limits, check_task, current_capacity, describe_free
from lsid_ray.data import parallel
from lsid_ray.data.parallel import parallel_map
from lsid_ray.errors import InputError
from lsid_ray.inference.files import enhance_files
from lsid_ray.progress import counter

CLUSTER_YAML = Path(__file__).parents[1] / "cluster.yaml"
CPU_TASK, GPU_TASK = {"CPU": 1}, {"CPU": 1, "GPU": 1}
HEAD_NODE = {HEAD: 1.0}
GPU_NODE, CPU_NODE = {"CPU": 8, "GPU": 1}, {"CPU": 16, "feeding": 1}


def autoscaler(**max_workers: int) -> dict:
    """cluster.yaml as `ray up` leaves it on the head."""
    config = prepare_config(yaml.safe_load(CLUSTER_YAML.read_text()))
    for name, count in max_workers.items():
        config["available_node_types"][name]["max_workers"] = count
    return config


# --- Nodes at the limits


def test_a_cluster_of_cluster_yaml_may_become_its_head_and_six_nodes() -> None:
    limit = at_limits((HEAD_NODE,), autoscaler())
    assert limit == (HEAD_NODE, *4 * [GPU_NODE], *2 * [CPU_NODE])
    assert Capacity((HEAD_NODE,), limit).may_grow
    full = (HEAD_NODE, *4 * [GPU_NODE], *2 * [CPU_NODE])
    assert at_limits(full, autoscaler()) == full and not Capacity(full, at_limits(full, autoscaler())).may_grow


def test_without_an_autoscaler_the_nodes_of_now_are_the_limit() -> None:
    alive = (HEAD_NODE, GPU_NODE)
    assert at_limits(alive, {}) == alive and not Capacity(alive, alive).may_grow


def test_limits_that_cannot_be_read_are_unknown() -> None:
    assert at_limits((HEAD_NODE, GPU_NODE), None) is None
    own_machines = {"available_node_types": {"local.cluster.node": {"resources": {}, "max_workers": 2}}}
    assert at_limits((HEAD_NODE, GPU_NODE), own_machines) is None, "a machine's resources show when it joins"
    assert at_limits((HEAD_NODE, GPU_NODE, GPU_NODE), own_machines) == (HEAD_NODE, GPU_NODE, GPU_NODE)


def test_as_many_tasks_are_in_flight_as_the_cluster_at_its_largest_holds() -> None:
    growing = Capacity((HEAD_NODE,), at_limits((HEAD_NODE,), autoscaler()))
    assert growing.task_count(CPU_TASK) == 32, "no GPU node is started for tasks without a GPU"
    assert growing.task_count(GPU_TASK) == 4 and growing.task_count({"CPU": 4, "GPU": 0}) == 8
    alive = (HEAD_NODE, GPU_NODE, CPU_NODE)
    assert Capacity(alive, at_limits(alive, autoscaler())).task_count(CPU_TASK) == 32
    assert Capacity(alive, alive).task_count(CPU_TASK) == 24, "GPU nodes that are alive are used"
    assert Capacity(alive, None).task_count(CPU_TASK) == 48 and Capacity((HEAD_NODE,), None).task_count(GPU_TASK) == 2
    only_gpus = at_limits((HEAD_NODE,), autoscaler(cpu=0))
    assert Capacity((HEAD_NODE,), only_gpus).task_count(CPU_TASK) == 1, "one task starts the first GPU node"
    assert growing.queue_limit(CPU_TASK) == 32 and growing.queue_limit(GPU_TASK) is None
    assert Capacity(alive, alive).queue_limit(CPU_TASK) is None, "nodes that join by hand find work"


def test_a_task_is_refused_only_if_no_node_may_ever_hold_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(needs: dict, *capacity: tuple | None) -> None:
        monkeypatch.setattr("lsid_ray.capacity.current_capacity", lambda: Capacity(*capacity))
        check_task(needs, "--use-gpu: ")

    static, growing = (HEAD_NODE, {"CPU": 4}), (HEAD_NODE, *4 * [GPU_NODE])
    check(CPU_TASK, static, static)
    check(GPU_TASK, static, None)
    check(GPU_TASK, static, growing)
    message = "^--use-gpu: the cluster has no GPU, expected at least one; its nodes have 4 CPUs, no CPU$"
    with pytest.raises(InputError, match=message):
        check(GPU_TASK, static, static)
    with pytest.raises(InputError, match=r"has no node with 1 CPU and 2 GPUs, .* have 8 CPUs and 1 GPU, no CPU$"):
        check({"CPU": 1, "GPU": 2}, static, growing)


# --- The cluster of this session: static, 4 CPUs


def test_a_cluster_that_nobody_scales_is_static_whatever_ray_up_left_behind(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "ray_bootstrap_config.yaml").write_text(yaml.dump(autoscaler()))
    capacity = current_capacity()
    assert [node["CPU"] for node in capacity.alive] == [4] and capacity.limit == capacity.alive
    assert describe_free(GPU_TASK) == "4 of 4 CPUs free, 0 of 0 GPUs free"


def test_enhancing_and_packing_are_refused_by_a_cluster_that_never_holds_a_task(cluster: None, tmp_path: Path) -> None:
    todo = tuple((tmp_path / f"{name}.dng", tmp_path / f"{name}.png") for name in "ab")
    for source, _ in todo:
        write_dark_frame(source)
    with pytest.raises(InputError, match=r"--use-gpu: the cluster has no GPU, .* its nodes have 4 CPUs"):
        list(enhance_files(save_network(tmp_path / "best"), todo, RATIO_20, use_gpu=True))
    with pytest.raises(InputError, match=r"the cluster has no node with 5 CPUs, .* its nodes have 4 CPUs"):
        list(parallel_map(str, [1], cpus=5))


def test_waiting_for_a_busy_cluster_is_shown_until_a_task_starts(
    cluster: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(parallel, "QUIET_WAIT_S", 1.0)
    monkeypatch.setattr(parallel, "WAIT_LINE_S", 0.5)
    monkeypatch.setattr("lsid_ray.progress.WAIT_LINE_SECONDS", 0.0)
    with occupied(4) as free, counter("packing", "files") as progress:
        threading.Timer(5, free).start()
        progress(0, 3)
        for done, _ in enumerate(parallel_map(str, range(3)), start=1):
            progress(done, 3)
    lines = capsys.readouterr().out.splitlines()
    waits = [line for line in lines if "waiting" in line]
    assert len(waits) >= 2 and waits[0] == "packing: waiting for 1 CPU: 0 of 4 CPUs free, 1 s"
    done = [line for line in lines if line.startswith(("packing: 1/3", "packing: 2/3", "packing: 3/3"))]
    assert lines[-1] == done[-1] and lines.index(waits[-1]) < lines.index(done[0]), lines


def test_without_a_display_waiting_is_a_line(
    cluster: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(parallel, "QUIET_WAIT_S", 1.0)
    with occupied(4) as free:
        threading.Timer(3, free).start()
        assert list(parallel_map(str, [1])) == [(1, "1")]
    assert capsys.readouterr().out == "waiting for 1 CPU: 0 of 4 CPUs free, 1 s\n"


# --- Clusters of several nodes

START = """
import sys, time, ray
from lsid_ray import capacity, cluster
from lsid_ray.commandline import run_job
from lsid_ray.config.schema import ClusterConfig
from lsid_ray.data import pack, parallel
from lsid_ray.progress import counter
parallel.QUIET_WAIT_S = parallel.WAIT_LINE_S = 1.0
def node(*_):
    return ray.get_runtime_context().get_node_id()
"""


@contextmanager
def script(
    text: str, environment: dict[str, str], folder: Path
) -> Iterator[tuple[subprocess.Popen, Callable[[], str]]]:
    """Run a script of a job; yields its process, and what it has printed so far."""
    output = folder / "output"
    with output.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", START + text], cwd=folder, env=environment, stdout=file, stderr=file
        )
    try:
        yield process, output.read_text
    finally:
        process.kill()


@pytest.fixture
def nodes(node_folder: Callable[[], Path]) -> Iterator[Callable[..., NodeCluster]]:
    """A function that starts the head of a cluster with these arguments of `ray start`."""
    started: list[NodeCluster] = []

    def start(*arguments: str) -> NodeCluster:
        folder = node_folder()
        started.append(NodeCluster(folder, {"RAY_AUTH_MODE": "disabled"}, *arguments))
        return started[-1]

    yield start
    for cluster in started:
        cluster.close()


@pytest.mark.cluster
def test_packing_uses_a_node_that_joins_and_survives_its_loss(
    nodes: Callable[..., NodeCluster], data_root: Path, tmp_path: Path
) -> None:
    cluster, seen = nodes("--num-cpus=1"), tmp_path / "seen"
    seen.mkdir()
    text = f"""
pack_file = pack._pack_file
def slow_pack_file(*arguments):
    open(f"{seen}/{{node()}}", "a").write("x")
    time.sleep(1)
    return pack_file(*arguments)
pack._pack_file = slow_pack_file
cluster.connect()
print(pack.pack_dataset({str(data_root)!r}, {str(tmp_path / "shards")!r}, tile=32).summary)
"""
    with script(text, cluster.environment, tmp_path) as (job, output):
        assert until(lambda: len(list(seen.iterdir())) == 1, 60), output()
        joined = cluster.add("--num-cpus=1")
        assert until(lambda: len(list(seen.iterdir())) == 2, 60), output()
        cluster.kill(joined)
        assert job.wait(60) == 0, output()
        assert "15 files packed" in output()
    assert sum(len(file.read_text()) for file in seen.iterdir()) >= 16, "the file on the lost node is packed again"


@pytest.mark.cluster
def test_if_the_limits_are_unknown_a_job_waits_and_uses_the_gpu_node_that_joins(
    nodes: Callable[..., NodeCluster], tmp_path: Path
) -> None:
    """As under KubeRay, whose autoscaler is no process of the head."""
    cluster = nodes("--num-cpus=1", "--no-monitor")
    text = """
cluster.connect()
config = ClusterConfig(use_gpu=True)
print(cluster.check_capacity(config), cluster.describe_wait(config))
capacity.check_task({"CPU": 1, "GPU": 1}, "--use-gpu: ")
with counter("enhancing", "files"):
    print(len({each for _, each in parallel.parallel_map(node, range(4), gpus=1)}), "node did all")
"""
    free = "0 of 0 GPUs free, an autoscaler may add nodes (its limits are unknown)"
    with script(text, cluster.environment, tmp_path) as (job, output):
        wait = f"enhancing: waiting for 1 CPU and 1 GPU: 1 of 1 CPU free, {free}, 1 s"
        assert until(lambda: wait in output(), 60), output()
        cluster.add("--num-cpus=1", "--num-gpus=1")
        assert job.wait(60) == 0, output()
        assert f"1 1 worker with 1 CPU and 1 GPU each: 1 of 1 CPU free, {free}" in output().splitlines()
        assert "1 node did all" in output().splitlines()


@pytest.fixture
def autoscaled(node_folder: Callable[[], Path]) -> Iterator[dict[str, str]]:
    """The environment of jobs on a head without CPUs, under Ray's autoscaler with fake nodes: two of 1 CPU, one GPU."""
    folder = node_folder()
    config = autoscaler(gpu=1)
    kinds = config["available_node_types"]
    for name, resources in {"head": {"CPU": 0}, "gpu": GPU_TASK, "cpu": CPU_TASK}.items():
        kinds[name] |= {"resources": resources, "node_config": {}}
    config["head_node_type"] = "ray.head.default"  # the only name that the fake provider knows
    kinds["ray.head.default"] = kinds.pop("head") | {"max_workers": 0}
    gcs, dashboard, client, agent, grpc, runtime, metrics = free_ports(7)
    provider = {"type": "fake_multinode", "use_node_id_as_ip": True, "disable_node_updaters": True}
    config |= {"provider": provider | {"gcs_address": f"{get_node_ip_address()}:{gcs}"}, "file_mounts": {}}
    config |= {name: [] for name in config if name.endswith("_commands")}
    (folder / "autoscaler.yaml").write_text(yaml.dump(config))
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}
    environment |= {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_AUTH_MODE": "disabled"}
    environment["RAY_ADDRESS"] = f"127.0.0.1:{gcs}"
    head = Node(
        ["--head", "--num-cpus=0", f"--autoscaling-config={folder}/autoscaler.yaml", f"--temp-dir={folder}/t",
         f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}",
         f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={grpc}",
         f"--runtime-env-agent-port={runtime}", f"--metrics-export-port={metrics}"],
        environment, folder,
    )  # fmt: skip
    yield environment
    head.kill()


@pytest.mark.cluster
@pytest.mark.timeout(200)
def test_an_autoscaler_is_asked_for_nodes_and_gpus_within_its_limits(
    autoscaled: dict[str, str], tmp_path: Path
) -> None:
    text = """
def limit(_):
    return sorted((node.get("CPU", 0), node.get("GPU", 0)) for node in capacity.current_capacity().limit)
def slow_node(_):
    time.sleep(2)
    return node()
cluster.connect()
print("limit", limit(0))
print("runs", cluster.check_capacity(ClusterConfig(use_gpu=True, cpus_per_worker=0.5)))
print("cpus", len({each for _, each in parallel.parallel_map(slow_node, range(16))}))
print("gpus", ray.cluster_resources().get("GPU", 0))
print("elsewhere", list(parallel.parallel_map(limit, [0]))[0][1])
with counter("enhancing", "files"):
    print("gpu tasks", len(list(parallel.parallel_map(node, range(2), gpus=1))))
run_job(lambda: capacity.check_task({"CPU": 1, "GPU": 2}, "--use-gpu: "))
"""
    with script(text, autoscaled, tmp_path) as (job, output):
        assert job.wait(150) == 2, output()
        lines = output().splitlines()
    limit = "[(0, 0), (1, 0), (1, 0), (1, 1)]"
    for line in (f"limit {limit}", "runs 1", "cpus 2", "gpus 0", f"elsewhere {limit}", "gpu tasks 2"):
        assert line in lines, lines
    waits = [line for line in lines if "waiting for 1 CPU and 1 GPU: " in line]
    assert waits and "of 0 GPUs free, an autoscaler may add nodes, " in waits[0]
    assert lines[-1].startswith("error: --use-gpu: the cluster has no node with 1 CPU and 2 GPUs, expected at least")
