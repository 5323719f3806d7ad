"""Search the adversarial weight and the learning rates, and test the best trial beside its ablation.

    python jobs/tune.py demo
    python jobs/tune.py sid-sony --data.root SID/Sony --trial-epochs 100 --trials 32 --train-best
    python jobs/tune.py demo --search.loss.adv-weight uniform:0:0.05 --search.training.crop choice:32,48
    python jobs/tune.py demo --objectives psnr texture --searcher optuna

Each trial is a training run with its own workers; as many run concurrently as the cluster holds. --search.FIELD takes
loguniform:LOW:HIGH, uniform:LOW:HIGH or choice:A,B,... for any field of the preset; the adversarial weight and both
learning rates are searched in default ranges otherwise. The same --name again resumes the sweep. Ends with the scores
of the best trial and its ablation, and the path of a report with plots.
"""

import json

from lsid_ray import storage
from lsid_ray.commandline import parse_sweep, run_job
from lsid_ray.config.checks import check_experiment, check_sweep
from lsid_ray.config.serialization import to_json
from lsid_ray.errors import PartialFailure
from lsid_ray.progress import counter, live_table, training_progress
from lsid_ray.sweep.comparison import compare_best, summary_line
from lsid_ray.sweep.objectives import with_metrics
from lsid_ray.sweep.report import trial_table, write_sweep_report
from lsid_ray.sweep.space import read_space
from lsid_ray.sweep.trials import SweepDefinition, claim_sweep
from lsid_ray.sweep.tuner import run_trials
from lsid_ray.train.initial_weights import with_absolute_init
from lsid_ray.train.lock import locked
from lsid_ray.train.prepare import prepare
from lsid_ray.train.tracker import check_tracker, parse_tracker


def main() -> None:
    """Parse the command line and run the sweep."""
    command, search = parse_sweep(__doc__)
    experiment, sweep = with_absolute_init(command.experiment), command.sweep
    check_experiment(experiment)
    check_sweep(sweep, experiment)
    experiment = with_metrics(experiment, sweep)
    space, tracker = read_space(search, experiment), parse_tracker(command.track, group=experiment.name)
    print(to_json(experiment))
    print(json.dumps({"search": {dimension.field: dimension.text for dimension in space}}, indent=2), flush=True)
    if command.dry_run:
        return
    check_tracker(tracker)
    shards, failures = prepare(experiment, print, lambda: counter("packing", "files"))
    folder = storage.to_path(experiment.storage).resolve() / experiment.name
    definition = SweepDefinition(folder, experiment, space, sweep, str(storage.to_path(shards).resolve()), tracker)
    with locked(folder, print):
        claim_sweep(definition)
        with live_table() as show:
            run_trials(definition, lambda trials: show(trial_table(definition, trials)))
        with training_progress() as show:
            result = compare_best(definition, on_event=show, scoring_progress=lambda what: counter(what, "frames"))
        print(f"\n{summary_line(result)}\n\nreport: {write_sweep_report(definition, result)}")
    if failures:
        raise PartialFailure(f"{len(failures)} files were left out of {shards}")


if __name__ == "__main__":
    run_job(main)
