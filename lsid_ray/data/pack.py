"""Raw files to shards over a Ray cluster: each file is decoded, packed or developed, and written by one task.

Packing goes on where it was killed, and a second packing does only what is new or changed. What is known of the
files lies in the index; of a run that never wrote one, in the shards themselves.

Plain Ray tasks, not Ray Data: Ray Data tries a file that kills its process again for ever, and costs 20 ms a file
(ray 2.60).
"""

import dataclasses
import errno
import fcntl
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import ray

from lsid_ray import __version__
from lsid_ray.data import shards
from lsid_ray.data.catalog import Catalog, Pair, read_catalog
from lsid_ray.errors import InputError
from lsid_ray.raw.develop import read_and_render, rendering_record
from lsid_ray.raw.frame import RawFrame, read_raw
from lsid_ray.raw.mosaic import amplification_ratio, layout, pack

Progress = Callable[[int, int], None]
Item, Outcome = TypeVar("Item"), TypeVar("Outcome")

NOT_KEPT = {"mosaic", "source", "aperture", "focal_length_mm", "taken"}  # of a RawFrame


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
        gone = f", {len(self.removed)} removed: {', '.join(self.removed)}" if self.removed else ""
        return "nothing to do" if self.already else f"{self.packed} files packed, {self.kept} kept{gone}"


@dataclasses.dataclass(frozen=True)
class RepairResult:
    """What was broken, and what became of it."""

    broken: tuple[tuple[str, str], ...]
    """Shards, and files that are none, each with the reason."""
    left: tuple[tuple[str, str], ...]
    """What is broken still, and raw files that could not be packed again, each with the reason."""


def default_shards(root: str) -> str:
    """Where a data set's shards lie unless said otherwise: beside it."""
    return os.path.normpath(root) + "-shards"


def pack_folder(
    root: str | Path,
    destination: str | Path,
    *,
    tile: int = shards.TILE,
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
    return _bring_up_to_date(Path(root).absolute(), Path(destination).absolute(), tile, progress, frozenset())


def verify(
    folder: str | Path,
    progress: Progress = lambda done, total: None,
    only: Iterable[str] | None = None,
) -> list[tuple[str, str]]:
    """What is broken in a folder of shards, each path with the reason, sorted; empty when it is whole.

    Every byte of every shard is read (of those in `only`, when given), over the Ray cluster, and what the index
    does not name is told too. Raises: InputError as `read_index`.
    """
    folder = Path(folder).absolute()
    index = shards.read_index(folder)
    paths = sorted(index.frames if only is None else set(only) & set(index.frames))
    jobs = [(index.frames[path].shard, index.record(path)) for path in paths]
    broken = [(path, "a stray: the index does not name it") for path in _strays(folder, index)]
    progress(0, len(jobs))
    for done, ((shard, _), reason) in enumerate(_over_ray(_check, jobs, str(folder)), start=1):
        if reason != "":
            broken.append((shard.path, reason or "the process that read it died"))
        progress(done, len(jobs))
    return sorted(broken)


def repair(root: str | Path, destination: str | Path, progress: Progress = lambda done, total: None) -> RepairResult:
    """Pack the broken shards of `destination` again, as they were, and remove stray ones.

    Raises: InputError as `pack_folder` and `verify`, and when `root` lacks any of the raw files.
    """
    root, destination = Path(root).absolute(), Path(destination).absolute()
    index = shards.read_index(destination)
    gone = [name for name in index.sources if not (root / name).exists()]
    if gone:
        raise InputError(
            f"{root} lacks {len(gone)} of the raw files that {destination} was packed from, {gone[0]} first: "
            "expected all of them (pack removes the shards of files that are gone)"
        )
    broken = tuple(verify(destination))
    if not broken:
        return RepairResult((), ())
    names = frozenset(name for name, _ in broken)
    result = _bring_up_to_date(root, destination, index.tile, progress, names)
    failures = [failure for failure in result.failures if failure not in index.failed]
    return RepairResult(broken, (*failures, *verify(destination, only=names)))


@dataclasses.dataclass(frozen=True)
class _Job:
    """A raw file that must be looked at."""

    name: str
    """Relative to the data set's folder."""
    path: str
    known: shards.Source | None
    """As the index has it."""
    shard_sha256: str
    """What its shard must be if the raw file is as the index has it; empty when that is not known."""
    take_over: bool
    """A shard that says it is of this raw file is taken."""


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """What became of a job."""

    source: shards.Source | None
    """None when the file could not be read."""
    frame: shards.ShortFrame | None
    reason: str
    """Why there is no frame."""
    decoded: bool
    full: bool = False
    """The destination could not be written to: no fault of the file."""


@dataclasses.dataclass
class _State:
    """What is known of a destination and its raw files, and what is to be done."""

    root: Path
    destination: Path
    tile: int
    catalog: Catalog
    index: shards.Index | None
    finished: bool
    """The index stands for the folder as it is."""
    sources: dict[str, shards.Source]
    frames: dict[str, shards.ShortFrame]
    reasons: dict[str, str]
    """Of files that are left out."""
    jobs: list[_Job]

    @property
    def pairs(self) -> list[Pair]:
        return [*self.catalog.pairs, *self.catalog.excluded]


def _bring_up_to_date(
    root: Path, destination: Path, tile: int, progress: Progress, broken: frozenset[str]
) -> PackResult:
    state = _look(root, destination, tile, broken)
    if state.finished and not state.jobs and not broken:
        index = _assemble(state)
        if index == state.index:
            return PackResult(len(index.pairs), index.failed, True, 0, len(index.frames), ())
    try:
        with _locked(destination):
            return _carry_out(_look(root, destination, tile, broken), progress)  # another run may just have ended
    except OSError as error:
        raise InputError(_unwritable(destination, error.strerror or str(error))) from None


def _unwritable(destination: Path, reason: str, how_far: str = "") -> str:
    kept = "what is packed stays, and running this again goes on from there"
    return f"{destination} cannot be written to: {reason}{how_far}; {kept}"


def _look(root: Path, destination: Path, tile: int, broken: frozenset[str]) -> _State:
    """What is to be done. No raw file is read, unless the times of all have changed."""
    catalog = read_catalog(root)
    index, finished = _known_index(destination)
    state = _State(root, destination, tile, catalog, index, finished, {}, {}, {}, [])
    state.reasons |= {str(path.relative_to(root)): reason for path, reason in catalog.problems}
    found: dict[str, os.stat_result] = {}
    for path in sorted({path for pair in state.pairs for path in (pair.short, pair.long)}, key=lambda path: path.name):
        name = str(path.relative_to(root))
        try:
            found[name] = path.stat()
        except OSError as error:
            state.reasons[name] = error.strerror
    if index is not None:
        _check_same_set(index, state, found)
    for name, stat in found.items():
        known = index.sources.get(name) if index else None
        if known is not None and known.reason and index.program != __version__:
            known = None  # this program may read it
        unchanged = known is not None and (known.bytes, known.mtime_ns) == (stat.st_size, stat.st_mtime_ns)
        shard = _shard_of(name)
        if unchanged and known.reason:
            state.sources[name], state.reasons[name] = known, known.reason
        elif unchanged and known.shard and shard not in broken and _stands(state, known):
            state.sources[name], state.frames[shard] = known, index.frames[shard]
        else:
            sha256 = index.frames[shard].shard.sha256 if known is not None and known.shard else ""
            state.jobs.append(_Job(name, str(root / name), known, sha256, shard not in broken))
    state.jobs.sort(key=lambda job: not (destination / _shard_of(job.name)).exists())  # what is there, first
    return state


def _known_index(destination: Path) -> tuple[shards.Index | None, bool]:
    """The index of a destination or of what it was before, and whether it stands for the folder as it is."""
    for name in (shards.INDEX, shards.UNFINISHED):
        if (destination / name).exists():
            try:
                index = shards.read_index(destination, name)
            except InputError as error:
                raise InputError(f"{error}: choose another folder, or delete it to pack again") from None
            return index, name == shards.INDEX and not (destination / shards.UNFINISHED).exists()
    return None, False


def _check_same_set(index: shards.Index, state: _State, found: dict[str, os.stat_result]) -> None:
    """Raise InputError unless the index is of this data set, this tile and this LibRaw."""
    refused = f"{state.destination} was packed from other files or in another way: "
    advice = "; choose another folder, or delete it to pack again"
    if index.tile != state.tile:
        raise InputError(f"{refused}in tiles of {index.tile}, not {state.tile}{advice}")
    if index.rendering != rendering_record():
        raise InputError(f"{refused}by LibRaw {index.rendering.get('libraw')} or with another rendering{advice}")
    known = index.sources
    sized = [name for name, stat in found.items() if name in known and known[name].bytes == stat.st_size]
    if any(known[name].mtime_ns == found[name].st_mtime_ns for name in sized):
        return
    for name in sized:  # a copy that lost its times
        try:
            if shards.file_sha256(state.root / name) == known[name].sha256:
                return
        except OSError:
            continue
    raise InputError(f"{refused}expected those of {state.root}{advice}")


def _stands(state: _State, known: shards.Source) -> bool:
    """Whether a shard is there as the index has it, as far as can be told without reading its pixels."""
    path = state.destination / known.shard
    try:
        if path.stat().st_size != state.index.frames[known.shard].shard.bytes:
            return False
    except OSError:
        return False
    # A run that was killed may have packed a changed file that has since been changed back.
    return state.finished or shards.read_record(path) == state.index.record(known.shard)


def _carry_out(state: _State, progress: Progress) -> PackResult:
    """Run the jobs, and write the index when all are done."""
    destination = state.destination
    for kind in ("short", "long"):
        (destination / kind).mkdir(exist_ok=True)
    if (destination / shards.INDEX).exists():
        os.replace(destination / shards.INDEX, destination / shards.UNFINISHED)
    kept, decoded, done, total = len(state.frames), 0, 0, len(state.jobs)
    progress(0, total)
    try:
        with closing(_over_ray(_pack_file, state.jobs, str(destination), state.tile)) as results:
            for job, outcome in results:
                if outcome is None:
                    reason = "the process that read it died; is it damaged, or memory short?"
                    outcome = _Outcome(None, None, reason, True)
                if outcome.full:
                    how_far = f", after {done} of {total} files"
                    raise InputError(_unwritable(destination, outcome.reason, how_far))
                if outcome.source is not None:
                    state.sources[job.name] = outcome.source
                if outcome.frame is not None:
                    state.frames[_shard_of(job.name)] = outcome.frame
                else:
                    state.reasons[job.name] = outcome.reason
                if outcome.decoded:
                    done += 1
                    decoded += outcome.frame is not None
                else:
                    kept += outcome.frame is not None
                    total -= 1
                progress(done, total)
    finally:
        _remove_partials(destination)
    index = _assemble(state)
    shards.write_index(destination, index)
    for path in _strays(destination, index):
        named = state.index is not None and path in state.index.frames
        if named or shards.read_record(destination / path) is not None:
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
        frames = [state.frames.get(_shard_of(name)) for name in names]
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


def _shard_of(name: str) -> str:
    """short/10003_00_0.04s.ARW -> short/10003_00_0.04s.parquet"""
    return os.path.splitext(name)[0] + ".parquet"


def _strays(folder: Path, index: shards.Index) -> list[str]:
    """Files in a folder of shards that its index does not name."""
    files = {
        os.path.relpath(os.path.join(place, name), folder) for place, _, names in os.walk(folder) for name in names
    }
    return sorted(files - {*index.frames, shards.INDEX, shards.LOCK})


def _remove_partials(destination: Path) -> None:
    """Remove what killed runs have left half written."""
    for folder in (destination, destination / "short", destination / "long"):
        for path in folder.glob(".*.partial"):
            path.unlink(missing_ok=True)


@contextmanager
def _locked(destination: Path) -> Iterator[None]:
    """Keep other runs out of a folder; the system lets go of it however this process ends."""
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


def _over_ray(
    work: Callable[..., Outcome], items: Sequence[Item], *arguments: Any
) -> Iterator[tuple[Item, Outcome | None]]:
    """work(item, *arguments) of each item as a Ray task, as they are done; None for one whose process died."""
    if not items:
        return
    remote = ray.remote(work).options(num_cpus=1, max_retries=2)
    waiting, running = iter(items), {}
    at_once = 16 + 2 * int(ray.cluster_resources().get("CPU", 0))  # a cluster that grows needs tasks that wait
    try:
        while True:
            for item in itertools.islice(waiting, at_once - len(running)):
                running[remote.remote(item, *arguments)] = item
            if not running:
                return
            for task in ray.wait(list(running))[0]:
                item = running.pop(task)
                try:
                    outcome = ray.get(task)
                except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
                    outcome = None
                yield item, outcome
    finally:
        for task in running:
            ray.cancel(task)
        if running:
            ray.wait(list(running), num_returns=len(running))


def _check(job: tuple[shards.ShardFile, dict[str, Any]], folder: str) -> str:
    return shards.check_shard(folder, *job)


def _pack_file(job: _Job, destination: str, tile: int) -> _Outcome:
    """One raw file to its shard, unless the shard is there."""
    path, shard = Path(job.path), _shard_of(job.name)
    target = Path(destination, shard)
    try:
        stat = path.stat()
        sha256 = shards.file_sha256(path)
    except OSError as error:
        return _Outcome(None, None, error.strerror, True)
    source = shards.Source(stat.st_size, stat.st_mtime_ns, sha256, shard, "")
    as_known = job.known is not None and job.known.sha256 == sha256
    if as_known and job.known.reason:
        return _Outcome(dataclasses.replace(source, shard="", reason=job.known.reason), None, job.known.reason, False)
    try:
        there = shards.read_record(target) if job.take_over else None
        if there is not None and _is_of(there, job, source, tile):
            digest = shards.file_sha256(target)
            if not as_known or job.shard_sha256 in ("", digest):
                return _Outcome(source, shards.recorded_frame(there, target.stat().st_size, digest), "", False)
    except (OSError, KeyError, TypeError):  # whatever it is, it is written again
        pass
    try:
        frame, pixels, side = _decode(path, job.name.startswith("long/"), tile)
        known = {f.name: getattr(frame, f.name) for f in dataclasses.fields(frame) if f.name not in NOT_KEPT}
        entry = shards.ShardFile(shard, path.name, stat.st_size, 0, "", pixels.shape, side)
        packed = shards.ShortFrame(shard=entry, height=frame.height, width=frame.width, **known)
        now = path.stat()
    except InputError as error:
        reason = str(error).removeprefix(f"{path}: ")
        return _Outcome(dataclasses.replace(source, shard="", reason=reason), None, reason, True)
    except (OSError, MemoryError) as error:
        return _Outcome(None, None, getattr(error, "strerror", None) or "not enough memory to decode it", True)
    if (now.st_size, now.st_mtime_ns) != (stat.st_size, stat.st_mtime_ns):
        return _Outcome(None, None, "it changed while it was read: pack again", True)
    record = shards.shard_record(packed, sha256, tile, rendering_record())
    try:
        size, digest = shards.write_shard(target, pixels, side, record)
    except OSError as error:
        return _Outcome(None, None, error.strerror or str(error), True, full=True)
    return _Outcome(source, shards.recorded_frame(record, size, digest), "", True)


def _is_of(record: dict[str, Any], job: _Job, source: shards.Source, tile: int) -> bool:
    """Whether a shard's own record says that packing this raw file would give it."""
    shard = record["frame"]["shard"]
    made = (record["version"], record["tile"], record["source_sha256"], shard["source"], shard["path"])
    rendering = rendering_record() if job.name.startswith("long/") else None
    return made == (shards.VERSION, tile, source.sha256, Path(job.path).name, source.shard) and (
        record.get("rendering") == rendering
    )


def _decode(path: Path, long: bool, tile: int) -> tuple[RawFrame, np.ndarray, int]:
    """The frame, its pixels (C, H, W) uint16 as they are kept, and the side of their tiles."""
    if long:
        frame, rgb = read_and_render(path)
        return frame, rgb.transpose(2, 0, 1), layout(frame.cfa).block * tile
    frame = read_raw(path)
    return frame, pack(frame.mosaic, frame.cfa), tile
