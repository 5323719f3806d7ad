"""Sensor counts to the networks' inputs and targets: normalized, amplified, flipped, on the training device."""

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lsid_ray.config.schema import GeneratorConfig
from lsid_ray.data.batch import Batch
from lsid_ray.raw.color import (
    A7S2_COLOR_MATRIX,
    TONE_OFFSET,
    TONE_POWER,
    TONE_SLOPE,
    TONE_TOE,
    srgb_from_camera,
)
from lsid_ray.raw.mosaic import LAYOUTS, Kind, Layout, pack, unpack

# sRGB-from-camera matrix of SID's Sony: with `color_matrix`, networks are trained in the colors of this camera.
REFERENCE_MATRIX = torch.from_numpy(srgb_from_camera(A7S2_COLOR_MATRIX)).float()
MAX_INPUT = 1.5  # with the tone curve: that of 2.3 times the white level
Flips = tuple[bool, bool, bool]
"""Rows, columns, transpose."""


def network_input(
    short: Tensor, black: Tensor, white: Tensor, white_balance: Tensor, ratio: Tensor, config: GeneratorConfig
) -> Tensor:
    """Counts (B, C, h, w) of any integer type -> float32 of the same shape, or (B, C + 1, h, w) with `input_ratio`.

    (v - black) / (white - max(black)) * ratio as in SID (arXiv 1805.01934, section 4.1), times the camera's white
    balance if `config.white_balance`. "linear" is clipped to [0, 1]; "tone" is the tone curve of that, which is
    mirrored below 0, clipped to [-1.5, 1.5]. The plane of `input_ratio` is log2(ratio) / 8 everywhere. Other arguments:
    as in `Batch`. The window must begin at the beginning of a repeat of the CFA.
    """
    return _with_ratio(_amplified(short, black, white, white_balance, ratio, config), ratio, config)


def _amplified(
    short: Tensor, black: Tensor, white: Tensor, white_balance: Tensor, ratio: Tensor, config: GeneratorConfig
) -> Tensor:
    """The planes of the sensor in `network_input`, (B, C, h, w)."""
    layout = LAYOUTS[config.cfa]
    scale = (ratio / (white - black.amax(dim=(1, 2, 3))))[:, None, None, None]
    if config.white_balance:  # `stack`, because indexing with a list copies it to the GPU, which waits
        gains = torch.stack([white_balance[:, "RGB".index(color)] for color in layout.colors], dim=1)
        scale = scale * gains[:, :, None, None]
    height, width = short.shape[2:]
    if layout.repeat > 1:
        black = black.repeat(1, 1, -(-height // layout.repeat), -(-width // layout.repeat))[:, :, :height, :width]
    light = (short.float() - black) * scale
    if config.input_curve == "tone":
        return (light.sign() * tone_curve(light.abs())).clamp(-MAX_INPUT, MAX_INPUT)
    return light.clamp(0, 1)


def _with_ratio(planes: Tensor, ratio: Tensor, config: GeneratorConfig) -> Tensor:
    """Append the ratio's plane, if there is one: (B, C, h, w) -> (B, C + 1, h, w)."""
    if not config.input_ratio:
        return planes
    plane = (ratio.log2() / 8)[:, None, None, None].expand(-1, 1, *planes.shape[2:])
    return torch.cat([planes, plane], dim=1)


def training_pair(batch: Batch, config: GeneratorConfig) -> tuple[Tensor, Tensor]:
    """Input (B, C, s, s) and target (B, 3, ks, ks), or (B, 3, s, s) at half resolution; float32, about [0, 1].

    The input is that of `network_input`, flipped. Half resolution is the mean of 2x2 pixels. With `color_matrix` the
    target has the colors of the reference camera; `to_camera_colors` undoes this.
    """
    layout = LAYOUTS[config.cfa]
    planes = _amplified(batch.short, batch.black, batch.white, batch.white_balance, batch.ratio, config)
    flips = [tuple(f) for f in batch.flips.tolist()]
    planes = torch.stack([flip_planes(p, f, layout) for p, f in zip(planes, flips, strict=True)])
    planes = _with_ratio(planes, batch.ratio, config)
    target = torch.stack([flip_image(i, f, layout) for i, f in zip(batch.long.float() / 65535, flips, strict=True)])
    if config.color_matrix:
        for image, matrix in zip(target, batch.srgb_from_camera, strict=True):
            if not is_reference(matrix):
                image.copy_(apply_color_matrix(image, REFERENCE_MATRIX @ torch.linalg.inv(matrix)))
    return planes, F.avg_pool2d(target, 2) if config.output == "half" else target


def flip_planes(planes: Tensor, flips: Flips, layout: Layout) -> Tensor:
    """(C, s+r, s+r) packed planes -> (C, s, s): the flipped mosaic, with its CFA phase kept.

    Flipping a mosaic changes its phase; the window is shifted by a few sensels to make up for that.
    """
    return planes.flatten()[_flip_index_on(planes.device, planes.shape[-1], flips, layout.kind)]


def flip_image(image: Tensor, flips: Flips, layout: Layout) -> Tensor:
    """(3, k(s+r), k(s+r)) -> (3, ks, ks): aligned with `flip_planes` for the same flips."""
    rows, columns, transpose = flips
    top, left = _phase_offset(flips, layout.kind)
    size = image.shape[-1] - layout.period
    image = image[:, top : top + size, left : left + size]
    image = image.flip([axis for axis, flipped in ((1, rows), (2, columns)) if flipped])
    return image.transpose(1, 2) if transpose else image


def flip(image: np.ndarray, flips: Flips) -> np.ndarray:
    """A view of a mosaic (H, W) or an image (H, W, channels), flipped as it is."""
    rows, columns, transpose = flips
    image = image[:: -1 if rows else 1, :: -1 if columns else 1]
    return image.swapaxes(0, 1) if transpose else image


@lru_cache
def _phase_offset(flips: Flips, kind: Kind) -> tuple[int, int]:
    """First row and column of a window that has the CFA's phase once it is flipped."""
    layout = LAYOUTS[kind]
    pattern = np.array(list(layout.pattern)).reshape(layout.period, layout.period)
    for top, left in np.ndindex(layout.period, layout.period):
        if (flip(np.roll(pattern, (-top, -left), (0, 1)), flips) == pattern).all():
            return top, left
    raise AssertionError(f"{kind} pattern is not symmetric under the flips {flips}")


@lru_cache(maxsize=8)  # all flips of the crops of a run: 2 MB each at a Bayer crop of 256
def _flip_index_on(device: torch.device, side: int, flips: Flips, kind: Kind) -> Tensor:
    """`_flip_index` on a device, copied there once: in every step it would cost a wait for each sample."""
    return torch.from_numpy(_flip_index(side, flips, kind)).to(device)


def _flip_index(side: int, flips: Flips, kind: Kind) -> np.ndarray:
    """(C, s, s) int64: index into the flattened (C, side, side) planes of each value of the flipped planes."""
    layout = LAYOUTS[kind]
    indices = np.arange(len(layout.colors) * side**2).reshape(-1, side, side)
    mosaic = unpack(indices, layout.pattern, layout.block * side, layout.block * side)
    top, left = _phase_offset(flips, kind)
    size = layout.block * side - layout.period
    return pack(flip(mosaic[top : top + size, left : left + size], flips), layout.pattern)


def to_camera_colors(image: Tensor, matrix: Tensor, config: GeneratorConfig) -> Tensor:
    """Convert the generator's image (3, H, W), float, to the colors of the camera that took the frame.

    matrix: `srgb_from_camera` of that camera, (3, 3), on the CPU. LibRaw's rendering applies it to linear colors.
    """
    if not config.color_matrix or is_reference(matrix):
        return image
    return apply_color_matrix(image, matrix @ torch.linalg.inv(REFERENCE_MATRIX))


def is_reference(matrix: Tensor) -> Tensor:
    """Whether a color matrix (3, 3) is that of the reference camera to the precision of camera files: () bool."""
    return (matrix - REFERENCE_MATRIX).abs().max() < 2e-3


def apply_color_matrix(image: Tensor, matrix: Tensor) -> Tensor:
    """Apply `matrix` (3, 3) to the linear light of an image (3, H, W) that has the rendering's tone curve.

    Values below 0 and above 1 are kept, so that the inverse matrix undoes it.
    """
    power = ((image + TONE_OFFSET) / (1 + TONE_OFFSET)).clamp_min(0) ** (1 / TONE_POWER)
    linear = torch.where(image < TONE_SLOPE * TONE_TOE, image / TONE_SLOPE, power)
    return tone_curve(torch.einsum("ij,jhw->ihw", matrix.to(image), linear))


def tone_curve(linear: Tensor) -> Tensor:
    """The rendering's tone curve of linear light, both about [0, 1]; a straight line below 0."""
    curve = (1 + TONE_OFFSET) * linear.clamp_min(TONE_TOE) ** TONE_POWER - TONE_OFFSET
    return torch.where(linear < TONE_TOE, TONE_SLOPE * linear, curve)
