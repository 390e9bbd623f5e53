"""Change ids and QueryChangedDiskAreas as vSphere behaves, the ugly parts too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from holdfast_lab.storage import tracking_file
from holdfast_lab.storage.disk import (
    AREAS_MAX,
    DatastoreKind,
    Frozen,
    LabDisk,
    Provisioning,
    StarOnNfs,
)
from holdfast_lab.storage.errors import ChangeIdUnknown, OutOfRange
from holdfast_lab.storage.runs import Area
from holdfast_lab.storage.tracking_file import granularity_for
from support.lab_disks import MIB, make_disk

KIB = 1024
GRANULE = 64 * KIB


def tracked_disk(folder: Path, capacity: int = 64 * MIB) -> LabDisk:
    disk = make_disk(folder, capacity=capacity)
    disk.enable_tracking()
    disk.stun()
    return disk


def areas_after(disk: LabDisk, made: Frozen, until: Path | None = None) -> list[Area]:
    assert made.change_id is not None
    return list(disk.query(made.change_id, until).areas)


def test_the_flag_is_seen_at_once_and_the_id_after_the_next_stun(tmp_path: Path) -> None:
    disk = make_disk(tmp_path)
    assert not disk.tracking_enabled
    disk.enable_tracking()
    assert disk.tracking_enabled
    assert disk.change_id() is None
    made = disk.freeze()
    assert made.change_id is not None
    assert disk.change_id(made.descriptor) == made.change_id
    assert disk.change_id() != made.change_id


@pytest.mark.parametrize("stun", ["stun", "power_on"])
def test_a_power_operation_makes_tracking_effective_too(tmp_path: Path, stun: str) -> None:
    disk = make_disk(tmp_path)
    disk.enable_tracking()
    getattr(disk, stun)()
    change_id = disk.change_id()
    assert change_id is not None
    uuid, slash, sequence = change_id.rpartition("/")
    assert len(uuid) == 47
    assert slash
    assert sequence.isdecimal()


def test_tracking_files_lie_beside_each_link(tmp_path: Path) -> None:
    disk = tracked_disk(tmp_path)
    disk.freeze()
    assert {path.name for path in disk.files() if "ctk" in path.name} == {
        "web-ctk.vmdk",
        "web-000001-ctk.vmdk",
    }
    disk.disable_tracking()
    assert not [path for path in disk.directory.iterdir() if "ctk" in path.name]
    assert disk.change_id() is None


def test_an_answer_covers_what_was_written_after_the_id_up_to_the_named_link(
    tmp_path: Path,
) -> None:
    disk = tracked_disk(tmp_path)
    disk.guest_write(0, b"0" * 512)
    first = disk.freeze()
    disk.guest_write(10 * GRANULE, b"1" * 512)
    second = disk.freeze()
    disk.guest_write(20 * GRANULE, b"2" * 512)
    assert areas_after(disk, first, second.descriptor) == [Area(10 * GRANULE, GRANULE)]
    assert areas_after(disk, second) == [Area(20 * GRANULE, GRANULE)]
    assert len(areas_after(disk, first)) == 2
    assert areas_after(disk, second, second.descriptor) == []


def test_old_ids_outlive_the_removal_of_their_snapshot(tmp_path: Path) -> None:
    disk = tracked_disk(tmp_path)
    first = disk.freeze()
    disk.guest_write(GRANULE, b"1" * 512)
    disk.release(first.descriptor)
    disk.guest_write(3 * GRANULE, b"2" * 512)
    second = disk.freeze()
    assert areas_after(disk, first, second.descriptor) == [
        Area(GRANULE, GRANULE),
        Area(3 * GRANULE, GRANULE),
    ]
    assert disk.change_id(second.descriptor) == second.change_id


def test_granularity_grows_with_the_disk_and_over_reports(tmp_path: Path) -> None:
    gib = 1024 * MIB
    assert granularity_for(128 * gib) == GRANULE
    assert granularity_for(128 * gib + 512) == 2 * GRANULE
    assert granularity_for(1024 * gib) == 8 * GRANULE
    assert granularity_for(62 * 1024 * gib) == 32 * MIB
    disk = make_disk(tmp_path, capacity=8 * MIB + 512)
    disk.enable_tracking(granularity=MIB)
    first = disk.freeze()
    disk.guest_write(MIB + 512, b"1" * 512)
    disk.guest_write(8 * MIB, b"2" * 512)
    assert areas_after(disk, first) == [Area(MIB, MIB), Area(8 * MIB, 512)]


def test_a_long_answer_is_cut_with_a_short_length_and_can_be_continued(tmp_path: Path) -> None:
    disk = make_disk(tmp_path, capacity=64 * MIB)
    disk.enable_tracking(granularity=4 * KIB)
    first = disk.freeze()
    wanted = [Area(number * 16 * KIB, 4 * KIB) for number in range(AREAS_MAX + 500)]
    for area in wanted:
        disk.guest_write(area.offset, b"x" * 512)
    assert first.change_id is not None
    answer = disk.query(first.change_id)
    assert len(answer.areas) == AREAS_MAX
    assert answer.start_offset + answer.length == answer.areas[-1].end
    rest = disk.query(first.change_id, None, answer.length)
    assert rest.start_offset == answer.length
    assert rest.start_offset + rest.length == disk.capacity_bytes
    assert [*answer.areas, *rest.areas] == wanted


def test_an_answer_that_fits_exactly_reaches_the_end(tmp_path: Path) -> None:
    disk = make_disk(tmp_path)
    disk.enable_tracking()
    first = disk.freeze()
    disk.guest_write(0, b"x" * 512)
    disk.guest_write(2 * GRANULE, b"x" * 512)
    assert first.change_id is not None
    assert disk.query(first.change_id, areas_max=2).length == disk.capacity_bytes
    assert disk.query(first.change_id, areas_max=1).length == GRANULE
    assert disk.query(first.change_id, None, GRANULE // 2).areas[0] == Area(
        GRANULE // 2, GRANULE // 2
    )


def test_a_start_at_or_past_the_capacity_is_out_of_range(tmp_path: Path) -> None:
    disk = tracked_disk(tmp_path)
    made = disk.freeze()
    assert made.change_id is not None
    for start in (disk.capacity_bytes, disk.capacity_bytes + 512, -1):
        with pytest.raises(OutOfRange):
            disk.query(made.change_id, None, start)


@pytest.mark.parametrize("change_id", ["", "x", "*/1", "52 00/1", "/", "52 00 11/99999999999"])
def test_an_id_of_no_disk_is_unknown(tmp_path: Path, change_id: str) -> None:
    disk = tracked_disk(tmp_path)
    with pytest.raises(ChangeIdUnknown):
        disk.query(change_id)


def test_an_id_newer_than_the_named_link_is_unknown(tmp_path: Path) -> None:
    disk = tracked_disk(tmp_path)
    first = disk.freeze()
    second = disk.freeze()
    assert second.change_id is not None
    with pytest.raises(ChangeIdUnknown):
        disk.query(second.change_id, first.descriptor)


def test_an_unclean_stop_gives_a_new_uuid_at_power_on(tmp_path: Path) -> None:
    disk = tracked_disk(tmp_path)
    made = disk.freeze()
    assert made.change_id is not None
    disk.release(made.descriptor)
    disk.unclean_stop()
    disk.query(made.change_id)
    disk.power_on()
    with pytest.raises(ChangeIdUnknown):
        disk.query(made.change_id)
    again = disk.freeze()
    disk.guest_write(0, b"x" * 512)
    assert areas_after(disk, again) == [Area(0, GRANULE)]


def test_a_clean_power_cycle_keeps_the_ids(tmp_path: Path) -> None:
    disk = tracked_disk(tmp_path)
    made = disk.freeze()
    disk.guest_write(0, b"x" * 512)
    disk.release(made.descriptor)
    disk.stun()
    disk.power_on()
    disk.guest_write(GRANULE, b"x" * 512)
    assert areas_after(disk, made) == [Area(0, 2 * GRANULE)]


def test_a_damaged_tracking_file_gives_a_new_uuid_at_the_next_stun(tmp_path: Path) -> None:
    disk = tracked_disk(tmp_path)
    made = disk.freeze()
    assert made.change_id is not None
    disk.damage_tracking()
    with pytest.raises(ChangeIdUnknown):
        disk.query(made.change_id)
    again = disk.freeze()
    assert again.change_id is not None
    assert again.change_id.rpartition("/")[0] != made.change_id.rpartition("/")[0]
    with pytest.raises(ChangeIdUnknown):
        disk.query(made.change_id, again.descriptor)


def test_a_vanished_tracking_file_is_noticed_too(tmp_path: Path) -> None:
    disk = tracked_disk(tmp_path)
    made = disk.freeze()
    assert made.change_id is not None
    (disk.directory / "web-000001-ctk.vmdk").unlink()
    disk.guest_write(0, b"x" * 512)
    with pytest.raises(ChangeIdUnknown):
        disk.query(made.change_id)
    assert disk.freeze().change_id != made.change_id


def test_a_migration_makes_old_ids_unknown_unless_kept(tmp_path: Path) -> None:
    disk = tracked_disk(tmp_path)
    made = disk.freeze()
    assert made.change_id is not None
    disk.release(made.descriptor)
    for number, tracking in enumerate(("keep", "reset")):
        folder = tmp_path / str(number)
        folder.mkdir()
        disk.move(folder, tracking="keep" if tracking == "keep" else "reset")
        assert disk.change_id() is not None
        if tracking == "keep":
            disk.guest_write(0, b"x" * 512)
            assert areas_after(disk, made) == [Area(0, GRANULE)]
    with pytest.raises(ChangeIdUnknown):
        disk.query(made.change_id)


# -- allocated areas ---------------------------------------------------------------------------


def test_star_gives_allocated_areas_of_a_thin_disk_through_its_chain(tmp_path: Path) -> None:
    disk = tracked_disk(tmp_path)
    disk.guest_write(5 * MIB + 512, b"x" * 512)
    disk.freeze()
    disk.guest_write(9 * MIB, b"x" * 512)
    second = disk.freeze()
    assert disk.query("*", second.descriptor).areas == (Area(5 * MIB, MIB), Area(9 * MIB, MIB))


def test_star_gives_written_areas_of_a_lazily_zeroed_disk_and_all_of_an_eager_one(
    tmp_path: Path,
) -> None:
    lazy = make_disk(tmp_path, "lazy", provisioning=Provisioning.THICK_LAZY)
    eager = make_disk(tmp_path, "eager", provisioning=Provisioning.THICK_EAGER)
    for disk in (lazy, eager):
        disk.enable_tracking()
        disk.guest_write(2 * MIB, b"x" * 512)
        disk.stun()
    assert lazy.query("*").areas == (Area(2 * MIB, MIB),)
    assert eager.query("*").areas == (Area(0, eager.capacity_bytes),)


def test_star_on_nfs_is_one_area_or_a_fault(tmp_path: Path) -> None:
    disk = make_disk(tmp_path, kind=DatastoreKind.NFS)
    disk.enable_tracking()
    disk.stun()
    assert disk.query("*").areas == (Area(0, disk.capacity_bytes),)
    disk.star_on_nfs = StarOnNfs.FAULT
    with pytest.raises(ChangeIdUnknown):
        disk.query("*")


def test_star_of_an_empty_disk_has_no_areas(tmp_path: Path) -> None:
    disk = tracked_disk(tmp_path)
    answer = disk.query("*")
    assert answer.areas == ()
    assert answer.length == disk.capacity_bytes


# -- where vSphere is wrong --------------------------------------------------------------------


def test_tracking_switched_on_under_a_snapshot_answers_plausibly_and_wrongly(
    tmp_path: Path,
) -> None:
    disk = make_disk(tmp_path)
    disk.guest_write(0, b"old" + bytes(509))
    disk.freeze()
    disk.enable_tracking()
    backup = disk.freeze()
    assert disk.query("*", backup.descriptor).areas == ()
    disk.guest_write(MIB, b"written during the backup" + bytes(487))
    disk.release(backup.descriptor)
    disk.guest_write(4 * MIB, b"later" + bytes(507))
    following = disk.freeze()
    assert areas_after(disk, backup, following.descriptor) == [Area(4 * MIB, GRANULE)]


def test_after_a_revert_the_old_id_answers_plausibly_and_wrongly(tmp_path: Path) -> None:
    disk = tracked_disk(tmp_path)
    first = disk.freeze()
    disk.guest_write(MIB, b"x" * 512)
    second = disk.freeze()
    disk.release(second.descriptor)
    disk.revert(first.descriptor)
    disk.guest_write(4 * MIB, b"y" * 512)
    third = disk.freeze()
    assert areas_after(disk, second, third.descriptor) == [Area(4 * MIB, GRANULE)]
    assert areas_after(disk, first, third.descriptor) == [Area(4 * MIB, GRANULE)]


def test_growing_past_a_multiple_of_128_gib_loses_what_was_tracked(tmp_path: Path) -> None:
    gib = 1024 * MIB
    disk = tracked_disk(tmp_path, capacity=100 * gib)
    made = disk.freeze()
    disk.release(made.descriptor)
    disk.guest_write(0, b"x" * 512)
    disk.extend(120 * gib)
    assert areas_after(disk, made) == [Area(0, GRANULE)]
    disk.extend(130 * gib)
    disk.guest_write(129 * gib, b"x" * 512)
    assert areas_after(disk, made) == [Area(129 * gib, GRANULE)]


def test_lies_are_told_over_all_pages(tmp_path: Path) -> None:
    disk = tracked_disk(tmp_path)
    made = disk.freeze()
    for number in range(10):
        disk.guest_write(number * 2 * GRANULE, b"x" * 512)
    assert made.change_id is not None

    def every_other(areas: Sequence[Area]) -> Sequence[Area]:
        return areas[::2]

    answer = disk.query(made.change_id, distort=every_other)
    assert len(answer.areas) == 5
    assert answer.length == disk.capacity_bytes


def test_the_tracking_file_keeps_its_form() -> None:
    header = tracking_file.TrackingHeader(
        capacity_bytes=MIB, granularity=GRANULE, epoch=3, uuid="52 00"
    )
    assert header.granules == 16
    assert header.change_id == "52 00/3"
