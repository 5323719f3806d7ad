"""One dark frame to a photograph, wherever it came from: shards while scoring, a camera's file at a user's."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from lsid_ray.errors import InputError
from lsid_ray.evaluate.predict import MEMORY_BYTES, predict_bands
from lsid_ray.model.generator import Generator
from lsid_ray.model.inputs import network_input, own_colors
from lsid_ray.raw.color import srgb_from_camera
from lsid_ray.raw.frame import Sensor
from lsid_ray.raw.mosaic import layout, pack_black, phase_padding


def frame_input(planes: np.ndarray, sensor: Sensor, ratio: float, generator: Generator, device: torch.device) -> Tensor:
    """A short's packed planes (C, h, w) uint16 as the network's input (1, C, h, w) float32 in [0, 1].

    Raises: InputError when the generator is for another kind of sensor.
    """
    kind = layout(sensor.cfa).kind
    if kind != generator.config.cfa:
        raise InputError(f"a sensor of kind {kind}; expected {generator.config.cfa}, which the network was trained for")
    return network_input(
        torch.from_numpy(planes)[None].to(device),
        torch.from_numpy(pack_black(sensor.black, sensor.cfa)).float()[None].to(device),
        torch.tensor([sensor.white], device=device),
        torch.tensor([sensor.white_balance], device=device),
        torch.tensor([ratio], device=device),
        generator.config,
    )


def enhance_bands(
    generator: Generator,
    planes: np.ndarray,
    sensor: Sensor,
    ratio: float,
    device: torch.device,
    memory_bytes: int = MEMORY_BYTES,
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The generator's photograph of one short, in bands of whole rows from top to bottom.

    Yields (rows, W, 3) float32 in [0, 1], sRGB in sensor orientation, and the finest gate's weights (rows', w) in
    packed pixels, or None. All bands together have the mosaic's size, or half of it. Other arguments: `frame_input`,
    `predict_bands`.
    """
    inputs = frame_input(planes, sensor, ratio, generator, device)
    colors = torch.from_numpy(srgb_from_camera(sensor.color_matrix)).float()
    top, left = 0, 0
    height, width = inputs.shape[2:]
    if generator.scale > 1:
        top, _, left, _ = phase_padding(sensor.cfa, sensor.height, sensor.width)
        height, width = sensor.height, sensor.width
    row = -top  # of the band, in the photograph
    for image, weights in predict_bands(generator, inputs, memory_bytes=memory_bytes):
        band = image[0, :, max(-row, 0) : height - row, left : left + width].float()
        row += image.shape[2]
        yield (
            own_colors(band, colors, generator.config).clamp(0, 1).permute(1, 2, 0),
            None if weights is None else weights[0, 0],
        )


def enhance(
    generator: Generator,
    planes: np.ndarray,
    sensor: Sensor,
    ratio: float,
    device: torch.device,
    memory_bytes: int = MEMORY_BYTES,
) -> tuple[Tensor, Tensor | None]:
    """`enhance_bands` in one piece: (H, W, 3), and (h, w) or None."""
    bands = list(enhance_bands(generator, planes, sensor, ratio, device, memory_bytes))
    weights = [weight for _, weight in bands if weight is not None]
    return torch.cat([image for image, _ in bands]), torch.cat(weights) if weights else None
