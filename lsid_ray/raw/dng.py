"""Writing a mosaic as an uncompressed DNG that LibRaw reads back exactly."""

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
_TIFF_HEADER_SIZE = 8

Tag = tuple[int, int, list[int]]  # code, type, values; a rational is two values


def write_dng(destination: str | Path | BinaryIO, frame: RawFrame) -> None:
    """Write `frame` as a 16-bit CFA DNG 1.4; reading it with `read_raw` gives the same frame.

    `frame.mosaic` is (H, W) uint16, at least 22 sensels high and wide (LibRaw rejects smaller files); black and white
    levels are integers. Writing to a path is atomic. Raises ValueError for a frame that a DNG cannot represent as
    LibRaw reads it. Source: DNG 1.4.0.0, TIFF 6.0, EXIF 2.3. tifffile is not used because it cannot write an EXIF
    directory, without which LibRaw finds no ISO.
    """
    header = _header(frame)
    pixels = memoryview(frame.mosaic.astype("<u2", order="C", copy=False))
    if not isinstance(destination, str | Path):
        destination.write(header)
        destination.write(pixels)
        return
    with storage.atomic_write(Path(destination)) as file:
        file.write(header)
        file.write(pixels)


def _header(frame: RawFrame) -> bytes:
    """Everything before the pixels: TIFF header, main directory (IFD), EXIF directory."""
    # The main directory has the same length whatever its offsets are, so measure it with zeros.
    exif_offset = _TIFF_HEADER_SIZE + len(_encode_directory(_main_tags(frame, 0, 0), _TIFF_HEADER_SIZE))
    exif_directory = _encode_directory(exif, exif_offset) if (exif := _exif_tags(frame)) else b""
    pixels_offset = exif_offset + len(exif_directory)
    main_directory = _encode_directory(_main_tags(frame, exif_offset, pixels_offset), _TIFF_HEADER_SIZE)
    return struct.pack("<2sHI", b"II", 42, _TIFF_HEADER_SIZE) + main_directory + exif_directory


def _main_tags(frame: RawFrame, exif_offset: int, pixels_offset: int) -> list[Tag]:
    height, width = frame.mosaic.shape
    levels = (*frame.black, frame.white)
    if min(height, width) < 22:
        raise ValueError(f"a mosaic of {height}x{width} sensels is too small for LibRaw; expected at least 22x22")
    if any(level != int(level) or not 0 <= level <= 65535 for level in levels):
        raise ValueError(f"black and white levels {levels}: expected 16-bit integers")
    period = 2 if len(frame.cfa) == 4 else 6
    uniform_black = len(set(frame.black)) == 1
    make, _, model = frame.camera.partition(" ")
    matrix = [value for row in frame.color_matrix for value in row]
    tags = [
        (254, _LONG, [0]),  # NewSubFileType: the full-resolution image
        (256, _LONG, [width]),  # ImageWidth
        (257, _LONG, [height]),  # ImageLength
        (258, _SHORT, [16]),  # BitsPerSample
        (259, _SHORT, [1]),  # Compression: none
        (262, _SHORT, [_PHOTOMETRIC_CFA]),  # PhotometricInterpretation
        (273, _LONG, [pixels_offset]),  # StripOffsets
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
        (50713, _SHORT, [1, 1] if uniform_black else [period, period]),  # BlackLevelRepeatDim
        (50714, _LONG, [int(level) for level in (frame.black[:1] if uniform_black else frame.black)]),  # BlackLevel
        (50717, _LONG, [int(frame.white)]),  # WhiteLevel
        (50728, _RATIONAL, _rationals([1 / gain for gain in frame.white_balance])),  # AsShotNeutral
    ]
    if _exif_tags(frame):
        tags.append((34665, _LONG, [exif_offset]))  # ExifIFD
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
        tags.append((34855, _SHORT, [min(round(frame.iso), 65535)]))  # PhotographicSensitivity
        if frame.iso > 65535:
            tags.append((34864, _SHORT, [2]))  # SensitivityType: as in the next
            tags.append((34866, _LONG, [round(frame.iso)]))  # RecommendedExposureIndex
    if frame.aperture is not None:
        tags.append((33437, _RATIONAL, _rationals([frame.aperture])))  # FNumber
    if frame.focal_length_mm is not None:
        tags.append((37386, _RATIONAL, _rationals([frame.focal_length_mm])))  # FocalLength
    if frame.taken is not None:
        tags.append((36867, _ASCII, _ascii(f"{frame.taken:%Y:%m:%d %H:%M:%S}")))  # DateTimeOriginal
    return tags


def _encode_directory(tags: list[Tag], offset: int) -> bytes:
    """A TIFF directory that begins at byte `offset` of the file, followed by the values that do not fit in an entry."""
    entries, values = b"", b""
    values_offset = offset + 2 + 12 * len(tags) + 4
    for code, tag_type, numbers in sorted(tags):
        packed = struct.pack(f"<{len(numbers)}{_FORMAT[tag_type]}", *numbers)
        count = len(numbers) // 2 if tag_type in (_RATIONAL, _SRATIONAL) else len(numbers)
        if len(packed) > 4:
            value_field = struct.pack("<I", values_offset + len(values))
            values += packed + b"\0" * (len(packed) % 2)  # TIFF: values begin at even offsets
        else:
            value_field = packed.ljust(4, b"\0")
        entries += struct.pack("<HHI", code, tag_type, count) + value_field
    return struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0) + values


def _ascii(text: str) -> list[int]:
    return [*text.encode("ascii", "replace"), 0]


def _rationals(values: list[float]) -> list[int]:
    """Numerators and denominators, as TIFF stores them; as precise as the float32 that LibRaw converts them to."""
    fractions = [Fraction(value).limit_denominator(10**8) for value in values]
    return [part for fraction in fractions for part in (fraction.numerator, fraction.denominator)]
