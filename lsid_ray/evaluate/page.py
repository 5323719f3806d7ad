"""The HTML page of a report and its image files. The page needs nothing but those files."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from lsid_ray.evaluate.measures import METRICS, PERCEPTUAL

TEMPLATES = Path(__file__).parent / "templates"
MAX_WIDTH = 1600  # pixels of an image as saved
VIEWS = {  # in the order in which they are shown
    "short": "Dark input, as exposed",
    "plain": "Plain rendering, amplified",
    "output": "Network",
    "target": "Long exposure",
}


@dataclass(frozen=True)
class SavedImages:
    """The image files of one frame; paths are relative to the page."""

    title: str
    files: dict[str, str]
    """View -> its PNG."""
    captions: dict[str, str]
    """View -> its scores as text."""
    strip: str
    """All views in one row, with captions."""


def is_gate(view: str) -> bool:
    """Whether a view shows the weights of an attention gate, named by its fraction of the packed size: "gate_8"."""
    return view.startswith("gate_")


def _title(view: str) -> str:
    if not is_gate(view):
        return VIEWS[view]
    fraction = view.removeprefix("gate_")
    return "Gate at packed resolution" if fraction == "1" else f"Gate at 1/{fraction}"


def number(value: float | None, form: str) -> str:
    """A number as the tables print it; a dash for None (not finite, or undefined)."""
    return "-" if value is None else format(value, form)


def interval(cell: dict, form: str) -> str:
    """A summary's low and high as [low, high]; a dash for a single scene."""
    return "-" if cell["low"] is None else f"[{cell['low']:{form}}, {cell['high']:{form}}]"


def psnr_ssim(means: dict, who: str) -> str:
    """PSNR / SSIM of `network` or `plain` in a summary's `by_image` or `by_scene`."""
    return f"{number(means[who]['psnr_db']['mean'], '.2f')} / {number(means[who]['ssim']['mean'], '.3f')}"


def render_template(template: Path, **values: Any) -> str:
    """A jinja2 template rendered with autoescape. It may use the filters above and include the files of TEMPLATES."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, TEMPLATES]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "interval": interval, "psnr_ssim": psnr_ssim}
    return environment.get_template(template.name).render(values)


def save_texture(path: Path, group: dict, bands: tuple[str, ...]) -> None:
    """Plot the texture that network and plain rendering keep, by period and by amplification ratio."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    colors = colormaps["viridis"](np.linspace(0.1, 0.8, len(group["by_ratio"])))
    labels = [f"{size} to {2 * size} px" for size in (int(band.removesuffix("px")) for band in bands)]
    for axes, metric in zip(figure.subplots(1, 2), ("texture", "coherence"), strict=True):
        for part, color in zip(group["by_ratio"], colors, strict=True):
            for who, style in (("network", "o-"), ("plain", "x:")):
                means = [part["by_image"][who][f"{metric}_{band}"]["mean"] for band in bands]
                values = [math.nan if mean is None else mean for mean in means]
                axes.plot(labels, values, style, color=color, label=f"{who}, x{part['ratio']}")
        axes.axhline(1, color="0.6", linewidth=0.8)
        axes.grid(alpha=0.25)
    power, coherence = figure.axes
    power.set_yscale("log")
    power.set_ylabel("power, relative to the long exposure")
    coherence.set_ylim(-0.05, 1.05)
    coherence.set_ylabel("coherence with the long exposure")
    coherence.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def render_report(
    summary: dict,
    group: dict,
    frames: list[SavedImages],
    record: dict,
    texture: str,
    not_measured: Mapping[str, str],
) -> str:
    """The page of an evaluation.

    summary: of `report.summarize`; group: its headline; record: plain JSON types; texture: path of `save_texture`;
    not_measured: metric -> reason.
    """
    captioned = [
        {
            **vars(frame),
            "captions": {view: frame.captions.get(view, "") for view in frame.files},
            "gates": [view for view in frame.files if is_gate(view)],
        }
        for frame in frames
    ]
    return render_template(
        TEMPLATES / "report.html",
        summary=summary,
        group=group,
        frames=captioned,
        record=_flatten(record),
        views={view: _title(view) for frame in frames for view in frame.files},
        texture=texture,
        perceptual={name: ", ".join(filter(None, (METRICS[name].title, METRICS[name].unit))) for name in PERCEPTUAL},
        not_measured=not_measured,
        max_width=MAX_WIDTH,
    )


def save_images(
    report: Path, stem: str, title: str, images: dict[str, np.ndarray], captions: dict[str, str]
) -> SavedImages:
    """Save each view as STEM_view.png, at most MAX_WIDTH wide, and all as STEM_strip.png, gates in a second row.

    images: view -> (H, W, 3) or (h, w), floats in [0, 1] or uint8. stem: a path relative to `report`.
    """
    names = [*VIEWS, *filter(is_gate, images)]
    views = {view: _to_pillow(images[view]) for view in names if view in images}
    for view, image in views.items():
        image.save(report / f"{stem}_{view}.png", compress_level=4)
    first = next(iter(views.values()))
    gates = list(filter(is_gate, views))
    rows = [list(views)[: len(views) - len(gates)], *([gates] if gates else [])]
    width = 3.4
    height = width * first.height / first.width
    # A Figure of its own instead of pyplot: no global state, no display.
    columns = max(map(len, rows))
    figure = Figure(figsize=(width * columns, (height + 0.5) * len(rows) + 0.3), layout="constrained")
    figure.suptitle(title, fontsize=11)
    for axes in (grid := figure.subplots(len(rows), columns, squeeze=False)).flat:
        axes.axis("off")
    for row, axes_of_row in zip(rows, grid, strict=True):
        for view, axes in zip(row, axes_of_row, strict=False):
            gray = {"cmap": "gray", "vmin": 0, "vmax": 255} if view in gates else {}
            extent = (0, 1, 0, height / width)
            axes.imshow(np.asarray(views[view]), extent=extent, interpolation="antialiased", **gray)
            axes.set_title("\n".join([_title(view), captions.get(view, "")]), fontsize=9)
    figure.savefig(report / f"{stem}_strip.png", dpi=130)
    files = {view: f"{stem}_{view}.png" for view in views}
    return SavedImages(title, files, captions, f"{stem}_strip.png")


def _to_pillow(image: np.ndarray) -> Image.Image:
    if image.dtype != np.uint8:
        image = np.round(np.clip(image.astype(np.float32), 0, 1) * 255).astype(np.uint8)
    pillow = Image.fromarray(image)
    if pillow.width > MAX_WIDTH:
        height = round(pillow.height * MAX_WIDTH / pillow.width)
        pillow = pillow.resize((MAX_WIDTH, height), Image.Resampling.LANCZOS)
    return pillow


def _flatten(record: dict, prefix: str = "") -> list[tuple[str, str]]:
    """Nested keys joined by dots, each with its value as text."""
    rows = []
    for key, value in record.items():
        if isinstance(value, dict):
            rows += _flatten(value, f"{prefix}{key}.")
        else:
            rows.append((prefix + key, ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return rows
