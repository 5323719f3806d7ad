"""Read noise, row noise and black-level error, from dark frames of one ISO."""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import optimize, stats

from lsid_ray.synthesis.camera import StandardErrors
from lsid_ray.synthesis.noise import tukey_lambda_quantile

ROUNDING = 1 / 12  # variance of rounding to integers
LAMBDAS = (-0.4, 0.5)  # that are searched; ELD's and PMN's cameras have -0.26 to 0.2, a Gaussian has 0.135
STRIPS, STRIP_LAMBDAS = 8, 0.05  # strips are fitted on their own, near the fit, for the standard errors
MAX_LAG = 64  # rows
MAX_QUANTILES, SENSELS_PER_QUANTILE = 20_000, 50
_BINS, _BINS_PER_SCALE = 1 << 13, 32  # of a density: 128 scales to either side of the middle
_LOWER = np.concatenate(([0.0], np.geomspace(1e-9, 0.01, 2000), np.linspace(0.01, 0.5, 1000)[1:]))  # fine in the tail
_EDGES = np.concatenate((_LOWER, 1 - _LOWER[-2::-1]))  # of intervals of probability


@dataclass(frozen=True, eq=False)
class DarkNoise:
    """What the dark frames of one ISO say; all but `read_lambda` in DN."""

    read_lambda: float
    read_scale: float
    row_sigma: float
    black_error: float
    black_sigma: float
    errors: StandardErrors
    variance: float
    """Of a sensel from frame to frame, read and row noise and rounding, DN^2."""
    ppcc: float
    """Correlation of the two rows of `quantiles`."""
    quantiles: np.ndarray
    """(2, n): of the read noise of the model, and as measured."""
    rows: np.ndarray
    """(frames * rows,): mean of each row, without the fixed pattern."""
    row_correlation: float
    """The largest correlation, by magnitude, of rows up to 64 apart: of banding. 0 in the model."""
    column_excess: float
    """Variance of the means of columns over frames, relative to what read noise leaves there; 1 in the model."""
    rows_sigma: float
    """Standard deviation of `rows` in the model: row noise, and what a row's mean keeps of read noise."""


def measure_dark(frames: np.ndarray, means: np.ndarray, height: int) -> DarkNoise:
    """Fit the noise of dark frames of one ISO.

    frames: (N, h, W) float32, DN above black, whole rows of N frames, N at least 2; it is overwritten.
    means: (N,), the mean of each whole frame above black, DN. height: rows of a whole frame.

    The mean of the frames is the fixed pattern; what is left of each frame is scaled by sqrt(N / (N - 1)). Row noise:
    the variance of the rows' means, less the share 1 / W of the read noise's. Read noise, of what is left of each row:
    the lambda of the largest probability plot correlation coefficient, as in ELD (Wei et al., CVPR 2020, section 4),
    but of the distribution that read noise has after rounding and after the mean frame is taken away (`_quantiles`),
    and on at most 20,000 evenly spaced quantiles, so that a hot pixel in 50,000 has no influence. Black level's error
    and drift (PMN, Feng et al., ACM MM 2022): mean and standard deviation of `means`, less what read and row noise
    leave in them.
    """
    count, strip_height, width = frames.shape
    frames -= frames.mean(axis=0)
    frames *= math.sqrt(count / (count - 1))
    rows = frames.mean(axis=2, dtype=np.float64)
    frames -= rows[:, :, None].astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True)

    read_lambda, read_scale, ppcc, quantiles = _fit_read_noise(frames, count, LAMBDAS)
    near = (read_lambda - STRIP_LAMBDAS, read_lambda + STRIP_LAMBDAS)
    strips = [_fit_read_noise(frames[:, k::STRIPS], count, near)[:2] for k in range(STRIPS)]
    lambda_error, scale_error = np.std(strips, axis=0, ddof=1) / math.sqrt(STRIPS)

    read_variance = float(frames.var(dtype=np.float64)) * width / (width - 1)
    degrees = (count - 1) * (strip_height - 1)
    rows_variance = float((rows**2).sum()) / (count * (strip_height - 1))
    row_variance = max(rows_variance - read_variance / width, 0.0)
    black_sigma, black_error = float(means.std(ddof=1)), float(means.mean())
    shared = row_variance / height + read_variance / (height * width)
    return DarkNoise(
        read_lambda=read_lambda,
        read_scale=read_scale,
        row_sigma=math.sqrt(row_variance),
        black_error=black_error,
        black_sigma=math.sqrt(max(black_sigma**2 - shared, 0.0)),
        errors=StandardErrors(
            gain=None,
            read_lambda=float(lambda_error),
            read_scale=float(scale_error),
            row_sigma=_error_of_root(rows_variance * math.sqrt(2 / degrees), row_variance),
            black_error=black_sigma / math.sqrt(count),
            black_sigma=black_sigma / math.sqrt(2 * (count - 1)),
        ),
        variance=read_variance + row_variance,
        ppcc=ppcc,
        quantiles=quantiles,
        rows=rows.ravel(),
        row_correlation=_largest_correlation(rows),
        column_excess=float(frames.mean(axis=1, dtype=np.float64).var()) * strip_height / read_variance,
        rows_sigma=math.sqrt(row_variance + read_variance / width),
    )


def _error_of_root(error: float, variance: float) -> float:
    """The standard error of a standard deviation, from that of its variance; if that may be 0, of what it may be."""
    return error / (2 * math.sqrt(variance)) if variance > error else math.sqrt(error)


def _largest_correlation(rows: np.ndarray) -> float:
    """Of the means of rows, (N, h), with those up to MAX_LAG further down."""
    lags = range(1, min(MAX_LAG, rows.shape[1] // 2) + 1)
    products = [float((rows[:, lag:] * rows[:, :-lag]).mean()) for lag in lags]
    return max(products, key=abs) / float((rows**2).mean())


def _fit_read_noise(
    residual: np.ndarray, count: int, lambdas: tuple[float, float]
) -> tuple[float, float, float, np.ndarray]:
    """(lambda, scale, correlation, quantiles of the model and as measured) of what is left of `count` frames."""
    number = min(MAX_QUANTILES, residual.size // SENSELS_PER_QUANTILE)
    middles = (np.arange(number) + 0.5) / number
    measured = np.sort(residual, axis=None)[(middles * residual.size).astype(int)].astype(np.float64)
    measured -= measured.mean()
    variance = float((measured**2).mean())

    def fit(read_lambda: float, updates: int) -> tuple[float, float, np.ndarray]:
        unit = float(stats.tukeylambda.var(read_lambda))
        scale = math.sqrt(max(variance - ROUNDING, variance / 100) / unit)
        for _ in range(updates):  # the quantiles leave out the tails, whose share depends on the scale through rounding
            model = _quantiles(middles, read_lambda, scale, count)
            ratio = (variance - ROUNDING) / (float((model**2).mean()) - ROUNDING)
            scale *= math.sqrt(max(ratio, 0.01))
        model = _quantiles(middles, read_lambda, scale, count)
        return float(np.corrcoef(model, measured)[0, 1]), scale, model

    best = optimize.minimize_scalar(
        lambda value: -fit(value, 1)[0], bounds=lambdas, method="bounded", options={"xatol": 2e-4}
    )
    correlation, scale, model = fit(float(best.x), 3)
    return float(best.x), scale, correlation, np.stack([model, measured])


def _quantiles(p: np.ndarray, read_lambda: float, scale: float, count: int) -> np.ndarray:
    """Quantiles in DN of what is left of read noise when a frame is rounded and the mean of `count` frames taken away.

    With x the rounded noise of each frame and N their number, of sqrt(N / (N - 1)) * (x_1 - mean(x)): a sum of
    N independent terms, whose densities are convolved by their Fourier transforms. Rounding is taken as uniform noise.
    """
    step = scale / _BINS_PER_SCALE
    transform = _transform(read_lambda, count)
    for weight, number in _weights(count):
        transform = transform * np.sinc(np.fft.rfftfreq(_BINS, step) * weight) ** number
    density = np.fft.fftshift(np.fft.irfft(transform, _BINS)).clip(0)
    cumulative = np.cumsum(density)
    edges = (np.arange(_BINS) - _BINS // 2 + 0.5) * step
    rising = np.concatenate(([True], np.diff(cumulative) > 0))
    return np.interp(p, cumulative[rising] / cumulative[-1], edges[rising])


@lru_cache(maxsize=1)
def _transform(read_lambda: float, count: int) -> np.ndarray:
    """Fourier transform of the density of that sum before rounding, in units of the scale."""
    noise = tukey_lambda_quantile((_EDGES[1:] + _EDGES[:-1]) / 2, read_lambda)
    share = np.diff(_EDGES)
    transform = np.ones(_BINS // 2 + 1, complex)
    for weight, number in _weights(count):
        positions = np.rint(noise * weight * _BINS_PER_SCALE).clip(-_BINS // 2, _BINS // 2 - 1).astype(int)
        transform *= np.fft.rfft(np.bincount(positions % _BINS, share, minlength=_BINS)) ** number
    return transform


def _weights(count: int) -> tuple[tuple[float, int], tuple[float, int]]:
    """The terms of that sum: the weight of the frame itself, and those of the others with their number."""
    return (math.sqrt((count - 1) / count), 1), (-1 / math.sqrt(count * (count - 1)), count - 1)
