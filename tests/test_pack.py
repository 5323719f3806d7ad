"""Packing over the Ray cluster, on real raw files."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lsid_ray.data import pack as packing
from lsid_ray.data.catalog import read_catalog
from lsid_ray.data.pack import pack_folder
from lsid_ray.data.shards import open_shards, read_index
from lsid_ray.data.tiles import file_xxh128, read_record
from lsid_ray.errors import InputError
from lsid_ray.raw.develop import plain_rendering, reference_rendering
from lsid_ray.raw.dng import write_dng
from lsid_ray.raw.frame import read_raw
from lsid_ray.raw.mosaic import pack


@pytest.fixture
def copied(data_root: Path, tmp_path: Path) -> Path:
    return shutil.copytree(data_root, tmp_path / "copied")


def test_every_pair_is_packed_into_its_split(shards: Path, data_root: Path) -> None:
    pairs = open_shards(shards, ["train", "validation", "test"]).pairs
    catalog = read_catalog(data_root)
    assert sorted(pair.name for pair in pairs) == sorted(pair.name for pair in catalog.pairs)
    assert {pair.name: pair.split for pair in pairs} == {pair.name: pair.split for pair in catalog.pairs}
    assert sorted({round(pair.ratio) for pair in pairs}) == [100, 300]


def test_shards_hold_the_raw_files_pixels_and_metadata_exactly(shards: Path, data_root: Path) -> None:
    opened = open_shards(shards, ["test"])
    for pair in opened.pairs:
        frame = read_raw(data_root / "short" / pair.short.shard.source)
        again = pair.short.raw_frame(opened.planes(pair))
        np.testing.assert_array_equal(opened.planes(pair), pack(frame.mosaic, frame.cfa))
        np.testing.assert_array_equal(again.mosaic, frame.mosaic)
        np.testing.assert_array_equal(
            opened.target(pair).transpose(1, 2, 0), reference_rendering(data_root / "long" / pair.long.source)
        )
        np.testing.assert_array_equal(plain_rendering(again, pair.ratio), plain_rendering(frame, pair.ratio))
        for name in ("cfa", "black", "white", "white_balance", "color_matrix", "orientation", "iso", "exposure_s"):
            assert getattr(again, name) == getattr(frame, name), name


def test_the_index_has_each_shards_size_and_hash(shards: Path) -> None:
    index = read_index(shards)
    on_disk = {str(path.relative_to(shards)) for path in shards.rglob("*") if path.is_file()}
    assert on_disk == {*index.frames, "index.json", ".lock"}
    assert {file.path for pair in index.pairs for file in (pair.short.shard, pair.long)} == set(index.frames)
    for path, frame in index.frames.items():
        assert (shards / path).stat().st_size == frame.shard.bytes
        assert file_xxh128(shards / path) == frame.shard.xxh128
    assert index.rendering["use_camera_wb"] is True


def test_the_index_has_each_raw_files_size_time_and_hash(shards: Path, data_root: Path) -> None:
    index = read_index(shards)
    assert set(index.sources) == {str(path.relative_to(data_root)) for path in data_root.glob("*/*.dng")}
    for name, source in index.sources.items():
        stat = (data_root / name).stat()
        assert (source.bytes, source.mtime_ns) == (stat.st_size, stat.st_mtime_ns)
        assert source.xxh128 == file_xxh128(data_root / name) and source.reason == ""
        assert index.frames[source.shard].shard.source == Path(name).name


def test_a_shard_says_of_itself_what_the_index_says(shards: Path) -> None:
    index = read_index(shards)
    for path in index.frames:
        assert read_record(shards / path) == index.record(path)


def test_packing_twice_gives_the_same_shards(shards: Path, data_root: Path, tmp_path: Path) -> None:
    pack_folder(data_root, tmp_path / "again", tile=32)
    assert (tmp_path / "again" / "index.json").read_text() == (shards / "index.json").read_text()


def test_a_second_packing_has_nothing_to_do(shards: Path, data_root: Path) -> None:
    before = (shards / "index.json").stat().st_mtime_ns
    assert pack_folder(data_root, shards, tile=32).already
    assert (shards / "index.json").stat().st_mtime_ns == before


def test_shards_of_other_files_or_options_are_refused(
    shards: Path, data_root: Path, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tile, words in ((64, "packed from other files or in another way: in tiles of 32, not 64"), (0, "--tile is 0")):
        with pytest.raises(InputError, match=words):
            pack_folder(data_root, shards, tile=tile)
    unfinished = shutil.copytree(shards, tmp_path / "unfinished")
    (unfinished / "index.json").unlink()
    for path in copied.glob("*/*.dng"):
        path.write_bytes(path.read_bytes() + b"more")
    for destination in (shards, unfinished):
        with pytest.raises(InputError, match=f"packed from other files .* expected those of {copied}"):
            pack_folder(copied, destination, tile=32)
    monkeypatch.setattr(packing, "rendering_record", lambda: {"libraw": "0.1"})
    with pytest.raises(InputError, match="with another rendering"):
        pack_folder(data_root, shards, tile=32)


def test_shards_of_another_version_are_refused(shards: Path, data_root: Path, tmp_path: Path) -> None:
    old = shutil.copytree(shards, tmp_path / "old")
    (old / "index.json").write_text((old / "index.json").read_text().replace('"version": 5', '"version": 4'))
    with pytest.raises(InputError, match=r"of version 4, this program reads 5.*delete it to pack again"):
        pack_folder(data_root, old, tile=32)


def test_a_broken_file_is_named_and_the_others_go_on(cluster: None, copied: Path, tmp_path: Path) -> None:
    victim, jpeg = sorted((copied / "short").glob("0*"))[:2]
    victim.write_bytes(victim.read_bytes()[:5000])
    jpeg.write_bytes(b"\xff\xd8\xff\xe0" + bytes(1000))
    orphan = next((copied / "long").glob("2*"))
    orphan.unlink()
    total = len(read_catalog(copied).pairs)
    calls = []
    result = pack_folder(copied, tmp_path / "out", tile=32, progress=lambda done, total: calls.append((done, total)))
    failures = dict(result.failures)
    assert {f"short/{victim.name}", f"short/{jpeg.name}"} < set(failures)
    assert any(name.startswith("short/2") for name in failures), "the short without a long is named too"
    assert result.pairs == total - 2
    assert calls[0][0] == 0 and calls[-1][0] == calls[-1][1]
    names = {pair.name for pair in read_index(tmp_path / "out").pairs}
    assert victim.stem not in names
    again = pack_folder(copied, tmp_path / "out", tile=32)
    assert again.already and again.failures == result.failures, "what was left out stays named"


def test_a_long_of_another_size_leaves_its_pairs_out(cluster: None, copied: Path, tmp_path: Path) -> None:
    long = next((copied / "long").glob("1*"))
    frame = read_raw(long)
    write_dng(long, replace(frame, mosaic=frame.mosaic[:-2]))
    result = pack_folder(copied, tmp_path / "out", tile=32)
    assert all("expected one size" in reason for _, reason in result.failures) and result.failures


def test_no_index_is_written_when_nothing_can_be_packed(cluster: None, copied: Path, tmp_path: Path) -> None:
    for path in (copied / "long").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"none of its .* pairs could be packed"):
        pack_folder(copied, tmp_path / "out")
    with pytest.raises(InputError, match=r"index\.json"):
        open_shards(tmp_path / "out", ["train"])


def test_misaligned_test_scenes_are_packed_but_marked(cluster: None, copied: Path, tmp_path: Path) -> None:
    for path in [*(copied / "short").glob("1*"), *(copied / "long").glob("1*")]:
        path.rename(path.with_name("10034" + path.name[5:]))
    pack_folder(copied, tmp_path / "out", tile=32)
    pairs = read_index(tmp_path / "out").pairs
    assert {pair.misaligned for pair in pairs if pair.split == "test"} == {True}
    assert {pair.misaligned for pair in pairs if pair.split != "test"} == {False}


def test_what_is_no_file_is_named_and_folders_may_have_any_name(
    cluster: None, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = shutil.copytree(data_root, tmp_path / "Nächte im Wald")
    scene = next((root / "short").glob("0*")).name[:5]
    (root / "short" / f"{scene}_07_0.1s.dng").mkdir()
    loop = root / "short" / f"{scene}_08_0.1s.dng"
    loop.symlink_to(loop)
    gone = next((root / "short").glob("2*"))
    listed = read_catalog(root)
    monkeypatch.setattr(packing, "read_catalog", lambda root: listed)
    gone.unlink()
    result = pack_folder(root, tmp_path / "Späne und Splitter", tile=32)
    assert dict(result.failures) == {
        f"short/{scene}_07_0.1s.dng": "a folder; expected a raw file",
        f"short/{loop.name}": "a link that leads nowhere; expected a raw file",
        f"short/{gone.name}": "it has gone since its folder was listed",
    }
    assert result.pairs == len(listed.pairs) - 1
    assert open_shards(tmp_path / "Späne und Splitter", ["train"]).pairs


def test_a_file_without_permission_is_named(copied: Path, tmp_path: Path, unreadable) -> None:
    path = unreadable(next((copied / "short").iterdir()))
    job = packing.Job(f"short/{path.name}", str(path), None, "", True)
    outcome = packing.pack_file(job, str(tmp_path), 32)
    assert (outcome.reason, outcome.source, outcome.full) == ("Permission denied", None, False)


def test_one_pair_is_enough(cluster: None, copied: Path, tmp_path: Path) -> None:
    kept = next((copied / "short").glob("0*"))
    for path in copied.glob("*/*.dng"):
        if path != kept and (path.parent.name, path.name[:5]) != ("long", kept.name[:5]):
            path.unlink()
    result = pack_folder(copied, tmp_path / "out", tile=32)
    assert (result.pairs, result.packed, result.kept, result.failures) == (1, 2, 0, ())
    assert len(open_shards(tmp_path / "out", ["train"]).pairs) == 1


def test_a_long_is_never_left_to_the_end(monkeypatch, data_root: Path, tmp_path: Path) -> None:
    given = []

    def stopped(work, jobs, *arguments):
        given.extend(jobs)
        raise InputError("stopped")

    monkeypatch.setattr(packing, "over_ray", stopped)
    with pytest.raises(InputError, match="stopped"):
        pack_folder(data_root, tmp_path / "out", tile=32)
    kinds = [job.name.partition("/")[0] for job in given]
    assert (kinds.count("long"), kinds.count("short")) == (5, 10)
    assert kinds[-3:] == ["short"] * 3 and "short" in kinds[:3] and "long" in kinds[6:]
