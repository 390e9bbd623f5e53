"""Good objects that wait to take the place of damaged ones: a repair that was cut off left them, or one is at work.

While one waits, its name may be empty: what it says, and what it needs, is not known to who counts then.
"""

from __future__ import annotations

from typing import Final

from blake3 import blake3

from holdfast_common.repository.layout import aside_name
from holdfast_common.repository.object_store import ObjectStore

_REPLACEMENTS: Final = aside_name("replacements/")
_REPLACEABLE: Final = (
    "points/",
    "maps/",
    "index/",
    "fences/",
    "holds/",
    "proofs/",
    "leases/",
    "packs/",
)
_KEYS: Final = ("keys/", "writers/")


def replacement_name(name: str) -> str:
    """Where the replacement of an object waits."""
    return f"{_REPLACEMENTS}{blake3(name.encode()).hexdigest()[:32]}"


def unfinished_replacements(store: ObjectStore) -> list[str]:
    """Names of replacements that wait although nothing stands in their place. Raises: RepositoryFailed."""
    waiting = {info.name for info in store.list(_REPLACEMENTS)}
    for prefix in (*_REPLACEABLE, *_KEYS):
        if not waiting:
            break
        waiting -= {replacement_name(info.name) for info in store.list(prefix)}
    return sorted(waiting)
