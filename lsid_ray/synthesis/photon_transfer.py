"""The system gain, from pairs of frames of an evenly lit surface at one ISO."""

import math
from dataclasses import dataclass, fields

import numpy as np

from lsid_ray.raw.frame import RawFrame
from lsid_ray.synthesis.calibration_frames import BLOCK, above_black

MAX_LEVEL, MIN_LEVEL = 0.75, 0.005  # of the range from black to white; between them the curve is taken as straight
MIN_BLOCKS = 16
SATURATED_SHARE = 1e-3  # of a frame's sensels: so many at its highest value are saturated,
MIN_SATURATION = 0.25  # if it is above this share of the range
HUBER = 2.5  # residuals beyond so many standard deviations lose weight


@dataclass(frozen=True, eq=False)
class Blocks:
    """Blocks of pairs of frames: 32x32 sensels of one CFA position each."""

    levels: np.ndarray
    """(n,): mean above black, DN."""
    variances: np.ndarray
    """(n,): half the variance of the difference of the two frames, DN^2."""
    dark: np.ndarray
    """(n,): bool; too near black to be used."""
    bright: np.ndarray
    """(n,): bool; too near saturation to be used."""

    @property
    def used(self) -> np.ndarray:
        """(n,): bool; neither."""
        return ~(self.dark | self.bright)


@dataclass(frozen=True, eq=False)
class Gain:
    """The fit of a photon transfer curve."""

    gain: float
    """DN per electron."""
    error: float
    """Standard error."""
    scatter: float
    """Of the variances around the line, relative to what their number of sensels makes expect: 1 if all is well."""


def measure_blocks(first: RawFrame, second: RawFrame, black_error: float) -> Blocks:
    """Level and variance of each block of a pair of frames of the same light.

    black_error: DN, of the black level at this ISO. A block with a saturated sensel is not used: at white, or at the
    highest value of a frame if more than 0.1% of it has that value.
    """
    saturated = min(_saturation(frame) for frame in (first, second))
    period = math.isqrt(len(first.cfa))
    one, other = above_black(first), above_black(second)
    highest = np.maximum(first.mosaic, second.mosaic)
    levels, variances, peaks = [], [], []
    for y, x in np.ndindex(period, period):
        position = (slice(y, None, period), slice(x, None, period))
        levels.append(_blocks((one[position] + other[position]) / 2).mean(axis=1, dtype=np.float64))
        variances.append(_blocks(one[position] - other[position]).var(axis=1, ddof=1, dtype=np.float64) / 2)
        peaks.append(_blocks(highest[position]).max(axis=1))
    level = np.concatenate(levels) - black_error
    full_range = first.white - float(np.mean(first.black))
    bright = (level > MAX_LEVEL * full_range) | (np.concatenate(peaks) >= saturated)
    return Blocks(level, np.concatenate(variances), level < MIN_LEVEL * full_range, bright)


def _saturation(frame: RawFrame) -> float:
    highest, black = float(frame.mosaic.max()), float(np.mean(frame.black))
    piled_up = float(np.mean(frame.mosaic == highest)) > SATURATED_SHARE
    bright = highest - black > MIN_SATURATION * (frame.white - black)
    return min(frame.white, highest if piled_up and bright else math.inf)


def _blocks(plane: np.ndarray) -> np.ndarray:
    """(h, w) -> (blocks, sensels of a block); what is left over at the right and the bottom is not used."""
    rows, columns = (size // BLOCK for size in plane.shape)
    cut = plane[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK)
    return cut.transpose(0, 2, 1, 3).reshape(rows * columns, -1)


def join(blocks: list[Blocks]) -> Blocks:
    """The blocks of several pairs."""
    return Blocks(*(np.concatenate([getattr(pair, field.name) for pair in blocks]) for field in fields(Blocks)))


def fit_gain(blocks: Blocks, dark_variance: float) -> Gain | None:
    """Fit variance = gain * level + dark_variance; None if fewer than 16 blocks can be used.

    dark_variance: DN^2, of a sensel from dark frame to dark frame. Photon transfer: of light that is Poisson in
    electrons the variance in DN is gain times the level; the difference of two frames has no fixed pattern (Janesick,
    Photon Transfer, SPIE 2007; used for K by ELD, Wei et al., CVPR 2020, section 4). Least squares, weighted by what
    the scatter of a variance is expected to be, with Huber's weights for outliers. The standard error is taken from
    the residuals.
    """
    level = blocks.levels[blocks.used]
    shot = blocks.variances[blocks.used] - dark_variance
    if len(level) < MIN_BLOCKS:
        return None
    relative = math.sqrt(2 / (BLOCK**2 - 1))  # scatter of the variance of Gaussian noise
    gain = max(float(np.median(shot / level)), 1e-9)
    for _ in range(20):
        expected = (max(gain, 0.0) * level + dark_variance) * relative
        residual = (shot - gain * level) / expected
        scatter = max(float(np.median(np.abs(residual))) * 1.4826, 1e-9)
        weights = np.minimum(1, HUBER * scatter / np.maximum(np.abs(residual), 1e-9)) / expected**2
        gain = float((weights * level * shot).sum() / (weights * level**2).sum())
    errors = weights * level * (shot - gain * level)
    return Gain(gain, math.sqrt(float((errors**2).sum())) / float((weights * level**2).sum()), scatter)
