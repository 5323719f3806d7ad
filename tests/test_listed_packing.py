"""Packing what a table lists: files of any name, in any folder."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from lsid_ray.data.index import open_shards, read_index
from lsid_ray.data.pack import pack_dataset
from lsid_ray.data.preview import contact_sheet
from lsid_ray.data.verify import repair_shards, verify_shards
from lsid_ray.errors import InputError
from lsid_ray.raw.frame import read_raw
from lsid_ray.raw.mosaic import pack


@pytest.fixture
def listed(data_root: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A data set with a folder per scene, in which files have the camera's names: its folder and its table."""
    root, lines = tmp_path / "nights", ["short,long,split,scene,ratio"]
    splits = {"0": "train", "1": "test", "2": "val"}
    for long in sorted((data_root / "long").iterdir()):
        night = root / f"night{long.name[:5]}"
        night.mkdir(parents=True)
        shutil.copy2(long, night / "IMG_0009.dng")
        for number, short in enumerate(sorted((data_root / "short").glob(f"{long.name[:5]}*"))):
            shutil.copy2(short, night / f"IMG_000{number}.dng")
            ratio = 50 if long.name[0] == "1" else ""
            line = f"{night.name}/IMG_000{number}.dng,{night.name}/IMG_0009.dng,{splits[long.name[0]]},,{ratio}"
            lines.append(line)
    table = root / "pairs.csv"
    table.write_text("\n".join(lines))
    return root, table


def test_files_with_the_same_names_are_packed_each_for_itself(cluster: None, listed, tmp_path: Path):
    root, table = listed
    out = tmp_path / "shards"
    result = pack_dataset(root, out, tile=32, lists=[str(table)])
    assert (result.pairs, result.packed, result.failures) == (10, 15, ())
    assert verify_shards(out) == []
    shards = open_shards(out, ["train", "validation", "test"])
    for pair in shards.pairs:
        folder, _, stem = pair.name.partition("_")
        assert pair.scene == f"{folder}_IMG_0009"
        frame = read_raw(root / folder / f"{stem}.dng")
        np.testing.assert_array_equal(shards.planes(pair), pack(frame.mosaic, frame.cfa))
        expected = 50 if pair.split == "test" else min(10 / frame.exposure_s, 300)
        assert pair.ratio == pytest.approx(expected)
    disagreeing = [name for name, _ in result.disagreements]
    assert disagreeing == sorted(pair.name for pair in shards.pairs if pair.split == "test")
    texts = {text.partition(", line ")[2][2:] for _, text in result.disagreements}
    assert texts == {f" {ratio} by the exposures: the list's counts" for ratio in (100, 300)}
    assert result.disagreements[0][1].startswith("ratio 50 in pairs.csv, line 8,")
    assert result.remarks[0] == "pairs.csv: 6 pairs for train, 2 pairs for test, 2 pairs for validation"

    again = pack_dataset(root, out, tile=32, lists=[str(table)])
    assert again.up_to_date and again.of_lists == result.of_lists

    table.write_text(table.read_text().replace(",val,", ",train,"))
    moved = pack_dataset(root, out, tile=32, lists=[str(table)])
    assert (moved.packed, moved.reused, moved.up_to_date) == (0, 15, False)
    assert {pair.split for pair in read_index(out).pairs} == {"train", "test"}

    broken = out / read_index(out).pairs[3].short.shard.path
    content = broken.read_bytes()
    broken.write_bytes(content[:-100])
    repaired = repair_shards(root, out, lists=[str(table)])
    assert [path for path, _ in repaired.broken] == [str(broken.relative_to(out))] and repaired.remaining == ()
    assert broken.read_bytes() == content

    assert contact_sheet(root, tmp_path / "raw.png", 10, lists=[str(table)]) == ()
    assert contact_sheet(out, tmp_path / "shards.png", 10) == ()
    assert (tmp_path / "raw.png").read_bytes() == (tmp_path / "shards.png").read_bytes()


def test_a_broken_file_is_named_as_it_lies_on_the_disk(cluster: None, listed, tmp_path: Path) -> None:
    root, table = listed
    broken = next(root.glob("night0*/IMG_0000.dng"))
    broken.write_bytes(broken.read_bytes()[:3000])
    result = pack_dataset(root, tmp_path / "out", tile=32, lists=[str(table)])
    ((name, _),) = result.failures
    assert (name, result.pairs) == (str(broken.relative_to(root)), 9)
    assert pack_dataset(root, tmp_path / "out", tile=32, lists=[str(table)]).failures == result.failures


def test_a_file_that_has_gone_is_refused_and_the_shards_stay(cluster: None, listed, tmp_path: Path) -> None:
    root, table = listed
    pack_dataset(root, tmp_path / "out", tile=32, lists=[str(table)])
    before = (tmp_path / "out" / "index.json").read_bytes()
    os.remove(next(root.glob("night0*/IMG_0000.dng")))
    for call in (pack_dataset, repair_shards):
        with pytest.raises(InputError, match=r"pairs\.csv, line \d+: night0.*IMG_0000\.dng: no such file; tried "):
            call(root, tmp_path / "out", lists=[str(table)])
    assert (tmp_path / "out" / "index.json").read_bytes() == before
    assert verify_shards(tmp_path / "out") == []
