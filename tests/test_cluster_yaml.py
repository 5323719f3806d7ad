"""The files that start clusters: valid for Ray, equal versions and sizes; and what a job uploads."""

import json
import re
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet
from ray._private.runtime_env.packaging import create_package
from ray.autoscaler._private.util import prepare_config, validate_config

REPOSITORY = Path(__file__).parents[1]
DOCUMENTATION = (REPOSITORY / "jobs" / "README.md").read_text()
PROJECT = (REPOSITORY / "pyproject.toml").read_text()
RAY, PYTHON = (re.search(pattern, PROJECT)[1] for pattern in (r'"ray\[.*\]==([\d.]+)"', r'requires-python = "(.*)"'))
FILES = {"aws": "cluster.yaml", "gcp": "jobs/gcp.yaml", "local": "jobs/own-machines.yaml"}
VARIANTS = {name: yaml.safe_load((REPOSITORY / file).read_text()) for name, file in FILES.items()}
CLUSTER = VARIANTS["aws"]
RAYJOB = yaml.safe_load((REPOSITORY / "jobs" / "kubernetes.yaml").read_text())
SHARED = ("file_mounts", "setup_commands", "head_start_ray_commands", "worker_start_ray_commands")


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_valid_for_ray(name: str):
    config = prepare_config(dict(VARIANTS[name]))
    validate_config(config)
    assert config["provider"]["type"] == name
    assert {key: VARIANTS[name][key] for key in SHARED} == {key: CLUSTER[key] for key in SHARED}


@pytest.mark.parametrize("wrong", [{"max_workers": "six"}, {"head_node_type": "none"}, {"idle_timeout": 3}])
def test_the_validation_finds_mistakes(wrong: dict):
    with pytest.raises(Exception, match=r"six|head_node_type|idle_timeout"):
        validate_config(prepare_config(CLUSTER | wrong))


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_the_head_has_no_cpus_and_gpu_nodes_scale_from_zero(name: str):
    nodes = VARIANTS[name]["available_node_types"]
    assert nodes["head"]["resources"] == {"CPU": 0}
    assert {kind: nodes[kind]["resources"] for kind in ("gpu", "cpu")} == {
        kind: CLUSTER["available_node_types"][kind]["resources"] for kind in ("gpu", "cpu")
    }
    assert nodes["gpu"]["min_workers"] == 0 and nodes["gpu"]["resources"]["GPU"] == 1
    assert CLUSTER["max_workers"] == sum(nodes[kind]["max_workers"] for kind in ("gpu", "cpu"))


def test_the_dashboard_is_served_on_the_loopback_of_the_head_only():
    assert not [line for line in CLUSTER["head_start_ray_commands"] if "--dashboard-host" in line]
    assert "RAY_AUTH_MODE=token" in " ".join(CLUSTER["setup_commands"])
    assert "~/.ray/auth_token" in CLUSTER["file_mounts"]


def test_every_node_installs_the_versions_of_pyproject():
    assert CLUSTER["file_mounts"]["~/pyproject.toml"] == "pyproject.toml"
    install = next(line for line in CLUSTER["setup_commands"] if "pip install" in line)
    assert "-r ~/pyproject.toml" in install and "torch" not in install and "ray==" not in install
    python = re.search(r"--python (\d\.\d+)", " ".join(CLUSTER["setup_commands"]))
    assert python and python[1] in SpecifierSet(PYTHON)
    assert f"rayproject/ray:{RAY}-py{python[1].replace('.', '')}-gpu" in DOCUMENTATION


def test_the_rayjob_has_the_same_sizes():
    spec = RAYJOB["spec"]["rayClusterSpec"]
    assert spec["rayVersion"] == RAY and spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in spec["workerGroupSpecs"]:
        node = CLUSTER["available_node_types"][group["groupName"]]
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        sizes = {"CPU": int(limits["cpu"])} | ({"GPU": limits["nvidia.com/gpu"]} if "nvidia.com/gpu" in limits else {})
        sizes |= json.loads(json.loads(group["rayStartParams"].get("resources", '"{}"')))
        assert sizes == node["resources"]
        assert (group["minReplicas"], group["maxReplicas"]) == (node["min_workers"], node["max_workers"])
    assert {group["groupName"] for group in spec["workerGroupSpecs"]} == {"gpu", "cpu"}
    images = re.findall(r"image: (\S+)", yaml.dump(RAYJOB))
    assert len(images) == 3 and len(set(images)) == 1


def test_a_submitted_job_uploads_the_program_and_nothing_else(tmp_path: Path):
    root = tmp_path / "checkout"
    for name in (
        "lsid_ray/train/trainer.py", "jobs/train.py", "data/demo/short/a.dng", "runs/demo/best/generator.safetensors",
        "SID/Sony/long/a.ARW", "SID/Sony-shards/long/a.parquet", ".git/objects/x", ".venv/bin/python", "venv/x",
        "preview.png", "lsid_ray/__pycache__/x.pyc",
    ):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    for name in (".rayignore", ".gitignore"):
        (root / name).write_text((REPOSITORY / name).read_text())
    create_package(str(root), tmp_path / "package.zip", include_gitignore=True)
    files = {name for name in zipfile.ZipFile(tmp_path / "package.zip").namelist() if not name.endswith("/")}
    assert files == {"lsid_ray/train/trainer.py", "jobs/train.py"}
