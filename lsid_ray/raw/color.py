"""Conversion of camera colors to linear sRGB, as LibRaw does it."""

from functools import lru_cache

import numpy as np

# XYZ of the sRGB primaries at D65, with LibRaw's own digits: its `color_matrix` is built from them.
XYZ_FROM_SRGB = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
# CIE XYZ -> camera RGB of SID's Sony A7S II, from LibRaw's table (PMN's files have the same matrix).
A7S2_COLOR_MATRIX = ((0.5838, -0.143, -0.0246), (-0.3497, 1.1477, 0.2297), (-0.0748, 0.1885, 0.5778))


def srgb_from_camera(color_matrix: tuple[tuple[float, ...], ...]) -> np.ndarray:
    """Return the (3, 3) float64 matrix from white-balanced, linear camera RGB to linear sRGB; its rows sum to 1.

    color_matrix: CIE XYZ -> camera, as in RawFrame. If it is all zeros, the result is the identity: without a matrix
    LibRaw does not convert colors.
    """
    camera_from_srgb = np.array(color_matrix, np.float64) @ XYZ_FROM_SRGB
    if not camera_from_srgb.any():
        return np.eye(3)
    return np.linalg.inv(camera_from_srgb / camera_from_srgb.sum(axis=1, keepdims=True))


# LibRaw's tone curve for gamma (2.222, 4.5), with its constants: 4.5 x up to the toe, 1.0993 x**0.45 - 0.0993 above.
TONE_POWER, TONE_SLOPE, TONE_OFFSET, TONE_TOE = 1 / 2.222, 4.5, 0.0992578062, 0.0180501557


@lru_cache(maxsize=1)
def _linear_table() -> np.ndarray:
    encoded = np.arange(2**16) / (2**16 - 1)
    power = ((encoded + TONE_OFFSET) / (1 + TONE_OFFSET)) ** (1 / TONE_POWER)
    return np.where(encoded < TONE_SLOPE * TONE_TOE, encoded / TONE_SLOPE, power).astype(np.float32)


def linear_light(rendering: np.ndarray) -> np.ndarray:
    """Undo the tone curve of a rendering: uint16 of any shape -> float32 linear sRGB, [0, 1]."""
    return _linear_table()[rendering]
