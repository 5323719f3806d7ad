"""Sensor counts to what the networks see: normalised, amplified, flipped. On the device that trains."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lsid_ray import config

_PARITY = ((0, 0), (0, 1), (1, 1), (1, 0))  # row, column of R, G1, B, G2 in the 2x2 square
_TRANSPOSED = (0, 3, 2, 1)  # where each plane comes from when rows and columns change places


@dataclass(frozen=True)
class Batch:
    """Crops as they come from disk: s is the training crop in packed pixels."""

    numbers: list[int]
    """Of the samples in the schedule."""
    names: list[str]
    """Of their pairs."""
    short: Tensor
    """(B, 4, s+1, s+1) uint16: planes R, G1, B, G2, DN."""
    long: Tensor
    """(B, 3, 2s+2, 2s+2) uint16: the reference rendering, sRGB."""
    black: Tensor
    """(B, 4) float32, DN, of the planes."""
    white: Tensor
    """(B,) float32, DN."""
    white_balance: Tensor
    """(B, 3) float32: gains of R, G, B; green is 1."""
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
            flips=torch.from_numpy(np.array(columns["flips"])),
            **{name: tensor(name) for name in names},
        )


def network_input(
    short: Tensor, black: Tensor, white: Tensor, white_balance: Tensor, ratio: Tensor, c: config.Generator
) -> Tensor:
    """Counts (B, 4, h, w) of any integer type -> (B, 4, h, w) float32 in [0, 1].

    max(v - black, 0) / (white - the greatest black) * ratio as in SID (arXiv 1805.01934, section 4.1), times the
    camera's white balance where the generator asks for it, cut at 1. Other arguments as in `Batch`.
    """
    black = black[:, :, None, None]
    scale = (ratio / (white - black.amax(dim=(1, 2, 3))))[:, None, None, None]
    if c.white_balance:
        scale = scale * white_balance[:, [0, 1, 2, 1], None, None]
    return ((short.float() - black).clamp_min(0) * scale).clamp_max(1)


def training_pair(batch: Batch, c: config.Generator) -> tuple[Tensor, Tensor]:
    """Input (B, 4, s, s) and target (B, 3, 2s, 2s), or (B, 3, s, s) for half resolution; float32 in [0, 1].

    Half resolution is the mean of 2x2 pixels.
    """
    planes = network_input(batch.short, batch.black, batch.white, batch.white_balance, batch.ratio, c)
    flips = batch.flips.tolist()
    planes = torch.stack([flip_planes(p, *f) for p, f in zip(planes, flips, strict=True)])
    target = torch.stack([flip_image(i, *f) for i, f in zip(batch.long.float() / 65535, flips, strict=True)])
    return planes, F.avg_pool2d(target, 2) if c.output == "half" else target


def flip_planes(planes: Tensor, rows: bool, columns: bool, transpose: bool) -> Tensor:
    """(4, s+1, s+1) packed planes -> (4, s, s), the mosaic flipped with its CFA phase kept.

    A flip of an even number of rows begins with the other colour's row; a window that starts one sensel later does
    not. So even rows (R, G1) come from blocks 1..s and odd ones from 0..s-1, and columns likewise.
    """
    size = planes.shape[-1] - 1

    def cut(plane: Tensor, parity: int, flip: bool, dim: int) -> Tensor:
        part = plane.narrow(dim, 1 if flip and parity == 0 else 0, size)
        return part.flip(dim) if flip else part

    flipped = [
        cut(cut(plane, row, rows, 0), column, columns, 1) for plane, (row, column) in zip(planes, _PARITY, strict=True)
    ]
    if transpose:
        flipped = [flipped[source].T for source in _TRANSPOSED]
    return torch.stack(flipped)


def flip_image(image: Tensor, rows: bool, columns: bool, transpose: bool) -> Tensor:
    """(C, 2s+2, 2s+2) -> (C, 2s, 2s): the same sensels as `flip_planes` of the same flips."""
    size = image.shape[-1] - 2
    image = image[:, 1 : size + 1].flip(1) if rows else image[:, :size]
    image = image[:, :, 1 : size + 1].flip(2) if columns else image[:, :, :size]
    return image.transpose(1, 2) if transpose else image
