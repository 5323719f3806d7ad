"""Enhance a user's raw files: a single file in this process, several over the Ray cluster."""

import os
import pickle
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lsid_ray import cluster, storage
from lsid_ray.capacity import Resources, check_task, current_capacity
from lsid_ray.data.parallel import parallel_map
from lsid_ray.data.stages import Arrays, staged_map
from lsid_ray.errors import InputError
from lsid_ray.inference import raw_file
from lsid_ray.inference.bands import MEMORY_BYTES
from lsid_ray.inference.raw_file import Amplification, Options, RawFile
from lsid_ray.inference.self_ensemble import ORIENTATIONS, check_self_ensemble
from lsid_ray.model.checkpoint import load_generator
from lsid_ray.raw.names import RAW_SUFFIXES
from lsid_ray.storage import AnyPath

THREADS = 4  # per network on CPUs, if the nodes have that many; more actors gain more than more threads


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
    options = Options(str(checkpoint.resolve()), label, amplification, memory_bytes, use_gpu, self_ensemble, call)
    pairs = {(str(source.absolute()), str(target.absolute())): (source, target) for source, target in todo}
    if len(pairs) > 1:
        cluster.connect()
        if use_gpu:
            check_task({"CPU": 1, "GPU": 1}, "--use-gpu: ")
            results = _enhance_in_stages(list(pairs), options, {"CPU": 0, "GPU": 1})
        else:
            threads = _threads()
            results = parallel_map(_enhance, list(pairs), options, threads, cpus=threads)
    else:
        results = ((paths, _enhance(paths, options)) for paths in pairs)
    lost = RawFile(error="the process died twice, perhaps out of memory: try a lower --memory-gb")
    for paths, result in results:
        file = result or lost
        yield EnhancedFile(*pairs[paths], file.ratio_text, file.seconds, file.error, file.oddities)


def _threads() -> int:
    """Threads, and so CPUs, per frame: THREADS, or as many as the smallest node has."""
    capacity = current_capacity()
    cpus = [int(node.get("CPU", 0)) for node in (*capacity.alive, *(capacity.limit or ()))]
    return min(THREADS, min(filter(None, cpus), default=1))


def _enhance(paths: tuple[str, str], options: Options, threads: int = 0) -> RawFile:
    """Enhance a raw file and write its image. Returns no pixels."""
    if threads:
        torch.set_num_threads(threads)
    source, target = (storage.to_path(path) for path in paths)
    file = raw_file.read(source, options)
    raw_file.predict(file, options)
    raw_file.write(file, target, options)
    return file


def _enhance_in_stages(
    files: list[tuple[str, str]], options: Options, needs: Resources
) -> Iterator[tuple[tuple[str, str], RawFile | None]]:
    """As `_enhance`, but GPUs only predict."""

    def read_files(group: list[tuple[str, str]]) -> Iterator[Arrays]:
        return (_packed(raw_file.read(storage.to_path(source), options)) for source, _ in group)

    def predictor() -> Callable[[tuple[str, str], Arrays], Arrays]:
        raw_file.load(options)

        def predict_file(paths: tuple[str, str], arrays: Arrays) -> Arrays:
            file = pickle.loads(arrays["file"])
            raw_file.predict(file, options)
            return _packed(file)

        return predict_file

    def write_file(paths: tuple[str, str], arrays: Arrays) -> RawFile:
        file = pickle.loads(arrays["file"])
        raw_file.write(file, storage.to_path(paths[1]), options)
        return file

    actors = current_capacity().task_count(needs)
    return staged_map(files, lambda paths: paths, read_files, predictor, write_file, needs, actors)


def _packed(file: RawFile) -> Arrays:
    return {"file": np.frombuffer(pickle.dumps(file, protocol=5), np.uint8)}
