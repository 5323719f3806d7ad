"""Dark frames of a camera, kept beside its file: read noise is drawn from them instead of from a distribution.

They have what no distribution has: banding, noise that columns share, the fixed pattern, hot pixels. As in "sampling
from real noise" (Zhang et al., "Rethinking Noise Synthesis and Modeling in Raw Denoising", ICCV 2021), crops begin at
the phase of the CFA that the noise is for, and what rounding took away is filled in, here by uniform noise. Other than
in "Noise Modeling in One Hour" (Li et al., CVPR 2025, arXiv 2505.00045) the dark shading stays in them, since it is not
taken from the frames that a network is to enhance. No frame serves two splits: a network could learn the noise of the
few frames by heart.

The file is NumPy's .npz: of each ISO its frames, ISO_0, ISO_1 and so on, (H, W) uint16 as they were recorded, and
ISO_black, (N, 4) or (N, 36), their black levels by CFA position in DN.
"""

import hashlib
import math
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lsid_ray import storage
from lsid_ray.errors import InputError
from lsid_ray.raw.frame import RawFrame, read_raw
from lsid_ray.raw.mosaic import black_mosaic, layout_of, phase_padding
from lsid_ray.storage import AnyPath
from lsid_ray.synthesis.camera import CameraNoise

MIN_FRAMES, MAX_FRAMES = 4, 64  # per ISO; one is for the test split, one for validation
COMPRESSION = 1  # of zlib: 0.76 bytes per sensel at a noise of 5 DN; level 6 takes ten times as long for 0.73


def frames_path(camera_file: AnyPath) -> AnyPath:
    """Where the dark frames of a camera's file are: beside it, NAME.dark.npz for NAME.json."""
    return camera_file.parent / f"{camera_file.stem}.dark.npz"


def write_dark_frames(path: AnyPath, files: dict[int, list[Path]], count: Callable[[], None]) -> str:
    """Write the dark frames of each ISO, raw files of one camera, atomically; returns the SHA-256 of the file.

    count: called after each frame.
    """
    with (
        storage.atomic_write(path) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=COMPRESSION) as archive,
    ):

        def write(name: str, array: np.ndarray) -> None:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)

        for iso, paths in files.items():
            levels = []
            for number, raw_file in enumerate(paths):
                frame = read_raw(raw_file)
                write(f"{iso}_{number}", np.ascontiguousarray(frame.mosaic))
                levels.append(frame.black)
                count()
            write(f"{iso}_black", np.array(levels))
    return _sha256(path)


@dataclass(frozen=True, eq=False)
class DarkFrames:
    """The dark frames of a camera."""

    file: Path
    camera: CameraNoise
    black: dict[int, np.ndarray]
    """Of each ISO: (N, 4) or (N, 36), the black levels of its N frames in DN."""

    def crop(self, clean: RawFrame, iso: int, split: str, rng: np.random.Generator) -> np.ndarray:
        """A random crop of a random dark frame, for a frame without noise: float32 of its shape, DN above black.

        The crop begins at the phase of the clean frame's CFA; DN are those of the camera's range. Uniform noise of one
        step stands for what rounding took: rounded again, the crop is that of the dark frame, but a signal below one
        step is not lost as it would be among whole numbers. split: train, validation or test, each has its own frames.
        Raises: InputError if the dark frames are smaller than the clean one, or of another layout.
        """
        own, shape = self.camera.sensor.cfa, clean.mosaic.shape
        layout = layout_of(own)
        if layout_of(clean.cfa) != layout:
            raise InputError(
                f"{clean.source}: its CFA is {layout_of(clean.cfa).kind}, but {self.camera.name} has dark frames of "
                f"{layout.kind}; leave the file out"
            )
        number = _draw(len(self.black[iso]), split, rng)
        frame, period = self._read(f"{iso}_{number}"), layout.period
        phases = zip(phase_padding(clean.cfa, *shape)[::2], phase_padding(own, *shape)[::2], strict=True)
        first = [(wanted - phase) % period for wanted, phase in phases]
        spaces = [side - size - start for side, size, start in zip(frame.shape, shape, first, strict=True)]
        if min(spaces) < 0:
            scale = min((side - period) / size for side, size in zip(frame.shape, shape, strict=True))
            fitting = math.floor(scale * max(shape))
            raise InputError(
                f"{clean.source}: {shape[0]}x{shape[1]} pixels, but the dark frames of {self.camera.name} have "
                f"{frame.shape[0]}x{frame.shape[1]}; it fits with --max-side {fitting}, and one of any "
                f"shape with {min(frame.shape) - period}"
            )
        top, left = (
            start + period * int(rng.integers(space // period + 1)) for start, space in zip(first, spaces, strict=True)
        )
        window = (slice(top, top + shape[0]), slice(left, left + shape[1]))
        noise = frame[window] - black_mosaic(tuple(self.black[iso][number]), *frame.shape)[window]
        return noise + (rng.random(shape, np.float32) - np.float32(0.5))

    def _read(self, member: str) -> np.ndarray:
        with np.load(self.file) as archive:
            return archive[member]


def _draw(count: int, split: str, rng: np.random.Generator) -> int:
    """The number of a frame: the first of `count` is for test, the second for validation, the others for training."""
    match split:
        case "test":
            return 0
        case "validation":
            return 1
        case _:
            return int(rng.integers(2, count))


@contextmanager
def open_dark_frames(option: str, camera_file: AnyPath, camera: CameraNoise) -> Iterator[DarkFrames | None]:
    """The dark frames of a camera; None if it has none. option: names them in errors.

    Raises: InputError if their file is missing or is not the one that was written with the camera's.
    """
    if camera.dark_frames is None:
        yield None
        return
    path = frames_path(camera_file)
    expected = "expected the file that jobs/calibrate.py has written beside it; keep both together, or calibrate again"
    if not path.is_file():
        raise InputError(f"{option}: its dark frames, {path}, are missing; {expected}")
    with storage.local_copy(path) as local:
        if _sha256(local) != camera.dark_frames:
            raise InputError(f"{option}: {path} does not have this camera's dark frames; {expected}")
        with np.load(local) as archive:
            names = set(archive.files)
            black = {iso: archive[f"{iso}_black"] for iso in camera.by_iso if f"{iso}_black" in names}
        if missing := [str(iso) for iso in camera.by_iso if len(black.get(iso, ())) < MIN_FRAMES]:
            raise InputError(f"{option}: {path} has no {MIN_FRAMES} frames of ISO {', '.join(missing)}; {expected}")
        yield DarkFrames(local, camera, black)


def _sha256(path: AnyPath) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(storage.COPY_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
