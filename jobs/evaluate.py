"""Score a checkpoint on full frames by PSNR and SSIM, beside the plain rendering.

    python jobs/evaluate.py runs/demo/best --shards data/demo-shards --split test

Writes report.html with pictures, report.json and scores.csv, and ends with a table by amplification ratio and the
report's path. A few seconds, and per frame as long as LibRaw and the network take.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from lsid_ray import cluster, storage
from lsid_ray.commandline import parse, run_job
from lsid_ray.errors import InputError
from lsid_ray.evaluate.predict import MEMORY_BYTES
from lsid_ray.evaluate.report import table
from lsid_ray.evaluate.score import evaluate
from lsid_ray.progress import counting


@dataclass(frozen=True)
class Evaluate:
    """Score a checkpoint on full frames."""

    checkpoint: Annotated[str, tyro.conf.Positional]
    """Folder of a checkpoint, such as runs/demo/best."""
    shards: str
    """Folder that jobs/pack.py wrote."""
    split: Literal["train", "validation", "test"] = "test"
    """Which scenes."""
    out: str = ""
    """Folder of the report. Empty: "report" beside the checkpoint, with the split's name unless it is test."""
    memory_gb: float = MEMORY_BYTES / 2**30
    """GiB that predicting one frame may take, beside the frame itself."""
    pictures: int = 6
    """Of how many frames the report shows pictures."""
    include_misaligned: bool = False
    """Score SID's scenes 10034, 10045 and 10172 too, whose long does not lie on its shorts."""
    use_gpu: bool = False
    """Predict on GPUs, one frame each at a time, instead of on CPUs."""


def main() -> None:
    """Read the command line and evaluate."""
    options = parse(Evaluate, __doc__)
    if not 0 < options.memory_gb < 2**20:
        raise InputError(f"--memory-gb is {options.memory_gb}: expected more than 0")
    name = "report" if options.split == "test" else f"report-{options.split}"
    checkpoint = storage.path(options.checkpoint)
    cluster.connect()
    with counting("evaluating", "frames") as progress:
        done = evaluate(
            checkpoint,
            options.shards,
            options.split,
            options.out or checkpoint.parent / name,
            memory_bytes=int(options.memory_gb * 2**30),
            use_gpu=options.use_gpu,
            pictures=options.pictures,
            include_misaligned=options.include_misaligned,
            progress=progress,
        )
    if done.left_out:
        print(f"left out as misaligned: {', '.join(done.left_out)}")
    print(f"\n{table(done.summary)}\n\nreport: {done.report}")


if __name__ == "__main__":
    run_job(main)
