"""The frames that a camera is calibrated from: found, checked, grouped by ISO."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from lsid_ray import storage
from lsid_ray.errors import InputError
from lsid_ray.raw.frame import FrameMetadata, RawFrame, read_raw
from lsid_ray.raw.mosaic import black_mosaic
from lsid_ray.raw.names import RAW_SUFFIXES

MAX_OFFSET = 0.003  # of a dark frame's mean from the black level, relative to the range; 48 DN of 14 bits
MAX_SHADING = 1.0  # variation of a dark frame's level over the frame, relative to its noise
MIN_SHADING = 1.5e-4  # relative to the range: less is never refused; 2.4 DN of 14 bits
MAX_ZEROS = 0.01  # share of a dark frame's sensels
MAX_RANGE_RATIO = 1.25  # of the ranges of two frames; a bit is a factor of 2
BLOCK, MIN_BLOCKS_PER_SIDE = 32, 2  # side of a block of the photon transfer, in sensels of one CFA position
_BLOCKS = 16  # per side


@dataclass(frozen=True, eq=False)
class Shot:
    """A raw file of a calibration, without its pixels."""

    path: Path
    metadata: FrameMetadata
    size: tuple[int, int]
    sha256: str
    """Of the mosaic."""

    @property
    def iso(self) -> int:
        """ISO, rounded; `read_shots` makes sure that there is one."""
        return round(self.metadata.iso or 0)

    @property
    def range(self) -> float:
        """White level above black, DN."""
        return self.metadata.white - float(np.mean(self.metadata.black))


def find_raw_files(folder: Path, option: str) -> tuple[list[Path], list[Path]]:
    """The raw files in a folder and the folders in it, by name, and its other files.

    Raises: InputError if there is no such folder, or no raw file in it.
    """
    if not folder.is_dir():
        raise InputError(f"{option} {folder}: {'not a folder' if folder.exists() else 'no such folder'}")
    files = [folder / name for name in sorted(storage.list_files(folder)) if not Path(name).name.startswith(".")]
    raw_files = [file for file in files if file.suffix.lower() in RAW_SUFFIXES]
    if not raw_files:
        kind = "is empty" if not files else f"none of its {len(files)} files is a raw file"
        raise InputError(f"{option} {folder}: {kind}; expected raw files as the camera writes them")
    return raw_files, [file for file in files if file not in raw_files]


def read_shots(files: list[Path], check: Callable[[Path, RawFrame], None], progress: Callable[[], None]) -> list[Shot]:
    """Read raw files. check: called with each frame, to refuse it. progress: called after each file.

    Raises: InputError if a file cannot be read or has no ISO, or if two have the same pixels.
    """
    shots: dict[str, Shot] = {}
    for path in files:
        frame = read_raw(path)
        if not frame.iso:
            raise InputError(f"{path}: no ISO in the file; expected one, since noise is measured for each ISO")
        check(path, frame)
        shot = _shot(path, frame)
        if shot.sha256 in shots:
            raise InputError(f"{path}: the same pixels as {shots[shot.sha256].path}; expected different frames")
        shots[shot.sha256] = shot
        progress()
    return list(shots.values())


def _shot(path: Path, frame: RawFrame) -> Shot:
    metadata = FrameMetadata(**{field.name: getattr(frame, field.name) for field in fields(FrameMetadata)})
    sha256 = hashlib.sha256(np.ascontiguousarray(frame.mosaic)).hexdigest()
    return Shot(path, metadata, frame.mosaic.shape, sha256)


def check_one_camera(shots: list[Shot]) -> None:
    """Raises: InputError if two shots are of different cameras, sizes, CFAs or bit depths, or if they are tiny."""
    first = shots[0]
    side = MIN_BLOCKS_PER_SIDE * math.isqrt(len(first.metadata.cfa)) * BLOCK
    if min(first.size) < side:
        size = f"{first.size[0]}x{first.size[1]}"
        raise InputError(f"{first.path}: {size} sensels; expected at least {side} on each side")
    for shot in shots:
        ratio = shot.range / first.range
        if _kind(shot) != _kind(first) or not 1 / MAX_RANGE_RATIO < ratio < MAX_RANGE_RATIO:
            expected = f"expected all frames of one camera and mode, but {first.path} is {_text(first)}"
            raise InputError(f"{shot.path}: {_text(shot)}; {expected}")


def _kind(shot: Shot) -> tuple[str, tuple[int, int], str]:
    return shot.metadata.camera, shot.size, shot.metadata.cfa


def _text(shot: Shot) -> str:
    levels = f"levels {np.mean(shot.metadata.black):g} to {shot.metadata.white:g}"
    return f"{shot.metadata.camera}, {shot.size[0]}x{shot.size[1]}, {shot.metadata.cfa}, {levels}"


def above_black(frame: RawFrame, rows: slice = slice(None)) -> np.ndarray:
    """Rows of a mosaic minus its black level: (h, W) float32, DN."""
    return frame.mosaic[rows] - black_mosaic(frame.black, *frame.mosaic.shape)[rows]


def check_dark(path: Path, frame: RawFrame) -> None:
    """Check that a frame was taken with the lens cap on.

    Raises: InputError if its noise is cut off at 0, if its mean is far from the black level, or if the means of 16x16
    blocks of it (without the outermost 2% at either end) differ by more than its noise. Measured errors of the black
    level are up to 3 DN of 14 bits (PMN, Sony A7S II).
    """
    zeros = float(np.mean(frame.mosaic == 0))
    if zeros > MAX_ZEROS:
        raise InputError(f"{path}: {zeros:.0%} of its sensels are 0; its noise below black is cut off, not measurable")
    signal = above_black(frame)
    full_range = frame.white - float(np.mean(frame.black))
    mean = float(signal.mean(dtype=np.float64))
    if abs(mean) > MAX_OFFSET * full_range:
        limit = f"at most {MAX_OFFSET * full_range:.0f} DN from it with the lens cap on"
        raise InputError(f"{path}: its mean is {mean:.1f} DN from the black level; expected {limit}")
    height, width = (side // _BLOCKS * _BLOCKS for side in signal.shape)
    blocks = signal[:height, :width].reshape(_BLOCKS, height // _BLOCKS, _BLOCKS, width // _BLOCKS)
    low, high = np.percentile(blocks.mean(axis=(1, 3)), (2, 98))
    period = math.isqrt(len(frame.cfa))
    differences = (signal[::period, period:] - signal[::period, :-period]).ravel()
    noise = float(differences[np.abs(differences) <= np.percentile(np.abs(differences), 99.9)].std() / math.sqrt(2))
    if high - low > max(MAX_SHADING * noise, MIN_SHADING * full_range):
        raise InputError(
            f"{path}: its level varies by {high - low:.1f} DN over the frame, at a noise of {noise:.1f} DN; expected "
            "none with the lens cap on: light has leaked in, or the sensor glows"
        )
