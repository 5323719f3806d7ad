"""Scores and images to report.json, scores.csv and report.html, in one folder that is written atomically."""

import csv
import dataclasses
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np

from lsid_ray import storage
from lsid_ray.config.serialization import jsonable
from lsid_ray.errors import InputError
from lsid_ray.evaluate import page
from lsid_ray.evaluate.measures import METRICS, PERCEPTUAL
from lsid_ray.evaluate.score import FrameImages, Score
from lsid_ray.evaluate.texture import BANDS
from lsid_ray.storage import AnyPath

BOOTSTRAP_RESAMPLES = 2000
BOOTSTRAP_SEED = 0
REPORT, TEXTURE = "report.html", "images/texture.png"
ENTRIES = {"report.json", "scores.csv", REPORT, "images", storage.WRITE_TEST}
COLUMNS = (
    *("psnr_db", "ssim", "psnr8_db", "ssim8"),
    *PERCEPTUAL,
    *(f"{name}_{band}" for name in ("texture", "coherence") for band in BANDS),
)


def summarize(scores: list[Score]) -> dict:
    """Means and 95% intervals by protocol and by ratio, as plain JSON types.

    The groups are SID's four protocols: all scenes, or aligned ones only (the headline); each over all frames, or over
    the first frames of the bursts only. Groups of the same images are listed once, with all their names. Each group,
    and each rounded ratio in it, has counts of images and scenes, and `by_image` and `by_scene`: the mean over images,
    and the mean over the means of the scenes. These hold mean, low and high of each metric for `network`, `plain` and
    `gain`.
    The interval is a percentile bootstrap over scenes (frames of a burst are not independent) with a fixed seed; low
    and high are None for a single scene, and so is a mean that is not finite.
    Raises ValueError without scores.
    """
    if not scores:
        raise ValueError("no scores to summarize")
    choices = {
        "all": scores,
        "aligned": [s for s in scores if not s.misaligned],
        "first frames": [s for s in scores if s.first_frame],
        "first frames, aligned": [s for s in scores if s.first_frame and not s.misaligned],
    }
    groups: list[dict] = []
    chosen: list[list[Score]] = []
    for name, members in choices.items():
        if members in chosen:
            groups[chosen.index(members)]["names"].append(name)
        elif members:
            chosen.append(members)
            groups.append({"names": [name], **_statistics(members), "by_ratio": _by_ratio(members)})
    headline = next((g for g in groups if "aligned" in g["names"]), groups[0])
    return {
        "headline": headline["names"][0],
        "interval": f"95%, {BOOTSTRAP_RESAMPLES} resamples of scenes, seed {BOOTSTRAP_SEED}",
        "groups": groups,
    }


def headline(summary: dict) -> dict:
    """The group that a summary's headline names."""
    return next(group for group in summary["groups"] if summary["headline"] in group["names"])


def table(summary: dict) -> str:
    """The headline group by ratio as plain text, means over images; the last row is over all ratios."""
    group = headline(summary)
    rows = [("ratio", "images", "plain PSNR/SSIM", "network PSNR/SSIM", "gain dB", "95%")]
    for label, part in [*((f"x{part['ratio']}", part) for part in group["by_ratio"]), ("all", group)]:
        means = part["by_image"]
        gain = means["gain"]["psnr_db"]
        rows.append(
            (
                label,
                str(part["images"]),
                page.psnr_ssim(means, "plain"),
                page.psnr_ssim(means, "network"),
                page.number(gain["mean"], "+.2f"),
                page.interval(gain, "+.2f"),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def perceptual_lines(summary: dict, not_measured: Mapping[str, str]) -> str:
    """The headline group's means of each perceptual metric as plain text, or why there are none."""
    means = headline(summary)["by_image"]
    width = max(len(METRICS[name].title) for name in PERCEPTUAL)
    lines = []
    for name in PERCEPTUAL:
        plain, network, gain = (means[who][name]["mean"] for who in ("plain", "network", "gain"))
        values = f"plain {page.number(plain, '.3f')}, network {page.number(network, '.3f')}"
        values += f" ({page.number(gain, '+.3f')})"
        unit = METRICS[name].unit and f", {METRICS[name].unit}"
        lines.append(f"{METRICS[name].title.rjust(width)}: {not_measured.get(name, values + unit)}")
    return "\n".join(lines)


def check_report_folder(folder: AnyPath) -> None:
    """Raises: InputError if a report cannot be written to a folder: it holds anything else, or is not writable."""
    others = sorted({entry.name for entry in folder.iterdir()} - ENTRIES) if folder.is_dir() else []
    if others:
        raise InputError(f"report folder {folder}: holds {others[0]}; expected an empty one or an older report")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"report folder {folder}: is a file, expected a folder")
    storage.check_writable(folder, "report folder")


def write_report(
    folder: AnyPath,
    scores: list[Score],
    frames: list[FrameImages],
    record: dict,
    not_measured: Mapping[str, str] = MappingProxyType({}),
) -> AnyPath:
    """Write report.json, scores.csv, report.html and images/ to `folder`; returns the path of report.html.

    frames: the frames to show. record: what was evaluated and how (checkpoint, split, rendering ...), nested freely.
    not_measured: metric -> why the scores have no value for it.
    An older report in the folder is replaced atomically. Raises InputError as `check_report_folder`, ValueError for a
    frame without a score or without one of its four views.
    """
    check_report_folder(folder)
    folder = folder.resolve()
    summary = summarize(scores)
    with storage.atomic_folder(folder, last=REPORT) as partial:
        (partial / "images").mkdir()
        _write_json(partial / "report.json", scores, summary, record)
        _write_csv(partial / "scores.csv", scores)
        saved = [_save_frame(partial, number, frame, scores) for number, frame in enumerate(frames, start=1)]
        page.save_texture(partial / TEXTURE, headline(summary), tuple(BANDS))
        html = page.render_report(summary, headline(summary), saved, jsonable(record), TEXTURE, not_measured)
        (partial / REPORT).write_text(html)
    return folder / REPORT


def _statistics(scores: list[Score]) -> dict:
    """Counts, means and intervals of one group."""
    columns = [[getattr(s, m) for m in COLUMNS] for s in scores]
    plain = [[getattr(s, f"plain_{m}") for m in COLUMNS] for s in scores]
    with np.errstate(invalid="ignore"):  # inf - inf (both perfect) becomes None
        values = np.concatenate([columns, plain, np.subtract(columns, plain)], axis=1)
    scenes, scene_of = np.unique([f"{s.camera}/{s.scene}" for s in scores], return_inverse=True)
    counts = np.bincount(scene_of).astype(float)
    sums = np.zeros((len(scenes), values.shape[1]))
    np.add.at(sums, scene_of, values)
    generator = np.random.default_rng(BOOTSTRAP_SEED)
    # How often each resample drew each scene; row 0 is the original sample.
    draws = generator.multinomial(len(scenes), np.full(len(scenes), 1 / len(scenes)), BOOTSTRAP_RESAMPLES)
    draws = np.concatenate([np.ones((1, len(scenes))), draws])
    with np.errstate(invalid="ignore"):
        by_image = draws @ sums / (draws @ counts)[:, None]
        by_scene = draws @ (sums / counts[:, None]) / len(scenes)
    return {
        "images": len(scores),
        "scenes": len(scenes),
        "by_image": _intervals(by_image, len(scenes)),
        "by_scene": _intervals(by_scene, len(scenes)),
    }


def _intervals(means: np.ndarray, scenes: int) -> dict:
    """(1 + resamples, 3 x metrics), the original sample first -> who -> metric -> mean, low, high."""
    with np.errstate(invalid="ignore"):
        lows, highs = np.percentile(means[1:], [2.5, 97.5], axis=0)
    if scenes < 2:
        lows = highs = np.full(means.shape[1], math.nan)
    cells = [
        {"mean": _finite(mean), "low": _finite(low), "high": _finite(high)}
        for mean, low, high in zip(means[0], lows, highs, strict=True)
    ]
    return {
        who: dict(zip(COLUMNS, cells[i * len(COLUMNS) : (i + 1) * len(COLUMNS)], strict=True))
        for i, who in enumerate(("network", "plain", "gain"))
    }


def _by_ratio(scores: list[Score]) -> list[dict]:
    ratios = sorted({round(s.ratio) for s in scores})
    return [{"ratio": r, **_statistics([s for s in scores if round(s.ratio) == r])} for r in ratios]


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _write_json(path: Path, scores: list[Score], summary: dict, record: dict) -> None:
    content = {"record": record, "summary": summary, "scores": [dataclasses.asdict(s) for s in scores]}
    path.write_text(json.dumps(jsonable(content), indent=1, allow_nan=False) + "\n")


def _write_csv(path: Path, scores: list[Score]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(field.name for field in dataclasses.fields(Score))
        writer.writerows(dataclasses.astuple(s) for s in scores)


def _save_frame(report: Path, number: int, frame: FrameImages, scores: list[Score]) -> page.SavedImages:
    """Save the views of one frame, captioned with its scores."""
    score = next((score for score in scores if score.name == frame.name), None)
    if score is None:
        raise ValueError(f"frame {frame.name} has no score of that name")
    missing = {"short", "plain", "output", "target"} - frame.images.keys()
    if missing:
        raise ValueError(f"frame {frame.name} lacks the views {sorted(missing)}")
    captions = {
        "plain": f"{score.plain_psnr_db:.2f} dB, SSIM {score.plain_ssim:.3f}",
        "output": f"{score.psnr_db:.2f} dB, SSIM {score.ssim:.3f}",
    }
    images = dict(frame.images)
    for view in filter(page.is_gate, frame.images):
        images[view], captions[view] = _stretched(images[view])
    stem = f"images/{number:02d}_{re.sub(r'[^A-Za-z0-9._-]', '_', frame.name)}"
    iso = "" if score.iso is None else f", ISO {score.iso:.0f}"
    title = f"{frame.name} ({score.camera}{iso}), amplified x{frame.ratio:.0f}"
    return page.save_images(report, stem, title, images, captions)


def _stretched(weights: np.ndarray) -> tuple[np.ndarray, str]:
    """Gate weights scaled to the range in which they vary, and a caption with this range."""
    low, high = float(weights.min()), float(weights.max())
    return (weights - low) / max(high - low, 1e-6), f"black: {low:.3f}, white: {high:.3f}"
