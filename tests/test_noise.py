"""The noise model against theory: slope, variance and tails."""

import numpy as np
import pytest
from scipy import stats

from lsid_ray.errors import InputError
from lsid_ray.synthesis.noise import A7S2, short_exposure

SIZE = (400, 500)
BLACK, WHITE = (512.0,) * 4, 16383.0


def expose(signal_dn: float, ratio: float = 1.0, iso: int = 1600, seed: int = 0) -> np.ndarray:
    """The short exposure, minus black, of a flat field whose long exposure is `signal_dn` above black."""
    clean = np.full(SIZE, BLACK[0] + signal_dn)
    return short_exposure(clean, BLACK, WHITE, ratio, iso, np.random.default_rng(seed)).astype(float) - 512


@pytest.mark.parametrize("iso", [100, 1600, 2000, 25600])
def test_the_slope_of_variance_over_mean_is_the_gain(iso: int):
    signals = np.array([200.0, 1000.0, 4000.0, 12000.0])
    fields = [expose(signal, iso=iso) for signal in signals]
    slope = np.polyfit([field.mean() for field in fields], [field.var() for field in fields], 1)[0]
    # At the highest ISO clipping at white reduces the variance by a few percent.
    assert slope == pytest.approx(A7S2[iso][0], rel=0.1 if iso == 25600 else 0.03)


@pytest.mark.parametrize("ratio", [1.0, 100.0, 300.0])
def test_the_mean_is_that_of_the_long_exposure_divided_by_the_ratio(ratio: float):
    field = expose(9000.0, ratio, iso=1600)
    _, _, _, row_sigma, black_error, black_sigma = A7S2[1600]
    uncertainty = 5 * (black_sigma + row_sigma / np.sqrt(SIZE[0]) + field.std() / np.sqrt(field.size))
    assert field.mean() == pytest.approx(9000 / ratio + black_error, abs=uncertainty)


@pytest.mark.parametrize("iso", [250, 1600, 2000, 12800])
def test_a_dark_frame_has_the_calibrated_read_and_row_noise(iso: int):
    _, tail, scale, row_sigma, _, _ = A7S2[iso]
    dark = expose(0.0, iso=iso)
    rows = dark.mean(axis=1)
    pixels = dark - rows[:, None]
    rounding = 1 / 12
    assert pixels.var() == pytest.approx(stats.tukeylambda.var(tail) * scale**2 + rounding, rel=0.05)
    assert rows.var() == pytest.approx(row_sigma**2 + pixels.var() / SIZE[1], rel=0.25)


def test_the_tails_follow_the_tukey_lambda_distribution():
    _, tail, scale, _, _, _ = A7S2[6400]
    dark = expose(0.0, iso=6400)
    pixels = dark - np.median(dark, axis=1, keepdims=True)
    for probability in (0.001, 0.01, 0.1, 0.9, 0.99, 0.999):
        expected = stats.tukeylambda.ppf(probability, tail) * scale
        assert np.quantile(pixels, probability) == pytest.approx(expected, rel=0.08)


def test_dual_gain_makes_iso_2000_less_noisy_than_1600():
    assert A7S2[2000][0] > A7S2[1600][0]
    assert expose(0.0, iso=2000).std() < 0.5 * expose(0.0, iso=1600).std()


def test_the_calibration_has_28_isos_with_gains_proportional_to_iso():
    assert len(A7S2) == 28
    assert list(A7S2) == sorted(A7S2)
    for iso, (gain, *_) in A7S2.items():
        assert gain == pytest.approx(iso * 24.48128 / 25600, rel=1e-3)


def test_the_noise_is_determined_by_the_seed():
    np.testing.assert_array_equal(expose(500.0, seed=3), expose(500.0, seed=3))
    assert (expose(500.0, seed=3) != expose(500.0, seed=4)).any()


def test_values_are_clipped_to_zero_and_white():
    clean = np.full(SIZE, WHITE)
    bright = short_exposure(clean, BLACK, WHITE, 1.0, 25600, np.random.default_rng(0))
    assert bright.max() == WHITE
    dark = short_exposure(np.zeros(SIZE), (0.0,) * 4, WHITE, 300.0, 25600, np.random.default_rng(0))
    assert dark.min() == 0
    assert dark.dtype == np.uint16


def test_the_noise_scales_with_the_range_of_the_sensor():
    half_range = (np.array(WHITE) - 512) / 2
    clean = np.full(SIZE, 256.0)
    field = short_exposure(clean, (256.0,) * 4, 256 + half_range, 1.0, 25600, np.random.default_rng(0)) - 256.0
    assert field.std() == pytest.approx(expose(0.0, iso=25600).std() / 2, rel=0.02)


def test_black_levels_may_differ_by_cfa_position():
    black = (400.0, 500.0, 600.0, 700.0)
    clean = np.tile(np.array(black).reshape(2, 2), (200, 250))
    field = short_exposure(clean, black, WHITE, 100.0, 100, np.random.default_rng(0))
    np.testing.assert_allclose(
        [field[y::2, x::2].mean() - A7S2[100][4] for y in (0, 1) for x in (0, 1)], black, atol=0.1
    )
    as_array = short_exposure(clean, clean, WHITE, 100.0, 100, np.random.default_rng(0))
    np.testing.assert_array_equal(field, as_array)


def test_an_iso_without_calibration_raises_an_error():
    with pytest.raises(InputError, match=r"ISO 300: no noise calibration; expected one of 50, 64"):
        short_exposure(np.zeros(SIZE), BLACK, WHITE, 100.0, 300, np.random.default_rng(0))


def test_a_ratio_below_one_raises_an_error():
    with pytest.raises(InputError, match=r"ratio 0\.5"):
        short_exposure(np.zeros(SIZE), BLACK, WHITE, 0.5, 200, np.random.default_rng(0))
