"""How a run went: its steps over time, by the number of workers, with its failures and restarts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from matplotlib.figure import Figure

from lsid_ray import storage
from lsid_ray.errors import InputError
from lsid_ray.progress import align_columns
from lsid_ray.train.events import Event
from lsid_ray.train.run_log import LOG, read_events

CAUSES = {"failure": "workers lost", "resize": "a node joined", "rollback": "loss not finite"}
"""Why a run starts again, by the kind of the event before; if there is none, its driver was stopped or died."""


@dataclass(frozen=True)
class History:
    """Draw a run's steps over time, by its number of workers, and list its starts; also while it trains."""

    run_folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of the run, such as runs/demo."""
    picture: Path = Path("history.png")
    """File for the plot."""

    def run(self, folder: Path) -> tuple[str, Any]:
        """The table, and its rows; saves the plot. folder: not used."""
        run = storage.to_path(self.run_folder)
        events = read_events(run)
        phases = run_phases(events)
        if not phases:
            raise InputError(f"{run / LOG}: no run has started; expected the folder of a run, such as runs/demo")
        plot_history(events, phases).savefig(self.picture, dpi=120)
        return f"{history_table(phases)}\n\npicture: {self.picture}", phases


@dataclass(frozen=True)
class Phase:
    """What a run did from one start of its workers to the next."""

    cause: str
    """Why it started."""
    began_s: float
    """Seconds since the first start."""
    first_step: int
    workers: int
    points: tuple[tuple[float, int], ...]
    """Seconds since the first start, and step, of each line of the log, which has none that was computed again."""


def run_phases(events: list[Event]) -> list[Phase]:
    """The phases of a run, from the events of its log."""
    phases, cause, zero = [], "", 0.0
    for event in events:
        if event["kind"] == "start":
            zero = zero if phases else event["time"]
            cause = cause or ("same command again" if phases else "")
            phases.append(Phase(cause, event["time"] - zero, event["step"], event["workers"], ()))
            cause = ""
        elif event["kind"] == "train" and phases:
            last = phases[-1]
            point = (event["time"] - zero, event["step"])
            phases[-1] = Phase(last.cause, last.began_s, last.first_step, last.workers, (*last.points, point))
        cause = CAUSES.get(event["kind"], cause)
    return phases


def plot_history(events: list[Event], phases: list[Phase]) -> Figure:
    """Steps over time, one color for each number of workers, with a line where the workers changed."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots()
    counts = sorted({phase.workers for phase in phases})
    for phase in phases:
        color = f"C{counts.index(phase.workers)}"
        points = [(phase.began_s, phase.first_step), *phase.points]
        axes.plot(*zip(*points, strict=True), ".-", color=color, ms=4, lw=1.2)
    for count in counts:
        axes.plot([], [], ".-", color=f"C{counts.index(count)}", label=f"{count} worker{'s' * (count > 1)}")
    zero = next(event["time"] for event in events if event["kind"] == "start")
    for event in events:
        if event["kind"] in CAUSES:
            axes.axvline(event["time"] - zero, color="0.8", lw=0.8, zorder=0)
            place = {"transform": axes.get_xaxis_transform(), "va": "top", "rotation": 90, "color": "0.35"}
            axes.text(event["time"] - zero, 0.97, CAUSES[event["kind"]], **place)
    axes.set_xlabel("seconds since the first start")
    axes.set_ylabel("step")
    axes.legend(loc="lower right")
    return figure


def plot_losses(undisturbed: list[Event], disturbed: list[Event]) -> Figure:
    """The L1 losses of two runs, from the events of their logs, and where the second resumed."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots()
    for events, label, style in ((undisturbed, "undisturbed", "-"), (disturbed, "disturbed", "--")):
        points = [(event["step"], event["l1"]) for event in events if event["kind"] == "train"]
        axes.plot(*zip(*points, strict=True), style, label=label, lw=1.2)
    starts = [event["step"] for event in disturbed if event["kind"] == "start"][1:]
    for step in starts:
        axes.axvline(step, color="0.85", lw=0.8, zorder=0)
    axes.set_yscale("log")
    axes.set_xlabel(f"step (gray lines: the disturbed run resumed, {len(starts)} times)")
    axes.set_ylabel("L1 loss, mean since the point before")
    axes.legend()
    return figure


def history_table(phases: list[Phase]) -> str:
    """The phases as a table."""
    rows = [("started after, s", "why", "workers", "from step", "to step", "steps/s")]
    for phase in phases:
        end_s, last_step = phase.points[-1] if phase.points else (phase.began_s, phase.first_step)
        rate = (last_step - phase.first_step) / (end_s - phase.began_s) if phase.points else 0.0
        row = (f"{phase.began_s:.0f}", phase.cause, phase.workers, phase.first_step, last_step, f"{rate:.2f}")
        rows.append(tuple(map(str, row)))
    return "\n".join(align_columns(rows))
