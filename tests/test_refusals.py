"""Raw files that cannot be read as what they are: each is refused in one line with the right reason."""

import zlib
from pathlib import Path

import dng_file
import numpy as np
import pytest
from dng_file import BYTE, FLOAT, LONG, RATIONAL, SHORT, SRATIONAL, Tags, write_dng_file
from test_dng_specification import BLACK, CFA_DIM, CFA_PATTERN, DELTA_H, NEUTRAL, REPEAT_DIM, SCALE, camera_tags

from lsid_ray.errors import InputError
from lsid_ray.raw.frame import read_raw
from lsid_ray.raw.mosaic import XTRANS
from lsid_ray.raw.render import plain_rendering, read_and_render

COMPRESSION, LAYOUT, PLANE_COLOR, WHITE_XY, MATRIX = 259, 50711, 50710, 50729, 50721
MOSAIC = np.random.default_rng(0).integers(600, 9000, (40, 48)).astype(np.uint16)


def matrix(*values: float) -> tuple[int, list[int]]:
    return SRATIONAL, [part for value in values for part in (round(value * 1000), 1000)]


def refused(path: Path, tags: Tags, without: tuple[int, ...] = (), **layout: object) -> str:
    kept = {code: value for code, value in camera_tags("RGGB", 16383).items() if code not in without}
    write_dng_file(path / "a.dng", MOSAIC, {**kept, **tags}, **layout)
    messages = set()
    for read in (read_raw, read_and_render):  # as a short and as a long exposure
        with pytest.raises(InputError) as caught:
            read(path / "a.dng")
        messages.add(str(caught.value))
    (message,) = messages
    assert message.startswith(f"{path / 'a.dng'}: ") and "\n" not in message
    return message.removeprefix(f"{path / 'a.dng'}: ")


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        *(({LAYOUT: (SHORT, [n])}, f"rows or columns (CFALayout {n}); expected a square grid") for n in range(2, 10)),
        ({SCALE: (RATIONAL, [1, 1, 2, 1])}, "its pixels are 0.5 times as wide as high; expected square ones"),
        ({CFA_PATTERN: (BYTE, [0, 0, 1, 2])}, "color filter array 'RRGB'; expected Bayer or X-Trans"),
        ({CFA_PATTERN: (BYTE, [1, 1, 0, 2])}, "color filter array 'GGRB'; expected Bayer or X-Trans"),
        ({CFA_PATTERN: (BYTE, [3, 1, 1, 4]), PLANE_COLOR: (BYTE, [3, 1, 4])}, "of other colors (CFAPattern [1, 3, 4])"),
        ({CFA_PATTERN: (BYTE, [0, 1, 6, 2]), PLANE_COLOR: (BYTE, [0, 1, 2, 6])}, "(CFAPattern [0, 1, 2, 6])"),
        (
            {CFA_DIM: (SHORT, [4, 4]), CFA_PATTERN: (BYTE, [0, 0, 1, 1] * 2 + [1, 1, 2, 2] * 2)},
            "color filter array 'RRGG'; expected Bayer or X-Trans",
        ),
        ({CFA_DIM: (SHORT, [6, 6]), CFA_PATTERN: (BYTE, ([0, 1] * 3 + [1, 2] * 3) * 3)}, "expected Bayer or X-Trans"),
        ({MATRIX: matrix(1, 0, 0, 1, 0, 0, 1, 0, 0)}, "its color matrix has no inverse, or its white point no color"),
        ({MATRIX: matrix(1, 2, 3, 4, 5, 6, 7, 8, 9)}, "its color matrix has no inverse"),
        ({MATRIX: (SRATIONAL, [1, 0] * 9)}, "its color matrix has no inverse"),
        ({MATRIX: matrix(9000, 0, 0, 0, 9000, 0, 0, 0, 9000)}, "its color matrix has the value 9e+03; expected values"),
        ({BLACK: (RATIONAL, [512, 0])}, "not all of its black levels are numbers"),
        ({BLACK: (SHORT, [512]), DELTA_H: (FLOAT, [float("nan")] * 48)}, "not all of its black levels are numbers"),
        ({BLACK: (SHORT, [512]), REPEAT_DIM: (SHORT, [0, 0])}, "its BlackLevelRepeatDim is (0, 0); expected two"),
        ({BLACK: (SHORT, [512]), REPEAT_DIM: (SHORT, [1, 1, 1])}, "its BlackLevelRepeatDim is (1, 1, 1); expected two"),
        ({BLACK: (SHORT, [512] * 4)}, "4 black levels for a pattern of 1x1: expected 1"),
        ({BLACK: (LONG, [20000])}, "black level 20000 and white level 16383; expected black below white"),
    ],
)  # fmt: skip
def test_a_mosaic_that_is_none_is_refused_for_what_it_is(tags: Tags, reason: str, tmp_path: Path) -> None:
    assert reason in refused(tmp_path, tags)


@pytest.mark.parametrize("xy", [[0, 1, 0, 1], [9, 1, 9, 1], [1, 0, 1, 0]], ids=str)
def test_a_white_point_that_is_no_color_is_refused(xy: list[int], tmp_path: Path) -> None:
    assert "or its white point no color" in refused(tmp_path, {WHITE_XY: (RATIONAL, xy)}, without=(NEUTRAL,))


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (9, "compressed with VC-5, as by GoPro; convert it"),
        (34713, "compressed by Nikon in a way that LibRaw cannot read (High Efficiency?); convert it"),
        (34892, "a lossy DNG; convert it"),
        (52546, "a DNG compressed with JPEG XL; convert it"),
        (12345, "compressed in a way that LibRaw does not know (TIFF's number 12345); convert it"),
    ],
)
def test_a_compression_that_libraw_lacks_is_called_by_its_name(code: int, reason: str, tmp_path: Path) -> None:
    assert refused(tmp_path, {COMPRESSION: (SHORT, [code])}).startswith(reason)


def test_deflated_integers_are_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = dng_file.pack_bits
    monkeypatch.setattr(dng_file, "pack_bits", lambda *arguments: zlib.compress(packed(*arguments)))
    assert "compressed with Deflate; convert it" in refused(tmp_path, {COMPRESSION: (SHORT, [8])}, tile=32)


def test_of_lossless_jpeg_in_strips_libraw_would_decode_the_first(tmp_path: Path) -> None:
    reason = refused(tmp_path, {}, lossless_jpeg=True, strip=10)
    assert reason.startswith("lossless JPEG in 4 strips, which LibRaw does not read; convert it")


def test_lossless_jpeg_that_is_none_is_called_damaged(tmp_path: Path) -> None:
    """LibRaw would give whatever the memory held."""
    reason = refused(tmp_path, {COMPRESSION: (SHORT, [7])})
    assert reason == "1 of the 1 parts of its image do not begin as lossless JPEG does; it is damaged"
    path = write_dng_file(tmp_path / "b.dng", MOSAIC, camera_tags("RGGB", 16383), lossless_jpeg=True, tile=16)
    np.testing.assert_array_equal(read_raw(path).mosaic, MOSAIC)
    content = path.read_bytes()
    path.write_bytes(content[:-900] + bytes(900))
    with pytest.raises(InputError, match=r"b\.dng: \d of the 9 parts of its image do not begin as lossless JPEG does"):
        read_raw(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"FUJIFILMCCD-RAW 0201" + bytes(5000), "a Fujifilm RAF that LibRaw cannot read; it is incomplete or damaged"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom" + bytes(5000), "a Canon CR3 that LibRaw cannot read"),
        (b"FOVb" + bytes(5000), "a Sigma X3F that LibRaw cannot read"),
        (b"nothing of any kind" * 99, "not a raw file that LibRaw knows"),
    ],
)
def test_a_stub_of_a_raw_file_is_called_one(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(content)
    with pytest.raises(InputError, match=rf"a\.raw: {reason}"):
        read_raw(tmp_path / "a.raw")


@pytest.mark.parametrize(
    "neutral", [[0, 1, 1, 1, 1, 1], [0, 0] * 3, [1, 0, 1, 1, 1, 1], [1, 10**6, 1, 1, 1, 1]], ids=str
)
def test_a_neutral_that_is_no_color_gives_both_renderings_the_same_white_balance(
    neutral: list[int], tmp_path: Path
) -> None:
    tags = {**camera_tags("RGGB", 16383), NEUTRAL: (RATIONAL, neutral)}
    write_dng_file(tmp_path / "a.dng", MOSAIC, tags)
    frame, reference = read_and_render(tmp_path / "a.dng")
    assert min(frame.white_balance) > 0.2 and max(frame.white_balance) < 5
    np.testing.assert_array_equal(reference, plain_rendering(frame, 1.0))


@pytest.mark.parametrize("code", [0, 9, 255])
def test_an_orientation_that_is_none_is_upright(code: int, tmp_path: Path) -> None:
    write_dng_file(tmp_path / "a.dng", MOSAIC, {**camera_tags("RGGB", 16383), 274: (SHORT, [code])})
    assert read_raw(tmp_path / "a.dng").orientation == 0


@pytest.mark.parametrize("white", [0, 70000, 2**32 - 1])
@pytest.mark.parametrize("cfa", ["RGGB", XTRANS.pattern], ids=["bayer", "xtrans"])
def test_a_white_level_that_16_bits_do_not_hold_is_their_largest(white: int, cfa: str, tmp_path: Path) -> None:
    write_dng_file(tmp_path / "a.dng", MOSAIC, camera_tags(cfa, white))
    assert read_raw(tmp_path / "a.dng").white == 65535
