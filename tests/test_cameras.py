"""Other cameras: every CFA phase, black level, size and orientation gives the colors of LibRaw's rendering."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import rawpy
import torch
import torch.nn.functional as F
from test_dng import make_frame

from lsid_ray.config.schema import GeneratorConfig
from lsid_ray.data.pack import pack_dataset
from lsid_ray.data.preprocess import network_input
from lsid_ray.errors import InputError
from lsid_ray.evaluate.evaluation import evaluate
from lsid_ray.inference.frame import enhance_raw
from lsid_ray.model.generator import Generator
from lsid_ray.raw import dng
from lsid_ray.raw.color import A7S2_COLOR_MATRIX, srgb_from_camera
from lsid_ray.raw.dng import write_dng
from lsid_ray.raw.frame import RawFrame, read_raw
from lsid_ray.raw.mosaic import BAYER_PHASES, XTRANS, pack, pack_black
from lsid_ray.raw.render import plain_rendering, reference_rendering
from lsid_ray.synthesis.photograph import area_mean
from lsid_ray.train.trainer import train

CPU = torch.device("cpu")
RATIO = 10.0
GAINS = np.array([2.0, 1.0, 1.6])
OTHER_MATRIX = ((0.7888, -0.1902, -0.1011), (-0.8106, 1.6085, 0.2099), (-0.1687, 0.2257, 0.7892))
XTRANS_PATTERN = np.array(list(XTRANS.pattern)).reshape(6, 6)
XTRANS_PHASES = ["".join(np.roll(XTRANS_PATTERN, (-top, -left), (0, 1)).flat) for top, left in ((0, 0), (1, 2), (4, 5))]


def scene(seed: int, height: int, width: int) -> np.ndarray:
    """(H, W, 3) linear sRGB: smooth patches of color, none of them clipped."""
    rng = np.random.default_rng(seed)
    patches = 0.03 + 0.6 * rng.random((height // 16 + 2, width // 16 + 2, 3)) ** 2
    return area_mean(patches.repeat(20, 0).repeat(20, 1), height, width)


def expose(rgb: np.ndarray, camera: RawFrame, ratio: float = 1.0) -> RawFrame:
    """The frame that the sensor of `camera` records of (H, W, 3) linear sRGB at 1/ratio of the exposure time."""
    camera_rgb = rgb @ np.linalg.inv(srgb_from_camera(camera.color_matrix)).T / camera.white_balance
    period = 2 if len(camera.cfa) == 4 else 6
    mosaic = np.empty(rgb.shape[:2], np.uint16)
    for position, (color, black) in enumerate(zip(camera.cfa, camera.black, strict=True)):
        row, column = divmod(position, period)
        light = camera_rgb[row::period, column::period, "RGB".index(color)]
        mosaic[row::period, column::period] = np.rint(black + light * (camera.white - max(camera.black)) / ratio)
    return replace(camera, mosaic=mosaic)


def make_camera(cfa: str, **changes: object) -> RawFrame:
    white_balance = tuple(GAINS.tolist())
    changes = {"black": (512.0,) * len(cfa), **changes}
    return make_frame(cfa=cfa, white_balance=white_balance, color_matrix=A7S2_COLOR_MATRIX, **changes)


@cache
def train_tiny_generator(kind: str) -> Generator:
    """Train a tiny generator to render `scene`s of one phase with the Sony's colors; takes a few seconds."""
    c = GeneratorConfig(width=16, depth=1, cfa=kind, gates=False)
    camera = make_camera("RGGB" if kind == "bayer" else XTRANS.pattern)
    inputs, targets = [], []
    for seed in range(4):
        rgb = scene(seed, 48, 48) if kind == "bayer" else scene(seed, 72, 72)
        short = expose(rgb, camera, RATIO)
        planes = torch.from_numpy(pack(short.mosaic, camera.cfa))[None]
        black = torch.from_numpy(pack_black(camera.black, camera.cfa)).float()[None]
        levels = (torch.tensor([camera.white]), torch.from_numpy(GAINS)[None].float(), torch.tensor([RATIO]))
        inputs.append(network_input(planes, black, *levels, c))
        linear = torch.from_numpy(rgb).permute(2, 0, 1)[None].float()
        targets.append(torch.where(linear < 0.01805, 4.5 * linear, 1.09926 * linear**0.45 - 0.09926))
    x, y = torch.cat(inputs), torch.cat(targets)
    torch.manual_seed(0)
    generator = Generator(c)
    optimizer = torch.optim.Adam(generator.parameters(), lr=5e-3)
    steps = 600
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / steps)
        optimizer.zero_grad()
        F.l1_loss(generator(x), y).backward()
        optimizer.step()
    return generator.eval()


def color_cast(image: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Mean error of R, G and B, for a range of [0, 1], without the border."""
    inner = slice(6, -6)
    return (image[inner, inner].astype(float) - reference[inner, inner]).mean((0, 1)) / 65535


def write_and_read_pair(tmp_path: Path, camera: RawFrame, odd: bool = False) -> tuple[RawFrame, np.ndarray]:
    """The frame of a short exposure as LibRaw reads it, and the reference rendering of its long exposure."""
    height, width = (96, 120) if len(camera.cfa) == 4 else (516, 520)  # LibRaw renders no smaller X-Trans
    rgb = scene(99, height - odd, width + odd)
    write_dng(tmp_path / "short.dng", expose(rgb, camera, RATIO))
    write_dng(tmp_path / "long.dng", expose(rgb, camera))
    return read_raw(tmp_path / "short.dng"), reference_rendering(tmp_path / "long.dng")


@pytest.mark.parametrize("odd", [False, True], ids=["even", "odd"])
@pytest.mark.parametrize("black", [512.0, None], ids=["one black", "black per position"])
@pytest.mark.parametrize("cfa", [*BAYER_PHASES, *XTRANS_PHASES], ids=[*BAYER_PHASES, "X00", "X12", "X45"])
def test_the_plain_rendering_and_a_network_match_libraws_colors_at_every_phase(
    tmp_path: Path, cfa: str, black: float | None, odd: bool
):
    levels = tuple(500.0 + 4 * position for position in range(4)) if len(cfa) == 4 else (1024.0,) * 36
    frame, reference = write_and_read_pair(
        tmp_path, make_camera(cfa, black=levels if black is None else (black,) * len(cfa)), odd
    )
    assert frame.cfa == cfa
    image = enhance_raw(train_tiny_generator("bayer" if len(cfa) == 4 else "xtrans"), frame, RATIO, CPU)
    assert image.shape == reference.shape
    assert np.abs(color_cast(plain_rendering(frame, RATIO), reference)).max() < 0.004
    assert (
        np.abs(color_cast(image, reference)).max() < 0.025
    )  # the error of the network on a scene outside of its training set


@pytest.mark.parametrize("cfa", [BAYER_PHASES[0], XTRANS.pattern], ids=["bayer", "xtrans"])
def test_a_wrong_phase_gives_a_color_cast(tmp_path: Path, cfa: str):
    frame, reference = write_and_read_pair(tmp_path, make_camera(cfa))
    wrong = "GRBG" if len(cfa) == 4 else XTRANS_PHASES[1]
    image = enhance_raw(
        train_tiny_generator("bayer" if len(cfa) == 4 else "xtrans"), replace(frame, cfa=wrong), RATIO, CPU
    )
    assert np.abs(color_cast(image, reference)).max() > 0.05


def test_the_color_matrix_of_another_camera_corrects_its_colors(tmp_path: Path):
    """The network was trained with the Sony's colors only."""
    camera = replace(make_camera("GRBG"), color_matrix=OTHER_MATRIX)
    frame, reference = write_and_read_pair(tmp_path, camera)
    generator = train_tiny_generator("bayer")
    error = np.abs(enhance_raw(generator, frame, RATIO, CPU).astype(float) - reference).mean() / 65535
    wrong_matrix = replace(frame, color_matrix=A7S2_COLOR_MATRIX)
    error_without = np.abs(enhance_raw(generator, wrong_matrix, RATIO, CPU).astype(float) - reference).mean() / 65535
    assert error < 0.06 and error_without > error + 0.01


@pytest.mark.parametrize("orientation", [0, 3, 5, 6])
def test_the_output_image_is_upright(tmp_path: Path, orientation: int, libraw_upright: Callable):
    frame, _ = write_and_read_pair(tmp_path, make_camera("RGGB", orientation=orientation))
    image = enhance_raw(train_tiny_generator("bayer"), frame, RATIO, CPU)
    expected = libraw_upright(tmp_path / "long.dng")
    assert image.shape == expected.shape == ((96, 120, 3) if orientation in (0, 3) else (120, 96, 3))
    error, error_rotated = (np.abs(image.astype(float) - e).mean() for e in (expected, expected[::-1, ::-1]))
    assert error < 0.4 * error_rotated


@pytest.fixture
def libraw_upright() -> Callable[[Path], np.ndarray]:
    def render(path: Path) -> np.ndarray:
        with rawpy.imread(str(path)) as raw:
            return raw.postprocess(use_camera_wb=True, no_auto_bright=True, output_bps=16)

    return render


def test_a_bayer_network_raises_an_error_for_an_xtrans_frame(tmp_path: Path):
    frame, _ = write_and_read_pair(tmp_path, make_camera(XTRANS.pattern))
    with pytest.raises(InputError, match="kind xtrans; expected bayer"):
        enhance_raw(train_tiny_generator("bayer"), frame, RATIO, CPU)


def test_36_xtrans_black_levels_are_read_from_the_file(tmp_path: Path):
    black = tuple(1000.0 + 3 * position for position in range(36))
    frame, _ = write_and_read_pair(tmp_path, make_camera(XTRANS.pattern, black=black))
    assert frame.black == black
    planes = pack(frame.mosaic, frame.cfa)
    c = GeneratorConfig(cfa="xtrans")
    packed_black = torch.from_numpy(pack_black(frame.black, frame.cfa)).float()[None]
    levels = (torch.tensor([frame.white]), torch.tensor([frame.white_balance]), torch.tensor([RATIO]))
    actual = network_input(torch.from_numpy(planes)[None], packed_black, *levels, c)[0].numpy()
    uniform, _ = write_and_read_pair(tmp_path, make_camera(XTRANS.pattern, black=(1000.0,) * 36))
    uniform_black = torch.full((1, 9, 2, 2), 1000.0)
    uniform_planes = torch.from_numpy(pack(uniform.mosaic, uniform.cfa))[None]
    expected = network_input(uniform_planes, uniform_black, *levels, c)[0].numpy()
    np.testing.assert_allclose(actual, expected, atol=0.004)


@pytest.mark.parametrize("margins", [(0, 0), (2, 4), (3, 1), (5, 7), (8, 3), (0, 13), (19, 10)], ids=str)
@pytest.mark.parametrize("cfa", ["RGGB", "GBRG", XTRANS.pattern], ids=["RGGB", "GBRG", "xtrans"])
def test_margins_are_cropped_and_the_cfa_begins_at_the_visible_area(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cfa: str, margins: tuple[int, int]
):
    full = make_frame(60, 72, cfa=cfa, black=(512.0,) * len(cfa))
    top, left = margins
    original = dng._main_tags
    area = (50829, dng._LONG, [top, left, 60 - 1, 72 - 2])  # ActiveArea
    monkeypatch.setattr(dng, "_main_tags", lambda *arguments: [*original(*arguments), area])
    write_dng(tmp_path / "a.dng", full)
    frame = read_raw(tmp_path / "a.dng")
    assert 0 <= 59 - top - frame.height <= 1 and 0 <= 70 - left - frame.width <= 1  # LibRaw may drop a row and a column
    np.testing.assert_array_equal(frame.mosaic, full.mosaic[59 - frame.height : 59, 70 - frame.width : 70])
    period = 2 if len(cfa) == 4 else 6
    dropped = (59 - frame.height - top, 70 - frame.width - left)
    expected = np.roll(np.array(list(cfa)).reshape(period, period), [-count for count in dropped], (0, 1))
    assert frame.cfa == "".join(expected.flat), "DNG's pattern begins at the active area"


def test_a_missing_white_level_defaults_to_the_16_bit_maximum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    original = dng._main_tags
    monkeypatch.setattr(dng, "_main_tags", lambda *a: [tag for tag in original(*a) if tag[0] != 50717])
    write_dng(tmp_path / "a.dng", make_frame())
    assert read_raw(tmp_path / "a.dng").white == 65535


def test_a_white_level_below_black_raises_an_error(tmp_path: Path):
    write_dng(tmp_path / "a.dng", make_frame(white=500.0))
    with pytest.raises(InputError, match=r"a\.dng: black level 512 and white level 500; expected black below white"):
        read_raw(tmp_path / "a.dng")


def test_xtrans_raw_files_are_packed_trained_and_evaluated(cluster: None, tmp_path: Path, experiment: Callable):
    camera = make_camera(XTRANS_PHASES[1], exposure_s=1.0)
    for split in range(3):
        rgb = scene(split, 517, 523)
        for kind, ratio in (("short", RATIO), ("long", 1.0)):
            (tmp_path / "data" / kind).mkdir(parents=True, exist_ok=True)
            frame = replace(expose(rgb, camera, ratio), exposure_s=1 / ratio)
            write_dng(tmp_path / "data" / kind / f"{split}0001_00_{1 / ratio:g}s.dng", frame)
    packed = pack_dataset(tmp_path / "data", tmp_path / "shards", tile=64)
    assert packed.pairs == 3 and not packed.failures
    tiny = experiment(generator={"cfa": "xtrans"}, training={"epochs": 1}, cluster={"num_workers": 1})
    with pytest.raises(InputError, match=r"--generator\.cfa is bayer: the frames in .* are xtrans"):
        train(replace(tiny, generator=replace(tiny.generator, cfa="bayer")), str(tmp_path / "shards"))
    run = train(tiny, str(tmp_path / "shards"))
    evaluation = evaluate(run.best, tmp_path / "shards", "test", tmp_path / "report", images=1)
    assert evaluation.summary["groups"][0]["images"] == 1
    assert (tmp_path / "report" / "report.html").exists()
