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
from lsid_ray.raw.render import (
    RENDERING,
    amplify,
    plain_rendering,
    read_and_render,
    reference_rendering,
    rendering_parameters,
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
        return raw.postprocess(use_camera_wb=True, no_auto_bright=True, output_bps=16, user_flip=0)


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
    write_dng(tmp_path / "a.dng", smooth_frame())
    with rawpy.imread(str(tmp_path / "a.dng")) as raw:
        sid_rendering = raw.postprocess(use_camera_wb=True, no_auto_bright=True, output_bps=16)
    np.testing.assert_array_equal(reference_rendering(tmp_path / "a.dng"), sid_rendering)


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
        flipped = raw.postprocess(use_camera_wb=True, no_auto_bright=True, output_bps=16)
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
