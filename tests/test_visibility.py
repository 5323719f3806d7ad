"""FLIP in strips against the whole frame, and what it says of known faults."""

from itertools import pairwise

import flip_evaluator
import numpy as np
import pytest
import torch
from skimage import data, filters

from lsid_ray.evaluate import visibility
from lsid_ray.evaluate.visibility import flip


@pytest.fixture(scope="module")
def target() -> np.ndarray:
    return (data.astronaut()[60:237, 60:271] / 255.0).astype(np.float32)  # 177 x 211: not a multiple of a strip


def noisy(target: np.ndarray, sigma: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, sigma, target.shape)
    return np.clip(target + noise, 0, 1).astype(np.float32)


@pytest.mark.parametrize("strip_rows", [11, 16, 177, 500])
def test_strips_have_the_error_of_the_whole_frame(
    target: np.ndarray, monkeypatch: pytest.MonkeyPatch, strip_rows: int
) -> None:
    monkeypatch.setattr(visibility, "STRIP_ROWS", strip_rows)
    image = noisy(target, 0.05)
    errors, _, _ = flip_evaluator.evaluate(target, image, "LDR", applyMagma=False)
    assert flip(image, target) == pytest.approx(errors.mean(dtype=float), abs=1e-9)


def test_stronger_faults_are_more_visible(target: np.ndarray) -> None:
    assert flip(target, target.copy()) == 0
    blurs = [flip(filters.gaussian(target, sigma, channel_axis=2), target) for sigma in (0.5, 1, 2, 4)]
    noises = [flip(noisy(target, sigma), target) for sigma in (0.01, 0.03, 0.1)]
    tints = [flip(target + np.float32([tint, 0, 0]), target) for tint in (0.01, 0.02, 0.05)]
    shifts = [flip(np.roll(target, pixels, 1), target) for pixels in (1, 2, 4)]
    for scores in (blurs, noises, tints, shifts):
        assert scores[0] > 0 and scores[-1] < 0.6 and all(a < b for a, b in pairwise(scores))


def test_tensors_score_like_arrays_and_values_are_clamped(target: np.ndarray) -> None:
    image = target * 1.5 - 0.2
    expected = flip(np.clip(image, 0, 1), target)
    assert flip(image, target) == expected
    planes = torch.from_numpy(image).permute(2, 0, 1).contiguous()
    assert flip(planes.permute(1, 2, 0), torch.from_numpy(target)) == expected


def test_frames_of_any_size_have_a_score(target: np.ndarray) -> None:
    assert 0 < flip(noisy(target, 0.1)[:1, :1], target[:1, :1]) < 1
    assert np.isnan(flip(target[:0], target[:0]))
