"""Pixel and adversarial losses: functions of images or logits that return scalars.

`real` and `fake` are the discriminator's logits, (B, 1, h, w) or (B, ...), the same shape for both. `mean` averages
all logits of one kind for the relativistic loss: with several workers, over the batches of all of them.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lsid_ray.config.schema import LossConfig

SSIM_SIGMA, SSIM_RADIUS = 1.5, 5  # of the Gaussian window, in pixels: 11 x 11 as in the paper
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2


def l1(image: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of two images of the same shape."""
    return F.l1_loss(image, target)


def ssim(image: Tensor, target: Tensor) -> Tensor:
    """Structural similarity of two images (B, 3, H, W), float32 of about [0, 1], H and W at least 11; 1 if equal.

    The mean over channels and all pixels whose window fits, as `evaluate.metrics.ssim`, but the images are not clamped,
    so that values outside [0, 1] have gradients, too. Source: Wang et al. 2004, section III-B.
    """
    moments = torch.stack([image, target, image * image + target * target, image * target])
    # As products with matrices: 28 times as fast on a CPU as convolutions, which a GPU computes in TF32, too coarse for
    # the differences below.
    rows, columns = (_ssim_window(side, image.device) for side in image.shape[-2:])
    mean_x, mean_y, mean_squares, mean_product = rows @ moments @ columns.T
    means_product, means_squares = mean_x * mean_y, mean_x * mean_x + mean_y * mean_y
    luminance = (2 * means_product + SSIM_C1) / (means_squares + SSIM_C1)
    structure = (2 * (mean_product - means_product) + SSIM_C2) / (mean_squares - means_squares + SSIM_C2)
    return (luminance * structure).mean()


@lru_cache(maxsize=4)
def _ssim_window(side: int, device: torch.device) -> Tensor:
    """(side - 10, side) float32: each row is the window at one position."""
    taps = [math.exp(-0.5 * (d / SSIM_SIGMA) ** 2) for d in range(-SSIM_RADIUS, SSIM_RADIUS + 1)]
    window = torch.zeros(side - 2 * SSIM_RADIUS, side)
    for offset, tap in enumerate(taps):
        window.diagonal(offset).fill_(tap / sum(taps))
    return window.to(device)


class DiscriminatorLoss(NamedTuple):
    """What a discriminator is trained by, and how well it tells the images apart: scalars."""

    loss: Tensor
    real_accuracy: Tensor
    """Share of the real images that score above the boundary, in [0, 1], detached. An image scores the mean of its
    logits, as in pix2pix; the boundary is 0, and with "relativistic" the mean of the other kind."""
    fake_accuracy: Tensor
    """Share of the fake ones that score below it."""


def discriminator_loss(
    kind: str, real: Tensor, fake: Tensor, mean: Callable[[Tensor], Tensor] = torch.mean
) -> DiscriminatorLoss:
    """The discriminator's loss and accuracy.

    bce: pix2pix (arXiv 1611.07004), halved as in the paper. hinge: arXiv 1705.02894, eq. 3. relativistic: the
    relativistic average discriminator with cross entropy, arXiv 1807.00734, eq. 14, halved.
    """
    if kind == "relativistic":
        real, fake = real - mean(fake), fake - mean(real)
    if kind == "hinge":
        loss = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    else:
        loss = (F.softplus(-real).mean() + F.softplus(fake).mean()) / 2
    real_score, fake_score = (logits.detach().flatten(1).mean(dim=1) for logits in (real, fake))
    return DiscriminatorLoss(loss, (real_score > 0).float().mean(), (fake_score < 0).float().mean())


def generator_loss(
    kind: str, real: Tensor | None, fake: Tensor, mean: Callable[[Tensor], Tensor] = torch.mean
) -> Tensor:
    """The adversarial part of the generator's loss, unweighted; only "relativistic" uses `real`."""
    if kind == "hinge":
        return -fake.mean()
    if kind == "relativistic":
        assert real is not None
        real, fake = real - mean(fake), fake - mean(real)
        return (F.softplus(real).mean() + F.softplus(-fake).mean()) / 2
    return F.softplus(-fake).mean()


def adversarial_weight(loss: LossConfig, step: int) -> float:
    """Weight of the adversarial loss at a step: 0 during the warm-up, then a linear ramp to `adv_weight`."""
    ramp_step = step - loss.warmup_steps
    if ramp_step < 0:
        return 0.0
    return loss.adv_weight * min(1.0, (ramp_step + 1) / (loss.ramp_steps + 1))
