"""The EXIF of image files, as Pillow reads it back: camera, exposure and description."""

import os
from fractions import Fraction
from pathlib import Path

import pytest
from PIL import Image
from PIL.ExifTags import IFD, Base
from test_dng import make_frame
from test_image_file import DESCRIPTION, smooth

from lsid_ray import __version__
from lsid_ray.inference.image_file import SUFFIXES, write_image


def read_exif(path: Path) -> tuple[dict, dict]:
    with Image.open(path) as opened:
        exif = opened.getexif()
        return dict(exif), dict(exif.get_ifd(IFD.Exif))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_exif_contains_camera_exposure_and_description(tmp_path, suffix: str):
    write_image(tmp_path / f"a{suffix}", smooth(), make_frame(orientation=6), DESCRIPTION)
    main, exif = read_exif(tmp_path / f"a{suffix}")
    assert (main[Base.Make], main[Base.Model]) == ("SONY", "ILCE-7SM2")
    assert main[Base.ImageDescription] == DESCRIPTION
    assert main[Base.Software] == f"lsid_ray {__version__}"
    assert main[Base.Orientation] == 1  # the pixels are upright already
    assert exif[Base.ISOSpeedRatings] == 1250
    assert exif[Base.DateTimeOriginal] == "2015:11:03 20:15:00"
    assert exif[Base.ColorSpace] == 1
    rationals = {Base.ExposureTime: (333, 10000), Base.FNumber: (14, 5), Base.FocalLength: (55, 1)}
    for tag, fraction in rationals.items():
        assert (exif[tag].numerator, exif[tag].denominator) == fraction


@pytest.mark.parametrize("exposure_s", [1 / 640, 0.04, 30.0, 1 / 8000, 1234.5])
def test_the_exposure_time_is_an_exact_fraction(tmp_path, exposure_s: float):
    write_image(tmp_path / "a.png", smooth(), make_frame(exposure_s=exposure_s), DESCRIPTION)
    _, exif = read_exif(tmp_path / "a.png")
    assert Fraction(exif[Base.ExposureTime]) == Fraction(str(exposure_s))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_unknown_metadata_are_omitted(tmp_path, suffix: str):
    frame = make_frame(camera="unknown", iso=None, exposure_s=None, aperture=None, focal_length_mm=None, taken=None)
    write_image(tmp_path / f"a{suffix}", smooth(), frame, DESCRIPTION)
    main, exif = read_exif(tmp_path / f"a{suffix}")
    assert not main.keys() & {Base.Make, Base.Model}
    assert set(exif) == {Base.ExifVersion, Base.ColorSpace}
    assert main[Base.ImageDescription] == DESCRIPTION


def test_each_unknown_field_is_omitted_on_its_own(tmp_path):
    fields = {
        "iso": Base.ISOSpeedRatings,
        "exposure_s": Base.ExposureTime,
        "aperture": Base.FNumber,
        "focal_length_mm": Base.FocalLength,
        "taken": Base.DateTimeOriginal,
    }
    for name, tag in fields.items():
        write_image(tmp_path / "a.tif", smooth(), make_frame(**{name: None}), DESCRIPTION)
        _, exif = read_exif(tmp_path / "a.tif")
        assert set(fields.values()) - exif.keys() == {tag}


def test_an_iso_above_16_bits_is_stored_in_the_32_bit_tag(tmp_path):
    write_image(tmp_path / "a.jpg", smooth(), make_frame(iso=409600.0), DESCRIPTION)
    _, exif = read_exif(tmp_path / "a.jpg")
    assert (exif[Base.ISOSpeedRatings], exif[Base.RecommendedExposureIndex]) == (65535, 409600)


def test_a_one_word_camera_name_is_both_make_and_model(tmp_path):
    write_image(tmp_path / "a.tif", smooth(), make_frame(camera="Pinhole"), DESCRIPTION)
    main, _ = read_exif(tmp_path / "a.tif")
    assert (main[Base.Make], main[Base.Model]) == ("Pinhole", "Pinhole")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("description", ["", "runs/Läufe 夜/beste", "runs/\udcff/best"])
def test_a_description_in_any_script_is_written_as_utf_8(tmp_path, description: str, suffix: str):
    path = tmp_path / f"Nacht am Müggelsee 夜{suffix}"
    write_image(path, smooth(), make_frame(camera="Canon Été"), description)
    main, _ = read_exif(path)
    # Pillow decodes EXIF text as Latin-1.
    assert main.get(Base.ImageDescription, "").encode("latin-1") == description.encode("utf-8", "replace")
    assert main[Base.Model].encode("latin-1").decode() == "Été"
    assert os.listdir(tmp_path) == [path.name]
