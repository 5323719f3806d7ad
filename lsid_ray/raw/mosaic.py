"""Packing a mosaic into planes, and unpacking: Bayer to 4 planes at half size, X-Trans to 9 at a third of the size.

A packed pixel is a square block of sensels: 2x2 for Bayer, 3x3 for X-Trans. The planes always begin at the same phase
of the pattern, whatever the phase of the sensor, so that a network sees one geometry.
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
    """How one kind of mosaic is packed."""

    kind: Kind
    pattern: str
    """The repeating pattern, row-major, at the phase where packing begins."""
    block: int
    """Side of a packed pixel, in sensels."""
    colors: str
    """Color of each plane."""
    sensels: tuple[tuple[tuple[int, int], ...], ...]
    """(row, column) within the block of each plane's sensel: for blocks with an even row + column, then for odd."""

    @property
    def period(self) -> int:
        """Side of the repeating pattern, in sensels."""
        return math.isqrt(len(self.pattern))

    @property
    def repeat(self) -> int:
        """Side of the repeating pattern, in packed pixels."""
        return self.period // self.block


BAYER = Layout("bayer", "RGGB", 2, "RGBG", (((0, 0), (0, 1), (1, 1), (1, 0)),))
# The planes are in SID's order (cchen156, train_Fuji.py). A shift by one block along both axes gives the same pattern,
# and a mirrored or transposed pattern is a shifted one, so there are only 18 phases.
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


def layout_of(cfa: str) -> Layout:
    """Return the layout of a CFA pattern: 4 or 36 letters, any phase. Raises InputError for any other pattern."""
    return _layout_and_phase(cfa)[0]


@lru_cache
def _layout_and_phase(cfa: str) -> tuple[Layout, int, int]:
    """The layout, and how many rows above and columns at the left to add so that a mosaic begins at its phase."""
    for layout in LAYOUTS.values():
        if len(layout.pattern) == len(cfa):
            pattern, target = _as_square(cfa), _as_square(layout.pattern)
            shifts = sorted(np.ndindex(layout.period, layout.period), key=sum)
            for top, left in shifts:
                if (np.roll(pattern, (top, left), (0, 1)) == target).all():
                    return layout, top, left
    expected = f"{', '.join(BAYER_PHASES)} or X-Trans's 36 letters"
    raise InputError(f"CFA pattern {cfa!r} cannot be packed: expected one of {expected}")


def _as_square(pattern: str) -> np.ndarray:
    period = math.isqrt(len(pattern))
    return np.array(list(pattern)).reshape(period, period)


def phase_padding(cfa: str, height: int, width: int) -> tuple[int, int, int, int]:
    """Padding (top, bottom, left, right) in sensels that makes a mosaic begin at its layout's phase, in whole blocks.

    Each is 0 or 1 for Bayer, 0 to 5 for X-Trans. `height` and `width` are those of the mosaic in sensels.
    Raises InputError for an unknown pattern, or if the mosaic is smaller than a period of the pattern.
    """
    layout, top, left = _layout_and_phase(cfa)
    if min(height, width) < layout.period:
        raise InputError(
            f"a mosaic of {height}x{width} sensels cannot be packed: expected at least {layout.period}x{layout.period}"
        )
    return top, -(height + top) % layout.block, left, -(width + left) % layout.block


class PackedView:
    """The packed planes of a uint16 mosaic, each window packed lazily: `PackedView(mosaic, cfa)[:, 0:8, 4:12]`.

    One window fits in the CPU cache. `offset` is added to every sensel, modulo 2**16; if all sums fit in 8 bits, the
    window's planes are uint8. See `pack`.
    """

    def __init__(self, mosaic: np.ndarray, cfa: str, offset: int = 0):
        self.layout, self.offset = layout_of(cfa), np.uint16(offset)
        self.mosaic = _pad(mosaic, phase_padding(cfa, *mosaic.shape), self.layout.period)
        height, width = (side // self.layout.block for side in self.mosaic.shape)
        self.shape = (len(self.layout.colors), height, width)

    def __getitem__(self, window: tuple[slice, slice, slice]) -> np.ndarray:
        """Pack a window: all planes, between two rows and two columns."""
        (top, bottom), (left, right) = ((side.start, side.stop) for side in window[1:])
        # Round down to where the pattern repeats.
        y, x = (start - start % self.layout.repeat for start in (top, left))
        block = self.layout.block
        mosaic = self.mosaic[block * y : block * bottom, block * x : block * right] + self.offset
        fits_8_bits = np.bitwise_or.reduce(mosaic, axis=None) < 256
        planes = np.empty((self.shape[0], bottom - y, right - x), np.uint8 if fits_8_bits else np.uint16)
        _pack_into(planes, mosaic, self.layout)
        return planes[:, top - y :, left - x :]


def pack(mosaic: np.ndarray, cfa: str) -> np.ndarray:
    """Pack an (H, W) mosaic of any dtype into (C, h, w) planes of the same dtype, one packed pixel per block.

    Bayer: C = 4: R, G1 (green on red's row), B, G2. X-Trans: C = 9: R, G, B, R, B and four G, as SID packs Fuji.
    A mosaic that begins at another phase or ends within a block is first padded by `phase_padding`; each added sensel
    copies the one a period of the pattern away, which has the same color, so that no sensel is lost or used for
    another color. Raises InputError as `phase_padding` does.
    """
    layout = layout_of(cfa)
    mosaic = _pad(mosaic, phase_padding(cfa, *mosaic.shape), layout.period)
    planes = np.empty((len(layout.colors), *(side // layout.block for side in mosaic.shape)), mosaic.dtype)
    _pack_into(planes, mosaic, layout)
    return planes


def _pack_into(planes: np.ndarray, mosaic: np.ndarray, layout: Layout) -> None:
    if layout is BAYER and mosaic.dtype == np.uint16 and mosaic.strides[1] == 2:
        pairs = mosaic.view("<u4")  # two neighbors as one integer: 25% faster than reading with a stride of 2
        for left, right, rows in ((0, 1, pairs[0::2]), (3, 2, pairs[1::2])):
            np.copyto(planes[left], rows, casting="unsafe")  # the lower bits
            np.copyto(planes[right], rows >> 16, casting="unsafe")
        return
    for plane, plane_slices, mosaic_slices in _slices(layout):
        planes[plane][plane_slices] = mosaic[mosaic_slices]


def unpack(planes: np.ndarray, cfa: str, height: int, width: int) -> np.ndarray:
    """Return exactly the (height, width) mosaic that (C, h, w) planes were packed from; same dtype.

    Raises InputError as `phase_padding` does, or if the planes have another shape than such a mosaic's.
    """
    layout = layout_of(cfa)
    top, bottom, left, right = phase_padding(cfa, height, width)
    padded = (height + top + bottom, width + left + right)
    expected = (len(layout.colors), padded[0] // layout.block, padded[1] // layout.block)
    if planes.shape != expected:
        raise InputError(f"planes of shape {planes.shape}: expected {expected} for a {height}x{width} {cfa} mosaic")
    mosaic = np.empty(padded, planes.dtype)
    for plane, plane_slices, mosaic_slices in _slices(layout):
        mosaic[mosaic_slices] = planes[plane][plane_slices]
    return mosaic[top : top + height, left : left + width].copy()


def pack_black(black: tuple[float, ...], cfa: str) -> np.ndarray:
    """Pack black levels per CFA position (DN, row-major) into (C, r, r) float64 in plane order.

    They repeat every r packed pixels: 1 for Bayer, 2 for X-Trans.
    """
    layout, top, left = _layout_and_phase(cfa)
    levels = np.asarray(black, np.float64).reshape(layout.period, layout.period)
    return pack(np.roll(levels, (top, left), (0, 1)), layout.pattern)


def black_mosaic(black: tuple[float, ...], height: int, width: int) -> np.ndarray:
    """Repeat 4 or 36 black levels per CFA position (DN, row-major) over a mosaic: (height, width) float32 in DN."""
    period = math.isqrt(len(black))
    levels = np.asarray(black, np.float32).reshape(period, period)
    return np.tile(levels, (-(-height // period), -(-width // period)))[:height, :width]


def amplification_ratio(long_s: float, short_s: float) -> float:
    """The amplification ratio of a short exposure, as SID defines it: min(long_s / short_s, 300).

    Both in seconds. Raises InputError unless 0 < short_s <= long_s, both finite.
    """
    if not (math.isfinite(long_s) and 0 < short_s <= long_s):
        raise InputError(f"exposures of {long_s} s (long) and {short_s} s (short): expected 0 < short <= long")
    return min(long_s / short_s, MAX_RATIO)


def _pad(mosaic: np.ndarray, padding: tuple[int, int, int, int], period: int) -> np.ndarray:
    """Add rows and columns at the sides of a mosaic, each a copy of the one a period further in."""
    for axis, (before, after) in enumerate((padding[:2], padding[2:])):
        if before or after:
            size = mosaic.shape[axis]
            indices = [*range(period - before, period), *range(size), *range(size - period, size - period + after)]
            mosaic = mosaic.take(indices, axis)
    return mosaic


def _slices(layout: Layout) -> list[tuple[int, tuple[slice, slice], tuple[slice, slice]]]:
    """(plane, slices of the plane, slices of the mosaic) for each plane and each block of the repeating pattern."""
    result = []
    for row, column in np.ndindex(layout.repeat, layout.repeat):
        plane_slices = (slice(row, None, layout.repeat), slice(column, None, layout.repeat))
        for plane, (y, x) in enumerate(layout.sensels[(row + column) % len(layout.sensels)]):
            mosaic_slices = (
                slice(layout.block * row + y, None, layout.period),
                slice(layout.block * column + x, None, layout.period),
            )
            result.append((plane, plane_slices, mosaic_slices))
    return result
