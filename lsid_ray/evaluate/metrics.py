"""PSNR and SSIM of a full frame: no border crop, no brightness fitting."""

import math

import numpy as np
import torch
from torch import Tensor

WINDOW_SIGMA = 1.5
WINDOW_RADIUS = 5  # scikit-image truncates at 3.5 sigma: 11 x 11 taps
K1, K2 = 0.01, 0.03
STRIP_ROWS = 16  # such a strip of a 12-megapixel frame stays in the cache; 256 rows are 6 times slower


def psnr_db(image: np.ndarray | Tensor, target: np.ndarray | Tensor) -> float:
    """Peak signal-to-noise ratio in dB over every pixel and channel; inf if both are equal.

    image, target: (H, W, 3) floats, clamped to [0, 1] here. The error is squared and summed in float64.
    Raises ValueError for other shapes, integer arrays, and NaN.
    Source: -10 log10 of the mean squared error, peak 1 (scikit-image's peak_signal_noise_ratio).
    """
    image_HW3, target_HW3 = _comparable(image, target)
    squares, rows = 0.0, image_HW3.shape[0]
    for top in range(0, rows, STRIP_ROWS):
        strips = (frame[top : top + STRIP_ROWS].double().clamp(0, 1) for frame in (image_HW3, target_HW3))
        squares += torch.sum(torch.square(next(strips) - next(strips))).item()
    mean_square = squares / image_HW3.numel()
    if math.isnan(mean_square):
        raise ValueError("a NaN in the image or the target has no PSNR")
    return math.inf if mean_square == 0 else -10 * math.log10(mean_square)


def ssim(image: np.ndarray | Tensor, target: np.ndarray | Tensor) -> float:
    """Structural similarity, the mean over channels and over every pixel whose 11 x 11 window fits the frame.

    image, target: (H, W, 3) floats, H and W at least 11, clamped to [0, 1] here; computed on the image's device.
    Raises ValueError for other shapes, integer arrays and NaN.
    Source: Wang et al. 2004, section III-B; equals scikit-image's structural_similarity with channel_axis=-1,
    data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False.
    """
    image_HW3, target_HW3 = _comparable(image, target)
    height, width, _ = image_HW3.shape
    size = 2 * WINDOW_RADIUS + 1
    if min(height, width) < size:
        raise ValueError(f"SSIM needs at least {size} x {size} pixels, got {height} x {width}")
    total, rows = 0.0, height - size + 1
    for top in range(0, rows, STRIP_ROWS):
        bottom = min(top + STRIP_ROWS, rows) + size - 1
        total += _ssim_sum(_planes(image_HW3[top:bottom]), _planes(target_HW3[top:bottom]))
    mean = total / (3 * rows * (width - size + 1))
    if math.isnan(mean):
        raise ValueError("a NaN in the image or the target has no SSIM")
    return mean


def round_to_8bit(image: np.ndarray | Tensor) -> np.ndarray | Tensor:
    """The nearest 8-bit image, as floats k/255: for the secondary scores of what a PNG would hold.

    image: any shape, floats, clamped to [0, 1] here. Returns the same type, shape and dtype.
    """
    if isinstance(image, Tensor):
        return image.clamp(0, 1).mul(255).round().div(255)
    return np.round(np.clip(image, 0, 1) * 255) / np.asarray(255, image.dtype)


def _comparable(image: np.ndarray | Tensor, target: np.ndarray | Tensor) -> tuple[Tensor, Tensor]:
    """Both frames as tensors on the image's device, copied only if needed."""
    image_HW3 = torch.as_tensor(image)
    target_HW3 = torch.as_tensor(target, device=image_HW3.device)
    if image_HW3.shape != target_HW3.shape or image_HW3.ndim != 3 or image_HW3.shape[-1] != 3:
        shapes = f"{(*image_HW3.shape,)} and {(*target_HW3.shape,)}"
        raise ValueError(f"expected two frames of one shape (H, W, 3), got {shapes}")
    if not (image_HW3.is_floating_point() and target_HW3.is_floating_point()):
        raise ValueError(f"expected floats in [0, 1], got {image_HW3.dtype} and {target_HW3.dtype}")
    return image_HW3.detach(), target_HW3.detach()


def _planes(strip_HW3: Tensor) -> Tensor:
    return strip_HW3.permute(2, 0, 1).double().clamp(0, 1).contiguous()


def _ssim_sum(x_3HW: Tensor, y_3HW: Tensor) -> float:
    """Sum of the SSIM map over one strip's inner pixels."""
    moments_43hw = _blur(torch.stack([x_3HW, y_3HW, x_3HW * x_3HW + y_3HW * y_3HW, x_3HW * y_3HW]))
    mean_x, mean_y, mean_squares, mean_product = moments_43hw
    c1, c2 = K1**2, K2**2
    means_product = mean_x * mean_y
    means_squares = mean_x * mean_x + mean_y * mean_y
    # Only the sum of both variances is needed, so four planes are filtered instead of five.
    luminance = (2 * means_product + c1) / (means_squares + c1)
    structure = (2 * (mean_product - means_product) + c2) / (mean_squares - means_squares + c2)
    return torch.sum(luminance * structure).item()


def _blur(planes: Tensor) -> Tensor:
    """Separable Gaussian over the last two axes, inner pixels only: (..., H, W) -> (..., H - 10, W - 10)."""
    taps = [math.exp(-0.5 * (distance / WINDOW_SIGMA) ** 2) for distance in range(WINDOW_RADIUS + 1)]
    total = taps[0] + 2 * sum(taps[1:])
    for axis in (-2, -1):
        length = planes.shape[axis] - 2 * WINDOW_RADIUS
        blurred = planes.narrow(axis, WINDOW_RADIUS, length) * (taps[0] / total)
        for distance in range(1, WINDOW_RADIUS + 1):  # symmetric window: both ends share a tap
            before = planes.narrow(axis, WINDOW_RADIUS - distance, length)
            after = planes.narrow(axis, WINDOW_RADIUS + distance, length)
            blurred.add_(before + after, alpha=taps[distance] / total)
        planes = blurred
    return planes
