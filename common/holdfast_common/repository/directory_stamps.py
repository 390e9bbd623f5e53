"""Whether the names in a directory are still the same, told without reading it. Below `directory_store`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from holdfast_common.clock import SystemClock
from holdfast_common.repository.file_system import FileSystem
from holdfast_common.repository.object_store import is_legal_name

FINE_SECONDS: Final = 0.1  # file systems stamp at ticks of some 10 ms
COARSE_SECONDS: Final = 3.0  # those that count whole seconds, or two


@lru_cache(1024)  # the same 256 names each time
def _prefix(directory: str, name: str) -> str:
    """Of objects below that directory; empty: none can lie there."""
    path = f"{directory}/{name}"
    return f"{path}/" if is_legal_name(path) else ""


def directory_stamps(files: FileSystem, directory: str, *, at: int) -> Mapping[str, str] | None:
    """Each directory in ``directory`` as a prefix, and its stamp: empty while it may still change unseen.

    None: this file system cannot tell. Raises: OSError.
    """
    try:
        descriptor = files.open_directory(directory, at=at, follow=False)
    except FileNotFoundError:
        return None
    try:
        names = files.names(descriptor)
        prefixes = [_prefix(directory, name) for name, is_directory in names if is_directory]
        if len(prefixes) < len(names) or not all(prefixes):
            return None
        stamps = files.folder_stamps(descriptor, [name for name, _ in names])
    finally:
        files.close(descriptor)
    now = SystemClock().now().timestamp()
    found = {}
    for prefix, (stamp, modified) in zip(prefixes, stamps, strict=True):
        if not stamp:
            return None
        wait = FINE_SECONDS if modified % 1 else COARSE_SECONDS
        found[prefix] = stamp if now - modified > wait else ""
    return found
