"""A user's own raw files as enhanced photographs: each file for itself, one here or many over the cluster."""

import itertools
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import ray
import ray.data
import torch
from ray.data import ActorPoolStrategy, DataContext
from ray.util.annotations import RayDeprecationWarning

from lsid_ray import storage
from lsid_ray.cluster import starting_actors
from lsid_ray.data.catalog import RAW_SUFFIXES
from lsid_ray.errors import InputError
from lsid_ray.evaluate.enhance import enhance_bands
from lsid_ray.evaluate.picture import write_picture
from lsid_ray.evaluate.predict import MEMORY_BYTES
from lsid_ray.model.checkpoint import load_generator
from lsid_ray.model.generator import Generator
from lsid_ray.raw.develop import upright
from lsid_ray.raw.frame import RawFrame, read_raw
from lsid_ray.raw.mosaic import amplification_ratio, pack
from lsid_ray.raw.ratio import estimate_ratio
from lsid_ray.storage import AnyPath

THREADS = 4  # of one network on CPUs, where a node has so many; more photographs at once gain more than more threads
MOST_RATIO = 100_000.0


@dataclass(frozen=True)
class Amplification:
    """By how much to amplify: a ratio, an exposure time to come to, or with neither what the mosaic tells."""

    ratio: float | None = None
    exposure_s: float | None = None

    @staticmethod
    def of(text: str) -> "Amplification":
        """Read "auto", "120" or "10s". Raises InputError for anything else, or a ratio below 1."""
        try:
            if text == "auto":
                return Amplification()
            value = float(text.removesuffix("s"))
        except ValueError:
            value = 0.0
        if text.endswith("s") and 0 < value < MOST_RATIO:
            return Amplification(exposure_s=value)
        if not text.endswith("s") and 1 <= value <= MOST_RATIO:
            return Amplification(ratio=value)
        raise InputError(f"--ratio is {text}: expected a number from 1, an exposure time such as 10s, or auto")

    def for_frame(self, frame: RawFrame) -> tuple[float, str]:
        """The ratio for a frame, and in words where it comes from. Raises InputError when it cannot be known."""
        if self.ratio is not None:
            return self.ratio, f"x{self.ratio:.4g}"
        if self.exposure_s is None:
            ratio = estimate_ratio(frame)
            return ratio, f"x{ratio:.3g} (estimated)"
        if frame.exposure_s is None:
            raise InputError(f"no exposure time in the file, so none to come to {self.exposure_s:g} s from")
        ratio = amplification_ratio(self.exposure_s, frame.exposure_s)
        return ratio, f"x{ratio:.3g} ({frame.exposure_s:g} s to {self.exposure_s:g} s)"


@dataclass(frozen=True)
class Plan:
    """What is to be done of what was asked."""

    todo: tuple[tuple[AnyPath, AnyPath], ...]
    """Raw file and its picture."""
    existing: tuple[AnyPath, ...]
    """Pictures that are there already."""
    problems: tuple[tuple[AnyPath, str], ...]
    """Raw files that cannot be done, each with the reason."""


def plan(inputs: list[AnyPath], out: AnyPath, suffix: str, overwrite: bool) -> Plan:
    """Which pictures to make: of each raw file, and of each raw file below each folder, its folders kept below `out`.

    Links to folders are not followed, so that none is walked in circles. Raises InputError for a path that does not
    exist, or a folder without raw files.
    """
    sources: dict[AnyPath, AnyPath] = {}
    for path in inputs:
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
        if path.is_dir():
            found = {raw: out / raw.relative_to(path).with_suffix(suffix) for raw in _raw_files(path)}
            if not found:
                raise InputError(f"{path}: holds no raw file")
            sources |= found
        else:
            sources[path] = out / path.with_suffix(suffix).name
    wanted: dict[AnyPath, list[AnyPath]] = {}
    for source, target in sources.items():
        wanted.setdefault(target, [])
        if not any(source.samefile(other) for other in wanted[target] if source.exists() and other.exists()):
            wanted[target].append(source)
    todo, existing, problems = [], [], []
    for target, files in sorted(wanted.items()):
        if len(files) > 1:
            others = {file: next(other for other in files if other != file) for file in files}
            problems += [(file, f"{other} would become {target} too") for file, other in others.items()]
        elif target.exists() and not overwrite:
            existing.append(target)
        else:
            todo.append((files[0], target))
    return Plan(tuple(todo), tuple(existing), tuple(problems))


def _raw_files(folder: AnyPath) -> Iterator[AnyPath]:
    for name in sorted(storage.files_below(folder)):
        inside = PurePosixPath(name)
        if inside.suffix.lower() in RAW_SUFFIXES and not any(part.startswith(".") for part in inside.parts):
            yield folder / name


@dataclass(frozen=True)
class Delivered:
    """What became of one raw file."""

    source: AnyPath
    target: AnyPath
    amplified: str
    """By how much, and where that comes from."""
    seconds: float
    error: str
    """Why there is no picture; empty when there is one."""


def deliver(
    checkpoint: AnyPath,
    todo: tuple[tuple[AnyPath, AnyPath], ...],
    amplification: Amplification,
    *,
    memory_bytes: int = MEMORY_BYTES,
    use_gpu: bool = False,
) -> Iterator[Delivered]:
    """Enhance raw files and write their pictures; yields each as it is done, in no set order.

    A single file is done in this process; several over the connected Ray cluster, where each actor loads the
    network once. A file that fails leaves no picture and does not stop the others.
    memory_bytes: as `predict_bands`. Raises InputError when the checkpoint or a GPU is missing.
    """
    load_generator(checkpoint)  # a mistake shows here, not in every actor
    options = (str(checkpoint.resolve()), str(checkpoint), amplification, memory_bytes, use_gpu)
    rows = [{"source": str(source.absolute()), "target": str(target.absolute())} for source, target in todo]
    names = {row["source"]: pair for row, pair in zip(rows, todo, strict=True)}
    gpus = torch.cuda.device_count() if len(rows) == 1 else ray.cluster_resources().get("GPU", 0)
    if use_gpu and not gpus:
        raise InputError("--use-gpu: there is no GPU")
    if len(rows) == 1:
        results: Any = map(_Enhancer(*options), rows)
    else:
        cpus = [node["Resources"]["CPU"] for node in ray.nodes() if node["Alive"] and "CPU" in node["Resources"]]
        threads = 1 if use_gpu else min(THREADS, *cpus)
        size = gpus if use_gpu else sum(count // threads for count in cpus)
        context = DataContext.get_current().copy()
        context.max_errored_blocks = -1  # a process that dies (memory, a decoder's crash) costs its own file only
        with DataContext.current(context), warnings.catch_warnings():
            warnings.simplefilter("ignore", RayDeprecationWarning)  # of the last argument, which has no other name yet
            dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
                _Enhancer,
                fn_constructor_args=options,
                compute=ActorPoolStrategy(
                    min_size=1, max_size=int(min(size, len(rows))), max_tasks_in_flight_per_actor=1
                ),
                num_cpus=threads,
                num_gpus=1 if use_gpu else 0,
                ray_remote_args_fn=lambda: {"max_task_retries": 0},
            )
            batches = iter(dataset.iter_batches(batch_size=1, prefetch_batches=0))  # or each waits for the next
            with starting_actors():
                first = list(itertools.islice(batches, 1))
        results = ({name: values[0] for name, values in batch.items()} for batch in itertools.chain(first, batches))
    for row in results:
        source, target = names.pop(str(row["source"]))
        yield Delivered(source, target, str(row["amplified"]), float(row["seconds"]), str(row["error"]))
    for source, target in names.values():
        yield Delivered(source, target, "", 0.0, "the process that worked on it died (out of memory?)")


class _Enhancer:
    """A network that stays loaded; called with a file's row it writes the picture."""

    def __init__(self, checkpoint: str, label: str, amplification: Amplification, memory_bytes: int, use_gpu: bool):
        self.device = torch.device("cuda" if use_gpu else "cpu")
        self.generator = load_generator(checkpoint)[0].to(self.device)
        self.label, self.amplification, self.memory_bytes = label, amplification, memory_bytes

    def __call__(self, row: dict[str, str]) -> dict[str, Any]:
        source, target = storage.path(row["source"]), storage.path(row["target"])
        here = source
        start = time.perf_counter()
        amplified = error = ""
        try:
            with storage.local(source) as here:
                frame = read_raw(here)
            ratio, amplified = self.amplification.for_frame(frame)
            image = photograph(self.generator, frame, ratio, self.device, self.memory_bytes)
            target.parent.mkdir(parents=True, exist_ok=True)
            write_picture(target, image, frame, f"amplified {amplified}, enhanced by lsid_ray with {self.label}")
        except (InputError, OSError, MemoryError, torch.OutOfMemoryError) as problem:
            error = str(problem).removeprefix(f"{here}: ") or type(problem).__name__
        return {**row, "amplified": amplified, "seconds": time.perf_counter() - start, "error": error}


def photograph(
    generator: Generator, frame: RawFrame, ratio: float, device: torch.device, memory_bytes: int = MEMORY_BYTES
) -> np.ndarray:
    """A raw frame enhanced, upright: (H, W, 3) uint16 sRGB. Raises InputError for another kind of sensor."""
    planes = pack(frame.mosaic, frame.cfa)
    size = frame.mosaic.shape if generator.scale > 1 else planes.shape[1:]
    image = np.empty((*size, 3), np.uint16)
    done = 0
    for band, _ in enhance_bands(generator, planes, frame, ratio, device, memory_bytes):
        image[done : done + len(band)] = (band * 65535).round().cpu().numpy()
        done += len(band)
    return upright(image, frame.orientation)
