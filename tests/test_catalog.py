"""Pairing by file name: SID's own names, and names that cannot be paired."""

import os
from collections import Counter
from pathlib import Path

import pytest

from lsid_ray.data.catalog import UNKNOWN_NAME, Catalog, pair_names, read_catalog
from lsid_ray.errors import InputError

SID_LISTS = Path(__file__).resolve().parents[2] / "shared" / "sid_lists"
# Names as in SID: scenes of every split, bursts, a misaligned scene, and a ratio that is limited to 300.
SID_SHORTS = [
    *(f"00001_00_{exposure}s.ARW" for exposure in ("0.04", "0.1")),
    *(f"00001_{frame:02d}_0.1s.ARW" for frame in range(1, 10)),
    *(f"20005_{frame:02d}_0.04s.ARW" for frame in range(2)),
    *(f"10003_{frame:02d}_{exposure}s.ARW" for frame in range(2) for exposure in ("0.04", "0.1")),
    *(f"10034_{frame:02d}_0.04s.ARW" for frame in range(3)),
    "00233_00_0.033s.ARW",
]
SID_LONGS = [f"{scene}_00_10s.ARW" for scene in ("00001", "20005", "10003", "10034", "00233")]


def make_data_set(root: Path, shorts: list[str], longs: list[str]) -> Path:
    for folder, names in (("short", shorts), ("long", longs)):
        (root / folder).mkdir(parents=True)
        for name in names:
            (root / folder / name).touch()
    return root


def test_sid_names_determine_split_scene_and_ratio():
    catalog = pair_names(SID_SHORTS, SID_LONGS)
    by_name = {pair.name: pair for pair in catalog.pairs}
    assert Counter(pair.split for pair in catalog.pairs) == {"train": 12, "validation": 2, "test": 4}
    pair = by_name["10003_01_0.04s"]
    assert (pair.scene, pair.split, pair.frame, pair.short_s, pair.long_s) == ("10003", "test", 1, 0.04, 10.0)
    assert (pair.short, pair.long) == (Path("10003_01_0.04s.ARW"), Path("10003_00_10s.ARW"))
    assert pair.ratio == pytest.approx(250)
    assert by_name["00001_05_0.1s"].ratio == pytest.approx(100)
    assert by_name["00233_00_0.033s"].ratio == 300
    assert catalog.problems == ()


def test_misaligned_test_scenes_are_excluded_by_default():
    default = pair_names(SID_SHORTS, SID_LONGS)
    assert {pair.scene for pair in default.excluded} == {"10034"}
    assert len(default.excluded) == 3
    complete = pair_names(SID_SHORTS, SID_LONGS, exclude_misaligned=False)
    assert complete.excluded == ()
    assert set(complete.pairs) == {*default.pairs, *default.excluded}


def test_the_order_of_names_does_not_change_the_pairs():
    assert pair_names(SID_SHORTS[::-1], SID_LONGS[::-1]) == pair_names(SID_SHORTS, SID_LONGS)


def every_file_is_accounted_for(catalog: Catalog, names: list[str]) -> bool:
    pairs = (*catalog.pairs, *catalog.excluded)
    paired = {str(path) for pair in pairs for path in (pair.short, pair.long)}
    return paired | {str(path) for path, _ in catalog.problems} == set(names)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("00007_00_0.1s.ARW", "no long exposure of scene 00007"),
        ("30001_00_0.1s.ARW", "name does not parse"),
        ("DSC00042.ARW", "name does not parse"),
        ("00001_00_20s.ARW", "its long exposure 00001_00_10s.ARW is shorter than the short exposure"),
    ],
)
def test_a_short_exposure_that_cannot_be_paired_is_reported(name: str, reason: str):
    catalog = pair_names([*SID_SHORTS, name], SID_LONGS)
    ((path, message),) = catalog.problems
    assert path == Path(name)
    assert reason in message
    assert every_file_is_accounted_for(catalog, [*SID_SHORTS, *SID_LONGS, name])


def test_a_long_exposure_without_a_short_one_is_reported():
    catalog = pair_names(SID_SHORTS, [*SID_LONGS, "00009_00_10s.ARW"])
    assert catalog.problems == ((Path("00009_00_10s.ARW"), "no matching short exposure"),)


def test_only_one_of_two_files_with_the_same_name_is_used():
    catalog = pair_names(["00001_00_0.1s.ARW", "00001_00_0.1s.DNG"], ["00001_00_10s.ARW"])
    assert len(catalog.pairs) == 1
    assert catalog.problems == ((Path("00001_00_0.1s.DNG"), "same name as 00001_00_0.1s.ARW"),)


def test_a_short_exposure_prefers_the_long_exposure_of_its_own_frame_then_the_first_frame():
    catalog = pair_names(
        ["00001_00_0.1s.ARW", "00001_01_0.1s.ARW", "00001_07_0.1s.ARW"],
        ["00001_01_10s.ARW", "00001_00_10s.ARW", "00001_00_30s.ARW"],
    )
    long_by_frame = {pair.frame: pair.long.name for pair in catalog.pairs}
    assert long_by_frame == {0: "00001_00_30s.ARW", 1: "00001_01_10s.ARW", 7: "00001_00_30s.ARW"}
    assert [path.name for path, _ in catalog.problems] == ["00001_00_10s.ARW"]


def test_names_without_exposure_times_are_paired():
    (pair,) = pair_names(["00001_00.ARW"], ["00001_00.ARW"]).pairs
    assert (pair.short_s, pair.long_s, pair.ratio) == (None, None, None)


def test_the_pairs_of_a_folder_have_full_paths(tmp_path):
    root = make_data_set(tmp_path, SID_SHORTS, SID_LONGS)
    (root / "short" / "notes.txt").touch()
    catalog = read_catalog(root)
    assert catalog.pairs[0].short == root / "short" / "00001_00_0.04s.ARW"
    assert catalog.pairs[0].long == root / "long" / "00001_00_10s.ARW"
    assert catalog.problems == ()


def test_unusable_entries_with_a_raw_file_name_are_reported(tmp_path):
    root = make_data_set(tmp_path, SID_SHORTS, SID_LONGS)
    (root / "short" / "00001_00_0.2s.ARW").mkdir()
    loop = root / "short" / "00001_00_0.3s.ARW"
    loop.symlink_to(loop)
    (root / "long" / "00009_00_10s.ARW").symlink_to(root / "nowhere")
    (root / "short" / "00001_00_0.4s.ARW").symlink_to(root / "short" / SID_SHORTS[0])
    os.mkfifo(root / "short" / "00001_00_0.5s.ARW")
    (root / "short" / "nü \udcff.ARW").touch()
    catalog = read_catalog(root)
    problems = {path.name: reason for path, reason in catalog.problems}
    assert problems == {
        "00001_00_0.2s.ARW": "a folder; expected a raw file",
        "00001_00_0.3s.ARW": "a broken symlink; expected a raw file",
        "00009_00_10s.ARW": "a broken symlink; expected a raw file",
        "00001_00_0.5s.ARW": "not a regular file; expected a raw file",
        "nü \\xff.ARW": "its name is not UTF-8",
    }
    assert "00001_00_0.4s" in {pair.name for pair in catalog.pairs}, "a symlink to a file counts as a file"


def test_a_symlink_loop_and_an_unreadable_folder_are_named(tmp_path, unreadable):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(InputError, match="loop"):
        read_catalog(loop)
    root = make_data_set(tmp_path / "set", SID_SHORTS, SID_LONGS)
    unreadable(root / "short")
    with pytest.raises(InputError, match="short: Permission denied"):
        read_catalog(root)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match=r"data folder .*nowhere: no such folder"):
        read_catalog(tmp_path / "nowhere")


def test_the_error_for_a_parent_folder_suggests_the_data_folder(tmp_path):
    make_data_set(tmp_path / "Sony", SID_SHORTS, SID_LONGS)
    with pytest.raises(InputError, match=r"pass .*Sony$"):
        read_catalog(tmp_path)


def test_empty_folders_are_named(tmp_path):
    with pytest.raises(InputError, match="short/ and long/"):
        read_catalog(tmp_path)
    make_data_set(tmp_path, [], [])
    with pytest.raises(InputError, match="no raw files"):
        read_catalog(tmp_path)


def test_a_folder_without_any_pair_is_refused_with_a_reason(tmp_path):
    make_data_set(tmp_path, ["00001_00_0.1s.ARW"], [])
    with pytest.raises(InputError, match=r"no pair .* 00001_00_0\.1s\.ARW: no long exposure of scene 00001"):
        read_catalog(tmp_path)


@pytest.mark.parametrize(
    ("camera", "split", "rows", "scenes", "first_frames", "aligned"),
    [
        ("Sony", "train", 1865, 161, None, 1865),
        ("Sony", "validation", 234, 20, None, 234),
        ("Sony", "test", 598, 50, 93, 562),
        ("Fuji", "train", 1655, 135, None, 1655),
        ("Fuji", "validation", 218, 17, None, 218),
        ("Fuji", "test", 524, 41, 94, None),
    ],
)
def test_every_row_of_the_sid_lists_is_reproduced(camera, split, rows, scenes, first_frames, aligned):
    if not SID_LISTS.exists():
        pytest.skip(f"no folder {SID_LISTS}")
    lists = {
        name: (SID_LISTS / f"{camera}_{name}_list.txt").read_text().splitlines() for name in ("train", "val", "test")
    }
    listed = [
        (name, *(Path(path).name for path in line.split()[:2])) for name, lines in lists.items() for line in lines
    ]
    shorts, longs = {short for _, short, _ in listed}, {long for _, _, long in listed}
    catalog = pair_names(sorted(shorts), sorted(longs), exclude_misaligned=False)
    pairs = [pair for pair in catalog.pairs if pair.split == split]
    expected = [(short, long) for name, short, long in listed if name == split.replace("validation", "val")]
    assert sorted((pair.short.name, pair.long.name) for pair in pairs) == sorted(expected)
    assert (len(pairs), len({pair.scene for pair in pairs})) == (rows, scenes)
    if first_frames:
        assert sum(pair.frame == 0 for pair in pairs) == first_frames
    if aligned:
        default = pair_names(sorted(shorts), sorted(longs)).pairs
        assert sum(pair.split == split for pair in default) == aligned
    if (camera, split) == ("Sony", "train"):
        assert Counter(round(pair.ratio) for pair in pairs) == {100: 587, 250: 457, 300: 821}


def test_what_does_not_pair_is_said_with_the_reason_that_comes_first(tmp_path: Path) -> None:
    make_data_set(tmp_path, ["00001_00_0.1s (1).ARW"], ["00001_00_10s.ARW"])
    with pytest.raises(InputError, match=r"among 2 files; 00001_00_0\.1s \(1\)\.ARW: name does not parse"):
        read_catalog(tmp_path)


@pytest.mark.parametrize(
    "short",
    [
        "00001_00_0.1s (1)",
        "00001_00_1e-1s",
        "00001_00_0.1",
        "100001_00_0.1s",
        "50001_00_0.1s",
        "DSC00042",
        "0\N{ARABIC-INDIC DIGIT ZERO}001_00_0.1s",
        "00001_00_\N{FULLWIDTH DIGIT ONE}s",
        "00001_00_1\N{DIVISION SLASH}30s",
    ],
)
@pytest.mark.parametrize("long", ["00001_00_10s", "DSC00001", "50001_00_10s"])
def test_it_is_the_short_exposure_that_is_blamed(short: str, long: str, tmp_path: Path) -> None:
    make_data_set(tmp_path, [f"{short}.ARW"], [f"{long}.ARW"])
    with pytest.raises(InputError) as caught:
        read_catalog(tmp_path)
    assert f"; {short}.ARW: name does not parse; expected one like 10003_00_0.04s.ARW" in str(caught.value)


@pytest.mark.parametrize("short, long", [("Short", "Long"), ("shorts", "LONGS"), ("SHORT", "long")])
def test_the_folders_may_be_named_as_other_releases_name_them(tmp_path: Path, short: str, long: str) -> None:
    make_data_set(tmp_path, SID_SHORTS, SID_LONGS)
    expected = [(pair.name, pair.long_name, list(pair.files)) for pair in read_catalog(tmp_path).pairs]
    (tmp_path / "short").rename(tmp_path / "moved")
    (tmp_path / "moved").rename(tmp_path / short)
    (tmp_path / "long").rename(tmp_path / "moved")
    (tmp_path / "moved").rename(tmp_path / long)
    catalog = read_catalog(tmp_path)
    assert [(pair.name, pair.long_name, list(pair.files)) for pair in catalog.pairs] == expected
    assert {pair.short.parent.name for pair in catalog.pairs} == {short}
    assert "short/00001_00_0.04s.ARW" in catalog.pairs[0].files


def test_two_folders_of_short_exposures_are_refused(tmp_path: Path) -> None:
    make_data_set(tmp_path, SID_SHORTS, SID_LONGS)
    (tmp_path / "Shorts").mkdir()
    with pytest.raises(InputError, match=r"contains Shorts and short: expected one of them"):
        read_catalog(tmp_path)


def test_names_that_are_not_understood_are_said_once_with_the_three_ways(tmp_path: Path) -> None:
    cameras = [f"DSC{number:05d}.ARW" for number in range(40)]
    make_data_set(tmp_path, cameras[:20], cameras[20:])
    with pytest.raises(InputError) as caught:
        read_catalog(tmp_path)
    message = str(caught.value)
    assert message.count("DSC") == 1 and "DSC00000.ARW: name does not parse; expected one like 10003_00" in message
    assert "SHORT LONG per pair" in message and "short,long,split" in message and "\n" not in message

    make_data_set(tmp_path / "mixed", [*SID_SHORTS, *cameras], SID_LONGS)
    problems = [(path.name, reason) for path, reason in read_catalog(tmp_path / "mixed").problems]
    assert len(problems) == 40
    assert {reason for _, reason in problems} == {UNKNOWN_NAME}


def test_raw_files_in_a_folder_within_are_mentioned(tmp_path: Path) -> None:
    make_data_set(tmp_path, ["00001_00_0.1s.ARW"], ["00001_00_10s.ARW"])
    (tmp_path / "short" / "more").mkdir()
    (tmp_path / "short" / "more" / "00002_00_0.1s.ARW").touch()
    catalog = read_catalog(tmp_path)
    assert [(path.name, reason) for path, reason in catalog.problems] == [
        ("more", "a folder with raw files; expected them in short/ itself")
    ]
