"""A contact sheet of a data set: each short, amplified, beside its long, to see levels, colours and pairing."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lsid_ray import storage
from lsid_ray.data.catalog import Pair, read_catalog
from lsid_ray.data.shards import PackedPair, Shards, open_shards, read_index
from lsid_ray.errors import InputError
from lsid_ray.raw.develop import plain_rendering, read_and_render, upright
from lsid_ray.raw.frame import RawFrame, read_raw
from lsid_ray.raw.mosaic import amplification_ratio, black_mosaic
from lsid_ray.storage import AnyPath

WIDTH, HEIGHT, TEXT = 420, 300, 58  # of a picture and of the lines below a pair, in pixels
GAP = 12
PAIRS_A_ROW = 2
THREADS = 4  # a 61-megapixel pair takes about 2 GB while it is rendered
GROUND, INK, WARNING = "#16181b", "#e8eaec", "#ff9d5c"


@dataclass(frozen=True)
class _Exposures:
    frame: RawFrame
    """The short."""
    ratio: float
    long: np.ndarray
    """(H, W, 3) uint16, in sensor orientation."""


def contact_sheet(
    path: AnyPath, out: AnyPath, count: int, progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[str, ...]:
    """Write a picture of `count` pairs of a data set: a folder of raw files (short/, long/), or of shards.

    One pair of each scene before a second of any, every split among them. Returns what could not be shown, each
    with its reason; their places say so too. Raises InputError when `path` is neither, or nothing can be shown.
    """
    kind = Image.registered_extensions().get(out.suffix.lower())
    if kind not in Image.SAVE:
        raise InputError(f"--out {out}: expected a picture's name, such as preview.png")
    if (path / "index.json").exists():
        splits = sorted({pair.split for pair in read_index(path).pairs})
        shards = open_shards(path, splits)
        pairs: list[Pair | PackedPair] = list(shards.pairs)
        read = partial(_from_shards, shards)
    else:
        catalog = read_catalog(path)
        pairs = [*catalog.pairs, *catalog.excluded]
        read = _from_files
    chosen = _chosen(pairs, count)
    cells, failures = [], []
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        for pair, cell in zip(chosen, pool.map(partial(_cell, read), chosen), strict=True):
            if isinstance(cell, str):
                failures.append(f"{pair.name}: {cell}")
                cell = _failed(pair, cell)
            cells.append(cell)
            progress(len(cells), len(chosen))
    if len(failures) == len(cells):
        raise InputError(f"{path}: no pair can be shown; {failures[0]}")
    columns = min(PAIRS_A_ROW, len(cells))
    rows = -(-len(cells) // columns)
    width, height = cells[0].size
    sheet = Image.new("RGB", (GAP + columns * (width + GAP), GAP + rows * (height + GAP)), GROUND)
    for number, cell in enumerate(cells):
        row, column = divmod(number, columns)
        sheet.paste(cell, (GAP + column * (width + GAP), GAP + row * (height + GAP)))
    out.parent.mkdir(parents=True, exist_ok=True)
    with storage.writing(out) as file:
        sheet.save(file, format=kind)
    return tuple(failures)


def _chosen(pairs: list[Pair | PackedPair], count: int) -> list[Pair | PackedPair]:
    """Pairs of all splits and scenes in turn, of each scene another of its ratios, in the order of their names."""
    turns, seen = [], {}
    for pair in pairs:
        seen.setdefault(pair.split, {}).setdefault(pair.scene, []).append(pair)
    for scenes in seen.values():
        for place, its in enumerate(scenes.values()):
            turns += [((turn - place) % len(its), place, pair) for turn, pair in enumerate(its)]
    turns.sort(key=lambda entry: entry[:2])
    return sorted((pair for _, _, pair in turns[:count]), key=lambda pair: pair.name)


def _from_shards(shards: Shards, pair: PackedPair) -> _Exposures:
    return _Exposures(pair.short.raw_frame(shards.planes(pair)), pair.ratio, shards.target(pair).transpose(1, 2, 0))


def _from_files(pair: Pair) -> _Exposures:
    with storage.local(pair.short) as short_file, storage.local(pair.long) as long_file:
        short = read_raw(short_file)
        long, rendering = read_and_render(long_file)
    if short.exposure_s is None or long.exposure_s is None:
        raise InputError("no exposure time in the file nor in its name (10003_00_0.04s)")
    return _Exposures(short, amplification_ratio(long.exposure_s, short.exposure_s), rendering)


def _cell(read: Callable[[Pair | PackedPair], _Exposures], pair: Pair | PackedPair) -> Image.Image | str:
    try:
        exposures = read(pair)
    except (InputError, OSError) as error:
        return str(error)
    frame = exposures.frame
    plain = plain_rendering(frame, exposures.ratio)
    cell, draw = _empty()
    for column, image in enumerate((plain, exposures.long)):
        picture = Image.fromarray((upright(image, frame.orientation) >> 8).astype(np.uint8))
        picture.thumbnail((WIDTH, HEIGHT), reducing_gap=2)
        cell.paste(picture, (column * WIDTH + (WIDTH - picture.width) // 2, (HEIGHT - picture.height) // 2))
    signal = float((frame.mosaic - black_mosaic(frame.black, *frame.mosaic.shape)).mean())
    iso = "no ISO" if frame.iso is None else f"ISO {frame.iso:g}"
    black = sorted(set(frame.black))
    levels = f"black {black[0]:g}" + (f" to {black[-1]:g}" if len(black) > 1 else "") + f", white {frame.white:g}"
    cfa = frame.cfa if len(frame.cfa) == 4 else "X-Trans"
    lines = [
        f"{pair.name}   {pair.split}   x{exposures.ratio:.4g}   {iso}   {frame.camera}",
        f"{cfa}, {levels}; {signal:.1f} DN above black on average",
        f"mean of the pictures: {plain.mean() / 65535:.3f} amplified, {exposures.long.mean() / 65535:.3f} long",
    ]
    for number, line in enumerate(lines):
        draw.text((2, HEIGHT + 3 + 18 * number), line, INK, ImageFont.load_default(13))
    return cell


def _empty() -> tuple[Image.Image, ImageDraw.ImageDraw]:
    cell = Image.new("RGB", (2 * WIDTH, HEIGHT + TEXT), GROUND)
    return cell, ImageDraw.Draw(cell)


def _failed(pair: Pair | PackedPair, reason: str) -> Image.Image:
    cell, draw = _empty()
    words = [reason[start : start + 110] for start in range(0, len(reason), 110)]
    draw.multiline_text((8, 8), "\n".join([pair.name, *words]), WARNING, ImageFont.load_default(14))
    return cell
