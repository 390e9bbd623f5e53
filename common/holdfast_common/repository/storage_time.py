"""What the storage itself says about time: one clock for all writers, whatever their own ones say.

A store that cannot tell is asked all the same; then the writers' clocks have to do.
"""

from __future__ import annotations

from datetime import datetime
from typing import Protocol, runtime_checkable

from holdfast_common.repository.object_store import ObjectStore


@runtime_checkable
class KnowsTime(Protocol):
    """A store with a clock."""

    def storage_time(self) -> datetime | None:
        """Its time now, aware; None: it cannot tell just now. Raises: RepositoryFailed."""
        ...

    def stored_at(self, name: str) -> datetime | None:
        """When an object was stored, by the same clock; None: there is none. Raises: RepositoryFailed."""
        ...


def storage_time(store: ObjectStore) -> datetime | None:
    """The storage's time now; None: it does not tell. Raises: RepositoryFailed."""
    return store.storage_time() if isinstance(store, KnowsTime) else None


def stored_at(store: ObjectStore, name: str) -> datetime | None:
    """When an object was stored, by the storage's clock; None: not known. Raises: RepositoryFailed."""
    return store.stored_at(name) if isinstance(store, KnowsTime) else None
