"""Renderings against calls of LibRaw itself."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rawpy
from test_dng import XTRANS, make_frame

from lsid_ray.raw.dng import write_dng
from lsid_ray.raw.frame import RawFrame, read_raw
from lsid_ray.raw.mosaic import black_mosaic
from lsid_ray.raw.render import (
    RENDERING,
    amplify,
    plain_rendering,
    read_and_render,
    reference_rendering,
    rendering_parameters,
    saturation,
    upright,
)

CAMERA_FILES = Path(__file__).resolve().parents[2] / "shared" / "raw"


def smooth_frame(height: int = 90, width: int = 120, **changes) -> RawFrame:
    """A smooth gradient: on noise, AHD's choice of direction would be random."""
    y, x = np.mgrid[:height, :width] / 40
    levels = 512 + 3000 * (1.2 + np.sin(2 * x) * np.cos(3 * y))
    return make_frame(mosaic=levels.astype(np.uint16), **changes)


def render_amplified_in_libraw(path: Path, ratio: float) -> np.ndarray:
    """LibRaw's rendering after its decoded mosaic was amplified in place."""
    frame = read_raw(path)
    with rawpy.imread(str(path)) as raw:
        raw.raw_image_visible[:] = amplify(frame, ratio)
        return raw.postprocess(
            use_camera_wb=True, no_auto_bright=True, output_bps=16, user_flip=0, adjust_maximum_thr=0
        )


@pytest.mark.parametrize("orientation", [0, 3, 5, 6])
@pytest.mark.parametrize("size", [(90, 120), (91, 121)])
def test_the_reference_rendering_is_aligned_with_its_mosaic(tmp_path, size: tuple[int, int], orientation: int):
    write_dng(tmp_path / "a.dng", smooth_frame(*size, orientation=orientation))
    rgb = reference_rendering(tmp_path / "a.dng")
    assert rgb.shape == (*size, 3)
    assert rgb.dtype == np.uint16
    write_dng(tmp_path / "upright.dng", smooth_frame(*size))
    np.testing.assert_array_equal(rgb, reference_rendering(tmp_path / "upright.dng"))


def test_the_rendering_parameters_give_the_same_image_as_sids_call(tmp_path):
    """Chen et al. set three parameters; all others must equal LibRaw's defaults."""
    bright = replace(smooth_frame(), mosaic=2 * smooth_frame().mosaic)
    write_dng(tmp_path / "a.dng", bright)
    with rawpy.imread(str(tmp_path / "a.dng")) as raw:
        sid_rendering = raw.postprocess(use_camera_wb=True, no_auto_bright=True, output_bps=16)
    np.testing.assert_array_equal(reference_rendering(tmp_path / "a.dng", sid_white=True), sid_rendering)
    ours = reference_rendering(tmp_path / "a.dng")
    assert 1.05 < (sid_rendering.mean() / ours.mean()) < 1.2, "brighter, as no sensel of it is white"


def test_no_single_sensel_decides_how_bright_a_rendering_is(tmp_path):
    means = []
    for brightest in (0.60, 0.74, 0.76, 0.90, 1.0):
        frame = smooth_frame()
        frame.mosaic[50, 60] = 512 + brightest * (16383 - 512)
        write_dng(tmp_path / "a.dng", frame)
        means.append(reference_rendering(tmp_path / "a.dng").mean())
    assert max(means) / min(means) < 1.002


@pytest.mark.parametrize("noise", [0, 8])
@pytest.mark.parametrize("clip", [16383, 15600, 15000, 13000])
def test_highlights_are_neutral_wherever_the_sensor_saturates(tmp_path, clip: int, noise: int):
    """White balance would turn them pink; a hot sensel reads white all the same."""
    dark = smooth_frame()
    levels = dark.mosaic.astype(float)
    levels[30:60, 40:80] = np.random.default_rng(0).normal(clip, noise, (30, 40))
    levels[5, 5] = 16383
    frame = replace(dark, mosaic=levels.round().clip(0, min(clip + 3 * noise + 1, 16383)).astype(np.uint16))
    frame.mosaic[5, 5] = 16383
    write_dng(tmp_path / "a.dng", frame)
    rendered = reference_rendering(tmp_path / "a.dng")
    assert rendered[36:54, 46:74].min() > 65400
    np.testing.assert_array_equal(plain_rendering(read_raw(tmp_path / "a.dng"), 1.0), rendered)
    write_dng(tmp_path / "dark.dng", dark)
    expected = reference_rendering(tmp_path / "dark.dng")
    np.testing.assert_array_equal(rendered[70:], expected[70:], "the rest is as bright as without them")


def test_bright_surfaces_are_not_taken_for_saturation(tmp_path):
    random = np.random.default_rng(0)
    flat = random.normal(13000, 100, (90, 120)).round().astype(np.uint16)  # shot noise of as many electrons
    assert saturation(replace(smooth_frame(), mosaic=flat)) is None
    red = smooth_frame()  # a red lamp, or a photograph whose red is clipped
    red.mosaic[30:60:2, 40:80:2] = 14000
    assert saturation(red) is None
    balanced = smooth_frame()  # a photograph's white, which is at another level in each color
    for row, column, level in ((0, 0, 7000), (0, 1, 14000), (1, 0, 14000), (1, 1, 9000)):
        balanced.mosaic[30 + row : 60 : 2, 40 + column : 80 : 2] = level
    assert saturation(balanced) is None


def test_read_and_render_returns_the_same_as_separate_calls(tmp_path):
    write_dng(tmp_path / "a.dng", smooth_frame())
    frame, rgb = read_and_render(tmp_path / "a.dng")
    separate = read_raw(tmp_path / "a.dng")
    np.testing.assert_array_equal(frame.mosaic, separate.mosaic)
    assert (frame.black, frame.white, frame.white_balance) == (separate.black, separate.white, separate.white_balance)
    np.testing.assert_array_equal(rgb, reference_rendering(tmp_path / "a.dng"))


@pytest.mark.parametrize("ratio", [1.0, 2.5, 100.0])
@pytest.mark.parametrize("cfa", ["RGGB", "GRBG", "GBRG", "BGGR"])
def test_the_plain_rendering_matches_libraw_on_the_amplified_mosaic(tmp_path, cfa: str, ratio: float):
    frame = smooth_frame(91, 121, cfa=cfa, black=(510.0, 512.0, 514.0, 509.0))
    write_dng(tmp_path / "a.dng", frame)
    plain = plain_rendering(read_raw(tmp_path / "a.dng"), ratio)
    np.testing.assert_array_equal(plain, render_amplified_in_libraw(tmp_path / "a.dng", ratio))


@pytest.mark.parametrize(
    ("name", "ratio"),
    [
        ("nikon_d750_rose.dng", 1.0),
        ("nikon_d750_rose.dng", 8.0),
        ("unknown_module_colorchecker.dng", 4.0),
        ("canon_550d_colorchart.dng", 1.0),
        ("sony_a7r3_iso3200.ARW", 8.0),
    ],
)
def test_the_plain_rendering_matches_libraw_on_real_files(name: str, ratio: float):
    path = CAMERA_FILES / name
    if not path.exists():
        pytest.skip("the camera files are not installed")
    plain = plain_rendering(read_raw(path), ratio)
    expected = render_amplified_in_libraw(path, ratio)
    # The ARW's color matrix is rounded differently in LibRaw's table, so AHD picks another direction at a few pixels.
    assert np.count_nonzero(plain != expected) < 1e-3 * plain.size
    difference = plain.astype(np.float32) - expected
    assert np.sqrt(np.mean(difference**2)) < 20  # of 65535: 70 dB


@pytest.mark.parametrize(
    "path", sorted(CAMERA_FILES.glob("*.*")) if CAMERA_FILES.exists() else [], ids=lambda p: p.name
)
def test_of_every_camera_file_the_plain_rendering_at_ratio_1_is_the_reference(path: Path):
    frame, reference = read_and_render(path)
    np.testing.assert_array_equal(plain_rendering(frame, 1.0), reference)
    dark = black_mosaic(frame.black, 512, 516).round().astype(np.uint16)
    black = replace(frame, mosaic=dark, black=tuple(float(round(level)) for level in frame.black))
    assert not plain_rendering(black, 300.0).any(), "of nothing but black it is 0"


def test_sensels_above_white_are_white_in_both_renderings(tmp_path):
    frame = smooth_frame()
    frame.mosaic[10:30, 10:30] = 16600
    write_dng(tmp_path / "a.dng", frame)
    read, reference = read_and_render(tmp_path / "a.dng")
    np.testing.assert_array_equal(plain_rendering(read, 1.0), reference)


def test_amplify_matches_a_slow_loop_with_a_black_level_per_position():
    frame = make_frame(22, 23, black=(510.0, 512.0, 514.0, 509.0))
    frame = replace(frame, mosaic=frame.mosaic // 16)
    amplified = amplify(frame, 20.0)
    for (y, x), value in np.ndenumerate(frame.mosaic):
        black = frame.black[y % 2 * 2 + x % 2]
        expected = min(max(round((int(value) - black) * 20 + black), 0), 16383)
        assert amplified[y, x] == expected


def test_amplify_uses_all_36_black_levels_of_an_xtrans_frame():
    frame = make_frame(24, 24, cfa=XTRANS, black=tuple(float(500 + level) for level in range(36)))
    frame = replace(frame, mosaic=np.full((24, 24), 600, np.uint16))
    amplified = amplify(frame, 2.0)
    assert all(amplified[y, x] == 1200 - (500 + y % 6 * 6 + x % 6) for y in range(24) for x in range(24))


@pytest.mark.parametrize("orientation", range(8))
def test_upright_matches_libraws_flip(tmp_path, orientation: int):
    write_dng(tmp_path / "a.dng", smooth_frame(91, 121, orientation=orientation))
    frame, rgb = read_and_render(tmp_path / "a.dng")
    with rawpy.imread(str(tmp_path / "a.dng")) as raw:
        flipped = raw.postprocess(use_camera_wb=True, no_auto_bright=True, output_bps=16, adjust_maximum_thr=0)
    assert flipped.shape == ((121, 91, 3) if orientation >= 4 else (91, 121, 3))
    np.testing.assert_array_equal(upright(rgb, frame.orientation), flipped)


def test_upright_accepts_an_image_without_channels():
    np.testing.assert_array_equal(upright(np.array([[1, 2, 3], [4, 5, 6]]), 6), [[4, 1], [5, 2], [6, 3]])


@pytest.mark.parametrize("orientation", [-1, 8, 90])
def test_an_unknown_orientation_raises_an_error(orientation: int):
    with pytest.raises(ValueError, match=f"orientation {orientation}"):
        upright(np.zeros((2, 3)), orientation)


def test_rendering_parameters_are_complete_and_json_serializable():
    parameters = rendering_parameters()
    assert json.loads(json.dumps(parameters)) == parameters
    assert set(parameters) == {"libraw", *RENDERING}
    assert parameters["libraw"] == ".".join(map(str, rawpy.libraw_version))
