"""Ray Tune over ordinary runs: each trial is `train.launch.train` on its own workers.

Tune hands out resources and stops what ASHA finds weak; what it knows is made anew at each start from the sweep's
folder, so a sweep goes on after any kill, and finished trials are not run again.
"""

import os
import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from torch.utils.tensorboard.summary import hparams
from torch.utils.tensorboard.writer import SummaryWriter

from lsid_ray import cluster
from lsid_ray.data.schedule import Schedule
from lsid_ray.data.shards import open_shards
from lsid_ray.errors import PartFailure
from lsid_ray.sweep.record import (
    Definition,
    Trial,
    begin_trial,
    clock,
    end_trial,
    read_trials,
    trial_folder,
)
from lsid_ray.sweep.space import Parameters, draw, with_parameters
from lsid_ray.train.launch import STOP, Event, train

DEFAULT_TRIALS = 16
MAX_DEATHS = 3  # of a trial's driver, as with a lost node; its workers' are the run's own affair
LEAVING_S = 60.0  # for a run that is to end
REFRESH_S = 1.0  # between two looks at the trials
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
    shutil.rmtree(folder / ".tune", ignore_errors=True)
    budget = _Budget(definition)
    remaining = max(budget.trials - budget.ended, 0) if budget.trials else -1
    if remaining and not budget.stop_all():
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(_Trial, definition=definition), DRIVER),
            tune_config=tune.TuneConfig(
                search_alg=_Search(definition),
                scheduler=_scheduler(definition),
                num_samples=remaining,
                max_concurrent_trials=side_by_side,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=".tune",
                storage_path=str(folder),
                stop=budget,
                failure_config=tune.FailureConfig(max_failures=MAX_DEATHS),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            ),
        )
        with _following(definition, on_trials):
            tuner.fit()
        shutil.rmtree(folder / ".tune", ignore_errors=True)
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
        with SummaryWriter(str(self.folder / "tensorboard")) as board:
            for summary in hparams(self.parameters, scores):
                board.file_writer.add_summary(summary)
            for name, value in scores.items():
                board.add_scalar(name, value, self.last["epoch"])


class _Search(Searcher):
    """What each trial's parameters are: first those of trials that a killed sweep has left, then new ones."""

    def __init__(self, definition: Definition):
        objectives = ["psnr_db", "ssim"] if definition.sweep.objectives == "psnr-ssim" else ["psnr_db"]
        super().__init__(metric="psnr_db", mode="max")
        self.definition, self.objectives = definition, objectives
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.study = optuna.create_study(directions=["maximize"] * len(objectives))
        self.running: dict[str, tuple[int, optuna.Trial]] = {}
        recorded = read_trials(definition)
        for trial in recorded:
            if trial.state != "running":
                self._tell(self._ask(trial.number, trial.parameters)[0], trial)
        self.left = [trial for trial in recorded if trial.state == "running"]
        self.next = 1 + max((trial.number for trial in recorded), default=-1)

    def suggest(self, trial_id: str) -> dict[str, Any]:
        if self.left:
            trial = self.left.pop(0)
            number, known = trial.number, trial.parameters
        else:
            number, known = self.next, None
            self.next += 1
        asked, parameters = self._ask(number, known)
        self.running[trial_id] = number, asked
        return {"number": number, "parameters": parameters}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        pass

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        number, asked = self.running.pop(trial_id)
        trial = next((t for t in read_trials(self.definition) if t.number == number), None)
        if error and trial is not None:
            end_trial(trial.folder, "failed", f"its driver died {MAX_DEATHS + 1} times; see Ray's logs")
        self._tell(asked, trial if not error else None)

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a sweep goes on from its own folder")

    def _ask(self, number: int, known: Parameters | None) -> tuple[optuna.Trial, Parameters]:
        """An Optuna trial with its parameters, which a sweep that was interrupted draws again as they were."""
        sweep = self.definition.sweep
        sampler = optuna.samplers.TPESampler if sweep.searcher == "optuna" else optuna.samplers.RandomSampler
        self.study.sampler = sampler(seed=int(np.random.SeedSequence([sweep.seed, number]).generate_state(1)[0]))
        zero = sweep.zero_every > 0 and number % sweep.zero_every == 0
        if known is not None:
            self.study.enqueue_trial(known)
        asked = self.study.ask()
        return asked, draw(self.definition.space, asked, zero)

    def _tell(self, asked: optuna.Trial, trial: Trial | None) -> None:
        best = trial and trial.state != "failed" and trial.best
        if best:
            self.study.tell(asked, [best[name] for name in self.objectives])
        else:
            self.study.tell(asked, state=optuna.trial.TrialState.FAIL)


def check_data(definition: Definition) -> None:
    """Raises: InputError when the data do not hold the crops of the experiment, or a searched field's."""
    pairs = open_shards(definition.shards, ["train"]).pairs
    for dimension in definition.space:
        for value in dimension.values:
            Schedule(pairs, with_parameters(definition.experiment, {dimension.field: value}).training)


def grace_epochs(definition: Definition) -> int:
    """Epoch of ASHA's first decision: the first validation with the whole adversarial loss, unless it is given."""
    e = definition.experiment
    if definition.sweep.grace_epochs:
        return definition.sweep.grace_epochs
    steps = Schedule(open_shards(definition.shards, ["train"]).pairs, e.training).steps_per_epoch
    begun = (e.loss.warmup_steps + e.loss.ramp_steps) // steps + 1
    return -(-begun // e.training.validate_every) * e.training.validate_every


def _scheduler(definition: Definition) -> TrialScheduler:
    grace = grace_epochs(definition)
    if definition.sweep.scheduler == "none" or grace >= definition.trial_epochs:
        return FIFOScheduler()
    asha = _Asha(
        time_attr="epoch",
        metric="psnr_db",
        mode="max",
        max_t=definition.trial_epochs,
        grace_period=grace,
        reduction_factor=1 / definition.sweep.keep,
        stop_last_trials=False,
    )
    asha.recall(definition)
    return asha


class _Asha(ASHAScheduler):
    """ASHA that says in the trial's folder whom it stops, and knows the trials of before."""

    def recall(self, definition: Definition) -> None:
        """Decisions compare with what earlier trials, and this one before a kill, had at the same epoch."""
        self.definition = definition
        for trial in read_trials(definition):
            known = SimpleNamespace(config={"number": trial.number})
            self.on_trial_add(None, known)
            for validation in trial.validations:
                super().on_trial_result(None, _numbered(known), validation)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, _numbered(trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        action = super().on_trial_result(tune_controller, _numbered(trial), result)
        if action == TrialScheduler.STOP and result["epoch"] >= self.definition.trial_epochs:
            return TrialScheduler.CONTINUE  # it is at its end
        if action == TrialScheduler.STOP:
            folder = trial_folder(self.definition, trial.config["number"])
            end_trial(folder, "stopped", f"by ASHA after epoch {result['epoch']}")
        return action

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        super().on_trial_complete(tune_controller, _numbered(trial), result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_remove(tune_controller, _numbered(trial))


def _numbered(trial: Any) -> Any:
    """A trial under the number that it keeps, not under Tune's name for it, which is new at each start."""
    return SimpleNamespace(trial_id=trial.config["number"])


class _Budget(tune.Stopper):
    """Ends all trials when the hours, the samples or the patience with failures are spent."""

    def __init__(self, definition: Definition):
        sweep = definition.sweep
        self.definition = definition
        self.trials = sweep.trials or (0 if sweep.hours or sweep.samples else DEFAULT_TRIALS)
        self.look_at, self.spent = 0.0, False

    @property
    def ended(self) -> int:
        """Trials that need not be run again."""
        return sum(trial.state != "running" for trial in read_trials(self.definition))

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        if time.monotonic() >= self.look_at:  # Tune asks many times a second
            self.look_at, self.spent = time.monotonic() + REFRESH_S, self._is_spent()
        return self.spent

    def _is_spent(self) -> bool:
        sweep = self.definition.sweep
        if sweep.hours and clock(self.definition.folder) >= 3600 * sweep.hours:
            return True
        if sweep.samples and sum(trial.samples for trial in read_trials(self.definition)) >= sweep.samples:
            return True
        return self.too_many_failed()

    def too_many_failed(self) -> bool:
        """Whether more of the trials that ended have failed than may."""
        states = [trial.state for trial in read_trials(self.definition) if trial.state != "running"]
        return states.count("failed") > self.definition.sweep.max_failed * max(len(states), 4)
