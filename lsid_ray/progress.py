"""How long work shows itself: a bar with rate and time left on a terminal, a line now and then elsewhere."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

LINE_SECONDS = 10.0  # between lines where there is no terminal
TABLE_SECONDS = 60.0  # between tables there


@contextmanager
def counting(what: str, unit: str) -> Iterator[Callable[..., None]]:
    """Yields progress(done, total, said=""), to be called as often as one likes; what is said stays to be read."""
    line = _Line(what)
    began = time.monotonic()

    def progress(done: int, total: int, said: str = "") -> None:
        if said:
            line.say(said)
        seconds = time.monotonic() - began
        rate = done / seconds if seconds > 0 else 0.0
        left = duration((total - done) / rate) if rate > 0 else "?"
        line.show(f"{done}/{total} {unit}, {rate:.1f} {unit}/s, {left} left", last=done == total)

    yield progress
    line.close()


@contextmanager
def training() -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yields a function that shows the events of a run (see `train.worker`)."""
    line = _Line("training")
    total = 0

    def show(event: dict[str, Any]) -> None:
        nonlocal total
        match event["kind"]:
            case "start":
                total = event["total_steps"]
                if event["step"] >= total:
                    line.say(f"already trained to its end, step {total}")
                elif event["step"]:
                    line.say(f"continuing from step {event['step']} of {total}")
            case "train":
                losses = ", ".join(f"{n} {event[n]:.4f}" for n in ("l1", "adversarial", "discriminator") if n in event)
                line.show(
                    f"step {event['step']}/{total}, epoch {event['epoch']}, {losses}, "
                    f"{event['samples_per_s']:.1f} samples/s, {event['waiting_for_data']:.0%} waiting for data, "
                    f"{duration(event['seconds_left'])} left"
                )
            case "validation":
                line.say(
                    f"epoch {event['epoch']}: validation PSNR {event['psnr_db']:.2f} dB, SSIM {event['ssim']:.3f} "
                    f"on {event['frames']} full frames in {duration(event['seconds'])}"
                )

    yield show
    line.close()


@contextmanager
def table() -> Iterator[Callable[[list[str]], None]]:
    """Yields a function that shows lines in the place of those before; off a terminal, where they have changed."""
    shown: list[str] = []
    at = 0.0

    def show(lines: list[str]) -> None:
        nonlocal shown, at
        if sys.stdout.isatty():
            room = max(os.get_terminal_size().lines - 2, 5)  # what is scrolled away cannot be written over
            up = f"\033[{len(shown)}F\033[J" if shown else ""
            shown = lines if len(lines) <= room else [lines[0], "...", *lines[2 - room :]]
            print(up + "\n".join(shown), flush=True)
        elif lines != shown and time.monotonic() - at >= TABLE_SECONDS:
            shown, at = lines, time.monotonic()
            print("\n".join(lines), end="\n\n", flush=True)

    yield show


def columns(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows of cells as lines, each column as wide as its widest cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def duration(seconds: float) -> str:
    """12 s, 3:20 min, 4:05 h."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d} h"


class _Line:
    """One line that is written over on a terminal; elsewhere a new line every LINE_SECONDS."""

    def __init__(self, what: str):
        self.what, self.terminal, self.shown = what, sys.stdout.isatty(), 0.0
        self.open = False

    def show(self, text: str, last: bool = False) -> None:
        if self.terminal:
            print(f"\r\033[K{self.what}: {text}", end="", flush=True)
            self.open = True
        elif last or time.monotonic() - self.shown >= LINE_SECONDS:
            print(f"{self.what}: {text}", flush=True)
            self.shown = time.monotonic()

    def say(self, text: str) -> None:
        print(("\r\033[K" if self.open else "") + f"{self.what}: {text}", flush=True)
        self.open = False

    def close(self) -> None:
        if self.open:
            print(flush=True)
            self.open = False
