"""Finding the raw files that a list names."""

from dataclasses import dataclass, field

from lsid_ray import storage
from lsid_ray.data.catalog import exposure_folders
from lsid_ray.errors import InputError
from lsid_ray.raw.names import RAW_SUFFIXES
from lsid_ray.storage import AnyPath


@dataclass
class FileFinder:
    """Finds files in the folder of a data set; it lists each folder once."""

    root: AnyPath
    """Absolute."""
    names: dict[AnyPath, frozenset[str]] = field(default_factory=dict)
    """What lies in the folders seen so far; nothing in those that do not exist."""

    def find(self, text: str, source: AnyPath, where: str, kind: str) -> AnyPath:
        """The file that `source` names as `text`: a short or a long one. Raises: InputError if there is none."""
        if not text:
            raise InputError(f"{where}: no {kind} exposure: expected the path of a raw file")
        if "://" in text or text.startswith("/"):
            candidates = [storage.to_path(text)]
        else:
            folders = [self.root, source.absolute().parent]
            if "/" not in text.removeprefix("./"):
                folders.insert(1, self.root / kind)
            candidates = [_without_dots(folder / text) for folder in folders]
        found = filter(None, map(self._located, dict.fromkeys(candidates)))
        path = next(found, None)
        if path is None and any(self.root in path.parents for path in candidates):
            tried = " and ".join(map(str, dict.fromkeys(candidates)))
            raise InputError(f"{where}: {text[:200]}: no such file; tried {tried}")
        if path is None or self.root not in path.parents:
            raise InputError(f"{where}: {text[:200]} is outside of {self.root}: expected a file in it")
        if path.suffix.lower() not in RAW_SUFFIXES:
            raise InputError(f"{where}: {text[:200]}: expected a raw file, such as .ARW, .NEF or .DNG")
        return path

    def _located(self, path: AnyPath) -> AnyPath | None:
        """The file of this path, which may lie in a folder of another case; None if there is none."""
        folder = self._folder(path.parent)
        return folder / path.name if path.name in self._listing(folder) else None

    def _folder(self, folder: AnyPath) -> AnyPath:
        """The folder itself, or the one that stands for it: SID's lists say short/ where some releases have Short/."""
        kind = folder.name.lower().removesuffix("s")
        if kind in ("short", "long") and folder.name not in self._listing(folder.parent) and self.names[folder.parent]:
            similar = exposure_folders(folder.parent)[kind]
            if len(similar) == 1:
                return similar[0]
        return folder

    def _listing(self, folder: AnyPath) -> frozenset[str]:
        if folder not in self.names:
            try:
                self.names[folder] = frozenset(path.name for path in folder.iterdir())
            except (FileNotFoundError, NotADirectoryError):
                self.names[folder] = frozenset()
        return self.names[folder]


def _without_dots(path: AnyPath) -> AnyPath:
    """a/./b/../c -> a/c"""
    parts: list[str] = []
    for part in path.parts:
        if part == ".." and len(parts) > 1:
            parts.pop()
        else:
            parts.append(part)
    return type(path)(*parts)
