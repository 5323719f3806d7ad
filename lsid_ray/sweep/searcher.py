"""The parameters of each trial: those of trials that a killed sweep left unfinished, then what Optuna draws."""

from typing import Any

import numpy as np
import optuna
from ray.tune.search import Searcher

from lsid_ray.evaluate.measures import METRICS
from lsid_ray.sweep.objectives import fields, outcome
from lsid_ray.sweep.space import Parameters, draw
from lsid_ray.sweep.trials import SweepDefinition, Trial, end_trial, read_trials

MAX_DRIVER_FAILURES = 3  # of a trial's driver, as when its node is lost; the run itself retries failed workers


class FolderSearcher(Searcher):
    """A searcher for Ray Tune whose Optuna study is rebuilt at each start from the trials in the sweep's folder.

    Ray Tune's `OptunaSearch` (2.60) cannot be rebuilt: `add_evaluated_point` takes neither two objectives nor a space
    that depends on the trial, as here on whether it has an adversarial loss; and its random numbers begin again, so
    that it draws what it has drawn before. `test_sweep.test_optuna_learns_from_trials_before_a_restart`.
    """

    def __init__(self, definition: SweepDefinition):
        super().__init__(metric="psnr_db", mode="max")
        self.definition, self.objectives = definition, fields(definition.sweep)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.study = optuna.create_study(directions=[_direction(name) for name in self.objectives])
        self.running: dict[str, tuple[int, optuna.Trial]] = {}
        recorded = read_trials(definition)
        for trial in recorded:
            if trial.state != "running":
                self._tell(self._ask(trial.number, trial.parameters)[0], trial)
        self.unfinished = [trial for trial in recorded if trial.state == "running"]
        self.next_number = 1 + max((trial.number for trial in recorded), default=-1)

    def suggest(self, trial_id: str) -> dict[str, Any]:
        if self.unfinished:
            trial = self.unfinished.pop(0)
            number, recorded = trial.number, trial.parameters
        else:
            number, recorded = self.next_number, None
            self.next_number += 1
        optuna_trial, parameters = self._ask(number, recorded)
        self.running[trial_id] = number, optuna_trial
        return {"number": number, "parameters": parameters}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        pass

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        number, optuna_trial = self.running.pop(trial_id)
        trial = next((trial for trial in read_trials(self.definition) if trial.number == number), None)
        if error and trial is not None:
            end_trial(trial.folder, "failed", f"its driver died {MAX_DRIVER_FAILURES + 1} times; see Ray's logs")
        self._tell(optuna_trial, trial if not error else None)

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a sweep resumes from its own folder, not from a checkpoint of Ray Tune")

    def _ask(self, number: int, recorded: Parameters | None) -> tuple[optuna.Trial, Parameters]:
        """An Optuna trial and its parameters: the recorded ones, or a draw that depends on the seed and `number`."""
        sweep = self.definition.sweep
        sampler = optuna.samplers.TPESampler if sweep.searcher == "optuna" else optuna.samplers.RandomSampler
        self.study.sampler = sampler(seed=int(np.random.SeedSequence([sweep.seed, number]).generate_state(1)[0]))
        zero = sweep.zero_every > 0 and number % sweep.zero_every == 0
        if recorded is not None:
            self.study.enqueue_trial(recorded)
        optuna_trial = self.study.ask()
        return optuna_trial, draw(self.definition.space, optuna_trial, zero)

    def _tell(self, optuna_trial: optuna.Trial, trial: Trial | None) -> None:
        scores = trial and trial.state != "failed" and outcome(trial, self.definition.sweep)
        if scores:
            self.study.tell(optuna_trial, [scores[name] for name in self.objectives])
        else:
            self.study.tell(optuna_trial, state=optuna.trial.TrialState.FAIL)


def _direction(field: str) -> str:
    return "maximize" if METRICS[field].higher_is_better else "minimize"
