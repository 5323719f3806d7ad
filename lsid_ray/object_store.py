"""Objects in S3 or Google Cloud Storage (s3://, gs://) with the interface of `pathlib.Path`.

Built on pyarrow's file systems, which Ray Train and Parquet use anyway. universal-pathlib would need s3fs and gcsfs:
s3fs pins a botocore that conflicts with the boto3 of `ray up`, and fsspec completes an upload even if writing it
failed.

Credentials, region and endpoint come from the environment, as pyarrow finds them: AWS_ACCESS_KEY_ID, ~/.aws, an
instance role; AWS_REGION; AWS_ENDPOINT_URL; for Google its application default credentials.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from pathlib import PurePath, PurePosixPath
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from lsid_ray.errors import InputError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

SCHEMES = ("s3", "gs")
MAX_ATTEMPTS = 10  # per throttled or interrupted S3 request, with growing pauses: a minute in all
RETRY_S = 60  # the same for Google
CONNECT_TIMEOUT_S, REQUEST_TIMEOUT_S = 10, 60
REFUSALS = {  # in pyarrow's message -> in ours
    "ACCESS_DENIED": "access denied",
    "INVALID_ACCESS_KEY_ID": "no such access key",
    "INVALID_CLIENT_TOKEN_ID": "no such access key",
    "SIGNATURE_DOES_NOT_MATCH": "the secret key does not match the access key",
    "EXPIRED_TOKEN": "the session token has expired",
    "NO_SUCH_BUCKET": "no such bucket",
    "' not found": "no such bucket",
    "HTTP status 403": "access denied",
    "UNAUTHENTICATED": "no valid credentials",
    "PERMISSION_DENIED": "access denied",
}


class StoreError(OSError):
    """An object store cannot be reached, or keeps failing after all retries."""


class RemotePath(PurePosixPath):
    """An object, or the objects below a prefix, with the methods of `pathlib.Path` that this program uses.

    Raises: InputError if the store refuses access, StoreError if it fails, FileNotFoundError as a Path does.
    """

    def __str__(self) -> str:
        return super().__str__().replace(":/", "://", 1)

    @property
    def key(self) -> str:
        """Bucket and name, as pyarrow takes them."""
        return "/".join(self.parts[1:])

    @property
    def filesystem(self) -> "FileSystem":
        """pyarrow's file system of the bucket."""
        return _filesystem(self.parts[0], self.parts[1])

    def _info(self) -> Any:
        with store_errors(self):
            return self.filesystem.get_file_info(self.key)

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

    def samefile(self, other: PurePath) -> bool:
        """Whether both are the same object."""
        return self == other

    def iterdir(self) -> Iterator["RemotePath"]:
        """Everything directly below."""
        if not self.is_dir():
            raise FileNotFoundError(errno.ENOENT, "no such object", str(self))
        return (path for path, _ in self.list_objects(recursive=False))

    def list_objects(self, recursive: bool) -> list[tuple["RemotePath", Any]]:
        """Everything below, each with pyarrow's FileInfo."""
        from pyarrow.fs import FileSelector

        with store_errors(self):
            selector = FileSelector(self.key, allow_not_found=True, recursive=recursive)
            infos = self.filesystem.get_file_info(selector)
        return [(RemotePath(self.parts[0], *info.path.split("/")), info) for info in infos]

    def open(self, mode: str = "rb") -> Any:
        """The object as a seekable file that is read range by range."""
        assert mode == "rb", "objects are written by `storage.atomic_write`"
        with store_errors(self):
            return self.filesystem.open_input_file(self.key)

    def read_bytes(self) -> bytes:
        """The object's content.

        Size and content are two requests: of a longer object that replaces it between them only a part would be read.
        """
        for _ in range(MAX_ATTEMPTS):
            with store_errors(self), self.open() as file:
                content = file.read()
            if self.stat().st_size == len(content):
                return content
        raise StoreError(errno.EIO, f"changed during each of {MAX_ATTEMPTS} readings", str(self))

    def read_text(self) -> str:
        """The object's content as UTF-8."""
        return self.read_bytes().decode()

    def write_bytes(self, content: bytes) -> None:
        """Create or replace the object atomically."""
        with store_errors(self), self.filesystem.open_output_stream(self.key) as file:
            file.write(content)

    def write_text(self, content: str) -> None:
        """Create or replace the object atomically, as UTF-8."""
        self.write_bytes(content.encode())

    def touch(self) -> None:
        """Create an empty object."""
        self.write_bytes(b"")

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the object."""
        try:
            with store_errors(self):
                self.filesystem.delete_file(self.key)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def replace(self, target: "RemotePath") -> None:
        """Move the object."""
        with store_errors(self):
            self.filesystem.move(self.key, target.key)

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: object names need no folders."""

    def absolute(self) -> "RemotePath":
        """The same path: it is always absolute."""
        return self

    resolve = absolute


@contextmanager
def store_errors(path: PurePath) -> Iterator[None]:
    """Turn pyarrow's errors on a RemotePath into InputError (refused), FileNotFoundError or StoreError (failed)."""
    try:
        yield
    except OSError as error:
        if not isinstance(path, RemotePath) or error.filename is not None:  # ours already
            raise
        if isinstance(error, FileNotFoundError):
            raise FileNotFoundError(errno.ENOENT, "no such object", str(path)) from None
        message = str(error)
        for part, reason in REFUSALS.items():
            if part in message:
                raise InputError(f"{path}: {reason}") from None
        raise StoreError(errno.EIO, message.splitlines()[0], str(path)) from None


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
        with store_errors(RemotePath("s3:", bucket)):
            region = fs.resolve_s3_region(bucket)

    class RetryingS3FileSystem(fs.S3FileSystem):
        """pyarrow 26 drops the retry strategy of a pickled S3FileSystem, so unpickling creates a new one."""

        def __reduce__(self) -> tuple[Any, ...]:
            return _filesystem, (scheme, bucket)

    return RetryingS3FileSystem(
        region=region or "us-east-1",
        endpoint_override=endpoint or None,
        connect_timeout=CONNECT_TIMEOUT_S,
        request_timeout=REQUEST_TIMEOUT_S,
        allow_delayed_open=True,  # a small file is one request, not three
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=MAX_ATTEMPTS),
    )
