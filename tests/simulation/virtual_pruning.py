"""What a prune reads and writes of formats, over the model. Its order and all its decisions are the product's own.

Each function stands in the place of the product's one of the same name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from holdfast_common.errors import ObjectExists, RepositoryFull
from holdfast_common.repository.fence import Fences, load_fences
from holdfast_common.repository.layout import pack_name
from holdfast_common.repository.live_chunks import Needed
from holdfast_common.repository.pack_survey import PackFact, PackSurvey
from holdfast_common.repository.points import PointList
from holdfast_common.repository.prune_plan import PackPlan
from holdfast_common.repository.prune_progress import MARKING, PruneProgress, Tell
from holdfast_common.repository.repack import Repacked
from simulation.virtual_disks import BLOCK_BYTES
from simulation.virtual_keys import KEYS, WRITERS
from simulation.virtual_repository import listed
from simulation.virtual_storage import VirtualStorage, VirtualStore

RESERVE_PIECES = 4


class StorageAsFolder:
    """In place of `DirectoryStore` where the controller opens the repository."""

    def __init__(self, storage: VirtualStorage) -> None:
        self._storage = storage

    @contextmanager
    def open(self, folder: Path, *, files: object = None) -> Iterator[VirtualStore]:
        """One piece of the controller's work begins."""
        del folder, files
        store = VirtualStore(self._storage, self._storage.kernel.current.life)
        if self._storage.watcher is not None:
            self._storage.watcher.opened(store)
        yield store


def list_points(store: Any, keys: object, *, fences: Fences | None = None) -> PointList:
    del keys
    return listed(store, load_fences(store, KEYS, WRITERS) if fences is None else fences)


def find_needed(
    store: Any,
    ring: object,
    *,
    fences: Fences | None = None,
    check: Callable[[], None] = lambda: None,
    tell: Tell = lambda _: None,
) -> Needed:
    found = list_points(store, ring, fences=fences)
    chunks: set[int] = set()
    maps: set[str] = set()
    for number, point in enumerate(found.points):
        check()
        tell(PruneProgress(step=MARKING, done=number, total=len(found.points)))
        manifest: Any = point.manifest
        chunks |= manifest.chunks
        maps.add(manifest.map_name)
    needed: Any = frozenset(chunks)
    return Needed(
        census={point.name: point.digest for point in found.points},
        void=tuple(each.name for each in found.unusable),
        chunks=needed,
        maps=frozenset(maps),
        indexes=frozenset(),
    )


def survey_packs(
    store: Any,
    keys: object,
    writers: object,
    *,
    needed: Collection[int],
    needed_indexes: object,
    doomed: frozenset[bytes],
    dead_share_min: float,
    check: Callable[[], None],
) -> PackSurvey:
    """A block that lies in several packs is needed of one, which is not called dead if any is not."""
    del keys, writers, needed_indexes, dead_share_min
    packs = {_digest(info.name): store.object(info.name).body for info in store.list("packs/")}
    check()
    holders: dict[int, bytes] = {}
    for digest in sorted(packs, key=lambda each: (each in doomed, each)):
        for value in packs[digest]:
            if value in needed:
                holders.setdefault(value, digest)
    survey = PackSurvey()
    for digest, values in packs.items():
        held: Any = sorted(value for value in values if holders.get(value) == digest)
        survey.needed_blobs[digest] = held
        survey.packs[digest] = PackFact(
            digest=digest,
            length=len(values) * BLOCK_BYTES,
            stored_bytes=len(values) * BLOCK_BYTES,
            needed_bytes=len(held) * BLOCK_BYTES,
            is_doomed=digest in doomed,
        )
    survey.missing_chunks = len(set(needed) - holders.keys())
    return survey


def copy_needed(
    store: Any,
    survey: PackSurvey,
    plan: PackPlan,
    *,
    keys: object,
    randomness: object,
    go_on: Callable[[], bool],
    tell: Tell,
) -> Repacked:
    del keys, randomness, tell
    done: list[bytes] = []
    moved = 0
    for digest in plan.repacked:
        if not go_on():
            break
        values: Any = frozenset(survey.needed_blobs[digest])
        text = f"repacked {digest.hex()} {sorted(values)} {store.opened_at}"
        store.put(pack_name(hashlib.sha256(text.encode()).digest()), body=values)
        done.append(digest)
        moved += len(values) * BLOCK_BYTES
    return Repacked(done=tuple(done), new=(), moved_bytes=moved)


def keep_reserve(store: Any, randomness: object, *, length: int = 0) -> None:
    """As many pieces as the real one has."""
    del randomness, length
    with suppress(RepositoryFull):
        for number in range(RESERVE_PIECES):
            name = f"reserve/room-{number + 1}" if number else "reserve/room"
            if name not in store.storage.objects:
                with suppress(ObjectExists):
                    store.put(name, b"room")


def nothing(*_: object, **__: object) -> None:
    """In place of what concerns index objects and repairs, which the model does not have."""


def no_names(*_: object, **__: object) -> list[bytes]:
    """In place of the rewriting of indexes."""
    return []


def no_proofs(*_: object, **__: object) -> dict[str, frozenset[bytes]]:
    """In place of the reading of proofs."""
    return {}


def _digest(name: str) -> bytes:
    return bytes.fromhex(name.rpartition("/")[2])
