"""Ray clusters of several nodes on this machine, whose nodes can be killed."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil

STARTS = 3  # a raylet gives up if its agent takes more than 15 s to start, as on a busy machine (ray 2.60)
RAY = [sys.executable, "-m", "ray.scripts.scripts"]


def free_ports(count: int) -> list[int]:
    """Unused ports on the loopback interface."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Node:
    """A node of a cluster: `ray start --block` and its child processes."""

    def __init__(self, arguments: list[str], environment: dict[str, str], folder: Path):
        self.log = folder / f"{uuid.uuid4().hex}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*RAY, "start", "--block", *arguments], cwd=folder, env=environment, stdout=log, stderr=log
            )
        while "Ray runtime started" not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)

    def ray_id(self) -> str:
        """Its ID in Ray, from the command line of the raylet."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        options = [part for each in children for part in each.cmdline()]
        return next(part.partition("=")[2] for part in options if part.startswith("--node_id="))

    def processes(self, name: str) -> list[psutil.Process]:
        """The processes on it with this name, such as an actor's."""
        found = []
        for each in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it may have ended meanwhile
                if name in " ".join(each.cmdline()):
                    found.append(each)
        return found

    def workers(self) -> list[psutil.Process]:
        """The training workers on it."""
        return self.processes("RayTrainWorker")

    def kill(self) -> None:
        """Kill the node with everything on it, as a power cut would."""
        for each in (*psutil.Process(self.process.pid).children(recursive=True), self.process):
            each.kill()
        self.process.wait(60)


class NodeCluster:
    """A head and further nodes, each with its own ports and folder."""

    def __init__(self, folder: Path, environment: dict[str, str], *head_arguments: str):
        self.folder = folder
        self.metrics: list[str] = []
        """URLs that Prometheus scrapes, one per node."""
        gcs, dashboard, client = free_ports(3)
        self.address, self.dashboard = f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}"
        # What `cluster.connect` sets for a cluster of one node would be inherited.
        unwanted = ("PYTHONPATH", "RAY_ADDRESS", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")
        base = {name: value for name, value in os.environ.items() if name not in unwanted}
        # If several clusters share a machine, Ray Train's cleanup needs the address of its own.
        self.environment = {**base, **environment, "RAY_health_check_period_ms": "1000", "RAY_ADDRESS": self.address}
        ports = [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
        self.nodes = [self._start("--head", *ports, *head_arguments)]

    def add(self, *arguments: str) -> Node:
        """Start a further node with these arguments of `ray start`."""
        self.nodes.append(self._start(f"--address={self.address}", *arguments))
        return self.nodes[-1]

    def kill(self, node: Node) -> None:
        """Kill a node, as a power cut would."""
        self.nodes.remove(node)
        node.kill()

    def close(self) -> None:
        """Kill all nodes, the head last; a clean shutdown would take 30 s."""
        for node in reversed(self.nodes):
            node.kill()

    def _start(self, *arguments: str) -> Node:
        for _ in range(STARTS - 1):
            with contextlib.suppress(AssertionError):
                return self._start_once(*arguments)
        return self._start_once(*arguments)

    def _start_once(self, *arguments: str) -> Node:
        agent, grpc, runtime, metrics = free_ports(4)
        self.metrics.append(f"http://127.0.0.1:{metrics}/metrics")
        ports = [
            f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={grpc}",
            f"--runtime-env-agent-port={runtime}", f"--metrics-export-port={metrics}",
        ]  # fmt: skip
        own_folder = self.folder / str(len(self.metrics))  # or a node that ends deletes the others' working directory
        own_folder.mkdir()
        options = [*ports, "--object-store-memory=200000000", f"--temp-dir={own_folder}"]
        return Node([*options, *arguments], self.environment, self.folder)


def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether a condition becomes true within some seconds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True
