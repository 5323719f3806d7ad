"""A folder of shards, one Parquet file per frame, and its index.

    SHARDS/short/10003_00_0.04s.parquet   packed planes (C, h, w) uint16, as the sensor gave them
    SHARDS/long/10003_00_10s.parquet      the reference rendering (3, H, W) uint16, sRGB
    SHARDS/index.json                     pairs, frames, raw files, rendering, size and hash of each shard

C is 4 for Bayer and 9 for X-Trans. A long exposure is stored once, even if several short ones share it. A shard
carries its own entry of the index and the hash of its raw file. The index is written last, so a folder that has one is
complete; a folder without one is not read. While shards are being changed, the index is renamed to PREVIOUS_INDEX.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np
from pydantic import TypeAdapter, ValidationError

from lsid_ray import storage
from lsid_ray.data.shard import VERSION, Shard, iter_tiles, shard_entry
from lsid_ray.data.window import read_window
from lsid_ray.errors import InputError
from lsid_ray.raw.frame import FrameMetadata, RawFrame
from lsid_ray.raw.mosaic import MAX_RATIO, layout_of, pack_black, phase_padding, unpack
from lsid_ray.storage import AnyPath

INDEX = "index.json"
PREVIOUS_INDEX = ".index.json.previous"  # name of the index while shards are being changed
LOCK = ".lock"
Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class PackedFrame(FrameMetadata):
    """A short or long exposure as the index describes it: its metadata and its shard."""

    shard: Shard
    height: int
    """Of the mosaic, in sensels."""
    width: int

    def raw_frame(self, planes: np.ndarray) -> RawFrame:
        """Restore the raw frame, exactly, from its packed planes (C, h, w) uint16."""
        mosaic = unpack(planes, self.cfa, self.height, self.width)
        return RawFrame(mosaic=mosaic, source=self.shard.source, **metadata_of(self))

    @property
    def plane_black(self) -> np.ndarray:
        """Black level of each plane, with a period of r packed pixels: (C, r, r) float32, DN."""
        return np.asarray(pack_black(self.black, self.cfa), np.float32)

    @property
    def padding(self) -> tuple[int, int, int, int]:
        """Rows and columns added by packing: top, bottom, left, right."""
        return phase_padding(self.cfa, self.height, self.width)


@dataclass(frozen=True)
class Pair:
    """A short exposure and its long exposure."""

    name: str
    scene: str
    split: Split
    frame: int
    """Number in the burst, from 0."""
    ratio: float
    """Amplification, from the exposure times, at most 300."""
    misaligned: bool
    """Whether it is left out of the scores: a test pair of a scene that SID's authors leave out, or one that moved."""
    short: PackedFrame
    long: PackedFrame
    shift: tuple[float, float] | None = None
    """As `shift.Shift`, if `alignment.align_shards` could measure it."""


@dataclass(frozen=True)
class SourceFile:
    """A raw file at the time of packing."""

    bytes: int
    mtime_ns: int
    xxh128: str
    shard: str
    """Path of its shard; empty if it could not be packed."""
    reason: str
    """Why it could not be packed."""


@dataclass(frozen=True)
class Index:
    """The content of index.json."""

    program: str
    """Version of the program that wrote it."""
    tile: int
    """Side of the tiles, in packed pixels."""
    rendering: dict[str, Any]
    """LibRaw's version and its parameters for the long exposures."""
    sources: dict[str, SourceFile]
    """Raw files by name: "short/10003_00_0.04s.ARW"."""
    frames: dict[str, PackedFrame]
    """Frames by the path of their shard, including those in no pair."""
    pairs: tuple[Pair, ...]
    failed: tuple[tuple[str, str], ...]
    """Raw files in no pair, by path relative to the data set's folder, each with the reason."""

    @property
    def summary(self) -> str:
        """Number and size of the shards: "15 shards, 240 tiles, 0.002 GB"."""
        shards = [frame.shard for frame in self.frames.values()]
        tiles = sum(1 for shard in shards for _ in iter_tiles(shard.shape, shard.tile))
        return f"{len(shards)} shards, {tiles} tiles, {sum(shard.bytes for shard in shards) / 1e9:.3g} GB"

    def shard_metadata(self, path: str) -> dict[str, Any]:
        """The metadata that the shard at `path` must carry."""
        frame = self.frames[path]
        source = self.sources[f"{os.path.dirname(path)}/{frame.shard.source}"]
        return shard_metadata(frame, source.xxh128, self.tile, self.rendering)


@dataclass(frozen=True)
class Shards:
    """The pairs of the chosen splits, opened for reading; other splits are not accessible."""

    folder: str
    pairs: tuple[Pair, ...]
    rendering: dict[str, Any]
    """LibRaw's version and its parameters for the long exposures."""
    cache_gb: float = 0.0
    """GiB that each node may use to cache tiles from an object store."""

    @property
    def digest(self) -> str:
        """Hash of the pairs, their ratios and their pixels: data sets with the same digest train identically."""
        pairs = [
            (pair.name, pair.split, pair.ratio, pair.short.shard.xxh128, pair.long.shard.xxh128) for pair in self.pairs
        ]
        return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()

    def short_window(
        self, pair: Pair, y: int, x: int, height: int, width: int, out: np.ndarray | None = None
    ) -> np.ndarray:
        """(C, height, width) uint16 of the packed planes, from packed pixel (y, x). out: array to write to."""
        return read_window(self.folder, pair.short.shard, y, x, height, width, self.cache_gb, out)

    def long_window(
        self, pair: Pair, y: int, x: int, height: int, width: int, out: np.ndarray | None = None
    ) -> np.ndarray:
        """(3, height, width) uint16 of the reference rendering, from sensel (y, x). out: array to write to."""
        return read_window(self.folder, pair.long.shard, y, x, height, width, self.cache_gb, out)

    def planes(self, pair: Pair) -> np.ndarray:
        """All packed planes of the short exposure: (C, h, w) uint16."""
        return self.short_window(pair, 0, 0, *pair.short.shard.shape[1:])

    def target(self, pair: Pair) -> np.ndarray:
        """The full reference rendering: (3, H, W) uint16."""
        return self.long_window(pair, 0, 0, *pair.long.shard.shape[1:])


def metadata_of(frame: FrameMetadata) -> dict[str, Any]:
    """The fields of FrameMetadata of a raw or packed frame."""
    return {field.name: getattr(frame, field.name) for field in fields(FrameMetadata)}


def shard_metadata(frame: PackedFrame, source_xxh128: str, tile: int, rendering: dict[str, Any]) -> dict[str, Any]:
    """The metadata of a shard: its frame's entry in the index, without the size and hash of the shard.

    rendering: from `rendering_parameters`; stored for long exposures only. Returns plain JSON values.
    """
    entry = {**asdict(frame), "shard": shard_entry(frame.shard)}
    metadata = {"version": VERSION, "tile": tile, "source_xxh128": source_xxh128, "frame": entry}
    if frame.shard.path.startswith("long/"):
        metadata["rendering"] = rendering
    return json.loads(json.dumps(metadata))


def frame_from_metadata(metadata: dict[str, Any], size: int, xxh128: str) -> PackedFrame:
    """The index entry of a shard, from the shard's metadata, size in bytes and hash."""
    entry = metadata["frame"]
    entry = {**entry, "shard": {**entry["shard"], "bytes": size, "xxh128": xxh128}}
    return TypeAdapter(PackedFrame).validate_python(entry)


def write_index(folder: AnyPath, index: Index) -> None:
    """Write index.json atomically."""
    entries = asdict(index)
    for entry, pair in zip(entries["pairs"], index.pairs, strict=True):
        entry |= {"short": pair.short.shard.path, "long": pair.long.shard.path}
    with storage.atomic_write(folder / INDEX) as file:
        file.write(json.dumps({"version": VERSION, **entries}, indent=1, sort_keys=True).encode())


def read_index(folder: str | AnyPath, name: str = INDEX) -> Index:
    """Read index.json; `name` may be PREVIOUS_INDEX.

    Raises: InputError if it is missing, unreadable for this user, damaged, incomplete, or has another version; OSError
    if the disk or the object store fails.
    """
    folder = storage.to_path(folder)
    path = folder / name
    try:
        if not path.is_file() and path.exists():  # a pipe would block
            raise InputError(f"{path} is not a file: expected an index of shards, written by jobs/pack.py")
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        if any((folder / leftover).exists() for leftover in (PREVIOUS_INDEX, LOCK)):
            raise InputError(
                f"{folder} holds no {INDEX}; its packing is unfinished: run jobs/pack.py pack again"
            ) from None
        raise InputError(f"{folder} holds no {INDEX}: expected shards written by jobs/pack.py") from None
    except PermissionError as error:
        raise InputError(f"{path}: {error.strerror}: expected an index of shards that this user can read") from None
    try:
        entries = json.loads(content)
        version = entries.pop("version")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(f"{path} is not an index of shards: expected a file written by jobs/pack.py") from None
    if version != VERSION:
        raise InputError(f"{path} has version {version}, this program reads {VERSION}: pack the raw files again")
    try:
        frames = TypeAdapter(dict[str, PackedFrame]).validate_python(entries["frames"])
        pairs = [{**pair, "short": frames[pair["short"]], "long": frames[pair["long"]]} for pair in entries["pairs"]]
        index = TypeAdapter(Index).validate_python({**entries, "frames": frames, "pairs": pairs})
        if {source.shard for source in index.sources.values() if source.shard} != set(frames):
            raise KeyError("sources and frames differ")
    except (ValidationError, KeyError, TypeError) as error:
        reason = str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise InputError(f"{path} is incomplete ({reason}): pack the raw files again") from None
    if problem := _problem(index):
        raise InputError(f"{path} is damaged ({problem}): pack the raw files again")
    return index


def _problem(index: Index) -> str:
    """What no packing writes: paths that lead out of the folder, impossible shapes, tiles and ratios; empty if fine."""
    for path, frame in index.frames.items():
        shard = frame.shard
        if shard.path != path or not path.startswith(("short/", "long/")) or ".." in path.split("/"):
            return f"frame {path} has the path {shard.path}"
        if not re.fullmatch("[0-9a-f]{32}", shard.xxh128):
            return f"frame {path} has the hash {shard.xxh128}"
        if not 0 <= shard.offset < 2**16:
            return f"frame {path} has the offset {shard.offset}"
        if shard.tile < 1:
            return f"frame {path} has tiles of {shard.tile}"
        try:
            layout, (top, bottom, left, right) = layout_of(frame.cfa), frame.padding
        except InputError as error:
            return f"frame {path}: {error}"
        height, width = (frame.height + top + bottom) // layout.block, (frame.width + left + right) // layout.block
        shape = (3, frame.height, frame.width) if path.startswith("long/") else (len(layout.colors), height, width)
        if shard.shape != shape:
            return f"frame {path} has the shape {shard.shape}, expected {shape}"
    for pair in index.pairs:
        if not 1 <= pair.ratio <= MAX_RATIO:
            return f"pair {pair.name} has the ratio {pair.ratio}"
    return ""


def unlisted_files(folder: AnyPath, index: Index) -> list[str]:
    """Files in a folder of shards that are not in its index."""
    return sorted(storage.list_files(folder).keys() - {*index.frames, INDEX, LOCK, storage.WRITE_TEST})


def open_shards(folder: str | AnyPath, splits: Iterable[Split], cache_gb: float = 0.0) -> Shards:
    """Open the pairs of the given splits, without reading pixels. cache_gb: as in `Shards`.

    Raises: InputError as `read_index`, and if a split has no pair.
    """
    index = read_index(folder)
    pairs = []
    for split in splits:
        chosen = [pair for pair in index.pairs if pair.split == split]
        if not chosen:
            raise InputError(f"{folder} has no pairs in the {split} split")
        pairs += chosen
    return Shards(str(folder), tuple(pairs), index.rendering, cache_gb)
