"""A camera's noise as a JSON file, written by `jobs/calibrate.py`; published parameters are read too.

Dark frames that were kept are in a file of their own, see `dark_frames`.
"""

import dataclasses
import json
from typing import Any

from pydantic import TypeAdapter, ValidationError

from lsid_ray import storage
from lsid_ray.errors import InputError
from lsid_ray.storage import AnyPath
from lsid_ray.synthesis.camera import CameraNoise
from lsid_ray.synthesis.published import published_cameras

FORMAT = "lsid-ray camera noise"
VERSION = 1
MAX_BYTES = 1 << 20
_EXPECTED = "expected a file of jobs/calibrate.py, or the parameters of ELD or PMN as JSON"


def to_json(camera: CameraNoise) -> dict[str, Any]:
    """The content of a camera's file, as Python's json reads it back."""
    content = {"format": FORMAT, "version": VERSION} | dataclasses.asdict(camera)
    if camera.dark_frames is None:
        del content["dark_frames"]  # so that data sets from before there were any are known again
    return json.loads(json.dumps(content))  # tuples become lists, ISOs text


def write_camera(path: AnyPath, camera: CameraNoise) -> None:
    """Write a camera's file atomically."""
    with storage.atomic_write(path) as file:
        file.write(json.dumps(to_json(camera), indent=1).encode() + b"\n")


def read_camera(text: str, option: str = "--camera") -> CameraNoise:
    """Read a camera from FILE, or from FILE#NAME if the file has several; `option` names it in errors.

    Files: what `write_camera` wrote; ELD's and PMN's published parameters (see `published`).
    Raises: InputError if the file is missing, too large, of another format or version, has an impossible value or an
    unknown field, or if NAME is not in it or missing though it has several.
    """
    file, _, name = text.partition("#")
    source = f"{option} {file}"
    content = _read(storage.to_path(file), source)
    ours = content.get("format") == FORMAT
    cameras = [_camera(content, source)] if ours else published_cameras(content, source)
    if not cameras:
        raise InputError(f"{source}: not the noise of a camera; {_EXPECTED}")
    names = ", ".join(camera.name for camera in cameras)
    chosen = [camera for camera in cameras if camera.name == name] if name else cameras
    if len(chosen) != 1:
        raise InputError(f"{option} {text}: expected {file}#NAME with a name of {names}")
    if problem := chosen[0].problem():
        raise InputError(f"{source}: {problem}")
    return chosen[0]


def _read(path: AnyPath, source: str) -> dict[str, Any]:
    try:
        if path.exists() and not path.is_file():  # a pipe could block, a device be endless
            reason = "not a file"
        elif path.stat().st_size > MAX_BYTES:
            reason = f"larger than {MAX_BYTES} bytes"
        else:
            content = json.loads(path.read_bytes())
            if isinstance(content, dict):
                return content
            reason = "not the noise of a camera"
    except OSError as error:
        reason = error.strerror or str(error)
    except (ValueError, RecursionError):
        reason = "not JSON"
    raise InputError(f"{source}: {reason}; {_EXPECTED}")


def _camera(content: dict[str, Any], source: str) -> CameraNoise:
    if content.get("version") != VERSION:
        raise InputError(f"{source}: version {content.get('version')!r} of this format; expected {VERSION}")
    fields = {key: value for key, value in content.items() if key not in ("format", "version")}
    try:
        return TypeAdapter(CameraNoise).validate_json(json.dumps(fields), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        problem = f"{first['input']!r:.50}: {first['msg']}"
        raise InputError(f"{source}: {field}: {'is missing' if first['type'] == 'missing' else problem}") from None
