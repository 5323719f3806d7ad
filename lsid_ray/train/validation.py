"""Validation of a run on full frames: in line, by its workers, or apart, while they train (see `train.validator`)."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import ray
import torch
import torch.distributed as dist

from lsid_ray import storage
from lsid_ray.config.schema import Experiment
from lsid_ray.data.index import Pair, Shards, open_shards
from lsid_ray.errors import InputError
from lsid_ray.evaluate.score import Measure, validate
from lsid_ray.evaluate.validation_image import validation_image
from lsid_ray.model.generator import Generator
from lsid_ray.train.collective import from_first, gather
from lsid_ray.train.events import Event
from lsid_ray.train.heartbeat import VALIDATING, WAITING_FOR_VALIDATION, Heartbeat
from lsid_ray.train.run_folder import AWAITS_VALIDATION, saved_checkpoints

POLL_S, WAIT_LINE_S = 0.2, 10.0


class WorkerValidation:
    """A worker's side."""

    def __init__(
        self, experiment: Experiment, options: dict[str, Any], world_size: int, device: torch.device, beat: Heartbeat
    ):
        """options: of `train.loop.training_loop`."""
        self.apart, self.events, self.heartbeat = options["validates_apart"], options["events"], beat
        self.folder = storage.to_path(options["folder"])
        self.rank, self.world_size, self.device = beat.rank, world_size, device
        if not self.apart:
            self.shards = open_shards(options["shards"], ["validation"], experiment.cluster.cache_gb)
            self.measures = ray.get(options["measures"]).load(device)

    def scores(self, generator: Generator, metrics: dict[str, Any]) -> dict[str, Any]:
        """The scores of a checkpoint with these metrics (step, epoch), or the mark that they are still to come.

        All workers must call it at the same step, as `wait`.
        """
        if self.apart:
            return {AWAITS_VALIDATION: True}
        self.heartbeat.begin(VALIDATING, metrics["step"])
        start = time.perf_counter()
        if self.world_size > 1:
            for buffer in generator.buffers():
                dist.broadcast(buffer, src=0)
        generator.eval()
        pairs = self.shards.pairs
        first, last = (len(pairs) * each // self.world_size for each in (self.rank, self.rank + 1))
        rows = []
        for row, pixels in score_pairs(
            generator, self.shards, pairs[first:last], self.device, self.measures, first == 0
        ):
            rows.append(row)
            self.heartbeat.go_on()
            if pixels is not None:
                self.events.put.remote(image_event(metrics, pairs[0], pixels))
        scores = mean_scores(gather(rows, self.world_size))
        if self.rank == 0:
            self.events.put.remote(validation_event(metrics | scores, start))
        return scores

    def wait(self, step: int) -> None:
        """Wait until no checkpoint before this step awaits its validation, or the run is to end."""
        if not self.apart:
            return
        self.heartbeat.begin(WAITING_FOR_VALIDATION, step)
        wait = Wait()
        while (awaited := from_first(self._awaited(step), self.world_size)) is not None:
            if self.rank == 0 and (event := wait.event(awaited)):
                self.events.put.remote(event)
            self.heartbeat.go_on()
            time.sleep(POLL_S)

    def _awaited(self, step: int) -> int | None:
        """On rank 0: the first step before this one whose checkpoint awaits its validation; None if there is none."""
        if self.rank or self.heartbeat.stopping:
            return None
        try:
            steps = [each.step for each in saved_checkpoints(self.folder) if each.awaits_validation]
        except (OSError, InputError):  # a store that fails now is asked again
            return step
        return next((each for each in steps if each < step), None)


class Wait:
    """Says now and then that a validation is waited for."""

    def __init__(self) -> None:
        self.start, self.shown = time.monotonic(), -math.inf

    def event(self, step: int) -> Event | None:
        """A "waiting" event, at the first call and then every WAIT_LINE_S; else None. step: of the checkpoint."""
        now = time.monotonic()
        if now - self.shown < WAIT_LINE_S:
            return None
        self.shown = now
        return {"kind": "waiting", "message": f"the validation of step {step}", "seconds": now - self.start}


def score_pairs(
    generator: Generator,
    shards: Shards,
    pairs: Sequence[Pair],
    device: torch.device,
    measures: Mapping[str, Measure],
    with_image: bool,
) -> Iterator[tuple[dict[str, float], np.ndarray | None]]:
    """The scores of each pair, and the image of the first if `with_image`."""
    for scores, image, target in validate(generator, shards, pairs, device, measures):
        pixels = None
        if with_image:
            pair, with_image = pairs[0], False
            pixels = validation_image(generator, shards.planes(pair), pair.short, pair.ratio, image, target)
        yield scores, pixels


def mean_scores(rows: list[dict[str, float]]) -> dict[str, Any]:
    return {"frames": len(rows)} | {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def validation_event(metrics: dict[str, Any], start: float) -> Event:
    return {"kind": "validation", **metrics, "seconds": time.perf_counter() - start}


def image_event(metrics: dict[str, Any], pair: Pair, pixels: np.ndarray) -> Event:
    return {"kind": "image", "step": metrics["step"], "name": pair.name, "pixels": pixels}
