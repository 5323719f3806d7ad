"""Pack raw files into shards, verify and repair these, and preview either.

    python jobs/pack.py pack SID/Sony
    python jobs/pack.py verify SID/Sony-shards
    python jobs/pack.py repair SID/Sony
    python jobs/pack.py preview SID/Sony --out preview.png

Shows the rate and the time left. Packing does only what is new or changed, and goes on where it was killed. What is
left out or broken is named with its reason, and the exit code is then 1.
"""

from collections.abc import Iterable
from typing import Annotated

from tyro.conf import Positional, arg

from lsid_ray import cluster, storage
from lsid_ray.commandline import parse_call, run_job
from lsid_ray.data.catalog import read_catalog
from lsid_ray.data.pack import default_shards, pack_folder
from lsid_ray.data.preview import contact_sheet
from lsid_ray.data.shards import read_index
from lsid_ray.data.tiles import TILE
from lsid_ray.data.verify import repair_folder, verify_folder
from lsid_ray.errors import PartFailure
from lsid_ray.progress import counting

Root = Annotated[str, Positional, arg(metavar="ROOT", help="Folder that holds short/ and long/, with SID's names.")]
Out = Annotated[str, arg(help='Folder of the shards. Empty: ROOT + "-shards".')]
Tile = Annotated[int, arg(help="Side of a tile in packed pixels.")]
Data = Annotated[str, Positional, arg(metavar="PATH", help="Folder of raw files (short/, long/), or of shards.")]
Count = Annotated[int, arg(help="How many pairs it shows.")]


def pack(root: Root, out: Out = "", tile: Tile = TILE) -> None:
    """Pack what is new or changed."""
    out = out or default_shards(root)
    read_catalog(root)  # a mistake shows before any process starts
    cluster.connect()
    with counting("packing", "files") as progress:
        done = pack_folder(root, out, tile=tile, progress=progress)
    _end("left out", done.failures, f"{done.pairs} pairs in {out} ({done.summary})")


def verify(folder: Annotated[str, Positional, arg(metavar="SHARDS", help="Their folder.")]) -> None:
    """Read every byte of the shards and name what is broken."""
    summary = read_index(folder).summary
    cluster.connect()
    with counting("verifying", "shards") as progress:
        broken = verify_folder(folder, progress)
    _end("broken", broken, f"{summary}: {'not ' if broken else ''}whole")


def repair(root: Root, out: Out = "") -> None:
    """Pack broken shards again, as they were."""
    out = out or default_shards(root)
    read_index(out)
    cluster.connect()
    with counting("repairing", "files") as progress:
        done = repair_folder(root, out, progress)
    print(*(f"was broken {name}: {reason}\n" for name, reason in done.broken), sep="", end="")
    _end("broken", done.left, f"{out}: {'not ' if done.left else ''}whole")


def preview(path: Data, out: str = "preview.png", count: Count = 12) -> None:
    """Show pairs in one picture, short beside long."""
    with counting("drawing", "pairs") as progress:
        failures = contact_sheet(storage.path(path), storage.path(out), count, progress)
    _end("not shown", (failure.split(": ", 1) for failure in failures), out)


def _end(what: str, files: Iterable[tuple[str, str]], last: str) -> None:
    lines = [f"{what} {name}: {reason}" for name, reason in files]
    print(*lines, last, sep="\n")
    if lines:
        raise PartFailure(f"{len(lines)} files were {what}")


if __name__ == "__main__":
    run_job(lambda: parse_call((pack, verify, repair, preview), __doc__)())
