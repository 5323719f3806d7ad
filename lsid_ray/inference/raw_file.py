"""One raw file on its way to its image, in three steps: read, predicted, written. No Ray."""

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from lsid_ray import storage
from lsid_ray.errors import InputError
from lsid_ray.inference.frame import enhance_raw
from lsid_ray.inference.image_file import write_image
from lsid_ray.model.checkpoint import load_generator
from lsid_ray.model.generator import Generator
from lsid_ray.raw.frame import RawFrame, read_raw
from lsid_ray.raw.mosaic import amplification_ratio
from lsid_ray.raw.plausibility import oddities
from lsid_ray.raw.ratio import estimate_ratio
from lsid_ray.storage import AnyPath

MAX_USER_RATIO = 100_000.0


@dataclass(frozen=True)
class Amplification:
    """How much to amplify: by a ratio, to a target exposure time, or, with neither, as estimated from the mosaic."""

    ratio: float | None = None
    exposure_s: float | None = None

    @staticmethod
    def parse(text: str) -> "Amplification":
        """Parse "auto", "120" or "10s". Raises InputError for anything else, or a ratio below 1 or above 100,000."""
        try:
            if text == "auto":
                return Amplification()
            value = float(text.removesuffix("s"))
        except ValueError:
            value = 0.0
        if text.endswith("s") and 0 < value < MAX_USER_RATIO:
            return Amplification(exposure_s=value)
        if not text.endswith("s") and 1 <= value <= MAX_USER_RATIO:
            return Amplification(ratio=value)
        raise InputError(
            f"--ratio is {text}: expected a number from 1 to {MAX_USER_RATIO:g}, an exposure time such as 10s, or auto"
        )

    def for_frame(self, frame: RawFrame) -> tuple[float, str]:
        """The ratio for a frame, and a text such as "x120 (estimated)" that shows it with its origin.

        Raises: InputError if there is a target exposure time, but the frame has no exposure time or a longer one.
        """
        if self.ratio is not None:
            return self.ratio, f"x{self.ratio:.4g}"
        if self.exposure_s is None:
            ratio = estimate_ratio(frame)
            return ratio, f"x{ratio:.3g} (estimated)"
        if frame.exposure_s is None:
            raise InputError(
                f"no exposure time in the file, as --ratio {self.exposure_s:g}s needs: use a number or auto"
            )
        ratio = amplification_ratio(self.exposure_s, frame.exposure_s)
        return ratio, f"x{ratio:.3g} ({frame.exposure_s:g} s to {self.exposure_s:g} s)"


@dataclass(frozen=True)
class Options:
    """What all files of a call share."""

    checkpoint: str
    label: str
    """Of the images: the checkpoint as the user named it, and how it was used."""
    amplification: Amplification
    memory_bytes: int
    use_gpu: bool
    self_ensemble: bool
    call: str
    """Of `enhance_files`, between two of which the checkpoint may change."""


@dataclass
class RawFile:
    """A raw file on its way to its image."""

    frame: RawFrame | None = None
    ratio: float = 0.0
    image: np.ndarray | None = None
    ratio_text: str = ""
    """This and the next as in `EnhancedFile`."""
    seconds: float = 0.0
    error: str = ""
    oddities: str = ""
    path: AnyPath | None = None
    """Where it is read from, which errors begin with."""

    @contextmanager
    def step(self) -> Iterator[None]:
        """Time a part of the work; what fails is in `error`."""
        start = time.perf_counter()
        try:
            yield
        except (InputError, OSError, MemoryError, torch.OutOfMemoryError) as exception:
            self.error = str(exception).removeprefix(f"{self.path}: ") or type(exception).__name__
        except Exception as exception:  # a damaged file can raise anything, and must not stop the other files
            self.error = f"{type(exception).__name__}: {exception}"
        self.seconds += time.perf_counter() - start


@lru_cache(maxsize=1)
def load(options: Options) -> tuple[Generator, torch.device]:
    """The network, loaded once per process and call of `enhance_files`."""
    device = prediction_device(options.use_gpu)
    return load_generator(options.checkpoint)[0].to(device), device


def prediction_device(use_gpu: bool) -> torch.device:
    """The first GPU that this process may use, or the CPU. Raises: InputError if PyTorch finds no GPU."""
    if use_gpu and not torch.cuda.is_available():
        raise InputError(f"--use-gpu: PyTorch finds no GPU on {platform.node()}; leave the option out to use CPUs")
    return torch.device("cuda" if use_gpu else "cpu")


def read(source: AnyPath, options: Options) -> RawFile:
    """Decode a raw file and find its ratio."""
    file = RawFile(path=source)
    with file.step(), storage.local_copy(source) as file.path:
        file.frame = read_raw(file.path)
        file.oddities = oddities(file.frame)
        file.ratio, file.ratio_text = options.amplification.for_frame(file.frame)
    return file


def predict(file: RawFile, options: Options) -> None:
    """Enhance the frame, if there is one."""
    generator, device = load(options)
    with file.step():
        if not file.error:
            file.image = enhance_raw(
                generator, file.frame, file.ratio, device, options.memory_bytes, options.self_ensemble
            )


def write(file: RawFile, target: AnyPath, options: Options) -> None:
    """Write the image, if there is one, and drop all pixels."""
    with file.step():
        if not file.error:
            target.parent.mkdir(parents=True, exist_ok=True)
            what = f"amplified {file.ratio_text}, enhanced by lsid_ray with {options.label}"
            write_image(target, file.image, file.frame, what)
    file.frame = file.image = None
