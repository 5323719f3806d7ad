"""Local and remote paths behave alike, writes are atomic, and an unreliable store is retried."""

import errno
import json
import pickle
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Store

from lsid_ray import storage
from lsid_ray.config.schema import Experiment, SweepConfig
from lsid_ray.data.index import open_shards
from lsid_ray.data.pack import pack_dataset
from lsid_ray.data.preview import contact_sheet
from lsid_ray.data.verify import repair_shards, verify_shards
from lsid_ray.errors import InputError
from lsid_ray.evaluate.evaluation import evaluate
from lsid_ray.inference.files import Amplification, enhance_files, plan_files
from lsid_ray.object_store import RemotePath
from lsid_ray.storage import AnyPath, to_path
from lsid_ray.sweep.comparison import compare_best
from lsid_ray.sweep.report import write_sweep_report
from lsid_ray.sweep.space import read_space
from lsid_ray.sweep.trials import SweepDefinition, claim_sweep, read_trials
from lsid_ray.sweep.tuner import run_trials
from lsid_ray.train.trainer import train

REMOTE = "s3://bucket/test"


@pytest.fixture(params=["local", "store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> AnyPath:
    """A local folder, then one in an object store."""
    if request.param == "local":
        return to_path(str(tmp_path / "test"))
    request.getfixturevalue("store")
    return to_path(REMOTE)


def write(path: AnyPath, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with storage.atomic_write(path) as file:
        file.write(content)


def test_files_are_written_listed_read_moved_and_removed(folder: AnyPath) -> None:
    file = folder / "short" / "10003_00_0.04s.ARW"
    assert not folder.exists() and not file.exists() and storage.list_files(folder) == {}
    write(file, b"one")
    write(folder / "index.json", b"two")
    assert file.is_file() and not file.is_dir() and folder.is_dir() and not folder.is_file()
    assert (file.name, file.suffix, file.parent.name) == ("10003_00_0.04s.ARW", ".ARW", "short")
    assert file.read_bytes() == b"one" and (folder / "index.json").read_text() == "two"
    assert sorted(entry.name for entry in folder.iterdir()) == ["index.json", "short"]
    sizes = {name: size for name, (size, _) in storage.list_files(folder).items()}
    assert sizes == {"short/10003_00_0.04s.ARW": 3, "index.json": 3}
    assert storage.list_files(folder)["index.json"][1] == (folder / "index.json").stat().st_mtime_ns
    assert str(file.relative_to(folder)) == "short/10003_00_0.04s.ARW"
    assert pickle.loads(pickle.dumps(file)) == file == to_path(str(file))
    (folder / "index.json").replace(folder / "moved")
    assert (folder / "moved").read_bytes() == b"two" and not (folder / "index.json").exists()
    with pytest.raises(FileNotFoundError):
        (folder / "index.json").open("rb")
    with pytest.raises(FileNotFoundError):
        (folder / "index.json").stat()
    with pytest.raises(FileNotFoundError):
        (folder / "index.json").unlink()
    (folder / "index.json").unlink(missing_ok=True)
    storage.remove_tree(folder)
    assert not folder.exists()


def test_a_failed_write_leaves_the_previous_content(folder: AnyPath) -> None:
    file = folder / "file"
    write(file, b"before")
    with pytest.raises(RuntimeError), storage.atomic_write(file) as partial:
        partial.write(bytes(20 << 20))
        raise RuntimeError
    assert file.read_bytes() == b"before" and list(storage.list_files(folder)) == ["file"]
    with pytest.raises(RuntimeError), storage.atomic_folder(folder, last="report.html") as partial:
        (partial / "report.html").write_text("half")
        raise RuntimeError
    assert list(storage.list_files(folder)) == ["file"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError("write failed"), "write failed"),
        (OSError(errno.ENOSPC, "No space left on device"), "[Errno 28] No space left on device: '{file}'"),
        (FileNotFoundError(errno.ENOENT, "No such file", "other"), "[Errno 2] No such file: 'other'"),
    ],
)
def test_a_failed_write_names_its_file_and_keeps_its_message(tmp_path, error: OSError, message: str) -> None:
    file = tmp_path / "file"
    with pytest.raises(OSError) as failure, storage.atomic_write(file):
        raise error
    assert str(failure.value) == message.format(file=file)


def test_a_folder_is_replaced_atomically_and_uploaded_with_its_last_file_at_the_end(folder: AnyPath, request) -> None:
    write(folder / "report" / "old.png", b"old")
    with storage.atomic_folder(folder / "report", last="a.html") as partial:
        for name in ("a.html", "b.json", "pictures/c.png"):
            (partial / name).parent.mkdir(exist_ok=True)
            (partial / name).write_text(name)
    assert sorted(storage.list_files(folder / "report")) == ["a.html", "b.json", "pictures/c.png"]
    if isinstance(folder, RemotePath):
        uploaded = [at for verb, at, _ in request.getfixturevalue("store").requests if verb == "PUT"]
        uploaded += [at for verb, at, _ in request.getfixturevalue("store").requests if verb == "POST"]
        assert [at.split("?")[0].rpartition("/")[2] for at in uploaded if "html" in at or "c.png" in at][-1] == "a.html"
    with storage.local_copy(folder / "report") as copy:
        assert (copy / "pictures" / "c.png").read_text() == "pictures/c.png"
    with storage.local_copy(folder / "report" / "b.json") as copy:
        assert copy.name == "b.json" and copy.read_text() == "b.json"


def test_a_reader_finds_the_old_or_the_new_while_a_folder_is_replaced(folder: AnyPath) -> None:
    def replace(version: int) -> None:
        with storage.atomic_folder(folder / "best", last="b") as partial:
            for name in ("a", "b"):
                (partial / name).write_text(str(version))

    replace(0)
    ended, read, error = threading.Event(), set(), []

    def reader() -> None:
        try:
            while not ended.is_set():
                read.add((folder / "best" / "a").read_text())
        except FileNotFoundError as missing:
            error.append(missing)

    thread = threading.Thread(target=reader)
    thread.start()
    for version in range(1, 20):
        replace(version)
    ended.set()
    thread.join()
    assert not error and read and read <= {str(version) for version in range(20)}
    assert sorted(storage.list_files(folder / "best")) == ["a", "b"]


def test_what_killed_processes_left_in_the_temporary_folder_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(storage, "YOUNG_S", 0.0)
    (tmp_path / "lsid-tmp-left" / "behind").mkdir(parents=True)
    (tmp_path / "others").mkdir()
    with storage.temporary_folder() as first:
        assert {path.name for path in tmp_path.iterdir()} == {"others", first.name}
        with storage.temporary_folder() as second:
            assert first.is_dir() and second.is_dir(), "one in use is kept"
    assert [path.name for path in tmp_path.iterdir()] == ["others"]


def test_an_unknown_scheme_or_a_missing_bucket_is_refused() -> None:
    for text in ("http://bucket/name", "s3://", "gs:///"):
        with pytest.raises(InputError, match=r"expected a folder, or s3://BUCKET/NAME or gs://BUCKET/NAME"):
            to_path(text)
    assert str(to_path("s3://bucket//name/")) == "s3://bucket/name" and to_path("data/x") == Path("data/x")


def failing(store: Store, times: int, fault: str, verbs: tuple[str, ...]) -> list[int]:
    """Let the next `times` requests fail; returns a list with the number of failures still to come."""
    remaining = [times]

    def decide(verb: str, at: str) -> str:
        if verb in verbs and remaining[0] > 0:
            remaining[0] -= 1
            return fault
        return ""

    store.fault = decide
    return remaining


@pytest.mark.parametrize("fault", ["throttled", "cut"])
def test_throttled_and_interrupted_requests_are_retried(store: Store, fault: str) -> None:
    content = bytes(range(256)) * 4096
    path = to_path(REMOTE) / "file"
    remaining = failing(store, 3, "throttled", ("PUT", "POST"))
    write(path, content)
    assert remaining == [0]
    remaining = failing(store, 3, fault, ("GET",))
    assert path.read_bytes() == content
    with storage.local_copy(path) as copy:
        assert copy.read_bytes() == content and remaining == [0]


def test_a_pickled_file_system_retries_as_often(store: Store) -> None:
    filesystem, name = storage.arrow_filesystem(to_path(REMOTE) / "file")
    unpickled = pickle.loads(pickle.dumps(filesystem))
    remaining = failing(store, 5, "throttled", ("PUT", "POST"))
    with unpickled.open_output_stream(name) as file:
        file.write(b"content")
    assert remaining == [0] and (to_path(REMOTE) / "file").read_bytes() == b"content"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("AccessDenied", "access denied"),
        ("InvalidAccessKeyId", "no such access key"),
        ("SignatureDoesNotMatch", "the secret key does not match the access key"),
    ],
)
def test_wrong_credentials_are_an_input_error_at_once(store: Store, code: str, reason: str) -> None:
    store.fault = lambda verb, at: code
    start = time.monotonic()
    for request in (
        lambda: to_path(REMOTE).exists(),
        lambda: storage.list_files(to_path(REMOTE)),
        lambda: (to_path(REMOTE) / "file").read_bytes(),
        lambda: (to_path(REMOTE) / "file").write_bytes(b"text"),
    ):
        with pytest.raises(InputError, match=rf"^s3://bucket/test(/file)?: ({reason}|access denied)$"):
            request()
    assert time.monotonic() - start < 10


def test_a_missing_bucket_is_named(store: Store) -> None:
    with pytest.raises(InputError, match="s3://nowhere/file: no such bucket"):
        to_path("s3://nowhere/file").write_bytes(b"text")


@pytest.fixture
def remote_root(store: Store, data_root: Path) -> str:
    """The tiny data set's raw files in the object store."""
    for name in storage.list_files(data_root):
        storage.copy_file(data_root / name, to_path(REMOTE) / "raw" / name)
    return f"{REMOTE}/raw"


def test_packing_in_an_object_store_gives_the_same_shards(
    remote_root: str, shards: Path, store: Store, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = f"{REMOTE}/shards"
    assert not verify_shards(shards)
    failing(store, 2, "throttled", ("GET", "PUT", "POST"))
    assert pack_dataset(remote_root, remote, tile=32).packed == 15
    for name in storage.list_files(shards):
        if name.endswith(".parquet"):
            assert (to_path(remote) / name).read_bytes() == (shards / name).read_bytes()
    assert pack_dataset(remote_root, remote, tile=32).up_to_date and verify_shards(remote) == []
    assert open_shards(remote, ["train"]).digest == open_shards(shards, ["train"]).digest

    victim = sorted(name for name in storage.list_files(to_path(remote)) if name.startswith("short/"))[0]
    list_files = storage.list_files
    with monkeypatch.context() as patch:  # a listing that lags behind
        patch.setattr(storage, "list_files", lambda path: {k: v for k, v in list_files(path).items() if k != victim})
        again = pack_dataset(remote_root, remote, tile=32)
        assert (again.packed, again.reused) == (0, 15), "the shard was found and not packed again"
    content = (to_path(remote) / victim).read_bytes()
    (to_path(remote) / victim).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert [name for name, _ in verify_shards(remote)] == [victim]
    repaired = repair_shards(remote_root, remote)
    assert [name for name, _ in repaired.broken] == [victim] and not repaired.remaining
    contact_sheet(to_path(remote), to_path(f"{REMOTE}/sheet.png"), 2)
    assert to_path(f"{REMOTE}/sheet.png").read_bytes()[1:4] == b"PNG"


@pytest.fixture
def remote_shards(shards: Path, store: Store) -> str:
    """The session's shards, copied into the object store."""
    for name in storage.list_files(shards):
        storage.copy_file(shards / name, to_path(f"{REMOTE}/shards") / name)
    return f"{REMOTE}/shards"


@pytest.mark.timeout(600)
def test_a_run_in_an_object_store_equals_a_local_one(
    remote_root: str, remote_shards: str, shards: Path, experiment: Callable[..., Experiment]
) -> None:
    local_experiment = experiment("run", cluster={"num_workers": 1})
    e = replace(
        local_experiment,
        storage=f"{REMOTE}/runs",
        cluster=replace(local_experiment.cluster, cache_gb=0.1),
    )
    train(e, remote_shards, until_epoch=1)
    run = train(e, remote_shards)
    events = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["kind"] == "start"] == [0, 3]
    psnr = [event["psnr_db"] for event in events if event["kind"] == "validation"]
    local = train(local_experiment, str(shards))
    lines = map(json.loads, (local.folder / "metrics.jsonl").read_text().splitlines())
    assert psnr == pytest.approx([event["psnr_db"] for event in lines if event["kind"] == "validation"], abs=1e-4)
    assert any("tensorboard/" in name for name in storage.list_files(run.folder))

    done = evaluate(run.best, remote_shards, "test", f"{REMOTE}/report")
    assert str(done.report) == f"{REMOTE}/report/report.html" and done.report.exists()
    work = plan_files([to_path(f"{remote_root}/short")], to_path(f"{REMOTE}/enhanced"), ".jpg", overwrite=False)
    assert len(work.todo) == 10
    results = list(enhance_files(run.best, work.todo[:2], Amplification(ratio=100.0)))
    assert [result.error for result in results] == ["", ""] and all(result.target.exists() for result in results)
    work = plan_files([to_path(f"{remote_root}/short")], to_path(f"{REMOTE}/enhanced"), ".jpg", overwrite=False)
    assert len(work.existing) == 2


@pytest.mark.slow
def test_a_sweep_in_an_object_store(remote_shards: str, cluster: None, experiment: Callable[..., Experiment]) -> None:
    e = replace(experiment("sweep", cluster={"num_workers": 1}), storage=f"{REMOTE}/runs")
    budget = SweepConfig(trials=1, trial_epochs=1, train_best=True)
    definition = SweepDefinition(to_path(e.storage) / "sweep", e, read_space({}, e), budget, remote_shards)
    claim_sweep(definition)
    run_trials(definition)
    assert [trial.state for trial in read_trials(definition)] == ["finished"]
    assert [validation["epoch"] for validation in read_trials(definition)[0].validations] == [1]
    report = write_sweep_report(definition, compare_best(definition))
    epochs = [validation["epoch"] for validation in read_trials(definition)[0].validations]
    assert epochs == [1, 2], "the best trial was trained further"
    assert report.exists() and (report.parent / "plots" / "weight.png").exists()
