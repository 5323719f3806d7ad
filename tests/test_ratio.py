"""The estimated amplification ratio of synthetic frames and of held-out photographs."""

import tracemalloc
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_dng import XTRANS, make_frame

from lsid_ray.data.catalog import read_catalog
from lsid_ray.errors import InputError
from lsid_ray.raw.frame import RawFrame, read_raw
from lsid_ray.raw.mosaic import BAYER_PHASES, MAX_RATIO, black_mosaic
from lsid_ray.raw.ratio import estimate_ratio, exposure_ratio
from lsid_ray.synthesis.noise import short_exposure

BALANCE = (2.0, 1.0, 1.6)


def scene(size: int = 192) -> np.ndarray:
    """(size, size) light in [0, 0.9], constant within blocks of 6x6 sensels: a gradient from black to bright."""
    y, x = np.mgrid[: size // 6, : size // 6] / (size // 6 - 1)
    return np.kron(0.9 * (x * y) ** 1.5, np.ones((6, 6)))


def expose(
    light: np.ndarray, ratio: float, cfa: str = "RGGB", black: float = 512.0, white: float = 16383.0, balance=BALANCE
) -> RawFrame:
    """A noise-free frame of neutral light at 1/ratio of its exposure time."""
    period = 2 if len(cfa) == 4 else 6
    gains = np.array([balance["RGB".index(letter)] for letter in cfa]).reshape(period, period)
    tiled = np.tile(gains, [-(-side // period) for side in light.shape])[: light.shape[0], : light.shape[1]]
    mosaic = np.rint(black + light / tiled / ratio * (white - black)).clip(0, white).astype(np.uint16)
    return make_frame(mosaic=mosaic, cfa=cfa, black=(black,) * len(cfa), white=white, white_balance=balance)


@pytest.mark.parametrize("ratio", [3, 20, 100])
def test_the_ratio_is_inversely_proportional_to_the_light(ratio: float):
    at_2 = estimate_ratio(expose(scene(), 2, white=65535.0))
    assert 2 < at_2 < 10
    darker = estimate_ratio(expose(scene(), 2 * ratio, white=65535.0))
    assert darker == pytest.approx(min(at_2 * ratio, MAX_RATIO), rel=0.02)  # DN are rounded


@pytest.mark.parametrize("cfa", [*BAYER_PHASES, XTRANS])
@pytest.mark.parametrize(("black", "white"), [(0.0, 4095.0), (512.0, 16383.0), (2056.0, 15000.0), (4096.0, 65535.0)])
def test_the_ratio_does_not_depend_on_the_cfa_or_the_levels(cfa: str, black: float, white: float):
    expected = estimate_ratio(expose(scene(), 10, black=0.0, white=65535.0))
    assert estimate_ratio(expose(scene(), 10, cfa, black, white)) == pytest.approx(expected, rel=0.01)


def test_the_ratio_does_not_depend_on_the_white_balance():
    expected = estimate_ratio(expose(scene(), 20, white=65535.0))
    for balance in [(1.0, 1.0, 1.0), (1.3, 1.0, 3.4), (0.5, 1.0, 2.0)]:
        assert estimate_ratio(expose(scene(), 20, white=65535.0, balance=balance)) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("cfa", ["GBRG", XTRANS])
def test_the_black_level_of_each_cfa_position_is_subtracted(cfa: str):
    frame = expose(scene(), 50, cfa)
    black = tuple(np.random.default_rng(0).integers(0, 900, len(cfa)).astype(float))
    shifted = frame.mosaic - 512.0 + black_mosaic(black, 192, 192)
    with_black = replace(frame, mosaic=shifted.astype(np.uint16), black=black)
    # White does not change, so the range of each position differs by a few percent.
    assert estimate_ratio(with_black) == pytest.approx(estimate_ratio(frame), rel=0.06)


def test_a_rotated_or_mirrored_frame_has_the_same_ratio():
    expected = estimate_ratio(expose(scene(), 20))
    for light in (scene()[::-1], scene()[:, ::-1], scene().T, np.rot90(scene(), 3)):
        assert estimate_ratio(expose(light, 20)) == pytest.approx(expected, rel=1e-9)
    for orientation in (3, 5, 6):
        assert estimate_ratio(replace(expose(scene(), 20), orientation=orientation)) == expected


def test_the_ratio_does_not_depend_on_the_resolution():
    large = np.kron(scene(), np.ones((3, 3)))
    assert estimate_ratio(expose(large, 20)) == pytest.approx(estimate_ratio(expose(scene(), 20)), rel=1e-9)


@pytest.mark.parametrize(("area", "factor"), [(0.01, 1.05), (0.06, 2.0)])
def test_a_light_source_far_above_white_has_limited_influence(area: float, factor: float):
    light = scene()
    expected = estimate_ratio(expose(light, 100))
    side = round(192 * area**0.5)
    light[:side, :side] = 30
    assert expected / factor / 1.05 < estimate_ratio(expose(light, 100)) <= expected * 1.001


# Stops: slightly above the worst of 16 seeds. At ISO 25600 the black-level error of 3 DN is the main cause.
@pytest.mark.parametrize(
    ("iso", "ratio", "stops"),
    [(800, 100, 0.2), (800, 300, 0.3), (3200, 100, 0.15), (3200, 300, 0.4), (25600, 100, 0.6), (25600, 300, 1.2)],
)
def test_noise_changes_the_ratio_only_a_little(iso: int, ratio: float, stops: float):
    light = scene() ** 0.75
    long = expose(light, 1)
    mosaic = short_exposure(long.mosaic, long.black, long.white, ratio, iso, np.random.default_rng(0))
    clean = estimate_ratio(expose(light, ratio, white=65535.0))
    assert abs(np.log2(estimate_ratio(replace(long, mosaic=mosaic)) / clean)) < stops


@pytest.mark.parametrize("level", [0, 511, 512])
@pytest.mark.parametrize("size", [(1, 1), (22, 22), (100, 130)])
def test_a_black_frame_has_the_maximum_ratio(size: tuple[int, int], level: int):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert estimate_ratio(make_frame(mosaic=np.full(size, level, np.uint16))) == MAX_RATIO


@pytest.mark.parametrize("cfa", ["BGGR", XTRANS])
def test_a_bright_frame_has_ratio_1(cfa: str):
    assert estimate_ratio(expose(scene() ** 0.3, 1, cfa)) == 1
    assert estimate_ratio(make_frame(mosaic=np.full((50, 50), 16383, np.uint16))) == 1


@pytest.mark.parametrize("cfa", [*BAYER_PHASES, XTRANS])
@pytest.mark.parametrize("size", [(1, 2), (2, 1), (2, 2), (5, 7), (22, 22), (23, 67)])
def test_the_ratio_is_defined_for_tiny_frames(cfa: str, size: tuple[int, int]):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        estimates = [estimate_ratio(expose(np.full(size, 0.2), ratio, cfa, white=65535.0)) for ratio in (20, 60)]
    assert all(1 < estimate < MAX_RATIO for estimate in estimates)
    assert estimates[1] == pytest.approx(3 * estimates[0], rel=0.01)


def test_a_large_frame_needs_little_memory_and_does_not_overflow():
    large, small = (make_frame(mosaic=np.full(size, 1500, np.uint16)) for size in [(3000, 2000), (64, 64)])
    tracemalloc.start()
    estimate = estimate_ratio(large)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert estimate == pytest.approx(estimate_ratio(small), rel=1e-9)
    assert 1 < estimate < 2
    assert peak < 0.1 * large.mosaic.nbytes


def test_held_out_photographs_are_within_a_factor_of_three(data_root: Path):
    pairs = read_catalog(data_root).pairs
    stops = np.log2([estimate_ratio(read_raw(pair.short)) / pair.ratio for pair in pairs])
    assert np.abs(stops).max() < np.log2(3)
    assert np.median(np.abs(stops)) < 1
    assert all(estimate_ratio(read_raw(pair.long)) < 3 for pair in pairs)


@pytest.mark.parametrize(
    ("short", "long", "ratio"),
    [
        ((1 / 30, 3200, 2.8), (10, 100, 2.8), 9.375),
        ((1, 100, 4.0), (0.5, 3200, 4.0), 16),
        ((1 / 30, 100, 16.0), (1, 100, 2.0), 300),  # 1920
        ((0.1, 200, None), (10, 200, 8.0), 100),
        ((0.1, None, 8.0), (10, 200, 8.0), 100),
    ],
)
def test_the_ratio_of_two_exposures_counts_iso_and_aperture(short: tuple, long: tuple, ratio: float) -> None:
    frames = [make_frame(exposure_s=s, iso=iso, aperture=aperture) for s, iso, aperture in (short, long)]
    assert exposure_ratio(*frames) == pytest.approx(ratio)


def test_a_long_exposure_that_is_darker_is_refused_with_its_settings() -> None:
    short, long = (
        make_frame(exposure_s=0.1, iso=3200.0, aperture=2.8),
        make_frame(exposure_s=1.0, iso=100.0, aperture=2.8),
    )
    with pytest.raises(
        InputError, match=r"^1 s, ISO 100.0, f/2.8 \(long\) and 0.1 s, ISO 3200.0, f/2.8 \(short\): exp"
    ):
        exposure_ratio(short, long)
