"""A node's cache of tiles from an object store: a folder of files, shared by this user's processes."""

import contextlib
import fcntl
import os
import stat
import struct
import tempfile
from pathlib import Path

import xxhash

from lsid_ray import storage
from lsid_ray.errors import InputError

TOTAL = ".total"  # file with the number of bytes in the folder; locked while that changes
KEPT_SHARE = 0.9  # of the limit, when tiles are deleted: each time all files are listed
HEADER = struct.Struct("<16sQ")  # hash of the key and of all that follows the hash; size of the first column


class TileCache:
    """Tiles by key, each with its two columns; the least recently used are deleted first.

    Damaged files and failing disks are misses: the object store still has the tile.
    """

    def __init__(self, size_gb: float):
        """Open the cache of this node. Raises: InputError if its folder is not private to this user."""
        self.folder = private_folder(Path(tempfile.gettempdir(), f"lsid-tile-cache-{os.geteuid()}"))
        self.max_bytes = int(size_gb * 2**30)

    def get(self, key: str) -> tuple[memoryview, memoryview] | None:
        """The columns stored for a key; None if there are none, or if they are damaged."""
        try:
            path = self._path(key)
            content = memoryview(path.read_bytes())
            os.utime(path)
            digest, size = HEADER.unpack_from(content)
        except (OSError, struct.error):
            return None
        if digest != _digest(key, content[len(digest) :]):
            return None
        return content[HEADER.size :][:size], content[HEADER.size :][size:]

    def put(self, key: str, columns: tuple[bytes, bytes]) -> None:
        """Store the columns of a tile, if the disk and the limit allow it."""
        body = len(columns[0]).to_bytes(8, "little") + columns[0] + columns[1]
        with contextlib.suppress(OSError):
            if self._reserve(len(body) + 16):
                with storage.atomic_write(self._path(key)) as file:
                    file.write(_digest(key, body) + body)

    def _path(self, key: str) -> Path:
        return self.folder / xxhash.xxh3_128_hexdigest(key.encode())

    def _reserve(self, size: int) -> bool:
        """Make room for a file of this size; False if it is over the limit."""
        if size > KEPT_SHARE * self.max_bytes:
            return False
        with open(self.folder / TOTAL, "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            text = file.read()
            total = int(text) if text.isdigit() else self.max_bytes
            if total + size > self.max_bytes:
                total = self._evict(KEPT_SHARE * self.max_bytes - size)
            file.truncate(0)
            file.write(b"%d" % (total + size))
        return True

    def _evict(self, max_bytes: float) -> int:
        """Delete the least recently used files until at most `max_bytes` are left; returns how many are."""
        files = []
        for path in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # an unfinished file has just got its name
                info = path.stat()
                files += [(info.st_mtime_ns, info.st_size, path)] if path.name != TOTAL else []
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= max_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size
        return total


def private_folder(path: Path) -> Path:
    """A folder that only this user can enter, created if it is missing.

    Raises: InputError if others own it or can enter it, and so could have put pixels there, or it cannot be created.
    """
    advice = "set TMPDIR to another folder or --cluster.cache-gb to 0"
    try:
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        info = path.lstat()
    except OSError as error:
        raise InputError(f"{path} cannot be created: {error.strerror}; {advice}") from None
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o077:
        raise InputError(f"{path}: expected a folder of this user with mode 700; remove it, or {advice}")
    return path


def _digest(key: str, body: bytes | memoryview) -> bytes:
    digest = xxhash.xxh3_128(key.encode())
    digest.update(body)
    return digest.digest()
