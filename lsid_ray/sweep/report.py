"""What a person sees of a sweep: a table while it runs, and a page with pictures at its end."""

import math
import os
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from PIL import Image

from lsid_ray.evaluate import page
from lsid_ray.evaluate.report import headline
from lsid_ray.progress import columns, duration
from lsid_ray.sweep.conclude import Conclusion, Tested, short, verdict, words
from lsid_ray.sweep.record import Definition, Trial
from lsid_ray.sweep.space import ADV_WEIGHT, Dimension

MARKERS = {"finished": "o", "stopped": "x", "failed": "", "running": "+"}
PAIRS_SHOWN = 4
UNSEARCHED = -0.15  # height on the axis of parallel coordinates
ZERO_PLACE = 0.4  # where a weight of 0 stands on a logarithmic axis: this share of the least weight


def trial_table(definition: Definition, trials: list[Trial]) -> list[str]:
    """Lines of a table: what each trial is, how far and how good."""
    names = [dimension.field for dimension in definition.space]
    rows = [
        ("trial", *(name.split(".")[1].replace("_", "-") for name in names), "state", "epoch", "PSNR", "SSIM", "left")
    ]
    for trial in trials:
        best, whole = trial.best, definition.experiment.training.epochs
        left = trial.seconds_left if trial.state == "running" else None
        if left is not None:  # a trial may end before the whole experiment does
            left *= max(definition.trial_epochs - trial.epoch, 0) / max(whole - trial.epoch, 1)
        rows.append(
            (
                str(trial.number),
                *(short(trial.parameters.get(name, "-")) for name in names),
                trial.state,
                f"{trial.epoch}/{definition.trial_epochs}",
                f"{best['psnr_db']:.2f}" if best else "-",
                f"{best['ssim']:.3f}" if best else "-",
                "-" if left is None else duration(left),
            )
        )
    states = [trial.state for trial in trials]
    counts = ", ".join(f"{states.count(state)} {state}" for state in MARKERS if state in states)
    reasons = [f"trial {trial.number} failed: {trial.reason}" for trial in trials if trial.state == "failed"]
    return [f"{len(trials)} trials: {counts}", *columns(rows), *reasons]


def write_sweep_report(definition: Definition, conclusion: Conclusion) -> Path:
    """Draw the pictures and write report.html into the sweep's folder; returns its path."""
    folder = definition.folder
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    trials = [trial for trial in conclusion.trials if trial.best]
    _weights(trials, next(iter(conclusion.candidates))).savefig(pictures / "weight.png", dpi=130)
    _curves(trials).savefig(pictures / "curves.png", dpi=130)
    _parallel(trials, definition.space).savefig(pictures / "parallel.png", dpi=130)
    pairs = _pairs(conclusion)
    if pairs is not None:
        pairs.savefig(pictures / "pairs.png", dpi=110)
    path, partial = folder / "report.html", folder / ".report.html.partial"
    partial.write_text(_page(definition, conclusion))
    os.replace(partial, path)
    return path


def _weights(trials: list[Trial], winner: str) -> Figure:
    """PSNR and SSIM against the adversarial weight, 0 at the left edge."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    positive = [trial.parameters[ADV_WEIGHT] for trial in trials if trial.parameters[ADV_WEIGHT] > 0]
    zero = ZERO_PLACE * min(positive, default=1e-4)
    rates = [trial.parameters["optimizer.generator_lr"] for trial in trials]
    colors = ScalarMappable(LogNorm(min(rates), max(rates) * 1.001), "viridis")
    for axes, metric, label in zip(figure.subplots(1, 2), ("psnr_db", "ssim"), ("PSNR, dB", "SSIM"), strict=True):
        for trial, rate in zip(trials, rates, strict=True):
            x, y = trial.parameters[ADV_WEIGHT] or zero, trial.best[metric]
            color = colors.to_rgba(rate)
            whole = trial.state == "finished"
            axes.scatter(x, y, s=52, facecolor=color if whole else "none", edgecolor=color, linewidth=1.5, zorder=3)
            if trial.name == winner:
                axes.scatter(x, y, s=190, facecolor="none", edgecolor="crimson", linewidth=1.5, zorder=2)
        axes.axvspan(zero * 0.6, zero * 1.6, color="0.92", zorder=0)
        axes.set_xscale("log")
        axes.set_xlim(zero * 0.6, max(positive, default=1e-1) * 1.6)
        axes.set_xlabel("adversarial weight, relative to L1 (grey: exactly 0)")
        axes.set_ylabel(f"best validation {label}")
        axes.grid(alpha=0.25)
    figure.colorbar(colors, ax=figure.axes, label="generator's learning rate")
    figure.suptitle("Filled: trained to the end. Hollow: stopped or unfinished. Red ring: winner", fontsize=10)
    return figure


def _curves(trials: list[Trial]) -> Figure:
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
    axes.set_xlabel("epoch (ball: trained to the end, cross: stopped)")
    axes.set_ylabel("validation PSNR, dB")
    axes.grid(alpha=0.25)
    figure.colorbar(colors, ax=axes, label="adversarial weight (black, dashed: 0)")
    return figure


def _parallel(trials: list[Trial], space: tuple[Dimension, ...]) -> Figure:
    """One line a trial across an axis a parameter, to its PSNR."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    axes = figure.subplots()
    scores = [trial.best["psnr_db"] for trial in trials]
    low, high = min(scores), max(scores)
    colors = ScalarMappable(Normalize(low, high), "viridis")
    places = [[_place(dimension, trial.parameters.get(dimension.field)) for dimension in space] for trial in trials]
    for trial, place, score in sorted(zip(trials, places, scores, strict=True), key=lambda line: line[2]):
        heights = [*place, (score - low) / ((high - low) or 1)]
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


def _pairs(conclusion: Conclusion) -> Figure | None:
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
    files = sorted(path.name for path in winner.report.parent.glob("pictures/*_output.png"))
    scenes = {file.split("_")[1]: file for file in reversed(files)}  # the first of each
    stems = [scenes[scene].removesuffix("_output.png") for scene in sorted(scenes)][:PAIRS_SHOWN]
    if not stems:
        return None
    pictures = [
        [Image.open(one.report.parent / "pictures" / f"{stem}_{view}.png") for one, view, _ in views] for stem in stems
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


def _page(definition: Definition, conclusion: Conclusion) -> str:
    winner, twin = conclusion.winner, conclusion.twin
    tested = [("winner", winner)] + ([("twin", twin)] if twin else [])
    facts = conclusion.facts
    saved, idle = (
        facts["share of epochs saved by stopping"],
        facts["share of the time in which no trial trained or validated"],
    )
    names = [dimension.field for dimension in definition.space]
    return PAGE.substitute(
        style=page.STYLE,
        name=escape(definition.folder.name),
        verdict=escape(verdict(conclusion)),
        trials=len(conclusion.trials),
        time=duration(facts["seconds"]),
        run=facts["epochs run"],
        whole=facts["epochs of all trials run to their end"],
        saved=f"{saved:.0%}",
        idle=f"{idle:.0%}",
        epochs=conclusion.epochs,
        tested="".join(
            f"<tr><th>{label}</th><td>{escape(words(one.parameters))}</td>{_scores(one)}"
            f'<td><a href="{label}/report.html">report</a></td></tr>'
            for label, one in tested
        ),
        by_ratio="".join(_by_ratio(tested)),
        candidates="".join(
            f"<tr><th>{escape(name)}</th>{_means(headline(summary))}</tr>"
            for name, summary in conclusion.candidates.items()
        ),
        columns="".join(f"<th>{escape(name)}</th>" for name in names),
        rows="".join(_row(definition, trial, names) for trial in conclusion.trials),
        pairs='<img src="pictures/pairs.png" alt="test frames: plain, winner, twin, long exposure">' if twin else "",
        searched="".join(
            f"<tr><th>{escape(dimension.field)}</th><td>{escape(dimension.text)}</td></tr>"
            for dimension in definition.space
        ),
        overhead=page.number(facts["overhead of a trial before its first step, s (median)"], ".0f"),
    )


def _means(group: dict) -> str:
    means = group["by_image"]["network"]
    return (
        f"<td>{group['images']}</td><td>{means['psnr_db']['mean']:.2f} {page.interval(means['psnr_db'], '.2f')}</td>"
        f"<td>{means['ssim']['mean']:.3f} {page.interval(means['ssim'], '.3f')}</td>"
    )


def _scores(one: Tested) -> str:
    return _means(headline(one.summary))


def _by_ratio(tested: list[tuple[str, Tested]]) -> list[str]:
    groups = [headline(one.summary)["by_ratio"] for _, one in tested]
    return [
        f"<tr><th>x{parts[0]['ratio']}</th><td>{page.pair(parts[0]['by_image'], 'plain')}</td>"
        + "".join(f"<td>{page.pair(part['by_image'], 'network')}</td>" for part in parts)
        + "</tr>"
        for parts in zip(*groups, strict=True)
    ]


def _row(definition: Definition, trial: Trial, names: list[str]) -> str:
    best = trial.best
    state = "unfinished" if trial.state == "running" else trial.state
    return (
        f"<tr><th>{trial.number}</th>"
        + "".join(f"<td>{escape(short(trial.parameters.get(name, '-')))}</td>" for name in names)
        + f"<td>{trial.epoch}/{definition.trial_epochs}</td>"
        + (f"<td>{best['psnr_db']:.2f}</td><td>{best['ssim']:.3f}</td>" if best else "<td>-</td><td>-</td>")
        + f"<td>{state} {escape(trial.reason)}</td></tr>"
    )


PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>lsid_ray: sweep $name</title>
<style>
$style
.wide img { width: 100%; background: #fff; border-radius: 6px }
</style>
<h1>Sweep $name</h1>
<p><b>$verdict</b></p>
<p class="soft">$trials trials in $time. Stopping spared $saved of the epochs ($run run, $whole if every trial had gone
to its end). $idle of the time no trial trained or validated; a trial takes $overhead s (median) before its first step.
All of it is in <a href="sweep.json">sweep.json</a> and <a href="trials.csv">trials.csv</a>; <a href="winner.json">
winner.json</a> is the winner's experiment.</p>
<h2>On the test split, once</h2>
<p>Winner and twin differ in the adversarial weight alone: equal seeds, crops, learning rates and epochs ($epochs).</p>
<div class="scroll"><table><thead><tr><th></th><th>parameters</th><th>images</th><th>PSNR, dB</th><th>SSIM</th><th></th>
</tr></thead><tbody>$tested</tbody></table></div>
<div class="scroll"><table><thead><tr><th>ratio</th><th>plain</th><th>winner</th><th>twin</th></tr></thead>
<tbody>$by_ratio</tbody></table></div>
<div class="wide">$pairs</div>
<h2>PSNR and SSIM against the adversarial weight</h2>
<p>An adversarial loss trades distortion for realism, so PSNR is expected to fall as the weight grows (arXiv
1711.06077); neither PSNR nor SSIM measures what is gained: look at the pictures. Trials differ in their learning rates
too.</p>
<div class="wide"><img src="pictures/weight.png" alt="PSNR and SSIM against the adversarial weight"></div>
<h2>Learning curves</h2>
<div class="wide"><img src="pictures/curves.png" alt="validation PSNR by epoch"></div>
<h2>Parameters</h2>
<div class="wide"><img src="pictures/parallel.png" alt="parallel coordinates of the parameters and PSNR"></div>
<h2>The best, on every validation frame</h2>
<div class="scroll"><table><thead><tr><th>trial</th><th>images</th><th>PSNR, dB [95% over scenes]</th><th>SSIM</th></tr>
</thead><tbody>$candidates</tbody></table></div>
<h2>All trials</h2>
<p class="soft">Each trial's best validation, on full frames.</p>
<div class="scroll"><table><thead><tr><th>trial</th>$columns<th>epochs</th><th>PSNR, dB</th><th>SSIM</th>
<th>state</th></tr></thead><tbody>$rows</tbody></table></div>
<h2>What was searched</h2>
<div class="scroll"><table class="record"><tbody>$searched</tbody></table></div>
</html>
""")
