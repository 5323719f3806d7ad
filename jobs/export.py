"""Export a trained network as one ONNX or torch.export file, to use it without this package.

    python jobs/export.py runs/demo/best --out demo.onnx
    python jobs/export.py runs/demo/best --out demo.pt2

Takes about 10 seconds. The file takes a mosaic of any size with its black and white level, white balance, color matrix
and ratio, and returns an sRGB image; what each of them is stands in its metadata. Before it is written, its image of a
frame is compared with the network's; prints the largest difference and, last, the path of the file.
"""

from dataclasses import dataclass
from typing import Annotated

import tyro

from lsid_ray import storage
from lsid_ray.commandline import parse, run_job
from lsid_ray.inference.export import export


@dataclass(frozen=True)
class Export:
    """Export a trained network as one file."""

    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """Folder of a checkpoint, such as runs/demo/best."""
    out: str
    """File to write: NAME.onnx for ONNX, NAME.pt2 for torch.export. Replaces an existing one."""


def main() -> None:
    """Read the command line and export."""
    options = parse(Export, __doc__)
    exported = export(storage.to_path(options.checkpoint), storage.to_path(options.out))
    print(f"largest difference from the network, on a random frame: {exported.largest_difference:.1e}")
    print(f"{exported.path}, {exported.size_bytes / 2**20:.1f} MiB")


if __name__ == "__main__":
    run_job(main)
