"""Rendering raw frames with LibRaw, with one set of parameters for the reference and the plain rendering."""

import io
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import rawpy

from lsid_ray.errors import InputError
from lsid_ray.raw.dng import write_dng
from lsid_ray.raw.frame import RawFrame, frame_from_libraw, is_read_by_libraw_as, open_raw

# SID's targets are LibRaw's renderings with the first three. The others are LibRaw's defaults, written out because
# scores depend on them; except `user_flip`, which keeps a target aligned with its mosaic.
RENDERING = {
    "use_camera_wb": True,
    "no_auto_bright": True,
    "output_bps": 16,
    "user_flip": 0,
    "gamma": (2.222, 4.5),
    "demosaic_algorithm": "AHD",
    "adjust_maximum_thr": 0.75,
    "output_color": "sRGB",
    "highlight_mode": 0,
    "bright": 1.0,
    "half_size": False,
    "four_color_rgb": False,
    "median_filter_passes": 0,
}


def rendering_parameters() -> dict[str, object]:
    """LibRaw's version and all parameters of RENDERING as JSON values, to be stored with results."""
    parameters = {name: list(value) if isinstance(value, tuple) else value for name, value in RENDERING.items()}
    return {"libraw": ".".join(map(str, rawpy.libraw_version)), **parameters}


def reference_rendering(path: str | Path) -> np.ndarray:
    """Render a camera file with LibRaw: (H, W, 3) uint16 sRGB, with the size and orientation of the visible mosaic.

    Raises InputError as `read_raw` does, or if the rendering differs in size from the mosaic.
    """
    return read_and_render(path)[1]


def read_and_render(path: str | Path) -> tuple[RawFrame, np.ndarray]:
    """Return `read_raw` and `reference_rendering` of a file, which is decoded only once."""
    with open_raw(path) as raw:
        frame = frame_from_libraw(raw, path)  # before rendering, which changes LibRaw's levels
        frame = replace(frame, mosaic=frame.mosaic.copy())
        if is_read_by_libraw_as(raw, frame):
            return frame, _render_checked(raw, frame)
    return frame, plain_rendering(frame, 1.0)


def plain_rendering(frame: RawFrame, ratio: float) -> np.ndarray:
    """Amplify the mosaic by `ratio`, then render it like the reference; no network is involved.

    Returns (H, W, 3) uint16 sRGB in sensor orientation. Each sensel is amplified about the black level of its CFA
    position, rounded and clipped to [0, white], so that LibRaw sees what a longer exposure would have recorded.
    """
    black = tuple(float(round(level)) for level in frame.black)  # LibRaw knows no fractions
    file = io.BytesIO()
    write_dng(file, replace(frame, mosaic=amplify(frame, ratio, black), black=black))
    file.seek(0)
    try:
        with rawpy.imread(file) as raw:
            return _render_checked(raw, frame)
    except rawpy.LibRawError as error:
        raise InputError(f"{frame.source}: LibRaw cannot render it ({error}); its metadata may be damaged") from None


def amplify(frame: RawFrame, ratio: float, black: tuple[float, ...] | None = None) -> np.ndarray:
    """Return `black + ratio * (mosaic - frame.black)`, rounded and clipped to [0, white]: (H, W) uint16, DN.

    black: by CFA position, of the result; by default that of the frame.
    """
    period = math.isqrt(len(frame.black))
    levels = np.arange(2**16, dtype=np.float64)
    amplified = np.empty_like(frame.mosaic)
    for position, (before, after) in enumerate(zip(frame.black, black or frame.black, strict=True)):
        table = np.rint((levels - before) * ratio + after).clip(0, frame.white).astype(np.uint16)
        row, column = divmod(position, period)
        amplified[row::period, column::period] = table[frame.mosaic[row::period, column::period]]
    return amplified


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


def render(raw: rawpy.RawPy) -> np.ndarray:
    """Render an open file with the parameters of RENDERING: (H, W, 3) uint16 sRGB."""
    options = {
        **RENDERING,
        "demosaic_algorithm": rawpy.DemosaicAlgorithm[RENDERING["demosaic_algorithm"]],
        "output_color": rawpy.ColorSpace[RENDERING["output_color"]],
    }
    return raw.postprocess(**options)


def _render_checked(raw: rawpy.RawPy, frame: RawFrame) -> np.ndarray:
    rgb = render(raw)
    if rgb.shape != (*frame.mosaic.shape, 3):
        size = "x".join(map(str, rgb.shape[:2]))
        mosaic = "x".join(map(str, frame.mosaic.shape))
        raise InputError(
            f"{frame.source}: LibRaw renders {size} pixels from a mosaic of {mosaic}; expected the same size"
        )
    return rgb
