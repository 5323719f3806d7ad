"""A small DNG writer for tests, apart from the project's own: any tags, byte order, bit depth, strips or tiles."""

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

BYTE, ASCII, SHORT, LONG, RATIONAL, SRATIONAL, FLOAT, DOUBLE = 1, 2, 3, 4, 5, 10, 11, 12
_FORMATS = {BYTE: "B", ASCII: "B", SHORT: "H", LONG: "I", RATIONAL: "I", SRATIONAL: "i", FLOAT: "f", DOUBLE: "d"}
Tags = dict[int, tuple[int, list]]
"""Code -> type and numbers; a rational is two of them."""


def text(words: str) -> tuple[int, list[int]]:
    return ASCII, [*words.encode(), 0]


def write_dng_file(
    path: Path,
    stored: np.ndarray,
    tags: Tags,
    exif: Tags | None = None,
    *,
    order: str = "<",
    bits: int = 16,
    tile: int | None = None,
    strip: int | None = None,
    lossless_jpeg: bool = False,
) -> Path:
    """Write a mosaic of one page. order: "<" or ">". tile: the side of tiles, strip: the rows of strips, if any."""
    height, width = stored.shape
    segments = list(_segments(stored, tile, strip))
    data = [lossless_jpeg_of(part) if lossless_jpeg else pack_bits(part, bits, order) for part in segments]
    main: Tags = {
        254: (LONG, [0]),
        256: (LONG, [width]),
        257: (LONG, [height]),
        258: (SHORT, [bits]),
        259: (SHORT, [7 if lossless_jpeg else 1]),
        262: (SHORT, [32803]),
        277: (SHORT, [1]),
        50706: (BYTE, [1, 4, 0, 0]),
        **tags,
    }
    if tile:
        main |= {322: (LONG, [tile]), 323: (LONG, [tile]), 325: (LONG, [len(part) for part in data])}
    else:
        main |= {278: (LONG, [strip or height]), 279: (LONG, [len(part) for part in data])}
    offsets_code = 324 if tile else 273

    def header(offsets: list[int], exif_offset: int) -> bytes:
        linked = {**main, offsets_code: (LONG, offsets), **({34665: (LONG, [exif_offset])} if exif else {})}
        return struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8) + _directory(linked, 8, order)

    exif_offset = len(header([0] * len(data), 0))
    exif_bytes = _directory(exif, exif_offset, order) if exif else b""
    offsets, position = [], exif_offset + len(exif_bytes)
    for part in data:
        offsets.append(position)
        position += len(part)
    path.write_bytes(header(offsets, exif_offset) + exif_bytes + b"".join(data))
    return path


def _segments(stored: np.ndarray, tile: int | None, strip: int | None) -> Iterator[np.ndarray]:
    height, width = stored.shape
    if not tile:
        rows = strip or height
        yield from (stored[row : row + rows] for row in range(0, height, rows))
        return
    for row in range(0, height, tile):
        for column in range(0, width, tile):
            part = stored[row : row + tile, column : column + tile]
            yield np.pad(part, [(0, tile - side) for side in part.shape], "edge")


def pack_bits(part: np.ndarray, bits: int, order: str) -> bytes:
    """16-bit values in the file's byte order; fewer bits from the most significant one, rows padded to whole bytes."""
    if bits == 16:
        return part.astype(f"{order}u2").tobytes()
    digits = part[..., None].astype(np.uint32) >> np.arange(bits - 1, -1, -1) & 1
    return np.packbits(digits.reshape(len(part), -1).astype(np.uint8), axis=1).tobytes()


def lossless_jpeg_of(part: np.ndarray) -> bytes:
    """One 16-bit component, predictor 1, all codes 5 bits long (ITU T.81, annex H)."""
    height, width = part.shape
    values = part.astype(int)
    predicted = np.empty_like(values)
    predicted[0, 0], predicted[0, 1:] = 1 << 15, values[0, :-1]
    predicted[1:, 0], predicted[1:, 1:] = values[:-1, 0], values[1:, :-1]
    bits = []
    for difference in ((values - predicted + 32768) % 65536 - 32768).ravel().tolist():
        size = abs(difference).bit_length()
        bits.append(f"{size:05b}")
        if 0 < size < 16:
            bits.append(f"{difference if difference > 0 else difference + (1 << size) - 1:0{size}b}")
    digits = "".join(bits)
    digits += "1" * (-len(digits) % 8)
    scan = int(digits, 2).to_bytes(len(digits) // 8, "big").replace(b"\xff", b"\xff\0")
    table = bytes([0, 0, 0, 0, 0, 17, *[0] * 11, *range(17)])  # class and number; codes of 1 to 16 bits; their sizes
    return b"".join(
        (
            b"\xff\xd8",
            b"\xff\xc4" + struct.pack(">H", 2 + len(table)) + table,
            b"\xff\xc3" + struct.pack(">HBHHB3B", 11, 16, height, width, 1, 1, 0x11, 0),
            b"\xff\xda" + struct.pack(">HB2B3B", 8, 1, 1, 0, 1, 0, 0),
            scan,
            b"\xff\xd9",
        )
    )


def _directory(tags: Tags, offset: int, order: str) -> bytes:
    entries, values = b"", b""
    values_offset = offset + 2 + 12 * len(tags) + 4
    for code, (kind, numbers) in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(numbers)}{_FORMATS[kind]}", *numbers)
        count = len(numbers) // 2 if kind in (RATIONAL, SRATIONAL) else len(numbers)
        if len(packed) > 4:
            field = struct.pack(f"{order}I", values_offset + len(values))
            values += packed + b"\0" * (len(packed) % 2)
        else:
            field = packed.ljust(4, b"\0")
        entries += struct.pack(f"{order}HHI", code, kind, count) + field
    return struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + values
