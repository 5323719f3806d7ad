"""Raw files to shards over a Ray cluster: each file is decoded, packed or developed, and written by one task.

Packing goes on where it was killed, and a second packing does only what is new or changed. What is known of the
files lies in the index; of a run that never wrote one, in the shards themselves.
"""

import dataclasses
import errno
import fcntl
import itertools
import os
from collections.abc import Callable, Container, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from lsid_ray import __version__, storage
from lsid_ray.data import shards
from lsid_ray.data.catalog import Catalog, Pair, read_catalog
from lsid_ray.data.convert import Job, Outcome, pack_file, shard_of
from lsid_ray.data.tasks import over_ray
from lsid_ray.data.tiles import TILE, file_xxh128, read_record
from lsid_ray.errors import InputError
from lsid_ray.raw.develop import rendering_record
from lsid_ray.raw.mosaic import amplification_ratio
from lsid_ray.storage import AnyPath, Remote

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class PackResult:
    """What packing did."""

    pairs: int
    failures: tuple[tuple[str, str], ...]
    """Files that were left out, each with the reason."""
    already: bool
    """There was nothing to do."""
    packed: int
    """Files decoded now."""
    kept: int
    """Files whose shards were there."""
    removed: tuple[str, ...]
    """Files that were packed and are in no pair any more; their shards are gone too."""

    @property
    def summary(self) -> str:
        """ "3 files packed, 12 kept", or "nothing to do"."""
        names = ", ".join(self.removed[:3]) + (", ..." if len(self.removed) > 3 else "")
        gone = f", {len(self.removed)} removed: {names}" if self.removed else ""
        return "nothing to do" if self.already else f"{self.packed} files packed, {self.kept} kept{gone}"


def default_shards(root: str) -> str:
    """Where a data set's shards lie unless said otherwise: beside it."""
    return f"{storage.path(root)}-shards"


def pack_folder(
    root: str | AnyPath,
    destination: str | AnyPath,
    *,
    tile: int = TILE,
    progress: Progress = lambda done, total: None,
) -> PackResult:
    """Bring the folder `destination` up to date with every pair under `root` (short/ and long/, SID's names).

    A file whose size and time are those of the index is not read again; of any other its hash decides. A run that
    was killed is taken up by the next with what it had packed. One broken file does not stop the others: it is
    named in the result and in the index, its pairs are left out, and it is decoded again only when it changes.
    The index is written last, so a destination that has one is whole.

    Raises: InputError when `root` is not usable, no pair remains, `destination` was packed otherwise or is being
    packed, or cannot be written to, as when the disk is full; what was packed until then stays.
    """
    if tile < 1:
        raise InputError(f"--tile is {tile}: expected 1 or more")
    root, destination = storage.path(root).absolute(), storage.path(destination).absolute()
    return bring_up_to_date(root, destination, tile, progress, frozenset())


@dataclasses.dataclass
class _State:
    """What is known of a destination and its raw files, and what is to be done."""

    root: AnyPath
    destination: AnyPath
    tile: int
    catalog: Catalog
    index: shards.Index | None
    finished: bool
    """The index stands for the folder as it is."""
    there: dict[str, tuple[int, int]]
    """Files in the destination, as `storage.files_below`."""
    sources: dict[str, shards.Source]
    frames: dict[str, shards.ShortFrame]
    reasons: dict[str, str]
    """Of files that are left out."""
    jobs: list[Job]

    @property
    def pairs(self) -> list[Pair]:
        return [*self.catalog.pairs, *self.catalog.excluded]


def bring_up_to_date(
    root: AnyPath, destination: AnyPath, tile: int, progress: Progress, broken: frozenset[str]
) -> PackResult:
    """`pack_folder` of absolute paths; shards named in `broken` are packed again whatever they say of themselves."""
    state = _look(root, destination, tile, broken)
    if _is_up_to_date(state) and not broken:  # a folder that one may only read needs no more than this
        return PackResult(len(state.index.pairs), state.index.failed, True, 0, len(state.frames), ())
    try:
        with _locked(destination):
            return _carry_out(_look(root, destination, tile, broken), progress)  # another run may just have ended
    except OSError as error:
        raise InputError(_unwritable(destination, error.strerror or str(error))) from None


def _is_up_to_date(state: _State) -> bool:
    if not state.finished or state.jobs:
        return False
    return _assemble(state) == dataclasses.replace(state.index, program=__version__)


def _unwritable(destination: AnyPath, reason: str, how_far: str = "") -> str:
    kept = "what is packed stays, and running this again goes on from there"
    return f"{destination} cannot be written to: {reason}{how_far}; {kept}"


def _look(root: AnyPath, destination: AnyPath, tile: int, broken: frozenset[str]) -> _State:
    """What is to be done. No raw file is read, unless the times of all have changed."""
    catalog = read_catalog(root)
    index, finished = _known_index(destination)
    state = _State(root, destination, tile, catalog, index, finished, storage.files_below(destination), {}, {}, {}, [])
    state.reasons |= {str(path.relative_to(root)): reason for path, reason in catalog.problems}
    listed = {
        f"{kind}/{name}": facts
        for kind in ("short", "long")
        for name, facts in storage.files_below(root / kind).items()
    }
    found: dict[str, tuple[int, int]] = {}
    paths = {path for pair in state.pairs for path in (pair.short, pair.long)}
    for path in sorted(paths):
        name = str(path.relative_to(root))
        if name in listed:
            found[name] = listed[name]
        else:
            state.reasons[name] = "it has gone since its folder was listed"
    _check_same_set(state, found)
    for name, facts in found.items():
        known = index.sources.get(name) if index else None
        if known is not None and known.reason and index.program != __version__:
            known = None  # this program may read it
        unchanged = known is not None and (known.bytes, known.mtime_ns) == facts
        shard = shard_of(name)
        if unchanged and known.reason:
            state.sources[name], state.reasons[name] = known, known.reason
        elif unchanged and known.shard and shard not in broken and _stands(state, known):
            state.sources[name], state.frames[shard] = known, index.frames[shard]
        else:
            xxh128 = index.frames[shard].shard.xxh128 if known is not None and known.shard else ""
            state.jobs.append(Job(name, str(root / name), known, xxh128, shard not in broken))
    state.jobs = _in_order(state.jobs, state.there)
    return state


def _in_order(jobs: list[Job], there: Container[str]) -> list[Job]:
    """First what is there; then longs, which take many times as long as a short, spread over the first three quarters.

    So the rate is steady, and no core works on a long when all others are done.
    """
    places = {}
    for kind, end in (("long/", 0.75), ("short/", 1.0)):
        of_kind = [job for job in jobs if job.name.startswith(kind)]
        places |= {job.name: end * number / len(of_kind) for number, job in enumerate(of_kind)}
    return sorted(jobs, key=lambda job: (shard_of(job.name) not in there, places[job.name]))


def _known_index(destination: AnyPath) -> tuple[shards.Index | None, bool]:
    """The index of a destination or of what it was before, and whether it stands for the folder as it is."""
    for name in (shards.INDEX, shards.UNFINISHED):
        if (destination / name).exists():
            try:
                index = shards.read_index(destination, name)
            except InputError as error:
                raise InputError(f"{error}: choose another folder, or delete it to pack again") from None
            return index, name == shards.INDEX and not (destination / shards.UNFINISHED).exists()
    return None, False


def _check_same_set(state: _State, found: dict[str, tuple[int, int]]) -> None:
    """Raise InputError unless what is in the destination is of this data set, this tile and this LibRaw."""
    refused = f"{state.destination} was packed from other files or in another way: "
    advice = "; choose another folder, or delete it to pack again"
    index = state.index
    if index is None:  # of a run that was killed there may be shards
        left = (state.destination / name for name in sorted(state.there) if name.endswith(".parquet"))
        records = filter(None, map(read_record, left))
        first = next(records, None)
        if first is not None and not any(_is_found(record, found) for record in itertools.chain([first], records)):
            raise InputError(f"{refused}expected those of {state.root}{advice}")
        return
    if index.tile != state.tile:
        raise InputError(f"{refused}in tiles of {index.tile}, not {state.tile}{advice}")
    if index.rendering != rendering_record():
        raise InputError(f"{refused}by LibRaw {index.rendering.get('libraw')} or with another rendering{advice}")
    known = index.sources
    sized = [name for name, (size, _) in found.items() if name in known and known[name].bytes == size]
    if any(known[name].mtime_ns == found[name][1] for name in sized):
        return
    for name in sized:  # a copy that lost its times
        try:
            if file_xxh128(state.root / name) == known[name].xxh128:
                return
        except OSError:
            continue
    raise InputError(f"{refused}expected those of {state.root}{advice}")


def _is_found(record: dict[str, Any], found: dict[str, tuple[int, int]]) -> bool:
    shard = record["frame"]["shard"]
    facts = found.get(f"{os.path.dirname(shard['path'])}/{shard['source']}")
    return facts is not None and facts[0] == shard["source_bytes"]


def _stands(state: _State, known: shards.Source) -> bool:
    """Whether a shard is there as the index has it, as far as can be told without reading its pixels."""
    size, _ = state.there.get(known.shard, (None, None))
    if size != state.index.frames[known.shard].shard.bytes:
        return False
    # A run that was killed may have packed a changed file that has since been changed back.
    return state.finished or read_record(state.destination / known.shard) == state.index.record(known.shard)


def _carry_out(state: _State, progress: Progress) -> PackResult:
    """Run the jobs, and write the index when all are done."""
    destination = state.destination
    for kind in ("short", "long"):
        (destination / kind).mkdir(exist_ok=True)
    if (destination / shards.INDEX).exists():
        (destination / shards.INDEX).replace(destination / shards.UNFINISHED)
    _remove_partials(destination)
    kept, decoded, done, total = len(state.frames), 0, 0, len(state.jobs)
    if total:
        progress(0, total)
    try:
        with closing(over_ray(pack_file, state.jobs, str(destination), state.tile)) as results:
            for job, outcome in results:
                if outcome is None:
                    reason = "the process that read it died; is it damaged, or memory short?"
                    outcome = Outcome(None, None, reason, True)
                if outcome.full:
                    how_far = f", after {done} of {total} files"
                    raise InputError(_unwritable(destination, outcome.reason, how_far))
                if outcome.source is not None:
                    state.sources[job.name] = outcome.source
                if outcome.frame is not None:
                    state.frames[shard_of(job.name)] = outcome.frame
                else:
                    state.reasons[job.name] = outcome.reason
                if outcome.decoded:
                    done += 1
                    decoded += outcome.frame is not None
                else:  # it was there
                    kept += outcome.frame is not None
                    total -= 1
                progress(done, total)
    finally:
        _remove_partials(destination)
    index = _assemble(state)
    shards.write_index(destination, index)
    for path in shards.strays(destination, index):
        named = state.index is not None and path in state.index.frames
        if named or read_record(destination / path) is not None:
            (destination / path).unlink(missing_ok=True)
    (destination / shards.UNFINISHED).unlink(missing_ok=True)
    before = state.index.sources if state.index else {}
    removed = tuple(name for name in before if before[name].shard and name not in index.sources)
    return PackResult(len(index.pairs), index.failed, False, decoded, kept, removed)


def _assemble(state: _State) -> shards.Index:
    """The index of what is packed. Raises: InputError when no pair is."""
    pairs, reasons = [], dict(state.reasons)
    for pair in state.pairs:
        names = [str(path.relative_to(state.root)) for path in (pair.short, pair.long)]
        frames = [state.frames.get(shard_of(name)) for name in names]
        if None not in frames:
            try:
                pairs.append(_packed_pair(pair, pair in state.catalog.excluded, *frames))
            except InputError as error:
                reasons[names[0]] = str(error)
    if not pairs:
        name, reason = min(reasons.items())
        raise InputError(f"{state.root}: none of its {len(state.pairs)} pairs could be packed; {name}: {reason}")
    return shards.Index(
        program=__version__,
        tile=state.tile,
        rendering=rendering_record(),
        sources=dict(sorted(state.sources.items())),
        frames=dict(sorted(state.frames.items())),
        pairs=tuple(pairs),
        failed=tuple(sorted(reasons.items())),
    )


def _packed_pair(pair: Pair, misaligned: bool, short: shards.ShortFrame, long: shards.ShortFrame) -> shards.PackedPair:
    if (short.height, short.width) != (long.height, long.width):
        raise InputError(
            f"{pair.short.name} is {short.height}x{short.width} and {pair.long.name} {long.height}x{long.width}: "
            "expected one size"
        )
    for frame, name in ((short, pair.short.name), (long, pair.long.name)):
        if frame.exposure_s is None:
            raise InputError(f"{name}: no exposure time in the file nor in its name (10003_00_0.04s)")
    return shards.PackedPair(
        name=pair.name,
        scene=pair.scene,
        split=pair.split,
        frame=pair.frame,
        ratio=amplification_ratio(long.exposure_s, short.exposure_s),
        misaligned=misaligned,
        short=short,
        long=long.shard,
    )


def _remove_partials(destination: AnyPath) -> None:
    """Remove what killed runs have left half written; an object store shows nothing of that."""
    for name in storage.files_below(destination) if isinstance(destination, Path) else ():
        if os.path.basename(name).startswith(".") and name.endswith(".partial"):
            (destination / name).unlink(missing_ok=True)


@contextmanager
def _locked(destination: AnyPath) -> Iterator[None]:
    """Keep other runs out of a folder; the system lets go of it however this process ends.

    An object store has no locks: two runs there do the same work twice and write the same shards.
    """
    if isinstance(destination, Remote):
        yield
        return
    destination.mkdir(parents=True, exist_ok=True)
    with open(destination / shards.LOCK, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{destination} is being packed by another run: wait for its end") from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP):  # a file system without locks
                raise
        yield
