"""When trials end: ASHA stops the weak ones, the budget all of them."""

import time
from dataclasses import dataclass
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from lsid_ray.data.schedule import Schedule
from lsid_ray.data.shards import open_shards
from lsid_ray.sweep.record import Definition, clock, end_trial, read_trials, trial_folder
from lsid_ray.sweep.space import ADV_WEIGHT, Parameters

DEFAULT_TRIALS = 16
REFRESH_S = 1.0  # between two looks at what is spent


def scheduler(definition: Definition) -> TrialScheduler:
    """Tune's scheduler, as it knows the trials of before."""
    if definition.sweep.scheduler == "none" or grace_epochs(definition) >= definition.trial_epochs:
        return FIFOScheduler()
    return Asha(definition)


def grace_epochs(definition: Definition) -> int:
    """Epoch of ASHA's first decision: the first validation with the whole adversarial loss, unless it is given."""
    e = definition.experiment
    if definition.sweep.grace_epochs:
        return definition.sweep.grace_epochs
    steps = Schedule(open_shards(definition.shards, ["train"]).pairs, e.training).steps_per_epoch
    begun = (e.loss.warmup_steps + e.loss.ramp_steps) // steps + 1
    return -(-begun // e.training.validate_every) * e.training.validate_every


class Asha(FIFOScheduler):
    """ASHA (arXiv 1810.05934) over a sweep's folder, which says whom it stops and what trials of before had.

    Trials are known by the number that they keep, not by Tune's name, which is new at each start. Those without
    adversarial loss are compared among themselves alone: PSNR is what they have more of, so they would stop the others.
    """

    def __init__(self, definition: Definition):
        super().__init__()
        self.definition = definition
        self.arms = {plain: self._arm() for plain in (True, False)}
        for trial in read_trials(definition):
            known = _Known(trial.number)
            arm = self._of(trial.parameters)
            arm.on_trial_add(None, known)
            for validation in trial.validations:
                arm.on_trial_result(None, known, validation)

    def _arm(self) -> ASHAScheduler:
        return ASHAScheduler(
            time_attr="epoch",
            metric="psnr_db",
            mode="max",
            max_t=self.definition.trial_epochs,
            grace_period=grace_epochs(self.definition),
            reduction_factor=1 / self.definition.sweep.keep,
            stop_last_trials=False,
        )

    def _of(self, parameters: Parameters) -> ASHAScheduler:
        return self.arms[parameters[ADV_WEIGHT] == 0]

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self._of(trial.config["parameters"]).on_trial_add(None, _Known(trial.config["number"]))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        number, epoch = trial.config["number"], result["epoch"]
        action = self._of(trial.config["parameters"]).on_trial_result(None, _Known(number), result)
        if action == TrialScheduler.STOP and epoch >= self.definition.trial_epochs:
            return TrialScheduler.CONTINUE  # it is at its end
        if action == TrialScheduler.STOP:
            end_trial(trial_folder(self.definition, number), "stopped", f"by ASHA after epoch {epoch}")
        return action


@dataclass(frozen=True)
class _Known:
    """A trial as `ASHAScheduler` asks for it."""

    trial_id: int


class Budget(tune.Stopper):
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
