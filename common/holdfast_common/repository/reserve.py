"""Room that is kept for the day on which a repository is full: objects that prune may give back one by one.

To delete, prune must write first: a fence, and another one a day later. On a full disk that needs room which
nobody else may take, also not what comes free in between. Backups make the reserve before they store data.
"""

from __future__ import annotations

import logging
from typing import Final

from holdfast_common.errors import HoldfastError, ObjectExists, ObjectMissing, RepositoryFull
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.randomness import SYSTEM_RANDOMNESS, Randomness
from holdfast_common.repository.stored_objects import stored_objects
from holdfast_common.units import MIB

log = logging.getLogger(__name__)

RESERVE_NAME: Final = "reserve/room"
PIECE_BYTES: Final = MIB  # a fence with some 8,000 points or tombstones
RESERVE_BYTES: Final = 4 * PIECE_BYTES  # two fences, and as many that were in vain


def keep_reserve(
    store: ObjectStore, randomness: Randomness, *, length: int = RESERVE_BYTES
) -> None:
    """Make what is missing of it, as far as there is room. Raises: RepositoryFailed."""
    there = {info.name for info in stored_objects(store, "reserve/")} if length else set()
    for number, start in enumerate(range(0, length, PIECE_BYTES)):
        if _piece_name(number) in there:
            continue
        try:
            # random, so that no file system stores it as less than it is
            store.put(_piece_name(number), randomness.draw(min(PIECE_BYTES, length - start)))
        except ObjectExists:
            continue  # another one makes it at the same time
        except RepositoryFull:
            return


def keep_reserve_quietly(store: ObjectStore, randomness: Randomness = SYSTEM_RANDOMNESS) -> None:
    """The same before a backup, which does not fail for it."""
    try:
        keep_reserve(store, randomness)
    except HoldfastError as error:
        log.warning("no room could be kept for a prune", extra={"error": error.line()})


def give_back_reserve(store: ObjectStore) -> bool:
    """Delete a piece of it; whether there was one. Raises: RepositoryFailed."""
    for info in reversed(list(stored_objects(store, "reserve/"))):
        try:
            store.delete(info.name)
        except ObjectMissing:
            continue
        return True
    return False


def _piece_name(number: int) -> str:
    return f"{RESERVE_NAME}-{number + 1}" if number else RESERVE_NAME
