"""Scores and pictures -> report.json, scores.csv, report.html: one folder, complete or absent."""

import csv
import dataclasses
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lsid_ray import storage
from lsid_ray.errors import InputError
from lsid_ray.evaluate import page
from lsid_ray.storage import AnyPath

BOOTSTRAP_RESAMPLES = 2000
BOOTSTRAP_SEED = 0
REPORT = "report.html"
ENTRIES = {"report.json", "scores.csv", "report.html", "pictures"}
METRICS = ("psnr_db", "ssim", "psnr8_db", "ssim8")


@dataclass(frozen=True)
class Score:
    """One dark frame against its long exposure: full frame, clamped to [0, 1], no brightness fit."""

    name: str
    """The short exposure's file name."""
    scene: str
    camera: str
    iso: float | None
    """As the file has it; None where it has none."""
    ratio: float
    """Amplification, from the exposure times."""
    first_frame: bool
    """Frame 0 of its burst."""
    misaligned: bool
    """Short and long of this scene do not coincide (SID's 10034, 10045, 10172)."""
    psnr_db: float
    ssim: float
    psnr8_db: float
    """The two `8` metrics: output and target both rounded to 8 bit before."""
    ssim8: float
    plain_psnr_db: float
    """The four `plain` metrics: the plain rendering of the amplified dark frame in the network's place."""
    plain_ssim: float
    plain_psnr8_db: float
    plain_ssim8: float
    seconds: float
    """What the network's prediction of this frame took."""


@dataclass(frozen=True)
class Picture:
    """What the report shows of one scored frame."""

    name: str
    """The score's name: its captions come from there."""
    ratio: float
    images: dict[str, np.ndarray]
    """`short` (linear, not amplified), `plain`, `output`, `target`: (H, W, 3), floats in [0, 1] or uint8;
    and `attention`, if the network has gates: (h, w), floats in [0, 1]."""


def summarize(scores: list[Score]) -> dict:
    """Means and 95% intervals by protocol and by ratio, as a dict that JSON can hold.

    Groups are SID's four: every image, those of aligned scenes (the headline), and of both the first frames
    of each burst. Groups of the same images stand once, with all their names. Per group, and in it per
    rounded ratio: images, scenes, and `by_image` and `by_scene`, the mean over images and over scenes'
    means; there `network`, `plain` and `gain` hold for each metric its mean, low and high. The interval is
    a percentile bootstrap over scenes (frames of one burst are not independent), with a fixed seed; low
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
                page.pair(means, "plain"),
                page.pair(means, "network"),
                page.number(gain["mean"], "+.2f"),
                page.interval(gain, "+.2f"),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def write_report(folder: AnyPath, scores: list[Score], pictures: list[Picture], record: dict) -> AnyPath:
    """Write report.json, scores.csv, report.html and pictures/ to `folder`; return report.html's path.

    record: what was evaluated and with what (checkpoint, split, commit, hardware, rendering ...), any depth.
    An older report there is replaced as a whole. Raises InputError where the folder holds anything else,
    ValueError for a picture without a score or without one of its four images.
    """
    folder = folder.resolve()
    strangers = sorted({entry.name for entry in folder.iterdir()} - ENTRIES) if folder.is_dir() else []
    if strangers:
        raise InputError(f"{folder}: a report takes a folder for itself, this one holds {strangers[0]}")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: a report is a folder, this is a file")
    summary = summarize(scores)
    with storage.writing_folder(folder, last=REPORT) as partial:
        (partial / "pictures").mkdir()
        _write_json(partial / "report.json", scores, summary, record)
        _write_csv(partial / "scores.csv", scores)
        shown = [_show(partial, index, picture, scores) for index, picture in enumerate(pictures, start=1)]
        (partial / REPORT).write_text(page.render(summary, headline(summary), shown, _jsonable(record)))
    return folder / REPORT


def _statistics(scores: list[Score]) -> dict:
    """Counts, means and intervals of one group."""
    columns = [[getattr(s, m) for m in METRICS] for s in scores]
    plain = [[getattr(s, f"plain_{m}") for m in METRICS] for s in scores]
    with np.errstate(invalid="ignore"):  # inf - inf, where both are perfect, has no gain: it becomes None
        values = np.concatenate([columns, plain, np.subtract(columns, plain)], axis=1)
    scenes, scene_of = np.unique([f"{s.camera}/{s.scene}" for s in scores], return_inverse=True)
    counts = np.bincount(scene_of).astype(float)
    sums = np.zeros((len(scenes), values.shape[1]))
    np.add.at(sums, scene_of, values)
    generator = np.random.default_rng(BOOTSTRAP_SEED)
    # How often each resample drew each scene; row 0 is the sample itself.
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
    """(1 + resamples, 3 x metrics), the sample's own first -> who -> metric -> mean, low, high."""
    with np.errstate(invalid="ignore"):
        lows, highs = np.percentile(means[1:], [2.5, 97.5], axis=0)
    if scenes < 2:
        lows = highs = np.full(means.shape[1], math.nan)
    cells = [
        {"mean": _finite(mean), "low": _finite(low), "high": _finite(high)}
        for mean, low, high in zip(means[0], lows, highs, strict=True)
    ]
    return {
        who: dict(zip(METRICS, cells[i * len(METRICS) : (i + 1) * len(METRICS)], strict=True))
        for i, who in enumerate(("network", "plain", "gain"))
    }


def _by_ratio(scores: list[Score]) -> list[dict]:
    ratios = sorted({round(s.ratio) for s in scores})
    return [{"ratio": r, **_statistics([s for s in scores if round(s.ratio) == r])} for r in ratios]


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _jsonable(value: object) -> object:
    """Plain JSON types; NaN and infinity, which JSON cannot hold, become None."""
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, float | np.floating):
        return _finite(value)
    if isinstance(value, bool | int | None):
        return value
    return int(value) if isinstance(value, np.integer) else str(value)


def _write_json(path: Path, scores: list[Score], summary: dict, record: dict) -> None:
    content = {"record": record, "summary": summary, "scores": [dataclasses.asdict(s) for s in scores]}
    path.write_text(json.dumps(_jsonable(content), indent=1, allow_nan=False) + "\n")


def _write_csv(path: Path, scores: list[Score]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(field.name for field in dataclasses.fields(Score))
        writer.writerows(dataclasses.astuple(s) for s in scores)


def _show(report: Path, index: int, picture: Picture, scores: list[Score]) -> page.Shown:
    """Save one picture's files, captioned with the scores of its name."""
    score = next((s for s in scores if s.name == picture.name), None)
    if score is None:
        raise ValueError(f"picture {picture.name} has no score of that name")
    missing = {"short", "plain", "output", "target"} - picture.images.keys()
    if missing:
        raise ValueError(f"picture {picture.name} lacks {sorted(missing)}")
    measured = {
        "plain": f"{score.plain_psnr_db:.2f} dB, SSIM {score.plain_ssim:.3f}",
        "output": f"{score.psnr_db:.2f} dB, SSIM {score.ssim:.3f}",
    }
    stem = f"pictures/{index:02d}_{re.sub(r'[^A-Za-z0-9._-]', '_', picture.name)}"
    iso = "" if score.iso is None else f", ISO {score.iso:.0f}"
    title = f"{picture.name} ({score.camera}{iso}), amplified x{picture.ratio:.0f}"
    return page.save_views(report, stem, title, picture.images, measured)
