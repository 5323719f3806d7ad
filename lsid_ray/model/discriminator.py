"""The conditional discriminator: pix2pix's PatchGAN (arXiv 1611.07004) on packed planes and an image."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from lsid_ray.config.schema import DiscriminatorConfig


class Discriminator(nn.Module):
    """planes (B, planes, h, w), image (B, 3, scale*h, scale*w) -> logits (B, 1, h', w'), one per patch.

    Pixel unshuffle brings a full-resolution image to the planes' size without loss, so that both have the same scale.
    """

    def __init__(self, c: DiscriminatorConfig, planes: int, scale: int):
        super().__init__()
        self.scale = scale
        widths = [min(c.width * 2**i, c.width * 8) for i in range(c.layers + 1)]
        layers: list[nn.Module] = []
        inputs = planes + 3 * scale**2
        for i, outputs in enumerate(widths):
            conv = nn.Conv2d(inputs, outputs, 4, stride=2 if i < c.layers else 1, padding=1)
            layers.append(spectral_norm(conv) if c.norm == "spectral" else conv)
            if c.norm == "batch" and i > 0:
                layers.append(nn.BatchNorm2d(outputs))
            layers.append(nn.LeakyReLU(0.2))
            inputs = outputs
        last = nn.Conv2d(inputs, 1, 4, padding=1)
        layers.append(spectral_norm(last) if c.norm == "spectral" else last)
        self.layers = nn.Sequential(*layers)

    def forward(self, planes: Tensor, image: Tensor) -> Tensor:
        """Returns the logits; for shapes see the class."""
        if self.scale > 1:
            image = F.pixel_unshuffle(image, self.scale)
        return self.layers(torch.cat([planes, image], dim=1))
