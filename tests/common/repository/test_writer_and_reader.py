from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_common.errors import (
    HoldfastError,
    IntegrityError,
    NotFound,
    ObjectExists,
    ObjectMissing,
    ShortRead,
    UsageError,
)
from holdfast_common.extents import Extent
from holdfast_common.identity import PointId
from holdfast_common.repository.check import check_data
from holdfast_common.repository.directory_store import DirectoryStore
from holdfast_common.repository.key_sets import LineageKeyRing
from holdfast_common.repository.layout import (
    BLOCKS_PER_LEAF,
    LEAF_BYTES,
    BlobKind,
    pack_name,
)
from holdfast_common.repository.manifest import Manifest, ManifestFacts
from holdfast_common.repository.pack_writer import CompletePack, PackWriter
from holdfast_common.repository.points import find_job_point, list_points
from holdfast_common.repository.proof import store_proof
from holdfast_common.repository.reader import verify_extents
from holdfast_common.units import GIB, MIB, TIB
from support.memory_store import MemoryStore
from support.repositories import (
    BLOCK,
    DEVICE_KEY,
    LINEAGE,
    Repository,
    authorise,
    disk_header,
    new_repository,
    patterned,
    total,
)

ODD = 5 * MIB + 3 * 512


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture(params=[0, 3], ids=["one thread", "three workers"])
def repository(request: pytest.FixtureRequest, store: MemoryStore) -> Repository:
    return new_repository(store, workers=request.param)


def stored_bytes(store: MemoryStore) -> int:
    return sum(len(data) for name, data in store.objects.items() if name.startswith("packs/"))


def changed(image: bytes | bytearray, blocks: list[int], seed: str) -> bytearray:
    result = bytearray(image)
    for block in blocks:
        start = block * BLOCK
        end = min(start + BLOCK, len(image))
        result[start:end] = patterned(end - start, f"{seed} {block}")
    return result


def ranges(blocks: list[int], capacity: int) -> list[tuple[int, int]]:
    return [(b * BLOCK, min(BLOCK, capacity - b * BLOCK)) for b in blocks]


def test_a_disk_comes_back_with_its_holes_and_its_odd_end(repository: Repository) -> None:
    image = patterned(ODD, "image")
    image[BLOCK : 20 * BLOCK] = bytes(19 * BLOCK)
    point = repository.backup(image, blobs={"vmx": b"config", "nvram": bytes(3 * MIB) + b"end"})
    assert repository.restored(point) == image
    with repository.reader() as reader:
        assert reader.blob(point, "vmx") == b"config"
        assert reader.blob(point, "nvram") == bytes(3 * MIB) + b"end"
        source = reader.open_disk(point, DEVICE_KEY)
        assert source.capacity_bytes == ODD
        assert source.allocated() == [
            Extent(offset=0, length=BLOCK),
            Extent(offset=20 * BLOCK, length=ODD - 20 * BLOCK),
        ]
    summary = point.disks[0].summary
    assert summary.zero_bytes == 19 * BLOCK
    assert summary.received_bytes == ODD


def test_any_range_can_be_read_in_any_order(repository: Repository) -> None:
    image = patterned(ODD, "image")
    image[2 * MIB : 3 * MIB] = bytes(MIB)
    point = repository.backup(image)
    with repository.reader() as reader:
        source = reader.open_disk(point, DEVICE_KEY)
        for offset, length in [
            (ODD - 512, 512),
            (0, 512),
            (MIB - 512, 1024),
            (3 * MIB - 5, 10),
            (0, ODD),
            (512, 0),
            (2 * MIB, MIB),
        ]:
            buffer = bytearray(length)
            source.read_into(offset, memoryview(buffer))
            assert buffer == image[offset : offset + length], (offset, length)
        with pytest.raises(ShortRead):
            source.read_into(ODD - 512, memoryview(bytearray(513)))
        source.close()
        source.close()


def test_an_incremental_stores_only_what_changed_and_every_point_is_whole(
    repository: Repository, store: MemoryStore
) -> None:
    first_image = patterned(40 * MIB, "image")
    first = repository.backup(first_image)
    before = stored_bytes(store)
    blocks = [0, 17, 18, 300, 639]
    second_image = changed(first_image, blocks, "second")
    second_image[17 * BLOCK : 18 * BLOCK] = bytes(BLOCK)
    second = repository.backup(
        second_image, ranges=ranges(blocks, len(second_image)), previous=first.disks[0]
    )
    assert stored_bytes(store) - before < 5 * BLOCK + 20_000
    assert second.disks[0].summary.received_bytes == 5 * BLOCK
    assert repository.restored(first) == first_image
    assert repository.restored(second) == second_image


def test_ranges_that_became_zero_leave_the_map(repository: Repository) -> None:
    image = patterned(70 * MIB, "image")
    first = repository.backup(image)
    with repository.writer() as writer:
        disk = writer.begin_disk(disk_header(len(image)), previous=first.disks[0])
        disk.write(0, image[:BLOCK])
        disk.zero(BLOCK, 40 * MIB)
        disk.write(41 * MIB, image[41 * MIB : 41 * MIB + BLOCK])
        disk.zero(60 * MIB, 10 * MIB)
        disk.finish()
        prepared = writer.prepare(ManifestFacts())
        writer.publish(prepared, repository.grant(prepared))
    image[BLOCK : BLOCK + 40 * MIB] = bytes(40 * MIB)
    image[60 * MIB :] = bytes(10 * MIB)
    with repository.reader() as reader:
        second = reader.load_point(prepared.point_id)
    assert repository.restored(second) == image


@pytest.mark.timeout(60)
def test_a_window_that_zeros_cut_in_two_is_written_by_several_workers(tmp_path: Path) -> None:
    image = patterned(8 * MIB, "image")
    with DirectoryStore.create(tmp_path / "repository") as made:
        repository = new_repository(made, workers=3)
        first = repository.backup(image)
        with repository.writer() as writer:
            disk = writer.begin_disk(disk_header(len(image)), previous=first.disks[0])
            for window in range(8):
                start = window * MIB
                changed = patterned(MIB, f"changed {window}")
                disk.write(start, changed[: 2 * BLOCK])
                disk.zero(start + 2 * BLOCK, BLOCK)
                disk.write(start + 3 * BLOCK, changed[3 * BLOCK : 5 * BLOCK])
                image[start : start + 2 * BLOCK] = changed[: 2 * BLOCK]
                image[start + 2 * BLOCK : start + 3 * BLOCK] = bytes(BLOCK)
                image[start + 3 * BLOCK : start + 5 * BLOCK] = changed[3 * BLOCK : 5 * BLOCK]
            disk.finish()
            prepared = writer.prepare(ManifestFacts())
            writer.publish(prepared, repository.grant(prepared))
        with repository.reader() as reader:
            assert repository.restored(reader.load_point(prepared.point_id)) == image


def test_a_disk_of_zeros_has_no_map(repository: Repository, store: MemoryStore) -> None:
    point = repository.backup(bytes(3 * MIB))
    assert point.disks[0].summary.root is None
    assert not list(store.list("packs/"))
    assert not list(store.list("maps/"))
    assert repository.restored(point) == bytes(3 * MIB)


def test_frames_that_are_known_are_not_stored_again(
    repository: Repository, store: MemoryStore
) -> None:
    image = patterned(4 * MIB, "image")
    repository.backup(image)
    before = stored_bytes(store)
    again = repository.backup(image)
    assert stored_bytes(store) == before
    assert again.disks[0].summary.known_bytes == len(image)
    twice = patterned(MIB, "twice")
    point = repository.backup(twice * 6)
    assert point.disks[0].summary.known_bytes == 5 * MIB
    assert repository.restored(point) == twice * 6


def test_another_writers_frames_are_known_only_when_a_verifier_proved_them(
    repository: Repository, store: MemoryStore
) -> None:
    image = patterned(4 * MIB, "image")
    first = repository.backup(image)
    other = Ed25519PrivateKey.generate()
    authorise(repository, other, agent_id="proxy-2")
    second = repository.backup(image, signing_key=other, lineage="vcenter-1/other")
    assert second.disks[0].summary.known_bytes == 0
    third = Ed25519PrivateKey.generate()
    authorise(repository, third, agent_id="proxy-3")
    store_proof(
        store,
        first.manifest.packs,
        proven_at="",
        keys=repository.keys.common,
        signing_key=other,  # nobody vouches for what he wrote himself
    )
    proven = repository.backup(image, signing_key=third, lineage="vcenter-1/third")
    assert proven.disks[0].summary.known_bytes == len(image)
    assert repository.restored(proven, lineage="vcenter-1/third") == image


def test_a_full_read_keeps_blocks_that_equal_the_previous_point(
    repository: Repository, store: MemoryStore
) -> None:
    image = patterned(33 * MIB, "image")
    image[5 * MIB : 6 * MIB] = bytes(MIB)
    first = repository.backup(image)
    before = stored_bytes(store)
    blocks = [3, 90, 91, 520]
    second_image = changed(image, blocks, "scan")
    second_image[200 * BLOCK : 201 * BLOCK] = bytes(BLOCK)
    second = repository.backup(second_image, previous=first.disks[0], compare=True)
    summary = second.disks[0].summary
    assert (
        summary.unchanged_bytes == len(image) - (4 + 14 + 1) * BLOCK
    )  # new, still zero, became zero
    assert summary.new_bytes == 4 * BLOCK
    assert stored_bytes(store) - before < 5 * BLOCK
    assert repository.restored(second) == second_image
    third = repository.backup(second_image, previous=second.disks[0], compare=True)
    assert third.disks[0].summary.root == second.disks[0].summary.root


def test_the_order_and_alignment_of_ranges_are_held(repository: Repository) -> None:
    with repository.writer() as writer:
        disk = writer.begin_disk(disk_header(ODD))
        disk.write(BLOCK, bytes(BLOCK))
        for offset, length in [(0, BLOCK), (3 * BLOCK, 512), (3 * BLOCK + 512, BLOCK), (ODD, 512)]:
            with pytest.raises(UsageError):
                disk.write(offset, bytes(length))
        with pytest.raises(UsageError):
            disk.zero(0, BLOCK)
        disk.write(ODD // BLOCK * BLOCK, bytes(ODD % BLOCK))
        with pytest.raises(UsageError):
            writer.prepare(ManifestFacts())


def test_a_disk_of_another_size_or_vm_is_not_built_on(repository: Repository) -> None:
    point = repository.backup(patterned(MIB, "image"))
    with repository.writer() as writer, pytest.raises(UsageError):
        writer.begin_disk(disk_header(2 * MIB), previous=point.disks[0])
    with repository.writer(lineage="another vm") as writer, pytest.raises(UsageError):
        writer.begin_disk(disk_header(MIB), previous=point.disks[0])


def test_disks_may_be_written_side_by_side(repository: Repository) -> None:
    images = {key: patterned(9 * MIB, str(key)) for key in (2000, 2001, 2016)}
    with repository.writer() as writer:

        def write(key: int) -> None:
            disk = writer.begin_disk(disk_header(9 * MIB, device_key=key))
            for offset in range(0, 9 * MIB, 256 * 1024):
                disk.write(offset, memoryview(images[key])[offset : offset + 256 * 1024])
            disk.finish()

        if repository.workers:
            threads = [threading.Thread(target=write, args=(key,)) for key in images]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        else:
            for key in images:
                write(key)
        prepared = writer.prepare(ManifestFacts())
        writer.publish(prepared, repository.grant(prepared))
    with repository.reader() as reader:
        point = reader.load_point(prepared.point_id)
    for key, image in images.items():
        assert repository.restored(point, device_key=key) == image


def test_many_disks_may_be_written_in_turns_by_one_thread(repository: Repository) -> None:
    images = {key: patterned(2 * MIB, str(key)) for key in range(2000, 2012)}
    with repository.writer() as writer:
        disks = {key: writer.begin_disk(disk_header(2 * MIB, device_key=key)) for key in images}
        for offset in range(0, 2 * MIB, 4 * BLOCK):
            for key, disk in disks.items():
                disk.write(offset, memoryview(images[key])[offset : offset + 4 * BLOCK])
        for disk in disks.values():
            disk.finish()
        prepared = writer.prepare(ManifestFacts())
        writer.publish(prepared, repository.grant(prepared))
    with repository.reader() as reader:
        point = reader.load_point(prepared.point_id)
    for key, image in images.items():
        assert repository.restored(point, device_key=key) == image


def test_a_repository_in_a_directory_is_written_and_read_by_threads(tmp_path: Path) -> None:
    image = patterned(20 * MIB + 512, "directory")
    with DirectoryStore.create(tmp_path / "repository") as made:
        writing = new_repository(made, workers=3)
        first = writing.backup(image, blobs={"vmx": b"x"})
        image[MIB : 2 * MIB] = patterned(MIB, "changed")
        second = writing.backup(image, ranges=[(MIB, MIB)], previous=first.disks[0])
        keys = writing.keys
    with DirectoryStore.open(tmp_path / "repository") as opened:
        reading = replace(writing, store=opened)
        assert reading.restored(second) == image
        assert check_data(opened, keys, segment_keys=keys).is_clean
        assert not list((tmp_path / "repository" / "tmp").iterdir())


def test_an_abandoned_attempt_leaves_no_temporary_file(tmp_path: Path) -> None:
    with DirectoryStore.create(tmp_path / "repository") as made:
        writing = new_repository(made, workers=2)
        with writing.writer() as writer:
            disk = writer.begin_disk(disk_header(64 * MIB))
            disk.write(0, patterned(20 * MIB, "x"))
        assert not list((tmp_path / "repository" / "tmp").iterdir())
        assert not list(made.list("packs/"))


def test_a_frame_that_lost_its_dead_blocks_is_still_read(
    repository: Repository, store: MemoryStore
) -> None:
    """As a pruner may leave it that wants space: blocks 1 and 2 of 4 were dead; the id stays."""
    old = patterned(4 * BLOCK, "old")
    first = repository.backup(old)
    image = bytearray(old)
    image[BLOCK : 3 * BLOCK] = patterned(2 * BLOCK, "new")
    second = repository.backup(image, ranges=[(BLOCK, 2 * BLOCK)], previous=first.disks[0])
    with repository.reader() as reader:
        frame = reader.open_disk(first, DEVICE_KEY)._leaf(0)
        assert frame is not None
        chunk_id = frame.ids[0]
        assert chunk_id is not None
        location = reader.index.find(chunk_id)
        assert location is not None
        digests = reader.index.digests(location)
    for name in [name for name in store.objects if name.startswith("index/")]:
        del store.objects[name]
    del store.objects[pack_name(location.origin.pack.digest)]
    keys = repository.keys.writer_keys(LINEAGE)
    done: list[CompletePack] = []
    packs = PackWriter(store, keys, randomness=repository.randomness, finished=done.append)
    present = bytes(old[:BLOCK] + old[3 * BLOCK :])
    sealer = packs.sealer(len(present) + 16)
    binding = sealer.next_binding(
        kind=BlobKind.DISK_FRAME, chunk_id=chunk_id, plain_length=len(present)
    )
    sealer.cipher.seal_into(present, binding, packs.room(len(present) + 16))
    packs.append(
        number=0,
        stored_length=len(present) + 16,
        chunk_id=chunk_id,
        kind=BlobKind.DISK_FRAME,
        plain_length=len(present),
        digests=digests,
        presence=0b1001,
    )
    packs.close()
    done[0].commit()
    assert repository.restored(second) == image
    # What still needs those blocks gets an error, never zeros:
    with pytest.raises(IntegrityError, match="taken out"):
        repository.restored(first)
    # It is never taken for the whole frame:
    again = repository.backup(old)
    assert again.disks[0].summary.known_bytes == 0
    assert repository.restored(again) == old


def test_nothing_is_visible_before_the_manifest(repository: Repository, store: MemoryStore) -> None:
    with repository.writer() as writer:
        disk = writer.begin_disk(disk_header(MIB))
        disk.write(0, patterned(MIB, "image"))
        disk.finish()
        writer.prepare(ManifestFacts())
        assert not list_points(store, repository.keys).points
    assert not list(store.list("points/"))


def test_an_abandoned_attempt_is_no_point_and_its_packs_are_found_by_the_next(
    repository: Repository, store: MemoryStore
) -> None:
    image = patterned(4 * MIB, "image")
    writer = repository.writer()
    disk = writer.begin_disk(disk_header(len(image)))
    disk.write(0, image[: 3 * MIB])
    disk.write(3 * MIB, image[3 * MIB : 3 * MIB + BLOCK])
    writer.suspend()
    assert not list_points(store, repository.keys).points
    point = repository.backup(image, attempt=2)
    assert point.disks[0].summary.known_bytes == 3 * MIB
    assert repository.restored(point) == image


def test_a_job_makes_one_point(repository: Repository, store: MemoryStore) -> None:
    job = repository.new_job()
    first = repository.backup(patterned(MIB, "one"), job_id=job, attempt=1)
    with pytest.raises(ObjectExists):
        repository.backup(patterned(MIB, "two"), job_id=job, attempt=2)
    found = find_job_point(store, repository.keys.reader_keys(LINEAGE), job)
    assert found == first
    assert find_job_point(store, repository.keys.reader_keys(LINEAGE), "JOB-never") is None


def test_publishing_twice_is_harmless(repository: Repository) -> None:
    with repository.writer() as writer:
        writer.begin_disk(disk_header(MIB)).finish()
        prepared = writer.prepare(ManifestFacts())
        grant = repository.grant(prepared)
        assert writer.publish(prepared, grant) == writer.publish(prepared, grant)
    with repository.reader() as reader:
        assert len(reader.points()) == 1


def test_a_grant_for_anything_else_publishes_nothing(
    repository: Repository, store: MemoryStore
) -> None:
    with repository.writer() as writer:
        writer.begin_disk(disk_header(MIB)).finish()
        prepared = writer.prepare(ManifestFacts())
        good = repository.grant(prepared)
        keys = repository.keys
        job = prepared.manifest.job_id
        digest = prepared.manifest_digest
        for wrong in (
            b"",
            good[:-1],
            bytes([good[0] ^ 1]) + good[1:],
            keys.commit_grant(
                job_id="other", attempt=1, manifest_digest=digest, controller_epoch=1
            ),
            keys.commit_grant(job_id=job, attempt=2, manifest_digest=digest, controller_epoch=1),
            keys.commit_grant(job_id=job, attempt=1, manifest_digest=bytes(32), controller_epoch=1),
        ):
            with pytest.raises(IntegrityError):
                writer.publish(prepared, wrong)
    assert not list(store.list("points/"))


def test_a_pack_that_vanished_behind_the_index_stops_the_commit(
    repository: Repository, store: MemoryStore
) -> None:
    """What a stale cache says exists may be gone: an incremental refers to it, and must not commit."""
    image = patterned(4 * MIB, "image")
    first = repository.backup(image)
    writer = repository.writer()
    disk = writer.begin_disk(disk_header(len(image)), previous=first.disks[0])
    disk.write(0, patterned(BLOCK, "new"))
    disk.finish()
    del store.objects[next(iter(store.list("packs/"))).name]
    with pytest.raises(ObjectMissing):
        writer.prepare(ManifestFacts())
    writer.abandon()
    assert len(list_points(store, repository.keys).points) == 1


def test_a_pack_that_vanished_and_is_not_needed_does_not(
    repository: Repository, store: MemoryStore
) -> None:
    other = repository.backup(patterned(MIB, "other"))
    image = patterned(4 * MIB, "image")
    first = repository.backup(image)
    for digest in other.manifest.packs:
        del store.objects[pack_name(digest)]
    second = repository.backup(image, ranges=[(0, BLOCK)], previous=first.disks[0])
    assert repository.restored(second) == image


def test_an_index_that_was_pruned_behind_a_writer_stops_the_commit(
    repository: Repository, store: MemoryStore
) -> None:
    image = patterned(4 * MIB, "image")
    first = repository.backup(image)
    writer = repository.writer()
    disk = writer.begin_disk(disk_header(len(image)))
    disk.write(0, image)
    disk.finish()
    for name in [name for name in store.objects if name.startswith(("index/", "packs/"))]:
        del store.objects[name]
    del store.objects[first.name]
    with pytest.raises(ObjectMissing):
        writer.prepare(ManifestFacts())
    writer.abandon()


def test_a_proxys_index_can_be_kept_between_jobs(
    repository: Repository, store: MemoryStore
) -> None:
    from holdfast_common.repository.repository_index import RepositoryIndex

    kept = RepositoryIndex(store, repository.keys.common)
    image = patterned(2 * MIB, "image")
    for expected in (0, 2 * MIB):
        with repository.writer(index=kept) as writer:
            disk = writer.begin_disk(disk_header(len(image)))
            disk.write(0, image)
            assert disk.finish().known_bytes == expected
            prepared = writer.prepare(ManifestFacts())
            writer.publish(prepared, repository.grant(prepared))


def test_a_huge_sparse_disk_costs_what_is_on_it(repository: Repository, store: MemoryStore) -> None:
    header = disk_header(64 * TIB)
    data = patterned(BLOCK, "far")
    places = [0, 3 * TIB + 5 * BLOCK, 64 * TIB - BLOCK]
    with repository.writer() as writer:
        disk = writer.begin_disk(header)
        for place in places:
            disk.write(place, data)
        disk.finish()
        first = writer.prepare(ManifestFacts())
        writer.publish(first, repository.grant(first))
    size = sum(len(item) for item in store.objects.values())
    with repository.reader() as reader:
        point = reader.load_point(first.point_id)
        assert total(reader.open_disk(point, DEVICE_KEY).allocated()) == 3 * BLOCK
    with repository.writer() as writer:
        disk = writer.begin_disk(header, previous=point.disks[0])
        disk.zero(BLOCK, 63 * TIB)
        disk.write(64 * TIB - BLOCK, patterned(BLOCK, "new"))
        disk.finish()
        second = writer.prepare(ManifestFacts())
        writer.publish(second, repository.grant(second))
    assert sum(len(item) for item in store.objects.values()) - size < 3 * BLOCK
    with repository.reader() as reader:
        source = reader.open_disk(reader.load_point(second.point_id), DEVICE_KEY)
        assert [extent.offset for extent in source.allocated()] == [0, 64 * TIB - BLOCK]
        buffer = bytearray(BLOCK)
        source.read_into(3 * TIB + 5 * BLOCK, memoryview(buffer))
        assert buffer == bytes(BLOCK)
        source.read_into(64 * TIB - BLOCK, memoryview(buffer))
        assert buffer == patterned(BLOCK, "new")


def test_points_are_listed_in_the_controllers_order(repository: Repository) -> None:
    for order in (3, 1, 2):
        repository.backup(bytes(MIB), facts=ManifestFacts(order=order))
    repository.backup(bytes(MIB), lineage="another vm")
    with repository.reader() as reader:
        points = reader.points()
        assert [point.manifest.facts.order for point in points] == [1, 2, 3]
        assert reader.load_point(points[0].point_id) == points[0]
        with pytest.raises(NotFound):
            reader.load_point(PointId("JOB99999"))
        with pytest.raises(NotFound):
            points[0].disk(1)
        with pytest.raises(NotFound):
            points[0].blob("nvram")
    assert len(list_points(repository.store, repository.keys).points) == 4


def test_the_keys_of_one_vm_do_not_open_anothers_points(
    repository: Repository, store: MemoryStore
) -> None:
    point = repository.backup(patterned(MIB, "image"))
    other = repository.keys.reader_keys("another vm")
    assert not list_points(store, other).points
    moved = point.name.replace(point.lineage_tag.hex(), other.lineage_tag.hex())
    store.objects[moved] = store.objects[point.name]
    listed = list_points(store, other)
    assert not listed.points
    assert len(listed.unusable) == 1


def test_a_key_ring_of_some_vms_leaves_the_others_alone(
    repository: Repository, store: MemoryStore
) -> None:
    mine = repository.backup(patterned(MIB, "mine"))
    other = repository.backup(patterned(MIB, "other"), lineage="another vm")
    ring = LineageKeyRing((repository.keys.reader_keys(LINEAGE),))
    listed = list_points(store, ring)
    assert [point.point_id for point in listed.points] == [mine.point_id]
    assert listed.unopened == (other.name,)
    report = check_data(store, ring, segment_keys=repository.keys)
    assert report.is_clean
    assert report.unopened == (other.name,)


def test_a_copy_of_a_manifest_under_another_job_is_refused(
    repository: Repository, store: MemoryStore
) -> None:
    point = repository.backup(patterned(MIB, "image"))
    store.objects[point.name + "X"] = store.objects[point.name]
    listed = list_points(store, repository.keys)
    assert len(listed.points) == len(listed.unusable) == 1


def test_a_manifest_comes_back_and_ignores_what_it_does_not_know(repository: Repository) -> None:
    facts = ManifestFacts(
        run_id="R1",
        vm={"name": "web", "instance_uuid": "5028"},
        level_done="incremental",
        details={"nested": [1, None, {"a": True}]},
    )
    manifest = repository.backup(patterned(MIB, "x"), facts=facts, blobs={"vmx": b"1"}).manifest
    assert Manifest.decode(manifest.encode()) == manifest
    extended = manifest.encode().replace(b'{"agent_id"', b'{"a_new_field":1,"agent_id"', 1)
    assert Manifest.decode(extended) == manifest
    for wrong in (b"", b"[]", b"{}", b"\xff", manifest.encode()[:-1]):
        with pytest.raises(HoldfastError):
            Manifest.decode(wrong)


class TestReadBack:
    class Disk:
        """What stands on the restored disk."""

        def __init__(self, content: bytearray) -> None:
            self.content = content
            self.capacity_bytes = len(content)

        def allocated(self) -> None:
            return None

        def read_into(self, offset: int, buffer: memoryview) -> None:
            buffer[:] = self.content[offset : offset + len(buffer)]

        def close(self) -> None:
            pass

    def differing(
        self, repository: Repository, image: bytearray, actual: bytearray, extents: list[Extent]
    ) -> list[Extent]:
        point = repository.backup(image)
        with repository.reader() as reader:
            source = reader.open_disk(point, DEVICE_KEY)
            hasher = repository.keys.common.hasher()
            return verify_extents(source, self.Disk(actual), extents, hasher=hasher)

    def test_an_equal_disk_differs_nowhere(self, repository: Repository) -> None:
        image = patterned(ODD, "image")
        image[MIB : 2 * MIB] = bytes(MIB)
        whole = [Extent(offset=0, length=ODD)]
        assert self.differing(repository, image, bytearray(image), whole) == []

    def test_every_difference_is_named_to_the_sector(self, repository: Repository) -> None:
        image = patterned(ODD, "image")
        image[MIB : 2 * MIB] = bytes(MIB)
        actual = bytearray(image)
        for place in (5, MIB + 70_000, 3 * MIB - 1, 3 * MIB, ODD - 1):
            actual[place] ^= 0x40
        assert self.differing(repository, image, actual, [Extent(offset=0, length=ODD)]) == [
            Extent(offset=0, length=512),
            Extent(offset=(MIB + 70_000) // 512 * 512, length=512),
            Extent(offset=3 * MIB - 512, length=1024),
            Extent(offset=ODD - 512, length=512),
        ]

    def test_only_the_extents_asked_for_are_compared(self, repository: Repository) -> None:
        image = patterned(ODD, "image")
        actual = bytearray(image)
        actual[0] ^= 1
        extents = [Extent(offset=BLOCK, length=BLOCK)]
        assert self.differing(repository, image, actual, extents) == []

    def test_it_works_without_any_index(self, repository: Repository, store: MemoryStore) -> None:
        image = patterned(ODD, "image")
        point = repository.backup(image)
        for name in [name for name in store.objects if name.startswith("index/")]:
            del store.objects[name]
        actual = bytearray(image)
        actual[2 * MIB] ^= 1
        with repository.reader() as reader:
            source = reader.open_disk(point, DEVICE_KEY)
            found = verify_extents(
                source,
                self.Disk(actual),
                [Extent(offset=0, length=ODD)],
                hasher=repository.keys.common.hasher(),
            )
        assert found == [Extent(offset=2 * MIB, length=512)]


def test_limits_fit_together() -> None:
    assert BLOCKS_PER_LEAF * BLOCK == LEAF_BYTES
    assert GIB % LEAF_BYTES == 0
