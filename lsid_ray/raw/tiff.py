"""What LibRaw does not say of a TIFF, as most raw files are one: its pages, camera, crop, and whether it is whole."""

import itertools
import logging
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile

from lsid_ray.errors import InputError

# tifffile logs warnings about unusual camera tags; errors in a file are reported by LibRaw instead.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)

MAX_PAGES = 100  # cameras write at most about 10
DNG_VERSION, CROP_ORIGIN, CROP_SIZE, ACTIVE_AREA = 50706, 50719, 50720, 50829
ORIENTATION, CFA_PATTERN, CFA_LAYOUT = 274, 33422, 50711
JPEG_BEGINNING = b"\xff\xd8"
RATIONALS = (5, 10)  # TIFF's data types of two integers each
CONVERT = "convert it with Adobe DNG Converter, uncompressed or lossless"
MIN_CROP = 22  # LibRaw renders none that is smaller; a tag that says so is damaged


def check_container(path: Path) -> None:
    """Raise InputError for a TIFF (most raw formats are one) whose image data LibRaw would read as something else.

    It decodes a truncated ARW without an error, rescales floats to a range of its own, takes any three colors of a DNG
    for red, green and blue, and of lossless JPEG leaves out what is damaged, and strips but the first (LibRaw 0.22).
    """
    try:
        with tifffile.TiffFile(path) as file:
            pages = list(tiff_pages(file))
            raw_pages = list(_raw_pages(file))
            # A preview, depth map or enhanced image beside it may be larger, floating-point or cut off.
            image = max(raw_pages or pages, key=lambda page: page.imagewidth * page.imagelength)
            unusual = _unusual_mosaic(image) if raw_pages and DNG_VERSION in pages[0].tags else ""
        needed = max(map(sum, zip(image.dataoffsets, image.databytecounts, strict=False)), default=0)
    except Exception:  # not a TIFF, or a damaged one: left to LibRaw
        return
    size = path.stat().st_size
    if size < needed:
        raise InputError(f"{path}: truncated: the file has {size} bytes, but its image data end at byte {needed}")
    if image.sampleformat == tifffile.SAMPLEFORMAT.IEEEFP:
        raise InputError(f"{path}: floating-point data; expected a sensor's integers")
    if unusual:
        raise InputError(f"{path}: {unusual}")


def _unusual_mosaic(page: tifffile.TiffPage) -> str:
    """Why the raw page of a DNG is no mosaic that LibRaw decodes as it is; empty if it is one."""
    layout = int(tag_values(page, CFA_LAYOUT)[0]) if CFA_LAYOUT in page.tags else 1
    if layout != 1:
        return f"its sensels lie in staggered rows or columns (CFALayout {layout}); expected a square grid"
    pattern = page.tags[CFA_PATTERN].value if CFA_PATTERN in page.tags else ()
    colors = set(pattern) if isinstance(pattern, bytes | tuple) else set()
    if colors - {0, 1, 2}:
        return (
            f"a color filter array of other colors (CFAPattern {sorted(colors)}); expected red, green and blue (0 to 2)"
        )
    if page.compression == tifffile.COMPRESSION.JPEG:
        count = len(page.dataoffsets)
        if not page.is_tiled and count > 1:
            return f"lossless JPEG in {count} strips, which LibRaw does not read; {CONVERT}"
        broken = sum(_bytes_at(page, offset) != JPEG_BEGINNING for offset in page.dataoffsets)
        if broken:
            return f"{broken} of the {count} parts of its image do not begin as lossless JPEG does; it is damaged"
    return ""


def _bytes_at(page: tifffile.TiffPage, offset: int) -> bytes:
    page.parent.filehandle.seek(offset)
    return page.parent.filehandle.read(len(JPEG_BEGINNING))


def tiff_pages(file: tifffile.TiffFile) -> Iterator[tifffile.TiffPage]:
    """The main pages, each followed by those in it; at most MAX_PAGES, as a damaged file can have no end of them."""
    pages = itertools.chain.from_iterable(itertools.chain([page], page.pages or ()) for page in file.pages)
    return itertools.islice(pages, MAX_PAGES)


def raw_page(file: tifffile.TiffFile, shape: tuple[int, int]) -> tifffile.TiffPage | None:
    """The page that LibRaw has decoded to a mosaic of this shape: the first one."""
    return next((page for page in _raw_pages(file) if page.shape[:2] == shape), None)


def _raw_pages(file: tifffile.TiffFile) -> Iterator[tifffile.TiffPage]:
    return (page for page in tiff_pages(file) if page.photometric == tifffile.PHOTOMETRIC.CFA)


def page_remarks(path: Path) -> list[str]:
    """What somebody should know of the pages of a TIFF."""
    try:
        with tifffile.TiffFile(path) as file:
            count = sum(page.samplesperpixel for page in _raw_pages(file) if not page.is_reduced)
    except Exception:  # not a TIFF, or a damaged one
        return []
    return [f"its file has {count} raw images, of which one is read: the largest, or the first of them"] * (count > 1)


def has_no_orientation(path: Path) -> bool:
    """Whether the tag is there, but none of the eight that TIFF has; LibRaw takes 0 for 8."""
    try:
        with tifffile.TiffFile(path) as file:
            tags = file.pages.first.tags
            return ORIENTATION in tags and tags[ORIENTATION].value not in range(1, 9)
    except Exception:  # not a TIFF, or a damaged one
        return False


def camera_name(path: Path) -> str:
    """Make and model from the TIFF tags; rawpy does not expose them."""
    try:
        with tifffile.TiffFile(path) as file:
            tags = file.pages.first.tags
            make_model = [str(tags[code].value).strip(" \0") for code in (271, 272) if code in tags]
            unique = str(tags[50708].value).strip(" \0") if 50708 in tags else ""  # UniqueCameraModel of a DNG
    except Exception:  # not a TIFF, or one that tifffile cannot parse
        return "unknown"
    if len(make_model) == 2 and make_model[1].lower().startswith(make_model[0].lower()):
        make_model = make_model[1:]  # "Canon", "Canon EOS 550D"
    return " ".join(filter(None, make_model)) or unique or "unknown"


def tag_values(page: tifffile.TiffPage, code: int) -> np.ndarray:
    """The numbers of a tag: (n,) float64; not finite where a denominator is 0."""
    tag = page.tags[code]
    values = np.ravel(np.array(tag.value, np.float64))
    with np.errstate(divide="ignore", invalid="ignore"):
        return values[::2] / values[1::2] if tag.dtype in RATIONALS else values


def active_area(page: tifffile.TiffPage) -> tuple[int, int]:
    """First row and column of a DNG's active area, from which its other tags count."""
    top, left = tag_values(page, ACTIVE_AREA)[:2] if ACTIVE_AREA in page.tags else (0, 0)
    return int(top), int(left)


def default_crop(page: tifffile.TiffPage, visible: tuple[int, int, int, int]) -> tuple[slice, slice]:
    """The rows and columns of LibRaw's visible area that a DNG's maker means to be seen.

    What lies around them is there for demosaicing, and may be dark or dead. visible: as `dng_black_levels`.
    Source: DNG 1.4.0.0, DefaultCropOrigin and DefaultCropSize, which give columns first.
    """
    whole = slice(0, visible[2]), slice(0, visible[3])
    if CROP_SIZE not in page.tags:
        return whole
    origin = tag_values(page, CROP_ORIGIN) if CROP_ORIGIN in page.tags else np.zeros(2)
    crop = []
    for axis, (start, size) in enumerate(zip(origin[::-1], tag_values(page, CROP_SIZE)[::-1], strict=True)):
        first = active_area(page)[axis] - visible[axis] + start
        inside = slice(max(math.ceil(first), 0), min(math.floor(first + size), visible[2 + axis]))
        crop.append(inside)
    return tuple(crop) if all(part.stop - part.start >= MIN_CROP for part in crop) else whole
