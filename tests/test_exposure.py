"""Exposure time, ISO and aperture, by the EXIF tags that the test wrote."""

from pathlib import Path

import numpy as np
import pytest
from dng_file import LONG, RATIONAL, SHORT, SRATIONAL, Tags, write_dng_file
from test_dng import make_frame
from test_dng_specification import camera_tags

from lsid_ray.raw.dng import write_dng
from lsid_ray.raw.frame import RawFrame, read_raw

TIME, F_NUMBER, ISO, SENSITIVITY, OUTPUT, INDEX, SPEED = 33434, 33437, 34855, 34864, 34865, 34866, 34867
TIME_STOPS, APERTURE_STOPS = 37377, 37378
TIMED: Tags = {TIME: (RATIONAL, [1, 30])}


def read(path: Path, exif: Tags, name: str = "a.dng", **layout: str) -> RawFrame:
    mosaic = np.full((40, 48), 600, np.uint16)
    return read_raw(write_dng_file(path / name, mosaic, {**camera_tags("RGGB", 16383)}, exif, **layout))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("exif", "seconds"),
    [
        ({TIME: (RATIONAL, [1, 30])}, 1 / 30),
        ({TIME: (RATIONAL, [1, 1])}, 1.0),
        ({TIME: (RATIONAL, [1, 1]), F_NUMBER: (RATIONAL, [1, 1])}, 1.0),
        ({TIME_STOPS: (SRATIONAL, [5, 1])}, 1 / 32),
        ({TIME_STOPS: (SRATIONAL, [-3, 1])}, 8.0),
        ({TIME: (RATIONAL, [1, 30]), TIME_STOPS: (SRATIONAL, [5, 0])}, 1 / 30),
        ({TIME: (RATIONAL, [1, 0]), TIME_STOPS: (SRATIONAL, [5, 1])}, 1 / 32),
        ({TIME: (RATIONAL, [0, 0]), TIME_STOPS: (SRATIONAL, [5, 1])}, 1 / 32),
        ({TIME: (RATIONAL, [0, 0])}, None),
        ({TIME: (RATIONAL, [0, 1])}, None),
        ({TIME: (RATIONAL, [1, 0])}, None),
        ({TIME: (RATIONAL, [10, 0]), ISO: (SHORT, [100])}, None),
        ({TIME_STOPS: (SRATIONAL, [5, 0])}, None),
        ({ISO: (SHORT, [100])}, None),
    ],
)
def test_the_exposure_time_is_that_of_the_tags(exif: Tags, seconds: float | None, order: str, tmp_path: Path) -> None:
    assert read(tmp_path, exif, order=order).exposure_s == (seconds and pytest.approx(seconds, rel=1e-6))


def test_a_damaged_exposure_time_is_replaced_by_that_of_the_name_and_said(tmp_path: Path) -> None:
    frame = read(tmp_path, {TIME: (RATIONAL, [1, 0])}, "00001_00_0.04s.dng")
    assert frame.exposure_s == 0.04 and frame.remarks == ("its ExposureTime is 1/0",)


@pytest.mark.parametrize(
    ("exif", "iso"),
    [
        ({ISO: (SHORT, [3200])}, 3200),
        ({ISO: (SHORT, [200, 0])}, 200),
        ({ISO: (LONG, [102400])}, 102400),
        ({ISO: (SHORT, [65535]), SENSITIVITY: (SHORT, [2]), INDEX: (LONG, [102400])}, 102400),
        ({ISO: (SHORT, [65535]), SENSITIVITY: (SHORT, [1]), OUTPUT: (LONG, [204800])}, 204800),
        ({ISO: (SHORT, [65535]), SENSITIVITY: (SHORT, [3]), SPEED: (LONG, [409600])}, 409600),
        (
            {ISO: (SHORT, [65535]), SENSITIVITY: (SHORT, [1]), OUTPUT: (LONG, [204800]), INDEX: (LONG, [102400])},
            204800,
        ),
        ({SENSITIVITY: (SHORT, [2]), INDEX: (LONG, [12800])}, 12800),
        ({ISO: (SHORT, [200]), SENSITIVITY: (SHORT, [2]), INDEX: (LONG, [100])}, 200),
        ({ISO: (SHORT, [65535])}, 65535),
        ({ISO: (SHORT, [0])}, None),
        ({}, None),
    ],
)
def test_the_iso_is_that_of_the_tags(exif: Tags, iso: float | None, tmp_path: Path) -> None:
    assert read(tmp_path, {**TIMED, **exif}).iso == iso


@pytest.mark.parametrize(
    ("exif", "f_number"),
    [
        ({F_NUMBER: (RATIONAL, [28, 10])}, 2.8),
        ({APERTURE_STOPS: (RATIONAL, [3, 1])}, 8**0.5),
        ({F_NUMBER: (RATIONAL, [2, 1]), APERTURE_STOPS: (RATIONAL, [4, 1])}, 2),
        ({F_NUMBER: (RATIONAL, [0, 0]), APERTURE_STOPS: (RATIONAL, [4, 1])}, 4),
        ({F_NUMBER: (RATIONAL, [1, 0])}, None),
        ({APERTURE_STOPS: (RATIONAL, [1, 0])}, None),
        ({APERTURE_STOPS: (RATIONAL, [0, 0])}, None),
        ({}, None),
    ],
)
def test_the_aperture_is_that_of_the_tags(exif: Tags, f_number: float | None, tmp_path: Path) -> None:
    assert read(tmp_path, {**TIMED, **exif}).aperture == (f_number and pytest.approx(f_number, rel=1e-6))


@pytest.mark.parametrize("iso", [65534.0, 65535.0, 102400.0, 3276800.0])
def test_a_large_iso_is_written_and_read_back(iso: float, tmp_path: Path) -> None:
    write_dng(tmp_path / "a.dng", make_frame(iso=iso))
    assert read_raw(tmp_path / "a.dng").iso == iso
