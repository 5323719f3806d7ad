"""Write image files that any viewer shows: PNG and TIFF with 16 bits per sample, JPEG with 8; all sRGB with EXIF."""

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
STRIP_BYTES = 1 << 20  # of pixels processed at a time
# Noise never repeats, and clipped areas are runs. Measured on a filtered 6-megapixel Sony rendering: run-length
# encoding alone takes 0.43 s and leaves 0.62 of the bytes, level 1 0.64 s and 0.66, level 6 5.2 s and 0.61.
DEFLATE = {"strategy": zlib.Z_RLE, "memLevel": 9}

Exif = dict[int, object]


def write_image(path: AnyPath, image_HW3: np.ndarray, frame: RawFrame, description: str) -> None:
    """Write an image atomically, in the format of the path's suffix: one of SUFFIXES, in lower or upper case.

    image_HW3: (H, W, 3) uint16, sRGB, upright. PNG and TIFF store it losslessly, JPEG rounded to 8 bits.
    frame: provides camera, exposure, lens and time for the EXIF metadata; fields that are None are omitted.
    description: one line that says how the image was made; the ImageDescription, in UTF-8.
    Raises: InputError for any other suffix, ValueError for another shape or dtype, OSError if writing fails.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{path}: unknown image suffix {suffix!r}; expected one of {', '.join(SUFFIXES)}")
    if image_HW3.ndim != 3 or image_HW3.shape[2] != 3 or image_HW3.dtype != np.uint16 or image_HW3.size == 0:
        raise ValueError(f"expected (H, W, 3) uint16 with pixels, got {image_HW3.shape} {image_HW3.dtype}")
    write = {".png": _write_png, ".jpg": _write_jpeg, ".jpeg": _write_jpeg}.get(suffix, _write_tiff)
    with storage.atomic_write(path) as file:
        write(file, image_HW3, _exif(frame, description))


def _write_png(file: BinaryIO, image_HW3: np.ndarray, exif: Exif) -> None:
    """Source: PNG third edition, sections 5, 9.2 and 11. Written by hand, as Pillow writes no 16-bit color PNG."""

    def write_chunk(name: bytes, data: bytes) -> None:
        file.write(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)))

    height, width, _ = image_HW3.shape
    file.write(b"\x89PNG\r\n\x1a\n")
    write_chunk(b"IHDR", struct.pack(">2I5B", width, height, 16, 2, 0, 0, 0))  # 16 bits per sample, RGB
    write_chunk(b"sRGB", b"\0")  # perceptual intent; gAMA and cHRM are for readers without sRGB support
    write_chunk(b"gAMA", struct.pack(">I", 45455))
    write_chunk(b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000))
    write_chunk(b"eXIf", _encode_directory(exif))
    deflate = zlib.compressobj(**DEFLATE)
    for strip in _strips(image_HW3):
        samples = strip.astype(">u2", order="C").view(np.uint8).reshape(len(strip), 6 * width)
        rows = np.empty((len(strip), 1 + 6 * width), np.uint8)
        rows[:, 0] = 1  # filter Sub: each byte minus the same byte of the pixel to its left
        rows[:, 1:7] = samples[:, :6]
        np.subtract(samples[:, 6:], samples[:, :-6], out=rows[:, 7:])
        if data := deflate.compress(rows):
            write_chunk(b"IDAT", data)
    write_chunk(b"IDAT", deflate.flush())
    write_chunk(b"IEND", b"")


def _write_tiff(file: BinaryIO, image_HW3: np.ndarray, exif: Exif) -> None:
    """Source: TIFF 6.0, sections 8 and 14. Written by hand, as tifffile writes no EXIF directory."""
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
        Base.Predictor: 2,  # each sample minus the same sample of the pixel to its left
        Base.InterColorProfile: _srgb_profile(),
    }
    # The values of the strips' offsets and sizes do not change the directory's length, so it can be written last.
    pixels_offset = file.seek(len(_encode_directory(tags)))
    for number, strip in enumerate(strips):
        differences = strip.astype("<u2", order="C")
        np.subtract(strip[:, 1:], strip[:, :-1], out=differences[:, 1:])
        deflate = zlib.compressobj(**DEFLATE)
        data = deflate.compress(differences) + deflate.flush()
        tags[Base.StripOffsets][number] = file.tell() - pixels_offset  # Pillow adds the offset of the pixels
        tags[Base.StripByteCounts][number] = len(data)
        file.write(data)
    file.seek(0)
    file.write(_encode_directory(tags))


def _write_jpeg(file: BinaryIO, image_HW3: np.ndarray, exif: Exif) -> None:
    rounded = np.empty(image_HW3.shape, np.uint8)
    row = 0
    for strip in _strips(image_HW3):
        rounded[row : row + len(strip)] = (strip.astype(np.uint32) + 128) // 257
        row += len(strip)
    encoded = io.BytesIO()  # when Pillow writes to the file itself, it misses a full disk at the end of the image
    Image.fromarray(rounded).save(
        encoded,
        "JPEG",
        quality=JPEG_QUALITY,
        subsampling="4:4:4",
        icc_profile=_srgb_profile(),
        exif=b"Exif\0\0" + _encode_directory(exif),
    )
    file.write(encoded.getbuffer())


def _strips(image_HW3: np.ndarray) -> Iterator[np.ndarray]:
    """Strips of full rows, of about STRIP_BYTES each, from top to bottom."""
    rows = max(1, STRIP_BYTES // (6 * image_HW3.shape[1]))
    return (image_HW3[top : top + rows] for top in range(0, len(image_HW3), rows))


def _srgb_profile() -> bytes:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # The profile holds its creation time; a fixed date makes files reproducible.
    return profile[:24] + struct.pack(">6H", 2000, 1, 1, 0, 0, 0) + profile[36:]


def _exif(frame: RawFrame, description: str) -> Exif:
    """The tags of the main directory, which contains the EXIF directory. Source: EXIF 2.32, section 4.6."""
    tags: Exif = {
        Base.ImageDescription: _encode_text(description),
        Base.Orientation: 1,  # upright
        Base.XResolution: IFDRational(72),  # required by TIFF and EXIF; 72 if unknown
        Base.YResolution: IFDRational(72),
        Base.ResolutionUnit: 2,  # inch
        Base.Software: _encode_text(f"lsid_ray {__version__}"),
    }
    exif_tags: Exif = {Base.ExifVersion: b"0232", Base.ColorSpace: 1}  # sRGB
    if frame.camera != "unknown":
        make, _, model = frame.camera.partition(" ")
        tags |= {Base.Make: _encode_text(make), Base.Model: _encode_text(model or make)}
    if frame.exposure_s is not None:
        exif_tags[Base.ExposureTime] = _to_rational(frame.exposure_s)
    if frame.aperture is not None:
        exif_tags[Base.FNumber] = _to_rational(frame.aperture)
    if frame.focal_length_mm is not None:
        exif_tags[Base.FocalLength] = _to_rational(frame.focal_length_mm)
    if frame.taken is not None:
        exif_tags[Base.DateTimeOriginal] = f"{frame.taken:%Y:%m:%d %H:%M:%S}"
    if frame.iso is not None:
        iso = round(frame.iso)
        exif_tags[Base.ISOSpeedRatings] = min(iso, 65535)  # a 16-bit tag
        if iso > 65535:
            exif_tags |= {Base.SensitivityType: 2, Base.RecommendedExposureIndex: iso}
    return {**tags, IFD.Exif: exif_tags}


def _encode_directory(tags: Exif) -> bytes:
    """A little-endian TIFF header and its directories; strips, if any, are written after them."""
    directory = ImageFileDirectory_v2()
    for code, value in tags.items():
        directory[code] = value
    directory.save(file := io.BytesIO())
    return file.getvalue()


def _encode_text(text: str) -> bytes:
    return text.encode("utf-8", "replace")  # EXIF specifies ASCII, but most readers expect UTF-8


def _to_rational(value: float) -> IFDRational:
    return IFDRational(Fraction(value).limit_denominator(10**8))
