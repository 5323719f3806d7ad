"""Packing over the Ray cluster, on real raw files."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lsid_ray.data import pack as packing
from lsid_ray.data import pack_plan
from lsid_ray.data.catalog import read_catalog
from lsid_ray.data.checksum import file_xxh128
from lsid_ray.data.convert import PackTask, pack_file
from lsid_ray.data.index import open_shards, read_index
from lsid_ray.data.pack import pack_dataset
from lsid_ray.data.shard import VERSION, read_metadata
from lsid_ray.errors import InputError
from lsid_ray.raw.dng import write_dng
from lsid_ray.raw.frame import read_raw
from lsid_ray.raw.mosaic import pack
from lsid_ray.raw.render import plain_rendering, reference_rendering, rendering_parameters


@pytest.fixture
def copied_root(data_root: Path, tmp_path: Path) -> Path:
    return shutil.copytree(data_root, tmp_path / "copied")


def test_every_pair_is_packed_into_its_split(shards: Path, data_root: Path) -> None:
    pairs = open_shards(shards, ["train", "validation", "test"]).pairs
    catalog = read_catalog(data_root)
    assert sorted(pair.name for pair in pairs) == sorted(pair.name for pair in catalog.pairs)
    assert {pair.name: pair.split for pair in pairs} == {pair.name: pair.split for pair in catalog.pairs}
    assert sorted({round(pair.ratio) for pair in pairs}) == [100, 300]


def test_shards_store_pixels_and_metadata_losslessly(shards: Path, data_root: Path) -> None:
    opened = open_shards(shards, ["test"])
    for pair in opened.pairs:
        frame = read_raw(data_root / "short" / pair.short.shard.source)
        unpacked = pair.short.raw_frame(opened.planes(pair))
        np.testing.assert_array_equal(opened.planes(pair), pack(frame.mosaic, frame.cfa))
        np.testing.assert_array_equal(unpacked.mosaic, frame.mosaic)
        np.testing.assert_array_equal(
            opened.target(pair).transpose(1, 2, 0), reference_rendering(data_root / "long" / pair.long.shard.source)
        )
        np.testing.assert_array_equal(plain_rendering(unpacked, pair.ratio), plain_rendering(frame, pair.ratio))
        for name in ("cfa", "black", "white", "white_balance", "color_matrix", "orientation", "iso", "exposure_s"):
            assert getattr(unpacked, name) == getattr(frame, name), name


def test_the_index_lists_the_size_and_hash_of_each_shard(shards: Path) -> None:
    index = read_index(shards)
    on_disk = {str(path.relative_to(shards)) for path in shards.rglob("*") if path.is_file()}
    assert on_disk == {*index.frames, "index.json", ".lock"}
    assert {file.path for pair in index.pairs for file in (pair.short.shard, pair.long.shard)} == set(index.frames)
    for path, frame in index.frames.items():
        assert (shards / path).stat().st_size == frame.shard.bytes
        assert file_xxh128(shards / path) == frame.shard.xxh128
    assert index.rendering["use_camera_wb"] is True


def test_the_index_lists_the_size_time_and_hash_of_each_raw_file(shards: Path, data_root: Path) -> None:
    index = read_index(shards)
    assert set(index.sources) == {str(path.relative_to(data_root)) for path in data_root.glob("*/*.dng")}
    for name, source in index.sources.items():
        stat = (data_root / name).stat()
        assert (source.bytes, source.mtime_ns) == (stat.st_size, stat.st_mtime_ns)
        assert source.xxh128 == file_xxh128(data_root / name) and source.reason == ""
        assert index.frames[source.shard].shard.source == Path(name).name


def test_the_metadata_of_a_shard_matches_the_index(shards: Path) -> None:
    index = read_index(shards)
    for path in index.frames:
        assert read_metadata(shards / path) == index.shard_metadata(path)


def test_packing_is_deterministic(shards: Path, data_root: Path, tmp_path: Path) -> None:
    pack_dataset(data_root, tmp_path / "again", tile=32)
    assert (tmp_path / "again" / "index.json").read_text() == (shards / "index.json").read_text()


def test_a_second_packing_has_nothing_to_do(shards: Path, data_root: Path) -> None:
    before = (shards / "index.json").stat().st_mtime_ns
    assert pack_dataset(data_root, shards, tile=32).up_to_date
    assert (shards / "index.json").stat().st_mtime_ns == before


def test_a_destination_packed_from_other_files_or_options_is_rejected(
    shards: Path, data_root: Path, copied_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tile, message in ((64, "packed from different data or options: in tiles of 32, not 64"), (0, "--tile is 0")):
        with pytest.raises(InputError, match=message):
            pack_dataset(data_root, shards, tile=tile)
    unfinished = shutil.copytree(shards, tmp_path / "unfinished")
    (unfinished / "index.json").unlink()
    for path in copied_root.glob("*/*.dng"):
        path.write_bytes(path.read_bytes() + b"more")
    for destination in (shards, unfinished):
        with pytest.raises(InputError, match=f"packed from different data .* expected shards of {copied_root}"):
            pack_dataset(copied_root, destination, tile=32)
    with pytest.raises(InputError, match=r"rendered with adjust_maximum_thr 0\.0, not 0\.75; choose another folder"):
        pack_dataset(data_root, shards, tile=32, sid_white=True)
    parameters = {**rendering_parameters(), "libraw": "0.1"}
    monkeypatch.setattr(pack_plan, "rendering_parameters", lambda sid_white: parameters)
    with pytest.raises(InputError, match=r"rendered with libraw [\d.]+, not 0\.1"):
        pack_dataset(data_root, shards, tile=32)


def test_shards_of_another_version_are_rejected(shards: Path, data_root: Path, tmp_path: Path) -> None:
    old = shutil.copytree(shards, tmp_path / "old")
    (old / "index.json").write_text((old / "index.json").read_text().replace(f'"version": {VERSION}', '"version": 5'))
    with pytest.raises(InputError, match=rf"has version 5, this program reads {VERSION}.*delete it to pack again"):
        pack_dataset(data_root, old, tile=32)


def test_a_broken_file_is_reported_and_the_others_are_packed(cluster: None, copied_root: Path, tmp_path: Path) -> None:
    truncated, jpeg = sorted((copied_root / "short").glob("0*"))[:2]
    truncated.write_bytes(truncated.read_bytes()[:5000])
    jpeg.write_bytes(b"\xff\xd8\xff\xe0" + bytes(1000))
    next((copied_root / "long").glob("2*")).unlink()
    total = len(read_catalog(copied_root).pairs)
    calls = []
    result = pack_dataset(copied_root, tmp_path / "out", tile=32, progress=lambda *counts: calls.append(counts))
    failures = dict(result.failures)
    assert {f"short/{truncated.name}", f"short/{jpeg.name}"} < set(failures)
    assert any(name.startswith("short/2") for name in failures), "a short without a long is reported too"
    assert result.pairs == total - 2
    assert calls[0][0] == 0 and calls[-1][0] == calls[-1][1]
    names = {pair.name for pair in read_index(tmp_path / "out").pairs}
    assert truncated.stem not in names
    again = pack_dataset(copied_root, tmp_path / "out", tile=32)
    assert again.up_to_date and again.failures == result.failures, "files left out before are still reported"


def test_pairs_whose_long_has_another_size_are_left_out(cluster: None, copied_root: Path, tmp_path: Path) -> None:
    long = next((copied_root / "long").glob("1*"))
    frame = read_raw(long)
    write_dng(long, replace(frame, mosaic=frame.mosaic[:-2]))
    result = pack_dataset(copied_root, tmp_path / "out", tile=32)
    assert all("expected one size" in reason for _, reason in result.failures) and result.failures


def test_no_index_is_written_if_nothing_can_be_packed(cluster: None, copied_root: Path, tmp_path: Path) -> None:
    for path in (copied_root / "long").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"none of its .* pairs could be packed"):
        pack_dataset(copied_root, tmp_path / "out")
    with pytest.raises(InputError, match=r"index\.json"):
        open_shards(tmp_path / "out", ["train"])


def test_misaligned_test_scenes_are_packed_and_flagged(cluster: None, copied_root: Path, tmp_path: Path) -> None:
    for path in [*(copied_root / "short").glob("1*"), *(copied_root / "long").glob("1*")]:
        path.rename(path.with_name("10034" + path.name[5:]))
    pack_dataset(copied_root, tmp_path / "out", tile=32)
    pairs = read_index(tmp_path / "out").pairs
    assert {pair.misaligned for pair in pairs if pair.split == "test"} == {True}
    assert {pair.misaligned for pair in pairs if pair.split != "test"} == {False}


def test_folders_links_and_deleted_files_are_reported_under_unicode_paths(
    cluster: None, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = shutil.copytree(data_root, tmp_path / "Nächte im Wald")
    scene = next((root / "short").glob("0*")).name[:5]
    (root / "short" / f"{scene}_07_0.1s.dng").mkdir()
    loop = root / "short" / f"{scene}_08_0.1s.dng"
    loop.symlink_to(loop)
    deleted = next((root / "short").glob("2*"))
    catalog = read_catalog(root)
    monkeypatch.setattr(pack_plan, "list_pairs", lambda root, lists: catalog)
    deleted.unlink()
    result = pack_dataset(root, tmp_path / "Späne und Splitter", tile=32)
    assert dict(result.failures) == {
        f"short/{scene}_07_0.1s.dng": "a folder; expected a raw file",
        f"short/{loop.name}": "a broken symlink; expected a raw file",
        f"short/{deleted.name}": "it has gone since its folder was listed",
    }
    assert result.pairs == len(catalog.pairs) - 1
    assert open_shards(tmp_path / "Späne und Splitter", ["train"]).pairs


def test_a_file_without_read_permission_is_reported(copied_root: Path, tmp_path: Path, unreadable) -> None:
    path = unreadable(next((copied_root / "short").iterdir()))
    task = PackTask(f"short/{path.name}", str(path), None, "", True)
    result = pack_file(task, str(tmp_path), 32)
    assert (result.reason, result.source, result.write_failed) == ("Permission denied", None, False)


def test_a_data_set_of_one_pair_is_packed(cluster: None, copied_root: Path, tmp_path: Path) -> None:
    short = next((copied_root / "short").glob("0*"))
    for path in copied_root.glob("*/*.dng"):
        if path != short and (path.parent.name, path.name[:5]) != ("long", short.name[:5]):
            path.unlink()
    result = pack_dataset(copied_root, tmp_path / "out", tile=32)
    assert (result.pairs, result.packed, result.reused, result.failures) == (1, 2, 0, ())
    assert len(open_shards(tmp_path / "out", ["train"]).pairs) == 1


def test_long_exposures_are_spread_over_the_first_three_quarters(
    cluster: None, monkeypatch, data_root: Path, tmp_path: Path
) -> None:
    submitted = []

    def stop(function, tasks, *arguments):
        submitted.extend(tasks)
        raise InputError("stopped")

    monkeypatch.setattr(packing, "parallel_map", stop)
    with pytest.raises(InputError, match="stopped"):
        pack_dataset(data_root, tmp_path / "out", tile=32)
    kinds = [task.name.partition("/")[0] for task in submitted]
    assert (kinds.count("long"), kinds.count("short")) == (5, 10)
    assert kinds[-3:] == ["short"] * 3 and "short" in kinds[:3] and "long" in kinds[6:]


def test_a_folder_with_sids_white_level_stays_so(cluster: None, copied_root: Path, tmp_path: Path):
    pack_dataset(copied_root, tmp_path / "out", tile=32, sid_white=True)
    (changed,) = [path for path in (copied_root / "long").iterdir() if path.name.startswith("1")]
    write_dng(changed, read_raw(changed))
    result = pack_dataset(copied_root, tmp_path / "out", tile=32)
    assert (result.packed, result.reused) == (1, 14)
    assert read_index(tmp_path / "out").rendering["adjust_maximum_thr"] == 0.75


def test_a_destination_that_cannot_be_created_is_reported(cluster: None, data_root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"folder of the shards .*file: no file can be created in .*: Not a directory"):
        pack_dataset(data_root, tmp_path / "file", tile=32)


def test_up_to_date_shards_need_no_write_permission(copied_root: Path, shards: Path, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root to become another user")
    root, packed = copied_root, shutil.copytree(shards, tmp_path / "packed")
    for path in (packed, *packed.parents):
        if path != Path("/") and path.owner() == "root":
            path.chmod(path.stat().st_mode | 0o055)
    for changed in (False, True):
        if changed:
            next((root / "short").iterdir()).touch()
        os.seteuid(65534)
        try:
            if changed:
                with pytest.raises(InputError, match=r"no file can be created in .*: Permission denied"):
                    pack_dataset(root, packed, tile=32)
            else:
                assert pack_dataset(root, packed, tile=32).up_to_date
        finally:
            os.seteuid(0)
