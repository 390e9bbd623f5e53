"""Good objects that wait to take the place of damaged ones: a repair that was cut off left them, or one is at work.

While one waits, its name may be empty: what it says, and what it needs, is not known to who counts then.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator
from typing import Final

from blake3 import blake3

from holdfast_common.errors import IntegrityError, ObjectMissing
from holdfast_common.repository.layout import aside_name
from holdfast_common.repository.object_store import ObjectInfo, ObjectStore

_REPLACEMENTS: Final = aside_name("replacements/")
_STAGED_NAME: Final = re.compile(re.escape(_REPLACEMENTS) + "[0-9a-f]{32}")
_PLACES: Final = tuple(
    f"{each}/"
    for each in [
        "points",
        "maps",
        "index",
        "fences",
        "holds",
        "proofs",
        "leases",
        "packs",
        "keys",
        "writers",
        "about",
        "controller",
    ]
)


def replacement_name(name: str) -> str:
    """Where the replacement of an object waits."""
    return f"{_REPLACEMENTS}{blake3(name.encode()).hexdigest()[:32]}"


def unfinished_replacements(store: ObjectStore) -> list[str]:
    """Names of replacements that wait although nothing stands in their place. Raises: RepositoryFailed."""
    waiting = {info.name for info in _staged(store)}
    return sorted(waiting - _in_place(store, waiting).keys())


def remove_finished_replacements(store: ObjectStore) -> None:
    """Delete those that stand in their place already, before somebody deletes what stands there.

    One that differs from what stands there is left: a repair is about to use it. Raises: RepositoryFailed.
    """
    waiting = {info.name: info.length for info in _staged(store)}
    for staged, info in _in_place(store, waiting).items():
        with contextlib.suppress(ObjectMissing, IntegrityError):
            if info.length == waiting[staged] and _all(store, info.name, info.length) == _all(
                store, staged, info.length
            ):
                store.delete(staged)


def remove_replacement(store: ObjectStore, name: str) -> None:
    """Before an object is removed for good: none shall wait for its place. Raises: RepositoryFailed."""
    with contextlib.suppress(ObjectMissing):
        store.delete(replacement_name(name))


def _staged(store: ObjectStore) -> Iterator[ObjectInfo]:
    return (info for info in store.list(_REPLACEMENTS) if _STAGED_NAME.fullmatch(info.name))


def _in_place(store: ObjectStore, waiting: Collection[str]) -> dict[str, ObjectInfo]:
    """Replacement's name -> the object of whose place it is told."""
    if not waiting:
        return {}
    found = {replacement_name(info.name): info for prefix in _PLACES for info in store.list(prefix)}
    return {staged: found[staged] for staged in waiting if staged in found}


def _all(store: ObjectStore, name: str, length: int) -> bytes:
    return store.get(name, length_max=length)
