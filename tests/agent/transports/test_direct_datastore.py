from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from holdfast_agent.configuration import AgentConfiguration
from holdfast_agent.transports import direct_datastore
from holdfast_common.blocks.sink import BlockSink, NewDisk
from holdfast_common.blocks.source import BlockSource
from holdfast_common.errors import FormatError, Refused, SourceFailed, TargetFailed
from holdfast_common.formats.vmdk_chain import open_chain_at
from holdfast_common.identity import DatastoreId
from holdfast_common.job_spec import ChainFile, DirectTicket
from support.agent_configurations import agent_configuration
from support.block_source_contract import (
    CAPACITY,
    DISK_UUID,
    BlockSourceContract,
    NewDiskSinkContract,
    UnorderedSinkContract,
    sample_content,
    write_used_sectors,
)

DATASTORE = DatastoreId("ds:///vmfs/volumes/nfs-1/")
PATH = "vm/disk.vmdk"


def goes_on() -> None:
    """A job that nobody stops."""


def configuration(tmp_path: Path) -> AgentConfiguration:
    (tmp_path / "nfs" / "vm").mkdir(parents=True, exist_ok=True)
    return agent_configuration(datastores={DATASTORE: tmp_path / "nfs"})


def ticket(*paths: str, datastore: DatastoreId = DATASTORE) -> DirectTicket:
    return DirectTicket(chain=tuple(ChainFile(datastore_id=datastore, path=p) for p in paths))


def open_source(tmp_path: Path, *paths: str) -> BlockSource:
    return direct_datastore.open_source(
        ticket(*paths), configuration(tmp_path), capacity_bytes=CAPACITY, check=goes_on
    )


def open_sink(tmp_path: Path, path: str = PATH, capacity: int = CAPACITY) -> BlockSink:
    disk = NewDisk(capacity_bytes=capacity, adapter_type="lsilogic", disk_uuid=DISK_UUID)
    return direct_datastore.open_sink(
        ticket(path), configuration(tmp_path), disk=disk, check=goes_on
    )


def make_disk(tmp_path: Path, path: str = PATH) -> None:
    with closing(open_sink(tmp_path, path)) as sink:
        write_used_sectors(sink, sample_content())
        sink.finish()


class TestDirectSource(BlockSourceContract):
    @contextmanager
    def source_of(self, content: bytes, tmp_path: Path) -> Iterator[BlockSource]:
        with closing(open_sink(tmp_path)) as sink:
            write_used_sectors(sink, content)
            sink.finish()
        yield open_source(tmp_path, PATH)


class TestDirectSink(NewDiskSinkContract, UnorderedSinkContract):
    def open_sink(self, disk: NewDisk, tmp_path: Path) -> BlockSink:
        return direct_datastore.open_sink(
            ticket(PATH), configuration(tmp_path), disk=disk, check=goes_on
        )

    def content_of(self, tmp_path: Path) -> bytes | None:
        path = tmp_path / "nfs" / PATH
        if not path.exists():
            assert not list(path.parent.iterdir()), "an unfinished disk left something behind"
            return None
        with open_chain_at([path]) as chain:
            buffer = memoryview(bytearray(chain.capacity_bytes))
            chain.read_into(0, buffer)
            assert chain.descriptor.disk_uuid == DISK_UUID
            assert chain.descriptor.adapter_type == "lsilogic"
        return bytes(buffer)


def test_the_new_flat_file_is_sparse(tmp_path: Path) -> None:
    capacity = 1024 * CAPACITY
    with closing(open_sink(tmp_path, capacity=capacity)) as sink:
        sink.write(0, memoryview(b"x" * 4096))
        sink.finish()
    status = (tmp_path / "nfs/vm/disk-flat.vmdk").stat()
    assert status.st_size == capacity
    assert status.st_blocks * 512 < CAPACITY


@pytest.mark.parametrize("name", ["disk.vmdk", "disk-flat.vmdk"])
def test_nothing_is_written_over_an_existing_file(tmp_path: Path, name: str) -> None:
    configuration(tmp_path)
    existing = tmp_path / "nfs/vm" / name
    existing.write_text("the customer's")
    with pytest.raises(Refused):
        open_sink(tmp_path)
    assert existing.read_text() == "the customer's"
    assert [path.name for path in existing.parent.iterdir()] == [name]


def test_a_descriptor_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with closing(open_sink(tmp_path)) as sink:
        (tmp_path / "nfs" / PATH).write_text("the customer's")
        with pytest.raises(Refused):
            sink.finish()
    assert (tmp_path / "nfs" / PATH).read_text() == "the customer's"
    assert not (tmp_path / "nfs/vm/disk-flat.vmdk").exists()


@pytest.mark.parametrize(
    "path", ["../outside.vmdk", "vm/../../outside.vmdk", "/etc/passwd", "", "vm/", ".", "a\0b"]
)
def test_a_path_that_could_lead_outside_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(Refused):
        open_source(tmp_path, path)
    with pytest.raises(Refused):
        open_sink(tmp_path, path)


def test_a_linked_folder_is_not_followed(tmp_path: Path) -> None:
    make_disk(tmp_path)
    (tmp_path / "nfs/link").symlink_to(tmp_path / "nfs/vm")
    with pytest.raises(SourceFailed):
        open_source(tmp_path, "link/disk.vmdk")
    with pytest.raises(TargetFailed):
        open_sink(tmp_path, "link/new.vmdk")


def test_a_linked_disk_is_not_followed(tmp_path: Path) -> None:
    make_disk(tmp_path)
    (tmp_path / "nfs/vm/link.vmdk").symlink_to("disk.vmdk")
    with pytest.raises(FormatError):
        open_source(tmp_path, "vm/link.vmdk")


def test_a_datastore_that_is_not_configured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="does not reach"):
        direct_datastore.open_source(
            ticket(PATH, datastore=DatastoreId("ds:///vmfs/volumes/other/")),
            configuration(tmp_path),
            capacity_bytes=CAPACITY,
            check=goes_on,
        )


def test_a_disk_of_another_size_than_the_inventory_says_is_refused(tmp_path: Path) -> None:
    make_disk(tmp_path)
    with pytest.raises(FormatError, match="another size"):
        direct_datastore.open_source(
            ticket(PATH), configuration(tmp_path), capacity_bytes=CAPACITY + 512, check=goes_on
        )


def test_a_disk_that_gets_shorter_is_an_error(tmp_path: Path) -> None:
    make_disk(tmp_path)
    with closing(open_source(tmp_path, PATH)) as source:
        os.truncate(tmp_path / "nfs/vm/disk-flat.vmdk", CAPACITY // 2)
        with pytest.raises(SourceFailed):
            source.read_into(CAPACITY - 4096, memoryview(bytearray(4096)))


def test_no_file_stays_open(tmp_path: Path) -> None:
    make_disk(tmp_path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    open_source(tmp_path, PATH).close()
    open_sink(tmp_path, "vm/second.vmdk").close()
    with pytest.raises(Refused):
        open_sink(tmp_path, PATH)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
