"""Is a short exposure aligned with its long one, and as bright as their ratio says?

Both are compared in the middle of the frame, as the green light of packed pixels: the short one's from its planes, the
long one's from its rendering, converted back to the camera's linear green. Green sensels lie around the middle of their
packed pixel, so colors do not look like a shift.

Measured 2026-11-28: fourteen photographs (Kodak's, scene-linear TIFFs) of 0.4 to 0.8 megapixels, moved by 0 to 9.5
pixels, with the A7S II's noise. Errors of a coordinate in pixels, median and largest, by the long exposures' mean:

    mean light, share of white   x100, ISO 200   x250, ISO 1600   x300, ISO 1600   x300, ISO 6400   known
    8% to 22%                    0.05  0.20      0.05  0.20       0.05  0.20       0.10  0.30       100%
    1.6% to 4.5%                 0.05  0.15      0.10  0.55       0.10  0.45       0.15  0.50       93% to 100%
    0.8% to 2.2%                 0.05  0.20      0.17  0.55       0.25  0.65       0.30  1.10       84% to 100%

Of frames of 0.03 megapixels most remain unknown. No ratio was contradicted.
A pair takes 0.065 s of one core (of two, busy with other work), beside 0.12 s to decode and pack its short exposure
(jobs/README.md). So `pack` does not do it: the preview does, and `jobs/pack.py align`.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from skimage.registration import phase_cross_correlation

from lsid_ray.data.index import PackedFrame, Pair, Shards
from lsid_ray.data.shift import format_shift, is_moved
from lsid_ray.raw.color import linear_light, srgb_from_camera
from lsid_ray.raw.frame import FrameMetadata, RawFrame
from lsid_ray.raw.mosaic import PackedView, layout_of, pack_black, phase_padding

WINDOW = 512  # packed pixels per side, at most
MIN_SIDE = 16  # packed pixels; smaller frames are not compared
DENOISING, TREND = 0.5, 8.0  # sigma of the Gaussians, in packed pixels, between which lie the details that count
STEPS = 20  # per packed pixel
MIN_PEAK = 14.0  # standard deviations above the correlation's mean; of frames without light it was at most 9.9
MAX_FACTOR = 1.5  # between the brightness of both, amplified
BLACK_ERROR = 3 / 16383  # of the range: an A7S II's black level is wrong by up to 2.9 DN (`synthesis.noise.A7S2`)
MAX_LIGHT = 0.95  # of the white level: brighter pixels may be clipped in the long exposure


@dataclass(frozen=True)
class Comparison:
    """How a short exposure differs from its long one."""

    shift: tuple[float, float] | None
    """Rows and columns, in sensels, by which it lies below and to the right; None if too dark or plain to tell."""
    measured_ratio: float | None
    """The ratio nearest to the pair's that the mean brightnesses allow, if more than MAX_FACTOR off, else None."""

    def problems(self, ratio: float) -> list[str]:
        """What is wrong, in words; `ratio` is the pair's."""
        found = []
        if is_moved(self.shift):
            found.append(f"moved by {format_shift(self.shift)} pixels between the exposures")
        if self.measured_ratio is not None:
            bound = "at most" if self.measured_ratio < ratio else "at least"
            found.append(f"by its brightness the ratio is {bound} {self.measured_ratio:.3g}, not {ratio:.4g}")
        return found


def compare_frames(short: RawFrame, long: FrameMetadata, rendering: np.ndarray, ratio: float) -> Comparison:
    """Compare decoded files. rendering: of the long exposure, (H, W, 3) uint16 in sensor orientation."""
    y, x, height, width = _window(short.cfa, *short.mosaic.shape)
    top, left, rows, columns = _sensels(short.cfa, *short.mosaic.shape)
    planes = PackedView(short.mosaic, short.cfa)[:, y : y + height, x : x + width]
    return _compare(planes, short, rendering[top : top + rows, left : left + columns], long, ratio)


def compare_shards(shards: Shards, pair: Pair) -> Comparison:
    """Compare packed frames; gives the same as `compare_frames`, but reads only the middle of each."""
    size = pair.short.cfa, pair.short.height, pair.short.width
    planes = shards.short_window(pair, *_window(*size))
    rendering = shards.long_window(pair, *_sensels(*size)).transpose(1, 2, 0)
    return _compare(planes, pair.short, rendering, pair.long, pair.ratio)


def _window(cfa: str, height: int, width: int) -> tuple[int, int, int, int]:
    """Row, column, height and width of the middle of a frame, in packed pixels, where the CFA's pattern begins.

    height, width: of the mosaic, in sensels. Packed pixels at the border, which may be padded, are left out.
    """
    layout = layout_of(cfa)
    top, bottom, left, right = phase_padding(cfa, height, width)
    starts, sizes = [], []
    for side in ((height + top + bottom) // layout.block, (width + left + right) // layout.block):
        size = max(min(WINDOW, side - 2 * layout.repeat) // layout.repeat * layout.repeat, 0)
        starts.append((side - size) // 2 // layout.repeat * layout.repeat)
        sizes.append(size)
    return starts[0], starts[1], sizes[0], sizes[1]


def _sensels(cfa: str, height: int, width: int) -> tuple[int, int, int, int]:
    """The same window in sensels: row, column, height and width."""
    block = layout_of(cfa).block
    top, _, left, _ = phase_padding(cfa, height, width)
    y, x, rows, columns = (block * value for value in _window(cfa, height, width))
    return y - top, x - left, rows, columns


def _compare(
    planes: np.ndarray, short: FrameMetadata | PackedFrame, rendering: np.ndarray, long: FrameMetadata, ratio: float
) -> Comparison:
    if min(planes.shape[1:]) < MIN_SIDE:
        return Comparison(None, None)
    block = layout_of(short.cfa).block
    light = _binned(linear_light(rendering), block)
    green = light @ np.linalg.inv(srgb_from_camera(long.color_matrix))[1].astype(np.float32)
    green /= long.white_balance[1] / min(long.white_balance)  # LibRaw's least multiplier is 1
    short_green = _green(planes, short)
    shift = _shift(short_green * np.float32(ratio), green, block)
    return Comparison(shift, _measured_ratio(short_green, green, light.max(axis=2) < MAX_LIGHT, ratio))


def _green(planes: np.ndarray, frame: FrameMetadata) -> np.ndarray:
    """(h, w) float32: mean of the green sensels of each packed pixel; black = 0, white = 1."""
    is_green = [color == "G" for color in layout_of(frame.cfa).colors]
    black = pack_black(frame.black, frame.cfa)[is_green].mean(axis=0)
    repeats = [size // period for size, period in zip(planes.shape[1:], black.shape, strict=True)]
    green = planes[is_green].mean(axis=0, dtype=np.float32) - np.tile(black, repeats).astype(np.float32)
    return green / np.float32(frame.white - max(frame.black))


def _binned(image: np.ndarray, block: int) -> np.ndarray:
    """(h * block, w * block, C) -> (h, w, C): the mean of each block."""
    return sum(image[y::block, x::block] for y, x in np.ndindex(block, block)) / np.float32(block**2)


def _measured_ratio(short: np.ndarray, long: np.ndarray, unclipped: np.ndarray, ratio: float) -> float | None:
    """The ratio nearest to `ratio` that the means allow, whatever the black level's error; None if near enough."""
    if not unclipped.any():
        return None
    measured, light = float(short[unclipped].mean()), float(long[unclipped].mean())
    least, most = measured - BLACK_ERROR, measured + BLACK_ERROR
    if least * ratio > light * MAX_FACTOR:
        return light / least
    if most * ratio < light / MAX_FACTOR:
        return light / most if most > 0 else float("inf")
    return None


def _shift(short: np.ndarray, long: np.ndarray, block: int) -> tuple[float, float] | None:
    """By how many sensels `short` (h, w) lies below and to the right of `long`; None if that is unknown.

    Cross correlation of the spectra (Guizar-Sicairos et al. 2008, in scikit-image), denoised, with the light's trend
    removed. Not normalized to the phase alone, as phase correlation is: this would give all frequencies the same
    weight, and of a short exposure most are noise (measured: errors up to several times as large).
    """
    window, bandpass = _filters(short.shape)
    spectra = [np.fft.fft2((image - image.mean()) * window) * bandpass for image in (short, long)]
    correlation = np.fft.ifft2(spectra[0] * spectra[1].conj()).real
    if not correlation.max() >= MIN_PEAK * correlation.std() > 0:
        return None
    rows, columns = phase_cross_correlation(*spectra, space="fourier", upsample_factor=STEPS, normalization=None)[0]
    return float(block * rows), float(block * columns)


@lru_cache(maxsize=4)
def _filters(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(h, w) float32 each: a Hann window, and the spectrum of a difference of Gaussians."""
    window = np.outer(*(np.hanning(size) for size in shape))
    rows, columns = (np.fft.fftfreq(size) for size in shape)
    exponent = -2 * np.pi**2 * (rows[:, None] ** 2 + columns**2)
    bandpass = np.exp(DENOISING**2 * exponent) - np.exp(TREND**2 * exponent)
    return window.astype(np.float32), bandpass.astype(np.float32)
