"""Score a checkpoint on full frames by PSNR and SSIM, next to the plain rendering.

    python jobs/evaluate.py runs/demo/best --shards data/demo-shards --split test

Takes a few seconds, plus per frame the time of LibRaw, the network and the metrics. Writes report.html with images,
report.json and scores.csv; prints a table by amplification ratio and, last, the path of the report.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from lsid_ray import storage
from lsid_ray.commandline import memory_limit, parse, run_job
from lsid_ray.config.schema import PerceptualMetric
from lsid_ray.errors import InputError
from lsid_ray.evaluate.evaluation import evaluate
from lsid_ray.evaluate.report import perceptual_lines, table
from lsid_ray.inference.bands import MEMORY_BYTES
from lsid_ray.progress import counter


@dataclass(frozen=True)
class Evaluate:
    """Score a checkpoint on full frames."""

    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """Folder of a checkpoint, such as runs/demo/best."""
    shards: str
    """Folder that jobs/pack.py wrote."""
    split: Literal["train", "validation", "test"] = "test"
    """Split to score."""
    out: str = ""
    """Folder of the report. Empty: "report" next to the checkpoint, "report-SPLIT" for a split other than test."""
    memory_gb: float = MEMORY_BYTES / 2**30
    """GiB of working memory for the prediction of one frame, besides the frame itself."""
    images: int = 6
    """Number of frames that the report shows."""
    include_misaligned: bool = False
    """Also score SID's scenes 10034, 10045 and 10172, whose exposures are not aligned."""
    metrics: Annotated[tuple[PerceptualMetric, ...] | None, tyro.conf.arg(metavar="METRIC ...")] = None
    """Besides PSNR, SSIM and texture: flip, lpips, lpips_vgg, dists (jobs/README.md). Default: flip."""
    weights: str = ""
    """Folder with the weights of their networks, or s3://BUCKET/NAME. Empty: torch's own, in TORCH_HOME."""
    self_ensemble: bool = False
    """Average the predictions of the frame in all eight orientations (flips, transpose): eight times the time."""
    use_gpu: bool = False
    """Predict on GPUs, one frame per GPU at a time, instead of on CPUs, which then read and score."""


def main() -> None:
    """Read the command line and evaluate."""
    options = parse(Evaluate, __doc__)
    if options.images < 0:
        raise InputError(f"--images is {options.images}: expected 0 or more")
    checkpoint = storage.to_path(options.checkpoint)
    with counter("evaluating", "frames") as progress:
        result = evaluate(
            checkpoint,
            options.shards,
            options.split,
            options.out or checkpoint.parent / ("report" if options.split == "test" else f"report-{options.split}"),
            memory_bytes=memory_limit(options.memory_gb),
            use_gpu=options.use_gpu,
            images=options.images,
            include_misaligned=options.include_misaligned,
            metrics=options.metrics,
            weights=options.weights,
            self_ensemble=options.self_ensemble,
            progress=progress,
        )
    if result.excluded:
        print(f"excluded as misaligned: {', '.join(result.excluded)}")
    print(f"\n{table(result.summary)}\n\n{perceptual_lines(result.summary, result.not_measured)}")
    print(f"\nreport: {result.report}")


if __name__ == "__main__":
    run_job(main)
