"""Pixel and adversarial losses: functions of images or logits that return a scalar.

`real` and `fake` are the discriminator's logits, (B, 1, h, w) or any other shape, the same for both. `mean` averages
all logits of one kind for the relativistic loss: with several workers, over the batches of all of them.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lsid_ray.config.schema import LossConfig


def l1(image: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of two images of the same shape."""
    return F.l1_loss(image, target)


def discriminator_loss(kind: str, real: Tensor, fake: Tensor, mean: Callable[[Tensor], Tensor] = torch.mean) -> Tensor:
    """The discriminator's loss.

    bce: pix2pix (arXiv 1611.07004), halved as in the paper. hinge: arXiv 1705.02894, eq. 3. relativistic: the
    relativistic average discriminator with cross entropy, arXiv 1807.00734, eq. 14, halved.
    """
    if kind == "hinge":
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    if kind == "relativistic":
        real, fake = real - mean(fake), fake - mean(real)
    return (F.softplus(-real).mean() + F.softplus(fake).mean()) / 2


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
