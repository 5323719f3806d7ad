"""LPIPS and DISTS in bands against torchmetrics' own on whole frames, with random weights, which give no LPIPS."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from lsid_ray.evaluate import backbones, perceptual

torchmetrics = pytest.importorskip("torchmetrics", reason="needs lsid-ray[perceptual]")
CPU = torch.device("cpu")


def random_weights(backbone: str) -> dict[str, torch.Tensor]:
    """Weights of the right shapes, scaled to keep the features' variance (He et al. 2015)."""
    torch.manual_seed(0)
    layers = backbones.alexnet() if backbone == "alexnet" else backbones.vgg16()
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.normal_(layer.bias, std=0.05)
    return layers.state_dict()


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Sequential]:
    return {name: backbones.build(name, random_weights(name), CPU) for name in backbones.FILES}


def frames(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    target = torch.rand(height, width, 3, generator=generator)
    return (target + 0.2 * torch.randn(height, width, 3, generator=generator)).clamp(0, 1), target


def planes(frame: torch.Tensor) -> torch.Tensor:
    return frame.permute(2, 0, 1)[None]


def reference_lpips(monkeypatch: pytest.MonkeyPatch, net: str, layers: nn.Sequential) -> nn.Module:
    """torchmetrics' LPIPS over these layers."""
    from torchmetrics.functional.image import lpips

    monkeypatch.setattr(lpips, "_get_tv_model_features", lambda name, pretrained: layers)
    return lpips._NoTrainLpips(net=net)


def reference_dists(monkeypatch: pytest.MonkeyPatch, layers: nn.Sequential) -> nn.Module:
    from types import SimpleNamespace

    from torchmetrics.functional.image import dists

    monkeypatch.setattr(dists, "_TORCHVISION_AVAILABLE", True)
    monkeypatch.setattr(dists, "VGG16_Weights", SimpleNamespace(DEFAULT=None), raising=False)
    monkeypatch.setattr(dists, "vgg16", lambda weights: SimpleNamespace(features=layers), raising=False)
    return dists.DISTSNetwork()


# Two sizes, the second a multiple of nothing; bands of 16 and of 32 rows, of which the last is cut.
SIZES = pytest.mark.parametrize("height, width, band_rows", [(96, 64, 16), (107, 75, 16), (107, 75, 32), (45, 33, 99)])


def set_band_rows(monkeypatch: pytest.MonkeyPatch, rows: int, width: int) -> None:
    monkeypatch.setattr(perceptual, "BAND_BYTES", {"cpu": rows * 2 * 4 * perceptual.WIDEST * width})


@SIZES
@pytest.mark.parametrize("backbone, net", [("alexnet", "alex"), ("vgg16", "vgg")])
def test_lpips_in_bands_equals_torchmetrics_on_the_whole_frame(
    networks, monkeypatch, backbone: str, net: str, height: int, width: int, band_rows: int
) -> None:
    set_band_rows(monkeypatch, band_rows, width)
    image, target = frames(height, width)
    expected = reference_lpips(monkeypatch, net, networks[backbone])(planes(image), planes(target), normalize=True)
    assert expected > 0.01
    assert perceptual.lpips(image, target, backbone, networks[backbone]) == pytest.approx(expected.item(), rel=1e-4)


@SIZES
def test_dists_in_bands_equals_torchmetrics_on_the_whole_frame(
    networks, monkeypatch, height: int, width: int, band_rows: int
) -> None:
    set_band_rows(monkeypatch, band_rows, width)
    image, target = frames(height, width)
    expected = reference_dists(monkeypatch, networks["vgg16"])(planes(image), planes(target))
    assert expected > 0.01
    assert perceptual.dists(image, target, networks["vgg16"]) == pytest.approx(expected.item(), rel=1e-3)
