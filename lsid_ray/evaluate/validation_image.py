"""One image of a validation frame, for TensorBoard: the network's input, its output and the target side by side."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lsid_ray.data.preprocess import apply_color_matrix, tone_curve
from lsid_ray.inference.frame import Frame, frame_input
from lsid_ray.model.generator import Generator
from lsid_ray.raw.color import srgb_from_camera
from lsid_ray.raw.mosaic import LAYOUTS
from lsid_ray.raw.render import upright

MAX_WIDTH = 512  # pixels of each of the three


def validation_image(
    generator: Generator, planes: np.ndarray, frame: Frame, ratio: float, image: Tensor, target: Tensor
) -> np.ndarray:
    """Input, output and target as one upright image (rows, columns, 3), uint8.

    planes: (C, h, w) uint16, of the short exposure. image, target: (H, W, 3) float in [0, 1], in sensor orientation.
    The input is not demosaiced: each packed pixel has the means of its planes of one color.
    """
    config = generator.config
    inputs = frame_input(planes, frame, ratio, generator, image.device)[0]
    if config.input_curve == "linear":
        inputs = tone_curve(inputs)
    colors = LAYOUTS[config.cfa].colors
    rgb = torch.stack([inputs[[i for i, c in enumerate(colors) if c == color]].mean(dim=0) for color in "RGB"])
    rgb = apply_color_matrix(rgb, torch.from_numpy(srgb_from_camera(frame.color_matrix)))
    height, width = image.shape[:2]
    scale = min(MAX_WIDTH / width, 1)
    size = (max(round(scale * height), 1), max(round(scale * width), 1))
    views = []
    for view in (rgb, image.permute(2, 0, 1), target.permute(2, 0, 1)):
        small = F.interpolate(view[None].float().clamp(0, 1), size, mode="area")[0]
        views.append(upright((small * 255).round().byte().permute(1, 2, 0).cpu().numpy(), frame.orientation))
    return np.concatenate(views, axis=1)
