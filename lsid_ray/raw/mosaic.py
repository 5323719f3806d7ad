"""A Bayer mosaic as planes R, G1, B, G2 and back, whatever phase the sensor starts in."""

import math

import numpy as np

from lsid_ray.errors import InputError

BAYER_PHASES = ("RGGB", "GRBG", "GBRG", "BGGR")
MAX_RATIO = 300.0  # Chen et al. 2018: 10 s / 0.033 s counts as 300, not 303
_PLANE_AT = ((0, 0), (0, 1), (1, 1), (1, 0))  # row, column of R, G1, B, G2 in an RGGB square


def phase_padding(cfa: str, height: int, width: int) -> tuple[int, int, int, int]:
    """Rows and columns (top, bottom, left, right), each 0 or 1, that make a mosaic start at R and even.

    `cfa` is one of BAYER_PHASES; `height` and `width` are the mosaic's, in pixels, at least 2.
    Raises InputError for any other pattern (X-Trans among them) or size.
    """
    if cfa not in BAYER_PHASES:
        kind = "X-Trans" if len(cfa) == 36 else repr(cfa)
        raise InputError(f"CFA pattern {kind} cannot be packed: expected one of {', '.join(BAYER_PHASES)}")
    if height < 2 or width < 2:
        raise InputError(f"a mosaic of {height}x{width} pixels cannot be packed: expected at least 2x2")
    top, left = divmod(cfa.index("R"), 2)
    return top, (height + top) % 2, left, (width + left) % 2


def pack(mosaic: np.ndarray, cfa: str) -> np.ndarray:
    """(H, W) mosaic of any dtype -> (4, ceil, ceil) planes R, G1 (green on red's row), B, G2, same dtype.

    A mosaic that does not start at R, or is odd, is first extended by `phase_padding`, reflected without
    repeating its edge: the neighbour two pixels in has the colour the new pixel needs. So every packed
    frame has RGGB's geometry and no pixel is lost. Raises InputError as `phase_padding` does.
    """
    top, bottom, left, right = phase_padding(cfa, *mosaic.shape)
    if top or bottom or left or right:
        mosaic = np.pad(mosaic, ((top, bottom), (left, right)), mode="reflect")
    return np.stack([mosaic[row::2, column::2] for row, column in _PLANE_AT])


def unpack(planes: np.ndarray, cfa: str, height: int, width: int) -> np.ndarray:
    """(4, h, w) planes -> the (height, width) mosaic they were packed from, exactly; same dtype.

    Raises InputError as `phase_padding` does, or when the planes are not those of such a mosaic.
    """
    top, bottom, left, right = phase_padding(cfa, height, width)
    whole = (height + top + bottom, width + left + right)
    expected = (4, whole[0] // 2, whole[1] // 2)
    if planes.shape != expected:
        raise InputError(f"planes of shape {planes.shape}: a {height}x{width} {cfa} mosaic packs to {expected}")
    mosaic = np.empty(whole, planes.dtype)
    for plane, (row, column) in zip(planes, _PLANE_AT, strict=True):
        mosaic[row::2, column::2] = plane
    return mosaic[top : top + height, left : left + width].copy()


def pack_black(black: tuple[float, ...], cfa: str) -> np.ndarray:
    """Black levels per CFA position (DN, row-major) -> (4,) float64 in plane order R, G1, B, G2."""
    top, _, left, _ = phase_padding(cfa, 2, 2)
    return np.array([black[(row + top) % 2 * 2 + (column + left) % 2] for row, column in _PLANE_AT])


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
