"""Every frame of a split scored once, over the Ray cluster, and the report on it."""

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import ray
import torch

from lsid_ray import __version__, cluster, storage
from lsid_ray.capacity import Resources, check_task, current_capacity
from lsid_ray.data.index import Pair, Shards, Split, open_shards
from lsid_ray.data.parallel import parallel_map
from lsid_ray.data.stages import Arrays, staged_map
from lsid_ray.errors import InputError, PartialFailure
from lsid_ray.evaluate.measures import METRICS, Measures, find_measures
from lsid_ray.evaluate.report import check_report_folder, summarize, write_report
from lsid_ray.evaluate.score import (
    Decoded,
    FrameImages,
    Measure,
    Prediction,
    Score,
    at_output_scale,
    decode,
    predict,
    read_target,
    score_frame,
    score_prediction,
)
from lsid_ray.inference.bands import MEMORY_BYTES
from lsid_ray.inference.raw_file import prediction_device
from lsid_ray.inference.self_ensemble import ORIENTATIONS, check_self_ensemble
from lsid_ray.model.checkpoint import load_generator, load_metrics
from lsid_ray.model.generator import Generator
from lsid_ray.raw.mosaic import layout_of
from lsid_ray.storage import AnyPath

_Result = tuple[Score, FrameImages | None]


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation."""

    report: AnyPath
    summary: dict[str, Any]
    """As `report.summarize` returns it."""
    excluded: tuple[str, ...]
    """Misaligned pairs that were not scored."""
    not_measured: dict[str, str]
    """Metrics that were not measured, each with the reason."""


def evaluate(
    checkpoint: str | AnyPath,
    folder: str | AnyPath,
    split: Split,
    out: str | AnyPath,
    *,
    memory_bytes: int = MEMORY_BYTES,
    use_gpu: bool = False,
    images: int = 6,
    include_misaligned: bool = False,
    metrics: Sequence[str] | None = None,
    weights: str | AnyPath = "",
    self_ensemble: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Score a checkpoint and the plain rendering on every full frame of a split; write the report to `out`.

    folder: the shards. memory_bytes: as `predict_bands`. images: number of frames that the report shows.
    metrics: those of `measures.PERCEPTUAL` to measure. None: FLIP.
    weights: the folder with the weights of their networks, on this machine or in an object store; empty: torch's own,
        where they may be missing.
    self_ensemble: as `enhance_frame`.
    Joins the Ray cluster after all checks that need none.
    Raises: InputError as `load_generator`, `load_metrics`, `open_shards`, `find_measures` and `check_report_folder`, if
    all pairs are misaligned, or for a self-ensemble at half resolution.
    """
    checkpoint, folder = (storage.to_path(path).absolute() for path in (checkpoint, folder))  # workers have another cwd
    generator, experiment = load_generator(checkpoint)  # fails here rather than in every worker
    if self_ensemble:
        check_self_ensemble(generator)
    checkpoint_metrics = load_metrics(checkpoint)
    chosen = ("flip",) if metrics is None else metrics
    measures = find_measures(("texture", *chosen), weights)
    shards = open_shards(folder, [split])
    pairs = [pair for pair in shards.pairs if include_misaligned or not pair.misaligned]
    excluded = [pair.name for pair in shards.pairs if pair not in pairs]
    if not pairs:
        raise InputError(f"{folder}: all {len(excluded)} pairs of the {split} split are of misaligned scenes")
    for pair in pairs:
        if (kind := layout_of(pair.short.cfa).kind) != generator.config.cfa:
            raise InputError(f"{folder}: {pair.name} is {kind}, {checkpoint} was trained for {generator.config.cfa}")
    check_report_folder(storage.to_path(out))
    cluster.connect()
    if use_gpu:
        check_task({"CPU": 1, "GPU": 1}, "--use-gpu: ")
    shown = _select(pairs, images)
    rows = [_Row(number, shards.pairs.index(pair), number in shown) for number, pair in enumerate(pairs)]
    rows.sort(key=lambda row: pairs[row.number].long.shard.path)  # so that a long exposure is read once
    call = uuid.uuid4().hex
    task = _Task(str(checkpoint), str(folder), split, memory_bytes, use_gpu, self_ensemble, ray.put(measures), call)
    results = {}
    progress(0, len(pairs))
    for row, result in _scored(rows, shards, task):
        if result is None:
            raise PartialFailure(f"{pairs[row.number].name} was not scored: the process died, perhaps out of memory")
        results[row.number] = result
        progress(len(results), len(pairs))
    ordered = [results[number] for number in sorted(results)]
    scores = [score for score, _ in ordered]
    frames = [images for _, images in ordered if images is not None]
    record = {
        "checkpoint": {"folder": str(checkpoint), **checkpoint_metrics},
        "split": split,
        "resolution": "full" if generator.scale > 1 else "half (2x2 means): not comparable with full resolution",
        **({"self-ensemble": f"mean of {len(ORIENTATIONS)} predictions"} if self_ensemble else {}),
        "excluded as misaligned": excluded,
        "not measured": measures.not_measured,
        "rendering": shards.rendering,
        "program": f"lsid_ray {__version__}, torch {torch.__version__}",
        "date": time.strftime("%Y-%m-%d"),
        "experiment": asdict(experiment),
    }
    report = write_report(storage.to_path(out), scores, frames, record, measures.not_measured)
    return Evaluation(report, summarize(scores), tuple(excluded), measures.not_measured)


def _select(pairs: list[Pair], count: int) -> set[int]:
    """Positions of `count` pairs: every scene before a second pair of any; first frames and high ratios first."""
    seen: dict[str, int] = {}
    ranked = []
    for number in sorted(range(len(pairs)), key=lambda n: (pairs[n].frame, -pairs[n].ratio, pairs[n].name)):
        scene = pairs[number].scene
        ranked.append((seen.get(scene, 0), number))
        seen[scene] = seen.get(scene, 0) + 1
    return {number for _, number in sorted(ranked, key=lambda rank: rank[0])[:count]}


@dataclass(frozen=True)
class _Row:
    """A frame to score."""

    number: int
    pair: int
    """Number of the pair in the opened shards."""
    with_images: bool


@dataclass(frozen=True)
class _Task:
    """What all frames of an evaluation share."""

    checkpoint: str
    folder: str
    split: Split
    memory_bytes: int
    use_gpu: bool
    self_ensemble: bool
    measures: ray.ObjectRef
    call: str
    """Of `evaluate`, between two of which checkpoint and shards may change."""


def _scored(rows: list[_Row], shards: Shards, task: _Task) -> Iterator[tuple[_Row, _Result | None]]:
    """The scores of each frame, in order of completion.

    On CPUs in one stage: handing a frame on would cost about 0.1 s and its memory, and no CPU waits. With GPUs in
    three, so that these only predict, and compute the metrics that are networks.
    """
    if not task.use_gpu:
        return parallel_map(_score_row, rows, task)
    return _scored_in_stages(rows, shards, task, {"CPU": 0, "GPU": 1})


def _scored_in_stages(
    rows: list[_Row], shards: Shards, task: _Task, needs: Resources
) -> Iterator[tuple[_Row, _Result | None]]:
    def decode_group(group: list[_Row]) -> Iterator[Arrays]:
        for row in group:
            yield vars(_decode(row, task))

    def predictor() -> Callable[[_Row, Arrays], Arrays]:
        generator, device, measures = _load(task, learned=True)

        def predict_row(row: _Row, arrays: Arrays) -> Arrays:
            pair = _open(task).pairs[row.pair]
            prediction = predict(generator, arrays["planes"], pair, device, task.memory_bytes, task.self_ensemble)
            added = {"image": prediction.image.cpu().numpy(), "seconds": np.array(prediction.seconds)}
            added |= {f"weights {number}": gate.cpu().numpy() for number, gate in enumerate(prediction.weights)}
            target, plain = (
                at_output_scale(arrays[name], pair, generator.scale, device) for name in ("target", "plain")
            )
            for name, measure in measures.items():
                added[name] = np.array([measure(view, target) for view in (prediction.image, plain)])
            return added

        return predict_row

    def finish(row: _Row, arrays: Arrays) -> _Result:
        generator, _, measures = _load(task, learned=False)
        decoded = Decoded(*(arrays[name] for name in ("planes", "target", "plain")))
        names = sorted(name for name in arrays if name.startswith("weights "))
        weights = [torch.from_numpy(arrays[name]) for name in names]
        prediction = Prediction(torch.from_numpy(arrays["image"]), weights, float(arrays["seconds"]))
        measured = {name: tuple(arrays[name].tolist()) for name in METRICS if name in arrays}
        pair = _open(task).pairs[row.pair]
        return score_prediction(pair, decoded, prediction, generator.scale, row.with_images, measures, measured)

    def long_exposure(row: _Row) -> str:
        return shards.pairs[row.pair].long.shard.path

    actors = current_capacity().task_count(needs)
    return staged_map(rows, long_exposure, decode_group, predictor, finish, needs, actors)


@lru_cache(maxsize=1)
def _open(task: _Task) -> Shards:
    """The index, read once per process."""
    return open_shards(task.folder, [task.split])


@lru_cache(maxsize=1)
def _load(task: _Task, learned: bool | None = None) -> tuple[Generator, torch.device, dict[str, Measure]]:
    """Network and metrics, loaded once per process.

    learned: True for the metrics that are networks themselves, False for the others, on a CPU; None for all.
    """
    torch.set_num_threads(1)  # `enhance` may have set more in a process that Ray reuses
    device = torch.device("cpu") if learned is False else prediction_device(task.use_gpu)
    measures: Measures = ray.get(task.measures)
    return load_generator(task.checkpoint)[0].to(device), device, measures.part(learned).load(device)


@lru_cache(maxsize=1)
def _target(path: str, task: _Task) -> np.ndarray:
    """The long exposure at `path`, read once for the pairs that follow one another."""
    shards = _open(task)
    return read_target(shards, next(pair for pair in shards.pairs if pair.long.shard.path == path))


def _decode(row: _Row, task: _Task) -> Decoded:
    shards = _open(task)
    pair = shards.pairs[row.pair]
    return decode(shards, pair, _target(pair.long.shard.path, task))


def _score_row(row: _Row, task: _Task) -> _Result:
    generator, device, measures = _load(task)
    pair, decoded = _open(task).pairs[row.pair], _decode(row, task)
    options = (device, task.memory_bytes, row.with_images, measures, task.self_ensemble)
    return score_frame(generator, pair, decoded, *options)
