"""One shard: its tiles, windows and metadata."""

import functools
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import xxhash

from lsid_ray.data import checksum
from lsid_ray.data import window as window_module
from lsid_ray.data.checksum import file_xxh128
from lsid_ray.data.shard import Shard, black_offset, read_metadata, write_shard
from lsid_ray.data.window import read_window
from lsid_ray.errors import InputError

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
    tile, groups = window_module._MappedShard.tile, []

    def recording(mapped: window_module._MappedShard, group: int, size: int) -> tuple[memoryview, bytes]:
        groups.append(group)
        return tile(mapped, group, size)

    monkeypatch.setattr(window_module._MappedShard, "tile", recording)
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


def zeroed(content: bytes) -> bytes:
    return bytes(len(content))


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGE: list[tuple[Callable[[bytes], bytes | None], str]] = [
    (flipped, r"its content is not what the index says \(xxh128 [0-9a-f]{32}, expected [0-9a-f]{32}\)"),
    (zeroed, r"its content is not what the index says \(xxh128 [0-9a-f]{32}, expected [0-9a-f]{32}\)"),
    (lambda content: content[:-20], r"has \d+ bytes, expected \d+"),
    (lambda content: b"", r"has 0 bytes, expected \d+"),
    (lambda content: None, "is missing"),
]


def messages_of_damage(victim: Path, other: Path, kinds: slice = slice(None)) -> Iterator[re.Pattern]:
    """Damage a shard in each way, at last by another in its place; yields what an error then says, and repairs it."""
    content, exchanged = victim.read_bytes(), r"(has \d+ bytes|its content is not what the index says).*"
    for damage, reason in [*DAMAGE[kinds], (lambda _: other.read_bytes(), exchanged)]:
        victim.unlink(missing_ok=True)
        if (damaged := damage(content)) is not None:
            victim.write_bytes(damaged)
        yield re.compile(rf"{re.escape(str(victim))}: {reason}: restore it with jobs/pack\.py repair")
    victim.write_bytes(content)


@pytest.mark.parametrize("damage, reason", DAMAGE, ids=["flipped", "zeroed", "truncated", "empty", "deleted"])
def test_a_damaged_shard_is_named_when_it_is_read(
    damage: Callable[[bytes], bytes | None], reason: str, tmp_path: Path
) -> None:
    shard = write_pixels(tmp_path, "a.parquet", noise(1, 8, 12), tile=4)
    path = tmp_path / "a.parquet"
    content = damage(path.read_bytes())
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=rf"^{path}: {reason}: restore it with jobs/pack\.py repair$"):
        read_window(str(tmp_path), shard, 0, 0, 1, 1)


def test_a_folder_without_shards_is_named(tmp_path: Path) -> None:
    shard = write_pixels(tmp_path, "short/a.parquet", noise(1, 8, 12), tile=4)
    shutil.rmtree(tmp_path / "short")
    (tmp_path / "short").touch()
    with pytest.raises(InputError, match=r"short/a\.parquet: is missing"):
        read_window(str(tmp_path), shard, 0, 0, 1, 1)


def test_an_unreadable_shard_is_named(tmp_path: Path, unreadable: Callable[[Path], Path]) -> None:
    shard = write_pixels(tmp_path, "a.parquet", noise(1, 8, 12), tile=4)
    unreadable(tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: Permission denied: expected a shard that this user can read$"):
        read_window(str(tmp_path), shard, 0, 0, 1, 1)


def test_exchanged_shards_are_named(tmp_path: Path) -> None:
    first, second = (write_pixels(tmp_path, name, noise(1, 8, 12) + i, 4) for i, name in enumerate(["a", "b"]))
    (tmp_path / "a").rename(tmp_path / "c")
    (tmp_path / "b").rename(tmp_path / "a")
    (tmp_path / "c").rename(tmp_path / "b")
    for shard in (first, second):
        with pytest.raises(InputError, match=rf"/{shard.path}: (has \d+ bytes|its content is not what the index says)"):
            read_window(str(tmp_path), shard, 0, 0, 1, 1)


def test_a_shard_is_hashed_once_and_again_after_it_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = write_pixels(tmp_path, "a.parquet", noise(1, 8, 12), tile=4)
    path, hashed = tmp_path / "a.parquet", []
    monkeypatch.setattr(checksum, "file_xxh128", lambda path: hashed.append(path) or file_xxh128(path))
    for _ in range(3):
        read_window(str(tmp_path), shard, 0, 0, 1, 1)
    assert hashed == [path]
    content = path.read_bytes()
    path.write_bytes(flipped(content))
    os.utime(path, ns=(1, 1))
    for _ in range(2):
        with pytest.raises(InputError):
            read_window(str(tmp_path), shard, 0, 0, 1, 1)
    path.write_bytes(content)
    read_window(str(tmp_path), shard, 0, 0, 1, 1)
    assert hashed == 4 * [path]


def test_a_shard_is_hashed_once_by_all_processes_of_a_job(cluster: None, tmp_path: Path) -> None:
    shard = write_pixels(tmp_path, "a.parquet", noise(1, 8, 12), tile=4)

    @ray.remote(num_cpus=1)
    class Reader:
        def read(self) -> tuple[int, int]:
            hashed = []
            checksum.file_xxh128 = lambda path: hashed.append(path) or file_xxh128(path)
            return len(hashed) + int(read_window(str(tmp_path), shard, 0, 0, 8, 12).sum()), len(hashed)

    readers = [Reader.remote() for _ in range(2)]
    total = int(noise(1, 8, 12).sum())
    assert [ray.get(reader.read.remote()) for reader in readers] == [(total, 1), (total, 0)]
    (tmp_path / "a.parquet").write_bytes(flipped((tmp_path / "a.parquet").read_bytes()))
    for reader in readers:
        with pytest.raises(InputError, match="its content is not what the index says"):
            ray.get(reader.read.remote())
        ray.kill(reader)


def test_no_flipped_bit_of_a_range_goes_unnoticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects are not hashed as a whole. Here a file on a disk is read as they are."""
    pixels = noise(2, 16, 16) % 256
    pixels[0, 3, 3] = 9999
    shard = write_pixels(tmp_path, "a.parquet", pixels, tile=8)
    path, content = tmp_path / "a.parquet", (tmp_path / "a.parquet").read_bytes()

    def fetch(path: Path, shard: Shard, batches: list[list[tuple[int, int]]]) -> Iterator[dict]:
        return window_module._fetch_tiles(path, shard, [[group for group, _ in batch] for batch in batches], 0.0)

    monkeypatch.setattr(window_module, "_map_tiles", fetch)
    checked = functools.partial(pq.ParquetFile, page_checksum_verification=True)
    monkeypatch.setattr(pq, "ParquetFile", lambda source, metadata, **_: checked(source))
    found = 0
    for position in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            window = read_window(str(tmp_path), shard, 0, 0, 16, 16)
        except InputError:
            found += 1
        else:
            np.testing.assert_array_equal(window, pixels)
    assert found > len(content) / 7 / 2


def test_a_file_that_is_not_a_shard_has_no_metadata(tmp_path: Path):
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"a": [1]}), other)
    (tmp_path / "text.parquet").write_text("not parquet at all")
    for path in (other, tmp_path / "text.parquet", tmp_path / "missing.parquet", tmp_path):
        assert read_metadata(path) is None
