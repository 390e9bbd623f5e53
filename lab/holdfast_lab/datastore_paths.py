"""Names of files on datastores: ``[name] folder/file``, and the ``/folder`` URLs that mean the same.

Everything that a client names on a datastore passes here before a file is touched: a path can
never leave its datastore's directory by ``..`` (``Datastore.local`` sees to symbolic links).
"""

from __future__ import annotations

import re
import urllib.parse
from dataclasses import dataclass
from pathlib import PurePosixPath

from pyVmomi import vim

from holdfast_lab.faults import SoapFault

_BRACKETED = re.compile(r"\s*\[([^\]]+)\]\s*(.*?)\s*\Z", re.DOTALL)


@dataclass(frozen=True, slots=True)
class DatastorePath:
    """A file or folder of a datastore; ``relative`` has no slash at either end, "" is the root."""

    datastore: str
    relative: str

    @classmethod
    def parse(cls, text: str) -> DatastorePath:
        """``[ds] a/b.vmdk``, or ``https://host/folder/a/b.vmdk?dcPath=…&dsName=ds``.

        Raises: SoapFault (InvalidDatastorePath).
        """
        match = _BRACKETED.match(text or "")
        if match:
            return cls(match[1], _tidy(match[2], text))
        url = urllib.parse.urlsplit(text or "")
        names = urllib.parse.parse_qs(url.query).get("dsName", [])
        if url.scheme in ("http", "https") and url.path.startswith("/folder") and names:
            inner = urllib.parse.unquote(url.path.removeprefix("/folder"))
            return cls(names[0], _tidy(inner, text))
        raise cls.invalid(text)

    @staticmethod
    def invalid(text: str) -> SoapFault:
        """The fault for a text that names no file of a datastore."""
        return SoapFault(
            vim.fault.InvalidDatastorePath(datastorePath=text), f"Invalid datastore path '{text}'."
        )

    @staticmethod
    def unknown_datastore(path: DatastorePath) -> SoapFault:
        """The fault for a datastore that nobody knows."""
        return SoapFault(
            vim.fault.InvalidDatastore(name=path.datastore), f"Invalid datastore: {path.datastore}."
        )

    def __str__(self) -> str:
        return f"[{self.datastore}] {self.relative}".rstrip()

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(self.relative).name

    @property
    def parent(self) -> DatastorePath:
        """The folder that holds it."""
        folder = str(PurePosixPath(self.relative).parent)
        return DatastorePath(self.datastore, "" if folder == "." else folder)

    def child(self, name: str) -> DatastorePath:
        """An entry of this folder."""
        return DatastorePath(self.datastore, f"{self.relative}/{name}" if self.relative else name)

    def sibling(self, name: str) -> DatastorePath:
        """Another entry of the same folder."""
        return self.parent.child(name)


def _tidy(path: str, whole: str) -> str:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in path:
        raise DatastorePath.invalid(whole)
    return "/".join(parts)
