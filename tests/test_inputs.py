"""Inputs and targets against slow loops and against packing a mosaic that was flipped itself."""

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from lsid_ray import config
from lsid_ray.model.inputs import Batch, flip_image, flip_planes, network_input, training_pair
from lsid_ray.raw.mosaic import pack

FLIPS = list(itertools.product([False, True], repeat=3))
BALANCED = config.Generator(white_balance=True)
PLAIN = config.Generator(white_balance=False)
HALF = config.Generator(white_balance=False, output="half")


def input_slowly(short, black, white, white_balance, ratio, balanced: bool) -> np.ndarray:
    """Value by value, in double precision."""
    result = np.zeros(short.shape)
    for b, plane, y, x in np.ndindex(*short.shape):
        light = max(float(short[b, plane, y, x]) - black[b, plane], 0.0) / (white[b] - max(black[b]))
        if balanced:
            light *= white_balance[b, {0: 0, 1: 1, 2: 2, 3: 1}[plane]]
        result[b, plane, y, x] = min(light * ratio[b], 1.0)
    return result


@pytest.mark.parametrize("c", [PLAIN, BALANCED], ids=["plain", "white balance"])
def test_the_input_equals_a_slow_loop(c: config.Generator):
    random = np.random.default_rng(0)
    short = random.integers(0, 700, (3, 4, 5, 6)).astype(np.uint16)
    short[0, :, 0, 0] = 16383
    short[1, :, 0, 0] = 65535
    black = np.array([[512.0] * 4, [100, 101, 102, 103], [0] * 4])
    white = np.array([16383.0, 4095, 60000])
    white_balance = np.array([[2.1, 1, 1.6], [1.2, 1, 3.0], [0.9, 1, 1.1]])
    ratio = np.array([100.0, 1, 300])
    expected = input_slowly(short, black, white, white_balance, ratio, c.white_balance)
    others = (torch.from_numpy(v.astype(np.float32)) for v in (black, white, white_balance, ratio))
    planes = network_input(torch.from_numpy(short), *others, c)
    assert planes.dtype == torch.float32
    assert (expected == 0).any() and (expected == 1).any()
    np.testing.assert_allclose(planes.numpy(), expected, rtol=1e-5, atol=1e-7)


def test_the_input_of_the_sony_is_the_papers():
    short = torch.tensor([512, 500, 700, 16383], dtype=torch.uint16).reshape(1, 4, 1, 1)
    black, white = torch.full((1, 4), 512.0), torch.tensor([16383.0])
    planes = network_input(short, black, white, torch.ones(1, 3), torch.tensor([10.0]), PLAIN)
    expected = [0, 0, 10 * (700 - 512) / (16383 - 512), 1]
    assert planes.flatten().tolist() == pytest.approx(expected)


def test_counts_above_32767_survive(make_batch: Callable[..., Batch]):
    counts = [0, 32767, 32768, 40000, 65535]
    batch = make_batch(1, 4)
    short, long = torch.zeros(1, 4, 5, 5).to(torch.uint16), torch.zeros(1, 3, 10, 10).to(torch.uint16)
    short[0, 0, 0], long[0, 0, 0, :5] = (torch.tensor(counts).to(torch.uint16) for _ in range(2))
    batch = replace(
        batch,
        short=short,
        long=long,
        black=torch.zeros(1, 4),
        white=torch.tensor([65535.0]),
        ratio=torch.ones(1),
        flips=torch.zeros(1, 3, dtype=torch.bool),
    )
    planes = network_input(batch.short, batch.black, batch.white, batch.white_balance, batch.ratio, PLAIN)
    np.testing.assert_allclose(planes[0, 0, 0].numpy() * 65535, counts, rtol=1e-6)
    _, target = training_pair(batch, PLAIN)
    np.testing.assert_allclose(target[0, 0, 0, :5].numpy() * 65535, counts, rtol=1e-6)


def flip_mosaic(mosaic: np.ndarray, rows: bool, columns: bool, transpose: bool) -> np.ndarray:
    """(..., 2s+2, 2s+2) -> (..., 2s, 2s): the window of the flipped mosaic that starts at R again."""
    side = mosaic.shape[-1] - 2
    if rows:
        mosaic = mosaic[..., ::-1, :][..., 1:, :]
    if columns:
        mosaic = mosaic[..., ::-1][..., 1:]
    mosaic = mosaic[..., :side, :side]
    return mosaic.swapaxes(-1, -2) if transpose else mosaic


@pytest.mark.parametrize("flips", FLIPS, ids=str)
def test_flipping_planes_equals_packing_the_flipped_mosaic(flips: tuple[bool, bool, bool]):
    mosaic = np.arange(14 * 14, dtype=np.int32).reshape(14, 14)
    flipped = flip_planes(torch.from_numpy(pack(mosaic, "RGGB")), *flips)
    assert flipped.shape == (4, 6, 6)
    np.testing.assert_array_equal(flipped.numpy(), pack(flip_mosaic(mosaic, *flips), "RGGB"))


@pytest.mark.parametrize("flips", FLIPS, ids=str)
def test_a_flip_keeps_the_colour_of_every_plane(flips: tuple[bool, bool, bool]):
    mosaic = np.tile(np.array([[ord("R"), ord("G")], [ord("G"), ord("B")]], np.int32), (7, 7))
    for plane, color in zip(flip_planes(torch.from_numpy(pack(mosaic, "RGGB")), *flips), "RGBG", strict=True):
        assert (plane == ord(color)).all()


@pytest.mark.parametrize("flips", FLIPS, ids=str)
def test_flipped_planes_lie_on_the_flipped_image(flips: tuple[bool, bool, bool]):
    place = np.arange(14 * 14, dtype=np.int32).reshape(14, 14)
    image = flip_image(torch.from_numpy(np.stack([place] * 3)), *flips)
    assert image.shape == (3, 12, 12)
    np.testing.assert_array_equal(image[0].numpy(), flip_mosaic(place, *flips))
    planes = flip_planes(torch.from_numpy(pack(place, "RGGB")), *flips)
    np.testing.assert_array_equal(pack(image[1].numpy(), "RGGB"), planes.numpy())


def test_the_eight_flips_differ():
    planes = torch.from_numpy(pack(np.arange(14 * 14, dtype=np.int32).reshape(14, 14), "RGGB"))
    assert len({tuple(flip_planes(planes, *flips).flatten().tolist()) for flips in FLIPS}) == 8


def test_each_sample_of_a_batch_is_flipped_by_itself(make_batch: Callable[..., Batch]):
    batch = replace(make_batch(8, 6), flips=torch.tensor(FLIPS))
    planes, target = training_pair(batch, BALANCED)
    assert planes.shape == (8, 4, 6, 6) and target.shape == (8, 3, 12, 12)
    unflipped = network_input(batch.short, batch.black, batch.white, batch.white_balance, batch.ratio, BALANCED)
    for i, flips in enumerate(FLIPS):
        assert torch.equal(planes[i], flip_planes(unflipped[i], *flips))
        assert torch.equal(target[i], flip_image(batch.long[i].float() / 65535, *flips))


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


def test_a_batch_keeps_its_columns_sixteen_bits_wide():
    random = np.random.default_rng(0)
    columns = {
        "number": np.array([7, 8]),
        "name": np.array(["a", "b"], dtype=object),
        "short": random.integers(0, 65536, (2, 4, 3, 3), dtype=np.uint16),
        "long": random.integers(0, 65536, (2, 3, 6, 6), dtype=np.uint16),
        "black": np.full((2, 4), 512, np.float32),
        "white": np.full(2, 16383, np.float32),
        "white_balance": np.ones((2, 3), np.float32),
        "ratio": np.array([100, 300], np.float32),
        "flips": np.array([[True, False, True], [False, False, True]]),
    }
    for column in columns.values():
        column.flags.writeable = False  # as Ray hands them out
    batch = Batch.of(columns, torch.device("cpu"))
    assert (batch.numbers, batch.names) == ([7, 8], ["a", "b"])
    assert batch.short.dtype == batch.long.dtype == torch.uint16
    for name in ("short", "long", "black", "white", "white_balance", "ratio", "flips"):
        np.testing.assert_array_equal(getattr(batch, name).numpy(), columns[name])
