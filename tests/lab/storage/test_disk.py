"""The lab's virtual disk: chains of real redo logs that agree with the guest's log."""

from __future__ import annotations

import os
import random
import re
import threading
import time
from pathlib import Path

import pytest

from holdfast_lab.storage.disk import DatastoreKind, LabDisk, Provisioning
from holdfast_lab.storage.errors import ChainError, FileExists, LinkBusy, OutOfRange, TruthUnknown
from support.lab_disks import MIB, assert_qemu_agrees, assert_true_everywhere, make_disk, needs_qemu

KINDS = [DatastoreKind.VMFS, DatastoreKind.NFS, DatastoreKind.VMFS5]


def scribble(disk: LabDisk, seed: int, writes: int = 12, most: int = 100) -> None:
    """Writes, zeros and discards at odd sectors, the last sector among them."""
    chooser = random.Random(seed)
    sectors = disk.capacity_bytes // 512
    for _ in range(writes):
        count = min(chooser.randint(1, most), sectors)
        start = chooser.choice([chooser.randrange(sectors - count + 1), sectors - count])
        if chooser.random() < 0.2:
            disk.guest_zero(start * 512, count * 512)
        else:
            disk.guest_write(start * 512, chooser.randbytes(count * 512))


@needs_qemu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("capacity", [512, 4096 + 512, 3 * MIB + 512 * 3, 20 * MIB])
def test_qemu_agrees_with_the_ground_truth_at_every_link_of_a_chain(
    tmp_path: Path, kind: DatastoreKind, capacity: int
) -> None:
    disk = make_disk(tmp_path, capacity=capacity, kind=kind)
    frozen: dict[int, Path] = {}
    for seed in range(4):
        scribble(disk, seed)
        made = disk.freeze()
        frozen[made.sequence] = made.descriptor
    scribble(disk, 99)
    assert len(disk.links) == 5
    assert_qemu_agrees(disk, disk.tip_descriptor, tmp_path, disk.sequence)
    for sequence, descriptor in frozen.items():
        assert_qemu_agrees(disk, descriptor, tmp_path, sequence)
    assert_true_everywhere(disk, frozen)


@needs_qemu
@pytest.mark.parametrize("kind", KINDS)
def test_qemu_agrees_after_a_merge_from_the_middle(tmp_path: Path, kind: DatastoreKind) -> None:
    disk = make_disk(tmp_path, capacity=5 * MIB + 512, kind=kind)
    made = []
    for seed in range(4):
        scribble(disk, seed)
        made.append(disk.freeze())
    scribble(disk, 99)
    disk.release(made[1].descriptor)
    assert len(disk.links) == 4
    keep = {
        freeze.sequence: disk.frozen_descriptor(freeze.sequence)
        for freeze in made
        if freeze is not made[1]
    }
    assert keep[made[2].sequence] == made[1].descriptor
    with pytest.raises(TruthUnknown):
        disk.frozen_descriptor(made[1].sequence)
    for sequence, descriptor in keep.items():
        assert_qemu_agrees(disk, descriptor, tmp_path, sequence)
    assert_qemu_agrees(disk, disk.tip_descriptor, tmp_path, disk.sequence)
    for sequence in keep:
        disk.release(disk.frozen_descriptor(sequence))
    assert [path.name for path in disk.links] == ["web.vmdk"]
    assert_qemu_agrees(disk, disk.tip_descriptor, tmp_path, disk.sequence)
    assert sorted(path.name for path in (tmp_path / "files").iterdir()) == [
        "web-flat.vmdk",
        "web.vmdk",
    ]


@needs_qemu
@pytest.mark.parametrize("kind", KINDS)
def test_qemu_agrees_after_a_revert_and_on_both_branches(
    tmp_path: Path, kind: DatastoreKind
) -> None:
    disk = make_disk(tmp_path, capacity=5 * MIB + 512, kind=kind)
    scribble(disk, 1)
    first = disk.freeze()
    scribble(disk, 2)
    second = disk.freeze()
    scribble(disk, 3)
    disk.revert(first.descriptor)
    assert_qemu_agrees(disk, disk.tip_descriptor, tmp_path, disk.sequence)
    scribble(disk, 4)
    third = disk.freeze()
    scribble(disk, 5)
    for made in (first, second, third):
        assert_qemu_agrees(disk, made.descriptor, tmp_path, made.sequence)
    assert_qemu_agrees(disk, disk.tip_descriptor, tmp_path, disk.sequence)
    assert second.descriptor not in disk.links
    assert second.descriptor in disk.all_links


def test_names_are_the_lowest_free_numbers_with_the_datastores_suffix(tmp_path: Path) -> None:
    vmfs = make_disk(tmp_path / "a")
    nfs = make_disk(tmp_path / "b", kind=DatastoreKind.NFS)
    for disk, suffix in ((vmfs, "sesparse"), (nfs, "delta")):
        first = disk.freeze()
        second = disk.freeze()
        assert second.tip.name == "web-000002.vmdk"
        assert (disk.directory / f"web-000002-{suffix}.vmdk").exists()
        disk.release(first.descriptor)
        disk.release(disk.frozen_descriptor(second.sequence))
        assert disk.freeze().tip.name == "web-000001.vmdk"


def test_a_link_that_is_read_is_not_merged_and_consolidation_stays_needed(tmp_path: Path) -> None:
    disk = make_disk(tmp_path)
    disk.guest_write(0, b"a" * 512)
    made = disk.freeze()
    disk.guest_write(0, b"b" * 512)
    with disk.reader_at(made.descriptor) as reader:
        with pytest.raises(LinkBusy):
            disk.release(made.descriptor)
        assert disk.consolidation_needed
        assert disk.holds(made.descriptor) == ("read",)
        assert disk.first_difference(reader, made.sequence) is None
    disk.consolidate()
    assert not disk.consolidation_needed
    assert disk.links == (made.descriptor,)
    assert_true_everywhere(disk)


def test_a_snapshot_can_go_without_its_links(tmp_path: Path) -> None:
    disk = make_disk(tmp_path)
    made = disk.freeze()
    disk.release(made.descriptor, consolidate=False)
    assert disk.consolidation_needed
    assert disk.tip_descriptor == made.tip


def test_a_parent_of_two_branches_stays_until_one_is_left(tmp_path: Path) -> None:
    disk = make_disk(tmp_path)
    scribble(disk, 1)
    first = disk.freeze()
    scribble(disk, 2)
    second = disk.freeze()
    disk.revert(first.descriptor)
    scribble(disk, 3)
    disk.release(first.descriptor)
    assert first.descriptor in disk.links
    with pytest.raises(ChainError):
        disk.merge(disk.tip_descriptor)
    disk.release(second.descriptor)
    assert disk.all_links == (first.descriptor,)
    assert_true_everywhere(disk)


def test_a_disk_with_snapshots_does_not_grow(tmp_path: Path) -> None:
    disk = make_disk(tmp_path, capacity=MIB)
    made = disk.freeze()
    with pytest.raises(ChainError):
        disk.extend(2 * MIB)
    disk.release(made.descriptor)
    disk.extend(2 * MIB + 512)
    disk.guest_write(2 * MIB, b"x" * 512)
    assert_true_everywhere(disk)
    with pytest.raises(OutOfRange):
        disk.extend(MIB)


@pytest.mark.parametrize("kind", KINDS)
def test_a_moved_disk_keeps_its_chain_and_its_truth(tmp_path: Path, kind: DatastoreKind) -> None:
    disk = make_disk(tmp_path, kind=kind)
    disk.enable_tracking()
    scribble(disk, 1)
    made = disk.freeze()
    scribble(disk, 2)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    disk.move(elsewhere, base_name="db")
    assert [path.name for path in disk.links] == ["db.vmdk", "db-000001.vmdk"]
    assert not list((tmp_path / "files").iterdir())
    scribble(disk, 3)
    assert_true_everywhere(disk, {made.sequence: disk.frozen_descriptor(made.sequence)})
    assert sorted(disk.files()) == sorted(elsewhere.iterdir())


def test_an_adopted_disk_goes_on_where_it_was(tmp_path: Path) -> None:
    disk = make_disk(tmp_path)
    disk.enable_tracking()
    scribble(disk, 1)
    first = disk.freeze()
    scribble(disk, 2)
    second = disk.freeze()
    disk.revert(first.descriptor)
    scribble(disk, 3)
    tip = disk.tip_descriptor
    log = disk.guest_log_directory
    change_id = disk.change_id(first.descriptor)
    disk.close()
    again = LabDisk.adopt(tip, guest_log=log)
    assert again.tracking_enabled
    assert again.change_id(first.descriptor) == change_id
    assert set(again.all_links) == {first.descriptor, second.descriptor, tip}
    assert not again.consolidation_needed
    frozen = {made.sequence: again.frozen_descriptor(made.sequence) for made in (first, second)}
    assert_true_everywhere(again, frozen)


def test_the_truth_of_an_adopted_disk_starts_with_what_was_found(tmp_path: Path) -> None:
    disk = make_disk(tmp_path)
    scribble(disk, 1)
    disk.freeze()
    scribble(disk, 2)
    tip = disk.tip_descriptor
    disk.close()
    again = LabDisk.adopt(tip, guest_log=tmp_path / "guest" / "other")
    assert_true_everywhere(again)
    made = again.freeze()
    scribble(again, 3)
    assert_true_everywhere(again, {made.sequence: made.descriptor})


def test_a_snapshot_from_before_the_log_can_be_reverted_to(tmp_path: Path) -> None:
    disk = make_disk(tmp_path)
    scribble(disk, 1)
    made = disk.freeze()
    scribble(disk, 2)
    tip = disk.tip_descriptor
    disk.close()
    again = LabDisk.adopt(tip, guest_log=tmp_path / "guest" / "other")
    with pytest.raises(TruthUnknown):
        again.truth_sequence(made.descriptor)
    again.revert(made.descriptor)
    scribble(again, 3)
    assert_true_everywhere(again)


def test_left_over_files_of_others_do_not_break_a_disk(tmp_path: Path) -> None:
    disk = make_disk(tmp_path)
    made = disk.freeze()
    text = made.tip.read_text()
    disk.close()
    folder = tmp_path / "files"
    (folder / "web-000007.vmdk").write_text(text.replace("web-000001", "web-000007"))
    (folder / "web-000008.vmdk").write_text(re.sub("parentCID=.*", "parentCID=00000001", text))
    (folder / "web-000009.vmdk").write_bytes(os.urandom(1000))
    (folder / "web-000010.vmdk").mkdir()
    again = LabDisk.adopt(made.tip, guest_log=disk.guest_log_directory)
    assert again.all_links == disk.all_links


def test_many_threads_write_read_and_take_snapshots_of_one_disk(tmp_path: Path) -> None:
    disk = make_disk(tmp_path, capacity=16 * MIB)
    disk.enable_tracking()
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            chooser = random.Random(seed)
            for _ in range(30):
                scribble(disk, chooser.randrange(2**30), writes=2)
                if seed == 0:
                    made = disk.freeze()
                    with disk.reader_at(made.descriptor) as reader:
                        assert disk.first_difference(reader, made.sequence) is None
                    disk.release(made.descriptor)
                else:
                    disk.read_into(0, memoryview(bytearray(8192)))
        except BaseException as error:  # noqa: BLE001 - a thread's failure is shown by the test
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert len(disk.links) == 1
    assert_true_everywhere(disk)


def test_content_that_came_from_elsewhere_becomes_the_truth(tmp_path: Path) -> None:
    disk = make_disk(tmp_path)
    with (tmp_path / "files" / "web-flat.vmdk").open("r+b") as file:
        file.write(b"restored")
    with disk.reader_at() as reader:
        assert disk.first_difference(reader) == 0
    disk.content_replaced()
    disk.guest_write(MIB, b"later" + bytes(507))
    assert_true_everywhere(disk)


def test_a_flipped_byte_is_found_at_its_offset(tmp_path: Path) -> None:
    disk = make_disk(tmp_path)
    disk.guest_write(MIB, bytes([1]) * 64 * 1024)
    offset = disk.flip_byte()
    assert MIB <= offset < MIB + 64 * 1024
    with disk.reader_at() as reader:
        assert disk.first_difference(reader) == offset
    disk.flip_byte(offset)
    assert disk.flip_byte(3 * MIB + 7) == 3 * MIB + 7
    raw = tmp_path / "raw"
    disk.materialise(raw)
    assert disk.first_difference(raw) == 3 * MIB + 7


def test_a_clone_has_the_same_uuid_and_content_of_the_named_link(tmp_path: Path) -> None:
    disk = make_disk(tmp_path)
    scribble(disk, 1)
    made = disk.freeze()
    scribble(disk, 2)
    copy = disk.clone(
        tmp_path, "copy", guest_log=tmp_path / "guest" / "copy", descriptor=made.descriptor
    )
    assert copy.uuid == disk.uuid
    with copy.reader_at() as reader:
        assert disk.first_difference(reader, made.sequence) is None
    assert_true_everywhere(copy)


def test_a_full_datastore_stops_the_guest_before_anything_changes(tmp_path: Path) -> None:
    disk = make_disk(tmp_path)
    disk.freeze()

    def full(_: int) -> None:
        raise OSError(28, "no space")

    disk.space_guard = full
    with pytest.raises(OSError, match="no space"):
        disk.guest_write(0, bytes(512))
    with pytest.raises(OSError, match="no space"):
        disk.freeze()
    disk.space_guard = None
    assert len(disk.links) == 2
    assert_true_everywhere(disk)


def test_creating_over_existing_files_is_refused(tmp_path: Path) -> None:
    disk = make_disk(tmp_path)
    with pytest.raises(FileExists):
        make_disk(tmp_path)
    with pytest.raises(OutOfRange):
        disk.guest_write(disk.capacity_bytes, bytes(512))
    with pytest.raises(OutOfRange):
        disk.guest_write(100, bytes(512))
    disk.delete()
    assert not list((tmp_path / "files").iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_a_sparse_disk_of_one_tebibyte_is_quick_and_small(
    tmp_path: Path, kind: DatastoreKind
) -> None:
    started = time.monotonic()
    disk = make_disk(tmp_path, capacity=2**40, kind=kind, provisioning=Provisioning.THIN)
    disk.enable_tracking()
    disk.guest_write(0, b"a" * 4096)
    first = disk.freeze()
    disk.guest_write(2**40 - 4096, b"b" * 4096)
    disk.guest_write(2**39, b"c" * 4096)
    second = disk.freeze()
    assert first.change_id is not None
    answer = disk.query(first.change_id, second.descriptor)
    assert [area.offset for area in answer.areas] == [2**39, 2**40 - 512 * 1024]
    with disk.reader_at(second.descriptor) as reader:
        assert sum(area.length for area in reader.allocated()) <= 3 * 4096
    disk.release(first.descriptor)
    assert_true_everywhere(disk)
    stored = sum(path.stat().st_blocks * 512 for path in disk.files())
    assert stored < 3 * MIB
    assert time.monotonic() - started < 3
