"""Broken shards are detected, reported, and restored byte for byte."""

import json
import re
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from test_shard import noise

from lsid_ray.data.index import LOCK, PREVIOUS_INDEX, read_index
from lsid_ray.data.shard import Shard, write_shard
from lsid_ray.data.verify import check_shard, verify_shards
from lsid_ray.errors import InputError

JOB = Path(__file__).parent.parent / "jobs" / "pack.py"
Job = Callable[..., tuple[int, str, str]]


@pytest.fixture
def root(data_root: Path, tmp_path: Path) -> Path:
    """A copy of the raw files with their modification times."""
    return shutil.copytree(data_root, tmp_path / "set")


@pytest.fixture
def packed(shards: Path, tmp_path: Path) -> Path:
    """A copy of their shards."""
    return shutil.copytree(shards, tmp_path / "set-shards")


@pytest.fixture
def job(cluster: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Job:
    """A function that runs jobs/pack.py in this process and returns exit code, standard output, standard error."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [str(JOB), *map(str, arguments)])
        code = 0
        try:
            runpy.run_path(str(JOB), run_name="__main__")
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    return run


def content(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != LOCK]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def damage(packed: Path) -> dict[str, str]:
    """Damage a folder of shards in every way; returns path -> pattern of the expected reason."""
    corrupt, truncated, deleted, first, second = sorted(packed.glob("short/*.parquet"))[:5]
    flipped = bytearray(corrupt.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    corrupt.write_bytes(flipped)
    truncated.write_bytes(truncated.read_bytes()[:-1])
    deleted.unlink()
    swapped = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(swapped)
    unlisted = packed / "long" / "00099_00_10s.parquet"
    shutil.copy(next((packed / "long").glob("1*")), unlisted)
    partial = packed / "long" / ".00001_00_10s.parquet.0123.partial"
    partial.touch()
    size = r"has \d+ bytes, expected \d+"
    reasons = {
        corrupt: r"its content is not what the index says \(xxh128 \w{32}, expected \w{32}\)",
        truncated: size,
        deleted: "is missing",
        first: size,
        second: size,
        unlisted: "unexpected file.*",
        partial: "unexpected file.*",
    }
    return {str(path.relative_to(packed)): reason for path, reason in reasons.items()}


def reported(output: str, status: str) -> dict[str, str]:
    """Path -> reason of the printed lines "STATUS PATH: REASON"."""
    lines = [line for line in output.splitlines() if line.startswith(status)]
    return dict(line.removeprefix(f"{status} ").split(": ", 1) for line in lines)


def test_unchanged_shards_are_intact(cluster: None, shards: Path) -> None:
    calls = []
    assert verify_shards(shards, lambda done, total: calls.append((done, total))) == []
    assert calls == [(done, 15) for done in range(16)]


def test_every_kind_of_damage_is_reported_and_repaired_byte_for_byte(job: Job, root: Path, packed: Path) -> None:
    before = content(packed)
    expected = damage(packed)
    code, output, error = job("verify", packed)
    assert (code, error) == (1, "incomplete: 7 files were broken\n")
    reasons = reported(output, "broken")
    assert set(reasons) == set(expected)
    for path, reason in reasons.items():
        assert re.fullmatch(expected[path], reason), (path, reason)
    assert output.splitlines()[-1].endswith("not intact")
    times = {path: path.stat().st_mtime_ns for path in packed.rglob("*.parquet")}

    code, output, error = job("repair", root)
    assert (code, error) == (0, "") and set(reported(output, "was broken")) == set(expected)
    assert "repairing: 5/5 files" in output and output.splitlines()[-1] == f"{packed}: intact"
    assert content(packed) == before
    rewritten = {path for path in packed.rglob("*.parquet") if path.stat().st_mtime_ns != times.get(path)}
    assert rewritten == {packed / path for path in expected if path.startswith("short")}
    assert job("repair", root)[:2] == (0, f"{packed}: intact\n")
    code, output, _ = job("verify", packed)
    assert code == 0 and output.splitlines()[-1] == f"{read_index(packed).summary}: intact"
    assert read_index(packed).summary.startswith("15 shards, 135 tiles, 0.00")


def test_a_file_that_is_not_a_shard_is_reported_and_not_deleted(job: Job, root: Path, packed: Path) -> None:
    (packed / "notes.txt").write_text("mine")
    for command in (("verify", packed), ("repair", root)):
        code, output, _ = job(*command)
        assert code == 1 and reported(output, "broken") == {"notes.txt": "unexpected file: not in the index"}
    assert (packed / "notes.txt").read_text() == "mine" and verify_shards(packed) != []


def test_what_cannot_be_repaired_is_reported(job: Job, root: Path, packed: Path) -> None:
    shard = next((packed / "short").glob("0*"))
    shard.unlink()
    raw = root / "short" / f"{shard.stem}.dng"
    raw.write_bytes(raw.read_bytes()[:3000])
    code, output, error = job("repair", root)
    assert code == 1 and error == "incomplete: 1 files were broken\n"
    assert "truncated" in reported(output, "broken")[f"short/{raw.name}"]
    raw.unlink()
    code, _, error = job("repair", root)
    assert code == 2 and f"lacks 1 of the raw files that {packed} was packed from, such as short/{raw.name}: " in error
    assert len(list(packed.glob("*/*.parquet"))) == 14, "nothing was removed"


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda index: index.update(tile=33), "its metadata differs from the index"),
        (lambda index: index["rendering"].update(libraw="0.1"), "its metadata differs from the index"),
        (lambda index: next(iter(index["sources"].values())).update(xxh128="0" * 32), "its metadata differs"),
    ],
)
def test_an_index_that_contradicts_its_shards_is_detected(change, reason: str, job: Job, packed: Path) -> None:
    index = json.loads((packed / "index.json").read_text())
    change(index)
    (packed / "index.json").write_text(json.dumps(index))
    broken = verify_shards(packed)
    assert broken and all(reason in message for _, message in broken)


def test_verify_and_repair_reject_an_unfinished_folder(job: Job, root: Path, packed: Path) -> None:
    (packed / "index.json").rename(packed / PREVIOUS_INDEX)
    for command in (("verify", packed), ("repair", root)):
        code, _, error = job(*command)
        assert code == 2 and "packing is unfinished: run jobs/pack.py pack" in error and error.count("\n") == 1
    code, output, _ = job("pack", root, "--tile", "32")
    assert code == 0 and output.splitlines()[-1] == f"10 pairs in {packed} (0 files packed, 15 reused)"
    assert job("pack", root, "--tile", "32")[1] == f"10 pairs in {packed} (nothing to do)\n"
    for folder in (packed / "nothing", root):
        with pytest.raises(InputError, match=r"holds no index\.json: expected shards"):
            verify_shards(folder)


@pytest.mark.parametrize(
    "damage, reason",
    [
        (lambda pixels, tile: (pixels, 2 * tile), "has 4 tiles, expected 9"),
        (
            lambda pixels, tile: (pixels[:, :, :-1], tile),
            r"tile 2 has \[\[192\], \[0\]\] bytes, expected 128 pixels",
        ),
        (lambda pixels, tile: (pixels, tile), ""),
    ],
)
def test_a_shard_whose_tiles_differ_from_the_index_is_detected(damage, reason: str, tmp_path: Path):
    pixels = noise(4, 20, 20)
    size, digest = write_shard(tmp_path / "a.parquet", *damage(pixels, 8), {"a": 1})
    shard = Shard("a.parquet", "a.ARW", 123, size, digest, pixels.shape, 8)
    assert re.match(reason or "$", check_shard(tmp_path, shard, {"a": 1}))
    assert "its metadata differs" in check_shard(tmp_path, shard, {"a": 2})


def test_a_folder_in_place_of_a_shard_cannot_be_read(tmp_path: Path):
    (tmp_path / "a.parquet").mkdir()
    shard = Shard("a.parquet", "a.ARW", 1, (tmp_path / "a.parquet").stat().st_size, "", (1, 8, 8), 8)
    assert check_shard(tmp_path, shard, {}).startswith("cannot be read")
