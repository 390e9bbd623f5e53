"""Backup, restore and read-back through transports that are not a mounted datastore."""

from __future__ import annotations

import io
import random
from pathlib import Path

import pytest

from holdfast_agent.pipelines.restore_disks import restore_disks
from holdfast_agent.pipelines.verify_disks import verify_disks
from holdfast_common.errors import CertificateMismatch, ShortRead, SourceFailed
from holdfast_common.extents import Extent
from holdfast_common.formats.vmdk_stream_optimized import StreamOptimizedReader
from holdfast_common.formats.vmdk_stream_writer import StreamOptimizedWriter
from holdfast_common.job_result import JobResult, Outcome
from holdfast_common.job_spec import AreaSource, HotAddTicket, NfcTicket
from holdfast_common.units import KIB, MIB
from support.backup_jobs import Site, disk_uuid, make_site, point_of
from support.block_source_contract import write_used_sectors
from support.lease_host import LeaseHost, lease_host

CAPACITY = 6 * MIB + 512
UNIT = 64 * KIB


def content(seed: int) -> bytes:
    chance = random.Random(seed)
    data = bytearray(CAPACITY)
    for offset in (0, UNIT, MIB, 3 * MIB + 512, CAPACITY - 512):
        data[offset : offset + 512] = chance.randbytes(512)
    data[4 * MIB : 4 * MIB + 300 * KIB] = chance.randbytes(300 * KIB)
    return bytes(data)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = make_site(tmp_path)
    site.disks[2000] = CAPACITY
    return site


def stream_of(data: bytes) -> bytes:
    stream = io.BytesIO()
    writer = StreamOptimizedWriter(stream, len(data))
    write_used_sectors(writer, data)
    writer.finish()
    return stream.getvalue()


def content_of(stream: bytes | None) -> bytes:
    assert stream is not None
    reader = StreamOptimizedReader(io.BytesIO(stream))
    data = bytearray(reader.capacity_bytes)
    for offset, block in reader.blocks():
        data[offset : offset + len(block)] = block
    return bytes(data)


def nfc(host: LeaseHost) -> NfcTicket:
    return NfcTicket(url=host.url, certificate_sha256=host.certificate_sha256)


def back_up(site: Site, host: LeaseHost, previous: JobResult | None = None) -> JobResult:
    changed = AreaSource.EVERYTHING if previous is None else AreaSource.CHANGED
    disk = site.disk_to_back_up(2000, ticket=nfc(host), areas=changed)
    return site.back_up([disk], previous=None if previous is None else point_of(previous))


def restored_by_nfc(site: Site, result: JobResult) -> bytes:
    with lease_host() as host:
        work = site.restore_work(point_of(result), {2000: nfc(host)})
        restore_disks(site.spec(work), site.context())
        return content_of(host.uploaded)


def test_a_transfer_lease_backs_up_and_restores_a_disk(site: Site) -> None:
    with lease_host(stream_of(content(1))) as host:
        result = back_up(site, host)
    assert result.disks[0].transport == "nfc"
    assert restored_by_nfc(site, result) == content(1)


def test_a_stream_that_comes_whole_stores_only_what_differs_from_the_previous_point(
    site: Site,
) -> None:
    with lease_host(stream_of(content(1))) as host:
        first = back_up(site, host)
    changed = bytearray(content(1))
    changed[MIB : MIB + 512] = b"n" * 512
    changed[4 * MIB : 4 * MIB + 2 * UNIT] = bytes(2 * UNIT)
    with lease_host(stream_of(bytes(changed))) as host:
        second = back_up(site, host, first)
    assert second.disks[0].changed_bytes == UNIT
    assert second.disks[0].stored_bytes < UNIT
    assert restored_by_nfc(site, second) == bytes(changed)
    assert restored_by_nfc(site, first) == content(1)


def test_a_cut_stream_makes_no_point(site: Site) -> None:
    with lease_host(stream_of(content(1))) as host:
        host.cut_download_after = len(host.body) - 1024
        with pytest.raises((ShortRead, SourceFailed)):
            back_up(site, host)


def test_a_host_with_another_certificate_gets_and_gives_nothing(site: Site) -> None:
    with lease_host(stream_of(content(1))) as host:
        result = back_up(site, host)
        host.requests.clear()
        host.certificate_sha256 = "ab" * 32
        with pytest.raises(CertificateMismatch):
            back_up(site, host)
        work = site.restore_work(point_of(result), {2000: nfc(host)})
        with pytest.raises(CertificateMismatch):
            restore_disks(site.spec(work), site.context())
        assert host.requests == []


@pytest.mark.parametrize("at", [5, 2 * MIB, 4 * MIB + 100])
def test_a_disk_is_read_back_through_a_lease_whole(site: Site, at: int) -> None:
    with lease_host(stream_of(content(1))) as host:
        result = back_up(site, host)
        work = site.verify_work(point_of(result), {2000: nfc(host)})
        assert verify_disks(site.spec(work), site.context()).outcome is Outcome.DONE
    flipped = bytearray(content(1))
    flipped[at] ^= 1
    with lease_host(stream_of(bytes(flipped))) as host:
        work = site.verify_work(point_of(result), {2000: nfc(host)})
        found = verify_disks(site.spec(work), site.context())
    assert found.outcome is Outcome.FAILED
    assert found.disks[0].differing == (Extent(offset=at // 512 * 512, length=512),)


def attach(site: Site, slot: str, data: bytes) -> Path:
    folder = site.root / "devices" / slot
    folder.mkdir(parents=True)
    (folder / "uuid").write_text(disk_uuid(2000).upper())
    (folder / "disk").write_bytes(data)
    return folder / "disk"


def test_a_hot_added_disk_is_backed_up_restored_and_read_back(site: Site) -> None:
    source = HotAddTicket(bus_number=0, unit_number=1, disk_uuid=disk_uuid(2000))
    target = HotAddTicket(bus_number=0, unit_number=2, disk_uuid=disk_uuid(2000))
    attach(site, "scsi0:1", content(1))
    written = attach(site, "scsi0:2", bytes(CAPACITY))
    result = site.back_up([site.disk_to_back_up(2000, ticket=source)])
    assert result.disks[0].transport == "hotadd"
    work = site.restore_work(point_of(result), {2000: target})
    restore_disks(site.spec(work), site.context())
    assert written.read_bytes() == content(1)
    verify = site.verify_work(point_of(result), {2000: target})
    assert verify_disks(site.spec(verify), site.context()).outcome is Outcome.DONE
    with written.open("r+b") as file:
        file.seek(2 * MIB)
        file.write(b"x")
    assert verify_disks(site.spec(verify), site.context()).outcome is Outcome.FAILED
