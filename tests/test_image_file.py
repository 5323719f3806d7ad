"""Image files read back by Pillow, tifffile and, for 16-bit PNG, a slow reference decoder."""

import io
import itertools
import os
import struct
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms
from test_dng import make_frame

from lsid_ray.errors import InputError
from lsid_ray.inference.image_file import SUFFIXES, write_image

DESCRIPTION = "amplified x120 (estimated), enhanced by runs/demo/best"


def noise(height: int = 30, width: int = 41) -> np.ndarray:
    """Uniform random samples: neighbors are unrelated, and their differences wrap around."""
    return np.random.default_rng(3).integers(0, 65536, (height, width, 3), dtype=np.uint16)


def smooth(height: int = 60, width: int = 80) -> np.ndarray:
    """Smooth gradients, which JPEG preserves."""
    y, x = np.mgrid[:height, :width] / 40
    light = 30000 + 20000 * np.sin(x) * np.cos(y)
    return (light[..., None] * [1.0, 0.8, 0.6]).astype(np.uint16)


def png_chunks(path: Path) -> list[tuple[bytes, bytes]]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, offset = [], 8
    while offset < len(data):
        length = int.from_bytes(data[offset : offset + 4], "big")
        name, body = data[offset + 4 : offset + 8], data[offset + 8 : offset + 8 + length]
        assert zlib.crc32(name + body) == int.from_bytes(data[offset + 8 + length : offset + 12 + length], "big")
        chunks.append((name, body))
        offset += 12 + length
    return chunks


def read_png(path: Path) -> np.ndarray:
    """A 16-bit RGB PNG whose rows are all filtered by Sub, decoded byte by byte according to the standard."""
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
            offset = y * (1 + 6 * width) + 1 + 6 * x
            left = bytes((a + b) % 256 for a, b in zip(rows[offset : offset + 6], left, strict=True))
            image[y, x] = struct.unpack(">3H", left)
    return image


def read_exact(path: Path) -> np.ndarray:
    return read_png(path) if path.suffix == ".png" else tifffile.imread(path)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff", ".TIF"])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (30, 41), (1, 70), (70, 1)])
def test_16_bit_formats_are_lossless(tmp_path, size: tuple[int, int], suffix: str):
    image = noise(*size)
    write_image(tmp_path / f"a{suffix}", image, make_frame(), DESCRIPTION)
    read = read_exact(tmp_path / f"a{suffix}")
    assert read.dtype == np.uint16
    np.testing.assert_array_equal(read, image)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_formats_are_lossless_with_several_strips_and_with_long_rows(tmp_path, suffix: str, monkeypatch):
    monkeypatch.setattr("lsid_ray.inference.image_file.STRIP_BYTES", 6 * 41 * 7)
    for size in [(30, 41), (3, 300)]:
        write_image(tmp_path / f"a{suffix}", noise(*size), make_frame(), DESCRIPTION)
        np.testing.assert_array_equal(read_exact(tmp_path / f"a{suffix}"), noise(*size))
        with Image.open(tmp_path / f"a{suffix}") as opened:  # libtiff and libpng read every strip too
            np.testing.assert_array_equal(np.asarray(opened), noise(*size) >> 8)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_rotated_view_is_written_like_a_contiguous_copy(tmp_path, suffix: str):
    image = smooth()
    for name, array in [("view", image[::-1].swapaxes(0, 1)), ("copy", image[::-1].swapaxes(0, 1).copy())]:
        write_image(tmp_path / f"{name}{suffix}", array, make_frame(), DESCRIPTION)
    assert (tmp_path / f"view{suffix}").read_bytes() == (tmp_path / f"copy{suffix}").read_bytes()


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".JPG"])
def test_jpeg_is_within_4_of_255_levels_on_smooth_colors_without_chroma_subsampling(tmp_path, suffix: str):
    write_image(tmp_path / f"a{suffix}", smooth(), make_frame(), DESCRIPTION)
    with Image.open(tmp_path / f"a{suffix}") as opened:
        assert opened.format == "JPEG"
        assert [layer[1:3] for layer in opened.layer] == [(1, 1)] * 3  # 4:4:4
        assert np.abs(np.asarray(opened) - smooth() / 257).max() <= 4


def test_jpeg_rounds_to_the_nearest_8_bit_value(tmp_path, monkeypatch):
    arrays = []
    monkeypatch.setattr(Image, "fromarray", lambda array: arrays.append(array) or Image.new("RGB", (1, 1)))
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    write_image(tmp_path / "a.jpg", np.stack([values, values, values], -1), make_frame(), DESCRIPTION)
    nearest = [(2 * value + 257) // 514 for value in range(65536)]  # value / 257, rounded in integer arithmetic
    np.testing.assert_array_equal(arrays[0], np.reshape(nearest, (256, 256, 1)).repeat(3, -1))
    assert (arrays[0].min(), arrays[0].max(), arrays[0].dtype) == (0, 255, np.uint8)


@pytest.mark.parametrize("size", [(1, 1), (3, 5)])
def test_a_tiny_jpeg_opens(tmp_path, size: tuple[int, int]):
    write_image(tmp_path / "a.jpg", noise(*size), make_frame(), DESCRIPTION)
    with Image.open(tmp_path / "a.jpg") as opened:
        assert np.asarray(opened).shape == (*size, 3)


@pytest.mark.parametrize("suffix", [".tif", ".jpg"])
def test_tiff_and_jpeg_embed_an_srgb_profile(tmp_path, suffix: str):
    write_image(tmp_path / f"a{suffix}", smooth(), make_frame(), DESCRIPTION)
    with Image.open(tmp_path / f"a{suffix}") as opened:
        colors = np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        profile = ImageCms.ImageCmsProfile(io.BytesIO(opened.info["icc_profile"]))
    assert "sRGB" in ImageCms.getProfileDescription(profile)
    converted = ImageCms.profileToProfile(Image.fromarray(colors), profile, ImageCms.createProfile("sRGB"))
    assert np.abs(np.asarray(converted).astype(int) - colors).max() <= 1


def test_png_declares_srgb_before_its_pixels(tmp_path):
    write_image(tmp_path / "a.png", smooth(), make_frame(), DESCRIPTION)
    names = [name for name, _ in png_chunks(tmp_path / "a.png")]
    assert names[:6] == [b"IHDR", b"sRGB", b"gAMA", b"cHRM", b"eXIf", b"IDAT"]
    with Image.open(tmp_path / "a.png") as opened:
        assert (opened.info["srgb"], opened.info["gamma"]) == (0, 0.45455)
        assert opened.info["chromaticity"] == (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_writing_is_deterministic(tmp_path, suffix: str):
    for name in "ab":
        write_image(tmp_path / f"{name}{suffix}", smooth(), make_frame(), DESCRIPTION)
    data = (tmp_path / f"a{suffix}").read_bytes()
    assert data == (tmp_path / f"b{suffix}").read_bytes()
    if suffix != ".png":  # littlecms stores the current time in the profile
        offset = data.index(b"mntrRGB XYZ ") + 12
        assert struct.unpack(">6H", data[offset : offset + 12]) == (2000, 1, 1, 0, 0, 0)


@pytest.mark.parametrize("name", ["a.bmp", "a", "png", "a.png.gz", "a.webp"])
def test_an_unknown_suffix_is_rejected_with_the_file_name(tmp_path, name: str):
    with pytest.raises(InputError, match=rf"{name}.*suffix.*\.png, \.tif"):
        write_image(tmp_path / name, smooth(), make_frame(), DESCRIPTION)
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
def test_an_array_of_another_shape_or_dtype_is_rejected(tmp_path, image: np.ndarray):
    with pytest.raises(ValueError, match="uint16"):
        write_image(tmp_path / "a.png", image, make_frame(), DESCRIPTION)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_failed_write_leaves_the_existing_file(tmp_path, suffix: str, monkeypatch):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"an older image")

    def fail(*_: object, **__: object) -> None:
        raise OSError("write failed")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="write failed"):
        patch.setattr(os, "replace", fail)
        write_image(path, smooth(), make_frame(), DESCRIPTION)
    assert (os.listdir(tmp_path), path.read_bytes()) == ([path.name], b"an older image")

    for function in ["zlib.compressobj", "PIL.Image.Image.save"]:
        monkeypatch.setattr(function, fail)
    with pytest.raises(OSError, match="write failed"):
        write_image(path, smooth(), make_frame(), DESCRIPTION)
    assert (os.listdir(tmp_path), path.read_bytes()) == ([path.name], b"an older image")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_missing_parent_and_a_folder_at_the_target_path_are_errors(tmp_path, suffix: str):
    with pytest.raises(FileNotFoundError):
        write_image(tmp_path / "missing" / f"a{suffix}", smooth(), make_frame(), DESCRIPTION)
    (tmp_path / f"a{suffix}").mkdir()
    with pytest.raises(OSError):
        write_image(tmp_path / f"a{suffix}", smooth(), make_frame(), DESCRIPTION)
    assert os.listdir(tmp_path) == [f"a{suffix}"]


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system with a capacity of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
        mounted = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("this machine has no mount command")
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_raises_and_leaves_no_file(small_disk: Path, suffix: str):
    path, image = small_disk / f"a{suffix}", noise(100, 100)
    write_image(path, image, make_frame(), DESCRIPTION)
    pages = -(-path.stat().st_size // 4096)
    path.unlink()
    free_pages = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize // 4096
    for available in (0, 1, pages // 2, pages - 1):  # with pages - 1, only the end of the file does not fit
        (small_disk / "filler").write_bytes(bytes(4096 * (free_pages - available)))
        with pytest.raises(OSError, match="No space left"):
            write_image(path, image, make_frame(), DESCRIPTION)
        assert os.listdir(small_disk) == ["filler"]
    (small_disk / "filler").write_bytes(bytes(4096 * (free_pages - pages)))
    write_image(path, image, make_frame(), DESCRIPTION)
    assert sorted(os.listdir(small_disk)) == [path.name, "filler"]


def test_every_suffix_works_in_lower_and_upper_case(tmp_path):
    for suffix, change_case in itertools.product(SUFFIXES, (str.lower, str.upper)):
        write_image(tmp_path / f"a{change_case(suffix)}", smooth(), make_frame(), DESCRIPTION)
        with Image.open(tmp_path / f"a{change_case(suffix)}") as opened:
            assert opened.size == (80, 60)
            opened.load()
