from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from holdfast_agent.attached_disks import (
    AttachedDisk,
    DeviceFolder,
    LinuxScsiDevices,
    uuid_digits,
    uuid_from_page_83,
)
from holdfast_agent.transports import hot_add
from holdfast_common.blocks.sink import BlockSink, NewDisk
from holdfast_common.blocks.source import BlockSource
from holdfast_common.errors import Cancelled, FormatError, ShortRead, SourceFailed, TargetFailed
from holdfast_common.job_spec import HotAddTicket
from support.agent_configurations import agent_configuration
from support.block_source_contract import (
    CAPACITY,
    DISK_UUID,
    BlockSourceContract,
    UnorderedSinkContract,
    sample_content,
    write_used_sectors,
)

OTHER_UUID = "6000C29f-ffff-ffff-ffff-ffffffffffff"
TICKET = HotAddTicket(bus_number=1, unit_number=3, disk_uuid=DISK_UUID)


def goes_on() -> None:
    """A job that nobody stops."""


def attach(
    tmp_path: Path, content: bytes, *, slot: str = "scsi1:3", disk_uuid: str = DISK_UUID
) -> Path:
    folder = tmp_path / "devices" / slot
    folder.mkdir(parents=True)
    (folder / "uuid").write_text(disk_uuid + "\n")
    with (folder / "disk").open("wb") as file:
        file.truncate(len(content))
        for offset in range(0, len(content), 4096):
            piece = content[offset : offset + 4096]
            if any(piece):
                file.seek(offset)
                file.write(piece)
    return folder / "disk"


def open_source(tmp_path: Path, ticket: HotAddTicket = TICKET) -> BlockSource:
    return hot_add.open_source(
        ticket,
        agent_configuration(device_folder=tmp_path / "devices"),
        capacity_bytes=CAPACITY,
        check=goes_on,
    )


def open_sink(tmp_path: Path) -> BlockSink:
    return hot_add.open_sink(
        TICKET,
        agent_configuration(device_folder=tmp_path / "devices"),
        disk=NewDisk(capacity_bytes=CAPACITY),
        check=goes_on,
    )


class TestHotAddSource(BlockSourceContract):
    @contextmanager
    def source_of(self, content: bytes, tmp_path: Path) -> Iterator[BlockSource]:
        attach(tmp_path, content)
        yield open_source(tmp_path)


class TestHotAddSink(UnorderedSinkContract):
    def open_sink(self, disk: NewDisk, tmp_path: Path) -> BlockSink:
        self.disk_file = attach(tmp_path, bytes(disk.capacity_bytes))
        return open_sink(tmp_path)

    def content_of(self, tmp_path: Path) -> bytes | None:
        return self.disk_file.read_bytes()


def test_of_two_clones_with_one_uuid_the_one_in_the_slot_is_read(tmp_path: Path) -> None:
    attach(tmp_path, sample_content(seed=1), slot="scsi1:2")
    attach(tmp_path, sample_content(seed=2), slot="scsi1:3")
    buffer = memoryview(bytearray(CAPACITY))
    with closing(open_source(tmp_path)) as source:
        source.read_into(0, buffer)
    assert bytes(buffer) == sample_content(seed=2)


def test_another_disk_in_the_slot_is_refused_and_both_uuids_are_named(tmp_path: Path) -> None:
    attach(tmp_path, sample_content(), disk_uuid=OTHER_UUID)
    with pytest.raises(SourceFailed) as caught:
        open_source(tmp_path)
    assert caught.value.facts["found"] == uuid_digits(OTHER_UUID)
    assert caught.value.facts["wanted"] == uuid_digits(DISK_UUID)
    with pytest.raises(TargetFailed):
        open_sink(tmp_path)


def test_a_disk_that_does_not_appear_is_an_error_that_names_its_slot(tmp_path: Path) -> None:
    with pytest.raises(SourceFailed, match="scsi1:3"):
        hot_add.wait_for_disk(
            TICKET,
            DeviceFolder(tmp_path),
            failure=SourceFailed,
            check=goes_on,
            seconds_max=0.1,
        )


class AppearsLater:
    """A system that needs some looks until it sees a new disk."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    def find(self, *, bus_number: int, unit_number: int) -> AttachedDisk | None:
        assert (bus_number, unit_number) == (1, 3)
        self.looks -= 1
        if self.looks >= 0:
            return None
        return AttachedDisk(path=Path("/dev/sdx"), uuid=uuid_digits(DISK_UUID))


def test_a_disk_that_appears_late_is_waited_for() -> None:
    found = hot_add.wait_for_disk(TICKET, AppearsLater(2), failure=SourceFailed, check=goes_on)
    assert found.path == Path("/dev/sdx")


def test_a_stop_is_heard_while_waiting_for_a_disk() -> None:
    def check() -> None:
        raise Cancelled("job was cancelled")

    with pytest.raises(Cancelled):
        hot_add.wait_for_disk(TICKET, AppearsLater(1000), failure=SourceFailed, check=check)


@pytest.mark.parametrize("change", [-512, 512])
def test_a_disk_of_another_size_is_refused(tmp_path: Path, change: int) -> None:
    os.truncate(attach(tmp_path, sample_content()), CAPACITY + change)
    with pytest.raises(SourceFailed, match="another size"):
        open_source(tmp_path)
    with pytest.raises(TargetFailed, match="another size"):
        open_sink(tmp_path)


def test_a_disk_that_ends_early_is_an_error(tmp_path: Path) -> None:
    disk = attach(tmp_path, sample_content())
    with closing(open_source(tmp_path)) as source:
        os.truncate(disk, CAPACITY // 2)
        with pytest.raises(ShortRead):
            source.read_into(0, memoryview(bytearray(CAPACITY)))


def test_what_another_wrote_meanwhile_is_read_from_the_disk_not_from_the_cache(
    tmp_path: Path,
) -> None:
    attach(tmp_path, bytes(CAPACITY))
    content = sample_content()
    with closing(open_sink(tmp_path)) as sink:
        write_used_sectors(sink, content)
        sink.finish()
    buffer = memoryview(bytearray(CAPACITY))
    with closing(open_source(tmp_path)) as source:
        source.read_into(0, buffer)
    assert bytes(buffer) == content


def naa_page(disk_uuid: str) -> bytes:
    naa = bytes([1, 3, 0, 16]) + bytes.fromhex(uuid_digits(disk_uuid))
    vendor = bytes([2, 1, 0, 8]) + b"VMware  "
    return bytes([0, 0x83, 0, len(vendor) + len(naa)]) + vendor + naa


def make_sysfs(tmp_path: Path, *, label: str, address: str, name: str, page: bytes) -> Path:
    sysfs = tmp_path / "sys"
    pci = sysfs / "devices/pci0000:00/0000:00:15.0/0000:03:00.0"
    host = address.split(":", maxsplit=1)[0]
    device = pci / f"{label}x/host{host}/target{address.rsplit(':', 1)[0]}/{address}"
    (device / "block" / name).mkdir(parents=True)
    (device / "vpd_pg83").write_bytes(page)
    (pci / f"{label}x" / "label").write_text(label + "\n")
    link = sysfs / "class/scsi_device" / address
    link.mkdir(parents=True)
    (link / "device").symlink_to(device)
    return sysfs


def test_linux_finds_a_disk_by_the_controllers_label_and_the_unit(tmp_path: Path) -> None:
    make_sysfs(tmp_path, label="SCSI0", address="2:0:3:0", name="sdb", page=naa_page(OTHER_UUID))
    sysfs = make_sysfs(
        tmp_path, label="SCSI1", address="4:0:3:0", name="sdc", page=naa_page(DISK_UUID)
    )
    disks = LinuxScsiDevices(sysfs=sysfs, devices=tmp_path)
    assert disks.find(bus_number=1, unit_number=3) == AttachedDisk(
        path=tmp_path / "sdc", uuid=uuid_digits(DISK_UUID)
    )
    assert disks.find(bus_number=1, unit_number=4) is None
    assert disks.find(bus_number=2, unit_number=3) is None


def test_a_system_that_hides_uuids_is_refused_with_advice(tmp_path: Path) -> None:
    sysfs = make_sysfs(tmp_path, label="SCSI1", address="4:0:3:0", name="sdc", page=b"")
    with pytest.raises(SourceFailed) as caught:
        hot_add.wait_for_disk(
            TICKET,
            LinuxScsiDevices(sysfs=sysfs, devices=tmp_path),
            failure=SourceFailed,
            check=goes_on,
        )
    assert "EnableUUID" in caught.value.advice


@pytest.mark.parametrize("page", [b"\0", b"\0\x80\0\0", b"\0\x83\0\x20\1\3\0\x10short"])
def test_a_malformed_identification_page_proves_nothing(page: bytes) -> None:
    with suppress(FormatError):
        assert uuid_from_page_83(page) == ""
