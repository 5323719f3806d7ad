"""Pixel and adversarial losses, each a function of logits or images that returns a scalar.

`real` and `fake` are the discriminator's logits, (B, 1, h, w) or any equal shapes.
"""

import torch.nn.functional as F
from torch import Tensor

from lsid_ray import config


def l1(image: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of two images of one shape."""
    return F.l1_loss(image, target)


def discriminator_loss(kind: str, real: Tensor, fake: Tensor) -> Tensor:
    """What the discriminator minimises.

    bce: pix2pix (arXiv 1611.07004), halved as there. hinge: arXiv 1705.02894, eq. 3. relativistic: the average
    discriminator with cross entropy, arXiv 1807.00734, eq. 14, halved.
    """
    if kind == "hinge":
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    if kind == "relativistic":
        real, fake = real - fake.mean(), fake - real.mean()
    return (F.softplus(-real).mean() + F.softplus(fake).mean()) / 2


def generator_loss(kind: str, real: Tensor | None, fake: Tensor) -> Tensor:
    """The adversarial part of what the generator minimises; `real` is used by "relativistic" only."""
    if kind == "hinge":
        return -fake.mean()
    if kind == "relativistic":
        assert real is not None
        real, fake = real - fake.mean(), fake - real.mean()
        return (F.softplus(real).mean() + F.softplus(-fake).mean()) / 2
    return F.softplus(-fake).mean()


def adversarial_weight(loss: config.Loss, step: int) -> float:
    """Weight of the adversarial loss at a step: 0 in the warm-up, a linear ramp, then `adv_weight`."""
    since = step - loss.warmup_steps
    if since < 0:
        return 0.0
    return loss.adv_weight * min(1.0, (since + 1) / (loss.ramp_steps + 1))
