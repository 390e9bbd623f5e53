"""Repositories with every kind of object in them, and what each of their points must restore to.

The oracle reads every point back block by block and compares it with its original; it asks nobody what is
lost.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_common.errors import HoldfastError
from holdfast_common.repository.check import CheckReport, check_data
from holdfast_common.repository.disk_reader import PointDiskSource
from holdfast_common.repository.fence import Fence, store_fence
from holdfast_common.repository.keys import open_repository
from holdfast_common.repository.layout import FRAME_BYTES, pack_name
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.pack import read_plain_footer
from holdfast_common.repository.points import Point
from holdfast_common.repository.proof import store_proof
from holdfast_common.repository.recipients import RecoveryUnlock
from holdfast_common.repository.reference_check import stored_packs
from holdfast_common.repository.repair import repair_repository
from holdfast_common.repository.repository_index import RepositoryIndex
from support.controller_copies import put_controller_copy
from support.hollow_frames import hollow_out
from support.memory_store import MemoryStore
from support.pruning import Pruner, forget
from support.repositories import (
    BLOCK,
    DEVICE_KEY,
    LINEAGE,
    Repository,
    authorise,
    new_repository,
    patterned,
)

OTHER = "vcenter-1/other-vm"
THIRD = "vcenter-2/third-vm"


@dataclass(frozen=True)
class Original:
    """A point and what it must be."""

    point: Point
    image: bytes
    blobs: dict[str, bytes]
    lineage: str


@dataclass(frozen=True)
class Lost:
    """What cannot be read back: (point, block) and (point, kind of blob)."""

    blocks: frozenset[tuple[str, int]] = frozenset()
    blobs: frozenset[tuple[str, str]] = frozenset()

    def missing(self, other: Lost) -> str:
        """How much of ``other`` is not in this one, in a few words."""
        blocks, blobs = sorted(other.blocks - self.blocks), sorted(other.blobs - self.blobs)
        return f"{len(blocks)} blocks {blocks[:2]} {len(blobs)} blobs {blobs[:2]}"


@dataclass
class World:
    """A repository in memory, and the originals of its points."""

    repository: Repository
    store: MemoryStore
    originals: list[Original] = field(default_factory=list)

    def back_up(
        self,
        image: bytes | bytearray,
        *,
        lineage: str = LINEAGE,
        changed: list[int] | None = None,
        compare: bool = False,
        blobs: dict[str, bytes] | None = None,
        signing_key: Ed25519PrivateKey | None = None,
    ) -> Point:
        """One more point; ``changed``: blocks of an incremental."""
        previous = next((o.point for o in reversed(self.originals) if o.lineage == lineage), None)
        builds_on = previous is not None and (changed is not None or compare)
        point = self.repository.backup(
            image,
            ranges=None
            if changed is None
            else [(n * BLOCK, min(BLOCK, len(image) - n * BLOCK)) for n in changed],
            previous=previous.disks[0] if builds_on and previous else None,
            compare=compare,
            blobs=blobs,
            lineage=lineage,
            signing_key=signing_key,
        )
        self.originals.append(Original(point, bytes(image), dict(blobs or {}), lineage))
        return point

    def close_epoch(self, epoch: int) -> None:
        """What a prune does first."""
        census = {each.point.name: each.point.digest for each in self.originals}
        store_fence(
            self.store,
            Fence(closed_epoch=epoch, closed_at="2026-03-01T13:00:00.000000Z", census=census),
            keys=self.repository.keys.common,
            signing_key=self.repository.signing_key,
        )

    def prove(self, *points: Point) -> None:
        """What a check of all data leaves behind."""
        store_proof(
            self.store,
            {pack for point in points for pack in point.manifest.packs},
            proven_at="2026-03-01T13:00:00.000000Z",
            keys=self.repository.keys.common,
            signing_key=self.repository.signing_key,
        )

    def copy_the_controller(self) -> None:
        """What the controller does every hour, twice."""
        for number in (1, 2):
            database = f"database {number} ".encode() * 900
            put_controller_copy(self.store, self.repository.keys, number=number, database=database)

    def mend_after_damage(self) -> None:
        """A repair has been here: a pack of several segments, its index, and what was set aside."""
        whole = self.store.copy()
        for name, start in self._first_blobs():
            data = bytearray(self.store.objects[name])
            data[start + 9] ^= 1
            self.store.objects[name] = bytes(data)
        keys = self.repository.keys
        report = repair_repository(
            self.store,
            keys,
            segment_keys=keys,
            signing_key=self.repository.signing_key,
            clock=self.repository.clock,
            sources=[whole],
            workers=1,
            randomness=self.repository.randomness,
        )
        assert report.after.is_clean, report.left
        assert report.new_packs
        assert report.set_aside

    def _first_blobs(self) -> Iterator[tuple[str, int]]:
        """Of two packs."""
        for digest, length in list(stored_packs(self.store).items())[:2]:
            footer, _, _ = read_plain_footer(self.store, digest, length=length)
            yield pack_name(digest), footer.blobs[0].offset

    def check(self, store: ObjectStore) -> CheckReport:
        """The product's word."""
        keys = self.repository.keys
        names = [each.point.name for each in self.originals]
        return check_data(store, keys, segment_keys=keys, expected_points=names, workers=1)

    def lost(self, store: ObjectStore) -> Lost:
        """The oracle's word. No wrong byte may come back, whatever was damaged."""
        blocks: set[tuple[str, int]] = set()
        blobs: set[tuple[str, str]] = set()
        index: RepositoryIndex | None = None
        for lineage in dict.fromkeys(each.lineage for each in self.originals):
            mine = [each for each in self.originals if each.lineage == lineage]
            try:
                with self.repository.reader(lineage, store=store, index=index) as reader:
                    index = reader.index
                    for original in mine:
                        name = original.point.name
                        try:
                            point = reader.load_point(original.point.point_id)
                            source = reader.open_disk(point, DEVICE_KEY)
                        except HoldfastError:
                            blocks |= {(name, n) for n in _blocks(original.image)}
                            blobs |= {(name, kind) for kind in original.blobs}
                            continue
                        blocks |= {(name, n) for n in _lost_blocks(source, original.image)}
                        for kind, data in original.blobs.items():
                            try:
                                found = reader.blob(point, kind)
                            except HoldfastError:
                                blobs.add((name, kind))
                                continue
                            assert found == data, "a wrong byte of a blob came back"
            except HoldfastError:
                blocks |= {(o.point.name, n) for o in mine for n in _blocks(o.image)}
                blobs |= {(o.point.name, kind) for o in mine for kind in o.blobs}
        return Lost(frozenset(blocks), frozenset(blobs))

    def reported(self, report: CheckReport) -> Lost:
        """The same from check's report."""
        blocks = {
            (item.point_name, block)
            for item in report.lost_ranges
            for block in range(item.extent.offset // BLOCK, -(-item.extent.end // BLOCK))
        }
        blobs = {(item.point_name, item.kind) for item in report.lost_blobs}
        for each in self.originals:
            if each.point.name in report.lost_points:
                blocks |= {(each.point.name, n) for n in _blocks(each.image)}
                blobs |= {(each.point.name, kind) for kind in each.blobs}
        return Lost(frozenset(blocks), frozenset(blobs))

    def opens(self, store: ObjectStore) -> bool:
        """Whether the recovery sheet still opens it; as another repository it may never open."""
        keys = self.repository.keys
        try:
            opened = open_repository(store, RecoveryUnlock(self.repository.sheet))
        except HoldfastError:
            return False
        assert opened.common.id_key == keys.common.id_key, "another repository was opened"
        return True


def _blocks(image: bytes) -> range:
    return range(-(-len(image) // BLOCK))


def _lost_blocks(source: PointDiskSource, image: bytes) -> Iterator[int]:
    """A window that comes back whole is its blocks; of any other each block is read by itself."""
    for start in range(0, len(image), FRAME_BYTES):
        window = image[start : start + FRAME_BYTES]
        if _matches(source, start, window):
            continue
        for offset in range(start, start + len(window), BLOCK):
            if not _matches(source, offset, image[offset : offset + BLOCK]):
                yield offset // BLOCK


def _matches(source: PointDiskSource, offset: int, wanted: bytes) -> bool:
    buffer = bytearray(len(wanted))
    try:
        source.read_into(offset, memoryview(buffer))
    except HoldfastError:
        return False
    assert buffer == wanted, "a wrong byte came back"
    return True


@cache
def first_world() -> World:
    """Two VMs: fulls, incrementals, blobs, zeros, an odd end; a fence, a proof, a merged list of points."""
    store = MemoryStore()
    world = World(new_repository(store, seed="first world"), store)
    rng = random.Random(7)
    image = patterned(22 * BLOCK + 1024, "image")
    image[9 * BLOCK : 12 * BLOCK] = bytes(3 * BLOCK)
    world.back_up(image, blobs={"vmx": b"first", "nvram": rng.randbytes(8684)})
    for generation in range(3):
        changed = sorted(rng.sample(range(23), 4))
        for number in changed:
            length = min(BLOCK, len(image) - number * BLOCK)
            image[number * BLOCK : number * BLOCK + length] = rng.randbytes(length)
        point = world.back_up(image, changed=changed, blobs={"vmx": f"vmx {generation}".encode()})
        if generation == 1:
            world.close_epoch(1)
            world.prove(world.originals[0].point)
    other = patterned(5 * BLOCK, "other")
    world.back_up(other, lineage=OTHER)
    other[2 * BLOCK : 3 * BLOCK] = bytes(BLOCK)
    world.back_up(other, lineage=OTHER, compare=True)
    world.prove(point)
    world.copy_the_controller()
    return world


@cache
def second_world() -> World:
    """Three VMs of two writers, one of them retired; a sparse disk with inner pages; two fences, a repair."""
    store = MemoryStore()
    world = World(new_repository(store, seed="second world"), store)
    second_key = Ed25519PrivateKey.from_private_bytes(b"second writer of the second one!")
    authorise(world.repository, second_key, agent_id="proxy-2")
    rng = random.Random(8)
    sparse = bytearray(258 * BLOCK + 512)
    for number in (0, 1, 40, 255, 256, 258):
        length = min(BLOCK, len(sparse) - number * BLOCK)
        sparse[number * BLOCK : number * BLOCK + length] = rng.randbytes(length)
    world.back_up(sparse, blobs={"vmx": b"sparse", "ovf": b"<Envelope/>" * 50})
    same = patterned(7 * BLOCK, "same content")
    world.back_up(same, lineage=OTHER, signing_key=second_key)
    world.close_epoch(1)
    # the same content again by another writer, who stores it for himself: two copies of each chunk
    world.back_up(same, lineage=THIRD)
    for number in (1, 200, 258):
        length = min(BLOCK, len(sparse) - number * BLOCK)
        sparse[number * BLOCK : number * BLOCK + length] = rng.randbytes(length)
    world.back_up(
        sparse, changed=[1, 200, 258], blobs={"vmx": b"sparse", "ovf": b"<Envelope/>" * 9}
    )
    world.close_epoch(2)
    world.prove(*(each.point for each in world.originals))
    world.repository.keys.revoke_writer(
        store,
        second_key.public_key().public_bytes_raw(),
        clock=world.repository.clock,
        keep_existing=True,
    )
    same[3 * BLOCK : 4 * BLOCK] = rng.randbytes(BLOCK)
    world.back_up(same, lineage=THIRD, changed=[3])
    world.prove(world.originals[-1].point)
    world.mend_after_damage()
    world.copy_the_controller()
    return world


@cache
def third_world() -> World:
    """After a prune, with a backup behind it."""
    store = MemoryStore()
    world = World(new_repository(store, seed="third world"), store)
    store.now = world.repository.clock.now
    pruner = Pruner.of(world.repository)
    rng = random.Random(9)
    image = bytearray(rng.randbytes(20 * BLOCK))
    world.back_up(image, blobs={"vmx": b"third"})
    for changed in ([2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], [13, 17]):
        for number in changed:
            image[number * BLOCK : (number + 1) * BLOCK] = rng.randbytes(BLOCK)
        world.back_up(image, changed=changed, blobs={"vmx": b"third"})
    forget(world.repository, world.originals.pop(0).point)
    pruner.until_done()
    image[:BLOCK] = rng.randbytes(BLOCK)
    point = world.back_up(image, changed=[0], blobs={"vmx": b"behind"})
    world.prove(point)
    world.copy_the_controller()
    return world


@cache
def fourth_world() -> World:
    """Pruned and then repacked block by block: frames without their dead blocks, and a backup on them."""
    store = MemoryStore()
    world = World(new_repository(store, seed="fourth world"), store)
    store.now = world.repository.clock.now
    pruner = Pruner.of(world.repository)
    rng = random.Random(10)
    image = bytearray(rng.randbytes(19 * BLOCK + 512))
    world.back_up(image, blobs={"vmx": b"fourth"})
    for changed in ([1, 2, 3, 9, 12, 17], [2, 4, 5, 19]):
        for number in changed:
            length = min(BLOCK, len(image) - number * BLOCK)
            image[number * BLOCK : number * BLOCK + length] = rng.randbytes(length)
        world.back_up(image, changed=changed, blobs={"vmx": b"fourth"})
    forget(world.repository, world.originals.pop(0).point)
    pruner.until_done()
    assert hollow_out(world.repository, pruner) >= 2
    image[:BLOCK] = rng.randbytes(BLOCK)
    point = world.back_up(image, changed=[0], blobs={"vmx": b"behind"})
    world.prove(point)
    world.copy_the_controller()
    return world


WORLDS = (first_world, second_world, third_world, fourth_world)
