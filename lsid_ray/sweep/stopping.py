"""Early stopping: ASHA stops weak trials, the budget ends the sweep."""

import time
from dataclasses import dataclass
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from lsid_ray.data.index import open_shards
from lsid_ray.data.schedule import Schedule
from lsid_ray.sweep.objectives import scalar
from lsid_ray.sweep.space import ADV_WEIGHT, Parameters
from lsid_ray.sweep.trials import SweepDefinition, elapsed_s, end_trial, read_trials, trial_folder

DEFAULT_TRIALS = 16
REFRESH_S = 1.0  # between checks of the budget
JUDGED = "judged"  # the name in a trial's results of the number that ASHA compares


def scheduler(definition: SweepDefinition) -> TrialScheduler:
    """The scheduler for Ray Tune; it takes the trials in the sweep's folder into account."""
    if definition.sweep.scheduler == "none" or grace_epochs(definition) >= definition.trial_epochs:
        return FIFOScheduler()
    return Asha(definition)


def grace_epochs(definition: SweepDefinition) -> int:
    """Epoch of ASHA's first decision: --grace-epochs, or the first validation with the full adversarial weight."""
    e = definition.experiment
    if definition.sweep.grace_epochs:
        return definition.sweep.grace_epochs
    steps_per_epoch = Schedule(open_shards(definition.shards, ["train"]).pairs, e.training).steps_per_epoch
    full_weight_epoch = (e.loss.warmup_steps + e.loss.ramp_steps) // steps_per_epoch + 1
    return -(-full_weight_epoch // e.training.validate_every) * e.training.validate_every


class Asha(FIFOScheduler):
    """ASHA (arXiv 1810.05934) that records the trials it stops and resumes from the validations in a sweep's folder.

    All decisions are those of Ray Tune's `ASHAScheduler`, with the epoch as its time. What that has not: a memory of
    trials before a start, a record of what it stopped, and groups. Trials are identified by their number, because Ray
    Tune's ids change at each start; those without adversarial loss compete only with each other: they tend to a higher
    PSNR and would get all others stopped.
    `test_sweep.test_asha_stops_weak_trials_and_takes_trials_before_a_restart_into_account`
    """

    def __init__(self, definition: SweepDefinition):
        super().__init__()
        self.definition = definition
        self.by_zero_weight = {zero: self._new_scheduler() for zero in (True, False)}
        for trial in read_trials(definition):
            stub = _TrialStub(trial.number)
            asha = self._scheduler_for(trial.parameters)
            asha.on_trial_add(None, stub)
            for validation in trial.validations:
                asha.on_trial_result(None, stub, {**validation, JUDGED: scalar(validation, definition.sweep)})

    def _new_scheduler(self) -> ASHAScheduler:
        return ASHAScheduler(
            time_attr="epoch",
            metric=JUDGED,
            mode="max",
            max_t=self.definition.trial_epochs,
            grace_period=grace_epochs(self.definition),
            reduction_factor=1 / self.definition.sweep.keep,
            stop_last_trials=False,
        )

    def _scheduler_for(self, parameters: Parameters) -> ASHAScheduler:
        return self.by_zero_weight[parameters[ADV_WEIGHT] == 0]

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self._scheduler_for(trial.config["parameters"]).on_trial_add(None, _TrialStub(trial.config["number"]))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        number, epoch = trial.config["number"], result["epoch"]
        asha = self._scheduler_for(trial.config["parameters"])
        action = asha.on_trial_result(None, _TrialStub(number), result)
        if action == TrialScheduler.STOP and epoch >= self.definition.trial_epochs:
            return TrialScheduler.CONTINUE  # it ends by itself
        if action == TrialScheduler.STOP:
            end_trial(trial_folder(self.definition, number), "stopped", f"by ASHA after epoch {epoch}")
        return action


@dataclass(frozen=True)
class _TrialStub:
    """All that `ASHAScheduler` reads of a trial."""

    trial_id: int


class Budget(tune.Stopper):
    """Ends the sweep when its hours or samples are used up, or when too many trials have failed.

    Over all starts: the time limits of Ray Tune count from the latest.
    """

    def __init__(self, definition: SweepDefinition):
        sweep = definition.sweep
        self.definition = definition
        self.max_trials = sweep.trials or (0 if sweep.hours or sweep.samples else DEFAULT_TRIALS)
        self.next_check, self.spent = 0.0, False

    @property
    def ended_trials(self) -> int:
        """Number of trials that have ended, and so are not run again."""
        return sum(trial.state != "running" for trial in read_trials(self.definition))

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        if time.monotonic() >= self.next_check:  # Ray Tune asks many times per second
            self.next_check, self.spent = time.monotonic() + REFRESH_S, self._is_spent()
        return self.spent

    def _is_spent(self) -> bool:
        sweep = self.definition.sweep
        if sweep.hours and elapsed_s(self.definition.folder) >= 3600 * sweep.hours:
            return True
        if sweep.samples and sum(trial.samples for trial in read_trials(self.definition)) >= sweep.samples:
            return True
        return self.too_many_failed()

    def too_many_failed(self) -> bool:
        """Whether the fraction of failed trials, of at least 4 that have ended, is above --max-failed."""
        states = [trial.state for trial in read_trials(self.definition) if trial.state != "running"]
        return states.count("failed") > self.definition.sweep.max_failed * max(len(states), 4)
