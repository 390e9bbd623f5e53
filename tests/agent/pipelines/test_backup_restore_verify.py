from __future__ import annotations

import json
import os
import random
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast_agent.pipelines.backup_disks import back_up_disks
from holdfast_agent.pipelines.restore_disks import restore_disks
from holdfast_agent.pipelines.verify_disks import verify_disks
from holdfast_common.errors import (
    IntegrityError,
    NotFound,
    NothingProtected,
    PreviousLost,
    Refused,
)
from holdfast_common.extents import Extent
from holdfast_common.formats.vmdk_chain import ImageName, open_chain_at, read_descriptor
from holdfast_common.formats.vmdk_descriptor import Descriptor
from holdfast_common.identity import PointId
from holdfast_common.job_result import JobResult, Outcome
from holdfast_common.job_spec import AreaSource, DiskTicket, FileFormat
from holdfast_common.point_record import PointRecord
from holdfast_common.repository.reserve import RESERVE_BYTES
from holdfast_common.units import KIB, MIB
from support.backup_jobs import (
    BLOBS,
    LINEAGE,
    Site,
    direct_ticket,
    disk_uuid,
    make_site,
    point_of,
)

CAPACITY = 9 * MIB + 512
UNIT = 64 * KIB


def content(seed: int, capacity: int = CAPACITY) -> bytes:
    chance = random.Random(seed)
    data = bytearray(capacity)
    for offset in range(0, capacity, 3 * UNIT):
        length = min(chance.choice([512, UNIT, 2 * UNIT]), capacity - offset)
        data[offset : offset + length] = chance.randbytes(length)
    return bytes(data)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = make_site(tmp_path)
    site.make_disk(2000, content(1))
    site.make_disk(2001, content(2, 4 * MIB))
    return site


def restored(site: Site, point: PointId, device_key: int, name: str = "back.vmdk") -> bytes:
    """The content of a disk after a restore and a read-back, which must agree."""
    disks: dict[int, DiskTicket] = {device_key: site.file_ticket(name)}
    restore = restore_disks(site.spec(site.restore_work(point, disks)), site.context())
    assert restore.outcome is Outcome.DONE
    verify = verify_disks(site.spec(site.verify_work(point, disks)), site.context())
    assert (verify.outcome, verify.disks[0].differing) == (Outcome.DONE, ())
    return (site.root / "restores" / name.replace(".vmdk", "-flat.vmdk")).read_bytes()


def test_a_full_backup_restores_to_the_same_bytes(site: Site) -> None:
    result = site.back_up()
    assert result.outcome is Outcome.DONE
    for key in (2000, 2001):
        assert restored(site, point_of(result), key, f"{key}.vmdk") == site.content(key)


def test_a_backup_keeps_room_for_a_prune_on_a_full_disk(site: Site) -> None:
    site.back_up()
    kept = sum(path.stat().st_size for path in (site.root / "repository" / "reserve").iterdir())
    assert kept == RESERVE_BYTES


def test_a_points_record_tells_what_its_disks_hold_whatever_was_read(site: Site) -> None:
    held = [
        sum(
            min(UNIT, len(data) - offset)
            for offset in range(0, len(data), UNIT)
            if any(data[offset : offset + UNIT])
        )
        for data in (site.content(2000), site.content(2001))
    ]
    first = site.back_up()
    second = site.incremental(point_of(first), {})
    assert [disk.read_bytes for disk in second.disks] == [0, 0]
    for result in (first, second):
        record = PointRecord.decode(result.record)
        for disk, wanted in zip(record.disks, held, strict=True):
            assert disk.allocated_bytes is not None
            assert wanted <= disk.allocated_bytes < wanted + UNIT  # whole blocks


def test_the_result_counts_what_was_read_found_zero_and_stored(site: Site) -> None:
    disk = site.back_up().disks[0]
    used = sum(
        min(UNIT, CAPACITY - offset)
        for offset in range(0, CAPACITY, UNIT)
        if any(site.content(2000)[offset : offset + UNIT])
    )
    assert disk.transport == "direct"
    assert disk.zero_bytes == CAPACITY - used
    assert disk.changed_bytes == used
    assert used <= disk.read_bytes <= CAPACITY
    assert 0 < disk.stored_bytes < used + MIB
    assert disk.level_reason == "first backup"


def test_an_incremental_reads_only_what_changed_and_restores_the_new_state(site: Site) -> None:
    first = site.back_up()
    before = site.content(2000)
    changes = [
        site.write(2000, 5 * UNIT + 512, b"n" * 1024),
        site.write(2000, 3 * MIB, bytes(UNIT)),
        site.write(2000, CAPACITY - 512, b"e" * 512),
    ]
    second = site.incremental(point_of(first), {2000: changes})
    assert second.disks[0].read_bytes <= 3 * UNIT
    assert second.disks[0].changed_bytes == 2 * UNIT + 512
    assert second.disks[1].read_bytes == 0
    assert restored(site, point_of(second), 2000, "new.vmdk") == site.content(2000)
    assert restored(site, point_of(first), 2000, "old.vmdk") == before
    assert restored(site, point_of(second), 2001, "same.vmdk") == site.content(2001)


def test_a_full_read_with_a_previous_point_stores_only_what_differs(site: Site) -> None:
    first = site.back_up()
    site.write(2000, 2 * MIB, b"n" * 512)
    site.write(2000, 0, bytes(2 * UNIT))
    second = site.back_up(previous=point_of(first))
    assert second.disks[0].changed_bytes == UNIT
    assert second.disks[0].stored_bytes < 4 * UNIT
    assert restored(site, point_of(second), 2000) == site.content(2000)


def test_what_is_not_allocated_any_more_becomes_zero(site: Site) -> None:
    first = site.back_up()
    site.write(2000, 0, bytes(CAPACITY))
    site.write(2000, MIB, b"left" * 128)
    disk = site.disk_to_back_up(2000, areas=AreaSource.ALLOCATED)
    allocated = [Extent(offset=MIB, length=512)]
    second = site.back_up(
        [disk], previous=point_of(first), context=site.context(extents={2000: allocated})
    )
    assert second.disks[0].read_bytes == UNIT
    assert restored(site, point_of(second), 2000) == site.content(2000)


def test_changes_without_a_previous_disk_are_refused(site: Site) -> None:
    disk = site.disk_to_back_up(2000, areas=AreaSource.CHANGED)
    with pytest.raises(IntegrityError, match="no such disk"):
        site.back_up([disk], context=site.context(extents={2000: []}))


@pytest.mark.parametrize("damage", ["gone", "a byte differs", "empty"])
def test_a_previous_point_that_cannot_be_used_stops_only_an_incremental(
    site: Site, damage: str
) -> None:
    point = point_of(site.back_up())
    (manifest,) = site.repository.folder.glob(f"points/*/{point}")
    data = bytearray(manifest.read_bytes())
    data[len(data) // 2] ^= 1
    manifest.chmod(0o600)
    manifest.unlink() if damage == "gone" else manifest.write_bytes(
        data if damage == "a byte differs" else b""
    )
    with pytest.raises(PreviousLost) as caught:
        site.incremental(point, {})
    assert caught.value.retryable
    context = site.context()
    full = site.back_up(previous=point, context=context)
    assert [code for code, _ in context.warnings] == ["previous_lost"]
    assert restored(site, point_of(full), 2000) == site.content(2000)
    again = site.incremental(point_of(full), {2000: [site.write(2000, 0, b"n" * 512)]})
    assert restored(site, point_of(again), 2000, "again.vmdk") == site.content(2000)


@pytest.mark.parametrize("kind", ["maps", "packs"])
@pytest.mark.parametrize("with_previous", [True, False])
def test_after_a_loss_a_full_is_whole_again_and_can_be_built_on(
    site: Site, kind: str, with_previous: bool
) -> None:
    point = point_of(site.back_up())
    for lost in sorted((site.repository.folder / kind).glob("*/*")):
        lost.unlink()
    with pytest.raises(PreviousLost):
        site.incremental(point, {2000: [site.write(2000, MIB, b"n" * 512)]})
    if kind == "maps" and with_previous:
        with pytest.raises(PreviousLost):  # what is compared page by page needs the pages
            site.back_up(previous=point)
    full = site.back_up(previous=point if with_previous and kind == "packs" else None)
    assert restored(site, point_of(full), 2000) == site.content(2000)
    again = site.incremental(point_of(full), {2000: [site.write(2000, 0, b"n" * 512)]})
    assert restored(site, point_of(again), 2000, "again.vmdk") == site.content(2000)


def test_a_disk_without_uuid_is_built_on_no_other_and_can_be_restored(site: Site) -> None:
    """Two disks that were put into one slot one after the other have the same key and no uuid."""
    nameless = site.disk_to_back_up(2000, backing_uuid="")
    first = site.back_up([nameless])
    second = site.back_up([nameless], previous=point_of(first))
    assert second.disks[0].changed_bytes == first.disks[0].changed_bytes
    changes = site.disk_to_back_up(2000, backing_uuid="", areas=AreaSource.CHANGED)
    with pytest.raises(IntegrityError):
        site.back_up([changes], previous=point_of(first), context=site.context(extents={2000: []}))
    disk = replace(site.disk_to_restore(2000, site.file_ticket("a.vmdk")), backing_uuid="")
    work = replace(site.restore_work(point_of(second), {}), disks=(disk,))
    assert restore_disks(site.spec(work), site.context()).outcome is Outcome.DONE


def descriptor_of(path: Path) -> Descriptor:
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        return read_descriptor(ImageName(directory_fd=folder, name=path.name))
    finally:
        os.close(folder)


@pytest.mark.parametrize("way", ["direct", *FileFormat])
def test_a_restored_disk_has_a_new_uuid_of_its_own(site: Site, way: str) -> None:
    first = site.back_up()
    uuids = {disk_uuid(2000)}
    for name in ("a.vmdk", "b.vmdk"):
        ticket: DiskTicket = direct_ticket(f"web/{name}")
        folder = site.root / "nfs" / "web"
        if way != "direct":
            ticket, folder = site.file_ticket(name, FileFormat(way)), site.root / "restores"
        work = site.restore_work(point_of(first), {2000: ticket})
        assert restore_disks(site.spec(work), site.context()).outcome is Outcome.DONE
        uuids.add(descriptor_of(folder / name).disk_uuid)
    assert len(uuids) == 3
    assert all(len(uuid) == 36 for uuid in uuids)


def test_a_disk_replaced_by_another_of_the_same_key_is_read_anew(site: Site) -> None:
    first = site.back_up()
    other = site.disk_to_back_up(2000, backing_uuid=disk_uuid(9))
    second = site.back_up([other], previous=point_of(first))
    assert second.disks[0].changed_bytes == site.back_up().disks[0].changed_bytes
    changes = site.disk_to_back_up(2000, backing_uuid=disk_uuid(9), areas=AreaSource.CHANGED)
    with pytest.raises(IntegrityError):
        site.back_up([changes], previous=point_of(first), context=site.context(extents={2000: []}))


def test_an_empty_disk_keeps_its_size(site: Site) -> None:
    site.make_disk(2002, bytes(2 * MIB))
    result = site.back_up([site.disk_to_back_up(2002)])
    assert restored(site, point_of(result), 2002) == bytes(2 * MIB)


def test_a_job_without_disks_protects_nothing(site: Site) -> None:
    work = site.backup_work()
    object.__setattr__(work, "disks", ())
    with pytest.raises(NothingProtected):
        back_up_disks(site.spec(work), site.context())


def test_the_record_says_what_the_point_is(site: Site) -> None:
    context = site.context()
    result = site.back_up(context=context)
    record = PointRecord.decode(result.record)
    assert record.point_id == result.point_id
    assert record.job_id == context.attempt.job_id
    assert record.lineage_id == LINEAGE
    assert (record.vm_name, record.level, record.transport) == ("web", "full", "direct")
    assert json.loads(record.configuration) == {"hardware": "vmx-19"}
    assert record.blob_kinds == tuple(blob.kind for blob in BLOBS)
    assert record.blob_notes == {"nvram": "read after the snapshot"}
    assert [disk.device_key for disk in record.disks] == [2000, 2001]
    assert [disk.read_bytes for disk in record.disks] == [d.read_bytes for d in result.disks]
    assert [disk.stored_bytes for disk in record.disks] == [d.stored_bytes for d in result.disks]
    assert record.disks[0].change_id == "52 de/1"
    assert record.disks[0].adapter == "pvscsi 0:0"


@pytest.mark.parametrize("file_format", FileFormat)
def test_every_file_format_restores_and_reads_back(site: Site, file_format: FileFormat) -> None:
    point = point_of(site.back_up())
    ticket = site.file_ticket("disk.vmdk", file_format)
    restore_disks(site.spec(site.restore_work(point, {2000: ticket})), site.context())
    verify = verify_disks(site.spec(site.verify_work(point, {2000: ticket})), site.context())
    assert verify.outcome is Outcome.DONE
    assert verify.disks[0].compared_bytes >= site.back_up().disks[0].changed_bytes
    with open_chain_at([site.root / "restores/disk.vmdk"]) as chain:
        buffer = memoryview(bytearray(CAPACITY))
        chain.read_into(0, buffer)
    assert bytes(buffer) == site.content(2000)


def test_two_disks_are_restored_to_a_datastore_by_one_job(site: Site) -> None:
    point = point_of(site.back_up())
    disks: dict[int, DiskTicket] = {
        2000: direct_ticket("web/new-0.vmdk"),
        2001: direct_ticket("web/new-1.vmdk"),
    }
    result = restore_disks(site.spec(site.restore_work(point, disks)), site.context())
    assert [disk.transport for disk in result.disks] == ["direct", "direct"]
    verify = verify_disks(site.spec(site.verify_work(point, disks)), site.context())
    assert verify.outcome is Outcome.DONE
    for number, key in enumerate(disks):
        assert (site.root / f"nfs/web/new-{number}-flat.vmdk").read_bytes() == site.content(key)


def test_zeros_are_never_sent(site: Site) -> None:
    site.make_disk(2003, bytes(64 * MIB) + b"x" * 512)
    point = point_of(site.back_up([site.disk_to_back_up(2003)]))
    result = restore_disks(
        site.spec(site.restore_work(point, {2003: site.file_ticket("sparse.vmdk")})),
        site.context(),
    )
    assert result.disks[0].written_bytes <= UNIT
    assert (site.root / "restores/sparse-flat.vmdk").stat().st_blocks * 512 <= 2 * UNIT


def test_nothing_is_restored_over_an_existing_file(site: Site) -> None:
    point = point_of(site.back_up())
    work = site.restore_work(point, {2000: direct_ticket("web/disk-2000.vmdk")})
    before = site.content(2000)
    with pytest.raises(Refused):
        restore_disks(site.spec(work), site.context())
    assert site.content(2000) == before


def verified(site: Site, point: PointId, ticket: DiskTicket) -> JobResult:
    return verify_disks(site.spec(site.verify_work(point, {2000: ticket})), site.context())


@pytest.mark.parametrize("at", [0, 3 * UNIT + 100, 7 * UNIT, CAPACITY - 1])
def test_a_flipped_byte_is_found_and_named(site: Site, at: int) -> None:
    point = point_of(site.back_up())
    ticket = site.file_ticket("disk.vmdk")
    restore_disks(site.spec(site.restore_work(point, {2000: ticket})), site.context())
    with (site.root / "restores/disk-flat.vmdk").open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))
    result = verified(site, point, ticket)
    assert result.outcome is Outcome.FAILED
    assert result.disks[0].differing == (Extent(offset=at // 512 * 512, length=512),)
    assert result.error is not None
    assert (result.error.code, result.error.exit_status) == ("integrity", 13)
    facts = dict(result.error.facts)
    assert (facts["device_key"], facts["offset"]) == ("2000", str(at // 512 * 512))


@pytest.mark.parametrize("file_format", FileFormat)
@pytest.mark.parametrize("cut", [False, True], ids=["a byte differs", "truncated"])
def test_a_file_that_fails_its_read_back_loses_its_name(
    site: Site, file_format: FileFormat, cut: bool
) -> None:
    point = point_of(site.back_up())
    ticket = site.file_ticket("disk.vmdk", file_format)
    data = ["disk.vmdk", *(["disk-flat.vmdk"] if file_format is FileFormat.FLAT else [])]
    folder = site.root / "restores"
    for suffix in (".bad", ".bad-2"):
        restore_disks(site.spec(site.restore_work(point, {2000: ticket})), site.context())
        path = folder / data[-1]
        held = bytearray(path.read_bytes())
        held[len(held) // 2 - 7] ^= 0x10
        path.write_bytes(held[: len(held) // 2] if cut else held)
        context = site.context()
        with suppress(IntegrityError):
            work = site.verify_work(point, {2000: ticket})
            assert verify_disks(site.spec(work), context).outcome is Outcome.FAILED
        assert context.warnings[0][0] == "set_aside"
        assert context.warnings[0][1].endswith(f"/restores/disk.vmdk{suffix}")
        assert not [name for name in data if (folder / name).exists()]
        assert [name for name in data if (folder / (name + suffix)).exists()] == data


def test_a_point_of_another_disk_is_not_restored(site: Site) -> None:
    point = point_of(site.back_up())
    work = site.restore_work(point, {2000: site.file_ticket("disk.vmdk")})
    wrong = work.disks[0].__class__(
        device_key=2000,
        backing_uuid=disk_uuid(7),
        adapter_type="lsilogic",
        ticket=work.disks[0].ticket,
    )
    object.__setattr__(work, "disks", (wrong,))
    with pytest.raises(NotFound):
        restore_disks(site.spec(work), site.context())


def test_progress_ascends_to_its_total(site: Site) -> None:
    context = site.context()
    site.back_up(context=context)
    done = [report[0] for report in context.reports]
    assert done == sorted(done)
    assert done[-1] == context.reports[-1][1] == CAPACITY + 4 * MIB
