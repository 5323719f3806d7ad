"""Published noise parameters, as JSON: those of ELD (five cameras) and of PMN (Sony A7S II).

ELD: Wei et al., "A Physics-based Noise Formation Model for Extreme Low-light Raw Denoising", CVPR 2020,
camera_params/release of github.com/Vandermode/ELD (MIT). JSON: {"params": {NAME: the contents of NAME_params.npy}}.
Used are the range of gains (Kmin, Kmax), the mean of the Tukey-lambda shapes (G_shape), and of Profile-1, which is the
one that ELD's own noise.py samples, the lines log(scale) = slope * log(K) + bias of read noise (G_scale) and row noise
(R_scale). Not used: the scatter around these lines (sigma), the Gaussian fit (g_scale), Profile-2, and color_bias,
since the file does not say at which ISO its rows were measured; so black-level errors are 0. Neither does it say the
ISOs of Kmin and Kmax: they are taken as 100 and 6400, because Kmax is 64 times Kmin for all five cameras and those of
the A7S II are within 2% of PMN's gains at these ISOs. DN are those of 14 bits (noise.py scales by 16383 - 800).

PMN: Feng et al., "Learnability Enhancement for Low-light Raw Denoising: Where Paired Real Data Meets Noise Modeling",
ACM MM 2022, data_process/process.py and resources/darkshading_BLE.pkl of github.com/megvii-research/PMN (Apache-2.0).
JSON: {"per_iso": {ISO: {...}}, "black_level_error_DN": {ISO: DN}}. Used are Kmax, lam, sigTL, sigR, biassig, bl, wp and
the black-level error; not used: the Gaussian fit (sigGs), the quantization step q (rounding does that), the
uncertainties (sigTLsig, sigRsig), and the log-linear lines of other cameras, which come without ISOs.
"""

import math
from typing import Any

from lsid_ray.errors import InputError
from lsid_ray.synthesis.camera import CameraNoise, IsoNoise

_ELD_BLACK, _ELD_WHITE = 800.0, 16383.0
_ELD_ISOS = (100, 200, 400, 800, 1600, 3200, 6400)


def published_cameras(content: dict[str, Any], source: str) -> list[CameraNoise]:
    """The cameras in a JSON object of either form; none if it is of another form.

    Raises: InputError if it is of one of these forms, but a parameter is missing or no number.
    """
    try:
        if "params" in content:
            return [_eld_camera(name, parameters) for name, parameters in content["params"].items()]
        if "per_iso" in content:
            return [_pmn_camera(content)]
    except KeyError as error:
        raise InputError(f"{source}: {error.args[0]} is missing; expected the parameters of ELD or PMN") from None
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise InputError(f"{source}: not the parameters of ELD or PMN ({error})") from None
    return []


def _eld_camera(name: str, parameters: dict[str, Any]) -> CameraNoise:
    profile, shapes = parameters["Profile-1"], parameters["G_shape"]
    shape = sum(shapes) / len(shapes)
    by_iso = {}
    for iso in _ELD_ISOS:
        log_gain = math.log(parameters["Kmin"]) + math.log(iso / _ELD_ISOS[0]) * (
            math.log(parameters["Kmax"] / parameters["Kmin"]) / math.log(_ELD_ISOS[-1] / _ELD_ISOS[0])
        )
        read_scale, row_sigma = (
            math.exp(profile[line]["slope"] * log_gain + profile[line]["bias"]) for line in ("G_scale", "R_scale")
        )
        by_iso[iso] = IsoNoise(math.exp(log_gain), shape, read_scale, row_sigma, 0.0, 0.0)
    return CameraNoise(name, _ELD_BLACK, _ELD_WHITE, by_iso)


def _pmn_camera(content: dict[str, Any]) -> CameraNoise:
    levels = {(float(entry["bl"]), float(entry["wp"])) for entry in content["per_iso"].values()}
    if len(levels) != 1:
        raise ValueError(f"black and white levels {sorted(levels)}: expected the same at every ISO")
    by_iso = {
        int(iso): IsoNoise(
            gain=float(entry["Kmax"]),
            read_lambda=float(entry["lam"]),
            read_scale=float(entry["sigTL"]),
            row_sigma=float(entry["sigR"]),
            black_error=float(content["black_level_error_DN"][iso]),
            black_sigma=float(entry["biassig"]),
        )
        for iso, entry in content["per_iso"].items()
    }
    return CameraNoise("SonyA7S2", *levels.pop(), by_iso)
