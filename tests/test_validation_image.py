"""The image of a validation: input, output and target side by side, and its way to TensorBoard."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_export import make_frame

from lsid_ray.config.schema import GeneratorConfig
from lsid_ray.evaluate import validation_image as module
from lsid_ray.evaluate.validation_image import validation_image
from lsid_ray.model.generator import Generator
from lsid_ray.raw.color import A7S2_COLOR_MATRIX
from lsid_ray.raw.mosaic import pack
from lsid_ray.train.run_log import open_log


def uniform(height: int, width: int, value: float) -> torch.Tensor:
    return torch.full((height, width, 3), value)


@pytest.mark.parametrize("kind", ["bayer", "xtrans"])
@pytest.mark.parametrize("curve", ["linear", "tone"])
def test_the_three_views_stand_side_by_side(kind: str, curve: str):
    generator = Generator(GeneratorConfig(width=2, depth=1, cfa=kind, input_curve=curve))
    frame = make_frame(kind, 60, 96, A7S2_COLOR_MATRIX)
    light = 0.2  # of white, after a white balance of (2, 1, 1.5) and an amplification of 10
    gains = dict(zip("RGB", (2.0, 1.0, 1.5), strict=True))
    side = 2 if kind == "bayer" else 6
    for position, color in enumerate(frame.cfa):
        y, x = divmod(position, side)
        span = 16383.0 - max(frame.black)
        frame.mosaic[y::side, x::side] = round(frame.black[position] + light / gains[color] / 10 * span)
    planes = pack(frame.mosaic, frame.cfa)
    pixels = validation_image(generator, planes, frame, 10.0, uniform(60, 96, 0.25), uniform(60, 96, 0.75))
    assert pixels.shape == (60, 3 * 96, 3) and pixels.dtype == np.uint8
    expected = 255 * (1.0993 * light**0.45 - 0.0993)  # BT.709's curve, for a gray that no color matrix changes
    np.testing.assert_allclose(pixels[:, :96], expected, atol=2)
    assert (pixels[:, 96:192] == 64).all() and (pixels[:, 192:] == 191).all()


def test_a_large_frame_is_reduced_and_turned_upright(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MAX_WIDTH", 24)
    generator = Generator(GeneratorConfig(width=2, depth=1))
    frame = dataclasses.replace(make_frame("bayer", 64, 96), orientation=3)
    target = uniform(64, 96, 0.0)
    target[:32] = 1.0  # upside down
    pixels = validation_image(generator, pack(frame.mosaic, frame.cfa), frame, 10.0, uniform(64, 96, 0.5), target)
    assert pixels.shape == (16, 3 * 24, 3)
    assert (pixels[:8, 48:] == 0).all() and (pixels[8:, 48:] == 255).all()


def test_tensorboard_shows_it_and_the_log_does_not_have_it(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3)).astype(np.uint8)
    with open_log(tmp_path, lambda event: None) as log:
        log.write({"kind": "start", "step": 0, "total_steps": 8, "workers": 1})
        log.write({"kind": "image", "step": 4, "name": "00001_00_0.1s.dng", "pixels": pixels})
        log.write({"kind": "validation", "step": 4, "epoch": 1, "frames": 1, "psnr_db": 20.0, "ssim": 0.5})
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (image,) = board.Images("validation/00001_00_0.1s.dng")
    assert (image.step, image.width, image.height) == (4, 12, 8)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["start", "validation"]
