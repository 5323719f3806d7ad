"""A full frame through the network in tiles: the same pixels as in one piece, in bounded memory."""

import math
from typing import Protocol

import torch
from torch import Tensor


class Network(Protocol):
    """What prediction asks of a network: (B, C, h, w) -> (B, 3, scale * h, scale * w), at any h and w."""

    receptive_radius: int
    """Packed pixels: an output pixel depends on inputs at most so far away (an upper bound)."""
    stride: int
    """Packed pixels between the coarsest level's cells; the network itself pads bottom and right to it."""
    scale: int
    """Output pixels per packed pixel along a side: 2 at full resolution, 1 at half."""

    def __call__(self, planes_BChw: Tensor) -> Tensor: ...


@torch.no_grad()
def predict(network: Network, planes_1Chw: Tensor, *, tile: int | None) -> Tensor:
    """Enhance one frame, tile by tile; equal to the untiled result up to float rounding.

    network: in eval mode, on the frame's device, its output a local function of its input (no batch, group or
        instance normalisation over the frame). planes_1Chw: (1, C, h, w) float32 in [0, 1], normalised and
        amplified. tile: side in packed pixels of what one pass yields, rounded up to the network's stride;
        a pass sees the halo around it too. None: the whole frame in one pass.
    Returns (1, 3, scale * h, scale * w), or what channels the network yields, in the network's dtype,
        unclamped, on the frame's device.
    Raises ValueError for another shape or a tile below 1.
    """
    if planes_1Chw.ndim != 4 or planes_1Chw.shape[0] != 1:
        raise ValueError(f"expected one frame of shape (1, C, h, w), got {(*planes_1Chw.shape,)}")
    if tile is None:
        return network(planes_1Chw)
    if tile < 1:
        raise ValueError(f"a tile has at least 1 packed pixel a side, got {tile}")
    height, width = planes_1Chw.shape[2:]
    halo = _round_up(network.receptive_radius, network.stride)
    scale = network.scale
    output_1DHW = None
    for top, bottom in _spans(height, tile, network.stride):
        for left, right in _spans(width, tile, network.stride):
            # Everything starts on the pooling grid; only at the frame's own end does the network pad, as it
            # would for the whole frame. What its zero padding spoils elsewhere lies in the halo.
            above, before = max(top - halo, 0), max(left - halo, 0)
            seen = planes_1Chw[:, :, above : bottom + halo, before : right + halo]
            enhanced = network(seen)
            if output_1DHW is None:
                output_1DHW = enhanced.new_empty(1, enhanced.shape[1], scale * height, scale * width)
            rows, columns = slice(scale * top, scale * bottom), slice(scale * left, scale * right)
            own_rows = slice(scale * (top - above), scale * (bottom - above))
            own_columns = slice(scale * (left - before), scale * (right - before))
            output_1DHW[:, :, rows, columns] = enhanced[:, :, own_rows, own_columns]
            del enhanced  # or two tiles' results would live at once
    return output_1DHW


def _spans(length: int, tile: int, stride: int) -> list[tuple[int, int]]:
    """Split [0, length) into nearly equal spans, at most `tile` (rounded up) long, starting on the stride."""
    count = math.ceil(length / _round_up(tile, stride))
    step = _round_up(math.ceil(length / count), stride)
    return [(start, min(start + step, length)) for start in range(0, length, step)]


def _round_up(value: int, multiple: int) -> int:
    return math.ceil(value / multiple) * multiple
