"""Photographs converted to raw frames: LibRaw's rendering looks like the photograph."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from skimage import color, data
from test_dng import XTRANS, make_frame

from lsid_ray.errors import InputError
from lsid_ray.raw.dng import write_dng
from lsid_ray.raw.frame import read_raw
from lsid_ray.raw.mosaic import pack
from lsid_ray.raw.render import reference_rendering
from lsid_ray.synthesis.camera import Sensor
from lsid_ray.synthesis.photograph import (
    A7S2_SENSOR,
    area_mean,
    frame_from_photograph,
    linear_from_srgb,
    linear_rgb,
)

GAINS = (2.05, 2.45)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((a - b) ** 2)))


def smooth_photo() -> np.ndarray:
    """A cat at half size, without detail that a mosaic cannot represent."""
    return np.rint(area_mean(data.chelsea(), 150, 225)).astype(np.uint8)


NIKON = ((0.902, -0.289, -0.0714), (-0.4535, 1.2436, 0.2348), (-0.0934, 0.1918, 0.7086))


@pytest.mark.parametrize(
    "sensor",
    [
        A7S2_SENSOR,
        Sensor("GBRG", (600, 500, 700, 600), 15000, NIKON),
        Sensor(XTRANS, (1024,) * 36, 16383, NIKON),
    ],
    ids=["A7S II", "Nikon", "X-Trans"],
)
def test_libraws_rendering_of_the_frame_looks_like_the_photograph(tmp_path, sensor: Sensor):
    photo = smooth_photo() if len(sensor.cfa) == 4 else smooth_photo().repeat(4, axis=0).repeat(4, axis=1)
    Image.fromarray(photo).save(tmp_path / "cat.png")
    frame = frame_from_photograph(tmp_path / "cat.png", GAINS, sensor=sensor, camera="NIKON TEST")
    assert (frame.cfa, frame.black, frame.white) == (sensor.cfa, sensor.black, sensor.white)
    write_dng(tmp_path / "cat.dng", frame)
    rendered = reference_rendering(tmp_path / "cat.dng") / 65535
    # LibRaw encodes with the BT.709 curve, the photograph with sRGB's; the BT.709 comparison is the stricter one.
    linear = linear_from_srgb(photo / 255)
    bt709 = np.where(linear < 0.018, 4.5 * linear, 1.099 * np.maximum(linear, 1e-9) ** 0.45 - 0.099)
    assert psnr(rendered, bt709) > 33
    assert psnr(rendered, photo / 255) > 24


def test_a_photograph_too_small_for_libraws_rendering_of_x_trans_is_refused(tmp_path):
    Image.fromarray(smooth_photo()).save(tmp_path / "cat.png")
    with pytest.raises(InputError, match=r"cat\.png: 150x225 pixels; expected at least 512 on each side"):
        frame_from_photograph(tmp_path / "cat.png", GAINS, sensor=Sensor(XTRANS, (1024,) * 36, 16383, NIKON))


@pytest.mark.parametrize("gains", [(1.8, 2.9), (2.7, 1.9)])
def test_gray_stays_gray_for_any_white_balance(tmp_path, gains: tuple[float, float]):
    Image.fromarray(np.full((64, 64, 3), 120, np.uint8)).save(tmp_path / "gray.png")
    write_dng(tmp_path / "gray.dng", frame_from_photograph(tmp_path / "gray.png", gains))
    rendered = reference_rendering(tmp_path / "gray.dng").astype(int)
    assert np.ptp(rendered.mean(axis=(0, 1))) < 100


def test_a_photograph_gives_the_same_frame_in_every_file_format(tmp_path):
    photo = smooth_photo()
    Image.fromarray(photo).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "eight.tif", photo, photometric="rgb")
    tifffile.imwrite(tmp_path / "sixteen.tiff", photo.astype(np.uint16) * 257, photometric="rgb")
    tifffile.imwrite(tmp_path / "linear.tif", linear_from_srgb(photo / 255).astype(np.float32), photometric="rgb")
    expected = frame_from_photograph(tmp_path / "a.png", GAINS).mosaic
    for name in ("eight.tif", "sixteen.tiff", "linear.tif"):
        mosaic = frame_from_photograph(tmp_path / name, GAINS).mosaic
        assert np.abs(mosaic.astype(int) - expected).max() <= 1, name


def test_linear_from_srgb_matches_scikit_image():
    encoded = np.linspace(0, 1, 256)
    xyz = color.rgb2xyz(np.repeat(encoded[:, None], 3, axis=1))
    np.testing.assert_allclose(linear_from_srgb(encoded), xyz[:, 1] / xyz[-1, 1], atol=1e-6)


def test_gray_and_transparent_photographs_become_rgb(tmp_path):
    photo = smooth_photo()
    Image.fromarray(photo[:, :, 0]).save(tmp_path / "gray.png")
    assert np.ptp(linear_rgb(tmp_path / "gray.png"), axis=2).max() == 0
    Image.fromarray(np.dstack([photo, np.full(photo.shape[:2], 9, np.uint8)])).save(tmp_path / "alpha.png")
    Image.fromarray(photo).save(tmp_path / "opaque.png")
    np.testing.assert_array_equal(linear_rgb(tmp_path / "alpha.png"), linear_rgb(tmp_path / "opaque.png"))


def test_a_raw_photograph_keeps_its_own_mosaic(tmp_path):
    frame = make_frame(71, 90, cfa="GBRG", black=(510.0, 512.0, 514.0, 509.0))
    write_dng(tmp_path / "raw.dng", frame)
    clean = frame_from_photograph(tmp_path / "raw.dng", GAINS)
    np.testing.assert_array_equal(clean.mosaic, frame.mosaic)
    assert (clean.cfa, clean.black, clean.white_balance) == (frame.cfa, frame.black, frame.white_balance)


def test_a_large_raw_photograph_is_downscaled_plane_by_plane(tmp_path):
    levels = {"R": 9000, "G": 5000, "B": 2000}
    mosaic = np.tile(np.array([levels[letter] for letter in "GBRG"], np.uint16).reshape(2, 2), (160, 200))
    frame = replace(make_frame(), mosaic=mosaic, cfa="GBRG", black=(510.0, 512.0, 514.0, 509.0))
    write_dng(tmp_path / "raw.dng", frame)
    clean = frame_from_photograph(tmp_path / "raw.dng", GAINS, max_side=150)
    assert clean.cfa == "RGGB"
    assert max(clean.mosaic.shape) <= 150
    assert [int(np.ptp(plane)) for plane in pack(clean.mosaic, "RGGB")] == [0, 0, 0, 0]
    assert clean.mosaic[:2, :2].tolist() == [[9000, 5000], [5000, 2000]]
    assert clean.black == (514.0, 509.0, 510.0, 512.0)


def test_a_large_photograph_is_downscaled_by_area_averaging(tmp_path):
    image = np.random.default_rng(0).random((10, 7, 3))
    # Split each pixel into 2x4, so that an output pixel (2 x 1.75 input pixels) covers an integer number of parts.
    parts = image.repeat(2, axis=0).repeat(4, axis=1)
    expected = [[parts[4 * y : 4 * y + 4, 7 * x : 7 * x + 7].mean(axis=(0, 1)) for x in range(4)] for y in range(5)]
    np.testing.assert_allclose(area_mean(image, 5, 4), expected, rtol=1e-5)
    Image.fromarray(smooth_photo()).save(tmp_path / "a.png")
    assert frame_from_photograph(tmp_path / "a.png", GAINS, max_side=120).mosaic.shape == (80, 120)
    assert frame_from_photograph(tmp_path / "a.png", GAINS, max_side=225).mosaic.shape == (150, 225)


def test_a_photograph_that_is_too_small_raises_an_error(tmp_path):
    Image.new("RGB", (300, 63)).save(tmp_path / "strip.png")
    with pytest.raises(InputError, match=r"strip\.png: 63x300 pixels; expected at least 64"):
        frame_from_photograph(tmp_path / "strip.png", GAINS)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_a_damaged_photograph_raises_an_error(tmp_path: Path, suffix: str):
    (tmp_path / f"bad.{suffix}").write_bytes(b"not an image")
    with pytest.raises(InputError, match=rf"bad\.{suffix}: cannot be read"):
        frame_from_photograph(tmp_path / f"bad.{suffix}", GAINS)


def test_a_truncated_jpeg_raises_an_error(tmp_path):
    Image.fromarray(data.chelsea()).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:9000])
    with pytest.raises(InputError, match=r"cut\.jpg: cannot be read"):
        frame_from_photograph(tmp_path / "cut.jpg", GAINS)


def test_a_photograph_with_nan_values_raises_an_error(tmp_path):
    tifffile.imwrite(tmp_path / "nan.tif", np.full((64, 64, 3), np.nan, np.float32), photometric="rgb")
    with pytest.raises(InputError, match=r"nan\.tif: has NaN or infinite values"):
        linear_rgb(tmp_path / "nan.tif")


def test_the_frame_has_the_metadata_of_sids_camera(tmp_path):
    Image.fromarray(smooth_photo()).save(tmp_path / "a.png")
    write_dng(tmp_path / "a.dng", frame_from_photograph(tmp_path / "a.png", GAINS))
    frame = read_raw(tmp_path / "a.dng")
    assert (frame.camera, frame.cfa, frame.black[0], frame.white) == ("SONY ILCE-7SM2", "RGGB", 512, 16383)
    assert frame.white_balance == pytest.approx((2.05, 1.0, 2.45))


@pytest.mark.parametrize("compression", [None, "deflate"])
def test_a_tiff_that_claims_too_many_pixels_is_refused_by_its_header(tmp_path: Path, compression: str | None):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((64, 64, 3), np.uint8), photometric="rgb", compression=compression)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as file:
        for name in ("ImageWidth", "ImageLength"):
            file.pages[0].tags[name].overwrite(200_000)
    with pytest.raises(InputError, match=r"shape \(200000, 200000, 3\); expected at most 179 megapixels"):
        frame_from_photograph(tmp_path / "a.tif", GAINS)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_a_damaged_photograph_is_read_or_refused(tmp_path: Path, suffix: str):
    photo, path = smooth_photo(), tmp_path / f"a{suffix}"
    if suffix == ".tif":
        tifffile.imwrite(path, photo, photometric="rgb", compression="deflate")
    else:
        Image.fromarray(photo).save(path)
    content = path.read_bytes()
    random = np.random.default_rng(0)
    outcomes = set()
    for _ in range(200):
        damaged = bytearray(content)
        for position in random.integers(0, min(len(content), 600), 4):
            damaged[position] = random.integers(256)
        path.write_bytes(damaged[: random.integers(1, len(content))] if random.random() < 0.2 else damaged)
        try:
            linear_rgb(path)
            outcomes.add("read")
        except InputError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            outcomes.add("refused")
    assert "refused" in outcomes
