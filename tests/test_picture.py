"""Pictures as other readers see them: Pillow, tifffile, and for 16-bit PNG a slow decoder of the test's own."""

import io
import itertools
import os
import struct
import subprocess
import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms
from PIL.ExifTags import IFD, Base
from test_dng import make_frame

from lsid_ray import __version__
from lsid_ray.errors import InputError
from lsid_ray.evaluate.picture import SUFFIXES, write_picture

NOTE = "amplified x120 (estimated), enhanced by runs/demo/best"


def noise(height: int = 30, width: int = 41) -> np.ndarray:
    """Every sample at random: no value is like its neighbour, and differences wrap around."""
    return np.random.default_rng(3).integers(0, 65536, (height, width, 3), dtype=np.uint16)


def soft(height: int = 60, width: int = 80) -> np.ndarray:
    """Slow colours, which a JPEG keeps."""
    y, x = np.mgrid[:height, :width] / 40
    light = 30000 + 20000 * np.sin(x) * np.cos(y)
    return (light[..., None] * [1.0, 0.8, 0.6]).astype(np.uint16)


def png_chunks(path: Path) -> list[tuple[bytes, bytes]]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = [], 8
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        name, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert zlib.crc32(name + body) == int.from_bytes(data[at + 8 + length : at + 12 + length], "big")
        chunks.append((name, body))
        at += 12 + length
    return chunks


def read_png(path: Path) -> np.ndarray:
    """A 16-bit RGB PNG whose rows are all filtered by Sub, byte by byte as the standard tells it."""
    chunks = png_chunks(path)
    width, height, *kind = struct.unpack(">2I5B", chunks[0][1])
    assert (chunks[0][0], kind, chunks[-1]) == (b"IHDR", [16, 2, 0, 0, 0], (b"IEND", b""))
    rows = zlib.decompress(b"".join(body for name, body in chunks if name == b"IDAT"))
    assert len(rows) == height * (1 + 6 * width)
    image = np.empty((height, width, 3), np.uint16)
    for y in range(height):
        assert rows[y * (1 + 6 * width)] == 1
        left = bytes(6)
        for x in range(width):
            at = y * (1 + 6 * width) + 1 + 6 * x
            left = bytes((a + b) % 256 for a, b in zip(rows[at : at + 6], left, strict=True))
            image[y, x] = struct.unpack(">3H", left)
    return image


def read_exact(path: Path) -> np.ndarray:
    return read_png(path) if path.suffix == ".png" else tifffile.imread(path)


def read_exif(path: Path) -> tuple[dict, dict]:
    with Image.open(path) as picture:
        exif = picture.getexif()
        return dict(exif), dict(exif.get_ifd(IFD.Exif))


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff", ".TIF"])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (30, 41), (1, 70), (70, 1)])
def test_all_16_bits_come_back(tmp_path, size: tuple[int, int], suffix: str):
    image = noise(*size)
    write_picture(tmp_path / f"a{suffix}", image, make_frame(), NOTE)
    read = read_exact(tmp_path / f"a{suffix}")
    assert read.dtype == np.uint16
    np.testing.assert_array_equal(read, image)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_picture_of_several_strips_and_of_rows_longer_than_a_strip_comes_back(tmp_path, suffix: str, monkeypatch):
    monkeypatch.setattr("lsid_ray.evaluate.picture.STRIP_BYTES", 6 * 41 * 7)
    for size in [(30, 41), (3, 300)]:
        write_picture(tmp_path / f"a{suffix}", noise(*size), make_frame(), NOTE)
        np.testing.assert_array_equal(read_exact(tmp_path / f"a{suffix}"), noise(*size))
        with Image.open(tmp_path / f"a{suffix}") as picture:  # libtiff and libpng find every strip too
            np.testing.assert_array_equal(np.asarray(picture), noise(*size) >> 8)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_turned_view_is_written_as_it_looks(tmp_path, suffix: str):
    image = soft()
    for name, array in [("view", image[::-1].swapaxes(0, 1)), ("copy", image[::-1].swapaxes(0, 1).copy())]:
        write_picture(tmp_path / f"{name}{suffix}", array, make_frame(), NOTE)
    assert (tmp_path / f"view{suffix}").read_bytes() == (tmp_path / f"copy{suffix}").read_bytes()


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".JPG"])
def test_a_jpeg_keeps_soft_colours_within_four_steps_and_every_colour_sample(tmp_path, suffix: str):
    write_picture(tmp_path / f"a{suffix}", soft(), make_frame(), NOTE)
    with Image.open(tmp_path / f"a{suffix}") as picture:
        assert picture.format == "JPEG"
        assert [layer[1:3] for layer in picture.layer] == [(1, 1)] * 3  # 4:4:4
        assert np.abs(np.asarray(picture) - soft() / 257).max() <= 4


def test_a_jpegs_8_bits_are_the_nearest(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(Image, "fromarray", lambda array: seen.append(array) or Image.new("RGB", (1, 1)))
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    write_picture(tmp_path / "a.jpg", np.stack([values, values, values], -1), make_frame(), NOTE)
    nearest = [(2 * value + 257) // 514 for value in range(65536)]  # of value / 257, in whole numbers
    np.testing.assert_array_equal(seen[0], np.reshape(nearest, (256, 256, 1)).repeat(3, -1))
    assert (seen[0].min(), seen[0].max(), seen[0].dtype) == (0, 255, np.uint8)


@pytest.mark.parametrize("size", [(1, 1), (3, 5)])
def test_a_tiny_jpeg_opens(tmp_path, size: tuple[int, int]):
    write_picture(tmp_path / "a.jpg", noise(*size), make_frame(), NOTE)
    with Image.open(tmp_path / "a.jpg") as picture:
        assert np.asarray(picture).shape == (*size, 3)


@pytest.mark.parametrize("suffix", [".tif", ".jpg"])
def test_tiff_and_jpeg_hold_the_profile_of_srgb(tmp_path, suffix: str):
    write_picture(tmp_path / f"a{suffix}", soft(), make_frame(), NOTE)
    with Image.open(tmp_path / f"a{suffix}") as picture:
        colors = np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        profile = ImageCms.ImageCmsProfile(io.BytesIO(picture.info["icc_profile"]))
    assert "sRGB" in ImageCms.getProfileDescription(profile)
    same = ImageCms.profileToProfile(Image.fromarray(colors), profile, ImageCms.createProfile("sRGB"))
    assert np.abs(np.asarray(same).astype(int) - colors).max() <= 1


def test_a_png_says_srgb_before_its_pixels(tmp_path):
    write_picture(tmp_path / "a.png", soft(), make_frame(), NOTE)
    names = [name for name, _ in png_chunks(tmp_path / "a.png")]
    assert names[:6] == [b"IHDR", b"sRGB", b"gAMA", b"cHRM", b"eXIf", b"IDAT"]
    with Image.open(tmp_path / "a.png") as picture:
        assert (picture.info["srgb"], picture.info["gamma"]) == (0, 0.45455)
        assert picture.info["chromaticity"] == (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_exif_tells_of_camera_exposure_and_origin(tmp_path, suffix: str):
    write_picture(tmp_path / f"a{suffix}", soft(), make_frame(orientation=6), NOTE)
    main, taken = read_exif(tmp_path / f"a{suffix}")
    assert (main[Base.Make], main[Base.Model]) == ("SONY", "ILCE-7SM2")
    assert main[Base.ImageDescription] == NOTE
    assert main[Base.Software] == f"lsid_ray {__version__}"
    assert main[Base.Orientation] == 1  # the picture is upright, however the camera was held
    assert taken[Base.ISOSpeedRatings] == 1250
    assert taken[Base.DateTimeOriginal] == "2015:11:03 20:15:00"
    assert taken[Base.ColorSpace] == 1
    rationals = {Base.ExposureTime: (333, 10000), Base.FNumber: (14, 5), Base.FocalLength: (55, 1)}
    for tag, fraction in rationals.items():
        assert (taken[tag].numerator, taken[tag].denominator) == fraction


@pytest.mark.parametrize("exposure_s", [1 / 640, 0.04, 30.0, 1 / 8000, 1234.5])
def test_an_exposure_time_is_the_cameras_fraction(tmp_path, exposure_s: float):
    write_picture(tmp_path / "a.png", soft(), make_frame(exposure_s=exposure_s), NOTE)
    _, taken = read_exif(tmp_path / "a.png")
    assert Fraction(taken[Base.ExposureTime]) == Fraction(str(exposure_s))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_the_camera_did_not_say_is_left_out(tmp_path, suffix: str):
    silent = make_frame(camera="unknown", iso=None, exposure_s=None, aperture=None, focal_length_mm=None, taken=None)
    write_picture(tmp_path / f"a{suffix}", soft(), silent, NOTE)
    main, taken = read_exif(tmp_path / f"a{suffix}")
    assert not main.keys() & {Base.Make, Base.Model}
    assert set(taken) == {Base.ExifVersion, Base.ColorSpace}
    assert main[Base.ImageDescription] == NOTE


def test_each_field_is_left_out_alone(tmp_path):
    fields = {
        "iso": Base.ISOSpeedRatings,
        "exposure_s": Base.ExposureTime,
        "aperture": Base.FNumber,
        "focal_length_mm": Base.FocalLength,
        "taken": Base.DateTimeOriginal,
    }
    for name, tag in fields.items():
        write_picture(tmp_path / "a.tif", soft(), make_frame(**{name: None}), NOTE)
        _, taken = read_exif(tmp_path / "a.tif")
        assert set(fields.values()) - taken.keys() == {tag}


def test_a_sensitivity_beyond_16_bits_stands_in_its_longer_tag(tmp_path):
    write_picture(tmp_path / "a.jpg", soft(), make_frame(iso=409600.0), NOTE)
    _, taken = read_exif(tmp_path / "a.jpg")
    assert (taken[Base.ISOSpeedRatings], taken[Base.RecommendedExposureIndex]) == (65535, 409600)


def test_a_camera_of_one_word_is_make_and_model(tmp_path):
    write_picture(tmp_path / "a.tif", soft(), make_frame(camera="Pinhole"), NOTE)
    main, _ = read_exif(tmp_path / "a.tif")
    assert (main[Base.Make], main[Base.Model]) == ("Pinhole", "Pinhole")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("note", ["", "runs/Läufe 夜/beste", "runs/\udcff/best"])
def test_a_note_in_any_script_is_written_as_utf_8(tmp_path, note: str, suffix: str):
    path = tmp_path / f"Nacht am Müggelsee 夜{suffix}"
    write_picture(path, soft(), make_frame(camera="Canon Été"), note)
    main, _ = read_exif(path)
    # Pillow reads EXIF's text as Latin-1.
    assert main.get(Base.ImageDescription, "").encode("latin-1") == note.encode("utf-8", "replace")
    assert main[Base.Model].encode("latin-1").decode() == "Été"
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_one_picture_is_one_file(tmp_path, suffix: str):
    for name in "ab":
        write_picture(tmp_path / f"{name}{suffix}", soft(), make_frame(), NOTE)
    data = (tmp_path / f"a{suffix}").read_bytes()
    assert data == (tmp_path / f"b{suffix}").read_bytes()
    if suffix != ".png":  # the profile's own date, where littlecms puts the present
        at = data.index(b"mntrRGB XYZ ") + 12
        assert struct.unpack(">6H", data[at : at + 12]) == (2000, 1, 1, 0, 0, 0)


@pytest.mark.parametrize("name", ["a.bmp", "a", "png", "a.png.gz", "a.webp"])
def test_another_suffix_is_refused_by_name(tmp_path, name: str):
    with pytest.raises(InputError, match=rf"{name}.*suffix.*\.png, \.tif"):
        write_picture(tmp_path / name, soft(), make_frame(), NOTE)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 5), np.uint16),
        np.zeros((4, 5, 4), np.uint16),
        np.zeros((3, 4, 5), np.uint16),
        np.zeros((0, 5, 3), np.uint16),
        np.zeros((4, 5, 3), np.uint8),
        np.zeros((4, 5, 3), np.float32),
    ],
    ids=lambda image: f"{image.shape} {image.dtype}",
)
def test_another_array_is_refused(tmp_path, image: np.ndarray):
    with pytest.raises(ValueError, match="uint16"):
        write_picture(tmp_path / "a.png", image, make_frame(), NOTE)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_failed_write_leaves_what_was_there(tmp_path, suffix: str, monkeypatch):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"an older picture")

    def refuse(*_: object, **__: object) -> None:
        raise OSError("refused")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="refused"):
        patch.setattr(os, "replace", refuse)
        write_picture(path, soft(), make_frame(), NOTE)
    assert (os.listdir(tmp_path), path.read_bytes()) == ([path.name], b"an older picture")

    for function in ["zlib.compressobj", "PIL.Image.Image.save"]:
        monkeypatch.setattr(function, refuse)
    with pytest.raises(OSError, match="refused"):
        write_picture(path, soft(), make_frame(), NOTE)
    assert (os.listdir(tmp_path), path.read_bytes()) == ([path.name], b"an older picture")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_folder_that_is_not_there_or_stands_in_the_way_is_told(tmp_path, suffix: str):
    with pytest.raises(FileNotFoundError):
        write_picture(tmp_path / "missing" / f"a{suffix}", soft(), make_frame(), NOTE)
    (tmp_path / f"a{suffix}").mkdir()
    with pytest.raises(OSError):
        write_picture(tmp_path / f"a{suffix}", soft(), make_frame(), NOTE)
    assert os.listdir(tmp_path) == [f"a{suffix}"]


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
        mounted = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no mount command here")
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_is_told_and_leaves_nothing(small_disk: Path, suffix: str):
    path, image = small_disk / f"a{suffix}", noise(100, 100)
    write_picture(path, image, make_frame(), NOTE)
    pages = -(-path.stat().st_size // 4096)
    path.unlink()
    everything = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize // 4096
    for room in (0, 1, pages // 2, pages - 1):  # in the last only the file's end no longer fits
        (small_disk / "filler").write_bytes(bytes(4096 * (everything - room)))
        with pytest.raises(OSError, match="No space left"):
            write_picture(path, image, make_frame(), NOTE)
        assert os.listdir(small_disk) == ["filler"]
    (small_disk / "filler").write_bytes(bytes(4096 * (everything - pages)))
    write_picture(path, image, make_frame(), NOTE)
    assert sorted(os.listdir(small_disk)) == [path.name, "filler"]


def test_every_suffix_is_written(tmp_path):
    for suffix, case in itertools.product(SUFFIXES, (str.lower, str.upper)):
        write_picture(tmp_path / f"a{case(suffix)}", soft(), make_frame(), NOTE)
        with Image.open(tmp_path / f"a{case(suffix)}") as picture:
            assert picture.size == (80, 60)
            picture.load()
