"""Texture kept, on images of known spectrum."""

import math

import numpy as np
import pytest
import torch

from lsid_ray.evaluate.texture import BANDS, texture, texture_error_db

SIZE = 640


def noise(seed: int, sigma: float = 0.05) -> np.ndarray:
    """(SIZE, SIZE) white noise."""
    return np.random.default_rng(seed).normal(0, sigma, (SIZE, SIZE))


def gray(luminance: np.ndarray) -> np.ndarray:
    return np.repeat((0.5 + luminance)[..., None], 3, axis=2)


def filtered(values: np.ndarray, response) -> np.ndarray:
    frequency = np.hypot(np.fft.fftfreq(SIZE)[:, None], np.fft.fftfreq(SIZE)[None])
    return np.fft.ifft2(np.fft.fft2(values) * response(frequency)).real


def by_band(scores: dict[str, float], name: str) -> list[float]:
    return [scores[f"{name}_{band}"] for band in BANDS]


def test_an_image_keeps_all_of_its_own_texture() -> None:
    scores = texture(gray(noise(0)), gray(noise(0)))
    assert by_band(scores, "texture") == pytest.approx([1] * 4) and by_band(scores, "coherence") == pytest.approx(
        [1] * 4
    )


@pytest.mark.parametrize("gain", [0.3, 0.8, 1.5])
def test_power_is_the_square_of_the_contrast(gain: float) -> None:
    scores = texture(gray(gain * noise(0)), gray(noise(0)))
    assert by_band(scores, "texture") == pytest.approx([gain**2] * 4, rel=1e-3)
    assert by_band(scores, "coherence") == pytest.approx([1] * 4, abs=1e-3)


def test_a_blur_takes_its_own_response_from_each_band() -> None:
    def blur(frequency: np.ndarray) -> np.ndarray:
        return np.exp(-2 * (math.pi * 1.0 * frequency) ** 2)  # a Gaussian of sigma 1 pixel

    scores = texture(gray(filtered(noise(0), blur)), gray(noise(0)))
    for band, (low, high) in BANDS.items():
        frequency = np.linspace(low, high, 1000)
        expected = np.average(blur(frequency) ** 2, weights=frequency)  # white noise: as much in each ring as its area
        assert scores[f"texture_{band}"] == pytest.approx(expected, rel=0.12), band
        correlation = np.average(blur(frequency), weights=frequency) / math.sqrt(expected)
        assert scores[f"coherence_{band}"] == pytest.approx(correlation, abs=0.03), band


def test_texture_in_one_band_alone_is_missed_in_that_band_alone() -> None:
    low, high = BANDS["4px"]
    without = filtered(noise(0), lambda frequency: (frequency < low) | (frequency >= high))
    scores = texture(gray(without), gray(noise(0)))
    assert by_band(scores, "texture") == pytest.approx([1, 0, 1, 1], abs=0.08)


def test_noise_adds_power_and_takes_coherence() -> None:
    scores = texture(gray(noise(0, 0.05) + noise(1, 0.05)), gray(noise(0, 0.05)))
    assert by_band(scores, "texture") == pytest.approx([2] * 4, rel=0.1)
    assert by_band(scores, "coherence") == pytest.approx([math.sqrt(0.5)] * 4, abs=0.05)


def test_invented_texture_has_the_power_but_no_coherence() -> None:
    scores = texture(gray(noise(1)), gray(noise(0)))
    assert by_band(scores, "texture") == pytest.approx([1] * 4, rel=0.1)
    assert by_band(scores, "coherence") == pytest.approx([0] * 4, abs=0.06)


def test_a_shift_takes_coherence_by_the_phase_of_each_frequency() -> None:
    shifted = np.roll(noise(0), 1, 1)
    scores = texture(gray(shifted), gray(noise(0)))
    assert by_band(scores, "texture") == pytest.approx([1] * 4, rel=0.02)
    angle = np.linspace(0, 2 * math.pi, 400)
    for band, (low, high) in BANDS.items():
        frequency = np.linspace(low, high, 400)[:, None]
        expected = np.average(np.cos(2 * math.pi * frequency * np.cos(angle)).mean(1), weights=frequency[:, 0])
        assert scores[f"coherence_{band}"] == pytest.approx(expected, abs=0.04), band


def test_brightness_and_tint_alone_change_nothing_and_an_empty_band_has_no_score() -> None:
    target = gray(noise(0, 0.02))
    scores = texture(target + np.array([0.1, -0.05, 0.2]), target)
    assert by_band(scores, "texture") == pytest.approx([1] * 4, rel=1e-3)
    assert all(math.isnan(value) for value in texture(target, np.full_like(target, 0.5)).values())


def test_the_error_in_one_number_counts_smoothing_and_noise_alike() -> None:
    half, double, right = ({f"texture_{band}": ratio for band in BANDS} for ratio in (0.5, 2.0, 1.0))
    assert texture_error_db(half) == texture_error_db(double) == pytest.approx(10 * math.log10(2))
    assert texture_error_db(right) == 0
    assert texture_error_db(right | {"texture_4px": 10.0}) == pytest.approx(5), "10 dB in one of four bands"
    assert math.isnan(texture_error_db(right | {"texture_2px": math.nan}))


def test_tensors_score_like_arrays_and_small_frames_have_no_score() -> None:
    image, target = gray(noise(0)).astype(np.float32), gray(noise(1)).astype(np.float32)
    assert texture(torch.from_numpy(image), torch.from_numpy(target)) == texture(image, target)
    assert all(math.isnan(value) for value in texture(image[:100], target[:100]).values())
