"""Which short exposure belongs to which long one, in a folder laid out and named as SID's."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from lsid_ray import storage
from lsid_ray.errors import InputError
from lsid_ray.raw.mosaic import amplification_ratio
from lsid_ray.storage import AnyPath, Remote

SPLITS = {"0": "train", "1": "test", "2": "validation"}  # by the scene's first digit
# Camera and scene moved between the exposures: SID's authors name them in their repository (cchen156).
MISALIGNED_SCENES = frozenset({"10034", "10045", "10172"})
RAW_SUFFIXES = (
    ".3fr",
    ".arw",
    ".cr2",
    ".cr3",
    ".crw",
    ".dng",
    ".erf",
    ".fff",
    ".iiq",
    ".kdc",
    ".mef",
    ".mos",
)
RAW_SUFFIXES += (
    ".mrw",
    ".nef",
    ".nrw",
    ".orf",
    ".pef",
    ".raf",
    ".raw",
    ".rw2",
    ".rwl",
    ".sr2",
    ".srf",
    ".srw",
)
RAW_SUFFIXES += (".x3f",)
_NAME = re.compile(r"(?P<scene>[012]\d{4})_(?P<frame>\d{2,})(?:_(?P<exposure_s>\d+(?:\.\d+)?)s)?")


@dataclass(frozen=True)
class Pair:
    """A short exposure and the long one it is to become."""

    name: str
    """The short's file name without suffix: "10003_00_0.04s"."""
    scene: str
    """Five digits: "10003"."""
    split: str
    """"train", "validation" or "test"."""
    frame: int
    """The short's number in its burst; 0 is the first."""
    short: AnyPath
    long: AnyPath
    short_s: float | None
    """Exposure time in seconds, from the name; None when the name has none."""
    long_s: float | None
    ratio: float | None
    """min(long_s / short_s, 300); None when a time is unknown."""


@dataclass(frozen=True)
class Catalog:
    """Everything a data set's folder holds; each raw file is in a pair or in `problems`."""

    pairs: tuple[Pair, ...]
    """Sorted by name."""
    excluded: tuple[Pair, ...]
    """Test pairs of MISALIGNED_SCENES."""
    problems: tuple[tuple[AnyPath, str], ...]
    """Files that are in no pair, each with the reason."""


def read_catalog(root: str | AnyPath, exclude_misaligned: bool = True) -> Catalog:
    """The pairs of a data set's folder, from file names alone; `root` holds `short/` and `long/`.

    Raises InputError when the folder is missing, has no `short/` and `long/`, or no pair at all.
    """
    root = storage.path(root)
    unusable: list[tuple[AnyPath, str]] = []
    try:
        if not root.is_dir():
            raise InputError(f"data folder {root}: no such folder; expected one that holds short/ and long/")
        if not _holds_pairs(root):
            inside = [folder for folder in sorted(root.iterdir()) if folder.is_dir() and _holds_pairs(folder)]
            hint = f"; pass {' or '.join(map(str, inside))}" if inside else ""
            raise InputError(f"data folder {root}: expected the folders short/ and long/ in it{hint}")
        shorts, longs = (_raw_files(root / kind, unusable) for kind in ("short", "long"))
    except OSError as error:
        raise InputError(f"data folder {error.filename or root}: {error.strerror}") from None
    if not shorts and not longs and not unusable:
        raise InputError(f"data folder {root}: no raw files in short/ and long/")
    catalog = pair_names(shorts, longs, exclude_misaligned)
    catalog = replace(catalog, problems=tuple(sorted([*catalog.problems, *unusable])))
    if not catalog.pairs and not catalog.excluded:
        path, reason = catalog.problems[0]
        raise InputError(f"data folder {root}: no pair of short and long among {len(shorts + longs + unusable)} "
                         f"files; {path.name}: {reason}")  # fmt: skip
    return catalog


def pair_names(
    short_names: Iterable[str | AnyPath], long_names: Iterable[str | AnyPath], exclude_misaligned: bool = True
) -> Catalog:
    """Pair file names alone, without touching a disk.

    A short belongs to the long of its scene: of several, the one of its own frame, else the first frame's
    (as SID, whose bursts of shorts share one long). Of equal frames the longest exposure is taken.
    """
    problems: list[tuple[AnyPath, str]] = []
    longs_of: dict[str, list[tuple[int, float, AnyPath]]] = {}
    for path, scene, frame, exposure_s in _parsed(long_names, problems):
        longs_of.setdefault(scene, []).append((frame, exposure_s, path))
    pairs, used = [], set()
    for path, scene, frame, short_s in _parsed(short_names, problems):
        if scene not in longs_of:
            problems.append((path, f"no long exposure of scene {scene}"))
            continue
        _, long_s, long = min(longs_of[scene], key=lambda long: (long[0] != frame, long[0], -long[1]))
        used.add(long)
        if short_s > long_s > 0:
            problems.append((path, f"its long exposure {long.name} is shorter than it"))
            continue
        pairs.append(_pair(path, scene, frame, short_s, long, long_s))
    unused = [entry[2] for entries in longs_of.values() for entry in entries if entry[2] not in used]
    problems += [(path, "no short exposure belongs to it") for path in unused]
    pairs.sort(key=lambda pair: (pair.name, str(pair.short)))
    moved = [pair for pair in pairs if exclude_misaligned and pair.split == "test" and pair.scene in MISALIGNED_SCENES]
    kept = [pair for pair in pairs if pair not in moved]
    return Catalog(tuple(kept), tuple(moved), tuple(sorted(problems)))


def _parsed(
    names: Iterable[str | AnyPath], problems: list[tuple[AnyPath, str]]
) -> Iterable[tuple[AnyPath, str, int, float]]:
    """(path, scene, frame, exposure in seconds or 0) of each name; those that cannot be go to `problems`."""
    seen: dict[str, AnyPath] = {}
    for path in map(storage.path, names):
        found = _NAME.fullmatch(path.stem)
        if found is None:
            problems.append((path, "name does not parse; expected one like 10003_00_0.04s.ARW, first digit 0, 1 or 2"))
        elif path.stem in seen:
            problems.append((path, f"same name as {seen[path.stem].name}"))
        else:
            seen[path.stem] = path
            yield path, found["scene"], int(found["frame"]), float(found["exposure_s"] or 0)


def _pair(short: AnyPath, scene: str, frame: int, short_s: float, long: AnyPath, long_s: float) -> Pair:
    known = short_s > 0 and long_s > 0
    return Pair(
        name=short.stem,
        scene=scene,
        split=SPLITS[scene[0]],
        frame=frame,
        short=short,
        long=long,
        short_s=short_s or None,
        long_s=long_s or None,
        ratio=amplification_ratio(long_s, short_s) if known else None,
    )


def _holds_pairs(folder: AnyPath) -> bool:
    return (folder / "short").is_dir() and (folder / "long").is_dir()


def _raw_files(folder: AnyPath, unusable: list[tuple[AnyPath, str]]) -> list[AnyPath]:
    """Files with a raw file's name, sorted; what has the name and is no file goes to `unusable`."""
    files = []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in RAW_SUFFIXES or path.name[0] == ".":
            continue
        if isinstance(path, Remote):  # to ask each what it is would take long
            files.append(path)
            continue
        shown = os.fsencode(path.name).decode(errors="backslashreplace")
        if shown != path.name:
            unusable.append((folder / shown, "its name is not UTF-8"))
        elif path.is_file():
            files.append(path)
        else:
            kind = "a folder" if path.is_dir() else "a link that leads nowhere" if path.is_symlink() else "no file"
            unusable.append((path, f"{kind}; expected a raw file"))
    return files
