"""The amplification ratio of a short exposure: from the exposure settings of both, or from its mosaic alone."""

import math

import numpy as np

from lsid_ray.errors import InputError
from lsid_ray.raw.frame import FrameMetadata, RawFrame
from lsid_ray.raw.mosaic import MAX_RATIO, amplification_ratio

_GRID = 32  # blocks per side: a fixed number, so that a percentile means the same at every frame size
# Medians over the long exposures of the 19 training scenes that `jobs/synthesize.py` (seed 6) made from Kodak's
# photographs, five scene-linear TIFFs and four raw files: most are exposed for display, none is from SID.
_MIDTONE, _HIGHLIGHT = 0.159, 0.534
_MAX_CORRECTION = math.sqrt(2)  # limits the influence of light sources, which would be far above white


def exposure_ratio(short: FrameMetadata, long: FrameMetadata) -> float:
    """How many times as bright the long exposure is: by time, and by ISO and aperture if both files have them.

    At most 300, as `amplification_ratio`. Raises: InputError if an exposure time is missing, or the short one is the
    brighter.
    """
    if short.exposure_s is None or long.exposure_s is None:
        raise InputError("no exposure time in the file nor in its name (10003_00_0.04s)")
    gain = 1.0
    if short.iso and long.iso:
        gain *= long.iso / short.iso
    if short.aperture and long.aperture:
        gain *= (short.aperture / long.aperture) ** 2
    try:
        return amplification_ratio(long.exposure_s * gain, short.exposure_s)
    except InputError:
        settings = " and ".join(
            f"{frame.exposure_s:g} s, ISO {frame.iso or '?'}, f/{frame.aperture or '?'} ({kind})"
            for kind, frame in (("long", long), ("short", short))
        )
        raise InputError(f"{settings}: expected a long exposure that is at least as bright as the short one") from None


def estimate_ratio(frame: RawFrame) -> float:
    """Estimate the ratio, in [1, 300], that makes a frame look normally exposed.

    Works for any Bayer phase or X-Trans, any black and white level and any size. The frame is divided into up to
    32x32 blocks; the level of a block is its brightest white-balanced color (the first to clip) as a fraction of
    white - black. The mean of the middle half of the levels gives the ratio; their 98th percentile corrects it by up
    to half a stop.

    It cannot tell a dark scene from a short exposure, nor light from an error of the black level. Measured
    2026-11-22 on 27 scenes at ratios 100, 250 and 300 with the A7S II's noise: |log2(estimate / true)| has
    median 0.43 and 90th percentile 0.79 on the 8 held-out scenes (83% within x1.5, all within x2);
    with leave-one-out over all scenes, and without the limit of 300, 0.42 and 0.90 (72%, 93%), where the mean
    of green gives 0.63 and 1.45 (48%, 79%). At ISO 25600 and ratio 300 it is 0.66 stops too low on average.
    """
    levels = np.sort(_block_levels(frame), axis=None)
    quarter = len(levels) // 4
    midtone = levels[quarter : len(levels) - quarter].mean() / _MIDTONE
    highlight = np.percentile(levels, 98) / _HIGHLIGHT
    exposure = min(max(highlight, midtone / _MAX_CORRECTION), midtone * _MAX_CORRECTION)
    return float(1 / min(max(exposure, 1 / MAX_RATIO), 1))


def _block_levels(frame: RawFrame) -> np.ndarray:
    """(rows, columns) float64: the brightest white-balanced color of each block; black = 0, white = 1."""
    period = math.isqrt(len(frame.cfa))
    rows, columns = (_block_starts(size, period) for size in frame.mosaic.shape)
    sums = np.zeros((3, len(rows), len(columns)))
    counts = np.zeros_like(sums)
    for position, (letter, black) in enumerate(zip(frame.cfa, frame.black, strict=True)):
        row, column = divmod(position, period)
        plane = frame.mosaic[row::period, column::period]
        if plane.size:  # empty if the frame is smaller than the pattern
            top, left = -((row - rows) // period), -((column - columns) // period)
            strips = np.stack([strip.sum(axis=0, dtype=np.int64) for strip in np.split(plane, top[1:])])
            block_sums = np.add.reduceat(strips, left, axis=1)
            block_sizes = np.outer(np.diff(top, append=len(plane)), np.diff(left, append=plane.shape[1]))
            color = "RGB".index(letter)
            sums[color] += (block_sums - black * block_sizes) * frame.white_balance[color] / (frame.white - black)
            counts[color] += block_sizes
    present = counts.any(axis=(1, 2))
    return (sums[present] / counts[present]).max(axis=0)


def _block_starts(size: int, period: int) -> np.ndarray:
    """First row (or column) of each block; no block is smaller than the pattern unless the frame is."""
    blocks = min(_GRID, max(size // period, 1))
    return np.arange(blocks) * size // blocks
