"""One training batch, from the stream to the training step."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # readers do not import torch
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Crops as stored, in sensor counts. The fields are also the columns of the stream.

    s is the training crop in packed pixels, C the number of planes, k the side of a packed pixel in sensels, and r
    the period of the CFA in packed pixels: 1 for Bayer, 2 for X-Trans.
    """

    sample: list[int]
    """Sample numbers in the schedule."""
    pair: list[str]
    """Names of the pairs."""
    short: "Tensor"
    """(B, C, s+r, s+r) uint16: packed planes, DN."""
    long: "Tensor"
    """(B, 3, k(s+r), k(s+r)) uint16: the reference rendering, sRGB."""
    black: "Tensor"
    """(B, C, r, r) float32, DN: black level of each plane."""
    white: "Tensor"
    """(B,) float32, DN."""
    white_balance: "Tensor"
    """(B, 3) float32: gains of R, G, B; green is 1."""
    srgb_from_camera: "Tensor"
    """(B, 3, 3) float32: as `raw.color.srgb_from_camera`. On the CPU."""
    ratio: "Tensor"
    """(B,) float32: amplification ratio."""
    flips: "Tensor"
    """(B, 3) bool: rows, columns, transpose. On the CPU."""

    @staticmethod
    def from_columns(columns: dict[str, np.ndarray], device: "torch.device") -> "Batch":
        """Convert the columns of the stream to tensors. Pixels are transferred to the device as 16-bit integers."""
        import torch

        def to_device(name: str) -> "Tensor":
            values = torch.from_numpy(np.require(columns[name], requirements=["C", "W"]))
            return (values.pin_memory() if device.type == "cuda" else values).to(device, non_blocking=True)

        return Batch(
            sample=[int(number) for number in columns["sample"]],
            pair=[str(name) for name in columns["pair"]],
            srgb_from_camera=torch.from_numpy(np.array(columns["srgb_from_camera"])),
            flips=torch.from_numpy(np.array(columns["flips"])),
            **{name: to_device(name) for name in ("short", "long", "black", "white", "white_balance", "ratio")},
        )
