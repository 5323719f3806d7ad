"""A photograph as a file that any viewer shows: PNG and TIFF with all 16 bits, JPEG with 8, each sRGB with EXIF."""

import io
import struct
import zlib
from collections.abc import Iterator
from fractions import Fraction
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageCms
from PIL.ExifTags import IFD, Base
from PIL.TiffImagePlugin import IFDRational, ImageFileDirectory_v2

from lsid_ray import __version__, storage
from lsid_ray.errors import InputError
from lsid_ray.raw.frame import RawFrame
from lsid_ray.storage import AnyPath

SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")
JPEG_QUALITY = 95
STRIP_BYTES = 1 << 20  # of pixels that are filtered and compressed at once
# Noise never repeats, and clipped areas are runs. Measured on a filtered 6-megapixel Sony rendering: run lengths
# only take 0.43 s and leave 0.62 of the bytes, level 1 takes 0.64 s and leaves 0.66, level 6 takes 5.2 s, 0.61.
DEFLATE = {"strategy": zlib.Z_RLE, "memLevel": 9}

Exif = dict[int, object]


def write_picture(path: AnyPath, image_HW3: np.ndarray, frame: RawFrame, note: str) -> None:
    """Write `image_HW3` in the format of the path's suffix, one of SUFFIXES in either case.

    image_HW3: (H, W, 3) uint16, sRGB, upright. PNG and TIFF hold it exactly, JPEG rounded to 8 bits.
    frame: the camera's frame, of which the file's EXIF tells camera, exposure, lens and time; what is None is
    left out. note: one line that says how the picture was made, the file's ImageDescription in UTF-8.
    The file is complete or absent. Raises InputError for another
    suffix, ValueError for another shape or dtype, OSError as the file system does.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{path}: a picture with the suffix {suffix!r}; expected one of {', '.join(SUFFIXES)}")
    if image_HW3.ndim != 3 or image_HW3.shape[2] != 3 or image_HW3.dtype != np.uint16 or image_HW3.size == 0:
        raise ValueError(f"expected (H, W, 3) uint16 with pixels, got {image_HW3.shape} {image_HW3.dtype}")
    write = {".png": _write_png, ".jpg": _write_jpeg, ".jpeg": _write_jpeg}.get(suffix, _write_tiff)
    with storage.writing(path) as file:
        write(file, image_HW3, _exif(frame, note))


def _write_png(file: BinaryIO, image_HW3: np.ndarray, exif: Exif) -> None:
    """Source: PNG third edition, sections 5, 9.2 and 11. By hand, as Pillow writes no 16-bit colour."""

    def chunk(name: bytes, data: bytes) -> None:
        file.write(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)))

    height, width, _ = image_HW3.shape
    file.write(b"\x89PNG\r\n\x1a\n")
    chunk(b"IHDR", struct.pack(">2I5B", width, height, 16, 2, 0, 0, 0))  # 16 bits a sample, RGB
    chunk(b"sRGB", b"\0")  # perceptual intent; the next two say the same to readers that do not know it
    chunk(b"gAMA", struct.pack(">I", 45455))
    chunk(b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000))
    chunk(b"eXIf", _directory(exif))
    deflate = zlib.compressobj(**DEFLATE)
    for strip in _strips(image_HW3):
        samples = strip.astype(">u2", order="C").view(np.uint8).reshape(len(strip), 6 * width)
        rows = np.empty((len(strip), 1 + 6 * width), np.uint8)
        rows[:, 0] = 1  # the filter Sub: each byte less the same byte of the pixel on its left
        rows[:, 1:7] = samples[:, :6]
        np.subtract(samples[:, 6:], samples[:, :-6], out=rows[:, 7:])
        if data := deflate.compress(rows):
            chunk(b"IDAT", data)
    chunk(b"IDAT", deflate.flush())
    chunk(b"IEND", b"")


def _write_tiff(file: BinaryIO, image_HW3: np.ndarray, exif: Exif) -> None:
    """Source: TIFF 6.0, sections 8 and 14. By hand, as tifffile writes no EXIF directory."""
    height, width, _ = image_HW3.shape
    strips = list(_strips(image_HW3))
    tags = {
        **exif,
        Base.ImageWidth: width,
        Base.ImageLength: height,
        Base.BitsPerSample: (16, 16, 16),
        Base.Compression: 8,  # deflate
        Base.PhotometricInterpretation: 2,  # RGB
        Base.StripOffsets: [0] * len(strips),
        Base.SamplesPerPixel: 3,
        Base.RowsPerStrip: len(strips[0]),
        Base.StripByteCounts: [0] * len(strips),
        Base.PlanarConfiguration: 1,
        Base.Predictor: 2,  # each sample less the same sample of the pixel on its left
        Base.InterColorProfile: _srgb_profile(),
    }
    # The strips' offsets and sizes do not change the directory's length, so it can be written when they are known.
    start = file.seek(len(_directory(tags)))
    for number, strip in enumerate(strips):
        differences = strip.astype("<u2", order="C")
        np.subtract(strip[:, 1:], strip[:, :-1], out=differences[:, 1:])
        deflate = zlib.compressobj(**DEFLATE)
        data = deflate.compress(differences) + deflate.flush()
        tags[Base.StripOffsets][number] = file.tell() - start  # Pillow adds where the directory ends
        tags[Base.StripByteCounts][number] = len(data)
        file.write(data)
    file.seek(0)
    file.write(_directory(tags))


def _write_jpeg(file: BinaryIO, image_HW3: np.ndarray, exif: Exif) -> None:
    rounded = np.empty(image_HW3.shape, np.uint8)
    rows = 0
    for strip in _strips(image_HW3):
        rounded[rows : rows + len(strip)] = (strip.astype(np.uint32) + 128) // 257
        rows += len(strip)
    encoded = io.BytesIO()  # Pillow's own writing to a file does not notice a last part that no longer fits
    Image.fromarray(rounded).save(
        encoded,
        "JPEG",
        quality=JPEG_QUALITY,
        subsampling="4:4:4",
        icc_profile=_srgb_profile(),
        exif=b"Exif\0\0" + _directory(exif),
    )
    file.write(encoded.getbuffer())


def _strips(image_HW3: np.ndarray) -> Iterator[np.ndarray]:
    """Whole rows of about STRIP_BYTES, from top to bottom."""
    rows = max(1, STRIP_BYTES // (6 * image_HW3.shape[1]))
    return (image_HW3[top : top + rows] for top in range(0, len(image_HW3), rows))


def _srgb_profile() -> bytes:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # Its date is the moment it was made; with a date of its own one picture is always one file.
    return profile[:24] + struct.pack(">6H", 2000, 1, 1, 0, 0, 0) + profile[36:]


def _exif(frame: RawFrame, note: str) -> Exif:
    """The main directory's tags, with the EXIF directory's as one of them. Source: EXIF 2.32, section 4.6."""
    tags: Exif = {
        Base.ImageDescription: _text(note),
        Base.Orientation: 1,  # upright
        Base.XResolution: IFDRational(72),  # TIFF and EXIF demand one; 72 stands for none
        Base.YResolution: IFDRational(72),
        Base.ResolutionUnit: 2,  # inch
        Base.Software: _text(f"lsid_ray {__version__}"),
    }
    taken: Exif = {Base.ExifVersion: b"0232", Base.ColorSpace: 1}  # sRGB
    if frame.camera != "unknown":
        make, _, model = frame.camera.partition(" ")
        tags |= {Base.Make: _text(make), Base.Model: _text(model or make)}
    if frame.exposure_s is not None:
        taken[Base.ExposureTime] = _rational(frame.exposure_s)
    if frame.aperture is not None:
        taken[Base.FNumber] = _rational(frame.aperture)
    if frame.focal_length_mm is not None:
        taken[Base.FocalLength] = _rational(frame.focal_length_mm)
    if frame.taken is not None:
        taken[Base.DateTimeOriginal] = f"{frame.taken:%Y:%m:%d %H:%M:%S}"
    if frame.iso is not None:
        iso = round(frame.iso)
        taken[Base.ISOSpeedRatings] = min(iso, 65535)  # 16 bits
        if iso > 65535:
            taken |= {Base.SensitivityType: 2, Base.RecommendedExposureIndex: iso}
    return {**tags, IFD.Exif: taken}


def _directory(tags: Exif) -> bytes:
    """A TIFF header and its directories, little-endian; strips, if any, follow it."""
    directory = ImageFileDirectory_v2()
    for code, value in tags.items():
        directory[code] = value
    directory.save(file := io.BytesIO())
    return file.getvalue()


def _text(text: str) -> bytes:
    return text.encode("utf-8", "replace")  # EXIF knows ASCII only; UTF-8 is what most readers take it for


def _rational(value: float) -> IFDRational:
    return IFDRational(Fraction(value).limit_denominator(10**8))
