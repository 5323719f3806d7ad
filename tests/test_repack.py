"""Packing again: nothing, what changed, and what a killed or hindered run left."""

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
from lsid_ray.data.pack import pack_folder
from lsid_ray.data.shards import LOCK, UNFINISHED, Shards, open_shards, read_index
from lsid_ray.data.tiles import write_shard
from lsid_ray.errors import InputError
from lsid_ray.raw.dng import write_dng
from lsid_ray.raw.frame import read_raw

JOB = Path(__file__).parent.parent / "jobs" / "pack.py"
# Runs the job and kills it after so many files, or before the index is written.
KILLED = """
import os, runpy, signal, sys
from lsid_ray.data import pack, shards

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def some(*arguments):
    for done, result in enumerate(over_ray(*arguments), start=1):
        yield result
        if str(done) == moment:
            die()

_, job, moment, *options = sys.argv
over_ray, pack.over_ray, shards.write_index = pack.over_ray, some, die
sys.argv = [job, *options]
runpy.run_path(job, run_name="__main__")
"""


@pytest.fixture
def root(data_root: Path, tmp_path: Path) -> Path:
    """A copy of the raw files, times included."""
    return shutil.copytree(data_root, tmp_path / "set")


@pytest.fixture
def packed(shards: Path, tmp_path: Path) -> Path:
    """Their shards, whole."""
    return shutil.copytree(shards, tmp_path / "set-shards")


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder of shards but the lock."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != LOCK]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def set_times(path: Path, like: os.stat_result) -> None:
    os.utime(path, ns=(like.st_atime_ns, like.st_mtime_ns))


def brighten(path: Path) -> None:
    """Another frame of the same size."""
    frame = read_raw(path)
    write_dng(path, replace(frame, mosaic=frame.mosaic + 1))


def test_a_packing_with_nothing_to_do_reads_no_raw_file_and_writes_nothing(root: Path, packed: Path) -> None:
    for path in root.glob("*/*.dng"):
        before = path.stat()
        path.write_bytes(bytes(before.st_size))
        set_times(path, before)
    times = {path: path.stat().st_mtime_ns for path in packed.rglob("*")}
    began = time.monotonic()
    result = pack_folder(root, packed, tile=32)
    assert result.already and (result.pairs, result.packed, result.kept, result.removed) == (10, 0, 15, ())
    assert result.summary == "nothing to do"
    assert {path: path.stat().st_mtime_ns for path in packed.rglob("*")} == times
    assert time.monotonic() - began < 5


def test_files_whose_time_alone_changed_are_not_decoded_again(cluster: None, root: Path, packed: Path) -> None:
    touched = sorted(root.glob("*/*.dng"))[::4]
    shard_times = {path: path.stat().st_mtime_ns for path in packed.rglob("*.parquet")}
    for path in touched:
        path.touch()
    result = pack_folder(root, packed, tile=32)
    assert not result.already and (result.packed, result.kept) == (0, 15)
    assert {path: path.stat().st_mtime_ns for path in packed.rglob("*.parquet")} == shard_times
    index = read_index(packed)
    assert all(index.sources[str(path.relative_to(root))].mtime_ns == path.stat().st_mtime_ns for path in touched)
    assert pack_folder(root, packed, tile=32).already


def test_a_copy_that_lost_all_its_times_is_known_by_its_bytes(cluster: None, root: Path, packed: Path) -> None:
    for path in root.glob("*/*.dng"):
        path.touch()
    assert pack_folder(root, packed, tile=32).packed == 0
    assert pack_folder(root, packed, tile=32).already


def test_a_changed_file_is_packed_again_alone(cluster: None, root: Path, packed: Path, tmp_path: Path) -> None:
    changed = sorted((root / "short").iterdir())[3]
    times = {path: path.stat().st_mtime_ns for path in packed.rglob("*.parquet")}
    brighten(changed)
    seen = []

    def progress(done: int, total: int) -> None:
        seen.append((done, total))
        assert not (packed / "index.json").exists(), "no index describes what is being changed"
        with pytest.raises(InputError, match="packing is unfinished"):
            open_shards(packed, ["train"])

    result = pack_folder(root, packed, tile=32, progress=progress)
    assert (result.packed, result.kept, seen) == (1, 14, [(0, 1), (1, 1)])
    now = {path: path.stat().st_mtime_ns for path in packed.rglob("*.parquet")}
    assert [path.stem for path in now if now[path] != times[path]] == [changed.stem]
    pack_folder(root, tmp_path / "fresh", tile=32)
    assert content(packed) == content(tmp_path / "fresh")


def test_new_files_are_packed_alone(cluster: None, root: Path, packed: Path, tmp_path: Path) -> None:
    short = next((root / "short").glob("0*"))
    shutil.copy2(short, short.with_name(short.name.replace("_00_", "_01_")))
    (root / "short" / "notes.dng").touch()
    result = pack_folder(root, packed, tile=32)
    assert (result.pairs, result.packed, result.kept) == (11, 1, 15)
    assert [name for name, _ in result.failures] == ["short/notes.dng"]
    (root / "short" / "notes.dng").rename(root / "short" / "more.dng")
    again = pack_folder(root, packed, tile=32)
    assert not again.already and again.packed == 0, "what is left out is named anew"
    assert [name for name, _ in again.failures] == ["short/more.dng"]
    pack_folder(root, tmp_path / "fresh", tile=32)
    assert content(packed) == content(tmp_path / "fresh")


def test_shards_of_files_that_are_gone_are_removed_and_told(cluster: None, root: Path, packed: Path) -> None:
    short = sorted((root / "short").glob("0*"))[0]
    long = next((root / "long").glob("2*"))
    orphans = list((root / "short").glob(f"{long.name[:5]}*"))
    short.unlink()
    long.unlink()
    result = pack_folder(root, packed, tile=32)
    gone = {f"short/{path.name}" for path in (short, *orphans)} | {f"long/{long.name}"}
    assert set(result.removed) == gone and (result.packed, result.kept) == (0, 15 - len(gone))
    assert "4 removed: " in result.summary
    assert not {f"{Path(name).with_suffix('')}.parquet" for name in gone} & set(content(packed))
    assert {name for name, _ in result.failures} == {f"short/{path.name}" for path in orphans}
    assert pack_folder(root, packed, tile=32).already


def test_a_broken_file_is_tried_again_only_when_it_changes(cluster: None, root: Path, packed: Path) -> None:
    victim = next((root / "short").glob("0*"))
    whole, before = victim.read_bytes(), victim.stat()
    victim.write_bytes(whole[:5000])
    result = pack_folder(root, packed, tile=32)
    assert [name for name, _ in result.failures] == [f"short/{victim.name}"] and result.pairs == 9
    assert f"short/{victim.stem}.parquet" not in content(packed)
    at = victim.stat()
    victim.write_bytes(whole[5000:10000])
    set_times(victim, at)
    again = pack_folder(root, packed, tile=32)
    assert again.already and again.failures == result.failures
    victim.write_bytes(whole)
    set_times(victim, before)
    assert pack_folder(root, packed, tile=32).packed == 1
    assert not read_index(packed).failed


def test_a_broken_file_that_another_program_left_out_is_tried_again(
    cluster: None, root: Path, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    next((root / "short").glob("0*")).write_bytes(b"not a raw file")
    pack_folder(root, packed, tile=32)
    monkeypatch.setattr(packing, "__version__", "next")
    seen = []
    result = pack_folder(root, packed, tile=32, progress=lambda done, total: seen.append((done, total)))
    assert len(result.failures) == 1 and seen == [(0, 1), (1, 1)]
    assert pack_folder(root, packed, tile=32).already


def test_a_shard_that_is_gone_or_cut_is_packed_again(cluster: None, root: Path, packed: Path) -> None:
    before = content(packed)
    missing, cut, touched = sorted(packed.rglob("*.parquet"))[::6]
    missing.unlink()
    cut.write_bytes(cut.read_bytes()[:-9])
    broken = bytearray(touched.read_bytes())
    broken[100] ^= 1
    touched.write_bytes(broken)
    raw = next((root / touched.parent.name).glob(f"{touched.stem}.*"))
    at = raw.stat()
    raw.touch()
    result = pack_folder(root, packed, tile=32)
    assert (result.packed, result.kept) == (3, 12), "a shard is taken over only if it has the hash that it had"
    set_times(raw, at)
    pack_folder(root, packed, tile=32)
    assert content(packed) == before


@pytest.mark.parametrize("index", ["at its old name", "of the run before", "none"])
def test_what_a_killed_run_left_is_taken_up(index: str, cluster: None, root: Path, packed: Path) -> None:
    before = content(packed)
    if index == "of the run before":
        (packed / "index.json").rename(packed / UNFINISHED)
    elif index == "at its old name":  # killed between writing the new and removing the old
        shutil.copy(packed / "index.json", packed / UNFINISHED)
    else:
        (packed / "index.json").unlink()
    lost = sorted((packed / "short").iterdir())[:2]
    for path in lost:
        path.rename(path.with_name(f".{path.name}.0123.partial"))
    (packed / ".index.json.partial").touch()
    stray = shutil.copy(packed / "long" / os.listdir(packed / "long")[0], packed / "long" / "00099_00_10s.parquet")
    result = pack_folder(root, packed, tile=32)
    assert (result.packed, result.kept) == (2, 13)
    assert content(packed) == before and not Path(stray).exists()
    assert pack_folder(root, packed, tile=32).already


def test_a_shard_of_a_file_that_was_changed_back_is_not_taken_over(cluster: None, root: Path, packed: Path) -> None:
    before, index = content(packed), read_index(packed)
    (packed / "index.json").rename(packed / UNFINISHED)
    pair = index.pairs[0]
    shard = pair.short.shard
    other = index.record(shard.path) | {"source_xxh128": "0" * 32}
    opened = Shards(str(packed), index.pairs, index.rendering)
    pixels = opened.planes(pair) + np.uint16(shard.offset)
    write_shard(packed / shard.path, pixels, shard.tile, other)
    assert (packed / shard.path).stat().st_size == shard.bytes
    assert pack_folder(root, packed, tile=32).packed == 1
    assert content(packed) == before


@pytest.mark.parametrize("moment", ["1", "6", "index"])
def test_a_packing_that_is_killed_is_completed_by_the_next(
    moment: str, cluster: None, shards: Path, root: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    program = tmp_path / "killed.py"
    program.write_text(KILLED)
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    command = [sys.executable, program, JOB, moment, "pack", root, "--out", out, "--tile", "32"]
    driver = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert driver.returncode == -signal.SIGKILL, driver.stderr
    assert not (out / "index.json").exists()
    with pytest.raises(InputError, match="packing is unfinished"):
        open_shards(out, ["train"])
    result = pack_folder(root, out, tile=32)
    assert result.packed + result.kept == 15
    assert result.kept == 15 if moment == "index" else result.kept >= int(moment)
    assert content(out) == content(shards)


def test_two_packings_of_one_folder_at_once_are_refused(cluster: None, root: Path, packed: Path) -> None:
    brighten(next((root / "short").iterdir()))
    with open(packed / LOCK, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match=f"{packed} is being packed by another run"):
            pack_folder(root, packed, tile=32)
    assert pack_folder(root, packed, tile=32).packed == 1


def test_a_full_disk_stops_packing_in_one_line_and_the_next_run_goes_on(
    cluster: None, shards: Path, root: Path, full_disk: Path
) -> None:
    out = full_disk / "out"
    with pytest.raises(InputError) as caught:
        pack_folder(root, out, tile=32)
    said = str(caught.value)
    assert f"{out} cannot be written to: No space left on device, after " in said
    assert "running this again goes on" in said and "\n" not in said
    assert not (out / "index.json").exists() and not list(out.rglob("*.partial"))
    there = len(list(out.rglob("*.parquet")))
    assert there < 15
    subprocess.run(["mount", "-o", "remount,size=16m", full_disk], check=True)
    result = pack_folder(root, out, tile=32)
    assert (result.packed, result.kept) == (15 - there, there)
    assert content(out) == content(shards)


def test_a_destination_that_cannot_be_made_is_named(cluster: None, root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file cannot be written to: File exists"):
        pack_folder(root, tmp_path / "file", tile=32)


def test_one_may_only_read_shards_that_are_up_to_date(root: Path, packed: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root to become another user")
    for path in (packed, *packed.parents):
        if path != Path("/") and path.owner() == "root":
            path.chmod(path.stat().st_mode | 0o055)
    for changed in (False, True):
        if changed:
            next((root / "short").iterdir()).touch()
        os.seteuid(65534)
        try:
            if changed:
                with pytest.raises(InputError, match="cannot be written to: Permission denied"):
                    pack_folder(root, packed, tile=32)
            else:
                assert pack_folder(root, packed, tile=32).already
        finally:
            os.seteuid(0)
