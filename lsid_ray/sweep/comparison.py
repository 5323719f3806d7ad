"""The end of a sweep: its finalists compared, the best trial and its ablation trained and tested, results written."""

import csv
import dataclasses
import io
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from lsid_ray import cluster, storage
from lsid_ray.config.serialization import to_json
from lsid_ray.errors import PartialFailure
from lsid_ray.evaluate.evaluation import evaluate
from lsid_ray.evaluate.report import headline
from lsid_ray.storage import AnyPath
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
    with_checkpoint = [trial for trial in trials if trial.best_validation and (trial.folder / "best").is_dir()]
    if not with_checkpoint:
        raise PartialFailure(
            f"{definition.folder}: none of {len(trials)} trials reached a validation; "
            "see trials/*/trial.json, or raise --trials, --hours or --samples"
        )
    ranked = sorted(with_checkpoint, key=lambda trial: -trial.best_validation["psnr_db"])

    def score(run: AnyPath, split: str, report: AnyPath, images: int) -> tuple[dict[str, Any], AnyPath]:
        with scoring_progress(f"scoring {run.name} on the {split} split") as progress:
            evaluation = evaluate(
                run / "best", definition.shards, split, report,
                use_gpu=e.cluster.use_gpu, images=images, progress=progress,
            )  # fmt: skip
        return evaluation.summary, evaluation.report

    summaries = {
        trial.name: score(trial.folder, "validation", definition.folder / "finalists" / trial.name, 0)[0]
        for trial in ranked[: sweep.finalists]
    }
    finalists = dict(sorted(summaries.items(), key=lambda item: -_network_means(item[1])["psnr_db"]["mean"]))
    best = next(trial for trial in trials if trial.name == next(iter(finalists)))
    epochs = e.training.epochs if sweep.train_best else definition.trial_epochs

    def train_and_test(name: str, parameters: Parameters, folder: str) -> TestedTrial:
        experiment = definition.trial_experiment(name, parameters)
        run = train(experiment, definition.shards, on_event=on_event, until_epoch=epochs)
        summary, report = score(run.folder, "test", definition.folder / folder, 6)
        return TestedTrial({ADV_WEIGHT: e.loss.adv_weight, **parameters}, summary, report)

    ablation = _ablation(best, ranked)
    result = SweepResult(
        trials=tuple(trials),
        finalists=finalists,
        epochs=epochs,
        best=train_and_test(best.name, best.parameters, "best"),
        ablation=ablation and train_and_test(f"{best.name}-ablation", ablation, "ablation"),
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
                f"best_{name}": trial.best_validation[name] if trial.best_validation else ""
                for name in ("epoch", "psnr_db", "ssim")
            },
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
    tested = {"best": result.best, "ablation": result.ablation}
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
                        {name: validation[name] for name in ("epoch", "step", "psnr_db", "ssim")}
                        for validation in trial.validations
                    ],
                }
                for row, trial in zip(rows, result.trials, strict=True)
            ],
            "finalists": result.finalists,
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
    """The test scores of the best trial and its ablation, and what the adversarial weight changes."""
    best, ablation = result.best, result.ablation
    line = f"Best trial: {describe(best.parameters)}: {best.mean('psnr_db'):.2f} dB / {best.mean('ssim'):.3f} on test"
    if ablation is None:
        return f"{line}; no trial had another adversarial weight to compare it with."
    differences = (best.mean("psnr_db") - ablation.mean("psnr_db"), best.mean("ssim") - ablation.mean("ssim"))
    psnr, ssim = (round(value, digits) + 0.0 for value, digits in zip(differences, (2, 3), strict=True))  # no -0.00
    return (
        f"{line}; its ablation with adversarial weight {ablation.adv_weight:.2g}: {ablation.mean('psnr_db'):.2f} dB / "
        f"{ablation.mean('ssim'):.3f}, so the weight of {best.adv_weight:.2g} changes PSNR by {psnr:+.2f} dB and SSIM "
        f"by {ssim:+.3f}."
    )


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
