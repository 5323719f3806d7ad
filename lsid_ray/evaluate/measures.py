"""The metrics of a frame by name: what computes each, which direction is better, and which weights it needs."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from lsid_ray.errors import InputError
from lsid_ray.evaluate.backbones import Weights, build, find_weights
from lsid_ray.evaluate.metrics import psnr_db, ssim
from lsid_ray.evaluate.perceptual import dists, fitted_weights, lpips
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
    "flip": Metric("FLIP", lambda image, target, _: flip(image, target), False),
    "lpips": Metric(
        "LPIPS (AlexNet)", lambda image, target, n: lpips(image, target, "alexnet", n["alexnet"]), False, "", "alexnet"
    ),
    "lpips_vgg": Metric(
        "LPIPS (VGG-16)", lambda image, target, n: lpips(image, target, "vgg16", n["vgg16"]), False, "", "vgg16"
    ),
    "dists": Metric("DISTS", lambda image, target, n: dists(image, target, n["vgg16"]), False, "", "vgg16"),
}
LEARNED = tuple(name for name, metric in METRICS.items() if metric.backbone)
"""Metrics that need weights, and so are measured only where asked for."""
PERCEPTUAL = ("flip", *LEARNED)


@dataclass(frozen=True)
class Learned:
    """Metrics that need weights, with these."""

    weights: Weights = field(default_factory=dict)
    names: tuple[str, ...] = ()
    """Those that can be measured."""
    not_measured: dict[str, str] = field(default_factory=dict)
    """Each of the others, with the reason and what to do."""

    def load(self, device: torch.device) -> dict[str, Callable[[Frame, Frame], float]]:
        """Name -> function of image and target, both on the device."""
        networks = {backbone: build(backbone, weights, device) for backbone, weights in self.weights.items()}
        return {name: lambda *frames, metric=METRICS[name]: metric.function(*frames, networks) for name in self.names}


def metric_names(text: str) -> tuple[str, ...]:
    """ "lpips,dists" as names of LEARNED. Raises: InputError for any other."""
    names = tuple(dict.fromkeys(name.strip().replace("-", "_") for name in text.split(",") if name.strip()))
    for name in names:
        if name not in LEARNED:
            known = ", ".join(LEARNED).replace("_", "-")
            raise InputError(f"--metrics is {text}: {name.replace('_', '-')} is no metric of {known}")
    return names


def find_learned(names: Iterable[str], folder: AnyPath | None) -> Learned:
    """The chosen metrics with the weights that are at hand.

    folder: of the weights, or None; see `find_weights`. Raises: InputError as that, without torchmetrics, and for a
    folder that no metric needs.
    """
    names = tuple(names)
    if names:
        fitted_weights()
    elif folder is not None:
        raise InputError(f"--weights is {folder}: expected --metrics that need it")
    weights, missing = find_weights((METRICS[name].backbone for name in names), folder)
    not_measured = {name: "not measured: see --metrics" for name in LEARNED if name not in names}
    for name in names:
        if (backbone := METRICS[name].backbone) in missing:
            not_measured[name] = f"{NOT_MEASURED}; to get them: {missing[backbone]}"
    return Learned(weights, tuple(name for name in names if name not in not_measured), not_measured)
