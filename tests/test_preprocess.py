"""Network inputs and targets, compared with slow loops and with flipping the mosaic before packing it."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_dng import make_frame

from lsid_ray.config.schema import GeneratorConfig
from lsid_ray.data.preprocess import (
    REFERENCE_MATRIX,
    Batch,
    Flips,
    flip_image,
    flip_planes,
    network_input,
    to_camera_colors,
    training_pair,
)
from lsid_ray.raw.color import A7S2_COLOR_MATRIX, srgb_from_camera
from lsid_ray.raw.dng import write_dng
from lsid_ray.raw.mosaic import BAYER, XTRANS, Layout, pack, pack_black
from lsid_ray.raw.render import reference_rendering

FLIPS = list(itertools.product([False, True], repeat=3))
BALANCED = GeneratorConfig(white_balance=True)
PLAIN = GeneratorConfig(white_balance=False)
HALF = GeneratorConfig(white_balance=False, output="half")


TONE = GeneratorConfig(input_curve="tone")


def tone(light: float) -> float:
    """The curve of LibRaw's gamma (2.222, 4.5), as dcraw computes it, mirrored below 0."""
    x = abs(light)
    curved = 4.5 * x if x < 0.0180501557 else 1.0992578062 * x ** (1 / 2.222) - 0.0992578062
    return math.copysign(min(curved, 1.5), light)


def network_input_loop(short, black, white, white_balance, ratio, c: GeneratorConfig) -> np.ndarray:
    """Value by value, in double precision."""
    result = np.zeros(short.shape)
    for b, plane, y, x in np.ndindex(*short.shape):
        light = ratio[b] * (float(short[b, plane, y, x]) - black[b, plane, 0, 0]) / (white[b] - black[b].max())
        if c.white_balance:
            light *= white_balance[b, {0: 0, 1: 1, 2: 2, 3: 1}[plane]]
        result[b, plane, y, x] = tone(light) if c.input_curve == "tone" else min(max(light, 0.0), 1.0)
    return result


@pytest.mark.parametrize("c", [PLAIN, BALANCED, TONE], ids=["plain", "white balance", "tone curve"])
def test_the_input_equals_a_slow_loop(c: GeneratorConfig):
    random = np.random.default_rng(0)
    short = random.integers(0, 700, (3, 4, 5, 6)).astype(np.uint16)
    short[0, :, 0, 0] = 16383
    short[1, :, 0, 0] = 65535
    black = np.array([[512.0] * 4, [100, 101, 102, 103], [0] * 4])[:, :, None, None]
    white = np.array([16383.0, 4095, 60000])
    white_balance = np.array([[2.1, 1, 1.6], [1.2, 1, 3.0], [0.9, 1, 1.1]])
    ratio = np.array([100.0, 1, 300])
    expected = network_input_loop(short, black, white, white_balance, ratio, c)
    others = (torch.from_numpy(v.astype(np.float32)) for v in (black, white, white_balance, ratio))
    planes = network_input(torch.from_numpy(short), *others, c)
    assert planes.dtype == torch.float32
    assert all((expected == end).any() for end in ((-1.5, 1.5) if c == TONE else (0, 1)))
    np.testing.assert_allclose(planes.numpy(), expected, rtol=1e-5, atol=1e-7)


def test_the_input_for_sids_sony_is_that_of_the_paper():
    short = torch.tensor([512, 500, 700, 16383], dtype=torch.uint16).reshape(1, 4, 1, 1)
    black, white = torch.full((1, 4, 1, 1), 512.0), torch.tensor([16383.0])
    planes = network_input(short, black, white, torch.ones(1, 3), torch.tensor([10.0]), PLAIN)
    expected = [0, 0, 10 * (700 - 512) / (16383 - 512), 1]
    assert planes.flatten().tolist() == pytest.approx(expected)


def test_counts_above_32767_are_preserved(make_batch: Callable[..., Batch]):
    counts = [0, 32767, 32768, 40000, 65535]
    batch = make_batch(1, 4)
    short, long = torch.zeros(1, 4, 5, 5).to(torch.uint16), torch.zeros(1, 3, 10, 10).to(torch.uint16)
    short[0, 0, 0], long[0, 0, 0, :5] = (torch.tensor(counts).to(torch.uint16) for _ in range(2))
    batch = replace(
        batch,
        short=short,
        long=long,
        black=torch.zeros(1, 4, 1, 1),
        white=torch.tensor([65535.0]),
        ratio=torch.ones(1),
        flips=torch.zeros(1, 3, dtype=torch.bool),
    )
    planes = network_input(batch.short, batch.black, batch.white, batch.white_balance, batch.ratio, PLAIN)
    np.testing.assert_allclose(planes[0, 0, 0].numpy() * 65535, counts, rtol=1e-6)
    _, target = training_pair(batch, PLAIN)
    np.testing.assert_allclose(target[0, 0, 0, :5].numpy() * 65535, counts, rtol=1e-6)


def flip_mosaic(mosaic: np.ndarray, rows: bool, columns: bool, transpose: bool) -> np.ndarray:
    """(..., 2s+2, 2s+2) -> (..., 2s, 2s): the window of the flipped Bayer mosaic that begins at R."""
    side = mosaic.shape[-1] - 2
    if rows:
        mosaic = mosaic[..., ::-1, :][..., 1:, :]
    if columns:
        mosaic = mosaic[..., ::-1][..., 1:]
    mosaic = mosaic[..., :side, :side]
    return mosaic.swapaxes(-1, -2) if transpose else mosaic


@pytest.mark.parametrize("flips", FLIPS, ids=str)
def test_flipping_planes_equals_packing_the_flipped_mosaic(flips: Flips):
    mosaic = np.arange(14 * 14, dtype=np.int32).reshape(14, 14)
    flipped = flip_planes(torch.from_numpy(pack(mosaic, "RGGB")), flips, BAYER)
    assert flipped.shape == (4, 6, 6)
    np.testing.assert_array_equal(flipped.numpy(), pack(flip_mosaic(mosaic, *flips), "RGGB"))


@pytest.mark.parametrize("layout", [BAYER, XTRANS], ids=["bayer", "xtrans"])
@pytest.mark.parametrize("flips", FLIPS, ids=str)
def test_flipping_keeps_the_color_of_every_plane(flips: Flips, layout: Layout):
    square = np.array([ord(color) for color in layout.pattern], np.int32).reshape(layout.period, layout.period)
    mosaic = np.tile(square, (4, 4))
    flipped = flip_planes(torch.from_numpy(pack(mosaic, layout.pattern)), flips, layout)
    for plane, color in zip(flipped, layout.colors, strict=True):
        assert (plane == ord(color)).all()


@pytest.mark.parametrize("layout", [BAYER, XTRANS], ids=["bayer", "xtrans"])
@pytest.mark.parametrize("flips", FLIPS, ids=str)
def test_flipped_planes_are_aligned_with_the_flipped_image(flips: Flips, layout: Layout):
    side = 4 * layout.period
    positions = np.arange(side**2, dtype=np.int32).reshape(side, side)
    image = flip_image(torch.from_numpy(np.stack([positions] * 3)), flips, layout).numpy()
    assert image.shape == (3, side - layout.period, side - layout.period)
    planes = flip_planes(torch.from_numpy(pack(positions, layout.pattern)), flips, layout)
    np.testing.assert_array_equal(pack(image[1], layout.pattern), planes.numpy())
    rows, columns, transpose = flips
    unflipped = image[0].T if transpose else image[0]
    unflipped = unflipped[:: -1 if rows else 1, :: -1 if columns else 1]
    top, left = divmod(unflipped[0, 0], side)
    np.testing.assert_array_equal(unflipped, positions[top:, left:][: len(unflipped), : len(unflipped)])


@pytest.mark.parametrize("layout", [BAYER, XTRANS], ids=["bayer", "xtrans"])
def test_the_eight_flips_differ(layout: Layout):
    side = 4 * layout.period
    planes = torch.from_numpy(pack(np.arange(side**2, dtype=np.int32).reshape(side, side), layout.pattern))
    assert len({tuple(flip_planes(planes, flips, layout).flatten().tolist()) for flips in FLIPS}) == 8


def test_an_xtrans_input_subtracts_the_black_level_of_each_position():
    c = GeneratorConfig(cfa="xtrans", white_balance=False)
    black = tuple(100.0 + level for level in range(36))
    mosaic = np.tile(np.arange(36).reshape(6, 6) + 100, (3, 2)).astype(np.uint16) + 50
    planes = pack(mosaic, XTRANS.pattern)[:, :5, :3]
    black_planes = torch.from_numpy(pack_black(black, XTRANS.pattern)).float()[None]
    ones = torch.ones(1, 3)
    result = network_input(torch.from_numpy(planes)[None], black_planes, torch.tensor([1135.0]), ones, ones[:, 0], c)
    assert result.shape == (1, 9, 5, 3)
    torch.testing.assert_close(result, torch.full_like(result, 50 / 1000))


def test_white_balance_gains_apply_to_the_planes_of_their_color():
    gains = torch.tensor([[2.0, 1.0, 3.0]])
    for kind, expected in (("bayer", "2131"), ("xtrans", "213231111")):
        c = GeneratorConfig(cfa=kind)
        short = torch.full((1, len(expected), 2, 2), 10).to(torch.uint16)
        planes = network_input(short, torch.zeros(1, 1, 1, 1), torch.tensor([100.0]), gains, torch.ones(1), c)
        assert "".join(f"{value:.0f}" for value in planes[0, :, 0, 0] * 10) == expected


OTHER_CAMERA = torch.tensor([[1.6, -0.5, -0.1], [-0.2, 1.5, -0.3], [0.0, -0.6, 1.6]])


def test_targets_of_other_cameras_are_converted_to_the_reference_colors_and_back(make_batch):
    batch = replace(make_batch(2, 6), flips=torch.zeros(2, 3, dtype=torch.bool))
    batch.srgb_from_camera[1] = OTHER_CAMERA
    _, target = training_pair(batch, BALANCED)
    _, unconverted = training_pair(batch, replace(BALANCED, color_matrix=False))
    assert torch.equal(target[0], unconverted[0]), "the reference camera's target must not change"
    assert (target[1] - unconverted[1]).abs().max() > 0.05
    torch.testing.assert_close(to_camera_colors(target[1], OTHER_CAMERA, BALANCED), unconverted[1], atol=2e-5, rtol=0)
    image = target[1]
    assert to_camera_colors(image, REFERENCE_MATRIX, BALANCED) is image
    assert to_camera_colors(image, OTHER_CAMERA, replace(BALANCED, color_matrix=False)) is image


def test_a_neutral_gray_is_the_same_in_every_cameras_colors():
    gray = torch.linspace(0, 1, 50).expand(3, 1, 50).clone()
    torch.testing.assert_close(to_camera_colors(gray, OTHER_CAMERA, BALANCED), gray, atol=1e-5, rtol=0)


def test_color_conversion_matches_libraw_renderings_with_two_color_matrices(tmp_path: Path):
    """One mosaic rendered with two color matrices: converting the first rendering gives the second."""
    frame = make_frame(60, 80, white_balance=(1.0, 1.0, 1.0), color_matrix=A7S2_COLOR_MATRIX)
    square = np.array([[3000, 4000], [4000, 5000]], np.uint16)  # one unsaturated color, clipped in neither rendering
    frame = replace(frame, mosaic=np.tile(square, (30, 40)))
    other = replace(frame, color_matrix=((0.65, -0.2, -0.05), (-0.4, 1.2, 0.2), (-0.06, 0.2, 0.6)))
    images = []
    for name, frame_of_camera in (("sony", frame), ("other", other)):
        write_dng(tmp_path / f"{name}.dng", frame_of_camera)
        images.append(torch.from_numpy(reference_rendering(tmp_path / f"{name}.dng").transpose(2, 0, 1) / 65535.0))
    converted = to_camera_colors(images[0], torch.from_numpy(srgb_from_camera(other.color_matrix)).float(), BALANCED)
    assert (images[0] - images[1]).abs().mean() > 0.005
    assert (converted - images[1]).abs().mean() < 3e-4


def test_each_sample_of_a_batch_has_its_own_flips(make_batch: Callable[..., Batch]):
    batch = replace(make_batch(8, 6), flips=torch.tensor(FLIPS))
    planes, target = training_pair(batch, BALANCED)
    assert planes.shape == (8, 4, 6, 6) and target.shape == (8, 3, 12, 12)
    unflipped = network_input(batch.short, batch.black, batch.white, batch.white_balance, batch.ratio, BALANCED)
    for i, flips in enumerate(FLIPS):
        assert torch.equal(planes[i], flip_planes(unflipped[i], flips, BAYER))
        assert torch.equal(target[i], flip_image(batch.long[i].float() / 65535, flips, BAYER))


def test_the_ratio_is_a_constant_plane_after_those_of_the_sensor(make_batch: Callable[..., Batch]):
    ratio = torch.tensor([1.0, 2, 16, 100, 250, 300, 1000, 100_000])
    batch = replace(make_batch(8, 6), flips=torch.tensor(FLIPS), ratio=ratio)
    planes, target = training_pair(batch, replace(TONE, input_ratio=True))
    without, same_target = training_pair(batch, TONE)
    assert planes.shape == (8, 5, 6, 6) and torch.equal(target, same_target)
    assert torch.equal(planes[:, :4], without)
    for plane, value in zip(planes[:, 4], ratio.tolist(), strict=True):
        torch.testing.assert_close(plane, torch.full((6, 6), math.log2(value) / 8))


@pytest.mark.parametrize("flips", FLIPS, ids=str)
def test_a_half_resolution_target_is_the_mean_of_four_pixels(flips: tuple[bool, bool, bool], make_batch):
    batch = replace(make_batch(1, 5), flips=torch.tensor([flips]))
    random = np.random.default_rng(0)
    long = random.integers(0, 65536, batch.long.shape, dtype=np.uint16)
    _, target = training_pair(replace(batch, long=torch.from_numpy(long)), HALF)
    full = flip_mosaic(long[0].astype(np.float64) / 65535, *flips)
    expected = full.reshape(3, 5, 2, 5, 2).mean(axis=(2, 4))
    assert target.shape == (1, 3, 5, 5) and target.dtype == torch.float32
    np.testing.assert_allclose(target[0].numpy(), expected, atol=2e-7)


def test_a_batch_keeps_pixels_as_16_bit_integers():
    random = np.random.default_rng(0)
    columns = {
        "sample": np.array([7, 8]),
        "pair": np.array(["a", "b"], dtype=object),
        "short": random.integers(0, 65536, (2, 4, 3, 3), dtype=np.uint16),
        "long": random.integers(0, 65536, (2, 3, 6, 6), dtype=np.uint16),
        "black": np.full((2, 4, 1, 1), 512, np.float32),
        "white": np.full(2, 16383, np.float32),
        "white_balance": np.ones((2, 3), np.float32),
        "srgb_from_camera": np.ones((2, 3, 3), np.float32),
        "ratio": np.array([100, 300], np.float32),
        "flips": np.array([[True, False, True], [False, False, True]]),
    }
    for column in columns.values():
        column.flags.writeable = False  # as Ray returns them
    batch = Batch.from_columns(columns, torch.device("cpu"))
    assert (batch.sample, batch.pair) == ([7, 8], ["a", "b"])
    assert batch.short.dtype == batch.long.dtype == torch.uint16
    for name in ("short", "long", "black", "white", "white_balance", "srgb_from_camera", "ratio", "flips"):
        np.testing.assert_array_equal(getattr(batch, name).numpy(), columns[name])
