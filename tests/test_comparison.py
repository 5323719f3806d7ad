"""Whether both exposures of a pair are aligned and as bright as their ratio says, on frames moved by known amounts."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import skimage
from PIL import Image

from lsid_ray.data.comparison import BLACK_ERROR, Comparison, compare_frames
from lsid_ray.raw.color import A7S2_COLOR_MATRIX, linear_light
from lsid_ray.raw.frame import RawFrame
from lsid_ray.raw.mosaic import XTRANS
from lsid_ray.raw.render import plain_rendering
from lsid_ray.synthesis.noise import short_exposure
from lsid_ray.synthesis.photograph import frame_from_photograph

STEP = 4  # pixels of a photograph per pixel of a frame: frames are moved by quarters


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory):
    """moved(down, right): a clean frame of 240x256 whose scene lies so much lower and to the right, by quarters."""
    path = Path(skimage.__file__).parent / "data" / "motorcycle_left.png"
    photo = Image.open(path).convert("RGB").resize((1400, 1300), Image.Resampling.BICUBIC)
    folder = tmp_path_factory.mktemp("moved")

    def make(down: float = 0, right: float = 0) -> RawFrame:
        top, left = 100 - round(STEP * down), 150 - round(STEP * right)
        crop = photo.crop((left, top, left + 256 * STEP, top + 240 * STEP)).resize((256, 240), Image.Resampling.BOX)
        crop.save(folder / "crop.png")
        return frame_from_photograph(folder / "crop.png", (2.0, 1.6))

    return make


def darkened(frame: RawFrame, ratio: float, iso: int, seed: int = 0) -> RawFrame:
    rng = np.random.default_rng(seed)
    return replace(frame, mosaic=short_exposure(frame.mosaic, frame.black, frame.white, ratio, iso, rng))


def encoded(linear: np.ndarray) -> np.ndarray:
    """LibRaw's tone curve for gamma (2.222, 4.5)."""
    return np.where(linear < 0.0180501557, 4.5 * linear, 1.0992578062 * linear ** (1 / 2.222) - 0.0992578062)


def compare(short: RawFrame, long: RawFrame, ratio: float) -> Comparison:
    return compare_frames(short, long, plain_rendering(long, 1.0), ratio)


@pytest.mark.parametrize(
    "ratio, iso, tolerance", [(100, 200, 0.15), (250, 1600, 0.35), (300, 1600, 0.4), (300, 6400, 0.5)]
)
@pytest.mark.parametrize("shift", [(0, 0), (0.5, -0.25), (-1.5, 0.75), (6.25, -9)])
def test_a_known_shift_is_found_below_sids_noise(moved, shift, ratio: float, iso: int, tolerance: float) -> None:
    short = darkened(moved(*shift), ratio, iso)
    comparison = compare(short, moved(), ratio)
    assert comparison.shift == pytest.approx(shift, abs=tolerance)
    assert bool(comparison.problems(ratio)) == (np.hypot(*shift) > 1)


@pytest.mark.parametrize("top, left", [(0, 1), (1, 0), (1, 1)])
def test_other_phases_of_the_sensor_are_not_taken_for_a_shift(moved, top: int, left: int) -> None:
    cfa = {(0, 1): "GRBG", (1, 0): "GBRG", (1, 1): "BGGR"}[top, left]
    short, long = (
        replace(frame, mosaic=frame.mosaic[top:, left:], cfa=cfa)
        for frame in (darkened(moved(0.5, 0.25), 100, 200), moved())
    )
    assert compare(short, long, 100).shift == pytest.approx((0.5, 0.25), abs=0.15)


def test_xtrans_frames_are_compared() -> None:
    light = np.kron(np.random.default_rng(0).random((60, 60)), np.ones((6, 6)))  # patches of one brightness
    short = RawFrame(
        cfa=XTRANS.pattern, black=(1024.0,) * 36, white=16383.0, white_balance=(1.0, 1.0, 1.0),
        color_matrix=A7S2_COLOR_MATRIX, orientation=0, camera="x", iso=800, exposure_s=1.0, source="x",
        mosaic=np.rint(1024 + 15359 / 100 * light[27:327, 33:333]).astype(np.uint16),
    )  # fmt: skip
    rendering = np.rint(encoded(light[30:330, 30:330]) * 65535).astype(np.uint16)[:, :, None].repeat(3, axis=2)
    comparison = compare_frames(short, short, rendering, 100)
    assert comparison.shift == pytest.approx((3, -3), abs=0.3) and comparison.measured_ratio is None
    assert compare_frames(short, short, rendering, 180).measured_ratio == pytest.approx(100, rel=0.1)


@pytest.mark.parametrize("ratio, iso", [(100, 200), (300, 1600), (300, 6400)])
def test_a_frame_without_light_has_no_shift(moved, ratio: float, iso: int) -> None:
    dark = replace(moved(), mosaic=np.full_like(moved().mosaic, 512))
    for seed in range(3):
        assert compare(darkened(dark, ratio, iso, seed), moved(), ratio).shift is None
    plain = replace(moved(), mosaic=np.full_like(moved().mosaic, 4000))
    assert compare(darkened(plain, ratio, iso), plain, ratio).shift is None
    assert compare(plain, plain, 1).shift is None


def test_a_ratio_that_the_brightness_contradicts_is_named(moved) -> None:
    long, short = moved(), darkened(moved(), 100, 200)
    for ratio in (75, 100, 140):
        assert compare(short, long, ratio).measured_ratio is None and compare(short, long, ratio).problems(ratio) == []
    (low,) = compare(short, long, 40).problems(40)
    (high,) = compare(short, long, 250).problems(250)
    assert low.startswith("by its brightness the ratio is at least ") and low.endswith(", not 40")
    assert high.startswith("by its brightness the ratio is at most ") and high.endswith(", not 250")
    for ratio in (40, 250):
        assert compare(short, long, ratio).measured_ratio == pytest.approx(100, rel=0.25)


def test_an_error_of_the_black_level_is_not_taken_for_a_wrong_ratio(moved) -> None:
    long = moved()
    clean = replace(long, mosaic=np.rint(512 + (long.mosaic - 512.0) / 300).astype(np.uint16))
    for error in (-2, 0, 2):
        assert compare(replace(clean, mosaic=clean.mosaic + np.int16(error)), long, 300).measured_ratio is None
    black = replace(clean, mosaic=np.full_like(clean.mosaic, 512))
    assert BLACK_ERROR * (16383 - 512) > 2
    assert compare(replace(black, mosaic=black.mosaic - 20), long, 10).measured_ratio == float("inf")


def test_clipped_highlights_do_not_count(moved) -> None:
    long = moved()
    bright = long.mosaic.copy()
    bright[:120] = 16383
    lamp = long.mosaic.copy().astype(np.float64)
    lamp[:120] = 60000  # as bright as the sensor could not record it in the long exposure
    short = replace(long, mosaic=np.rint(512 + (lamp - 512) / 100).astype(np.uint16))
    assert compare(short, replace(long, mosaic=bright), 100).measured_ratio is None


def test_a_frame_that_is_too_small_is_not_compared(moved) -> None:
    small = replace(moved(), mosaic=moved().mosaic[:26, :26])
    assert compare(small, small, 1) == Comparison(None, None)


def test_the_tone_curve_is_undone() -> None:
    linear = np.linspace(0, 1, 50)
    np.testing.assert_allclose(linear_light(np.rint(encoded(linear) * 65535).astype(np.uint16)), linear, atol=2e-5)
