"""The progress of long work: a live bar with rate and time left on a terminal, elsewhere a line now and then."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

LINE_SECONDS = 10.0  # between lines of progress if there is no terminal
WAIT_LINE_SECONDS = 60.0  # between lines that say what work waits for, likewise
TABLE_SECONDS = 60.0  # between tables, likewise


@contextmanager
def counter(what: str, unit: str) -> Iterator[Callable[..., None]]:
    """Yields update(done, total, message=""), to be called as often as convenient; each message stays on a line."""
    with _display(what) as display:

        def update(done: int, total: int, message: str = "") -> None:
            if message:
                display.print(message)
            seconds = time.monotonic() - display.start
            rate = done / seconds if seconds > 0 else 0.0
            left = format_duration((total - done) / rate) if rate > 0 else "?"
            display.show(f"{done}/{total} {unit}, {rate:.1f} {unit}/s, {left} left", done, total)

        yield update


@contextmanager
def training_progress() -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yields a function that shows the events of a run (see `train.events`)."""
    with _display("training") as display:
        total = 0

        def show(event: dict[str, Any]) -> None:
            nonlocal total
            match event["kind"]:
                case "start":
                    total = event["total_steps"]
                    if event["step"] >= total:
                        display.print(f"already complete, at step {total}")
                    elif event["step"]:
                        workers = f" with {_workers(event['workers'])}" if "workers" in event else ""
                        display.print(f"resuming from step {event['step']} of {total}{workers}")
                case "waiting":
                    display.show_waiting(f"{event['message']}, {format_duration(event['seconds'])}")
                case "rollback":
                    rate = ", at half the learning rates" if event["halves_rate"] else ""
                    display.print(f"{event['reason']}; back to step {event['step']}, without that batch{rate}")
                case "resize":
                    display.print(f"the cluster has grown: going on with {_workers(event['workers'])}")
                case "failure":
                    display.print(f"{event['reason']}; restarting from step {event['step']}")
                case "warning":
                    display.print(event["message"])
                case "train":
                    losses = [
                        f"{n} {event[n]:.4f}" for n in ("l1", "ssim_loss", "adversarial", "discriminator") if n in event
                    ]
                    text = f"step {event['step']}/{total}, epoch {event['epoch']}, {', '.join(losses)}"
                    if event["seconds_left"] is not None:  # the first steps are slow
                        text += (
                            f", {event['samples_per_s']:.1f} samples/s, {event['waiting_for_data']:.0%} waiting for "
                            f"data, {format_duration(event['seconds_left'])} left"
                        )
                    display.show(text, event["step"], total)
                case "validation":
                    display.print(
                        f"epoch {event['epoch']}: validation PSNR {event['psnr_db']:.2f} dB, SSIM {event['ssim']:.3f} "
                        f"on {event['frames']} full frames in {format_duration(event['seconds'])}"
                    )

        yield show


def _workers(count: int) -> str:
    return "1 worker" if count == 1 else f"{count} workers"


def show_waiting(text: str) -> None:
    """Show what work waits for, on the display that is open, or else on a line: "1 CPU: 0 of 4 CPUs free, 25 s"."""
    if _open:
        _open[-1].show_waiting(text)
    else:
        print(f"waiting for {text}", flush=True)


@contextmanager
def live_table() -> Iterator[Callable[[list[str]], None]]:
    """Yields a function that replaces the lines shown before; without a terminal it prints those that changed."""
    console = _console()
    printed: list[str] = []
    printed_at = 0.0

    def show(lines: list[str]) -> None:
        nonlocal printed, printed_at
        if console.is_terminal:
            live.update(Text("\n".join(lines)), refresh=True)
        elif lines != printed and time.monotonic() - printed_at >= TABLE_SECONDS:
            printed, printed_at = lines, time.monotonic()
            console.print(*lines, "", sep="\n")

    with Live(console=console, auto_refresh=False) as live:
        yield show


def align_columns(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows of cells as lines, each column as wide as its widest cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def format_duration(seconds: float) -> str:
    """12 s, 3:20 min, 4:05 h."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d} h"


_open: list["_Display"] = []  # the displays of this process, the latest last


class _Display:
    """One status line with a bar on a terminal, elsewhere a new line every LINE_SECONDS."""

    def __init__(self, what: str, console: Console, bar: Progress):
        self.what, self.console, self.bar = what, console, bar
        self.printed_at = self.waited_at = -math.inf
        self.start, self.done = time.monotonic(), 0
        self.task = bar.add_task(what, total=None, status="", visible=False)

    def show(self, text: str, done: int, total: int) -> None:
        self.done = done
        if self.console.is_terminal:
            self.bar.update(self.task, completed=done, total=total, status=text, visible=True)
        elif done == total or time.monotonic() - self.printed_at >= LINE_SECONDS:
            self.print(text)
            self.printed_at = time.monotonic()

    def show_waiting(self, text: str) -> None:
        if not self.done:
            self.start = time.monotonic()  # the rate counts from when work begins
        if self.console.is_terminal:
            self.bar.update(self.task, status=f"waiting for {text}", visible=True)
        elif time.monotonic() - self.waited_at >= WAIT_LINE_SECONDS:
            self.print(f"waiting for {text}")
            self.waited_at = time.monotonic()

    def print(self, text: str) -> None:
        self.console.print(f"{self.what}: {text}")


@contextmanager
def _display(what: str) -> Iterator[_Display]:
    console = _console()
    columns = (TextColumn("{task.description}"), BarColumn(20), TextColumn("{task.fields[status]}"))
    bar = Progress(*columns, console=console, disable=not console.is_terminal)
    display = _Display(what, console, bar)
    _open.append(display)
    try:
        with bar:
            yield display
    finally:
        _open.remove(display)


def _console() -> Console:
    return Console(highlight=False, markup=False, soft_wrap=True)
