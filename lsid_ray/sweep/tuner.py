"""Ray Tune over ordinary runs: each trial is a call of `train.trainer.train` with workers of its own.

Ray Tune allocates resources and stops trials. Its state is rebuilt at each start from the sweep's folder, so a killed
sweep resumes and does not repeat finished trials; `Tuner.restore` would, whose snapshot is up to 10 s old (ray 2.60):
`test_sweep.test_a_killed_sweep_resumes_and_repeats_no_validation`. README.md has what else was tried.
"""

import dataclasses
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from ray import tune
from torch.utils.tensorboard.summary import hparams
from torch.utils.tensorboard.writer import SummaryWriter

from lsid_ray import cluster, storage
from lsid_ray.data.index import open_shards
from lsid_ray.data.schedule import Schedule
from lsid_ray.errors import PartialFailure
from lsid_ray.sweep.objectives import measured_fields, outcome, scalar
from lsid_ray.sweep.searcher import MAX_DRIVER_FAILURES, FolderSearcher
from lsid_ray.sweep.space import with_parameters
from lsid_ray.sweep.stopping import JUDGED, REFRESH_S, Budget, scheduler
from lsid_ray.sweep.trials import SweepDefinition, Trial, add_elapsed, begin_trial, end_trial, read_trials
from lsid_ray.train.events import Event
from lsid_ray.train.run_folder import STOP
from lsid_ray.train.trainer import train

STOP_TIMEOUT_S = 60.0  # for a run to end after it was asked to stop
DRIVER_RESOURCES = {"memory": 1}  # Ray Tune requires a resource, and a fraction of a CPU could be what workers lack


def run_trials(definition: SweepDefinition, on_trials: Callable[[list[Trial]], None] = lambda trials: None) -> None:
    """Run a sweep's trials on the connected cluster until its budget is used up; ended trials are not run again.

    on_trials: called from a thread about once per second with all trials.
    Raises: InputError if the cluster cannot hold a trial; PartialFailure if too many failed.
    """
    sweep, folder = definition.sweep, definition.folder
    max_concurrent = cluster.check_capacity(definition.experiment.cluster)
    check_data(definition)
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # each run writes its own log
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # it would let an interrupted sweep pass as complete
    storage.remove_tree(folder / ".tune")
    budget = Budget(definition)
    remaining = max(budget.max_trials - budget.ended_trials, 0) if budget.max_trials else -1
    filesystem, storage_path = storage.arrow_filesystem(folder)
    if remaining and not budget.stop_all():
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(_TrialDriver, definition=definition), DRIVER_RESOURCES),
            tune_config=tune.TuneConfig(
                search_alg=FolderSearcher(definition),
                scheduler=scheduler(definition),
                num_samples=remaining,
                max_concurrent_trials=max_concurrent,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=".tune",
                storage_path=storage_path,
                storage_filesystem=filesystem,
                stop=budget,
                failure_config=tune.FailureConfig(max_failures=MAX_DRIVER_FAILURES),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            ),
        )
        with _following(definition, on_trials):
            tuner.fit()
        storage.remove_tree(folder / ".tune")
    failed = [trial for trial in read_trials(definition) if trial.state == "failed"]
    if budget.too_many_failed():
        raise PartialFailure(
            f"the sweep stopped: {len(failed)} trials failed, more than --max-failed {sweep.max_failed:g} allows; "
            f"{failed[-1].name}: {failed[-1].reason}"
        )


@contextmanager
def _following(definition: SweepDefinition, on_trials: Callable[[list[Trial]], None]) -> Iterator[None]:
    """Report the trials and record the elapsed time, in a thread."""
    ended = threading.Event()

    def follow() -> None:
        last = time.monotonic()
        while not ended.wait(REFRESH_S):
            now = time.monotonic()
            add_elapsed(definition.folder, now - last)
            last = now
            on_trials(read_trials(definition))

    with ThreadPoolExecutor(1) as pool:
        follower = pool.submit(follow)
        try:
            yield
        finally:
            ended.set()
            follower.result()  # raises what the thread raised
            on_trials(read_trials(definition))


class _TrialDriver(tune.Trainable):
    """The actor of a trial: it starts the run, reports each validation to Ray Tune, and stops the run on request.

    Not a function with Ray Tune's `TuneReportCallback`: Ray Tune 2.60 does not wait for a function that it stops, so a
    run could neither end its log nor give up its lock.
    `test_sweep.test_a_sweep_finds_the_best_trial_and_tests_it_and_its_ablation`
    """

    def setup(self, config: dict[str, Any], definition: SweepDefinition) -> None:
        cluster.quiet_ray_logs()
        self.definition, self.parameters = definition, config["parameters"]
        self.fields = measured_fields(definition.sweep)
        self.folder = begin_trial(definition, config["number"], self.parameters)
        self.results: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.last_result: dict[str, Any] = {"epoch": 0, **dict.fromkeys((*self.fields, JUDGED), float("nan"))}
        self.stopping = False
        self.run_thread = threading.Thread(target=self._run, daemon=True)
        self.run_thread.start()

    def step(self) -> dict[str, Any]:
        return self.results.get()

    def cleanup(self) -> None:
        """Ray Tune calls this at the end of a trial, whether it has finished or is to be stopped."""
        self.stopping = True
        (self.folder / STOP).touch()
        self.run_thread.join(timeout=STOP_TIMEOUT_S)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Start the next trial in the same process: a new one takes seconds to import its packages."""
        self.cleanup()
        self.setup(new_config)
        return True

    def _run(self) -> None:
        experiment = self.definition.trial_experiment(self.folder.name, self.parameters)
        training = dataclasses.replace(experiment.training, max_rollbacks=0)  # a rate that diverges is no candidate
        experiment = dataclasses.replace(experiment, training=training)
        reason = ""
        try:
            train(
                experiment,
                self.definition.shards,
                on_event=self._on_event,
                until_epoch=self.definition.trial_epochs,
                tracker=self.definition.tracker,
                validate_apart=False,  # what a trial leaves free is another's
            )
        except Exception as error:  # a failed trial is a result of the sweep
            reason = str(error) or type(error).__name__
        if reason and not self.stopping:
            end_trial(self.folder, "failed", reason)
        elif not self.stopping:
            end_trial(self.folder, "finished", "")
        self._write_hparams()
        self.results.put({**self.last_result, "done": True})

    def _on_event(self, event: Event) -> None:
        if self.stopping:  # `train` removes a stop file that was there before it started
            (self.folder / STOP).touch()
        if event["kind"] == "validation":
            self.last_result = {name: event[name] for name in ("epoch", *self.fields)}
            self.last_result[JUDGED] = scalar(event, self.definition.sweep)
            self.results.put(self.last_result)

    def _write_hparams(self) -> None:
        """Write the trial's row of TensorBoard's table of hyperparameters."""
        (trial,) = (each for each in read_trials(self.definition) if each.folder == self.folder)
        scores = outcome(trial, self.definition.sweep) or self.last_result
        scores = {f"hparam/{name}": scores[name] for name in self.fields}
        with storage.temporary_folder() as folder:
            with SummaryWriter(str(folder)) as writer:
                for summary in hparams(self.parameters, scores):
                    writer.file_writer.add_summary(summary)
                for name, value in scores.items():
                    writer.add_scalar(name, value, self.last_result["epoch"])
            for path in folder.iterdir():
                storage.copy_file(path, self.folder / "tensorboard" / path.name)


def check_data(definition: SweepDefinition) -> None:
    """Raises: InputError if the frames are too small for the crops of the experiment or of a searched value."""
    pairs = open_shards(definition.shards, ["train"]).pairs
    for dimension in definition.space:
        for value in dimension.values:
            Schedule(pairs, with_parameters(definition.experiment, {dimension.field: value}).training)
