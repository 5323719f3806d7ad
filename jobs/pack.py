"""Pack a data set's raw files into shards.

    python jobs/pack.py --root SID/Sony --out SID/Sony-shards

ROOT holds short/ and long/ with SID's names. Shows the rate and the time left; the last line names the shards' folder.
Exit code 1 when some files were left out: each is named with its reason. Run again, it finds that nothing is to do.
"""

from dataclasses import dataclass

from lsid_ray import cluster
from lsid_ray.commandline import parse, run_job
from lsid_ray.data import shards
from lsid_ray.data.catalog import read_catalog
from lsid_ray.data.pack import default_shards, pack_folder
from lsid_ray.errors import PartFailure
from lsid_ray.progress import counting


@dataclass(frozen=True)
class Pack:
    """Pack a data set's raw files into shards."""

    root: str
    """Folder that holds short/ and long/ raw files with SID's names."""
    out: str = ""
    """Folder of the shards. Empty: ROOT + "-shards"."""
    tile: int = shards.TILE
    """Side of a tile in packed pixels."""


def main() -> None:
    """Read the command line and pack."""
    options = parse(Pack, __doc__)
    out = options.out or default_shards(options.root)
    read_catalog(options.root)  # a mistake shows before any process starts
    cluster.connect()
    with counting("packing", "files") as progress:
        result = pack_folder(options.root, out, tile=options.tile, progress=progress)
    for name, reason in result.failures:
        print(f"left out {name}: {reason}")
    print(f"{result.pairs} pairs in {out}" + (" (nothing to do)" if result.already else ""))
    if result.failures:
        raise PartFailure(f"{len(result.failures)} files were left out of {out}")


if __name__ == "__main__":
    run_job(main)
