"""Sensor counts to what the networks see: normalised, amplified, flipped. On the device that trains."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lsid_ray import config
from lsid_ray.raw.color import A7S2_COLOR_MATRIX, srgb_from_camera
from lsid_ray.raw.mosaic import LAYOUTS, Kind, Layout, pack, unpack

# The colours that every network with `color_matrix` learns in: SID's Sony's.
REFERENCE_COLORS = torch.from_numpy(srgb_from_camera(A7S2_COLOR_MATRIX)).float()
Flips = tuple[bool, bool, bool]
"""Rows, columns, transpose."""


@dataclass(frozen=True)
class Batch:
    """Crops as they come from disk: s is the training crop in packed pixels, C the planes, k the block's side.

    r is the CFA's repeat in packed pixels: 1 for Bayer, 2 for X-Trans.
    """

    numbers: list[int]
    """Of the samples in the schedule."""
    names: list[str]
    """Of their pairs."""
    short: Tensor
    """(B, C, s+r, s+r) uint16: packed planes, DN."""
    long: Tensor
    """(B, 3, k(s+r), k(s+r)) uint16: the reference rendering, sRGB."""
    black: Tensor
    """(B, C, r, r) float32, DN, of the planes."""
    white: Tensor
    """(B,) float32, DN."""
    white_balance: Tensor
    """(B, 3) float32: gains of R, G, B; green is 1."""
    colors: Tensor
    """(B, 3, 3) float32: `raw.frame.srgb_from_camera`. On the CPU."""
    ratio: Tensor
    """(B,) float32: amplification."""
    flips: Tensor
    """(B, 3) bool: rows, columns, transpose. On the CPU."""

    @staticmethod
    def of(columns: dict[str, np.ndarray], device: torch.device) -> "Batch":
        """The columns of `data.stream` as tensors; 16 bits a value travel to the device."""

        def tensor(name: str) -> Tensor:
            values = torch.from_numpy(np.require(columns[name], requirements=["C", "W"]))
            return (values.pin_memory() if device.type == "cuda" else values).to(device, non_blocking=True)

        names = ("short", "long", "black", "white", "white_balance", "ratio")
        return Batch(
            numbers=[int(n) for n in columns["number"]],
            names=[str(n) for n in columns["name"]],
            colors=torch.from_numpy(np.array(columns["colors"])),
            flips=torch.from_numpy(np.array(columns["flips"])),
            **{name: tensor(name) for name in names},
        )


def network_input(
    short: Tensor, black: Tensor, white: Tensor, white_balance: Tensor, ratio: Tensor, c: config.Generator
) -> Tensor:
    """Counts (B, C, h, w) of any integer type -> (B, C, h, w) float32 in [0, 1].

    max(v - black, 0) / (white - the greatest black) * ratio as in SID (arXiv 1805.01934, section 4.1), times the
    camera's white balance where the generator asks for it, cut at 1. Other arguments as in `Batch`; the window
    begins where the CFA's repeat does.
    """
    layout = LAYOUTS[c.cfa]
    scale = (ratio / (white - black.amax(dim=(1, 2, 3))))[:, None, None, None]
    if c.white_balance:
        scale = scale * white_balance[:, ["RGB".index(color) for color in layout.colors], None, None]
    height, width = short.shape[2:]
    if layout.repeat > 1:
        black = black.repeat(1, 1, -(-height // layout.repeat), -(-width // layout.repeat))[:, :, :height, :width]
    return ((short.float() - black).clamp_min(0) * scale).clamp_max(1)


def training_pair(batch: Batch, c: config.Generator) -> tuple[Tensor, Tensor]:
    """Input (B, C, s, s) and target (B, 3, ks, ks), or (B, 3, s, s) for half resolution; float32, about [0, 1].

    Half resolution is the mean of 2x2 pixels. With `color_matrix` the target is what the reference camera would have
    given: `own_colors` undoes it.
    """
    layout = LAYOUTS[c.cfa]
    planes = network_input(batch.short, batch.black, batch.white, batch.white_balance, batch.ratio, c)
    flips = [tuple(f) for f in batch.flips.tolist()]
    planes = torch.stack([flip_planes(p, f, layout) for p, f in zip(planes, flips, strict=True)])
    target = torch.stack([flip_image(i, f, layout) for i, f in zip(batch.long.float() / 65535, flips, strict=True)])
    if c.color_matrix:
        for image, colors in zip(target, batch.colors, strict=True):
            if not _same(colors, REFERENCE_COLORS):
                image.copy_(_turn(image, REFERENCE_COLORS @ torch.linalg.inv(colors)))
    return planes, F.avg_pool2d(target, 2) if c.output == "half" else target


def flip_planes(planes: Tensor, flips: Flips, layout: Layout) -> Tensor:
    """(C, s+r, s+r) packed planes -> (C, s, s), the mosaic flipped with its CFA phase kept.

    A flipped mosaic begins at another phase; the same window moved by some sensels does not.
    """
    index = _flip_index(planes.shape[-1], flips, layout.kind)
    return planes.flatten()[torch.from_numpy(index).to(planes.device)]


def flip_image(image: Tensor, flips: Flips, layout: Layout) -> Tensor:
    """(3, k(s+r), k(s+r)) -> (3, ks, ks): the same sensels as `flip_planes` of the same flips."""
    rows, columns, transpose = flips
    top, left = _window(flips, layout.kind)
    size = image.shape[-1] - layout.period
    image = image[:, top : top + size, left : left + size]
    image = image.flip([axis for axis, flipped in ((1, rows), (2, columns)) if flipped])
    return image.transpose(1, 2) if transpose else image


def _flip(mosaic: np.ndarray, flips: Flips) -> np.ndarray:
    rows, columns, transpose = flips
    mosaic = mosaic[:: -1 if rows else 1, :: -1 if columns else 1]
    return mosaic.T if transpose else mosaic


@lru_cache
def _window(flips: Flips, kind: Kind) -> tuple[int, int]:
    """Row and column at which a window begins that, flipped, begins at the CFA's phase."""
    layout = LAYOUTS[kind]
    square = np.array(list(layout.pattern)).reshape(layout.period, layout.period)
    for top, left in np.ndindex(layout.period, layout.period):
        if (_flip(np.roll(square, (-top, -left), (0, 1)), flips) == square).all():
            return top, left
    raise AssertionError(f"{kind} has no such symmetry")


@lru_cache(maxsize=64)
def _flip_index(side: int, flips: Flips, kind: Kind) -> np.ndarray:
    """(C, s, s) int64: where in the flattened (C, side, side) planes each value of the flipped ones comes from."""
    layout = LAYOUTS[kind]
    numbers = np.arange(len(layout.colors) * side**2).reshape(-1, side, side)
    mosaic = unpack(numbers, layout.pattern, layout.block * side, layout.block * side)
    top, left = _window(flips, kind)
    size = layout.block * side - layout.period
    return pack(_flip(mosaic[top : top + size, left : left + size], flips), layout.pattern)


# LibRaw's tone curve for gamma (2.222, 4.5), as it solves it: 4.5 x up to the toe, 1.0993 x**0.45 - 0.0993 above.
_POWER, _SLOPE, _OFFSET, _TOE = 1 / 2.222, 4.5, 0.0992578062, 0.0180501557


def own_colors(image: Tensor, colors: Tensor, c: config.Generator) -> Tensor:
    """The generator's image (3, H, W), float, in the colours of the camera that took the frame.

    colors: (3, 3) on the CPU, as in `Batch`. Source: LibRaw's rendering turns linear camera colours by this matrix.
    """
    if not c.color_matrix or _same(colors, REFERENCE_COLORS):
        return image
    return _turn(image, colors @ torch.linalg.inv(REFERENCE_COLORS))


def _same(colors: Tensor, others: Tensor) -> bool:
    """Whether two colour matrices differ by no more than the digits that camera files have."""
    return bool((colors - others).abs().max() < 2e-3)


def _turn(image: Tensor, matrix: Tensor) -> Tensor:
    """`matrix` (3, 3) applied to the linear light of an image (3, H, W) that has the rendering's tone curve.

    Values below 0 and above 1 are kept, so that the inverse matrix undoes it.
    """
    power = ((image + _OFFSET) / (1 + _OFFSET)).clamp_min(0) ** (1 / _POWER)
    linear = torch.where(image < _SLOPE * _TOE, image / _SLOPE, power)
    turned = torch.einsum("ij,jhw->ihw", matrix.to(image), linear)
    curve = (1 + _OFFSET) * turned.clamp_min(_TOE) ** _POWER - _OFFSET
    return torch.where(turned < _TOE, _SLOPE * turned, curve)
