"""LPIPS and DISTS in bands against torchmetrics' own on whole frames, with random weights, which give no LPIPS."""

import hashlib
import importlib.util
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import Store
from torch import nn

from lsid_ray import storage
from lsid_ray.errors import InputError
from lsid_ray.evaluate import backbones, perceptual
from lsid_ray.evaluate.measures import METRICS, find_measures

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("torchmetrics"), reason="needs lsid-ray[perceptual]")
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


LEARNED = ("lpips", "lpips_vgg", "dists")


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


def test_equal_frames_differ_in_nothing_and_a_worse_image_scores_worse(networks) -> None:
    image, target = frames(64, 64)
    worse = (target + 2 * (image - target)).clamp(0, 1)
    for name in LEARNED:
        scores = [METRICS[name].function(frame, target, networks) for frame in (target, image, worse)]
        assert scores[0] == pytest.approx(0, abs=1e-6) and scores[0] < scores[1] < scores[2], name


def test_values_are_clamped_and_small_frames_have_no_score(networks) -> None:
    image, target = frames(40, 40)
    outside = torch.where(target < 0.1, -1.0, target)
    for name in LEARNED:
        function = METRICS[name].function
        assert function(image, outside, networks) == function(image, outside.clamp(0, 1), networks)
        assert function(image.numpy(), outside.numpy(), networks) == function(image, outside, networks)
        assert math.isnan(function(image[:31], target[:31], networks))
        assert math.isfinite(function(image[:32, :32], target[:32, :32], networks))


def save_weights(folder: Path, monkeypatch: pytest.MonkeyPatch, backbone: str) -> Path:
    """Random weights under a name that has their own hash, which then is the one that is looked for."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {f"features.{name}": tensor for name, tensor in random_weights(backbone).items()}
    content |= {"classifier.1.weight": torch.zeros(3, 4)}
    torch.save(content, folder / "weights.pth", _use_new_zipfile_serialization=False)  # as of 2017, like VGG-16's
    digest = hashlib.sha256((folder / "weights.pth").read_bytes()).hexdigest()
    path = (folder / "weights.pth").rename(folder / f"{backbone}-{digest[:8]}.pth")
    monkeypatch.setitem(backbones.FILES, backbone, path.name)
    return path


def test_weights_are_read_from_a_folder_and_from_torch_home(
    networks, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    image, target = frames(48, 48)
    path = save_weights(tmp_path / "weights", monkeypatch, "alexnet")
    expected = perceptual.lpips(image, target, "alexnet", networks["alexnet"])
    assert find_measures(["lpips"], path.parent).load(CPU)["lpips"](image, target) == expected
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    assert "lpips" in find_measures(["lpips"]).not_measured
    (tmp_path / "home" / "hub" / "checkpoints").mkdir(parents=True)
    path.rename(tmp_path / "home" / "hub" / "checkpoints" / path.name)
    measures = find_measures(["lpips"])
    assert measures.names == ("lpips",) and set(measures.not_measured) == {"texture", "flip", "lpips_vgg", "dists"}
    assert measures.load(CPU)["lpips"](image, target) == expected


def test_weights_are_read_from_an_object_store(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = save_weights(tmp_path / "weights", monkeypatch, "alexnet")
    storage.copy_file(path, storage.to_path(f"s3://bucket/weights/{path.name}"))
    measures = find_measures(["flip", "lpips"], "s3://bucket/weights")
    assert measures.names == ("flip", "lpips") and set(measures.load(CPU)) == {"flip", "lpips"}
    torch.testing.assert_close(measures.weights["alexnet"], random_weights("alexnet"))
    with pytest.raises(InputError, match=r"^weights folder s3://bucket/weights: holds no vgg16-397923af\.pth;"):
        find_measures(["dists"], "s3://bucket/weights")


def test_missing_weights_are_said_with_the_command_that_gets_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    measures = find_measures(["lpips_vgg", "dists"])
    assert measures.names == () and measures.load(CPU) == {}
    for name in ("lpips_vgg", "dists"):
        assert measures.not_measured[name].startswith("not measured: weights not at hand; to get them: python -c ")
        assert "https://download.pytorch.org/models/vgg16-397923af.pth" in measures.not_measured[name]
    assert measures.not_measured["lpips"] == "not measured: see --metrics"


def test_other_weights_are_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^weights folder .*: holds no vgg16-397923af\.pth; to get it: python -c .*$"):
        find_measures(["dists"], tmp_path)
    (tmp_path / "alexnet-owt-7be5be79.pth").write_bytes(b"another network")
    found = hashlib.sha256(b"another network").hexdigest()[:8]
    with pytest.raises(
        InputError, match=rf"alexnet-owt-7be5be79\.pth: its SHA-256 begins with {found}, expected 7be5b"
    ):
        find_measures(["lpips"], tmp_path)
    with pytest.raises(
        InputError, match=r"^weights folder .*: no chosen metric needs it; expected lpips, lpips_vgg or"
    ):
        find_measures(["flip"], tmp_path)
    monkeypatch.setattr(perceptual.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"need the package torchmetrics: pip install -e '\.\[perceptual\]'"):
        find_measures(["lpips"], tmp_path)


def test_the_backbones_are_torchvisions() -> None:
    """Numbers of parameters and shapes as torchvision 0.28 has them in `features`."""
    alexnet, vgg16 = backbones.alexnet(), backbones.vgg16()
    assert sum(tensor.numel() for tensor in alexnet.state_dict().values()) == 2_469_696
    assert sum(tensor.numel() for tensor in vgg16.state_dict().values()) == 14_714_688
    assert alexnet.state_dict()["10.weight"].shape == (256, 256, 3, 3)
    assert vgg16.state_dict()["28.weight"].shape == (512, 512, 3, 3)
