"""What a file is that LibRaw does not decode, and what to do about it."""

from pathlib import Path

import tifffile

from lsid_ray.raw.tiff import tiff_pages

BEGINNINGS = (  # of files that are no raw files, whatever their names
    (b"version https://git-lfs", "a pointer of Git LFS; fetch the file itself with git lfs pull"),
    (b"<", "a web page or XML; download the raw file again"),
    (b"\xff\xd8\xff", "a JPEG; expected the camera's raw file"),
    (b"\x89PNG", "a PNG; expected the camera's raw file"),
    (b"PK\x03\x04", "a ZIP archive; unpack it first"),
)
CONVERT = "convert it with Adobe DNG Converter, uncompressed or lossless"
COMPRESSIONS = {  # of TIFF, by which LibRaw 0.22 of PyPI's rawpy cannot read a raw page
    9: f"compressed with VC-5, as by GoPro; {CONVERT}",
    34713: f"compressed by Nikon in a way that LibRaw cannot read (High Efficiency?); {CONVERT}",
    34892: f"a lossy DNG; {CONVERT}",
    52546: f"a DNG compressed with JPEG XL; {CONVERT}",
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
        with tifffile.TiffFile(path) as tiff:
            found = {int(page.compression) for page in tiff_pages(tiff) if page.photometric in (32803, 34892)}
    except Exception:  # not a TIFF, or a damaged one
        return ""
    return next((COMPRESSIONS[code] for code in sorted(found) if code in COMPRESSIONS), "")
