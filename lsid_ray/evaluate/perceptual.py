"""LPIPS and DISTS of a full frame, in bands of rows: the same number as of the whole frame at once, in bounded memory.

LPIPS: Zhang et al. 2018, arXiv 1801.03924, version 0.1 (`lpips`: AlexNet, which is what papers report; `lpips_vgg`:
VGG-16). DISTS: Ding et al. 2020, arXiv 2004.07728. Their fitted weights, a few numbers per channel, come with
`torchmetrics`; those of the networks are the user's (see `evaluate.backbones`).

For two frames of 2848 x 4256 pixels: LPIPS with AlexNet takes 9 s of one core, with VGG-16 159 s, DISTS 180 s, in 0.5
GiB besides the frames (2 shared cores of an Intel Xeon, 2026-11-28).
"""

import importlib.util
import math
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsid_ray.errors import InputError

SMALLEST = 32  # pixels: the least with features at every depth of both networks
TAPS = {"alexnet": (1, 4, 7, 9, 11), "vgg16": (3, 8, 15, 22, 29)}
"""Layers whose output is compared, by their number."""
LPIPS_SHIFT, LPIPS_SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of images in [-1, 1]
DISTS_MEAN, DISTS_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
DISTS_CHANNELS = (3, 64, 128, 256, 512, 512)  # of the images themselves and of the taps
C1 = C2 = 1e-6
BAND_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}  # of the features of a band at full resolution
WIDEST = 64  # channels at full resolution
ROWS = 16  # the least of a band: one of the coarsest features


@torch.no_grad()
def lpips(image: np.ndarray | Tensor, target: np.ndarray | Tensor, backbone: str, layers: nn.Sequential) -> float:
    """Learned perceptual image patch similarity: 0 for equal images, smaller is better.

    image, target: (H, W, 3) floats, sRGB in [0, 1], clamped here; computed on the image's device. layers: of
    `backbones.build`, there too. NaN for frames smaller than 32 pixels.
    """
    if min(image.shape[:2]) < SMALLEST:
        return math.nan
    heads = _lpips_heads(backbone)
    streams = _streams(list(layers), TAPS[backbone])
    sums, counts = [0.0] * len(heads), [0] * len(heads)
    for rows, is_last in _bands(image, target):
        for depth, features in _push(streams, _normalized(2 * rows - 1, LPIPS_SHIFT, LPIPS_SCALE), is_last):
            x, y = features / (features.square().sum(1, keepdim=True).sqrt() + 1e-10)
            errors = (heads[depth].to(x.device) * (x - y).square()).sum(0)
            sums[depth] += errors.sum(dtype=torch.float64).item()
            counts[depth] += errors.numel()
    return sum(total / count for total, count in zip(sums, counts, strict=True))


@torch.no_grad()
def dists(image: np.ndarray | Tensor, target: np.ndarray | Tensor, layers: nn.Sequential) -> float:
    """Deep image structure and texture similarity: 0 for equal images, smaller is better.

    Arguments as `lpips`; layers: VGG-16.
    """
    if min(image.shape[:2]) < SMALLEST:
        return math.nan
    pooled = [_L2Pool() if isinstance(layer, nn.MaxPool2d) else layer for layer in layers]
    streams = _streams(pooled, TAPS["vgg16"])
    moments = [0.0] * len(DISTS_CHANNELS)  # each (5, C): sums over pixels of x, y, x^2, y^2, xy
    counts = [0] * len(DISTS_CHANNELS)
    for rows, is_last in _bands(image, target):
        features = _push(streams, _normalized(rows, DISTS_MEAN, DISTS_STD), is_last)
        for depth, (x, y) in chain([(0, rows)], ((depth + 1, both) for depth, both in features)):
            products = torch.stack([part.sum((1, 2), dtype=torch.float64) for part in (x, y, x * x, y * y, x * y)])
            moments[depth] = moments[depth] + products
            counts[depth] += x[0].numel()
    similarity = 0.0
    alphas, betas = _dists_weights()
    for sums, count, alpha, beta in zip(moments, counts, alphas, betas, strict=True):
        x, y, xx, yy, xy = (sums / count).cpu()
        texture = (2 * x * y + C1) / (x * x + y * y + C1)
        structure = (2 * (xy - x * y) + C2) / (xx - x * x + yy - y * y + C2)
        similarity += (alpha * texture + beta * structure).sum().item()
    return 1 - similarity


class _L2Pool(nn.Module):
    """DISTS's pooling: the root of the squares' mean, weighted by a 3 x 3 Hann window, every second pixel."""

    kernel_size, stride, padding = (3, 3), (2, 2), (1, 1)

    def forward(self, features: Tensor) -> Tensor:
        channels = features.shape[1]
        window = torch.tensor([0.25, 0.5, 0.25], device=features.device)
        filters = torch.outer(window, window).expand(channels, 1, 3, 3)
        padding = (0, self.padding[1])  # of rows by `_Stream`
        return (F.conv2d(features.square(), filters, stride=2, padding=padding, groups=channels) + 1e-12).sqrt()


class _Stream:
    """A layer that takes its input in bands of rows, and keeps those that later output needs."""

    def __init__(self, layer: nn.Module):
        self.layer = layer
        self.is_pointwise = not hasattr(layer, "kernel_size")
        if not self.is_pointwise:
            sizes = (layer.kernel_size, layer.stride, layer.padding)
            self.kernel, self.stride, self.padding = (size if isinstance(size, int) else size[0] for size in sizes)
        self.kept: Tensor | None = None

    def push(self, rows: Tensor | None, is_last: bool) -> Tensor | None:
        """The output rows that are ready, or None. rows: None if the layer before has none ready."""
        if rows is None and not is_last:
            return None
        if self.is_pointwise:
            return None if rows is None else self.layer(rows)
        like = rows if rows is not None else self.kept
        zeros = like.new_zeros(*like.shape[:2], self.padding, like.shape[3])
        parts = [zeros if self.kept is None else self.kept, rows, zeros if is_last else None]
        window = torch.cat([part for part in parts if part is not None], dim=2)
        ready = max((window.shape[2] - self.kernel) // self.stride + 1, 0)
        self.kept = window[:, :, ready * self.stride :].clone()  # a view would keep the entire window in memory
        if not ready:
            return None
        window = window[:, :, : (ready - 1) * self.stride + self.kernel]
        if isinstance(self.layer, nn.Conv2d):
            weight, bias, stride = self.layer.weight, self.layer.bias, self.layer.stride
            return F.conv2d(window, weight, bias, stride, padding=(0, self.padding))
        return self.layer(window)


def _streams(layers: list[nn.Module], taps: tuple[int, ...]) -> list[list[_Stream]]:
    """The layers up to each tap, after the tap before."""
    starts = (0, *(tap + 1 for tap in taps))
    return [[_Stream(layer) for layer in layers[start : tap + 1]] for start, tap in zip(starts[:-1], taps, strict=True)]


def _push(streams: list[list[_Stream]], rows: Tensor | None, is_last: bool) -> Iterator[tuple[int, Tensor]]:
    """Push a band through all layers; yields each depth at which rows are ready, and these."""
    for depth, stage in enumerate(streams):
        for layer in stage:
            rows = layer.push(rows, is_last)
        if rows is not None:
            yield depth, rows


def _bands(image: np.ndarray | Tensor, target: np.ndarray | Tensor) -> Iterator[tuple[Tensor, bool]]:
    """Both frames from top to bottom, (2, 3, rows, W) float32 in [0, 1], each band with whether it is the last."""
    image_HW3 = torch.as_tensor(image).detach()
    target_HW3 = torch.as_tensor(target).detach().to(image_HW3.device)
    height, width = image_HW3.shape[:2]
    band_bytes = BAND_BYTES.get(image_HW3.device.type, BAND_BYTES["cpu"])
    count = max(band_bytes // (2 * 4 * WIDEST * width), ROWS)
    for top in range(0, height, count):
        rows = torch.stack([frame[top : top + count].float().clamp(0, 1) for frame in (image_HW3, target_HW3)])
        yield rows.permute(0, 3, 1, 2), top + count >= height


def _normalized(rows: Tensor, mean: tuple[float, ...], deviation: tuple[float, ...]) -> Tensor:
    mean, deviation = (torch.tensor(values, device=rows.device).view(1, 3, 1, 1) for values in (mean, deviation))
    return (rows - mean) / deviation


@lru_cache(maxsize=2)
def _lpips_heads(backbone: str) -> list[Tensor]:
    """The fitted weight of each channel at each tap, (C, 1, 1)."""
    name = {"alexnet": "alex", "vgg16": "vgg"}[backbone]
    heads = torch.load(fitted_weights() / "lpips_models" / f"{name}.pth", map_location="cpu", weights_only=True)
    return [heads[f"lin{depth}.model.1.weight"][0] for depth in range(len(TAPS[backbone]))]


@lru_cache(maxsize=1)
def _dists_weights() -> tuple[list[Tensor], list[Tensor]]:
    """The fitted weights of mean and structure of each channel at each depth, which add up to 1."""
    fitted = torch.load(fitted_weights() / "dists_models" / "weights.pt", map_location="cpu", weights_only=True)
    alpha, beta = (fitted[name].flatten().double() for name in ("alpha", "beta"))
    total = alpha.sum() + beta.sum()
    return (alpha / total).split(DISTS_CHANNELS), (beta / total).split(DISTS_CHANNELS)


def fitted_weights() -> Path:
    """The folder of torchmetrics that holds the metrics' fitted weights. Raises: InputError if it is not installed."""
    spec = importlib.util.find_spec("torchmetrics")  # importing it takes seconds
    if spec is None:
        raise InputError("LPIPS and DISTS need the package torchmetrics: pip install -e '.[perceptual]'")
    return Path(spec.submodule_search_locations[0], "functional", "image")
