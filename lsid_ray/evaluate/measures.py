"""The metrics of a frame by name: what computes each, which direction is better, and which weights it needs."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import get_args

import numpy as np
import torch
from torch import Tensor, nn

from lsid_ray import storage
from lsid_ray.config.schema import PerceptualMetric
from lsid_ray.errors import InputError
from lsid_ray.evaluate.backbones import Weights, build, find_weights
from lsid_ray.evaluate.metrics import psnr_db, ssim
from lsid_ray.evaluate.perceptual import dists, fitted_weights, lpips
from lsid_ray.evaluate.texture import texture, texture_error_db
from lsid_ray.evaluate.visibility import flip
from lsid_ray.storage import AnyPath

Frame = np.ndarray | Tensor
"""(H, W, 3) floats in [0, 1]."""
NOT_MEASURED = "not measured: weights not at hand"


@dataclass(frozen=True)
class Metric:
    """One number for an image and its target."""

    title: str
    function: Callable[[Frame, Frame, dict[str, nn.Sequential]], float]
    """Of image, target, and the networks by name."""
    higher_is_better: bool
    unit: str = ""
    backbone: str = ""
    """The network whose weights it needs."""


METRICS = {
    "psnr_db": Metric("PSNR", lambda image, target, _: psnr_db(image, target), True, "dB"),
    "ssim": Metric("SSIM", lambda image, target, _: ssim(image, target), True),
    "texture": Metric("texture error", lambda i, target, _: texture_error_db(texture(i, target)), False, "dB"),
    "flip": Metric("FLIP", lambda image, target, _: flip(image, target), False),
    "lpips": Metric(
        "LPIPS (AlexNet)", lambda image, target, n: lpips(image, target, "alexnet", n["alexnet"]), False, "", "alexnet"
    ),
    "lpips_vgg": Metric(
        "LPIPS (VGG-16)", lambda image, target, n: lpips(image, target, "vgg16", n["vgg16"]), False, "", "vgg16"
    ),
    "dists": Metric("DISTS", lambda image, target, n: dists(image, target, n["vgg16"]), False, "", "vgg16"),
}
PERCEPTUAL = get_args(PerceptualMetric)


@dataclass(frozen=True)
class Measures:
    """Chosen metrics, with the weights that they need."""

    weights: Weights = field(default_factory=dict)
    names: tuple[str, ...] = ()
    """Those that can be measured."""
    not_measured: dict[str, str] = field(default_factory=dict)
    """Each perceptual metric that cannot be, or was not chosen: why, and what to do."""

    def part(self, learned: bool | None) -> "Measures":
        """Those that are networks themselves (True), the others (False), or all (None)."""
        if learned is None:
            return self
        names = tuple(name for name in self.names if bool(METRICS[name].backbone) == learned)
        return Measures(self.weights if learned else {}, names, self.not_measured)

    def load(self, device: torch.device) -> dict[str, Callable[[Frame, Frame], float]]:
        """Name -> function of image and target, both on the device."""
        networks = {backbone: build(backbone, weights, device) for backbone, weights in self.weights.items()}
        return {name: lambda *frames, metric=METRICS[name]: metric.function(*frames, networks) for name in self.names}


def find_measures(names: Iterable[str], folder: str | AnyPath = "") -> Measures:
    """The chosen metrics with the weights that are at hand.

    folder: of the weights; empty: torch's own, see `find_weights`. Raises: InputError as that, without torchmetrics,
    and for a folder that no metric needs.
    """
    names = tuple(dict.fromkeys(names))
    backbones = {METRICS[name].backbone for name in names} - {""}
    if backbones:
        fitted_weights()
    elif folder:
        raise InputError(f"weights folder {folder}: no chosen metric needs it; expected lpips, lpips_vgg or dists")
    weights, missing = find_weights(backbones, storage.to_path(folder) if folder else None)
    not_measured = {name: "not measured: see --metrics" for name in PERCEPTUAL if name not in names}
    for name in names:
        if (backbone := METRICS[name].backbone) in missing:
            not_measured[name] = f"{NOT_MEASURED}; to get them: {missing[backbone]}"
    return Measures(weights, tuple(name for name in names if name not in not_measured), not_measured)
