"""Pack raw files into shards on the Ray cluster; each file is decoded, packed or rendered, and written by a task.

An interrupted packing resumes, and packing again handles only new and changed files: see `pack_plan`.
"""

import dataclasses
import errno
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from lsid_ray import __version__, cluster, storage
from lsid_ray.data.catalog import OTHER_WAYS, UNKNOWN_NAME, RawPair
from lsid_ray.data.convert import FileResult, PackTask, pack_file, shard_path
from lsid_ray.data.index import (
    INDEX,
    LOCK,
    PREVIOUS_INDEX,
    Index,
    PackedFrame,
    Pair,
    unlisted_files,
    write_index,
)
from lsid_ray.data.pack_plan import PackPlan, plan_packing
from lsid_ray.data.pair_ratio import disagreements, pair_ratio
from lsid_ray.data.parallel import parallel_map, reuse_freed_memory
from lsid_ray.data.shard import TILE_SIDE, read_metadata
from lsid_ray.data.shift import with_shift_of
from lsid_ray.errors import InputError
from lsid_ray.object_store import RemotePath
from lsid_ray.raw.render import rendering_parameters
from lsid_ray.storage import AnyPath

MAX_TILE = 2**16  # packed pixels; more than any frame has
MAX_REMARKS = 5
Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class PackResult:
    """What packing did."""

    pairs: int
    failures: tuple[tuple[str, str], ...]
    """Files that were left out, each with the reason."""
    up_to_date: bool
    """There was nothing to do."""
    packed: int
    """Files decoded now."""
    reused: int
    """Files whose shards existed."""
    removed: tuple[str, ...]
    """Files that were packed before and are in no pair any more; their shards were deleted."""
    oddities: tuple[tuple[str, str], ...] = ()
    """Files packed now that are unlikely to be sound, each with what is odd (see `raw.plausibility`)."""
    disagreements: tuple[tuple[str, str], ...] = ()
    """Pairs whose files differ from their names or a list (see `pair_ratio`), each with how."""
    of_lists: tuple[str, ...] = ()
    """What to know of the lists, a line each."""

    @property
    def remarks(self) -> list[str]:
        """Lines: those of the lists, the first of `oddities` and of `disagreements`, and what to do about names."""
        lines = list(self.of_lists)
        for kind, entries in (("unlikely", self.oddities), ("contradictory", self.disagreements)):
            lines += [f"{kind} {name}: {text}" for name, text in entries[:MAX_REMARKS]]
            if len(entries) > MAX_REMARKS:
                lines.append(f"{kind}: {len(entries) - MAX_REMARKS} others, too")
        return lines + [OTHER_WAYS] * any(reason == UNKNOWN_NAME for _, reason in self.failures)

    @property
    def summary(self) -> str:
        """ "3 files packed, 12 reused", or "nothing to do"."""
        names = ", ".join(self.removed[:3]) + (", ..." if len(self.removed) > 3 else "")
        removed = f", {len(self.removed)} removed: {names}" if self.removed else ""
        return "nothing to do" if self.up_to_date else f"{self.packed} files packed, {self.reused} reused{removed}"


def default_shards(root: str) -> str:
    """The default folder for a data set's shards, next to the data set."""
    return f"{storage.to_path(root)}-shards"


def pack_dataset(
    root: str | AnyPath,
    destination: str | AnyPath,
    *,
    tile: int = TILE_SIDE,
    sid_white: bool | None = None,
    lists: Sequence[str] = (),
    progress: Progress = lambda done, total: None,
) -> PackResult:
    """Bring the folder `destination` up to date with every pair under `root`: as `pair_list.list_pairs` finds them.

    A file with the size and modification time of the index is not read again; for any other its hash decides. A
    killed run resumes with the shards it had written. A broken file does not stop the others: it is listed in the
    result and in the index, its pairs are left out, and it is decoded again only when it changes. The index is
    written last, so a destination with an index is complete.

    sid_white: as `raw.render.reference_rendering`; None: as the destination was packed, or else False.
    Raises: InputError if `root` is not usable, no pair remains, or `destination` holds shards of different data or
    options, is being packed by another run, or is not writable (a full disk); shards written until then stay.
    """
    if not 1 <= tile <= MAX_TILE:
        raise InputError(f"--tile is {tile}: expected 1 to {MAX_TILE:,}")
    root, destination = storage.to_path(root).absolute(), storage.to_path(destination).absolute()
    return update_shards(root, destination, tile, progress, frozenset(), sid_white, lists)


def update_shards(
    root: AnyPath,
    destination: AnyPath,
    tile: int,
    progress: Progress,
    broken: frozenset[str],
    sid_white: bool | None = None,
    lists: Sequence[str] = (),
) -> PackResult:
    """`pack_dataset` for absolute paths; the shards in `broken` are packed again whatever their metadata says."""
    plan = plan_packing(root, destination, tile, broken, sid_white, lists)
    if _is_up_to_date(plan) and not broken:  # returns before the lock, so that a read-only folder will do
        return PackResult(
            len(plan.index.pairs), plan.index.failed, True, 0, len(plan.frames), (), of_lists=plan.catalog.remarks
        )
    storage.check_writable(destination, "folder of the shards")
    cluster.connect()
    try:
        with locked(destination):
            plan = plan_packing(root, destination, tile, broken, sid_white, lists)  # another run may just have ended
            return _execute(plan, progress)
    except OSError as error:
        raise InputError(_not_writable(destination, error.strerror or str(error))) from None


def _is_up_to_date(plan: PackPlan) -> bool:
    if not plan.index_is_current or plan.tasks:
        return False
    return _assemble_index(plan) == dataclasses.replace(plan.index, program=__version__)


def _not_writable(destination: AnyPath, reason: str, progress: str = "") -> str:
    return f"{destination} cannot be written to: {reason}{progress}; finished shards stay, run this again to resume"


def _execute(plan: PackPlan, progress: Progress) -> PackResult:
    """Run the tasks, and write the index when all are done."""
    destination = plan.destination
    for kind in ("short", "long"):
        (destination / kind).mkdir(exist_ok=True)
    if (destination / INDEX).exists():
        (destination / INDEX).replace(destination / PREVIOUS_INDEX)
    _remove_partial_files(destination)
    reused, packed, done, total = len(plan.frames), 0, 0, len(plan.tasks)
    odd: dict[str, str] = {}
    files = plan.files
    if total:
        progress(0, total)
    try:
        with closing(parallel_map(_pack_file, plan.tasks, str(destination), plan.tile)) as results:
            for task, result in results:
                if result is None:
                    reason = "the process that read it died; is it damaged, or memory short?"
                    result = FileResult(None, None, reason, True)
                if result.write_failed:
                    raise InputError(_not_writable(destination, result.reason, f", after {done} of {total} files"))
                if result.source is not None:
                    plan.sources[task.name] = result.source
                if result.oddities:
                    odd[task.name] = result.oddities
                if result.frame is not None:
                    plan.frames[shard_path(task.name)] = result.frame
                else:
                    plan.reasons[str(files[task.name].relative_to(plan.root))] = result.reason
                if result.decoded:
                    done += 1
                    packed += result.frame is not None
                else:
                    reused += result.frame is not None
                    total -= 1
                progress(done, total)
    finally:
        _remove_partial_files(destination)
    index = _assemble_index(plan)
    write_index(destination, index)
    for path in unlisted_files(destination, index):
        was_indexed = plan.index is not None and path in plan.index.frames
        if was_indexed or read_metadata(destination / path) is not None:  # a shard, not a file of the user's
            (destination / path).unlink(missing_ok=True)
    (destination / PREVIOUS_INDEX).unlink(missing_ok=True)
    previous = plan.index.sources if plan.index else {}
    removed = tuple(name for name in previous if previous[name].shard and name not in index.sources)
    return PackResult(
        pairs=len(index.pairs),
        failures=index.failed,
        up_to_date=False,
        packed=packed,
        reused=reused,
        removed=removed,
        oddities=tuple(sorted(odd.items())),
        disagreements=_disagreements(plan),
        of_lists=plan.catalog.remarks,
    )


def _pack_file(task: PackTask, destination: str, tile: int) -> FileResult:
    reuse_freed_memory()
    return pack_file(task, destination, tile)


def _assemble_index(plan: PackPlan) -> Index:
    """The index of everything packed. Raises: InputError if there is no pair."""
    pairs, reasons = [], dict(plan.reasons)
    previous = {pair.name: pair for pair in plan.index.pairs} if plan.index else {}
    for pair, short, long in _packed_frames(plan):
        try:
            packed = _packed_pair(pair, pair in plan.catalog.excluded, short, long)
            pairs.append(with_shift_of(packed, previous.get(pair.name)))
        except InputError as error:
            reasons[str(pair.short.relative_to(plan.root))] = str(error)
    if not pairs:
        name, reason = min(reasons.items())
        raise InputError(f"{plan.root}: none of its {len(plan.pairs)} pairs could be packed; {name}: {reason}")
    return Index(
        program=__version__,
        tile=plan.tile,
        rendering=rendering_parameters(plan.sid_white),
        sources=dict(sorted(plan.sources.items())),
        frames=dict(sorted(plan.frames.items())),
        pairs=tuple(pairs),
        failed=tuple(sorted(reasons.items())),
    )


def _packed_frames(plan: PackPlan) -> Iterator[tuple[RawPair, PackedFrame, PackedFrame]]:
    """The pairs of which both files are packed, with their frames."""
    for pair in plan.pairs:
        short, long = (plan.frames.get(shard_path(name)) for name in pair.files)
        if short is not None and long is not None:
            yield pair, short, long


def _disagreements(plan: PackPlan) -> tuple[tuple[str, str], ...]:
    found = [(pair.name, disagreements(pair, short, long)) for pair, short, long in _packed_frames(plan)]
    return tuple(sorted((name, text) for name, text in found if text))


def _packed_pair(pair: RawPair, misaligned: bool, short: PackedFrame, long: PackedFrame) -> Pair:
    if (short.height, short.width) != (long.height, long.width):
        raise InputError(
            f"{pair.short.name} is {short.height}x{short.width} and {pair.long.name} {long.height}x{long.width}: "
            "expected one size"
        )
    return Pair(
        name=pair.name,
        scene=pair.scene,
        split=pair.split,
        frame=pair.frame,
        ratio=pair_ratio(pair, short, long),
        misaligned=misaligned,
        short=short,
        long=long,
    )


def _remove_partial_files(destination: AnyPath) -> None:
    """Remove the unfinished files of killed runs; in an object store there are none, its writes are atomic."""
    for name in storage.list_files(destination) if isinstance(destination, Path) else ():
        if os.path.basename(name).startswith(".") and name.endswith(".partial"):
            (destination / name).unlink(missing_ok=True)


@contextmanager
def locked(destination: AnyPath) -> Iterator[None]:
    """Lock a folder against other runs; the system releases the lock however this process ends.

    An object store has no locks: two runs there do the same work twice and write the same shards.
    """
    if isinstance(destination, RemotePath):
        yield
        return
    destination.mkdir(parents=True, exist_ok=True)
    with open(destination / LOCK, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{destination} is being packed by another run: wait until it ends") from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP):  # this file system has no locks
                raise
        yield
