"""Raw files to shards, as a Ray Data job: each file is decoded, packed or developed, and written by one task."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray.data

from lsid_ray import __version__
from lsid_ray.data import shards
from lsid_ray.data.catalog import Catalog, Pair, read_catalog
from lsid_ray.errors import InputError
from lsid_ray.raw.develop import read_and_render, rendering_record
from lsid_ray.raw.frame import read_raw
from lsid_ray.raw.mosaic import amplification_ratio, pack


@dataclasses.dataclass(frozen=True)
class PackResult:
    """What packing did."""

    pairs: int
    failures: tuple[tuple[str, str], ...]
    """Files that were left out, each with the reason."""
    already: bool
    """The shards were there already, made of these files in this way."""


def pack_folder(
    root: str | Path,
    destination: str | Path,
    *,
    tile: int = shards.TILE,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> PackResult:
    """Pack every pair under `root` (short/ and long/, SID's names) into the folder `destination`.

    One broken file does not stop the others: it is named in the result and in the index, with its reason, and
    its pairs are left out. The index is written last, so a destination that has one is whole.

    Raises: InputError when `root` is not usable, no pair remains, or `destination` was packed otherwise.
    """
    root, destination = Path(root).resolve(), Path(destination).resolve()
    catalog = read_catalog(root)
    record = _record(catalog, root, tile)
    if (destination / "index.json").exists():
        index = shards.read_index(destination)
        if {key: index.get(key) for key in record} != record or index["rendering"] != rendering_record():
            raise InputError(
                f"{destination} was packed from other files or in another way: "
                f"expected those of {root}; choose another folder, or delete it to pack again"
            )
        return PackResult(len(index["pairs"]), _failures(index), already=True)
    pairs = [*catalog.pairs, *catalog.excluded]
    files = sorted({("short", str(pair.short)) for pair in pairs} | {("long", str(pair.long)) for pair in pairs})
    for kind in ("short", "long"):
        (destination / kind).mkdir(parents=True, exist_ok=True)
    dataset = ray.data.from_items(
        [{"kind": kind, "path": path} for kind, path in files], override_num_blocks=len(files)
    ).map(_pack_file, fn_kwargs={"destination": str(destination), "tile": tile}, num_cpus=1)
    packed: dict[str, Any] = {}
    failed: dict[str, str] = {}
    progress(0, len(files))
    for row in dataset.iter_rows():
        if row["error"]:
            failed[row["path"]] = row["error"]
        else:
            packed[row["path"]] = row["frame"]
        progress(len(packed) + len(failed), len(files))
    whole = []
    for pair in pairs:
        if str(pair.short) in packed and str(pair.long) in packed:
            try:
                whole.append(_packed_pair(pair, pair in catalog.excluded, packed))
            except InputError as error:
                failed[str(pair.short)] = str(error)
    reasons = {str(path.relative_to(root)): reason for path, reason in catalog.problems}
    reasons |= {str(Path(path).relative_to(root)): reason for path, reason in failed.items()}
    if not whole:
        name, reason = min(reasons.items())
        raise InputError(f"{root}: none of its {len(pairs)} pairs could be packed; {name}: {reason}")
    record["failed"] = [{"file": name, "reason": reason} for name, reason in sorted(reasons.items())]
    shards.write_index(destination, whole, rendering_record(), record)
    return PackResult(len(whole), _failures(record), already=False)


def _record(catalog: Catalog, root: Path, tile: int) -> dict[str, Any]:
    """What a second packing must find unchanged to have nothing to do."""
    paths = {path for pair in (*catalog.pairs, *catalog.excluded) for path in (pair.short, pair.long)}
    paths |= {path for path, _ in catalog.problems}
    return {
        "program": __version__,
        "tile": tile,
        "sources": {str(path.relative_to(root)): path.stat().st_size for path in sorted(paths)},
    }


def _failures(index: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((entry["file"], entry["reason"]) for entry in index["failed"])


def _pack_file(row: dict[str, str], destination: str, tile: int) -> dict[str, Any]:
    """One raw file to its shard. Returns its entry of the index, or the reason why there is none."""
    path = Path(row["path"])
    try:
        if row["kind"] == "short":
            frame = read_raw(path)
            pixels, side = pack(frame.mosaic, frame.cfa), tile
        else:
            frame, rgb = read_and_render(path)
            pixels, side = rgb.transpose(2, 0, 1), 2 * tile
        name = f"{row['kind']}/{path.stem}.parquet"
        size, digest = shards.write_shard(Path(destination, name), pixels, side)
        shard = shards.ShardFile(name, path.name, path.stat().st_size, size, digest, pixels.shape, side)
        height, width = frame.mosaic.shape
        known = {f.name: getattr(frame, f.name) for f in dataclasses.fields(frame) if f.name not in _NOT_KEPT}
        entry = shards.ShortFrame(shard=shard, height=height, width=width, **known)
        return {"path": row["path"], "frame": entry, "error": ""}
    except (InputError, OSError, MemoryError) as error:
        reason = str(error).removeprefix(f"{path}: ") or type(error).__name__
        return {"path": row["path"], "frame": None, "error": reason}


_NOT_KEPT = {"mosaic", "source"}


def _packed_pair(pair: Pair, misaligned: bool, packed: dict[str, Any]) -> shards.PackedPair:
    short, long = packed[str(pair.short)], packed[str(pair.long)]
    if (short.height, short.width) != (long.height, long.width):
        raise InputError(
            f"{pair.short.name} is {short.height}x{short.width} and {pair.long.name} {long.height}x{long.width}: "
            "expected one size"
        )
    for frame, name in ((short, pair.short.name), (long, pair.long.name)):
        if frame.exposure_s is None:
            raise InputError(f"{name}: no exposure time in the file nor in its name (10003_00_0.04s)")
    return shards.PackedPair(
        name=pair.name,
        scene=pair.scene,
        split=pair.split,
        frame=pair.frame,
        ratio=amplification_ratio(long.exposure_s, short.exposure_s),
        misaligned=misaligned,
        short=short,
        long=long.shard,
    )


def default_shards(root: str) -> str:
    """Where a data set's shards lie unless said otherwise: beside it."""
    return os.path.normpath(root) + "-shards"
