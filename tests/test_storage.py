"""One way to paths here and in an object store, whole or absent, also when the store misbehaves."""

import json
import pickle
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Store

from lsid_ray import config, storage
from lsid_ray.config import Sweep
from lsid_ray.data.pack import pack_folder
from lsid_ray.data.preview import contact_sheet
from lsid_ray.data.shards import open_shards
from lsid_ray.data.verify import repair_folder, verify_folder
from lsid_ray.errors import InputError
from lsid_ray.evaluate.deliver import Amplification, deliver, plan
from lsid_ray.evaluate.score import evaluate
from lsid_ray.storage import AnyPath, path
from lsid_ray.sweep.conclude import conclude
from lsid_ray.sweep.record import Definition, claim, read_trials
from lsid_ray.sweep.report import write_sweep_report
from lsid_ray.sweep.search import run_trials
from lsid_ray.sweep.space import read_space
from lsid_ray.train.launch import train

REMOTE = "s3://bucket/test"


@pytest.fixture(params=["here", "store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> AnyPath:
    """A folder on this machine, then one in an object store: they answer alike."""
    if request.param == "here":
        return path(str(tmp_path / "test"))
    request.getfixturevalue("store")
    return path(REMOTE)


def write(place: AnyPath, content: bytes) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    with storage.writing(place) as file:
        file.write(content)


def test_files_are_written_listed_read_moved_and_removed(folder: AnyPath) -> None:
    file = folder / "short" / "10003_00_0.04s.ARW"
    assert not folder.exists() and not file.exists() and storage.files_below(folder) == {}
    write(file, b"one")
    write(folder / "index.json", b"two")
    assert file.is_file() and not file.is_dir() and folder.is_dir() and not folder.is_file()
    assert (file.name, file.suffix, file.parent.name) == ("10003_00_0.04s.ARW", ".ARW", "short")
    assert file.read_bytes() == b"one" and (folder / "index.json").read_text() == "two"
    assert sorted(entry.name for entry in folder.iterdir()) == ["index.json", "short"]
    sizes = {name: size for name, (size, _) in storage.files_below(folder).items()}
    assert sizes == {"short/10003_00_0.04s.ARW": 3, "index.json": 3}
    assert storage.files_below(folder)["index.json"][1] == (folder / "index.json").stat().st_mtime_ns
    assert str(file.relative_to(folder)) == "short/10003_00_0.04s.ARW"
    assert pickle.loads(pickle.dumps(file)) == file == path(str(file))
    (folder / "index.json").replace(folder / "moved")
    assert (folder / "moved").read_bytes() == b"two" and not (folder / "index.json").exists()
    with pytest.raises(FileNotFoundError):
        (folder / "index.json").open("rb")
    with pytest.raises(FileNotFoundError):
        (folder / "index.json").stat()
    with pytest.raises(FileNotFoundError):
        (folder / "index.json").unlink()
    (folder / "index.json").unlink(missing_ok=True)
    storage.remove(folder)
    assert not folder.exists()


def test_what_fails_half_way_leaves_what_was_there(folder: AnyPath) -> None:
    file = folder / "file"
    write(file, b"before")
    with pytest.raises(RuntimeError), storage.writing(file) as there:
        there.write(bytes(20 << 20))
        raise RuntimeError
    assert file.read_bytes() == b"before" and list(storage.files_below(folder)) == ["file"]
    with pytest.raises(RuntimeError), storage.writing_folder(folder, last="report.html") as there:
        (there / "report.html").write_text("half")
        raise RuntimeError
    assert list(storage.files_below(folder)) == ["file"]


def test_a_folder_is_replaced_as_a_whole_its_last_file_at_the_end(folder: AnyPath, request) -> None:
    write(folder / "report" / "old.png", b"old")
    with storage.writing_folder(folder / "report", last="a.html") as there:
        for name in ("a.html", "b.json", "pictures/c.png"):
            (there / name).parent.mkdir(exist_ok=True)
            (there / name).write_text(name)
    assert sorted(storage.files_below(folder / "report")) == ["a.html", "b.json", "pictures/c.png"]
    if isinstance(folder, storage.Remote):
        written = [at for verb, at, _ in request.getfixturevalue("store").requests if verb == "PUT"]
        written += [at for verb, at, _ in request.getfixturevalue("store").requests if verb == "POST"]
        assert [at.split("?")[0].rpartition("/")[2] for at in written if "html" in at or "c.png" in at][-1] == "a.html"
    with storage.local(folder / "report") as here:
        assert (here / "pictures" / "c.png").read_text() == "pictures/c.png"
    with storage.local(folder / "report" / "b.json") as here:
        assert here.name == "b.json" and here.read_text() == "b.json"


def test_addresses_of_another_kind_are_refused() -> None:
    for text in ("http://bucket/name", "s3://", "gs:///"):
        with pytest.raises(InputError, match=r"expected a folder, or s3://BUCKET/NAME or gs://BUCKET/NAME"):
            path(text)
    assert str(path("s3://bucket//name/")) == "s3://bucket/name" and path("data/x") == Path("data/x")


def failing(store: Store, times: int, fault: str, verbs: tuple[str, ...]) -> list[int]:
    """Have some requests fail; returns how many are still to, in a list that changes."""
    left = [times]

    def decide(verb: str, at: str) -> str:
        if verb in verbs and left[0] > 0:
            left[0] -= 1
            return fault
        return ""

    store.fault = decide
    return left


@pytest.mark.parametrize("fault", ["throttled", "cut"])
def test_a_store_that_throttles_or_hangs_up_is_asked_again(store: Store, fault: str) -> None:
    content = bytes(range(256)) * 4096
    place = path(REMOTE) / "file"
    left = failing(store, 3, "throttled", ("PUT", "POST"))
    write(place, content)
    assert left == [0]
    left = failing(store, 3, fault, ("GET",))
    assert place.read_bytes() == content
    with storage.local(place) as here:
        assert here.read_bytes() == content and left == [0]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("AccessDenied", "access denied"),
        ("InvalidAccessKeyId", "no such access key"),
        ("SignatureDoesNotMatch", "the secret key does not fit the access key"),
    ],
)
def test_wrong_credentials_are_one_line_at_once(store: Store, code: str, words: str) -> None:
    store.fault = lambda verb, at: code
    began = time.monotonic()
    for ask in (
        lambda: path(REMOTE).exists(),
        lambda: storage.files_below(path(REMOTE)),
        lambda: (path(REMOTE) / "file").read_bytes(),
        lambda: (path(REMOTE) / "file").write_bytes(b"text"),
    ):
        with pytest.raises(InputError, match=rf"^s3://bucket/test(/file)?: ({words}|access denied)$"):
            ask()
    assert time.monotonic() - began < 10


def test_a_bucket_that_is_not_there_is_named(store: Store) -> None:
    with pytest.raises(InputError, match="s3://nowhere/file: no such bucket"):
        path("s3://nowhere/file").write_bytes(b"text")


@pytest.fixture
def away(store: Store, data_root: Path) -> str:
    """The tiny data set's raw files in the object store."""
    for name in storage.files_below(data_root):
        storage.copy(data_root / name, path(REMOTE) / "raw" / name)
    return f"{REMOTE}/raw"


def test_packing_in_an_object_store_gives_the_same_shards(
    away: str, shards: Path, store: Store, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, before = f"{REMOTE}/shards", verify_folder(shards)
    failing(store, 2, "throttled", ("GET", "PUT", "POST"))
    assert pack_folder(away, there, tile=32).packed == 15 and not before
    for name in storage.files_below(shards):
        if name.endswith(".parquet"):
            assert (path(there) / name).read_bytes() == (shards / name).read_bytes()
    assert pack_folder(away, there, tile=32).already and verify_folder(there) == []
    assert open_shards(there, ["train"]).digest == open_shards(shards, ["train"]).digest

    victim = sorted(name for name in storage.files_below(path(there)) if name.startswith("short/"))[0]
    listed = storage.files_below
    with monkeypatch.context() as late:  # a listing that lags behind
        late.setattr(storage, "files_below", lambda at: {k: v for k, v in listed(at).items() if k != victim})
        again = pack_folder(away, there, tile=32)
        assert (again.packed, again.kept) == (0, 15), "it was looked at, and not made again"
    content = (path(there) / victim).read_bytes()
    (path(there) / victim).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert [name for name, _ in verify_folder(there)] == [victim]
    repaired = repair_folder(away, there)
    assert [name for name, _ in repaired.broken] == [victim] and not repaired.left
    contact_sheet(path(there), path(f"{REMOTE}/sheet.png"), 2)
    assert path(f"{REMOTE}/sheet.png").read_bytes()[1:4] == b"PNG"


def test_windows_are_read_by_ranges_and_kept_by_the_node(
    shards: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in storage.files_below(shards):
        storage.copy(shards / name, path(REMOTE) / "shards" / name)
    here, there = open_shards(shards, ["train"]), open_shards(f"{REMOTE}/shards", ["train"], cache_gb=0.1)
    pair = here.pairs[0]
    there.long_window(pair, 0, 0, 1, 1)  # and the footer, once
    store.requests.clear()
    window = there.long_window(pair, 70, 70, 20, 20)
    np.testing.assert_array_equal(window, here.long_window(pair, 70, 70, 20, 20))
    read = sum(size for verb, at, size in store.requests if verb == "GET" and "long" in at)
    assert 0 < read < 0.25 * pair.long.bytes, "only its tile"
    np.testing.assert_array_equal(there.target(pair), here.target(pair))
    store.requests.clear()
    np.testing.assert_array_equal(there.target(pair), here.target(pair))
    assert not store.requests, "all of it was in the cache"


@pytest.mark.timeout(600)
def test_a_run_and_a_sweep_in_an_object_store(
    away: str, cluster: None, shards: Path, store: Store, experiment: Callable[..., config.Experiment]
) -> None:
    there = f"{REMOTE}/shards"
    for name in storage.files_below(shards):
        storage.copy(shards / name, path(there) / name)
    here = experiment("run", training={"epochs": 3}, cluster={"num_workers": 1})
    e = replace(here, storage=f"{REMOTE}/runs", cluster=replace(here.cluster, cache_gb=0.1))
    train(e, there, epochs=1)
    run = train(e, there)
    events = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["kind"] == "start"] == [0, 3]
    psnr = [event["psnr_db"] for event in events if event["kind"] == "validation"]
    local = train(here, str(shards))
    lines = map(json.loads, (local.folder / "metrics.jsonl").read_text().splitlines())
    assert psnr == pytest.approx([event["psnr_db"] for event in lines if event["kind"] == "validation"], abs=1e-4)
    assert any("tensorboard/" in name for name in storage.files_below(run.folder))

    done = evaluate(run.best, there, "test", f"{REMOTE}/report")
    assert str(done.report) == f"{REMOTE}/report/report.html" and done.report.exists()
    work = plan([path(f"{away}/short")], path(f"{REMOTE}/enhanced"), ".jpg", overwrite=False)
    assert len(work.todo) == 10
    results = list(deliver(run.best, work.todo[:2], Amplification(ratio=100.0)))
    assert [result.error for result in results] == ["", ""] and all(result.target.exists() for result in results)
    assert len(plan([path(f"{away}/short")], path(f"{REMOTE}/enhanced"), ".jpg", overwrite=False).existing) == 2

    space = read_space({}, e)
    sweep = replace(e, name="sweep", training=replace(e.training, epochs=2))
    definition = Definition(
        path(e.storage) / "sweep", sweep, space, Sweep(trials=1, trial_epochs=1, train_winner=True), there
    )
    claim(definition)
    run_trials(definition)
    assert [trial.state for trial in read_trials(definition)] == ["finished"]
    assert [validation["epoch"] for validation in read_trials(definition)[0].validations] == [1]
    report = write_sweep_report(definition, conclude(definition))
    assert [validation["epoch"] for validation in read_trials(definition)[0].validations] == [1, 2], "trained on"
    assert report.exists() and (report.parent / "pictures" / "weight.png").exists()
