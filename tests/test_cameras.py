"""Any camera: colours of every CFA phase, black level, size and orientation against LibRaw's own rendering."""

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

from lsid_ray import config
from lsid_ray.data.pack import pack_folder
from lsid_ray.data.photograph import area_mean
from lsid_ray.errors import InputError
from lsid_ray.evaluate.deliver import photograph
from lsid_ray.evaluate.score import evaluate
from lsid_ray.model.generator import Generator
from lsid_ray.model.inputs import network_input
from lsid_ray.raw import dng
from lsid_ray.raw.color import A7S2_COLOR_MATRIX, srgb_from_camera
from lsid_ray.raw.develop import plain_rendering, reference_rendering
from lsid_ray.raw.dng import write_dng
from lsid_ray.raw.frame import RawFrame, read_raw
from lsid_ray.raw.mosaic import BAYER_PHASES, XTRANS, pack, pack_black
from lsid_ray.train.launch import train

CPU = torch.device("cpu")
RATIO = 10.0
GAINS = np.array([2.0, 1.0, 1.6])
OTHER_MATRIX = ((0.7888, -0.1902, -0.1011), (-0.8106, 1.6085, 0.2099), (-0.1687, 0.2257, 0.7892))
SQUARE = np.array(list(XTRANS.pattern)).reshape(6, 6)
XTRANS_PHASES = ["".join(np.roll(SQUARE, (-top, -left), (0, 1)).flat) for top, left in ((0, 0), (1, 2), (4, 5))]


def scene(seed: int, height: int, width: int) -> np.ndarray:
    """(H, W, 3) linear sRGB in soft patches of colour, none of them clipped."""
    random = np.random.default_rng(seed)
    patches = 0.03 + 0.6 * random.random((height // 16 + 2, width // 16 + 2, 3)) ** 2
    return area_mean(patches.repeat(20, 0).repeat(20, 1), height, width)


def expose(rgb: np.ndarray, like: RawFrame, ratio: float = 1.0) -> RawFrame:
    """What the sensor of `like` records of a scene in 1/ratio of the time; its mosaic gives the size."""
    camera = rgb @ np.linalg.inv(srgb_from_camera(like.color_matrix)).T / like.white_balance
    period = 2 if len(like.cfa) == 4 else 6
    mosaic = np.empty(rgb.shape[:2], np.uint16)
    for position, (color, black) in enumerate(zip(like.cfa, like.black, strict=True)):
        row, column = divmod(position, period)
        light = camera[row::period, column::period, "RGB".index(color)]
        mosaic[row::period, column::period] = np.rint(black + light * (like.white - max(like.black)) / ratio)
    return replace(like, mosaic=mosaic)


def sensor(cfa: str, **changes: object) -> RawFrame:
    white_balance = tuple(GAINS.tolist())
    changes = {"black": (512.0,) * len(cfa), **changes}
    return make_frame(cfa=cfa, white_balance=white_balance, color_matrix=A7S2_COLOR_MATRIX, **changes)


@cache
def trained(kind: str) -> Generator:
    """A tiny network that learnt to develop `scene`s of one phase and the Sony's colours, in a few seconds."""
    c = config.Generator(width=16, depth=1, cfa=kind, gates=False)
    like = sensor("RGGB" if kind == "bayer" else XTRANS.pattern)
    inputs, targets = [], []
    for seed in range(4):
        rgb = scene(seed, 48, 48) if kind == "bayer" else scene(seed, 72, 72)
        short = expose(rgb, like, RATIO)
        planes = torch.from_numpy(pack(short.mosaic, like.cfa))[None]
        black = torch.from_numpy(pack_black(like.black, like.cfa)).float()[None]
        levels = (torch.tensor([like.white]), torch.from_numpy(GAINS)[None].float(), torch.tensor([RATIO]))
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


def casts(image: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Mean error of R, G, B in [0, 1], away from the border."""
    inner = slice(6, -6)
    return (image[inner, inner].astype(float) - reference[inner, inner]).mean((0, 1)) / 65535


def developed(tmp_path: Path, like: RawFrame, odd: bool = False) -> tuple[RawFrame, np.ndarray]:
    """A short's frame as LibRaw reads it, and the reference rendering of its long."""
    height, width = (96, 120) if len(like.cfa) == 4 else (516, 520)  # LibRaw develops no smaller X-Trans
    rgb = scene(99, height - odd, width + odd)
    write_dng(tmp_path / "short.dng", expose(rgb, like, RATIO))
    write_dng(tmp_path / "long.dng", expose(rgb, like))
    return read_raw(tmp_path / "short.dng"), reference_rendering(tmp_path / "long.dng")


@pytest.mark.parametrize("odd", [False, True], ids=["even", "odd"])
@pytest.mark.parametrize("black", [512.0, None], ids=["one black", "black by position"])
@pytest.mark.parametrize("cfa", [*BAYER_PHASES, *XTRANS_PHASES], ids=[*BAYER_PHASES, "X00", "X12", "X45"])
def test_plain_rendering_and_a_trained_network_have_libraws_colours_at_every_phase(
    tmp_path: Path, cfa: str, black: float | None, odd: bool
):
    levels = tuple(500.0 + 4 * position for position in range(4)) if len(cfa) == 4 else (1024.0,) * 36
    frame, reference = developed(tmp_path, sensor(cfa, black=levels if black is None else (black,) * len(cfa)), odd)
    assert frame.cfa == cfa
    image = photograph(trained("bayer" if len(cfa) == 4 else "xtrans"), frame, RATIO, CPU)
    assert image.shape == reference.shape
    assert np.abs(casts(plain_rendering(frame, RATIO), reference)).max() < 0.004
    assert np.abs(casts(image, reference)).max() < 0.025  # the network's own error on a scene it has not seen


@pytest.mark.parametrize("cfa", [BAYER_PHASES[0], XTRANS.pattern], ids=["bayer", "xtrans"])
def test_a_wrong_phase_would_show_as_a_cast(tmp_path: Path, cfa: str):
    frame, reference = developed(tmp_path, sensor(cfa))
    wrong = "GRBG" if len(cfa) == 4 else XTRANS_PHASES[1]
    image = photograph(trained("bayer" if len(cfa) == 4 else "xtrans"), replace(frame, cfa=wrong), RATIO, CPU)
    assert np.abs(casts(image, reference)).max() > 0.05


def test_another_cameras_colours_come_by_its_own_matrix(tmp_path: Path):
    """The network has seen the Sony's colours only; without the matrix the other camera's would be off."""
    like = replace(sensor("GRBG"), color_matrix=OTHER_MATRIX)
    frame, reference = developed(tmp_path, like)
    generator = trained("bayer")
    error = np.abs(photograph(generator, frame, RATIO, CPU).astype(float) - reference).mean() / 65535
    unaware = replace(frame, color_matrix=A7S2_COLOR_MATRIX)
    without = np.abs(photograph(generator, unaware, RATIO, CPU).astype(float) - reference).mean() / 65535
    assert error < 0.06 and without > error + 0.01


@pytest.mark.parametrize("orientation", [0, 3, 5, 6])
def test_a_photograph_is_delivered_upright(tmp_path: Path, orientation: int, upright_by_libraw: Callable):
    frame, _ = developed(tmp_path, sensor("RGGB", orientation=orientation))
    image = photograph(trained("bayer"), frame, RATIO, CPU)
    expected = upright_by_libraw(tmp_path / "long.dng")
    assert image.shape == expected.shape == ((96, 120, 3) if orientation in (0, 3) else (120, 96, 3))
    difference, turned = (np.abs(image.astype(float) - e).mean() for e in (expected, expected[::-1, ::-1]))
    assert difference < 0.4 * turned


@pytest.fixture
def upright_by_libraw() -> Callable[[Path], np.ndarray]:
    def render(path: Path) -> np.ndarray:
        with rawpy.imread(str(path)) as raw:
            return raw.postprocess(use_camera_wb=True, no_auto_bright=True, output_bps=16)

    return render


def test_a_network_for_bayer_refuses_xtrans_and_says_so(tmp_path: Path):
    frame, _ = developed(tmp_path, sensor(XTRANS.pattern))
    with pytest.raises(InputError, match="kind xtrans; expected bayer"):
        photograph(trained("bayer"), frame, RATIO, CPU)


def test_xtrans_black_levels_of_36_positions_are_read_from_the_file(tmp_path: Path):
    black = tuple(1000.0 + 3 * position for position in range(36))
    frame, _ = developed(tmp_path, sensor(XTRANS.pattern, black=black))
    assert frame.black == black
    planes = pack(frame.mosaic, frame.cfa)
    c = config.Generator(cfa="xtrans")
    packed_black = torch.from_numpy(pack_black(frame.black, frame.cfa)).float()[None]
    levels = (torch.tensor([frame.white]), torch.tensor([frame.white_balance]), torch.tensor([RATIO]))
    seen = network_input(torch.from_numpy(planes)[None], packed_black, *levels, c)[0].numpy()
    plain, _ = developed(tmp_path, sensor(XTRANS.pattern, black=(1000.0,) * 36))
    flat_black = torch.full((1, 9, 2, 2), 1000.0)
    flat = network_input(torch.from_numpy(pack(plain.mosaic, plain.cfa))[None], flat_black, *levels, c)[0].numpy()
    np.testing.assert_allclose(seen, flat, atol=0.004)


@pytest.mark.parametrize("margins", [(0, 0), (2, 4), (3, 1), (5, 7)], ids=str)
@pytest.mark.parametrize("cfa", ["RGGB", "GBRG", XTRANS.pattern], ids=["RGGB", "GBRG", "xtrans"])
def test_margins_are_cut_and_the_pattern_is_the_visible_areas_as_libraw_sees_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cfa: str, margins: tuple[int, int]
):
    whole = make_frame(60, 72, cfa=cfa, black=(512.0,) * len(cfa))
    top, left = margins
    original = dng._main_tags
    area = (50829, dng._LONG, [top, left, 60 - 1, 72 - 2])  # ActiveArea
    monkeypatch.setattr(dng, "_main_tags", lambda *arguments: [*original(*arguments), area])
    write_dng(tmp_path / "a.dng", whole)
    frame = read_raw(tmp_path / "a.dng")
    assert 0 <= 59 - top - frame.height <= 1 and 0 <= 70 - left - frame.width <= 1  # it may drop a row and a column
    np.testing.assert_array_equal(frame.mosaic, whole.mosaic[59 - frame.height : 59, 70 - frame.width : 70])
    period = 2 if len(cfa) == 4 else 6
    with rawpy.imread(str(tmp_path / "a.dng")) as raw:
        colors = raw.raw_colors_visible[:period, :period]
        assert frame.cfa == "".join(raw.color_desc.decode()[color] for color in colors.flat)


def test_a_missing_white_level_is_all_that_the_bits_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    original = dng._main_tags
    monkeypatch.setattr(dng, "_main_tags", lambda *a: [tag for tag in original(*a) if tag[0] != 50717])
    write_dng(tmp_path / "a.dng", make_frame())
    assert read_raw(tmp_path / "a.dng").white == 65535


def test_a_white_level_below_black_is_named(tmp_path: Path):
    write_dng(tmp_path / "a.dng", make_frame(white=500.0))
    with pytest.raises(InputError, match=r"a\.dng: black level 512 and white level 500; expected black below white"):
        read_raw(tmp_path / "a.dng")


def test_xtrans_goes_from_raw_files_to_a_report(cluster: None, tmp_path: Path, experiment: Callable):
    like = sensor(XTRANS_PHASES[1], exposure_s=1.0)
    for split in range(3):
        rgb = scene(split, 517, 523)
        for kind, ratio in (("short", RATIO), ("long", 1.0)):
            (tmp_path / "data" / kind).mkdir(parents=True, exist_ok=True)
            frame = replace(expose(rgb, like, ratio), exposure_s=1 / ratio)
            write_dng(tmp_path / "data" / kind / f"{split}0001_00_{1 / ratio:g}s.dng", frame)
    packed = pack_folder(tmp_path / "data", tmp_path / "shards", tile=64)
    assert packed.pairs == 3 and not packed.failures
    tiny = experiment(generator={"cfa": "xtrans"}, training={"epochs": 1})
    with pytest.raises(InputError, match=r"--generator\.cfa is bayer: the frames in .* are xtrans"):
        train(replace(tiny, generator=replace(tiny.generator, cfa="bayer")), str(tmp_path / "shards"))
    run = train(tiny, str(tmp_path / "shards"))
    done = evaluate(run.best, tmp_path / "shards", "test", tmp_path / "report", pictures=1)
    assert done.summary["groups"][0]["images"] == 1
    assert (tmp_path / "report" / "report.html").exists()
