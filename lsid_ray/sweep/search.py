"""Ray Tune over ordinary runs: each trial is `train.launch.train` on its own workers.

Tune hands out resources and stops what ASHA finds weak; what it knows is made anew at each start from the sweep's
folder, so a sweep goes on after any kill, and finished trials are not run again.
"""

import os
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray import tune
from torch.utils.tensorboard.summary import hparams
from torch.utils.tensorboard.writer import SummaryWriter

from lsid_ray import cluster, storage
from lsid_ray.data.schedule import Schedule
from lsid_ray.data.shards import open_shards
from lsid_ray.errors import PartFailure
from lsid_ray.sweep.record import Definition, Trial, begin_trial, clock, end_trial, read_trials
from lsid_ray.sweep.space import with_parameters
from lsid_ray.sweep.stopping import REFRESH_S, Budget, scheduler
from lsid_ray.sweep.suggest import MAX_DEATHS, Search
from lsid_ray.train.launch import STOP, Event, train

LEAVING_S = 60.0  # for a run that is to end
DRIVER = {"memory": 1}  # of a trial's driver: Tune wants a resource, and a share of a CPU may be what workers lack


def run_trials(definition: Definition, on_trials: Callable[[list[Trial]], None] = lambda trials: None) -> None:
    """Run a sweep's trials until its budget is spent, on the connected cluster; those that ended are not run again.

    on_trials: called in a thread about once a second with all trials.
    Raises: InputError when the cluster cannot hold a trial; PartFailure when too many failed.
    """
    sweep, folder = definition.sweep, definition.folder
    side_by_side = cluster.check_workers(definition.experiment.cluster)
    check_data(definition)
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # the trials' own logs are kept, not Tune's
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # which would end an interrupted sweep as a whole one
    storage.remove(folder / ".tune")
    budget = Budget(definition)
    remaining = max(budget.trials - budget.ended, 0) if budget.trials else -1
    files, kept_in = storage.filesystem(folder)
    if remaining and not budget.stop_all():
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(_Trial, definition=definition), DRIVER),
            tune_config=tune.TuneConfig(
                search_alg=Search(definition),
                scheduler=scheduler(definition),
                num_samples=remaining,
                max_concurrent_trials=side_by_side,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=".tune",
                storage_path=kept_in,
                storage_filesystem=files,
                stop=budget,
                failure_config=tune.FailureConfig(max_failures=MAX_DEATHS),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            ),
        )
        with _following(definition, on_trials):
            tuner.fit()
        storage.remove(folder / ".tune")
    failed = [trial for trial in read_trials(definition) if trial.state == "failed"]
    if budget.too_many_failed():
        raise PartFailure(
            f"the sweep stopped: {len(failed)} trials failed, more than --max-failed {sweep.max_failed:g} allows; "
            f"{failed[-1].name}: {failed[-1].reason}"
        )


@contextmanager
def _following(definition: Definition, on_trials: Callable[[list[Trial]], None]) -> Iterator[None]:
    """Show the trials and keep the clock, in a thread."""
    ended = threading.Event()

    def follow() -> None:
        last = time.monotonic()
        while not ended.wait(REFRESH_S):
            now = time.monotonic()
            clock(definition.folder, now - last)
            last = now
            on_trials(read_trials(definition))

    with ThreadPoolExecutor(1) as pool:
        follower = pool.submit(follow)
        try:
            yield
        finally:
            ended.set()
            follower.result()  # or its failure would be lost
            on_trials(read_trials(definition))


class _Trial(tune.Trainable):
    """A trial's driver: it starts the run, hands each validation to Tune, and ends the run when Tune says so."""

    def setup(self, config: dict[str, Any], definition: Definition) -> None:
        cluster.quiet()
        self.definition, self.parameters = definition, config["parameters"]
        self.folder = begin_trial(definition, config["number"], self.parameters)
        self.results: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.last: dict[str, Any] = {"epoch": 0, "psnr_db": float("nan"), "ssim": float("nan")}
        self.leaving = False
        self.run = threading.Thread(target=self._run, daemon=True)
        self.run.start()

    def step(self) -> dict[str, Any]:
        return self.results.get()

    def cleanup(self) -> None:
        """Tune's word that the trial is over, one way or another."""
        self.leaving = True
        (self.folder / STOP).touch()
        self.run.join(timeout=LEAVING_S)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The next trial, in the same process: a new one takes seconds to load its packages."""
        self.cleanup()
        self.setup(new_config)
        return True

    def _run(self) -> None:
        experiment = self.definition.trial(self.folder.name, self.parameters)
        reason = ""
        try:
            done = train(
                experiment,
                self.definition.shards,
                on_event=self._on_event,
                epochs=self.definition.trial_epochs,
            )
            self.last |= {name: done.facts[name] for name in ("psnr_db", "ssim")}
        except Exception as error:  # a trial's failure is its result
            reason = str(error) or type(error).__name__
        if reason and not self.leaving:
            end_trial(self.folder, "failed", reason)
        elif not self.leaving:
            end_trial(self.folder, "finished", "")
        self._write_hparams()
        self.results.put({**self.last, "done": True})

    def _on_event(self, event: Event) -> None:
        if self.leaving:  # said before the run began
            (self.folder / STOP).touch()
        if event["kind"] == "validation":
            self.last = {name: event[name] for name in ("epoch", "psnr_db", "ssim")}
            self.results.put(self.last)

    def _write_hparams(self) -> None:
        """The trial's row in TensorBoard's table of hyperparameters."""
        scores = {f"hparam/{name}": self.last[name] for name in ("psnr_db", "ssim")}
        with tempfile.TemporaryDirectory(prefix="lsid-") as folder:
            with SummaryWriter(folder) as board:
                for summary in hparams(self.parameters, scores):
                    board.file_writer.add_summary(summary)
                for name, value in scores.items():
                    board.add_scalar(name, value, self.last["epoch"])
            for name in os.listdir(folder):
                storage.copy(Path(folder, name), self.folder / "tensorboard" / name)


def check_data(definition: Definition) -> None:
    """Raises: InputError when the data do not hold the crops of the experiment, or a searched field's."""
    pairs = open_shards(definition.shards, ["train"]).pairs
    for dimension in definition.space:
        for value in dimension.values:
            Schedule(pairs, with_parameters(definition.experiment, {dimension.field: value}).training)
