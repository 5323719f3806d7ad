"""What a job may take of the cluster."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config

from lsid_ray.cluster import check_workers
from lsid_ray.config import Cluster
from lsid_ray.errors import InputError


@pytest.mark.parametrize("workers, cpus", [(1, 2.5), (2, 1), (5, 0.5)])
def test_workers_that_leave_room_for_reading_are_let_in(cluster: None, workers: int, cpus: float) -> None:
    check_workers(Cluster(num_workers=workers, cpus_per_worker=cpus))


@pytest.mark.parametrize("workers, cpus", [(1, 3), (3, 1), (6, 0.5)])
def test_workers_that_would_hold_every_cpu_are_refused(cluster: None, workers: int, cpus: float) -> None:
    with pytest.raises(InputError, match=rf"num-workers {workers} .* needs 4\.5 CPUs .*the cluster has 4"):
        check_workers(Cluster(num_workers=workers, cpus_per_worker=cpus))


def test_readers_count_too(cluster: None) -> None:
    check_workers(Cluster(num_workers=1, cpus_per_worker=1, readers=4))
    with pytest.raises(InputError, match=r"needs 4\.5 CPUs \(3\.5 of them to read data, with --cluster\.readers 5\)"):
        check_workers(Cluster(num_workers=1, cpus_per_worker=1, readers=5))


def test_readers_on_nodes_that_are_not_there_are_refused(cluster: None) -> None:
    with pytest.raises(InputError, match=r"--cluster\.readers-on feeding: no node of the cluster has that resource"):
        check_workers(Cluster(readers_on="feeding"))


def test_gpus_that_are_not_there_are_refused(cluster: None) -> None:
    with pytest.raises(InputError, match=r"--cluster\.use-gpu .* needs 2 GPUs, the cluster has 0"):
        check_workers(Cluster(num_workers=2, use_gpu=True))


def test_what_an_autoscaler_may_start_counts(cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = prepare_config(yaml.safe_load((Path(__file__).parents[1] / "cluster.yaml").read_text()))
    (tmp_path / "ray_bootstrap_config.yaml").write_text(yaml.dump(config))
    check_workers(Cluster(num_workers=4, use_gpu=True, cpus_per_worker=4, readers=8))
    with pytest.raises(InputError, match=r"needs 5 GPUs, the cluster has 4"):
        check_workers(Cluster(num_workers=5, use_gpu=True))


LISTENERS = """
import json, psutil, ray
from lsid_ray import cluster
cluster.connect()
ray.get(ray.remote(lambda: None).remote())
me = psutil.Process()
sockets = [each for process in (me, *me.children(recursive=True)) for each in process.net_connections()]
print(json.dumps([each.laddr.ip for each in sockets if each.status == psutil.CONN_LISTEN]))
"""


def test_a_cluster_of_its_own_listens_on_the_loopback_only() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", LISTENERS], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    listeners = json.loads(done.stdout.splitlines()[-1])
    assert len(listeners) > 5 and set(listeners) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
