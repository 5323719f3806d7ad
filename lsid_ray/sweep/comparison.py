"""The end of a sweep: its finalists compared, the best trial and its ablation trained and tested, results written."""

import csv
import dataclasses
import io
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from lsid_ray import cluster, storage
from lsid_ray.config.serialization import to_json
from lsid_ray.errors import PartialFailure
from lsid_ray.evaluate.evaluation import evaluate
from lsid_ray.evaluate.measures import METRICS, PERCEPTUAL
from lsid_ray.evaluate.report import headline
from lsid_ray.model.checkpoint import with_nan
from lsid_ray.storage import AnyPath
from lsid_ray.sweep.objectives import checkpoint, fields, measured_fields, outcome, ranked, rule
from lsid_ray.sweep.space import ADV_WEIGHT, Parameters, with_parameters
from lsid_ray.sweep.trials import SweepDefinition, Trial, elapsed_s, read_trials, write_json
from lsid_ray.train.events import Event
from lsid_ray.train.trainer import train

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class TestedTrial:
    """A checkpoint scored once on the test split."""

    parameters: Parameters
    summary: dict[str, Any]
    """See `evaluate.report.summarize`."""
    report: AnyPath

    @property
    def adv_weight(self) -> float:
        """Weight of the adversarial loss."""
        return self.parameters[ADV_WEIGHT]

    def mean(self, metric: str) -> float:
        """The network's mean over the images of the headline group."""
        return _network_means(self.summary)[metric]["mean"]


@dataclass(frozen=True)
class SweepResult:
    """What a sweep ends with."""

    trials: tuple[Trial, ...]
    finalists: dict[str, dict[str, Any]]
    """Scores on the validation split, the best trial first: trial -> summary."""
    epochs: int
    """Of the best trial and its ablation."""
    best: TestedTrial
    ablation: TestedTrial | None
    """The best trial with an adversarial weight of 0, or if it has that, with the best adversarial trial's weight."""
    psnr_best: TestedTrial | None
    """The finalist with the highest PSNR, if the rule chose another, and that is no ablation of it."""
    repeats: dict[int, tuple[TestedTrial, TestedTrial | None]]
    """Further seed -> the best trial and its ablation, trained with it."""
    rule: str
    """How the best trial was chosen."""
    statistics: dict[str, Any]
    """Time, epochs run and saved, overhead and idle time."""


def compare_best(
    definition: SweepDefinition,
    on_event: Callable[[Event], None] = lambda event: None,
    scoring_progress: Callable[[str], AbstractContextManager[Progress]] = lambda _: nullcontext(lambda *_: None),
) -> SweepResult:
    """Compare the finalists on the validation split; train the best trial and its ablation; test both once.

    Both are trained up to the same epoch. on_event: called with the events of that training.
    scoring_progress: called with what is being scored; yields the function that shows its progress.
    Raises: PartialFailure if no trial has a checkpoint.
    """
    sweep, e = definition.sweep, definition.experiment
    trials = read_trials(definition)
    usable = [trial for trial in trials if outcome(trial, sweep) and checkpoint(trial.folder, sweep)]
    with_checkpoint = {trial.name: trial for trial in usable}
    if not with_checkpoint:
        raise PartialFailure(
            f"{definition.folder}: none of {len(trials)} trials reached a validation; "
            "see trials/*/trial.json, or raise --trials, --hours or --samples"
        )
    order = ranked({name: outcome(trial, sweep) for name, trial in with_checkpoint.items()}, sweep)
    perceptual = tuple(name for name in fields(sweep) if name in PERCEPTUAL)

    def score(run: AnyPath, split: str, report: AnyPath, images: int) -> tuple[dict[str, Any], AnyPath]:
        with scoring_progress(f"scoring {run.name} on the {split} split") as progress:
            evaluation = evaluate(
                checkpoint(run, sweep), definition.shards, split, report,
                use_gpu=e.cluster.use_gpu, images=images, metrics=perceptual or None, weights=e.data.weights,
                progress=progress,
            )  # fmt: skip
        return evaluation.summary, evaluation.report

    summaries = {
        name: score(with_checkpoint[name].folder, "validation", definition.folder / "finalists" / name, 0)[0]
        for name in order[: sweep.finalists]
    }
    means = {
        name: with_nan({field: _network_means(summary)[field]["mean"] for field in measured_fields(sweep)})
        for name, summary in summaries.items()
    }
    finalists = {name: summaries[name] for name in ranked(means, sweep)}
    best = with_checkpoint[next(iter(finalists))]
    psnr_best = with_checkpoint[max(means, key=lambda name: means[name]["psnr_db"])]
    epochs = e.training.epochs if sweep.train_best else definition.trial_epochs

    def train_and_test(name: str, parameters: Parameters, folder: str, seed: int) -> TestedTrial:
        if seed != e.training.seed:
            name, folder = f"{name}-seed{seed}", f"{folder}-seed{seed}"
        experiment = definition.trial_experiment(name, parameters)
        experiment = dataclasses.replace(experiment, training=dataclasses.replace(experiment.training, seed=seed))
        run = train(experiment, definition.shards, on_event=on_event, until_epoch=epochs, tracker=definition.tracker)
        summary, report = score(run.folder, "test", definition.folder / folder, 6)
        return TestedTrial({ADV_WEIGHT: e.loss.adv_weight, **parameters}, summary, report)

    ablation = _ablation(best, [with_checkpoint[name] for name in order])

    def best_and_ablation(seed: int) -> tuple[TestedTrial, TestedTrial | None]:
        return (
            train_and_test(best.name, best.parameters, "best", seed),
            ablation and train_and_test(f"{best.name}-ablation", ablation, "ablation", seed),
        )

    first, *others = [(e.training.seed + number) % 2**32 for number in range(sweep.test_seeds)]
    tested = best_and_ablation(first)
    is_other = psnr_best != best and psnr_best.parameters != ablation
    result = SweepResult(
        trials=tuple(trials),
        finalists=finalists,
        epochs=epochs,
        best=tested[0],
        ablation=tested[1],
        psnr_best=train_and_test(psnr_best.name, psnr_best.parameters, "psnr-best", first) if is_other else None,
        repeats={seed: best_and_ablation(seed) for seed in others},
        rule=rule(sweep),
        statistics=_statistics(definition, trials),
    )
    _write(definition, best, result)
    return result


def _network_means(summary: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """Metric -> mean, low and high over the images of the headline group."""
    return headline(summary)["by_image"]["network"]


def _ablation(best: Trial, ranked: list[Trial]) -> Parameters | None:
    """The best trial's parameters without adversarial loss; if it has none, with that of the best trial that has."""
    if best.parameters[ADV_WEIGHT] > 0:
        return {**best.parameters, ADV_WEIGHT: 0.0}
    adversarial = next((trial for trial in ranked if trial.parameters[ADV_WEIGHT] > 0), None)
    return adversarial and {
        **adversarial.parameters,
        **best.parameters,
        ADV_WEIGHT: adversarial.parameters[ADV_WEIGHT],
    }


def _statistics(definition: SweepDefinition, trials: list[Trial]) -> dict[str, Any]:
    """Fractions are in [0, 1]. idle_fraction: of the slots for trials, in which none trained or validated."""
    seconds = elapsed_s(definition.folder)
    overheads = sorted(trial.overhead_s for trial in trials if trial.overhead_s is not None)
    slots = cluster.check_capacity(definition.experiment.cluster)
    epochs_run = sum(trial.epoch for trial in trials)
    epochs_without_stopping = len(trials) * definition.trial_epochs
    busy_s = sum(trial.busy_s for trial in trials)
    return {
        "seconds": seconds,
        "concurrent_trials": slots,
        "epochs_run": epochs_run,
        "epochs_without_stopping": epochs_without_stopping,
        "fraction_of_epochs_saved_by_stopping": 1 - epochs_run / epochs_without_stopping,
        "median_overhead_s": overheads[len(overheads) // 2] if overheads else None,
        "idle_fraction": max(0.0, 1 - busy_s / max(seconds * slots, 1e-9)),
    }


def _write(definition: SweepDefinition, best: Trial, result: SweepResult) -> None:
    """Write sweep.json, trials.csv and best.json."""
    folder, e = definition.folder, definition.experiment
    fields = list(dict.fromkeys(name for trial in result.trials for name in trial.parameters))
    rows = [
        {
            "trial": trial.name,
            "state": "unfinished" if trial.state == "running" else trial.state,
            "reason": trial.reason,
            "epochs": trial.epoch,
            **{name: trial.parameters.get(name, "") for name in fields},
            **{
                f"best_{name}": (outcome(trial, definition.sweep) or {}).get(name, "")
                for name in ("epoch", *measured_fields(definition.sweep))
            },
            "discriminator_accuracy": trial.discriminator_accuracy,
            "overhead_s": trial.overhead_s,
            "busy_s": trial.busy_s,
        }
        for trial in result.trials
    ]
    with storage.atomic_write(folder / "trials.csv") as file:
        text = io.TextIOWrapper(file, newline="", write_through=True)
        writer = csv.DictWriter(text, rows[0])
        writer.writeheader()
        writer.writerows(rows)
        text.detach()
    tested = {"best": result.best, "ablation": result.ablation, "psnr_best": result.psnr_best}
    for seed, (best_again, ablation_again) in result.repeats.items():
        tested |= {f"best_seed{seed}": best_again, f"ablation_seed{seed}": ablation_again}
    write_json(
        folder / "sweep.json",
        {
            "searched": {dimension.field: dimension.text for dimension in definition.space},
            "sweep": dataclasses.asdict(definition.sweep),
            "statistics": result.statistics,
            "trials": [
                {
                    **row,
                    "validations": [
                        {name: validation[name] for name in ("epoch", "step", *measured_fields(definition.sweep))}
                        for validation in trial.validations
                    ],
                }
                for row, trial in zip(rows, result.trials, strict=True)
            ],
            "finalists": result.finalists,
            "rule": result.rule,
            "best": best.name,
            "epochs_of_best_and_ablation": result.epochs,
            "test": {
                name: {"parameters": trial.parameters, "summary": trial.summary}
                for name, trial in tested.items()
                if trial
            },
        },
    )
    best_experiment = with_parameters(dataclasses.replace(e, name=f"{e.name}-best"), best.parameters)
    (folder / "best.json").write_text(to_json(best_experiment) + "\n")


def summary_line(result: SweepResult) -> str:
    """The test scores of the best trial and its ablation, and what the adversarial weight changes, for each seed."""
    best = [result.best, *(each for each, _ in result.repeats.values())]
    ablation = [each for each in (result.ablation, *(each for _, each in result.repeats.values())) if each]
    metrics = _printed(best + ablation)
    seeds = f", means of {len(best)} seeds" if result.repeats else ""
    line = f"Best trial ({result.rule}): {describe(result.best.parameters)}: {_scores(best, metrics)} on test{seeds}"
    if not ablation:
        return f"{line}; no trial had another adversarial weight to compare it with."
    changes = []
    for name, digits, unit in metrics:
        differences = [one.mean(name) - other.mean(name) for one, other in zip(best, ablation, strict=True)]
        rounded = [round(each, digits) + 0.0 for each in (fmean(differences), *differences)]  # no -0.00
        change, *each = [f"{value:+.{digits}f}" for value in rounded]
        changes.append(f"{METRICS[name].title} by {change}{unit}" + (f" ({', '.join(each)})" if result.repeats else ""))
    return (
        f"{line}; its ablation with adversarial weight {ablation[0].adv_weight:.2g}: {_scores(ablation, metrics)}, so "
        f"the weight of {best[0].adv_weight:.2g} changes {', '.join(changes[:-1])} and {changes[-1]}."
    )


def _scores(trainings: list[TestedTrial], metrics: list[tuple[str, int, str]]) -> str:
    """Means over the trainings of a trial: "21.30 dB / 0.612, FLIP 0.201"."""
    means = {name: fmean(training.mean(name) for training in trainings) for name, _, _ in metrics}
    others = [f"{METRICS[name].title} {means[name]:.{digits}f}{unit}" for name, digits, unit in metrics[2:]]
    return ", ".join([f"{means['psnr_db']:.2f} dB / {means['ssim']:.3f}", *others])


def _printed(trainings: list[TestedTrial]) -> list[tuple[str, int, str]]:
    """The metrics that all have, with their digits and unit; of tiny frames some may have no texture error."""
    others = [name for name in PERCEPTUAL if all(each.mean(name) is not None for each in trainings)]
    return [
        (name, 2 if METRICS[name].unit else 3, f" {METRICS[name].unit}".rstrip())
        for name in ("psnr_db", "ssim", *others)
    ]


def describe(parameters: Parameters) -> str:
    """ "adv-weight 0.0012, generator-lr 0.002" """
    return ", ".join(
        f"{name.split('.')[1].replace('_', '-')} {format_value(value)}" for name, value in parameters.items()
    )


def format_value(value: Any) -> str:
    """A parameter's value in a table."""
    if isinstance(value, float) and not math.isnan(value):
        return f"{value:.2g}"
    return str(value)
