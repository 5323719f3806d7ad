"""One shard: the pixels of a frame as tiles in a Parquet file, one row group per tile.

Reading a window reads only the tiles that it overlaps: see `data.window`. An offset moves the black level of short
exposures to 128, so that the pixels of a dark tile fit 8 bits and are stored that way. If a dark tile has a few
brighter pixels, their high bytes are in a second column, which lz4 shrinks to almost nothing; pixels themselves are
not compressed, because that takes longer than writing them. A shard carries its own metadata: see `data.index`.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from lsid_ray import storage
from lsid_ray.raw.mosaic import PackedView
from lsid_ray.storage import AnyPath

VERSION = 7  # increased whenever the same raw file would give a different shard
TILE_SIDE = 256  # packed pixels; the tiles of a long exposure cover as many blocks of sensels
METADATA_KEY = b"lsid_ray"  # key of a shard's metadata in the Parquet file's
STORED_BLACK = 128
MAX_BRIGHT_SHARE = 1 / 16  # of the pixels of a tile stored with 8 bits
SCHEMA = pa.schema([pa.field(name, pa.binary(), nullable=False) for name in ("pixels", "high")])
COMPRESSION = {"high": "lz4"}


@dataclass(frozen=True)
class Shard:
    """A shard's entry in the index."""

    path: str
    """Relative to the folder of shards."""
    source: str
    """File name of the raw file."""
    source_bytes: int
    bytes: int
    xxh128: str
    shape: tuple[int, int, int]
    """Channels, height and width of the stored pixels."""
    tile: int
    """Side of the tiles, in stored pixels; row groups are in row-major order."""
    offset: int = 0
    """Added to the stored pixels, modulo 2**16: see `black_offset`."""


def iter_tiles(shape: tuple[int, int, int], side: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield y, x, channels, height, width of each tile of (C, H, W) pixels, in the order of the row groups."""
    channels, height, width = shape
    for y in range(0, height, side):
        for x in range(0, width, side):
            yield y, x, channels, min(side, height - y), min(side, width - x)


def black_offset(black: tuple[float, ...]) -> int:
    """The offset that moves a short exposure's black level to STORED_BLACK: Sony's 512 lies on a high byte's edge."""
    return (STORED_BLACK - round(sum(black) / len(black))) % 2**16


def write_shard(path: AnyPath, pixels: np.ndarray | PackedView, tile: int, metadata: dict[str, Any]) -> tuple[int, str]:
    """Write (C, H, W) uint16 atomically, in tiles of at most `tile` per side. Returns size in bytes and xxh128 hash.

    pixels: include the offset already. metadata: plain JSON values, read back by `read_metadata`. Deterministic: the
    same arguments give the same file. Raises: OSError if the file cannot be written.
    """
    with storage.atomic_write(path) as file:
        hashing_file = _HashingFile(file)
        with pq.ParquetWriter(
            hashing_file,
            SCHEMA,
            compression=COMPRESSION,
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
        ) as writer:
            for y, x, _, height, width in iter_tiles(pixels.shape, tile):
                columns = map(_binary_array, _encode_tile(pixels[:, y : y + height, x : x + width]))
                writer.write_table(pa.Table.from_arrays(list(columns), schema=SCHEMA))
            writer.add_key_value_metadata({METADATA_KEY: json.dumps(metadata, sort_keys=True)})
    return hashing_file.size, hashing_file.hash.hexdigest()


def _encode_tile(tile: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(C, h, w) -> the two columns: 8- or 16-bit pixels, and the high bytes of 8-bit pixels (empty if all are 0)."""
    tile = np.ascontiguousarray(tile, tile.dtype.newbyteorder("<"))
    empty = np.empty(0, np.uint8)
    if tile.dtype == np.uint8:
        return tile, empty
    bright = np.count_nonzero(tile > 255)
    if bright > MAX_BRIGHT_SHARE * tile.size:
        return tile, empty
    return tile.astype(np.uint8), (tile >> 8).astype(np.uint8) if bright else empty


def _binary_array(values: np.ndarray) -> pa.Array:
    """A binary column of one row, with the bytes of an array (not copied)."""
    offsets = pa.py_buffer(np.array([0, values.nbytes], np.int32))
    return pa.Array.from_buffers(pa.binary(), 1, [None, offsets, pa.py_buffer(values)])


class _HashingFile:
    """A file that is hashed while it is written, which saves reading it again."""

    closed = False

    def __init__(self, file: BinaryIO):
        self.file, self.hash, self.size = file, xxhash.xxh3_128(), 0

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        self.size += len(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def read_metadata(path: AnyPath) -> dict[str, Any] | None:
    """The metadata that `write_shard` stored; None if the file is missing or not a shard."""
    try:
        return json.loads(pq.read_metadata(storage.parquet_source(path)).metadata[METADATA_KEY])
    except (OSError, ValueError, KeyError, TypeError):  # pyarrow's errors are ValueErrors
        return None


def shard_entry(shard: Shard) -> dict[str, Any]:
    """A shard's entry in the index as the shard itself has it: without its size and hash, in plain JSON values."""
    entry = {name: value for name, value in asdict(shard).items() if name not in ("bytes", "xxh128")}
    return {**entry, "shape": list(shard.shape)}
