"""Converting a photograph, in any format, to a well-exposed, noise-free raw frame."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image, ImageOps

from lsid_ray.errors import InputError
from lsid_ray.raw.color import A7S2_COLOR_MATRIX, XYZ_FROM_SRGB, srgb_from_camera
from lsid_ray.raw.frame import RawFrame, read_raw
from lsid_ray.raw.mosaic import BAYER, XTRANS, layout_of, pack, pack_black, unpack
from lsid_ray.synthesis.camera import Sensor

TIFF_SUFFIXES = (".tif", ".tiff")
PHOTO_SUFFIXES = (".png", ".jpg", ".jpeg", *TIFF_SUFFIXES)
MIN_SIDE, MIN_XTRANS_SIDE = 64, 512  # pixels; LibRaw renders no smaller X-Trans frames
MAX_PIXELS = 2 * Image.MAX_IMAGE_PIXELS  # above which Pillow refuses to decode

A7S2_SENSOR = Sensor("RGGB", (512,) * 4, 16383, A7S2_COLOR_MATRIX)


def frame_from_photograph(
    path: Path,
    white_balance: tuple[float, float],
    max_side: int = 0,
    sensor: Sensor = A7S2_SENSOR,
    camera: str = "SONY ILCE-7SM2",
    on_its_side: bool = False,
) -> RawFrame:
    """Convert a photograph to a well-exposed, noise-free raw frame.

    A raw file is used as it is. Any other file becomes what a camera with `sensor` would have recorded: linear sRGB,
    converted to camera RGB by the inverse of LibRaw's color conversion, divided by the gains of R and B, sampled by its
    CFA. LibRaw's rendering of the frame then looks like the photograph. With a `max_side`, a photograph with a longer
    side is downscaled by area averaging. With `on_its_side`, one that is higher than wide is recorded as by a camera
    held upright: rows of the sensor are columns of the photograph.
    Raises InputError if the file is unreadable or a side is below 64 pixels, of a photograph for an X-Trans sensor
    below 512.
    """
    if path.suffix.lower() in PHOTO_SUFFIXES:
        rgb = linear_rgb(path)
        _check_size(path, *rgb.shape[:2])
        if 0 < max_side < max(rgb.shape):
            rgb = area_mean(rgb, *_downscaled_size(*rgb.shape[:2], max_side))
        if layout_of(sensor.cfa) == XTRANS:
            _check_size(path, *rgb.shape[:2], MIN_XTRANS_SIDE)
        turned = on_its_side and rgb.shape[0] > rgb.shape[1]
        frame = _sample_mosaic(np.rot90(rgb) if turned else rgb, white_balance, sensor, camera, path.name)
        if turned:
            frame = replace(frame, orientation=6)
    else:
        frame = read_raw(path)
        if 0 < max_side < max(frame.mosaic.shape):
            if layout_of(frame.cfa) != BAYER:
                raise InputError(
                    f"{path}: X-Trans cannot be downscaled to {max_side} pixels per side; use --max-side 0"
                )
            frame = _downscale_bayer(frame, max_side)
    _check_size(path, *frame.mosaic.shape)
    return frame


def neutral_gains(sensor: Sensor) -> np.ndarray:
    """(2,) float64: the gains of R and B that make D65 gray; ones if the sensor has no color matrix."""
    red, green, blue = np.array(sensor.color_matrix) @ XYZ_FROM_SRGB.sum(axis=1)
    return np.array([green / red, green / blue]) if red > 0 and green > 0 and blue > 0 else np.ones(2)


def _sample_mosaic(
    rgb: np.ndarray, white_balance: tuple[float, float], sensor: Sensor, camera: str, source: str
) -> RawFrame:
    """The frame that a camera would have recorded of (H, W, 3) float linear sRGB in [0, 1]."""
    camera_from_srgb = np.linalg.inv(srgb_from_camera(sensor.color_matrix))
    gains = np.array([white_balance[0], 1.0, white_balance[1]])
    signal = (rgb @ camera_from_srgb.T / gains).clip(0, 1)
    black = tuple(map(float, sensor.black))
    mosaic = np.empty(signal.shape[:2], np.uint16)
    period = math.isqrt(len(sensor.cfa))
    for (y, x), color, level in zip(np.ndindex(period, period), sensor.cfa, black, strict=True):
        plane = signal[y::period, x::period, "RGB".index(color)]
        mosaic[y::period, x::period] = np.rint(level + plane * (sensor.white - level))
    return RawFrame(
        mosaic=mosaic,
        cfa=sensor.cfa,
        black=black,
        white=float(sensor.white),
        white_balance=(white_balance[0], 1.0, white_balance[1]),
        color_matrix=sensor.color_matrix,
        orientation=0,
        camera=camera,
        iso=None,
        exposure_s=None,
        source=source,
    )


def _downscale_bayer(frame: RawFrame, max_side: int) -> RawFrame:
    """Downscale a Bayer frame by area averaging of each packed plane; the result is RGGB."""
    planes = pack(frame.mosaic, frame.cfa).transpose(1, 2, 0)
    small = np.rint(area_mean(planes, *_downscaled_size(*planes.shape[:2], max_side // 2)))
    height, width = small.shape[:2]
    red, green1, blue, green2 = pack_black(frame.black, frame.cfa).flat
    mosaic = unpack(small.astype(np.uint16).transpose(2, 0, 1), "RGGB", 2 * height, 2 * width)
    return replace(frame, mosaic=mosaic, cfa="RGGB", black=(red, green1, green2, blue))


def _downscaled_size(height: int, width: int, max_side: int) -> tuple[int, int]:
    scale = max_side / max(height, width)
    return max(round(height * scale), 1), max(round(width * scale), 1)


def _check_size(path: Path, height: int, width: int, minimum: int = MIN_SIDE) -> None:
    if min(height, width) < minimum:
        raise InputError(f"{path}: {height}x{width} pixels; expected at least {minimum} on each side")


def linear_rgb(path: Path) -> np.ndarray:
    """Read a PNG, JPEG or TIFF as (H, W, 3) float32 linear sRGB in [0, 1], upright.

    Integers are taken as sRGB-encoded; floats (TIFF) as linear light, and clipped to [0, 1]. Gray becomes R = G = B,
    alpha is dropped. Raises InputError if the file cannot be read or has another shape or pixel type.
    """
    values = _read_tiff(path) if path.suffix.lower() in TIFF_SUFFIXES else _read_image(path)
    if values.ndim == 2:
        values = values[:, :, None]
    if values.ndim != 3 or values.shape[2] not in (1, 2, 3, 4):
        raise InputError(f"{path}: shape {values.shape}; expected a color photograph, (height, width, 3)")
    values = values[:, :, [0, 0, 0]] if values.shape[2] < 3 else values[:, :, :3]
    if np.issubdtype(values.dtype, np.floating):
        linear = values.astype(np.float32)
        if not np.isfinite(linear).all():
            raise InputError(f"{path}: has NaN or infinite values; expected linear light")
        return linear.clip(0, 1)
    if values.dtype not in (np.uint8, np.uint16):
        raise InputError(f"{path}: pixels of type {values.dtype}; expected uint8, uint16 or float")
    table = linear_from_srgb(np.linspace(0, 1, int(np.iinfo(values.dtype).max) + 1))
    return table.astype(np.float32)[values]


def linear_from_srgb(encoded: np.ndarray) -> np.ndarray:
    """Invert the sRGB transfer function, [0, 1] -> [0, 1] (IEC 61966-2-1)."""
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def area_mean(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Downscale (H, W, C) to (height, width, C) float32: each pixel is the mean over the area that it covers."""
    rows = _area_weights(image.shape[0], height)
    columns = _area_weights(image.shape[1], width)
    return np.einsum("yY,YXc,xX->yxc", rows, image.astype(np.float32), columns, optimize=True)


def _area_weights(size: int, new_size: int) -> np.ndarray:
    """(new_size, size) float32: the weight of each input pixel in each output pixel."""
    edges = np.linspace(0, size, new_size + 1)[:, None]
    pixels = np.arange(size)
    overlap = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
    return (overlap.clip(0) * (new_size / size)).astype(np.float32)


def _read_image(path: Path) -> np.ndarray:
    with _decoding(path, "a photograph"), Image.open(path) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode not in ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK"):
            raise InputError(f"{path}: mode {upright.mode}; expected 8 bits per color (or a 16-bit TIFF)")
        return np.asarray(upright.convert("RGB"))


def _read_tiff(path: Path) -> np.ndarray:
    with _decoding(path, "a TIFF"), tifffile.TiffFile(path) as file:
        page = file.pages[0]
        if page.imagelength * page.imagewidth > MAX_PIXELS or page.size > 4 * MAX_PIXELS:  # before it takes memory
            raise InputError(f"{path}: shape {page.shape}; expected at most {MAX_PIXELS / 1e6:.0f} megapixels")
        values = page.asarray()
    if values.ndim == 3 and values.shape[0] in (3, 4) and values.shape[2] > 4:
        values = values.transpose(1, 2, 0)  # planar: (C, H, W)
    return values


@contextmanager
def _decoding(path: Path, kind: str) -> Iterator[None]:
    """Turn what a decoder raises into InputError; on a damaged file that can be anything."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: cannot be read as {kind} ({reason})") from None
