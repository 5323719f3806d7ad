"""One shard: its tiles, windows and metadata."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from lsid_ray.data.shard import Shard, black_offset, check_shard, read_metadata, read_window, write_shard

SIZES = [(8, 8), (1, 1), (7, 23), (16, 24), (17, 25), (40, 9)]


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).integers(0, 65536, shape, dtype=np.uint16)


def write_pixels(folder: Path, name: str, pixels: np.ndarray, tile: int, offset: int = 0) -> Shard:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    size, digest = write_shard(path, pixels + np.uint16(offset), tile, {})
    return Shard(name, f"{path.stem}.ARW", 123, size, digest, pixels.shape, tile, offset)


@pytest.mark.parametrize("height, width", SIZES)
def test_a_window_equals_the_slice_of_the_pixels(height: int, width: int, tmp_path: Path):
    pixels = noise(4, height, width)
    shard = write_pixels(tmp_path, "a.parquet", pixels, tile=8, offset=65152)
    random = np.random.default_rng(0)
    windows = [(0, 0, height, width), (height - 1, width - 1, 1, 1)]
    for _ in range(20):
        (top, bottom), (left, right) = (sorted(random.integers(0, n + 1, 2)) for n in (height, width))
        windows.append((top, left, bottom - top, right - left))
    for y, x, h, w in windows:
        window = read_window(str(tmp_path), shard, y, x, h, w)
        assert window.dtype == np.uint16
        np.testing.assert_array_equal(window, pixels[:, y : y + h, x : x + w])


def test_a_dark_frame_is_stored_in_half_the_bytes_of_its_pixels(tmp_path: Path):
    dark = np.random.default_rng(0).normal(512, 8, (4, 256, 256)).round().astype(np.uint16)
    assert black_offset((512, 512, 513, 512)) == 65152  # 128 - 512 modulo 2**16
    sizes = [write_pixels(tmp_path, f"{offset}.parquet", dark, 256, offset).bytes for offset in (0, 65152)]
    assert sizes[0] > 1.9 * sizes[1] and sizes[1] < 0.51 * dark.nbytes
    dark[2, 7, 9] = 16383  # a hot pixel
    shard = write_pixels(tmp_path, "hot.parquet", dark, 256, 65152)
    assert shard.bytes < 0.52 * dark.nbytes
    np.testing.assert_array_equal(read_window(str(tmp_path), shard, 0, 0, 256, 256), dark)


@pytest.mark.parametrize("window", [(-1, 0, 3, 3), (0, -1, 3, 3), (6, 0, 3, 3), (0, 10, 3, 3), (3, 3, -1, 3)])
def test_a_window_outside_the_frame_is_refused(window: tuple[int, int, int, int], tmp_path: Path):
    shard = write_pixels(tmp_path, "a.parquet", noise(1, 8, 12), tile=4)
    with pytest.raises(ValueError, match=r"a\.parquet: window .* expected it inside 8x12"):
        read_window(str(tmp_path), shard, *window)


def test_reading_a_window_reads_only_the_tiles_it_overlaps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shard = write_pixels(tmp_path, "a.parquet", noise(1, 20, 28), tile=8)
    read_row_groups, groups = pq.ParquetFile.read_row_groups, []

    def recording(file: pq.ParquetFile, row_groups: list[int]) -> pa.Table:
        groups.extend(row_groups)
        return read_row_groups(file, row_groups)

    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", recording)
    for window, expected in (((0, 0, 8, 8), [0]), ((7, 7, 2, 2), [0, 1, 4, 5]), ((16, 24, 4, 4), [11])):
        groups.clear()
        read_window(str(tmp_path), shard, *window)
        assert groups == expected


def test_tiles_are_in_row_major_order_with_8_or_16_bits_per_pixel(tmp_path: Path):
    pixels = noise(3, 10, 13)
    pixels[:, :8, 8:] = pixels[:, :8, 8:] % 256  # dark
    pixels[:, 8:, :8] = pixels[:, 8:, :8] % 256
    pixels[1, 9, 3] = 7 * 256 + 5  # dark except for one pixel
    write_pixels(tmp_path, "a.parquet", pixels.astype(">u2"), tile=8)
    file = pq.ParquetFile(tmp_path / "a.parquet")
    assert file.num_row_groups == 4
    for group, (y, x) in enumerate([(0, 0), (0, 8), (8, 0), (8, 8)]):
        (row,) = file.read_row_group(group).to_pylist()
        tile = pixels[:, y : y + 8, x : x + 8]
        values = [value for channel in tile.tolist() for line in channel for value in line]
        low, high = bytes(value % 256 for value in values), bytes(value // 256 for value in values)
        both = bytes(byte for value in values for byte in (value % 256, value // 256))
        rows = [{"pixels": both, "high": b""}, {"pixels": low, "high": b""}, {"pixels": low, "high": high}]
        assert row == rows[group % 3]


def test_the_same_pixels_and_metadata_give_the_same_file(tmp_path: Path):
    pixels = noise(4, 20, 20)
    first = write_shard(tmp_path / "a.parquet", pixels, 8, {"b": 1, "a": 2})
    second = write_shard(tmp_path / "b.parquet", np.asfortranarray(pixels), 8, {"a": 2, "b": 1})
    content = (tmp_path / "a.parquet").read_bytes()
    assert first == second == (len(content), xxhash.xxh3_128(content).hexdigest())
    assert content == (tmp_path / "b.parquet").read_bytes()
    assert write_shard(tmp_path / "c.parquet", pixels + 1, 8, {"a": 2, "b": 1}) != first
    assert write_shard(tmp_path / "c.parquet", pixels, 8, {"a": 3, "b": 1}) != first


@pytest.mark.parametrize("existing", [None, b"previous"])
def test_writing_a_shard_is_atomic(existing: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.parquet"
    if existing is not None:
        path.write_bytes(existing)
    write_table, written = pq.ParquetWriter.write_table, []

    def fail_at_the_third_tile(self, table):
        if len(written) == 2:
            raise OSError("no space left on device")
        written.append(write_table(self, table))

    monkeypatch.setattr(pq.ParquetWriter, "write_table", fail_at_the_third_tile)
    with pytest.raises(OSError, match="no space left"):
        write_shard(path, noise(4, 20, 20), 8, {})
    assert len(written) == 2
    assert [p.name for p in tmp_path.iterdir()] == ([] if existing is None else ["a.parquet"])
    assert existing is None or path.read_bytes() == existing


@pytest.mark.parametrize("content", [b"", b"PAR1 not parquet PAR1", None], ids=["empty", "corrupt", "truncated"])
def test_reading_a_damaged_shard_raises(content: bytes | None, tmp_path: Path):
    shard = write_pixels(tmp_path, "a.parquet", noise(1, 8, 12), tile=4)
    path = tmp_path / "a.parquet"
    path.write_bytes(path.read_bytes()[:-20] if content is None else content)
    with pytest.raises((OSError, ValueError)):
        read_window(str(tmp_path), shard, 0, 0, 8, 12)


def test_a_file_that_is_not_a_shard_has_no_metadata(tmp_path: Path):
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"a": [1]}), other)
    (tmp_path / "text.parquet").write_text("not parquet at all")
    for path in (other, tmp_path / "text.parquet", tmp_path / "missing.parquet", tmp_path):
        assert read_metadata(path) is None


@pytest.mark.parametrize(
    "damage, reason",
    [
        (lambda pixels, tile: (pixels, 2 * tile), "has 4 tiles, expected 9"),
        (
            lambda pixels, tile: (pixels[:, :, :-1], tile),
            r"tile 2 has \[\[192\], \[0\]\] bytes, expected 128 pixels",
        ),
        (lambda pixels, tile: (pixels, tile), ""),
    ],
)
def test_a_shard_whose_tiles_differ_from_the_index_is_detected(damage, reason: str, tmp_path: Path):
    pixels = noise(4, 20, 20)
    size, digest = write_shard(tmp_path / "a.parquet", *damage(pixels, 8), {"a": 1})
    shard = Shard("a.parquet", "a.ARW", 123, size, digest, pixels.shape, 8)
    assert re.match(reason or "$", check_shard(tmp_path, shard, {"a": 1}))
    assert "its metadata differs" in check_shard(tmp_path, shard, {"a": 2})


def test_a_folder_in_place_of_a_shard_cannot_be_read(tmp_path: Path):
    (tmp_path / "a.parquet").mkdir()
    shard = Shard("a.parquet", "a.ARW", 1, (tmp_path / "a.parquet").stat().st_size, "", (1, 8, 8), 8)
    assert check_shard(tmp_path, shard, {}).startswith("cannot be read")
