"""Over which network interface gloo's processes meet: that of the node's address in Ray.

Left alone, gloo takes the address that the host's own name leads to. On Debian and Ubuntu that is 127.0.1.1, where no
other node can be reached; on a cluster of one machine it may be an address that the network can reach.
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
class Torch(TorchConfig):
    """Ray Train's, with the interface chosen before processes meet."""

    @property
    def backend_cls(self) -> type[Backend]:
        """What sets the processes up."""
        return _Backend


class _Backend(TorchConfig().backend_cls):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(choose_interface)
        super().on_start(worker_group, backend_config)


def choose_interface() -> None:
    """Set this process's interface, unless its user has."""
    address = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == address for each in addresses):
            os.environ.setdefault(INTERFACE, name)
