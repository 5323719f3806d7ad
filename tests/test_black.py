"""Black levels, white balance and pages of DNGs, against a literal reading of the tags that the test wrote."""

import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import tifffile
from test_cameras import expose as expose_scene
from test_cameras import make_camera, scene

from lsid_ray.errors import InputError
from lsid_ray.raw import dng
from lsid_ray.raw.dng import write_dng
from lsid_ray.raw.frame import RawFrame, read_raw
from lsid_ray.raw.mosaic import XTRANS, black_mosaic, pack
from lsid_ray.raw.ratio import estimate_ratio
from lsid_ray.raw.render import plain_rendering, read_and_render

HEIGHT, WIDTH = 60, 72
ACTIVE_AREA, REPEAT_DIM, BLACK_LEVEL, DELTA_H, DELTA_V, NEUTRAL, SCALE = 50829, 50713, 50714, 50715, 50716, 50728, 50718
RATIONAL, SRATIONAL = dng._RATIONAL, dng._SRATIONAL
Tag = tuple[int, int, list[int]]
Put = Callable[..., Path]


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Put:
    """put(frame, tags, without): a DNG of a frame, with tags added or replaced, and others left out."""
    original = dng._main_tags

    def write(frame: RawFrame, tags: list[Tag] = (), without: tuple[int, ...] = ()) -> Path:
        gone = {tag[0] for tag in tags} | set(without)
        kept = lambda *arguments: [tag for tag in original(*arguments) if tag[0] not in gone]  # noqa: E731
        monkeypatch.setattr(dng, "_main_tags", lambda *arguments: sorted([*kept(*arguments), *tags]))
        write_dng(tmp_path / "a.dng", frame)
        monkeypatch.setattr(dng, "_main_tags", original)
        return tmp_path / "a.dng"

    return write


def rationals(values: list[Fraction]) -> list[int]:
    return [part for value in values for part in (value.numerator, value.denominator)]


def literal_black(y: int, x: int, levels: list[Fraction], repeat: tuple[int, int], deltas: dict) -> Fraction:
    """DNG 1.4's black level of the sensel at (y, x) of the active area."""
    level = levels[(y % repeat[0]) * repeat[1] + x % repeat[1]]
    return level + deltas[DELTA_V][y] + deltas[DELTA_H][x]


@pytest.mark.parametrize("seed", range(40))
def test_black_levels_are_those_of_the_tags(seed: int, put: Put) -> None:
    random = np.random.default_rng(seed)
    cfa = str(random.choice(["RGGB", "GBRG", XTRANS.pattern]))
    repeat = tuple(map(int, random.choice([[1, 1], [2, 2], [4, 4], [6, 6], [2, 4], [8, 1]])))
    levels = [Fraction(int(random.integers(4000, 6000)), 8) for _ in range(repeat[0] * repeat[1])]
    top, left = map(int, random.integers(0, 15, 2))
    height, width = HEIGHT - top, WIDTH - left
    none = {DELTA_V: [Fraction(0)] * height, DELTA_H: [Fraction(0)] * width}
    deltas = dict(none)
    for code in (DELTA_V, DELTA_H):
        if random.random() < 0.4:
            deltas[code] = [Fraction(int(random.integers(-200, 200)), 4) for _ in none[code]]
    exact = [[literal_black(y, x, levels, repeat, deltas) for x in range(width)] for y in range(height)]
    exact = np.array(exact, np.float64)
    mosaic = np.full((HEIGHT, WIDTH), 9999, np.uint16)
    mosaic[top:, left:] = exact.round() + 1000  # the same light everywhere
    camera = make_camera(cfa, mosaic=mosaic)
    tags = [
        (ACTIVE_AREA, dng._LONG, [top, left, HEIGHT, WIDTH]),
        (REPEAT_DIM, dng._SHORT, list(repeat)),
        (BLACK_LEVEL, RATIONAL, rationals(levels)),
        *((code, SRATIONAL, rationals(values)) for code, values in deltas.items() if values != none[code]),
    ]
    frame = read_raw(put(camera, tags))
    y, x = HEIGHT - top - frame.height, WIDTH - left - frame.width  # LibRaw may drop a row and a column
    recorded = mosaic[top + y :, left + x :] - exact[y:, x:]
    light = frame.mosaic - black_mosaic(frame.black, frame.height, frame.width)
    depends_on_more = any(tag[0] in (DELTA_V, DELTA_H) for tag in tags) or any(
        len(cfa) ** 0.5 % side for side in repeat
    )
    assert np.abs(light - recorded).max() <= (0.51 if depends_on_more else 1e-3), "to rounding, if at all"


@pytest.mark.parametrize("seed", range(20))
def test_of_a_dng_the_default_crop_is_the_image(seed: int, put: Put) -> None:
    random = np.random.default_rng(seed)
    cfa = str(random.choice(["RGGB", "GBRG", XTRANS.pattern]))
    period = 2 if len(cfa) == 4 else 6
    black = tuple(float(level) for level in 500 + np.arange(len(cfa)))
    mosaic = random.integers(600, 9000, (HEIGHT, WIDTH)).astype(np.uint16)
    area = tuple(map(int, random.integers(0, 9, 2)))
    y, x = map(int, random.integers(1, 12, 2))
    height, width = int(random.integers(22, 36)), int(random.integers(22, 44))
    numbers = [(x, y), (width, height)]
    if seed % 2:  # fractions: what lies wholly inside
        numbers = [(Fraction(2 * x - 1, 2), Fraction(3 * y - 1, 3)), (Fraction(2 * width + 1, 2), height + 1)]
    tags = [
        (ACTIVE_AREA, dng._LONG, [*area, HEIGHT, WIDTH]),
        *(
            (code, RATIONAL, rationals(list(map(Fraction, pair))))
            for code, pair in zip((50719, 50720), numbers, strict=True)
        ),
    ]
    path = put(make_camera(cfa, mosaic=mosaic, black=black), tags)
    frame = read_raw(path)
    top, left = area[0] + y, area[1] + x
    np.testing.assert_array_equal(frame.mosaic, mosaic[top : top + height, left : left + width])
    order = [(y + i) % period * period + (x + j) % period for i, j in np.ndindex(period, period)]  # of the active area
    assert frame.cfa == "".join(cfa[i] for i in order) and frame.black == tuple(black[i] for i in order)
    if period == 2:  # LibRaw renders no X-Trans that small
        np.testing.assert_array_equal(read_and_render(path)[1], plain_rendering(frame, 1.0))


def test_a_number_of_black_levels_that_fits_no_pattern_is_refused(put: Put) -> None:
    camera = make_camera("RGGB", mosaic=np.full((HEIGHT, WIDTH), 600, np.uint16))
    tags = [(REPEAT_DIM, dng._SHORT, [2, 2]), (BLACK_LEVEL, dng._SHORT, [512, 512, 512])]
    with pytest.raises(InputError, match=r"3 black levels for a pattern of 2x2: expected 4"):
        read_raw(put(camera, tags))
    assert (
        read_raw(put(camera, [(REPEAT_DIM, dng._SHORT, [2, 2]), (BLACK_LEVEL, dng._SHORT, [500])])).black == (500,) * 4
    )


@pytest.mark.parametrize("cfa", ["RGGB", XTRANS.pattern], ids=["bayer", "xtrans"])
def test_a_fraction_of_a_black_level_counts(cfa: str, put: Put) -> None:
    level = Fraction(639, 10)
    camera = make_camera(cfa, white=1023.0, black=(float(level),) * len(cfa))
    tags = [(REPEAT_DIM, dng._SHORT, [1, 1]), (BLACK_LEVEL, RATIONAL, rationals([level]))]
    dithered = np.random.default_rng(0)

    def recorded(rgb: np.ndarray, ratio: float) -> RawFrame:
        frame = expose_scene(rgb, camera)
        light = (frame.mosaic - 63.9) / ratio + 63.9
        frame = make_camera(cfa, white=1023.0, black=(63.0,) * len(cfa))
        return type(frame)(
            **{**vars(frame), "mosaic": np.floor(light + dithered.random(light.shape)).astype(np.uint16)}
        )

    rgb = scene(5, 516, 516)
    short = read_raw(put(recorded(rgb, 300.0), tags))
    assert short.black == (63.9,) * len(cfa)
    assert 150 < estimate_ratio(short) <= 300, "with 63 it would be 82"
    long, rendering = read_and_render(put(recorded(rgb, 1.0), tags))
    assert np.array_equal(rendering, plain_rendering(long, 1.0)), "both renderings of a frame are the same"
    assert abs(plain_rendering(short, 300.0).mean() / rendering.mean() - 1) < 0.15


def test_without_a_white_balance_short_and_long_have_the_same_one(put: Put) -> None:
    camera = make_camera("RGGB")
    red = np.full((96, 120, 3), (0.5, 0.05, 0.05))
    long, rendering = read_and_render(put(expose_scene(red, camera), without=(NEUTRAL,)))
    assert np.array_equal(rendering, plain_rendering(long, 1.0))
    r, g, b = rendering[10:-10, 10:-10].reshape(-1, 3).mean(0)
    assert r > 2 * g and r > 2 * b, "LibRaw alone would make the scene gray"


def test_a_larger_page_beside_the_raw_one_is_not_looked_at(put: Put, tmp_path: Path) -> None:
    path = put(make_camera("RGGB", mosaic=np.full((HEIGHT, WIDTH), 600, np.uint16)))
    expected = read_raw(path).mosaic.copy()
    tifffile.imwrite(path, np.zeros((200, 300), np.float32), append=True, metadata=None)  # like a depth map
    np.testing.assert_array_equal(read_raw(path).mosaic, expected)


def test_files_that_are_no_mosaic_of_square_pixels_are_refused_for_what_they_are(put: Put) -> None:
    camera = make_camera("RGGB", mosaic=np.full((HEIGHT, WIDTH), 600, np.uint16))
    with pytest.raises(InputError, match=r"its pixels are 2 times as wide as high; expected square ones"):
        read_raw(put(camera, [(SCALE, RATIONAL, [2, 1, 1, 1])]))
    with pytest.raises(InputError, match=r"a\.dng: monochrome; expected a color filter array"):
        read_raw(put(camera, [(262, dng._SHORT, [34892])], without=(33421, 33422, 50710, 50711)))
    half = np.full((HEIGHT, WIDTH), 600, np.uint16)
    half[HEIGHT // 2 :] = 0
    with pytest.raises(InputError, match=r"50% of its sensels are 0, far below the black level of 512; .* is missing"):
        read_raw(put(make_camera("RGGB", mosaic=half)))


def test_a_camera_is_named_by_what_its_file_has(put: Put) -> None:
    camera = make_camera("RGGB", mosaic=np.full((HEIGHT, WIDTH), 600, np.uint16), camera="Acme One")
    assert read_raw(put(camera, without=(271, 272))).camera == "Acme One", "UniqueCameraModel"


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_a_file_with_damaged_tags_is_read_or_refused(first: int, put: Put) -> None:
    """Also what is done with what is read. 2,000 more were tried."""
    path = put(expose_scene(scene(1, 48, 64), make_camera("RGGB")))
    good = path.read_bytes()
    (count,) = struct.unpack_from("<H", good, 8)
    refused = 0
    for seed in range(first, first + 50):
        random, damaged = np.random.default_rng(seed), bytearray(good)
        for _ in range(2):
            entry = 10 + 12 * int(random.integers(count))
            match int(random.integers(3)):
                case 0:
                    struct.pack_into("<H", damaged, entry + 2, int(random.integers(0, 14)))  # type
                case 1:
                    struct.pack_into("<I", damaged, entry + 8, int(random.choice([0, 1, 255, 65535, 2**32 - 1])))
                case 2:
                    struct.pack_into(
                        "<H", damaged, entry, int(random.choice([ACTIVE_AREA, BLACK_LEVEL, DELTA_H, SCALE]))
                    )
        path.write_bytes(damaged)
        try:
            frame = read_raw(path)
            assert np.isfinite(estimate_ratio(frame)) and pack(frame.mosaic, frame.cfa).any()
            plain_rendering(frame, 10.0)
            read_and_render(path)
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
    assert 0 < refused < 50
