"""Every frame of a split scored once, over the Ray cluster, and the report on it."""

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import ray
import torch

from lsid_ray import __version__, cluster, storage
from lsid_ray.capacity import check_task
from lsid_ray.data.index import Pair, Shards, Split, open_shards
from lsid_ray.data.parallel import parallel_map
from lsid_ray.errors import InputError, PartialFailure
from lsid_ray.evaluate.measures import Measures, find_measures
from lsid_ray.evaluate.report import check_report_folder, summarize, write_report
from lsid_ray.evaluate.score import Measure, score_frame
from lsid_ray.inference.bands import MEMORY_BYTES
from lsid_ray.inference.files import prediction_device
from lsid_ray.inference.self_ensemble import ORIENTATIONS, check_self_ensemble
from lsid_ray.model.checkpoint import load_generator, load_metrics
from lsid_ray.model.generator import Generator
from lsid_ray.raw.mosaic import layout_of
from lsid_ray.storage import AnyPath


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
    metrics: those of `measures.PERCEPTUAL` to measure. None: FLIP, but none with GPUs, which would wait for a CPU.
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
    chosen = ("flip",) * (not use_gpu) if metrics is None else metrics
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
    rows = [
        {"number": number, "pair": shards.pairs.index(pair), "with_images": number in shown}
        for number, pair in enumerate(pairs)
    ]
    shared = ray.put(measures)  # each node gets the weights once
    options = (str(checkpoint), str(folder), split, memory_bytes, use_gpu, uuid.uuid4().hex, shared, self_ensemble)
    results = {}
    progress(0, len(pairs))
    for row, result in parallel_map(_score_row, rows, *options, gpus=int(use_gpu)):
        if result is None:
            raise PartialFailure(f"{pairs[row['number']].name} was not scored: the process died, perhaps out of memory")
        results[row["number"]] = result
        progress(len(results), len(pairs))
    ordered = [results[number] for number in sorted(results)]
    scores = [row["score"] for row in ordered]
    frames = [row["images"] for row in ordered if row["images"] is not None]
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


@lru_cache(maxsize=1)
def _load(
    checkpoint: str, folder: str, split: Split, use_gpu: bool, call: str, shared: ray.ObjectRef
) -> tuple[Generator, Shards, torch.device, dict[str, Measure]]:
    """Networks and index, loaded once per process and call of `evaluate`, between which each may change."""
    device = prediction_device(use_gpu)
    measures: Measures = ray.get(shared)
    return load_generator(checkpoint)[0].to(device), open_shards(folder, [split]), device, measures.load(device)


def _score_row(
    row: dict[str, Any],
    checkpoint: str,
    folder: str,
    split: Split,
    memory_bytes: int,
    use_gpu: bool,
    call: str,
    shared: ray.ObjectRef,
    self_ensemble: bool,
) -> dict[str, Any]:
    generator, shards, device, measures = _load(checkpoint, folder, split, use_gpu, call, shared)
    pair = shards.pairs[row["pair"]]
    with_images = row["with_images"]
    score, images = score_frame(generator, shards, pair, device, memory_bytes, with_images, measures, self_ensemble)
    return {"number": row["number"], "score": score, "images": images}
