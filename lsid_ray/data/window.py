"""A window of a shard's pixels: of an object one range of each tile is read, on a disk nothing but the window.

A shard on a disk is mapped into memory. What is read is what was packed: it is hashed before it is first read (see
`data.checksum`); of an object only ranges are read, so there its size and metadata are compared, and each range has a
checksum, of Parquet's own.
"""

import errno
import json
import math
import mmap
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lsid_ray import storage
from lsid_ray.data.checksum import ADVICE, check_content, content_problem
from lsid_ray.data.shard import METADATA_KEY, SCHEMA, Shard, shard_entry
from lsid_ray.data.tile_cache import TileCache
from lsid_ray.errors import InputError
from lsid_ray.object_store import RemotePath, StoreError
from lsid_ray.storage import AnyPath


@lru_cache(maxsize=4096)
def _footer(path: AnyPath, shard: Shard) -> pq.FileMetaData:
    """The footer of a shard. Raises: InputError if an object has the size or metadata of another shard."""
    if not isinstance(path, RemotePath):
        return pq.read_metadata(path)
    with path.open() as file:
        if file.size() != shard.bytes:
            raise InputError(f"{path}: has {file.size()} bytes, expected {shard.bytes}: {ADVICE}")
        footer = pq.read_metadata(file)
    entry = json.loads(footer.metadata[METADATA_KEY])["frame"]["shard"]
    if entry != shard_entry(shard):
        raise InputError(f"{path}: is the shard of {entry['path']}, packed from {entry['source']}: {ADVICE}")
    return footer


def _open(path: RemotePath, shard: Shard) -> pq.ParquetFile:
    source, footer = storage.parquet_source(path), _footer(path, shard)
    return pq.ParquetFile(source, metadata=footer, pre_buffer=True, page_checksum_verification=True)


class _MappedShard:
    """A shard on a disk, mapped into memory: the pixels of a tile lie in one piece, uncompressed."""

    def __init__(self, path: Path, shard: Shard):
        self.path, self.footer = path, _footer(path, shard)
        with path.open("rb") as file:
            self.map = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        self.file = pq.ParquetFile(pa.BufferReader(pa.py_buffer(self.map)), metadata=self.footer)
        self.spans: dict[int, tuple[int, int, bool]] = {}

    def tile(self, group: int, size: int) -> tuple[memoryview, pa.Buffer | bytes]:
        """The two columns of a tile of `size` pixels, the first as a view of the file."""
        if group not in self.spans:
            self.spans[group] = self._span(group, size)
        start, end, has_high = self.spans[group]
        high = b""
        if has_high:
            high = self.file.read_row_group(group, ["high"], use_threads=False).column(0)[0].as_buffer()
        return self.map[start:end], high

    def _span(self, group: int, size: int) -> tuple[int, int, bool]:
        """Where the pixels begin and end, and whether there are high bytes.

        A column chunk is one page, which ends with its only value: the length, 4 bytes, and the bytes.
        """
        pixels, high = (self.footer.row_group(group).column(column) for column in range(2))
        end = pixels.data_page_offset + pixels.total_compressed_size
        for length in (2 * size, size):
            start = end - length
            if int.from_bytes(self.map[start - 4 : start], "little") == length:
                return start, end, high.total_uncompressed_size >= size  # the page's header counts too
        raise ValueError(f"tile {group} has neither 8 nor 16 bits per pixel")


@lru_cache(maxsize=1024)
def _mapped(path: Path, shard: Shard, identity: tuple[int, ...]) -> _MappedShard:
    """identity: of `check_content`, so that a replaced file is mapped anew."""
    return _MappedShard(path, shard)


@lru_cache(maxsize=1)
def _tile_cache(size_gb: float) -> TileCache:
    return TileCache(size_gb)


def _fetch_tiles(
    path: RemotePath, shard: Shard, batches: Iterable[list[int]], cache_gb: float
) -> Iterator[dict[int, tuple[Any, ...]]]:
    """Read batches of tiles from an object store: yields {row group: its columns} per batch.

    They come from the node's cache, or by as few range reads as possible.
    """
    cache = _tile_cache(cache_gb) if cache_gb else None
    with ExitStack() as stack:
        file = None
        for row_groups in batches:
            keys = {group: f"{shard.xxh128}-{group}" for group in row_groups}
            columns = {} if cache is None else {group: cache.get(keys[group]) for group in row_groups}
            missing = [group for group in row_groups if columns.get(group) is None]
            if missing:
                try:
                    if file is None:
                        file = stack.enter_context(_open(path, shard))
                    rows = file.read_row_groups(missing).select(SCHEMA.names)
                    found = [tuple(column[i].as_buffer() for column in rows.columns) for i in range(len(missing))]
                except InputError:
                    raise
                except (OSError, ValueError, LookupError, TypeError, NotImplementedError) as error:
                    raise _read_error(path, shard, error) from error
                columns |= dict(zip(missing, found, strict=True))
                for group in missing if cache is not None else ():
                    cache.put(keys[group], tuple(buffer.to_pybytes() for buffer in columns[group]))
            yield columns


def _map_tiles(
    path: Path, shard: Shard, batches: Iterable[list[tuple[int, int]]]
) -> Iterator[dict[int, tuple[Any, ...]]]:
    """The same from a disk, without reading what is not used. batches: of row groups and their numbers of pixels."""
    identity = check_content(path, shard.bytes, shard.xxh128)
    try:
        mapped = _mapped(path, shard, identity)
        for batch in batches:
            yield {group: mapped.tile(group, size) for group, size in batch}
    except (OSError, ValueError, LookupError, TypeError, NotImplementedError) as error:
        raise _read_error(path, shard, error) from error


def read_window(
    folder: str,
    shard: Shard,
    y: int,
    x: int,
    height: int,
    width: int,
    cache_gb: float = 0.0,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """(C, height, width) uint16 from (y, x) of a shard; reads only the tiles that overlap the window.

    cache_gb: GiB that this node may use to cache tiles from an object store. out: array to write to.
    Raises: InputError if the shard is missing or damaged, OSError if the disk or the object store fails, ValueError
    for a window outside the frame.
    """
    channels, frame_height, frame_width = shard.shape
    if not (0 <= y <= y + height <= frame_height and 0 <= x <= x + width <= frame_width):
        raise ValueError(
            f"{shard.path}: window {height}x{width} at ({y}, {x}): expected it inside {frame_height}x{frame_width}"
        )
    path, side, offset = storage.to_path(folder) / shard.path, shard.tile, np.uint16(shard.offset)
    window = np.empty((channels, height, width), np.uint16) if out is None else out
    tiles_per_row = -(-frame_width // side)
    overlapping = [
        [row * tiles_per_row + column for column in range(x // side, -(-(x + width) // side))]
        for row in range(y // side, -(-(y + height) // side))
    ]

    def shape_of(group: int) -> tuple[int, int, int]:
        top, left = (index * side for index in divmod(group, tiles_per_row))
        return channels, min(side, frame_height - top), min(side, frame_width - left)

    if isinstance(path, RemotePath):
        rows = _fetch_tiles(path, shard, overlapping, cache_gb)
    else:
        rows = _map_tiles(path, shard, [[(group, math.prod(shape_of(group))) for group in row] for row in overlapping])
    for tiles in rows:
        for group, (pixels, high) in tiles.items():
            top, left = (index * side for index in divmod(group, tiles_per_row))
            shape = shape_of(group)
            y0, y1 = max(y, top), min(y + height, top + shape[1])
            x0, x1 = max(x, left), min(x + width, left + shape[2])
            target = window[:, y0 - y : y1 - y, x0 - x : x1 - x]
            overlap = (slice(None), slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
            dtype = np.dtype("u1" if len(pixels) == math.prod(shape) else "<u2")
            stored = np.frombuffer(pixels, dtype).reshape(shape)[overlap]
            if offset:
                np.subtract(stored, offset, out=target, dtype=np.uint16)
            else:
                target[:] = stored
            if len(high):
                target += np.left_shift(np.frombuffer(high, np.uint8).reshape(shape)[overlap], 8, dtype=np.uint16)
    return window


def _read_error(path: AnyPath, shard: Shard, error: Exception) -> Exception:
    """What to raise for a shard that cannot be read: InputError if it is damaged, else the disk or store has failed."""
    try:
        problem = content_problem(path, shard.bytes, shard.xxh128)
    except (OSError, InputError) as other:
        return other
    reason = str(error).partition("\n")[0]
    if not problem and isinstance(error, OSError):
        return StoreError(errno.EIO, reason, str(path)) if isinstance(path, RemotePath) else error
    return InputError(f"{path}: {problem or f'is not as the index describes it ({reason})'}: {ADVICE}")
