"""Train an enhancer from raw files to an evaluated checkpoint.

    python jobs/train.py demo
    python jobs/train.py sid-sony --data.root SID/Sony --cluster.num-workers 8
    python jobs/train.py --experiment runs/demo-sweep/winner.json

Packs the data set if it is not packed, trains, scores the best checkpoint on the test split's unseen scenes, and
ends with a table and the path of a report with pictures. The same --name again continues from its last checkpoint.
"""

from lsid_ray import config
from lsid_ray.commandline import parse_experiment, run_job
from lsid_ray.errors import PartFailure
from lsid_ray.evaluate.report import table
from lsid_ray.evaluate.score import evaluate
from lsid_ray.progress import counting, training
from lsid_ray.train.launch import train
from lsid_ray.train.prepare import prepare


def main() -> None:
    """Read the command line and do all of it."""
    command = parse_experiment(__doc__)
    experiment = command.experiment
    config.check(experiment)
    print(config.to_json(experiment), flush=True)
    if command.dry_run:
        return
    shards, failures = prepare(experiment, print, lambda: counting("packing", "files"))
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
