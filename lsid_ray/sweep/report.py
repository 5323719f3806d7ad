"""What a person sees of a sweep: a table while it runs, and a page with pictures at its end."""

from html import escape
from string import Template

from lsid_ray import storage
from lsid_ray.evaluate import page
from lsid_ray.evaluate.report import headline
from lsid_ray.progress import columns, duration
from lsid_ray.storage import AnyPath
from lsid_ray.sweep import pictures
from lsid_ray.sweep.conclude import Conclusion, Tested, short, verdict, words
from lsid_ray.sweep.record import Definition, Trial

DPI = 130
STATES = ("finished", "stopped", "failed", "running")


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
    counts = ", ".join(f"{states.count(state)} {state}" for state in STATES if state in states)
    reasons = [f"trial {trial.number} failed: {trial.reason}" for trial in trials if trial.state == "failed"]
    return [f"{len(trials)} trials: {counts}", *columns(rows), *reasons]


def write_sweep_report(definition: Definition, conclusion: Conclusion) -> AnyPath:
    """Draw the pictures and write report.html into the sweep's folder; returns its path."""
    folder = definition.folder / "pictures"
    folder.mkdir(exist_ok=True)
    trials = [trial for trial in conclusion.trials if trial.best]
    figures = {
        "weight": pictures.weights(trials, next(iter(conclusion.candidates))),
        "curves": pictures.curves(trials),
        "parallel": pictures.parallel(trials, definition.space),
        "pairs": pictures.pairs(conclusion),
    }
    for name, figure in figures.items():
        if figure is not None:
            with storage.writing(folder / f"{name}.png") as file:
                figure.savefig(file, format="png", dpi=DPI)
    with storage.writing(definition.folder / "report.html") as file:
        file.write(_page(definition, conclusion).encode())
    return definition.folder / "report.html"


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
