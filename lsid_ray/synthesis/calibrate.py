"""Calibrating the noise of a camera from dark frames and frames of a flat surface.

The model is that of ELD (Wei et al., "A Physics-based Noise Formation Model for Extreme Low-light Raw Denoising", CVPR
2020) with the black-level error of PMN (Feng et al., "Learnability Enhancement for Low-light Raw Denoising: Where
Paired Real Data Meets Noise Modeling", ACM MM 2022); `dark_noise` and `photon_transfer` say how each part is measured.
Each ISO is measured on its own, as in PMN: no line through all ISOs, which dual gain would break. Fixed pattern (PMN's
dark shading) is taken out and not modelled, nor is noise that columns share; both are in the frames that can be kept
(`dark_frames`).
"""

import io
import itertools
import math
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import numpy as np

from lsid_ray import storage
from lsid_ray.errors import InputError
from lsid_ray.raw.frame import FrameMetadata, RawFrame, read_raw
from lsid_ray.storage import AnyPath
from lsid_ray.synthesis.calibration_frames import (
    Shot,
    above_black,
    check_dark,
    check_one_camera,
    find_raw_files,
    read_shots,
)
from lsid_ray.synthesis.calibration_plot import draw_fits
from lsid_ray.synthesis.camera import CameraNoise, IsoNoise, Sensor, StandardErrors
from lsid_ray.synthesis.camera_file import write_camera
from lsid_ray.synthesis.dark_frames import MAX_FRAMES, MIN_FRAMES, frames_path, write_dark_frames
from lsid_ray.synthesis.dark_noise import LAMBDAS, STRIPS, DarkNoise, measure_dark
from lsid_ray.synthesis.photon_transfer import MAX_LEVEL, MIN_LEVEL, Blocks, Gain, fit_gain, join, measure_blocks

MIN_DARKS = MIN_FRAMES  # per ISO
MAX_SENSELS = 32_000_000  # of the dark frames of an ISO that are looked at, whole rows from the middle; bounds memory
MAX_SCATTER = 1.5  # of the photon transfer's variances; more is remarked upon
MAX_BLACK_ERROR = 3e-4  # of the range, 5 DN of 14 bits; more, if it is also more than the noise, is remarked upon
MIN_SIGNIFICANCE = 3.0  # of a gain, in standard errors
MIN_VARIANCE = 0.01  # of a sensel from dark frame to dark frame, DN^2; rounding alone adds 0.08 to real noise
MIN_PPCC = 0.995  # less is remarked upon
MAX_ROW_CORRELATION, MAX_COLUMN_EXCESS = 0.3, 2.0  # more is remarked upon

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Calibration:
    """What to calibrate a camera from."""

    dark: str
    """Folder of raw files taken with the lens cap on: at least 4, better 16 or more, at each ISO, of a short exposure
    time, the viewfinder covered."""
    out: str
    """The camera's file, NAME.json; NAME.png beside it shows the fits."""
    flat: str = ""
    """Folder of raw files of an evenly lit, defocused surface: at each ISO some exposure times, two or more frames of
    each. Without it no gain is measured, and the file cannot be used to synthesize."""
    keep_frames: int = 0
    """Keep up to this many dark frames per ISO, 4 to 64, in NAME.dark.npz: read noise is then drawn from them, with
    everything that no model has. A frame of 24 megapixels takes about 20 MB. 0 keeps none."""


@dataclass(frozen=True)
class CalibrationResult:
    """The result of `calibrate`."""

    camera: CameraNoise
    picture: AnyPath
    frames: AnyPath | None
    """The dark frames that were kept."""
    remarks: tuple[str, ...]
    """What the user should know: files that were left out, fits that are poor."""


def calibrate(config: Calibration, progress: Progress = lambda done, total: None) -> CalibrationResult:
    """Measure a camera's noise at each ISO of the dark frames, and write its file, after what belongs to it.

    Of ISOs without flat frames the gain over ISO is interpolated in log(ISO), and constant beyond the ends: at the
    A7S II's 28 ISOs gains are proportional to ISO within 0.1% (PMN). Their standard error is None. Without any flat
    frames gains are None.
    Raises: InputError for a folder without raw files, a file that is no raw file, has no ISO or is of another camera, a
    frame with light in it, fewer than 4 dark frames at an ISO, or flat frames without two of an exposure, saturated or
    too dark; OSError if the files cannot be written.
    """
    out = storage.to_path(config.out)
    if out.suffix.lower() != ".json" or out.is_dir():
        raise InputError(f"--out {out}: expected the name of a file that ends in .json")
    if config.keep_frames and not MIN_FRAMES <= config.keep_frames <= MAX_FRAMES:
        raise InputError(f"--keep-frames {config.keep_frames}: expected 0, or {MIN_FRAMES} to {MAX_FRAMES}")
    storage.check_writable(out.parent, "--out")
    with ExitStack() as copies:
        darks, others = _find(config.dark, "--dark", copies)
        flats, other_flats = _find(config.flat, "--flat", copies) if config.flat else ([], [])
        steps, counts = 2 * (len(darks) + len(flats)), itertools.count(1)

        def count() -> None:
            progress(next(counts), steps)

        dark_shots = read_shots(darks, check_dark, count)
        flat_shots = read_shots(flats, lambda path, frame: None, count)
        check_one_camera(dark_shots + flat_shots)
        kept = {iso: [shot.path for shot in group[: config.keep_frames]] for iso, group in _by_iso(dark_shots).items()}
        steps += sum(map(len, kept.values()))
        remarks = [f"left out, not a raw file: {path}" for path in others + other_flats]
        measured = _measure_darks(dark_shots, config.dark, count)
        pairs = _pair(flat_shots, measured, config.flat, remarks)
        blocks = {iso: _measure_pairs(pairs[iso], measured[iso].black_error, count) for iso in sorted(pairs)}
        gains = {iso: _fit(iso, blocks[iso], measured[iso].variance, config.flat) for iso in blocks}
        camera = _camera(dark_shots[0].metadata, measured, gains)
        remarks += _doubts(measured, gains, camera.white - camera.black)
        if not config.keep_frames:
            remarks += _missing_in_the_model(measured)
        out.parent.mkdir(parents=True, exist_ok=True)
        picture = _draw(out, camera, measured, blocks, gains)
        frames = frames_path(out)
        if config.keep_frames:
            camera = replace(camera, dark_frames=write_dark_frames(frames, kept, count))
    write_camera(out, camera)
    if not config.keep_frames:
        frames.unlink(missing_ok=True)  # of an older calibration
    return CalibrationResult(camera, picture, frames if config.keep_frames else None, tuple(remarks))


def _camera(first: FrameMetadata, measured: dict[int, DarkNoise], gains: dict[int, Gain]) -> CameraNoise:
    return CameraNoise(
        name=first.camera,
        black=float(np.mean(first.black)),
        white=first.white,
        by_iso={iso: _noise(iso, dark, gains) for iso, dark in measured.items()},
        sensor=Sensor(first.cfa, tuple(round(level) for level in first.black), round(first.white), first.color_matrix),
    )


def _draw(
    out: AnyPath,
    camera: CameraNoise,
    measured: dict[int, DarkNoise],
    blocks: dict[int, Blocks],
    gains: dict[int, Gain],
) -> AnyPath:
    picture, image = out.parent / f"{out.stem}.png", io.BytesIO()
    draw_fits(camera.name, measured, blocks, gains).savefig(image, format="png", dpi=100)
    with storage.atomic_write(picture) as file:
        file.write(image.getvalue())
    return picture


def _find(folder: str, option: str, copies: ExitStack) -> tuple[list[Path], list[Path]]:
    return find_raw_files(copies.enter_context(storage.local_copy(storage.to_path(folder))), option)


def _by_iso(shots: list[Shot]) -> dict[int, list[Shot]]:
    groups = defaultdict(list)
    for shot in sorted(shots, key=lambda shot: shot.iso):
        groups[shot.iso].append(shot)
    return groups


def _measure_darks(shots: list[Shot], folder: str, count: Callable[[], None]) -> dict[int, DarkNoise]:
    groups = _by_iso(shots)
    for iso, group in groups.items():
        if len(group) < MIN_DARKS:
            number = "1 frame" if len(group) == 1 else f"{len(group)} frames"
            raise InputError(f"--dark {folder}: {number} at ISO {iso}; expected at least {MIN_DARKS}, better 16")
    measured = {}
    for iso, group in groups.items():
        height, width = group[0].size
        strip = min(height, max(MAX_SENSELS // (len(group) * width), 8 * STRIPS))
        top = (height - strip) // 2
        frames, means = np.empty((len(group), strip, width), np.float32), np.empty(len(group))
        for i, shot in enumerate(group):
            signal = above_black(read_raw(shot.path))
            frames[i], means[i] = signal[top : top + strip], signal.mean(dtype=np.float64)
            count()
        if (variance := float(frames.var(axis=0, ddof=1).mean())) < MIN_VARIANCE:
            raise InputError(
                f"--dark {folder}: the frames at ISO {iso} hardly differ, their variance is {variance:.2g} DN²; "
                "expected raw files with the camera's noise"
            )
        measured[iso] = measure_dark(frames, means, height)
    return measured


def _pair(
    shots: list[Shot], darks: dict[int, DarkNoise], folder: str, remarks: list[str]
) -> dict[int, list[tuple[Shot, Shot]]]:
    """Pairs of flat frames of one ISO, exposure time and aperture, in the order of their names."""
    pairs = {}
    for iso, group in _by_iso(shots).items():
        if iso not in darks:
            remarks.append(f"left out: {len(group)} flat frames at ISO {iso}, at which there are no dark frames")
            continue
        of_exposure = defaultdict(list)
        for shot in group:
            of_exposure[shot.metadata.exposure_s, shot.metadata.aperture].append(shot)
        pairs[iso] = [pair for same in of_exposure.values() for pair in zip(same[::2], same[1::2], strict=False)]
        single = [same[-1] for same in of_exposure.values() if len(same) % 2]
        if not pairs[iso]:
            raise InputError(f"--flat {folder}: no two frames of one exposure at ISO {iso}; expected at least two")
        remarks += [f"left out, no second frame of its exposure: {shot.path}" for shot in single]
    if shots and not pairs:
        raise InputError(f"--flat {folder}: no frames at ISO {', '.join(map(str, darks))}, those of the dark frames")
    return pairs


def _measure_pairs(pairs: list[tuple[Shot, Shot]], black_error: float, count: Callable[[], None]) -> Blocks:
    blocks = []
    for pair in pairs:
        frames: list[RawFrame] = []
        for shot in pair:
            frames.append(read_raw(shot.path))
            count()
        blocks.append(measure_blocks(*frames, black_error))
    return join(blocks)


def _fit(iso: int, blocks: Blocks, dark_variance: float, folder: str) -> Gain:
    gain = fit_gain(blocks, dark_variance)
    if gain is None:
        raise InputError(
            f"--flat {folder}: what they show at ISO {iso} cannot be used, {blocks.bright.mean():.0%} of it is near "
            f"white or saturated, {blocks.dark.mean():.0%} near black; expected levels from {MIN_LEVEL:.1%} to "
            f"{MAX_LEVEL:.0%} of the range from black to white"
        )
    if gain.gain <= MIN_SIGNIFICANCE * gain.error:
        raise InputError(
            f"--flat {folder}: at ISO {iso} the noise does not grow with the light; expected unprocessed raw files"
        )
    return gain


def _noise(iso: int, dark: DarkNoise, gains: dict[int, Gain]) -> IsoNoise:
    gain = gains[iso].gain if iso in gains else interpolate_gain(iso, {other: fit.gain for other, fit in gains.items()})
    values = (gain, dark.read_lambda, dark.read_scale, dark.row_sigma, dark.black_error, dark.black_sigma)
    errors = replace(dark.errors, gain=gains[iso].error if iso in gains else None)
    return IsoNoise(*map(_rounded, values), StandardErrors(*map(_rounded, astuple(errors))))


def interpolate_gain(iso: int, gains: dict[int, float]) -> float | None:
    """The gain at an ISO from those at others: log(gain / ISO), interpolated in log(ISO) and constant beyond the ends.

    None if there are no others.
    """
    if not gains:
        return None
    known = sorted(gains)
    relative = [math.log(gains[other] / other) for other in known]
    return iso * math.exp(np.interp(math.log(iso), np.log(known), relative))


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def _doubts(darks: dict[int, DarkNoise], gains: dict[int, Gain], full_range: float) -> list[str]:
    doubts = []
    for iso, gain in gains.items():
        if gain.scatter > MAX_SCATTER:
            doubts.append(
                f"ISO {iso}: variances of the flat frames scatter {gain.scatter:.1f} times as much as noise explains; "
                "was the surface out of focus, camera and light steady?"
            )
    for iso, dark in darks.items():
        if abs(dark.black_error) > max(MAX_BLACK_ERROR * full_range, math.sqrt(dark.variance)):
            doubts.append(
                f"ISO {iso}: dark frames are {dark.black_error:.1f} DN from the file's black level; a level that is "
                "wrong in the file, or some light?"
            )
        if dark.ppcc < MIN_PPCC or min(abs(dark.read_lambda - end) for end in LAMBDAS) < 0.01:
            doubts.append(f"ISO {iso}: read noise is hardly a Tukey-lambda distribution (correlation {dark.ppcc:.4f})")
    return doubts


def _missing_in_the_model(darks: dict[int, DarkNoise]) -> list[str]:
    remarks = []
    for iso, dark in darks.items():
        found = []
        if abs(dark.row_correlation) > MAX_ROW_CORRELATION:
            found.append(f"banding (rows are correlated, up to {dark.row_correlation:.2f})")
        if dark.column_excess > MAX_COLUMN_EXCESS:
            found.append(f"noise that columns share (their means vary {dark.column_excess:.1f} times as much)")
        if found:
            remarks.append(
                f"ISO {iso}: {' and '.join(found)}, which the model lacks; --keep-frames 16 draws it from dark frames"
            )
    return remarks
