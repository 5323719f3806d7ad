"""Which parameters each trial gets: those of trials that a killed sweep has left, then what Optuna draws."""

from typing import Any

import numpy as np
import optuna
from ray.tune.search import Searcher

from lsid_ray.sweep.record import Definition, Trial, end_trial, read_trials
from lsid_ray.sweep.space import Parameters, draw

MAX_DEATHS = 3  # of a trial's driver, as with a lost node; its workers' are the run's own affair


class Search(Searcher):
    """Tune's searcher over a sweep's folder: a study made anew from the trials that lie there."""

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
