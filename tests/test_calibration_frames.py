"""Frames that a calibration cannot use are refused, in one line that names them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_calibrate import SIZE, WHITE, capture, change, flat, write_frames
from test_dng import make_frame

from lsid_ray.errors import InputError
from lsid_ray.raw.dng import write_dng
from lsid_ray.synthesis.calibrate import Calibration, calibrate


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """dark/ and flat/, of ISO 200."""
    folder = tmp_path_factory.mktemp("calibration")
    write_frames(folder, [200])
    return folder


@pytest.fixture
def copy(frames: Path, tmp_path: Path) -> Path:
    """A copy of `frames`."""
    for name in ("dark", "flat"):
        shutil.copytree(frames / name, tmp_path / name)
    return tmp_path


def refused(folder: Path, match: str, flat: bool = True) -> None:
    """Check that a calibration is refused, in one line, and leaves nothing."""
    config = Calibration(str(folder / "dark"), str(folder / "camera.json"), str(folder / "flat") if flat else "")
    with pytest.raises(InputError, match=match) as caught:
        calibrate(config)
    assert "\n" not in str(caught.value)
    assert not list(folder.glob("camera*")) and not list(folder.glob(".*"))


def leak(strength: float) -> Callable[[np.ndarray], np.ndarray]:
    """Light from the left edge, `strength` DN there."""
    return lambda mosaic: mosaic + strength * np.exp(-np.arange(SIZE[1]) / 60)


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (leak(20), r"200_03\.dng: its level varies by .* DN over the frame, at a noise of .* light has leaked in"),
        (
            lambda mosaic: mosaic + 200,
            r"200_03\.dng: its mean is 20\d\.\d DN from the black level; expected at most 47",
        ),
        (lambda mosaic: mosaic - 601, r"200_03\.dng: 2\d% of its sensels are 0"),
    ],
    ids=["light from one side", "light everywhere", "black subtracted"],
)
def test_a_dark_frame_with_light_in_it_is_refused(copy: Path, edit: Callable, match: str):
    levels = {"black": (0.0,) * 4, "white": WHITE - 601} if "are 0" in match else {}
    change(copy / "dark" / "200_03.dng", edit, **levels)
    refused(copy, match)


def test_a_flat_frame_among_the_dark_ones_is_refused(copy: Path):
    shutil.copy(copy / "flat" / "200_0.02_0.dng", copy / "dark")
    refused(copy, r"200_0\.02_0\.dng: its mean is \d+\.\d DN from the black level")


def test_too_few_dark_frames_are_refused(copy: Path):
    for path in sorted((copy / "dark").iterdir())[1:]:
        path.unlink()
    refused(copy, r"--dark .*dark: 1 frame at ISO 200; expected at least 4")
    write_dng(copy / "dark" / "b.dng", capture(800, 0.0, np.random.default_rng(0), 0.1))
    refused(copy, r"1 frame at ISO 200")


@pytest.mark.parametrize(
    ("metadata", "match"),
    [
        ({"camera": "NIKON OTHER"}, "NIKON OTHER, 256x384, GRBG, .*of one camera and mode, but .* is NIKON TEST"),
        ({"cfa": "RGGB"}, "NIKON TEST, 256x384, RGGB, .*of one camera and mode"),
        ({"white": 4095.0}, "NIKON TEST, 256x384, GRBG, levels 601 to 4095; expected all frames of one camera"),
    ],
    ids=["camera", "phase", "bits"],
)
@pytest.mark.parametrize("folder", ["dark", "flat"])
def test_frames_of_two_cameras_are_refused(copy: Path, folder: str, metadata: dict, match: str):
    path = sorted((copy / folder).iterdir())[-1 if folder == "dark" else 0]
    change(path, lambda mosaic: mosaic, **metadata)
    refused(copy, rf"{path.name}: {match}")


def test_frames_of_another_size_are_refused(copy: Path):
    change(copy / "dark" / "200_05.dng", lambda mosaic: mosaic[:-2])
    refused(copy, r"200_05\.dng: NIKON TEST, 254x384")


def test_saturated_and_too_dark_flat_frames_are_refused(copy: Path):
    rng = np.random.default_rng(4)
    for path in (copy / "flat").iterdir():
        signal = 20.0 if "0.004" in path.name else WHITE + 2000
        write_dng(path, capture(200, signal, rng, float(path.name.split("_")[1])))
    refused(copy, r"--flat .*at ISO 200 cannot be used, 80% of it is near white or saturated, 20% near black; expected")


def test_flat_frames_that_cannot_be_paired_are_refused(copy: Path):
    for path in (copy / "flat").glob("*_1.dng"):
        path.unlink()
    refused(copy, r"--flat .*flat: no two frames of one exposure at ISO 200")


def test_flat_frames_of_other_isos_are_refused(copy: Path):
    rng = np.random.default_rng(0)
    for path in (copy / "flat").iterdir():
        path.unlink()
    for number in range(2):
        write_dng(copy / "flat" / f"{number}.dng", capture(800, flat(0.2), rng, 0.02))
    refused(copy, r"--flat .*flat: no frames at ISO 200, those of the dark frames")


def test_frames_without_noise_are_refused(copy: Path):
    """As a camera that removes noise might write them."""
    for number, path in enumerate(sorted((copy / "flat").iterdir())):
        change(path, lambda mosaic, number=number: 601 + flat(0.2) + number)
    refused(copy, r"--flat .*at ISO 200 the noise does not grow with the light")
    for number, path in enumerate(sorted((copy / "dark").iterdir())):
        change(path, lambda mosaic, number=number: np.where(np.arange(SIZE[1]) == number, 602, 0 * mosaic + 601))
    refused(copy, r"--dark .*dark: the frames at ISO 200 hardly differ, their variance is 0\.00\d+ DN²")


def test_the_same_frame_twice_is_refused(copy: Path):
    shutil.copy(copy / "dark" / "200_00.dng", copy / "dark" / "copy.dng")
    refused(copy, r"copy\.dng: the same pixels as .*200_00\.dng")


def test_a_frame_without_an_iso_is_refused(copy: Path):
    change(copy / "dark" / "200_07.dng", lambda mosaic: mosaic, iso=None)
    refused(copy, r"200_07\.dng: no ISO in the file")


def test_folders_without_raw_files_are_refused(copy: Path):
    for path in (copy / "dark").iterdir():
        path.unlink()
    refused(copy, r"--dark .*dark: is empty; expected raw files")
    Image.new("RGB", (300, 300)).save(copy / "dark" / "dark.jpg")
    refused(copy, r"--dark .*dark: none of its 1 files is a raw file")
    (copy / "dark" / "dark.nef").write_bytes(b"no raw file" * 100)
    refused(copy, r"dark\.nef: not a raw file")
    shutil.rmtree(copy / "dark")
    refused(copy, r"--dark .*dark: no such folder")


def test_tiny_frames_are_refused(tmp_path: Path):
    (tmp_path / "dark").mkdir()
    for number in range(4):
        rng = np.random.default_rng(number)
        frame = make_frame(mosaic=rng.integers(505, 520, (48, 300), dtype=np.uint16))
        write_dng(tmp_path / "dark" / f"{number}.dng", frame)
    refused(tmp_path, r"0\.dng: 48x300 sensels; expected at least 128 on each side", flat=False)


def test_a_failure_leaves_an_older_file_as_it_was(copy: Path):
    out = copy / "camera.json"
    out.write_text("older")
    change(copy / "dark" / "200_03.dng", leak(100))
    with pytest.raises(InputError, match="light has leaked in"):
        calibrate(Calibration(str(copy / "dark"), str(out), str(copy / "flat")))
    assert out.read_text() == "older" and not (copy / "camera.png").exists()
