"""The plots of a sweep's report."""

import math
from collections.abc import Mapping
from typing import Any

from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from lsid_ray.config.schema import SweepConfig
from lsid_ray.evaluate.measures import METRICS
from lsid_ray.sweep.comparison import format_value
from lsid_ray.sweep.objectives import Scores, fields
from lsid_ray.sweep.objectives import front as unbeaten
from lsid_ray.sweep.space import ADV_WEIGHT, Dimension
from lsid_ray.sweep.trials import Trial

MARKERS = {"finished": "o", "stopped": "x", "failed": "", "running": "+"}
MAX_PAIRS = 4
UNSEARCHED = -0.15  # height on an axis of the parallel coordinates
RANGE_BELOW_BEST = {"psnr_db": 4.0, "ssim": 0.2}  # worse values are clipped: one diverged trial would hide the rest
ZERO_POSITION = 0.4  # of a weight of 0 on a logarithmic axis, relative to the smallest positive weight


def weights(trials: list[Trial], best: str) -> Figure:
    """PSNR and SSIM against the adversarial weight, 0 at the left edge. best: name of the best trial."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    positive = [trial.parameters[ADV_WEIGHT] for trial in trials if trial.parameters[ADV_WEIGHT] > 0]
    zero = ZERO_POSITION * min(positive, default=1e-4)
    rates = [trial.parameters["optimizer.generator_lr"] for trial in trials]
    colors = ScalarMappable(LogNorm(min(rates), max(rates) * 1.001), "viridis")
    for axes, metric, label in zip(figure.subplots(1, 2), ("psnr_db", "ssim"), ("PSNR, dB", "SSIM"), strict=True):
        floor = _floor([trial.best_validation[metric] for trial in trials], metric)
        for trial, rate in zip(trials, rates, strict=True):
            score = trial.best_validation[metric]
            x, y = trial.parameters[ADV_WEIGHT] or zero, max(score, floor)
            if score < floor:
                axes.annotate(f"{score:.3g}", (x, y), xytext=(6, -3), textcoords="offset points", fontsize=8)
            color = colors.to_rgba(rate)
            marker = "o" if score >= floor else "v"
            face = color if trial.state == "finished" else "none"
            axes.scatter(x, y, s=52, marker=marker, facecolor=face, edgecolor=color, linewidth=1.5, zorder=3)
            if trial.name == best:
                axes.scatter(x, y, s=190, facecolor="none", edgecolor="crimson", linewidth=1.5, zorder=2)
        axes.axvspan(zero * 0.6, zero * 1.6, color="0.92", zorder=0)
        axes.set_xscale("log")
        axes.set_xlim(zero * 0.6, max(positive, default=1e-1) * 1.6)
        axes.set_ylim(bottom=floor - 0.05 * RANGE_BELOW_BEST[metric])
        axes.set_xlabel("adversarial weight, relative to L1 (gray: exactly 0)")
        axes.set_ylabel(f"best validation {label}")
        axes.grid(alpha=0.25)
    figure.colorbar(colors, ax=figure.axes, label="generator's learning rate")
    figure.suptitle(
        "Filled: trained to the end. Hollow: stopped or unfinished. Red ring: best trial. Triangle: worse", fontsize=10
    )
    return figure


def front(trials: list[Trial], scores: Mapping[str, Scores], best: str, sweep: SweepConfig) -> Figure:
    """PSNR against each other objective: every trial, those that no other beats in both, and the tolerance of the rule.

    scores: what each trial is judged by, by name. best: name of the best trial.
    """
    others = fields(sweep)[1:]
    figure = Figure(figsize=(5.4 * len(others) + 1, 4.4), layout="constrained")
    positive = [trial.parameters[ADV_WEIGHT] for trial in trials if trial.parameters[ADV_WEIGHT] > 0] or [1e-3]
    colors = ScalarMappable(LogNorm(min(positive), max(positive) * 1.001), "plasma")
    highest = max(scores[trial.name]["psnr_db"] for trial in trials)
    for number, (axes, other) in enumerate(zip(figure.subplots(1, len(others), squeeze=False)[0], others, strict=True)):
        for trial in trials:
            x, y = scores[trial.name]["psnr_db"], scores[trial.name][other]
            weight = trial.parameters[ADV_WEIGHT]
            color, marker = (colors.to_rgba(weight), "o") if weight else ("black", "s")
            face = color if trial.state == "finished" else "none"
            axes.scatter(x, y, s=52, marker=marker, facecolor=face, edgecolor=color, linewidth=1.5, zorder=3)
            axes.annotate(str(trial.number), (x, y), xytext=(6, 4), textcoords="offset points", fontsize=8)
            if trial.name == best:
                axes.scatter(x, y, s=190, facecolor="none", edgecolor="crimson", linewidth=1.5, zorder=2)
        line = [scores[name] for name in unbeaten(scores, "psnr_db", other)]
        axes.plot([each["psnr_db"] for each in line], [each[other] for each in line], color="0.6", lw=1, zorder=1)
        if number == 0:
            axes.axvspan(highest - sweep.tolerance_db, highest, color="0.92", zorder=0)
        metric = METRICS[other]
        axes.set_xlabel("validation PSNR, dB (higher is better)")
        axes.set_ylabel(f"{metric.title} ({'higher' if metric.higher_is_better else 'lower'} is better)")
        axes.grid(alpha=0.25)
    figure.colorbar(colors, ax=figure.axes, label="adversarial weight (black square: 0)")
    figure.suptitle(
        "Line: not beaten in both. Gray: within the tolerance. Red ring: best trial. Hollow: stopped", fontsize=10
    )
    return figure


def curves(trials: list[Trial]) -> Figure:
    """Validation PSNR by epoch."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    axes = figure.subplots()
    positive = [trial.parameters[ADV_WEIGHT] for trial in trials if trial.parameters[ADV_WEIGHT] > 0] or [1e-3]
    colors = ScalarMappable(LogNorm(min(positive), max(positive) * 1.001), "plasma")
    for trial in trials:
        weight = trial.parameters[ADV_WEIGHT]
        epochs, scores = zip(*((v["epoch"], v["psnr_db"]) for v in trial.validations), strict=True)
        color, dash = (colors.to_rgba(weight), "-") if weight else ("black", "--")
        axes.plot(epochs, scores, dash, color=color, linewidth=1.3, alpha=0.9)
        axes.plot(epochs[-1], scores[-1], MARKERS[trial.state], color=color, markersize=6)
    all_scores = [validation["psnr_db"] for trial in trials for validation in trial.validations]
    axes.set_ylim(_floor(all_scores, "psnr_db"), max(all_scores) + 0.2)
    axes.set_xlabel("epoch (dot: trained to the end, cross: stopped)")
    axes.set_ylabel("validation PSNR, dB")
    axes.grid(alpha=0.25)
    figure.colorbar(colors, ax=axes, label="adversarial weight (black, dashed: 0)")
    return figure


def parallel(trials: list[Trial], space: tuple[Dimension, ...]) -> Figure:
    """Parallel coordinates: one line per trial, one axis per parameter, and PSNR as the last axis."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    axes = figure.subplots()
    scores = [trial.best_validation["psnr_db"] for trial in trials]
    low, high = _floor(scores, "psnr_db"), max(scores)
    colors = ScalarMappable(Normalize(low, high), "viridis")
    lines = [[_height(dimension, trial.parameters.get(dimension.field)) for dimension in space] for trial in trials]
    for trial, line, score in sorted(zip(trials, lines, scores, strict=True), key=lambda item: item[2]):
        heights = [*line, max((score - low) / ((high - low) or 1), UNSEARCHED)]
        style = "-" if trial.state == "finished" else ":"
        axes.plot(range(len(heights)), heights, style, color=colors.to_rgba(score), linewidth=1.6)
    for x, dimension in enumerate(space):
        axes.axvline(x, color="0.5", linewidth=0.8)
        if dimension.kind == "choice":
            for value in dimension.values:
                axes.annotate(format_value(value), (x, _height(dimension, value)), fontsize=8)
        else:
            for value, y in zip(dimension.values, (0, 1), strict=True):
                axes.annotate(format_value(value), (x, y), xytext=(4, 2), textcoords="offset points", fontsize=8)
        if UNSEARCHED in (line[x] for line in lines):
            label = "0" if dimension.field == ADV_WEIGHT else "-"
            axes.annotate(label, (x, UNSEARCHED), xytext=(4, 2), textcoords="offset points", fontsize=8)
    names = [dimension.field.split(".")[1].replace("_", "-") for dimension in space]
    axes.set_xticks(range(len(space) + 1), [*names, f"PSNR\n{low:.2f} to {high:.2f} dB"])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    figure.suptitle("Solid: trained to the end. Dotted: stopped or unfinished.", fontsize=10)
    return figure


def _floor(scores: list[float], metric: str) -> float:
    """The lowest score that a plot shows."""
    return max(min(scores), max(scores) - RANGE_BELOW_BEST[metric])


def _height(dimension: Dimension, value: Any) -> float:
    """Height of a value on its axis, 0 to 1; UNSEARCHED for a weight of 0 and for fields that are then unused."""
    if dimension.kind == "choice":
        if value not in dimension.values:
            return UNSEARCHED
        return dimension.values.index(value) / max(len(dimension.values) - 1, 1)
    low, high = dimension.values
    if value is None or value < low:
        return UNSEARCHED
    if dimension.kind == "loguniform":
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / (high - low)
