"""What a person sees of a report: its picture files and its one HTML page, which needs nothing but them."""

from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

PICTURE_WIDTH = 1600  # pixels at most, as saved
VIEWS = {  # in the order in which they are shown
    "short": "Dark input, as exposed",
    "plain": "Plain rendering, amplified",
    "output": "Network",
    "target": "Long exposure",
    "attention": "Finest attention gate",
}
COLUMNS = (
    "images",
    "scenes",
    "plain PSNR / SSIM",
    "network PSNR / SSIM",
    "network, 8 bit",
    "gain, dB",
    "95%",
)


@dataclass(frozen=True)
class Shown:
    """A picture as it was saved: paths relative to the page."""

    title: str
    files: dict[str, str]
    """View -> its PNG."""
    measured: dict[str, str]
    """View -> its scores in words."""
    strip: str
    """All views in one row, with captions."""


def number(value: float | None, form: str) -> str:
    """A figure as the tables print it; a dash for one that is not finite or has no meaning."""
    return "-" if value is None else format(value, form)


def interval(cell: dict, form: str) -> str:
    """A summary's low and high, as [low, high]; a dash where there is a single scene."""
    return "-" if cell["low"] is None else f"[{cell['low']:{form}}, {cell['high']:{form}}]"


def pair(means: dict, who: str) -> str:
    """PSNR / SSIM of `network` or `plain` in a summary's `by_image` or `by_scene`."""
    return f"{number(means[who]['psnr_db']['mean'], '.2f')} / {number(means[who]['ssim']['mean'], '.3f')}"


def save_views(report: Path, stem: str, title: str, images: dict[str, np.ndarray], measured: dict[str, str]) -> Shown:
    """Save each view as STEM_view.png, at most PICTURE_WIDTH wide, and all in one row as STEM_strip.png.

    images: view -> (H, W, 3) or (h, w), floats in [0, 1] or uint8. stem: a path relative to `report`.
    """
    views = {view: _picture(images[view]) for view in VIEWS if view in images}
    for view, picture in views.items():
        picture.save(report / f"{stem}_{view}.png", compress_level=4)
    first = next(iter(views.values()))
    width = 3.4
    height = width * first.height / first.width
    # A Figure of its own, not pyplot's: no global state, no display.
    figure = Figure(figsize=(width * len(views), height + 0.8), layout="constrained")
    figure.suptitle(title, fontsize=11)
    for axes, (view, picture) in zip(figure.subplots(1, len(views)), views.items(), strict=True):
        grey = {"cmap": "gray", "vmin": 0, "vmax": 255} if picture.mode == "L" else {}
        axes.imshow(np.asarray(picture), extent=(0, 1, 0, height / width), interpolation="antialiased", **grey)
        axes.set_title("\n".join([VIEWS[view], measured.get(view, "")]), fontsize=9)
        axes.axis("off")
    figure.savefig(report / f"{stem}_strip.png", dpi=130)
    return Shown(
        title=title,
        files={view: f"{stem}_{view}.png" for view in views},
        measured=measured,
        strip=f"{stem}_strip.png",
    )


def _picture(image: np.ndarray) -> Image.Image:
    if image.dtype != np.uint8:
        image = np.round(np.clip(image.astype(np.float32), 0, 1) * 255).astype(np.uint8)
    picture = Image.fromarray(image)
    if picture.width > PICTURE_WIDTH:
        height = round(picture.height * PICTURE_WIDTH / picture.width)
        picture = picture.resize((PICTURE_WIDTH, height), Image.Resampling.LANCZOS)
    return picture


def render(summary: dict, group: dict, shown: list[Shown], record: dict) -> str:
    """The page. summary: of `report.summarize`; group: its headline; record: plain JSON types."""
    means = group["by_image"]
    figures = [
        ("Network", "network", "psnr_db", ".2f", " dB"),
        ("Plain rendering", "plain", "psnr_db", ".2f", " dB"),
        ("Gain", "gain", "psnr_db", "+.2f", " dB"),
        ("SSIM, network", "network", "ssim", ".3f", ""),
        ("SSIM, plain", "plain", "ssim", ".3f", ""),
    ]
    return PAGE.substitute(
        images=group["images"],
        scenes=group["scenes"],
        names=_name(group),
        figures="".join(
            f"<div><dt>{name}</dt><dd>{number(means[who][metric]['mean'], form)}{unit}</dd>"
            f"<dd>95% {interval(means[who][metric], form)}</dd></div>"
            for name, who, metric, form, unit in figures
        ),
        by_ratio="".join(_row(f"x{part['ratio']}", "", part, means_of="by_image") for part in group["by_ratio"])
        + _row("all", "", group, means_of="by_image"),
        by_group="".join(
            _row(_name(g), f"<td>{over}s</td>", g, means_of=f"by_{over}")
            for g in summary["groups"]
            for over in ("image", "scene")
        ),
        pictures="".join(_section(picture) for picture in shown) or "<p>No pictures were asked for.</p>",
        record="".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in _flat(record)),
        interval=escape(summary["interval"]),
        columns="".join(f"<th>{column}</th>" for column in COLUMNS),
        width=PICTURE_WIDTH,
        style=STYLE,
    )


def _name(group: dict) -> str:
    """All names of a group; "all" where every protocol means the same images."""
    return "all" if len(group["names"]) == 4 else escape(" = ".join(group["names"]))


def _row(label: str, cells: str, part: dict, *, means_of: str) -> str:
    means = part[means_of]
    gain, network = means["gain"]["psnr_db"], means["network"]
    return (
        f"<tr><th>{label}</th>{cells}<td>{part['images']}</td><td>{part['scenes']}</td>"
        f"<td>{pair(means, 'plain')}</td><td>{pair(means, 'network')}</td>"
        f"<td>{number(network['psnr8_db']['mean'], '.2f')} / {number(network['ssim8']['mean'], '.3f')}</td>"
        f"<td><b>{number(gain['mean'], '+.2f')}</b></td><td><small>{interval(gain, '+.2f')}</small></td></tr>"
    )


def _section(shown: Shown) -> str:
    def choice(side: str, chosen: str) -> str:
        options = "".join(
            f'<option value="{escape(path)}"{" selected" if view == chosen else ""}>{VIEWS[view]}</option>'
            for view, path in shown.files.items()
        )
        return f'<select aria-label="{side} picture" data-side="{side}">{options}</select>'

    columns = "".join(
        f'<figure><a href="{escape(path)}"><img src="{escape(path)}" alt="{VIEWS[view]}" loading="lazy"></a>'
        f"<figcaption>{VIEWS[view]}<br><small>{escape(shown.measured.get(view, ''))}</small></figcaption>"
        "</figure>"
        for view, path in shown.files.items()
    )
    return f"""
<article>
<h3>{escape(shown.title)}</h3>
<div class="choice">{choice("left", "plain")}{choice("right", "output")}</div>
<div class="compare">
<img class="right" src="{escape(shown.files["output"])}" alt="right picture">
<img class="left" src="{escape(shown.files["plain"])}" alt="left picture">
<input type="range" min="0" max="100" value="50" step="0.1" aria-label="divide between left and right">
</div>
<div class="columns">{columns}</div>
<p><small><a href="{escape(shown.strip)}">all in one strip</a></small></p>
</article>"""


def _flat(record: dict, prefix: str = "") -> list[tuple[str, str]]:
    """Nested keys joined by dots, each with its value in words."""
    rows = []
    for key, value in record.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            words = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            rows.append((prefix + key, words))
    return rows


STYLE = """:root {
  color-scheme: light dark; --accent: #b3561b;
  --ink: #1d2126; --soft: #5c6670; --line: #d9dee3; --ground: #fff; --raised: #f5f7f9 }
@media (prefers-color-scheme: dark) { :root {
  --accent: #f0a265;
  --ink: #e6e9ec; --soft: #9aa4ae; --line: #343b42; --ground: #14171a; --raised: #1d2125 } }
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground);
  max-width: 1080px; margin: 0 auto; padding: 2.5rem 1.25rem 5rem }
h1 { font-size: 1.7rem; margin: 0 }
h2 { font-size: 1.2rem; margin: 2.8rem 0 .7rem }
h3 { font-size: 1rem; overflow-wrap: anywhere }
p { max-width: 46rem }
small, .soft { color: var(--soft) }
a { color: var(--accent) }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(155px, 1fr)); gap: .8rem;
  margin: 1.5rem 0 }
.figures div { background: var(--raised); border: 1px solid var(--line); border-radius: 8px; padding: .8rem }
.figures dt, .figures dd + dd { color: var(--soft); font-size: .85rem; font-weight: 400 }
.figures dd { margin: 0; font-size: 1.45rem; font-weight: 600; white-space: nowrap }
.scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .9rem }
th, td { padding: .4rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
th:first-child { text-align: left; padding-left: 0; white-space: normal }
thead th { color: var(--soft); font-weight: 500 }
tbody th { font-weight: 500 }
.total tbody tr:last-child > * { border-top: 2px solid var(--line); font-weight: 600 }
.record td { text-align: left; white-space: normal; overflow-wrap: anywhere }
.record th { color: var(--soft); font-weight: 400; width: 16rem; vertical-align: top }
article { border-top: 1px solid var(--line); padding-top: .4rem; margin-top: 1.6rem }
.choice { display: flex; justify-content: space-between; gap: .5rem; margin-bottom: .4rem }
select { font: inherit; font-size: .9rem; min-width: 0 }
.compare { --cut: 50%; position: relative; line-height: 0; border-radius: 6px; overflow: hidden;
  background: var(--raised) }
.compare img { width: 100%; max-height: 80vh; object-fit: contain }
.compare .left { position: absolute; inset: 0; height: 100%; clip-path: inset(0 calc(100% - var(--cut)) 0 0) }
.compare::after { content: ""; position: absolute; top: 0; bottom: 0; left: calc(var(--cut) - 1px);
  width: 2px; background: #fff; box-shadow: 0 0 3px #000; pointer-events: none }
.compare input { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0;
  cursor: ew-resize }
.compare:focus-within { outline: 2px solid var(--accent); outline-offset: 2px }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(160px, 1fr)); gap: .8rem;
  margin-top: .9rem }
figure { margin: 0; font-size: .85rem; line-height: 1.35 }
figure img { width: 100%; border-radius: 4px; display: block }
figcaption { margin-top: .35rem }
"""
PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>lsid_ray: evaluation</title>
<style>
$style</style>
<h1>Extreme low-light enhancement: evaluation</h1>
<p class="soft">$images images of $scenes scenes ($names), means over images. Each image's own scores are in
<a href="scores.csv">scores.csv</a>, everything here in <a href="report.json">report.json</a>.</p>
<dl class="figures">$figures</dl>
<h2>By amplification ratio</h2>
<div class="scroll"><table class="total">
<thead><tr><th>ratio</th>$columns</tr></thead><tbody>$by_ratio</tbody></table></div>
<h2>By protocol</h2>
<div class="scroll"><table>
<thead><tr><th>protocol</th><th>mean over</th>$columns</tr></thead><tbody>$by_group</tbody></table></div>
<h2>Pictures</h2>
<p class="soft">Drag across a picture to compare the two named above it. Files are at most $width pixels wide;
scores are of the full frames.</p>
$pictures
<h2>How it was scored</h2>
<p>Full frames without a border crop, output and target clamped to [0, 1]; no brightness was fitted. The
amplification comes from the exposure times alone, never from the target. PSNR is -10 log10 of the mean
squared error over all pixels and channels of an image; SSIM is on RGB with a Gaussian window of sigma 1.5.
"8 bit": both pictures rounded to 8 bit first. Intervals: $interval, since frames of one burst are not
independent. "Plain" is the dark frame amplified by the same ratio and developed by LibRaw. The split is named
in the record below. Scores of other protocols (crops, half resolution, fitted brightness) cannot be set
beside these.</p>
<h2>Record</h2>
<div class="scroll"><table class="record"><tbody>$record</tbody></table></div>
<script>
for (const article of document.querySelectorAll("article")) {
  const compare = article.querySelector(".compare")
  compare.querySelector("input").oninput = e => compare.style.setProperty("--cut", e.target.value + "%")
  for (const select of article.querySelectorAll("select"))
    select.onchange = () => { compare.querySelector("." + select.dataset.side).src = select.value }
}
</script>
</html>
""")
