"""One raw file to its shard: decoded, packed or developed, and written, unless the shard is there already."""

import dataclasses
import os
from pathlib import Path

import numpy as np

from lsid_ray import storage
from lsid_ray.data import shards, tiles
from lsid_ray.errors import InputError
from lsid_ray.raw.develop import read_and_render, rendering_record
from lsid_ray.raw.frame import RawFrame, read_raw
from lsid_ray.raw.mosaic import Packed, layout
from lsid_ray.storage import AnyPath

NOT_KEPT = {"mosaic", "source", "aperture", "focal_length_mm", "taken"}  # of a RawFrame


@dataclasses.dataclass(frozen=True)
class Job:
    """A raw file that must be looked at."""

    name: str
    """Relative to the data set's folder."""
    path: str
    known: shards.Source | None
    """As the index has it."""
    shard_xxh128: str
    """What its shard must be if the raw file is as the index has it; empty when that is not known."""
    take_over: bool
    """A shard that says it is of this raw file is taken."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a job."""

    source: shards.Source | None
    """None when the file could not be read."""
    frame: shards.ShortFrame | None
    reason: str
    """Why there is no frame."""
    decoded: bool
    full: bool = False
    """The destination could not be written to: no fault of the file."""


def shard_of(name: str) -> str:
    """short/10003_00_0.04s.ARW -> short/10003_00_0.04s.parquet"""
    return os.path.splitext(name)[0] + ".parquet"


def pack_file(job: Job, destination: str, tile: int) -> Outcome:
    """One raw file to its shard, unless the shard is there."""
    try:
        source = storage.path(job.path)
        with storage.local(source) as here:
            return _pack_file(job, source, here, storage.path(destination), tile)
    except OSError as error:
        return Outcome(None, None, error.strerror or str(error), True)
    except InputError as error:  # an object store's refusal
        return Outcome(None, None, str(error).removeprefix(f"{job.path}: "), True)


def _pack_file(job: Job, path: AnyPath, here: Path, destination: AnyPath, tile: int) -> Outcome:
    """`pack_file`, with the file on this machine."""
    shard, stat, xxh128 = shard_of(job.name), path.stat(), tiles.file_xxh128(here)
    source = shards.Source(stat.st_size, stat.st_mtime_ns, xxh128, shard, "")
    as_known = job.known is not None and job.known.xxh128 == xxh128
    if as_known and job.known.reason:
        return Outcome(_failed(source, job.known.reason), None, job.known.reason, False)
    there = _there(job, source, job.shard_xxh128 if as_known else "", destination, tile)
    if there is not None:
        return Outcome(source, there, "", False)
    try:
        frame, pixels, offset, side = _decode(here, job.name.startswith("long/"), tile)
        now = path.stat()
    except InputError as error:
        reason = str(error).removeprefix(f"{here}: ")
        return Outcome(_failed(source, reason), None, reason, True)
    except (OSError, MemoryError) as error:  # no fault of the file's content
        return Outcome(None, None, getattr(error, "strerror", None) or "not enough memory to decode it", True)
    except Exception as error:  # whatever else a damaged file leads to stops no other
        reason = f"cannot be decoded ({type(error).__name__}: {error})"
        return Outcome(_failed(source, reason), None, reason, True)
    if (now.st_size, now.st_mtime_ns) != (stat.st_size, stat.st_mtime_ns):
        return Outcome(None, None, "it changed while it was read: pack again", True)
    known = {f.name: getattr(frame, f.name) for f in dataclasses.fields(frame) if f.name not in NOT_KEPT}
    entry = tiles.ShardFile(shard, path.name, stat.st_size, 0, "", pixels.shape, side, offset)
    packed = shards.ShortFrame(shard=entry, height=frame.height, width=frame.width, **known)
    record = shards.shard_record(packed, xxh128, tile, rendering_record())
    try:
        size, digest = tiles.write_shard(destination / shard, pixels, side, record)
    except OSError as error:
        return Outcome(None, None, error.strerror or str(error), True, full=True)
    return Outcome(source, shards.recorded_frame(record, size, digest), "", True)


def _failed(source: shards.Source, reason: str) -> shards.Source:
    return dataclasses.replace(source, shard="", reason=reason)


def _there(
    job: Job, source: shards.Source, shard_xxh128: str, destination: AnyPath, tile: int
) -> shards.ShortFrame | None:
    """The entry of a shard that is there already and of this raw file, by what it says of itself."""
    path = destination / source.shard
    record = tiles.read_record(path) if job.take_over else None
    if record is None:
        return None
    try:
        shard = record["frame"]["shard"]
        said = (record["version"], record["tile"], record["source_xxh128"], shard["source"], shard["path"])
        if said != (shards.VERSION, tile, source.xxh128, job.path.rpartition("/")[2], source.shard):
            return None
        if job.name.startswith("long/") and record["rendering"] != rendering_record():
            return None
        digest = tiles.file_xxh128(path)
        if shard_xxh128 not in ("", digest):
            return None
        return shards.recorded_frame(record, path.stat().st_size, digest)
    except (OSError, KeyError, TypeError):
        return None


def _decode(path: Path, long: bool, tile: int) -> tuple[RawFrame, np.ndarray | Packed, int, int]:
    """The frame, its pixels (C, H, W) uint16 as they are kept, what was added to them, and the side of their tiles."""
    if long:
        frame, rgb = read_and_render(path)
        return frame, rgb.transpose(2, 0, 1), 0, layout(frame.cfa).block * tile
    frame = read_raw(path)
    offset = tiles.offset_of(frame.black)
    return frame, Packed(frame.mosaic, frame.cfa, offset), offset, tile
