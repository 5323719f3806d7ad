"""Which crop of which pair, in which order: a function of (seed, epoch), the same for any number of workers."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lsid_ray import config
from lsid_ray.data.shards import PackedPair
from lsid_ray.errors import InputError


@dataclass(frozen=True)
class Sample:
    """One crop of one pair, in packed pixels of the short.

    One pixel more than the crop is read on each side, so that flips can keep the phase of the CFA.
    """

    pair: int
    y: int
    x: int
    flip_rows: bool
    flip_columns: bool
    transpose: bool


@dataclass(frozen=True)
class Schedule:
    """All samples of a run, numbered from 0: epoch by epoch, each a permutation of its draws."""

    pairs: tuple[PackedPair, ...]
    training: config.Training

    def __post_init__(self) -> None:
        side = self.training.crop + 1
        for pair in self.pairs:
            (y0, y1), (x0, x1) = _origins(pair, side)
            if y1 < y0 or x1 < x0:
                height, width = pair.short.shard.shape[1:]
                top, bottom, left, right = pair.short.padding
                raise InputError(
                    f"--training.crop is {self.training.crop}: {pair.name} packs to {height}x{width}, "
                    f"expected at least {side + top + bottom}x{side + left + right}"
                )

    @cached_property
    def _draws(self) -> list[list[int]]:
        """For each sample of an epoch the pairs that it is drawn from."""
        if self.training.epoch_draw == "pairs":
            draws = [[i] for i in range(len(self.pairs))]
        else:
            scenes: dict[str, list[int]] = {}
            for i, pair in enumerate(self.pairs):
                scenes.setdefault(pair.scene, [])
                if pair.frame == 0:
                    scenes[pair.scene].append(i)
            draws = [first or [i for i, p in enumerate(self.pairs) if p.scene == s] for s, first in scenes.items()]
        return draws * self.training.crops_per_pair

    @property
    def steps_per_epoch(self) -> int:
        """Steps of batch_size; the last is filled up from the start of the epoch's permutation."""
        return -(-len(self._draws) // self.training.batch_size)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.steps_per_epoch * self.training.epochs

    def order(self, epoch: int) -> np.ndarray:
        """Pair of each of the epoch's samples: (steps_per_epoch * batch_size,) int64."""
        random = np.random.default_rng([self.training.seed, 0, epoch])
        drawn = np.array([draw[random.integers(len(draw))] for draw in self._draws])
        return np.resize(random.permutation(drawn), self.steps_per_epoch * self.training.batch_size)

    def samples(self, start: int, stop: int) -> list[Sample]:
        """Samples number `start` to `stop` of the run."""
        length = self.steps_per_epoch * self.training.batch_size
        orders = {epoch: self.order(epoch) for epoch in range(start // length, -(-stop // length))}
        return [self._sample(number, orders[number // length][number % length]) for number in range(start, stop)]

    def _sample(self, number: int, pair: int) -> Sample:
        random = np.random.default_rng([self.training.seed, 1, number])
        (y0, y1), (x0, x1) = _origins(self.pairs[pair], self.training.crop + 1)
        flip = self.training.flip_probability
        return Sample(
            pair=int(pair),
            y=int(random.integers(y0, y1 + 1)),
            x=int(random.integers(x0, x1 + 1)),
            flip_rows=bool(random.random() < flip),
            flip_columns=bool(random.random() < flip),
            transpose=bool(random.random() < self.training.transpose_probability),
        )


def _origins(pair: PackedPair, side: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """First and last y, and x, of windows of `side` packed pixels that hold no pixel added by packing."""
    _, height, width = pair.short.shard.shape
    top, bottom, left, right = pair.short.padding
    return (top, height - bottom - side), (left, width - right - side)
