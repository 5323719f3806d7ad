"""The noise model against theory: slope, variance and tails."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from lsid_ray.errors import InputError
from lsid_ray.synthesis.camera import CameraNoise, IsoNoise
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
    assert slope == pytest.approx(A7S2.by_iso[iso].gain, rel=0.1 if iso == 25600 else 0.03)


@pytest.mark.parametrize("ratio", [1.0, 100.0, 300.0])
def test_the_mean_is_that_of_the_long_exposure_divided_by_the_ratio(ratio: float):
    field = expose(9000.0, ratio, iso=1600)
    noise = A7S2.by_iso[1600]
    uncertainty = 5 * (noise.black_sigma + noise.row_sigma / np.sqrt(SIZE[0]) + field.std() / np.sqrt(field.size))
    assert field.mean() == pytest.approx(9000 / ratio + noise.black_error, abs=uncertainty)


@pytest.mark.parametrize("iso", [250, 1600, 2000, 12800])
def test_a_dark_frame_has_the_calibrated_read_and_row_noise(iso: int):
    noise = A7S2.by_iso[iso]
    dark = expose(0.0, iso=iso)
    rows = dark.mean(axis=1)
    pixels = dark - rows[:, None]
    rounding = 1 / 12
    assert pixels.var() == pytest.approx(
        stats.tukeylambda.var(noise.read_lambda) * noise.read_scale**2 + rounding, rel=0.05
    )
    assert rows.var() == pytest.approx(noise.row_sigma**2 + pixels.var() / SIZE[1], rel=0.25)


def test_the_tails_follow_the_tukey_lambda_distribution():
    noise = A7S2.by_iso[6400]
    dark = expose(0.0, iso=6400)
    pixels = dark - np.median(dark, axis=1, keepdims=True)
    for probability in (0.001, 0.01, 0.1, 0.9, 0.99, 0.999):
        expected = stats.tukeylambda.ppf(probability, noise.read_lambda) * noise.read_scale
        assert np.quantile(pixels, probability) == pytest.approx(expected, rel=0.08)


def test_dual_gain_makes_iso_2000_less_noisy_than_1600():
    assert A7S2.by_iso[2000].gain > A7S2.by_iso[1600].gain
    assert expose(0.0, iso=2000).std() < 0.5 * expose(0.0, iso=1600).std()


def test_the_calibration_has_28_isos_with_gains_proportional_to_iso():
    assert len(A7S2.by_iso) == 28
    assert list(A7S2.by_iso) == sorted(A7S2.by_iso)
    for iso, noise in A7S2.by_iso.items():
        assert noise.gain == pytest.approx(iso * 24.48128 / 25600, rel=1e-3)


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
        [field[y::2, x::2].mean() - A7S2.by_iso[100].black_error for y in (0, 1) for x in (0, 1)], black, atol=0.1
    )
    as_array = short_exposure(clean, clean, WHITE, 100.0, 100, np.random.default_rng(0))
    np.testing.assert_array_equal(field, as_array)


def test_an_iso_without_calibration_raises_an_error():
    with pytest.raises(InputError, match=r"ISO 300: no noise calibration; expected one of 50, 64"):
        short_exposure(np.zeros(SIZE), BLACK, WHITE, 100.0, 300, np.random.default_rng(0))


def test_a_ratio_below_one_raises_an_error():
    with pytest.raises(InputError, match=r"ratio 0\.5"):
        short_exposure(np.zeros(SIZE), BLACK, WHITE, 0.5, 200, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("iso", "sha256"),
    [
        (100, "c7e2acf36792ed552e7174b35977328e2e376e80e0b437425ced360be580e88b"),
        (1600, "95c007d224842ee6d49f8e9c8af5f26c56219200c296e2784ff1102c0e1b3276"),
        (25600, "ade392df810eae483ae804941d4047c73108cc14d738800517a10808282f3533"),
    ],
)
def test_the_default_camera_gives_the_frames_that_it_gave_before_there_were_others(iso: int, sha256: str):
    """Hashes of frames that commit 267db1b made, with numpy 2.4."""
    clean = np.random.default_rng(1).integers(512, 16384, (300, 200)).astype(np.uint16)
    rng = np.random.default_rng(7)
    frame = short_exposure(clean, (512.0, 511.0, 513.0, 512.0), WHITE, 100.0, iso, rng)
    assert hashlib.sha256(frame.tobytes()).hexdigest() == sha256


def dark_of(**changes) -> np.ndarray:
    """A dark frame, minus black, of a camera with 8 DN of read noise and nothing else."""
    camera = CameraNoise("test", 512.0, 16383.0, {800: replace(IsoNoise(1.0, None, 8.0, 0.0, 0.0, 0.0), **changes)})
    dark = short_exposure(np.full(SIZE, 512.0), BLACK, WHITE, 1.0, 800, np.random.default_rng(0), camera)
    return dark.astype(float) - 512


def test_read_noise_may_be_gaussian_or_logistic():
    gaussian, logistic = dark_of().ravel(), dark_of(read_lambda=0.0).ravel()
    assert (gaussian.std(), stats.kurtosis(gaussian)) == (pytest.approx(8, rel=0.01), pytest.approx(0, abs=0.05))
    assert logistic.std() == pytest.approx(8 * np.pi / np.sqrt(3), rel=0.01)
    assert stats.kurtosis(logistic) == pytest.approx(1.2, abs=0.15)


def test_a_camera_without_a_gain_raises_an_error():
    with pytest.raises(InputError, match=r"ISO 800: the gain of test is unknown"):
        dark_of(gain=None)
