"""The networks whose features LPIPS and DISTS compare, and their weights: the user's, as torchvision publishes them.

The convolutions are written out because torchvision loads only beside the very build of torch that it was compiled for,
and would fetch the weights over the network.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from lsid_ray import storage
from lsid_ray.errors import InputError
from lsid_ray.storage import AnyPath

URL = "https://download.pytorch.org/models/"
FILES = {"alexnet": "alexnet-owt-7be5be79.pth", "vgg16": "vgg16-397923af.pth"}
"""torchvision's files of the weights (IMAGENET1K_V1). A name ends with the first digits of the file's SHA-256."""
HASHED_BYTES = 16 << 20

Weights = dict[str, dict[str, Tensor]]
"""Backbone -> name -> tensor, of its convolutions."""


def find_weights(backbones: Iterable[str], folder: AnyPath | None) -> tuple[Weights, dict[str, str]]:
    """The weights of those backbones that are at hand; for each of the others how to get them.

    folder: holds the files of FILES, on this machine or in an object store. None: torch's own, in TORCH_HOME, where
        they may be missing. Nothing is downloaded.
    Raises: InputError for a folder without a file, and for a file whose content is not that of its name.
    """
    weights, missing = {}, {}
    for backbone in sorted(set(backbones)):
        path = (folder or Path(torch.hub.get_dir(), "checkpoints")) / FILES[backbone]
        if path.is_file():
            weights[backbone] = _read(path, backbone)
        elif folder is not None:
            raise InputError(f"weights folder {folder}: holds no {FILES[backbone]}; to get it: {command(backbone)}")
        else:
            missing[backbone] = command(backbone)
    return weights, missing


def command(backbone: str) -> str:
    """The command line that downloads a backbone's weights to where torch looks for them."""
    return f"python -c \"import torch; torch.hub.load_state_dict_from_url('{URL}{FILES[backbone]}', check_hash=True)\""


def build(backbone: str, weights: dict[str, Tensor], device: torch.device) -> nn.Sequential:
    """A backbone's layers up to the last that is compared, named by number as in torchvision's `features`."""
    with torch.device("meta"):  # no random weights are drawn
        layers = alexnet() if backbone == "alexnet" else vgg16()
    layers.load_state_dict(weights, assign=True)
    return layers.requires_grad_(False).eval().to(device)


def alexnet() -> nn.Sequential:
    """AlexNet's convolutions (Krizhevsky 2014, arXiv 1404.5997), up to the fifth."""
    layers = [nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)]
    layers += [nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)]
    for channels_in, channels_out in ((192, 384), (384, 256), (256, 256)):
        layers += [nn.Conv2d(channels_in, channels_out, 3, padding=1), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def vgg16() -> nn.Sequential:
    """VGG-16's convolutions (Simonyan and Zisserman 2014, arXiv 1409.1556)."""
    layers: list[nn.Module] = []
    channels_in = 3
    for stage, (channels_out, count) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))):
        if stage:
            layers.append(nn.MaxPool2d(2, 2))
        for _ in range(count):
            layers += [nn.Conv2d(channels_in, channels_out, 3, padding=1), nn.ReLU(inplace=True)]
            channels_in = channels_out
    return nn.Sequential(*layers)


def _read(path: AnyPath, backbone: str) -> dict[str, Tensor]:
    with storage.local_copy(path) as file:
        expected = Path(FILES[backbone]).stem.rpartition("-")[2]
        found = _sha256(file)[: len(expected)]
        if found != expected:
            raise InputError(
                f"{path}: its SHA-256 begins with {found}, expected {expected}: these are other weights, or damaged"
            )
        content = torch.load(file, map_location="cpu", weights_only=True)
    with torch.device("meta"):
        names = (alexnet() if backbone == "alexnet" else vgg16()).state_dict()
    return {name: content[f"features.{name}"] for name in names}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASHED_BYTES):
            digest.update(block)
    return digest.hexdigest()
