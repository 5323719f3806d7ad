"""Lists of pairs: SID's own, tables, and what is wrong in them."""

import re
from collections import Counter
from pathlib import Path

import pytest

from lsid_ray import storage
from lsid_ray.data.pair_list import list_pairs
from lsid_ray.errors import InputError

JOBS = Path(__file__).resolve().parents[1] / "jobs"
SID_LISTS = Path(__file__).resolve().parents[2] / "shared" / "sid_lists"


def make_files(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Files of two nights, with the same names."""
    files = [f"{night}/DSC0000{number}.ARW" for night in ("night1", "night2") for number in range(5)]
    return make_files(tmp_path / "raw", *files, "night1/notes.tif")


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("camera", "counts", "folders"),
    [("Sony", (1865, 234, 562, 36), ("Short", "Long")), ("Fuji", (1655, 218, 524, 0), ("short", "long"))],
)
def test_sids_own_lists_name_every_pair(tmp_path: Path, camera: str, counts: tuple[int, ...], folders) -> None:
    if not SID_LISTS.exists():
        pytest.skip(f"no folder {SID_LISTS}")
    lists = [SID_LISTS / f"{camera}_{split}_list.txt" for split in ("train", "val", "test")]
    lines = [line.split() for path in lists for line in path.read_text().splitlines()]
    on_disk = {name.replace("/short/", f"/{folders[0]}/").replace("/long/", f"/{folders[1]}/")
               for short, long, *_ in lines for name in (short, long)}  # fmt: skip
    make_files(tmp_path, *sorted(on_disk))
    catalog = list_pairs(tmp_path, lists)
    by_split = Counter(pair.split for pair in catalog.pairs)
    assert (by_split["train"], by_split["validation"], by_split["test"], len(catalog.excluded)) == counts
    assert {pair.scene for pair in catalog.excluded} <= {"10034", "10045", "10172"}
    pairs = {pair.name: pair for pair in catalog.pairs + catalog.excluded}
    assert len(pairs) == len(lines)
    for short, long, iso, aperture in lines:
        pair = pairs[Path(short).stem]
        assert (pair.short.name, pair.long.name) == (Path(short).name, Path(long).name)
        assert pair.short.is_file() and pair.scene == pair.name[:5] and pair.frame == int(pair.name[6:8])
        assert (f"ISO{pair.listed.iso:g}", f"F{pair.listed.aperture:g}") == (iso, aperture.replace(".0", ""))
    assert catalog.remarks[0] == f"{camera}_train_list.txt: {counts[0]} pairs for train"


def test_a_table_pairs_files_of_any_name(root: Path) -> None:
    table = write(
        root / "pairs.csv",
        "\ufeffShort, Long ,SPLIT,scene,ratio",
        "night1/DSC00000.ARW,night1/DSC00003.ARW,train,harbor,100",
        "",
        "./night1/DSC00001.ARW,night1/../night1/DSC00003.ARW,Train,harbor,",
        'night2/DSC00000.ARW,"night2/DSC00004.ARW",val,,12.5',
    )
    catalog = list_pairs(root, [table])
    found = [
        (pair.name, pair.long_name, pair.scene, pair.split, pair.frame, pair.listed.ratio) for pair in catalog.pairs
    ]
    assert found == [
        ("DSC00001", "DSC00003", "harbor", "train", 1, None),
        ("night1_DSC00000", "DSC00003", "harbor", "train", 0, 100),
        ("night2_DSC00000", "DSC00004", "DSC00004", "validation", 0, 12.5),
    ]
    assert catalog.pairs[2].files == {
        "short/night2_DSC00000.ARW": root / "night2" / "DSC00000.ARW",
        "long/DSC00004.ARW": root / "night2" / "DSC00004.ARW",
    }
    assert catalog.pairs[0].listed.where == "pairs.csv, line 4" and catalog.problems == ()


def test_longs_of_the_same_name_are_different_scenes(root: Path) -> None:
    lines = [
        f"{night}/DSC00000.ARW,{night}/DSC00003.ARW,{split}"
        for night, split in (("night1", "train"), ("night2", "test"))
    ]
    catalog = list_pairs(root, [write(root / "pairs.csv", "short,long,split", *lines)])
    assert [pair.scene for pair in catalog.pairs] == ["night1_DSC00003", "night2_DSC00003"]


def test_paths_are_relative_to_the_data_or_to_the_list(root: Path, tmp_path: Path) -> None:
    elsewhere = write(tmp_path / "my_train.txt", "night1/DSC00000.ARW night1/DSC00003.ARW")
    beside = write(root / "night2" / "my_test.txt", "DSC00000.ARW DSC00003.ARW ISO800")
    absolute = write(tmp_path / "my_val.txt", f"{root}/night1/DSC00001.ARW {root}/night1/DSC00004.ARW F2.8 120")
    pairs = list_pairs(root, [elsewhere, beside, absolute]).pairs
    assert {pair.short: pair.split for pair in pairs} == {
        root / "night1" / "DSC00000.ARW": "train",
        root / "night2" / "DSC00000.ARW": "test",
        root / "night1" / "DSC00001.ARW": "validation",
    }
    listed = {pair.split: (pair.listed.iso, pair.listed.aperture, pair.listed.ratio) for pair in pairs}
    assert listed == {"train": (None, None, None), "test": (800, None, None), "validation": (None, 2.8, 120)}


def test_elds_list_of_sid_has_bare_names_ratios_and_no_split(tmp_path: Path) -> None:
    names = [("20188_00_0.1s.ARW", "20188_00_10s.ARW", "100"), ("10185_00_0.04s.ARW", "10185_00_10s.ARW", "250")]
    make_files(tmp_path, *(f"short/{short}" for short, _, _ in names), *(f"long/{long}" for _, long, _ in names))
    paired = write(tmp_path / "SID_Sony_15_paired.txt", *(" ".join(line) for line in names))
    catalog = list_pairs(tmp_path, [paired])
    assert {pair.name: (pair.split, pair.listed.ratio) for pair in catalog.pairs} == {
        "20188_00_0.1s": ("validation", 100),
        "10185_00_0.04s": ("test", 250),
    }
    assert catalog.remarks == ("SID_Sony_15_paired.txt: 1 pairs for validation, 1 pairs for test",)


def snippet(word: str) -> str:
    """The Python code in jobs/README.md that has a word."""
    blocks = re.findall(r"```python\n(.*?)```", (JOBS / "README.md").read_text(), re.DOTALL)
    (code,) = [block for block in blocks if word in block]
    return code


def test_elds_scenes_are_listed_by_the_code_of_the_documentation(tmp_path: Path, monkeypatch, capsys) -> None:
    scenes = [f"NikonD850/scene-{number}/IMG_{frame:04d}.nef" for number in (1, 10) for frame in range(1, 17)]
    monkeypatch.chdir(make_files(tmp_path, *scenes))
    exec(snippet("NikonD850"), {})
    catalog = list_pairs(tmp_path, [write(tmp_path / "eld.csv", capsys.readouterr().out)])
    frames = [(path.parent.name, int(path.stem[-4:])) for pair in catalog.pairs for path in (pair.short, pair.long)]
    found = {short: long[1] for short, long in zip(frames[::2], frames[1::2], strict=True)}
    nearest = {4: 6, 5: 6, 9: 11, 10: 11, 14: 16, 15: 16}
    assert found == {(f"scene-{n}", short): long for n in (1, 10) for short, long in nearest.items()}
    assert {pair.split for pair in catalog.pairs} == {"test"} and {pair.scene for pair in catalog.pairs} == {
        "scene-1",
        "scene-10",
    }


def test_lrds_lists_are_turned_by_the_code_of_the_documentation(tmp_path: Path, monkeypatch, capsys) -> None:
    names = ("LRD/Clean/00308_00_0.2s.DNG", "LRD/Noisy/00308_01_0.05s.DNG", "LRD/Noisy/00308_02_0.025s.DNG")
    monkeypatch.chdir(make_files(tmp_path, *names))
    write(tmp_path / "LRD_val_list.txt", *(f"./{names[0]} ./{noisy} ISO200 -1EV" for noisy in names[1:]))
    exec(snippet("LRD_val_list"), {})
    pairs = list_pairs(tmp_path, [write(tmp_path / "lrd.csv", capsys.readouterr().out)]).pairs
    assert [(pair.name, pair.long_name, pair.split) for pair in pairs] == [
        ("00308_01_0.05s", "00308_00_0.2s", "validation"),
        ("00308_02_0.025s", "00308_00_0.2s", "validation"),
    ]
    with pytest.raises(InputError, match=r"line 1: -1EV: expected SHORT LONG"):
        list_pairs(tmp_path, ["LRD_val_list.txt"])


A, B, C = (f"night1/DSC0000{number}.ARW" for number in (0, 1, 3))
HEADER = "short,long,split,scene,ratio"
BAD = {  # name of the list: lines, and what the error says
    "a missing file": ("l_train.txt", [f"{A} {C}", f"night1/none.ARW {C}"],
                       "l_train.txt, line 2: night1/none.ARW: no such file; tried {root}/night1/none.ARW and "
                       "{list.parent}/night1/none.ARW"),
    "a missing file of a table": ("l.csv", ["short,long,split", f"{A},night9/x.ARW,train"],
                                  "l.csv, line 2: night9/x.ARW: no such file; tried"),
    "two longs": ("l_train.txt", [f"{A} {C}", f"{A} night1/DSC00004.ARW"],
                  "l_train.txt, line 2: DSC00000.ARW has the long exposure DSC00004.ARW, "
                  "in l_train.txt, line 1 DSC00003.ARW: expected one"),
    "a pair twice": ("l_train.txt", [f"{A} {C}", "", f"./{A} {C}"],
                     "l_train.txt, line 3: the same pair as in l_train.txt, line 1: expected it once"),
    "a scene in two splits": ("l.csv", [HEADER, f"{A},{C},train,pier,", f"{B},night1/DSC00004.ARW,test,pier,"],
                              "l.csv, line 3: scene pier is for test, in l.csv, line 2 for train: expected one split"),
    "a long in two splits": ("l.csv", [HEADER, f"{A},{C},train,pier,", f"{B},{C},test,quay,"],
                             "l.csv, line 3: DSC00003.ARW is for test, in l.csv, line 2 for train: expected one split"),
    "itself": ("l_train.txt", [f"{A} {A}"], "l_train.txt, line 1: DSC00000.ARW is both short and long"),
    "ratio 0": ("l.csv", [HEADER, f"{A},{C},train,,0"],
                "l.csv, line 2: the ratio '0': expected a number from 1 to 300"),
    "a ratio of text": ("l.csv", [HEADER, f"{A},{C},train,,x100"],
                        "l.csv, line 2: the ratio 'x100': expected a number from 1 to 300"),
    "no number": ("l.csv", [HEADER, f"{A},{C},train,,nan"], "l.csv, line 2: the ratio 'nan': expected a number"),
    "a large ratio": ("l_train.txt", [f"{A} {C} 400"],
                      "l_train.txt, line 1: the ratio '400': expected a number from 1 to 300"),
    "no ISO": ("l_train.txt", [f"{A} {C} ISO F8"], "l_train.txt, line 1: ISO: expected SHORT LONG, and ISO200"),
    "ISO 0": ("l_train.txt", [f"{A} {C} ISO0"], "l_train.txt, line 1: the iso '0': expected a number from 0.1 to"),
    "another value": ("l_train.txt", [f"{A} {C} ISO200 -1EV"], "l_train.txt, line 1: -1EV: expected SHORT LONG"),
    "a name alone": ("l_train.txt", ["", A], f"l_train.txt, line 2: {A}: expected SHORT LONG"),
    "no split": ("pairs.txt", [f"{A} {C}"],
                 "pairs.txt, line 1: no split for DSC00000.ARW: expected train, val or test"),
    "another split": ("l.csv", ["short,long,split", f"{A},{C},training set"],
                      "l.csv, line 2: the split 'training set': expected train, validation or test"),
    "a header without a split": ("l.csv", ["short,long", f"{A},{C}"],
                                 "l.csv, line 1: the header short,long: expected short,long,split"),
    "a wrong header": ("l.csv", ["input;target;split", f"{A};{C};train"],
                       "l.csv, line 1: the header input;target;split: expected short,long,split"),
    "no header": ("l.csv", [f"{A},{C},train"], "l.csv, line 1: the header night1/DSC00000.ARW,night1"),
    "a value too few": ("l.csv", [HEADER, f"{A},{C},train"], "l.csv, line 2: 3 values: expected 5, short,long"),
    "an empty path": ("l.csv", ["short,long,split", f",{C},train"],
                      "l.csv, line 2: no short exposure: expected the path"),
    "an open quote": ("l.csv", ["short,long,split", f'"{A},{C},train'],
                      "l.csv, line 2: unexpected end of data: expected a table"),
    "a table as a text": ("l_train.txt", ["short,long,split", f"{A},{C},train"],
                          "l_train.txt, line 1: short,long,split: expected SHORT LONG, and ISO200, F9 or a ratio if "
                          "wanted (a table is named NAME.csv)"),
    "nothing": ("l_train.txt", ["", " "], "list {list}: no pairs; expected lines SHORT LONG"),
    "a header alone": ("l.csv", [HEADER], "list {list}: no pairs; expected lines SHORT LONG"),
    "a path outside": ("l_train.txt", [f"../outside/x.ARW {C}"],
                       "l_train.txt, line 1: ../outside/x.ARW is outside of {root}: expected a file in it"),
    "an absolute path outside": ("l_train.txt", [f"/etc/x.ARW {C}"],
                                 "l_train.txt, line 1: /etc/x.ARW is outside of {root}: expected a file in it"),
    "no raw file": ("l_train.txt", [f"night1/notes.tif {C}"],
                    "l_train.txt, line 1: night1/notes.tif: expected a raw file, such as .ARW, .NEF or .DNG"),
}  # fmt: skip


@pytest.mark.parametrize("name, lines, message", BAD.values(), ids=BAD)
def test_a_bad_list_is_refused_in_one_line(
    root: Path, tmp_path: Path, name: str, lines: list[str], message: str
) -> None:
    path = write(tmp_path / name, *lines)
    with pytest.raises(InputError) as caught:
        list_pairs(root, [path])
    assert str(caught.value).startswith(message.format(root=root, list=path)) and "\n" not in str(caught.value)


def test_a_list_that_is_no_text_is_refused(root: Path, tmp_path: Path) -> None:
    for content in (b"\x89PNG\r\n\xff\xfe\x00", bytes(100), f"{A} {C} ISO200 # Brücke".encode("latin-1")):
        (tmp_path / "l_train.txt").write_bytes(content)
        with pytest.raises(InputError, match=r"l_train\.txt: not a text file in UTF-8; expected SID's kind of list"):
            list_pairs(root, [tmp_path / "l_train.txt"])
    with pytest.raises(InputError, match=r"list .*none\.csv: no such file"):
        list_pairs(root, [tmp_path / "none.csv"])
    with pytest.raises(InputError, match=r"list .*: not a file"):
        list_pairs(root, [tmp_path])
    with pytest.raises(InputError, match=r"data folder .*nowhere: no such folder"):
        list_pairs(tmp_path / "nowhere", [tmp_path / "l_train.txt"])


def test_names_that_would_collide_with_their_folders_are_refused(root: Path) -> None:
    make_files(root, "night1_DSC00000.ARW")
    lines = [f"{name} {C}" for name in (A, "night2/DSC00000.ARW", "night1_DSC00000.ARW")]
    with pytest.raises(InputError, match=r"would both be named night1_DSC00000: rename one of them"):
        list_pairs(root, [write(root / "l_train.txt", *lines)])


def test_a_list_on_this_machine_names_files_in_an_object_store(store, tmp_path: Path) -> None:
    root = storage.to_path("s3://bucket/test")
    for name in ("Short/DSC00000.ARW", "Long/DSC00000.ARW"):
        (root / name).write_bytes(b"x")
    listed = write(tmp_path / "l_train.txt", "short/DSC00000.ARW s3://bucket/test/Long/DSC00000.ARW")
    (pair,) = list_pairs("s3://bucket/test", [listed]).pairs
    assert (str(pair.short), str(pair.long)) == (
        "s3://bucket/test/Short/DSC00000.ARW",
        "s3://bucket/test/Long/DSC00000.ARW",
    )
    store.requests.clear()
    with pytest.raises(InputError, match=r"none\.ARW: no such file; tried s3://bucket/test/none\.ARW"):
        list_pairs(root, [write(tmp_path / "l_train.txt", "none.ARW Long/DSC00000.ARW")])
