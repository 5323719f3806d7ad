"""Processes meet over the network of their node's address."""

import os

import psutil
import pytest
import ray.util

from lsid_ray.train.network import INTERFACE, Torch, choose_interface


def test_the_interface_is_that_of_the_nodes_address_unless_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(INTERFACE, raising=False)
    for name, addresses in psutil.net_if_addrs().items():
        for address in addresses:
            monkeypatch.setattr(ray.util, "get_node_ip_address", lambda address=address: address.address)
            monkeypatch.delenv(INTERFACE, raising=False)
            choose_interface()
            assert os.environ[INTERFACE] == name
    monkeypatch.setenv(INTERFACE, "said")
    choose_interface()
    assert os.environ[INTERFACE] == "said"
    assert Torch().backend_cls.__mro__[1] is Torch.__mro__[1]().backend_cls
