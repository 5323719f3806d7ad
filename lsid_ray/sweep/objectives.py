"""What a sweep's trials are judged by: one metric, or PSNR and how real the image looks, by a rule in words.

PSNR alone falls with the adversarial weight, whatever that gains (Blau and Michaeli 2018, arXiv 1711.06077). So with a
second metric the best trial is the best by that metric among those whose PSNR is within a tolerance of the best.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from lsid_ray.config.schema import Experiment, Objective, SweepConfig
from lsid_ray.errors import InputError
from lsid_ray.evaluate.measures import METRICS, PERCEPTUAL, find_measures
from lsid_ray.storage import AnyPath
from lsid_ray.sweep.trials import Trial
from lsid_ray.train.run_folder import saved_checkpoints

Scores = Mapping[str, Any]
"""A validation's metrics by field: {"psnr_db": 21.3, "ssim": 0.61, "flip": 0.2}."""


def field_of(objective: Objective) -> str:
    """The name of an objective in events and reports: "psnr_db" for "psnr"."""
    return "psnr_db" if objective == "psnr" else objective


def fields(sweep: SweepConfig) -> tuple[str, ...]:
    """The metrics of a sweep's objectives, in order."""
    return tuple(field_of(objective) for objective in sweep.objectives)


def measured_fields(sweep: SweepConfig) -> tuple[str, ...]:
    """All metrics of a sweep's validations: PSNR, SSIM and the perceptual objectives."""
    return tuple(dict.fromkeys(("psnr_db", "ssim", *fields(sweep))))


def with_metrics(experiment: Experiment, sweep: SweepConfig) -> Experiment:
    """The experiment, with the objectives measured at its validations.

    Raises: InputError for an objective whose weights are not at hand, and as `find_measures`.
    """
    names = tuple(name for name in fields(sweep) if name in PERCEPTUAL)
    measures = find_measures(names, experiment.data.weights)
    for name in names:
        if reason := measures.not_measured.get(name):
            raise InputError(f"--objectives {name}: {reason}")
    metrics = tuple(dict.fromkeys((*experiment.training.metrics, *names)))
    return dataclasses.replace(experiment, training=dataclasses.replace(experiment.training, metrics=metrics))


def rule(sweep: SweepConfig) -> str:
    """How the best trial is chosen, in words."""
    first, *others = (METRICS[name] for name in fields(sweep))
    if not others:
        return f"the {'highest' if first.higher_is_better else 'lowest'} {first.title}"
    extreme = "highest" if others[0].higher_is_better else "lowest"
    return f"the {extreme} {others[0].title} within {sweep.tolerance_db:g} dB of the best PSNR"


def outcome(trial: Trial, sweep: SweepConfig) -> Scores | None:
    """The validation that a trial is judged by; None before the first.

    By PSNR alone it is the best one. With another objective it is the last: what an adversary adds comes late, and
    the metrics of all trials are then those of the same epoch, but for trials that were stopped.
    """
    if tuple(sweep.objectives) == ("psnr",):
        return trial.best_validation
    return trial.validations[-1] if trial.validations else None


def checkpoint(run: AnyPath, sweep: SweepConfig) -> AnyPath | None:
    """A run's checkpoint of its `outcome`: its best, or its latest, which may be some steps later; None without one."""
    if tuple(sweep.objectives) == ("psnr",):
        return run / "best" if (run / "best").is_dir() else None
    saved = saved_checkpoints(run)
    return saved[-1].folder if saved else None


def ranked(scores: Mapping[str, Scores], sweep: SweepConfig) -> list[str]:
    """The names of trials, the best first. scores: by name."""
    by_first = sorted(scores, key=lambda name: -_goodness(fields(sweep)[0], scores[name]))
    if len(sweep.objectives) == 1 or not by_first:
        return by_first
    second = fields(sweep)[1]
    least = scores[by_first[0]]["psnr_db"] - sweep.tolerance_db
    near = [name for name in by_first if scores[name]["psnr_db"] >= least]
    return sorted(near, key=lambda name: -_goodness(second, scores[name])) + by_first[len(near) :]


def scalar(scores: Scores, sweep: SweepConfig) -> float:
    """The rule as one number for ASHA, higher is better.

    With two objectives PSNR counts in whole tolerances, and within one of them the second metric decides.
    """
    first = _goodness(fields(sweep)[0], scores)
    if len(sweep.objectives) == 1 or not sweep.tolerance_db or not math.isfinite(first):
        return first
    return math.floor(first / sweep.tolerance_db) + 1 / (1 + math.exp(-_goodness(fields(sweep)[1], scores)))


def front(scores: Mapping[str, Scores], one: str, other: str) -> list[str]:
    """The names of those that no other beats in both metrics, by the first metric."""
    points = {name: (_goodness(one, each), _goodness(other, each)) for name, each in scores.items()}
    best = [
        name
        for name, (a, b) in points.items()
        if not any(c >= a and d >= b and (c, d) != (a, b) for c, d in points.values())
    ]
    return sorted(best, key=lambda name: points[name])


def _goodness(field: str, scores: Scores) -> float:
    """A metric with the sign that makes higher better; one that could not be computed is the worst."""
    value = scores[field] if METRICS[field].higher_is_better else -scores[field]
    return -math.inf if math.isnan(value) else value
