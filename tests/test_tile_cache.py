"""The node's cache of tiles: private, without pickles, bounded, and never a source of wrong pixels."""

import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from lsid_ray.data.tile_cache import TOTAL, TileCache
from lsid_ray.errors import InputError

TILE = (bytes(range(256)) * 4, b"\1\2")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the cache will be."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path / f"lsid-tile-cache-{os.geteuid()}"


def tiles(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name != TOTAL)


def test_what_is_put_is_got_by_every_process(folder: Path) -> None:
    cache = TileCache(1)
    assert cache.get("a") is None
    for key, columns in {"a": TILE, "b": (b"", b""), "../../x": (b"1", b"")}.items():
        cache.put(key, columns)
        assert TileCache(0.5).get(key) == columns
    assert len(tiles(folder)) == 3 and list(folder.parent.iterdir()) == [folder]


def test_the_folder_is_private(folder: Path) -> None:
    previous = os.umask(0)
    try:
        TileCache(1).put("a", TILE)
    finally:
        os.umask(previous)
    assert folder.stat().st_mode & 0o777 == 0o700 and TileCache(1).get("a") == TILE


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o750, 0o755, 0o701])
def test_a_folder_that_others_can_enter_is_refused(folder: Path, mode: int) -> None:
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(InputError, match=rf"^{folder}: expected a folder of this user with mode 700; remove it"):
        TileCache(1)


def test_a_folder_of_another_user_a_link_and_a_file_are_refused(folder: Path) -> None:
    private = folder.parent / "private"
    private.mkdir(mode=0o700)
    for create, remove in ((lambda: folder.symlink_to(private), folder.unlink), (folder.touch, folder.unlink)):
        create()
        with pytest.raises(InputError, match="expected a folder of this user"):
            TileCache(1)
        remove()
    if os.geteuid() == 0:
        folder.mkdir(mode=0o700)
        os.chown(folder, 65534, 65534)
        with pytest.raises(InputError, match="expected a folder of this user"):
            TileCache(1)


def test_a_folder_that_cannot_be_created_is_named(
    folder: Path, tmp_path: Path, unreadable: Callable[[Path], Path]
) -> None:
    unreadable(tmp_path)
    with pytest.raises(InputError, match=r"cannot be created: Permission denied; set TMPDIR to .* --cluster\.cache-gb"):
        TileCache(1)


class Exploit:
    """Unpickling it creates a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_damaged_exchanged_and_pickled_tiles_are_misses(folder: Path, tmp_path: Path) -> None:
    cache = TileCache(1)
    cache.put("a", TILE)
    (file,) = tiles(folder)
    good = file.read_bytes()
    cache.put("b", (b"other", b""))
    (other,) = {*tiles(folder)} - {file}
    flipped = [bytes([*good[:at], good[at] ^ 1, *good[at + 1 :]]) for at in (0, 15, 16, 23, 24, len(good) - 1)]
    exploit = pickle.dumps(Exploit(tmp_path / "hacked"))
    for content in (b"", good[:10], good[:-1], good + b"x", bytes(len(good)), other.read_bytes(), exploit, *flipped):
        file.write_bytes(content)
        assert cache.get("a") is None
    file.unlink()
    file.mkdir()
    assert cache.get("a") is None
    file.rmdir()
    cache.put("a", TILE)
    assert cache.get("a") == TILE and not (tmp_path / "hacked").exists()


def test_the_least_recently_used_tiles_make_room(folder: Path) -> None:
    cache = TileCache(20_000 / 2**30)
    tile = (bytes(900), b"")
    for number in range(100):
        cache.put(str(number), tile)
        assert cache.get("0") == tile, "it has been used each time"
        assert sum(path.stat().st_size for path in tiles(folder)) <= 20_000
        for age, path in enumerate(sorted(tiles(folder), key=lambda path: path.stat().st_mtime_ns, reverse=True)):
            os.utime(path, ns=(0, path.stat().st_mtime_ns - age))  # clocks may be coarse
    kept = [number for number in range(1, 100) if cache.get(str(number)) is not None]
    assert 15 <= len(kept) <= 21 and kept == list(range(kept[0], 100))
    cache.put("large", (bytes(30_000), b""))
    assert cache.get("large") is None and cache.get("99") == tile
    (folder / TOTAL).write_text("nonsense")
    cache.put("again", tile)
    assert cache.get("again") == tile


def test_many_threads_keep_the_limit(folder: Path) -> None:
    def fill(first: int) -> None:
        cache = TileCache(20_000 / 2**30)
        for number in range(first, first + 50):
            cache.put(str(number), (bytes(900), b""))

    threads = [threading.Thread(target=fill, args=(100 * number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sizes = [path.stat().st_size for path in tiles(folder)]
    assert 15_000 < sum(sizes) <= 20_000 and set(sizes) == {924}


def test_a_full_disk_is_a_miss(full_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(full_disk))
    cache = TileCache(1)
    large = (bytes(1 << 20), b"")
    cache.put("large", large)
    assert cache.get("large") is None
    cache.put("small", TILE)
    assert cache.get("small") == TILE
