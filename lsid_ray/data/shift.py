"""What a measured shift between a short and its long exposure means for their pair."""

from dataclasses import replace

import numpy as np

from lsid_ray.data.index import Pair

MAX_SHIFT = 1.0  # pixels
Shift = tuple[float, float]
"""Rows and columns, in sensels, by which the short exposure lies below and to the right of the long one."""


def is_moved(shift: Shift | None) -> bool:
    """Whether a shift is known and longer than MAX_SHIFT."""
    return shift is not None and float(np.hypot(*shift)) > MAX_SHIFT


def format_shift(shift: Shift) -> str:
    """Rows and columns: "+1.5, -0.3"."""
    return f"{shift[0]:+.1f}, {shift[1]:+.1f}"


def with_shift(pair: Pair, shift: Shift | None) -> Pair:
    """The pair with a measured shift; if it moved and is for test, it is left out of the scores."""
    return replace(pair, shift=shift, misaligned=pair.misaligned or (pair.split == "test" and is_moved(shift)))


def with_shift_of(pair: Pair, previous: Pair | None) -> Pair:
    """The pair with the shift that was measured before, if both of its files are still the same."""
    if previous is None or previous.shift is None:
        return pair
    files = [(each.short.shard.xxh128, each.long.shard.xxh128) for each in (pair, previous)]
    return with_shift(pair, previous.shift) if files[0] == files[1] else pair
