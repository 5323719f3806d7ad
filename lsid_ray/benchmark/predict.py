"""Speed and memory of prediction in bands of rows, relative to the whole frame in one pass."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lsid_ray.benchmark.memory import peak_bytes
from lsid_ray.commandline import memory_limit
from lsid_ray.config.checks import check_generator
from lsid_ray.config.schema import GeneratorConfig
from lsid_ray.errors import InputError
from lsid_ray.inference.bands import MEMORY_BYTES, predict, predict_bands
from lsid_ray.model.generator import Generator
from lsid_ray.raw.mosaic import LAYOUTS

MAX_ROUNDS = 1000


@dataclass(frozen=True)
class Predict:
    """Compare full frames in bands with the whole frame in one pass: speed and memory (5 minutes on 2 cores)."""

    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    """The network, with random weights."""
    memory_gb: float = MEMORY_BYTES / 2**30
    """Working memory for the bands, in GiB."""
    rounds: int = 3
    """How often each is measured, alternately; the fastest counts."""
    use_gpu: bool = False
    """Run on the GPU instead of the CPU."""

    def run(self, folder: Path) -> tuple[str, Any]:
        """The table, and the figures in it."""
        times = measure_sizes(self.generator, memory_limit(self.memory_gb), self.rounds, self.use_gpu)
        return predict_table(times), times


@dataclass(frozen=True)
class PredictTimes:
    """Measurements of one frame size: the fastest of the rounds, and the peak memory of a process that only predicts.

    `whole_*`: the whole frame in one pass; None if it was not measured.
    """

    megapixels: float
    """Of the mosaic."""
    bands_s: float
    bands_bytes: int
    whole_s: float | None
    whole_bytes: int | None
    difference: float | None
    """Largest absolute difference between both results, relative to the largest value."""

    @property
    def relative_speed(self) -> float | None:
        """Speed in bands, relative to the whole frame in one pass."""
        return None if self.whole_s is None else self.whole_s / self.bands_s


def measure_sizes(c: GeneratorConfig, memory_bytes: int, rounds: int, use_gpu: bool) -> list[PredictTimes]:
    """`measure_predict` for 12 and 61 megapixels, the latter once and in bands only.

    Raises: InputError for a network or a number of rounds that is out of range, or if there is no GPU to use.
    """
    if not 1 <= rounds <= MAX_ROUNDS:
        raise InputError(f"--rounds is {rounds}: expected 1 to {MAX_ROUNDS}")
    check_generator(c)
    return [
        measure_predict(
            c, height, width, memory_bytes=memory_bytes, rounds=count, with_whole=with_whole, use_gpu=use_gpu
        )
        for height, width, count, with_whole in ((2848, 4256, rounds, True), (6336, 9504, 1, False))
    ]


def measure_predict(
    c: GeneratorConfig, height: int, width: int, *, memory_bytes: int, rounds: int, with_whole: bool, use_gpu: bool
) -> PredictTimes:
    """Predict a random frame of `height` x `width` sensels with a new network of configuration `c`.

    Times bands and whole frame alternately in one process, `rounds` times. Measures peak memory in a separate
    process for each (GPU memory: in this process). Raises InputError if there is no GPU to use.
    """
    if use_gpu and not torch.cuda.is_available():
        raise InputError("--use-gpu: there is no GPU")
    block = LAYOUTS[c.cfa].block
    size = (height // block, width // block)
    device = torch.device("cuda" if use_gpu else "cpu")
    generator, planes = _make_generator(c, device), _random_planes(c, size, device)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    difference = None
    for _ in range(rounds):
        for whole in (True, False) if with_whole else (False,):
            seconds[whole].append(_timed(generator, planes, memory_bytes, whole))
    if with_whole:
        expected = _predict(generator, planes, memory_bytes, True)
        predicted = predict(generator, planes, memory_bytes=memory_bytes)
        difference = ((expected - predicted).abs().max() / expected.abs().max()).item()
        del expected, predicted
    peaks = {whole: _peak(c, size, memory_bytes, whole, use_gpu) for whole in {False, with_whole}}
    return PredictTimes(
        megapixels=height * width / 1e6,
        bands_s=min(seconds[False]),
        bands_bytes=peaks[False],
        whole_s=min(seconds[True], default=None),
        whole_bytes=peaks.get(True),
        difference=difference,
    )


def _make_generator(c: GeneratorConfig, device: torch.device) -> Generator:
    torch.manual_seed(0)
    return Generator(c).eval().to(device)


def _random_planes(c: GeneratorConfig, size: tuple[int, int], device: torch.device) -> torch.Tensor:
    return torch.rand(1, len(LAYOUTS[c.cfa].colors), *size, device=device)


@torch.no_grad()
def _predict(generator: Generator, planes: torch.Tensor, memory_bytes: int, whole: bool) -> torch.Tensor | None:
    if whole:
        return generator(planes)
    for _ in predict_bands(generator, planes, memory_bytes=memory_bytes):
        pass  # as enhancement does, which writes each band before it computes the next
    return None


def _timed(generator: Generator, planes: torch.Tensor, memory_bytes: int, whole: bool) -> float:
    start = time.perf_counter()
    _predict(generator, planes, memory_bytes, whole)
    if planes.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _peak(c: GeneratorConfig, size: tuple[int, int], memory_bytes: int, whole: bool, use_gpu: bool) -> int:
    if use_gpu:
        torch.cuda.reset_peak_memory_stats()
        device = torch.device("cuda")
        _predict(_make_generator(c, device), _random_planes(c, size, device), memory_bytes, whole)
        return torch.cuda.max_memory_allocated()
    return peak_bytes(_predict_once, c, size, memory_bytes, whole)


def _predict_once(c: GeneratorConfig, size: tuple[int, int], memory_bytes: int, whole: bool) -> None:
    device = torch.device("cpu")
    _predict(_make_generator(c, device), _random_planes(c, size, device), memory_bytes, whole)


def predict_table(times: list[PredictTimes]) -> str:
    """The measurements as a table, with a summary below."""
    headers = ("bands s", "bands GiB", "whole s", "whole GiB", "speed", "difference")
    lines = [f"{'mosaic':>9} " + " ".join(f"{header:>10}" for header in headers)]
    for t in times:
        whole = "-" if t.whole_s is None else f"{t.whole_s:.1f}"
        whole_gib = "-" if t.whole_bytes is None else f"{t.whole_bytes / 2**30:.2f}"
        speed = "-" if t.relative_speed is None else f"{t.relative_speed:.2f}"
        difference = "-" if t.difference is None else f"{t.difference:.1e}"
        cells = (f"{t.bands_s:.1f}", f"{t.bands_bytes / 2**30:.2f}", whole, whole_gib, speed, difference)
        lines.append(f"{t.megapixels:6.1f} MP " + " ".join(f"{cell:>10}" for cell in cells))
    for t in times:
        if t.relative_speed is not None and t.whole_bytes is not None:
            lines.append(
                f"In bands, {t.megapixels:.0f} megapixels take {t.bands_bytes / t.whole_bytes:.0%} of the memory "
                f"of one pass, at {t.relative_speed:.2f} of its speed."
            )
    return "\n".join(lines)
