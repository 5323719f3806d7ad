"""Enhance a user's raw files: a single file in this process, several over the Ray cluster."""

import os
import platform
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from lsid_ray import cluster, storage
from lsid_ray.capacity import check_task, current_capacity
from lsid_ray.data.parallel import parallel_map
from lsid_ray.errors import InputError
from lsid_ray.inference.bands import MEMORY_BYTES
from lsid_ray.inference.frame import enhance_raw
from lsid_ray.inference.image_file import write_image
from lsid_ray.inference.self_ensemble import ORIENTATIONS, check_self_ensemble
from lsid_ray.model.checkpoint import load_generator
from lsid_ray.model.generator import Generator
from lsid_ray.raw.frame import RawFrame, read_raw
from lsid_ray.raw.mosaic import amplification_ratio
from lsid_ray.raw.names import RAW_SUFFIXES
from lsid_ray.raw.plausibility import oddities
from lsid_ray.raw.ratio import estimate_ratio
from lsid_ray.storage import AnyPath

THREADS = 4  # per network on CPUs, if the nodes have that many; more actors gain more than more threads
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
class EnhancePlan:
    """Which raw files to enhance, and which images exist."""

    todo: tuple[tuple[AnyPath, AnyPath], ...]
    """Raw file and image to write."""
    existing: tuple[AnyPath, ...]
    """Images that are not overwritten."""
    problems: tuple[tuple[AnyPath, str], ...]
    """Raw files that cannot be enhanced, each with the reason."""


def plan_files(inputs: list[AnyPath], out: AnyPath, suffix: str, overwrite: bool) -> EnhancePlan:
    """Plan the image of each raw file, including all raw files below each folder, whose subfolders are kept in `out`.

    Symlinks to folders are not followed, which rules out cycles. Raises InputError for a path that does not exist, or
    a folder without raw files.
    """
    targets: dict[AnyPath, AnyPath] = {}
    todo, existing, problems = [], [], []
    for path in inputs:
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
        if path.is_dir():
            raw_files, unreadable = _raw_files(path)
            targets_in_folder = {raw: out / raw.relative_to(path).with_suffix(suffix) for raw in raw_files}
            problems += unreadable
            if not targets_in_folder and not unreadable:
                raise InputError(f"{path}: no raw file in this folder; expected some, such as .arw, .nef or .dng")
            targets |= targets_in_folder
        else:
            targets[path] = out / path.with_suffix(suffix).name
    sources: dict[AnyPath, list[AnyPath]] = {}
    for source, target in targets.items():
        sources.setdefault(target, [])
        if not any(source.samefile(other) for other in sources[target] if source.exists() and other.exists()):
            sources[target].append(source)
    for target, files in sorted(sources.items()):
        if len(files) > 1:
            others = {file: next(other for other in files if other != file) for file in files}
            reason = f"would be written to {target} too: enhance them with different --out"
            problems += [(file, f"{other} {reason}") for file, other in others.items()]
        elif target.exists() and not overwrite:
            existing.append(target)
        elif isinstance(files[0], Path) and os.path.exists(files[0]) and not os.path.isfile(files[0]):
            problems.append((files[0], "not a file"))
        else:
            todo.append((files[0], target))
    return EnhancePlan(tuple(todo), tuple(existing), tuple(problems))


def _raw_files(folder: AnyPath) -> tuple[list[AnyPath], list[tuple[AnyPath, str]]]:
    """The raw files below a folder, and the folders that cannot be read, each with the reason; none that is hidden."""

    def is_hidden(path: AnyPath) -> bool:
        return any(part.startswith(".") for part in path.relative_to(folder).parts)

    errors: list[OSError] = []
    paths = [folder / name for name in sorted(storage.list_files(folder, errors.append))]
    raw_files = [path for path in paths if path.suffix.lower() in RAW_SUFFIXES and not is_hidden(path)]
    unreadable = [(storage.to_path(error.filename), error.strerror) for error in errors]
    return raw_files, [(path, reason) for path, reason in unreadable if not is_hidden(path)]


@dataclass(frozen=True)
class EnhancedFile:
    """The result of one raw file."""

    source: AnyPath
    target: AnyPath
    ratio_text: str
    """Amplification ratio and its origin, such as "x120 (estimated)"; empty if it is unknown."""
    seconds: float
    error: str
    """Why there is no image; empty if there is one."""
    oddities: str = ""
    """As `raw.plausibility.oddities`."""


def enhance_files(
    checkpoint: AnyPath,
    todo: tuple[tuple[AnyPath, AnyPath], ...],
    amplification: Amplification,
    *,
    memory_bytes: int = MEMORY_BYTES,
    use_gpu: bool = False,
    self_ensemble: bool = False,
) -> Iterator[EnhancedFile]:
    """Enhance raw files and write their images; yields each result as soon as it is ready, in any order.

    A single file is enhanced in this process, several over the Ray cluster, where each process loads the
    network once. A file that fails leaves no image and does not stop the others.
    memory_bytes: see `predict_bands`. self_ensemble: see `enhance_raw`. Raises InputError if the checkpoint is missing
    or broken, if there is no GPU, or for a self-ensemble at half resolution.
    """
    generator, _ = load_generator(checkpoint)  # fail early, not in every process
    if self_ensemble:
        check_self_ensemble(generator)
    label = str(checkpoint) + (f", mean of {len(ORIENTATIONS)} orientations" if self_ensemble else "")
    call = uuid.uuid4().hex
    options = (str(checkpoint.resolve()), label, amplification, memory_bytes, use_gpu, self_ensemble, call)
    pairs = {(str(source.absolute()), str(target.absolute())): (source, target) for source, target in todo}
    if len(pairs) > 1:
        cluster.connect()
        threads = 1 if use_gpu else _threads()
        if use_gpu:
            check_task({"CPU": threads, "GPU": 1}, "--use-gpu: ")
        results = parallel_map(_enhance, list(pairs), *options, threads, cpus=threads, gpus=int(use_gpu))
    else:
        results = ((paths, _enhance(paths, *options)) for paths in pairs)
    lost = ("", 0.0, "the process died twice, perhaps out of memory: try a lower --memory-gb")
    for paths, result in results:
        yield EnhancedFile(*pairs[paths], *(result or lost))


def _threads() -> int:
    """Threads, and so CPUs, per frame: THREADS, or as many as the smallest node has."""
    capacity = current_capacity()
    cpus = [int(node.get("CPU", 0)) for node in (*capacity.alive, *(capacity.limit or ()))]
    return min(THREADS, min(filter(None, cpus), default=1))


@lru_cache(maxsize=1)
def _load(checkpoint: str, use_gpu: bool, call: str) -> tuple[Generator, torch.device]:
    """The network, loaded once per process and call of `enhance_files`, between which the checkpoint may change."""
    device = prediction_device(use_gpu)
    return load_generator(checkpoint)[0].to(device), device


def prediction_device(use_gpu: bool) -> torch.device:
    """The first GPU that this process may use, or the CPU. Raises: InputError if PyTorch finds no GPU."""
    if use_gpu and not torch.cuda.is_available():
        raise InputError(f"--use-gpu: PyTorch finds no GPU on {platform.node()}; leave the option out to use CPUs")
    return torch.device("cuda" if use_gpu else "cpu")


def _enhance(
    paths: tuple[str, str],
    checkpoint: str,
    label: str,
    amplification: Amplification,
    memory_bytes: int,
    use_gpu: bool,
    self_ensemble: bool,
    call: str,
    threads: int = 0,
) -> tuple[str, float, str, str]:
    """Enhance a raw file and write its image; returns the last four fields of `EnhancedFile`."""
    if threads:
        torch.set_num_threads(threads)
    generator, device = _load(checkpoint, use_gpu, call)
    source, target = (storage.to_path(path) for path in paths)
    local_path = source
    start = time.perf_counter()
    ratio_text = error = odd = ""
    try:
        with storage.local_copy(source) as local_path:
            frame = read_raw(local_path)
        odd = oddities(frame)
        ratio, ratio_text = amplification.for_frame(frame)
        image = enhance_raw(generator, frame, ratio, device, memory_bytes, self_ensemble)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_image(target, image, frame, f"amplified {ratio_text}, enhanced by lsid_ray with {label}")
    except (InputError, OSError, MemoryError, torch.OutOfMemoryError) as exception:
        error = str(exception).removeprefix(f"{local_path}: ") or type(exception).__name__
    except Exception as exception:  # a damaged file can raise anything, and must not stop the other files
        error = f"{type(exception).__name__}: {exception}"
    return ratio_text, time.perf_counter() - start, error, odd
