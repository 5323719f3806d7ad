"""Reading a raw file of any camera into a typed raw frame."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import numpy as np
import rawpy
import tifffile

from lsid_ray.errors import InputError
from lsid_ray.raw.black import LevelledMosaic, dng_black_levels, levelled
from lsid_ray.raw.color import XYZ_FROM_SRGB
from lsid_ray.raw.diagnosis import diagnose
from lsid_ray.raw.exposure import exposure_of, shortest_decimal
from lsid_ray.raw.mosaic import layout_of
from lsid_ray.raw.names import exposure_from_name
from lsid_ray.raw.tiff import (
    DNG_VERSION,
    camera_name,
    check_container,
    default_crop,
    has_no_orientation,
    page_remarks,
    raw_page,
)
from lsid_ray.storage import is_utf8

MAX_ZEROS = 0.02  # share of the sensels; if there are fewer, they are but said
MIN_BLACK_OF_ZEROS = 16.0  # noise does not get from there to 0
MAX_MATRIX = 100.0  # of cameras, values are below 3
MIN_DETERMINANT = 1e-6  # of the matrix from camera RGB to sRGB; of cameras it is above 1


@dataclass(frozen=True, eq=False)
class FrameMetadata:
    """Everything known about a raw frame besides its pixels."""

    cfa: str
    """Colors of the repeating pattern, row-major from mosaic[0, 0]: "RGGB", ..., or X-Trans's 36 letters."""
    black: tuple[float, ...]
    """Black level in DN, one per CFA position: same order and length as `cfa`."""
    white: float
    """White level in DN."""
    white_balance: tuple[float, float, float]
    """The camera's as-shot gains for R, G, B; green = 1."""
    color_matrix: tuple[tuple[float, ...], ...]
    """3x3, CIE XYZ -> camera RGB, as DNG's ColorMatrix1; zeros if neither the file nor LibRaw has one."""
    orientation: int
    """LibRaw's flip: 0 upright, 3 rotated by 180 degrees, 5 by 90 counterclockwise, 6 by 90 clockwise."""
    camera: str
    """Make and model; "unknown" if the file has neither."""
    iso: float | None
    exposure_s: float | None
    aperture: float | None = field(kw_only=True, default=None)
    """The f-number."""


@dataclass(frozen=True, eq=False)
class RawFrame(FrameMetadata):
    """The unprocessed contents of a camera file."""

    mosaic: np.ndarray
    """(H, W) uint16, DN: the visible area, of a DNG its default crop, in sensor orientation."""
    source: str
    """The file name, without its folder."""
    focal_length_mm: float | None = None
    taken: datetime | None = None
    """Date and time by the camera's clock, without a time zone."""
    remarks: tuple[str, ...] = ()
    """What somebody should know of its file: tags that are damaged, more raw images."""

    @property
    def height(self) -> int:
        """Rows of the mosaic."""
        return self.mosaic.shape[0]

    @property
    def width(self) -> int:
        """Columns of the mosaic."""
        return self.mosaic.shape[1]


def read_raw(path: str | Path) -> RawFrame:
    """Read a camera file with LibRaw.

    The exposure time comes from the metadata, else from SID's file name, else it is None. The mosaic is a view of
    LibRaw's memory, so the file stays open as long as the mosaic exists.
    Raises InputError with file and reason if the file is missing, damaged, truncated, not a raw file, or without a
    color filter array.
    """
    path = Path(path)
    with _libraw_as_input_errors(path):
        return frame_from_libraw(_open_and_unpack(path), path)


@contextmanager
def open_raw(path: str | Path) -> Iterator[rawpy.RawPy]:
    """Open and decode a camera file with LibRaw; LibRaw's errors are raised as InputError."""
    path = Path(path)
    with _libraw_as_input_errors(path), _open_and_unpack(path) as raw:
        yield raw


def _open_and_unpack(path: Path) -> rawpy.RawPy:
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise InputError(f"{path}: not a file")  # to open a pipe would block
    try:
        with path.open("rb") as file:
            check_container(path)
            raw = rawpy.imread(str(path) if is_utf8(path) else file)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:  # a folder, a symlink loop, no permission
        raise InputError(f"{path}: cannot be opened ({error.strerror})") from None
    raw.unpack()
    return raw


@contextmanager
def _libraw_as_input_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except rawpy.LibRawError as error:
        if known := diagnose(path):
            raise InputError(f"{path}: {known}") from None
        if isinstance(error, rawpy.LibRawFileUnsupportedError):
            raise InputError(f"{path}: not a raw file that LibRaw knows") from None
        raise InputError(
            f"{path}: LibRaw cannot decode it ({error_text(error)}); it may be damaged or truncated"
        ) from None
    except (InputError, OSError, MemoryError):
        raise
    except Exception as error:  # a damaged file can raise anything
        raise InputError(f"{path}: cannot be read ({type(error).__name__}: {error}); it may be damaged") from None


def frame_from_libraw(raw: rawpy.RawPy, path: str | Path) -> RawFrame:
    """Return the frame of an open file; call it before `postprocess`. Its mosaic is valid until the file is closed.

    Raises InputError if the file has no CFA, or if its black level is not below its white level.
    """
    path = Path(path)
    cfa, colors = _cfa(raw, path)
    cfa, (mosaic, black, white) = _image(raw, path, cfa, colors)
    if not max(black) < white:
        raise InputError(f"{path}: black level {max(black):g} and white level {white:g}; expected black below white")
    zeros = 1 - np.count_nonzero(mosaic) / mosaic.size
    if zeros > MAX_ZEROS and min(black) > MIN_BLACK_OF_ZEROS:
        raise InputError(
            f"{path}: {zeros:.0%} of its sensels are 0, far below the black level of {min(black):g}; expected a whole "
            "image, part of it is missing"
        )
    exposure, focal_length = exposure_of(raw, path), shortest_decimal(raw.other.focal_length)
    return RawFrame(
        mosaic=mosaic,
        cfa=cfa,
        black=black,
        white=white,
        white_balance=_white_balance(raw),
        color_matrix=_color_matrix(raw, path),
        orientation=0 if has_no_orientation(path) else raw.sizes.flip,
        camera=camera_name(path),
        iso=exposure.iso,
        exposure_s=exposure.exposure_s or exposure_from_name(path.name),
        source=path.name,
        aperture=exposure.aperture,
        focal_length_mm=focal_length if 0 < focal_length < 1e5 else None,
        taken=raw.other.timestamp if raw.other.timestamp.year > 1970 else None,
        remarks=(*exposure.remarks, *page_remarks(path)),
    )


def _cfa(raw: rawpy.RawPy, path: Path) -> tuple[str, list[int]]:
    """Letters and LibRaw color indices of the repeating pattern, from the first sensel of the visible area."""
    if abs(raw.sizes.pixel_aspect - 1) > 0.001:
        aspect = f"{raw.sizes.pixel_aspect:.3g}"
        raise InputError(f"{path}: its pixels are {aspect} times as wide as high; expected square ones")
    pattern = raw.raw_pattern if raw.raw_type == rawpy.RawType.Flat else None
    if pattern is None or raw.raw_image is None or raw.raw_image.dtype != np.uint16:
        raise InputError(
            f"{path}: no color filter array (linear, layered or floating-point data); expected Bayer or X-Trans"
        )
    if raw.num_colors == 1:
        raise InputError(f"{path}: monochrome; expected a color filter array, Bayer or X-Trans")
    top, left = raw.sizes.top_margin, raw.sizes.left_margin
    # Not from `pattern`: of X-Trans rawpy reads it beyond its ends if a margin is larger than 6 (rawpy 0.25).
    colors = [int(raw.raw_color(top + y, left + x)) for y, x in np.ndindex(pattern.shape)]
    names = raw.color_desc.decode()
    cfa = "".join(names[color] if color < len(names) else "?" for color in colors)
    try:
        layout_of(cfa)
    except InputError:
        raise InputError(f"{path}: color filter array {cfa!r}; expected Bayer or X-Trans in R, G and B") from None
    return cfa, colors


def libraw_black(raw: rawpy.RawPy, colors: list[int]) -> tuple[float, ...]:
    """LibRaw's black levels by CFA position, DN."""
    return tuple(float(raw.black_level_per_channel[color]) for color in colors)


def is_read_by_libraw_as(raw: rawpy.RawPy, frame: RawFrame) -> bool:
    """Whether LibRaw renders a file with the levels, the white balance and the colors of its frame.

    If the file has no white balance, LibRaw estimates one from the scene. If there is no color matrix, LibRaw may have
    another that rawpy does not show (Kodak DC50).
    """
    black = libraw_black(raw, _cfa(raw, Path(frame.source))[1])
    has_white_balance = all(math.isfinite(gain) and gain > 0 for gain in raw.camera_whitebalance[:3])
    has_matrix = bool(np.any(frame.color_matrix))
    same_levels = frame.black == black and np.array_equal(frame.mosaic, raw.raw_image_visible)
    return has_white_balance and has_matrix and same_levels


def _image(raw: rawpy.RawPy, path: Path, cfa: str, colors: list[int]) -> tuple[str, LevelledMosaic]:
    """The CFA, and the mosaic with its levels, of what its maker means to be seen."""
    visible = (raw.sizes.top_margin, raw.sizes.left_margin, *raw.raw_image_visible.shape)
    levels, crop = None, (slice(0, visible[2]), slice(0, visible[3]))
    try:
        with tifffile.TiffFile(path) as file:
            page = raw_page(file, raw.raw_image.shape) if DNG_VERSION in file.pages.first.tags else None
            if page is not None:
                levels, crop = dng_black_levels(path, page, visible), default_crop(page, visible)
    except InputError:
        raise
    except Exception:  # not a TIFF, or damaged tags: LibRaw's levels are used
        levels = None
    image = levelled(raw.raw_image_visible, levels, libraw_black(raw, colors), float(raw.white_level))
    period, (rows, columns) = math.isqrt(len(cfa)), crop
    moved = [(rows.start + y) % period * period + (columns.start + x) % period for y, x in np.ndindex(period, period)]
    cropped = LevelledMosaic(image.mosaic[crop], tuple(image.black[i] for i in moved), image.white)
    return "".join(cfa[i] for i in moved), cropped


def _white_balance(raw: rawpy.RawPy) -> tuple[float, float, float]:
    gains = raw.camera_whitebalance
    if not all(math.isfinite(gain) and gain > 0 for gain in gains[:3]):
        gains = raw.daylight_whitebalance  # LibRaw's own fallback
    return shortest_decimal(gains[0] / gains[1]), 1.0, shortest_decimal(gains[2] / gains[1])


def _color_matrix(raw: rawpy.RawPy, path: Path) -> tuple[tuple[float, ...], ...]:
    """The matrix that LibRaw renders with: the file's own if it has one, else LibRaw's for this camera."""
    srgb_from_camera = raw.color_matrix[:3, :3].astype(np.float64)
    daylight = np.array(raw.daylight_whitebalance[:3])
    if srgb_from_camera.any():
        usable = np.isfinite(srgb_from_camera).all() and np.isfinite(daylight).all() and daylight.all()
        if not usable or abs(np.linalg.det(srgb_from_camera)) < MIN_DETERMINANT:
            raise InputError(
                f"{path}: its color matrix has no inverse, or its white point no color; the tags (ColorMatrix1, "
                "AsShotWhiteXY) may be damaged"
            )
        # LibRaw scales each camera row to sum to 1 and stores the factor as the daylight white balance.
        camera_from_srgb = np.linalg.inv(srgb_from_camera) / daylight[:, None]
        matrix = (camera_from_srgb @ np.linalg.inv(XYZ_FROM_SRGB)).round(4)
    else:
        matrix = raw.rgb_xyz_matrix[:3]
    if not (np.abs(matrix) < MAX_MATRIX).all():
        largest = np.abs(matrix).max()
        raise InputError(f"{path}: its color matrix has the value {largest:.3g}; expected values below {MAX_MATRIX:g}")
    return tuple(tuple(shortest_decimal(value) for value in row) for row in matrix)


def error_text(error: Exception) -> str:
    """The words of an error of LibRaw."""
    text = error.args[0] if error.args else error
    return text.decode() if isinstance(text, bytes) else str(text)
