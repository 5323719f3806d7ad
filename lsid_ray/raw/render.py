"""Rendering raw frames with LibRaw, with one set of parameters for the reference and the plain rendering."""

import io
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import rawpy

from lsid_ray.errors import InputError
from lsid_ray.raw.dng import write_dng
from lsid_ray.raw.frame import RawFrame, error_text, frame_from_libraw, is_read_by_libraw_as, open_raw

# SID's targets are LibRaw's renderings with the first three. The others are LibRaw's defaults, written out because
# scores depend on them; except `user_flip`, which keeps a target aligned with its mosaic, and `adjust_maximum_thr`.
RENDERING = {
    "use_camera_wb": True,
    "no_auto_bright": True,
    "output_bps": 16,
    "user_flip": 0,
    "gamma": (2.222, 4.5),
    "demosaic_algorithm": "AHD",
    "adjust_maximum_thr": 0.0,
    "output_color": "sRGB",
    "highlight_mode": 0,
    "bright": 1.0,
    "half_size": False,
    "four_color_rgb": False,
    "median_filter_passes": 0,
}
# LibRaw's default: if the brightest sensel is above this fraction of the white level, it becomes the white level, and
# the picture as much brighter. So one sensel decides how bright a target is; SID's targets were made so.
SID_MAXIMUM_THR = 0.75

# When is a level that many sensels have the one at which the sensor saturates?
MIN_SATURATION = 0.7  # of the white level
MIN_SHARE, MIN_COUNT = 1e-4, 8  # of the sensels of a color are at or above it: a few hot ones do not count
SPREAD = 0.003  # of the white level: how far saturated sensels may differ
MIN_CONTRAST = 10.0  # how much denser they lie than those below
SAME = 1.03  # ratio within which all positions of the CFA saturate


def rendering_parameters(sid_white: bool = False) -> dict[str, object]:
    """LibRaw's version and all parameters of a reference rendering as JSON values, to be stored with results."""
    parameters = {name: list(value) if isinstance(value, tuple) else value for name, value in RENDERING.items()}
    maximum_thr = {"adjust_maximum_thr": SID_MAXIMUM_THR if sid_white else RENDERING["adjust_maximum_thr"]}
    return {"libraw": ".".join(map(str, rawpy.libraw_version)), **parameters, **maximum_thr}


def has_sid_white(parameters: dict[str, object]) -> bool:
    """Whether stored `rendering_parameters` are those of `sid_white`."""
    return parameters.get("adjust_maximum_thr") == SID_MAXIMUM_THR


def reference_rendering(path: str | Path, sid_white: bool = False) -> np.ndarray:
    """Render a camera file with LibRaw: (H, W, 3) uint16 sRGB, with the size and orientation of the visible mosaic.

    The white level is the file's; sensels that are saturated below it are white, so highlights are neutral and one
    photograph is as bright as another. sid_white: LibRaw's own way, by the brightest sensel, as in SID's targets.
    Raises InputError as `read_raw` does, or if the rendering differs in size from the mosaic.
    """
    return read_and_render(path, sid_white)[1]


def read_and_render(path: str | Path, sid_white: bool = False) -> tuple[RawFrame, np.ndarray]:
    """Return `read_raw` and `reference_rendering` of a file, which is decoded only once."""
    with open_raw(path) as raw:
        frame = frame_from_libraw(raw, path)  # before rendering, which changes LibRaw's levels
        frame = replace(frame, mosaic=frame.mosaic.copy())
        if sid_white and is_read_by_libraw_as(raw, frame):
            return frame, _render_checked(raw, frame, sid_white)
    return frame, plain_rendering(frame, 1.0)


def plain_rendering(frame: RawFrame, ratio: float) -> np.ndarray:
    """Amplify the mosaic by `ratio`, then render it like the reference; no network is involved.

    Returns (H, W, 3) uint16 sRGB in sensor orientation. Each sensel is amplified about the black level of its CFA
    position, rounded and clipped to [0, white], so that LibRaw sees what a longer exposure would have recorded; a
    saturated one becomes white.
    """
    level = saturation(frame)
    if level is not None:
        frame = replace(frame, mosaic=np.where(frame.mosaic >= level, np.uint16(frame.white), frame.mosaic))
    black = tuple(float(round(level)) for level in frame.black)  # LibRaw knows no fractions
    file = io.BytesIO()
    write_dng(file, replace(frame, mosaic=amplify(frame, ratio, black), black=black))
    file.seek(0)
    try:
        with rawpy.imread(file) as raw:
            return _render_checked(raw, frame)
    except rawpy.LibRawError as error:
        raise InputError(
            f"{frame.source}: LibRaw cannot render it ({error_text(error)}); its metadata may be damaged"
        ) from None


def amplify(frame: RawFrame, ratio: float, black: tuple[float, ...] | None = None) -> np.ndarray:
    """Return `black + ratio * (mosaic - frame.black)`, rounded and clipped to [0, white]: (H, W) uint16, DN.

    black: by CFA position, of the result; by default that of the frame.
    """
    if ratio == 1 and black in (None, frame.black):
        return np.minimum(frame.mosaic, np.uint16(frame.white))
    period = math.isqrt(len(frame.black))
    levels = np.arange(2**16, dtype=np.float64)
    amplified = np.empty_like(frame.mosaic)
    for position, (before, after) in enumerate(zip(frame.black, black or frame.black, strict=True)):
        table = np.rint((levels - before) * ratio + after).clip(0, frame.white).astype(np.uint16)
        row, column = divmod(position, period)
        amplified[row::period, column::period] = table[frame.mosaic[row::period, column::period]]
    return amplified


def saturation(frame: RawFrame) -> int | None:
    """The level, in DN, from which sensels are saturated if that is below the white level; None if none are.

    Saturated sensels lie close together, above all others but a few hot ones, and at the same level in all colors.
    """
    period, levels = math.isqrt(len(frame.cfa)), []
    for row, column in np.ndindex(period, period):
        level = _top_peak(frame.mosaic[row::period, column::period], frame.white)
        if level is None:
            return None
        levels.append(level)
    return min(levels) if max(levels) <= SAME * min(levels) else None


def _top_peak(values: np.ndarray, white: float) -> int | None:
    """Where the brightest values begin, if they lie close together, apart from the others, and below white."""
    counts = np.bincount(values.ravel())
    at_or_above = counts[::-1].cumsum()[::-1]
    top = int(np.flatnonzero(at_or_above >= min(max(MIN_SHARE * values.size, MIN_COUNT), values.size))[-1])
    width = max(round(SPREAD * white), 1)
    if not MIN_SATURATION * white <= top < white - width:
        return None
    peak, below = counts[top - width :].sum(), counts[top - 6 * width : top - width].sum()
    return top - width if peak > MIN_CONTRAST * (below + 1) / 5 else None


def upright(image_HW: np.ndarray, orientation: int) -> np.ndarray:
    """Turn an image (H, W, ...) from sensor orientation upright; returns a view, (W, H, ...) for orientations 4 to 7.

    orientation: LibRaw's flip, as in `RawFrame.orientation`. Bit 1 mirrors the columns, bit 2 the rows; then bit 4
    swaps rows and columns. Raises ValueError for any other value. Source: LibRaw's `flip_index`.
    """
    if orientation not in range(8):
        raise ValueError(f"orientation {orientation}: expected LibRaw's flip, 0 to 7")
    if orientation & 2:
        image_HW = image_HW[::-1]
    if orientation & 1:
        image_HW = image_HW[:, ::-1]
    return image_HW.swapaxes(0, 1) if orientation & 4 else image_HW


def render(raw: rawpy.RawPy, sid_white: bool = False) -> np.ndarray:
    """Render an open file with the parameters of RENDERING: (H, W, 3) uint16 sRGB."""
    options = {
        **RENDERING,
        **({"adjust_maximum_thr": SID_MAXIMUM_THR} if sid_white else {}),
        "demosaic_algorithm": rawpy.DemosaicAlgorithm[RENDERING["demosaic_algorithm"]],
        "output_color": rawpy.ColorSpace[RENDERING["output_color"]],
    }
    return raw.postprocess(**options)


def _render_checked(raw: rawpy.RawPy, frame: RawFrame, sid_white: bool = False) -> np.ndarray:
    rgb = render(raw, sid_white)
    if rgb.shape != (*frame.mosaic.shape, 3):
        size = "x".join(map(str, rgb.shape[:2]))
        mosaic = "x".join(map(str, frame.mosaic.shape))
        raise InputError(
            f"{frame.source}: LibRaw renders {size} pixels from a mosaic of {mosaic}; expected the same size"
        )
    return rgb
