"""A mosaic as packed planes and back: Bayer to R, G1, B, G2 at a half, X-Trans to nine planes at a third.

A packed pixel is a square block of sensels: 2x2 of Bayer, 3x3 of X-Trans. Both kinds begin at one phase of their
pattern, whichever the sensor begins at, so that a network meets one geometry.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from lsid_ray.errors import InputError

BAYER_PHASES = ("RGGB", "GRBG", "GBRG", "BGGR")
MAX_RATIO = 300.0  # Chen et al. 2018: 10 s / 0.033 s counts as 300, not 303
Kind = Literal["bayer", "xtrans"]


@dataclass(frozen=True)
class Layout:
    """How one kind of mosaic packs."""

    kind: Kind
    pattern: str
    """The repeating square, row-major, at the phase where packing begins."""
    block: int
    """Sensels along a side of a packed pixel."""
    colors: str
    """Of the planes."""
    sensels: tuple[tuple[tuple[int, int], ...], ...]
    """Row and column in its block of each plane's sensel: for blocks with an even row + column, then for odd ones."""

    @property
    def period(self) -> int:
        """Sensels along a side of the repeating square."""
        return math.isqrt(len(self.pattern))

    @property
    def repeat(self) -> int:
        """Packed pixels along a side of the repeating square."""
        return self.period // self.block


BAYER = Layout("bayer", "RGGB", 2, "RGBG", (((0, 0), (0, 1), (1, 1), (1, 0)),))
# The order of planes is SID's (cchen156, train_Fuji.py). Shifted by a block each way the pattern is the same, and
# so it is, but for a shift, mirrored or transposed: 18 phases are all there are.
XTRANS = Layout(
    "xtrans",
    "RBGBRGGGRGGBGGBGGRBRGRBGGGBGGRGGRGGB",
    3,
    "RGBRBGGGG",
    (
        ((0, 0), (0, 2), (0, 1), (1, 2), (2, 2), (1, 0), (1, 1), (2, 0), (2, 1)),
        ((0, 1), (0, 2), (0, 0), (2, 2), (1, 2), (1, 0), (1, 1), (2, 0), (2, 1)),
    ),
)
LAYOUTS: dict[Kind, Layout] = {"bayer": BAYER, "xtrans": XTRANS}


def layout(cfa: str) -> Layout:
    """The layout of a CFA pattern, 4 or 36 letters in any phase. Raises InputError for any other pattern."""
    return _layout_and_phase(cfa)[0]


@lru_cache
def _layout_and_phase(cfa: str) -> tuple[Layout, int, int]:
    """The layout, and the rows and columns to add above and before for the mosaic to begin at its phase."""
    for found in LAYOUTS.values():
        if len(found.pattern) == len(cfa):
            square, wanted = _square(cfa), _square(found.pattern)
            shifts = sorted(np.ndindex(found.period, found.period), key=sum)
            for top, left in shifts:
                if (np.roll(square, (top, left), (0, 1)) == wanted).all():
                    return found, top, left
    expected = f"{', '.join(BAYER_PHASES)} or X-Trans's 36 letters"
    raise InputError(f"CFA pattern {cfa!r} cannot be packed: expected one of {expected}")


def _square(pattern: str) -> np.ndarray:
    period = math.isqrt(len(pattern))
    return np.array(list(pattern)).reshape(period, period)


def phase_padding(cfa: str, height: int, width: int) -> tuple[int, int, int, int]:
    """Rows and columns (top, bottom, left, right) that make a mosaic begin at its layout's phase in whole blocks.

    Each is 0 or 1 for Bayer, 0 to 5 for X-Trans. `height` and `width` are the mosaic's, in sensels, at least a
    period of the pattern. Raises InputError for another pattern (see `layout`) or size.
    """
    found, top, left = _layout_and_phase(cfa)
    if min(height, width) < found.period:
        raise InputError(
            f"a mosaic of {height}x{width} pixels cannot be packed: expected at least {found.period}x{found.period}"
        )
    return top, -(height + top) % found.block, left, -(width + left) % found.block


class Packed:
    """The planes of a uint16 mosaic, packed where they are asked for: `Packed(mosaic, cfa)[:, 0:8, 4:12]`.

    A window at a time stays in the processor's cache. `offset` is added to every sensel, modulo 2**16; the planes of
    a window are uint8 when all of them then fit. See `pack`.
    """

    def __init__(self, mosaic: np.ndarray, cfa: str, offset: int = 0):
        self.layout, self.offset = layout(cfa), np.uint16(offset)
        self.mosaic = _extended(mosaic, phase_padding(cfa, *mosaic.shape), self.layout.period)
        height, width = (side // self.layout.block for side in self.mosaic.shape)
        self.shape = (len(self.layout.colors), height, width)

    def __getitem__(self, window: tuple[slice, slice, slice]) -> np.ndarray:
        """All planes between two rows and two columns."""
        (top, bottom), (left, right) = ((side.start, side.stop) for side in window[1:])
        y, x = (first - first % self.layout.repeat for first in (top, left))  # where the pattern repeats
        block = self.layout.block
        mosaic = self.mosaic[block * y : block * bottom, block * x : block * right] + self.offset
        dark = np.bitwise_or.reduce(mosaic, axis=None) < 256
        planes = np.empty((self.shape[0], bottom - y, right - x), np.uint8 if dark else np.uint16)
        _pack(self.layout, mosaic, planes)
        return planes[:, top - y :, left - x :]


def pack(mosaic: np.ndarray, cfa: str) -> np.ndarray:
    """(H, W) mosaic of any dtype -> (C, h, w) planes of the same dtype, h and w in whole blocks.

    Bayer: C = 4: R, G1 (green on red's row), B, G2. X-Trans: C = 9: R, G, B, R, B and four G, as SID does it for
    Fuji. A mosaic that begins at another phase or ends within a block is first extended by `phase_padding` with
    the sensels a period of the pattern away, which have the colours that are needed: so none is lost or read
    twice. Raises InputError as `phase_padding` does.
    """
    found = layout(cfa)
    mosaic = _extended(mosaic, phase_padding(cfa, *mosaic.shape), found.period)
    planes = np.empty((len(found.colors), *(side // found.block for side in mosaic.shape)), mosaic.dtype)
    _pack(found, mosaic, planes)
    return planes


def _pack(found: Layout, mosaic: np.ndarray, planes: np.ndarray) -> None:
    if found is BAYER and mosaic.dtype == np.uint16 and mosaic.strides[1] == 2:
        twos = mosaic.view("<u4")  # two neighbours as one number: a quarter faster than every second sensel
        for left, right, rows in ((0, 1, twos[0::2]), (3, 2, twos[1::2])):
            np.copyto(planes[left], rows, casting="unsafe")  # the lower bits
            np.copyto(planes[right], rows >> 16, casting="unsafe")
        return
    for plane, there, here in _slices(found):
        planes[plane][there] = mosaic[here]


def unpack(planes: np.ndarray, cfa: str, height: int, width: int) -> np.ndarray:
    """(C, h, w) planes -> the (height, width) mosaic they were packed from, exactly; same dtype.

    Raises InputError as `phase_padding` does, or when the planes are not those of such a mosaic.
    """
    found = layout(cfa)
    top, bottom, left, right = phase_padding(cfa, height, width)
    whole = (height + top + bottom, width + left + right)
    expected = (len(found.colors), whole[0] // found.block, whole[1] // found.block)
    if planes.shape != expected:
        raise InputError(f"planes of shape {planes.shape}: a {height}x{width} {cfa} mosaic packs to {expected}")
    mosaic = np.empty(whole, planes.dtype)
    for plane, there, here in _slices(found):
        mosaic[here] = planes[plane][there]
    return mosaic[top : top + height, left : left + width].copy()


def pack_black(black: tuple[float, ...], cfa: str) -> np.ndarray:
    """Black levels per CFA position (DN, row-major) -> (C, r, r) float64 in plane order.

    They repeat every r packed pixels: 1 for Bayer, 2 for X-Trans.
    """
    found, top, left = _layout_and_phase(cfa)
    square = np.asarray(black, np.float64).reshape(found.period, found.period)
    return pack(np.roll(square, (top, left), (0, 1)), found.pattern)


def black_mosaic(black: tuple[float, ...], height: int, width: int) -> np.ndarray:
    """Black levels per CFA position (DN, row-major, 4 or 36) -> (height, width) float32 in DN."""
    period = math.isqrt(len(black))
    square = np.asarray(black, np.float32).reshape(period, period)
    return np.tile(square, (-(-height // period), -(-width // period)))[:height, :width]


def amplification_ratio(long_s: float, short_s: float) -> float:
    """By how much a short exposure is to be amplified: min(long_s / short_s, 300), as SID counts.

    Both in seconds. Raises InputError unless 0 < short_s <= long_s, both finite.
    """
    if not (math.isfinite(long_s) and 0 < short_s <= long_s):
        raise InputError(f"exposures of {long_s} s (long) and {short_s} s (short): expected 0 < short <= long")
    return min(long_s / short_s, MAX_RATIO)


def _extended(mosaic: np.ndarray, padding: tuple[int, int, int, int], period: int) -> np.ndarray:
    """The mosaic with rows and columns added at its sides, each a copy of the one a period further in."""
    for axis, (before, after) in enumerate((padding[:2], padding[2:])):
        if before or after:
            size = mosaic.shape[axis]
            inside = [*range(period - before, period), *range(size), *range(size - period, size - period + after)]
            mosaic = mosaic.take(inside, axis)
    return mosaic


def _slices(found: Layout) -> list[tuple[int, tuple[slice, slice], tuple[slice, slice]]]:
    """For each plane and each block of the repeating square: its pixels in the plane and in the mosaic."""
    result = []
    for row, column in np.ndindex(found.repeat, found.repeat):
        there = (slice(row, None, found.repeat), slice(column, None, found.repeat))
        for plane, (y, x) in enumerate(found.sensels[(row + column) % len(found.sensels)]):
            here = (
                slice(found.block * row + y, None, found.period),
                slice(found.block * column + x, None, found.period),
            )
            result.append((plane, there, here))
    return result
