"""A contact sheet of a data set: each amplified short exposure next to its long one, to check levels and pairing."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lsid_ray import storage
from lsid_ray.data.catalog import RawPair
from lsid_ray.data.comparison import Comparison, compare_frames
from lsid_ray.data.index import Pair, Shards, open_shards, read_index
from lsid_ray.data.pair_list import list_pairs
from lsid_ray.data.pair_ratio import pair_ratio
from lsid_ray.data.shift import format_shift
from lsid_ray.errors import InputError
from lsid_ray.raw.frame import RawFrame, read_raw
from lsid_ray.raw.mosaic import black_mosaic
from lsid_ray.raw.plausibility import oddities
from lsid_ray.raw.render import plain_rendering, read_and_render, upright
from lsid_ray.storage import AnyPath

IMAGE_WIDTH, IMAGE_HEIGHT = 420, 300  # pixels, at most
CAPTION_HEIGHT = 3 + 6 * 18  # of lines: three, and up to three of what is odd
GAP = 12  # pixels between cells
PAIRS_PER_ROW = 2
THREADS = 4  # a 61-megapixel pair takes about 2 GB while it is rendered
BACKGROUND, TEXT_COLOR, ERROR_COLOR = "#16181b", "#e8eaec", "#ff9d5c"


@dataclass(frozen=True)
class _Exposures:
    short: RawFrame
    ratio: float
    long: np.ndarray
    """(H, W, 3) uint16, in sensor orientation."""
    comparison: Comparison
    long_oddities: str = ""
    """As `raw.plausibility.oddities`; of shards it is not known."""


def contact_sheet(
    path: AnyPath,
    out: AnyPath,
    count: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    lists: Sequence[str] = (),
    on_problem: Callable[[str], None] = lambda line: None,
) -> tuple[str, ...]:
    """Write an image of `count` pairs of a data set: a folder of raw files (as `list_pairs`), or of shards.

    Covers every split, and every scene before showing a second pair of any. on_problem: called with a line for each
    pair that moved between the exposures, contradicts its ratio or is odd. Returns the pairs that could not be shown,
    each with its reason, which is also drawn in its place. Raises InputError if `path` is neither kind of folder, or
    nothing can be shown.
    """
    if count < 1:
        raise InputError(f"--count is {count}: expected 1 or more")
    file_format = Image.registered_extensions().get(out.suffix.lower())
    if file_format not in Image.SAVE or out.is_dir():
        raise InputError(f"--out {out}: expected the name of an image file, such as preview.png")
    storage.check_writable(out.parent, "--out")
    if (path / "index.json").exists():
        splits = sorted({pair.split for pair in read_index(path).pairs})
        shards = open_shards(path, splits)
        pairs: list[RawPair | Pair] = list(shards.pairs)
        read = partial(_read_shards, shards)
    else:
        catalog = list_pairs(path, lists)
        pairs = [*catalog.pairs, *catalog.excluded]
        read = _read_raw_files
    selection = _select_pairs(pairs, count)
    cells, failures = [], []
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        for pair, drawn in zip(selection, pool.map(partial(_draw_cell, read), selection), strict=True):
            if isinstance(drawn, str):
                failures.append(f"{pair.name}: {drawn}")
                cells.append(_error_cell(pair, drawn))
            else:
                cell, problems = drawn
                cells.append(cell)
                for problem in problems:
                    on_problem(f"{pair.name}: {problem}")
            progress(len(cells), len(selection))
    if len(failures) == len(cells):
        raise InputError(f"{path}: no pair can be shown; {failures[0]}")
    columns = min(PAIRS_PER_ROW, len(cells))
    rows = -(-len(cells) // columns)
    width, height = cells[0].size
    sheet = Image.new("RGB", (GAP + columns * (width + GAP), GAP + rows * (height + GAP)), BACKGROUND)
    for number, cell in enumerate(cells):
        row, column = divmod(number, columns)
        sheet.paste(cell, (GAP + column * (width + GAP), GAP + row * (height + GAP)))
    out.parent.mkdir(parents=True, exist_ok=True)
    with storage.atomic_write(out) as file:
        sheet.save(file, format=file_format)
    return tuple(failures)


def _select_pairs(pairs: list[RawPair | Pair], count: int) -> list[RawPair | Pair]:
    """Round-robin over splits and scenes, starting each scene at another of its pairs to vary the ratio; by name."""
    by_split: dict[str, dict[str, list[RawPair | Pair]]] = {}
    for pair in pairs:
        by_split.setdefault(pair.split, {}).setdefault(pair.scene, []).append(pair)
    ranked = []
    for scenes in by_split.values():
        for scene, of_scene in enumerate(scenes.values()):
            ranked += [((turn - scene) % len(of_scene), scene, pair) for turn, pair in enumerate(of_scene)]
    ranked.sort(key=lambda entry: entry[:2])
    return sorted((pair for _, _, pair in ranked[:count]), key=lambda pair: pair.name)


def _read_shards(shards: Shards, pair: Pair) -> _Exposures:
    short, long = pair.short.raw_frame(shards.planes(pair)), shards.target(pair).transpose(1, 2, 0)
    return _Exposures(short, pair.ratio, long, compare_frames(short, pair.long, long, pair.ratio))


def _read_raw_files(pair: RawPair) -> _Exposures:
    with storage.local_copy(pair.short) as short_file, storage.local_copy(pair.long) as long_file:
        short = read_raw(short_file)
        long, rendering = read_and_render(long_file)
    ratio = pair_ratio(pair, short, long)
    return _Exposures(short, ratio, rendering, compare_frames(short, long, rendering, ratio), oddities(long))


def _draw_cell(
    read: Callable[[RawPair | Pair], _Exposures], pair: RawPair | Pair
) -> tuple[Image.Image, list[str]] | str:
    """Both images of a pair with a caption, and its problems; or why it cannot be read."""
    try:
        exposures = read(pair)
    except (InputError, OSError) as error:
        return str(error)
    short = exposures.short
    amplified = plain_rendering(short, exposures.ratio)
    cell, draw = _empty_cell()
    for column, rgb in enumerate((amplified, exposures.long)):
        image = Image.fromarray((upright(rgb, short.orientation) >> 8).astype(np.uint8))
        image.thumbnail((IMAGE_WIDTH, IMAGE_HEIGHT), reducing_gap=2)
        x = column * IMAGE_WIDTH + (IMAGE_WIDTH - image.width) // 2
        cell.paste(image, (x, (IMAGE_HEIGHT - image.height) // 2))
    signal = float((short.mosaic - black_mosaic(short.black, *short.mosaic.shape)).mean())
    iso = "no ISO" if short.iso is None else f"ISO {short.iso:g}"
    black = sorted(set(short.black))
    levels = f"black {black[0]:g}" + (f" to {black[-1]:g}" if len(black) > 1 else "") + f", white {short.white:g}"
    cfa = short.cfa if len(short.cfa) == 4 else "X-Trans"
    shift = exposures.comparison.shift
    moved = "shift unknown" if shift is None else f"shift {format_shift(shift)} pixels"
    lines = [
        f"{pair.name}   {pair.split}   x{exposures.ratio:.4g}   {iso}   {short.camera}",
        f"{cfa}, {levels}; {signal:.1f} DN above black on average",
        f"mean of the images: {amplified.mean() / 65535:.3f} amplified, {exposures.long.mean() / 65535:.3f} long; "
        + moved,
    ]
    for number, line in enumerate(lines):
        draw.text((2, IMAGE_HEIGHT + 3 + 18 * number), line, TEXT_COLOR, ImageFont.load_default(13))
    comparison = exposures.comparison.problems(exposures.ratio)
    odd = {"short": oddities(short), "long": exposures.long_oddities}
    unlikely = [f"unlikely, the {kind} one: {text}" for kind, text in odd.items() if text]
    for number, text in enumerate(filter(None, ("; ".join(comparison), *unlikely)), len(lines)):
        draw.text((2, IMAGE_HEIGHT + 3 + 18 * number), text, ERROR_COLOR, ImageFont.load_default(13))
    return cell, comparison + unlikely


def _empty_cell() -> tuple[Image.Image, ImageDraw.ImageDraw]:
    cell = Image.new("RGB", (2 * IMAGE_WIDTH, IMAGE_HEIGHT + CAPTION_HEIGHT), BACKGROUND)
    return cell, ImageDraw.Draw(cell)


def _error_cell(pair: RawPair | Pair, reason: str) -> Image.Image:
    cell, draw = _empty_cell()
    lines = [reason[start : start + 110] for start in range(0, len(reason), 110)]
    draw.multiline_text((8, 8), "\n".join([pair.name, *lines]), ERROR_COLOR, ImageFont.load_default(14))
    return cell
