"""Exposure time, ISO and aperture of a raw file: LibRaw's, unless the EXIF tags say otherwise.

LibRaw 0.22 reads a rational with a denominator of 0 as its numerator (1/0 s as 1 s), and of an ISO above 65535, which
has tags of its own, some as 65535 or modulo 65536. Source: EXIF 2.3, tables 7 and 8 and annex G.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rawpy
import tifffile

from lsid_ray.raw.tiff import tiff_pages

EXIF_DIRECTORY = 34665
MAX_EXPOSURE_S = 86400.0  # a longer time means that the tag is damaged
MAX_SHORT = 65535  # what PhotographicSensitivity holds of an ISO that is larger
RATIONALS = ("ExposureTime", "ShutterSpeedValue", "FNumber", "ApertureValue")
LARGE_ISO = ("RecommendedExposureIndex", "StandardOutputSensitivity", "ISOSpeed")
ISO_OF_TYPE = {1: LARGE_ISO[1], 2: LARGE_ISO[0], 3: LARGE_ISO[2], 4: LARGE_ISO[1], 5: LARGE_ISO[1], 6: LARGE_ISO[0]}


@dataclass(frozen=True)
class Exposure:
    """Of a file, without regard to its name; None where the file does not say."""

    exposure_s: float | None
    iso: float | None
    aperture: float | None
    """The f-number."""
    remarks: tuple[str, ...]
    """Tags that are damaged."""


def exposure_of(raw: rawpy.RawPy, path: Path) -> Exposure:
    """The exposure of an open file, as exact as LibRaw's float32."""
    shutter_s, iso, aperture = map(shortest_decimal, (raw.other.shutter_speed, raw.other.iso_speed, raw.other.aperture))
    tags = _exif(path)
    # LibRaw returns 1 s, f/1 and ISO 0 for a file whose exposure tags are all zero, or missing.
    if (shutter_s, iso, aperture) == (1, 0, 1) and not _number(tags, "ExposureTime"):
        shutter_s = aperture = 0.0
    shutter_s = _setting(tags, "ExposureTime", "ShutterSpeedValue", -1, shutter_s)
    aperture = _setting(tags, "FNumber", "ApertureValue", 0.5, aperture)
    iso = _iso(tags, iso)
    return Exposure(
        exposure_s=shutter_s if 0 < shutter_s < MAX_EXPOSURE_S else None,
        iso=iso if 0 < iso < 1e7 else None,
        aperture=aperture if 0 < aperture < 1000 else None,
        remarks=tuple(_damage(tags, ("ExposureTime", "FNumber"))),
    )


def shortest_decimal(value: float) -> float:
    """The shortest decimal that rounds to this float32: LibRaw's 0.03999999910593033 becomes the camera's 0.04."""
    return float(str(np.float32(value)))


def _exif(path: Path) -> dict[str, Any]:
    """Names and values of the EXIF directory; empty if there is none that can be read."""
    try:
        with tifffile.TiffFile(path) as file:
            return next(_exif_directories(file), {})
    except Exception:  # not a TIFF, or damaged tags: LibRaw's values are used
        return {}


def _exif_directories(file: tifffile.TiffFile) -> Iterator[dict[str, Any]]:
    for page in tiff_pages(file):
        if EXIF_DIRECTORY in page.tags and isinstance(page.tags[EXIF_DIRECTORY].value, dict):
            yield page.tags[EXIF_DIRECTORY].value


def _setting(tags: dict[str, Any], name: str, stops_name: str, octaves_per_stop: float, libraws: float) -> float:
    """LibRaw's number, or if that is of a damaged tag, the one from the tag in stops; 0 if there is none."""
    stops = _number(tags, stops_name)
    if _number(tags, name) or (name not in tags and (stops is not None or stops_name not in tags)):
        return libraws
    # 0 stops beside an empty tag are empty, too, as in files whose tags are all zero
    return 0.0 if not stops else shortest_decimal(2.0 ** (octaves_per_stop * min(max(stops, -30.0), 30.0)))


def _iso(tags: dict[str, Any], libraws: float) -> float:
    """The ISO of the tags if it is one that LibRaw does not read, else LibRaw's."""
    plain = next(filter(None, (_number(tags, name) for name in ("PhotographicSensitivity", "ISOSpeedRatings"))), 0.0)
    if plain > MAX_SHORT:
        return plain
    if libraws in (0, MAX_SHORT) and plain in (0, MAX_SHORT):
        names = (ISO_OF_TYPE.get(_number(tags, "SensitivityType"), ""), *LARGE_ISO)
        return next(filter(None, (_number(tags, name) for name in names)), libraws)
    return libraws


def _number(tags: dict[str, Any], name: str) -> float | None:
    """A tag's first number; None if there is none, or its denominator is 0."""
    value = tags.get(name)
    try:
        if isinstance(value, tuple) and name in RATIONALS:
            return value[0] / value[1] if value[1] else None
        return float(value[0] if isinstance(value, tuple) else value)
    except (IndexError, TypeError, ValueError):
        return None


def _damage(tags: dict[str, Any], names: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        value = tags.get(name)
        if isinstance(value, tuple) and len(value) == 2 and value[0] and not value[1]:
            yield f"its {name} is {value[0]}/0"
