"""One shard: a frame's pixels in tiles, one Parquet file, one row group a tile.

A window of a frame costs the tiles that it touches, each one range read. A short is moved by an offset so that black
stands at 128: then a dark tile's pixels fit 8 bits, and lie so. Of a tile with a few brighter ones the high bytes are
a column of their own, lz4, for they shrink to nothing; all other tiles lie as they are, for to compress them takes
longer than to write them. A shard carries a record of itself: see `data.shards`.
"""

import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import diskcache
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from lsid_ray import storage
from lsid_ray.raw.mosaic import Packed
from lsid_ray.storage import AnyPath, Remote

TILE = 256  # packed pixels a side; a long's tiles are as many blocks of sensels
RECORD = b"lsid_ray"  # key of a shard's record among its file's metadata
BLACK_AT = 128
FEW = 1 / 16  # of a tile's pixels
SCHEMA = pa.schema([pa.field(name, pa.binary(), nullable=False) for name in ("pixels", "high")])
COMPRESSION = {"high": "lz4"}


@dataclass(frozen=True)
class ShardFile:
    """One shard as the index knows it."""

    path: str
    """Relative to the shards' folder."""
    source: str
    """Name of the raw file."""
    source_bytes: int
    bytes: int
    xxh128: str
    shape: tuple[int, int, int]
    """Channels, height, width of the pixels stored."""
    tile: int
    """Side of its tiles, in those pixels; row groups follow each other row by row."""
    offset: int = 0
    """What was added to its pixels, modulo 2**16: see `offset_of`."""


def tiles(shape: tuple[int, int, int], side: int) -> Iterator[tuple[int, int, int, int, int]]:
    """y, x, channels, height, width of the tiles of pixels (C, H, W), in the order of row groups."""
    channels, height, width = shape
    for y in range(0, height, side):
        for x in range(0, width, side):
            yield y, x, channels, min(side, height - y), min(side, width - x)


def offset_of(black: tuple[float, ...]) -> int:
    """What is added to a short's pixels so that black stands at BLACK_AT: Sony's 512 is the edge of a high byte."""
    return (BLACK_AT - round(sum(black) / len(black))) % 2**16


def write_shard(path: AnyPath, pixels: np.ndarray | Packed, tile: int, record: dict[str, Any]) -> tuple[int, str]:
    """Write (C, H, W) uint16 in tiles of at most `tile` a side; complete or absent. Returns bytes and hash.

    pixels: the offset is added to them already. `record`, plain JSON values, stands among the file's metadata: see
    `read_record`. Deterministic: the same arguments give the same file. Raises OSError when it cannot be written.
    """
    with storage.writing(path) as file:
        hashed = _Hashed(file)
        with pq.ParquetWriter(
            hashed, SCHEMA, compression=COMPRESSION, use_dictionary=False, write_statistics=False
        ) as writer:
            for y, x, _, height, width in tiles(pixels.shape, tile):
                columns = map(_cell, _columns(pixels[:, y : y + height, x : x + width]))
                writer.write_table(pa.Table.from_arrays(list(columns), schema=SCHEMA))
            writer.add_key_value_metadata({RECORD: json.dumps(record, sort_keys=True)})
    return hashed.size, hashed.digest.hexdigest()


def _columns(tile: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(C, h, w) -> the two columns: pixels of 8 or 16 bits, and if they are of 8 their high bytes, or none."""
    tile = np.ascontiguousarray(tile, tile.dtype.newbyteorder("<"))
    none = np.empty(0, np.uint8)
    if tile.dtype == np.uint8:
        return tile, none
    bright = np.count_nonzero(tile > 255)
    if bright > FEW * tile.size:
        return tile, none
    return tile.astype(np.uint8), (tile >> 8).astype(np.uint8) if bright else none


def _cell(values: np.ndarray) -> pa.Array:
    """A column of one row: an array's bytes, not copied."""
    ends = pa.py_buffer(np.array([0, values.nbytes], np.int32))
    return pa.Array.from_buffers(pa.binary(), 1, [None, ends, pa.py_buffer(values)])


class _Hashed:
    """A file that is hashed as it is written, so that nothing must be read again."""

    closed = False

    def __init__(self, file: BinaryIO):
        self.file, self.digest, self.size = file, xxhash.xxh3_128(), 0

    def write(self, part: bytes) -> int:
        self.digest.update(part)
        self.size += len(part)
        return self.file.write(part)

    def flush(self) -> None:
        self.file.flush()


def read_record(path: AnyPath) -> dict[str, Any] | None:
    """The `record` that `write_shard` was given; None for what is missing or no such shard."""
    try:
        return json.loads(pq.read_metadata(storage.parquet_source(path)).metadata[RECORD])
    except (OSError, ValueError, KeyError, TypeError):  # pyarrow's errors are ValueErrors
        return None


def check_shard(folder: str | AnyPath, shard: ShardFile, record: dict[str, Any]) -> str:
    """What is wrong with a shard, empty when nothing is: its size, hash, record and every tile are looked at."""
    try:
        with storage.local(storage.path(folder) / shard.path) as path:
            return _check_shard(path, shard, record)
    except FileNotFoundError:
        return "is missing"
    except (OSError, ValueError, KeyError) as error:
        return f"cannot be read ({error})"


def _check_shard(path: Path, shard: ShardFile, record: dict[str, Any]) -> str:
    size = path.stat().st_size
    if size != shard.bytes:
        return f"has {size} bytes, {shard.bytes} by the index"
    if file_xxh128(path) != shard.xxh128:
        return "its bytes are not those of the index (xxh128)"
    if read_record(path) != record:
        return "what it says of itself is not what the index says"
    with pq.ParquetFile(path) as file:
        expected = list(tiles(shard.shape, shard.tile))
        if file.num_row_groups != len(expected):
            return f"has {file.num_row_groups} tiles, {len(expected)} by the index"
        for group, tile in enumerate(expected):
            row = file.read_row_group(group)
            pixels = math.prod(tile[2:])
            sizes = [[value.as_buffer().size for value in column] for column in row.columns]
            if sizes not in ([[pixels], [0]], [[pixels], [pixels]], [[2 * pixels], [0]]):
                return f"tile {group} has {sizes} bytes, {pixels} pixels by the index"
    return ""


def file_xxh128(path: AnyPath) -> str:
    """Hash of a file's content, in hexadecimal; of XXH3, ten times as fast as sha256, but no guard against forgery."""
    digest = xxhash.xxh3_128()
    chunk = bytearray(1 << 20)
    with path.open("rb") as file:
        while size := file.readinto(chunk):
            digest.update(memoryview(chunk)[:size])
    return digest.hexdigest()


@lru_cache(maxsize=4096)
def _footer(path: AnyPath, xxh128: str) -> pq.FileMetaData:
    return pq.read_metadata(storage.parquet_source(path))


@lru_cache(maxsize=1)
def _cache(size_gb: float) -> diskcache.Cache:
    """Of this node: shared by its processes, the least recently used goes first."""
    folder = Path(tempfile.gettempdir(), f"lsid-tiles-{os.getuid()}")
    return diskcache.Cache(str(folder), size_limit=int(size_gb * 2**30), eviction_policy="least-recently-used")


def _tiles(
    path: AnyPath, shard: ShardFile, wanted: Iterable[list[int]], cache_gb: float
) -> Iterator[dict[int, tuple[Any, ...]]]:
    """The columns of some tiles at a time, by the numbers of their row groups.

    Of a shard in an object store they come by ranges, in as few as it takes, or from the node's cache.
    """
    away = isinstance(path, Remote)
    cache = _cache(cache_gb) if away and cache_gb else None
    with ExitStack() as opened:
        file = None
        for numbers in wanted:
            found = {} if cache is None else {number: cache.get((shard.xxh128, number)) for number in numbers}
            missing = [number for number in numbers if found.get(number) is None]
            if missing:
                if file is None:
                    source, footer = storage.parquet_source(path), _footer(path, shard.xxh128)
                    file = opened.enter_context(pq.ParquetFile(source, metadata=footer, pre_buffer=away))
                groups = file.read_row_groups(missing)
                for place, number in enumerate(missing):
                    found[number] = tuple(groups[name][place].as_buffer() for name in SCHEMA.names)
                    if cache is not None:
                        cache.set((shard.xxh128, number), tuple(part.to_pybytes() for part in found[number]))
            yield found


def read_window(
    folder: str, shard: ShardFile, y: int, x: int, height: int, width: int, cache_gb: float = 0.0
) -> np.ndarray:
    """(C, height, width) uint16 from (y, x) of a shard; reads only the tiles that the window touches.

    cache_gb: GiB that this node may keep of tiles from an object store. Raises: ValueError for a window that leaves
    the frame, OSError for a shard that is not whole.
    """
    channels, rows, columns = shard.shape
    if not (0 <= y <= y + height <= rows and 0 <= x <= x + width <= columns):
        raise ValueError(f"{shard.path}: the window {height}x{width} at ({y}, {x}) leaves {rows}x{columns}")
    path, tile, offset = storage.path(folder) / shard.path, shard.tile, np.uint16(shard.offset)
    window = np.empty((channels, height, width), np.uint16)
    across = -(-columns // tile)
    touched = [
        [row * across + column for column in range(x // tile, -(-(x + width) // tile))]
        for row in range(y // tile, -(-(y + height) // tile))
    ]
    for parts in _tiles(path, shard, touched, cache_gb):
        for number, part in parts.items():
            top, left = (place * tile for place in divmod(number, across))
            shape = (channels, min(tile, rows - top), min(tile, columns - left))
            y0, y1 = max(y, top), min(y + height, top + shape[1])
            x0, x1 = max(x, left), min(x + width, left + shape[2])
            there = window[:, y0 - y : y1 - y, x0 - x : x1 - x]
            inside = (slice(None), slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
            pixels, high = part
            of = np.dtype("u1" if len(pixels) == math.prod(shape) else "<u2")
            np.subtract(np.frombuffer(pixels, of).reshape(shape)[inside], offset, out=there, dtype=np.uint16)
            if len(high):
                there += np.left_shift(np.frombuffer(high, np.uint8).reshape(shape)[inside], 8, dtype=np.uint16)
    return window
