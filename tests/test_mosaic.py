"""Packing against a slow loop over pixels, in every phase and parity."""

import numpy as np
import pytest

from lsid_ray.errors import InputError
from lsid_ray.raw.mosaic import (
    BAYER_PHASES,
    amplification_ratio,
    black_mosaic,
    pack,
    pack_black,
    phase_padding,
    unpack,
)

SIZES = [(8, 10), (7, 10), (8, 9), (7, 9), (2, 2), (3, 2)]
XTRANS = "GGRGGBGGBGGRBRGRBGGGBGGRGGRGGBRBGBRG"


def make_mosaic(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 16384, (height, width), dtype=np.uint16)


def mirrored(index: int, size: int) -> int:
    return -index if index < 0 else 2 * (size - 1) - index if index >= size else index


def pack_slowly(mosaic: np.ndarray, cfa: str) -> np.ndarray:
    """Pixel by pixel: the colours are looked up, never computed from the phase."""
    height, width = mosaic.shape
    top, bottom, left, right = phase_padding(cfa, height, width)
    planes = np.zeros((4, (height + top + bottom) // 2, (width + left + right) // 2), mosaic.dtype)
    for y in range(-top, height + bottom):
        reds_row = "R" in (cfa[y % 2 * 2], cfa[y % 2 * 2 + 1])
        for x in range(-left, width + right):
            color = cfa[y % 2 * 2 + x % 2]
            plane = {"R": 0, "B": 2}.get(color, 1 if reds_row else 3)
            planes[plane, (y + top) // 2, (x + left) // 2] = mosaic[mirrored(y, height), mirrored(x, width)]
    return planes


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("cfa", BAYER_PHASES)
def test_packing_equals_a_slow_loop(cfa: str, size: tuple[int, int]):
    mosaic = make_mosaic(*size)
    np.testing.assert_array_equal(pack(mosaic, cfa), pack_slowly(mosaic, cfa))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("cfa", BAYER_PHASES)
def test_unpacking_undoes_packing(cfa: str, size: tuple[int, int]):
    mosaic = make_mosaic(*size)
    np.testing.assert_array_equal(unpack(pack(mosaic, cfa), cfa, *size), mosaic)


@pytest.mark.parametrize("cfa", BAYER_PHASES)
def test_each_plane_holds_its_own_colour(cfa: str):
    mosaic = np.tile(np.array([ord(color) for color in cfa], np.uint16).reshape(2, 2), (4, 5))[:7, :9]
    for plane, color in zip(pack(mosaic, cfa), "RGBG", strict=True):
        assert (plane == ord(color)).all()


@pytest.mark.parametrize("cfa", BAYER_PHASES)
def test_black_levels_follow_their_pixels(cfa: str):
    black = (500.0, 501.0, 502.0, 503.0)
    planes = pack(black_mosaic(black, 7, 9), cfa)
    np.testing.assert_array_equal(pack_black(black, cfa), planes[:, 0, 0])


def test_black_levels_of_a_mosaic_repeat_with_its_pattern():
    black = tuple(float(level) for level in range(36))
    levels = black_mosaic(black, 13, 8)
    assert all(levels[y, x] == black[y % 6 * 6 + x % 6] for y in range(13) for x in range(8))


@pytest.mark.parametrize(("cfa", "words"), [(XTRANS, "X-Trans"), ("RGBG", "'RGBG'")])
def test_what_cannot_be_packed_is_named(cfa: str, words: str):
    with pytest.raises(InputError, match=words):
        pack(make_mosaic(12, 12), cfa)


def test_a_mosaic_of_one_row_cannot_be_packed():
    with pytest.raises(InputError, match="1x8"):
        pack(make_mosaic(1, 8), "RGGB")


def test_planes_of_another_mosaic_are_refused():
    with pytest.raises(InputError, match=r"\(4, 4, 5\)"):
        unpack(np.zeros((4, 4, 4), np.uint16), "RGGB", 8, 10)


def test_the_ratio_is_that_of_the_exposures_up_to_300():
    assert amplification_ratio(10, 0.1) == pytest.approx(100)
    assert amplification_ratio(10, 0.033) == 300
    assert amplification_ratio(0.5, 0.5) == 1


@pytest.mark.parametrize("times", [(0.1, 10), (10, 0), (10, -1), (float("nan"), 1), (float("inf"), 1)])
def test_exposures_that_give_no_ratio_are_refused(times: tuple[float, float]):
    with pytest.raises(InputError, match="expected 0 < short <= long"):
        amplification_ratio(*times)
