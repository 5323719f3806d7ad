"""python jobs/calibrate.py --dark dark --flat flat --out camera.json

Measures the noise of your camera at each ISO, from raw files taken with the lens cap on (--dark) and of an evenly lit
surface (--flat): gain, read noise, row noise, error of the black level, each with its standard error. Takes about a
second per frame of 24 megapixels. Prints a line per ISO and what was left out; writes camera.json, for
`jobs/synthesize.py --camera`, and camera.png, which shows the fits; with --keep-frames also camera.dark.npz.
"""

from lsid_ray.commandline import parse, run_job
from lsid_ray.progress import counter
from lsid_ray.synthesis.calibrate import Calibration, calibrate
from lsid_ray.synthesis.camera import IsoNoise


def main() -> None:
    config = parse(Calibration, __doc__)
    with counter("reading", "frames") as progress:
        result = calibrate(config, progress)
    print(*result.remarks, sep="\n", end="\n" if result.remarks else "")
    print(f"{result.camera.name}, in DN from black {result.camera.black:g} to white {result.camera.white:g}:")
    for iso, noise in result.camera.by_iso.items():
        print(f"ISO {iso}: {_line(noise)}")
    if any(noise.gain is None for noise in result.camera.by_iso.values()):
        print("without --flat the gain is unknown: the file shows noise in the dark, but cannot be used to synthesize")
    print(f"{config.out} (fits: {result.picture}{f'; dark frames: {result.frames}' if result.frames else ''})")


def _line(noise: IsoNoise) -> str:
    errors = noise.standard_errors
    gain = "unknown" if noise.gain is None else f"{_value(noise.gain, errors.gain)} DN/e-"
    return (
        f"gain {gain}{', interpolated' if noise.gain and errors.gain is None else ''}; read noise: lambda "
        f"{_value(noise.read_lambda, errors.read_lambda)}, scale {_value(noise.read_scale, errors.read_scale)} DN; "
        f"row noise {_value(noise.row_sigma, errors.row_sigma)} DN; black level off by "
        f"{_value(noise.black_error, errors.black_error)} DN, drift {_value(noise.black_sigma, errors.black_sigma)} DN"
    )


def _value(value: float, error: float | None) -> str:
    return f"{value:.4g}" + ("" if error is None else f" ± {error:.1g}")


if __name__ == "__main__":
    run_job(main)
