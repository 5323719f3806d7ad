"""What a file is that LibRaw does not decode, and what to do about it."""

from pathlib import Path

import tifffile

from lsid_ray.raw.tiff import CONVERT, tiff_pages

BEGINNINGS = (  # of files that are no raw files, whatever their names
    (b"version https://git-lfs", "a pointer of Git LFS; fetch the file itself with git lfs pull"),
    (b"<", "a web page or XML; download the raw file again"),
    (b"\xff\xd8\xff", "a JPEG; expected the camera's raw file"),
    (b"\x89PNG", "a PNG; expected the camera's raw file"),
    (b"PK\x03\x04", "a ZIP archive; unpack it first"),
)
COMPRESSIONS = {  # of TIFF, by which LibRaw 0.22 of PyPI's rawpy cannot read a raw page
    8: f"compressed with Deflate; {CONVERT}",
    9: f"compressed with VC-5, as by GoPro; {CONVERT}",
    34713: f"compressed by Nikon in a way that LibRaw cannot read (High Efficiency?); {CONVERT}",
    34892: f"a lossy DNG; {CONVERT}",
    52546: f"a DNG compressed with JPEG XL; {CONVERT}",
}
# None, lossless JPEG, and those of Sony, Samsung, Kodak and Pentax: such a file is damaged, or its camera unknown.
DECODED = {1, 7, 32767, 32769, 32770, 65000, 65535}
CAMERA_FILES = {  # what the files of some cameras begin with, at which byte
    "a Fujifilm RAF": (0, b"FUJIFILMCCD-RAW"),
    "a Canon CR3": (4, b"ftypcrx "),
    "a Sigma X3F": (0, b"FOVb"),
}


def diagnose(path: Path) -> str:
    """What the file is; empty if it is not known."""
    try:
        with path.open("rb") as file:
            beginning = file.read(64)
        if not beginning:
            return "an empty file"
        for start, what in BEGINNINGS:
            if beginning.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(start):
                return what
        for what, (position, start) in CAMERA_FILES.items():
            if beginning[position:].startswith(start):
                return f"{what} that LibRaw cannot read; it is incomplete or damaged, or its camera too new"
        with tifffile.TiffFile(path) as tiff:
            found = {int(page.compression) for page in tiff_pages(tiff) if page.photometric in (32803, 34892)}
    except Exception:  # not a TIFF, or a damaged one
        return ""
    if known := [COMPRESSIONS[code] for code in sorted(found) if code in COMPRESSIONS]:
        return known[0]
    unknown = sorted(found - DECODED)
    return f"compressed in a way that LibRaw does not know (TIFF's number {unknown[0]}); {CONVERT}" if unknown else ""
