"""Train an enhancer from raw files to an evaluated checkpoint.

    python jobs/train.py demo
    python jobs/train.py sid-sony --data.root SID/Sony --cluster.num-workers 8

Packs the data set if it is not packed, trains, scores the best checkpoint on the test split's unseen scenes, and
ends with a table and the path of a report with pictures. The same --name again continues from its last checkpoint.
"""

from pathlib import Path

from lsid_ray import cluster, config
from lsid_ray.commandline import parse_experiment, run_job
from lsid_ray.data.catalog import read_catalog
from lsid_ray.data.pack import default_shards, pack_folder
from lsid_ray.data.synthesize import Synthesis, synthesize
from lsid_ray.errors import PartFailure
from lsid_ray.evaluate.report import table
from lsid_ray.evaluate.score import evaluate
from lsid_ray.presets import EMBEDDED_ROOT
from lsid_ray.progress import counting, training
from lsid_ray.train.launch import train


def main() -> None:
    """Read the command line and do all of it."""
    command = parse_experiment(__doc__)
    experiment = command.experiment
    config.check(experiment)
    print(config.to_json(experiment), flush=True)
    if command.dry_run:
        return
    data = experiment.data
    if data.root == EMBEDDED_ROOT and not Path(data.root).exists():
        made = synthesize(Synthesis(Path(data.root)))
        print(f"made {len(made.scenes)} scenes from scikit-image's photographs in {data.root}")
    if data.root:
        read_catalog(data.root)  # a mistake shows before any process starts
    cluster.connect()
    cluster.check_workers(experiment.cluster)
    shards, failures = data.shards or default_shards(data.root), ()
    if data.root:
        with counting("packing", "files") as progress:
            packed = pack_folder(data.root, shards, progress=progress)
        failures = packed.failures
        for name, reason in failures:
            print(f"left out {name}: {reason}")
        print(f"{packed.pairs} pairs in {shards}")
    with training() as show:
        run = train(experiment, shards, on_event=show)
    print(f"best checkpoint: {run.best} (epoch {run.facts['epoch']}, validation {run.facts['psnr_db']:.2f} dB)")
    with counting("evaluating on the test split", "frames") as progress:
        done = evaluate(
            run.best,
            shards,
            "test",
            run.folder / "report",
            use_gpu=experiment.cluster.use_gpu,
            progress=progress,
        )
    if done.left_out:
        print(f"left out as misaligned: {', '.join(done.left_out)}")
    print(f"\n{table(done.summary)}\n\nreport: {done.report}")
    if failures:
        raise PartFailure(f"{len(failures)} files were left out of {shards}")


if __name__ == "__main__":
    run_job(main)
