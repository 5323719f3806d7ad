"""Train an enhancer, from raw files to an evaluated checkpoint.

    python jobs/train.py demo
    python jobs/train.py sid-sony --data.root SID/Sony --cluster.num-workers 8
    python jobs/train.py --experiment runs/demo-sweep/best.json

The demo takes about 4 minutes on 2 cores. Packs the data set if needed, trains, and scores the best checkpoint on the
unseen scenes of the test split; prints a table and, last, the path of a report with images. Running the same --name
again resumes from its latest checkpoint.
"""

from lsid_ray.commandline import parse_experiment, run_job
from lsid_ray.config.checks import check_experiment
from lsid_ray.config.serialization import to_json
from lsid_ray.errors import PartialFailure
from lsid_ray.evaluate.evaluation import evaluate
from lsid_ray.evaluate.report import table
from lsid_ray.progress import counter, training_progress
from lsid_ray.train.prepare import prepare
from lsid_ray.train.tracker import check_tracker, parse_tracker
from lsid_ray.train.trainer import train


def main() -> None:
    """Read the command line, prepare the data, train, evaluate."""
    command = parse_experiment(__doc__)
    experiment, tracker = command.experiment, parse_tracker(command.track)
    check_experiment(experiment)
    print(to_json(experiment), flush=True)
    if command.dry_run:
        return
    check_tracker(tracker)
    shards, failures = prepare(experiment, print, lambda: counter("packing", "files"))
    with training_progress() as show:
        run = train(experiment, shards, on_event=show, tracker=tracker)
    print(f"best checkpoint: {run.best} (epoch {run.metrics['epoch']}, validation {run.metrics['psnr_db']:.2f} dB)")
    with counter("evaluating on the test split", "frames") as progress:
        result = evaluate(
            run.best,
            shards,
            "test",
            run.folder / "report",
            use_gpu=experiment.cluster.use_gpu,
            progress=progress,
        )
    if result.excluded:
        print(f"excluded as misaligned: {', '.join(result.excluded)}")
    print(f"\n{table(result.summary)}\n\nreport: {result.report}")
    if failures:
        raise PartialFailure(f"{len(failures)} files were left out of {shards}")


if __name__ == "__main__":
    run_job(main)
