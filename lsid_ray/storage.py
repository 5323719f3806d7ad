"""Paths on this machine or in an object store (s3://, gs://): the one way to open, list and write them.

`path` gives a `pathlib.Path`, or a `Remote` with the same verbs. What is written is whole or not there, in either
place. Credentials, region and endpoint are the environment's, as Arrow finds them: AWS_ACCESS_KEY_ID, ~/.aws, an
instance's role; AWS_REGION; AWS_ENDPOINT_URL; for Google its application default credentials.
"""

import errno
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, BinaryIO

from lsid_ray.errors import InputError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

SCHEMES = ("s3", "gs")
ATTEMPTS = 10  # of a request that is throttled or cut off, each after a longer wait: a minute in all
CONNECT_S, REQUEST_S = 10, 60
RETRY_S = 60  # the same for Google's
REFUSALS = {  # in Arrow's messages -> in words
    "ACCESS_DENIED": "access denied",
    "INVALID_ACCESS_KEY_ID": "no such access key",
    "INVALID_CLIENT_TOKEN_ID": "no such access key",
    "SIGNATURE_DOES_NOT_MATCH": "the secret key does not fit the access key",
    "EXPIRED_TOKEN": "the session token has expired",
    "NO_SUCH_BUCKET": "no such bucket",
    "' not found": "no such bucket",
    "HTTP status 403": "access denied",
    "UNAUTHENTICATED": "no valid credentials",
    "PERMISSION_DENIED": "access denied",
}


class StoreError(OSError):
    """An object store that cannot be reached, or fails however often it is asked."""


class Remote(PurePosixPath):
    """An object, or the objects below a name, with the verbs of `pathlib.Path` that this program uses.

    Raises: InputError where the store refuses access, StoreError where it fails, FileNotFoundError as a Path does.
    """

    def __str__(self) -> str:
        return super().__str__().replace(":/", "://", 1)

    @property
    def _key(self) -> str:
        """Bucket and name, as Arrow wants them."""
        return "/".join(self.parts[1:])

    @property
    def _files(self) -> "FileSystem":
        return _filesystem(self.parts[0], self.parts[1])

    def _info(self) -> Any:
        with _told(self):
            return self._files.get_file_info(self._key)

    def exists(self) -> bool:
        """Whether there is an object of this name, or one below it."""
        return self._info().type.name != "NotFound"

    def is_file(self) -> bool:
        """Whether there is an object of this name."""
        return self._info().is_file

    def is_dir(self) -> bool:
        """Whether there is an object below this name."""
        return self._info().type.name == "Directory"

    def stat(self) -> Any:
        """st_size and st_mtime_ns of an object."""
        info = self._info()
        if not info.is_file:
            raise FileNotFoundError(errno.ENOENT, "no such object", str(self))
        return SimpleNamespace(st_size=info.size, st_mtime_ns=info.mtime_ns)

    def samefile(self, other: "AnyPath") -> bool:
        """Whether both are one object."""
        return self == other

    def iterdir(self) -> Iterator["Remote"]:
        """What lies directly below."""
        if not self.is_dir():
            raise FileNotFoundError(errno.ENOENT, "no such object", str(self))
        return (found for found, _ in self._listed(recursive=False))

    def _listed(self, recursive: bool) -> list[tuple["Remote", Any]]:
        from pyarrow.fs import FileSelector

        with _told(self):
            listed = self._files.get_file_info(FileSelector(self._key, allow_not_found=True, recursive=recursive))
        return [(Remote(self.parts[0], *info.path.split("/")), info) for info in listed]

    def open(self, mode: str = "rb") -> Any:
        """An object to read from anywhere, range by range."""
        assert mode == "rb", "written by `writing`"
        with _told(self):
            return self._files.open_input_file(self._key)

    def read_bytes(self) -> bytes:
        """The whole object."""
        with _told(self), self.open() as file:
            return file.read()

    def read_text(self) -> str:
        """The whole object."""
        return self.read_bytes().decode()

    def write_bytes(self, content: bytes) -> None:
        """Make or replace an object; whole or not there."""
        with _told(self), self._files.open_output_stream(self._key) as file:
            file.write(content)

    def write_text(self, content: str) -> None:
        """As `write_bytes`."""
        self.write_bytes(content.encode())

    def touch(self) -> None:
        """An empty object."""
        self.write_bytes(b"")

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete an object."""
        try:
            with _told(self):
                self._files.delete_file(self._key)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def replace(self, target: "Remote") -> None:
        """Move an object."""
        with _told(self):
            self._files.move(self._key, target._key)

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: names need no folders."""

    def absolute(self) -> "Remote":
        """Itself."""
        return self

    resolve = absolute


AnyPath = Path | Remote


def path(text: str | AnyPath) -> AnyPath:
    """The path of a text. Raises: InputError for an address of another kind, or one without a bucket."""
    if isinstance(text, Path | Remote):
        return text
    scheme, separator, rest = text.partition("://")
    if not separator:
        return Path(text)
    if scheme not in SCHEMES or not rest.strip("/"):
        raise InputError(f"{text}: expected a folder, or s3://BUCKET/NAME or gs://BUCKET/NAME")
    return Remote(f"{scheme}:", *filter(None, rest.split("/")))


def filesystem(place: AnyPath) -> "tuple[FileSystem, str]":
    """Arrow's file system for a path, and the path's name in it, as Ray Train takes them."""
    if isinstance(place, Remote):
        return place._files, place._key
    from pyarrow.fs import LocalFileSystem

    return LocalFileSystem(), str(place)


def parquet_source(place: AnyPath) -> Any:
    """What pyarrow.parquet opens: a path, or an object that is read by ranges."""
    return place.open() if isinstance(place, Remote) else str(place)


def files_below(folder: AnyPath) -> dict[str, tuple[int, int]]:
    """Size and time (ns) of all files below a folder, by their names in it; no link to a folder is followed."""
    if isinstance(folder, Remote):
        listed = folder._listed(recursive=True)
        return {str(at.relative_to(folder)): (info.size, info.mtime_ns) for at, info in listed if info.is_file}
    found = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            file = os.path.join(parent, name)
            try:
                stat = os.stat(file)
            except OSError:  # a link that leads nowhere, or it has gone since
                if not os.path.lexists(file):
                    continue
                stat = os.lstat(file)
            found[os.path.relpath(file, folder)] = (stat.st_size, stat.st_mtime_ns)
    return found


@contextmanager
def writing(place: AnyPath) -> Iterator[BinaryIO]:
    """A binary file that is at `place` when the block has ended; when it fails, there is what was there before."""
    if isinstance(place, Remote):  # Arrow completes an upload even on an error: so it begins when all is there
        with tempfile.TemporaryFile() as file:
            yield file
            file.seek(0)
            _upload(file, place)
        return
    partial = place.with_name(f".{place.name}.{uuid.uuid4().hex}.partial")  # nodes that share a disk number alike
    try:
        with partial.open("wb") as file:
            yield file
        os.replace(partial, place)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def writing_folder(folder: AnyPath, last: str) -> Iterator[Path]:
    """A folder of this machine that stands at `folder` when the block has ended, in place of what was there.

    In an object store files come one by one, `last` at the end: with it the folder is whole.
    """
    if isinstance(folder, Remote):
        with tempfile.TemporaryDirectory(prefix="lsid-") as partial:
            yield Path(partial)
            remove(folder)
            for name in sorted(files_below(Path(partial)), key=lambda name: name == last):
                copy(Path(partial, name), folder / name)
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.partial")
    older = partial.with_suffix(".older")
    try:
        partial.mkdir()
        yield partial
        if folder.exists():
            folder.rename(older)
        partial.rename(folder)
        shutil.rmtree(older, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def local(place: AnyPath) -> Iterator[Path]:
    """The same file or folder on this machine: itself, or for the length of the block a copy."""
    if not isinstance(place, Remote):
        yield place
        return
    with tempfile.TemporaryDirectory(prefix="lsid-") as folder:
        names = files_below(place)
        for name in names:
            copy(place / name, Path(folder, place.name, name))
        if not names:
            copy(place, Path(folder, place.name))
        yield Path(folder, place.name)


def copy(source: AnyPath, target: AnyPath) -> None:
    """Copy a file; whole or not there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as file, _told(source):
        if isinstance(target, Remote):
            _upload(file, target)
        else:
            with writing(target) as there:
                shutil.copyfileobj(file, there, 1 << 22)


def remove(folder: AnyPath) -> None:
    """Delete a folder with all that it holds, if it is there."""
    if not isinstance(folder, Remote):
        shutil.rmtree(folder, ignore_errors=True)
        return
    if folder.parts[0] == "s3:" and folder.is_dir():  # file by file Arrow would leave a marker of the folder
        with _told(folder):
            folder._files.delete_dir(folder._key)
        return
    for name in files_below(folder):  # as a whole Arrow would fail for want of a marker
        (folder / name).unlink(missing_ok=True)


def _upload(file: BinaryIO, place: Remote) -> None:
    with _told(place), place._files.open_output_stream(place._key) as there:
        shutil.copyfileobj(file, there, 1 << 22)


@contextmanager
def _told(place: AnyPath) -> Iterator[None]:
    """A refusal is one line for the user; any other trouble of a store names the object."""
    try:
        yield
    except OSError as error:
        if not isinstance(place, Remote) or error.filename is not None:  # it is told already
            raise
        if isinstance(error, FileNotFoundError):
            raise FileNotFoundError(errno.ENOENT, "no such object", str(place)) from None
        said = str(error)
        for word, meaning in REFUSALS.items():
            if word in said:
                raise InputError(f"{place}: {meaning}") from None
        raise StoreError(errno.EIO, said.splitlines()[0], str(place)) from None


@lru_cache(maxsize=16)
def _filesystem(scheme: str, bucket: str) -> "FileSystem":
    from pyarrow import fs

    if scheme == "gs:":
        limit = timedelta(seconds=RETRY_S)
        emulator = os.environ.get("CLOUD_STORAGE_EMULATOR_ENDPOINT", "").removeprefix("http://")
        if emulator:
            return fs.GcsFileSystem(anonymous=True, scheme="http", endpoint_override=emulator, retry_time_limit=limit)
        return fs.GcsFileSystem(retry_time_limit=limit)
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not region and not endpoint:
        with _told(Remote("s3:", bucket)):
            region = fs.resolve_s3_region(bucket)
    return fs.S3FileSystem(
        region=region or "us-east-1",
        endpoint_override=endpoint or None,
        connect_timeout=CONNECT_S,
        request_timeout=REQUEST_S,
        allow_delayed_open=True,  # a small file is one request, not three
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
    )
