"""Search the adversarial weight and the learning rates, and test the winner beside its twin without the adversary.

    python jobs/tune.py demo
    python jobs/tune.py sid-sony --data.root SID/Sony --trial-epochs 100 --trials 32 --train-winner
    python jobs/tune.py demo --search.loss.adv-weight uniform:0:0.05 --search.training.crop choice:32,48

Each trial is a training run on its own workers, as many side by side as the cluster holds. --search.FIELD takes
loguniform:LOW:HIGH, uniform:LOW:HIGH or choice:A,B,... for any field of the preset; the adversarial weight and both
learning rates are searched unless another range is given. The same --name again goes on where it was killed. Ends
with the winner's and its twin's scores, and the path of a report with pictures.
"""

import json

from lsid_ray import config, storage
from lsid_ray.commandline import parse_sweep, run_job
from lsid_ray.errors import PartFailure
from lsid_ray.progress import counting, table, training
from lsid_ray.sweep.conclude import conclude, verdict
from lsid_ray.sweep.record import Definition, claim
from lsid_ray.sweep.report import trial_table, write_sweep_report
from lsid_ray.sweep.search import run_trials
from lsid_ray.sweep.space import read_space
from lsid_ray.train.prepare import prepare


def main() -> None:
    """Read the command line and do all of it."""
    command, search = parse_sweep(__doc__)
    experiment, sweep = command.experiment, command.sweep
    config.check(experiment)
    config.check_sweep(sweep)
    space = read_space(search, experiment)
    print(config.to_json(experiment))
    print(json.dumps({"search": {dimension.field: dimension.text for dimension in space}}, indent=2), flush=True)
    if command.dry_run:
        return
    shards, failures = prepare(experiment, print, lambda: counting("packing", "files"))
    folder = storage.path(experiment.storage).resolve() / experiment.name
    definition = Definition(folder, experiment, space, sweep, str(storage.path(shards).resolve()))
    claim(definition)
    with table() as show:
        run_trials(definition, lambda trials: show(trial_table(definition, trials)))
    with training() as show:
        conclusion = conclude(definition, on_event=show, scoring=lambda what: counting(what, "frames"))
    print(f"\n{verdict(conclusion)}\n\nreport: {write_sweep_report(definition, conclusion)}")
    if failures:
        raise PartFailure(f"{len(failures)} files were left out of {shards}")


if __name__ == "__main__":
    run_job(main)
