"""What LibRaw does not tell of a TIFF, as most raw files are one: its pages, its camera, whether it is whole."""

import itertools
import logging
from collections.abc import Iterator
from pathlib import Path

import tifffile

from lsid_ray.errors import InputError

# tifffile logs warnings about unusual camera tags; errors in a file are reported by LibRaw instead.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)

MAX_PAGES = 100  # cameras write at most about 10


def check_container(path: Path) -> None:
    """Raise InputError for a TIFF (most raw formats are one) whose image data are truncated or floating-point.

    LibRaw decodes a truncated ARW without an error, and rescales floats to a range of its own.
    """
    try:
        with tifffile.TiffFile(path) as file:
            pages = list(tiff_pages(file))
            raw_pages = [page for page in pages if page.photometric == tifffile.PHOTOMETRIC.CFA]
            # A preview, depth map or enhanced image beside it may be larger, floating-point or cut off.
            image = max(raw_pages or pages, key=lambda page: page.imagewidth * page.imagelength)
        needed = max(map(sum, zip(image.dataoffsets, image.databytecounts, strict=False)), default=0)
    except Exception:  # not a TIFF, or a damaged one: left to LibRaw
        return
    size = path.stat().st_size
    if size < needed:
        raise InputError(f"{path}: truncated: the file has {size} bytes, but its image data end at byte {needed}")
    if image.sampleformat == tifffile.SAMPLEFORMAT.IEEEFP:
        raise InputError(f"{path}: floating-point data; expected a sensor's integers")


def tiff_pages(file: tifffile.TiffFile) -> Iterator[tifffile.TiffPage]:
    """The main pages, each followed by those in it; at most MAX_PAGES, as a damaged file can have no end of them."""
    pages = itertools.chain.from_iterable(itertools.chain([page], page.pages or ()) for page in file.pages)
    return itertools.islice(pages, MAX_PAGES)


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
