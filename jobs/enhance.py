"""Enhance dark raw files with a trained network: upright sRGB images.

    python jobs/enhance.py runs/demo/best IMG_0001.ARW --out enhanced
    python jobs/enhance.py runs/demo/best ~/night --out enhanced --ratio 10s --format tiff

Takes files and folders, which are searched recursively; enhances a single file on this machine, several over the Ray
cluster, and skips images that exist. Prints a line per file with its amplification ratio and, last, each file that
failed with the reason; the exit code is 1 if any did.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from lsid_ray import storage
from lsid_ray.commandline import memory_limit, parse, run_job
from lsid_ray.errors import InputError, PartialFailure
from lsid_ray.inference.bands import MEMORY_BYTES
from lsid_ray.inference.files import enhance_files, plan_files
from lsid_ray.inference.raw_file import Amplification
from lsid_ray.progress import counter


@dataclass(frozen=True)
class Enhance:
    """Enhance dark raw files with a trained network."""

    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """Folder of a checkpoint, such as runs/demo/best."""
    inputs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE ...")]
    """Raw files, and folders to search for them."""
    out: str
    """Folder of the images, each named as its raw file."""
    ratio: str = "auto"
    """How much to amplify: by a number (120), to an exposure time (10s), or auto: estimated from each file."""
    format: Literal["png", "tiff", "jpeg"] = "png"
    """16 bits per color (png, tiff), or 8 (jpeg)."""
    overwrite: bool = False
    """Replace existing images."""
    memory_gb: float = MEMORY_BYTES / 2**30
    """GiB of working memory for the prediction of one frame, besides the frame itself."""
    self_ensemble: bool = False
    """Average the predictions of the frame in all eight orientations (flips, transpose): eight times the time."""
    use_gpu: bool = False
    """Enhance on GPUs, one file per GPU at a time, instead of on CPUs."""


def main() -> None:
    """Read the command line and enhance."""
    options = parse(Enhance, __doc__)
    amplification = Amplification.parse(options.ratio)
    if not options.inputs:
        raise InputError("no raw file given: expected files or folders after the checkpoint")
    memory_bytes = memory_limit(options.memory_gb)
    suffix = {"png": ".png", "tiff": ".tif", "jpeg": ".jpg"}[options.format]
    out, checkpoint = storage.to_path(options.out), storage.to_path(options.checkpoint)
    storage.check_writable(out, "--out")
    plan = plan_files([storage.to_path(path) for path in options.inputs], out, suffix, options.overwrite)
    if plan.existing:
        print(f"skipping existing images in {out}: {len(plan.existing)} (--overwrite replaces them)")
    failures = [f"{path}: {reason}" for path, reason in plan.problems]
    prediction = {"use_gpu": options.use_gpu, "self_ensemble": options.self_ensemble}
    with counter("enhancing", "files") as progress:
        results = enhance_files(checkpoint, plan.todo, amplification, memory_bytes=memory_bytes, **prediction)
        for number, result in enumerate(results, start=1):
            failures += [f"{result.source}: {result.error}"] if result.error else []
            odd = f"; unlikely: {result.oddities}" if result.oddities else ""
            message = (result.error or f"{result.target}, {result.ratio_text}, {result.seconds:.1f} s") + odd
            progress(number, len(plan.todo), f"{result.source.name}: {message}")
    for failure in failures:
        print(f"failed {failure}")
    if failures:
        raise PartialFailure(f"{len(failures)} raw files were not enhanced")


if __name__ == "__main__":
    run_job(main)
