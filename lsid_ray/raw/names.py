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
_TIME = r"(?P<time>[0-9]*[.,]?[0-9]+)(?:[-/](?P<divisor>[0-9]+))?(?P<unit>ms|s|S)"  # 0.04s, 0,04s, 1-25s, 40ms
_SID_NAME = re.compile(rf"(?P<scene>[012][0-9]{{4}})_(?P<frame>[0-9]{{2,}})(?:_{_TIME})?")
_EXPOSURE = re.compile(rf"_{_TIME}(?:\.[^.]*)?$")


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
    return match and SidName(match["scene"], int(match["frame"]), _seconds(match))


def exposure_from_name(name: str) -> float | None:
    """Exposure time in seconds from the end of any file name ("10003_00_0.04s.ARW" -> 0.04); None if it has none."""
    match = _EXPOSURE.search(name)
    return _seconds(match) if match else None


def _seconds(match: re.Match) -> float | None:
    """The exposure time of a name; None if it has none, or 0."""
    if match["time"] is None:
        return None
    seconds = float(match["time"].replace(",", "."))
    if match["unit"] == "ms":
        seconds /= 1000
    divisor = int(match["divisor"] or 1)
    return seconds / divisor if seconds > 0 and divisor else None
