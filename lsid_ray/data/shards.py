"""Shards: one Parquet file a frame, one row group a tile, the tile's pixels as bytes.

    SHARDS/short/10003_00_0.04s.parquet   packed planes (4, h, w) uint16, as the sensor gave them
    SHARDS/long/10003_00_10s.parquet      the reference rendering (3, H, W) uint16, sRGB
    SHARDS/index.json                     pairs, frames, rendering, and each shard's size and hash

A window of a frame costs the tiles that it touches, each one range read. A long is stored once, however many
shorts share it. The index is written last: a folder with an index is whole, one without is not read.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lsid_ray.errors import InputError
from lsid_ray.raw.frame import RawFrame
from lsid_ray.raw.mosaic import pack_black, phase_padding, unpack

VERSION = 1
TILE = 256  # packed pixels a side; a long's tiles are twice that
Split = Literal["train", "validation", "test"]
SCHEMA = pa.schema(
    [(name, pa.int32()) for name in ("y", "x", "channels", "height", "width")] + [("pixels", pa.binary())]
)


@dataclass(frozen=True)
class ShardFile:
    """One shard as the index knows it."""

    path: str
    """Relative to the shards' folder."""
    source: str
    """Name of the raw file."""
    source_bytes: int
    bytes: int
    sha256: str
    shape: tuple[int, int, int]
    """Channels, height, width of the pixels stored."""
    tile: int
    """Side of its tiles, in those pixels; row groups follow each other row by row."""


@dataclass(frozen=True)
class ShortFrame:
    """What is known of a short exposure beside its pixels. Fields as in `raw.frame.RawFrame`."""

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
        """The raw frame again, exactly, from its packed planes (4, h, w) uint16."""
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
        """Black level of the planes R, G1, B, G2: (4,) float32, DN."""
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
class Shards:
    """The pairs of the splits that were asked for; no other split can be reached through it."""

    folder: str
    pairs: tuple[PackedPair, ...]
    rendering: dict[str, Any]
    """LibRaw's version and parameters of the long exposures."""

    @property
    def digest(self) -> str:
        """Hash of the pairs, their ratios and their pixels: two data sets of one digest train alike."""
        pairs = [(pair.name, pair.split, pair.ratio, pair.short.shard.sha256, pair.long.sha256) for pair in self.pairs]
        return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()

    def short_window(self, pair: PackedPair, y: int, x: int, height: int, width: int) -> np.ndarray:
        """(4, height, width) uint16 of the packed planes, from (y, x)."""
        return read_window(self.folder, pair.short.shard, y, x, height, width)

    def long_window(self, pair: PackedPair, y: int, x: int, height: int, width: int) -> np.ndarray:
        """(3, height, width) uint16 of the reference rendering, from sensel (y, x)."""
        return read_window(self.folder, pair.long, y, x, height, width)

    def planes(self, pair: PackedPair) -> np.ndarray:
        """The whole short: (4, h, w) uint16."""
        return self.short_window(pair, 0, 0, *pair.short.shard.shape[1:])

    def target(self, pair: PackedPair) -> np.ndarray:
        """The whole reference rendering: (3, H, W) uint16."""
        return self.long_window(pair, 0, 0, *pair.long.shape[1:])


def write_shard(path: Path, pixels: np.ndarray, tile: int) -> tuple[int, str]:
    """Write (C, H, W) uint16 in tiles of at most `tile` a side; complete or absent. Returns bytes and sha256.

    Deterministic: the same pixels give the same file.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    channels, height, width = pixels.shape
    try:
        with pq.ParquetWriter(
            partial, SCHEMA, compression="zstd", compression_level=1, use_dictionary=False, write_statistics=False
        ) as writer:
            for y in range(0, height, tile):
                for x in range(0, width, tile):
                    part = np.ascontiguousarray(pixels[:, y : y + tile, x : x + tile], dtype="<u2")
                    values = (y, x, channels, *part.shape[1:], part.tobytes())
                    writer.write_table(pa.table([[v] for v in values], schema=SCHEMA))
        size, digest = partial.stat().st_size, file_sha256(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return size, digest


def file_sha256(path: Path) -> str:
    """Hash of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@lru_cache(maxsize=4096)
def _footer(path: str, sha256: str) -> pq.FileMetaData:
    return pq.read_metadata(path)


def read_window(folder: str, shard: ShardFile, y: int, x: int, height: int, width: int) -> np.ndarray:
    """(C, height, width) uint16 from (y, x) of a shard; reads only the tiles that the window touches.

    Raises: ValueError for a window that leaves the frame, OSError for a shard that is not whole.
    """
    channels, rows, columns = shard.shape
    if not (0 <= y <= y + height <= rows and 0 <= x <= x + width <= columns):
        raise ValueError(f"{shard.path}: the window {height}x{width} at ({y}, {x}) leaves {rows}x{columns}")
    path, tile = os.path.join(folder, shard.path), shard.tile
    window = np.empty((channels, height, width), np.uint16)
    with pq.ParquetFile(path, metadata=_footer(path, shard.sha256)) as file:
        for row in range(y // tile, -(-(y + height) // tile)):
            for column in range(x // tile, -(-(x + width) // tile)):
                group = file.read_row_group(row * -(-columns // tile) + column, columns=["pixels"])
                top, left = row * tile, column * tile
                shape = (channels, min(tile, rows - top), min(tile, columns - left))
                pixels = np.frombuffer(group["pixels"][0].as_buffer(), "<u2").reshape(shape)
                y0, y1 = max(y, top), min(y + height, top + shape[1])
                x0, x1 = max(x, left), min(x + width, left + shape[2])
                window[:, y0 - y : y1 - y, x0 - x : x1 - x] = pixels[:, y0 - top : y1 - top, x0 - left : x1 - left]
    return window


def write_index(folder: Path, pairs: Iterable[PackedPair], rendering: dict[str, Any], record: dict[str, Any]) -> None:
    """Write index.json: complete or absent. `record` tells of how it was made: source, options, failures."""
    index = {"version": VERSION, **record, "rendering": rendering, "pairs": [asdict(pair) for pair in pairs]}
    partial = folder / ".index.json.partial"
    partial.write_text(json.dumps(index, indent=1))
    os.replace(partial, folder / "index.json")


def read_index(folder: str | Path) -> dict[str, Any]:
    """index.json as written.

    Raises: InputError when it is missing, broken, or of another version.
    """
    path = Path(folder) / "index.json"
    if not path.is_file():
        raise InputError(f"{folder} holds no index.json: expected shards, as jobs/pack.py writes them")
    try:
        index = json.loads(path.read_text())
        version = index["version"]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} is not an index of shards: expected what jobs/pack.py writes") from None
    if version != VERSION:
        raise InputError(f"{path} is of version {version}, this program reads {VERSION}: pack the raw files again")
    return index


def open_shards(folder: str | Path, splits: Iterable[Split]) -> Shards:
    """The pairs of the named splits, without reading a pixel.

    Raises: InputError as `read_index`, and when a split holds no pair.
    """
    index = read_index(folder)
    pairs = []
    try:
        for split in splits:
            chosen = [_pair(entry) for entry in index["pairs"] if entry["split"] == split]
            if not chosen:
                raise InputError(f"{folder} holds no pair of the {split} split")
            pairs += chosen
        return Shards(str(folder), tuple(pairs), index["rendering"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder}/index.json is not whole ({error}): pack the raw files again") from None


def _pair(entry: dict[str, Any]) -> PackedPair:
    short, long = entry["short"], entry["long"]
    return PackedPair(
        **{
            **entry,
            "short": ShortFrame(
                **{
                    **short,
                    "shard": _shard_file(short["shard"]),
                    "black": tuple(short["black"]),
                    "white_balance": tuple(short["white_balance"]),
                    "color_matrix": tuple(map(tuple, short["color_matrix"])),
                }
            ),
            "long": _shard_file(long),
        }
    )


def _shard_file(entry: dict[str, Any]) -> ShardFile:
    return ShardFile(**{**entry, "shape": tuple(entry["shape"])})
