"""Which crop of which pair, in which order: a function of (seed, epoch), the same for any number of workers."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lsid_ray.config.schema import TrainingConfig
from lsid_ray.data.index import Pair
from lsid_ray.errors import InputError
from lsid_ray.raw.mosaic import Layout, layout_of


@dataclass(frozen=True)
class Crop:
    """The crop of one sample: a window of a pair, in packed pixels of the short exposure, and its flips.

    The window is one repeat of the CFA larger than the training crop, so that flips can keep the phase of the CFA.
    """

    pair: int
    """Index into the pairs of the schedule."""
    y: int
    """First row of the window; like x, at the beginning of a repeat of the CFA."""
    x: int
    flip_rows: bool
    flip_columns: bool
    transpose: bool


@dataclass(frozen=True)
class Schedule:
    """All samples of a run, numbered from 0; each epoch is a permutation of the samples drawn for it."""

    pairs: tuple[Pair, ...]
    training: TrainingConfig

    def __post_init__(self) -> None:
        first, side = self.pairs[0], self.window_side
        for pair in self.pairs:
            if layout_of(pair.short.cfa) != self.layout:
                raise InputError(
                    f"{pair.name} is {layout_of(pair.short.cfa).kind} and {first.name} is {self.layout.kind}: "
                    "expected the same kind of sensor for all pairs"
                )
            if not all(_window_origins(pair, side)):
                height, width = pair.short.shard.shape[1:]
                (top, bottom), (left, right) = _margins(pair)
                raise InputError(
                    f"--training.crop is {self.training.crop}: {pair.name} packs to {height}x{width}, "
                    f"expected at least {top + side + bottom}x{left + side + right}"
                )

    @property
    def layout(self) -> Layout:
        """The mosaic layout that all pairs share."""
        return layout_of(self.pairs[0].short.cfa)

    @property
    def window_side(self) -> int:
        """Side of the window read for each sample, in packed pixels: the crop and one repeat of the CFA."""
        return self.training.crop + self.layout.repeat

    @cached_property
    def _candidates(self) -> list[list[int]]:
        """For each sample of an epoch, the pairs from which one is drawn."""
        if self.training.epoch_draw == "pairs":
            candidates = [[i] for i in range(len(self.pairs))]
        else:
            scenes: dict[str, list[int]] = {}
            for i, pair in enumerate(self.pairs):
                scenes.setdefault(pair.scene, [])
                if pair.frame == 0:
                    scenes[pair.scene].append(i)
            candidates = [first or [i for i, p in enumerate(self.pairs) if p.scene == s] for s, first in scenes.items()]
        return candidates * self.training.crops_per_pair

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch; the last batch is filled up from the start of the epoch's permutation."""
        return -(-len(self._candidates) // self.training.batch_size)

    @property
    def total_steps(self) -> int:
        """Steps of the run: all epochs."""
        return self.steps_per_epoch * self.training.epochs

    def order(self, epoch: int) -> np.ndarray:
        """Index of the pair of each sample of one epoch: (steps_per_epoch * batch_size,) int64, read-only."""
        if epoch not in self._orders:
            random = np.random.default_rng([self.training.seed, 0, epoch])
            drawn = np.array([pairs[random.integers(len(pairs))] for pairs in self._candidates])
            order = np.resize(random.permutation(drawn), self.steps_per_epoch * self.training.batch_size)
            order.flags.writeable = False
            if len(self._orders) > 1:  # a block may span the end of an epoch
                self._orders.pop(min(self._orders))
            self._orders[epoch] = order
        return self._orders[epoch]

    @cached_property
    def _orders(self) -> dict[int, np.ndarray]:
        """The latest orders by epoch, which many blocks ask for."""
        return {}

    def samples(self, numbers: Iterable[int]) -> list[Crop]:
        """The crops with these sample numbers, counted from 0 over the run."""
        samples_per_epoch = self.steps_per_epoch * self.training.batch_size
        positions = [divmod(int(number), samples_per_epoch) for number in numbers]
        orders = {epoch: self.order(epoch) for epoch in {epoch for epoch, _ in positions}}
        return [self._crop(epoch * samples_per_epoch + i, orders[epoch][i]) for epoch, i in positions]

    def _crop(self, number: int, pair: int) -> Crop:
        random = np.random.default_rng([self.training.seed, 1, number])
        rows, columns = _window_origins(self.pairs[pair], self.window_side)
        flip = self.training.flip_probability
        return Crop(
            pair=int(pair),
            y=rows[random.integers(len(rows))],
            x=columns[random.integers(len(columns))],
            flip_rows=bool(random.random() < flip),
            flip_columns=bool(random.random() < flip),
            transpose=bool(random.random() < self.training.transpose_probability),
        )


def _window_origins(pair: Pair, side: int) -> tuple[range, range]:
    """First rows and columns of all windows of `side` packed pixels that contain no padding."""
    _, height, width = pair.short.shard.shape
    (top, bottom), (left, right) = _margins(pair)
    step = layout_of(pair.short.cfa).repeat
    return range(top, height - bottom - side + 1, step), range(left, width - right - side + 1, step)


def _margins(pair: Pair) -> tuple[tuple[int, int], tuple[int, int]]:
    """Packed pixels with padding at each edge: (top, bottom), (left, right); top and left in whole CFA repeats."""
    layout = layout_of(pair.short.cfa)
    top, bottom, left, right = pair.short.padding
    top, left = (-(-sensels // layout.period) * layout.repeat for sensels in (top, left))
    return (top, bool(bottom)), (left, bool(right))
