"""FLIP: how visible the differences between two images are, from a calibrated model of vision. Needs no weights.

Source: Andersson et al. 2020, "FLIP: A Difference Evaluator for Alternating Images", by NVIDIA's own package
`flip-evaluator` (BSD-3), which has no dependencies. Each pixel's error, in [0, 1], combines a color difference after
the contrast sensitivity of the eye and a difference of edges and points, as someone sees it who flips between the
images on a 0.7 m wide 4K display at 0.7 m (67 pixels per degree); the score is the mean.

Eighteen photographs tiled to SID's size, 2848 x 4256 pixels; ColorVideoVDP in JOD (10 is invisible) on one of them,
512 x 768 (at the full size it was run for the first two faults only: 9.89 and 9.25):

    fault                FLIP   ColorVideoVDP   PSNR, dB
    blur, sigma 0.5 px   .024   9.89            36.5
    blur, sigma 1 px     .059   9.02            27.7
    blur, sigma 2 px     .111   7.35            24.4
    blur, sigma 4 px     .174   5.86            22.3
    noise, sigma 0.01    .031   9.98            40.0
    noise, sigma 0.03    .070   9.80            30.5
    noise, sigma 0.1     .182   8.54            20.2
    red + 0.02           .077   9.93            38.8
    red + 0.05           .149   9.81            30.9
    all + 0.02           .120   9.95            34.0
    all + 0.05           .218   9.73            26.1
    shift by 1 px        .087   8.23            24.2
    shift by 4 px        .194   5.92            19.2

FLIP is strict about color and brightness and mild about blur, so it is read beside the texture that is kept. It takes
14 to 20 s of one core for such a frame, and 0.2 GiB in strips; ColorVideoVDP (`cvvdp` 0.5.7) 59 s and 5.8 GB, and its
import needs torchvision, huggingface_hub, OpenEXR, imageio and ffmpeg, which is why it was not taken.
(2 shared cores of an Intel Xeon, 2026-11-28.)
"""

import math

import flip_evaluator
import numpy as np
import torch
from torch import Tensor

MARGIN = 10  # rows that a pixel's error depends on: the widest filter's radius at 67 pixels per degree
STRIP_ROWS = 128


def flip(image: np.ndarray | Tensor, target: np.ndarray | Tensor) -> float:
    """Mean FLIP error, from 0 (no visible difference) to 1.

    image, target: (H, W, 3) floats, sRGB in [0, 1], clamped here. Computed on the CPU in strips of rows, whose pixels
    have the same errors as those of the whole frame. NaN for an empty frame.
    """
    height, width = image.shape[:2]
    total = 0.0
    for top in range(0, height, STRIP_ROWS):
        first, bottom = max(top - MARGIN, 0), min(top + STRIP_ROWS, height)
        strips = [_strip(frame[first : bottom + MARGIN]) for frame in (target, image)]
        errors, _, _ = flip_evaluator.evaluate(*strips, "LDR", applyMagma=False, computeMeanError=False)
        total += errors[top - first : bottom - first].sum(dtype=np.float64)
    return total / (height * width) if height * width else math.nan


def _strip(rows: np.ndarray | Tensor) -> np.ndarray:
    return torch.as_tensor(rows).detach().float().clamp(0, 1).cpu().contiguous().numpy()
