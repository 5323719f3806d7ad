"""A mosaic as an uncompressed DNG that LibRaw reads back as it was."""

import struct
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

from lsid_ray import storage
from lsid_ray.raw.frame import RawFrame

_ORIENTATION = {0: 1, 1: 2, 2: 4, 3: 3, 4: 5, 5: 8, 6: 6, 7: 7}  # LibRaw's flip -> TIFF's orientation
_PHOTOMETRIC_CFA = 32803
_D65 = 21
_BYTE, _ASCII, _SHORT, _LONG, _RATIONAL, _SRATIONAL = 1, 2, 3, 4, 5, 10  # TIFF 6.0, section 2
_FORMAT = {_BYTE: "B", _ASCII: "B", _SHORT: "H", _LONG: "I", _RATIONAL: "I", _SRATIONAL: "i"}
_HEADER_SIZE = 8

Tag = tuple[int, int, list[int]]  # code, type, values; a rational is two values


def write_dng(destination: str | Path | BinaryIO, frame: RawFrame) -> None:
    """Write `frame` as a 16-bit CFA DNG 1.4; reading it with `read_raw` gives the same frame.

    `frame.mosaic` is (H, W) uint16, at least 22 pixels high and wide (LibRaw takes nothing smaller), with
    whole black and white levels. A path is complete or absent: the file is written beside it and renamed.
    Raises ValueError for a frame that a DNG, as LibRaw reads it, cannot hold. Source: DNG 1.4.0.0, TIFF 6.0,
    EXIF 2.3; written by hand as tifffile writes no EXIF directory, without which LibRaw finds no ISO.
    """
    head = _head(frame)
    pixels = memoryview(frame.mosaic.astype("<u2", order="C", copy=False))
    if not isinstance(destination, str | Path):
        destination.write(head)
        destination.write(pixels)
        return
    with storage.writing(Path(destination)) as file:
        file.write(head)
        file.write(pixels)


def _head(frame: RawFrame) -> bytes:
    """Everything before the pixels: header, main directory, EXIF directory."""
    # The offsets the main directory holds do not change its length: measure it first.
    exif_at = _HEADER_SIZE + len(_directory(_main_tags(frame, 0, 0), _HEADER_SIZE))
    exif_directory = _directory(exif, exif_at) if (exif := _exif_tags(frame)) else b""
    pixels_at = exif_at + len(exif_directory)
    main_directory = _directory(_main_tags(frame, exif_at, pixels_at), _HEADER_SIZE)
    return struct.pack("<2sHI", b"II", 42, _HEADER_SIZE) + main_directory + exif_directory


def _main_tags(frame: RawFrame, exif_at: int, pixels_at: int) -> list[Tag]:
    height, width = frame.mosaic.shape
    levels = (*frame.black, frame.white)
    if min(height, width) < 22:
        raise ValueError(f"a mosaic of {height}x{width} is too small for LibRaw: at least 22x22")
    if any(level != int(level) or not 0 <= level <= 65535 for level in levels):
        raise ValueError(f"black and white levels must be whole 16-bit numbers, not {levels}")
    period = 2 if len(frame.cfa) == 4 else 6
    one_black = len(set(frame.black)) == 1
    make, _, model = frame.camera.partition(" ")
    matrix = [value for row in frame.color_matrix for value in row]
    tags = [
        (254, _LONG, [0]),  # NewSubFileType: the full picture
        (256, _LONG, [width]),  # ImageWidth
        (257, _LONG, [height]),  # ImageLength
        (258, _SHORT, [16]),  # BitsPerSample
        (259, _SHORT, [1]),  # Compression: none
        (262, _SHORT, [_PHOTOMETRIC_CFA]),  # PhotometricInterpretation
        (273, _LONG, [pixels_at]),  # StripOffsets
        (274, _SHORT, [_ORIENTATION[frame.orientation]]),  # Orientation
        (277, _SHORT, [1]),  # SamplesPerPixel
        (278, _LONG, [height]),  # RowsPerStrip
        (279, _LONG, [height * width * 2]),  # StripByteCounts
        (284, _SHORT, [1]),  # PlanarConfiguration
        (33421, _SHORT, [period, period]),  # CFARepeatPatternDim
        (33422, _BYTE, ["RGB".index(color) for color in frame.cfa]),  # CFAPattern
        (50706, _BYTE, [1, 4, 0, 0]),  # DNGVersion
        (50707, _BYTE, [1, 1, 0, 0]),  # DNGBackwardVersion
        (50708, _ASCII, _ascii(frame.camera)),  # UniqueCameraModel
        (50710, _BYTE, [0, 1, 2]),  # CFAPlaneColor
        (50711, _SHORT, [1]),  # CFALayout: a square grid
        (50713, _SHORT, [1, 1] if one_black else [period, period]),  # BlackLevelRepeatDim
        (
            50714,
            _LONG,
            [int(level) for level in (frame.black[:1] if one_black else frame.black)],
        ),  # BlackLevel
        (50717, _LONG, [int(frame.white)]),  # WhiteLevel
        (50728, _RATIONAL, _rationals([1 / gain for gain in frame.white_balance])),  # AsShotNeutral
    ]
    if _exif_tags(frame):
        tags.append((34665, _LONG, [exif_at]))  # ExifIFD
    if any(matrix):
        tags.append((50721, _SRATIONAL, _rationals(matrix)))  # ColorMatrix1
        tags.append((50778, _SHORT, [_D65]))  # CalibrationIlluminant1
    if frame.camera != "unknown":
        tags.append((271, _ASCII, _ascii(make)))  # Make
        tags.append((272, _ASCII, _ascii(model or make)))  # Model
    return tags


def _exif_tags(frame: RawFrame) -> list[Tag]:
    tags = []
    if frame.exposure_s is not None:
        tags.append((33434, _RATIONAL, _rationals([frame.exposure_s])))  # ExposureTime
    if frame.iso is not None:
        tags.append((34855, _SHORT, [min(round(frame.iso), 65535)]))  # ISOSpeedRatings
    if frame.aperture is not None:
        tags.append((33437, _RATIONAL, _rationals([frame.aperture])))  # FNumber
    if frame.focal_length_mm is not None:
        tags.append((37386, _RATIONAL, _rationals([frame.focal_length_mm])))  # FocalLength
    if frame.taken is not None:
        tags.append((36867, _ASCII, _ascii(f"{frame.taken:%Y:%m:%d %H:%M:%S}")))  # DateTimeOriginal
    return tags


def _directory(tags: list[Tag], offset: int) -> bytes:
    """A TIFF directory that stands `offset` bytes into the file, its longer values behind it."""
    entries, values = b"", b""
    values_at = offset + 2 + 12 * len(tags) + 4
    for code, kind, numbers in sorted(tags):
        packed = struct.pack(f"<{len(numbers)}{_FORMAT[kind]}", *numbers)
        count = len(numbers) // 2 if kind in (_RATIONAL, _SRATIONAL) else len(numbers)
        if len(packed) > 4:
            place = struct.pack("<I", values_at + len(values))
            values += packed + b"\0" * (len(packed) % 2)  # TIFF: every value begins on a word
        else:
            place = packed.ljust(4, b"\0")
        entries += struct.pack("<HHI", code, kind, count) + place
    return struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0) + values


def _ascii(text: str) -> list[int]:
    return [*text.encode("ascii", "replace"), 0]


def _rationals(values: list[float]) -> list[int]:
    """Numerators and denominators, as TIFF stores them; as exact as the float32 LibRaw makes of them."""
    fractions = [Fraction(value).limit_denominator(10**8) for value in values]
    return [part for fraction in fractions for part in (fraction.numerator, fraction.denominator)]
