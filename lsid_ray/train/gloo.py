"""The network interface that gloo uses between training workers: that of the node's address in Ray.

By default gloo takes the address that the host name resolves to. On Debian and Ubuntu that is 127.0.1.1, which other
nodes cannot reach; on a single machine it may be an address that the network can reach.
"""

import os
from dataclasses import dataclass
from typing import Any

import psutil
import ray.util
from ray.train.backend import Backend
from ray.train.torch import TorchConfig

INTERFACE = "GLOO_SOCKET_IFNAME"


@dataclass
class GlooTorchConfig(TorchConfig):
    """Ray Train's TorchConfig that sets the interface before the process group is created."""

    @property
    def backend_cls(self) -> type[Backend]:
        """The class that sets up the workers' processes."""
        return _Backend


class _Backend(TorchConfig().backend_cls):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(choose_interface)
        super().on_start(worker_group, backend_config)


def choose_interface() -> None:
    """Set this process's interface, unless the user has set one."""
    address = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == address for each in addresses):
            os.environ.setdefault(INTERFACE, name)
