"""Session fixtures: a tiny data set of real raw files, a Ray cluster, shards, an object store."""

import ctypes
import http.client
import logging
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from PIL import Image

# Before Ray is imported: ray.train.report waits for the health check.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # a process per run; `test_interruption` has it
os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "16")  # as `cluster.connect` has it

from lsid_ray import storage
from lsid_ray.benchmark.nodes import free_ports
from lsid_ray.config.schema import (
    ClusterConfig,
    DataConfig,
    DiscriminatorConfig,
    Experiment,
    GeneratorConfig,
    LossConfig,
    OptimizerConfig,
    TrainingConfig,
)
from lsid_ray.data.batch import Batch
from lsid_ray.data.preprocess import REFERENCE_MATRIX
from lsid_ray.synthesis.dataset import Synthesis, synthesize

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
torch.set_num_threads(1)  # such small networks are slower with more threads


STORE_PORT, MOTO_PORT = free_ports(2)
os.environ |= {  # before Ray starts, so that its processes inherit them
    "AWS_ENDPOINT_URL": f"http://127.0.0.1:{STORE_PORT}",
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_EC2_METADATA_DISABLED": "true",
}

PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "ihc.png")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Have what test modules define sent to Ray's processes whole, which cannot import those modules."""
    from ray import cloudpickle

    for module in {item.module for item in session.items if isinstance(item, pytest.Function)}:
        cloudpickle.register_pickle_by_value(module)


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five scenes of 144x192 sensels at ratios 100 and 300: three to train, one to validate, one to test."""
    folder = tmp_path_factory.mktemp("photographs")
    for name in PHOTOGRAPHS:
        pixels = np.asarray(Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB"))
        Image.fromarray(pixels[100:244, 60:252]).save(folder / f"{Path(name).stem}.png")
    root = tmp_path_factory.mktemp("data") / "tiny"
    synthesize(Synthesis(root, photos=(folder,), ratios=(100, 300)))
    return root


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """A real Ray cluster of several processes, used by this session only."""
    import ray

    from lsid_ray.cluster import quiet_ray_logs

    ray.init(address="local", num_cpus=4, object_store_memory=512 << 20, log_to_driver=False, logging_level="ERROR")
    quiet_ray_logs()
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def node_folder() -> Iterator[Callable[[], Path]]:
    """A function that makes folders for `NodeCluster`, with short paths: those of sockets have at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as root:
        yield lambda: Path(tempfile.mkdtemp(prefix="", dir=root))


@pytest.fixture(scope="session")
def shards(cluster: None, data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data_root` packed in tiles of 32."""
    from lsid_ray.data.pack import pack_dataset

    folder = tmp_path_factory.mktemp("packed") / "shards"
    pack_dataset(data_root, folder, tile=32)
    return folder


@dataclass
class Store:
    """An S3 server behind a proxy that fails on demand."""

    fault: Callable[[str, str], str] = lambda verb, path: ""
    """Verb and path of a request -> its fault: "" for none, "throttled", "cut", or the code of an S3 error."""
    requests: list[tuple[str, str, int]] = field(default_factory=list)
    """Verb, path and response bytes of each request."""
    delay_s: float = 0.0
    """Seconds before each response."""

    def reset(self) -> None:
        self.fault, self.delay_s = Store.fault, 0.0
        self.requests.clear()


@pytest.fixture(scope="session")
def _server() -> Iterator[Store]:
    from moto.server import ThreadedMotoServer

    store = Store()

    class Front(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # or each answer with a body waits 40 ms for an acknowledgement of its headers

        def handle_one(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            while "Transfer-Encoding" in self.headers and (size := int(self.rfile.readline().split(b";")[0], 16)) >= 0:
                body += self.rfile.read(size)
                self.rfile.readline()
                if not size:
                    break
            time.sleep(store.delay_s)
            fault = store.fault(self.command, self.path)
            if fault and fault != "cut":
                status, code = (503, "SlowDown") if fault == "throttled" else (403, fault)
                answer = f"<Error><Code>{code}</Code><Message>so it is</Message></Error>".encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(b"" if self.command == "HEAD" else answer)
                return
            back = http.client.HTTPConnection("127.0.0.1", MOTO_PORT)
            hop = ("transfer-encoding", "expect", "connection", "content-length")
            kept = {name: value for name, value in self.headers.items() if name.lower() not in hop}
            back.request(self.command, self.path, body, kept)
            reply = back.getresponse()
            content = reply.read()
            store.requests.append((self.command, self.path, len(content)))
            self.send_response_only(reply.status)
            for name, value in reply.getheaders():
                if name.lower() not in hop:
                    self.send_header(name, value)
            length = reply.getheader("Content-Length") if self.command == "HEAD" else len(content)
            self.send_header("Content-Length", str(length or 0))
            self.end_headers()
            if fault == "cut":
                self.wfile.write(content[: len(content) // 2])
                self.close_connection = True
            elif self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_one

        def log_message(self, *arguments: object) -> None:
            pass

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # or a failing test shows every request
    moto = ThreadedMotoServer("127.0.0.1", MOTO_PORT, verbose=False)
    moto.start()
    front = ThreadingHTTPServer(("127.0.0.1", STORE_PORT), Front)
    front.daemon_threads = True
    threading.Thread(target=front.serve_forever, daemon=True).start()
    made = http.client.HTTPConnection("127.0.0.1", MOTO_PORT)
    made.request("PUT", "/bucket")
    assert made.getresponse().status == 200
    yield store
    front.shutdown()
    moto.stop()


@pytest.fixture
def store(_server: Store) -> Iterator[Store]:
    """An object store with the bucket s3://bucket, without faults and empty at first."""
    _server.reset()
    storage.remove_tree(storage.to_path("s3://bucket/test"))
    yield _server
    _server.reset()


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of its own with 64 KiB left."""
    folder = tmp_path / "full"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    (folder / "filler").write_bytes(bytes((4 << 20) - (64 << 10)))
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def unreadable() -> Iterator[Callable[[Path], Path]]:
    """A function that makes a file unreadable for this process, even if it runs as root."""
    files = []

    def forbid(path: Path) -> Path:
        files.append(path)
        path.chmod(0)
        if os.geteuid() == 0:
            _set_root_ignores_permissions(False)
        return path

    yield forbid
    if os.geteuid() == 0:
        _set_root_ignores_permissions(True)
    for path in files:
        path.chmod(0o644)


def _set_root_ignores_permissions(ignores: bool) -> None:
    """Take from this thread, or give back, the capabilities CAP_DAC_OVERRIDE (1) and CAP_DAC_READ_SEARCH (2).

    Another user ID would do the same, but modules that are first imported then may lie where it cannot read.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    assert libc.capget(header, sets) == 0, os.strerror(ctypes.get_errno())
    sets[0] = sets[0] | (0b110 & sets[1]) if ignores else sets[0] & ~0b110
    assert libc.capset(header, sets) == 0, os.strerror(ctypes.get_errno())


@pytest.fixture
def experiment(tmp_path: Path) -> Callable[..., Experiment]:
    """A function that makes tiny experiments: experiment("name", training={"epochs": 2}, loss={"adv_weight": 0})."""

    def make(name: str = "tiny", **changes: dict) -> Experiment:
        tiny = Experiment(
            name=name,
            storage=str(tmp_path / "runs"),
            data=DataConfig(root="unused"),
            generator=GeneratorConfig(width=4, depth=2),
            discriminator=DiscriminatorConfig(width=4, layers=1),
            loss=LossConfig(adv_weight=0.01),
            optimizer=OptimizerConfig(generator_lr=1e-3, ema_decay=0.9),
            training=TrainingConfig(epochs=2, batch_size=4, crop=16, crops_per_pair=2, validate_every=1),
            cluster=ClusterConfig(num_workers=2),
        )
        return replace(
            tiny, **{section: replace(getattr(tiny, section), **fields) for section, fields in changes.items()}
        )

    return make


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., Batch]:
    """make_batch(size, crop, seed): a training batch as stored; its target is the amplified input."""

    def make(size: int = 2, crop: int = 16, seed: int = 0) -> Batch:
        random = torch.Generator().manual_seed(seed)
        side = crop + 1
        light = torch.rand(size, 3, side, side, generator=random)
        long = light.repeat_interleave(2, 2).repeat_interleave(2, 3)
        short = 512 + light[:, [0, 1, 2, 1]] * (16383 - 512) / 100 + torch.rand(size, 4, side, side, generator=random)
        return Batch(
            sample=list(range(size)),
            pair=[f"pair-{i}" for i in range(size)],
            short=short.round().to(torch.uint16),
            long=(long * 65535).round().to(torch.uint16),
            black=torch.full((size, 4, 1, 1), 512.0),
            white=torch.full((size,), 16383.0),
            white_balance=torch.tensor([[2.0, 1.0, 1.5]]).repeat(size, 1),
            srgb_from_camera=REFERENCE_MATRIX.repeat(size, 1, 1),
            ratio=torch.full((size,), 100.0),
            flips=torch.rand(size, 3, generator=random) < 0.5,
        )

    return make
