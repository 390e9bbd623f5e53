"""Damage of every kind to every kind of object: found, and what is lost by it is said exactly."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache

import pytest

from holdfast_common.errors import HoldfastError
from holdfast_common.repository.check import (
    CheckReport,
    Subset,
    check_data,
    check_structure,
    scrub,
)
from holdfast_common.repository.fence import Fence, store_fence
from holdfast_common.repository.layout import pack_name
from holdfast_common.repository.points import Point
from holdfast_common.repository.proof import store_proof
from support.memory_store import MemoryStore
from support.repositories import (
    BLOCK,
    DEVICE_KEY,
    LINEAGE,
    Repository,
    new_repository,
    patterned,
)

OTHER = "vcenter-1/other-vm"


class World:
    """Two VMs, incrementals, blobs, a fence, a proof, leases; and what every point must be."""

    def __init__(self, seed: str = "check") -> None:
        self.store = MemoryStore()
        self.repository: Repository = new_repository(self.store, seed=seed)
        self.points: list[tuple[Point, bytes, str]] = []
        rng = random.Random(7)
        image = patterned(40 * BLOCK + 1024, "image")
        image[9 * BLOCK : 12 * BLOCK] = bytes(3 * BLOCK)
        self.add(self.repository.backup(image, blobs={"vmx": b"first"}), image, LINEAGE)
        for generation in range(3):
            blocks = sorted(rng.sample(range(40), 6))
            for block in blocks:
                image[block * BLOCK : (block + 1) * BLOCK] = rng.randbytes(BLOCK)
            point = self.repository.backup(
                image,
                ranges=[(block * BLOCK, BLOCK) for block in blocks],
                previous=self.points[-1][0].disks[0],
                blobs={"vmx": f"vmx {generation}".encode()},
            )
            self.add(point, image, LINEAGE)
            if generation == 1:
                store_fence(
                    self.store,
                    Fence(
                        closed_epoch=1,
                        closed_at="",
                        census={p.name: p.digest for p, _, _ in self.points},
                    ),
                    keys=self.repository.keys.common,
                    signing_key=self.repository.signing_key,
                )
        other = patterned(5 * BLOCK, "other")
        self.add(self.repository.backup(other, lineage=OTHER), other, OTHER)
        store_proof(
            self.store,
            point.manifest.packs,
            proven_at="",
            keys=self.repository.keys.common,
            signing_key=self.repository.signing_key,
        )

    def add(self, point: Point, image: bytes | bytearray, lineage: str) -> None:
        self.points.append((point, bytes(image), lineage))

    def check(self, store: MemoryStore) -> CheckReport:
        keys = self.repository.keys
        names = [point.name for point, _, _ in self.points]
        return check_data(store, keys, segment_keys=keys, expected_points=names)

    def lost(self, store: MemoryStore) -> set[tuple[str, int]]:
        """The oracle: (point, block) that cannot be read back, every block read by itself.

        No wrong byte may come back, whatever was damaged.
        """
        lost: set[tuple[str, int]] = set()
        for point, image, lineage in self.points:
            blocks = range(0, len(image), BLOCK)
            try:
                with self.repository.reader(lineage, store=store) as reader:
                    source = reader.open_disk(reader.load_point(point.point_id), DEVICE_KEY)
                    for offset in blocks:
                        buffer = bytearray(min(BLOCK, len(image) - offset))
                        try:
                            source.read_into(offset, memoryview(buffer))
                        except HoldfastError:
                            lost.add((point.name, offset // BLOCK))
                            continue
                        assert buffer == image[offset : offset + BLOCK], "a wrong byte came back"
            except HoldfastError:
                lost |= {(point.name, offset // BLOCK) for offset in blocks}
        return lost

    def reported(self, report: CheckReport) -> set[tuple[str, int]]:
        """The same from check's report."""
        found = {
            (item.point_name, block)
            for item in report.lost_ranges
            for block in range(item.extent.offset // BLOCK, -(-item.extent.end // BLOCK))
        }
        for point, image, _ in self.points:
            if point.name in report.lost_points:
                found |= {(point.name, block) for block in range(-(-len(image) // BLOCK))}
        return found


@cache
def world() -> World:
    return World()


def flip(data: bytes, rng: random.Random) -> bytes:
    position = rng.randrange(len(data))
    return data[:position] + bytes([data[position] ^ 1 << rng.randrange(8)]) + data[position + 1 :]


def zero(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(max(1, len(data) - 100))
    length = min(4096, len(data) - start)
    return data[:start] + bytes(length) + data[start + length :]


def truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "flip": flip,
    "zero": zero,
    "truncate": truncate,
}
PREFIXES = ["keys", "writers", "packs", "index", "maps", "points", "fences", "leases", "proofs"]


def names_of(prefix: str) -> list[str]:
    return [info.name for info in world().store.list(f"{prefix}/")]


def damaged_store(name: str, kind: str, seed: int) -> MemoryStore | None:
    """None when that damage does not change the object."""
    rng = random.Random(f"{name} {kind} {seed}")
    store = world().store.copy()
    original = store.objects[name]
    if kind == "remove":
        del store.objects[name]
        return store
    if kind == "swap":
        others = [
            other
            for other in names_of(name.split("/", maxsplit=1)[0])
            if store.objects[other] != original
        ]
        if not others:
            return None
        other = rng.choice(others)
        store.objects[name], store.objects[other] = store.objects[other], original
        return store
    changed = DAMAGES[kind](original, rng)
    if changed == original:
        return None
    store.objects[name] = changed
    return store


def test_a_whole_repository_is_clean() -> None:
    report = world().check(world().store)
    assert report.is_clean, report
    assert report.points == 5
    assert report.packs == report.packs_decoded == len(report.proven_packs)
    assert check_structure(world().store, world().repository.keys).is_clean
    assert scrub(world().store) == []
    assert world().lost(world().store) == set()


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("kind", [*DAMAGES, "swap", "remove"])
def test_all_damage_is_found_and_its_loss_said_exactly(prefix: str, kind: str) -> None:
    tried = 0
    for name in names_of(prefix)[: 4 if prefix == "leases" else None]:
        for seed in range(2 if kind in DAMAGES else 1):
            store = damaged_store(name, kind, seed)
            if store is None:
                continue
            if kind == "remove" and prefix in ("leases", "proofs", "fences"):
                # nothing refers to them: a lease or proof that is gone is like one that never was; of the
                # fences the highest one is found by points of a later epoch
                assert world().lost(store) == set()
                continue
            tried += 1
            report = world().check(store)
            assert not report.is_clean, (name, kind, seed)
            assert world().reported(report) == world().lost(store), (name, kind, seed, report)
    alone = (
        ("leases", "proofs", "fences")
        if kind == "remove"
        else ("keys", "writers", "fences", "proofs")
    )
    assert tried or (kind in ("remove", "swap") and prefix in alone), "an empty cell proves nothing"


def test_a_removed_fence_is_missed_by_the_points_behind_it() -> None:
    store = world().store.copy()
    del store.objects["fences/0000000001"]
    report = world().check(store)
    assert [item.name for item in report.damaged] == ["fences/0000000001"]


def test_structure_finds_missing_and_truncated_packs_without_reading_data() -> None:
    for kind in ("remove", "truncate"):
        for name in names_of("packs"):
            store = damaged_store(name, kind, 0)
            assert store is not None
            report = check_structure(store, world().repository.keys)
            assert name in {item.name for item in report.damaged}


def test_a_scrub_needs_no_key_and_names_the_blobs_that_are_hit() -> None:
    point = world().points[0][0]
    name = pack_name(point.manifest.packs[0])
    store = world().store.copy()
    data = bytearray(store.objects[name])
    data[2000] ^= 1
    store.objects[name] = bytes(data)
    (found,) = scrub(store)
    assert found.name == name
    assert "blobs hit: 0" in found.reason
    for kind in (*DAMAGES, "swap"):
        for pack in names_of("packs"):
            broken = damaged_store(pack, kind, 1)
            assert broken is not None
            assert pack in {item.name for item in scrub(broken)}


def test_subsets_cover_every_pack_once() -> None:
    keys = world().repository.keys
    decoded = 0
    for number in (1, 2, 3):
        report = check_data(
            world().store, keys, segment_keys=keys, subset=Subset(number=number, of=3)
        )
        assert report.is_clean
        decoded += report.packs_decoded
    assert decoded == report.packs
    with pytest.raises(HoldfastError):
        Subset(number=4, of=3)


def test_a_chunk_with_a_second_good_copy_is_not_lost() -> None:
    """Two writers stored the same frames, each for itself; one copy rots."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from support.repositories import authorise

    store = MemoryStore()
    repository = new_repository(store)
    image = patterned(4 * BLOCK, "twice")
    first = repository.backup(image)
    key = Ed25519PrivateKey.generate()
    authorise(repository, key, agent_id="proxy-2")
    repository.backup(image, signing_key=key, lineage=OTHER)
    name = pack_name(first.manifest.packs[0])
    for damaged in (store.objects[name][:1000], flip(store.objects[name][:-400], random.Random(1))):
        broken = store.copy()
        broken.objects[name] = damaged + store.objects[name][len(damaged) :]
        if len(damaged) == 1000:
            broken.objects[name] = damaged
        report = check_data(broken, repository.keys, segment_keys=repository.keys)
        assert not report.is_clean
        assert not report.lost_ranges
        assert repository.restored(first, store=broken) == image
