"""A sweep's pictures."""

import math
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from PIL import Image

from lsid_ray import storage
from lsid_ray.sweep.conclude import Conclusion, Tested, short
from lsid_ray.sweep.record import Trial
from lsid_ray.sweep.space import ADV_WEIGHT, Dimension

MARKERS = {"finished": "o", "stopped": "x", "failed": "", "running": "+"}
PAIRS_SHOWN = 4
UNSEARCHED = -0.15  # height on the axis of parallel coordinates
SHOWN_BELOW_BEST = {
    "psnr_db": 4.0,
    "ssim": 0.2,
}  # what is worse stands at the edge: one trial that went astray hides all
ZERO_PLACE = 0.4  # where a weight of 0 stands on a logarithmic axis: this share of the least weight


def weights(trials: list[Trial], winner: str) -> Figure:
    """PSNR and SSIM against the adversarial weight, 0 at the left edge."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    positive = [trial.parameters[ADV_WEIGHT] for trial in trials if trial.parameters[ADV_WEIGHT] > 0]
    zero = ZERO_PLACE * min(positive, default=1e-4)
    rates = [trial.parameters["optimizer.generator_lr"] for trial in trials]
    colors = ScalarMappable(LogNorm(min(rates), max(rates) * 1.001), "viridis")
    for axes, metric, label in zip(figure.subplots(1, 2), ("psnr_db", "ssim"), ("PSNR, dB", "SSIM"), strict=True):
        floor = _floor([trial.best[metric] for trial in trials], metric)
        for trial, rate in zip(trials, rates, strict=True):
            x, y = trial.parameters[ADV_WEIGHT] or zero, max(trial.best[metric], floor)
            if trial.best[metric] < floor:
                axes.annotate(
                    f"{trial.best[metric]:.3g}", (x, y), xytext=(6, -3), textcoords="offset points", fontsize=8
                )
            color = colors.to_rgba(rate)
            whole = trial.state == "finished"
            marker = "o" if trial.best[metric] >= floor else "v"
            face = color if whole else "none"
            axes.scatter(x, y, s=52, marker=marker, facecolor=face, edgecolor=color, linewidth=1.5, zorder=3)
            if trial.name == winner:
                axes.scatter(x, y, s=190, facecolor="none", edgecolor="crimson", linewidth=1.5, zorder=2)
        axes.axvspan(zero * 0.6, zero * 1.6, color="0.92", zorder=0)
        axes.set_xscale("log")
        axes.set_xlim(zero * 0.6, max(positive, default=1e-1) * 1.6)
        axes.set_ylim(bottom=floor - 0.05 * SHOWN_BELOW_BEST[metric])
        axes.set_xlabel("adversarial weight, relative to L1 (grey: exactly 0)")
        axes.set_ylabel(f"best validation {label}")
        axes.grid(alpha=0.25)
    figure.colorbar(colors, ax=figure.axes, label="generator's learning rate")
    figure.suptitle(
        "Filled: trained to the end. Hollow: stopped or unfinished. Red ring: winner. Triangle: worse", fontsize=10
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
    every = [validation["psnr_db"] for trial in trials for validation in trial.validations]
    axes.set_ylim(_floor(every, "psnr_db"), max(every) + 0.2)
    axes.set_xlabel("epoch (ball: trained to the end, cross: stopped)")
    axes.set_ylabel("validation PSNR, dB")
    axes.grid(alpha=0.25)
    figure.colorbar(colors, ax=axes, label="adversarial weight (black, dashed: 0)")
    return figure


def parallel(trials: list[Trial], space: tuple[Dimension, ...]) -> Figure:
    """One line a trial across an axis a parameter, to its PSNR."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    axes = figure.subplots()
    scores = [trial.best["psnr_db"] for trial in trials]
    low, high = _floor(scores, "psnr_db"), max(scores)
    colors = ScalarMappable(Normalize(low, high), "viridis")
    places = [[_place(dimension, trial.parameters.get(dimension.field)) for dimension in space] for trial in trials]
    for trial, place, score in sorted(zip(trials, places, scores, strict=True), key=lambda line: line[2]):
        heights = [*place, max((score - low) / ((high - low) or 1), UNSEARCHED)]
        style = "-" if trial.state == "finished" else ":"
        axes.plot(range(len(heights)), heights, style, color=colors.to_rgba(score), linewidth=1.6)
    for x, dimension in enumerate(space):
        axes.axvline(x, color="0.5", linewidth=0.8)
        if dimension.kind == "choice":
            for value in dimension.values:
                axes.annotate(short(value), (x, _place(dimension, value)), fontsize=8)
        else:
            for value, y in zip(dimension.values, (0, 1), strict=True):
                axes.annotate(short(value), (x, y), xytext=(4, 2), textcoords="offset points", fontsize=8)
        if UNSEARCHED in (place[x] for place in places):
            below = "0" if dimension.field == ADV_WEIGHT else "-"
            axes.annotate(below, (x, UNSEARCHED), xytext=(4, 2), textcoords="offset points", fontsize=8)
    names = [dimension.field.split(".")[1].replace("_", "-") for dimension in space]
    axes.set_xticks(range(len(space) + 1), [*names, f"PSNR\n{low:.2f} to {high:.2f} dB"])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    figure.suptitle("Solid: trained to the end. Dotted: stopped or unfinished.", fontsize=10)
    return figure


def _floor(scores: list[float], metric: str) -> float:
    """The least that a picture shows."""
    return max(min(scores), max(scores) - SHOWN_BELOW_BEST[metric])


def _place(dimension: Dimension, value: Any) -> float:
    """Height of a value on its axis: 0 to 1; below for a weight of 0 and for what only an adversarial loss needs."""
    if dimension.kind == "choice":
        known = value in dimension.values
        return dimension.values.index(value) / max(len(dimension.values) - 1, 1) if known else UNSEARCHED
    low, high = dimension.values
    if value is None or value < low:
        return UNSEARCHED
    if dimension.kind == "loguniform":
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / (high - low)


def pairs(conclusion: Conclusion) -> Figure | None:
    """Test frames: plain rendering, winner, twin, long exposure."""
    if conclusion.twin is None:
        return None
    winner, twin = conclusion.winner, conclusion.twin
    views = [
        (winner, "plain", "plain rendering"),
        (winner, "output", _title(winner)),
        (twin, "output", _title(twin)),
        (winner, "target", "long exposure"),
    ]
    names = storage.files_below(winner.report.parent / "pictures")
    files = sorted(name for name in names if name.endswith("_output.png"))
    scenes = {file.split("_")[1]: file for file in reversed(files)}  # the first of each
    stems = [scenes[scene].removesuffix("_output.png") for scene in sorted(scenes)][:PAIRS_SHOWN]
    if not stems:
        return None
    pictures = [
        [Image.open((one.report.parent / "pictures" / f"{stem}_{view}.png").open("rb")) for one, view, _ in views]
        for stem in stems
    ]
    width = 3.4
    heights = [width * row[0].height / row[0].width for row in pictures]
    figure = Figure(figsize=(width * len(views), sum(heights) + 0.5 * len(heights)), layout="constrained")
    grid = figure.subplots(len(pictures), len(views), squeeze=False, height_ratios=heights)
    for stem, axes_row, row in zip(stems, grid, pictures, strict=True):
        for axes, picture, (_, _, title) in zip(axes_row, row, views, strict=True):
            axes.imshow(np.asarray(picture), interpolation="antialiased")
            axes.set_title(title, fontsize=9)
            axes.set_xticks([])
            axes.set_yticks([])
        axes_row[0].set_ylabel(stem.split("_", 1)[1], fontsize=8)
    return figure


def _title(tested: Tested) -> str:
    return f"adversarial weight {tested.weight:.2g}"
