"""Packing throughput, relative to LibRaw alone decoding and rendering the same files on the same cores."""

import math
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import rawpy
import ray
import tyro

from lsid_ray import cluster
from lsid_ray.benchmark.memory import peak_bytes
from lsid_ray.data.catalog import read_catalog
from lsid_ray.data.convert import PackTask, pack_file
from lsid_ray.data.index import read_index
from lsid_ray.data.pack import pack_dataset
from lsid_ray.data.parallel import reuse_freed_memory
from lsid_ray.data.shard import TILE_SIDE
from lsid_ray.errors import InputError
from lsid_ray.raw.dng import write_dng
from lsid_ray.raw.frame import read_raw
from lsid_ray.raw.render import render

LARGEST = (6336, 9504)  # sensels of a 61-megapixel camera


@dataclass(frozen=True)
class Pack:
    """Compare packing a data set with LibRaw alone in a process pool (takes as long as packing it a few times)."""

    root: Annotated[Path, tyro.conf.Positional]
    """Folder that holds short/ and long/, with SID's names."""

    def run(self, folder: Path) -> tuple[str, Any]:
        """The table, and the figures in it. folder: for the shards."""
        times = measure_pack(self.root, folder)
        return pack_table(times), times


@dataclass(frozen=True)
class PackTimes:
    """Measurements of one data set on one machine. Times are the better of two interleaved runs."""

    shorts: int
    longs: int
    raw_bytes: int
    shard_bytes: int
    cores: int
    libraw_s: float
    """LibRaw alone, one process per core."""
    pool_s: float
    """Packing the same files without Ray, one process per core."""
    ray_s: float
    """Packing with Ray, from listing the folder to writing the index."""
    peak_bytes: int
    """Peak memory of a process that packs one long exposure of 61 megapixels."""

    @property
    def pool_relative_speed(self) -> float:
        """Speed of packing without Ray, relative to LibRaw alone."""
        return self.libraw_s / self.pool_s

    @property
    def relative_speed(self) -> float:
        """Speed of packing with Ray, relative to LibRaw alone."""
        return self.libraw_s / self.ray_s


def measure_pack(root: Path, folder: Path, largest: tuple[int, int] = LARGEST) -> PackTimes:
    """Pack the data set of `root` into `folder` on the Ray cluster, which must be this machine alone.

    largest: height and width in sensels of the long exposure whose peak memory is measured.

    Raises InputError as `pack_dataset`, or if a file is left out (its time would count on one side only).
    """
    catalog = read_catalog(root)
    cluster.connect()
    pairs = [*catalog.pairs, *catalog.excluded]
    shorts, longs = {pair.short for pair in pairs}, {pair.long for pair in pairs}
    files = [(path, path in longs) for path in sorted(shorts | longs)]
    shards = folder / "shards"
    cores = int(ray.cluster_resources()["CPU"])
    spawn = multiprocessing.get_context("spawn")
    with (
        _one_openmp_thread(),
        ProcessPoolExecutor(cores, spawn) as libraw_pool,
        ProcessPoolExecutor(cores, spawn, reuse_freed_memory) as packing_pool,
    ):
        warm_up = pack_dataset(root, shards)  # starts processes and imports packages
        if warm_up.failures:
            name, reason = warm_up.failures[0]
            raise InputError(
                f"{root}: {len(warm_up.failures)} files cannot be packed, so nothing to compare; {name}: {reason}"
            )
        for pool in (libraw_pool, packing_pool):
            list(pool.map(_decode_with_libraw, files[:cores]))
        rounds = []
        for _ in range(2):
            libraw_s = _timed(lambda: list(libraw_pool.map(_decode_with_libraw, files)))
            shutil.rmtree(shards)  # frees its page cache and disk space for the next run
            for kind in ("short", "long"):
                (shards / kind).mkdir(parents=True)
            pool_s = _timed(lambda: list(packing_pool.map(partial(_pack_without_ray, shards), files)))
            shutil.rmtree(shards)
            ray_s = _timed(lambda: pack_dataset(root, shards))
            rounds.append((libraw_s, pool_s, ray_s))
    libraw_s, pool_s, ray_s = map(min, zip(*rounds, strict=True))
    return PackTimes(
        shorts=len(shorts),
        longs=len(longs),
        raw_bytes=sum(path.stat().st_size for path in shorts | longs),
        shard_bytes=sum(frame.shard.bytes for frame in read_index(shards).frames.values()),
        cores=cores,
        libraw_s=libraw_s,
        pool_s=pool_s,
        ray_s=ray_s,
        peak_bytes=_peak_of_largest(min(longs), largest, folder),
    )


def pack_table(times: PackTimes) -> str:
    """The measurements as a table, with a summary below."""
    files = times.shorts + times.longs
    rows = (
        ("LibRaw alone", times.libraw_s, times.raw_bytes),
        ("packing, no Ray", times.pool_s, times.shard_bytes),
        ("packing with Ray", times.ray_s, times.shard_bytes),
    )
    lines = [f"{times.shorts} shorts, {times.longs} longs, {times.cores} cores", ""]
    lines.append(f"{'':>16} {'seconds':>8} {'files/s':>8} {'GB':>7}")
    lines += [f"{name:>16} {seconds:8.1f} {files / seconds:8.2f} {size / 1e9:7.3f}" for name, seconds, size in rows]
    lines.append(
        f"\nPacking runs at {times.relative_speed:.2f} of the speed of LibRaw alone, and at "
        f"{times.pool_relative_speed:.2f} without Ray; the shards take "
        f"{times.shard_bytes / times.raw_bytes:.2f} of the size of the raw files.\nA process that packs a long "
        f"exposure of 61 megapixels takes {times.peak_bytes / 2**30:.2f} GiB."
    )
    return "\n".join(lines)


@contextmanager
def _one_openmp_thread():
    """Limit processes started in this block to one thread, as Ray does for tasks with one CPU."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        os.environ.pop("OMP_NUM_THREADS") if before is None else os.environ.update(OMP_NUM_THREADS=before)


def _decode_with_libraw(file: tuple[Path, bool]) -> None:
    """The minimum that packing must do: decode a short exposure, decode and render a long one."""
    path, long = file
    with rawpy.imread(str(path)) as raw:
        if long:
            render(raw)
        else:
            raw.raw_image_visible.copy()


def _pack_without_ray(folder: Path, file: tuple[Path, bool]) -> None:
    path, long = file
    name = f"{'long' if long else 'short'}/{path.name}"
    pack_file(PackTask(name, str(path), None, "", False), str(folder), TILE_SIDE)


def _timed(function: Callable[[], object]) -> float:
    os.sync()  # flush earlier writes first, they must not count
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _peak_of_largest(template: Path, size: tuple[int, int], folder: Path) -> int:
    """Peak memory of a process that packs a long exposure of `size` sensels, tiled from the file `template`."""
    peak_bytes(_write_largest, template, size, folder / "largest")
    return peak_bytes(_pack_largest, folder / "largest")


def _write_largest(template: Path, size: tuple[int, int], folder: Path) -> None:
    frame = read_raw(template)
    period = math.isqrt(len(frame.cfa))
    whole_periods = frame.mosaic[: frame.height // period * period, : frame.width // period * period]
    repeats = [-(-target // side) for target, side in zip(size, whole_periods.shape, strict=True)]
    mosaic = np.tile(whole_periods, repeats)[: size[0], : size[1]]
    (folder / "long").mkdir(parents=True)
    write_dng(folder / "long" / "00001_00_10s.dng", replace(frame, mosaic=mosaic))


def _pack_largest(folder: Path) -> None:
    reuse_freed_memory()  # as `parallel_map` does
    name = "long/00001_00_10s.dng"
    result = pack_file(PackTask(name, str(folder / name), None, "", False), str(folder), TILE_SIDE)
    assert result.frame is not None, result.reason
