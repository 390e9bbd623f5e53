"""Repair from another repository: other keys and other frames, the same disks. Only what is proven is taken."""

from __future__ import annotations

import random

import pytest

from holdfast_common.repository.layout import aside_name, pack_name
from holdfast_common.repository.pack import read_plain_footer
from holdfast_common.repository.reference_check import stored_packs
from holdfast_common.repository.repair import RepairReport, repair_repository
from holdfast_common.repository.repair_content import OtherRepository
from holdfast_common.repository.repair_objects import set_aside
from support.damaged_worlds import Lost, World
from support.memory_store import MemoryStore
from support.repositories import BLOCK, LINEAGE, new_repository

VMX = random.Random(5).randbytes(3000)


def new_world(seed: str) -> World:
    store = MemoryStore()
    return World(new_repository(store, seed=seed), store)


def two_worlds() -> tuple[World, World, list[bytes]]:
    """One VM in two repositories, whose nights do not agree: ours has three points, the other one two of
    other moments. With the image of each of our points."""
    ours, theirs = new_world("ours"), new_world("theirs")
    rng = random.Random(11)
    image = bytearray(rng.randbytes(20 * BLOCK + 512))
    images = []
    for night, changed in enumerate(([], [1, 2, 3], [2, 18, 20])):
        for number in changed:
            length = min(BLOCK, len(image) - number * BLOCK)
            image[number * BLOCK : number * BLOCK + length] = rng.randbytes(length)
        ours.back_up(image, changed=changed or None, blobs={"vmx": VMX})
        images.append(bytes(image))
        if night in (0, 2):
            theirs.back_up(image, blobs={"vmx": VMX})
        for world in (ours, theirs):
            world.repository.clock.advance(86400)
    return ours, theirs, images


def repaired(ours: World, theirs: World, *, dry_run: bool = False) -> RepairReport:
    keys = theirs.repository.keys
    return repair_repository(
        ours.store,
        ours.repository.keys,
        segment_keys=ours.repository.keys,
        signing_key=ours.repository.signing_key,
        clock=ours.repository.clock,
        others=[OtherRepository(store=theirs.store, ring=keys, segment_keys=keys)],
        content_keys=ours.repository.keys.writer_keys(LINEAGE),
        expected_points=[each.point.name for each in ours.originals],
        dry_run=dry_run,
        workers=1,
        randomness=ours.repository.randomness,
    )


def rot_every_blob(world: World) -> None:
    for digest, length in stored_packs(world.store).items():
        footer, _, _ = read_plain_footer(world.store, digest, length=length)
        data = bytearray(world.store.objects[pack_name(digest)])
        for blob in footer.blobs:
            data[blob.offset + 7] ^= 1
        world.store.objects[pack_name(digest)] = bytes(data)


def test_lost_blocks_come_from_the_points_of_another_repository() -> None:
    """Every blob of ours is gone. What our second night alone had is in no point of the other repository."""
    ours, theirs, _ = two_worlds()
    rot_every_blob(ours)
    other = dict(theirs.store.objects)
    assert len(ours.lost(ours.store).blocks) == 3 * 21
    report = repaired(ours, theirs)
    assert theirs.store.objects == other, "the other one is only read"
    second = ours.originals[1].point.name
    assert ours.lost(ours.store) == Lost(blocks=frozenset({(second, 2)}))
    assert ours.reported(report.after) == ours.lost(ours.store)
    assert report.chunks_found
    assert report.new_packs


def test_what_is_whole_again_replaces_what_was_damaged_and_that_is_kept() -> None:
    ours, theirs, _ = two_worlds()
    pack = pack_name(ours.originals[0].point.manifest.packs[0])
    damaged = bytearray(ours.store.objects[pack])
    damaged[500] ^= 1
    ours.store.objects[pack] = bytes(damaged)
    assert ours.lost(ours.store) != Lost()
    objects = dict(ours.store.objects)
    dry = repaired(ours, theirs, dry_run=True)
    assert dry.chunks_found
    assert ours.store.objects == objects
    report = repaired(ours, theirs)
    assert report.after.is_clean, report.left
    assert ours.lost(ours.store) == Lost()
    assert ours.store.objects[aside_name(pack)] == bytes(damaged)


def test_a_pack_that_is_gone_comes_back_too() -> None:
    ours, theirs, _ = two_worlds()
    del ours.store.objects[pack_name(ours.originals[0].point.manifest.packs[0])]
    report = repaired(ours, theirs)
    assert report.after.is_clean, report.left
    assert ours.lost(ours.store) == Lost()


def test_what_another_repository_has_wrongly_is_not_taken() -> None:
    """Same VM, same disk, another content: its digests are not ours, and nothing is replaced."""
    ours, _, _ = two_worlds()
    liar = new_world("liar")
    liar.back_up(random.Random(99).randbytes(20 * BLOCK + 512), blobs={"vmx": b"x" * len(VMX)})
    pack = pack_name(ours.originals[0].point.manifest.packs[0])
    data = bytearray(ours.store.objects[pack])
    data[500] ^= 1
    ours.store.objects[pack] = bytes(data)
    lost = ours.lost(ours.store)
    report = repaired(ours, liar)
    assert not report.chunks_found
    assert not report.new_packs
    assert ours.store.objects[pack] == bytes(data), "what has no replacement stays where it is"
    assert ours.lost(ours.store) == ours.reported(report.after) == lost


@pytest.mark.parametrize("rotten", ["packs/", "maps/", "index/", "points/", "writers/"])
def test_another_repository_that_is_damaged_itself_does_no_harm(rotten: str) -> None:
    ours, theirs, _ = two_worlds()
    pack = pack_name(ours.originals[0].point.manifest.packs[0])
    data = bytearray(ours.store.objects[pack])
    data[500] ^= 1
    ours.store.objects[pack] = bytes(data)
    lost = ours.lost(ours.store)
    for name, whole in list(theirs.store.objects.items()):
        if name.startswith(rotten):
            theirs.store.objects[name] = whole[: len(whole) // 2]
    report = repaired(ours, theirs)
    assert ours.reported(report.after) == ours.lost(ours.store)
    assert ours.lost(ours.store).blocks <= lost.blocks


class CountingStore(MemoryStore):
    """Knows the longest piece of a pack that was read at once."""

    longest = 0

    def get(self, name: str, *, length_max: int) -> bytes:
        assert not name.startswith(("packs/", "aside/packs/")), "a pack is never read as a whole"
        return super().get(name, length_max=length_max)

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        self.longest = max(self.longest, buffer.nbytes)
        super().read_into(name, offset, buffer)


def test_a_damaged_pack_is_set_aside_piece_by_piece() -> None:
    store = CountingStore()
    whole = random.Random(1).randbytes(5 * 1024 * 1024 + 3)
    store.put(pack_name(bytes(32)), whole)
    assert set_aside(store, pack_name(bytes(32)))
    assert store.objects == {aside_name(pack_name(bytes(32))): whole}
    assert store.longest == 1 << 20


def test_the_vm_s_next_run_heals_what_has_the_same_ids() -> None:
    """A full run that is told of damaged packs stores their chunks anew; older points use them too."""
    ours, _, images = two_worlds()
    first = ours.originals[0]
    pack = first.point.manifest.packs[0]
    data = bytearray(ours.store.objects[pack_name(pack)])
    data[500] ^= 1
    ours.store.objects[pack_name(pack)] = bytes(data)
    lost = ours.lost(ours.store)
    with ours.repository.writer(damaged_packs=[pack]) as writer:
        disk = writer.begin_disk(first.point.disks[0].header)
        disk.write(0, memoryview(images[2]))
        disk.finish()
        prepared = writer.prepare(first.point.manifest.facts)
        writer.publish(prepared, ours.repository.grant(prepared))
    assert pack not in prepared.manifest.packs
    now = ours.lost(ours.store)
    # The first window changed since: its frame has another id. The second one's tail changed as well.
    assert now == lost
    with ours.repository.writer(damaged_packs=[pack]) as writer:
        disk = writer.begin_disk(first.point.disks[0].header)
        disk.write(0, memoryview(images[0]))
        disk.finish()
        prepared = writer.prepare(first.point.manifest.facts)
        writer.publish(prepared, ours.repository.grant(prepared))
    assert ours.lost(ours.store) == Lost()
