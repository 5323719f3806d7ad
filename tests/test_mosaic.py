"""Packing and unpacking against a slow loop, for every phase and for even and odd sizes."""

import numpy as np
import pytest

from lsid_ray.errors import InputError
from lsid_ray.raw.mosaic import (
    BAYER_PHASES,
    XTRANS,
    PackedView,
    amplification_ratio,
    black_mosaic,
    pack,
    pack_black,
    phase_padding,
    unpack,
)

SIZES = [(8, 10), (7, 10), (8, 9), (7, 9), (2, 2), (3, 2)]
XTRANS_PATTERN = np.array(list(XTRANS.pattern)).reshape(6, 6)
XTRANS_PHASES = sorted({"".join(np.roll(XTRANS_PATTERN, shift, (0, 1)).flat) for shift in np.ndindex(6, 6)})
XTRANS_SIZES = [(12, 18), (13, 18), (14, 17), (6, 6), (9, 7)]


def make_mosaic(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 16384, (height, width), dtype=np.uint16)


def reflect(index: int, size: int) -> int:
    return -index if index < 0 else 2 * (size - 1) - index if index >= size else index


def reference_pack(mosaic: np.ndarray, cfa: str) -> np.ndarray:
    """Pack Bayer sensel by sensel; the plane is looked up from the color letter, not computed from the phase."""
    height, width = mosaic.shape
    top, bottom, left, right = phase_padding(cfa, height, width)
    planes = np.zeros((4, (height + top + bottom) // 2, (width + left + right) // 2), mosaic.dtype)
    for y in range(-top, height + bottom):
        is_red_row = "R" in (cfa[y % 2 * 2], cfa[y % 2 * 2 + 1])
        for x in range(-left, width + right):
            color = cfa[y % 2 * 2 + x % 2]
            plane = {"R": 0, "B": 2}.get(color, 1 if is_red_row else 3)
            planes[plane, (y + top) // 2, (x + left) // 2] = mosaic[reflect(y, height), reflect(x, width)]
    return planes


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("cfa", BAYER_PHASES)
def test_packing_matches_a_slow_loop(cfa: str, size: tuple[int, int]):
    mosaic = make_mosaic(*size)
    np.testing.assert_array_equal(pack(mosaic, cfa), reference_pack(mosaic, cfa))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("cfa", BAYER_PHASES)
def test_unpacking_a_packed_bayer_mosaic_restores_it(cfa: str, size: tuple[int, int]):
    mosaic = make_mosaic(*size)
    np.testing.assert_array_equal(unpack(pack(mosaic, cfa), cfa, *size), mosaic)


@pytest.mark.parametrize("cfa", [*BAYER_PHASES, *XTRANS_PHASES[:7]])
def test_a_packed_view_returns_the_same_window_as_packing_the_whole_mosaic(cfa: str):
    mosaic = make_mosaic(41, 50)
    planes, view = pack(mosaic, cfa), PackedView(mosaic, cfa)
    assert view.shape == planes.shape
    for top, bottom, left, right in [(0, 4, 0, 4), (1, 2, 3, 8), (3, 9, 5, 6), (0, *planes.shape[1:2], 1, 7)]:
        np.testing.assert_array_equal(view[:, top:bottom, left:right], planes[:, top:bottom, left:right])


@pytest.mark.parametrize("cfa", [*BAYER_PHASES, *XTRANS_PHASES[:7]])
def test_a_packed_window_is_uint8_if_its_values_fit_after_the_offset(cfa: str):
    sensor = np.random.default_rng(0).integers(450, 600, (47, 53), dtype=np.uint16)
    mosaic = sensor[2:43, 3:53]  # a view without margins, as LibRaw returns
    mosaic[20:, 20:] += 300
    planes, view = pack(mosaic, cfa), PackedView(mosaic, cfa, 2**16 - 400)
    height, width = planes.shape[1:]
    for window, dtype in (((0, 4, 0, 4), np.uint8), ((0, height, 0, width), np.uint16)):
        top, bottom, left, right = window
        packed_window = view[:, top:bottom, left:right]
        assert packed_window.dtype == dtype
        np.testing.assert_array_equal(packed_window, planes[:, top:bottom, left:right] - 400)


@pytest.mark.parametrize("cfa", BAYER_PHASES)
def test_each_bayer_plane_holds_one_color(cfa: str):
    mosaic = np.tile(np.array([ord(color) for color in cfa], np.uint16).reshape(2, 2), (4, 5))[:7, :9]
    for plane, color in zip(pack(mosaic, cfa), "RGBG", strict=True):
        assert (plane == ord(color)).all()


@pytest.mark.parametrize("cfa", BAYER_PHASES)
def test_packed_black_levels_match_a_packed_black_mosaic(cfa: str):
    black = (500.0, 501.0, 502.0, 503.0)
    planes = pack(black_mosaic(black, 7, 9), cfa)
    np.testing.assert_array_equal(pack_black(black, cfa), planes[:, :1, :1])


def test_a_black_mosaic_repeats_the_levels_with_the_period_of_the_cfa():
    black = tuple(float(level) for level in range(36))
    levels = black_mosaic(black, 13, 8)
    assert all(levels[y, x] == black[y % 6 * 6 + x % 6] for y in range(13) for x in range(8))


@pytest.mark.parametrize("cfa", ["RGBG", "RGGBRGGB", XTRANS_PHASES[0][:30] + "GGGGGG"])
def test_an_unknown_cfa_pattern_raises_an_error(cfa: str):
    with pytest.raises(InputError, match=f"'{cfa}' cannot be packed: expected one of RGGB, .* X-Trans"):
        pack(make_mosaic(12, 12), cfa)


def test_packing_a_mosaic_of_one_row_raises_an_error():
    with pytest.raises(InputError, match="1x8"):
        pack(make_mosaic(1, 8), "RGGB")


def test_unpacking_planes_of_the_wrong_shape_raises_an_error():
    with pytest.raises(InputError, match=r"\(4, 4, 5\)"):
        unpack(np.zeros((4, 4, 4), np.uint16), "RGGB", 8, 10)


def test_the_amplification_ratio_is_long_over_short_up_to_300():
    assert amplification_ratio(10, 0.1) == pytest.approx(100)
    assert amplification_ratio(10, 0.033) == 300
    assert amplification_ratio(0.5, 0.5) == 1


@pytest.mark.parametrize("times", [(0.1, 10), (10, 0), (10, -1), (float("nan"), 1), (float("inf"), 1)])
def test_invalid_exposure_times_raise_an_error(times: tuple[float, float]):
    with pytest.raises(InputError, match="expected 0 < short <= long"):
        amplification_ratio(*times)


def sid_fuji_planes(im: np.ndarray) -> np.ndarray:
    """Pack as SID does at its Fuji's phase; (row, column) in the 6x6 pattern, by the position of the 3x3 block."""
    colored = {
        (0, 0): ((0, 0), (0, 2), (0, 1), (1, 2), (2, 2)),
        (0, 1): ((0, 4), (0, 5), (0, 3), (2, 5), (1, 5)),
        (1, 0): ((3, 1), (3, 2), (3, 0), (5, 2), (4, 2)),
        (1, 1): ((3, 3), (3, 5), (3, 4), (4, 5), (5, 5)),
    }
    planes = np.zeros((9, im.shape[0] // 3, im.shape[1] // 3), im.dtype)
    for y, x in np.ndindex(planes.shape[1:]):
        for plane, (row, column) in enumerate(colored[y % 2, x % 2]):
            planes[plane, y, x] = im[y // 2 * 6 + row, x // 2 * 6 + column]
        planes[5:, y, x] = im[3 * y + 1 : 3 * y + 3, 3 * x : 3 * x + 2].flat
    return planes


def test_xtrans_is_packed_into_nine_planes_as_in_sid():
    mosaic = make_mosaic(18, 24)
    np.testing.assert_array_equal(pack(mosaic, XTRANS.pattern), sid_fuji_planes(mosaic))


def test_xtrans_has_18_phases_and_mirroring_adds_none():
    assert len(XTRANS_PHASES) == 18
    for pattern in (XTRANS_PATTERN[::-1], XTRANS_PATTERN[:, ::-1], XTRANS_PATTERN.T):
        assert "".join(pattern.flat) in XTRANS_PHASES


@pytest.mark.parametrize("size", XTRANS_SIZES)
@pytest.mark.parametrize("cfa", XTRANS_PHASES)
def test_unpacking_a_packed_xtrans_mosaic_restores_it(cfa: str, size: tuple[int, int]):
    mosaic = make_mosaic(*size)
    np.testing.assert_array_equal(unpack(pack(mosaic, cfa), cfa, *size), mosaic)


@pytest.mark.parametrize("cfa", XTRANS_PHASES)
def test_xtrans_packing_neither_loses_nor_duplicates_a_sensel(cfa: str):
    height, width = 13, 17
    sensel_numbers = np.arange(height * width).reshape(height, width)
    top, _, left, _ = phase_padding(cfa, height, width)
    planes = pack(sensel_numbers, cfa)
    assert set(planes.flat) == set(sensel_numbers.flat)
    inside = planes[:, -(-top // 3) : (height + top) // 3, -(-left // 3) : (width + left) // 3]
    assert len(set(inside.flat)) == inside.size, "a sensel was packed twice"


@pytest.mark.parametrize("cfa", XTRANS_PHASES)
def test_each_xtrans_plane_holds_one_color(cfa: str):
    pattern = np.array([ord(color) for color in cfa], np.uint16).reshape(6, 6)
    for plane, color in zip(pack(np.tile(pattern, (3, 4))[:16, :23], cfa), "RGBRBGGGG", strict=True):
        assert (plane == ord(color)).all()


@pytest.mark.parametrize("cfa", XTRANS_PHASES)
def test_packed_xtrans_black_levels_match_a_packed_black_mosaic(cfa: str):
    black = tuple(500.0 + level for level in range(36))
    planes = pack(black_mosaic(black, 20, 25), cfa)
    expected = pack_black(black, cfa)
    assert expected.shape == (9, 2, 2)
    for y, x in np.ndindex(planes.shape[1:]):
        np.testing.assert_array_equal(planes[:, y, x], expected[:, y % 2, x % 2])
