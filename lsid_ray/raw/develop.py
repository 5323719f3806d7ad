"""Raw frames as pictures: LibRaw's rendering, one set of parameters for reference and baseline."""

import io
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import rawpy

from lsid_ray.errors import InputError
from lsid_ray.raw.dng import write_dng
from lsid_ray.raw.frame import RawFrame, frame_of, open_raw

# SID's target is LibRaw's rendering with the first three; the rest are LibRaw's defaults, spelled out
# because scores depend on them, but for the flip: a target must lie on its mosaic.
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


def rendering_record() -> dict[str, object]:
    """LibRaw's version and every parameter of RENDERING, as plain JSON values, to stand beside results."""
    parameters = {name: list(value) if isinstance(value, tuple) else value for name, value in RENDERING.items()}
    return {"libraw": ".".join(map(str, rawpy.libraw_version)), **parameters}


def reference_rendering(path: str | Path) -> np.ndarray:
    """LibRaw's rendering of a camera file: (H, W, 3) uint16 sRGB, the visible mosaic's size and orientation.

    Raises InputError as `read_raw` does, or when LibRaw's picture has another size than the mosaic.
    """
    return read_and_render(path)[1]


def read_and_render(path: str | Path) -> tuple[RawFrame, np.ndarray]:
    """`read_raw` and `reference_rendering` of one file, decoded once."""
    with open_raw(path) as raw:
        frame = frame_of(raw, path)  # before rendering, which alters LibRaw's levels
        frame = replace(frame, mosaic=frame.mosaic.copy())
        return frame, _rendering(raw, frame)


def plain_rendering(frame: RawFrame, ratio: float) -> np.ndarray:
    """The baseline: the mosaic amplified by `ratio` about black, then rendered as the reference is.

    Returns (H, W, 3) uint16 sRGB in sensor orientation. Each pixel is amplified about its own position's
    black level, rounded and clipped to [0, white], so LibRaw sees what a longer exposure would have given.
    """
    amplified = replace(frame, mosaic=amplify(frame, ratio))
    file = io.BytesIO()
    write_dng(file, amplified)
    file.seek(0)
    with rawpy.imread(file) as raw:
        return _rendering(raw, frame)


def amplify(frame: RawFrame, ratio: float) -> np.ndarray:
    """`black + ratio * (mosaic - black)`, rounded, in [0, white]: (H, W) uint16, DN."""
    period = math.isqrt(len(frame.black))
    levels = np.arange(2**16, dtype=np.float64)
    amplified = np.empty_like(frame.mosaic)
    for position, black in enumerate(frame.black):
        table = np.rint((levels - black) * ratio + black).clip(0, frame.white).astype(np.uint16)
        row, column = divmod(position, period)
        amplified[row::period, column::period] = table[frame.mosaic[row::period, column::period]]
    return amplified


def upright(image_HW: np.ndarray, orientation: int) -> np.ndarray:
    """A picture (H, W, ...) in sensor orientation as it was meant to be seen: a view, (W, H, ...) for codes 4 to 7.

    orientation: LibRaw's flip, as `RawFrame.orientation`: of its bits 1 mirrors the columns, 2 the rows, 4 then
    swaps rows and columns. Raises ValueError for another code. Source: LibRaw's `flip_index`.
    """
    if orientation not in range(8):
        raise ValueError(f"orientation {orientation}; expected LibRaw's flip, 0 to 7")
    if orientation & 2:
        image_HW = image_HW[::-1]
    if orientation & 1:
        image_HW = image_HW[:, ::-1]
    return image_HW.swapaxes(0, 1) if orientation & 4 else image_HW


def render(raw: rawpy.RawPy) -> np.ndarray:
    """LibRaw's picture of an opened file by the parameters of RENDERING: (H, W, 3) uint16 sRGB."""
    options = {
        **RENDERING,
        "demosaic_algorithm": rawpy.DemosaicAlgorithm[RENDERING["demosaic_algorithm"]],
        "output_color": rawpy.ColorSpace[RENDERING["output_color"]],
    }
    return raw.postprocess(**options)


def _rendering(raw: rawpy.RawPy, frame: RawFrame) -> np.ndarray:
    rgb = render(raw)
    if rgb.shape != (*frame.mosaic.shape, 3):
        size = "x".join(map(str, rgb.shape[:2]))
        mosaic = "x".join(map(str, frame.mosaic.shape))
        raise InputError(f"{frame.source}: LibRaw renders {size} pixels from a mosaic of {mosaic}")
    return rgb
