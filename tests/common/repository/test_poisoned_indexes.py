"""One bad writer's index objects poison nobody's points: an index is any writer's claim about anybody's packs."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_common.errors import IntegrityError
from holdfast_common.repository.check import RepositoryCheck, check_structure
from holdfast_common.repository.index import PACK_ROW, Section, decoded_segment, encoded_sections
from holdfast_common.repository.index_claims import claims_of, is_clear
from holdfast_common.repository.index_merge import merge_index
from holdfast_common.repository.layout import BLOCK_BYTES, ObjectKind, index_name, pack_name
from holdfast_common.repository.pack_writer import PackWriter
from holdfast_common.repository.points import Point
from holdfast_common.repository.randomness import SystemRandomness
from holdfast_common.repository.writers import ROLE_WRITE
from holdfast_common.units import MIB
from support.memory_store import MemoryStore
from support.pruning import GRACE_SECONDS, Pruner
from support.repositories import LINEAGE, Repository, new_repository, patterned


@dataclass
class World:
    """Two points of A in several packs, of which the first one is forgotten; evil may write."""

    store: MemoryStore
    repository: Repository
    pruner: Pruner
    evil: Ed25519PrivateKey
    old: Point
    new: Point
    image: bytearray
    packs: list[bytes]

    def forged(self, packs: list[tuple[bytes, int]], rows: bytes = b"") -> None:
        """Evil's index object, listed before all others, that says nothing of these packs."""
        key = self.evil.public_key().public_bytes_raw()
        body = encoded_sections(
            {Section.PACKS: np.array(packs, PACK_ROW).tobytes(), Section.WRITERS: key}
        )
        reader = self.repository.keys.writer_keys(LINEAGE).reader
        data = reader.seal(
            ObjectKind.INDEX, body, signing_key=self.evil, randomness=First(bytes(16))
        )
        self.store.put(index_name(bytes(16)), data)

    def length_of(self, pack: bytes) -> int:
        info = self.store.head(pack_name(pack))
        assert info is not None
        return info.length

    def rounds(self, count: int = 4) -> None:
        for _ in range(count):
            self.pruner.round()
            self.repository.clock.advance(GRACE_SECONDS + 60)


class First(SystemRandomness):
    """The first object id that is drawn is this one."""

    def __init__(self, object_id: bytes) -> None:
        self._next: bytes | None = object_id

    def draw(self, length: int) -> bytes:
        if self._next is not None and len(self._next) == length:
            drawn, self._next = self._next, None
            return drawn
        return os.urandom(length)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    defaults = PackWriter.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "pack_bytes", MIB)
    store = MemoryStore()
    repository = new_repository(store)
    store.now = repository.clock.now
    pruner = Pruner.of(repository)
    evil = Ed25519PrivateKey.generate()
    repository.keys.authorise_writer(
        store,
        evil.public_key().public_bytes_raw(),
        agent_id="evil",
        clock=repository.clock,
        roles=(ROLE_WRITE,),
    )
    first = patterned(64 * BLOCK_BYTES, "a")
    old = repository.backup(first)
    image = bytearray(first)
    image[: 2 * MIB] = patterned(2 * MIB, "new")
    new = repository.backup(image, ranges=[(0, 2 * MIB)], previous=old.disks[0])
    return World(store, repository, pruner, evil, old, new, image, sorted(old.manifest.packs))


def needed_packs(world: World) -> list[bytes]:
    """Those of the old point that the new one stands on."""
    check = RepositoryCheck(world.store, world.repository.keys)
    check.index.refresh(check.writers)
    places = check.index.by_pack(world.packs)
    old = [pack for pack in world.packs if places[pack]]
    assert len(old) > 2
    return old


def test_an_index_that_says_nothing_of_a_pack_does_not_stand_for_one_that_says_all(
    world: World,
) -> None:
    packs = needed_packs(world)
    world.forged([*((pack, world.length_of(pack)) for pack in packs), (bytes(32), 100)])
    world.store.delete(world.old.name)
    world.rounds()
    assert world.repository.restored(world.new) == world.image
    report = check_structure(world.store, world.repository.keys)
    assert not report.lost_ranges
    # and every later index says all of it again
    if world.store.head(index_name(bytes(16))) is not None:
        world.store.delete(index_name(bytes(16)))
    assert world.repository.restored(world.new) == world.image


def test_where_it_happened_already_a_point_is_restored_all_the_same(world: World) -> None:
    packs = needed_packs(world)
    world.forged([(pack, world.length_of(pack)) for pack in packs])
    for info in list(world.store.list("index/")):
        if info.name != index_name(bytes(16)):
            world.store.delete(info.name)
    assert world.repository.restored(world.new) == world.image
    report = check_structure(world.store, world.repository.keys)
    assert not report.lost_ranges, "nothing is lost"
    assert any(item.name.startswith("index/") for item in report.damaged), "but the index is wrong"


def test_an_index_object_that_is_exchanged_in_the_middle_of_a_prune_is_not_signed_anew(
    world: World,
) -> None:
    (reference, *_) = world.old.manifest.indexes
    name = index_name(reference.object_id)
    reader = world.repository.keys.writer_keys(LINEAGE).reader
    body = reader.open(ObjectKind.INDEX, world.store.objects[name]).body
    forged = reader.seal(
        ObjectKind.INDEX, body, signing_key=world.evil, randomness=First(reference.object_id)
    )

    class Swapping(MemoryStore):
        reads = 0

        def get(self, asked: str, *, length_max: int) -> bytes:
            found = super().get(asked, length_max=length_max)
            if asked == name:
                Swapping.reads += 1
                return forged if Swapping.reads > 1 else found
            return found

    swapping = Swapping()
    swapping.objects, swapping.now = world.store.objects, world.store.now
    world.store.delete(world.old.name)
    with pytest.raises(IntegrityError, match="exchanged"):
        world.pruner.round(store=swapping)
    assert Swapping.reads > 1
    assert world.repository.restored(world.new) == world.image


def test_what_is_merged_keeps_what_everybody_says(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    packs = needed_packs(world)
    world.forged([(pack, world.length_of(pack)) for pack in packs])
    monkeypatch.setattr("holdfast_common.repository.index_merge.SEGMENTS_MAX", 2)
    keys = world.repository.keys
    merged = merge_index(
        world.store, keys.common, keys.writers(world.store), signing_key=world.pruner.signing_key
    )
    assert merged is not None
    assert world.repository.restored(world.new) == world.image
    world.store.delete(world.old.name)
    world.rounds()
    assert world.repository.restored(world.new) == world.image
    assert not check_structure(world.store, keys).lost_ranges


def test_claims_are_equal_when_the_same_is_said_in_another_order_and_only_then(
    world: World,
) -> None:
    (reference, *_) = world.old.manifest.indexes
    reader = world.repository.keys.writer_keys(LINEAGE).reader
    found = reader.open(ObjectKind.INDEX, world.store.objects[index_name(reference.object_id)])
    segment = decoded_segment(found.body)
    claims = claims_of(segment, found.body, object_id=bytes(16))
    assert set(claims) == {row["digest"].tobytes() for row in segment.packs}
    assert all(map(is_clear, claims.values()))
    assert claims_of(segment, found.body, object_id=bytes(range(16))) == claims
    for column in ("offset", "stored", "plain", "number", "presence"):
        rows = segment.locations.copy()
        rows[column][0] ^= 1
        other = replace(segment, locations=rows)
        differing = claims_of(other, found.body, object_id=bytes(16))
        assert sum(differing[pack] != claims[pack] for pack in claims) == 1, column
    damaged = bytearray(found.body)
    damaged[segment.digests_offset] ^= 1
    differing = claims_of(segment, bytes(damaged), object_id=bytes(16))
    assert sum(differing[pack] != claims[pack] for pack in claims) == 1
