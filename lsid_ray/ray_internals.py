"""What Ray 2.60 offers in no public way. All that this package takes from Ray's internals is here.

So an upgrade of Ray has this file to check, and `tests/test_layers.py` keeps the internals out of all others. Numbers
are of ray-project/ray, found in a search in November 2026; the first and the last of these have none.

`cluster_address`: `ray.init` joins a cluster that `ray start` left on this machine, or else starts one, and says which
    only afterwards. But one that does not answer is to be refused within seconds (Ray takes minutes), and only one that
    is started here may be put on the loopback interface.
`use_loopback_only`: which interface a cluster of `ray.init` listens on. Ray takes the loopback by default on macOS and
    Windows only (issue 18730), and where 127.0.0.1 is asked for, the address of the node (issue 26293).
`send_existing_token`: once there is a token, `ray start` demands it, but a driver with an explicit RAY_ADDRESS sends it
    only if RAY_AUTH_MODE was set before Ray was imported (pull request 64755).
`SchedulingPause`: the interface of callbacks for `DataContext.custom_execution_callback_classes`, itself public (pull
    request 49205).
`autoscaler_configuration`: how far an autoscaler may scale; `ray.nodes` and `ray status` know only what there is.
"""

import os
import time
from pathlib import Path
from typing import Any

import psutil
import yaml
from ray._private import ray_constants, services
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray.data._internal.execution.execution_callback import ExecutionCallback

SCHEDULING_PAUSE_S = 0.05  # per iteration of Ray's scheduling loop, which handles all blocks that are ready


def cluster_address() -> str | None:
    """HOST:PORT of the cluster that `ray.init` will join: that of RAY_ADDRESS, or of `ray start` on this machine.

    None if it will start one. Raises: ValueError if RAY_ADDRESS is no address.
    """
    return services.canonicalize_bootstrap_address(None)


def use_loopback_only() -> None:
    """Have the cluster that `ray.init` starts listen on the loopback interface only."""
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"  # for the processes that Ray starts
    ray_constants.ENABLE_RAY_CLUSTER = False


def send_existing_token() -> None:
    """Have `ray.init` send this user's token if there is one; a cluster without authentication ignores it."""
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


class SchedulingPause(ExecutionCallback):
    """Slows Ray Data's scheduling loop: under backpressure it would otherwise spin and occupy a core."""

    def on_execution_step(self, executor: Any) -> None:
        """Called in each iteration of the loop."""
        time.sleep(SCHEDULING_PAUSE_S)


def autoscaler_configuration(gcs_port: str) -> dict[str, Any] | None:
    """The configuration of the autoscaler of the cluster whose head is this node, as in the file for `ray up`.

    Empty if there is no autoscaler, None if its configuration cannot be read.
    `ray start --head` starts a monitor process, with or without the path of a configuration; if there is no such
    process, the autoscaler runs elsewhere, as under KubeRay.
    """
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
        except psutil.Error:
            continue
        options = dict(part.split("=", 1) for part in command if part.startswith("--") and "=" in part)
        is_monitor = any(part.endswith("/monitor.py") for part in command)
        if is_monitor and options.get("--gcs-address", "").endswith(f":{gcs_port}"):
            path = options.get("--autoscaling-config")
            try:
                return yaml.safe_load(Path(path).expanduser().read_text()) if path else {}
            except (OSError, yaml.YAMLError):
                return None
    return None
