"""File names: the suffixes of raw files, and the scene, burst frame and exposure time in a name of SID's pattern."""

import re
from typing import NamedTuple

# fmt: off
RAW_SUFFIXES = (
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dng", ".erf", ".fff", ".iiq", ".kdc", ".mef", ".mos", ".mrw", ".nef",
    ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f",
)
# fmt: on
SPLITS = {"0": "train", "1": "test", "2": "validation"}  # by the first digit of the scene
_SID_NAME = re.compile(r"(?P<scene>[012]\d{4})_(?P<frame>\d{2,})(?:_(?P<exposure_s>\d+(?:\.\d+)?)s)?")
_EXPOSURE = re.compile(r"_(\d+(?:\.\d+)?)s(?:\.[^.]*)?$")


class SidName(NamedTuple):
    """The parts of "10003_00_0.04s"."""

    scene: str
    """Five digits: "10003"."""
    frame: int
    """Number within the burst, from 0."""
    exposure_s: float | None
    """Seconds; None if the name has no exposure time, or 0."""


def parse_sid_name(stem: str) -> SidName | None:
    """Parse a file name without its suffix; returns None if it does not follow SID's pattern."""
    match = _SID_NAME.fullmatch(stem)
    return match and SidName(match["scene"], int(match["frame"]), float(match["exposure_s"] or 0) or None)


def exposure_from_name(name: str) -> float | None:
    """Exposure time in seconds from the end of any file name ("10003_00_0.04s.ARW" -> 0.04); None if it has none."""
    match = _EXPOSURE.search(name)
    seconds = float(match.group(1)) if match else 0.0
    return seconds if seconds > 0 else None
