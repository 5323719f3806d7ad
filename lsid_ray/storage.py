"""Files and folders, local or in an object store: listed, copied, and written atomically.

`to_path` turns the text of a path into a `pathlib.Path` or a `RemotePath`, which has the same methods.
"""

import ctypes
import fcntl
import os
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from lsid_ray.errors import InputError
from lsid_ray.object_store import SCHEMES, RemotePath, store_errors

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

AnyPath = Path | RemotePath
COPY_BYTES = 4 << 20  # per read
WRITE_TEST = ".writable"  # an empty object that `check_writable` leaves in an object store
TEMPORARY = "lsid-tmp-"  # how the names of our temporary folders begin
YOUNG_S = 60.0  # a temporary folder younger than this may not be locked yet


def to_path(text: str | AnyPath) -> AnyPath:
    """The path that a text names. Raises: InputError for no text, an unknown scheme, an address without a bucket."""
    if isinstance(text, Path | RemotePath):
        return text
    if not text:
        raise InputError("a path is empty: expected a file or folder, or s3://BUCKET/NAME or gs://BUCKET/NAME")
    scheme, separator, rest = text.partition("://")
    if not separator:
        return Path(text)
    if scheme not in SCHEMES or not rest.strip("/"):
        raise InputError(f"{text}: expected a folder, or s3://BUCKET/NAME or gs://BUCKET/NAME")
    return RemotePath(f"{scheme}:", *filter(None, rest.split("/")))


def is_utf8(path: str | AnyPath) -> bool:
    """Whether a name is valid UTF-8; Ray and libraries in C++ and Rust take no other."""
    try:
        str(path).encode()
    except UnicodeError:
        return False
    return True


def check_writable(folder: AnyPath, option: str) -> None:
    """Check that files can be created in a folder, which need not exist yet; `option` names it in errors.

    On disk a file is created in the nearest folder that exists, and deleted. In an object store this is one request,
    which leaves the empty object WRITE_TEST: to delete it would take three.
    Raises: InputError if the folder cannot be written to; StoreError if the object store fails.
    """
    if isinstance(folder, RemotePath):
        try:
            (folder / WRITE_TEST).write_bytes(b"")
        except InputError as error:
            raise InputError(f"{option} {error}") from None
        return
    if not is_utf8(folder):
        raise InputError(f"{option} {folder}: its name is not UTF-8; expected one that is")
    existing = folder.absolute()
    try:
        while not _exists(existing):
            existing = existing.parent
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())  # a full disk may be noticed as late as here
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{option} {folder}: no file can be created in {existing}: {reason}") from None


def _exists(path: Path) -> bool:
    """Whether there is anything of this name, be it a broken link. Raises: OSError, ValueError if none can be."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def arrow_filesystem(path: AnyPath) -> "tuple[FileSystem, str]":
    """pyarrow's file system for a path, and the path's name in it, as Ray Train takes them."""
    if isinstance(path, RemotePath):
        return path.filesystem, path.key
    from pyarrow.fs import LocalFileSystem

    return LocalFileSystem(), str(path)


def parquet_source(path: AnyPath) -> Any:
    """What pyarrow.parquet opens: a local path, or an object that is read by ranges."""
    return path.open() if isinstance(path, RemotePath) else str(path)


def _raise(error: OSError) -> None:
    raise error


def list_files(folder: AnyPath, on_unreadable: Callable[[OSError], None] = _raise) -> dict[str, tuple[int, int]]:
    """All files below a folder: relative name -> size in bytes, mtime in ns; none if it does not exist.

    Links to folders are not followed. on_unreadable: called for each local folder in it that cannot be read.
    """
    if isinstance(folder, RemotePath):
        objects = folder.list_objects(recursive=True)
        return {str(path.relative_to(folder)): (info.size, info.mtime_ns) for path, info in objects if info.is_file}
    files = {}

    def handle(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            on_unreadable(error)

    for parent, _, names in os.walk(folder, onerror=handle):
        for name in names:
            file = os.path.join(parent, name)
            try:
                stat = os.stat(file)
            except OSError:  # a broken link, or it was deleted meanwhile
                if not os.path.lexists(file):
                    continue
                stat = os.lstat(file)
            files[os.path.relpath(file, folder)] = (stat.st_size, stat.st_mtime_ns)
    return files


@contextmanager
def atomic_write(path: AnyPath) -> Iterator[BinaryIO]:
    """A binary file that replaces `path` when the block ends; if the block fails, `path` stays as it was."""
    if isinstance(path, RemotePath):  # pyarrow completes an upload even on an error, so upload a finished file
        with tempfile.TemporaryFile() as file:
            yield file
            file.seek(0)
            _upload(file, path)
        return
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")  # nodes may share a disk: no process IDs
    try:
        with partial.open("wb") as file:
            yield file
        os.replace(partial, path)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # of a write, whose error names no file
            error.filename = str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: AnyPath, last: str) -> Iterator[Path]:
    """A local folder that replaces `folder` when the block ends; if the block fails, `folder` stays as it was.

    Into an object store its files are uploaded one by one, `last` at the end, and what only the older folder had is
    deleted after that: a new folder is complete if `last` exists, and of a replaced one each file is old or new.
    """
    if isinstance(folder, RemotePath):
        older = list_files(folder)
        with temporary_folder() as partial:
            yield partial
            names = list_files(partial)
            for name in sorted(names, key=lambda name: name == last):
                copy_file(partial / name, folder / name)
        for name in older.keys() - names.keys():
            (folder / name).unlink(missing_ok=True)
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.partial")
    try:
        partial.mkdir()
        yield partial
        if not folder.exists():
            partial.rename(folder)
        elif not _exchange(partial, folder):
            older = partial.with_suffix(".older.partial")
            folder.rename(older)
            partial.rename(folder)
            shutil.rmtree(older, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; False where the system or the file system cannot (NFS, macOS)."""
    if sys.platform != "linux" or not hasattr(libc := ctypes.CDLL(None), "renameat2"):
        return False
    at_fdcwd, rename_exchange = -100, 2  # of fcntl.h and linux/fs.h
    return libc.renameat2(at_fdcwd, os.fsencode(one), at_fdcwd, os.fsencode(other), rename_exchange) == 0


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder for this block. Those that killed processes of this user have left behind are deleted first."""
    for path in Path(tempfile.gettempdir()).glob(f"{TEMPORARY}*"):
        try:
            stat = path.stat()
            if stat.st_uid != os.getuid() or time.time() - stat.st_mtime < YOUNG_S:
                continue
            with _locked(path):
                shutil.rmtree(path, ignore_errors=True)
        except OSError:  # in use, or gone meanwhile
            continue
    with tempfile.TemporaryDirectory(prefix=TEMPORARY) as name, _locked(Path(name)):
        yield Path(name)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, which ends with its process. Raises: OSError if another process holds it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def local_copy(path: AnyPath) -> Iterator[Path]:
    """The file or folder on this machine: `path` itself, or a copy that lasts until the block ends."""
    if not isinstance(path, RemotePath):
        yield path
        return
    with temporary_folder() as folder:
        names = list_files(path)
        for name in names:
            copy_file(path / name, folder / path.name / name)
        if not names:
            copy_file(path, folder / path.name)
        yield folder / path.name


def copy_file(source: AnyPath, target: AnyPath) -> None:
    """Copy a file atomically."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as file, store_errors(source):
        if isinstance(target, RemotePath):
            _upload(file, target)
        else:
            with atomic_write(target) as copy:
                shutil.copyfileobj(file, copy, COPY_BYTES)


def remove_tree(folder: AnyPath) -> None:
    """Delete a folder and everything in it, if it exists."""
    if not isinstance(folder, RemotePath):
        shutil.rmtree(folder, ignore_errors=True)
        return
    if folder.parts[0] == "s3:" and folder.is_dir():  # deleting single files, pyarrow would leave a folder marker
        with store_errors(folder):
            folder.filesystem.delete_dir(folder.key)
        return
    for name in list_files(folder):  # delete_dir fails without a folder marker
        (folder / name).unlink(missing_ok=True)


def _upload(file: BinaryIO, path: RemotePath) -> None:
    with store_errors(path), path.filesystem.open_output_stream(path.key) as stream:
        shutil.copyfileobj(file, stream, COPY_BYTES)
