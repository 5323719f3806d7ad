"""Scores of one full frame: the network and the plain rendering against the long exposure. No Ray.

Validation during training and the final evaluation both score with this code.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lsid_ray.data.index import Pair, Shards
from lsid_ray.evaluate import metrics
from lsid_ray.evaluate.measures import PERCEPTUAL
from lsid_ray.evaluate.texture import texture, texture_error_db
from lsid_ray.inference.frame import enhance_frame
from lsid_ray.model.generator import Generator
from lsid_ray.raw.render import plain_rendering

Measure = Callable[[Tensor, Tensor], float]
"""Of image and target."""
NO_MEASURES: Mapping[str, Measure] = MappingProxyType({})


@dataclass(frozen=True)
class Score:
    """One short exposure against its long one: full frame, clamped to [0, 1], no brightness fitting."""

    name: str
    """File name of the short exposure."""
    scene: str
    camera: str
    iso: float | None
    """From the file; None if it has none."""
    ratio: float
    """Amplification ratio, from the exposure times."""
    first_frame: bool
    """Frame 0 of its burst."""
    misaligned: bool
    """One of SID's scenes whose short and long exposures are not aligned (10034, 10045, 10172)."""
    psnr_db: float
    ssim: float
    psnr8_db: float
    """Both `8` metrics: output and target rounded to 8 bits first."""
    ssim8: float
    plain_psnr_db: float
    """All four `plain` metrics: the plain rendering instead of the network's output."""
    plain_ssim: float
    plain_psnr8_db: float
    plain_ssim8: float
    texture: float
    """Error of the four texture ratios below, in dB: see `evaluate.texture`."""
    flip: float
    """FLIP error, 0 to 1: see `evaluate.visibility`. NaN if not measured, as the next."""
    lpips: float
    """LPIPS with AlexNet and with VGG-16, and DISTS: see `evaluate.perceptual`. NaN if not measured."""
    lpips_vgg: float
    dists: float
    plain_texture: float
    plain_flip: float
    plain_lpips: float
    plain_lpips_vgg: float
    plain_dists: float
    texture_2px: float
    """Power of the output over that of the target at periods of 2 to 4 pixels, and so on: see `evaluate.texture`."""
    texture_4px: float
    texture_8px: float
    texture_16px: float
    coherence_2px: float
    """Correlation of output and target at these periods."""
    coherence_4px: float
    coherence_8px: float
    coherence_16px: float
    plain_texture_2px: float
    plain_texture_4px: float
    plain_texture_8px: float
    plain_texture_16px: float
    plain_coherence_2px: float
    plain_coherence_4px: float
    plain_coherence_8px: float
    plain_coherence_16px: float
    seconds: float
    """Duration of the network's prediction."""


@dataclass(frozen=True)
class FrameImages:
    """The views of one scored frame that a report shows."""

    name: str
    """As in its Score, from which the captions are taken."""
    ratio: float
    images: dict[str, np.ndarray]
    """`short` (not amplified), `plain`, `output`, `target`: (H, W, 3), floats in [0, 1] or uint8; and, if the network
    has gates, coarse to fine the weights of each: `gate_8`, `gate_4`, `gate_2`, `gate_1`, at this part of the packed
    size, floats in (0, 1)."""


def at_output_scale(image_HW3: np.ndarray, pair: Pair, scale: int, device: torch.device) -> Tensor:
    """A uint16 image of the mosaic's size as (H, W, 3) float32 in [0, 1]; at scale 1 the mean of each 2x2 block."""
    image = torch.from_numpy(image_HW3).to(device).float().permute(2, 0, 1)[None] / 65535
    if scale == 1:
        top, bottom, left, right = pair.short.padding
        image = F.avg_pool2d(F.pad(image, (left, right, top, bottom), mode="reflect"), 2)
    return image[0].permute(1, 2, 0)


def validate(
    generator: Generator,
    shards: Shards,
    pairs: Iterable[Pair],
    device: torch.device,
    measures: Mapping[str, Measure] = NO_MEASURES,
) -> Iterator[tuple[dict[str, float], Tensor, Tensor]]:
    """PSNR, SSIM and `measures` of the full frame of each pair, its image and its target, both (H, W, 3) in [0, 1].

    A long exposure is read once if its pairs follow one another.
    """
    shard, target = None, None
    for pair in pairs:
        if pair.long.shard != shard:
            shard, target = pair.long.shard, at_output_scale(read_target(shards, pair), pair, generator.scale, device)
        image, _ = enhance_frame(generator, shards.planes(pair), pair.short, pair.ratio, device)
        scores = {"psnr_db": metrics.psnr_db(image, target), "ssim": metrics.ssim(image, target)}
        scores |= {name: measure(image, target) for name, measure in measures.items()}
        yield scores, image, target


def read_target(shards: Shards, pair: Pair) -> np.ndarray:
    return shards.target(pair).transpose(1, 2, 0)


@dataclass(frozen=True)
class Decoded:
    """What is read and rendered of a pair before prediction."""

    planes: np.ndarray
    """(C, h, w) uint16, of the short exposure."""
    target: np.ndarray
    """(H, W, 3) uint16, the reference rendering."""
    plain: np.ndarray
    """(H, W, 3) uint16, the plain rendering."""


@dataclass(frozen=True)
class Prediction:
    """What the network makes of a short exposure."""

    image: Tensor
    """(H, W, 3) float32 in [0, 1]."""
    weights: list[Tensor]
    """Of each gate, coarse to fine: see `enhance_frame`."""
    seconds: float
    """Duration."""


def decode(shards: Shards, pair: Pair, target: np.ndarray | None = None) -> Decoded:
    """Read a pair and render it plainly. target: as in `Decoded`, if it has been read for another pair before."""
    planes = shards.planes(pair)
    plain = plain_rendering(pair.short.raw_frame(planes), pair.ratio)
    return Decoded(planes, read_target(shards, pair) if target is None else target, plain)


def predict(
    generator: Generator,
    planes: np.ndarray,
    pair: Pair,
    device: torch.device,
    memory_bytes: int,
    self_ensemble: bool = False,
) -> Prediction:
    """Enhance the short exposure, timed. For the arguments see `enhance_frame`."""
    start = time.perf_counter()
    image, weights = enhance_frame(generator, planes, pair.short, pair.ratio, device, memory_bytes, self_ensemble)
    return Prediction(image, weights, time.perf_counter() - start)


def score_frame(
    generator: Generator,
    pair: Pair,
    decoded: Decoded,
    device: torch.device,
    memory_bytes: int,
    with_images: bool,
    measures: Mapping[str, Measure] = NO_MEASURES,
    self_ensemble: bool = False,
) -> tuple[Score, FrameImages | None]:
    """All scores of one frame, and its views if `with_images`; for `self_ensemble` see `enhance_frame`.

    measures: perceptual metrics by name (see `Measures.load`); those that are missing are NaN.
    """
    prediction = predict(generator, decoded.planes, pair, device, memory_bytes, self_ensemble)
    return score_prediction(pair, decoded, prediction, generator.scale, with_images, measures)


def score_prediction(
    pair: Pair,
    decoded: Decoded,
    prediction: Prediction,
    scale: int,
    with_images: bool,
    measures: Mapping[str, Measure] = NO_MEASURES,
    measured: Mapping[str, tuple[float, float]] = MappingProxyType({}),
) -> tuple[Score, FrameImages | None]:
    """The scores of a prediction, on its device; `score_frame` without predicting.

    measured: metrics that have been measured before, of the image and of the plain rendering.
    """
    image, device = prediction.image, prediction.image.device
    target, plain = (at_output_scale(view, pair, scale, device) for view in (decoded.target, decoded.plain))
    image8, plain8, target8 = (metrics.round_to_8bit(i) for i in (image, plain, target))
    perceptual, plain_perceptual = (
        _perceptual(view, target, measures) | {name: values[number] for name, values in measured.items()}
        for number, view in enumerate((image, plain))
    )
    score = Score(
        name=pair.name,
        scene=pair.scene,
        camera=pair.short.camera,
        iso=pair.short.iso,
        ratio=pair.ratio,
        first_frame=pair.frame == 0,
        misaligned=pair.misaligned,
        psnr_db=metrics.psnr_db(image, target),
        ssim=metrics.ssim(image, target),
        psnr8_db=metrics.psnr_db(image8, target8),
        ssim8=metrics.ssim(image8, target8),
        plain_psnr_db=metrics.psnr_db(plain, target),
        plain_ssim=metrics.ssim(plain, target),
        plain_psnr8_db=metrics.psnr_db(plain8, target8),
        plain_ssim8=metrics.ssim(plain8, target8),
        **perceptual,
        **{f"plain_{name}": value for name, value in plain_perceptual.items()},
        seconds=prediction.seconds,
    )
    if not with_images:
        return score, None
    short = plain_rendering(pair.short.raw_frame(decoded.planes), 1.0)
    views = {
        "short": at_output_scale(short, pair, scale, device),
        "plain": plain,
        "output": image,
        "target": target,
    }
    views_8bit = {name: (view * 255).round().byte().cpu().numpy() for name, view in views.items()}
    fractions = [2**level for level in reversed(range(len(prediction.weights)))]
    views_8bit |= {f"gate_{n}": gate.cpu().numpy() for n, gate in zip(fractions, prediction.weights, strict=True)}
    return score, FrameImages(name=pair.name, ratio=pair.ratio, images=views_8bit)


def _perceptual(image: Tensor, target: Tensor, measures: Mapping[str, Measure]) -> dict[str, float]:
    """Texture, which is always measured, by band and as one number; and `measures`."""
    bands = texture(image, target)
    others = [name for name in PERCEPTUAL if name != "texture"]
    measured = {name: measures[name](image, target) if name in measures else math.nan for name in others}
    return bands | {"texture": texture_error_db(bands)} | measured
