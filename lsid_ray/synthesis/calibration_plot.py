"""A picture of a calibration's fits: photon transfer, read noise and row noise, one row of plots per ISO."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lsid_ray.synthesis.dark_noise import DarkNoise
from lsid_ray.synthesis.photon_transfer import Blocks, Gain

MAX_POINTS = 4000  # per plot


def draw_fits(name: str, darks: dict[int, DarkNoise], blocks: dict[int, Blocks], gains: dict[int, Gain]) -> Figure:
    """The fits of the camera `name`; `blocks` and `gains` lack the ISOs without flat frames."""
    figure = Figure(figsize=(12, 3.4 * len(darks)), layout="constrained")
    for (iso, dark), (transfer, read, row) in zip(
        darks.items(), figure.subplots(len(darks), 3, squeeze=False), strict=True
    ):
        _photon_transfer(transfer, dark, blocks.get(iso), gains.get(iso))
        _read_noise(read, dark)
        _row_noise(row, dark)
        transfer.set_ylabel(f"ISO {iso}\n{transfer.get_ylabel()}")
    figure.suptitle(f"{name}: fits (red) to what was measured (blue; gray: left out)")
    return figure


def _photon_transfer(axes: Axes, dark: DarkNoise, blocks: Blocks | None, gain: Gain | None) -> None:
    axes.set_title("photon transfer", fontsize=10)
    if blocks is None or gain is None:
        axes.text(0.5, 0.5, "no flat frames: the gain was not measured", ha="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    level, variance, used = blocks.levels, blocks.variances, blocks.used
    shown = np.random.default_rng(0).permutation(len(level))[:MAX_POINTS]
    for chosen, color in ((shown[~used[shown]], "0.7"), (shown[used[shown]], "tab:blue")):
        axes.plot(level[chosen], variance[chosen], ".", color=color, markersize=3, alpha=0.5)
    line = np.geomspace(max(level[used].min(), 1), level[used].max(), 100)
    label = f"gain {gain.gain:.4g} ± {gain.error:.1g} DN/e-"
    axes.plot(line, gain.gain * line + dark.variance, color="tab:red", label=label)
    axes.axhline(dark.variance, color="tab:red", linestyle=":", linewidth=1, label="dark frames")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("level above black, DN")
    axes.set_ylabel("variance, DN²")
    axes.legend(fontsize=8)


def _read_noise(axes: Axes, dark: DarkNoise) -> None:
    model, measured = dark.quantiles
    step = max(len(model) // MAX_POINTS, 1)
    shown = np.r_[0:50, 50 : len(model) - 50 : step, len(model) - 50 : len(model)]
    axes.plot(model[shown], measured[shown], ".", color="tab:blue", markersize=3)
    ends = [model[0], model[-1]]
    label = f"λ {dark.read_lambda:.3f}, scale {dark.read_scale:.3g} DN, correlation {dark.ppcc:.5f}"
    axes.plot(ends, ends, color="tab:red", linewidth=1, label=label)
    axes.set_title("read noise: quantiles", fontsize=10)
    axes.set_xlabel("of the fit, DN")
    axes.set_ylabel("measured, DN")
    axes.legend(fontsize=8)


def _row_noise(axes: Axes, dark: DarkNoise) -> None:
    axes.hist(dark.rows, bins=60, density=True, color="tab:blue", alpha=0.6)
    x = np.linspace(dark.rows.min(), dark.rows.max(), 200)
    density = np.exp(-0.5 * (x / dark.rows_sigma) ** 2) / (dark.rows_sigma * np.sqrt(2 * np.pi))
    axes.plot(x, density, color="tab:red", label=f"row noise {dark.row_sigma:.3g} DN, and the rest of read noise")
    axes.set_title("row noise: means of rows", fontsize=10)
    axes.set_xlabel("DN")
    axes.set_ylabel("density")
    axes.legend(fontsize=8)
