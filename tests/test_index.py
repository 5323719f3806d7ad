import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_shard import noise, write_pixels

from lsid_ray.data.index import (
    LOCK,
    PREVIOUS_INDEX,
    Index,
    PackedFrame,
    Pair,
    SourceFile,
    frame_from_metadata,
    metadata_of,
    open_shards,
    read_index,
    write_index,
)
from lsid_ray.data.shard import VERSION, black_offset, read_metadata, write_shard
from lsid_ray.errors import InputError
from lsid_ray.raw.frame import RawFrame
from lsid_ray.raw.mosaic import XTRANS, pack


def make_frame(cfa: str = "GBRG", height: int = 21, width: int = 30) -> RawFrame:
    return RawFrame(
        mosaic=noise(height, width),
        cfa=cfa,
        black=(500.0, 501.0, 502.0, 503.0),
        white=16383.0,
        white_balance=(2.1, 1.0, 1.6),
        color_matrix=((1.0, 0.1, 0.2), (0.3, 1.1, 0.4), (0.5, 0.6, 1.2)),
        orientation=3,
        camera="Sony ILCE-7SM2",
        iso=1600.0,
        exposure_s=0.04,
        source="10003_00_0.04s.ARW",
    )


def make_pair(folder: Path, split: str = "train", scene: int = 3) -> Pair:
    """A pair with its two shards written to `folder`."""
    frame = make_frame()
    name = f"{scene:05}_00_0.04s"
    shard = write_pixels(
        folder, f"short/{name}.parquet", pack(frame.mosaic, frame.cfa), tile=8, offset=black_offset(frame.black)
    )
    height, width = frame.mosaic.shape
    short = PackedFrame(shard=shard, height=height, width=width, **metadata_of(frame))
    long_shard = write_pixels(folder, f"long/{scene:05}_00_10s.parquet", noise(3, height, width), tile=16)
    return Pair(
        name=name,
        scene=f"{scene:05}",
        split=split,
        frame=0,
        ratio=250.0,
        misaligned=False,
        short=short,
        long=replace(short, shard=long_shard),
    )


def make_index(*pairs: Pair, **changes) -> Index:
    """An index with a frame and a raw file for each shard."""
    frames = {frame.shard.path: frame for pair in pairs for frame in (pair.short, pair.long)}
    sources = {
        f"{Path(path).parent}/{frame.shard.source}": SourceFile(frame.shard.source_bytes, 7, "a" * 32, path, "")
        for path, frame in frames.items()
    }
    index = Index("0.1", 8, {"libraw": "0.22"}, sources, frames, pairs, (("short/x.ARW", "damaged"),))
    return replace(index, **changes)


def test_an_index_is_read_as_it_was_written(tmp_path: Path):
    pairs = [make_pair(tmp_path, "train", 3), make_pair(tmp_path, "validation", 20004), make_pair(tmp_path, "train", 5)]
    index = make_index(*pairs)
    write_index(tmp_path, index)
    assert read_index(tmp_path) == index
    opened = open_shards(tmp_path, ["train"])
    assert opened.pairs == (pairs[0], pairs[2]) and hash(opened.pairs[0]) == hash(pairs[0])
    assert (opened.folder, opened.rendering) == (str(tmp_path), {"libraw": "0.22"})
    assert open_shards(tmp_path, ["validation", "train"]).pairs == (pairs[1], pairs[0], pairs[2])
    size = sum(path.stat().st_size for path in tmp_path.glob("*/*.parquet")) / 1e9
    assert index.summary == f"6 shards, 24 tiles, {size:.3g} GB"
    assert not list(tmp_path.glob(".*"))


def test_short_and_long_pixels_of_a_pair_can_be_read(tmp_path: Path):
    pair = make_pair(tmp_path)
    write_index(tmp_path, make_index(pair))
    opened = open_shards(tmp_path, ["train"])
    planes, target = opened.planes(pair), opened.target(pair)
    np.testing.assert_array_equal(planes, pack(make_frame().mosaic, "GBRG"))
    np.testing.assert_array_equal(target, noise(3, 21, 30))
    np.testing.assert_array_equal(opened.short_window(pair, 2, 3, 7, 8), planes[:, 2:9, 3:11])
    np.testing.assert_array_equal(opened.long_window(pair, 2, 3, 17, 8), target[:, 2:19, 3:11])


@pytest.mark.parametrize("cfa", ["RGGB", "GRBG", "GBRG", "BGGR"])
def test_a_raw_frame_is_restored_from_its_planes(cfa: str, tmp_path: Path):
    pair, frame = make_pair(tmp_path, scene=10003), make_frame(cfa)
    restored = replace(pair.short, cfa=cfa).raw_frame(pack(frame.mosaic, cfa))
    for name, value in vars(frame).items():
        np.testing.assert_array_equal(getattr(restored, name), value)


def test_black_levels_are_in_the_order_of_the_planes(tmp_path: Path):
    short = make_pair(tmp_path).short  # G B / R G with 500 501 / 502 503: red is in the second row
    assert short.plane_black.ravel().tolist() == [502, 503, 501, 500]
    assert short.plane_black.shape == (4, 1, 1)
    assert short.plane_black.dtype == np.float32
    assert short.padding == (1, 0, 0, 0)


@pytest.mark.parametrize("top, left", [(0, 0), (1, 2), (5, 4)])
def test_xtrans_black_levels_have_a_period_of_two_packed_pixels(top: int, left: int, tmp_path: Path):
    cfa = "".join(np.roll(np.array(list(XTRANS.pattern)).reshape(6, 6), (-top, -left), (0, 1)).flat)
    levels = np.arange(36.0)
    short = replace(make_pair(tmp_path).short, cfa=cfa, black=tuple(levels), height=24, width=24)
    planes = pack(np.tile(levels.reshape(6, 6), (4, 4)), cfa)
    assert short.plane_black.shape == (9, 2, 2) and short.plane_black.dtype == np.float32
    np.testing.assert_array_equal(
        np.tile(short.plane_black, (1, 5, 5))[:, : planes.shape[1], : planes.shape[2]], planes
    )


def test_a_folder_without_an_index_is_refused(tmp_path: Path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match=r"holds no index\.json: expected shards"):
            open_shards(folder, ["train"])
    for leftover in (LOCK, PREVIOUS_INDEX):
        (tmp_path / leftover).touch()
        with pytest.raises(InputError, match=r"packing is unfinished: run jobs/pack\.py pack"):
            open_shards(tmp_path, ["train"])
        (tmp_path / leftover).unlink()


def test_the_metadata_of_a_shard_matches_the_index(tmp_path: Path):
    pair = make_pair(tmp_path)
    index = make_index(pair)
    path = pair.short.shard.path
    size, digest = write_shard(tmp_path / path, noise(4, 20, 20), 8, index.shard_metadata(path))
    metadata = read_metadata(tmp_path / path)
    assert metadata == index.shard_metadata(path) and metadata["frame"]["shard"]["source"] == pair.short.shard.source
    assert "rendering" not in metadata and index.shard_metadata(pair.long.shard.path)["rendering"] == index.rendering
    restored = frame_from_metadata(metadata, size, digest)
    assert restored == replace(pair.short, shard=replace(pair.short.shard, bytes=size, xxh128=digest))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda i: next(iter(i["frames"].values()))["shard"].update(tile=0), "has tiles of 0"),
        (lambda i: next(iter(i["frames"].values()))["shard"].update(shape=[3, 2000000, 2000000]), "has the shape"),
        (lambda i: next(iter(i["frames"].values()))["shard"].update(path="long/../../x"), r"has the path long/\.\./"),
        (lambda i: next(iter(i["frames"].values())).update(cfa="RGBG"), "CFA pattern 'RGBG' cannot be packed"),
        (lambda i: next(iter(i["frames"].values()))["shard"].update(xxh128="../x"), r"has the hash \.\./x"),
        (lambda i: next(iter(i["frames"].values()))["shard"].update(offset=65536), "has the offset 65536"),
        (lambda i: i["pairs"][0].update(ratio=float("nan")), "has the ratio nan"),
        (lambda i: i["pairs"][0].update(ratio=0.5), r"has the ratio 0\.5"),
    ],
)
def test_an_index_with_impossible_values_is_refused(change, problem: str, tmp_path: Path):
    write_index(tmp_path, make_index(make_pair(tmp_path)))
    open_shards(tmp_path, ["train"])
    entries = json.loads((tmp_path / "index.json").read_text())
    change(entries)
    (tmp_path / "index.json").write_text(json.dumps(entries))
    with pytest.raises(InputError, match=f"index.json is damaged .*{problem}.*: pack the raw files again"):
        open_shards(tmp_path, ["train"])


def test_an_index_cannot_lead_out_of_its_folder(tmp_path: Path):
    write_index(tmp_path, make_index(make_pair(tmp_path)))
    text = (tmp_path / "index.json").read_text().replace("short/00003", "short/../../00003")
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(InputError, match=r"frame short/\.\./\.\./00003_00_0\.04s\.parquet has the path"):
        open_shards(tmp_path, ["train"])


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"{}", b"\xff\xfe\x00", b"\xe9", 100_000 * b"["])
def test_a_broken_index_is_refused(content: bytes, tmp_path: Path):
    (tmp_path / "index.json").write_bytes(content)
    with pytest.raises(InputError, match=r"index\.json is not an index of shards"):
        open_shards(tmp_path, ["train"])


def test_what_is_not_a_readable_file_is_refused_as_an_index(tmp_path: Path, unreadable: Callable[[Path], Path]) -> None:
    for create in (Path.mkdir, os.mkfifo):
        create(tmp_path / "index.json")
        with pytest.raises(InputError, match=r"index\.json is not a file: expected an index of shards"):
            open_shards(tmp_path, ["train"])
        (tmp_path / "index.json").rename(tmp_path / create.__name__)
    write_index(tmp_path, make_index(make_pair(tmp_path)))
    unreadable(tmp_path / "index.json")
    with pytest.raises(InputError, match=r"index\.json: Permission denied: expected an index .* this user can read$"):
        open_shards(tmp_path, ["train"])


def test_a_folder_that_cannot_be_entered_is_named(tmp_path: Path, unreadable: Callable[[Path], Path]) -> None:
    write_index(tmp_path, make_index(make_pair(tmp_path)))
    unreadable(tmp_path)
    with pytest.raises(InputError, match=r"index\.json: Permission denied"):
        open_shards(tmp_path, ["train"])


@pytest.mark.parametrize(
    "change",
    [
        lambda i: i.pop("pairs"),
        lambda i: i["pairs"][0].pop("ratio"),
        lambda i: i["frames"].popitem(),
        lambda i: i["sources"].popitem(),
        lambda i: i.update(sources=[]),
    ],
)
def test_an_incomplete_index_is_refused(change, tmp_path: Path):
    write_index(tmp_path, make_index(make_pair(tmp_path)))
    index = json.loads((tmp_path / "index.json").read_text())
    change(index)
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"index\.json"):
        open_shards(tmp_path, ["train"])


@pytest.mark.parametrize("version", [VERSION - 1, VERSION + 1, str(VERSION), None])
def test_an_index_of_another_version_is_refused(version, tmp_path: Path):
    write_index(tmp_path, make_index(make_pair(tmp_path)))
    index = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps({**index, "version": version}))
    with pytest.raises(InputError, match=f"has version {version}, this program reads {VERSION}: pack"):
        open_shards(tmp_path, ["train"])


@pytest.mark.parametrize("splits", [["test"], ["train", "test"], ["validation"]])
def test_a_split_without_pairs_is_refused(splits: list, tmp_path: Path):
    write_index(tmp_path, make_index(make_pair(tmp_path)))
    with pytest.raises(InputError, match=f"has no pairs in the {splits[-1]} split"):
        open_shards(tmp_path, splits)


def test_a_failed_write_keeps_the_previous_index(tmp_path: Path):
    index = make_index(make_pair(tmp_path))
    write_index(tmp_path, index)
    before = (tmp_path / "index.json").read_bytes()
    with pytest.raises(TypeError):
        write_index(tmp_path, replace(index, rendering={"file": Path("not JSON")}))
    assert (tmp_path / "index.json").read_bytes() == before
    assert not list(tmp_path.glob(".*"))
