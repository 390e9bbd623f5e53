from __future__ import annotations

from pathlib import Path

import pytest

from holdfast_common.repository import index_segment, repository_index
from holdfast_common.repository.repository_index import RepositoryIndex
from support.memory_store import MemoryStore
from support.repositories import BLOCK, new_repository, patterned
from support.synthetic_index import CHUNKS_PER_PACK, SyntheticIndex


def test_some_packs_after_the_other_are_all_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order in which they were asked for; those that no index names are left out."""
    repository = new_repository(MemoryStore())
    for number in range(5):
        repository.backup(patterned((number + 1) * 8 * BLOCK, f"{number}"))
    keys = repository.keys
    index = RepositoryIndex(repository.store, keys.common)
    index.refresh(keys.writers(repository.store))
    packs = sorted(pack.digest for pack in index.packs())
    everything = index.by_pack(packs)
    assert list(everything) == packs
    assert sum(map(len, everything.values())) == index.chunk_count > 5
    for digest, places in everything.items():
        assert {place.origin.pack.digest for place in places} == {digest}
        assert [place.offset for place in places] == sorted(place.offset for place in places)
        assert all(place in index.find_all(place.chunk_id) for place in places)
    monkeypatch.setattr(repository_index, "PACKS_AT_ONCE", 2)
    monkeypatch.setattr(index_segment, "ROWS_AT_ONCE", 3)
    groups = list(index.in_groups([*packs[:3], b"\0" * 32, *packs[3:]]))
    assert [list(group) for group in groups] == [packs[:2], packs[2:3], packs[3:]]
    joined = {digest: places for group in groups for digest, places in group.items()}
    assert joined == everything


def test_what_packs_hold_is_not_all_in_memory_at_once(tmp_path: Path) -> None:
    synthetic = SyntheticIndex(tmp_path)
    synthetic.add(70_000, seed=1)
    keys = synthetic.repository.keys
    index = RepositoryIndex(synthetic.store, keys.common, cache=synthetic.cache)
    index.refresh(keys.writers(synthetic.store))
    packs = [pack.digest for pack in index.packs()]
    counts = [sum(map(len, group.values())) for group in index.in_groups(packs)]
    assert sum(counts) == 70_000
    assert max(counts) < 1.1 * repository_index.PACKS_AT_ONCE * CHUNKS_PER_PACK < 70_000
