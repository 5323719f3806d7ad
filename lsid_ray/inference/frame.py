"""Enhance one full frame: packed planes from the shards, or a decoded camera file."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lsid_ray.data.index import PackedFrame
from lsid_ray.data.preprocess import flip, network_input, to_camera_colors
from lsid_ray.errors import InputError
from lsid_ray.inference.bands import MEMORY_BYTES, predict_bands
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
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Enhance one short exposure in bands of full rows, from top to bottom.

    Yields (rows, W, 3) float32 in [0, 1], sRGB in sensor orientation, and the finest gate's weights (rows', w) in
    packed pixels, or None. Together the bands have the size of the mosaic if `generator.scale` > 1, else the size of
    the planes. For the arguments see `frame_input` and `predict_bands`.
    """
    inputs = frame_input(planes, frame, ratio, generator, device)
    colors = torch.from_numpy(srgb_from_camera(frame.color_matrix)).float()
    margin = min(MARGIN, (min(inputs.shape[2:]) - 1) // 2 * 2)
    size = inputs.shape[2:]
    top = left = generator.scale * margin
    height, width = size
    if generator.scale > 1:
        padding = phase_padding(frame.cfa, frame.height, frame.width)
        top, left = top + padding[0], left + padding[2]
        height, width = frame.height, frame.width
    inputs = F.pad(inputs, 4 * (margin,), mode="reflect")
    row, packed_row = -top, -margin  # first row of the band in the image and in the planes; negative rows are padding
    for image, weights in predict_bands(generator, inputs, memory_bytes=memory_bytes):
        band = image[0, :, max(-row, 0) : max(height - row, 0), left : left + width].float()
        row += image.shape[2]
        if weights is not None:
            rows = slice(max(-packed_row, 0), max(size[0] - packed_row, 0))
            packed_row += weights.shape[2]
            weights = weights[0, 0, rows, margin : margin + size[1]]
        yield to_camera_colors(band, colors, generator.config).clamp(0, 1).permute(1, 2, 0), weights


def enhance_frame(
    generator: Generator,
    planes: np.ndarray,
    frame: Frame,
    ratio: float,
    device: torch.device,
    memory_bytes: int = MEMORY_BYTES,
    self_ensemble: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Concatenate the bands of `enhance_frame_bands`: image (H, W, 3), and weights (h, w) or None.

    self_ensemble: the image is the mean of eight predictions, see `inference.self_ensemble`; the weights are those of
        the frame as it is. Raises: InputError at half resolution.
    """
    if self_ensemble:
        raw = frame if isinstance(frame, RawFrame) else frame.raw_frame(planes)
        total, weights = _sum_of_orientations(generator, raw, ratio, device, memory_bytes)
        total /= len(ORIENTATIONS)
        return torch.from_numpy(total).to(device), weights
    bands = list(enhance_frame_bands(generator, planes, frame, ratio, device, memory_bytes))
    weights = [band_weights for _, band_weights in bands if band_weights is not None]
    return torch.cat([image for image, _ in bands]), torch.cat(weights) if weights else None


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
        total, _ = _sum_of_orientations(generator, frame, ratio, device, memory_bytes)
        total *= 65535 / len(ORIENTATIONS)
        return upright(total.round(out=total).astype(np.uint16), frame.orientation)
    planes = pack(frame.mosaic, frame.cfa)
    size = frame.mosaic.shape if generator.scale > 1 else planes.shape[1:]
    image = np.empty((*size, 3), np.uint16)
    row = 0
    for band, _ in enhance_frame_bands(generator, planes, frame, ratio, device, memory_bytes):
        image[row : row + len(band)] = (band * 65535).round().cpu().numpy()
        row += len(band)
    return upright(image, frame.orientation)


def _sum_of_orientations(
    generator: Generator, frame: RawFrame, ratio: float, device: torch.device, memory_bytes: int
) -> tuple[np.ndarray, Tensor | None]:
    """The sum of the images in all `ORIENTATIONS`, (H, W, 3) float32, and the weights (h, w) of the first.

    Each image is predicted in bands, which are added at their place, so that only the sum is held in full.
    """
    check_self_ensemble(generator)
    total = np.zeros((*frame.mosaic.shape, 3), np.float32)
    weights = []
    for flips in ORIENTATIONS:
        flipped, view, row = flip_frame(frame, flips), flip(total, flips), 0
        planes = pack(flipped.mosaic, flipped.cfa)
        for band, band_weights in enhance_frame_bands(generator, planes, flipped, ratio, device, memory_bytes):
            view[row : row + len(band)] += band.cpu().numpy()
            row += len(band)
            if flips == ORIENTATIONS[0] and band_weights is not None:
                weights.append(band_weights)
    return total, torch.cat(weights) if weights else None
