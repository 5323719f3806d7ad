"""Joining a cluster, and how much of it a run may take."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config

from lsid_ray import cluster as cluster_module
from lsid_ray.benchmark.nodes import NodeCluster
from lsid_ray.capacity import HEAD, Capacity, at_limits
from lsid_ray.cluster import check_capacity, connect, validation_slots
from lsid_ray.config.presets import PRESETS
from lsid_ray.config.schema import ClusterConfig
from lsid_ray.errors import InputError, PartialFailure

CLUSTER_YAML = Path(__file__).parents[1] / "cluster.yaml"


def test_a_command_line_or_folder_that_is_not_utf8_is_refused_before_ray_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(sys, "argv", ["pack.py", "pack", "a\udcffb"])
    with pytest.raises(InputError, match="a\udcffb: not UTF-8, which Ray requires"):
        connect()
    monkeypatch.setattr(sys, "argv", ["pack.py"])
    (tmp_path / "c\udcffd").mkdir()
    monkeypatch.chdir(tmp_path / "c\udcffd")
    with pytest.raises(InputError, match="c\udcffd: not UTF-8, which Ray requires"):
        connect()


@pytest.mark.parametrize("failures", [1, 2])
def test_a_start_of_ray_is_tried_twice(
    failures: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    remaining, reason = [failures], "The current node timed out during startup."

    def init(**options: object) -> None:
        remaining[0] -= 1
        if remaining[0] >= 0:
            raise Exception(f"{reason}\nThis could happen because")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setenv("HOME", str(tmp_path))
    if failures == 2:
        with pytest.raises(PartialFailure, match=f"^Ray does not start on this machine: {reason}$"):
            cluster_module._start()
    else:
        cluster_module._start()
    assert (tmp_path / ".ray").stat().st_mode & 0o777 == 0o700, "nobody else reads the token"
    assert capsys.readouterr().out == f"Ray has not started: {reason}; trying again\n"


@pytest.mark.parametrize("workers, cpus", [(1, 2.5), (2, 1), (5, 0.5)])
def test_workers_that_leave_room_for_readers_are_accepted(cluster: None, workers: int, cpus: float) -> None:
    check_capacity(ClusterConfig(num_workers=workers, cpus_per_worker=cpus))


@pytest.mark.parametrize("workers, cpus", [(1, 3), (3, 1), (6, 0.5)])
def test_workers_that_would_hold_every_cpu_are_refused(cluster: None, workers: int, cpus: float) -> None:
    with pytest.raises(InputError, match=rf"num-workers {workers} .* needs 4\.5 CPUs .*the cluster has 4"):
        check_capacity(ClusterConfig(num_workers=workers, cpus_per_worker=cpus))


def test_readers_are_counted(cluster: None) -> None:
    check_capacity(ClusterConfig(num_workers=1, cpus_per_worker=1, readers=4))
    with pytest.raises(InputError, match=r"needs 4\.5 CPUs \(3\.5 of them to read data, with --cluster\.readers 5\)"):
        check_capacity(ClusterConfig(num_workers=1, cpus_per_worker=1, readers=5))


def test_validations_take_only_what_a_run_leaves_on_the_nodes_that_are_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    def slots(nodes: list[tuple[float, float]], workers: int, **options: object) -> int:
        alive = tuple({"CPU": cpus, "GPU": gpus} for cpus, gpus in nodes)
        monkeypatch.setattr(cluster_module, "current_capacity", lambda: Capacity(alive, None))
        return validation_slots(ClusterConfig(**options), workers)

    assert slots([(2, 0)], 1, cpus_per_worker=0.5) == 0, "0.5 for the worker, 0.5 for a reader, 1 to deal samples"
    assert slots([(8, 0)], 2, cpus_per_worker=2) == 2 and slots([(8, 0)], 1, cpus_per_worker=2) == 4
    assert slots([(2, 0), (1.5, 0)], 1) == 0, "half a CPU is left on each"
    assert slots([(2, 0), (1, 0), (1, 0)], 1) == 1
    assert slots([(8, 2)], 2, use_gpu=True) == 0 and slots([(8, 4), (8, 0)], 2, use_gpu=True) == 2
    assert slots([(1, 0)], 1) == 0


def test_readers_on_a_missing_resource_are_refused(cluster: None) -> None:
    with pytest.raises(InputError, match=r"--cluster\.readers-on feeding: no node of the cluster has that resource"):
        check_capacity(ClusterConfig(readers_on="feeding"))


def test_missing_gpus_are_refused(cluster: None) -> None:
    with pytest.raises(InputError, match=r"--cluster\.use-gpu .* needs 2 GPUs, the cluster has 0"):
        check_capacity(ClusterConfig(num_workers=2, use_gpu=True))


def test_nodes_that_the_autoscaler_may_start_are_counted() -> None:
    head = ({HEAD: 1.0},)
    growing = Capacity(head, at_limits(head, prepare_config(yaml.safe_load(CLUSTER_YAML.read_text()))))
    config = ClusterConfig(num_workers=4, use_gpu=True, cpus_per_worker=4, readers=8, readers_on="feeding")
    assert check_capacity(config, growing) == 1
    assert check_capacity(ClusterConfig(num_workers=1, use_gpu=True, cpus_per_worker=4), growing) == 4
    with pytest.raises(InputError, match=r"needs 5 GPUs, the cluster has at most 4$"):
        check_capacity(ClusterConfig(num_workers=5, use_gpu=True), growing)
    with pytest.raises(
        InputError, match=r"--cluster\.cpus-per-worker 9: 1 such workers .* which have 0, 8, 8, 8, 8, 16"
    ):
        check_capacity(ClusterConfig(num_workers=1, use_gpu=True, cpus_per_worker=9), growing)


def test_a_cluster_whose_limits_are_unknown_refuses_nothing() -> None:
    assert check_capacity(ClusterConfig(num_workers=99, use_gpu=True, readers_on="feeding"), Capacity((), None)) == 1
    assert check_capacity(ClusterConfig(num_workers=1), Capacity(({"CPU": 6},), None)) == 2


@pytest.mark.parametrize("name", [name for name, (_, e) in PRESETS.items() if e.cluster.use_gpu])
def test_presets_fit_one_gpu_with_8_cpus_and_the_nodes_of_cluster_yaml(name: str) -> None:
    config = PRESETS[name][1].cluster
    one_machine = ({"CPU": 8, "GPU": 1},)
    assert check_capacity(config, Capacity(one_machine, one_machine)) == 1
    gpu_nodes = (*4 * one_machine, {HEAD: 1.0})  # even without the nodes that read for them
    assert check_capacity(replace(config, num_workers=4), Capacity(gpu_nodes, gpu_nodes)) == 1


LISTENERS = """
import json, psutil, ray
from lsid_ray import cluster
cluster.connect()
ray.get(ray.remote(lambda: None).remote())
me = psutil.Process()
sockets = [each for process in (me, *me.children(recursive=True)) for each in process.net_connections()]
print(json.dumps([each.laddr.ip for each in sockets if each.status == psutil.CONN_LISTEN]))
"""


def test_a_cluster_that_a_job_starts_listens_on_the_loopback_only() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", LISTENERS], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    listeners = json.loads(done.stdout.splitlines()[-1])
    assert len(listeners) > 5 and set(listeners) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


CONNECT = """
from lsid_ray import cluster
from lsid_ray.commandline import run_job
run_job(cluster.connect)
import ray
print(ray.cluster_resources()["CPU"])
"""


@pytest.mark.cluster
@pytest.mark.timeout(200)
def test_a_cluster_is_joined_with_its_token_and_a_wrong_one_is_one_line(
    node_folder: Callable[[], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any plain job leaves a token behind, and `ray start` demands it from then on."""
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("0123456789abcdef" * 4)
    nodes = NodeCluster(node_folder(), {"HOME": str(tmp_path)}, "--num-cpus=2")

    def join(**environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-c", CONNECT],
            env=nodes.environment | environment, capture_output=True, text=True, timeout=100,
        )  # fmt: skip

    try:
        done = join()
        port = nodes.address.rpartition(":")[2]
        assert re.fullmatch(rf"joining the Ray cluster at \S+:{port}\n2\.0\n", done.stdout) and not done.stderr, done
        done = join(RAY_AUTH_TOKEN="wrong" * 8)
        lines = [line for line in done.stderr.splitlines() if "gcs_client.cc" not in line]  # of Ray's own core
        assert done.returncode == 2 and len(lines) == 1 and lines[0].startswith("error: "), done
    finally:
        nodes.close()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", r"^the Ray cluster at [\d.]+:1 cannot be joined: Connection refused; expected a"),
        ("there", r"^RAY_ADDRESS: .*there"),
    ],
)
def test_an_address_without_a_cluster_is_an_input_error(
    monkeypatch: pytest.MonkeyPatch, address: str, message: str
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(InputError, match=message):
        connect()
