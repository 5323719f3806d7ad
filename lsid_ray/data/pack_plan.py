"""Plan a packing: which raw files have their shards, and which must be read.

The state of the files comes from the index, or from the shards themselves if a killed run never wrote an index.
"""

import dataclasses
import itertools
import os
from collections.abc import Container, Sequence
from typing import Any

from lsid_ray import __version__, storage
from lsid_ray.config.serialization import difference
from lsid_ray.data.catalog import Catalog, RawPair
from lsid_ray.data.checksum import file_xxh128
from lsid_ray.data.convert import PackTask, shard_path
from lsid_ray.data.index import INDEX, PREVIOUS_INDEX, Index, PackedFrame, SourceFile, read_index
from lsid_ray.data.pair_list import list_pairs
from lsid_ray.data.shard import read_metadata
from lsid_ray.errors import InputError
from lsid_ray.raw.render import has_sid_white, rendering_parameters
from lsid_ray.storage import AnyPath


@dataclasses.dataclass
class PackPlan:
    """The state of a destination and its raw files, and the tasks that bring it up to date."""

    root: AnyPath
    destination: AnyPath
    tile: int
    sid_white: bool
    """As `raw.render.reference_rendering`."""
    catalog: Catalog
    index: Index | None
    """The index of the destination, current or previous."""
    index_is_current: bool
    """The index describes the folder as it is: no packing was interrupted."""
    existing: dict[str, tuple[int, int]]
    """Files in the destination, as `storage.list_files`."""
    sources: dict[str, SourceFile]
    """Raw files that need no task; execution adds the others."""
    frames: dict[str, PackedFrame]
    """Their shards, by path."""
    reasons: dict[str, str]
    """Why files are left out, by path relative to `root`."""
    tasks: list[PackTask]

    @property
    def pairs(self) -> list[RawPair]:
        return [*self.catalog.pairs, *self.catalog.excluded]

    @property
    def files(self) -> dict[str, AnyPath]:
        """The raw files of all pairs, by name."""
        return {name: path for pair in self.pairs for name, path in pair.files.items()}


def plan_packing(
    root: AnyPath,
    destination: AnyPath,
    tile: int,
    broken: frozenset[str],
    sid_white: bool | None = None,
    lists: Sequence[str] = (),
) -> PackPlan:
    """Compare raw files, index and shards. Reads no raw file, unless the modification times of all have changed.

    broken: paths of shards that are packed again even if they look valid. sid_white: as
    `raw.render.reference_rendering`; None: as the destination was packed, if it was. lists: as `list_pairs`.
    Raises: InputError if `root` or a list is not usable, or `destination` was packed from different data or options.
    """
    catalog = list_pairs(root, lists)
    index, is_current = _read_last_index(destination)
    if sid_white is None:
        sid_white = index is not None and has_sid_white(index.rendering)
    existing = storage.list_files(destination)
    plan = PackPlan(root, destination, tile, sid_white, catalog, index, is_current, existing, {}, {}, {}, [])
    plan.reasons |= {str(path.relative_to(root)): reason for path, reason in catalog.problems}
    files = plan.files
    raw_files = _list_raw_files(plan, files)
    _check_same_data(plan, raw_files, files)
    for name, size_and_time in raw_files.items():
        indexed = index.sources.get(name) if index else None
        if indexed is not None and indexed.reason and index.program != __version__:
            indexed = None  # this version may be able to read it
        unchanged = indexed is not None and (indexed.bytes, indexed.mtime_ns) == size_and_time
        shard = shard_path(name)
        if unchanged and indexed.reason:
            plan.sources[name] = indexed
            plan.reasons[str(files[name].relative_to(root))] = indexed.reason
        elif unchanged and indexed.shard and shard not in broken and _has_valid_shard(plan, indexed):
            plan.sources[name], plan.frames[shard] = indexed, index.frames[shard]
        else:
            xxh128 = index.frames[shard].shard.xxh128 if indexed is not None and indexed.shard else ""
            plan.tasks.append(PackTask(name, str(files[name]), indexed, xxh128, shard not in broken, sid_white))
    plan.tasks = _order_tasks(plan.tasks, plan.existing)
    return plan


def _read_last_index(destination: AnyPath) -> tuple[Index | None, bool]:
    """The current or else the previous index of a destination, and whether it describes the folder as it is."""
    for name in (INDEX, PREVIOUS_INDEX):
        if (destination / name).exists():
            try:
                index = read_index(destination, name)
            except InputError as error:
                raise InputError(f"{error}: choose another folder, or delete it to pack again") from None
            return index, name == INDEX and not (destination / PREVIOUS_INDEX).exists()
    return None, False


def _list_raw_files(plan: PackPlan, files: dict[str, AnyPath]) -> dict[str, tuple[int, int]]:
    """Size in bytes and mtime in ns of the raw files of all pairs, by name, sorted; `plan.reasons` has deleted ones."""
    listed = {
        folder / name: size_and_time
        for folder in {path.parent for path in files.values()}
        for name, size_and_time in storage.list_files(folder).items()
    }
    raw_files = {}
    for name, path in sorted(files.items()):
        if path in listed:
            raw_files[name] = listed[path]
        else:
            plan.reasons[str(path.relative_to(plan.root))] = "it has gone since its folder was listed"
    return raw_files


def _check_same_data(plan: PackPlan, raw_files: dict[str, tuple[int, int]], files: dict[str, AnyPath]) -> None:
    """Raise InputError if the destination holds shards of another data set, tile side or rendering."""
    mismatch = f"{plan.destination} was packed from different data or options: "
    advice = "; choose another folder, or delete it to pack again"
    index = plan.index
    if index is None:  # shards may be left from a killed run
        shards = (plan.destination / name for name in sorted(plan.existing) if name.endswith(".parquet"))
        records = filter(None, map(read_metadata, shards))
        first = next(records, None)
        if first is not None and not any(_is_of(record, raw_files) for record in itertools.chain([first], records)):
            raise InputError(f"{mismatch}expected shards of {plan.root}{advice}")
        return
    if index.tile != plan.tile:
        raise InputError(f"{mismatch}in tiles of {index.tile}, not {plan.tile}{advice}")
    if changed := difference(index.rendering, rendering_parameters(plan.sid_white)):
        name, before, now = changed
        raise InputError(f"{mismatch}rendered with {name} {before}, not {now}{advice}")
    indexed = index.sources
    same_size = [name for name, (size, _) in raw_files.items() if name in indexed and indexed[name].bytes == size]
    if any(indexed[name].mtime_ns == raw_files[name][1] for name in same_size):
        return
    for name in same_size:  # a copy that lost its modification times has the same content
        try:
            if file_xxh128(files[name]) == indexed[name].xxh128:
                return
        except OSError:
            continue
    raise InputError(f"{mismatch}expected shards of {plan.root}{advice}")


def _is_of(record: dict[str, Any], raw_files: dict[str, tuple[int, int]]) -> bool:
    """Whether a shard's metadata names one of the raw files with its size."""
    shard = record["frame"]["shard"]
    size_and_time = raw_files.get(f"{os.path.dirname(shard['path'])}/{shard['source']}")
    return size_and_time is not None and size_and_time[0] == shard["source_bytes"]


def _has_valid_shard(plan: PackPlan, indexed: SourceFile) -> bool:
    """Whether a shard is as the index has it, as far as its size and metadata tell."""
    size, _ = plan.existing.get(indexed.shard, (None, None))
    if size != plan.index.frames[indexed.shard].shard.bytes:
        return False
    # A killed run may have packed a changed raw file that has been changed back since.
    expected = plan.index.shard_metadata(indexed.shard)
    return plan.index_is_current or read_metadata(plan.destination / indexed.shard) == expected


def _order_tasks(tasks: list[PackTask], existing: Container[str]) -> list[PackTask]:
    """Files with a shard first, then the rest, with long exposures spread over the first three quarters.

    A long exposure takes many times as long as a short one. This order keeps the rate steady, and no core still works
    on a long exposure after all others have finished.
    """
    positions = {}
    for kind, end in (("long/", 0.75), ("short/", 1.0)):
        of_kind = [task for task in tasks if task.name.startswith(kind)]
        positions |= {task.name: end * number / len(of_kind) for number, task in enumerate(of_kind)}
    return sorted(tasks, key=lambda task: (shard_path(task.name) not in existing, positions[task.name]))
