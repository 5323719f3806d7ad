import math

import numpy as np
import pytest
import torch
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from lsid_ray.evaluate import metrics


def skimage_ssim(image: np.ndarray, target: np.ndarray) -> float:
    return structural_similarity(
        image,
        target,
        channel_axis=-1,
        data_range=1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )


def photograph() -> np.ndarray:
    return data.astronaut()[100:237, 60:271] / 255.0  # 137 x 211: not a multiple of a strip


def noisy(target: np.ndarray, sigma: float) -> np.ndarray:
    return np.clip(target + np.random.default_rng(0).normal(0, sigma, target.shape), 0, 1)


@pytest.mark.parametrize("sigma", [0.003, 0.05, 0.4])
@pytest.mark.parametrize("scale", [1.0, 0.01])  # nearly black, where K1 and K2 dominate
def test_psnr_and_ssim_equal_scikit_image(sigma: float, scale: float):
    target = photograph() * scale
    image = noisy(target, sigma * scale)
    assert metrics.psnr_db(image, target) == pytest.approx(
        peak_signal_noise_ratio(target, image, data_range=1), abs=1e-9
    )
    assert metrics.ssim(image, target) == pytest.approx(skimage_ssim(image, target), abs=1e-9)


@pytest.mark.parametrize("height, width", [(11, 11), (11, 40), (26, 12), (27, 30), (43, 11)])
def test_ssim_equals_scikit_image_at_every_strip_remainder(height: int, width: int):
    target = photograph()[:height, :width]
    image = noisy(target, 0.1)
    assert metrics.ssim(image, target) == pytest.approx(skimage_ssim(image, target), abs=1e-9)


def test_arrays_and_tensors_of_either_precision_score_the_same():
    target = photograph().astype(np.float32)
    image = noisy(target, 0.05).astype(np.float32)
    tensors = torch.from_numpy(image).requires_grad_(), torch.from_numpy(target)
    assert metrics.psnr_db(*tensors) == metrics.psnr_db(image.astype(np.float64), target)
    assert metrics.ssim(*tensors) == metrics.ssim(image.astype(np.float64), target)


def test_a_permuted_view_scores_the_same_as_its_copy():
    planes_3HW = torch.from_numpy(np.moveaxis(photograph(), -1, 0).copy())
    target = photograph() * 0.9
    assert metrics.ssim(planes_3HW.permute(1, 2, 0), target) == metrics.ssim(photograph(), target)


def test_equal_frames_score_infinity_and_one():
    target = photograph()
    assert metrics.psnr_db(target, target.copy()) == math.inf
    assert metrics.ssim(target, target.copy()) == pytest.approx(1, abs=1e-12)


def test_values_outside_the_range_are_clamped():
    target = photograph()
    image = target * 1.5 - 0.2
    assert metrics.psnr_db(image, target) == metrics.psnr_db(np.clip(image, 0, 1), target)
    assert metrics.ssim(image, target) == metrics.ssim(np.clip(image, 0, 1), target)


def test_rounding_to_8_bit_rounds_to_nearest_and_keeps_the_type():
    values = np.array([-1, 0.4 / 255, 0.6 / 255, 127.6 / 255, 2], np.float32)
    rounded = metrics.round_to_8bit(values)
    assert rounded.dtype == np.float32
    np.testing.assert_array_equal(np.round(rounded * 255), [0, 0, 1, 128, 255])
    np.testing.assert_array_equal(metrics.round_to_8bit(torch.from_numpy(values)).numpy(), rounded)


@pytest.mark.parametrize("metric", [metrics.psnr_db, metrics.ssim])
def test_invalid_frames_are_refused(metric):
    target = photograph()
    with pytest.raises(ValueError, match="one shape"):
        metric(target[:-1], target)
    with pytest.raises(ValueError, match="one shape"):
        metric(target[..., 0], target[..., 0])
    with pytest.raises(ValueError, match="uint8"):
        metric(data.astronaut(), data.astronaut())
    with pytest.raises(ValueError, match="NaN"):
        metric(np.full_like(target, np.nan), target)


def test_ssim_refuses_a_frame_smaller_than_its_window():
    with pytest.raises(ValueError, match="11 x 11"):
        metrics.ssim(photograph()[:10], photograph()[:10])
