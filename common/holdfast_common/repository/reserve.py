"""Room that is kept for the day on which a repository is full: an object that prune may give back.

To delete, prune must write first: a fence. On a full disk that needs room which nobody else may take.
"""

from __future__ import annotations

import contextlib
from typing import Final

from holdfast_common.errors import ObjectExists, ObjectMissing, RepositoryFull
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.randomness import Randomness
from holdfast_common.units import MIB

RESERVE_NAME: Final = "reserve/room"
RESERVE_BYTES: Final = MIB  # a fence with some 8,000 points or tombstones


def keep_reserve(
    store: ObjectStore, randomness: Randomness, *, length: int = RESERVE_BYTES
) -> None:
    """Make it when it is missing and there is room. Raises: RepositoryFailed."""
    if length and store.head(RESERVE_NAME) is None:
        # random, so that no file system stores it as less than it is
        with contextlib.suppress(RepositoryFull, ObjectExists):
            store.put(RESERVE_NAME, randomness.draw(length))


def give_back_reserve(store: ObjectStore) -> bool:
    """Delete it; whether there was one. Raises: RepositoryFailed."""
    try:
        store.delete(RESERVE_NAME)
    except ObjectMissing:
        return False
    return True
