"""Damage within the tables of an index file on this machine: proven, made again, and nothing is lost or invented."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast_common.repository import index_cache_builder
from holdfast_common.repository.index_cache import IndexCache
from holdfast_common.repository.index_segment import SMALL_CHUNKS
from holdfast_common.repository.repository_index import RepositoryIndex
from support.index_worlds import IndexWorld, chunk_id, pack
from support.memory_store import MemoryStore

LARGE = SMALL_CHUNKS + 100  # chunks: asked in the mapped file
WANTED = [chunk_id(number) for number in range(0, LARGE, 7)]
PLACES = range(5, 100, 9)  # hundredths of the file


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> IndexWorld:
    # as files of more than 4 MiB: asked in place, and never read as a whole
    monkeypatch.setattr(index_cache_builder, "SMALL_BYTES", 0)
    world = IndexWorld(MemoryStore(), cache=IndexCache(tmp_path / "index"))
    world.put(pack(list(range(LARGE)), name="x"))
    world.opened()
    return world


def zeroed(file: Path, hundredths: int) -> None:
    """A page of it; the rest stays as it is. In place: another program has it mapped."""
    with file.open("r+b") as opened:
        opened.seek(file.stat().st_size * hundredths // 100)
        opened.write(bytes(4096))


def plain(world: IndexWorld) -> RepositoryIndex:
    index = RepositoryIndex(world.store, world.keys)
    index.refresh(world.writers)
    return index


def test_a_page_of_zeros_in_a_file_that_is_in_use_is_found_and_mended(world: IndexWorld) -> None:
    wanted = plain(world).find_many(WANTED)
    made_again = 0
    for hundredths in PLACES:
        index = world.opened()
        (file,) = world.cache_files()
        before = file.stat().st_ino
        zeroed(file, hundredths)
        found = index.find_many(WANTED)
        assert all(places == wanted[each] for each, places in found.items())
        if len(found) < len(WANTED):
            assert index.recover(world.store)
        assert index.find_many(WANTED) == wanted
        assert not index.refused
        made_again += [each.stat().st_ino for each in world.cache_files()] != [before]
    assert made_again > len(PLACES) / 2


def test_a_file_that_cannot_be_made_again_is_refused_and_hides_nothing_else(
    world: IndexWorld,
) -> None:
    other = world.put(pack([LARGE + 1], name="y"))
    index = world.opened()
    (file,) = [each for each in world.cache_files() if each.stat().st_size > 100_000]
    (name,) = [name for name in world.store.objects if name.startswith("index/") and name != other]
    for hundredths in PLACES:
        zeroed(file, hundredths)
    del world.store.objects[name]
    assert not index.find_many(WANTED)
    assert [item.name for item in index.refused] == [name]
    assert index.find(chunk_id(LARGE + 1)) is not None
