"""What a sweep found: the best trials compared, the winner and its twin trained and tested, all of it written down."""

import csv
import dataclasses
import io
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from lsid_ray import cluster, config, storage
from lsid_ray.errors import PartFailure
from lsid_ray.evaluate.report import headline
from lsid_ray.evaluate.score import evaluate
from lsid_ray.storage import AnyPath
from lsid_ray.sweep.record import Definition, Trial, clock, read_trials, write_json
from lsid_ray.sweep.space import ADV_WEIGHT, Parameters, with_parameters
from lsid_ray.train.launch import Event, train

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Tested:
    """A checkpoint scored once on the test split."""

    parameters: Parameters
    summary: dict[str, Any]
    """Of `evaluate.report.summarize`."""
    report: AnyPath

    @property
    def weight(self) -> float:
        """Of the adversarial loss."""
        return self.parameters[ADV_WEIGHT]

    def mean(self, metric: str, who: str = "network") -> float:
        """Mean over images, of the headline group."""
        return headline(self.summary)["by_image"][who][metric]["mean"]


@dataclass(frozen=True)
class Conclusion:
    """What a sweep found."""

    trials: tuple[Trial, ...]
    candidates: dict[str, dict[str, Any]]
    """The best trials' scores on the validation split: name -> summary, the winner first."""
    epochs: int
    """Of the winner and its twin."""
    winner: Tested
    twin: Tested | None
    """The same but for the adversarial weight: 0, or where the winner's is 0 that of the best adversarial trial."""
    facts: dict[str, Any]
    """seconds, epochs run and saved, overhead and idle share."""


def conclude(
    definition: Definition,
    on_event: Callable[[Event], None] = lambda event: None,
    scoring: Callable[[str], AbstractContextManager[Progress]] = lambda what: nullcontext(lambda done, total: None),
) -> Conclusion:
    """Compare the best trials on the validation split, train the winner and its twin equally far, test each once.

    on_event: of that training. scoring: called with what is being scored, gives what shows its progress.
    Raises: PartFailure when no trial has a checkpoint.
    """
    sweep, e = definition.sweep, definition.experiment
    trials = read_trials(definition)
    whole = [trial for trial in trials if trial.best and (trial.folder / "best").is_dir()]
    if not whole:
        raise PartFailure(f"{definition.folder}: none of {len(trials)} trials came to a validation")
    ranked = sorted(whole, key=lambda trial: -trial.best["psnr_db"])

    def score(run: AnyPath, split: str, out: AnyPath, pictures: int) -> tuple[dict[str, Any], AnyPath]:
        with scoring(f"scoring {run.name} on the {split} split") as progress:
            done = evaluate(
                run / "best", definition.shards, split, out,
                use_gpu=e.cluster.use_gpu, pictures=pictures, progress=progress,
            )  # fmt: skip
        return done.summary, done.report

    candidates = {
        trial.name: score(trial.folder, "validation", definition.folder / "candidates" / trial.name, 0)[0]
        for trial in ranked[: sweep.best]
    }
    order = sorted(candidates, key=lambda name: -headline(candidates[name])["by_image"]["network"]["psnr_db"]["mean"])
    winner = next(trial for trial in trials if trial.name == order[0])
    epochs = e.training.epochs if sweep.train_winner else definition.trial_epochs

    def test(name: str, parameters: Parameters, out: str) -> Tested:
        run = train(definition.trial(name, parameters), definition.shards, on_event=on_event, epochs=epochs)
        summary, report = score(run.folder, "test", definition.folder / out, 6)
        return Tested({ADV_WEIGHT: e.loss.adv_weight, **parameters}, summary, report)

    twin = _twin(winner, ranked)
    conclusion = Conclusion(
        trials=tuple(trials),
        candidates={name: candidates[name] for name in order},
        epochs=epochs,
        winner=test(winner.name, winner.parameters, "winner"),
        twin=twin and test(f"{winner.name}-twin", twin, "twin"),
        facts=_facts(definition, trials),
    )
    _write(definition, winner, conclusion)
    return conclusion


def _twin(winner: Trial, ranked: list[Trial]) -> Parameters | None:
    """The winner's parameters with the adversarial loss taken away, or with that of the best trial that has one."""
    if winner.parameters[ADV_WEIGHT] > 0:
        return {**winner.parameters, ADV_WEIGHT: 0.0}
    adversarial = next((trial for trial in ranked if trial.parameters[ADV_WEIGHT] > 0), None)
    return adversarial and {
        **adversarial.parameters,
        **winner.parameters,
        ADV_WEIGHT: adversarial.parameters[ADV_WEIGHT],
    }


def _facts(definition: Definition, trials: list[Trial]) -> dict[str, Any]:
    seconds = clock(definition.folder)
    overheads = sorted(trial.overhead_s for trial in trials if trial.overhead_s is not None)
    slots = cluster.check_workers(definition.experiment.cluster)
    run, whole = sum(trial.epoch for trial in trials), len(trials) * definition.trial_epochs
    return {
        "seconds": seconds,
        "side by side": slots,
        "epochs run": run,
        "epochs of all trials run to their end": whole,
        "share of epochs saved by stopping": 1 - run / whole,
        "overhead of a trial before its first step, s (median)": overheads[len(overheads) // 2] if overheads else None,
        "share of the time in which no trial trained or validated": max(
            0.0, 1 - sum(trial.busy_s for trial in trials) / max(seconds * slots, 1e-9)
        ),
    }


def _write(definition: Definition, winner: Trial, conclusion: Conclusion) -> None:
    """sweep.json, trials.csv and winner.json."""
    folder, e = definition.folder, definition.experiment
    fields = list(dict.fromkeys(name for trial in conclusion.trials for name in trial.parameters))
    rows = [
        {
            "trial": trial.name,
            "state": "unfinished" if trial.state == "running" else trial.state,
            "reason": trial.reason,
            "epochs": trial.epoch,
            **{name: trial.parameters.get(name, "") for name in fields},
            **{f"best_{name}": trial.best[name] if trial.best else "" for name in ("epoch", "psnr_db", "ssim")},
            "overhead_s": trial.overhead_s,
            "busy_s": trial.busy_s,
        }
        for trial in conclusion.trials
    ]
    with storage.writing(folder / "trials.csv") as file:
        text = io.TextIOWrapper(file, newline="", write_through=True)
        writer = csv.DictWriter(text, rows[0])
        writer.writeheader()
        writer.writerows(rows)
        text.detach()
    tested = {"winner": conclusion.winner, "twin": conclusion.twin}
    write_json(
        folder / "sweep.json",
        {
            "searched": {dimension.field: dimension.text for dimension in definition.space},
            "sweep": dataclasses.asdict(definition.sweep),
            "facts": conclusion.facts,
            "trials": [
                {**row, "validations": [_plain(v) for v in trial.validations]}
                for row, trial in zip(rows, conclusion.trials, strict=True)
            ],
            "candidates, on the validation split": conclusion.candidates,
            "winner": winner.name,
            "epochs of winner and twin": conclusion.epochs,
            "on the test split": {
                name: {"parameters": one.parameters, "summary": one.summary} for name, one in tested.items() if one
            },
        },
    )
    best = with_parameters(dataclasses.replace(e, name=f"{e.name}-winner"), winner.parameters)
    (folder / "winner.json").write_text(config.to_json(best) + "\n")


def _plain(validation: dict[str, Any]) -> dict[str, Any]:
    return {name: validation[name] for name in ("epoch", "step", "psnr_db", "ssim")}


def verdict(conclusion: Conclusion) -> str:
    """What the winner and its twin say, in words."""
    winner, twin = conclusion.winner, conclusion.twin
    said = f"Winner: {words(winner.parameters)}: {winner.mean('psnr_db'):.2f} dB / {winner.mean('ssim'):.3f} on test"
    if twin is None:
        return f"{said}; no trial had another adversarial weight to compare it with."
    differences = (winner.mean("psnr_db") - twin.mean("psnr_db"), winner.mean("ssim") - twin.mean("ssim"))
    psnr, ssim = (round(value, digits) + 0.0 for value, digits in zip(differences, (2, 3), strict=True))  # no -0.00
    return (
        f"{said}; its twin with adversarial weight {twin.weight:.2g}: {twin.mean('psnr_db'):.2f} dB / "
        f"{twin.mean('ssim'):.3f}, so the weight of {winner.weight:.2g} makes {psnr:+.2f} dB and {ssim:+.3f}."
    )


def words(parameters: Parameters) -> str:
    """ "adv-weight 0.0012, generator-lr 0.002" """
    return ", ".join(f"{name.split('.')[1].replace('_', '-')} {short(value)}" for name, value in parameters.items())


def short(value: Any) -> str:
    """A parameter's value in a table."""
    if isinstance(value, float) and not math.isnan(value):
        return f"{value:.2g}"
    return str(value)
