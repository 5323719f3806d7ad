"""Match short and long exposures by file name, in a folder with SID's layout and names."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from lsid_ray import storage
from lsid_ray.errors import InputError
from lsid_ray.object_store import RemotePath
from lsid_ray.raw.mosaic import amplification_ratio
from lsid_ray.raw.names import RAW_SUFFIXES, SPLITS, parse_sid_name
from lsid_ray.storage import AnyPath

NO_SHORT = "no matching short exposure"
UNKNOWN_NAME = "name does not parse; expected one like 10003_00_0.04s.ARW, first digit 0, 1 or 2"
OTHER_WAYS = (
    "for other names, list the pairs in a file, with --list (in training --data.lists): a line SHORT LONG per pair, as "
    "in SID's Sony_train_list.txt, or a table NAME.csv with the header short,long,split"
)
# Sony's scenes that moved between the exposures, as listed in the repository of SID's authors (cchen156).
MISALIGNED_SCENES = frozenset({"10034", "10045", "10172"})


@dataclass(frozen=True)
class Listed:
    """What a list says of a pair besides its files; None where it says nothing."""

    where: str
    """File and line: "pairs.csv, line 12"."""
    ratio: float | None = None
    """Amplification, in [1, 300]."""
    iso: float | None = None
    """Of both exposures, as `aperture`."""
    aperture: float | None = None
    """The f-number."""


@dataclass(frozen=True)
class RawPair:
    """Raw files of a short exposure and of the long exposure that is its target."""

    name: str
    """File name of the short exposure without suffix: "10003_00_0.04s". Unique: see `pair_list`."""
    long_name: str
    """The same of the long exposure: "10003_00_10s"."""
    scene: str
    """In SID five digits: "10003"."""
    split: str
    """"train", "validation" or "test"."""
    frame: int
    """Number of the short exposure in its burst, from 0."""
    short: AnyPath
    long: AnyPath
    short_s: float | None
    """Exposure time in seconds, from the file name; None if the name has none."""
    long_s: float | None
    ratio: float | None
    """min(long_s / short_s, 300); None if either time is unknown."""
    listed: Listed | None = None
    """None without a list."""

    @property
    def files(self) -> dict[str, AnyPath]:
        """Short, then long, by name in a packed data set: "short/10003_00_0.04s.ARW", "long/10003_00_10s.ARW"."""
        return {
            f"short/{self.name}{self.short.suffix}": self.short,
            f"long/{self.long_name}{self.long.suffix}": self.long,
        }


@dataclass(frozen=True)
class Catalog:
    """The raw files of a data set; each is in a pair or in `problems`."""

    pairs: tuple[RawPair, ...]
    """Sorted by name."""
    excluded: tuple[RawPair, ...]
    """Test pairs of MISALIGNED_SCENES."""
    problems: tuple[tuple[AnyPath, str], ...]
    """Files in no pair, each with the reason."""
    remarks: tuple[str, ...] = ()
    """What a user should know of the lists, a line each."""


def read_catalog(root: str | AnyPath, exclude_misaligned: bool = True) -> Catalog:
    """List the pairs of a data set by file name alone; `root` contains `exposure_folders`.

    Raises: InputError if the folder is missing, has no `short/` and `long/`, has two of either, or has no pair.
    """
    root = storage.to_path(root)
    unusable: list[tuple[AnyPath, str]] = []
    try:
        if not root.is_dir():
            raise InputError(f"data folder {root}: no such folder; expected one that contains short/ and long/")
        folders = exposure_folders(root)
        if not all(folders.values()):
            others = [folder for folder in sorted(root.iterdir()) if folder.is_dir()]
            candidates = [str(folder) for folder in others if all(exposure_folders(folder).values())]
            hint = f"; pass {' or '.join(candidates)}" if candidates else f"; {OTHER_WAYS}"
            raise InputError(f"data folder {root}: expected it to contain the folders short/ and long/{hint}")
        for same in folders.values():
            if len(same) > 1:
                names = " and ".join(folder.name for folder in same)
                raise InputError(f"data folder {root}: contains {names}: expected one of them")
        shorts, longs = (_raw_files(folders[kind][0], unusable) for kind in ("short", "long"))
    except OSError as error:
        raise InputError(f"data folder {error.filename or root}: {error.strerror}") from None
    if not shorts and not longs and not unusable:
        raise InputError(f"data folder {root}: no raw files in short/ and long/")
    catalog = pair_names(shorts, longs, exclude_misaligned)
    catalog = replace(catalog, problems=tuple(sorted([*catalog.problems, *unusable])))
    if not catalog.pairs and not catalog.excluded:
        # A long without a short is only the consequence of a short that does not parse.
        path, reason = min(catalog.problems, key=lambda problem: (problem[1] == NO_SHORT, problem[0] not in shorts))
        count = len(shorts + longs + unusable)
        hint = f"; {OTHER_WAYS}" if reason == UNKNOWN_NAME else ""
        raise InputError(
            f"data folder {root}: no pair of short and long exposures among {count} files; {path.name}: {reason}{hint}"
        )
    return catalog


def exposure_folders(root: AnyPath) -> dict[str, list[AnyPath]]:
    """The folders of the short and of the long exposures in `root`: short/ or shorts/, long/ or longs/, in any case."""
    folders: dict[str, list[AnyPath]] = {"short": [], "long": []}
    for path in sorted(root.iterdir()):
        kind = path.name.lower().removesuffix("s")
        if kind in folders and path.is_dir():
            folders[kind].append(path)
    return folders


def pair_names(
    short_names: Iterable[str | AnyPath], long_names: Iterable[str | AnyPath], exclude_misaligned: bool = True
) -> Catalog:
    """Pair file names, without accessing any file.

    A short exposure is paired with a long one of its scene. If there are several, the one with the same frame number
    is preferred, then the lowest frame number (in SID a burst shares one long exposure), then the longest exposure.
    """
    problems: list[tuple[AnyPath, str]] = []
    longs_by_scene: dict[str, list[tuple[int, float, AnyPath]]] = {}
    for path, scene, frame, exposure_s in _parsed(long_names, problems):
        longs_by_scene.setdefault(scene, []).append((frame, exposure_s, path))
    pairs, used = [], set()
    for path, scene, frame, short_s in _parsed(short_names, problems):
        if scene not in longs_by_scene:
            problems.append((path, f"no long exposure of scene {scene}"))
            continue
        _, long_s, long = min(longs_by_scene[scene], key=lambda long: (long[0] != frame, long[0], -long[1]))
        used.add(long)
        if short_s > long_s > 0:
            problems.append((path, f"its long exposure {long.name} is shorter than the short exposure"))
            continue
        pairs.append(_pair(path, scene, frame, short_s, long, long_s))
    unused = [path for longs in longs_by_scene.values() for _, _, path in longs if path not in used]
    problems += [(path, NO_SHORT) for path in unused]
    pairs.sort(key=lambda pair: (pair.name, str(pair.short)))
    excluded = [pair for pair in pairs if exclude_misaligned and is_misaligned(pair.split, pair.long)]
    included = [pair for pair in pairs if pair not in excluded]
    return Catalog(tuple(included), tuple(excluded), tuple(sorted(problems)))


def is_misaligned(split: str, long: AnyPath) -> bool:
    """Whether a test pair is of a scene that SID's authors leave out; Fuji's scenes of these numbers are others."""
    sid = parse_sid_name(long.stem)
    known = sid is not None and sid.scene in MISALIGNED_SCENES and long.suffix.lower() != ".raf"
    return split == "test" and known


def _parsed(
    names: Iterable[str | AnyPath], problems: list[tuple[AnyPath, str]]
) -> Iterable[tuple[AnyPath, str, int, float]]:
    """Yield (path, scene, frame, exposure in seconds or 0) per name; append names that do not parse to `problems`."""
    path_by_stem: dict[str, AnyPath] = {}
    for path in map(storage.to_path, names):
        parsed = parse_sid_name(path.stem)
        if parsed is None:
            problems.append((path, UNKNOWN_NAME))
        elif path.stem in path_by_stem:
            problems.append((path, f"same name as {path_by_stem[path.stem].name}"))
        else:
            path_by_stem[path.stem] = path
            yield path, parsed.scene, parsed.frame, parsed.exposure_s or 0.0


def _pair(short: AnyPath, scene: str, frame: int, short_s: float, long: AnyPath, long_s: float) -> RawPair:
    known = 0 < short_s <= long_s  # a short one that is longer may have another ISO or aperture
    return RawPair(
        name=short.stem,
        long_name=long.stem,
        scene=scene,
        split=SPLITS[scene[0]],
        frame=frame,
        short=short,
        long=long,
        short_s=short_s or None,
        long_s=long_s or None,
        ratio=amplification_ratio(long_s, short_s) if known else None,
    )


def _raw_files(folder: AnyPath, unusable: list[tuple[AnyPath, str]]) -> list[AnyPath]:
    """Files with the suffix of a raw file, sorted; other entries with such a suffix are appended to `unusable`."""
    files = []
    for path in sorted(folder.iterdir()):
        if path.name[0] == ".":
            continue
        if path.suffix.lower() not in RAW_SUFFIXES:
            if (
                isinstance(folder, Path)
                and path.is_dir()
                and any(f.suffix.lower() in RAW_SUFFIXES for f in path.iterdir())
            ):
                unusable.append((path, f"a folder with raw files; expected them in {folder.name}/ itself"))
            continue
        if isinstance(path, RemotePath):  # one request per file to check its type would be slow
            files.append(path)
            continue
        printable = os.fsencode(path.name).decode(errors="backslashreplace")
        if printable != path.name:
            unusable.append((folder / printable, "its name is not UTF-8"))
        elif path.is_file():
            files.append(path)
        else:
            kind = "a folder" if path.is_dir() else "a broken symlink" if path.is_symlink() else "not a regular file"
            unusable.append((path, f"{kind}; expected a raw file"))
    return files
