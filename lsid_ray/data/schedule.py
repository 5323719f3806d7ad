"""Which crop of which pair, in which order: a function of (seed, epoch), the same for any number of workers."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lsid_ray import config
from lsid_ray.data.shards import PackedPair
from lsid_ray.errors import InputError
from lsid_ray.raw.mosaic import Layout, layout


@dataclass(frozen=True)
class Sample:
    """One crop of one pair, in packed pixels of the short, from where the CFA's repeat begins.

    A repeat more than the crop is read on each side, so that flips can keep the phase of the CFA.
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
        first = self.pairs[0]
        for pair in self.pairs:
            if layout(pair.short.cfa) != self.layout:
                raise InputError(
                    f"{pair.name} is {layout(pair.short.cfa).kind} and {first.name} is {self.layout.kind}: "
                    "expected one kind of sensor in a run"
                )
            if not all(_origins(pair, self.side)):
                height, width = pair.short.shard.shape[1:]
                (above, below), (before, after) = _added(pair)
                raise InputError(
                    f"--training.crop is {self.training.crop}: {pair.name} packs to {height}x{width}, "
                    f"expected at least {above + self.side + below}x{before + self.side + after}"
                )

    @property
    def layout(self) -> Layout:
        """How the pairs' mosaics are packed."""
        return layout(self.pairs[0].short.cfa)

    @property
    def side(self) -> int:
        """Of what is read for a sample, in packed pixels."""
        return self.training.crop + self.layout.repeat

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

    def samples(self, numbers: Iterable[int]) -> list[Sample]:
        """Samples of the run by their numbers, from 0."""
        length = self.steps_per_epoch * self.training.batch_size
        places = [divmod(int(number), length) for number in numbers]
        orders = {epoch: self.order(epoch) for epoch in {epoch for epoch, _ in places}}
        return [self._sample(epoch * length + place, orders[epoch][place]) for epoch, place in places]

    def _sample(self, number: int, pair: int) -> Sample:
        random = np.random.default_rng([self.training.seed, 1, number])
        rows, columns = _origins(self.pairs[pair], self.side)
        flip = self.training.flip_probability
        return Sample(
            pair=int(pair),
            y=rows[random.integers(len(rows))],
            x=columns[random.integers(len(columns))],
            flip_rows=bool(random.random() < flip),
            flip_columns=bool(random.random() < flip),
            transpose=bool(random.random() < self.training.transpose_probability),
        )


def _origins(pair: PackedPair, side: int) -> tuple[range, range]:
    """Rows and columns where windows of `side` packed pixels may begin that hold no sensel added by packing."""
    _, height, width = pair.short.shard.shape
    (above, below), (before, after) = _added(pair)
    step = layout(pair.short.cfa).repeat
    return range(above, height - below - side + 1, step), range(before, width - after - side + 1, step)


def _added(pair: PackedPair) -> tuple[tuple[int, int], tuple[int, int]]:
    """Packed pixels at each side that hold sensels added by packing; in front whole repeats of the CFA."""
    found = layout(pair.short.cfa)
    top, bottom, left, right = pair.short.padding
    above, before = (-(-added // found.period) * found.repeat for added in (top, left))
    return (above, bool(bottom)), (before, bool(right))
