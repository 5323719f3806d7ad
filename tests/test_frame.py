"""Reading raw files: the fields of a frame, and the errors for files that cannot be read."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from test_dng import make_frame

from lsid_ray.errors import InputError
from lsid_ray.raw.dng import write_dng
from lsid_ray.raw.frame import read_raw
from lsid_ray.raw.names import exposure_from_name

CAMERA_FILES = Path(__file__).resolve().parents[2] / "shared" / "raw"
# DNGVersion, UniqueCameraModel, ColorMatrix1, AsShotNeutral
DNG_TAGS = [
    (50706, 1, 4, bytes((1, 4, 0, 0)), True),
    (50708, 2, 0, "Some Camera", True),
    (50721, 10, 9, (1, 1, 0, 1, 0, 1, 0, 1, 1, 1, 0, 1, 0, 1, 0, 1, 1, 1), True),
    (50728, 5, 3, (1, 1) * 3, True),
]
CFA_TAGS = [(33421, 3, 2, (2, 2), True), (33422, 1, 4, bytes((0, 1, 1, 2)), True)]


def write_tiff(path: Path, pixels: np.ndarray, photometric: int | str, tags: list[tuple]) -> None:
    tifffile.imwrite(path, pixels, photometric=photometric, planarconfig="contig", metadata=None, extratags=tags)


def noise_image(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 16384, shape, dtype=np.uint16)


@pytest.mark.parametrize(
    ("name", "exposure_s"),
    [
        ("10003_00_0.04s.ARW", 0.04),
        ("10003_00_10s.ARW", 10.0),
        ("00001_12_0.0333s.dng", 0.0333),
        ("00001_00_0.1s", 0.1),
        ("00001_00_0s.ARW", None),
        ("DSC00042.ARW", None),
        ("holidays.ARW", None),
    ],
)
def test_exposure_from_name_parses_the_end_of_a_file_name(name: str, exposure_s: float | None):
    assert exposure_from_name(name) == exposure_s


def test_the_exposure_tag_takes_precedence_over_the_file_name(tmp_path):
    path = tmp_path / "10003_00_0.04s.dng"
    write_dng(path, make_frame(exposure_s=0.5))
    assert read_raw(path).exposure_s == 0.5


def test_the_exposure_comes_from_the_file_name_if_there_is_no_tag(tmp_path):
    path = tmp_path / "10003_00_0.04s.dng"
    write_dng(path, make_frame(exposure_s=None))
    assert read_raw(path).exposure_s == 0.04


def test_white_balance_is_relative_to_green(tmp_path):
    write_dng(tmp_path / "a.dng", make_frame(white_balance=(4.0, 2.0, 3.0)))
    assert read_raw(tmp_path / "a.dng").white_balance == (2.0, 1.0, 1.5)


@pytest.mark.parametrize("margins", [(1, 0), (0, 1), (1, 1), (2, 3)])
def test_the_cfa_begins_at_the_first_sensel_of_the_visible_area(tmp_path, margins: tuple[int, int]):
    top, left = margins
    mosaic = np.tile(np.array([[9000, 4000], [4000, 1500]], np.uint16), (40, 45))
    letters = np.array([["R", "G"], ["G", "B"]])
    visible = np.roll(letters, (-top, -left), axis=(0, 1))
    pattern = bytes("RGB".index(letter) for letter in visible.ravel())
    tags = [(50829, 4, 4, (top, left, 80, 90), True), CFA_TAGS[0], (33422, 1, 4, pattern, True)]
    write_tiff(tmp_path / "a.dng", mosaic, 32803, DNG_TAGS + tags)
    frame = read_raw(tmp_path / "a.dng")
    level = {"R": 9000, "G": 4000, "B": 1500}
    assert frame.mosaic[:2, :2].ravel().tolist() == [level[letter] for letter in frame.cfa]


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 0.99])
def test_reading_a_truncated_dng_raises_an_error(tmp_path, fraction: float):
    write_dng(file := io.BytesIO(), make_frame(100, 100))
    path = tmp_path / "cut.dng"
    path.write_bytes(file.getvalue()[: int(len(file.getvalue()) * fraction)])
    with pytest.raises(InputError, match=r"cut\.dng: .*truncated"):
        read_raw(path)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.99])
def test_reading_a_truncated_arw_raises_an_error(tmp_path, fraction: float):
    complete = CAMERA_FILES / "sony_a7r3_iso3200.ARW"
    if not complete.exists():
        pytest.skip("the camera files are not installed")
    path = tmp_path / "cut.ARW"
    path.write_bytes(complete.read_bytes()[: int(complete.stat().st_size * fraction)])
    with pytest.raises(InputError, match=r"cut\.ARW: truncated"):
        read_raw(path)


def test_reading_a_missing_file_raises_an_error(tmp_path):
    with pytest.raises(InputError, match=r"none\.ARW: no such file"):
        read_raw(tmp_path / "none.ARW")


def test_a_jpeg_with_a_raw_suffix_is_rejected(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "photo.jpg")
    (tmp_path / "photo.jpg").rename(tmp_path / "photo.ARW")
    with pytest.raises(InputError, match=r"photo\.ARW: a JPEG"):
        read_raw(tmp_path / "photo.ARW")


def test_a_file_without_a_color_filter_array_is_rejected(tmp_path):
    write_tiff(tmp_path / "linear.dng", noise_image(64, 64, 3), 34892, DNG_TAGS)
    with pytest.raises(InputError, match=r"linear\.dng: no color filter array"):
        read_raw(tmp_path / "linear.dng")


def test_floating_point_data_are_rejected(tmp_path):
    write_tiff(tmp_path / "float.dng", noise_image(64, 64).astype(np.float32), 32803, DNG_TAGS + CFA_TAGS)
    with pytest.raises(InputError, match=r"float\.dng: floating-point"):
        read_raw(tmp_path / "float.dng")


@pytest.mark.parametrize(
    ("name", "metadata"),
    [
        ("sony_a7r3_iso3200.ARW", ("SONY ILCE-7RM3", 3200, 1 / 640, 512, 16383, (3464, 5184))),
        ("canon_550d_colorchart.dng", ("Canon EOS Kiss X4", None, None, 2056, 15000, (1156, 1734))),
        ("nikon_d750_rose.dng", ("NIKON D750-crop", None, None, 600, 16383, (512, 768))),
        ("xtrans_synthetic.dng", ("Fujifilm X-T2", None, 0.033333335, 1024, 16383, (600, 900))),
    ],
)
def test_real_files_have_the_expected_metadata(name: str, metadata: tuple):
    if not (CAMERA_FILES / name).exists():
        pytest.skip("the camera files are not installed")
    frame = read_raw(CAMERA_FILES / name)
    assert metadata == (
        frame.camera,
        frame.iso,
        frame.exposure_s,
        frame.black[0],
        frame.white,
        frame.mosaic.shape,
    )
    assert len(frame.cfa) == len(frame.black) == (36 if "xtrans" in name else 4)


def test_a_file_without_read_permission_raises_an_error(tmp_path: Path, unreadable: Callable[[Path], Path]):
    write_dng(tmp_path / "a.dng", make_frame())
    with pytest.raises(InputError, match=r"a\.dng: cannot be opened \(Permission denied\)"):
        read_raw(unreadable(tmp_path / "a.dng"))


def test_a_folder_or_a_symlink_loop_is_rejected(tmp_path: Path):
    (tmp_path / "folder.dng").mkdir()
    (tmp_path / "loop.dng").symlink_to(tmp_path / "loop.dng")
    for name, reason in (("folder.dng", "Is a directory"), ("loop.dng", "Too many levels of symbolic links")):
        with pytest.raises(InputError, match=rf"{name}: cannot be opened \({reason}\)"):
            read_raw(tmp_path / name)


def test_a_file_whose_directories_form_a_circle_is_read(tmp_path: Path):
    frame = make_frame()
    write_dng(tmp_path / "a.dng", frame)
    content = bytearray((tmp_path / "a.dng").read_bytes())
    start = int.from_bytes(content[4:8], "little")
    end = start + 2 + 12 * int.from_bytes(content[start : start + 2], "little")
    assert content[end : end + 4] == bytes(4), "there is no next directory"
    content[end : end + 4] = content[4:8]
    (tmp_path / "a.dng").write_bytes(content)
    assert np.array_equal(read_raw(tmp_path / "a.dng").mosaic, frame.mosaic)


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path: Path):
    os.mkfifo(tmp_path / "a.dng")
    with pytest.raises(InputError, match=r"a\.dng: not a file"):
        read_raw(tmp_path / "a.dng")


def test_a_name_that_is_not_utf8_is_no_obstacle(tmp_path: Path):
    frame = make_frame()
    write_dng(tmp_path / "a\udcffb.dng", frame)
    assert np.array_equal(read_raw(tmp_path / "a\udcffb.dng").mosaic, frame.mosaic)


def test_a_damaged_file_is_read_or_refused(tmp_path: Path):
    path = tmp_path / "a.dng"
    write_dng(path, make_frame())
    content = path.read_bytes()
    random = np.random.default_rng(2)
    refused = 0
    for _ in range(500):
        damaged = bytearray(content)
        for position in random.integers(0, 600, 4):
            damaged[position] = random.integers(256)
        path.write_bytes(damaged)
        try:
            read_raw(path)
        except InputError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 10


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a pointer of Git LFS; fetch"),
        (b"\n<!DOCTYPE html><html></html>", "a web page or XML"),
        (b"\xff\xd8\xff\xe0" + bytes(100), "a JPEG; expected the camera's raw file"),
        (b"PK\x03\x04" + bytes(100), "a ZIP archive"),
    ],
)
def test_a_file_that_is_something_else_is_called_by_its_name(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.ARW").write_bytes(content)
    with pytest.raises(InputError, match=rf"a\.ARW: {reason}"):
        read_raw(tmp_path / "a.ARW")


@pytest.mark.parametrize(
    ("code", "reason"), [(52546, "a DNG compressed with JPEG XL; convert"), (9, "compressed with VC")]
)
def test_a_compression_that_libraw_lacks_is_named(code: int, reason: str, tmp_path: Path) -> None:
    write_tiff(tmp_path / "a.dng", np.zeros((40, 60), np.uint16), 32803, DNG_TAGS + CFA_TAGS)
    with tifffile.TiffFile(tmp_path / "a.dng", mode="r+") as file:
        file.pages[0].tags["Compression"].overwrite(code)
    with pytest.raises(InputError, match=rf"a\.dng: {reason}"):
        read_raw(tmp_path / "a.dng")
