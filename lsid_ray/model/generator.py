"""The generator: packed planes to an RGB image.

Attention U-Net (Oktay et al. 2018, arXiv 1804.03999: additive gates on the skip connections); without gates, the U-Net
of See-in-the-Dark (Chen et al. 2018, arXiv 1805.01934, section 4.2).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsid_ray.config.schema import GeneratorConfig
from lsid_ray.raw.mosaic import LAYOUTS


def _norm(kind: str, channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.Identity()


def _block(c: GeneratorConfig, inputs: int, outputs: int) -> nn.Module:
    return ResidualBlock(c, inputs, outputs) if c.residual else _double_conv(c, inputs, outputs)


class ResidualBlock(nn.Module):
    """Two convolutions, to whose output a projection of their input is added (He et al. 2016, arXiv 1512.03385)."""

    def __init__(self, c: GeneratorConfig, inputs: int, outputs: int):
        super().__init__()
        self.convolutions = _double_conv(c, inputs, outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, features: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, outputs, h, w)."""
        return self.convolutions(features) + self.shortcut(features)


def _double_conv(c: GeneratorConfig, inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [
            nn.Conv2d(channels, outputs, 3, padding=1),
            _norm(c.norm, outputs),
            nn.LeakyReLU(c.negative_slope),
        ]
    return nn.Sequential(*layers)


def _upsample(c: GeneratorConfig, inputs: int, outputs: int) -> nn.Module:
    if c.upsample == "transpose":
        return nn.ConvTranspose2d(inputs, outputs, 2, stride=2, bias=False)
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="nearest"),
        nn.Conv2d(inputs, outputs, 3, padding=1),
        _norm(c.norm, outputs),
        nn.LeakyReLU(c.negative_slope),
    )


@torch.no_grad()
def _equal_subpixels(head: nn.Conv2d, scale: int) -> None:
    """Initialize all pixels of a packed pixel alike (ICNR, Aitken et al. 2017, arXiv 1707.02937).

    Else the pixel shuffle begins with a grid of 2 pixels (X-Trans: 3), which stays where training has seen few colors.
    """
    for values in (head.weight, head.bias):
        subpixels = values.view(3, scale**2, -1)
        subpixels.copy_(subpixels[:, :1].expand_as(subpixels).clone())


class AttentionGate(nn.Module):
    """Attention on a skip connection, with the coarser level as gating signal (arXiv 1804.03999, section 2.2).

    Gates without BatchNorm are initialized open (weight about 0.95), so that training starts as a plain U-Net; with
    BatchNorm they start half open, as in the baseline (Thesia and Suthar 2021).
    """

    def __init__(self, channels: int, norm: str):
        super().__init__()
        hidden = max(channels // 2, 1)
        self.from_gate = nn.Sequential(nn.Conv2d(channels, hidden, 1), _norm(norm, hidden))
        self.from_skip = nn.Sequential(nn.Conv2d(channels, hidden, 1), _norm(norm, hidden))
        self.weight = nn.Sequential(nn.Conv2d(hidden, 1, 1), _norm(norm, 1), nn.Sigmoid())
        if norm == "none":
            nn.init.constant_(self.weight[0].bias, 3.0)

    def forward(self, gate: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """gate, skip (B, C, h, w) -> the weighted skip (B, C, h, w) and its weights (B, 1, h, w) in (0, 1)."""
        weights = self.weight(F.relu(self.from_gate(gate) + self.from_skip(skip)))
        return skip * weights, weights


class Generator(nn.Module):
    """(B, C, h, w) float of about [0, 1] -> (B, 3, scale*h, scale*w) float, about [0, 1], not clamped. Any h, w.

    C is 4 for Bayer and 9 for X-Trans, and one more with `input_ratio`. Packed X-Trans has a third of the sensor's
    resolution, hence 27 channels before the pixel shuffle, as in SID's Fuji network.
    """

    def __init__(self, c: GeneratorConfig):
        super().__init__()
        self.config = c
        self.planes = len(LAYOUTS[c.cfa].colors) + c.input_ratio
        widths = [c.width * 2**level for level in range(c.depth + 1)]
        self.encoders = nn.ModuleList(
            _block(c, inputs, outputs) for inputs, outputs in zip([self.planes, *widths[:-1]], widths, strict=True)
        )
        self.ups = nn.ModuleList(_upsample(c, 2 * width, width) for width in widths[:-1])
        self.gates = nn.ModuleList(AttentionGate(width, c.norm) for width in widths[:-1] if c.gates)
        self.decoders = nn.ModuleList(_block(c, 2 * width, width) for width in widths[:-1])
        self.head = nn.Conv2d(c.width, 3 * self.scale**2, 1)
        if c.upsample == "nearest":  # SID's network, which has the other one, is left as it is
            _equal_subpixels(self.head, self.scale)

    @property
    def scale(self) -> int:
        """Output pixels per packed pixel, along one side."""
        return LAYOUTS[self.config.cfa].block if self.config.output == "full" else 1

    @property
    def stride(self) -> int:
        """Packed pixels per pixel of the coarsest level, along one side."""
        return 2**self.config.depth

    def forward(self, planes: Tensor) -> Tensor:
        """Returns the image; for shapes see the class."""
        return self.with_attention(planes)[0]

    def with_attention(self, planes: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Returns the image, and the weights of each gate, coarse to fine; without gates an empty list.

        At level l, of which 0 is the finest, they are (B, 1, h / 2**l, w / 2**l), rounded up.
        """
        height, width = planes.shape[-2:]
        pad = (0, -width % self.stride, 0, -height % self.stride)
        features = F.pad(planes, pad, mode="replicate")
        skips = []
        for level, encoder in enumerate(self.encoders):
            features = encoder(F.max_pool2d(features, 2) if level else features)
            skips.append(features)
        skips.pop()
        weights: list[Tensor] = []
        for level in reversed(range(self.config.depth)):
            features = self.ups[level](features)
            skip = skips.pop()
            if self.gates:
                skip, level_weights = self.gates[level](features, skip)
                weights.append(level_weights[..., : -(-height // 2**level), : -(-width // 2**level)])
            features = self.decoders[level](torch.cat([skip, features], dim=1))
        image = self.head(features)
        image = F.pixel_shuffle(image, self.scale)
        image = image[..., : self.scale * height, : self.scale * width]
        return image, weights
