"""Pack raw files into shards, verify, repair and align shards, and preview either.

    python jobs/pack.py pack SID/Sony
    python jobs/pack.py pack ROOT --list pairs.csv
    python jobs/pack.py verify SID/Sony-shards
    python jobs/pack.py repair SID/Sony
    python jobs/pack.py align SID/Sony-shards
    python jobs/pack.py preview SID/Sony --out preview.png

Packing handles new and changed files only, and resumes if it was killed. Files that are left out or broken are listed.
"""

from typing import Annotated

from tyro.conf import Positional, arg

from lsid_ray import storage
from lsid_ray.commandline import parse_call, report, run_job
from lsid_ray.data.alignment import align_shards
from lsid_ray.data.index import read_index
from lsid_ray.data.pack import default_shards, pack_dataset
from lsid_ray.data.preview import contact_sheet
from lsid_ray.data.shard import TILE_SIDE
from lsid_ray.data.verify import repair_shards, verify_shards
from lsid_ray.progress import counter

Root = Annotated[str, Positional, arg(metavar="ROOT", help="Folder that holds short/ and long/, with SID's names.")]
Lists = Annotated[tuple[str, ...], arg(name="list", help="Lists of the pairs, for other names: see jobs/README.md.")]
Out = Annotated[str, arg(help='Folder of the shards. Empty: ROOT + "-shards".')]
Tile = Annotated[int, arg(help="Side of a tile in packed pixels.")]
SidWhite = Annotated[bool, arg(help="Let the brightest sensel decide how bright a long exposure is, as SID did.")]
Folder = Annotated[str, Positional, arg(metavar="SHARDS", help="Folder of the shards.")]
Data = Annotated[str, Positional, arg(metavar="PATH", help="Folder of raw files (short/, long/), or of shards.")]
Sheet = Annotated[str, arg(help="Image file to write.")]
Count = Annotated[int, arg(help="Number of pairs.")]


def pack(root: Root, out: Out = "", lists: Lists = (), tile: Tile = TILE_SIDE, sid_white: SidWhite = False) -> None:
    """Pack new and changed files."""
    out = out or default_shards(root)
    with counter("packing", "files") as progress:
        result = pack_dataset(root, out, tile=tile, sid_white=sid_white or None, lists=lists, progress=progress)
    print(*(f"{line}\n" for line in result.remarks), sep="", end="")
    report("left out", result.failures, f"{result.pairs} pairs in {out} ({result.summary})")


def verify(folder: Folder) -> None:
    """Read every byte of the shards and list what is broken."""
    summary = read_index(folder).summary
    with counter("verifying", "shards") as progress:
        broken = verify_shards(folder, progress)
    report("broken", broken, f"{summary}: {'not ' if broken else ''}intact")


def repair(root: Root, out: Out = "", lists: Lists = ()) -> None:
    """Pack broken shards again, as they were."""
    out = out or default_shards(root)
    with counter("repairing", "files") as progress:
        result = repair_shards(root, out, progress, lists)
    print(*(f"was broken {name}: {reason}\n" for name, reason in result.broken), sep="", end="")
    report("broken", result.remaining, f"{out}: {'not ' if result.remaining else ''}intact")


def align(folder: Folder) -> None:
    """Measure the shift between the exposures of each pair; test pairs that moved are left out of the scores."""
    with counter("comparing", "pairs") as progress:
        result = align_shards(folder, progress)
    print(*result.problems, result.table, sep="\n")
    report("not compared", result.failures, f"recorded in {folder}")


def preview(path: Data, out: Sheet = "preview.png", count: Count = 12, lists: Lists = ()) -> None:
    """Draw pairs in one image, each short exposure next to its long one."""
    with counter("drawing", "pairs") as progress:
        failures = contact_sheet(storage.to_path(path), storage.to_path(out), count, progress, lists, print)
    report("not shown", [failure.split(": ", 1) for failure in failures], out)


if __name__ == "__main__":
    run_job(lambda: parse_call((pack, verify, repair, align, preview), __doc__)())
