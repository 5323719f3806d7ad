"""Enhance dark raw files with a trained network: photographs, upright, in sRGB.

    python jobs/enhance.py runs/demo/best IMG_0001.ARW --out enhanced
    python jobs/enhance.py runs/demo/best ~/night --out enhanced --ratio 10s --format tiff

Takes files, and folders with all that lies below them; one file on this machine, several over the Ray cluster. Run
again it does only what is missing. A line a file says by how much it was amplified; files that failed are named with
the reason, and the exit code is then 1.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from lsid_ray import cluster, storage
from lsid_ray.commandline import parse, run_job
from lsid_ray.errors import InputError, PartFailure
from lsid_ray.evaluate.deliver import Amplification, deliver, plan
from lsid_ray.evaluate.predict import MEMORY_BYTES
from lsid_ray.progress import counting


@dataclass(frozen=True)
class Enhance:
    """Enhance dark raw files with a trained network."""

    checkpoint: Annotated[str, tyro.conf.Positional]
    """Folder of a checkpoint, such as runs/demo/best."""
    inputs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Raw files, and folders of them."""
    out: str
    """Folder of the pictures, each with its raw file's name."""
    ratio: str = "auto"
    """How much to amplify: a number (120), the exposure time to come to (10s), or auto: estimated from each file."""
    format: Literal["png", "tiff", "jpeg"] = "png"
    """16 bits a colour (png, tiff), or 8 (jpeg)."""
    overwrite: bool = False
    """Make pictures again that are there already."""
    memory_gb: float = MEMORY_BYTES / 2**30
    """GiB that predicting one photograph may take, beside the photograph itself."""
    use_gpu: bool = False
    """Enhance on GPUs, one photograph each at a time, instead of on CPUs."""


def main() -> None:
    """Read the command line and enhance."""
    options = parse(Enhance, __doc__)
    amplification = Amplification.of(options.ratio)
    if not options.inputs:
        raise InputError("no raw file given: expected files or folders after the checkpoint")
    if not 0 < options.memory_gb < 2**20:
        raise InputError(f"--memory-gb is {options.memory_gb}: expected more than 0")
    suffix = {"png": ".png", "tiff": ".tif", "jpeg": ".jpg"}[options.format]
    out, checkpoint = storage.path(options.out), storage.path(options.checkpoint)
    work = plan([storage.path(given) for given in options.inputs], out, suffix, options.overwrite)
    if work.existing:
        print(f"{len(work.existing)} pictures are in {out} already (--overwrite makes them again)")
    failures = [f"{path}: {reason}" for path, reason in work.problems]
    if len(work.todo) > 1:
        cluster.connect()
    with counting("enhancing", "photographs") as progress:
        memory_bytes = int(options.memory_gb * 2**30)
        results = deliver(checkpoint, work.todo, amplification, memory_bytes=memory_bytes, use_gpu=options.use_gpu)
        for number, done in enumerate(results, start=1):
            failures += [f"{done.source}: {done.error}"] if done.error else []
            said = done.error or f"{done.target}, {done.amplified}, {done.seconds:.1f} s"
            progress(number, len(work.todo), f"{done.source.name}: {said}")
    for failure in failures:
        print(f"failed {failure}")
    if failures:
        raise PartFailure(f"{len(failures)} of the raw files were not enhanced")


if __name__ == "__main__":
    run_job(main)
