"""Frames written as DNG and read back with LibRaw."""

import io
import itertools
from dataclasses import fields, replace
from datetime import datetime

import numpy as np
import pytest
import rawpy

from lsid_ray.raw.dng import write_dng
from lsid_ray.raw.frame import RawFrame, read_raw
from lsid_ray.raw.mosaic import BAYER_PHASES

MATRIX = ((0.5838, -0.143, -0.0246), (-0.3497, 1.1477, 0.2297), (-0.0748, 0.1885, 0.5778))
XTRANS = "GGRGGBGGBGGRBRGRBGGGBGGRGGRGGBRBGBRG"


def make_frame(height: int = 48, width: int = 64, **changes) -> RawFrame:
    frame = RawFrame(
        mosaic=np.random.default_rng(1).integers(0, 16384, (height, width), dtype=np.uint16),
        cfa="RGGB",
        black=(512.0,) * 4,
        white=16383.0,
        white_balance=(2.0313, 1.0, 2.4766),
        color_matrix=MATRIX,
        orientation=0,
        camera="SONY ILCE-7SM2",
        iso=1250.0,
        exposure_s=0.0333,
        source="frame.dng",
        aperture=2.8,
        focal_length_mm=55.0,
        taken=datetime(2015, 11, 3, 20, 15, 0),
    )
    return replace(frame, **changes)


def assert_frames_equal(read: RawFrame, written: RawFrame) -> None:
    np.testing.assert_array_equal(read.mosaic, written.mosaic)
    assert read.mosaic.dtype == np.uint16
    np.testing.assert_allclose(read.white_balance, written.white_balance, rtol=1e-6)
    np.testing.assert_allclose(read.color_matrix, written.color_matrix, atol=1e-4)
    for field in fields(RawFrame):
        if field.name not in ("mosaic", "white_balance", "color_matrix"):
            assert getattr(read, field.name) == getattr(written, field.name), field.name


@pytest.mark.parametrize(
    ("cfa", "size", "orientation"),
    list(itertools.product(BAYER_PHASES, [(48, 64), (47, 64), (48, 63), (47, 63)], [0, 3, 5, 6])),
)
def test_a_bayer_frame_is_read_back_unchanged(tmp_path, cfa: str, size: tuple[int, int], orientation: int):
    frame = make_frame(*size, cfa=cfa, orientation=orientation)
    for black in [(512.0,) * 4, (510.0, 512.0, 514.0, 509.0), (0.0,) * 4]:
        written = replace(frame, black=black)
        write_dng(tmp_path / "frame.dng", written)
        assert_frames_equal(read_raw(tmp_path / "frame.dng"), written)


@pytest.mark.parametrize("orientation", [1, 2, 4, 7])
def test_mirrored_orientations_are_read_back_unchanged(tmp_path, orientation: int):
    write_dng(tmp_path / "frame.dng", make_frame(orientation=orientation))
    assert read_raw(tmp_path / "frame.dng").orientation == orientation


def test_an_xtrans_frame_is_read_back_unchanged(tmp_path):
    frame = make_frame(60, 66, cfa=XTRANS, black=(1024.0,) * 36, camera="Fujifilm X-T2")
    write_dng(tmp_path / "frame.dng", frame)
    assert_frames_equal(read_raw(tmp_path / "frame.dng"), frame)


@pytest.mark.parametrize("exposure_s", [10.0, 30.0, 0.1, 0.04, 0.033, 1 / 640, None])
@pytest.mark.parametrize("iso", [50.0, 25600.0, None])
def test_exposure_and_iso_are_read_back_unchanged(tmp_path, iso: float | None, exposure_s: float | None):
    write_dng(tmp_path / "frame.dng", make_frame(iso=iso, exposure_s=exposure_s))
    frame = read_raw(tmp_path / "frame.dng")
    assert (frame.iso, frame.exposure_s) == (iso, exposure_s)


def test_a_frame_without_camera_and_color_matrix_is_read_back(tmp_path):
    frame = make_frame(camera="unknown", color_matrix=((0.0,) * 3,) * 3, white=4095.0)
    write_dng(tmp_path / "frame.dng", frame)
    assert read_raw(tmp_path / "frame.dng").camera == "unknown"
    assert read_raw(tmp_path / "frame.dng").white == 4095


def test_a_file_object_and_a_path_get_the_same_bytes(tmp_path):
    write_dng(tmp_path / "frame.dng", make_frame())
    write_dng(file := io.BytesIO(), make_frame())
    assert file.getvalue() == (tmp_path / "frame.dng").read_bytes()


def test_a_failed_write_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="expected 16-bit integers"):
        write_dng(tmp_path / "frame.dng", make_frame(white=16383.5))
    (tmp_path / "folder.dng").mkdir()
    with pytest.raises(OSError):
        write_dng(tmp_path / "folder.dng", make_frame())
    assert [path.name for path in tmp_path.iterdir()] == ["folder.dng"]


def test_a_frame_too_small_for_libraw_raises_an_error():
    with pytest.raises(ValueError, match="21x64"):
        write_dng(io.BytesIO(), make_frame(21, 64))


def test_libraw_opens_a_frame_of_the_minimum_size():
    write_dng(file := io.BytesIO(), make_frame(22, 22))
    file.seek(0)
    with rawpy.imread(file) as raw:
        assert raw.raw_image_visible.shape == (22, 22)
