"""An unreliable object store is retried, one that refuses is named, and jobs give there what they give on a disk."""

import json
import pickle
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
from lsid_ray.inference.files import enhance_files, plan_files
from lsid_ray.inference.raw_file import Amplification
from lsid_ray.storage import to_path
from lsid_ray.sweep.comparison import compare_best
from lsid_ray.sweep.report import write_sweep_report
from lsid_ray.sweep.space import read_space
from lsid_ray.sweep.trials import SweepDefinition, claim_sweep, read_trials
from lsid_ray.sweep.tuner import run_trials
from lsid_ray.synthesis.dataset import Synthesis, synthesize
from lsid_ray.train.trainer import train

REMOTE = "s3://bucket/test"


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
    remaining = failing(store, 2, "throttled", ("PUT", "POST"))
    with storage.atomic_write(path) as file:
        file.write(content)
    assert remaining == [0]
    remaining = failing(store, 2, fault, ("GET",))
    assert path.read_bytes() == content
    with storage.local_copy(path) as copy:
        assert copy.read_bytes() == content and remaining == [0]


def test_an_object_that_is_replaced_while_it_is_read_is_read_whole(store: Store) -> None:
    path = to_path(REMOTE) / "file"
    path.write_bytes(b"content")
    replacements = [b"longer content", b"short"]

    def replace_first(verb: str, name: str) -> str:  # its size has been asked for by then
        if verb == "GET" and name.endswith("/file") and replacements:
            path.write_bytes(replacements.pop(0))
        return ""

    store.fault = replace_first
    assert path.read_bytes() == b"short" and not replacements


def test_a_pickled_file_system_retries_as_often(store: Store) -> None:
    filesystem, name = storage.arrow_filesystem(to_path(REMOTE) / "file")
    unpickled = pickle.loads(pickle.dumps(filesystem))
    remaining = failing(store, 3, "throttled", ("PUT", "POST"))  # one more than Arrow's own strategy bears
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


@pytest.mark.parametrize("fault", ["AccessDenied", "NoSuchBucket"])
def test_an_object_store_that_refuses_to_be_written_to_is_noticed_by_one_request(store: Store, fault: str) -> None:
    folder = storage.to_path("s3://bucket/test/out")
    store.requests.clear()
    storage.check_writable(folder, "--out")
    assert [verb for verb, _, _ in store.requests] == ["PUT"]
    assert synthesize(Synthesis("s3://bucket/test/out", ratios=(300,), max_side=64 * 9)).created, "it still is empty"
    store.fault = lambda verb, path: fault if verb == "PUT" else ""
    with pytest.raises(InputError, match=r"^--out s3://bucket/test/out/\.writable: (access denied|no such bucket)"):
        storage.check_writable(folder, "--out")


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
def test_a_run_in_an_object_store_resumes_and_its_checkpoint_is_used_there(
    remote_root: str, remote_shards: str, experiment: Callable[..., Experiment]
) -> None:
    e = replace(experiment("run", cluster={"num_workers": 1, "cache_gb": 0.1}), storage=f"{REMOTE}/runs")
    train(e, remote_shards, until_epoch=1)
    run = train(e, remote_shards)
    events = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["kind"] == "start"] == [0, 3]
    assert [event["step"] for event in events if event["kind"] == "validation"] == [3, 6]
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
