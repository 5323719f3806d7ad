"""Packing again: unchanged and changed files, and resuming after a killed or failed run."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray

from lsid_ray.data import pack as packing
from lsid_ray.data import pack_plan
from lsid_ray.data.index import LOCK, PREVIOUS_INDEX, Shards, open_shards, read_index
from lsid_ray.data.pack import pack_dataset
from lsid_ray.data.shard import write_shard
from lsid_ray.errors import InputError
from lsid_ray.raw.dng import write_dng
from lsid_ray.raw.frame import read_raw

JOB = Path(__file__).parent.parent / "jobs" / "pack.py"
# Runs the job and kills it after a number of files, or before the index is written.
KILLED_JOB = """
import os, runpy, signal, sys
from lsid_ray.data import pack

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def killed_map(*arguments):
    for done, result in enumerate(parallel_map(*arguments), start=1):
        yield result
        if str(done) == moment:
            die()

_, job, moment, *options = sys.argv
parallel_map, pack.parallel_map, pack.write_index = pack.parallel_map, killed_map, die
sys.argv = [job, *options]
runpy.run_path(job, run_name="__main__")
"""


@pytest.fixture
def root(data_root: Path, tmp_path: Path) -> Path:
    """A copy of the raw files with their modification times."""
    return shutil.copytree(data_root, tmp_path / "set")


@pytest.fixture
def packed(shards: Path, tmp_path: Path) -> Path:
    """A copy of their shards."""
    return shutil.copytree(shards, tmp_path / "set-shards")


def content(folder: Path) -> dict[str, bytes]:
    """Path and bytes of every file in a folder of shards except the lock."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != LOCK]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def set_times(path: Path, stat: os.stat_result) -> None:
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def brighten(path: Path) -> None:
    """Replace a raw file by a different frame of the same size."""
    frame = read_raw(path)
    write_dng(path, replace(frame, mosaic=frame.mosaic + 1))


def test_packing_an_unchanged_data_set_reads_no_raw_file_and_writes_nothing(root: Path, packed: Path) -> None:
    for path in root.glob("*/*.dng"):
        stat = path.stat()
        path.write_bytes(bytes(stat.st_size))
        set_times(path, stat)
    times = {path: path.stat().st_mtime_ns for path in packed.rglob("*")}
    start = time.monotonic()
    result = pack_dataset(root, packed, tile=32)
    assert result.up_to_date and (result.pairs, result.packed, result.reused, result.removed) == (10, 0, 15, ())
    assert result.summary == "nothing to do"
    assert {path: path.stat().st_mtime_ns for path in packed.rglob("*")} == times
    assert time.monotonic() - start < 5


def test_files_with_only_a_new_modification_time_are_not_decoded_again(cluster: None, root: Path, packed: Path) -> None:
    touched = sorted(root.glob("*/*.dng"))[::4]
    shard_times = {path: path.stat().st_mtime_ns for path in packed.rglob("*.parquet")}
    for path in touched:
        path.touch()
    result = pack_dataset(root, packed, tile=32)
    assert not result.up_to_date and (result.packed, result.reused) == (0, 15)
    assert {path: path.stat().st_mtime_ns for path in packed.rglob("*.parquet")} == shard_times
    index = read_index(packed)
    assert all(index.sources[str(path.relative_to(root))].mtime_ns == path.stat().st_mtime_ns for path in touched)
    assert pack_dataset(root, packed, tile=32).up_to_date


def test_a_copy_without_its_modification_times_is_recognized_by_its_content(
    cluster: None, root: Path, packed: Path
) -> None:
    for path in root.glob("*/*.dng"):
        path.touch()
    assert pack_dataset(root, packed, tile=32).packed == 0
    assert pack_dataset(root, packed, tile=32).up_to_date


def test_only_a_changed_file_is_packed_again(cluster: None, root: Path, packed: Path, tmp_path: Path) -> None:
    changed = sorted((root / "short").iterdir())[3]
    times = {path: path.stat().st_mtime_ns for path in packed.rglob("*.parquet")}
    brighten(changed)
    calls = []

    def progress(done: int, total: int) -> None:
        calls.append((done, total))
        assert not (packed / "index.json").exists(), "there is no index while shards change"
        with pytest.raises(InputError, match="packing is unfinished"):
            open_shards(packed, ["train"])

    result = pack_dataset(root, packed, tile=32, progress=progress)
    assert (result.packed, result.reused, calls) == (1, 14, [(0, 1), (1, 1)])
    new_times = {path: path.stat().st_mtime_ns for path in packed.rglob("*.parquet")}
    assert [path.stem for path in new_times if new_times[path] != times[path]] == [changed.stem]
    pack_dataset(root, tmp_path / "fresh", tile=32)
    assert content(packed) == content(tmp_path / "fresh")


def test_only_new_files_are_packed(cluster: None, root: Path, packed: Path, tmp_path: Path) -> None:
    short = next((root / "short").glob("0*"))
    shutil.copy2(short, short.with_name(short.name.replace("_00_", "_01_")))
    (root / "short" / "notes.dng").touch()
    result = pack_dataset(root, packed, tile=32)
    assert (result.pairs, result.packed, result.reused) == (11, 1, 15)
    assert [name for name, _ in result.failures] == ["short/notes.dng"]
    (root / "short" / "notes.dng").rename(root / "short" / "more.dng")
    again = pack_dataset(root, packed, tile=32)
    assert not again.up_to_date and again.packed == 0, "the list of files left out is updated"
    assert [name for name, _ in again.failures] == ["short/more.dng"]
    pack_dataset(root, tmp_path / "fresh", tile=32)
    assert content(packed) == content(tmp_path / "fresh")


def test_shards_of_deleted_files_are_removed_and_reported(cluster: None, root: Path, packed: Path) -> None:
    short = sorted((root / "short").glob("0*"))[0]
    long = next((root / "long").glob("2*"))
    unpaired = list((root / "short").glob(f"{long.name[:5]}*"))
    short.unlink()
    long.unlink()
    result = pack_dataset(root, packed, tile=32)
    removed = {f"short/{path.name}" for path in (short, *unpaired)} | {f"long/{long.name}"}
    assert set(result.removed) == removed and (result.packed, result.reused) == (0, 15 - len(removed))
    assert "4 removed: " in result.summary
    assert not {f"{Path(name).with_suffix('')}.parquet" for name in removed} & set(content(packed))
    assert {name for name, _ in result.failures} == {f"short/{path.name}" for path in unpaired}
    assert pack_dataset(root, packed, tile=32).up_to_date


def test_a_broken_file_is_decoded_again_only_if_it_changes(cluster: None, root: Path, packed: Path) -> None:
    broken = next((root / "short").glob("0*"))
    content_before, stat_before = broken.read_bytes(), broken.stat()
    broken.write_bytes(content_before[:5000])
    result = pack_dataset(root, packed, tile=32)
    assert [name for name, _ in result.failures] == [f"short/{broken.name}"] and result.pairs == 9
    assert f"short/{broken.stem}.parquet" not in content(packed)
    stat = broken.stat()
    broken.write_bytes(content_before[5000:10000])
    set_times(broken, stat)
    again = pack_dataset(root, packed, tile=32)
    assert again.up_to_date and again.failures == result.failures
    broken.write_bytes(content_before)
    set_times(broken, stat_before)
    assert pack_dataset(root, packed, tile=32).packed == 1
    assert not read_index(packed).failed


def test_a_broken_file_is_decoded_again_by_another_program_version(
    cluster: None, root: Path, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    next((root / "short").glob("0*")).write_bytes(b"not a raw file")
    pack_dataset(root, packed, tile=32)
    for module in (packing, pack_plan):
        monkeypatch.setattr(module, "__version__", "next")
    calls = []
    result = pack_dataset(root, packed, tile=32, progress=lambda done, total: calls.append((done, total)))
    assert len(result.failures) == 1 and calls == [(0, 1), (1, 1)]
    assert pack_dataset(root, packed, tile=32).up_to_date


def test_a_missing_truncated_or_corrupt_shard_is_packed_again(cluster: None, root: Path, packed: Path) -> None:
    before = content(packed)
    missing, truncated, corrupt = sorted(packed.rglob("*.parquet"))[::6]
    missing.unlink()
    truncated.write_bytes(truncated.read_bytes()[:-9])
    flipped = bytearray(corrupt.read_bytes())
    flipped[100] ^= 1
    corrupt.write_bytes(flipped)
    raw = next((root / corrupt.parent.name).glob(f"{corrupt.stem}.*"))
    stat = raw.stat()
    raw.touch()
    result = pack_dataset(root, packed, tile=32)
    assert (result.packed, result.reused) == (3, 12), "a shard is reused only if its hash is that of the index"
    set_times(raw, stat)
    pack_dataset(root, packed, tile=32)
    assert content(packed) == before


@pytest.mark.parametrize("index", ["current and previous", "previous", "none"])
def test_packing_resumes_after_a_killed_run(index: str, cluster: None, root: Path, packed: Path) -> None:
    before = content(packed)
    if index == "previous":
        (packed / "index.json").rename(packed / PREVIOUS_INDEX)
    elif index == "current and previous":  # killed between writing the one and removing the other
        shutil.copy(packed / "index.json", packed / PREVIOUS_INDEX)
    else:
        (packed / "index.json").unlink()
    unfinished = sorted((packed / "short").iterdir())[:2]
    for path in unfinished:
        path.rename(path.with_name(f".{path.name}.0123.partial"))
    (packed / ".index.json.partial").touch()
    unlisted = shutil.copy(packed / "long" / os.listdir(packed / "long")[0], packed / "long" / "00099_00_10s.parquet")
    result = pack_dataset(root, packed, tile=32)
    assert (result.packed, result.reused) == (2, 13)
    assert content(packed) == before and not Path(unlisted).exists()
    assert pack_dataset(root, packed, tile=32).up_to_date


def test_a_shard_of_a_raw_file_that_was_changed_back_is_not_reused(cluster: None, root: Path, packed: Path) -> None:
    before, index = content(packed), read_index(packed)
    (packed / "index.json").rename(packed / PREVIOUS_INDEX)
    pair = index.pairs[0]
    shard = pair.short.shard
    record = index.shard_metadata(shard.path) | {"source_xxh128": "0" * 32}
    opened = Shards(str(packed), index.pairs, index.rendering)
    pixels = opened.planes(pair) + np.uint16(shard.offset)
    write_shard(packed / shard.path, pixels, shard.tile, record)
    assert (packed / shard.path).stat().st_size == shard.bytes
    assert pack_dataset(root, packed, tile=32).packed == 1
    assert content(packed) == before


@pytest.mark.parametrize("moment", ["6", "index"])
def test_a_killed_packing_is_completed_by_the_next(
    moment: str, cluster: None, shards: Path, root: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    program = tmp_path / "killed.py"
    program.write_text(KILLED_JOB)
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    command = [sys.executable, program, JOB, moment, "pack", root, "--out", out, "--tile", "32"]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert not (out / "index.json").exists()
    with pytest.raises(InputError, match="packing is unfinished"):
        open_shards(out, ["train"])
    result = pack_dataset(root, out, tile=32)
    assert result.packed + result.reused == 15
    assert result.reused == 15 if moment == "index" else result.reused >= int(moment)
    assert content(out) == content(shards)


def test_a_folder_that_another_run_is_packing_is_rejected(cluster: None, root: Path, packed: Path) -> None:
    brighten(next((root / "short").iterdir()))
    with open(packed / LOCK, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match=f"{packed} is being packed by another run"):
            pack_dataset(root, packed, tile=32)
    assert pack_dataset(root, packed, tile=32).packed == 1


def test_a_full_disk_is_a_one_line_error_and_the_next_run_resumes(
    cluster: None, shards: Path, root: Path, full_disk: Path
) -> None:
    out = full_disk / "out"
    with pytest.raises(InputError) as error:
        pack_dataset(root, out, tile=32)
    message = str(error.value)
    assert f"{out} cannot be written to: No space left on device, after " in message
    assert "run this again to resume" in message and "\n" not in message
    assert not (out / "index.json").exists() and not list(out.rglob("*.partial"))
    finished = len(list(out.rglob("*.parquet")))
    assert finished < 15
    subprocess.run(["mount", "-o", "remount,size=16m", full_disk], check=True)
    result = pack_dataset(root, out, tile=32)
    assert result.packed + result.reused == 15 and result.reused >= finished, "a task may have ended after the error"
    assert content(out) == content(shards)
