"""What a prune takes for needed while an index object cannot be used: everything that it may have named."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_common.repository.layout import index_name, pack_name
from holdfast_common.repository.points import Point
from holdfast_common.repository.repair import repair_repository
from support.memory_store import MemoryStore
from support.pruning import GRACE_SECONDS, Pruner, forget
from support.repositories import BLOCK, Repository, authorise, new_repository, patterned

IMAGE = patterned(16 * BLOCK, "twice")


@dataclass
class TwoCopies:
    """A chunk that two writers stored: the first one's copy is good, the second one's is rotten."""

    repository: Repository
    store: MemoryStore
    pruner: Pruner
    first: Point
    second: Point

    @property
    def pack(self) -> str:
        """Of the good copy."""
        (digest,) = self.first.manifest.packs
        return pack_name(digest)

    @property
    def index(self) -> str:
        """That names the good copy."""
        return index_name(self.first.manifest.indexes[0].object_id)

    def rounds(self) -> list[tuple[str, ...]]:
        """Three rounds; what each told of index objects."""
        told = []
        for _ in range(3):
            told.append(self.pruner.round().refused_indexes)
            self.repository.clock.advance(GRACE_SECONDS + 60)
        return told


@pytest.fixture
def copies() -> TwoCopies:
    store = MemoryStore()
    repository = new_repository(store)
    store.now = repository.clock.now
    pruner = Pruner.of(repository)
    other = Ed25519PrivateKey.generate()
    authorise(repository, other, agent_id="proxy-2")
    first = repository.backup(IMAGE)
    second = repository.backup(IMAGE, signing_key=other, lineage="vcenter-1/clone")
    made = TwoCopies(repository, store, pruner, first, second)
    (rotten,) = second.manifest.packs
    damage(store, pack_name(rotten), at=2000)
    return made


def damage(store: MemoryStore, name: str, *, at: int) -> None:
    data = bytearray(store.objects[name])
    data[at] ^= 1
    store.objects[name] = bytes(data)


@pytest.mark.parametrize("how", ["damaged", "gone"])
def test_the_good_copy_stays_when_its_index_is_lost_and_another_index_names_a_rotten_one(
    copies: TwoCopies, how: str
) -> None:
    store, index = copies.store, copies.index
    if how == "damaged":
        damage(store, index, at=len(store.objects[index]) // 2)
    else:
        del store.objects[index]
    assert copies.rounds() == [(index,)] * 3
    assert copies.pack in store.objects
    assert copies.repository.restored(copies.first) == IMAGE, "it was named anew"


def test_what_nobody_needs_goes_all_the_same(copies: TwoCopies) -> None:
    store = copies.store
    gone = copies.repository.backup(patterned(16 * BLOCK, "gone"))
    forget(copies.repository, gone)
    damage(store, copies.index, at=40)
    copies.rounds()
    (digest,) = gone.manifest.packs
    assert pack_name(digest) not in store.objects
    assert copies.pack in store.objects


def test_no_pack_that_cannot_be_read_dies_meanwhile(copies: TwoCopies) -> None:
    store = copies.store
    damage(store, copies.pack, at=len(store.objects[copies.pack]) - 4)
    damage(store, copies.index, at=40)
    copies.rounds()
    assert copies.pack in store.objects


def test_once_a_repair_dealt_with_it_nothing_is_told_any_more(copies: TwoCopies) -> None:
    store, repository = copies.store, copies.repository
    damage(store, copies.index, at=40)
    assert copies.rounds()[-1] == (copies.index,)
    repair_repository(
        store,
        repository.keys,
        segment_keys=repository.keys,
        signing_key=copies.pruner.signing_key,
        clock=repository.clock,
    )
    assert copies.rounds()[-1] == ()
    assert repository.restored(copies.first) == IMAGE


def test_an_index_of_a_revoked_writer_is_not_waited_for(copies: TwoCopies) -> None:
    store, repository = copies.store, copies.repository
    stolen = Ed25519PrivateKey.generate()
    authorise(repository, stolen, agent_id="proxy-3")
    void = repository.backup(patterned(16 * BLOCK, "void"), signing_key=stolen)
    repository.keys.revoke_writer(
        store,
        stolen.public_key().public_bytes_raw(),
        clock=repository.clock,
        keep_existing=False,
    )
    assert copies.rounds() == [()] * 3
    (digest,) = void.manifest.packs
    assert pack_name(digest) not in store.objects
