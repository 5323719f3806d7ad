"""Renderings against LibRaw itself."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rawpy
from test_dng import XTRANS, make_frame

from lsid_ray.raw.develop import (
    RENDERING,
    amplify,
    plain_rendering,
    read_and_render,
    reference_rendering,
    rendering_record,
    upright,
)
from lsid_ray.raw.dng import write_dng
from lsid_ray.raw.frame import RawFrame, read_raw

CAMERA_FILES = Path(__file__).resolve().parents[2] / "shared" / "raw"


def smooth_frame(height: int = 90, width: int = 120, **changes) -> RawFrame:
    """Soft colours instead of noise, as AHD's choice of direction is a coin's on noise."""
    y, x = np.mgrid[:height, :width] / 40
    levels = 512 + 3000 * (1.2 + np.sin(2 * x) * np.cos(3 * y))
    return make_frame(mosaic=levels.astype(np.uint16), **changes)


def render_in_place(path: Path, ratio: float) -> np.ndarray:
    """The reference: LibRaw's own decoded frame, amplified in its memory."""
    frame = read_raw(path)
    with rawpy.imread(str(path)) as raw:
        raw.raw_image_visible[:] = amplify(frame, ratio)
        return raw.postprocess(use_camera_wb=True, no_auto_bright=True, output_bps=16, user_flip=0)


@pytest.mark.parametrize("orientation", [0, 3, 5, 6])
@pytest.mark.parametrize("size", [(90, 120), (91, 121)])
def test_the_reference_lies_on_its_mosaic(tmp_path, size: tuple[int, int], orientation: int):
    write_dng(tmp_path / "a.dng", smooth_frame(*size, orientation=orientation))
    rgb = reference_rendering(tmp_path / "a.dng")
    assert rgb.shape == (*size, 3)
    assert rgb.dtype == np.uint16
    write_dng(tmp_path / "upright.dng", smooth_frame(*size))
    np.testing.assert_array_equal(rgb, reference_rendering(tmp_path / "upright.dng"))


def test_the_parameters_spelled_out_are_sids(tmp_path):
    """Chen et al.'s call names three parameters; the others must be what LibRaw does without them."""
    write_dng(tmp_path / "a.dng", smooth_frame())
    with rawpy.imread(str(tmp_path / "a.dng")) as raw:
        sids = raw.postprocess(use_camera_wb=True, no_auto_bright=True, output_bps=16)
    np.testing.assert_array_equal(reference_rendering(tmp_path / "a.dng"), sids)


def test_reading_and_rendering_at_once_equals_each_alone(tmp_path):
    write_dng(tmp_path / "a.dng", smooth_frame())
    frame, rgb = read_and_render(tmp_path / "a.dng")
    alone = read_raw(tmp_path / "a.dng")
    np.testing.assert_array_equal(frame.mosaic, alone.mosaic)
    assert (frame.black, frame.white, frame.white_balance) == (alone.black, alone.white, alone.white_balance)
    np.testing.assert_array_equal(rgb, reference_rendering(tmp_path / "a.dng"))


@pytest.mark.parametrize("ratio", [1.0, 2.5, 100.0])
@pytest.mark.parametrize("cfa", ["RGGB", "GRBG", "GBRG", "BGGR"])
def test_the_plain_rendering_is_libraws_of_the_amplified_file(tmp_path, cfa: str, ratio: float):
    frame = smooth_frame(91, 121, cfa=cfa, black=(510.0, 512.0, 514.0, 509.0))
    write_dng(tmp_path / "a.dng", frame)
    plain = plain_rendering(read_raw(tmp_path / "a.dng"), ratio)
    np.testing.assert_array_equal(plain, render_in_place(tmp_path / "a.dng", ratio))


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
def test_the_plain_rendering_is_libraws_of_real_files_too(name: str, ratio: float):
    path = CAMERA_FILES / name
    if not path.exists():
        pytest.skip("no camera file here")
    plain = plain_rendering(read_raw(path), ratio)
    by_libraw = render_in_place(path, ratio)
    # The ARW's colour matrix comes from LibRaw's table, in another float: AHD then tips over at few pixels.
    assert np.count_nonzero(plain != by_libraw) < 1e-3 * plain.size
    difference = plain.astype(np.float32) - by_libraw
    assert np.sqrt(np.mean(difference**2)) < 20  # of 65535: 70 dB


def test_amplifying_equals_a_slow_loop_about_each_positions_black():
    frame = make_frame(22, 23, black=(510.0, 512.0, 514.0, 509.0))
    frame = replace(frame, mosaic=frame.mosaic // 16)
    amplified = amplify(frame, 20.0)
    for (y, x), value in np.ndenumerate(frame.mosaic):
        black = frame.black[y % 2 * 2 + x % 2]
        expected = min(max(round((int(value) - black) * 20 + black), 0), 16383)
        assert amplified[y, x] == expected


def test_amplifying_an_xtrans_frame_uses_all_36_levels():
    frame = make_frame(24, 24, cfa=XTRANS, black=tuple(float(500 + level) for level in range(36)))
    frame = replace(frame, mosaic=np.full((24, 24), 600, np.uint16))
    amplified = amplify(frame, 2.0)
    assert all(amplified[y, x] == 1200 - (500 + y % 6 * 6 + x % 6) for y in range(24) for x in range(24))


@pytest.mark.parametrize("orientation", range(8))
def test_a_rendering_turned_upright_is_what_libraw_turns(tmp_path, orientation: int):
    write_dng(tmp_path / "a.dng", smooth_frame(91, 121, orientation=orientation))
    frame, rgb = read_and_render(tmp_path / "a.dng")
    with rawpy.imread(str(tmp_path / "a.dng")) as raw:
        turned = raw.postprocess(use_camera_wb=True, no_auto_bright=True, output_bps=16)
    assert turned.shape == ((121, 91, 3) if orientation >= 4 else (91, 121, 3))
    np.testing.assert_array_equal(upright(rgb, frame.orientation), turned)


def test_a_map_of_one_value_a_pixel_turns_too():
    np.testing.assert_array_equal(upright(np.array([[1, 2, 3], [4, 5, 6]]), 6), [[4, 1], [5, 2], [6, 3]])


@pytest.mark.parametrize("orientation", [-1, 8, 90])
def test_an_orientation_that_libraw_does_not_know_is_refused(orientation: int):
    with pytest.raises(ValueError, match=f"orientation {orientation}"):
        upright(np.zeros((2, 3)), orientation)


def test_the_record_is_plain_json_and_names_everything():
    record = rendering_record()
    assert json.loads(json.dumps(record)) == record
    assert set(record) == {"libraw", *RENDERING}
    assert record["libraw"] == ".".join(map(str, rawpy.libraw_version))
