"""Read noise from a camera's own dark frames: what no distribution has is in the synthesized exposures."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_dng import MATRIX, XTRANS, make_frame

from lsid_ray.errors import InputError
from lsid_ray.raw.dng import write_dng
from lsid_ray.raw.frame import read_raw
from lsid_ray.raw.mosaic import BAYER_PHASES
from lsid_ray.raw.render import read_and_render, upright
from lsid_ray.synthesis.camera import CameraNoise, IsoNoise, Sensor
from lsid_ray.synthesis.camera_file import read_camera, write_camera
from lsid_ray.synthesis.dark_frames import open_dark_frames, write_dark_frames
from lsid_ray.synthesis.dataset import Synthesis, synthesize
from lsid_ray.synthesis.noise import short_exposure

BLACK, WHITE = (600.0, 602.0, 602.0, 600.0), 15000.0
BAND = 8  # rows
NOISE = {800: IsoNoise(0.1, None, 3.0, 0.0, 0.0, 0.0)}
COUNT = 5


def banded(number: int) -> np.ndarray:
    """A dark frame, DN above black: bands of 8 rows at a random phase, columns, a hot sensel; its own mean."""
    rng = np.random.default_rng(number)
    bands = 6 * np.sin(2 * np.pi * (np.arange(150)[:, None] / BAND + rng.random()))
    columns = np.random.default_rng(99).normal(0, 3, 190)  # the same in all frames
    frame = rng.normal(0, 2, (150, 190)) + bands + columns + 20 * number
    frame[70, 90] = 3000
    return np.rint(frame)


@pytest.fixture
def camera_file(tmp_path: Path) -> Path:
    return write_camera_of(tmp_path, "GRBG", [banded(number) for number in range(COUNT)])


def write_camera_of(folder: Path, cfa: str, darks: list[np.ndarray]) -> Path:
    """The file of a camera with these dark frames, DN above black; black levels differ by position."""
    period = int(len(cfa) ** 0.5)
    black = BLACK if len(cfa) == 4 else tuple(600.0 + position for position in range(36))
    files = []
    for number, dark in enumerate(darks):
        tiles = [-(-side // period) for side in dark.shape]
        levels = np.tile(np.reshape(black, (period, period)), tiles)[: dark.shape[0], : dark.shape[1]]
        files.append(folder / f"{number}.dng")
        frame = make_frame(mosaic=(dark + levels).astype(np.uint16), cfa=cfa, black=black, white=WHITE)
        write_dng(files[-1], frame)
    sha256 = write_dark_frames(folder / "camera.dark.npz", {800: files}, lambda: None)
    for file in files:
        file.unlink()
    sensor = Sensor(cfa, tuple(map(int, black)), int(WHITE), MATRIX)
    camera = CameraNoise("NIKON TEST", float(np.mean(black)), WHITE, NOISE, sensor, dark_frames=sha256)
    write_camera(folder / "camera.json", camera)
    return folder / "camera.json"


def gray_photos(folder: Path, *grays: int, size: tuple[int, int] = (80, 100)) -> Path:
    folder.mkdir()
    for number, gray in enumerate(grays):
        pixels = np.full((*size, 3), gray, np.uint8)
        pixels[0, 0] = number  # so that no two are the same
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def synthesized(camera_file: Path, photos: Path, **changes) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """(split, short, what it would be without noise) of each short exposure, DN above black."""
    config = Synthesis(camera_file.parent / "data", (str(photos),), ratios=(100, 300), camera=str(camera_file))
    found = []
    for scene in synthesize(replace(config, **changes)).scenes:
        long = read_raw(next((config.out / "long").glob(f"{scene.name}_*")))
        levels = np.tile(np.reshape(long.black, (2, 2)), [side // 2 for side in long.mosaic.shape])
        for path in sorted((config.out / "short").glob(f"{scene.name}_*")):
            short = read_raw(path)
            ratio = long.exposure_s / short.exposure_s
            found.append((scene.split, short.mosaic - levels, (long.mosaic - levels) / ratio))
    return found


def find(noise: np.ndarray, frames: list[np.ndarray]) -> list[tuple[int, int, int]]:
    """(frame, row, column) of all places where noise, below the first row, is found in frames."""
    places = []
    for number, frame in enumerate(frames):
        windows = np.lib.stride_tricks.sliding_window_view(frame, noise.shape)
        candidates = np.argwhere((windows[:, :, 1, 1:] == noise[1, 1:]).all(axis=2))
        places += [(number, *map(int, at)) for at in candidates if (windows[tuple(at)][1:] == noise[1:]).all()]
    return places


def test_the_noise_of_a_black_photograph_is_a_crop_of_a_dark_frame_at_even_offsets(camera_file, tmp_path):
    darks = [banded(number) for number in range(COUNT)]
    places = {}
    for split, short, _ in synthesized(camera_file, gray_photos(tmp_path / "photos", *[0] * 8), frames=2):
        ((number, row, column),) = find(short, darks)
        assert (row % 2, column % 2) == (0, 0)
        places.setdefault(split, set()).add((number, row, column))
    assert [{place[0] for place in places[split]} for split in ("test", "validation")] == [{0}, {1}]
    assert {place[0] for place in places["train"]} == {2, 3, 4}, "no frame of another split"
    assert min(len(set(values)) for values in zip(*places["train"], strict=True)) >= 3, "and they differ"


def test_banding_and_columns_come_back_with_the_signal(camera_file, tmp_path):
    for _, short, expected in synthesized(camera_file, gray_photos(tmp_path / "photos", 100, 110, 120)):
        noise = short - expected
        noise[noise > 1000] = 0
        rows, columns = noise.mean(axis=1)[1:] - noise.mean(), noise.mean(axis=0) - noise.mean()

        def correlation(lag: int, values: np.ndarray = rows) -> float:
            return float(np.corrcoef(values[lag:], values[:-lag])[0, 1])

        assert correlation(BAND) > 0.9 and correlation(BAND // 2) < -0.9
        assert abs(correlation(BAND // 4)) < 0.3
        fixed = np.random.default_rng(99).normal(0, 3, 190)
        best = max(np.corrcoef(columns, fixed[left : left + 100])[0, 1] for left in range(0, 91, 2))
        assert best > 0.9
        assert noise.mean() % 20 == pytest.approx(0, abs=1) or noise.mean() % 20 > 19, "the signal is as it was"


XTRANS_PHASES = [
    "".join(np.roll(np.reshape(list(XTRANS), (6, 6)), shift, (0, 1)).flat) for shift in ((0, 0), (1, 2), (5, 3))
]


@pytest.mark.parametrize(
    ("own", "other"), [*itertools.product(BAYER_PHASES, BAYER_PHASES), *itertools.product(XTRANS_PHASES, XTRANS_PHASES)]
)
def test_a_crop_begins_at_the_phase_of_the_frame_that_it_is_for(tmp_path: Path, own: str, other: str):
    """Noise is 10 DN on red, 20 on green, 30 on blue."""

    def colors(cfa: str, height: int, width: int) -> np.ndarray:
        values = np.array([10 * ("RGB".index(color) + 1) for color in cfa]).reshape([int(len(cfa) ** 0.5)] * 2)
        return np.tile(values, (height, width))[:height, :width].astype(float)

    camera = write_camera_of(tmp_path, own, [colors(own, 61, 70)] * 4)
    clean = make_frame(mosaic=np.zeros((41, 43), np.uint16), cfa=other)
    rng = np.random.default_rng(0)
    with open_dark_frames("--camera x", camera, read(camera)) as frames:
        for _ in range(3):
            crop = frames.crop(clean, 800, "train", rng)
            np.testing.assert_array_equal(np.rint(crop), colors(other, 41, 43))


def read(camera_file: Path) -> CameraNoise:
    return read_camera(str(camera_file))


def test_a_signal_below_one_step_is_not_lost_and_noise_is_scaled_to_another_range(tmp_path: Path):
    """Among whole numbers 0.3 DN would be rounded to 0; in a range of a quarter, the noise is a quarter."""
    camera = write_camera_of(tmp_path, "RGGB", [np.full((300, 400), 40.0)] * 4)
    clean = make_frame(mosaic=np.zeros((300, 400), np.uint16), black=(601.0,) * 4, white=WHITE)
    noise = read(camera)
    with open_dark_frames("--camera x", camera, noise) as frames:
        rng = np.random.default_rng(1)
        dark = frames.crop(clean, 800, "test", rng)
    full = short_exposure(np.full((300, 400), 631.0), (601.0,) * 4, WHITE, 100.0, 800, rng, noise, dark)
    assert full.mean() - 601 == pytest.approx(40.3, abs=0.01)
    quarter = short_exposure(
        np.full((300, 400), 150.0), (150.0,) * 4, 150 + (WHITE - 601) / 4, 1.0, 800, rng, noise, dark
    )
    assert quarter.mean() - 150 == pytest.approx(10.0, abs=0.01)


def test_an_upright_photograph_is_recorded_on_its_side_as_the_camera_would(camera_file, tmp_path):
    """Darker towards the top; higher than the sensor is, but not than it is wide."""
    (tmp_path / "photos").mkdir()
    for number in range(3):
        pixels = np.repeat(np.linspace(20, 220, 180).astype(np.uint8), 100 * 3).reshape(180, 100, 3) + number
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "photos" / f"{number}.png")
    synthesized(camera_file, tmp_path / "photos")
    for path in (tmp_path / "data" / "long").iterdir():
        frame, image = read_and_render(path)
        assert frame.mosaic.shape == (100, 180)
        brightness = upright(image, frame.orientation).mean(axis=(1, 2))
        assert len(brightness) == 180 and np.corrcoef(brightness, np.arange(180))[0, 1] > 0.98


def refused(camera_file: Path, photos: Path, match: str, **changes) -> None:
    before = sorted(camera_file.parent.iterdir())
    with pytest.raises(InputError, match=match) as caught:
        synthesized(camera_file, photos, **changes)
    assert "\n" not in str(caught.value)
    assert sorted(camera_file.parent.iterdir()) == before


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (
            Path.unlink,
            r"^--camera .*camera\.json: its dark frames, .*camera\.dark\.npz, are missing; expected the file",
        ),
        (damage, r"^--camera .*camera\.dark\.npz does not have this camera's dark frames; expected the file that"),
    ],
    ids=["missing", "another"],
)
def test_dark_frames_that_do_not_belong_to_the_camera_are_refused(camera_file, tmp_path, edit: Callable, match: str):
    photos = gray_photos(tmp_path / "photos", 0, 1, 2)
    edit(tmp_path / "camera.dark.npz")
    refused(camera_file, photos, match)


def test_a_camera_with_an_iso_that_has_no_dark_frames_is_refused(camera_file, tmp_path):
    photos = gray_photos(tmp_path / "photos", 0, 1, 2)
    camera = read(camera_file)
    write_camera(camera_file, replace(camera, by_iso=NOISE | {1600: NOISE[800]}))
    refused(camera_file, photos, r"camera\.dark\.npz has no 4 frames of ISO 1600")
    write_camera(camera_file, replace(camera, sensor=None))
    refused(camera_file, photos, r"camera\.json: dark_frames without a sensor")


def test_photographs_that_the_dark_frames_cannot_serve_are_refused(camera_file, tmp_path):
    photos = gray_photos(tmp_path / "photos", 0, 1, 2, size=(200, 100))
    refused(
        camera_file,
        photos,
        r"\.png: 100x200 pixels, but the dark .* 150x190; it fits with --max-side 188, and one of any shape with 148",
    )
    assert synthesized(camera_file, photos, max_side=188)
    for photo in photos.iterdir():
        photo.unlink()
    for seed in range(3):
        mosaic = np.random.default_rng(seed).integers(600, 5000, (520, 520), dtype=np.uint16)
        write_dng(photos / f"{seed}.dng", make_frame(mosaic=mosaic, cfa=XTRANS, black=(600.0,) * 36))
    refused(
        camera_file,
        photos,
        r"\.dng: its CFA is xtrans, but NIKON TEST has dark frames of bayer; leave the file out",
        out=tmp_path / "other",
    )
