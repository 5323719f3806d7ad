"""Are the shards what their index says? What is broken is packed again."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from lsid_ray import storage
from lsid_ray.data import shards
from lsid_ray.data.pack import Progress, bring_up_to_date
from lsid_ray.data.tasks import over_ray
from lsid_ray.data.tiles import ShardFile, check_shard
from lsid_ray.errors import InputError
from lsid_ray.storage import AnyPath


@dataclasses.dataclass(frozen=True)
class RepairResult:
    """What was broken, and what became of it."""

    broken: tuple[tuple[str, str], ...]
    """Shards, and files that are none, each with the reason."""
    left: tuple[tuple[str, str], ...]
    """What is broken still, and raw files that could not be packed again, each with the reason."""


def verify_folder(
    folder: str | AnyPath,
    progress: Progress = lambda done, total: None,
    only: Iterable[str] | None = None,
) -> list[tuple[str, str]]:
    """What is broken in a folder of shards, each path with the reason, sorted; empty when it is whole.

    Every byte of every shard is read (of those in `only`, when given), over the Ray cluster, and what the index
    does not name is told too. Raises: InputError as `read_index`.
    """
    folder = storage.path(folder).absolute()
    index = shards.read_index(folder)
    paths = sorted(index.frames if only is None else set(only) & set(index.frames))
    jobs = [(index.frames[path].shard, index.record(path)) for path in paths]
    broken = [(path, "a stray: the index does not name it") for path in shards.strays(folder, index)]
    progress(0, len(jobs))
    for done, ((shard, _), reason) in enumerate(over_ray(_check, jobs, str(folder)), start=1):
        if reason != "":
            broken.append((shard.path, reason or "the process that read it died"))
        progress(done, len(jobs))
    return sorted(broken)


def repair_folder(
    root: str | AnyPath, destination: str | AnyPath, progress: Progress = lambda done, total: None
) -> RepairResult:
    """Pack the broken shards of `destination` again, as they were, and remove stray ones.

    As with `pack_folder`, what is new or changed in `root` is packed too. Raises: InputError as `pack_folder` and
    `verify_folder`, and when `root` lacks any of the raw files.
    """
    root, destination = storage.path(root).absolute(), storage.path(destination).absolute()
    index = shards.read_index(destination)
    there = {f"{kind}/{name}" for kind in ("short", "long") for name in storage.files_below(root / kind)}
    gone = sorted(index.sources.keys() - there)
    if gone:
        raise InputError(
            f"{root} lacks {len(gone)} of the raw files that {destination} was packed from, {gone[0]} first: "
            "expected all of them (pack removes the shards of files that are gone)"
        )
    broken = tuple(verify_folder(destination))
    if not broken:
        return RepairResult((), ())
    names = frozenset(name for name, _ in broken)
    result = bring_up_to_date(root, destination, index.tile, progress, names)
    failures = [failure for failure in result.failures if failure not in index.failed]
    return RepairResult(broken, (*failures, *verify_folder(destination, only=names)))


def _check(job: tuple[ShardFile, dict[str, Any]], folder: str) -> str:
    return check_shard(folder, *job)
