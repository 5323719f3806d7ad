"""One camera file as a typed raw frame, whatever camera wrote it."""

import logging
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

import numpy as np
import rawpy
import tifffile

from lsid_ray.errors import InputError
from lsid_ray.raw.color import XYZ_FROM_SRGB

# tifffile logs what it finds odd in a camera's tags; here LibRaw judges the file, in one line.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)

_EXPOSURE = re.compile(r"_(\d+(?:\.\d+)?)s(?:\.[^.]*)?$")
_LONGEST_EXPOSURE_S = 86400.0  # what lies beyond is a damaged tag


class Sensor(Protocol):
    """What must be known of a mosaic to make a photograph of it: a RawFrame, or a short's entry in the shards."""

    cfa: str
    black: tuple[float, ...]
    white: float
    white_balance: tuple[float, float, float]
    color_matrix: tuple[tuple[float, ...], ...]
    orientation: int
    height: int
    width: int


@dataclass(frozen=True, eq=False)
class RawFrame:
    """What a camera file says, before anything is done to it."""

    mosaic: np.ndarray
    """(H, W) uint16, DN: the visible area in sensor orientation."""
    cfa: str
    """Colours of the repeating square, row-major from mosaic[0, 0]: "RGGB", ..., or X-Trans's 36 letters."""
    black: tuple[float, ...]
    """Black level in DN, one per CFA position: same order and length as `cfa`."""
    white: float
    """White level in DN."""
    white_balance: tuple[float, float, float]
    """The camera's gains for R, G, B as shot, green = 1."""
    color_matrix: tuple[tuple[float, ...], ...]
    """3x3, CIE XYZ -> camera's R, G, B, as DNG's ColorMatrix1; zeros when the file and LibRaw have none."""
    orientation: int
    """LibRaw's flip: 0 upright, 3 by 180 degrees, 5 by 90 counter-clockwise, 6 by 90 clockwise."""
    camera: str
    """Make and model, "unknown" when the file has none."""
    iso: float | None
    exposure_s: float | None
    source: str
    """Name of the file, without its folder."""
    aperture: float | None = None
    """The f-number."""
    focal_length_mm: float | None = None
    taken: datetime | None = None
    """The camera's clock, without a time zone."""

    @property
    def height(self) -> int:
        """Of the mosaic, in sensels."""
        return self.mosaic.shape[0]

    @property
    def width(self) -> int:
        """Of the mosaic, in sensels."""
        return self.mosaic.shape[1]


def read_raw(path: str | Path) -> RawFrame:
    """Read a camera file through LibRaw.

    Exposure time: LibRaw's own metadata, else SID's file name, else None. Raises InputError, naming file
    and reason, for a file that is missing, damaged, truncated, no raw file, or without a colour filter array.
    The mosaic is LibRaw's own memory: the file stays open as long as it lives.
    """
    path = Path(path)
    with _refused(path):
        return frame_of(_decoded(path), path)


@contextmanager
def open_raw(path: str | Path) -> Iterator[rawpy.RawPy]:
    """A camera file opened and decoded by LibRaw; whatever LibRaw finds wrong with it is an InputError."""
    path = Path(path)
    with _refused(path), _decoded(path) as raw:
        yield raw


def _decoded(path: Path) -> rawpy.RawPy:
    try:
        with path.open("rb"):
            pass
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:  # a folder, a loop of links, no permission
        raise InputError(f"{path}: cannot be opened ({error.strerror})") from None
    _check_container(path)
    raw = rawpy.imread(str(path))
    raw.unpack()
    return raw


@contextmanager
def _refused(path: Path) -> Iterator[None]:
    """Whatever LibRaw finds wrong with a file is an InputError."""
    try:
        yield
    except rawpy.LibRawFileUnsupportedError:
        raise InputError(f"{path}: not a raw file that LibRaw knows") from None
    except rawpy.LibRawError as error:
        raise InputError(f"{path}: LibRaw cannot decode it ({_words(error)}); damaged or truncated?") from None


def frame_of(raw: rawpy.RawPy, path: str | Path) -> RawFrame:
    """The frame of an opened file, before any postprocessing of it; its mosaic is gone when the file is closed.

    Raises InputError when it has no CFA.
    """
    path = Path(path)
    cfa, colors = _cfa(raw, path)
    black = _black_of_positions(path) if len(cfa) == 36 else None
    white = float(raw.white_level)
    black = black or tuple(float(raw.black_level_per_channel[color]) for color in colors)
    if not max(black) < white:
        raise InputError(f"{path}: black level {max(black):g} and white level {white:g}; expected black below white")
    shutter_s, iso = _decimal(raw.other.shutter_speed), _decimal(raw.other.iso_speed)
    aperture, focal_length = _decimal(raw.other.aperture), _decimal(raw.other.focal_length)
    # 1 s at f/1 and ISO 0 is how LibRaw reads a file whose exposure tags are all zero.
    blank = (shutter_s, iso, aperture) == (1, 0, 1)
    known = 0 < shutter_s < _LONGEST_EXPOSURE_S and not blank
    return RawFrame(
        mosaic=raw.raw_image_visible,
        cfa=cfa,
        black=black,
        white=white,
        white_balance=_white_balance(raw),
        color_matrix=_color_matrix(raw),
        orientation=raw.sizes.flip,
        camera=_camera(path),
        iso=iso if 0 < iso < 1e7 else None,
        exposure_s=shutter_s if known else exposure_from_name(path.name),
        source=path.name,
        aperture=aperture if 0 < aperture < 1000 and not blank else None,
        focal_length_mm=focal_length if 0 < focal_length < 1e5 else None,
        taken=raw.other.timestamp if raw.other.timestamp.year > 1970 else None,
    )


def exposure_from_name(name: str) -> float | None:
    """Exposure time in seconds from SID's file names ("10003_00_0.04s.ARW" -> 0.04), None without one."""
    found = _EXPOSURE.search(name)
    seconds = float(found.group(1)) if found else 0.0
    return seconds if seconds > 0 else None


def _cfa(raw: rawpy.RawPy, path: Path) -> tuple[str, list[int]]:
    """Letters and LibRaw's colour numbers of the repeating square at the visible area's first pixel."""
    pattern = raw.raw_pattern if raw.raw_type == rawpy.RawType.Flat else None
    if pattern is None or raw.raw_image is None or raw.raw_image.dtype != np.uint16:
        raise InputError(f"{path}: no colour filter array (linear, layered or floating point data)")
    if pattern.shape == (6, 6):
        # LibRaw counts X-Trans from the whole sensor's corner, Bayer from the visible area's.
        pattern = np.roll(pattern, (-raw.sizes.top_margin, -raw.sizes.left_margin), axis=(0, 1))
    colors = [int(color) for color in pattern.ravel()]
    cfa = "".join(raw.color_desc.decode()[color] for color in colors)
    if pattern.shape not in ((2, 2), (6, 6)) or set(cfa) != set("RGB"):
        raise InputError(f"{path}: colour filter array {cfa!r}; expected Bayer or X-Trans in R, G and B")
    return cfa, colors


def _black_of_positions(path: Path) -> tuple[float, ...] | None:
    """A DNG's black level for each of the 6x6 positions, of which rawpy gives the least only; None without them."""
    try:
        with tifffile.TiffFile(path) as file:
            pages = [page for main in file.pages for page in (main, *(main.pages or ()))]
            page = next(page for page in pages if page.photometric == tifffile.PHOTOMETRIC.CFA)
            if tuple(page.tags[50713].value) != (6, 6):  # BlackLevelRepeatDim
                return None
            values = np.array(page.tags[50714].value, np.float64).reshape(36, -1)  # BlackLevel, maybe as fractions
    except Exception:  # no DNG, or none with such levels: LibRaw has the say
        return None
    return tuple((values[:, 0] / values[:, -1] if values.shape[1] == 2 else values[:, 0]).tolist())


def _white_balance(raw: rawpy.RawPy) -> tuple[float, float, float]:
    gains = raw.camera_whitebalance
    if not all(math.isfinite(gain) and gain > 0 for gain in gains[:3]):
        gains = raw.daylight_whitebalance  # what LibRaw renders with when the camera's is missing
    return _decimal(gains[0] / gains[1]), 1.0, _decimal(gains[2] / gains[1])


def _color_matrix(raw: rawpy.RawPy) -> tuple[tuple[float, ...], ...]:
    """The matrix LibRaw renders with: the file's own when it has one, else LibRaw's table for the camera."""
    srgb_from_camera = raw.color_matrix[:3, :3].astype(np.float64)
    if srgb_from_camera.any():
        # LibRaw scales each camera row to sum to 1 and keeps the factor as the daylight white balance.
        camera_from_srgb = np.linalg.inv(srgb_from_camera) / np.array(raw.daylight_whitebalance[:3])[:, None]
        matrix = (camera_from_srgb @ np.linalg.inv(XYZ_FROM_SRGB)).round(4)
    else:
        matrix = raw.rgb_xyz_matrix[:3]
    return tuple(tuple(_decimal(value) for value in row) for row in matrix)


def _check_container(path: Path) -> None:
    """Raise InputError for a TIFF (most raw formats are) whose picture is cut short, or floating point.

    LibRaw decodes a truncated ARW without a word, and rescales floats to a range of its own.
    """
    try:
        with tifffile.TiffFile(path) as file:
            pages = [page for main in file.pages for page in (main, *(main.pages or ()))]
    except Exception:  # whatever else these bytes are, LibRaw has the say
        return
    if not pages:
        return
    picture = max(pages, key=lambda page: page.imagewidth * page.imagelength)
    ends = map(sum, zip(picture.dataoffsets, picture.databytecounts, strict=False))
    size, needed = path.stat().st_size, max(ends, default=0)
    if size < needed:
        raise InputError(f"{path}: truncated: {size} bytes, its picture ends at byte {needed}")
    if picture.sampleformat == tifffile.SAMPLEFORMAT.IEEEFP:
        raise InputError(f"{path}: floating point data; expected a sensor's whole numbers")


def _camera(path: Path) -> str:
    """Make and model from TIFF tags, as rawpy does not give them."""
    try:
        with tifffile.TiffFile(path) as file:
            tags = file.pages.first.tags
            words = [str(tags[code].value).strip(" \0") for code in (271, 272) if code in tags]
    except Exception:  # no TIFF, or none that tifffile understands
        return "unknown"
    if len(words) == 2 and words[1].lower().startswith(words[0].lower()):
        words = words[1:]  # "Canon", "Canon EOS 550D"
    return " ".join(filter(None, words)) or "unknown"


def _decimal(value: float) -> float:
    """The shortest decimal that is this float32: LibRaw's 0.03999999910593033 is the camera's 0.04."""
    return float(str(np.float32(value)))


def _words(error: Exception) -> str:
    text = error.args[0] if error.args else error
    return text.decode() if isinstance(text, bytes) else str(text)
