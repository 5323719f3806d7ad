"""Shards: one Parquet file a frame, and an index of them.

    SHARDS/short/10003_00_0.04s.parquet   packed planes (C, h, w) uint16, as the sensor gave them
    SHARDS/long/10003_00_10s.parquet      the reference rendering (3, H, W) uint16, sRGB
    SHARDS/index.json                     pairs, frames, raw files, rendering, and each shard's size and hash

C is 4 for Bayer and 9 for X-Trans. Longs are stored once, however many shorts share them. A shard carries its own
entry of the index and the hash of its raw file. The index is written last: a folder with an index is whole, one
without is not read; while shards are being changed it goes by another name.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from lsid_ray import storage
from lsid_ray.data.tiles import ShardFile, read_window, tiles
from lsid_ray.errors import InputError
from lsid_ray.raw.frame import RawFrame
from lsid_ray.raw.mosaic import pack_black, phase_padding, unpack
from lsid_ray.storage import AnyPath

VERSION = 5  # raised when the same raw file gives another shard
INDEX = "index.json"
UNFINISHED = ".index.json.previous"  # the index while shards are being changed
LOCK = ".lock"
Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class ShortFrame:
    """What is known of an exposure, short or long, beside its pixels. Fields as in `raw.frame.RawFrame`."""

    shard: ShardFile
    height: int
    """Of the mosaic, in sensels."""
    width: int
    cfa: str
    black: tuple[float, ...]
    white: float
    white_balance: tuple[float, float, float]
    color_matrix: tuple[tuple[float, ...], ...]
    orientation: int
    camera: str
    iso: float | None
    exposure_s: float | None

    def raw_frame(self, planes: np.ndarray) -> RawFrame:
        """The raw frame again, exactly, from its packed planes (C, h, w) uint16."""
        return RawFrame(
            mosaic=unpack(planes, self.cfa, self.height, self.width),
            cfa=self.cfa,
            black=self.black,
            white=self.white,
            white_balance=self.white_balance,
            color_matrix=self.color_matrix,
            orientation=self.orientation,
            camera=self.camera,
            iso=self.iso,
            exposure_s=self.exposure_s,
            source=self.shard.source,
        )

    @property
    def plane_black(self) -> np.ndarray:
        """Black level of each plane, repeating every r packed pixels: (C, r, r) float32, DN."""
        return np.asarray(pack_black(self.black, self.cfa), np.float32)

    @property
    def padding(self) -> tuple[int, int, int, int]:
        """Rows and columns that packing added: top, bottom, left, right."""
        return phase_padding(self.cfa, self.height, self.width)


@dataclass(frozen=True)
class PackedPair:
    """A short exposure and the long one of the same scene."""

    name: str
    scene: str
    split: Split
    frame: int
    """Number in the burst, from 0."""
    ratio: float
    """Amplification, from the exposure times, at most 300."""
    misaligned: bool
    """One of SID's scenes whose long does not lie on its shorts."""
    short: ShortFrame
    long: ShardFile


@dataclass(frozen=True)
class Source:
    """A raw file as packing found it."""

    bytes: int
    mtime_ns: int
    xxh128: str
    shard: str
    """Path of its shard; empty when it could not be packed."""
    reason: str
    """Why not."""


@dataclass(frozen=True)
class Index:
    """All that index.json says."""

    program: str
    """Version of the program that wrote it."""
    tile: int
    """Side of the tiles, in packed pixels."""
    rendering: dict[str, Any]
    """LibRaw's version and parameters of the long exposures."""
    sources: dict[str, Source]
    """By file name, relative to the data set's folder."""
    frames: dict[str, ShortFrame]
    """By the shard's path; also those of no whole pair."""
    pairs: tuple[PackedPair, ...]
    failed: tuple[tuple[str, str], ...]
    """Raw files that are in no pair, each with the reason."""

    @property
    def summary(self) -> str:
        """How much it is: "15 shards, 240 tiles, 0.002 GB"."""
        files = [frame.shard for frame in self.frames.values()]
        count = sum(1 for file in files for _ in tiles(file.shape, file.tile))
        return f"{len(files)} shards, {count} tiles, {sum(file.bytes for file in files) / 1e9:.3g} GB"

    def record(self, path: str) -> dict[str, Any]:
        """What the shard of that path must say of itself."""
        frame = self.frames[path]
        source = self.sources[f"{os.path.dirname(path)}/{frame.shard.source}"]
        return shard_record(frame, source.xxh128, self.tile, self.rendering)


@dataclass(frozen=True)
class Shards:
    """The pairs of the splits that were asked for; no other split can be reached through it."""

    folder: str
    pairs: tuple[PackedPair, ...]
    rendering: dict[str, Any]
    """LibRaw's version and parameters of the long exposures."""
    cache_gb: float = 0.0
    """GiB that each node may keep of tiles from an object store."""

    @property
    def digest(self) -> str:
        """Hash of the pairs, their ratios and their pixels: two data sets of one digest train alike."""
        pairs = [(pair.name, pair.split, pair.ratio, pair.short.shard.xxh128, pair.long.xxh128) for pair in self.pairs]
        return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()

    def short_window(self, pair: PackedPair, y: int, x: int, height: int, width: int) -> np.ndarray:
        """(C, height, width) uint16 of the packed planes, from (y, x)."""
        return read_window(self.folder, pair.short.shard, y, x, height, width, self.cache_gb)

    def long_window(self, pair: PackedPair, y: int, x: int, height: int, width: int) -> np.ndarray:
        """(3, height, width) uint16 of the reference rendering, from sensel (y, x)."""
        return read_window(self.folder, pair.long, y, x, height, width, self.cache_gb)

    def planes(self, pair: PackedPair) -> np.ndarray:
        """The whole short: (C, h, w) uint16."""
        return self.short_window(pair, 0, 0, *pair.short.shard.shape[1:])

    def target(self, pair: PackedPair) -> np.ndarray:
        """The whole reference rendering: (3, H, W) uint16."""
        return self.long_window(pair, 0, 0, *pair.long.shape[1:])


def shard_record(frame: ShortFrame, source_xxh128: str, tile: int, rendering: dict[str, Any]) -> dict[str, Any]:
    """What a shard says of itself: all that the index says of its frame, but for its own size and hash.

    rendering: as `rendering_record`; it is said of longs only. Plain JSON values.
    """
    entry = asdict(frame)
    entry["shard"] = {name: value for name, value in entry["shard"].items() if name not in ("bytes", "xxh128")}
    record = {"version": VERSION, "tile": tile, "source_xxh128": source_xxh128, "frame": entry}
    if frame.shard.path.startswith("long/"):
        record["rendering"] = rendering
    return json.loads(json.dumps(record))


def recorded_frame(record: dict[str, Any], size: int, xxh128: str) -> ShortFrame:
    """The index's entry of a shard, from its own record, its size in bytes and its hash."""
    return _frame({**record["frame"], "shard": {**record["frame"]["shard"], "bytes": size, "xxh128": xxh128}})


def write_index(folder: AnyPath, index: Index) -> None:
    """Write index.json: complete or absent."""
    entries = asdict(index)
    for entry, pair in zip(entries["pairs"], index.pairs, strict=True):
        entry |= {"short": pair.short.shard.path, "long": pair.long.path}
    with storage.writing(folder / INDEX) as file:
        file.write(json.dumps({"version": VERSION, **entries}, indent=1, sort_keys=True).encode())


def read_index(folder: str | AnyPath, name: str = INDEX) -> Index:
    """index.json as written; `name` may be UNFINISHED.

    Raises: InputError when it is missing, broken, or of another version.
    """
    folder = storage.path(folder)
    path = folder / name
    if not path.is_file():
        if any((folder / begun).exists() for begun in (UNFINISHED, LOCK)):
            raise InputError(f"{folder} holds no {INDEX}, its packing is unfinished: run jobs/pack.py pack to its end")
        raise InputError(f"{folder} holds no {INDEX}: expected shards, as jobs/pack.py writes them")
    try:
        entries = json.loads(path.read_text())
        version = entries.pop("version")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path} is not an index of shards: expected what jobs/pack.py writes") from None
    if version != VERSION:
        raise InputError(f"{path} is of version {version}, this program reads {VERSION}: pack the raw files again")
    try:
        frames = {path: _frame(entry) for path, entry in entries["frames"].items()}
        sources = {name: Source(**entry) for name, entry in entries["sources"].items()}
        if {source.shard for source in sources.values() if source.shard} != set(frames):
            raise KeyError("sources and frames differ")
        return Index(
            **{
                **entries,
                "sources": sources,
                "frames": frames,
                "pairs": tuple(
                    PackedPair(**{**entry, "short": frames[entry["short"]], "long": frames[entry["long"]].shard})
                    for entry in entries["pairs"]
                ),
                "failed": tuple(map(tuple, entries["failed"])),
            }
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not whole ({error}): pack the raw files again") from None


def strays(folder: AnyPath, index: Index) -> list[str]:
    """Files in a folder of shards that its index does not name."""
    return sorted(storage.files_below(folder).keys() - {*index.frames, INDEX, LOCK})


def open_shards(folder: str | AnyPath, splits: Iterable[Split], cache_gb: float = 0.0) -> Shards:
    """The pairs of the named splits, without reading a pixel. cache_gb: as `Shards` has it.

    Raises: InputError as `read_index`, and when a split holds no pair.
    """
    index = read_index(folder)
    pairs = []
    for split in splits:
        chosen = [pair for pair in index.pairs if pair.split == split]
        if not chosen:
            raise InputError(f"{folder} holds no pair of the {split} split")
        pairs += chosen
    return Shards(str(folder), tuple(pairs), index.rendering, cache_gb)


def _frame(entry: dict[str, Any]) -> ShortFrame:
    return ShortFrame(
        **{
            **entry,
            "shard": ShardFile(**{**entry["shard"], "shape": tuple(entry["shard"]["shape"])}),
            "black": tuple(entry["black"]),
            "white_balance": tuple(entry["white_balance"]),
            "color_matrix": tuple(map(tuple, entry["color_matrix"])),
        }
    )
