"""A camera's noise, measured from frames that were made with known noise."""

import json
import math
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Store
from PIL import Image
from scipy import stats
from test_dng import XTRANS, make_frame

from lsid_ray import storage
from lsid_ray.errors import InputError
from lsid_ray.raw.dng import write_dng
from lsid_ray.raw.frame import RawFrame, read_raw
from lsid_ray.synthesis.calibrate import Calibration, CalibrationResult, calibrate, interpolate_gain
from lsid_ray.synthesis.camera import CameraNoise, IsoNoise
from lsid_ray.synthesis.camera_file import read_camera
from lsid_ray.synthesis.dark_frames import open_dark_frames
from lsid_ray.synthesis.dark_noise import measure_dark
from lsid_ray.synthesis.noise import short_exposure

JOBS = Path(__file__).resolve().parents[1] / "jobs"
SIZE = (256, 384)
BLACK, WHITE = (600.0, 601.0, 602.0, 601.0), 16383.0
TRUTH = CameraNoise(
    "NIKON TEST",
    601.0,
    WHITE,
    {
        200: IsoNoise(0.5, -0.12, 0.9, 0.25, 2.0, 0.05),  # a standard deviation of 2 DN, near the rounding
        800: IsoNoise(2.0, None, 6.0, 1.0, 3.0, 0.2),
        3200: IsoNoise(8.0, 0.1, 12.0, 2.5, -15.0, 0.8),
    },
)
DARKS = 16
EXPOSURES = {0.004: 0.04, 0.01: 0.1, 0.02: 0.2, 0.04: 0.4, 0.1: 1.0}  # seconds: share of the range in the middle


def capture(iso: int, signal: np.ndarray | float, rng: np.random.Generator, exposure_s: float, **changes) -> RawFrame:
    """A frame of the camera of TRUTH; signal: DN above black. A hundred sensels are hot, the others differ by 1 DN."""
    pattern = np.random.default_rng(5).normal(0, 1, SIZE)
    pattern.ravel()[::983] = 300.0
    clean = np.tile(np.reshape(BLACK, (2, 2)), (128, 192)) + signal
    mosaic = short_exposure(np.minimum(clean, WHITE), BLACK, WHITE, 1.0, iso, rng, TRUTH)
    mosaic = np.rint(mosaic + pattern).clip(0, WHITE).astype(np.uint16)
    metadata = {"cfa": "GRBG", "black": BLACK, "camera": "NIKON TEST", "iso": float(iso), "exposure_s": exposure_s}
    return make_frame(mosaic=mosaic, **metadata | changes)


def flat(share: float) -> np.ndarray:
    """Light on an even surface: darker towards the corners, a texture of 1% from sensel to sensel, DN."""
    y, x = np.mgrid[-1 : 1 : SIZE[0] * 1j, -1 : 1 : SIZE[1] * 1j]
    return share * (WHITE - 601) * (1 - 0.3 * (x**2 + y**2)) * np.random.default_rng(6).normal(1, 0.01, SIZE)


def write_frames(folder: Path, isos: Iterable[int]) -> None:
    """dark/ and flat/."""
    rng = np.random.default_rng(0)
    for name in ("dark", "flat"):
        (folder / name).mkdir()
    for iso in isos:
        for number in range(DARKS):
            write_dng(folder / "dark" / f"{iso}_{number:02d}.dng", capture(iso, 0.0, rng, 0.00025))
        for exposure_s, share in EXPOSURES.items():
            for number in range(2):
                path = folder / "flat" / f"{iso}_{exposure_s}_{number}.dng"
                write_dng(path, capture(iso, flat(share), rng, exposure_s))


def change(path: Path, edit: Callable[[np.ndarray], np.ndarray], **metadata) -> None:
    frame = read_raw(path)
    mosaic = edit(frame.mosaic.astype(float)).clip(0, frame.white).astype(np.uint16)
    write_dng(path, replace(frame, mosaic=mosaic, **metadata))


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """dark/ and flat/, of three ISOs."""
    folder = tmp_path_factory.mktemp("calibration")
    write_frames(folder, TRUTH.by_iso)
    return folder


@dataclass(frozen=True)
class Calibrated:
    """A calibration, and the folder that it was written to."""

    folder: Path
    result: CalibrationResult


@pytest.fixture(scope="module")
def calibrated(frames: Path) -> Calibrated:
    out = frames / "new" / "camera.json"
    return Calibrated(out.parent, calibrate(Calibration(str(frames / "dark"), str(out), str(frames / "flat"))))


@pytest.fixture
def copy(frames: Path, tmp_path: Path) -> Path:
    """A copy of `frames` with the ISO 200 only."""
    for name in ("dark", "flat"):
        (tmp_path / name).mkdir()
        for path in (frames / name).glob("200_*"):
            shutil.copy(path, tmp_path / name)
    return tmp_path


def standard_deviation(noise: IsoNoise) -> float:
    """Of the read noise, DN."""
    return noise.read_scale * (1 if noise.read_lambda is None else stats.tukeylambda.std(noise.read_lambda))


@pytest.mark.parametrize("iso", TRUTH.by_iso)
def test_the_noise_that_frames_were_made_with_is_found_again(iso: int, calibrated: Calibrated):
    noise, truth = calibrated.result.camera.by_iso[iso], TRUTH.by_iso[iso]
    assert noise.gain == pytest.approx(truth.gain, rel=0.02)
    assert standard_deviation(noise) == pytest.approx(standard_deviation(truth), rel=0.01)
    if truth.read_lambda is not None:
        assert noise.read_scale == pytest.approx(truth.read_scale, rel=0.03)
    # A Gaussian is no Tukey-lambda distribution, but that of 0.135 has nearly its quantiles.
    assert noise.read_lambda == pytest.approx(0.135 if truth.read_lambda is None else truth.read_lambda, abs=0.01)
    assert noise.row_sigma == pytest.approx(truth.row_sigma, rel=0.05)
    hot = 300 * math.ceil(SIZE[0] * SIZE[1] / 983) / (SIZE[0] * SIZE[1])  # what hot sensels add to a frame's mean
    assert noise.black_error - hot == pytest.approx(truth.black_error, rel=0.05)


@pytest.mark.parametrize("iso", TRUTH.by_iso)
def test_the_truth_is_within_four_standard_errors(iso: int, calibrated: Calibrated):
    noise, truth = calibrated.result.camera.by_iso[iso], TRUTH.by_iso[iso]
    for field in ("gain", "read_lambda", "read_scale", "row_sigma", "black_sigma"):
        if truth.read_lambda is not None or not field.startswith("read"):
            error = getattr(noise.standard_errors, field)
            assert 0 < error < 0.5 * max(abs(getattr(truth, field)), 0.1), field
            assert getattr(noise, field) == pytest.approx(getattr(truth, field), abs=4 * error), field


def test_standard_errors_are_as_large_as_the_scatter_of_repeated_calibrations():
    """Of 10 calibrations from 6 small frames each."""
    truth = TRUTH.by_iso[200]
    found = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        clean = np.full((64, 96), 600.0)
        darks = [short_exposure(clean, (600.0,) * 4, WHITE, 1.0, 200, rng, TRUTH) - 600.0 for _ in range(6)]
        stack = np.array(darks, np.float32)
        found.append(measure_dark(stack, stack.mean(axis=(1, 2)), 64))
    for field in ("read_lambda", "read_scale", "row_sigma", "black_error"):
        values = [getattr(dark, field) for dark in found]
        scatter, stated = np.std(values, ddof=1), np.mean([getattr(dark.errors, field) for dark in found])
        assert 0.5 < scatter / stated < 2, field
        bias = np.mean(values) - getattr(truth, field)
        assert abs(bias) < scatter + 0.01 * abs(getattr(truth, field)), field


def test_the_drift_of_the_black_level_is_told_from_the_noise_of_a_frames_mean():
    rng = np.random.default_rng(0)
    drift = rng.normal(-4.0, 0.5, 300)
    stack = rng.normal(0, 6.0, (300, 32, 48)) + rng.normal(0, 3.0, (300, 32, 1)) + drift[:, None, None]
    dark = measure_dark(stack.astype(np.float32), stack.mean(axis=(1, 2)), 32)
    assert stack.mean(axis=(1, 2)).std() > 0.7, "rows alone add 0.53"
    assert dark.black_sigma == pytest.approx(0.5, rel=0.15)
    assert dark.black_error == pytest.approx(-4.0, rel=0.05)


def test_the_file_has_the_camera_its_sensor_and_nothing_that_cannot_be_read_back(calibrated: Calibrated):
    camera = calibrated.result.camera
    assert (camera.name, camera.black, camera.white) == ("NIKON TEST", 601.0, WHITE)
    sensor = camera.sensor
    assert (sensor.cfa, sensor.black, sensor.white) == ("GRBG", (600, 601, 602, 601), 16383)
    np.testing.assert_allclose(sensor.color_matrix, make_frame().color_matrix, atol=1e-4)
    assert read_camera(str(calibrated.folder / "camera.json")) == camera
    assert sorted(path.name for path in calibrated.folder.iterdir()) == ["camera.json", "camera.png"]
    assert calibrated.result.remarks == ()


def test_the_picture_has_a_row_of_plots_for_each_iso(calibrated: Calibrated):
    with Image.open(calibrated.result.picture) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape == (3 * 340, 1200, 3)
    red = (pixels[:, :, 0] > 180) & (pixels[:, :, 1] < 90)
    for row in range(3):
        for column in range(3):
            assert red[340 * row : 340 * (row + 1), 400 * column : 400 * (column + 1)].sum() > 100, "a fit is drawn"


def test_without_flat_frames_all_but_the_gain_is_measured(copy: Path, calibrated: Calibrated):
    noise = calibrate(Calibration(str(copy / "dark"), str(copy / "dark.json"))).camera.by_iso[200]
    full = calibrated.result.camera.by_iso[200]
    assert (noise.gain, noise.standard_errors.gain) == (None, None)
    assert replace(noise, gain=full.gain, standard_errors=full.standard_errors) == full


def test_dark_frames_are_kept_as_they_are_until_a_calibration_keeps_none(copy: Path):
    for path in sorted((copy / "dark").iterdir())[6:]:
        path.unlink()
    config, seen = Calibration(str(copy / "dark"), str(copy / "camera.json"), keep_frames=5), []
    result = calibrate(config, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (2 * 6 + 5, 2 * 6 + 5)
    assert result.frames == copy / "camera.dark.npz" and read_camera(config.out) == result.camera
    with np.load(result.frames) as kept:
        assert sorted(kept.files) == ["200_0", "200_1", "200_2", "200_3", "200_4", "200_black"]
        for number in range(5):
            np.testing.assert_array_equal(
                kept[f"200_{number}"], read_raw(copy / "dark" / f"200_{number:02d}.dng").mosaic
            )
        np.testing.assert_array_equal(kept["200_black"], [BLACK] * 5)
    without = calibrate(replace(config, keep_frames=0))
    assert replace(result.camera, dark_frames=None) == without.camera == read_camera(config.out)
    assert without.frames is None and not result.frames.exists()


@pytest.mark.parametrize("number", [-1, 3, 65])
def test_a_number_of_frames_to_keep_that_cannot_be_is_refused(copy: Path, number: int):
    config = Calibration(str(copy / "dark"), str(copy / "camera.json"), keep_frames=number)
    with pytest.raises(InputError, match=rf"^--keep-frames {number}: expected 0, or 4 to 64$"):
        calibrate(config)


def test_the_gain_of_an_iso_without_flat_frames_is_interpolated(copy: Path, frames: Path):
    for path in (frames / "dark").glob("3200_*"):
        shutil.copy(path, copy / "dark")
    camera = calibrate(Calibration(str(copy / "dark"), str(copy / "camera.json"), str(copy / "flat"))).camera
    assert camera.by_iso[3200].gain == pytest.approx(8.0, rel=0.02)
    assert camera.by_iso[3200].standard_errors.gain is None and camera.by_iso[200].standard_errors.gain > 0


@pytest.mark.parametrize(("iso", "gain"), [(100, 0.1), (400, 0.8), (1600, 6.4), (50, 0.05), (3200, 12.8)])
def test_gains_are_interpolated_in_the_logarithm_of_the_iso(iso: int, gain: float):
    """Between 0.001 DN/e- per ISO at 100 and 0.004 at 1600; half-way is ISO 400."""
    assert interpolate_gain(iso, {100: 0.1, 1600: 6.4}) == pytest.approx(gain)


def test_frames_that_are_not_used_are_named(copy: Path):
    rng = np.random.default_rng(1)
    write_dng(copy / "flat" / "single.dng", capture(200, flat(0.1), rng, 0.033))
    write_dng(copy / "flat" / "other.dng", capture(800, flat(0.1), rng, 0.01))
    (copy / "dark" / "notes.txt").touch()
    (copy / "dark" / ".DS_Store").touch()
    config = Calibration(str(copy / "dark"), str(copy / "camera.json"), str(copy / "flat"))
    assert calibrate(config).remarks == (
        f"left out, not a raw file: {copy / 'dark' / 'notes.txt'}",
        f"left out, no second frame of its exposure: {copy / 'flat' / 'single.dng'}",
        "left out: 1 flat frames at ISO 800, at which there are no dark frames",
    )


def test_what_moves_between_two_flat_frames_does_not_count(copy: Path):
    for path in (copy / "flat").glob("*_1.dng"):
        frame = read_raw(path)
        mosaic = frame.mosaic.copy()
        mosaic[:64, :64] = mosaic[:64, :64] * np.linspace(0.8, 1, 64)
        write_dng(path, replace(frame, mosaic=mosaic))
    config = Calibration(str(copy / "dark"), str(copy / "camera.json"), str(copy / "flat"))
    assert calibrate(config).camera.by_iso[200].gain == pytest.approx(0.5, rel=0.03)


def test_saturation_below_the_white_level_does_not_count(copy: Path):
    """Frames of which the brightest third saturates at half of the range."""
    for path in (copy / "flat").iterdir():
        frame = read_raw(path)
        write_dng(path, replace(frame, mosaic=np.minimum(frame.mosaic, 8000)))
    config = Calibration(str(copy / "dark"), str(copy / "camera.json"), str(copy / "flat"))
    assert calibrate(config).camera.by_iso[200].gain == pytest.approx(0.5, rel=0.02)


def test_poor_fits_are_remarked_upon(copy: Path):
    rng = np.random.default_rng(2)
    for path in (copy / "flat").glob("*_1.dng"):
        frame = read_raw(path)
        texture = 1 + 0.2 * np.sin(np.arange(SIZE[1]) / 9) * np.linspace(0, 1, SIZE[0])[:, None]
        write_dng(path, replace(frame, mosaic=(frame.mosaic * texture).clip(0, WHITE).astype(np.uint16)))
    for path in (copy / "dark").iterdir():
        frame = read_raw(path)
        flicker = 12 * rng.integers(0, 2, SIZE) + 12
        write_dng(path, replace(frame, mosaic=(frame.mosaic + flicker).astype(np.uint16)))
    remarks = calibrate(Calibration(str(copy / "dark"), str(copy / "camera.json"), str(copy / "flat"))).remarks
    assert len(remarks) == 3
    assert "variances of the flat frames scatter" in remarks[0]
    assert "DN from the file's black level" in remarks[1]
    assert "hardly a Tukey-lambda distribution" in remarks[2]


def test_noise_that_the_model_lacks_is_remarked_upon_unless_the_frames_are_kept(copy: Path):
    """Bands of 16 rows and columns, both different in each frame."""
    rng = np.random.default_rng(3)
    for path in (copy / "dark").iterdir():
        bands = 0.8 * np.sin(2 * np.pi * (np.arange(SIZE[0])[:, None] / 16 + rng.random()))
        change(path, lambda mosaic, bands=bands: np.rint(mosaic + bands + rng.normal(0, 0.5, SIZE[1])))
    config = Calibration(str(copy / "dark"), str(copy / "camera.json"))
    (remark,) = calibrate(config).remarks
    assert re.fullmatch(
        r"ISO 200: banding \(rows are correlated, up to -?0\.\d\d\) and noise that columns share \(their means vary "
        r"[\d.]+ times as much\), which the model lacks; --keep-frames 16 draws it from dark frames",
        remark,
    )
    assert calibrate(replace(config, keep_frames=4)).remarks == ()


def test_frames_of_x_trans_are_measured_too(tmp_path: Path):
    rng = np.random.default_rng(3)
    metadata = {"cfa": XTRANS, "black": (1024.0,) * 36, "iso": 800.0}
    for name, signal, count in (("dark", 0.0, 6), ("flat", 4000.0, 2)):
        (tmp_path / name).mkdir()
        for number in range(count):
            clean = np.full((390, 400), 1024 + signal)
            mosaic = short_exposure(clean, (1024.0,) * 36, 1024 + WHITE - 601, 1.0, 800, rng, TRUTH)
            frame = make_frame(mosaic=mosaic, **metadata, white=1024 + WHITE - 601)
            write_dng(tmp_path / name / f"{number}.dng", frame)
    camera = calibrate(
        Calibration(str(tmp_path / "dark"), str(tmp_path / "camera.json"), str(tmp_path / "flat"))
    ).camera
    assert (camera.sensor.cfa, camera.black) == (XTRANS, 1024.0)
    assert camera.by_iso[800].gain == pytest.approx(2.0, rel=0.03)
    assert standard_deviation(camera.by_iso[800]) == pytest.approx(6.0, rel=0.02)


def test_the_page_leads_from_frames_to_a_data_set_that_a_run_takes(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """The commands of jobs/README.md as they stand there; training with --dry-run, and nothing is enhanced."""
    section = (JOBS / "README.md").read_text().partition("\n## Your own camera\n")[2]
    block = re.search(r"```bash\n(.*?)```", section, re.DOTALL)[1]
    commands = [line.partition("#")[0].split() for line in block.splitlines()]
    jobs = ["calibrate", "synthesize", "pack", "train", "enhance"]
    assert [command[:2] for command in commands] == [["python", f"jobs/{job}.py"] for job in jobs]
    for path in sorted((copy / "dark").iterdir())[6:]:
        path.unlink()
    home = copy / "home"
    (home / "photographs").mkdir(parents=True)
    (home / "d750").symlink_to(copy)
    for gray in range(3):
        Image.new("RGB", (150, 100), (90 + gray,) * 3).save(home / "photographs" / f"{gray}.png")

    def run(job: str, *more: str) -> str:
        words = [word.replace("~", str(home)) for word in commands[jobs.index(job)][2:]]
        monkeypatch.setattr(sys, "argv", [f"{job}.py", *words, *more])
        runpy.run_path(str(JOBS / f"{job}.py"), run_name="__main__")
        return capsys.readouterr().out

    monkeypatch.chdir(copy)
    assert "NIKON TEST, in DN from black 601 to white 16383:\nISO 200: gain 0.5" in run("calibrate")
    assert "3 scenes, 9 short exposures" in run("synthesize")
    run("pack", "--count", "1")
    assert (copy / "preview.png").stat().st_size > 10_000
    assert json.loads(run("train", "--dry-run"))["data"]["root"] == str(home / "data" / "d750")
    assert commands[-1][2] == "runs/d750/best", "of the run before"


def test_a_mistake_in_the_command_line_is_one_line(copy: Path):
    command = [sys.executable, JOBS / "calibrate.py", "--dark", copy / "dark", "--out", copy / "camera.txt"]
    wrong = subprocess.run(command, capture_output=True, text=True)
    assert wrong.returncode == 2
    assert wrong.stderr == f"error: --out {copy / 'camera.txt'}: expected the name of a file that ends in .json\n"


def test_every_parameter_has_a_standard_error(calibrated: Calibrated):
    for noise in calibrated.result.camera.by_iso.values():
        assert [field.name for field in fields(noise)][:-1] == [f.name for f in fields(noise.standard_errors)]
        assert all(error is not None and error >= 0 for error in astuple(noise.standard_errors))
    content = json.loads((calibrated.folder / "camera.json").read_text())
    assert (content["format"], content["version"]) == ("lsid-ray camera noise", 1)


def test_frames_and_file_may_be_in_an_object_store(copy: Path, store: Store):
    for path in sorted((copy / "dark").iterdir())[:4]:
        storage.copy_file(path, storage.to_path(f"s3://bucket/test/dark/{path.name}"))
    out = "s3://bucket/test/camera.json"
    result = calibrate(Calibration("s3://bucket/test/dark", out, keep_frames=4))
    assert read_camera(out) == result.camera
    with open_dark_frames("--camera", storage.to_path(out), result.camera) as frames:
        assert frames.black[200].shape == (4, 4)
    assert storage.to_path("s3://bucket/test/camera.png").stat().st_size > 10_000
