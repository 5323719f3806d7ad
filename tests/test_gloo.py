"""Workers use the network interface of their node's address."""

import os

import psutil
import pytest
import ray.util

from lsid_ray.train.gloo import INTERFACE, GlooTorchConfig, choose_interface


def test_the_interface_is_that_of_the_nodes_address_unless_the_user_set_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(INTERFACE, raising=False)
    for name, addresses in psutil.net_if_addrs().items():
        for address in addresses:
            monkeypatch.setattr(ray.util, "get_node_ip_address", lambda address=address: address.address)
            monkeypatch.delenv(INTERFACE, raising=False)
            choose_interface()
            assert os.environ[INTERFACE] == name
    monkeypatch.setenv(INTERFACE, "eth9")
    choose_interface()
    assert os.environ[INTERFACE] == "eth9"
    assert GlooTorchConfig().backend_cls.__mro__[1] is GlooTorchConfig.__mro__[1]().backend_cls
