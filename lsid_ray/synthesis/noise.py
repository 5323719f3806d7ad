"""The sensor noise of a short exposure, by default that of SID's Sony A7S II."""

import numpy as np

from lsid_ray.errors import InputError
from lsid_ray.raw.mosaic import black_mosaic
from lsid_ray.synthesis.camera import CameraNoise, IsoNoise

_BLOCK_ROWS = 128  # bounds memory: intermediate results take 40 bytes per sensel

# ISO: gain (DN per electron), Tukey-lambda read noise (lambda, scale in DN), row noise (sigma in DN),
# black-level error (mean and sigma over frames, in DN). Measured by Feng et al., "Learnability
# Enhancement for Low-light Raw Denoising" (PMN, ACM MM 2022), github.com/megvii-research/PMN commit d207d3e,
# Apache-2.0: data_process/process.py (Kmax, lam, sigTL, sigR, biassig), resources/darkshading_BLE.pkl. The sensor
# has dual gain: read noise halves between ISO 1600 and 2000, so no single line fits all ISOs.
_A7S2_PARAMETERS = {
    50: (0.047815, 0.14747, 0.70728, 0.13997, 1.6339, 0.01009),
    64: (0.0612032, 0.13243, 0.71536, 0.14347, 1.8029, 0.00869),
    80: (0.076504, 0.11215, 0.77995, 0.19540, -1.5935, 0.01072),
    100: (0.09563, 0.14875, 0.70182, 0.13915, 1.6903, 0.00724),
    125: (0.119538, 0.12905, 0.69620, 0.14486, 1.8358, 0.00803),
    160: (0.153008, 0.09413, 0.72586, 0.19756, -1.5113, 0.01014),
    200: (0.19126, 0.07902, 0.81175, 0.22816, -1.1621, 0.01141),
    250: (0.239075, 0.05169, 0.86309, 0.26272, -0.8403, 0.01357),
    320: (0.306016, 0.04070, 1.03345, 0.30971, -0.6054, 0.01783),
    400: (0.38252, 0.02225, 1.18168, 0.36210, -0.4407, 0.02101),
    500: (0.47815, -0.00313, 1.31772, 0.42528, -0.1056, 0.02982),
    640: (0.612032, 0.00257, 1.64742, 0.48840, 0.1725, 0.10001),
    800: (0.76504, -0.00820, 1.93465, 0.57238, 0.6235, 0.02534),
    1000: (0.9563, -0.02106, 2.27951, 0.68456, 0.9968, 0.02791),
    1250: (1.19538, -0.03242, 2.70844, 0.81770, 1.5415, 0.03293),
    1600: (1.53008, -0.04410, 3.22840, 0.98879, 2.4282, 0.03878),
    2000: (1.9126, -0.01296, 1.43568, 0.33124, -1.6925, 0.01571),
    2500: (2.39075, -0.02710, 1.68979, 0.38264, -1.6682, 0.01873),
    3200: (3.06016, -0.03486, 2.04177, 0.44543, -1.7263, 0.02136),
    4000: (3.8252, -0.04370, 2.46293, 0.52347, -1.8472, 0.02615),
    5000: (4.7815, -0.05315, 2.97610, 0.61903, -2.0560, 0.05857),
    6400: (6.12032, -0.07517, 3.45030, 0.72188, -2.2541, 0.05907),
    8000: (7.6504, -0.08208, 4.26962, 0.87760, -2.4593, 0.08484),
    10000: (9.563, -0.07329, 5.49532, 1.05223, 0.2932, 0.10744),
    12800: (12.2406, -0.06495, 7.03826, 1.27498, 0.7096, 0.09447),
    16000: (15.3008, -0.06069, 8.87755, 1.55593, 0.7084, 0.09725),
    20000: (19.126, -0.06021, 11.00235, 1.88108, 1.5518, 0.49847),
    25600: (24.4813, -0.09089, 12.17571, 2.27602, 2.9039, 0.37569),
}
A7S2 = CameraNoise("SONY ILCE-7SM2", 512.0, 16383.0, {iso: IsoNoise(*row) for iso, row in _A7S2_PARAMETERS.items()})


def short_exposure(
    clean: np.ndarray,
    black: np.ndarray | tuple[float, ...],
    white: float,
    ratio: float,
    iso: float,
    rng: np.random.Generator,
    camera: CameraNoise = A7S2,
    dark: np.ndarray | None = None,
) -> np.ndarray:
    """Simulate what a camera at `iso` would have recorded in 1/ratio of the exposure time of `clean`.

    clean: (H, W) uint16 or float, DN. black: DN, per CFA position (4 or 36 values, row-major) or an array
    that broadcasts against `clean`. white: DN. dark: (H, W), DN above black in the camera's range, what a dark frame
    says (see `dark_frames`), instead of read and row noise and the black level's error. Returns (H, W) uint16 in
    [0, white].

    With K the gain: Poisson((clean - black) / ratio / K) * K, plus Tukey-lambda or Gaussian read noise per sensel,
    Gaussian noise per row and one black-level error per frame; `black` is added and the sum is rounded (Wei et al.,
    ELD, CVPR 2020; PMN, see A7S2). If the range from black to white is not the camera's, all noise is scaled.
    Raises InputError for an ISO without a calibration or without a gain, or a ratio below 1.
    """
    if iso not in camera.by_iso:
        raise InputError(f"ISO {iso}: no noise calibration; expected one of {', '.join(map(str, camera.by_iso))}")
    noise = camera.by_iso[int(iso)]
    if noise.gain is None:
        raise InputError(f"ISO {iso}: the gain of {camera.name} is unknown, so its shot noise cannot be simulated")
    if not ratio >= 1:
        raise InputError(f"ratio {ratio}: expected at least 1")
    height, width = clean.shape
    levels = black_mosaic(black, height, width) if isinstance(black, tuple) else np.asarray(black, np.float32)
    levels = np.broadcast_to(levels, clean.shape)
    range_scale = float((white - levels.mean(dtype=np.float64)) / (camera.white - camera.black))
    frame_error = rng.normal(noise.black_error, noise.black_sigma)
    short = np.empty(clean.shape, np.uint16)
    for top in range(0, height, _BLOCK_ROWS):
        rows = slice(top, top + _BLOCK_ROWS)
        above_black = np.maximum(clean[rows] - levels[rows], 0)
        dn = rng.poisson(above_black / (ratio * noise.gain * range_scale)) * noise.gain
        if dark is None:
            dn += _read_noise(dn.shape, noise, rng)
            dn += rng.normal(0, noise.row_sigma, (len(dn), 1)) + frame_error
        else:
            dn += dark[rows]
        short[rows] = np.rint(dn * range_scale + levels[rows]).clip(0, white)
    return short


def _read_noise(shape: tuple[int, ...], noise: IsoNoise, rng: np.random.Generator) -> np.ndarray:
    """Read noise in DN, of mean 0."""
    if noise.read_lambda is None:
        return rng.normal(0, noise.read_scale, shape)
    return tukey_lambda_quantile(rng.random(shape), noise.read_lambda) * noise.read_scale


def tukey_lambda_quantile(p: np.ndarray, tail: float) -> np.ndarray:
    """Quantile function of the Tukey-lambda distribution at `p`; `tail` is its lambda, 0 for the logistic one."""
    p = p.clip(1e-12, 1 - 1e-12)  # the quantiles of 0 and 1 are infinite for a negative lambda
    return np.log(p / (1 - p)) if tail == 0 else (p**tail - (1 - p) ** tail) / tail
