"""DNGs of all kinds against a slow, literal reading of the specification (DNG 1.4.0.0), by the tags written.

A draw has a byte order, a bit depth, strips or tiles or lossless JPEG, a linearization table, an active area, a default
crop, black levels of any pattern with deltas by row and column, a CFA of any phase, an orientation and a white balance.
"""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from dng_file import BYTE, LONG, RATIONAL, SHORT, SRATIONAL, Tags, text, write_dng_file

from lsid_ray.raw.color import A7S2_COLOR_MATRIX
from lsid_ray.raw.frame import RawFrame, read_raw
from lsid_ray.raw.mosaic import XTRANS, black_mosaic
from lsid_ray.raw.render import plain_rendering, read_and_render, upright

ORIENTATION, CFA_DIM, CFA_PATTERN, TABLE = 274, 33421, 33422, 50712
REPEAT_DIM, BLACK, DELTA_H, DELTA_V, WHITE, SCALE = 50713, 50714, 50715, 50716, 50717, 50718
CROP_ORIGIN, CROP_SIZE, NEUTRAL, ACTIVE_AREA = 50719, 50720, 50728, 50829
HEIGHT, WIDTH = 64, 78
BAYER = ("RGGB", "GRBG", "GBRG", "BGGR")
XTRANS_PHASES = [
    "".join(np.roll(np.array(list(XTRANS.pattern)).reshape(6, 6), shift, (0, 1)).flat) for shift in np.ndindex(6, 6)
]
EXIF: Tags = {33434: (RATIONAL, [1, 30]), 34855: (SHORT, [800]), 33437: (RATIONAL, [28, 10])}


def fractions(values: list[Fraction]) -> list[int]:
    return [part for value in map(Fraction, values) for part in (value.numerator, value.denominator)]


def camera_tags(cfa: str, white: int) -> Tags:
    period = 2 if len(cfa) == 4 else 6
    matrix = [Fraction(str(value)) for row in A7S2_COLOR_MATRIX for value in row]
    return {
        CFA_DIM: (SHORT, [period, period]),
        CFA_PATTERN: (BYTE, ["RGB".index(letter) for letter in cfa]),
        WHITE: (LONG, [white]),
        NEUTRAL: (RATIONAL, [1, 2, 1, 1, 5, 8]),
        50708: text("Acme One"),
        50721: (SRATIONAL, fractions(matrix)),
        50778: (SHORT, [21]),
    }


@dataclass(frozen=True)
class Draw:
    """A DNG, and what its tags say."""

    stored: np.ndarray
    tags: Tags
    layout: dict
    linear: np.ndarray
    """What is stored, after the linearization table."""

    @property
    def area(self) -> tuple[int, int]:
        return tuple(self.tags[ACTIVE_AREA][1][:2]) if ACTIVE_AREA in self.tags else (0, 0)

    def number(self, code: int, index: int) -> Fraction:
        kind, numbers = self.tags[code]
        if kind in (RATIONAL, SRATIONAL):
            return Fraction(numbers[2 * index], numbers[2 * index + 1])
        return Fraction(numbers[index])

    def black(self, y: int, x: int) -> Fraction:
        """The level of the sensel at (y, x) of the active area."""
        rows, columns = self.tags[REPEAT_DIM][1] if REPEAT_DIM in self.tags else (1, 1)
        level = self.number(BLACK, y % rows * columns + x % columns) if BLACK in self.tags else Fraction(0)
        level += self.number(DELTA_V, y) if DELTA_V in self.tags else 0
        return level + (self.number(DELTA_H, x) if DELTA_H in self.tags else 0)

    def letter(self, y: int, x: int) -> str:
        rows, columns = self.tags[CFA_DIM][1]
        return "RGB"[self.tags[CFA_PATTERN][1][y % rows * columns + x % columns]]


def draw(seed: int, cfa: str | None = None, whole: bool = False) -> Draw:
    """whole: so that a sensel can hold its black level: without fractions, a table and negative levels."""
    random = np.random.default_rng(seed)
    cfa = cfa or str(random.choice(BAYER))
    bits = int(random.choice([10, 12, 14, 16]))
    bit_white = 2**bits - 1
    stored = random.integers(bit_white // 8, bit_white // 2, (HEIGHT, WIDTH)).astype(np.uint16)
    tags, linear, white = {}, stored, bit_white
    if random.random() < 0.3 and not whole:
        table = np.sort(random.integers(7000, 60000, min(bit_white // 2, 4096)))
        tags[TABLE] = (SHORT, table.tolist())
        linear, white = table[np.minimum(stored, table.size - 1)].astype(np.uint16), 60000
    tags |= {**camera_tags(cfa, white), ORIENTATION: (SHORT, [int(random.integers(1, 9))])}
    top = left = 0
    bottom, right = HEIGHT, WIDTH
    if random.random() < 0.7:
        top, left = map(int, random.integers(0, 14, 2))
        bottom, right = HEIGHT - int(random.integers(0, 5)), WIDTH - int(random.integers(0, 5))
        tags[ACTIVE_AREA] = (LONG, [top, left, bottom, right])
    if random.random() < 0.7:
        y, x = map(int, random.integers(1, 9, 2))  # LibRaw may leave out the first row and column
        height, width = int(random.integers(24, bottom - top - y + 1)), int(random.integers(24, right - left - x + 1))
        tags[CROP_ORIGIN] = (RATIONAL, [x, 1, y, 1]) if random.random() < 0.5 else (SHORT, [x, y])
        tags[CROP_SIZE] = (LONG, [width, height])
    repeat = [int(side) for side in random.integers(1, 7, 2)]
    levels = [
        Fraction(int(random.integers(white // 50, white // 10)), 1 if whole else int(random.choice([1, 3, 8])))
        for _ in range(36)
    ]
    levels = levels[: repeat[0] * repeat[1]]
    if random.random() < 0.9:
        tags |= {REPEAT_DIM: (SHORT, repeat), BLACK: (RATIONAL, fractions(levels))}
        if random.random() < 0.3:
            tags[BLACK] = (LONG, [int(level) for level in levels])
    for code, count in ((DELTA_V, bottom - top), (DELTA_H, right - left)):
        if random.random() < 0.3:
            deltas = [
                Fraction(
                    int(random.integers(0 if whole else -white // 99, white // 99)),
                    1 if whole else int(random.choice([1, 4, 7])),
                )
                for _ in range(count)
            ]
            tags[code] = (SRATIONAL, fractions(deltas))
    layout = {"order": str(random.choice(["<", ">"])), "bits": bits}
    if random.random() < 0.6:
        layout |= [{"tile": 16}, {"tile": 48}, {"strip": 7}, {"strip": 30}][int(random.integers(4))]
    if bits == 16 and "strip" not in layout and random.random() < 0.5:
        layout["lossless_jpeg"] = True
    return Draw(stored, tags, layout, linear)


def write(path: Path, drawn: Draw) -> Path:
    return write_dng_file(path, drawn.stored, drawn.tags, EXIF, **drawn.layout)


def corner(drawn: Draw, frame: RawFrame) -> tuple[int, int]:
    """Row and column of the active area at which a frame must begin."""
    if CROP_SIZE in drawn.tags:
        return int(drawn.number(CROP_ORIGIN, 1)), int(drawn.number(CROP_ORIGIN, 0))
    area = drawn.tags[ACTIVE_AREA][1] if ACTIVE_AREA in drawn.tags else [0, 0, HEIGHT, WIDTH]
    dropped = area[2] - area[0] - frame.height, area[3] - area[1] - frame.width
    assert set(dropped) <= {0, 1}, "LibRaw may leave out the first row and column"
    return dropped


def assert_read_as_specified(drawn: Draw, path: Path) -> RawFrame:
    frame = read_raw(path)
    y, x = corner(drawn, frame)
    if CROP_SIZE in drawn.tags:
        assert frame.mosaic.shape == (drawn.number(CROP_SIZE, 1), drawn.number(CROP_SIZE, 0))
    period = 2 if len(frame.cfa) == 4 else 6
    assert frame.cfa == "".join(drawn.letter(y + i, x + j) for i, j in np.ndindex(period, period))
    black = np.array([[float(drawn.black(y + i, x + j)) for j in range(frame.width)] for i in range(frame.height)])
    top, left = drawn.area[0] + y, drawn.area[1] + x
    recorded = drawn.linear[top : top + frame.height, left : left + frame.width] - black
    scale = frame.white / float(drawn.number(WHITE, 0))
    light = frame.mosaic - black_mosaic(frame.black, frame.height, frame.width)
    rows, columns = drawn.tags[REPEAT_DIM][1] if REPEAT_DIM in drawn.tags else (1, 1)
    by_position = not (period % rows or period % columns or DELTA_V in drawn.tags or DELTA_H in drawn.tags)
    assert np.abs(light / scale - recorded).max() <= (2e-3 if by_position else 0.51 / scale)
    assert scale == 1 or not by_position
    assert 300 * np.abs(light / scale - recorded).max() <= 0.011 * drawn.number(WHITE, 0), "once it is amplified"
    return frame


@pytest.mark.parametrize("seed", range(60))
def test_a_bayer_dng_is_read_as_its_tags_say(seed: int, tmp_path: Path) -> None:
    drawn = draw(seed)
    frame = assert_read_as_specified(drawn, write(tmp_path / "a.dng", drawn))
    assert np.allclose(frame.white_balance, (2, 1, 1.6))
    assert (frame.iso, frame.aperture, frame.camera) == (800, 2.8, "Acme One")
    _, reference = read_and_render(tmp_path / "a.dng")
    np.testing.assert_array_equal(reference, plain_rendering(frame, 1.0))
    exif = drawn.tags[ORIENTATION][1][0]
    shape = frame.mosaic.shape if exif < 5 else frame.mosaic.shape[::-1]
    assert upright(reference, frame.orientation).shape[:2] == shape


@pytest.mark.parametrize("phase", range(36))
def test_an_xtrans_dng_is_read_as_its_tags_say_at_every_phase(phase: int, tmp_path: Path) -> None:
    drawn = draw(1000 + phase, XTRANS_PHASES[phase])
    assert_read_as_specified(drawn, write(tmp_path / "a.dng", drawn))


@pytest.mark.parametrize("seed", range(20))
def test_a_frame_of_nothing_but_black_is_0_everywhere(seed: int, tmp_path: Path) -> None:
    drawn = draw(2000 + seed, whole=True)
    area = drawn.tags[ACTIVE_AREA][1] if ACTIVE_AREA in drawn.tags else [0, 0, HEIGHT, WIDTH]
    for y, x in np.ndindex(area[2] - area[0], area[3] - area[1]):
        drawn.stored[area[0] + y, area[1] + x] = drawn.black(y, x)
    frame, reference = read_and_render(write(tmp_path / "a.dng", drawn))
    assert not (frame.mosaic - black_mosaic(frame.black, frame.height, frame.width)).any()
    assert not reference.any() and not plain_rendering(frame, 300.0).any()


@pytest.mark.parametrize("code", range(1, 9))
def test_an_image_is_turned_as_its_orientation_says(code: int, tmp_path: Path) -> None:
    """TIFF 6.0: where the row 0 and the column 0 of what is stored are seen."""
    random = np.random.default_rng(code)
    y, x = 3, 5
    tags = {**camera_tags("GBRG", 16383), ORIENTATION: (SHORT, [code]), ACTIVE_AREA: (LONG, [1, 3, 60, 70])}
    tags |= {CROP_ORIGIN: (SHORT, [x, y]), CROP_SIZE: (SHORT, [41, 37])}
    write_dng_file(tmp_path / "a.dng", random.integers(600, 9000, (HEIGHT, WIDTH)).astype(np.uint16), tags)
    frame = read_raw(tmp_path / "a.dng")
    numbers = np.arange(37 * 41).reshape(37, 41)
    turned = upright(numbers, frame.orientation)
    seen = {  # corner of the image seen at the top left, and at the top right
        1: ((0, 0), (0, -1)), 2: ((0, -1), (0, 0)), 3: ((-1, -1), (-1, 0)), 4: ((-1, 0), (-1, -1)),
        5: ((0, 0), (-1, 0)), 6: ((-1, 0), (0, 0)), 7: ((-1, -1), (0, -1)), 8: ((0, -1), (-1, -1)),
    }  # fmt: skip
    assert (turned[0, 0], turned[0, -1]) == tuple(numbers[at] for at in seen[code])
