"""Listings that are turned into objects: other files may lie among them, and are nobody's but their owner's.

A file manager, a file server or a person may leave a file in any folder of a repository. It is no object: it
is never read, counts for nothing, is never deleted, and `check` tells of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from holdfast_common.repository.layout import KINDS_OF_NAMES, is_object_name
from holdfast_common.repository.object_store import ObjectInfo, ObjectStore

STRAY: Final = "no object has such a name: nothing reads this file and nothing removes it; move it away by hand"


def stored_objects(store: ObjectStore, prefix: str) -> Iterator[ObjectInfo]:
    """As `ObjectStore.list`, without strays. Raises: RepositoryFailed."""
    return (info for info in store.list(prefix) if is_object_name(info.name))


def stray_names(store: ObjectStore) -> Iterator[str]:
    """Files that lie where objects are and have a name that none can have. Raises: RepositoryFailed."""
    for kind in KINDS_OF_NAMES:
        for info in store.list(f"{kind}/"):
            if not is_object_name(info.name):
                yield info.name
