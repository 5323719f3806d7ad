"""How long work shows itself: a bar with rate and time left on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

LINE_SECONDS = 10.0  # between lines where there is no terminal


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
