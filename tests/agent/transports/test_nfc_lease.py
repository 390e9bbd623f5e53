from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from holdfast_agent.transports import nfc_lease
from holdfast_common.blocks.sink import BlockSink, NewDisk
from holdfast_common.blocks.source import SequentialSource
from holdfast_common.errors import (
    CertificateMismatch,
    FormatError,
    LeaseExpired,
    Refused,
    ShortRead,
    SourceFailed,
    TargetFailed,
)
from holdfast_common.formats.vmdk_stream_optimized import StreamOptimizedReader
from holdfast_common.formats.vmdk_stream_writer import StreamOptimizedWriter
from holdfast_common.job_spec import NfcTicket
from support.agent_configurations import agent_configuration
from support.block_source_contract import (
    CAPACITY,
    DISK_UUID,
    NewDiskSinkContract,
    SequentialSourceContract,
    sample_content,
    write_used_sectors,
)
from support.lease_host import LeaseHost, lease_host


def goes_on() -> None:
    """A job that nobody stops."""


def stream_of(content: bytes) -> bytes:
    stream = io.BytesIO()
    writer = StreamOptimizedWriter(stream, len(content))
    write_used_sectors(writer, content)
    writer.finish()
    return stream.getvalue()


def content_of(stream: bytes) -> bytes:
    reader = StreamOptimizedReader(io.BytesIO(stream))
    content = bytearray(reader.capacity_bytes)
    for offset, data in reader.blocks():
        content[offset : offset + len(data)] = data
    return bytes(content)


def open_source(host: LeaseHost, capacity: int = CAPACITY) -> SequentialSource:
    ticket = NfcTicket(url=host.url, certificate_sha256=host.certificate_sha256)
    return nfc_lease.open_source(
        ticket, agent_configuration(), capacity_bytes=capacity, check=goes_on
    )


def open_sink(host: LeaseHost, *, create: bool = False) -> BlockSink:
    ticket = NfcTicket(url=host.url, certificate_sha256=host.certificate_sha256, create=create)
    disk = NewDisk(capacity_bytes=CAPACITY, adapter_type="lsilogic", disk_uuid=DISK_UUID)
    return nfc_lease.open_sink(ticket, agent_configuration(), disk=disk, check=goes_on)


class TestNfcSource(SequentialSourceContract):
    @contextmanager
    def source_of(self, content: bytes, tmp_path: Path) -> Iterator[SequentialSource]:
        with lease_host(stream_of(content)) as host:
            yield open_source(host)

    @contextmanager
    def cut_source_of(self, content: bytes, tmp_path: Path) -> Iterator[SequentialSource]:
        with lease_host(stream_of(content)) as host:
            host.cut_download_after = len(host.body) - 512  # only the end marker is missing
            yield open_source(host)


class TestNfcSourceInChunks(TestNfcSource):
    @contextmanager
    def source_of(self, content: bytes, tmp_path: Path) -> Iterator[SequentialSource]:
        with lease_host(stream_of(content)) as host:
            host.chunked_download = True
            yield open_source(host)

    @contextmanager
    def cut_source_of(self, content: bytes, tmp_path: Path) -> Iterator[SequentialSource]:
        with lease_host(stream_of(content)) as host:
            host.chunked_download = True
            host.cut_download_after = len(host.body) // 2
            yield open_source(host)


class TestNfcSink(NewDiskSinkContract):
    @pytest.fixture(autouse=True)
    def _host(self) -> Iterator[None]:
        with lease_host() as self.host:
            yield

    def open_sink(self, disk: NewDisk, tmp_path: Path) -> BlockSink:
        return open_sink(self.host)

    def content_of(self, tmp_path: Path) -> bytes | None:
        return None if self.host.uploaded is None else content_of(self.host.uploaded)


@pytest.mark.parametrize("after", [0, 100, 512, 65536, 70000])
def test_a_download_that_is_cut_anywhere_is_an_error(after: int) -> None:
    with lease_host(stream_of(sample_content())) as host:
        host.cut_download_after = after
        with pytest.raises((ShortRead, SourceFailed)), closing(open_source(host)) as source:
            list(source.blocks())


def test_another_certificate_is_refused_before_anything_is_sent() -> None:
    with lease_host(stream_of(sample_content())) as host:
        right = host.certificate_sha256
        host.certificate_sha256 = "0" * 64
        with pytest.raises(CertificateMismatch) as caught:
            open_source(host)
        assert caught.value.facts["found"] == right
        with pytest.raises(CertificateMismatch):
            open_sink(host)
        assert host.connections == 2
        assert host.requests == []


@pytest.mark.parametrize(
    ("url", "digest"),
    [
        ("http://127.0.0.2/disk.vmdk", "0" * 64),
        ("https://*/nfc/1/disk.vmdk", "0" * 64),
        ("https://user@127.0.0.2/disk.vmdk", "0" * 64),
        ("https://127.0.0.2/disk.vmdk", ""),
    ],
)
def test_a_ticket_that_cannot_be_pinned_is_refused(url: str, digest: str) -> None:
    with pytest.raises(Refused):
        open_source(LeaseHost(url=url, certificate_sha256=digest))


@pytest.mark.parametrize(
    ("status", "error"), [(404, LeaseExpired), (500, SourceFailed), (302, SourceFailed)]
)
def test_a_refused_download_says_the_status(status: int, error: type[Exception]) -> None:
    with lease_host(stream_of(sample_content())) as host:
        host.status = status
        with pytest.raises(error, match=str(status)):
            open_source(host)


def test_a_disk_of_another_size_is_refused() -> None:
    with lease_host(stream_of(sample_content())) as host:
        for capacity in (CAPACITY - 512, CAPACITY + 512):
            with pytest.raises(FormatError):
                open_source(host, capacity)


@pytest.mark.parametrize(("create", "method"), [(False, "POST"), (True, "PUT")])
def test_the_upload_is_sent_as_the_lease_wants_it(create: bool, method: str) -> None:
    with lease_host() as host, closing(open_sink(host, create=create)) as sink:
        sink.finish()
    (found, path, headers) = host.requests[0]
    assert (found, path) == (method, "/nfc/5200-aa/disk-0.vmdk")
    assert headers["Content-Type"] == "application/x-vnd.vmware-streamVmdk"
    assert ("Overwrite" in headers) is not create


@pytest.mark.parametrize(("status", "error"), [(404, LeaseExpired), (507, TargetFailed)])
def test_an_upload_that_the_host_refuses_in_the_end_is_an_error(
    status: int, error: type[Exception]
) -> None:
    with lease_host() as host, closing(open_sink(host)) as sink:
        host.status = status
        write_used_sectors(sink, sample_content())
        with pytest.raises(error, match=str(status)):
            sink.finish()


def test_a_host_that_stops_listening_is_an_error() -> None:
    content = bytes(range(1, 256)) * (CAPACITY // 255) + b"x" * (CAPACITY % 255)
    with lease_host() as host, closing(open_sink(host)) as sink:
        host.cut_upload_after = 1
        host.status = 507
        with pytest.raises(TargetFailed):
            write_and_finish(sink, content)


def write_and_finish(sink: BlockSink, content: bytes) -> None:
    write_used_sectors(sink, content)
    sink.finish()


def test_a_host_that_is_gone_is_an_error() -> None:
    with lease_host(stream_of(sample_content())) as host:
        pass
    with pytest.raises(SourceFailed):
        open_source(host)
    with pytest.raises(TargetFailed):
        open_sink(host)
