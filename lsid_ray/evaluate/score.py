"""Every frame of a split scored once, over the cluster; validation during training uses the same functions."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import ray
import ray.data
import torch
import torch.nn.functional as F
from torch import Tensor

from lsid_ray import __version__, storage
from lsid_ray.data.shards import PackedPair, Shards, Split, open_shards
from lsid_ray.errors import InputError
from lsid_ray.evaluate import metrics
from lsid_ray.evaluate.enhance import enhance
from lsid_ray.evaluate.predict import MEMORY_BYTES
from lsid_ray.evaluate.report import Picture, Score, summarize, write_report
from lsid_ray.model.checkpoint import load_facts, load_generator
from lsid_ray.model.generator import Generator
from lsid_ray.raw.develop import plain_rendering
from lsid_ray.raw.mosaic import layout
from lsid_ray.storage import AnyPath


def at_scale(image_HW3: np.ndarray, pair: PackedPair, scale: int, device: torch.device) -> Tensor:
    """A uint16 picture of the mosaic's size as (H, W, 3) float32 in [0, 1]; at scale 1 the means of its 2x2."""
    image = torch.from_numpy(image_HW3).to(device).float().permute(2, 0, 1)[None] / 65535
    if scale == 1:
        top, bottom, left, right = pair.short.padding
        image = F.avg_pool2d(F.pad(image, (left, right, top, bottom), mode="reflect"), 2)
    return image[0].permute(1, 2, 0)


def validate(
    generator: Generator, shards: Shards, pairs: list[PackedPair], device: torch.device
) -> list[dict[str, float]]:
    """PSNR and SSIM of each pair's full frame."""
    scores = []
    for pair in pairs:
        image, _ = enhance(generator, shards.planes(pair), pair.short, pair.ratio, device)
        target = at_scale(shards.target(pair).transpose(1, 2, 0), pair, generator.scale, device)
        scores.append({"psnr_db": metrics.psnr_db(image, target), "ssim": metrics.ssim(image, target)})
    return scores


@dataclass(frozen=True)
class Evaluation:
    """A report that was written."""

    report: AnyPath
    summary: dict[str, Any]
    left_out: tuple[str, ...]
    """Misaligned pairs that were not scored."""


def evaluate(
    checkpoint: str | AnyPath,
    folder: str | AnyPath,
    split: Split,
    out: str | AnyPath,
    *,
    memory_bytes: int = MEMORY_BYTES,
    use_gpu: bool = False,
    pictures: int = 6,
    include_misaligned: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Score a checkpoint on every full frame of a split, beside the plain rendering; write the report to `out`.

    memory_bytes: what one prediction's working memory may take. pictures: of how many frames to show pictures.
    Raises: InputError as `load_generator`, `open_shards` and `write_report`, or when only misaligned pairs are there.
    """
    checkpoint, folder = (storage.path(at).resolve() for at in (checkpoint, folder))  # workers have another folder
    generator, experiment = load_generator(checkpoint)  # a mistake shows here, not in every worker
    shards = open_shards(folder, [split])
    pairs = [pair for pair in shards.pairs if include_misaligned or not pair.misaligned]
    left_out = [pair.name for pair in shards.pairs if pair not in pairs]
    if not pairs:
        raise InputError(f"{folder}: all {len(left_out)} pairs of the {split} split are of misaligned scenes")
    for pair in pairs:
        if (kind := layout(pair.short.cfa).kind) != generator.config.cfa:
            raise InputError(f"{folder}: {pair.name} is {kind}, {checkpoint} was trained for {generator.config.cfa}")
    shown = _chosen(pairs, pictures)
    if use_gpu and not ray.cluster_resources().get("GPU"):
        raise InputError("the cluster has no GPU, expected at least one for --use-gpu")
    rows = [{"number": n, "pair": shards.pairs.index(p), "picture": n in shown} for n, p in enumerate(pairs)]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        _score_row,
        fn_args=(str(checkpoint), str(folder), split, memory_bytes, use_gpu),
        num_cpus=1,
        num_gpus=1 if use_gpu else 0,
        max_calls=0,  # or each frame on a GPU would have a process, and load the network, of its own
    )
    results = {}
    progress(0, len(pairs))
    for row in dataset.iter_rows():
        results[row["number"]] = row
        progress(len(results), len(pairs))
    if len(results) != len(pairs):
        raise RuntimeError(f"{len(results)} of {len(pairs)} frames were scored")
    ordered = [results[n] for n in sorted(results)]
    record = {
        "checkpoint": {"folder": str(checkpoint), **load_facts(checkpoint)},
        "split": split,
        "resolution": "full" if generator.scale > 1 else "half (means of 2x2): not comparable with full resolution",
        "left out as misaligned": left_out,
        "rendering": shards.rendering,
        "program": f"lsid_ray {__version__}, torch {torch.__version__}",
        "date": time.strftime("%Y-%m-%d"),
        "experiment": asdict(experiment),
    }
    scores = [row["score"] for row in ordered]
    shown = [row["picture"] for row in ordered if row["picture"] is not None]
    return Evaluation(write_report(storage.path(out), scores, shown, record), summarize(scores), tuple(left_out))


def _chosen(pairs: list[PackedPair], count: int) -> set[int]:
    """First burst frames, one of each scene before a second of any, from the strongest amplification down."""
    seen: dict[str, int] = {}
    turns = []
    for number in sorted(range(len(pairs)), key=lambda n: (pairs[n].frame, -pairs[n].ratio, pairs[n].name)):
        scene = pairs[number].scene
        turns.append((seen.get(scene, 0), number))
        seen[scene] = seen.get(scene, 0) + 1
    return {number for _, number in sorted(turns, key=lambda turn: turn[0])[:count]}


@lru_cache(maxsize=1)
def _opened(checkpoint: str, folder: str, split: Split, use_gpu: bool) -> tuple[Generator, Shards, torch.device]:
    """Network and index, once for each process that scores."""
    device = torch.device("cuda" if use_gpu else "cpu")
    return load_generator(checkpoint)[0].to(device), open_shards(folder, [split]), device


def _score_row(
    row: dict[str, Any], checkpoint: str, folder: str, split: Split, memory_bytes: int, use_gpu: bool
) -> dict[str, Any]:
    generator, shards, device = _opened(checkpoint, folder, split, use_gpu)
    score, picture = score_pair(generator, shards, shards.pairs[row["pair"]], device, memory_bytes, row["picture"])
    return {"number": row["number"], "score": score, "picture": picture}


def score_pair(
    generator: Generator, shards: Shards, pair: PackedPair, device: torch.device, memory_bytes: int, with_picture: bool
) -> tuple[Score, Picture | None]:
    """One frame's scores, and its pictures if wanted."""
    scale = generator.scale
    planes = shards.planes(pair)
    start = time.perf_counter()
    image, weights = enhance(generator, planes, pair.short, pair.ratio, device, memory_bytes)
    seconds = time.perf_counter() - start
    target = at_scale(shards.target(pair).transpose(1, 2, 0), pair, scale, device)
    frame = pair.short.raw_frame(planes)
    plain = at_scale(plain_rendering(frame, pair.ratio), pair, scale, device)
    image8, plain8, target8 = (metrics.round_to_8bit(i) for i in (image, plain, target))
    score = Score(
        name=pair.name,
        scene=pair.scene,
        camera=pair.short.camera,
        iso=pair.short.iso,
        ratio=pair.ratio,
        first_frame=pair.frame == 0,
        misaligned=pair.misaligned,
        psnr_db=metrics.psnr_db(image, target),
        ssim=metrics.ssim(image, target),
        psnr8_db=metrics.psnr_db(image8, target8),
        ssim8=metrics.ssim(image8, target8),
        plain_psnr_db=metrics.psnr_db(plain, target),
        plain_ssim=metrics.ssim(plain, target),
        plain_psnr8_db=metrics.psnr_db(plain8, target8),
        plain_ssim8=metrics.ssim(plain8, target8),
        seconds=seconds,
    )
    if not with_picture:
        return score, None
    views = {
        "short": at_scale(plain_rendering(frame, 1.0), pair, scale, device),
        "plain": plain,
        "output": image,
        "target": target,
    }
    images = {name: (view * 255).round().byte().cpu().numpy() for name, view in views.items()}
    if weights is not None:
        images["attention"] = weights.cpu().numpy()
    return score, Picture(name=pair.name, ratio=pair.ratio, images=images)
