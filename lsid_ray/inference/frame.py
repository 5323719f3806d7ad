"""Enhance one full frame: packed planes from the shards, or a decoded camera file."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lsid_ray.data.index import PackedFrame
from lsid_ray.data.preprocess import flip, network_input, to_camera_colors
from lsid_ray.errors import InputError
from lsid_ray.inference.bands import MEMORY_BYTES, OnWeights, no_weights, predict_bands
from lsid_ray.inference.self_ensemble import ORIENTATIONS, check_self_ensemble, flip_frame
from lsid_ray.model.generator import Generator
from lsid_ray.raw.color import srgb_from_camera
from lsid_ray.raw.frame import RawFrame
from lsid_ray.raw.mosaic import layout_of, pack, pack_black, phase_padding
from lsid_ray.raw.render import upright

Frame = RawFrame | PackedFrame  # either has the metadata that enhancing needs
# Packed pixels by which a frame is continued, mirrored, because convolutions pad with zeros, which leaves a dark line
# along the edges: with the demo's network the outer 8 pixels gain 0.4 dB; more than 8 gain no more. Even, for X-Trans.
MARGIN = 8


def frame_input(planes: np.ndarray, frame: Frame, ratio: float, generator: Generator, device: torch.device) -> Tensor:
    """Convert the packed planes (C, h, w) uint16 of a short exposure to generator input, as `network_input`, for one.

    Raises: InputError if the generator was trained for another kind of sensor.
    """
    kind = layout_of(frame.cfa).kind
    if kind != generator.config.cfa:
        raise InputError(f"sensor of kind {kind}; expected {generator.config.cfa}, on which the network was trained")
    return network_input(
        torch.from_numpy(planes)[None].to(device),
        torch.from_numpy(pack_black(frame.black, frame.cfa)).float()[None].to(device),
        torch.tensor([frame.white], device=device),
        torch.tensor([frame.white_balance], device=device),
        torch.tensor([ratio], device=device),
        generator.config,
    )


def enhance_frame_bands(
    generator: Generator,
    planes: np.ndarray,
    frame: Frame,
    ratio: float,
    device: torch.device,
    memory_bytes: int = MEMORY_BYTES,
    on_weights: OnWeights = no_weights,
) -> Iterator[Tensor]:
    """Enhance one short exposure in bands of full rows, from top to bottom.

    Yields (rows, W, 3) float32 in [0, 1], sRGB in sensor orientation. Together the bands have the size of the mosaic if
    `generator.scale` > 1, else the size of the planes. For the arguments see `frame_input` and `predict_bands`; the
    weights are of the frame with `_margin` on each side.
    """
    inputs = frame_input(planes, frame, ratio, generator, device)
    colors = torch.from_numpy(srgb_from_camera(frame.color_matrix)).float()
    size = inputs.shape[2:]
    margin = _margin(*size)
    top = left = generator.scale * margin
    height, width = size
    if generator.scale > 1:
        padding = phase_padding(frame.cfa, frame.height, frame.width)
        top, left = top + padding[0], left + padding[2]
        height, width = frame.height, frame.width
    inputs = F.pad(inputs, 4 * (margin,), mode="reflect")
    row = -top  # first row of the band in the image; negative rows are padding
    for image in predict_bands(generator, inputs, memory_bytes=memory_bytes, on_weights=on_weights):
        band = image[0, :, max(-row, 0) : max(height - row, 0), left : left + width].float()
        row += image.shape[2]
        yield to_camera_colors(band, colors, generator.config).clamp(0, 1).permute(1, 2, 0)


def _margin(height: int, width: int) -> int:
    """Packed pixels by which a frame of this size is continued on each side."""
    return min(MARGIN, (min(height, width) - 1) // 2 * 2)


def enhance_frame(
    generator: Generator,
    planes: np.ndarray,
    frame: Frame,
    ratio: float,
    device: torch.device,
    memory_bytes: int = MEMORY_BYTES,
    self_ensemble: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    """The image (H, W, 3) of `enhance_frame_bands`, and the weights of each gate, coarse to fine, none without gates.

    The finest gate's are (h, w) in packed pixels, in (0, 1); those of each coarser one half as many, rounded up.
    self_ensemble: the image is the mean of eight predictions, see `inference.self_ensemble`; the weights are those of
        the frame as it is. Raises: InputError at half resolution.
    """
    bands: dict[int, list[Tensor]] = {}

    def keep(level: int, weights: Tensor) -> None:
        bands.setdefault(level, []).append(weights[0, 0])

    if self_ensemble:
        raw = frame if isinstance(frame, RawFrame) else frame.raw_frame(planes)
        total = _sum_of_orientations(generator, raw, ratio, device, memory_bytes, keep)
        total /= len(ORIENTATIONS)
        image = torch.from_numpy(total).to(device)
    else:
        image = torch.cat(list(enhance_frame_bands(generator, planes, frame, ratio, device, memory_bytes, keep)))
    margin = _margin(*planes.shape[1:])

    def within(weights: Tensor, level: int) -> Tensor:
        rows, columns = (slice(margin >> level, -(-(margin + side) >> level)) for side in planes.shape[1:])
        return weights[rows, columns]

    return image, [within(torch.cat(bands[level]), level) for level in sorted(bands, reverse=True)]


def enhance_raw(
    generator: Generator,
    frame: RawFrame,
    ratio: float,
    device: torch.device,
    memory_bytes: int = MEMORY_BYTES,
    self_ensemble: bool = False,
) -> np.ndarray:
    """Enhance a raw frame: (H, W, 3) uint16 sRGB, upright. Raises InputError as `frame_input` does.

    self_ensemble: as `enhance_frame`.
    """
    if self_ensemble:
        total = _sum_of_orientations(generator, frame, ratio, device, memory_bytes)
        total *= 65535 / len(ORIENTATIONS)
        return upright(total.round(out=total).astype(np.uint16), frame.orientation)
    planes = pack(frame.mosaic, frame.cfa)
    size = frame.mosaic.shape if generator.scale > 1 else planes.shape[1:]
    image = np.empty((*size, 3), np.uint16)
    row = 0
    for band in enhance_frame_bands(generator, planes, frame, ratio, device, memory_bytes):
        image[row : row + len(band)] = (band * 65535).round().cpu().numpy()
        row += len(band)
    return upright(image, frame.orientation)


def _sum_of_orientations(
    generator: Generator,
    frame: RawFrame,
    ratio: float,
    device: torch.device,
    memory_bytes: int,
    on_weights: OnWeights = no_weights,
) -> np.ndarray:
    """The sum of the images in all `ORIENTATIONS`, (H, W, 3) float32. on_weights: for those of the first.

    Each image is predicted in bands, which are added at their place, so that only the sum is held in full.
    """
    check_self_ensemble(generator)
    total = np.zeros((*frame.mosaic.shape, 3), np.float32)
    for flips in ORIENTATIONS:
        flipped, view, row = flip_frame(frame, flips), flip(total, flips), 0
        keep = on_weights if flips == ORIENTATIONS[0] else no_weights
        planes = pack(flipped.mosaic, flipped.cfa)
        for band in enhance_frame_bands(generator, planes, flipped, ratio, device, memory_bytes, keep):
            view[row : row + len(band)] += band.cpu().numpy()
            row += len(band)
    return total
