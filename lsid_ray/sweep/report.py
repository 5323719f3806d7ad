"""The table of trials shown while a sweep runs, and the HTML report at its end."""

from pathlib import Path

from lsid_ray import storage
from lsid_ray.evaluate.measures import METRICS
from lsid_ray.evaluate.page import render_template
from lsid_ray.evaluate.report import headline
from lsid_ray.progress import align_columns, format_duration
from lsid_ray.storage import AnyPath
from lsid_ray.sweep import plots
from lsid_ray.sweep.comparison import SweepResult, describe, format_value, summary_line
from lsid_ray.sweep.objectives import measured_fields, outcome
from lsid_ray.sweep.trials import SweepDefinition, Trial

TEMPLATE = Path(__file__).parent / "templates" / "sweep.html"
DPI = 130
MAX_FRAMES = 4  # compared side by side
STATES = ("finished", "stopped", "failed", "running")


def trial_table(definition: SweepDefinition, trials: list[Trial]) -> list[str]:
    """Lines of a table: the parameters, state, scores and remaining time of each trial."""
    names = [dimension.field for dimension in definition.space]
    metrics = measured_fields(definition.sweep)
    titles = [METRICS[name].title for name in metrics]
    parameters = [name.split(".")[1].replace("_", "-") for name in names]
    rows = [("trial", *parameters, "state", "epoch", *titles, "discr. right", "left")]
    for trial in trials:
        scores, epochs = outcome(trial, definition.sweep), definition.experiment.training.epochs
        seconds_left = trial.seconds_left if trial.state == "running" else None
        if seconds_left is not None:  # scaled from the end of the experiment to the end of the trial
            seconds_left *= max(definition.trial_epochs - trial.epoch, 0) / max(epochs - trial.epoch, 1)
        rows.append(
            (
                str(trial.number),
                *(format_value(trial.parameters.get(name, "-")) for name in names),
                trial.state,
                f"{trial.epoch}/{definition.trial_epochs}",
                *(f"{scores[name]:{_form(name)}}" if scores else "-" for name in metrics),
                "-" if trial.discriminator_accuracy is None else f"{trial.discriminator_accuracy:.0%}",
                "-" if seconds_left is None else format_duration(seconds_left),
            )
        )
    states = [trial.state for trial in trials]
    counts = ", ".join(f"{states.count(state)} {state}" for state in STATES if state in states)
    reasons = [f"trial {trial.number} failed: {trial.reason}" for trial in trials if trial.state == "failed"]
    return [f"{len(trials)} trials: {counts}", *align_columns(rows), *reasons]


def write_sweep_report(definition: SweepDefinition, result: SweepResult) -> AnyPath:
    """Write plots/ and report.html into the sweep's folder; returns the path of report.html."""
    folder = definition.folder / "plots"
    folder.mkdir(exist_ok=True)
    trials = [trial for trial in result.trials if trial.best_validation]
    scores = {trial.name: outcome(trial, definition.sweep) for trial in trials}
    best = next(iter(result.finalists))
    figures = {
        "weight": plots.weights(trials, best),
        "curves": plots.curves(trials),
        "parallel": plots.parallel(trials, definition.space),
    }
    if len(definition.sweep.objectives) > 1:
        figures["front"] = plots.front(trials, scores, best, definition.sweep)
    for name, figure in figures.items():
        with storage.atomic_write(folder / f"{name}.png") as file:
            figure.savefig(file, format="png", dpi=DPI)
    tested = [("best", "best trial", result.best)]
    if result.ablation:
        tested.append(("ablation", "ablation", result.ablation))
    if result.psnr_best:
        tested.append(("psnr-best", "highest PSNR", result.psnr_best))
    for seed, trainings in result.repeats.items():
        for folder, trial in zip(("best", "ablation"), trainings, strict=True):
            if trial:
                tested.append((f"{folder}-seed{seed}", f"{folder}, seed {seed}", trial))
    page = render_template(
        TEMPLATE,
        name=definition.folder.name,
        result=result,
        statistics=result.statistics,
        summary_line=summary_line(result),
        duration=format_duration(result.statistics["seconds"]),
        tested=tested,
        by_ratio=list(zip(*(headline(trial.summary)["by_ratio"] for _, _, trial in tested), strict=True)),
        frames=_compared_frames(result),
        space=definition.space,
        trial_epochs=definition.trial_epochs,
        metrics={name: (METRICS[name].title, _form(name)) for name in measured_fields(definition.sweep)},
        outcomes=scores,
        has_front="front" in figures,
        headline=headline,
        describe=describe,
        format_value=format_value,
    )
    with storage.atomic_write(definition.folder / "report.html") as file:
        file.write(page.encode())
    return definition.folder / "report.html"


def _form(metric: str) -> str:
    """How a metric's numbers are written."""
    return ".2f" if METRICS[metric].unit else ".3f"


def _compared_frames(result: SweepResult) -> list[str]:
    """File stems of the test frames to compare, one per scene; none without an ablation."""
    names = storage.list_files(result.best.report.parent / "images") if result.ablation else ()
    files = sorted(name for name in names if name.endswith("_output.png"))
    by_scene = {file.split("_")[1]: file for file in reversed(files)}  # the first file of each scene
    return [by_scene[scene].removesuffix("_output.png") for scene in sorted(by_scene)][:MAX_FRAMES]
