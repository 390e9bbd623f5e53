"""Files that somebody left among a repository's objects: nothing stumbles over them, and nothing deletes them."""

from __future__ import annotations

import pytest

from holdfast_common.repository.check import check_structure
from holdfast_common.repository.repair import repair_repository
from support.memory_store import MemoryStore
from support.repositories import BLOCK, Repository, new_repository, patterned

IMAGE = patterned(8 * BLOCK, "kept")
DIGEST = "ab" * 32


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def repository(store: MemoryStore) -> Repository:
    made = new_repository(store)
    store.now = made.clock.now
    return made


@pytest.mark.parametrize(
    "stray",
    ["packs/.DS_Store", "packs/ab/.nfs0001", "packs/ab/Thumbs.db", f"packs/cd/{DIGEST}"],
)
def test_a_stray_file_among_the_packs_stops_no_check_no_repair_and_no_restore_without_an_index(
    repository: Repository, store: MemoryStore, stray: str
) -> None:
    point = repository.backup(IMAGE)
    store.objects[stray] = b"x"
    assert not check_structure(store, repository.keys).lost_ranges
    for name in [each for each in store.objects if each.startswith("index/")]:
        del store.objects[name]
    assert repository.restored(point) == IMAGE
    repaired = repair_repository(
        store,
        repository.keys,
        segment_keys=repository.keys,
        signing_key=repository.signing_key,
        clock=repository.clock,
        workers=1,
    )
    assert not repaired.after.lost_ranges
    assert any(name.startswith("index/") for name in store.objects)
    assert store.objects[stray] == b"x"
    assert repository.restored(point) == IMAGE
