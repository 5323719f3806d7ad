"""Shifts measured over the cluster, recorded in the index, and kept there."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import skimage

from lsid_ray.data.alignment import align_shards
from lsid_ray.data.comparison import compare_frames, compare_shards
from lsid_ray.data.index import open_shards, read_index
from lsid_ray.data.pack import pack_dataset
from lsid_ray.data.preview import contact_sheet
from lsid_ray.data.verify import verify_shards
from lsid_ray.errors import InputError
from lsid_ray.raw.dng import write_dng
from lsid_ray.raw.frame import read_raw
from lsid_ray.raw.render import read_and_render
from lsid_ray.synthesis.dataset import Synthesis, synthesize

DOWN, RIGHT = 4, -6  # sensels, whole periods of the CFA


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four scenes at ratios 100 and 300, with more detail than the tiny data set."""
    names = ("astronaut.png", "coffee.png", "motorcycle_left.png", "ihc.png")
    photos = tuple(str(Path(skimage.__file__).parent / "data" / name) for name in names)
    root = tmp_path_factory.mktemp("data") / "detailed"
    synthesize(Synthesis(str(root), photos=photos, ratios=(100, 300), seed=1))
    return root


@pytest.fixture
def moved_root(root: Path, tmp_path: Path) -> Path:
    """The data set, with a short exposure of a test and of a training scene moved."""
    root = shutil.copytree(root, tmp_path / "moved")
    for split in "10":
        path = sorted((root / "short").glob(f"{split}*"))[-1]
        frame = read_raw(path)
        write_dng(path, replace(frame, mosaic=np.roll(frame.mosaic, (DOWN, RIGHT), (0, 1))))
    return root


def test_moved_pairs_are_named_and_test_pairs_left_out(cluster: None, moved_root: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    pack_dataset(moved_root, out)
    assert {pair.shift for pair in read_index(out).pairs} == {None}
    calls = []
    result = align_shards(out, lambda done, total: calls.append((done, total)))
    assert calls[-1] == (8, 8) and result.failures == ()
    moved = {sorted((moved_root / "short").glob(f"{split}*"))[-1].stem for split in "10"}
    assert {line.partition(": ")[0] for line in result.problems} == moved
    assert all(": moved by +" in line and line.endswith(" pixels between the exposures") for line in result.problems)
    index = read_index(out)
    assert index.pairs == result.pairs
    for pair in index.pairs:
        expected = (DOWN, RIGHT) if pair.name in moved else (0, 0)
        assert pair.shift == pytest.approx(expected, abs=0.5), pair.name
        assert pair.misaligned == (pair.name in moved and pair.split == "test")
    header, *rows = result.table.splitlines()
    assert header.split() == ["shift", "(pixels)", "pairs", "unknown", "median", "95%", "largest"]
    assert [row.split()[:3] for row in rows] == [["train", "4", "0"], ["validation", "2", "0"], ["test", "2", "0"]]
    assert float(rows[0].split()[-1]) == pytest.approx(np.hypot(DOWN, RIGHT), abs=0.5)
    assert verify_shards(out) == []

    assert pack_dataset(moved_root, out).up_to_date, "shifts stay"
    sheet, said = tmp_path / "a.png", []
    contact_sheet(out, sheet, 10, on_problem=said.append)
    assert sorted(said) == sorted(result.problems)

    name = next(name for name in moved if name.startswith("1"))
    path = moved_root / "short" / f"{name}.dng"
    frame = read_raw(path)
    write_dng(path, replace(frame, mosaic=np.roll(frame.mosaic, (-DOWN, -RIGHT), (0, 1))))
    pack_dataset(moved_root, out)
    pairs = {pair.name: pair for pair in read_index(out).pairs}
    assert (pairs[name].shift, pairs[name].misaligned) == (None, False), "of another file nothing is known"
    assert all(pair.shift is not None for pair in pairs.values() if pair.name != name)


def test_raw_files_and_shards_are_compared_alike(shards: Path, data_root: Path) -> None:
    opened = open_shards(shards, ["train", "test"])
    for pair in opened.pairs[:3]:
        short = read_raw(data_root / "short" / pair.short.shard.source)
        long, rendering = read_and_render(data_root / "long" / pair.long.shard.source)
        assert compare_shards(opened, pair) == compare_frames(short, long, rendering, pair.ratio)


def test_an_index_of_an_older_version_has_no_shifts(shards: Path, tmp_path: Path) -> None:
    entries = json.loads((shards / "index.json").read_text())
    for pair in entries["pairs"]:
        del pair["shift"]
    (tmp_path / "index.json").write_text(json.dumps(entries))
    assert read_index(tmp_path).pairs == read_index(shards).pairs


def test_a_pair_that_cannot_be_read_is_named(cluster: None, shards: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(shards, tmp_path / "copy")
    pair = read_index(copy).pairs[0]
    (copy / pair.short.shard.path).unlink()
    result = align_shards(copy)
    ((name, reason),) = result.failures
    assert name == pair.name and "is missing" in reason
    assert read_index(copy).pairs[0] == pair
    with pytest.raises(InputError, match="holds no index"):
        align_shards(tmp_path)
