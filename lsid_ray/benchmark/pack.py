"""How fast packing is, against LibRaw alone doing the same decoding and development on the same cores."""

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

import numpy as np
import rawpy
import ray

from lsid_ray.benchmark.memory import peak_bytes
from lsid_ray.data.catalog import read_catalog
from lsid_ray.data.convert import Job, pack_file
from lsid_ray.data.pack import pack_folder
from lsid_ray.data.shards import read_index
from lsid_ray.data.tasks import keep_memory
from lsid_ray.data.tiles import TILE
from lsid_ray.errors import InputError
from lsid_ray.raw.develop import render
from lsid_ray.raw.dng import write_dng
from lsid_ray.raw.frame import read_raw

LARGEST = (6336, 9504)  # sensels of a 61-megapixel camera


@dataclass(frozen=True)
class PackTimes:
    """Of one data set, on one machine."""

    shorts: int
    longs: int
    raw_bytes: int
    shard_bytes: int
    cores: int
    libraw_s: float
    """LibRaw alone, a process a core. This and the next two are the better of two runs, in turn."""
    plain_s: float
    """The same files packed without Ray, a process a core."""
    pack_s: float
    """Packing over Ray, from the first look at the folder to the index."""
    largest_bytes: int
    """Peak memory of a process that packs one long of 61 megapixels."""

    @property
    def plain_speed(self) -> float:
        """Of packing in plain processes, with LibRaw alone as 1."""
        return self.libraw_s / self.plain_s

    @property
    def speed(self) -> float:
        """Of packing, with LibRaw alone as 1."""
        return self.libraw_s / self.pack_s


def measure_pack(root: Path, folder: Path, largest: tuple[int, int] = LARGEST) -> PackTimes:
    """Pack the data set of `root` into `folder` on the connected cluster, which must be this machine alone.

    largest: size in sensels of the long whose packing's memory is measured.

    Raises InputError as `pack_folder`, or when a file is left out (its time would count on one side only).
    """
    catalog = read_catalog(root)
    pairs = [*catalog.pairs, *catalog.excluded]
    shorts, longs = {pair.short for pair in pairs}, {pair.long for pair in pairs}
    jobs = [(path, path in longs) for path in sorted(shorts | longs)]
    shards = folder / "shards"
    cores = int(ray.cluster_resources()["CPU"])
    spawn = multiprocessing.get_context("spawn")
    with (
        _one_thread_a_process(),
        ProcessPoolExecutor(cores, spawn) as pool,
        ProcessPoolExecutor(cores, spawn, keep_memory) as plain,
    ):
        packed = pack_folder(root, shards)  # not timed: processes start, packages are loaded
        if packed.failures:
            name, reason = packed.failures[0]
            raise InputError(
                f"{root}: {len(packed.failures)} files cannot be packed, so nothing to compare; {name}: {reason}"
            )
        for started in (pool.map(_libraw, jobs[:cores]), plain.map(_libraw, jobs[:cores])):
            list(started)
        rounds = []
        for _ in range(2):
            libraw_s = _timed(lambda: list(pool.map(_libraw, jobs)))
            shutil.rmtree(shards)  # so that the next run has its memory and its room on the disk
            for kind in ("short", "long"):
                (shards / kind).mkdir(parents=True)
            plain_s = _timed(lambda: list(plain.map(partial(_pack, shards), jobs)))
            shutil.rmtree(shards)
            pack_s = _timed(lambda: pack_folder(root, shards))
            rounds.append((libraw_s, plain_s, pack_s))
    libraw_s, plain_s, pack_s = map(min, zip(*rounds, strict=True))
    return PackTimes(
        shorts=len(shorts),
        longs=len(longs),
        raw_bytes=sum(path.stat().st_size for path in shorts | longs),
        shard_bytes=sum(frame.shard.bytes for frame in read_index(shards).frames.values()),
        cores=cores,
        libraw_s=libraw_s,
        plain_s=plain_s,
        pack_s=pack_s,
        largest_bytes=_peak_of_largest(min(longs), largest, folder),
    )


def pack_table(times: PackTimes) -> str:
    """The figures as text, and what they say."""
    files = times.shorts + times.longs
    rows = (
        ("LibRaw alone", times.libraw_s, times.raw_bytes),
        ("packing, no Ray", times.plain_s, times.shard_bytes),
        ("packing over Ray", times.pack_s, times.shard_bytes),
    )
    lines = [f"{times.shorts} shorts, {times.longs} longs, {times.cores} cores", ""]
    lines.append(f"{'':>16} {'seconds':>8} {'files/s':>8} {'GB':>7}")
    lines += [f"{name:>16} {seconds:8.1f} {files / seconds:8.2f} {size / 1e9:7.3f}" for name, seconds, size in rows]
    lines.append(
        f"\nPacking runs at {times.speed:.2f} of the speed of LibRaw alone, at {times.plain_speed:.2f} "
        "in plain processes without Ray; the shards take "
        f"{times.shard_bytes / times.raw_bytes:.2f} of the raw files' size.\nA long of 61 megapixels takes "
        f"{times.largest_bytes / 2**30:.2f} GiB in the process that packs it."
    )
    return "\n".join(lines)


@contextmanager
def _one_thread_a_process():
    """As Ray has it for tasks of one CPU."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        os.environ.pop("OMP_NUM_THREADS") if before is None else os.environ.update(OMP_NUM_THREADS=before)


def _libraw(job: tuple[Path, bool]) -> None:
    """What cannot be spared: a short is decoded, a long decoded and developed."""
    path, long = job
    with rawpy.imread(str(path)) as raw:
        if long:
            render(raw)
        else:
            raw.raw_image_visible.copy()


def _pack(folder: Path, job: tuple[Path, bool]) -> None:
    """What a task of Ray does."""
    path, long = job
    name = f"{'long' if long else 'short'}/{path.name}"
    pack_file(Job(name, str(path), None, "", False), str(folder), TILE)


def _timed(work: Callable[[], object]) -> float:
    os.sync()  # what was written before is no part of it
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _peak_of_largest(like: Path, size: tuple[int, int], folder: Path) -> int:
    """Peak memory of a process of its own that packs a long of 61 megapixels with the camera's levels of `like`."""
    peak_bytes(_write_largest, like, size, folder / "largest")
    return peak_bytes(_pack_largest, folder / "largest")


def _write_largest(like: Path, size: tuple[int, int], folder: Path) -> None:
    frame = read_raw(like)
    period = math.isqrt(len(frame.cfa))
    whole = frame.mosaic[: frame.height // period * period, : frame.width // period * period]
    repeats = [-(-wanted // side) for wanted, side in zip(size, whole.shape, strict=True)]
    mosaic = np.tile(whole, repeats)[: size[0], : size[1]]
    (folder / "long").mkdir(parents=True)
    write_dng(folder / "long" / "00001_00_10s.dng", replace(frame, mosaic=mosaic))


def _pack_largest(folder: Path) -> None:
    keep_memory()  # as a task does
    name = "long/00001_00_10s.dng"
    outcome = pack_file(Job(name, str(folder / name), None, "", False), str(folder), TILE)
    assert outcome.frame is not None, outcome.reason
