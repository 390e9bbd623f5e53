"""What is known of the packs in a store is what is there, however little is listed again."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3

from holdfast_common.errors import PreviousLost
from holdfast_common.repository.directory_stamps import FINE_SECONDS
from holdfast_common.repository.directory_store import DirectoryStore
from holdfast_common.repository.index import PACK_ROW, Array
from holdfast_common.repository.layout import pack_name
from holdfast_common.repository.manifest import ManifestFacts
from holdfast_common.repository.object_store import ObjectInfo, ObjectStore
from holdfast_common.repository.pack_listing import (
    FEW_PACKS,
    LOOKED_AT_IN_TURN,
    PackListing,
    PresentPacks,
)
from holdfast_common.repository.writer import PointWriter
from support.memory_store import MemoryStore
from support.repositories import LINEAGE, disk_header, new_repository, patterned


class CountedDirectory(DirectoryStore):
    """Notes what is asked."""

    lists: list[str]
    named: list[str]
    heads: list[str]

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self.lists.append(prefix)
        yield from super().list(prefix)

    def names(self, prefix: str) -> Sequence[str]:
        self.named.append(prefix)
        return super().names(prefix)

    def head(self, name: str) -> ObjectInfo | None:
        self.heads.append(name)
        return super().head(name)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[CountedDirectory]:
    DirectoryStore.create(tmp_path / "repository").close()
    store = CountedDirectory.open(tmp_path / "repository")
    assert isinstance(store, CountedDirectory)
    store.lists, store.named, store.heads = [], [], []
    with store:
        yield store


def add(store: ObjectStore, number: int) -> bytes:
    data = b"pack %d" % number
    digest = blake3(data).digest()
    store.put(pack_name(digest), data)
    return digest


def rows(packs: dict[bytes, int]) -> Array:
    found = np.zeros(len(packs), PACK_ROW)
    for at, (digest, length) in enumerate(packs.items()):
        found[at] = (digest, length)
    return found


def settle(store: DirectoryStore) -> None:
    """As if everything had been written some time ago."""
    for folder in (store.root / "packs").iterdir():
        seconds = folder.stat().st_mtime - 100 * FINE_SECONDS
        os.utime(folder, (seconds, seconds))


def test_only_prefixes_where_something_changed_are_listed_again(
    directory: CountedDirectory,
) -> None:
    packs = [add(directory, number) for number in range(300)]
    settle(directory)
    listing = PackListing()
    listing.refresh(directory)
    assert all(listing.length_of(digest) for digest in packs)
    directory.lists.clear()
    listing.refresh(directory)
    assert not directory.lists
    assert len(directory.named) == 1  # in turn
    new = add(directory, 1000)
    directory.named.clear()
    listing.refresh(directory)
    assert listing.length_of(new) == len(b"pack 1000")
    assert not directory.lists
    assert len(directory.named) <= 2


@pytest.mark.parametrize("count", [FEW_PACKS - 10, FEW_PACKS + 10])
@pytest.mark.parametrize("kind", ["directory", "memory"])
def test_a_pack_that_vanishes_is_noticed_at_the_next_look(
    directory: CountedDirectory, kind: str, count: int
) -> None:
    store: ObjectStore = directory if kind == "directory" else MemoryStore()
    packs = {add(store, number): len(b"pack %d" % number) for number in range(count)}
    if kind == "directory":
        settle(directory)
    listing = PackListing()
    listing.refresh(store)
    assert listing.holds("index/x", lambda: rows(packs))
    for digest in list(packs)[::7]:
        store.delete(pack_name(digest))
        listing.refresh(store)
        assert listing.length_of(digest) is None
        assert not listing.holds("index/x", lambda: rows(packs))
        del packs[digest]
        assert listing.holds("index/x", lambda: rows(packs))


def test_a_directory_that_was_just_changed_is_not_trusted_to_stay(
    directory: CountedDirectory,
) -> None:
    """Two changes within one tick of the file system's clock leave the same stamp."""
    digest = add(directory, 1)
    listing = PackListing()
    listing.refresh(directory)
    folder = directory.root / "packs" / digest.hex()[:2]
    before = folder.stat()
    (folder / digest.hex()).unlink()
    os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))
    listing.refresh(directory)
    assert listing.length_of(digest) is None


def test_where_a_pack_came_only_that_one_is_looked_at(directory: CountedDirectory) -> None:
    packs = [add(directory, number) for number in range(600)]  # some of them share a folder
    settle(directory)
    listing = PackListing()
    listing.refresh(directory)
    gone = packs.pop()
    directory.delete(pack_name(gone))
    new = add(directory, 1000)
    directory.heads.clear()
    directory.named.clear()
    listing.refresh(directory)
    in_turn = {name for name in directory.heads if name.startswith("packs/01/")}
    assert len(in_turn) <= LOOKED_AT_IN_TURN
    assert {*directory.heads} - in_turn == {pack_name(new)}
    assert len(directory.named) == 3  # where one came, where one went, and the one in turn
    assert listing.length_of(gone) is None
    assert [listing.length_of(digest) for digest in (packs[0], packs[-1], new)] == [6, 8, 9]


def test_a_pack_that_becomes_shorter_is_noticed_in_turn(directory: CountedDirectory) -> None:
    packs = [add(directory, number) for number in range(30)]
    settle(directory)
    listing = PackListing()
    listing.refresh(directory)
    (directory.root / pack_name(packs[7])).write_bytes(b"p")
    for _ in range(256):
        listing.refresh(directory)
    assert listing.length_of(packs[7]) == 1


def test_of_many_packs_in_one_folder_all_are_looked_at_in_rounds(
    directory: CountedDirectory,
) -> None:
    """However many there are: one attempt looks at a few of them."""
    folder = directory.root / "packs" / "07"
    folder.mkdir()
    digests = [bytes([7, number]) + bytes(30) for number in range(3 * LOOKED_AT_IN_TURN - 5)]
    for digest in digests:
        (directory.root / pack_name(digest)).write_bytes(b"pack")
    settle(directory)
    listing = PackListing()
    listing.refresh(directory)
    for digest in digests:
        (directory.root / pack_name(digest)).write_bytes(b"p")
    shorter = []
    for _ in range(3):
        directory.heads.clear()
        listing.refresh(directory)
        assert len(directory.heads) == LOOKED_AT_IN_TURN
        shorter.append(sum(listing.length_of(digest) == 1 for digest in digests))
    assert shorter == [LOOKED_AT_IN_TURN, 2 * LOOKED_AT_IN_TURN, len(digests)]


def test_what_is_damaged_or_of_another_length_does_not_count() -> None:
    store = MemoryStore()
    first, second = add(store, 1), add(store, 2)
    listing = PackListing()
    listing.refresh(store)
    packs = rows({first: 6, second: 6})
    assert PresentPacks(listing).hold("a", lambda: packs)
    assert not PresentPacks(listing, frozenset({first})).hold("a", lambda: packs)
    assert PresentPacks(listing, frozenset({first})).get(first) is None
    assert not listing.holds("b", lambda: rows({first: 6, second: 7}))
    present = PresentPacks(listing)
    present.added[bytes(32)] = 5
    assert present.get(bytes(32)) == 5


def test_an_attempt_lists_the_packs_once_and_only_when_it_asks_for_one(
    directory: CountedDirectory,
) -> None:
    first = add(directory, 1)
    listing = PackListing()
    present = PresentPacks(listing, frozenset({bytes(32)}), unread=directory)
    present.added[bytes([1]) * 32] = 5
    assert present.get(bytes([1]) * 32) == 5
    assert present.get(bytes(32)) is None
    assert listing.length_of(first) is None  # nothing was looked at so far
    assert present.get(first) == 6
    second = add(directory, 2)
    assert present.get(second) is None
    assert not present.hold("a", lambda: rows({first: 6, second: 6}))


def test_a_file_that_is_no_pack_is_no_pack(directory: CountedDirectory) -> None:
    digest = add(directory, 1)
    stray = directory.root / "packs" / "zz"
    stray.mkdir()
    (stray / digest.hex()).write_bytes(b"pack 1")
    (directory.root / pack_name(digest)).unlink()
    listing = PackListing()
    listing.refresh(directory)
    assert listing.length_of(digest) is None


@pytest.mark.parametrize("when", ["before the attempt", "during the attempt"])
def test_a_pack_dropped_behind_the_listing_makes_the_commit_fail(
    directory: CountedDirectory, when: str
) -> None:
    """A running proxy's listing was right when it was made."""
    repository = new_repository(directory)
    image = patterned(2 << 20, "image")
    listing = PackListing()

    def writer() -> PointWriter:
        return PointWriter(
            directory,
            repository.keys.writer_keys(LINEAGE),
            signing_key=repository.signing_key,
            agent_id="proxy-1",
            job_id=repository.new_job(),
            attempt=1,
            clock=repository.clock,
            workers=0,
            listing=listing,
        )

    point = repository.backup(image)
    settle(directory)
    listing.refresh(directory)
    doomed = directory.root / pack_name(point.manifest.packs[0])
    if when == "before the attempt":
        doomed.unlink()
    with writer() as attempt:
        disk = attempt.begin_disk(disk_header(len(image)), previous=point.disks[0])
        if when == "during the attempt":
            doomed.unlink()
        disk.finish()
        with pytest.raises(PreviousLost):
            attempt.prepare(ManifestFacts())


def test_what_was_said_of_a_pack_is_looked_up_again_after_each_listing(
    directory: CountedDirectory,
) -> None:
    listing = PackListing()
    late, gone = blake3(b"pack 1").digest(), add(directory, 2)
    listing.refresh(directory)
    assert [listing.length_of(late), listing.length_of(gone)] == [None, 6]
    add(directory, 1)
    directory.delete(pack_name(gone))
    assert [listing.length_of(late), listing.length_of(gone)] == [None, 6]
    listing.refresh(directory)
    assert [listing.length_of(late), listing.length_of(gone)] == [6, None]
