"""Convert one raw file to its shard: decode it, pack or render it, and write it, unless a valid shard exists."""

import dataclasses
import os
from pathlib import Path

import numpy as np

from lsid_ray import storage
from lsid_ray.data.checksum import file_xxh128
from lsid_ray.data.index import PackedFrame, SourceFile, frame_from_metadata, metadata_of, shard_metadata
from lsid_ray.data.shard import VERSION, Shard, black_offset, read_metadata, write_shard
from lsid_ray.errors import InputError
from lsid_ray.raw.frame import RawFrame, read_raw
from lsid_ray.raw.mosaic import PackedView, layout_of
from lsid_ray.raw.plausibility import oddities
from lsid_ray.raw.render import read_and_render, rendering_parameters
from lsid_ray.storage import AnyPath


@dataclasses.dataclass(frozen=True)
class PackTask:
    """A raw file to check, and to pack unless its shard exists."""

    name: str
    """In the packed data set: "short/10003_00_0.04s.ARW"."""
    path: str
    """Of the file."""
    indexed: SourceFile | None
    """Its entry in the index, None if it has none."""
    shard_xxh128: str
    """Expected hash of its shard if the raw file is unchanged; empty if unknown."""
    reuse_existing: bool
    """Whether an existing shard is reused if its metadata names this raw file."""
    sid_white: bool = False
    """As `raw.render.reference_rendering`."""


@dataclasses.dataclass(frozen=True)
class FileResult:
    """The result of a `PackTask`."""

    source: SourceFile | None
    """None if the file could not be read."""
    frame: PackedFrame | None
    """None if there is no shard."""
    reason: str
    """Why there is no shard."""
    decoded: bool
    """Whether decoding was attempted, not avoided thanks to the index or an existing shard."""
    write_failed: bool = False
    """The destination is not writable; the raw file is not at fault."""
    oddities: str = ""
    """As `raw.plausibility.oddities`, of a file that was decoded."""


def shard_path(name: str) -> str:
    """short/10003_00_0.04s.ARW -> short/10003_00_0.04s.parquet"""
    return os.path.splitext(name)[0] + ".parquet"


def pack_file(task: PackTask, destination: str, tile: int) -> FileResult:
    """Write the shard of one raw file, unless it exists."""
    try:
        source_path = storage.to_path(task.path)
        with storage.local_copy(source_path) as local_path:
            return _pack_local_file(task, source_path, local_path, storage.to_path(destination), tile)
    except OSError as error:
        return FileResult(None, None, error.strerror or str(error), True)
    except InputError as error:  # the object store refused access
        return FileResult(None, None, str(error).removeprefix(f"{task.path}: "), True)


def _pack_local_file(task: PackTask, path: AnyPath, local_path: Path, destination: AnyPath, tile: int) -> FileResult:
    shard, stat, xxh128 = shard_path(task.name), path.stat(), file_xxh128(local_path)
    source = SourceFile(stat.st_size, stat.st_mtime_ns, xxh128, shard, "")
    unchanged = task.indexed is not None and task.indexed.xxh128 == xxh128
    if unchanged and task.indexed.reason:
        return FileResult(_failed(source, task.indexed.reason), None, task.indexed.reason, False)
    existing = _existing_frame(task, source, task.shard_xxh128 if unchanged else "", destination, tile)
    if existing is not None:
        return FileResult(source, existing, "", False)
    try:
        frame, pixels, offset, tile_side = _decode(local_path, task, tile)
        stat_after = path.stat()
    except InputError as error:
        reason = str(error).removeprefix(f"{local_path}: ")
        return FileResult(_failed(source, reason), None, reason, True)
    except (OSError, MemoryError) as error:  # not caused by the file's content, so not recorded as such
        return FileResult(None, None, getattr(error, "strerror", None) or "not enough memory to decode it", True)
    except Exception as error:  # a damaged file can raise anything, and must not stop the other files
        reason = f"cannot be decoded ({type(error).__name__}: {error})"
        return FileResult(_failed(source, reason), None, reason, True)
    if (stat_after.st_size, stat_after.st_mtime_ns) != (stat.st_size, stat.st_mtime_ns):
        return FileResult(None, None, "it changed while it was read: pack again", True)
    entry = Shard(shard, os.path.basename(task.name), stat.st_size, 0, "", pixels.shape, tile_side, offset)
    metadata = PackedFrame(shard=entry, height=frame.height, width=frame.width, **metadata_of(frame))
    record = shard_metadata(metadata, xxh128, tile, rendering_parameters(task.sid_white))
    try:
        size, digest = write_shard(destination / shard, pixels, tile_side, record)
    except OSError as error:
        return FileResult(None, None, error.strerror or str(error), True, write_failed=True)
    return FileResult(source, frame_from_metadata(record, size, digest), "", True, oddities=oddities(frame))


def _failed(source: SourceFile, reason: str) -> SourceFile:
    return dataclasses.replace(source, shard="", reason=reason)


def _existing_frame(
    task: PackTask, source: SourceFile, shard_xxh128: str, destination: AnyPath, tile: int
) -> PackedFrame | None:
    """The index entry of an existing shard, if its metadata names this raw file and the same options."""
    path = destination / source.shard
    record = read_metadata(path) if task.reuse_existing else None
    if record is None:
        return None
    try:
        shard = record["frame"]["shard"]
        recorded = (record["version"], record["tile"], record["source_xxh128"], shard["source"], shard["path"])
        if recorded != (VERSION, tile, source.xxh128, os.path.basename(task.name), source.shard):
            return None
        if task.name.startswith("long/") and record["rendering"] != rendering_parameters(task.sid_white):
            return None
        digest = file_xxh128(path)
        if shard_xxh128 not in ("", digest):
            return None
        return frame_from_metadata(record, path.stat().st_size, digest)
    except (OSError, KeyError, TypeError, ValueError):
        return None


def _decode(path: Path, task: PackTask, tile: int) -> tuple[RawFrame, np.ndarray | PackedView, int, int]:
    """The frame, its pixels (C, H, W) uint16 as stored, the offset added to them, and the side of their tiles."""
    if task.name.startswith("long/"):
        frame, rgb = read_and_render(path, task.sid_white)
        return frame, rgb.transpose(2, 0, 1), 0, layout_of(frame.cfa).block * tile
    frame = read_raw(path)
    offset = black_offset(frame.black)
    return frame, PackedView(frame.mosaic, frame.cfa, offset), offset, tile
