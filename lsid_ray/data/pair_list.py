"""Lists that say which files of a data set belong together, for files of any name.

    SID's (any name):     ./Sony/short/10003_00_0.04s.ARW ./Sony/long/10003_00_10s.ARW ISO200 F9
    ELD's of SID:         10185_00_0.1s.ARW 10185_00_10s.ARW 100
    a table (NAME.csv):   short,long,split,scene,ratio
                          night/DSC00042.ARW,night/DSC00049.ARW,train,harbor,100

A path is relative to the data set's folder or else to the list's, and lies in the data set's folder; a bare name may
also lie in its folders of short and long exposures, which may be named Short or longs. ISO and aperture are of both
exposures. SID's kind of list has one split, that in its name (train, val, test); without one, SID's names of the files
tell it by the first digit. A scene without a name has SID's number, or else the name of its long exposure.

Formats from SID's Sony_train_list.txt (github.com/cchen156/Learning-to-See-in-the-Dark) and ELD's
SID_Sony_15_paired.txt (github.com/Vandermode/ELD).
"""

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from lsid_ray import storage
from lsid_ray.data.catalog import Catalog, Listed, RawPair, is_misaligned, read_catalog
from lsid_ray.data.listed_file import FileFinder
from lsid_ray.errors import InputError
from lsid_ray.raw.mosaic import MAX_RATIO, amplification_ratio
from lsid_ray.raw.names import SPLITS, exposure_from_name, parse_sid_name
from lsid_ray.storage import AnyPath

REQUIRED, OPTIONAL = ("short", "long", "split"), ("scene", "ratio")
HEADER = "short,long,split, and scene and ratio if wanted"
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class _Row:
    """A line of a list."""

    listed: Listed
    short: AnyPath
    long: AnyPath
    split: str
    scene: str
    """Empty if the list does not tell."""


def list_pairs(root: str | AnyPath, lists: Sequence[str | AnyPath] = ()) -> Catalog:
    """The pairs of a data set: those in `lists`, or without lists those that SID's names tell (`read_catalog`).

    Raw files that no list names are not part of the data set. Two shorts (or longs) of one name in different folders
    are named with their folders: "night1_DSC00042".
    Raises: InputError as `read_catalog`; with list and line for a list that cannot be read, is empty or has a line
    that cannot be understood, a file that is missing, outside of `root` or not raw, a pair twice, a short with two
    longs, or a scene or long in two splits.
    """
    if not lists:
        return read_catalog(root)
    root = storage.to_path(root).absolute()
    if not root.is_dir():
        raise InputError(f"data folder {root}: no such folder; expected one that contains the listed files")
    finder = FileFinder(root)
    rows, remarks = [], []
    for path in map(storage.to_path, lists):
        of_list = list(_read_list(path, finder))
        if not of_list:
            raise InputError(f"list {path}: no pairs; expected lines SHORT LONG, or a table with the header {HEADER}")
        rows += of_list
        counts = Counter(row.split for row in of_list)
        remarks.append(f"{path.name}: {', '.join(f'{count} pairs for {split}' for split, count in counts.items())}")
    _check_once(rows)
    return _catalog(root, rows, tuple(remarks))


def _read_list(path: AnyPath, finder: FileFinder) -> Iterator[_Row]:
    try:
        if not path.is_file():
            reason = "not a file" if path.exists() else "no such file"
            raise InputError(f"list {path}: {reason}; expected SID's kind of list, or a table (CSV)")
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"list {path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise InputError(f"list {path}: not a text file in UTF-8; expected SID's kind of list, or a table (CSV)")
    lines = text.splitlines()
    read = _read_table if path.suffix.lower() == ".csv" else _read_sid_list
    yield from read(path, lines, finder)


def _read_sid_list(path: AnyPath, lines: list[str], finder: FileFinder) -> Iterator[_Row]:
    """Lines SHORT LONG [ISO200] [F9] [RATIO]."""
    splits = {SPLIT_NAMES[part] for part in re.split("[^a-z]+", path.stem.lower()) if part in SPLIT_NAMES}
    for number, line in enumerate(lines, start=1):
        where, values = f"{path.name}, line {number}", line.split()
        if not values:
            continue
        expected = "expected SHORT LONG, and ISO200, F9 or a ratio if wanted (a table is named NAME.csv)"
        if len(values) < 2:
            raise InputError(f"{where}: {line.strip()[:80]}: {expected}")
        settings = {}
        for value in values[2:]:
            found = re.fullmatch(r"(ISO|F|)([0-9.]+)", value, re.ASCII | re.IGNORECASE)
            name = found and {"ISO": "iso", "F": "aperture", "": "ratio"}[found[1].upper()]
            if not name or name in settings:
                raise InputError(f"{where}: {value[:80]}: {expected}")
            settings[name] = _number(where, name, found[2])
        short, long = (
            finder.find(name, path, where, kind) for name, kind in zip(values, ("short", "long"), strict=False)
        )
        sid = parse_sid_name(short.stem)
        if len(splits) != 1 and sid is None:
            raise InputError(
                f"{where}: no split for {short.name}: expected train, val or test in the list's name, or SID's names"
            )
        split = next(iter(splits)) if len(splits) == 1 else SPLITS[sid.scene[0]]
        yield _Row(Listed(where, **settings), short, long, split, "")


def _read_table(path: AnyPath, lines: list[str], finder: FileFinder) -> Iterator[_Row]:
    """A CSV file with a header."""
    reader = csv.reader(lines, strict=True)
    columns: list[str] = []
    try:
        for values in reader:
            where, values = f"{path.name}, line {reader.line_num}", [value.strip() for value in values]
            if not any(values):
                continue
            if not columns:
                columns = [value.lower() for value in values]
                unknown = [name for name in columns if name not in REQUIRED + OPTIONAL]
                if unknown or not set(REQUIRED) <= set(columns) or len(set(columns)) < len(columns):
                    raise InputError(f"{where}: the header {','.join(values)[:80]}: expected {HEADER}")
                continue
            if len(values) != len(columns):
                raise InputError(f"{where}: {len(values)} values: expected {len(columns)}, {','.join(columns)}")
            row = dict(zip(columns, values, strict=True))
            split = SPLIT_NAMES.get(row["split"].lower())
            if split is None:
                raise InputError(f"{where}: the split {row['split'][:80]!r}: expected train, validation or test")
            ratio = _number(where, "ratio", row["ratio"]) if row.get("ratio") else None
            short, long = (finder.find(row[kind], path, where, kind) for kind in ("short", "long"))
            yield _Row(Listed(where, ratio), short, long, split, row.get("scene", ""))
    except csv.Error as error:
        raise InputError(f"{path.name}, line {reader.line_num}: {error}: expected a table with commas (CSV)") from None


def _number(where: str, name: str, text: str) -> float:
    least, most = (1.0, MAX_RATIO) if name == "ratio" else (0.1, 1e7)
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not least <= number <= most:
        raise InputError(f"{where}: the {name} {text[:80]!r}: expected a number from {least:g} to {most:,.0f}")
    return number


def _check_once(rows: Iterable[_Row]) -> None:
    """Raise InputError for a pair that is listed twice, and for files that are in two pairs or splits."""
    by_short: dict[AnyPath, _Row] = {}
    by_long: dict[AnyPath, _Row] = {}
    for row in rows:
        where = row.listed.where
        if row.short == row.long:
            raise InputError(f"{where}: {row.short.name} is both short and long: expected two files")
        if (first := by_short.setdefault(row.short, row)) is not row:
            if first.long == row.long:
                raise InputError(f"{where}: the same pair as in {first.listed.where}: expected it once")
            raise InputError(
                f"{where}: {row.short.name} has the long exposure {row.long.name}, in {first.listed.where} "
                f"{first.long.name}: expected one"
            )
        if (first := by_long.setdefault(row.long, row)).split != row.split:
            raise InputError(
                f"{where}: {row.long.name} is for {row.split}, in {first.listed.where} for {first.split}: "
                "expected one split"
            )


def _catalog(root: AnyPath, rows: list[_Row], remarks: tuple[str, ...]) -> Catalog:
    short_names = _unique_names(root, (row.short for row in rows))
    long_names = _unique_names(root, (row.long for row in rows))
    by_scene: dict[str, _Row] = {}
    frames: Counter[str] = Counter()
    pairs, excluded = [], []
    for row in rows:
        sid_short, sid_long = parse_sid_name(row.short.stem), parse_sid_name(row.long.stem)
        scene = row.scene or (sid_long.scene if sid_long else long_names[row.long])
        first = by_scene.setdefault(scene, row)
        if first.split != row.split:
            raise InputError(
                f"{row.listed.where}: scene {scene} is for {row.split}, in {first.listed.where} for {first.split}: "
                "expected one split"
            )
        short_s, long_s = (exposure_from_name(path.name) for path in (row.short, row.long))
        pair = RawPair(
            name=short_names[row.short],
            long_name=long_names[row.long],
            scene=scene,
            split=row.split,
            frame=sid_short.frame if sid_short else frames[scene],
            short=row.short,
            long=row.long,
            short_s=short_s,
            long_s=long_s,
            ratio=amplification_ratio(long_s, short_s) if short_s and long_s and short_s <= long_s else None,
            listed=row.listed,
        )
        frames[scene] += 1
        (excluded if is_misaligned(row.split, row.long) else pairs).append(pair)
    ordered = (tuple(sorted(some, key=lambda pair: pair.name)) for some in (pairs, excluded))
    return replace(Catalog(*ordered, problems=()), remarks=remarks)


def _unique_names(root: AnyPath, paths: Iterable[AnyPath]) -> dict[AnyPath, str]:
    """A name for each file: its own without suffix, or where files share that (in any case), with its folders."""
    files = list(dict.fromkeys(paths))
    counts = Counter(path.stem.casefold() for path in files)
    names = {
        path: path.stem if counts[path.stem.casefold()] == 1 else "_".join(path.relative_to(root).with_suffix("").parts)
        for path in files
    }
    by_name: dict[str, AnyPath] = {}
    for path, name in names.items():
        if (first := by_name.setdefault(name.casefold(), path)) != path:
            raise InputError(f"{first} and {path} would both be named {name}: rename one of them")
    return names
