"""Verify shards against their index, and repair what is broken by packing it again."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from lsid_ray import cluster, storage
from lsid_ray.data.checksum import content_problem
from lsid_ray.data.index import read_index, unlisted_files
from lsid_ray.data.pack import Progress, update_shards
from lsid_ray.data.pair_list import list_pairs
from lsid_ray.data.parallel import parallel_map, reuse_freed_memory
from lsid_ray.data.shard import Shard, iter_tiles, read_metadata
from lsid_ray.errors import InputError
from lsid_ray.storage import AnyPath


@dataclasses.dataclass(frozen=True)
class RepairResult:
    """What was broken before a repair, and what still is."""

    broken: tuple[tuple[str, str], ...]
    """Broken shards and unexpected files, each with the reason."""
    remaining: tuple[tuple[str, str], ...]
    """What is still broken, and raw files that could not be packed again, each with the reason."""


def verify_shards(
    folder: str | AnyPath,
    progress: Progress = lambda done, total: None,
    only: Iterable[str] | None = None,
) -> list[tuple[str, str]]:
    """Broken and unexpected files in a folder of shards, each path with the reason, sorted; empty if it is intact.

    Reads every byte of every shard, or of those in `only`, on the Ray cluster. Raises: InputError as `read_index`.
    """
    folder = storage.to_path(folder).absolute()
    index = read_index(folder)
    cluster.connect()
    paths = sorted(index.frames if only is None else set(only) & set(index.frames))
    checks = [(index.frames[path].shard, index.shard_metadata(path)) for path in paths]
    broken = [(path, "unexpected file: not in the index") for path in unlisted_files(folder, index)]
    progress(0, len(checks))
    for done, ((shard, _), reason) in enumerate(parallel_map(_check, checks, str(folder)), start=1):
        if reason != "":
            broken.append((shard.path, reason or "the process that read it died"))
        progress(done, len(checks))
    return sorted(broken)


def repair_shards(
    root: str | AnyPath,
    destination: str | AnyPath,
    progress: Progress = lambda done, total: None,
    lists: Sequence[str] = (),
) -> RepairResult:
    """Pack the broken shards of `destination` again, as they were, and delete shards that the index does not list.

    Also packs new and changed files in `root`, like `pack_dataset`. Raises: InputError as `pack_dataset` and
    `verify_shards`, and if `root` lacks any of the raw files.
    """
    root, destination = storage.to_path(root).absolute(), storage.to_path(destination).absolute()
    index = read_index(destination)
    catalog = list_pairs(root, lists)
    missing = sorted(index.sources.keys() - {name for pair in catalog.pairs + catalog.excluded for name in pair.files})
    if missing:
        raise InputError(
            f"{root} lacks {len(missing)} of the raw files that {destination} was packed from, such as {missing[0]}: "
            "expected all of them (jobs/pack.py pack removes the shards of deleted files)"
        )
    broken = tuple(verify_shards(destination))
    if not broken:
        return RepairResult((), ())
    paths = frozenset(path for path, _ in broken)
    result = update_shards(root, destination, index.tile, progress, paths, lists=lists)
    failures = [failure for failure in result.failures if failure not in index.failed]
    return RepairResult(broken, (*failures, *verify_shards(destination, only=paths)))


def _check(shard_and_record: tuple[Shard, dict[str, Any]], folder: str) -> str:
    reuse_freed_memory()
    return check_shard(folder, *shard_and_record)


def check_shard(folder: str | AnyPath, shard: Shard, metadata: dict[str, Any]) -> str:
    """Check size, hash, metadata and every tile of a shard. Returns what is wrong, or an empty string."""
    try:
        with storage.local_copy(storage.to_path(folder) / shard.path) as path:
            return _check_local_shard(path, shard, metadata)
    except FileNotFoundError:
        return "is missing"
    except (OSError, ValueError, KeyError) as error:
        return f"cannot be read ({error})"


def _check_local_shard(path: Path, shard: Shard, metadata: dict[str, Any]) -> str:
    if problem := content_problem(path, shard.bytes, shard.xxh128):
        return problem
    if read_metadata(path) != metadata:
        return "its metadata differs from the index"
    with pq.ParquetFile(path) as file:
        expected = list(iter_tiles(shard.shape, shard.tile))
        if file.num_row_groups != len(expected):
            return f"has {file.num_row_groups} tiles, expected {len(expected)}"
        for group, tile in enumerate(expected):
            row = file.read_row_group(group)
            pixels = math.prod(tile[2:])
            sizes = [[value.as_buffer().size for value in column] for column in row.columns]
            if sizes not in ([[pixels], [0]], [[pixels], [pixels]], [[2 * pixels], [0]]):
                return f"tile {group} has {sizes} bytes, expected {pixels} pixels"
    return ""
