"""Broken shards are found, named, and packed again as they were."""

import json
import re
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lsid_ray.data.shards import LOCK, UNFINISHED, read_index
from lsid_ray.data.verify import verify_folder
from lsid_ray.errors import InputError

JOB = Path(__file__).parent.parent / "jobs" / "pack.py"
Job = Callable[..., tuple[int, str, str]]


@pytest.fixture
def root(data_root: Path, tmp_path: Path) -> Path:
    """A copy of the raw files, times included."""
    return shutil.copytree(data_root, tmp_path / "set")


@pytest.fixture
def packed(shards: Path, tmp_path: Path) -> Path:
    """Their shards, whole."""
    return shutil.copytree(shards, tmp_path / "set-shards")


@pytest.fixture
def job(cluster: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Job:
    """Runs jobs/pack.py in this process: exit code, standard output, standard error."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [str(JOB), *map(str, arguments)])
        code = 0
        try:
            runpy.run_path(str(JOB), run_name="__main__")
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return run


def content(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != LOCK]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def damage(packed: Path) -> dict[str, str]:
    """One of every damage; what is to be said of each."""
    flipped, cut, gone, one, other = sorted(packed.glob("short/*.parquet"))[:5]
    broken = bytearray(flipped.read_bytes())
    broken[len(broken) // 2] ^= 1
    flipped.write_bytes(broken)
    cut.write_bytes(cut.read_bytes()[:-1])
    gone.unlink()
    swapped = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(swapped)
    stray = packed / "long" / "00099_00_10s.parquet"
    shutil.copy(next((packed / "long").glob("1*")), stray)
    partial = packed / "long" / ".00001_00_10s.parquet.0123.partial"
    partial.touch()
    size = r"has \d+ bytes, \d+ by the index"
    reasons = {
        flipped: r"its bytes are not those of the index \(xxh128\)",
        cut: size,
        gone: "is missing",
        one: size,
        other: size,
        stray: "a stray.*",
        partial: "a stray.*",
    }
    return {str(path.relative_to(packed)): reason for path, reason in reasons.items()}


def found(said: str, what: str) -> dict[str, str]:
    return dict(line.removeprefix(f"{what} ").split(": ", 1) for line in said.splitlines() if line.startswith(what))


def test_shards_as_they_were_packed_are_whole(cluster: None, shards: Path) -> None:
    calls = []
    assert verify_folder(shards, lambda done, total: calls.append((done, total))) == []
    assert calls == [(done, 15) for done in range(16)]


def test_every_damage_is_named_and_repaired_to_the_byte(job: Job, root: Path, packed: Path) -> None:
    before = content(packed)
    expected = damage(packed)
    code, said, error = job("verify", packed)
    assert (code, error) == (1, "incomplete: 7 files were broken\n")
    reasons = found(said, "broken")
    assert set(reasons) == set(expected)
    for path, reason in reasons.items():
        assert re.fullmatch(expected[path], reason), (path, reason)
    assert said.splitlines()[-1].endswith("not whole")
    times = {path: path.stat().st_mtime_ns for path in packed.rglob("*.parquet")}

    code, said, error = job("repair", root)
    assert (code, error) == (0, "") and set(found(said, "was broken")) == set(expected)
    assert "repairing: 5/5 files" in said and said.splitlines()[-1] == f"{packed}: whole"
    assert content(packed) == before
    again = [path for path in packed.rglob("*.parquet") if path.stat().st_mtime_ns != times.get(path)]
    assert {str(path.relative_to(packed)) for path in again} == {path for path in expected if path.startswith("short")}
    assert job("repair", root)[:2] == (0, f"{packed}: whole\n")
    code, said, _ = job("verify", packed)
    assert code == 0 and said.splitlines()[-1] == f"{read_index(packed).summary}: whole"
    assert read_index(packed).summary.startswith("15 shards, 135 tiles, 0.00")


def test_a_stray_that_is_no_shard_is_told_and_left_alone(job: Job, root: Path, packed: Path) -> None:
    (packed / "notes.txt").write_text("mine")
    for command in (("verify", packed), ("repair", root)):
        code, said, _ = job(*command)
        assert code == 1 and found(said, "broken") == {"notes.txt": "a stray: the index does not name it"}
    assert (packed / "notes.txt").read_text() == "mine" and verify_folder(packed) != []


def test_what_cannot_be_repaired_is_named(job: Job, root: Path, packed: Path) -> None:
    victim = next((packed / "short").glob("0*"))
    victim.unlink()
    raw = root / "short" / f"{victim.stem}.dng"
    whole = raw.read_bytes()
    raw.write_bytes(whole[:3000])
    code, said, error = job("repair", root)
    assert code == 1 and error == "incomplete: 1 files were broken\n"
    assert "truncated" in found(said, "broken")[f"short/{raw.name}"]
    raw.unlink()
    code, _, error = job("repair", root)
    assert code == 2 and f"lacks 1 of the raw files that {packed} was packed from, short/{raw.name} first" in error
    assert len(list(packed.glob("*/*.parquet"))) == 14, "nothing was removed"


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda index: index.update(tile=33), "what it says of itself is not what the index says"),
        (lambda index: index["rendering"].update(libraw="0.1"), "what it says of itself is not what the index says"),
        (lambda index: next(iter(index["sources"].values())).update(xxh128="0" * 32), "what it says of itself"),
    ],
)
def test_an_index_that_says_other_than_the_shards_is_found(change, reason: str, job: Job, packed: Path) -> None:
    index = json.loads((packed / "index.json").read_text())
    change(index)
    (packed / "index.json").write_text(json.dumps(index))
    broken = verify_folder(packed)
    assert broken and all(reason in why for _, why in broken)


def test_an_unfinished_folder_is_not_verified_but_told(job: Job, root: Path, packed: Path) -> None:
    (packed / "index.json").rename(packed / UNFINISHED)
    for command in (("verify", packed), ("repair", root)):
        code, _, error = job(*command)
        assert code == 2 and "its packing is unfinished: run jobs/pack.py pack" in error and error.count("\n") == 1
    code, said, _ = job("pack", root, "--tile", "32")
    assert code == 0 and said.splitlines()[-1] == f"10 pairs in {packed} (0 files packed, 15 kept)"
    assert job("pack", root, "--tile", "32")[1] == f"10 pairs in {packed} (nothing to do)\n"
    for folder in (packed / "nothing", root):
        with pytest.raises(InputError, match=r"holds no index\.json: expected shards"):
            verify_folder(folder)
