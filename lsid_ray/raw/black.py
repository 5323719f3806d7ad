"""Black levels as a DNG's tags have them.

LibRaw rounds fractions down, of a pattern larger than 2x2 it takes the least, of levels by row and column the mean; and
if the visible area begins at an odd row or column, it moves its corner but not the pattern (LibRaw 0.22). All of it is
visible once a dark exposure is amplified. Source: DNG 1.4.0.0, BlackLevel, BlackLevelRepeatDim, BlackLevelDeltaH and V.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tifffile

from lsid_ray.errors import InputError
from lsid_ray.raw.tiff import active_area, tag_values

REPEAT_DIM, BLACK_LEVEL, DELTA_H, DELTA_V = 50713, 50714, 50715, 50716
TOLERANCE = 1e-4  # DN; of numbers that tags hold as fractions
FINE_WHITE = 15000  # DN; half of one, amplified 300 times, is 1% of it


@dataclass(frozen=True)
class BlackLevels:
    """The black level of the sensel at (y, x) of the visible area: pattern[y % h, x % w] + rows[y] + columns[x], DN."""

    pattern: np.ndarray
    """(h, w) float64."""
    rows: np.ndarray
    """(H,), or (1,) if all are the same."""
    columns: np.ndarray

    def of_cfa(self, period: int) -> np.ndarray | None:
        """The levels by position in a CFA of this period: (period, period). None if they depend on more than that."""
        height, width = self.pattern.shape
        if self.rows.size > 1 or self.columns.size > 1 or period % height or period % width:
            return None
        return np.tile(self.pattern, (period // height, period // width)) + self.rows[0] + self.columns[0]

    def of_mosaic(self, height: int, width: int) -> np.ndarray:
        """The levels of all sensels: (height, width) float64."""
        h, w = self.pattern.shape
        levels = np.tile(self.pattern, (-(-height // h), -(-width // w)))[:height, :width]
        return levels + self.rows.reshape(-1, 1) + self.columns


class LevelledMosaic(NamedTuple):
    """A mosaic whose black levels depend on nothing but the position in the CFA."""

    mosaic: np.ndarray
    """(H, W) uint16, DN."""
    black: tuple[float, ...]
    """DN, by CFA position."""
    white: float


def levelled(
    mosaic: np.ndarray, levels: BlackLevels | None, libraws: tuple[float, ...], white: float
) -> LevelledMosaic:
    """The visible mosaic with its black levels by CFA position, those of LibRaw if there are no others.

    If levels depend on more than that position, the difference is taken from the mosaic. Where that is no whole number,
    all levels of fewer than 14 bits are multiplied: rounded, they would show as stripes in an amplified exposure.
    """
    if levels is None:
        return LevelledMosaic(mosaic, libraws, white)
    period = math.isqrt(len(libraws))
    if (black := levels.of_cfa(period)) is not None and black.min() >= 0:
        return LevelledMosaic(mosaic, tuple(black.ravel().tolist()), white)
    exact = levels.of_mosaic(*mosaic.shape)
    first = exact[:period, :period]
    mean = np.array([[exact[y::period, x::period].mean() for x in range(period)] for y in range(period)])
    black = np.maximum(first + np.rint(mean - first), first % 1)  # a whole number from the first, and not below 0
    excess = exact - np.tile(black, [-(-side // period) for side in mosaic.shape])[: mosaic.shape[0], : mosaic.shape[1]]
    scale = 1 if np.abs(excess - np.rint(excess)).max() < TOLERANCE else math.ceil(FINE_WHITE / white)
    image = np.rint(scale * (mosaic - excess)).clip(0, 65535).astype(np.uint16)
    return LevelledMosaic(image, tuple((scale * black).ravel().tolist()), scale * white)


def dng_black_levels(path: Path, page: tifffile.TiffPage, visible: tuple[int, int, int, int]) -> BlackLevels | None:
    """The levels of the raw page of a DNG; None if it has none.

    visible: first row and column, and height and width, of LibRaw's visible area.
    Raises: InputError if their number is none that DNG allows.
    """
    if not {BLACK_LEVEL, DELTA_H, DELTA_V} & set(page.tags.keys()):
        return None
    repeat = tuple(tag_values(page, REPEAT_DIM).astype(int).tolist()) if REPEAT_DIM in page.tags else (1, 1)
    if len(repeat) != 2 or min(repeat) < 1:
        raise InputError(f"{path}: its BlackLevelRepeatDim is {repeat}; expected two numbers above 0")
    values = tag_values(page, BLACK_LEVEL) if BLACK_LEVEL in page.tags else np.zeros(1)
    if values.size == 1:
        values = np.repeat(values, np.prod(repeat))
    if values.size != np.prod(repeat):
        raise InputError(
            f"{path}: its DNG tags have {values.size} black levels for a pattern of {repeat[0]}x{repeat[1]}: expected "
            f"{np.prod(repeat)}"
        )
    top, left, height, width = visible
    first_row, first_column = active_area(page)
    y, x = top - first_row, left - first_column  # DNG counts from the active area's corner
    pattern = np.roll(values.reshape(repeat), (-y, -x), (0, 1))
    levels = BlackLevels(pattern, _deltas(page, DELTA_V, y, height), _deltas(page, DELTA_H, x, width))
    if not all(np.isfinite(part).all() for part in (levels.pattern, levels.rows, levels.columns)):
        raise InputError(f"{path}: not all of its black levels are numbers; its DNG tags may be damaged")
    return levels


def _deltas(page: tifffile.TiffPage, code: int, first: int, count: int) -> np.ndarray:
    """Of `count` rows or columns from the `first` one; the last is repeated if there are too few."""
    if code not in page.tags:
        return np.zeros(1)
    values = tag_values(page, code)
    return values[np.clip(np.arange(first, first + count), 0, values.size - 1)]
