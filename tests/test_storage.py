"""Local and remote paths behave alike, writes are atomic, and an unreliable store is retried."""

import errno
import pickle
import tempfile
import threading
from pathlib import Path

import pytest

from lsid_ray import storage
from lsid_ray.errors import InputError
from lsid_ray.object_store import RemotePath
from lsid_ray.storage import AnyPath, to_path

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
