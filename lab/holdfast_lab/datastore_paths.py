"""Names of files on datastores: ``[name] folder/file``, and the ``/folder`` URLs that mean the same.

Everything that a client names on a datastore passes here before a file is touched: a path can
never leave its datastore's directory, neither by ``..`` nor through a symbolic link.
"""

from __future__ import annotations

import re
import urllib.parse
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from holdfast_lab.storage.errors import StorageError

_BRACKETED = re.compile(r"\s*\[([^\]]+)\]\s*(.*?)\s*\Z", re.DOTALL)


class DatastorePathError(StorageError):
    """The text is not a datastore path, or the path leaves the datastore."""


@dataclass(frozen=True, slots=True)
class DatastorePath:
    """A file or folder of a datastore; ``path`` is relative, without a slash at either end."""

    datastore: str
    path: str

    def __post_init__(self) -> None:
        parts = PurePosixPath(self.path).parts
        if ".." in parts or self.path.startswith("/") or "\0" in self.path:
            raise DatastorePathError(f"not a path below its datastore: {self}")

    def __str__(self) -> str:
        return f"[{self.datastore}] {self.path}".rstrip()

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(self.path).name

    @property
    def parent(self) -> DatastorePath:
        """The folder that holds it."""
        folder = str(PurePosixPath(self.path).parent)
        return DatastorePath(self.datastore, "" if folder == "." else folder)

    def child(self, name: str) -> DatastorePath:
        """An entry of this folder."""
        return DatastorePath(self.datastore, f"{self.path}/{name}" if self.path else name)

    def sibling(self, name: str) -> DatastorePath:
        """Another entry of the same folder."""
        return self.parent.child(name)

    def under(self, root: Path) -> Path:
        """The file on this machine, given the datastore's directory.

        Raises: DatastorePathError when a symbolic link leads out of the datastore.
        """
        local = root / self.path if self.path else root
        resolved_root = root.resolve()
        resolved = local.resolve()
        if resolved != resolved_root and resolved_root not in resolved.parents:
            raise DatastorePathError(f"leads out of its datastore: {self}")
        return local


def parse_datastore_path(text: str) -> DatastorePath:
    """``[ds] a/b.vmdk``, or ``https://host/folder/a/b.vmdk?dcPath=…&dsName=ds``.

    Raises: DatastorePathError.
    """
    match = _BRACKETED.match(text or "")
    if match:
        return DatastorePath(match[1], _without_slashes(match[2]))
    url = urllib.parse.urlsplit(text or "")
    names = urllib.parse.parse_qs(url.query).get("dsName", [])
    if url.scheme in ("http", "https") and url.path.startswith("/folder") and names:
        inner = urllib.parse.unquote(url.path.removeprefix("/folder"))
        return DatastorePath(names[0], _without_slashes(inner))
    raise DatastorePathError(f"not a datastore path: {text!r}")


def datastore_path_of(local: Path, *, datastore: str, root: Path) -> DatastorePath:
    """The name of a file of this machine that lies on the datastore."""
    return DatastorePath(datastore, local.relative_to(root).as_posix())


def _without_slashes(path: str) -> str:
    return "/".join(part for part in path.split("/") if part not in ("", "."))
